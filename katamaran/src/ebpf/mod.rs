//! The data plane: the eBPF programs that count V's packets and turn them from S to D.
//!
//! ```text
//! S                                          D
//! TC egress towards V: ktm_source            TC ingress, underlay: ktm_deliver
//!   COUNT:    S1, S2 -> tap                    D1, decapsulated -> tap
//!   REDIRECT: S1, S3 -> encapsulated -> D    TC egress, tap: ktm_tap
//! tracepoints: offered to the tap, drops       D3 (tunnelled), D2 (direct)
//!                                            tracepoints: offered to the tap, drops
//! ```
//!
//! With V in a pod of its own, `ktm_source` and `ktm_tap` are at the ingress of the pod's end of its veth, which all
//! packets for V come through, also those that a CNI hands to the pod past the node's end (`bpf_redirect_peer`). The
//! pod has no way to D: what is redirected goes back out of it, and `ktm_lift` at the ingress of the node's end
//! sends it on. On D `ktm_deliver` hands packets to the pod's end.
//!
//! [`SourceDataplane`] and [`DestinationDataplane`] own everything they put into the kernel: arming
//! creates it, `remove` undoes it and reports what could not be undone. Everything is pinned under
//! `/sys/fs/bpf/katamaran/<session>/<role>/`, so that a crash of the process leaves the redirect in
//! place; what a dead process left is found and removed by [`sweep`].
//!
//! **Threads and namespaces.** All functions are synchronous. `arm`, `remove` and [`sweep`] must be
//! called on a thread that is already in the network namespace of the hooks; the others may be called
//! anywhere. The mount namespace must be the host's: programs started by `ip netns exec` see a
//! `/sys` of their own, and pins made there die with it.
//!
//! [`DropTrace`] tells of each drop as it happens, and [`armed_hooks`] reads the counters of all armed
//! sessions; neither needs a migration, or touches one.
//!
//! A counter that could not be read is `None`, never zero.

mod attach;
mod bpffs;
mod btf;
mod copies;
mod counters;
mod destination;
mod device;
mod drops;
mod error;
mod object;
mod place;
mod plane;
mod retained;
mod sessions;
mod source;
mod symbols;
mod trace;
mod trial;
mod tunnel;
mod witness;

pub use attach::{AttachMode, AttachPreference, has_tcx};
pub use bpffs::{BPFFS, Swept, is_mounted, stale_roles, stale_sessions, sweep, sweep_role};
pub use btf::BtfError;
pub use copies::CopiedFrame;
pub use counters::{DestinationCounters, Offered, SequenceCounters, SourceCounters};
pub use destination::{DestinationDataplane, DestinationSpec, Ingress};
pub use device::is_ethernet;
pub use drops::{PacketDrop, TunnelKind};
pub use error::EbpfError;
pub use katamaran_common::counter::Counter;
pub use katamaran_common::layout::Count;
pub use object::object_state;
pub use place::PodEnd;
pub use retained::{LeftBehind, RetainedPacket, settle};
pub use sessions::{ArmedHooks, HookMode, armed_hooks};
pub use source::{Detour, Encap, FlipTime, Outer, SourceDataplane, SourceSpec, TapLocation};
pub use symbols::Symbols;
pub use trace::{DropTrace, DroppedPacket, LostEvents};
pub use trial::{Trial, drop_reasons, try_programs};
pub use witness::WitnessMissing;
