//! Looking only: Hello and Prepare change nothing. They begin a session, and they can be asked by somebody
//! who begins none (`katamaran preflight`), with the same answers.

use std::time::Duration;

use crate::config::{CommonConfig, TunnelMode};
use crate::control::{Fault, FaultCode, Look, Server, Timing, select};
use crate::migrate::error::{MigrateError, chain};
use crate::migrate::message::{
    MigrationProtocol, PROTOCOL, Prepared, Reply, Request, VmDescription,
};
use crate::migrate::node::{Node, kernel_release, refused};
use crate::migrate::storage::drive::Drive;

use super::guest;

/// How long one may ask.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers until the asker has gone.
pub(super) async fn answer(node: &Node, config: &CommonConfig, look: Look) {
    tracing::info!(from = %look.peer, "asked whether a VM can come here");
    let (server, mut requests) = Server::<MigrationProtocol>::start(look.io, Timing::default());
    let answers = async {
        while let Ok((id, request)) = requests.next().await {
            let reply = match request {
                Request::Hello { versions, software } => hello(&versions, &software),
                Request::Prepare(vm) => prepare(node, config, &vm)
                    .await
                    .map(|(_drives, reply)| reply),
                _ => Err(refused("this connection only asks")),
            };
            let reply = reply.map_err(|error| Fault::new(FaultCode::Failed, chain(&error)));
            if server.reply(id, reply).is_err() {
                return;
            }
        }
    };
    if tokio::time::timeout(PATIENCE, answers).await.is_err() {
        tracing::debug!(from = %look.peer, "asked for too long");
    }
}

/// The version that both speak.
pub(super) fn hello(versions: &[u16], software: &str) -> Result<Reply, MigrateError> {
    let version = select(versions, &[PROTOCOL]).ok_or_else(|| {
        let behind = match versions.iter().max() {
            Some(newest) if *newest > PROTOCOL => "destination",
            _ => "source",
        };
        let versions: Vec<String> = versions.iter().map(u16::to_string).collect();
        refused(format!(
            "the source (katamaran {software}) speaks version {} of the session, the destination (katamaran {}) version \
             {PROTOCOL}: upgrade katamaran on the {behind}",
            versions.join(", "),
            env!("CARGO_PKG_VERSION"),
        ))
    })?;
    Ok(Reply::Hello {
        version,
        software: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Compares the source's VM with the one that waits here. Returns the drives to mirror to, too.
pub(super) async fn prepare(
    node: &Node,
    config: &CommonConfig,
    vm: &VmDescription,
) -> Result<(Vec<Drive>, Reply), MigrateError> {
    if config.tunnel != TunnelMode::None {
        for nic in &node.nics {
            nic.last_device()?;
        }
    }
    let drives = guest::compare(node, vm, config).await?;
    let reply = Reply::Prepared(Prepared {
        qemu_version: node.qemu_version(),
        tap: node.tap_names(),
        kernel: kernel_release(),
    });
    Ok((drives, reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_before_and_the_one_after_are_refused_with_what_to_upgrade() {
        let own = env!("CARGO_PKG_VERSION");
        for (versions, software, told) in [
            (
                &[2][..],
                "0.0.9",
                "the source (katamaran 0.0.9) speaks version 2 of the session",
            ),
            (&[1, 2], "0.0.9", "speaks version 1, 2 of the session"),
            (
                &[4],
                "0.2.0",
                "the source (katamaran 0.2.0) speaks version 4 of the session",
            ),
        ] {
            let refusal = hello(versions, software).unwrap_err().to_string();
            assert!(refusal.contains(told), "{refusal}");
            let ours = format!("the destination (katamaran {own}) version {PROTOCOL}");
            assert!(refusal.contains(&ours), "{refusal}");
            let behind = if versions.contains(&4) {
                "destination"
            } else {
                "source"
            };
            assert!(
                refusal.ends_with(&format!("upgrade katamaran on the {behind}")),
                "{refusal}"
            );
        }
    }

    #[test]
    fn a_source_that_speaks_more_versions_than_this_one_is_answered_in_this_one() {
        let reply = hello(&[2, PROTOCOL, 4], "0.2.0").unwrap();
        assert!(matches!(
            reply,
            Reply::Hello {
                version: PROTOCOL,
                ..
            }
        ));
    }
}
