//! The data plane of D.

use std::fmt;
use std::net::IpAddr;

use katamaran_common::layout::Config;
use katamaran_common::names;

use crate::session_id::SessionId;

use super::attach::{AttachMode, AttachPreference, Direction, Hook};
use super::counters::DestinationCounters;
use super::device;
use super::drops::PacketDrop;
use super::error::EbpfError;
use super::object;
use super::place::{Place, PodEnd};
use super::plane::Plane;
use super::source::{Outer, TapLocation};
use super::tunnel::set_ends;
use super::witness::WitnessMissing;
use crate::role::Role;

/// How V's packets arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// Encapsulated by S's program, on the underlay device.
    Ip {
        /// What is in front of them.
        outer: Outer,
        /// The device towards S.
        underlay_ifindex: u32,
        /// D's addresses on the node network.
        local: Vec<IpAddr>,
        /// S's addresses on the node network.
        remote: Vec<IpAddr>,
    },
    /// As frames out of a tunnel device that somebody else made.
    Frames {
        /// The tunnel device.
        ifindex: u32,
    },
}

/// What the destination needs to know.
#[derive(Clone, Debug)]
pub struct DestinationSpec {
    /// The migration.
    pub session: SessionId,
    /// All ways in: one, or [`Ingress::Ip`] and a device for what does not fit.
    pub ingress: Vec<Ingress>,
    /// V's addresses.
    pub vm_addresses: Vec<IpAddr>,
    /// V's MAC.
    pub vm_mac: [u8; 6],
    /// The device that leads to V, in the calling thread's namespace: the tap, or a veth to it.
    pub deliver_ifindex: u32,
    /// The other end of that one: packets are handed to it at once, and are counted as they come in there.
    pub pod: Option<PodEnd>,
    /// Inode number of the calling thread's network namespace.
    pub netns_inum: u32,
    /// V's tap.
    pub tap: TapLocation,
    /// How to attach.
    pub attach: AttachPreference,
}

/// The armed destination.
#[must_use = "dropping it leaves its pins behind: call remove()"]
pub struct DestinationDataplane {
    plane: Plane,
}

impl fmt::Debug for DestinationDataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DestinationDataplane")
            .field("attach", &self.attach_mode())
            .finish_non_exhaustive()
    }
}

impl DestinationDataplane {
    /// Loads, configures, attaches and pins; what comes for V through the tunnel reaches V's device
    /// from then on.
    ///
    /// Must be called on a thread in the network namespace of the devices.
    ///
    /// # Errors
    ///
    /// When anything could not be put in place; what was put in place is undone. Missing kernel
    /// support for the tracepoints is no error: see [`Self::witness_missing`].
    pub fn arm(spec: &DestinationSpec) -> Result<Self, EbpfError> {
        object::object_state()?;
        let config = config(spec)?;
        let hook =
            |program, ifindex, direction| Hook::new(program, ifindex, direction, spec.attach);
        let tap = match &spec.pod {
            None => hook(names::PROGRAM_TAP, spec.deliver_ifindex, Direction::Egress)?,
            Some(pod) => Hook::at(
                Place::of(pod),
                names::PROGRAM_TAP,
                pod.ifindex,
                Direction::Ingress,
                spec.attach,
            )?,
        };
        let mut hooks = vec![tap];
        for ingress in &spec.ingress {
            let ifindex = match ingress {
                Ingress::Ip {
                    underlay_ifindex, ..
                } => *underlay_ifindex,
                Ingress::Frames { ifindex } => *ifindex,
            };
            hooks.push(hook(names::PROGRAM_DELIVER, ifindex, Direction::Ingress)?);
        }
        let (plane, ()) = Plane::arm(
            spec.session,
            Role::Destination,
            config,
            &spec.vm_addresses,
            &hooks,
            &[],
            |_| Ok(()),
        )?;
        Ok(Self { plane })
    }

    /// All counters, each read once; packets that pass meanwhile may be in some and not in others.
    ///
    /// # Errors
    ///
    /// When a map can't be read.
    pub fn counters(&self) -> Result<DestinationCounters, EbpfError> {
        self.plane.counters().destination(self.plane.is_witnessed())
    }

    /// V's packets that the kernel dropped since arming; `None` when the kernel can't be asked.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn drops(&self) -> Result<Option<Vec<PacketDrop>>, EbpfError> {
        self.plane.drops()
    }

    /// Why `offered` and the drops are unknown; `None` when they are known.
    #[must_use]
    pub fn witness_missing(&self) -> Option<&WitnessMissing> {
        self.plane.witness_missing()
    }

    /// How the TC programs are attached.
    #[must_use]
    pub fn attach_mode(&self) -> AttachMode {
        self.plane.attach_mode()
    }

    /// Whether attaching the program that takes packets out of the tunnel reset the queue of the device to the other node: what waited
    /// there, of this node's and of any VM's, was dropped.
    #[must_use]
    pub fn has_reset_the_uplink(&self) -> bool {
        self.plane.has_reset_a_queue(names::PROGRAM_DELIVER)
    }

    /// Leaves everything in place as a crash would: attached, pinned, belonging to nobody.
    ///
    /// For an outcome that is not known, when V's packets must go on as they do; [`sweep`] or arming
    /// the same session again cleans up.
    ///
    /// [`sweep`]: super::sweep
    pub fn abandon(self) {
        drop(self.plane);
    }

    /// Detaches, unpins, unloads: nothing is left.
    ///
    /// Must be called on a thread in the network namespace of the devices.
    ///
    /// # Errors
    ///
    /// The first failure; everything else is tried all the same.
    pub fn remove(self) -> Result<(), EbpfError> {
        self.plane.remove()
    }
}

/// Told apart from other sessions' marks, and from the small ones that people use.
fn mark(session: SessionId) -> u32 {
    let [a, b, c, d, ..] = session.0.to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) | 0x8000_0000
}

fn config(spec: &DestinationSpec) -> Result<Config, EbpfError> {
    let mut config = Config {
        deliver_ifindex: spec.deliver_ifindex,
        through_pod: u32::from(spec.pod.is_some()),
        deliver_header: device::ethernet_addresses(
            spec.vm_mac,
            device::ethernet_address(spec.deliver_ifindex)?,
        ),
        mark: mark(spec.session),
        netns_inum: spec.netns_inum,
        tap_netns_inum: spec.tap.netns_inum,
        tap_ifindex: spec.tap.ifindex,
        ..Config::default()
    };
    for ingress in &spec.ingress {
        match ingress {
            Ingress::Ip {
                outer,
                underlay_ifindex,
                local,
                remote,
            } => {
                device::ethernet_address(*underlay_ifindex)?;
                config.encap = outer.code();
                set_ends(&mut config, local, remote, &spec.vm_addresses)?;
            }
            Ingress::Frames { ifindex } => {
                device::ethernet_address(*ifindex)?;
                config.frames_ifindex = *ifindex;
            }
        }
    }
    Ok(config)
}
