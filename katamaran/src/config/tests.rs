use super::*;
use crate::cli;

pub(super) const SOURCE: &[&str] = &[
    "katamaran",
    "--mode",
    "source",
    "--qmp",
    "/q",
    "--dest-ip",
    "10.0.0.2",
    "--vm-ip",
    "10.1.0.5",
    "--shared-storage",
    "--insecure-plaintext",
];

pub(super) fn config(base: &[&str], extra: &[&str]) -> Result<Config, UsageError> {
    let args = base.iter().chain(extra).map(std::ffi::OsString::from);
    Config::from_args(&cli::parse(args).unwrap().migrate)
}

pub(super) fn refused(base: &[&str], extra: &[&str]) -> String {
    config(base, extra).unwrap_err().to_string()
}

#[test]
fn a_full_source_command_line_is_taken() {
    let Config::Source(c) = config(SOURCE, &["--max-bandwidth", "500M"]).unwrap() else {
        panic!("not a source")
    };
    assert_eq!(c.max_bandwidth, Some(500 << 20));
    assert_eq!(c.vm_ips, ["10.1.0.5".parse::<IpAddr>().unwrap()]);
    assert_eq!(c.downtime, Duration::from_millis(50));
}

#[test]
fn connections_are_carried_unless_it_is_said_otherwise() {
    let carried = |extra: &[&str]| match config(SOURCE, extra).unwrap() {
        Config::Source(c) => c.conntrack,
        Config::Destination(_) => panic!("not a source"),
    };
    assert!(carried(&[]) && carried(&["--conntrack=on"]));
    assert!(!carried(&["--conntrack", "off"]));
}

#[test]
fn everything_wrong_is_told_at_once() {
    let text = refused(&["katamaran", "--mode", "source"], &[]);
    for flag in ["--qmp", "--dest-ip", "--vm-ip", "--insecure-plaintext"] {
        assert!(text.contains(flag), "{flag} is not named in:\n{text}");
    }
}

#[test]
fn an_invalid_value_is_shown() {
    assert!(refused(&["katamaran", "--mode", "sauce"], &[]).contains("sauce"));
    assert!(refused(SOURCE, &["--vm-ip", "10.1.0.300"]).contains("10.1.0.300"));
    assert!(refused(SOURCE, &["--vm-ip", "fe80::1%eth0"]).contains("zone"));
    assert!(refused(SOURCE, &["--tunnel-mode", "carrier-pigeon"]).contains("carrier-pigeon"));
    assert!(refused(SOURCE, &["--tap", "a/b"]).contains("a/b"));
    assert!(refused(SOURCE, &["--downtime", "0"]).contains("out of range"));
    assert!(refused(SOURCE, &["--max-bandwidth", "fast"]).contains("fast"));
}

#[test]
fn the_migration_timeout_is_refused_out_of_range_and_never_clamped() {
    let timeout = |extra: &[&str]| match config(SOURCE, extra).unwrap() {
        Config::Source(c) => c.migration_timeout.as_secs(),
        Config::Destination(_) => panic!("not a source"),
    };
    assert_eq!(timeout(&[]), 300);
    assert_eq!(timeout(&["--migration-timeout", "30"]), 30);
    assert_eq!(timeout(&["--migration-timeout", "3600"]), 3600);
    for wrong in ["0", "29", "3601"] {
        let text = refused(SOURCE, &["--migration-timeout", wrong]);
        assert!(text.contains(wrong) && text.contains("30-3600"), "{text}");
    }
}

#[test]
fn the_pause_limit_is_refused_below_the_pause_that_is_accepted_and_beyond_ten_minutes() {
    let limit = |extra: &[&str]| match config(SOURCE, extra).unwrap() {
        Config::Source(c) => c.pause_limit.map(|limit| limit.as_millis()),
        Config::Destination(_) => panic!("not a source"),
    };
    assert_eq!(limit(&[]), None);
    assert_eq!(limit(&["--pause-limit", "50"]), Some(50));
    assert_eq!(limit(&["--pause-limit", "600000"]), Some(600_000));
    for [limit, downtime] in [["49", "50"], ["600001", "50"], ["700", "800"]] {
        let text = refused(SOURCE, &["--pause-limit", limit, "--downtime", downtime]);
        assert!(
            text.contains(&format!(
                "--pause-limit {limit} is out of range: from --downtime ({downtime})"
            )),
            "{text}"
        );
    }
}

#[test]
fn mixed_families_are_refused_both_ways() {
    assert!(refused(SOURCE, &["--vm-ip", "fd00::5"]).contains("IPv6 address fd00::5"));
    let v6 = &SOURCE
        .iter()
        .map(|a| if *a == "10.0.0.2" { "fd00::2" } else { *a })
        .collect::<Vec<_>>();
    assert!(refused(v6, &[]).contains("IPv4 address 10.1.0.5"));
    assert!(config(SOURCE, &["--vm-ip", "fd01::5", "--dest-ip", "fd00::2"]).is_ok());
}

#[test]
fn mapped_addresses_are_ipv4_and_duplicates_are_refused() {
    assert!(refused(SOURCE, &["--vm-ip", "::ffff:10.1.0.5"]).contains("twice"));
}

#[test]
fn a_destination_listens_on_one_of_its_own_addresses() {
    let dest = &[
        "katamaran",
        "--mode",
        "dest",
        "--qmp",
        "/q",
        "--shared-storage",
        "--insecure-plaintext",
    ];
    for any in ["0.0.0.0", "::", "127.0.0.1", "10.0.0.2"] {
        assert!(config(dest, &["--listen", any]).is_ok(), "{any}");
    }
    assert!(refused(dest, &["--listen", "224.0.0.1"]).contains("224.0.0.1 is a multicast address"));
    assert!(refused(dest, &["--listen", "255.255.255.255"]).contains("the broadcast address"));
}

#[test]
fn flags_of_the_other_side_are_refused() {
    let dest = &[
        "katamaran",
        "--mode",
        "dest",
        "--qmp",
        "/q",
        "--shared-storage",
        "--insecure-plaintext",
    ];
    assert!(config(dest, &[]).is_ok());
    assert!(refused(dest, &["--vm-ip", "10.1.0.5"]).contains("--mode source"));
    assert!(refused(SOURCE, &["--listen", "10.0.0.1"]).contains("--mode dest"));
}

#[test]
fn numbers_out_of_range_are_refused_before_they_overflow_a_clock() {
    let largest = u64::MAX.to_string();
    for flag in [
        "--storage-sync-timeout",
        "--cni-convergence-delay",
        "--migration-timeout",
        "--pause-limit",
        "--downtime",
    ] {
        let text = refused(SOURCE, &[flag, &largest]);
        assert!(
            text.contains(&format!("{flag} {largest} is out of range: ")),
            "{text}"
        );
    }
    assert!(refused(SOURCE, &["--storage-sync-timeout", "604801"]).contains("1-604800 seconds"));
    assert!(config(SOURCE, &["--cni-convergence-delay", "0"]).is_ok());
    for rate in [
        "9223372036854775808",
        "8388608T",
        "8796093022208M",
        "-1",
        "0",
        "1.5G",
        "M",
        "",
    ] {
        let text = refused(SOURCE, &[&format!("--max-bandwidth={rate}")]);
        assert!(
            text.contains(&format!("--max-bandwidth {rate:?} is not")),
            "{text}"
        );
    }
}

#[test]
fn the_destination_is_not_the_vm() {
    let text = refused(SOURCE, &["--dest-ip", "10.1.0.5"]);
    assert!(
        text.contains("10.1.0.5 is in both --dest-ip and --vm-ip"),
        "{text}"
    );
}

#[test]
fn a_path_that_no_socket_can_have_is_refused() {
    let base: Vec<&str> = SOURCE
        .iter()
        .copied()
        .filter(|word| !["--qmp", "/q"].contains(word))
        .collect();
    let path = |length: usize| format!("/{}", "q".repeat(length - 1));
    assert!(config(&base, &["--qmp", &path(107)]).is_ok());
    let text = refused(&base, &["--qmp", &path(108)]);
    assert!(
        text.contains("has 108 bytes") && text.contains("107 at most"),
        "{text}"
    );
}
