//! A stand-in for QEMU where a real guest would be too slow: in the lab's other kernels, where it would be emulated twice.
//!
//! What katamaran deals with is real: a QMP socket, a tap that is opened and read as QEMU does it, a stream of RAM that is sent in
//! passes and switches over by itself when little remains. What is not: there is no guest. In its place frames are answered here, by
//! as little of a network stack as it takes to echo UDP and TCP ([`echo`], [`tcp`]). Its state is RAM that is written with every packet, and it only
//! goes on at the destination if all of that has arrived.
//!
//! It takes QEMU's command line, of which it understands what the lab needs.
//!
//! | like QEMU | |
//! |---|---|
//! | stopped | takes one frame out of the tap and keeps it until `cont` |
//! | `-incoming` | the same; `-S` or `stop` keep it from running when the VM has arrived |
//! | `migrate` | to `unix:`, `tcp:`, or a socket that it was handed (`getfd`, `fd:`); passes, `downtime-limit` and `avail-switchover-bandwidth`, STOP, `pre-switchover`, `device`, `completed`; events with time |
//! | the last of the stream | is sent with everything else at a stand: no monitor answers until it has been taken |
//! | a broken stream | `failed`; the destination ends itself |

mod arguments;
mod echo;
mod ip;
mod machine;
mod migration;
mod monitor;
mod nic;
mod ram;
mod requests;
mod socket;
mod tcp;

use std::ffi::OsString;

use anyhow::Result;

use arguments::Arguments;
use machine::Machine;
pub(crate) use machine::STOP_WHEN_HELD;
pub(crate) use nic::open as open_tap;

/// Runs until it is told to quit.
///
/// # Errors
///
/// When the command line lacks something, or the tap or a socket can't be opened.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    let arguments = Arguments::parse(arguments)?;
    let machine = Machine::new(&arguments)?;
    let monitors = monitor::listen(&machine, &arguments.monitors)?;
    nic::start(&machine);
    for monitor in monitors {
        if monitor.join().is_err() {
            anyhow::bail!("a monitor ended");
        }
    }
    Ok(())
}
