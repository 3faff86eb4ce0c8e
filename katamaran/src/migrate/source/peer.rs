//! The destination, as the source talks to it.

use std::time::Duration;

use crate::control::{Client, ControlError, Notices};
use crate::deadline;
use crate::migrate::error::{Doing as _, MigrateError, chain};
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

/// When the other node or its QEMU dies, the streams of RAM and drives break at several places at once, and any of
/// them may be the first to notice. The other node knows why, or is gone itself: it has a moment to tell.
pub(crate) async fn cause_of(
    notices: &mut Notices<MigrationProtocol>,
    symptom: MigrateError,
) -> MigrateError {
    let may_be_a_symptom = match &symptom {
        MigrateError::Relay { .. } | MigrateError::MigrationEnded { .. } => true,
        MigrateError::Storage(error) => error.may_be_a_symptom(),
        // It answers nothing while it waits for a destination's drive that is gone.
        MigrateError::Qmp { source, .. } => source.is_timeout(),
        _ => false,
    };
    if !may_be_a_symptom {
        return symptom;
    }
    let told = tokio::time::timeout(deadline::CAUSE, async {
        loop {
            match notices.next().await.doing("hear from the destination") {
                Ok(notice) => {
                    if let Some(cause) = bad_news(notice) {
                        return cause;
                    }
                }
                Err(lost) => return lost,
            }
        }
    });
    match told.await {
        Ok(cause) => {
            tracing::warn!(
                symptom = chain(&symptom),
                "what travels to the other node broke"
            );
            match symptom {
                MigrateError::Storage(symptom) => symptom.because(&chain(&cause)).into(),
                _ => cause,
            }
        }
        Err(_silent) => symptom,
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
