//! The one table of named time limits: nothing in this crate waits without one of them.
//!
//! A limit is how long a working peer may take on a busy node, not how long it usually takes.

use std::time::Duration;

/// Connecting to QEMU's monitor: socket, greeting and capability negotiation together.
pub const QMP_CONNECT: Duration = Duration::from_secs(5);

/// A QMP query or setting. QEMU answers from its main loop, which device save and load hold up.
pub const QMP_QUICK: Duration = Duration::from_secs(5);

/// A QMP command that stops or starts the guest: it drains disk I/O or activates disks first.
pub const QMP_RUN_STATE: Duration = Duration::from_secs(10);

/// A QMP command that starts, continues or cancels a migration. The migration itself goes on after
/// the reply; opening its channels is part of the command.
pub const QMP_MIGRATION: Duration = Duration::from_secs(10);
