//! The product's own account of a tap, kept over the lab's nodes.

use katamaran::ebpf::{Count, DestinationDataplane, Offered, SourceDataplane};
use katamaran::migrate::tap_account::{Amount, TapAccount, TapSample};

use crate::lab::Node;
use crate::netns::wait_until;

/// A node's programs: what the tap's driver was handed, and what the hook passed.
pub(crate) trait Programs {
    fn offered_and_passed(&self) -> (Offered, Count);
}

impl Programs for SourceDataplane {
    fn offered_and_passed(&self) -> (Offered, Count) {
        let c = self.counters().unwrap();
        (c.offered.unwrap(), c.s2)
    }
}

impl Programs for DestinationDataplane {
    fn offered_and_passed(&self) -> (Offered, Count) {
        let c = self.counters().unwrap();
        (c.offered.unwrap(), c.d3)
    }
}

/// What a hook passed to its node's tap, against what was read from there.
pub(crate) struct Account<'a, P> {
    node: &'a Node,
    programs: &'a P,
    account: TapAccount,
}

impl<'a, P: Programs> Account<'a, P> {
    /// Begins with a first reading.
    pub(crate) fn new(node: &'a Node, programs: &'a P) -> Self {
        let mut account = Self {
            node,
            programs,
            account: TapAccount::default(),
        };
        account.observe();
        account
    }

    /// For a tap that nobody reads yet: what the kernel itself sent there is thrown away, so that the first reading
    /// is made of an empty ring.
    pub(crate) fn of_unread(node: &'a Node, programs: &'a P) -> Self {
        loop {
            let before = programs.offered_and_passed().0;
            node.discard_waiting();
            let account = Self::new(node, programs);
            if programs.offered_and_passed().0 == before {
                return account;
            }
        }
    }

    fn observe(&mut self) {
        let amount = |count: Count| Amount {
            skbs: count.skbs,
            packets: count.packets,
        };
        let statistic = |name| self.node.netns.statistic("vtap", "tx", name);
        let (read, dropped) = (statistic("packets"), statistic("dropped"));
        let (offered, _) = self.programs.offered_and_passed();
        let (_, passed) = self.programs.offered_and_passed();
        self.account.observe(TapSample {
            read,
            dropped,
            offered_skbs: offered.skbs(),
            offered: amount(offered.vm),
            passed: amount(passed),
        });
    }

    /// Waits until whoever reads the tap has taken all that was passed to it, and what the kernel's tracepoint
    /// was not run for is allowed for.
    #[track_caller]
    pub(crate) fn drain(&mut self) {
        wait_until("the tap is drained", || {
            self.observe();
            self.account.is_drained()
        });
        assert_eq!(self.account.balance().unwrap().dropped, 0);
    }
}
