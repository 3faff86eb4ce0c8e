//! Network devices, queues, routes and packets of one node, over netlink and packet sockets.
//!
//! A leaf module: it knows nothing of QMP, eBPF or the session. Its parts:
//!
//! | module | what |
//! |---|---|
//! | [`netns`] | enter a network namespace, on threads of our own only |
//! | [`handle`] | [`Netlink`]: one serialised netlink socket per namespace, each request under a deadline |
//! | [`link`] | look devices up, change them, own them |
//! | [`counters`] | device counters in microseconds, for polling loops |
//! | [`route`] | routes, addresses, path MTU, the underlay towards a peer |
//! | [`ways`] | the routes to many addresses at once |
//! | [`neighbour`] | neighbours, bridge forwarding entries, the device that leads to the VM |
//! | [`pair`] | the other end of a veth, and where filters send all frames on to |
//! | [`tap`] | what a tap's counters mean; a longer queue while packets may pile up |
//! | [`tapfd`] | the descriptors through which QEMU reads its tap: read what it left unread |
//! | [`packet`] | put frames into a device past its queueing discipline |
//! | [`vxlan`] | a point-to-point tunnel for one session |
//! | [`plug`] | `sch_plug`: hold packets, let them go |
//! | [`qdisc`] | the counters of any root queueing discipline |
//! | [`reach`] | a device's rate, and whether a packet of a given length goes through to a peer |
//! | [`scratch`] | a namespace of our own, to try what the kernel can do |
//! | [`names`] | names of our kernel objects |
//!
//! **Invariants.** No runtime thread ever enters a namespace. Whatever is created has an owner type
//! whose `remove(self)` is the normal end; dropping one only warns. Errno values are looked at in
//! [`NetError`] alone.

pub mod counters;
pub mod detour;
mod error;
pub mod handle;
pub mod link;
pub mod names;
pub mod neighbour;
pub mod netns;
pub mod packet;
pub mod pair;
pub mod plug;
pub mod qdisc;
pub mod reach;
pub mod route;
pub mod scratch;
mod sys;
pub mod tap;
pub mod tapfd;
pub mod vxlan;
pub mod ways;

pub use error::NetError;
pub use handle::Netlink;
pub use netns::NetNs;

/// The result of everything in this module.
pub type Result<T, E = NetError> = std::result::Result<T, E>;
