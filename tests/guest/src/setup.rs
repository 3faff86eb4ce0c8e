//! Mounts, modules, addresses: what has to be there before the first packet.

use std::fs;
use std::io::{self, Write};
use std::process::Command;

const BUSYBOX: &str = "/bin/busybox";

/// What the kernel command line asks for.
#[derive(Debug, Default)]
pub(crate) struct Boot {
    addresses: Vec<String>,
    /// Of a second network card.
    second: Vec<String>,
    mtu: Option<String>,
    /// MB/s and MiB.
    pub(crate) dirty: Option<(u64, u64)>,
}

impl Boot {
    /// Where datagrams are received, each address by itself: what is sent by an unconnected socket that has none of its own
    /// leaves with the address of the card that it leaves through.
    pub(crate) fn echo_addresses(&self) -> Vec<String> {
        match self.second[..] {
            [] => vec!["::".to_owned()],
            [..] => [&self.addresses[..], &self.second[..]].concat(),
        }
    }
}

/// Writes one line to the serial console; there is nobody to tell when that fails.
pub(crate) fn console(line: &str) {
    if let Ok(mut console) = fs::OpenOptions::new().write(true).open("/dev/console") {
        drop(writeln!(console, "{line}"));
    }
}

/// Brings the guest up to the point where sockets can be opened.
pub(crate) fn prepare() -> io::Result<Boot> {
    for (kind, dir) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        fs::create_dir_all(dir)?;
        // devtmpfs may have been mounted by the kernel already.
        let mounted = busybox(&["mount", "-t", kind, kind, dir]);
        if kind != "devtmpfs" {
            mounted?;
        }
    }
    for module in fs::read_to_string("/modules/order")?.lines() {
        busybox(&["insmod", &format!("/modules/{module}")])?;
    }
    let boot = parse(&fs::read_to_string("/proc/cmdline")?);
    sysctl()?;
    network(&boot)?;
    Ok(boot)
}

/// What a burst of held-back packets needs: they all arrive at once after a migration, and the
/// guest must not be the one that drops them.
fn sysctl() -> io::Result<()> {
    for (name, value) in [
        ("net/core/rmem_max", "33554432"),
        ("net/core/rmem_default", "33554432"),
        ("net/core/wmem_max", "33554432"),
        ("net/core/wmem_default", "4194304"),
        ("net/core/netdev_max_backlog", "100000"),
        // The kernel's own, fq_codel, drops answers that wait for long (RFC 8289), and counts them nowhere else.
        ("net/core/default_qdisc", "pfifo_fast"),
        // Pages for all UDP sockets together; the default of so small a machine is 12 MB.
        ("net/ipv4/udp_mem", "8192 12288 16384"),
        ("net/ipv6/conf/all/accept_ra", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/eth0/accept_dad", "0"),
        ("net/ipv6/conf/default/router_solicitations", "0"),
        ("net/ipv6/conf/eth0/router_solicitations", "0"),
    ] {
        let path = format!("/proc/sys/{name}");
        fs::write(&path, value).map_err(|err| io::Error::other(format!("{path}: {err}")))?;
    }
    Ok(())
}

fn network(boot: &Boot) -> io::Result<()> {
    busybox(&["ip", "link", "set", "lo", "up"])?;
    if let Some(mtu) = &boot.mtu {
        busybox(&["ip", "link", "set", "eth0", "mtu", mtu])?;
    }
    // More than the echo's socket may have under way.
    busybox(&["ip", "link", "set", "eth0", "qlen", "20000"])?;
    busybox(&["ip", "link", "set", "eth0", "up"])?;
    for address in &boot.addresses {
        if address.contains(':') {
            busybox(&[
                "ip",
                "-6",
                "addr",
                "add",
                &format!("{address}/128"),
                "dev",
                "eth0",
            ])?;
            busybox(&[
                "ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0",
            ])?;
        } else {
            busybox(&["ip", "addr", "add", &format!("{address}/32"), "dev", "eth0"])?;
            busybox(&["ip", "route", "add", "169.254.1.1", "dev", "eth0"])?;
            busybox(&[
                "ip",
                "route",
                "add",
                "default",
                "via",
                "169.254.1.1",
                "dev",
                "eth0",
            ])?;
        }
    }
    second(boot)
}

/// Only what comes in by it: answers take the way that all packets take.
fn second(boot: &Boot) -> io::Result<()> {
    if boot.second.is_empty() {
        return Ok(());
    }
    fs::write("/proc/sys/net/ipv6/conf/eth1/accept_dad", "0")?;
    if let Some(mtu) = &boot.mtu {
        busybox(&["ip", "link", "set", "eth1", "mtu", mtu])?;
    }
    busybox(&["ip", "link", "set", "eth1", "up"])?;
    for address in &boot.second {
        let (family, length) = if address.contains(':') {
            ("-6", 128)
        } else {
            ("-4", 32)
        };
        let address = format!("{address}/{length}");
        busybox(&["ip", family, "addr", "add", &address, "dev", "eth1"])?;
    }
    Ok(())
}

fn busybox(args: &[&str]) -> io::Result<()> {
    let output = Command::new(BUSYBOX).args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{}: {}",
        args.join(" "),
        said.trim()
    )))
}

fn parse(cmdline: &str) -> Boot {
    let mut boot = Boot::default();
    for word in cmdline.split_whitespace() {
        if let Some(list) = word.strip_prefix("ktg.ip=") {
            boot.addresses = list.split(',').map(str::to_owned).collect();
        } else if let Some(list) = word.strip_prefix("ktg.ip1=") {
            boot.second = list.split(',').map(str::to_owned).collect();
        } else if let Some(mtu) = word.strip_prefix("ktg.mtu=") {
            boot.mtu = Some(mtu.to_owned());
        } else if let Some(dirty) = word.strip_prefix("ktg.dirty=") {
            boot.dirty = dirty
                .split_once(':')
                .and_then(|(rate, size)| Some((rate.parse().ok()?, size.parse().ok()?)));
        }
    }
    boot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_addresses_mtu_and_load() {
        let boot =
            parse("quiet ktg.ip=10.0.0.5,fd00::5 ktg.ip1=10.0.0.6 ktg.mtu=1450 ktg.dirty=60:32\n");
        assert_eq!(boot.addresses, ["10.0.0.5", "fd00::5"]);
        assert_eq!(boot.second, ["10.0.0.6"]);
        assert_eq!(boot.mtu.as_deref(), Some("1450"));
        assert_eq!(boot.dirty, Some((60, 32)));
    }

    #[test]
    fn a_malformed_load_is_no_load() {
        assert_eq!(parse("ktg.dirty=fast").dirty, None);
    }
}
