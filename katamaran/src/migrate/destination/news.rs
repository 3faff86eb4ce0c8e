//! What comes up by itself in a session: QEMU has something to say, or the source is gone. And what the source is told of it.

use crate::control::ControlError;
use crate::migrate::error::chain;
use crate::migrate::message::Notice;
use crate::qmp::command::MigrationStatus;
use crate::qmp::{Event, QmpError};

use super::session::Session;
use super::stage::Stage;

impl Session<'_> {
    pub(super) fn on_event(&mut self, event: Result<Event, QmpError>) {
        match event {
            Ok(event) => match event.migration_status() {
                Some(MigrationStatus::Completed) => {
                    tracing::debug!("loaded");
                    self.loaded = true;
                    self.notify(&Notice::Loaded);
                }
                Some(MigrationStatus::Failed) => {
                    self.incoming_failed("QEMU could not load the VM (its log says why)")
                }
                _ => {}
            },
            Err(error) => {
                self.qemu_gone = true;
                self.incoming_failed(&format!(
                    "the destination's QEMU is gone: {}",
                    chain(&error)
                ));
            }
        }
    }

    pub(super) fn incoming_failed(&mut self, reason: &str) {
        // After an abort QEMU's end is what we asked for; after COMMIT it is the VM's own affair.
        if self.stage >= Stage::Committed {
            return;
        }
        self.reason.get_or_insert_with(|| reason.to_owned());
        self.notify(&Notice::IncomingFailed {
            reason: reason.to_owned(),
        });
    }

    pub(super) fn give_up(&mut self, reason: &str) {
        self.reason.get_or_insert_with(|| reason.to_owned());
        self.notify(&Notice::GivingUp {
            reason: reason.to_owned(),
        });
    }

    pub(super) fn notify(&self, notice: &Notice) {
        if let Err(error) = self.server.notify(notice) {
            tracing::debug!(error = chain(&error), "a notice could not be sent");
        }
    }

    pub(super) fn source_lost(&mut self, error: &ControlError) {
        if self.stage == Stage::Aborted {
            return;
        }
        let lost = format!("the session with the source ended: {}", chain(error));
        if self.stage >= Stage::Committed {
            tracing::warn!(lost, "the VM runs here; going on without the source");
            self.report.warnings.push(lost);
        } else {
            self.reason.get_or_insert(lost);
        }
    }
}
