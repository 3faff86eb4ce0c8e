//! The ends of the tunnel, by family.

use std::net::IpAddr;

use katamaran_common::layout::Config;
use katamaran_common::packet::Address;

use super::error::EbpfError;

/// Sets the tunnel ends; each family that V has an address of must have both.
pub(super) fn set_ends(
    config: &mut Config,
    local: &[IpAddr],
    remote: &[IpAddr],
    vm_addresses: &[IpAddr],
) -> Result<(), EbpfError> {
    let first = |addresses: &[IpAddr], v4: bool| {
        addresses
            .iter()
            .find(|address| address.is_ipv4() == v4)
            .map(|address| map_key(*address))
    };
    if let (Some(local), Some(remote)) = (first(local, true), first(remote, true)) {
        (config.local4, config.remote4) = (local, remote);
        config.families |= 1;
    }
    if let (Some(local), Some(remote)) = (first(local, false), first(remote, false)) {
        (config.local6, config.remote6) = (local, remote);
        config.families |= 2;
    }
    for address in vm_addresses {
        let bit = if address.is_ipv4() { 1 } else { 2 };
        if config.families & bit == 0 {
            return Err(EbpfError::NoTunnelEnd { address: *address });
        }
    }
    Ok(())
}

/// An address as the maps hold it.
pub(super) fn map_key(address: IpAddr) -> Address {
    let mapped = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    Address::from_bytes(mapped.octets())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn every_family_of_v_needs_a_tunnel_end_on_both_sides() {
        let vm = addresses(&["10.1.0.5", "fd01::5"]);
        let local = addresses(&["fd00::1", "10.0.0.1"]);
        let mut config = Config::default();
        set_ends(
            &mut config,
            &local,
            &addresses(&["10.0.0.2", "fd00::2"]),
            &vm,
        )
        .unwrap();
        assert_eq!(config.families, 3);
        assert_eq!(config.local4.bytes()[12..], [10, 0, 0, 1]);
        assert_eq!(config.remote4.bytes()[12..], [10, 0, 0, 2]);

        let mut config = Config::default();
        let error = set_ends(&mut config, &local, &addresses(&["10.0.0.2"]), &vm).unwrap_err();
        assert!(matches!(error, EbpfError::NoTunnelEnd { address } if address == vm[1]));
    }
}
