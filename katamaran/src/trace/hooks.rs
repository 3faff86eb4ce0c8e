//! The counters of migrations' hooks, as they change.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::record::{Change, Hooks};
use crate::ebpf::{ArmedHooks, Counter, EbpfError, HookMode, armed_hooks};
use crate::role::Role;
use crate::session_id::SessionId;

/// What a source's hook counts.
const SOURCE: &[(Counter, &str)] = &[
    (Counter::Passed, "passed"),
    (Counter::Redirected, "redirected"),
    (Counter::EncapFailed, "encap_failed"),
    (Counter::TooBig, "too_big"),
    (Counter::NotRetained, "not_retained"),
    (Counter::NeighbourAnswered, "neighbours_answered"),
];

/// What a destination's hooks count.
const DESTINATION: &[(Counter, &str)] = &[
    (Counter::Tunnelled, "tunnelled"),
    (Counter::DecapFailed, "decap_failed"),
    (Counter::TapTunnelled, "tap_tunnelled"),
    (Counter::TapDirect, "tap_direct"),
];

/// Watches the sessions of one VM.
#[derive(Debug, Default)]
pub(super) struct HookWatch {
    /// What was told last.
    told: HashMap<(SessionId, &'static str, &'static str), u64>,
}

impl HookWatch {
    /// What has changed since the last time, one record for each session and role.
    pub(super) fn look(&mut self, vm_ips: &[IpAddr], time: &str) -> Result<Vec<Hooks>, EbpfError> {
        let mut changed = Vec::new();
        for hooks in armed_hooks()? {
            if !hooks.addresses().iter().any(|ip| vm_ips.contains(ip)) {
                continue;
            }
            let counters = self.changes(&hooks);
            if !counters.is_empty() {
                changed.push(Hooks {
                    time: time.to_owned(),
                    session: hooks.session().to_string(),
                    role: hooks.role().name(),
                    mode: hooks.mode().map(mode),
                    counters,
                });
            }
        }
        Ok(changed)
    }

    fn changes(&mut self, hooks: &ArmedHooks) -> BTreeMap<&'static str, Change> {
        let counters = match hooks.role() {
            Role::Source => SOURCE,
            Role::Destination => DESTINATION,
        };
        let mut changes = BTreeMap::new();
        for (counter, name) in counters {
            // Gone with its session: nothing to tell.
            let Ok(count) = hooks.count(*counter) else {
                continue;
            };
            let key = (hooks.session(), hooks.role().name(), *name);
            changes.extend(
                self.change(key, count.packets)
                    .map(|change| (*name, change)),
            );
        }
        changes
    }

    fn change(
        &mut self,
        key: (SessionId, &'static str, &'static str),
        total: u64,
    ) -> Option<Change> {
        let before = self.told.insert(key, total).unwrap_or(0);
        // A session that was armed again counts from 0.
        let more = total.checked_sub(before).unwrap_or(total);
        (more != 0).then_some(Change { more, total })
    }
}

fn mode(mode: HookMode) -> &'static str {
    match mode {
        HookMode::Off => "off",
        HookMode::Count => "count",
        HookMode::Redirect => "redirect",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_changed_is_told() {
        let mut watch = HookWatch::default();
        let key = (SessionId(1), "source", "passed");
        let told: Vec<_> = [5, 5, 8, 2]
            .into_iter()
            .map(|total| watch.change(key, total).map(|change| change.more))
            .collect();
        assert_eq!(told, [Some(5), None, Some(3), Some(2)]);
    }
}
