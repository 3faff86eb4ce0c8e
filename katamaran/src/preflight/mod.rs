//! `katamaran preflight`: would a migration work here?
//!
//! Looks with the migration's own eyes: what Prepare refuses is missing here, in the same words, and what a
//! kernel can do is tried with the code that a migration uses, in a network namespace that vanishes afterwards. QEMU
//! is only asked; a destination that waits is asked on a connection that begins no session. Nothing on the machine is
//! changed but that the kernel loads the modules it is asked for, and notes what it learns of a path's MTU.
//!
//! | module | what |
//! |---|---|
//! | [`kernel`] | programs, hooks, drop reasons, the BPF file system, queues, tunnels, connections |
//! | [`privileges`] | capabilities |
//! | [`qemu`] | the VM's QEMU: can be asked, is in the right state, has what is needed; drives |
//! | [`wiring`] | the tap, its namespace, the device to hook |
//! | [`path`] | the way to the destination: route, MTU, which tunnel fits |
//! | [`port`], [`holder`] | the port: free on the destination; on the source, who answers there, and what of |
//! | [`buffer`] | what holds packets while the VM moves, against the link's rate |
//!
//! Works without privilege as far as that goes: what can't be looked at is `unchecked`, with the reason.

mod buffer;
mod check;
mod found;
mod holder;
mod kernel;
mod path;
mod port;
mod privileges;
mod qemu;
mod render;
mod wiring;

pub use check::{Area, Check, Status};
pub use found::{Found, SCHEMA, Side};

use crate::config::{CommonConfig, PreflightConfig};
use crate::net::NetNs;

/// Looks at everything that the flags give something to look at. Never fails: what went wrong is in a line.
pub async fn run(config: &PreflightConfig) -> Found {
    let mut found = Found::new(config);
    let Some(common) = common(config) else {
        return found;
    };
    let own = match NetNs::current().and_then(|netns| Ok((netns.netlink()?, netns))) {
        Ok(own) => own,
        Err(error) => {
            found.push(Check::unchecked(
                Area::Kernel,
                "netlink",
                crate::migrate::chain(&error),
                "Run it where /proc is mounted.",
            ));
            return found;
        }
    };
    let (netlink, netns) = own;

    let plug = kernel::look(config, common, &mut found).await;
    privileges::look(&found.sides.clone(), &mut found);
    let qemu = qemu::look(config, common, &mut found).await;
    let wiring = wiring::look(config, common, &netlink, qemu.as_ref(), &mut found).await;
    let path = path::look(config, &netlink, &wiring, &mut found).await;
    port::look(config, qemu.as_ref(), &wiring, &mut found).await;
    buffer::look(config, plug, &netns, &wiring, &path, &mut found);
    found
}

fn common(config: &PreflightConfig) -> Option<&CommonConfig> {
    let source = config.source.as_ref().map(|c| &c.common);
    source.or(config.destination.as_ref().map(|c| &c.common))
}
