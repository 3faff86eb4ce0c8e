//! The one table of named time limits: nothing in this crate waits without one of them.
//!
//! A limit is how long a working peer may take on a busy node, not how long it usually takes.

use std::time::Duration;

/// Connecting to QEMU's monitor: socket, greeting and capability negotiation together.
pub const QMP_CONNECT: Duration = Duration::from_secs(5);

/// A QMP query or setting. QEMU answers from its main loop, which device save and load hold up.
pub const QMP_QUICK: Duration = Duration::from_secs(5);

/// Asking QEMU at the end of an abort whether the VM runs: everything is undone by then, and somebody waits.
pub const QMP_LAST: Duration = Duration::from_secs(1);

/// A QMP command that stops or starts the guest: it drains disk I/O or activates disks first.
pub const QMP_RUN_STATE: Duration = Duration::from_secs(10);

/// A QMP command that starts, continues or cancels a migration. The migration itself goes on after
/// the reply; opening its channels is part of the command.
pub const QMP_MIGRATION: Duration = Duration::from_secs(10);

/// What a connection to the destination's port has to say who it is: the TLS handshake, if any,
/// and the preamble.
pub const PREAMBLE: Duration = Duration::from_secs(3);

/// A QMP command that opens, closes or exports a disk: it reads from it, or waits for requests under way.
pub const QMP_BLOCK: Duration = Duration::from_secs(10);

/// QEMU connecting to the destination's drive. It stands still meanwhile, and the guest with it.
pub const NBD_OPEN: Duration = Duration::from_secs(3);

/// A block job that was started has to be seen by then.
pub const JOB_APPEARS: Duration = Duration::from_secs(30);

/// Between two looks at the block jobs.
pub const JOB_POLL: Duration = Duration::from_millis(250);

/// A job that has reported an error has to end by then, with the reason.
pub const JOB_FAILS: Duration = Duration::from_secs(2);

/// A mirror that has something to copy and copies nothing for so long is stuck; the guest's writes may wait
/// for it.
pub const JOB_STALL: Duration = Duration::from_secs(20);

/// Bringing the disks in step before the VM is stopped: what is left is what was written in a moment.
pub const JOB_SYNC: Duration = Duration::from_secs(30);

/// Stopping a VM whose writes wait for the destination, too: that one may be gone.
pub const STOP_MIRRORED: Duration = Duration::from_secs(5);

/// From the VM's stop until every drive is the destination's: the jobs have ended, the exports are closed.
pub const HAND_OVER: Duration = Duration::from_secs(20);

/// Ending block jobs by force.
pub const JOB_ABORT: Duration = Duration::from_secs(2);

/// The destination opening or closing the exports of all drives.
pub const EXPORT: Duration = Duration::from_secs(30);

/// An export that was closed has to be gone by then.
pub const EXPORT_CLOSE: Duration = Duration::from_secs(5);

/// Comparing one batch of blocks on both nodes.
pub const VERIFY_BATCH: Duration = Duration::from_secs(60);

/// Between two heartbeats of the control session, in either direction.
pub const HEARTBEAT_PERIOD: Duration = Duration::from_millis(250);

/// How long the peer of the control session may send nothing, heartbeats included, before it
/// counts as gone. Busy nodes with emulated guests were seen to stall for more than a second.
pub const PEER_SILENCE: Duration = Duration::from_secs(5);

/// Closing the control session: what was sent goes out, then the peer closes its end.
pub const CONTROL_CLOSE: Duration = Duration::from_secs(2);

/// Connecting one migration stream onwards: to the destination node, or to the incoming QEMU.
pub const RELAY_CONNECT: Duration = Duration::from_secs(5);

/// How long a migration stream may wait for those that QEMU opened before it.
pub const RELAY_ORDER: Duration = Duration::from_secs(5);

/// A stream that QEMU was handed, and on which nothing is acknowledged for so long, is cut: its path has gone silent.
pub const STREAM_SILENCE: Duration = Duration::from_secs(5);

/// Between two looks at whether a stream is acknowledged.
pub const STREAM_LOOK: Duration = Duration::from_millis(500);

/// Ending a relay: streams are cut, tasks joined.
pub const RELAY_SHUTDOWN: Duration = Duration::from_secs(2);

/// Connecting to the destination's port.
pub const DIAL: Duration = Duration::from_secs(5);

/// A packet to the destination and the answer that it arrived, three times.
pub const PATH_PROBE: Duration = Duration::from_millis(900);

/// Telling a source that it is refused.
pub const REFUSAL: Duration = Duration::from_secs(1);

/// Before the destination's port is tried again after it could not accept.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A request to the other node, unless it has a limit of its own.
pub const REQUEST: Duration = Duration::from_secs(10);

/// The destination's data path: the kernel there checks programs, and may load the modules of tunnel and
/// plug. Nothing waits for it: the VM runs on, and no packet is turned yet.
pub const ARM: Duration = Duration::from_secs(40);

/// A look at the shared volumes, locks and reservations on them: their server answers, or hangs.
pub const VOLUME: Duration = Duration::from_secs(5);

/// The destination's look at the shared volumes: it looks, locks and registers in turn.
pub const ATTACH: Duration = Duration::from_secs(12);

/// What the RAM copy waits for the first look at the VM's connections: tens of thousands take a second.
pub const CONNTRACK_FIRST_LOOK: Duration = Duration::from_secs(10);

/// What the pause is put off by for connections that have begun since the last look: the VM goes on meanwhile.
pub const CONNTRACK_HOLD: Duration = Duration::from_millis(100);

/// What the VM's pause may grow by for its connections: the rest of them is carried after COMMIT.
pub const CONNTRACK_SETTLE: Duration = Duration::from_millis(1);

/// Ending the look at the VM's connections.
pub const CONNTRACK_END: Duration = Duration::from_secs(2);

/// From the VM's stop until the destination has loaded it: what RAM remained, at the user's pace.
pub const SWITCHOVER: Duration = Duration::from_secs(30);

/// For the other node to say why the stream of RAM has ended.
pub const CAUSE: Duration = Duration::from_millis(500);

/// COMMIT to its answer: the destination runs the VM in between. Longer than [`QMP_RUN_STATE`] twice,
/// which is what the destination allows itself.
pub const COMMIT: Duration = Duration::from_secs(25);

/// For all that a destination gives back; what it has not by then comes from copies. The VM waits for it.
pub const TAKE_BACK: Duration = Duration::from_millis(1500);

/// Until the VM goes on, whatever is still to be put into its tap.
pub const PUT_BACK: Duration = Duration::from_secs(3);

/// For packets that were on their way to the destination when a migration was given up.
pub const RETURN: Duration = Duration::from_secs(1);

/// No packet for this long: the network sends the VM's packets elsewhere.
pub const QUIET: Duration = Duration::from_secs(2);

/// For the network to send the VM's packets to the destination, where the session that had a limit of its own is dead.
pub const CONVERGENCE: Duration = Duration::from_secs(30);

/// The destination's ledger or its clean-up: both wait for counters to come to rest.
pub const RECONCILE: Duration = Duration::from_secs(15);

/// One scrape, from its connection to the end of its answer.
pub const METRICS_REQUEST: Duration = Duration::from_secs(5);

/// Between two writes of the metrics file while a migration goes on.
pub const METRICS_PERIOD: Duration = Duration::from_secs(2);

/// For the other katamarans on this node to be done with the metrics file.
pub const METRICS_LOCK: Duration = Duration::from_secs(5);

/// One write of the metrics file, [`METRICS_LOCK`] included: its file system may hang.
pub const METRICS_WRITE: Duration = Duration::from_secs(8);

/// Between two looks of a trace at the hooks of migrations and at what it has lost.
pub const TRACE_LOOK: Duration = Duration::from_millis(500);

/// For the last drops of a trace to come in once its program is off.
pub const TRACE_SETTLE: Duration = Duration::from_millis(200);

/// Undoing everything, on every way out.
pub const UNDO: Duration = Duration::from_secs(9);

/// A qdisc that has to empty before it is removed.
pub const NETLINK: Duration = Duration::from_secs(2);
