//! The destination, as the source talks to it.

use std::time::Duration;

use crate::control::{Client, ControlError};
use crate::migrate::error::{Doing as _, MigrateError};
use crate::migrate::message::{MigrationProtocol, Notice, Reply, Request};

/// The control connection. Cheap to clone: undo steps hold one too.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    client: Client<MigrationProtocol>,
}

impl Peer {
    pub(crate) fn new(client: Client<MigrationProtocol>) -> Self {
        Self { client }
    }

    /// Sends a request and waits for its reply.
    pub(crate) async fn ask(
        &self,
        doing: &'static str,
        request: Request,
        within: Duration,
    ) -> Result<Reply, MigrateError> {
        match self.client.request(&request, within).await {
            Err(ControlError::Fault { source } | ControlError::Refused { source }) => {
                Err(MigrateError::RefusedByPeer(source.message))
            }
            other => other.doing(doing),
        }
    }

    pub(crate) fn client(&self) -> &Client<MigrationProtocol> {
        &self.client
    }
}

/// A notice that ends the migration, as an error.
pub(crate) fn bad_news(notice: Notice) -> Option<MigrateError> {
    match notice {
        Notice::Loaded => None,
        Notice::IncomingFailed { reason } | Notice::GivingUp { reason } => {
            Some(MigrateError::PeerGaveUp { reason })
        }
    }
}
