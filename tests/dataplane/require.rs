//! What a test needs, and what happens without it.

use std::env;

/// Whether the test can run here. Says why not, and fails where that was forbidden.
#[track_caller]
pub(crate) fn can_run(name: &str) -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        ("root", "not root".to_owned())
    } else if let Err(error) = katamaran::ebpf::object_state() {
        ("bpf", error.to_string())
    } else {
        return true;
    };
    let required = env::var("KATAMARAN_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|what| what == missing.0),
        "{name} must run here (KATAMARAN_REQUIRE={required}): {}",
        missing.1
    );
    println!("SKIP {name}: {}", missing.1);
    false
}

/// Returns from the test where it can't run.
macro_rules! require {
    ($name:literal) => {
        if !crate::require::can_run($name) {
            return;
        }
    };
}
pub(crate) use require;
