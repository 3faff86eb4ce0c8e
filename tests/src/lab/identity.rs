//! Who a VM is on the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::topology::{GUEST_MAC, GUEST_V4, GUEST_V6};

/// A VM's device and addresses, the same on both nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its tap's name.
    pub tap: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Identity {
    /// V, behind this tap.
    #[must_use]
    pub fn v(tap: &str) -> Self {
        Self {
            tap: tap.to_owned(),
            mac: GUEST_MAC.to_owned(),
            v4: GUEST_V4,
            v6: GUEST_V6,
        }
    }

    /// V's second network card, behind this tap.
    #[must_use]
    pub fn second(tap: &str) -> Self {
        Self {
            tap: tap.to_owned(),
            mac: "02:00:00:00:00:06".to_owned(),
            v4: Ipv4Addr::new(10, 244, 0, 6),
            v6: Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 6),
        }
    }

    /// One of many VMs beside V.
    #[must_use]
    pub fn of_many(number: u8) -> Self {
        Self {
            tap: format!("many{number}"),
            mac: format!("02:00:00:00:01:{number:02x}"),
            v4: Ipv4Addr::new(10, 244, 1, number),
            v6: Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 1, u16::from(number)),
        }
    }

    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}
