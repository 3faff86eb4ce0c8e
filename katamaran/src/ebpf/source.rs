//! The data plane of S.

use std::fmt;
use std::net::{IpAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};

use katamaran_common::layout::{Config, Mode, encap};
use katamaran_common::names;
use nix::time::{ClockId, clock_gettime};

use crate::session_id::SessionId;

use super::attach::{AttachMode, AttachPreference, Direction, Hook};
use super::copies::{CopiedFrame, CopyMap};
use super::counters::SourceCounters;
use super::device;
use super::drops::PacketDrop;
use super::error::EbpfError;
use super::object::{self, Slot};
use super::place::{Place, PodEnd};
use super::plane::Plane;
use super::retained::{RING_BYTES, RetainedMap, RetainedPacket};
use super::tunnel::set_ends;
use super::witness::WitnessMissing;
use crate::role::Role;

/// A tap, possibly in another namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapLocation {
    /// Inode number of its network namespace (`st_ino` of `/proc/PID/ns/net`).
    pub netns_inum: u32,
    /// Its index there.
    pub ifindex: u32,
}

/// What the source's program puts in front of a packet, and the destination's takes off again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// An IP header: IPIP, IP6IP6.
    Ip,
    /// An IP header and one of GRE without options, for networks that carry no IP protocol 4 or 41.
    Gre,
}

impl Outer {
    pub(super) fn code(self) -> u32 {
        match self {
            Self::Ip => encap::IP,
            Self::Gre => encap::GRE,
        }
    }
}

/// How packets get to D.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encap {
    /// The program writes the outer header itself.
    Ip {
        /// Which.
        outer: Outer,
        /// The device towards D.
        underlay_ifindex: u32,
        /// S's addresses on the node network.
        local: Vec<IpAddr>,
        /// D's addresses on the node network.
        remote: Vec<IpAddr>,
        /// The largest IP packet that the path to D carries, bytes.
        path_mtu: u32,
        /// A tunnel device for packets that do not fit encapsulated (it may fragment its outer
        /// packets). Without one such packets are passed on to the tap and counted as `too_big`;
        /// only TCP super-packets can always be cut smaller.
        oversize_ifindex: Option<u32>,
    },
    /// Frames leave unchanged through a tunnel device that somebody else made.
    Device {
        /// The tunnel device.
        ifindex: u32,
    },
}

/// What the source needs to know.
#[derive(Clone, Debug)]
pub struct SourceSpec {
    /// The migration.
    pub session: SessionId,
    /// The device that leads to V, in the calling thread's namespace.
    pub hook_ifindex: u32,
    /// Hook the ingress of this device, the other end of that one, instead of its egress.
    pub pod: Option<PodEnd>,
    /// With a pod: what is redirected goes back to the node through these, not through the pod's own veth.
    pub detour: Option<Detour>,
    /// Inode number of the calling thread's network namespace.
    pub netns_inum: u32,
    /// V's addresses.
    pub vm_addresses: Vec<IpAddr>,
    /// V's MAC.
    pub vm_mac: [u8; 6],
    /// How packets get to D.
    pub encap: Encap,
    /// V's tap.
    pub tap: TapLocation,
    /// How to attach.
    pub attach: AttachPreference,
}

/// A pair of devices from a pod to its node that nothing else uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detour {
    /// Index of the end in the pod.
    pub inside: u32,
    /// Index of the end on the node.
    pub outside: u32,
}

/// When traffic turned: the flip lies between the two moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlipTime {
    /// Just before, nanoseconds of `CLOCK_MONOTONIC`.
    pub before_ns: u64,
    /// Just after.
    pub after_ns: u64,
}

/// The armed source.
#[must_use = "dropping it leaves its pins behind: call remove()"]
pub struct SourceDataplane {
    plane: Plane,
    switch: Mutex<Switch>,
    copies: CopyMap,
    retained: Mutex<RetainedMap>,
}

struct Switch {
    mode: Slot<u32>,
    copying: Slot<u32>,
}

impl fmt::Debug for SourceDataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceDataplane")
            .field("attach", &self.attach_mode())
            .finish_non_exhaustive()
    }
}

impl SourceDataplane {
    /// Loads, configures, attaches and pins; V's packets are counted (mode COUNT) from then on.
    ///
    /// Must be called on a thread in the network namespace of the hook.
    ///
    /// # Errors
    ///
    /// When anything could not be put in place; what was put in place is undone. Missing kernel
    /// support for the tracepoints is no error: see [`Self::witness_missing`].
    pub fn arm(spec: &SourceSpec) -> Result<Self, EbpfError> {
        object::object_state()?;
        device::ethernet_address(spec.hook_ifindex)?;
        let config = config(spec)?;
        let hooks = hooks(spec)?;
        let prepare = |ebpf: &mut aya::Ebpf| {
            let mut mode: Slot<u32> = object::map(ebpf, names::MAP_MODE)?;
            write(&mut mode, names::MAP_MODE, Mode::Count as u32)?;
            let copying = object::map(ebpf, names::MAP_COPYING)?;
            Ok((
                Switch { mode, copying },
                CopyMap::take(ebpf)?,
                RetainedMap::take(ebpf)?,
            ))
        };
        if let Encap::Ip { local, remote, .. } = &spec.encap {
            warm_neighbours(local, remote);
        }
        let (plane, (switch, copies, retained)) = Plane::arm(
            spec.session,
            Role::Source,
            config,
            &spec.vm_addresses,
            &hooks,
            &[(names::MAP_RETAINED, RING_BYTES)],
            prepare,
        )?;
        Ok(Self {
            plane,
            switch: Mutex::new(switch),
            copies,
            retained: Mutex::new(retained),
        })
    }

    /// Turns V's packets to D: one map write. Copies of them are retained from then on.
    ///
    /// A packet whose program run began before the write may still be passed on, by a microsecond or
    /// so: wait for `s2` to stand still and `offered` to reach it.
    ///
    /// # Errors
    ///
    /// When the map can't be written; the mode is then as it was.
    pub fn flip(&self) -> Result<FlipTime, EbpfError> {
        self.plane.forget_first_redirected()?;
        self.retained().switch(true)?;
        self.set_mode(Mode::Redirect)
    }

    /// Lets V's packets pass to the tap again.
    ///
    /// # Errors
    ///
    /// When the map can't be written; the mode is then as it was.
    pub fn unflip(&self) -> Result<FlipTime, EbpfError> {
        self.set_mode(Mode::Count)
    }

    /// Whether V's packets go to D.
    #[must_use]
    pub fn redirects(&self) -> bool {
        let mode = self.switch().mode.get(&0, 0);
        mode.is_ok_and(|mode| mode == Mode::Redirect as u32)
    }

    fn set_mode(&self, mode: Mode) -> Result<FlipTime, EbpfError> {
        let mut switch = self.switch();
        let before_ns = monotonic_ns();
        write(&mut switch.mode, names::MAP_MODE, mode as u32)?;
        Ok(FlipTime {
            before_ns,
            after_ns: monotonic_ns(),
        })
    }

    fn switch(&self) -> MutexGuard<'_, Switch> {
        // Nothing in there can be left half done.
        self.switch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out the oldest packet that was redirected since the flip, and retained.
    pub fn next_retained(&self) -> Option<RetainedPacket> {
        self.retained().next()
    }

    /// Retains nothing more: V runs on D.
    ///
    /// # Errors
    ///
    /// When the map can't be written.
    pub fn stop_retaining(&self) -> Result<(), EbpfError> {
        self.retained().switch(false)
    }

    fn retained(&self) -> MutexGuard<'_, RetainedMap> {
        self.retained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts or stops copying the frames that are passed to the tap. What was copied stays.
    ///
    /// # Errors
    ///
    /// When the map can't be written.
    pub fn set_copy_ring(&self, on: bool) -> Result<(), EbpfError> {
        write(
            &mut self.switch().copying,
            names::MAP_COPYING,
            u32::from(on),
        )
    }

    /// The last frames (at most `COPY_SLOTS`) that were passed to the tap while the copy ring was on, oldest
    /// first.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn copied_frames(&self) -> Result<Vec<CopiedFrame>, EbpfError> {
        self.copies.read()
    }

    /// All counters, each read once; packets that pass meanwhile may be in some and not in others.
    ///
    /// # Errors
    ///
    /// When a map can't be read.
    pub fn counters(&self) -> Result<SourceCounters, EbpfError> {
        self.plane.counters().source(self.plane.is_witnessed())
    }

    /// When the latest packet was redirected, nanoseconds of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn last_redirect_ns(&self) -> Result<Option<u64>, EbpfError> {
        self.plane.counters().last_redirected()
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

    /// How the TC program is attached.
    #[must_use]
    pub fn attach_mode(&self) -> AttachMode {
        self.plane.attach_mode()
    }

    /// Whether attaching it reset a device's queue: packets of V that waited there were dropped, before they could be
    /// counted.
    #[must_use]
    pub fn has_reset_a_queue(&self) -> bool {
        self.plane.has_reset_a_queue(names::PROGRAM_SOURCE)
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
    /// Must be called on a thread in the network namespace of the hook.
    ///
    /// # Errors
    ///
    /// The first failure; everything else is tried all the same.
    pub fn remove(self) -> Result<(), EbpfError> {
        self.plane.remove()
    }
}

fn hooks(spec: &SourceSpec) -> Result<Vec<Hook>, EbpfError> {
    let (outside, attach) = (spec.hook_ifindex, spec.attach);
    let program = names::PROGRAM_SOURCE;
    let Some(pod) = &spec.pod else {
        return Ok(vec![Hook::new(
            program,
            outside,
            Direction::Egress,
            attach,
        )?]);
    };
    let lifted_from = spec.detour.map_or(outside, |detour| detour.outside);
    let lift = Hook::new(names::PROGRAM_LIFT, lifted_from, Direction::Ingress, attach)?;
    // What is sent back must be taken on from the first packet.
    Ok(vec![
        match spec.detour {
            Some(_) => lift.on_a_device_of_ours(),
            None => lift,
        },
        Hook::at(
            Place::of(pod),
            program,
            pod.ifindex,
            Direction::Ingress,
            attach,
        )?,
    ])
}

fn config(spec: &SourceSpec) -> Result<Config, EbpfError> {
    let pod = spec.pod.as_ref().map(|pod| pod.ifindex);
    let way_back = spec.detour.map(|detour| detour.inside).or(pod);
    let mut config = Config {
        hook_ifindex: pod.unwrap_or(spec.hook_ifindex),
        through_pod: pod.and(way_back).unwrap_or(0),
        netns_inum: spec.netns_inum,
        tap_netns_inum: spec.tap.netns_inum,
        tap_ifindex: spec.tap.ifindex,
        deliver_header: device::ethernet_addresses(spec.vm_mac, [0; 6]),
        ..Config::default()
    };
    match &spec.encap {
        Encap::Ip {
            outer,
            underlay_ifindex,
            local,
            remote,
            path_mtu,
            oversize_ifindex,
        } => {
            device::ethernet_address(*underlay_ifindex)?;
            config.encap = outer.code();
            config.out_ifindex = *underlay_ifindex;
            config.path_mtu = *path_mtu;
            config.oversize_ifindex = oversize_ifindex.unwrap_or(0);
            set_ends(&mut config, local, remote, &spec.vm_addresses)?;
        }
        Encap::Device { ifindex } => {
            device::ethernet_address(*ifindex)?;
            config.encap = encap::DEVICE;
            config.out_ifindex = *ifindex;
        }
    }
    Ok(config)
}

/// Has the kernel look up D's neighbour entries now, by sending D's discard port an empty datagram.
///
/// Packets that wait for a neighbour's answer are held in a short queue and dropped when it is full;
/// right after the flip is no time for that. Not being able to is no failure: the redirect looks them
/// up as well.
fn warm_neighbours(local: &[IpAddr], remote: &[IpAddr]) {
    const DISCARD: u16 = 9;
    for to in remote {
        for from in local.iter().filter(|from| from.is_ipv4() == to.is_ipv4()) {
            let sent =
                UdpSocket::bind((*from, 0)).and_then(|socket| socket.send_to(&[], (*to, DISCARD)));
            if let Err(error) = sent {
                tracing::debug!(%from, %to, %error, "could not warm the neighbour entry");
            }
        }
    }
}

fn write(slot: &mut Slot<u32>, map: &'static str, value: u32) -> Result<(), EbpfError> {
    slot.set(0, value, 0).map_err(EbpfError::map("write", map))
}

fn monotonic_ns() -> u64 {
    // The clock exists on every Linux; bpf_ktime_get_ns() reads the same one.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .ok()
        .and_then(|now| {
            let seconds = u64::try_from(now.tv_sec()).ok()?;
            Some(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).ok()?)
        })
        .unwrap_or(0)
}
