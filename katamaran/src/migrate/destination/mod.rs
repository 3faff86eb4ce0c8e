//! The destination: the node that will run the VM. It does what the source asks, step by step, and
//! runs the VM on COMMIT and on nothing else.

mod delivery;
mod ending;
mod guest;
mod neighbours;
mod session;
mod stage;
mod storage;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use indicatif::MultiProgress;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::error::{Doing as _, MigrateError, chain};
use super::node::Node;
use super::progress::Progress;
use super::report::{Outcome, Report, Role};
use crate::config::DestinationConfig;
use crate::control::{Listener, plaintext};
use crate::deadline;
use crate::ebpf;
use crate::session_id::SessionId;

pub(crate) use session::End;

/// Takes one VM in. Never fails: how it ended is in the report.
pub async fn run(
    config: DestinationConfig,
    bars: MultiProgress,
    stop: CancellationToken,
) -> Report {
    let mut progress = Progress::new(bars);
    let mut report = Report::new(SessionId(0), Role::Destination);
    progress.begin("wait for the source");
    match take_in(&config, &mut progress, &mut report, &stop).await {
        Ok(End::Migrated) => report.outcome = Outcome::Migrated,
        Ok(End::Undecided { reason }) => {
            report.outcome = Outcome::Undecided;
            report.error = Some(format!(
                "COMMIT came, but QEMU did not run the VM: {reason}. The VM is stopped here and on the source. If it can be \
                 run here with `cont`, end the source's QEMU. Otherwise end this QEMU first, then resume the VM on the \
                 source with `cont`. Never do both"
            ));
        }
        Ok(End::Refused { reason }) => {
            report.outcome = Outcome::Refused;
            report.error = Some(reason);
        }
        Ok(End::GivenUp { reason }) => {
            report.outcome = if stop.is_cancelled() {
                Outcome::Interrupted
            } else {
                Outcome::Failed
            };
            report.error = Some(format!("{reason}. The VM does not run here"));
        }
        Err(MigrateError::Interrupted) => {
            report.outcome = Outcome::Interrupted;
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
    let node = Node::open(&config.common).await?;
    guest::must_be_incoming(&node).await?;
    let ip = config.listen.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    let address = SocketAddr::new(ip, config.common.port);
    let socket = bind(address)
        .await
        .map_err(|source| MigrateError::Listen { address, source })?;
    let mut listener = Listener::start(socket, plaintext(), 1)
        .map_err(|source| MigrateError::Listen { address, source })?;
    tracing::info!(%address, tap = %node.tap.name, "ready for the source");
    let incoming = tokio::select! {
        incoming = listener.next() => incoming,
        () = stop.cancelled() => {
            listener.shutdown().await;
            return Err(MigrateError::Interrupted);
        }
    };
    report.session = incoming.session;
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

/// `[::]` takes IPv4 as well (IPV6_V6ONLY off); without IPv6 on the node, `0.0.0.0`.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) =>
        {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        other => other,
    }
}
