//! What katamaran reads from others, fed with whatever libFuzzer comes up with.
//!
//! One program for all targets: `KATAMARAN_FUZZ` names the one to run. Each target panics where
//! something does not hold; what none of them may do is take more memory than its input accounts for.
//! `cargo xtask fuzz` builds, runs and sums up; `fuzz/corpus/TARGET` is what each starts from.
#![cfg_attr(feature = "run", no_main)]

mod steps;
mod targets;

use std::sync::OnceLock;

use peak_alloc::PeakAlloc;

use targets::Target;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

static CHOSEN: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: choose(), |bytes: &[u8]| {
    let target = CHOSEN.get().expect("libFuzzer initializes before it runs");
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    (target.run)(bytes);
    let taken = MEMORY.peak_usage().saturating_sub(before);
    let most = target.memory(bytes.len());
    assert!(
        taken <= most,
        "{} bytes of input took {taken} bytes of memory, more than {most}",
        bytes.len()
    );
});

fn choose() {
    let name = std::env::var("KATAMARAN_FUZZ").unwrap_or_default();
    let known = targets::ALL.iter().map(|target| target.name);
    let target = targets::ALL.iter().find(|target| target.name == name);
    let Some(target) = target else {
        panic!(
            "KATAMARAN_FUZZ={name:?} is no target: {:?}",
            known.collect::<Vec<_>>()
        );
    };
    // What a target needs once is not what its first input takes.
    (target.run)(&[]);
    CHOSEN.get_or_init(|| target);
}

#[cfg(not(feature = "run"))]
fn main() {}
