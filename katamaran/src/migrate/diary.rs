//! This migration's journal, from the moment when it has one: what the steps write into it, and what becomes of it at the end.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::error::{MigrateError, chain};
use super::message::VmDescription;
use super::nic::Nic;
use super::node::Node;
use super::rollback::Undone;
use crate::config::CommonConfig;
use crate::journal::{
    self, DIRECTORY, Header, Journal, JournalError, ProcessId, Receipts, Record, SCHEMA, Tap,
};
use crate::role::Role;
use crate::session_id::SessionId;

/// What a journal begins with that the VM's QEMU and tap don't tell.
pub(crate) struct Beginning<'a> {
    pub(crate) session: SessionId,
    pub(crate) role: Role,
    pub(crate) qmp: &'a Path,
    pub(crate) peer: String,
    pub(crate) vm: Vec<IpAddr>,
    /// The source's QEMU is ended when the VM runs on the destination.
    pub(crate) ends_qemu: bool,
    pub(crate) receipts: Option<Receipts>,
    pub(crate) convergence_s: Option<u64>,
}

/// The journal, or none yet. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Diary(Option<Journal>);

impl Diary {
    /// Makes the journal; nothing may have been changed before.
    ///
    /// # Errors
    /// [`MigrateError::Journal`].
    pub(crate) fn begin(node: &Node, beginning: Beginning<'_>) -> Result<Self, MigrateError> {
        Self::of_taps(node, node.nics.iter(), beginning)
    }

    /// `nics` are the node's, in the source's order.
    fn of_taps<'a>(
        node: &Node,
        nics: impl Iterator<Item = &'a Nic>,
        beginning: Beginning<'_>,
    ) -> Result<Self, MigrateError> {
        let mut taps = nics.map(|nic| Tap {
            name: nic.tap.name.clone(),
            index: nic.tap.index,
            netns: nic.tap_netns.inode(),
        });
        let tap = taps
            .next()
            .ok_or(MigrateError::OutOfStep { what: "no NIC" })?;
        let header = Header {
            schema: SCHEMA,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            session: beginning.session,
            role: beginning.role,
            pid: std::process::id(),
            qmp: std::path::absolute(beginning.qmp).unwrap_or_else(|_| beginning.qmp.to_owned()),
            qemu: node.qemu_pid.and_then(ProcessId::of),
            peer: beginning.peer,
            vm: beginning.vm,
            tap,
            more_taps: taps.collect(),
            netns: node.netns.inode(),
            ends_qemu: beginning.ends_qemu,
            receipts: beginning.receipts,
            convergence_s: beginning.convergence_s,
        };
        journal::prune(Path::new(DIRECTORY));
        Ok(Self(Some(Journal::create(Path::new(DIRECTORY), header)?)))
    }

    /// The destination's: from here on something may be left behind.
    ///
    /// # Errors
    /// [`MigrateError::Journal`].
    pub(crate) fn of_destination(
        node: &Node,
        session: SessionId,
        config: &CommonConfig,
        source: SocketAddr,
        vm: &VmDescription,
    ) -> Result<Self, MigrateError> {
        let beginning = Beginning {
            session,
            role: Role::Destination,
            qmp: &config.qmp,
            peer: source.to_string(),
            vm: vm.addresses(),
            ends_qemu: false,
            receipts: vm.receipts.clone(),
            convergence_s: vm.convergence_s,
        };
        let nics = vm.nics().filter_map(|theirs| node.nic_for(theirs));
        Self::of_taps(node, nics, beginning)
    }

    /// The one of a session that was taken over.
    pub(crate) fn of(journal: Journal) -> Self {
        Self(Some(journal))
    }

    /// Written before it is done.
    ///
    /// # Errors
    /// It must not be done.
    pub(crate) fn note(&self, record: &Record) -> Result<(), MigrateError> {
        match &self.0 {
            Some(journal) => Ok(journal.append(record)?),
            None => Ok(()),
        }
    }

    /// Of what has happened, or does no harm if nobody hears of it.
    pub(crate) fn mention(&self, record: &Record) {
        if let Err(error) = self.note(record) {
            tracing::warn!(error = chain(&error), "the journal is not up to date");
        }
    }

    /// Everything is decided. The journal goes, unless a step of the clean-up failed.
    pub(crate) fn close(&self, cleanup: &[Undone]) {
        self.end(cleanup, Journal::remove);
    }

    /// The same, for a destination that the source may still ask.
    pub(crate) fn settle(&self, cleanup: &[Undone]) {
        self.end(cleanup, Journal::settle);
    }

    fn end(&self, cleanup: &[Undone], end: impl FnOnce(&Journal) -> Result<(), JournalError>) {
        let Some(journal) = &self.0 else { return };
        let left = cleanup
            .iter()
            .filter(|undone| undone.error.is_some() && !undone.elsewhere);
        let what: Vec<String> = left.map(|undone| undone.what.clone()).collect();
        if !what.is_empty() {
            return self.mention(&Record::Left { what });
        }
        if let Err(error) = end(journal) {
            tracing::warn!(error = chain(&error), "the journal stays behind");
        }
    }
}
