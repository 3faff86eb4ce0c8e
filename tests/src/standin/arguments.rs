//! What of QEMU's command line matters here.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Where an option without a value would otherwise take the next one for it.
const FLAGS: [&str; 5] = [
    "-S",
    "-nodefaults",
    "-no-user-config",
    "-no-reboot",
    "-daemonize",
];

/// The VM.
#[derive(Debug, Clone)]
pub(super) struct Arguments {
    /// MiB or KiB, in bytes.
    pub(super) memory: u64,
    pub(super) tap: String,
    pub(super) mac: [u8; 6],
    pub(super) addresses: Vec<IpAddr>,
    /// Of the guest's network card.
    pub(super) mtu: u16,
    /// The sockets of the monitors.
    pub(super) monitors: Vec<PathBuf>,
    /// `-incoming defer`.
    pub(super) incoming: bool,
    /// `-S`.
    pub(super) stopped: bool,
}

impl Arguments {
    pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let mut options: HashMap<String, Vec<String>> = HashMap::new();
        let mut words = arguments
            .into_iter()
            .map(|word| word.to_string_lossy().into_owned());
        while let Some(option) = words.next() {
            let value = if FLAGS.contains(&option.as_str()) {
                String::new()
            } else {
                words
                    .next()
                    .with_context(|| format!("{option} needs a value"))?
            };
            options.entry(option).or_default().push(value);
        }
        let all = |option: &str| options.get(option).cloned().unwrap_or_default();
        let part = |option: &str, key: &str| {
            all(option).iter().find_map(|value| {
                let mut parts = value.split(',');
                parts.find_map(|part| part.strip_prefix(key).map(str::to_owned))
            })
        };
        let kernel_line = all("-append").join(" ");
        let kernel_option = |key: &str| {
            let mut words = kernel_line.split(' ');
            let value = words.find_map(|word| word.strip_prefix(key));
            value.with_context(|| format!("no {key} in -append"))
        };
        let addresses = kernel_option("ktg.ip=")?;
        let mtu = kernel_option("ktg.mtu=")?;
        let mac = part("-device", "mac=").context("no -device with mac=")?;
        Ok(Self {
            memory: bytes(&all("-m").concat()).context("-m needs a size such as 128M")?,
            tap: part("-netdev", "ifname=").context("no -netdev tap,ifname=")?,
            mac: mac_of(&mac).with_context(|| format!("{mac} is no Ethernet address"))?,
            addresses: addresses
                .split(',')
                .map(|address| address.parse().with_context(|| format!("parse {address}")))
                .collect::<Result<_>>()?,
            mtu: mtu.parse().with_context(|| format!("parse MTU {mtu}"))?,
            monitors: all("-chardev")
                .iter()
                .filter_map(|value| value.split(',').find_map(|part| part.strip_prefix("path=")))
                .map(PathBuf::from)
                .collect(),
            incoming: options.contains_key("-incoming"),
            stopped: options.contains_key("-S"),
        })
    }
}

fn bytes(size: &str) -> Option<u64> {
    let (number, unit) = size.split_at_checked(size.len().checked_sub(1)?)?;
    let factor = match unit {
        "K" => 1 << 10,
        "M" => 1 << 20,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? * factor)
}

fn mac_of(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labs_command_line_is_understood() {
        let line = "-M q35 -m 128M -nodefaults -append quiet|ktg.ip=10.0.0.5,fd00::5|ktg.mtu=1450 \
                    -netdev tap,id=net0,ifname=tap0,script=no -device virtio-net-pci,id=nic0,mac=02:00:00:00:00:05,romfile= \
                    -chardev socket,id=qmp0,path=/x/a,server=on,wait=off -mon chardev=qmp0,mode=control -S -incoming defer";
        let words = line
            .split_whitespace()
            .map(|word| word.replace('|', " ").into());
        let arguments = Arguments::parse(words).unwrap();
        assert_eq!(arguments.memory, 128 << 20);
        assert_eq!((arguments.tap.as_str(), arguments.mac[5]), ("tap0", 5));
        assert_eq!((arguments.addresses.len(), arguments.mtu), (2, 1450));
        assert_eq!(arguments.monitors, [PathBuf::from("/x/a")]);
        assert!(arguments.incoming && arguments.stopped);
    }
}
