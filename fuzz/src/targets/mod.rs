//! The targets, a module each.

mod conntrack;
mod count;
mod frame;
mod metrics;
mod nbd;
mod packet;
mod preamble;
mod qmp;
mod qmp_line;
mod reply;
mod report;
mod session;

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

pub(crate) const ALL: &[Target] = &[
    conntrack::TARGET,
    count::TARGET,
    frame::TARGET,
    metrics::TARGET,
    nbd::TARGET,
    packet::TARGET,
    preamble::TARGET,
    qmp::TARGET,
    qmp_line::TARGET,
    reply::TARGET,
    report::TARGET,
    session::TARGET,
];

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
