//! Follows the VM's connections in the source's table, from the start of the RAM copy to the end of the redirect.
//!
//! ```text
//!   follow     look, tell, wait             while RAM is copied; the first time before that
//!   hold       look, tell                   the VM is about to be stopped; no listing is begun after that
//!   settle     look, tell                   the VM is stopped; beside the rest of the RAM
//!   linger     look, tell, wait             connections that begin while the network still sends them here
//! ```
//!
//! A look at everything takes milliseconds (the kernel walks the table of the whole machine), so in between, and in the
//! pause, only what the kernel tells as news is looked at. If it had to leave some out, everything is looked at again,
//! but not in the pause. What has not been told at the moment of COMMIT is told right after.
//!
//! A look also makes this kernel tolerant of the windows of the VM's TCP connections: from the flip on it sees them one
//! way only, and would call what acknowledges data that it has not seen invalid. Invalid packets are not translated, and
//! the usual firewall drops them. After COMMIT, connections that begin here are taken for open, for their answers leave
//! from the destination.
//!
//! This stays, also when the migration is given up. A kernel that lets a segment pass outside of its windows does not
//! move them: once it has missed one segment, each further one acknowledges something that it does not know, so both
//! ways of the connection leave it behind for good. To check again would be to drop every segment from then on, and
//! everything that is sent again as well.

mod eyes;
mod follower;
mod places;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::deadline;
use crate::migrate::conntrack::report::ConntrackReport;

use super::Run;
use super::prepare::Prepared;
use follower::Work;

/// What the follower is to do.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    Follow,
    Hold,
    /// The VM stopped then.
    Settle(Instant),
    Linger,
    End,
}

/// How far the follower has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Nothing,
    /// The destination knows what was in the table at first.
    FirstLook,
    /// And what was there when the VM was about to be stopped.
    Held,
    /// And what was there when the VM had stopped.
    Settled,
}

/// The follower, if there is one. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connections(Option<Arc<Follower>>);

#[derive(Debug)]
struct Follower {
    orders: watch::Sender<Order>,
    reached: watch::Receiver<Reached>,
    report: Arc<Mutex<ConntrackReport>>,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Connections {
    /// Begins to follow the VM's connections, unless the user does not want it.
    pub(crate) fn follow(prepared: &Prepared, run: &mut Run) {
        if !run.config.conntrack {
            return;
        }
        let (orders, told) = watch::channel(Order::Follow);
        let (reach, reached) = watch::channel(Reached::Nothing);
        let report = Arc::new(Mutex::new(ConntrackReport::default()));
        let work = Work::new(prepared, &run.config.vm_ips, report.clone(), reach);
        let task = AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(work.run(told)));
        run.connections = Self(Some(Arc::new(Follower {
            orders,
            reached,
            report,
            task: Mutex::new(Some(task)),
        })));
        let undo = run.connections.clone();
        run.undo
            .cleanup("look at the source's connections", move || async move {
                undo.end().await;
                Ok(())
            });
    }

    /// Waits until the destination knows what was in the table at first. Later it would take turns with what the
    /// pause waits for.
    pub(crate) async fn caught_up(&self) {
        let reached = self.reached(Reached::FirstLook, deadline::CONNTRACK_FIRST_LOOK);
        if !reached.await {
            tracing::warn!("the VM's connections are still on their way: the pause may be longer");
        }
    }

    /// False if that takes longer. A follower that has given up ends the wait, too.
    async fn reached(&self, what: Reached, within: Duration) -> bool {
        let Some(follower) = &self.0 else { return true };
        let mut reached = follower.reached.clone();
        let reached = reached.wait_for(|reached| *reached >= what);
        tokio::time::timeout(within, reached).await.is_ok()
    }

    /// The VM is about to be stopped: a last look at what has begun, for which nothing waits for long.
    pub(crate) async fn hold(&self) {
        self.order(Order::Hold);
        if !self.reached(Reached::Held, deadline::CONNTRACK_HOLD).await {
            tracing::debug!("the VM is stopped before its last connections are known");
        }
    }

    /// The VM is stopped, and says nothing more.
    pub(crate) fn settle(&self) {
        self.order(Order::Settle(Instant::now()));
    }

    /// The VM runs on the destination.
    pub(crate) fn linger(&self) {
        self.order(Order::Linger);
    }

    /// Waits until the destination knows what it has to know; not for long, for the VM stands still.
    pub(crate) async fn settled(&self) {
        let Some(follower) = &self.0 else { return };
        let in_time = self.reached(Reached::Settled, deadline::CONNTRACK_SETTLE);
        lock(&follower.report).settled_late = !in_time.await;
    }

    /// Ends the follower.
    pub(crate) async fn end(&self) {
        let Some(follower) = &self.0 else { return };
        self.order(Order::End);
        let task = follower
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task
            && tokio::time::timeout(deadline::CONNTRACK_END, task)
                .await
                .is_err()
        {
            tracing::debug!("the look at the source's connections was cut short");
        }
    }

    /// What has come of it so far; `None` if it was not asked for.
    pub(crate) fn report(&self) -> Option<ConntrackReport> {
        let follower = self.0.as_ref()?;
        Some(lock(&follower.report).clone())
    }

    fn order(&self, order: Order) {
        if let Some(follower) = &self.0 {
            follower.orders.send_replace(order);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
