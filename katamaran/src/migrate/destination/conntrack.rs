//! The VM's connections, put into this node's table as the source reads them from its own.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::conntrack::{self, Added, ConntrackError, Entry, Existing, Fill, Flow, Refusal, Table};
use crate::migrate::conntrack::wire::{ConntrackAnswer, ConntrackBatch, Fate};
use crate::migrate::error::chain;
use crate::migrate::rollback::UndoStack;
use crate::net::NetNs;

/// This node's table, and what we put into it; none where its kernel tracks no connections.
#[derive(Debug, Clone)]
pub(super) struct Carried(Option<Arc<Mutex<Entries>>>);

#[derive(Debug)]
struct Entries {
    table: Table,
    /// Added by us; goes again if the migration is given up.
    ours: HashSet<Flow>,
}

impl Carried {
    /// Opens the table of the node's namespace.
    ///
    /// # Errors
    /// Why no entry can be added.
    pub(super) fn open(netns: &NetNs, undo: &mut UndoStack) -> Result<Self, String> {
        if !netns
            .run(conntrack::is_tracking)
            .map_err(|error| chain(&error))?
        {
            tracing::debug!(
                "this kernel tracks no connections: it needs to know none that is not translated"
            );
            return Ok(Self(None));
        }
        let mut table = netns
            .run(Table::open)
            .map_err(|error| chain(&error))?
            .map_err(|error| chain(&error))?;
        table.probe().map_err(|error| chain(&error))?;
        let entries = Arc::new(Mutex::new(Entries {
            table,
            ours: HashSet::new(),
        }));
        let added = entries.clone();
        undo.on_abort("connections of the VM", move || async move {
            let removed = work(added, |entries| {
                let flows: Vec<Flow> = entries.ours.drain().collect();
                entries.table.remove(&flows)
            });
            match removed.await? {
                Ok(_) => Ok(()),
                Err(error) => Err(chain(&error)),
            }
        });
        Ok(Self(Some(entries)))
    }

    /// Makes the source's changes, for connections of the VM only.
    pub(super) async fn take_in(
        &self,
        batch: ConntrackBatch,
        vm: Vec<IpAddr>,
        existing: Existing,
    ) -> ConntrackAnswer {
        let Some(entries) = self.0.clone() else {
            return ConntrackAnswer::Done(batch.entries.iter().map(without_table).collect());
        };
        let taken = work(entries, move |entries| {
            entries.take_in(&batch, &vm, existing)
        });
        match taken.await {
            Ok(Ok(fates)) => ConntrackAnswer::Done(fates),
            Ok(Err(error)) => ConntrackAnswer::Unavailable(chain(&error)),
            Err(reason) => ConntrackAnswer::Unavailable(reason),
        }
    }
}

/// Off the runtime's threads: the kernel works while we ask it.
async fn work<T: Send + 'static>(
    entries: Arc<Mutex<Entries>>,
    work: impl FnOnce(&mut Entries) -> T + Send + 'static,
) -> Result<T, String> {
    let work = move || work(&mut entries.lock().unwrap_or_else(PoisonError::into_inner));
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| error.to_string())
}

/// What becomes of an entry where the kernel tracks no connections: no firewall asks for their state, but nothing
/// translates them either.
fn without_table(entry: &Entry) -> Fate {
    match entry.is_translated() {
        true => Fate::Refused("its kernel tracks no connections, so it translates none".to_owned()),
        false => Fate::Needless,
    }
}

impl Entries {
    fn take_in(
        &mut self,
        batch: &ConntrackBatch,
        vm: &[IpAddr],
        existing: Existing,
    ) -> Result<Vec<Fate>, ConntrackError> {
        let gone: Vec<Flow> = batch
            .gone
            .iter()
            .filter(|flow| self.ours.remove(flow))
            .copied()
            .collect();
        if let Err(error) = self.table.remove(&gone) {
            // They run out by themselves.
            tracing::warn!(
                error = chain(&error),
                "connections that ended on the source stay in this node's table"
            );
        }
        let (of_vm, others): (Vec<_>, Vec<_>) =
            batch.entries.iter().partition(|entry| entry.concerns(vm));
        if !others.is_empty() {
            tracing::warn!(
                count = others.len(),
                "the source sent connections that are not the VM's"
            );
        }
        let mut room = room(self.table.fill()?);
        let mut has_room = |entry: &&Entry| {
            let known = self.ours.contains(&entry.flow());
            if !known && room > 0 {
                room -= 1;
                return true;
            }
            known
        };
        let (to_add, left_out): (Vec<&Entry>, Vec<&Entry>) =
            of_vm.into_iter().partition(&mut has_room);
        let left_out: HashSet<Flow> = left_out.into_iter().map(Entry::flow).collect();
        let to_add: Vec<Entry> = to_add.into_iter().cloned().collect();
        let mut added = self.table.add(&to_add, existing)?.into_iter();
        let fate = |entry: &Entry| {
            if !entry.concerns(vm) {
                return Fate::Refused("not a connection of the VM".to_owned());
            }
            let flow = entry.flow();
            if left_out.contains(&flow) {
                return Fate::Refused(Refusal::NoRoom.to_string());
            }
            match added.next() {
                Some(Added::New) => {
                    self.ours.insert(flow);
                    Fate::New
                }
                Some(Added::WithoutHelper) => {
                    self.ours.insert(flow);
                    Fate::WithoutHelper
                }
                Some(Added::Updated | Added::Kept) if self.ours.contains(&flow) => Fate::New,
                Some(Added::Updated) => Fate::Updated,
                Some(Added::Kept) => Fate::Kept,
                Some(Added::Refused(refusal)) => Fate::Refused(refusal.to_string()),
                None => Fate::Refused("no answer".to_owned()),
            }
        };
        Ok(batch.entries.iter().map(fate).collect())
    }
}

/// How many entries may be added: an eighth of the table is left to the node's own connections, which a full one
/// would refuse.
fn room(fill: Fill) -> u32 {
    let most = fill.most.filter(|most| *most > 0);
    most.map_or(u32::MAX, |most| (most - most / 8).saturating_sub(fill.used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_is_tracked_only_translations_are_missed() {
        let plain = conntrack::trial::entry(false);
        let translated = conntrack::trial::entry(true);
        assert_eq!(without_table(&plain), Fate::Needless);
        assert!(matches!(without_table(&translated), Fate::Refused(_)));
    }

    #[test]
    fn an_eighth_of_the_table_stays_free() {
        let fill = |used, most| room(Fill { used, most });
        assert_eq!(fill(100, Some(800)), 600);
        assert_eq!(fill(700, Some(800)), 0);
        assert_eq!(fill(900, Some(800)), 0);
        assert_eq!(fill(900, None), u32::MAX);
        assert_eq!(fill(900, Some(0)), u32::MAX, "not limited");
    }
}
