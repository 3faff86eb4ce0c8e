//! What the source sees of the VM's connections, and what it tells its own kernel of them.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Instant;

use crate::conntrack::{ConntrackError, Entry, Family, Flow, News, Table};
use crate::migrate::conntrack::wire::MOST;

/// Most opening connections that each look asks for again; the others wait for the next walk through the table.
const OPENING: usize = 4096;

/// What sees the source's table.
pub(super) struct Eyes {
    table: Table,
    news: Option<News>,
    family: Family,
    vm: Vec<IpAddr>,
    /// Connections that nobody had answered when they were looked at.
    opening: HashSet<Flow>,
    /// There may be some that nobody has told of: the kernel tells nothing, or could not tell all.
    overlooked: bool,
    pub(super) everything_seen: Option<Instant>,
}

/// How far to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Walk through the table.
    Everything,
    /// What is told as news; everything if that is not all.
    News,
    /// What is told as news, and nothing else: the VM stands still.
    NewsAlone,
}

/// Entries of the VM: all, or some.
pub(super) struct Seen {
    pub(super) entries: Vec<Entry>,
    pub(super) all: bool,
    /// So many more there are.
    pub(super) beyond: usize,
    /// The kernel could not tell of all that began.
    pub(super) news_lost: bool,
    /// There may be some that were not seen.
    pub(super) overlooked: bool,
    /// So many of them have no longer their windows checked by this kernel.
    pub(super) relaxed: usize,
}

impl Eyes {
    /// Opens the table of the calling thread's namespace.
    pub(super) fn open(vm: &[IpAddr]) -> Result<Self, ConntrackError> {
        let has = |of_family: fn(&IpAddr) -> bool| vm.iter().any(of_family);
        let news = News::subscribe()?;
        if news.is_none() {
            tracing::debug!("this kernel tells no news of connections");
        }
        Ok(Self {
            table: Table::open()?,
            news,
            family: match (has(IpAddr::is_ipv4), has(IpAddr::is_ipv6)) {
                (true, false) => Family::V4,
                (false, true) => Family::V6,
                _ => Family::Both,
            },
            vm: vm.to_vec(),
            opening: HashSet::new(),
            overlooked: false,
            everything_seen: None,
        })
    }

    /// Looks at everything, or at what began since the last look and at what was opening then.
    pub(super) fn look(&mut self, what: Look, committed: bool) -> Result<Seen, ConntrackError> {
        // N.B. The news first: what begins during a listing may be in neither otherwise.
        let mut news_lost = false;
        match &mut self.news {
            Some(news) => {
                let begun = news.take()?;
                news_lost = !begun.complete;
                self.overlooked |= news_lost;
                let of_vm = |entry: &&Entry| entry.concerns(&self.vm);
                let flows = begun.entries.iter().filter(of_vm).map(Entry::flow);
                self.opening.extend(flows);
            }
            None => self.overlooked = true,
        }
        let all = match what {
            Look::Everything => true,
            Look::News => self.overlooked,
            Look::NewsAlone => false,
        };
        let (mut entries, beyond) = if all {
            self.overlooked = false;
            self.everything_seen = Some(Instant::now());
            let listing = self.table.list_of(self.family, &self.vm, MOST)?;
            (listing.entries, listing.beyond)
        } else {
            let flows: Vec<Flow> = self.opening.drain().collect();
            (self.table.read(&flows)?, 0)
        };
        entries.retain(|entry| entry.concerns(&self.vm));
        let of = |which: fn(&Entry) -> bool| entries.iter().filter(move |entry| which(entry));
        let opening = of(Entry::is_opening).map(Entry::flow);
        self.opening = opening.take(OPENING).collect();
        let strict: Vec<Flow> = of(Entry::is_strict).map(Entry::flow).collect();
        let relaxed = self.table.set_liberal(&strict, true)?;
        if committed {
            let opening: Vec<Entry> = of(Entry::is_opening).cloned().collect();
            self.table.assume_open(&opening)?;
        }
        Ok(Seen {
            entries,
            // What is beyond may have been seen before, and be there still.
            all: all && beyond == 0,
            beyond,
            relaxed,
            news_lost,
            overlooked: self.overlooked && !all,
        })
    }
}
