//! Bad usage: exit 2, a message that shows the value, nothing touched.

use crate::support::{Monitor, and, katamaran, with};

/// Runs it, and fails unless it was refused with `words` and nobody was called.
#[track_caller]
fn refused(monitor: &Monitor, flags: &[String], words: &[&str]) {
    let ended = katamaran(flags);
    ended.expect(2, words);
    assert!(ended.stdout.is_empty(), "{ended:#?}");
    assert!(
        monitor.caller().is_none(),
        "the QMP socket was touched: {flags:?}"
    );
}

#[test]
fn an_invalid_value_is_shown_and_nothing_is_touched() {
    let monitor = Monitor::new();
    let source = || monitor.source_flags();
    for (flag, value, words) in [
        ("--mode", "sauce", &["sauce", "source or dest"][..]),
        ("--dest-ip", "10.0.0.256", &["--dest-ip", "10.0.0.256"]),
        ("--dest-ip", "node-b", &["--dest-ip", "node-b"]),
        ("--dest-ip", "10.0.0.2:7482", &["10.0.0.2:7482"]),
        ("--dest-ip", "", &["--dest-ip"]),
        ("--vm-ip", "10.1.0.300", &["--vm-ip", "10.1.0.300"]),
        ("--vm-ip", "10.1.0.5/24", &["10.1.0.5/24"]),
        ("--vm-ip", "0.0.0.0", &["0.0.0.0", "one host"]),
        ("--vm-ip", "224.0.0.1", &["224.0.0.1", "one host"]),
        ("--vm-ip", "127.0.0.1", &["127.0.0.1", "one host"]),
        ("--vm-ip", "fe80::1", &["fe80::1", "link-local"]),
        (
            "--vm-ip",
            "255.255.255.255",
            &["255.255.255.255", "broadcast", "one host"],
        ),
        (
            "--dest-ip",
            "0.0.0.0",
            &["--dest-ip 0.0.0.0", "unspecified"],
        ),
        (
            "--dest-ip",
            "192.0.2.5",
            &["192.0.2.5 is in both --dest-ip and --vm-ip"],
        ),
        (
            "--dest-ip",
            "192.0.2.2,",
            &["--dest-ip has an empty entry", "one comma"],
        ),
        ("--vm-ip", "fe80::1%eth0", &["fe80::1%eth0", "zone"]),
        ("--dest-ip", "fe80::1%eth0", &["fe80::1%eth0", "zone"]),
        ("--port", "0", &["--port"]),
        ("--port", "65536", &["--port", "65536"]),
        ("--port", "http", &["--port", "http"]),
        ("--tap", "a/b", &["--tap", "a/b"]),
        ("--tap", "a-name-of-16-chr", &["--tap", "a-name-of-16-chr"]),
        (
            "--redirect-dev",
            "two words",
            &["--redirect-dev", "two words"],
        ),
        ("--downtime", "0", &["--downtime 0"]),
        ("--downtime", "60001", &["--downtime 60001"]),
        ("--downtime", "soon", &["--downtime", "soon"]),
        ("--multifd-channels", "65", &["--multifd-channels", "65"]),
        ("--multifd-channels", "256", &["--multifd-channels", "256"]),
        ("--max-bandwidth", "fast", &["--max-bandwidth", "fast"]),
        ("--max-bandwidth", "0", &["--max-bandwidth", "0"]),
        (
            "--migration-timeout",
            "0",
            &["--migration-timeout 0", "30-3600"],
        ),
        (
            "--migration-timeout",
            "3601",
            &["--migration-timeout 3601", "30-3600"],
        ),
        ("--drive-id", "a,b,a", &["--drive-id", "a twice"]),
        ("--drive-id", "", &["--drive-id", "empty name"]),
        ("--bandwidth", "much", &["--bandwidth", "much"]),
        ("--storage-sync-timeout", "0", &["--storage-sync-timeout 0"]),
        ("--cni-convergence-delay", "-1", &["-1"]),
        (
            "--cni-convergence-delay",
            "18446744073709551615",
            &["--cni-convergence-delay 18446744073709551615", "0-3600"],
        ),
        (
            "--storage-sync-timeout",
            "18446744073709551616",
            &["18446744073709551616"],
        ),
        (
            "--report",
            "/nonexistent/report.json",
            &["--report /nonexistent/report.json", "No such file"],
        ),
        ("--report", "/", &["--report /", "directory"]),
        (
            "--tunnel-mode",
            "pigeon",
            &["--tunnel-mode", "pigeon", "vxlan"],
        ),
        ("--source-vm", "sell", &["--source-vm", "sell"]),
        ("--log-format", "xml", &["--log-format", "xml"]),
        ("--log-level", "a=b=c", &["a=b=c"]),
    ] {
        refused(&monitor, &with(source(), flag, Some(value)), words);
    }
}

#[test]
fn empty_values_are_refused_by_name() {
    let monitor = Monitor::new();
    for flag in ["--tap-netns", "--report", "--tap", "--redirect-dev"] {
        let flags = with(monitor.source_flags(), flag, Some(""));
        refused(&monitor, &flags, &[flag]);
    }
}

#[test]
fn a_path_that_no_socket_can_have_is_told_with_its_length() {
    let monitor = Monitor::new();
    let path = format!("/{}", "q".repeat(107));
    let flags = with(monitor.source_flags(), "--qmp", Some(&path));
    refused(&monitor, &flags, &["--qmp", "108 bytes", "107 at most"]);
}

#[test]
fn what_is_not_implemented_is_said_to_be() {
    let monitor = Monitor::new();
    for base in [monitor.source_flags(), monitor.destination_flags()] {
        let open = with(base, "--insecure-plaintext", None);
        refused(
            &monitor,
            &and(open.clone(), &["--tls-dir", "/etc/tls"]),
            &["--tls-dir", "not implemented"],
        );
        refused(&monitor, &open, &["--insecure-plaintext", "encrypted"]);
    }
}

#[test]
fn plaintext_and_certificates_exclude_each_other() {
    let monitor = Monitor::new();
    let both = and(monitor.source_flags(), &["--tls-dir", "/etc/tls"]);
    refused(&monitor, &both, &["--tls-dir", "--insecure-plaintext"]);
}

#[test]
fn all_that_is_missing_is_named_at_once() {
    let monitor = Monitor::new();
    refused(
        &monitor,
        &["--mode", "source"].map(str::to_owned),
        &[
            "--qmp",
            "--dest-ip",
            "--vm-ip",
            "--insecure-plaintext",
            "--help",
        ],
    );
    refused(
        &monitor,
        &["--mode", "dest"].map(str::to_owned),
        &["--qmp", "--insecure-plaintext"],
    );
    refused(&monitor, &[], &["--mode is missing", "source", "dest"]);
}

#[test]
fn several_mistakes_are_told_in_one_go() {
    let monitor = Monitor::new();
    let flags = with(monitor.source_flags(), "--vm-ip", Some("1.2.3"));
    let flags = with(flags, "--downtime", Some("0"));
    let flags = with(flags, "--tunnel-mode", Some("sit"));
    refused(&monitor, &flags, &["1.2.3", "--downtime 0", "sit", "gre"]);
}

#[test]
fn each_family_of_the_vm_needs_one_address_of_the_destination() {
    let monitor = Monitor::new();
    let source = |dest: &str, vm: &str| {
        let flags = with(monitor.source_flags(), "--dest-ip", Some(dest));
        with(flags, "--vm-ip", Some(vm))
    };
    refused(
        &monitor,
        &source("192.0.2.2", "2001:db8::5"),
        &["mixed address families", "IPv6", "2001:db8::5"],
    );
    refused(
        &monitor,
        &source("2001:db8::2", "192.0.2.5"),
        &["mixed address families", "IPv4", "192.0.2.5"],
    );
    refused(
        &monitor,
        &source("192.0.2.2,192.0.2.3", "192.0.2.5"),
        &["2 IPv4 addresses"],
    );
}

#[test]
fn an_address_given_twice_is_refused_in_whatever_form() {
    let monitor = Monitor::new();
    for (flag, value) in [
        ("--vm-ip", "192.0.2.5,192.0.2.5"),
        ("--vm-ip", "192.0.2.5,::ffff:192.0.2.5"),
        ("--dest-ip", "192.0.2.2,192.0.2.2"),
    ] {
        let flags = with(monitor.source_flags(), flag, Some(value));
        refused(&monitor, &flags, &[flag, "twice"]);
    }
}

#[test]
fn positional_and_unknown_arguments_are_refused_by_name() {
    let monitor = Monitor::new();
    let source = || monitor.source_flags();
    refused(&monitor, &and(source(), &["stray"]), &["stray"]);
    refused(
        &monitor,
        &and(source(), &["--no-such-flag"]),
        &["--no-such-flag"],
    );
    refused(
        &monitor,
        &and(source(), &["-no-such-flag"]),
        &["--no-such-flag"],
    );
    refused(&monitor, &["stray".to_owned()], &["stray"]);
    refused(&monitor, &and(source(), &["--port"]), &["--port"]);
    refused(&monitor, &and(source(), &["--mode", "dest"]), &["--mode"]);
}

#[test]
fn flags_of_the_other_side_are_refused_by_name() {
    let monitor = Monitor::new();
    for (flag, value) in [
        ("--dest-ip", "192.0.2.2"),
        ("--vm-ip", "192.0.2.5"),
        ("--redirect-dev", "eth0"),
        ("--max-bandwidth", "1G"),
    ] {
        let flags = with(monitor.destination_flags(), flag, Some(value));
        refused(&monitor, &flags, &[flag, "--mode source"]);
    }
    let flags = with(monitor.source_flags(), "--listen", Some("192.0.2.2"));
    refused(&monitor, &flags, &["--listen", "--mode dest"]);
    let flags = with(monitor.destination_flags(), "--listen", Some("nowhere"));
    refused(&monitor, &flags, &["--listen", "nowhere"]);
}

#[test]
fn one_dash_is_as_good_as_two() {
    let monitor = Monitor::new();
    // Valid but for the address, which only a parser that understood all the rest gets to.
    let flags: Vec<String> = with(monitor.source_flags(), "--vm-ip", Some("10.1.0.300"))
        .iter()
        .map(|word| match word.strip_prefix("--") {
            Some(name) => format!("-{name}"),
            None => word.clone(),
        })
        .collect();
    let ended = katamaran(&flags);
    ended.expect(2, &["10.1.0.300"]);
    assert_eq!(ended.stderr.matches("error:").count(), 1, "{ended:#?}");
    assert!(monitor.caller().is_none());
    let joined = [
        "-mode=source".to_owned(),
        format!("-qmp={}", monitor.path().display()),
        "-dest-ip=192.0.2.2".to_owned(),
        "-vm-ip=10.1.0.300".to_owned(),
        "-shared-storage".to_owned(),
        "-insecure-plaintext".to_owned(),
    ];
    let ended = katamaran(&joined);
    ended.expect(2, &["10.1.0.300"]);
    assert_eq!(ended.stderr.matches("error:").count(), 1, "{ended:#?}");
}

#[test]
fn a_trace_of_no_vm_is_refused() {
    for (flags, words) in [
        (&["trace"][..], &["--vm-ip"][..]),
        (&["trace", "--vm-ip", "10.0.0.300"], &["10.0.0.300"]),
        (&["trace", "--vm-ip", "0.0.0.0"], &["0.0.0.0", "one host"]),
        (
            &["trace", "--vm-ip", "10.0.0.5", "--count", "0"],
            &["--count 0"],
        ),
        (
            &["trace", "--vm-ip", "10.0.0.5", "--duration", "1s"],
            &["--duration", "1s"],
        ),
        (
            &["trace", "--vm-ip", "10.0.0.5", "--log-level", "a=b=c"],
            &["--log-level"],
        ),
    ] {
        let ended = katamaran(flags);
        ended.expect(2, words);
        assert!(ended.stdout.is_empty(), "{ended:#?}");
    }
}
