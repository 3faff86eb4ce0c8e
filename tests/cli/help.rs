//! What the command says about itself.

use crate::support::katamaran;

#[test]
fn help_explains_the_flags_and_the_exit_status() {
    for flag in ["--help", "-help", "-h"] {
        let ended = katamaran(&[flag]);
        assert_eq!(ended.status, Some(0), "{ended:#?}");
        assert!(ended.stderr.is_empty(), "{ended:#?}");
        for word in [
            "--mode",
            "--qmp",
            "--dest-ip",
            "--vm-ip",
            "--port",
            "--tap",
            "--tap-netns",
            "--redirect-dev",
            "--shared-storage",
            "--drive-id",
            "--bandwidth",
            "--storage-sync-timeout",
            "--verify-storage",
            "--tunnel-mode",
            "--downtime",
            "--multifd-channels",
            "--max-bandwidth",
            "--cni-convergence-delay",
            "--report",
            "--require-zero-drop",
            "--tls-dir",
            "--insecure-plaintext",
            "--metrics-listen",
            "--metrics-file",
            "--log-format",
            "--log-level",
            "Exit status:",
        ] {
            assert!(ended.stdout.contains(word), "{flag} does not tell {word}");
        }
        let codes = ended.stdout.split("Exit status:").nth(1).unwrap();
        for code in ["0", "1", "2", "3", "4", "5", "130"] {
            let told = codes
                .lines()
                .any(|line| line.split_whitespace().next() == Some(code));
            assert!(told, "{flag} does not tell what exit status {code} means");
        }
    }
}

#[test]
fn the_traces_flags_are_explained() {
    let ended = katamaran(&["trace", "--help"]);
    assert_eq!(ended.status, Some(0), "{ended:#?}");
    for word in ["--vm-ip", "--duration", "--count", "--json", "--log-level"] {
        assert!(ended.stdout.contains(word), "{word}: {ended:#?}");
    }
}

#[test]
fn version_is_told_on_standard_output() {
    for flag in ["--version", "-version", "-V"] {
        let ended = katamaran(&[flag]);
        assert_eq!(ended.status, Some(0), "{ended:#?}");
        assert!(ended.stdout.starts_with("katamaran "), "{ended:#?}");
        assert!(
            ended.stdout.contains(env!("CARGO_PKG_VERSION")),
            "{ended:#?}"
        );
    }
}
