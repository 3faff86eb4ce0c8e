//! The destination: the node that will run the VM. It does what the source asks, step by step, and
//! runs the VM on COMMIT and on nothing else.

mod conntrack;
pub(crate) mod delivery;
mod ending;
pub(crate) mod guest;
mod look;
mod news;
mod session;
pub(super) mod stage;
mod storage;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use super::aftermath::{clear_the_tap, clear_the_way};
use super::error::{Doing as _, MigrateError, chain};
use super::node::Node;
use super::progress::{Outlets, Progress};
use super::report::{Outcome, Report};
use crate::config::{CommonConfig, DestinationConfig};
use crate::control::{Arrival, ControlConnection, Listener, plaintext};
use crate::deadline;
use crate::ebpf;
use crate::role::Role;
use crate::session_id::SessionId;

pub(crate) use ending::End;

/// Takes one VM in. Never fails: how it ended is in the report.
pub async fn run(config: DestinationConfig, outlets: Outlets, stop: CancellationToken) -> Report {
    let mut progress = Progress::new(outlets);
    let mut report = Report::new(SessionId(0), Role::Destination);
    progress.begin("wait for the source");
    match take_in(&config, &mut progress, &mut report, &stop).await {
        Ok(End::Migrated) => report.outcome = Outcome::Migrated,
        Ok(End::Undecided { reason }) => {
            report.outcome = Outcome::Undecided;
            report.error = Some(format!(
                "COMMIT came, but QEMU did not run the VM: {reason}. The VM is stopped here and on the source. Run \
                 `katamaran resolve {}` here: it runs the VM here, or gives it back to the source. Resume neither copy by hand",
                report.session
            ));
        }
        Ok(End::Refused { reason }) => {
            report.outcome = Outcome::Refused;
            report.error = Some(reason);
        }
        Ok(End::GivenUp { reason }) => {
            report.outcome = if stop.is_cancelled() {
                Outcome::Cancelled
            } else {
                Outcome::Failed
            };
            report.error = Some(format!("{reason}. The VM does not run here"));
        }
        Err(MigrateError::Interrupted) => {
            report.outcome = Outcome::Cancelled;
            report.error = Some("interrupted before a source came".into());
        }
        // No source has come yet, so nothing was set up.
        Err(error) => {
            tracing::error!(error = chain(&error), "not ready for a source");
            report.outcome = Outcome::Refused;
            report.error = Some(chain(&error));
        }
    }
    progress.end();
    report.phases = progress.phases().to_vec();
    report
}

async fn take_in(
    config: &DestinationConfig,
    progress: &mut Progress,
    report: &mut Report,
    stop: &CancellationToken,
) -> Result<End, MigrateError> {
    ebpf::object_state().doing("look at the eBPF programs")?;
    clear_the_way(&config.common.qmp).await?;
    let node = Node::open(&config.common).await?;
    clear_the_tap(&node).await?;
    guest::must_be_incoming(&node).await?;
    let address = listen_address(config.listen, config.common.port);
    let failed = |source| MigrateError::Listen { address, source };
    let socket = bind(address).and_then(listen).map_err(failed)?;
    let mut listener = Listener::start(socket, plaintext(), 1).map_err(failed)?;
    tracing::info!(%address, tap = node.tap_names(), "ready for the source");
    let Some(incoming) = wait_for_source(&mut listener, &node, &config.common, stop).await else {
        listener.shutdown().await;
        return Err(MigrateError::Interrupted);
    };
    report.session = incoming.session;
    progress.start(incoming.session);
    let end = session::serve(node, &config.common, incoming, progress, report, stop).await;
    // Nobody is served any more; a hung peer must not hold us up.
    if tokio::time::timeout(deadline::CONTROL_CLOSE, listener.shutdown())
        .await
        .is_err()
    {
        tracing::debug!("the listener did not end in time");
    }
    Ok(end)
}

/// The next source, or `None` when we are to stop. Whoever only asks (`katamaran preflight`) is answered
/// meanwhile, and cut off when the source comes.
async fn wait_for_source(
    listener: &mut Listener,
    node: &Node,
    config: &CommonConfig,
    stop: &CancellationToken,
) -> Option<ControlConnection> {
    let mut looking: Pin<Box<dyn Future<Output = ()> + Send + '_>> =
        Box::pin(std::future::pending());
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            arrival = listener.next() => match arrival {
                Arrival::Session(connection) => return Some(connection),
                Arrival::Look(look) => looking = Box::pin(look::answer(node, config, look)),
            },
            () = &mut looking => looking = Box::pin(std::future::pending()),
        }
    }
}

/// Where the destination listens.
pub(crate) fn listen_address(listen: Option<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(listen.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), port)
}

/// Takes the port; nobody can connect yet. `[::]` takes IPv4 as well (IPV6_V6ONLY off); without IPv6
/// on the node, `0.0.0.0`.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let take = |address: SocketAddr| -> std::io::Result<TcpSocket> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    match take(address) {
        Err(error)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) =>
        {
            take((std::net::Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        other => other,
    }
}

fn listen(socket: TcpSocket) -> std::io::Result<TcpListener> {
    const BACKLOG: u32 = 1024;
    socket.listen(BACKLOG)
}
