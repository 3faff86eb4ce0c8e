//! Which connections the destination has been told of, and what it has to be told next.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::report::{ConntrackReport, Refused};
use super::view::View;
use super::wire::{ConntrackBatch, Fate, MOST};
use crate::conntrack::Flow;

/// What the destination was told last.
#[derive(Debug)]
struct Told {
    view: View,
    at: Instant,
    fate: Option<Fate>,
    /// It began before COMMIT, and the destination knew of it after that only.
    late: bool,
}

/// The source's account.
#[derive(Debug, Default)]
pub(crate) struct Book {
    told: HashMap<Flow, Told>,
    ended: u64,
    beyond: usize,
}

impl Told {
    /// The destination's entry runs out of time in which the source's was renewed.
    fn runs_out(&self, timeout: u32, now: Instant) -> bool {
        let left = Duration::from_secs(self.view.entry.timeout.into())
            .saturating_sub(now.saturating_duration_since(self.at));
        left < Duration::from_secs(timeout.into()) / 2
    }

    fn is_carried(&self) -> bool {
        !matches!(self.fate, None | Some(Fate::Needless | Fate::Refused(_)))
    }
}

impl Book {
    /// What to tell the destination, now that these are connections of the VM; `all` of them, or some. After COMMIT it
    /// knows better about all that it was told of before, and only what is new is worth telling.
    pub(crate) fn changes(
        &mut self,
        views: Vec<View>,
        all: bool,
        committed: bool,
        now: Instant,
    ) -> ConntrackBatch {
        let there: HashSet<Flow> = views.iter().map(|view| view.entry.flow()).collect();
        let mut batch = ConntrackBatch::default();
        if all && !committed {
            let gone = self.told.extract_if(|flow, _| !there.contains(flow));
            for (flow, told) in gone {
                if told.is_carried() {
                    self.ended += 1;
                    batch.gone.push(flow);
                }
            }
        }
        let mut beyond = 0;
        for view in views {
            let flow = view.entry.flow();
            let tell = match self.told.get(&flow) {
                None if self.told.len() >= MOST => {
                    beyond += 1;
                    false
                }
                None => true,
                Some(_) if committed => false,
                Some(told) => {
                    told.view.entry.differs(&view.entry)
                        || told.is_carried() && told.runs_out(view.entry.timeout, now)
                }
            };
            if tell {
                batch.entries.push(view.entry.clone());
                let told = Told {
                    view,
                    at: now,
                    fate: None,
                    late: false,
                };
                self.told.insert(flow, told);
            }
        }
        self.not_read(beyond);
        batch
    }

    /// So many connections of the VM there are beyond those that are carried.
    pub(crate) fn not_read(&mut self, beyond: usize) {
        self.beyond = self.beyond.max(beyond);
    }

    /// What became of entries, in their order; `late` if they should have been told before COMMIT, and were not.
    pub(crate) fn answered(
        &mut self,
        flows: impl Iterator<Item = Flow>,
        fates: Vec<Fate>,
        late: bool,
    ) {
        for (flow, fate) in flows.zip(fates) {
            if let Some(told) = self.told.get_mut(&flow) {
                told.fate = Some(fate);
                told.late = late;
            }
        }
    }

    /// The counts, into a report.
    pub(crate) fn count(&self, report: &mut ConntrackReport) {
        let count =
            |what: &dyn Fn(&Told) -> bool| self.told.values().filter(|t| what(t)).count() as u64;
        report.ended = self.ended;
        report.read = self.told.len() as u64 + self.ended;
        report.carried = count(&Told::is_carried);
        report.there_before = count(&|t| matches!(t.fate, Some(Fate::Updated | Fate::Kept)));
        report.without_helper = count(&|t| t.fate == Some(Fate::WithoutHelper));
        report.source_translates = count(&|t| t.is_carried() && t.view.source_translates);
        report.bound_to_source = count(&|t| t.is_carried() && t.view.bound_to_source);
        report.needless = count(&|t| t.fate == Some(Fate::Needless));
        report.unanswered = count(&|t| t.fate.is_none());
        report.late = count(&|t| t.is_carried() && t.late);
        report.beyond = self.beyond as u64;
        let mut refused: BTreeMap<&str, u64> = BTreeMap::new();
        for told in self.told.values() {
            if let Some(Fate::Refused(reason)) = &told.fate {
                *refused.entry(reason).or_default() += 1;
            }
        }
        report.refused = refused
            .into_iter()
            .map(|(reason, count)| Refused {
                reason: reason.to_owned(),
                count,
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::Entry;
    use crate::conntrack::entry::{Transport, Tuple};

    fn view(port: u16) -> View {
        let tuple = |source: [u8; 4], destination: [u8; 4]| Tuple {
            source: source.into(),
            destination: destination.into(),
            protocol: 17,
            transport: Transport::Ports {
                source: port,
                destination: port,
            },
            zone: None,
        };
        View {
            entry: Entry {
                original: tuple([192, 0, 2, 9], [10, 244, 0, 5]),
                reply: tuple([10, 244, 0, 5], [192, 0, 2, 9]),
                zone: 0,
                status: 0,
                timeout: 120,
                mark: 0,
                labels: None,
                tcp: None,
                sctp: None,
                helper: None,
                shifts: [None; 2],
                syn_proxy: None,
            },
            source_translates: false,
            bound_to_source: false,
        }
    }

    fn answer(book: &mut Book, batch: &ConntrackBatch, fate: &Fate) {
        let fates = vec![fate.clone(); batch.entries.len()];
        book.answered(
            batch.entries.iter().map(crate::conntrack::Entry::flow),
            fates,
            false,
        );
    }

    fn counted(book: &Book) -> ConntrackReport {
        let mut report = ConntrackReport::default();
        book.count(&mut report);
        report
    }

    #[test]
    fn each_connection_is_told_once_and_again_when_it_changes() {
        let (mut book, now) = (Book::default(), Instant::now());
        let batch = book.changes(vec![view(1), view(2)], true, false, now);
        assert_eq!(batch.entries.len(), 2);
        answer(&mut book, &batch, &Fate::New);
        let mut changed = view(2);
        changed.entry.mark = 5;
        let batch = book.changes(vec![view(1), changed.clone()], true, false, now);
        assert_eq!(batch.entries, [changed.entry]);
        assert!(batch.gone.is_empty());
    }

    #[test]
    fn a_connection_that_ended_is_taken_back_if_it_was_carried() {
        let (mut book, now) = (Book::default(), Instant::now());
        let first = book.changes(vec![view(1)], true, false, now);
        answer(&mut book, &first, &Fate::New);
        let second = book.changes(vec![view(1), view(2)], true, false, now);
        answer(&mut book, &second, &Fate::Refused("no".into()));
        let batch = book.changes(vec![], true, false, now);
        assert_eq!(batch.gone, [view(1).entry.flow()]);
        let report = counted(&book);
        assert_eq!((report.read, report.ended, report.carried), (1, 1, 0));
    }

    #[test]
    fn a_connection_that_was_not_looked_at_has_not_ended() {
        let (mut book, now) = (Book::default(), Instant::now());
        let first = book.changes(vec![view(1)], true, false, now);
        answer(&mut book, &first, &Fate::New);
        let batch = book.changes(vec![view(2)], false, false, now);
        assert_eq!(batch.entries, [view(2).entry]);
        assert!(batch.gone.is_empty());
    }

    #[test]
    fn an_entry_that_would_run_out_is_renewed() {
        let (mut book, now) = (Book::default(), Instant::now());
        let batch = book.changes(vec![view(1)], true, false, now);
        answer(&mut book, &batch, &Fate::New);
        let soon = now + Duration::from_secs(50);
        assert!(
            book.changes(vec![view(1)], true, false, soon)
                .entries
                .is_empty()
        );
        let later = now + Duration::from_secs(70);
        assert_eq!(
            book.changes(vec![view(1)], true, false, later)
                .entries
                .len(),
            1
        );
    }

    #[test]
    fn after_commit_only_what_is_new_is_told() {
        let (mut book, now) = (Book::default(), Instant::now());
        let batch = book.changes(vec![view(1), view(2)], true, false, now);
        answer(&mut book, &batch, &Fate::New);
        let mut changed = view(1);
        changed.entry.mark = 5;
        let later = now + Duration::from_secs(100);
        let batch = book.changes(vec![changed, view(3)], true, true, later);
        assert_eq!(batch.entries, [view(3).entry]);
        assert!(batch.gone.is_empty(), "the destination knows better");
    }

    #[test]
    fn every_connection_is_counted_where_it_ended_up() {
        let (mut book, now) = (Book::default(), Instant::now());
        let fates = [
            Fate::New,
            Fate::Updated,
            Fate::WithoutHelper,
            Fate::Refused("full".into()),
            Fate::Refused("full".into()),
            Fate::Needless,
        ];
        let mut views: Vec<View> = (0..7).map(view).collect();
        views[0].source_translates = true;
        views[1].bound_to_source = true;
        views[3].bound_to_source = true;
        let flows: Vec<Flow> = views.iter().map(|v| v.entry.flow()).collect();
        book.changes(views, true, false, now);
        book.answered(flows.into_iter(), fates.to_vec(), false);
        let report = counted(&book);
        assert_eq!((report.read, report.carried, report.unanswered), (7, 3, 1));
        assert_eq!(report.needless, 1);
        assert_eq!((report.there_before, report.without_helper), (1, 1));
        assert_eq!((report.source_translates, report.bound_to_source), (1, 1));
        assert_eq!(
            report.refused,
            [Refused {
                reason: "full".into(),
                count: 2
            }]
        );
    }

    #[test]
    fn no_more_are_carried_than_are_promised_and_the_rest_is_counted() {
        let (mut book, now) = (Book::default(), Instant::now());
        let many = |count: usize| -> Vec<View> {
            let numbered = |number: usize| {
                let mut view = view(1);
                view.entry.zone = u16::try_from(number & 0xffff).unwrap();
                view.entry.original.protocol = u8::try_from(number >> 16).unwrap();
                view
            };
            (0..count).map(numbered).collect()
        };
        let batch = book.changes(many(MOST + 7), true, false, now);
        assert_eq!(batch.entries.len(), MOST);
        answer(&mut book, &batch, &Fate::New);
        let again = book.changes(many(MOST + 5), true, false, now);
        assert_eq!(again, ConntrackBatch::default());
        assert_eq!(
            (counted(&book).carried, counted(&book).beyond),
            (MOST as u64, 7)
        );
    }

    #[test]
    fn what_is_told_after_its_time_is_late() {
        let (mut book, now) = (Book::default(), Instant::now());
        let batch = book.changes(vec![view(1)], true, false, now);
        let flows = batch.entries.iter().map(crate::conntrack::Entry::flow);
        book.answered(flows, vec![Fate::New], true);
        assert_eq!(counted(&book).late, 1);
        assert!(counted(&book).warnings()[0].starts_with("1 connections"));
    }
}
