//! The targets, a module each.

mod frame;
mod qmp_line;

/// Something that reads bytes.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Feeds it and panics where something does not hold.
    pub(crate) run: fn(&[u8]),
    /// Memory that it may take for any input, in bytes.
    base: usize,
    /// Memory that it may take for each byte of the input.
    per_byte: usize,
}

impl Target {
    /// The most memory that an input of this length may take.
    pub(crate) fn memory(&self, length: usize) -> usize {
        self.base + self.per_byte * length
    }
}

pub(crate) const ALL: &[Target] = &[frame::TARGET, qmp_line::TARGET];

/// Runs what is asynchronous; nothing here waits for time or for a peer.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime of one thread");
    }
    RUNTIME.with(|runtime| runtime.block_on(work))
}
