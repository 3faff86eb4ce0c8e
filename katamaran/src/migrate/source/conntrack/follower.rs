//! The follower's work: look, tell, wait.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::conntrack::{self, Entry};
use crate::deadline;
use crate::migrate::conntrack::book::Book;
use crate::migrate::conntrack::report::ConntrackReport;
use crate::migrate::conntrack::view::{View, view};
use crate::migrate::conntrack::wire::{BATCH, ConntrackAnswer, ConntrackBatch, GONE_BATCH};
use crate::migrate::error::chain;
use crate::migrate::message::{Reply, Request};
use crate::migrate::source::peer::Peer;
use crate::migrate::source::prepare::Prepared;
use crate::net::{NetNs, Netlink};

use super::eyes::{Eyes, Look};
use super::places::Places;
use super::{Order, Reached, lock};

/// Between two looks, at least; and so many times as long as a look takes.
const PERIOD: Duration = Duration::from_millis(500);
const LINGER_PERIOD: Duration = Duration::from_millis(20);
const REST: u32 = 10;
/// Between two looks at everything, at least.
const EVERYTHING: Duration = Duration::from_secs(10);

pub(super) struct Work {
    netns: NetNs,
    netlink: Netlink,
    /// The devices towards the destination.
    underlays: Vec<u32>,
    vm: Vec<IpAddr>,
    peer: Peer,
    book: Book,
    /// What was to be told when the VM was about to be stopped, and would have held that up.
    left: Vec<Entry>,
    /// Some may not have been seen in the pause.
    overlooked: bool,
    report: Arc<Mutex<ConntrackReport>>,
    reach: watch::Sender<Reached>,
}

impl Work {
    pub(super) fn new(
        prepared: &Prepared,
        vm: &[IpAddr],
        report: Arc<Mutex<ConntrackReport>>,
        reach: watch::Sender<Reached>,
    ) -> Self {
        Self {
            netns: prepared.node.netns.clone(),
            netlink: prepared.node.netlink.clone(),
            underlays: prepared.underlays.iter().map(|u| u.device).collect(),
            vm: vm.to_vec(),
            peer: prepared.peer.clone(),
            book: Book::default(),
            left: Vec::new(),
            overlooked: false,
            report,
            reach,
        }
    }

    pub(super) async fn run(mut self, mut orders: watch::Receiver<Order>) {
        if let Err(reason) = self.follow(&mut orders).await {
            self.give_up(&reason);
        }
    }

    async fn follow(&mut self, orders: &mut watch::Receiver<Order>) -> Result<(), String> {
        let at_source = |reason: &str| format!("the source: {reason}");
        let tracking = self.netns.run(conntrack::is_tracking);
        if !tracking.map_err(|error| at_source(&chain(&error)))? {
            tracing::debug!("the source's kernel tracks no connections: there are none to carry");
            return Ok(());
        }
        let eyes = self.netns.run(|| Eyes::open(&self.vm));
        let eyes = eyes.map_err(|error| at_source(&chain(&error)))?;
        let mut eyes = eyes.map_err(|error| at_source(&chain(&error)))?;
        let mut places = Places::open(&self.netns, self.netlink.clone(), self.underlays.clone())
            .map_err(|reason| at_source(&reason))?;
        loop {
            let order = *orders.borrow_and_update();
            if order == Order::End {
                return Ok(());
            }
            let began = Instant::now();
            eyes = self.look(eyes, &mut places, order, orders).await?;
            self.note(order, began.elapsed());
            let rest = match order {
                Order::Follow => PERIOD,
                Order::Linger => LINGER_PERIOD,
                Order::Hold | Order::Settle(_) | Order::End => Duration::MAX,
            };
            let rest = rest.max(began.elapsed() * REST);
            let changed = tokio::time::timeout(rest, orders.changed());
            if changed.await.is_ok_and(|changed| changed.is_err()) {
                return Ok(());
            }
        }
    }

    /// One look, and everything told that has to be.
    async fn look(
        &mut self,
        mut eyes: Eyes,
        places: &mut Places,
        order: Order,
        orders: &watch::Receiver<Order>,
    ) -> Result<Eyes, String> {
        let committed = order == Order::Linger;
        let long_ago = |seen: Instant| seen.elapsed() >= EVERYTHING;
        let what = match order {
            Order::Follow if eyes.everything_seen.is_none_or(long_ago) => Look::Everything,
            Order::Settle(_) => Look::NewsAlone,
            Order::Follow | Order::Hold | Order::Linger | Order::End => Look::News,
        };
        let looking = tokio::task::spawn_blocking(move || {
            let seen = eyes.look(what, committed);
            (eyes, seen)
        });
        let (eyes, seen) = looking.await.map_err(|error| error.to_string())?;
        let seen = seen.map_err(|error| format!("the source: {}", chain(&error)))?;
        {
            let mut report = lock(&self.report);
            report.relaxed += seen.relaxed as u64;
            report.news_lost += u64::from(seen.news_lost);
        }
        self.book.not_read(seen.beyond);
        places.find(&seen.entries, &self.vm).await?;
        let views: Vec<View> = seen
            .entries
            .into_iter()
            .filter_map(|entry| view(entry, &self.vm, |address| places.at_source(address)))
            .collect();
        let batch = self
            .book
            .changes(views, seen.all, committed, Instant::now());
        if matches!(order, Order::Settle(_)) {
            lock(&self.report).told_in_pause = batch.entries.len() as u64;
        }
        for gone in batch.gone.chunks(GONE_BATCH) {
            self.ask(Vec::new(), gone.to_vec(), false).await?;
        }
        let overlooked = std::mem::replace(&mut self.overlooked, seen.overlooked);
        self.tell(batch.entries, committed && overlooked, orders)
            .await?;
        if committed {
            let left = std::mem::take(&mut self.left);
            self.tell(left, true, orders).await?;
        }
        Ok(eyes)
    }

    /// Tells of entries until something else is ordered: what the pause waits for has to wait for one batch at most.
    async fn tell(
        &mut self,
        entries: Vec<Entry>,
        late: bool,
        orders: &watch::Receiver<Order>,
    ) -> Result<(), String> {
        let mut entries = entries.into_iter();
        while entries.len() > 0 {
            let batch = entries.by_ref().take(BATCH).collect();
            self.ask(batch, Vec::new(), late).await?;
            if orders.has_changed().unwrap_or(true) {
                self.left.extend(entries);
                return Ok(());
            }
        }
        Ok(())
    }

    async fn ask(
        &mut self,
        entries: Vec<Entry>,
        gone: Vec<crate::conntrack::Flow>,
        late: bool,
    ) -> Result<(), String> {
        let flows: Vec<_> = entries.iter().map(Entry::flow).collect();
        let asked = self
            .peer
            .ask(
                "tell the destination of connections",
                Request::Conntrack(ConntrackBatch { entries, gone }),
                deadline::REQUEST,
            )
            .await;
        match asked {
            Ok(Reply::Conntrack(ConntrackAnswer::Done(fates))) => {
                self.book.answered(flows.into_iter(), fates, late);
                Ok(())
            }
            Ok(Reply::Conntrack(ConntrackAnswer::Unavailable(reason))) => {
                Err(format!("the destination: {reason}"))
            }
            Ok(_) => Err("the destination answered something else".to_owned()),
            Err(error) => Err(chain(&error)),
        }
    }

    fn note(&self, order: Order, took: Duration) {
        let mut report = lock(&self.report);
        self.book.count(&mut report);
        report.looks += 1;
        let took = took.as_secs_f64() * 1000.0;
        report.longest_look_ms = Some(report.longest_look_ms.unwrap_or(0.0).max(took));
        let reached = match order {
            Order::Settle(stopped) => {
                report.settled_ms = Some(stopped.elapsed().as_secs_f64() * 1000.0);
                Reached::Settled
            }
            Order::Hold => Reached::Held,
            Order::Follow | Order::Linger | Order::End => Reached::FirstLook,
        };
        self.reach
            .send_modify(|known| *known = (*known).max(reached));
    }

    /// The migration goes on without.
    fn give_up(&self, reason: &str) {
        tracing::warn!(
            reason,
            "the VM's connections can't be carried: those that a node translates or filters by state may break"
        );
        let mut report = lock(&self.report);
        self.book.count(&mut report);
        report.unavailable = Some(reason.to_owned());
    }
}
