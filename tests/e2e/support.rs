//! What all tests here ask of a migration.

use katamaran_tests::lab::Node;
use katamaran_tests::leak::session_files;
use katamaran_tests::run::{Ended, MigrationRun, SideResult, Stage, katamaran_command};
use serde_json::Value;

/// Returns from the test where it can't run.
macro_rules! require {
    ($($need:ident),+) => {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        if !katamaran_tests::need::met(&test, &[$(katamaran_tests::need::Need::$need),+]) {
            return;
        }
    };
}
pub(crate) use require;

/// What a side of a finished run left.
pub(crate) fn side(side: &Option<SideResult>) -> &SideResult {
    side.as_ref().expect("a run of katamaran has both sides")
}

/// The report that a side wrote.
#[track_caller]
pub(crate) fn report(side: &SideResult) -> &Value {
    let Some(report) = &side.report else {
        panic!("no report\n{}\n{}", side.stdout, side.stderr)
    };
    report
}

/// A number of a report.
#[track_caller]
pub(crate) fn number(report: &Value, pointer: &str) -> f64 {
    let number = report.pointer(pointer).and_then(Value::as_f64);
    number.unwrap_or_else(|| panic!("{pointer} is no number in {report:#}"))
}

/// Everything that is known about a run, for a failed assertion.
pub(crate) fn all(run: &MigrationRun) -> String {
    run.told()
}

/// The same for a migration that was played by hand.
pub(crate) fn both(ended: &Ended) -> String {
    all(&MigrationRun {
        kind: "katamaran".to_owned(),
        leaks: ended.leaks.clone(),
        source: Some(ended.source.clone()),
        dest: Some(ended.dest.clone()),
        ..MigrationRun::default()
    })
}

/// Nothing is left but what belongs to a destination that was killed: nobody was left to clean up on B.
#[track_caller]
pub(crate) fn assert_clean_but_for_the_dead_destination(stage: &Stage, ended: &Ended) {
    let b = stage.lab.network().node(Node::B).name();
    let mut leaks = ended.leaks.clone();
    leaks.retain(|leak| {
        !leak.contains(b) && !leak.contains("/sys/fs/bpf") && !leak.contains("-dest")
    });
    assert_eq!(leaks, Vec::<String>::new(), "{}", both(ended));
}

/// Has katamaran remove what a killed destination left, and leaves nothing.
#[track_caller]
pub(crate) fn clean_up_after_the_dead_destination(stage: &Stage, ended: &Ended) {
    let session = report(&ended.source)["session"].as_str().unwrap();
    let (status, told) = katamaran(stage, Node::B, &["cleanup", "--session", session]);
    assert_eq!(status, Some(5), "{told}");
    assert!(told.contains("would take the programs off"), "{told}");
    let apply = ["cleanup", "--apply", "--session", session];
    let (status, told) = katamaran(stage, Node::B, &apply);
    assert_eq!(status, Some(0), "{told}");
    assert_eq!(session_files(session), Vec::<String>::new(), "{told}");
}

/// Exit status and output of one of katamaran's commands on a node.
pub(crate) fn katamaran(stage: &Stage, node: Node, args: &[&str]) -> (Option<i32>, String) {
    let output = katamaran_command(stage, node, args).unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}
