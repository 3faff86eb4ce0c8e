//! The destination's one port: free there; from the source, who answers.

use std::net::SocketAddr;

use super::check::{Area, Check};
use super::found::Found;
use super::holder;
use super::qemu::Qemu;
use super::wiring::Wiring;
use crate::config::{DestinationConfig, PreflightConfig, SourceConfig};
use crate::control::{Client, DialError, Dialer, Preamble, Timing, plaintext};
use crate::deadline;
use crate::migrate::chain;
use crate::migrate::destination::{bind, listen_address};
use crate::migrate::error::MigrateError;
use crate::migrate::source::Peer;
use crate::migrate::source::prepare::{ask_prepare, describe_vm, greet};
use crate::session_id::SessionId;

const AREA: Area = Area::Port;

pub(super) async fn look(
    config: &PreflightConfig,
    qemu: Option<&Qemu>,
    wiring: &Wiring,
    found: &mut Found,
) {
    if let Some(destination) = &config.destination {
        found.push(listen(destination));
    }
    if let Some(source) = &config.source
        && !source.dest_ips.is_empty()
    {
        ask(source, qemu, wiring, found).await;
    }
}

/// Takes the port and gives it back, without listening.
fn listen(config: &DestinationConfig) -> Check {
    let address = listen_address(config.listen, config.common.port);
    match bind(address) {
        Ok(_given_back) => Check::ok(AREA, "listen", format!("{address} is free")),
        Err(error) => {
            let holder = match error.kind() {
                std::io::ErrorKind::AddrInUse => holder::of_port(config.common.port),
                _ => None,
            };
            let by = holder.map_or(String::new(), |holder| format!(", by {holder}"));
            let remedy = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "End what listens there, or give both nodes another --port. If it is a katamaran --mode dest that waits \
                     for this VM, ask it from the source."
                }
                std::io::ErrorKind::AddrNotAvailable => {
                    "Give an address of this node with --listen."
                }
                std::io::ErrorKind::PermissionDenied => {
                    "Run it as root, or give both nodes a --port from 1024 on."
                }
                _ => "Give another address with --listen, or another --port.",
            };
            Check::missing(AREA, "listen", format!("{address}: {error}{by}"), remedy)
        }
    }
}

/// Asks the destination that waits, as Prepare would, on a connection that begins no session.
async fn ask(config: &SourceConfig, qemu: Option<&Qemu>, wiring: &Wiring, found: &mut Found) {
    let address = SocketAddr::new(config.dest_ips[0], config.common.port);
    let dialed = Dialer::new(address, plaintext())
        .dial(Preamble::look(SessionId::random()))
        .await;
    let stream = match dialed {
        Ok(stream) => stream,
        Err(error) => {
            let (text, remedy) = (chain(&error), undialed(&error));
            found.push(Check::missing(AREA, "destination", text, remedy));
            return;
        }
    };
    let (client, _notices) = Client::start(stream, Timing::default());
    let peer = Peer::new(client);
    match greet(&peer).await {
        Ok(software) => {
            let text = format!("katamaran {software} waits at {address}");
            found.push(Check::ok(AREA, "destination", text));
        }
        Err(error) => {
            found.push(ungreeted(address, &error));
            return;
        }
    }
    let name = "vm-there";
    let (Some(qemu), Some(node), Some(nics)) = (qemu, &wiring.node, &wiring.nics) else {
        let why = "the destination was not asked for the VM, which is not known here";
        found.push(Check::unchecked(AREA, name, why, "Give --qmp."));
        return;
    };
    let Some(drives) = &qemu.drives else {
        let why = "the destination was not asked for the VM, whose drives are not known";
        found.push(Check::unchecked(AREA, name, why, "See the drives above."));
        return;
    };
    let shared = config.common.shared_storage;
    let vm = describe_vm(node, nics.clone(), shared, drives).await;
    found.push(match ask_prepare(&peer, vm).await {
        Ok(theirs) => {
            let (major, minor, micro) = theirs.qemu_version;
            let text = format!(
                "a QEMU {major}.{minor}.{micro} with the same VM waits on {}, Linux {}",
                theirs.tap, theirs.kernel
            );
            if theirs.qemu_version < node.qemu_version() {
                let cost = "It is older than the one here: QEMU may refuse what it does not know. Use the same release on \
                            both nodes.";
                Check::degraded(AREA, name, text, cost)
            } else {
                Check::ok(AREA, name, text)
            }
        }
        Err(error) => Check::missing(
            AREA,
            name,
            chain(&error),
            "Start the destination's QEMU with the options of the source's, and katamaran with the same flags about \
             drives.",
        ),
    });
}

fn undialed(error: &DialError) -> String {
    let refused = matches!(error, DialError::Connect { source, .. }
        if source.kind() == std::io::ErrorKind::ConnectionRefused);
    if refused {
        "Nobody listens there: start katamaran --mode dest on the destination, and give both nodes the same --port.".into()
    } else {
        "Is --dest-ip right, is katamaran --mode dest running there, and do the firewalls between the nodes let its \
         port pass?"
            .into()
    }
}

fn ungreeted(address: SocketAddr, error: &MigrateError) -> Check {
    let name = "destination";
    let text = format!("{address}: {}", chain(error));
    match error {
        MigrateError::RefusedByPeer(_) => Check::missing(
            AREA,
            name,
            text,
            "Wait until it is free, or use the same release of katamaran on both nodes.",
        ),
        _ => Check::missing(
            AREA,
            name,
            text,
            format!(
                "What listens there does not answer as this katamaran within {} s: another program, or another release. Use the \
                 same on both nodes.",
                deadline::REQUEST.as_secs()
            ),
        ),
    }
}
