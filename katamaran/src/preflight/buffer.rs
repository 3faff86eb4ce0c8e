//! What holds the VM's packets while it is between the nodes, against what the link can bring in that time.

use super::check::{Area, Check};
use super::found::Found;
use super::wiring::Wiring;
use crate::config::PreflightConfig;
use crate::migrate::destination::delivery::{RING, plug_limit};
use crate::net::NetNs;
use crate::net::reach::link_rate;
use crate::net::route::Underlay;

const AREA: Area = Area::Buffer;
/// Packets are held from before the pause on: what a pause brings, twice.
const LEAD: u64 = 2;
/// Without a destination to ask, what `--downtime` is by default.
const DEFAULT_DOWNTIME_MS: u64 = 50;
const DEFAULT_MTU: u32 = 1500;
const OVERFLOW: &str = "What comes beyond is dropped, counted, and makes the verdict `violated`. Allow a shorter pause \
                        (--downtime), or migrate when the VM gets less than that.";

/// What a buffer has to do with.
struct Demand {
    downtime_ms: u64,
    /// The link's device and its bits per second, where they are known.
    link: Option<(String, u64)>,
    /// Bytes of a full packet.
    packet: u32,
}

pub(super) fn look(
    config: &PreflightConfig,
    plug: Option<bool>,
    netns: &NetNs,
    wiring: &Wiring,
    underlays: &[Underlay],
    found: &mut Found,
) {
    let downtime_ms = config
        .source
        .as_ref()
        .map_or(DEFAULT_DOWNTIME_MS, |source| {
            u64::try_from(source.downtime.as_millis()).unwrap_or(u64::MAX)
        });
    let link = underlays.first().and_then(|underlay| {
        let rate = link_rate(netns, &underlay.device_name).ok().flatten()?;
        Some((underlay.device_name.clone(), rate))
    });
    let demand = Demand {
        downtime_ms,
        link,
        packet: wiring.tap.as_ref().map_or(DEFAULT_MTU, |tap| tap.mtu),
    };
    // Which of them the destination has, it knows itself; this node may be one.
    if plug != Some(false) || config.destination.is_none() {
        found.push(demand.plug());
    }
    found.push(demand.ring());
}

impl Demand {
    fn plug(&self) -> Check {
        let limit = u64::from(plug_limit(self.downtime_ms));
        let bits = limit * 8 * 1000 / (self.downtime_ms * LEAD);
        let text = format!(
            "{} MB: {} for twice a pause of {} ms",
            limit / 1_000_000,
            rate_text(bits),
            self.downtime_ms
        );
        self.judge("plug-limit", text, bits)
    }

    fn ring(&self) -> Check {
        let per_second = u64::from(RING) * 1000 / (self.downtime_ms * LEAD);
        let text = format!(
            "{RING} packets: {per_second} a second for twice a pause of {} ms",
            self.downtime_ms
        );
        self.judge("tap-ring", text, per_second * u64::from(self.packet) * 8)
    }

    /// `bits`: the rate of full packets that the buffer is enough for.
    fn judge(&self, name: &'static str, text: String, bits: u64) -> Check {
        match &self.link {
            None => Check::ok(AREA, name, format!("{text}; the link's rate is not known")),
            Some((device, rate)) if *rate <= bits => Check::ok(
                AREA,
                name,
                format!("{text}; {device} has {}", rate_text(*rate)),
            ),
            Some((device, rate)) => Check::degraded(
                AREA,
                name,
                format!("{text}; {device} has {}", rate_text(*rate)),
                format!(
                    "Full packets at the link's whole rate overflow it after {} ms. {OVERFLOW}",
                    bits.saturating_mul(self.downtime_ms * LEAD) / rate
                ),
            ),
        }
    }
}

fn rate_text(bits: u64) -> String {
    if bits >= 10_000_000_000 {
        format!("{} Gbit/s", bits / 1_000_000_000)
    } else {
        format!("{} Mbit/s", bits / 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    fn demand(downtime_ms: u64, gigabits: u64) -> Demand {
        Demand {
            downtime_ms,
            link: Some(("eth0".into(), gigabits * 1_000_000_000)),
            packet: 1450,
        }
    }

    #[test]
    fn the_plug_is_made_for_10_gigabits_and_says_when_a_faster_link_overflows_it() {
        assert_eq!(demand(50, 10).plug().status, Status::Ok);
        let check = demand(50, 25).plug();
        assert_eq!(check.status, Status::Degraded);
        assert!(check.advice.unwrap().contains("after 40 ms"));
        // Its limit is a u32.
        assert_eq!(demand(10_000, 10).plug().status, Status::Degraded);
    }

    #[test]
    fn the_ring_is_shorter_for_long_pauses() {
        assert_eq!(demand(50, 10).ring().status, Status::Ok);
        assert_eq!(demand(100, 10).ring().status, Status::Degraded);
        assert!(
            demand(50, 10)
                .ring()
                .found
                .contains("131072 packets: 1310720 a second")
        );
    }

    #[test]
    fn a_link_that_tells_no_rate_is_said_to() {
        let check = Demand {
            link: None,
            ..demand(50, 0)
        }
        .plug();
        assert_eq!(check.status, Status::Ok);
        assert!(check.found.contains("not known"), "{}", check.found);
    }
}
