//! Whether a full packet of the VM fits the way to the destination: the arithmetic, and the choice of a
//! tunnel that follows from it.

use std::fmt;
use std::net::IpAddr;

use super::error::MigrateError;
use super::message::{Tunnel, VXLAN_PORT};
use super::node::refused;
use crate::config::TunnelMode;
use crate::net::link::LinkInfo;
use crate::net::route::Underlay;
use crate::net::vxlan;

/// Bytes of a GRE header without options.
const GRE_HEADER: u32 = 4;

/// What is put around a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// An IP header, by the program. Such packets are never fragmented.
    Ip,
    /// An IP header and one of GRE, by the program. Not fragmented either.
    Gre,
    /// A vxlan device's headers. The kernel fragments them where the outer packet is IPv4.
    Vxlan,
}

/// A full packet of the VM, wrapped, beside the longest that the path takes. All in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fit {
    pub(crate) carrier: Carrier,
    /// The tap, whose MTU is the VM's.
    tap: String,
    vm_mtu: u32,
    overhead: u32,
    pub(crate) peer: IpAddr,
    path_mtu: u32,
}

impl Fit {
    /// Its length.
    pub(crate) fn needed(&self) -> u32 {
        self.vm_mtu + self.overhead
    }

    /// Whether it goes through in one piece.
    pub(crate) fn fits(&self) -> bool {
        self.needed() <= self.path_mtu
    }

    /// Whether it goes through at all.
    pub(crate) fn passes(&self) -> bool {
        self.fits() || (self.carrier == Carrier::Vxlan && self.peer.is_ipv4())
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tap,
            vm_mtu,
            overhead,
            peer,
            path_mtu,
            ..
        } = self;
        let what = match self.carrier {
            Carrier::Ip => "outer header",
            Carrier::Gre => "outer header and GRE",
            Carrier::Vxlan => "vxlan",
        };
        let relation = if self.fits() { "<=" } else { ">" };
        write!(
            f,
            "{vm_mtu} (MTU of {tap}) + {overhead} ({what}) {relation} {path_mtu} (path to {peer})"
        )
    }
}

/// How full packets fit in this carrier: one answer for each family that the VM has, or one for all.
pub(crate) fn of(
    carrier: Carrier,
    vm_ips: &[IpAddr],
    tap: &LinkInfo,
    underlays: &[Underlay],
) -> Vec<Fit> {
    let fit = |overhead: u32, underlay: &Underlay| Fit {
        carrier,
        tap: tap.name.clone(),
        vm_mtu: tap.mtu,
        overhead,
        peer: underlay.peer,
        path_mtu: underlay.mtu,
    };
    let gre = if carrier == Carrier::Gre {
        GRE_HEADER
    } else {
        0
    };
    match carrier {
        Carrier::Ip | Carrier::Gre => underlays
            .iter()
            .filter(|u| vm_ips.iter().any(|vm| vm.is_ipv4() == u.peer.is_ipv4()))
            .map(|u| fit(gre + if u.peer.is_ipv4() { 20 } else { 40 }, u))
            .collect(),
        // One device carries the frames of all families.
        Carrier::Vxlan => underlays
            .first()
            .map(|u| fit(vxlan::overhead(u.peer), u))
            .into_iter()
            .collect(),
    }
}

/// The path for all packets of the VM: two paths of different speed would reorder them.
///
/// # Errors
/// Full packets would not get through; with the arithmetic.
pub(crate) fn choose(
    mode: TunnelMode,
    vm_ips: &[IpAddr],
    tap: &LinkInfo,
    underlays: &[Underlay],
) -> Result<Tunnel, MigrateError> {
    let fits = |carrier| of(carrier, vm_ips, tap, underlays);
    let vxlan = || {
        let stuck = list(fits(Carrier::Vxlan), Fit::passes);
        if stuck.is_empty() {
            return Ok(Tunnel::Vxlan { port: VXLAN_PORT });
        }
        Err(refused(format!(
            "a full packet does not fit through vxlan: {stuck}, and the kernel does not fragment over IPv6; raise the \
             MTU of the path, or name the destination's IPv4 address first in --dest-ip"
        )))
    };
    let too_big = list(fits(Carrier::Ip), Fit::fits);
    match mode {
        TunnelMode::None => Ok(Tunnel::None),
        TunnelMode::Vxlan => vxlan(),
        TunnelMode::Auto | TunnelMode::Ipip if too_big.is_empty() => Ok(Tunnel::Ip),
        TunnelMode::Auto => {
            tracing::debug!(reason = too_big, "full packets do not fit with IPIP");
            vxlan()
        }
        TunnelMode::Ipip => Err(does_not_fit("ipip", &too_big)),
        TunnelMode::Gre => match list(fits(Carrier::Gre), Fit::fits) {
            too_big if too_big.is_empty() => Ok(Tunnel::Gre),
            too_big => Err(does_not_fit("gre", &too_big)),
        },
    }
}

fn does_not_fit(mode: &str, too_big: &str) -> MigrateError {
    refused(format!(
        "--tunnel-mode {mode}: a full packet does not fit: {too_big}; use auto or vxlan, which fragments the outer packet"
    ))
}

/// Those that are not `good`.
fn list(fits: Vec<Fit>, good: impl Fn(&Fit) -> bool) -> String {
    let bad: Vec<String> = fits
        .iter()
        .filter(|fit| !good(fit))
        .map(Fit::to_string)
        .collect();
    bad.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn underlay(peer: &str, mtu: u32) -> Underlay {
        Underlay {
            peer: peer.parse().unwrap(),
            local: peer.parse().unwrap(),
            device: 2,
            device_name: "eth0".into(),
            gateway: None,
            mtu,
        }
    }

    fn tap(mtu: u32) -> LinkInfo {
        LinkInfo::fake("tap0", mtu)
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_edge_is_where_the_headers_put_it() {
        let (v4, v6) = (underlay("10.0.0.2", 1500), underlay("fd00::2", 1500));
        let both = ips(&["10.1.0.5", "fd01::5"]);
        for (mode, mtu, expected) in [
            (TunnelMode::Ipip, 1460, Some(Tunnel::Ip)),
            (TunnelMode::Ipip, 1461, None),
            (TunnelMode::Auto, 1460, Some(Tunnel::Ip)),
            (
                TunnelMode::Auto,
                1461,
                Some(Tunnel::Vxlan { port: VXLAN_PORT }),
            ),
            (TunnelMode::Gre, 1456, Some(Tunnel::Gre)),
            (TunnelMode::Gre, 1457, None),
            // Over IPv4 it may be cut in pieces.
            (
                TunnelMode::Vxlan,
                9000,
                Some(Tunnel::Vxlan { port: VXLAN_PORT }),
            ),
        ] {
            let underlays = [v4.clone(), v6.clone()];
            let chosen = choose(mode, &both, &tap(mtu), &underlays).ok();
            assert_eq!(chosen, expected, "{mode:?} {mtu}");
        }
        let v4_only = [v4];
        let chosen = choose(TunnelMode::Ipip, &both[..1], &tap(1480), &v4_only);
        assert_eq!(chosen.unwrap(), Tunnel::Ip);
        // Over IPv6 it may not.
        for (mtu, good) in [(1430, true), (1431, false)] {
            let chosen = choose(
                TunnelMode::Vxlan,
                &both[1..],
                &tap(mtu),
                std::slice::from_ref(&v6),
            );
            assert_eq!(chosen.is_ok(), good, "{mtu}");
        }
    }

    #[test]
    fn a_refusal_has_the_arithmetic_in_it() {
        let path = [underlay("10.0.0.2", 1500)];
        let error = choose(TunnelMode::Ipip, &ips(&["10.1.0.5"]), &tap(1490), &path).unwrap_err();
        let words = "1490 (MTU of tap0) + 20 (outer header) > 1500 (path to 10.0.0.2)";
        assert!(error.to_string().contains(words), "{error}");
        let error = choose(TunnelMode::Gre, &ips(&["10.1.0.5"]), &tap(1477), &path).unwrap_err();
        let words = "1477 (MTU of tap0) + 24 (outer header and GRE) > 1500 (path to 10.0.0.2)";
        assert!(error.to_string().contains(words), "{error}");
    }
}
