//! Report files, as `katamaran report` reads them.

use katamaran::migrate::report::Report;
use katamaran::migrate::summary::render;

use super::Target;

pub(super) const TARGET: Target = Target {
    name: "report",
    run,
    base: 128 << 10,
    per_byte: 256,
};

fn run(bytes: &[u8]) {
    let Ok(report) = Report::from_json(bytes) else {
        return;
    };
    let text = render(&report);
    assert!(text.ends_with('\n'));
    for strict in [false, true] {
        assert!(matches!(report.exit_code(strict), 0..=5 | 130));
    }
    let json = serde_json::to_vec(&report).expect("a report that was read can be written");
    Report::from_json(&json).expect("what is written can be read");
}
