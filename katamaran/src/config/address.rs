//! Addresses on a command line.

use std::fmt;
use std::net::IpAddr;

use super::Needed;

/// Addresses of one host each, each given once.
pub(super) fn addresses(
    flag: &str,
    what: &str,
    texts: &[String],
    needed: Needed,
    problems: &mut Vec<String>,
) -> Vec<IpAddr> {
    if texts.is_empty() && needed == Needed::All {
        problems.push(format!("{flag} is missing: {what}"));
    }
    let mut addresses = Vec::new();
    for text in texts {
        let Some(ip) = address(flag, text, problems) else {
            continue;
        };
        if let Some(problem) = not_one_host(ip) {
            problems.push(format!("{flag} {problem}: give {what}"));
        } else if addresses.contains(&ip) {
            problems.push(format!("{flag} has {ip} twice"));
        } else {
            addresses.push(ip);
        }
    }
    addresses
}

/// Parses one address; IPv4-mapped IPv6 counts as IPv4.
pub(super) fn address(flag: &str, text: &str, problems: &mut Vec<String>) -> Option<IpAddr> {
    let trimmed = text.trim();
    if let Ok(ip) = trimmed.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    problems.push(if trimmed.is_empty() {
        format!("{flag} has an empty entry: give addresses with one comma between them")
    } else if trimmed.contains('%') {
        format!("invalid {flag} {text:?}: an address with a zone is not routable between nodes")
    } else {
        format!("invalid {flag} {text:?}: not an IPv4 or IPv6 address")
    });
    None
}

/// Why an address stands for more hosts than one.
pub(super) fn of_many(ip: IpAddr) -> Option<String> {
    if ip.is_multicast() {
        return Some(format!("{ip} is a multicast address"));
    }
    match ip {
        IpAddr::V4(v4) if v4.is_broadcast() => Some(format!("{ip} is the broadcast address")),
        _ => None,
    }
}

/// Why an address is not the address of one host that another can reach.
fn not_one_host(ip: IpAddr) -> Option<String> {
    if let Some(problem) = of_many(ip) {
        return Some(format!("{problem}, not the address of one host"));
    }
    match ip {
        _ if ip.is_unspecified() => Some(format!(
            "{ip} is the unspecified address, not the address of one host"
        )),
        _ if ip.is_loopback() => Some(format!(
            "{ip} is a loopback address, which every host has, not the address of one host"
        )),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(format!(
            "{ip} is a link-local address, which no other network reaches"
        )),
        _ => None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(ip: &IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(texts: &[&str]) -> Result<Vec<IpAddr>, String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let mut problems = Vec::new();
        let ips = addresses("--ip", "an address", &texts, Needed::All, &mut problems);
        match problems.is_empty() {
            true => Ok(ips),
            false => Err(problems.join("\n")),
        }
    }

    #[test]
    fn addresses_are_taken_in_every_usual_form() {
        for (text, means) in [
            ("10.1.0.5", "10.1.0.5"),
            (" 10.1.0.5 ", "10.1.0.5"),
            ("::ffff:10.1.0.5", "10.1.0.5"),
            ("::FFFF:0a01:0005", "10.1.0.5"),
            ("fd00:0:0:0:0:0:0:5", "fd00::5"),
            ("FD00::5", "fd00::5"),
            ("169.254.10.1", "169.254.10.1"),
        ] {
            assert_eq!(taken(&[text]), Ok(vec![means.parse().unwrap()]), "{text}");
        }
    }

    #[test]
    fn what_is_not_the_address_of_one_host_says_what_it_is() {
        for (text, kind) in [
            ("0.0.0.0", "0.0.0.0 is the unspecified address"),
            ("::", ":: is the unspecified address"),
            ("::ffff:0.0.0.0", "0.0.0.0 is the unspecified address"),
            ("127.8.0.1", "127.8.0.1 is a loopback address"),
            ("::1", "::1 is a loopback address"),
            ("::ffff:127.0.0.1", "127.0.0.1 is a loopback address"),
            ("224.0.0.1", "224.0.0.1 is a multicast address"),
            ("ff02::1", "ff02::1 is a multicast address"),
            (
                "255.255.255.255",
                "255.255.255.255 is the broadcast address",
            ),
            ("fe80::1", "fe80::1 is a link-local address"),
        ] {
            let told = taken(&[text]).unwrap_err();
            assert!(told.starts_with(&format!("--ip {kind}")), "{told}");
            assert!(told.ends_with(": give an address"), "{told}");
        }
    }

    #[test]
    fn what_is_no_address_is_quoted() {
        for text in [
            "10.1.0.300",
            "10.1.0",
            "010.1.0.5",
            "10.1.0.5/24",
            "10.1.0.5:80",
            "[fd00::5]",
            "fd00::5::1",
            "host",
            "1e1",
            "١٠.1.0.5",
            "10.1.0.5\u{0}",
        ] {
            assert_eq!(
                taken(&[text]),
                Err(format!(
                    "invalid --ip {text:?}: not an IPv4 or IPv6 address"
                ))
            );
        }
        let zoned = taken(&["fe80::1%eth0"]).unwrap_err();
        assert!(
            zoned.contains("\"fe80::1%eth0\"") && zoned.contains("zone"),
            "{zoned}"
        );
    }

    #[test]
    fn lists_have_no_holes_and_nothing_twice() {
        assert_eq!(taken(&["10.0.0.1", "fd00::1"]).unwrap().len(), 2);
        for list in [&["10.0.0.1", ""][..], &[" ", "10.0.0.1"], &[""]] {
            assert!(taken(list).unwrap_err().contains("--ip has an empty entry"));
        }
        for list in [["10.0.0.1", "::ffff:10.0.0.1"], ["fd00::1", "FD00:0::0:1"]] {
            assert!(taken(&list).unwrap_err().contains("twice"));
        }
        assert_eq!(taken(&[]), Err("--ip is missing: an address".into()));
    }
}
