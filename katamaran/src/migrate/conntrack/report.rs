//! Connection tracking in the report.

use serde::{Deserialize, Serialize};

use super::wire::MOST;

/// What was read of the VM's connections, and what became of it on the destination.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConntrackReport {
    /// Why nothing, or nothing more, could be carried.
    pub unavailable: Option<String>,
    /// Different connections of the VM in the source's table, from the start of the RAM copy to the end of the redirect.
    pub read: u64,
    /// Of these, on the destination because they were carried: added, brought up to date, or there already.
    pub carried: u64,
    /// Of the carried, those that had been there before.
    pub there_before: u64,
    /// Of the carried, those whose helper the destination's kernel does not have.
    pub without_helper: u64,
    /// Of the carried, those that the source goes on translating: the destination knows them as the VM sees them.
    pub source_translates: u64,
    /// Of the carried, those that use an address of the source node: they end when it no longer redirects.
    pub bound_to_source: u64,
    /// Carried, and removed again because they had ended on the source before the VM was stopped.
    pub ended: u64,
    /// Not on the destination, and not needed there: its kernel tracks no connections, and these are not translated.
    #[serde(default)]
    pub needless: u64,
    /// Not on the destination, by reason.
    pub refused: Vec<Refused>,
    /// Read, and not answered for by the destination.
    pub unanswered: u64,
    /// Not read: the VM had so many more than the 65,536 that are carried, when it had most.
    #[serde(default)]
    pub beyond: u64,
    /// Of the carried, those that the destination got when the VM ran there already, though they had begun before.
    #[serde(default)]
    pub late: u64,
    /// How often the kernel began so many connections at once that it could not tell of all.
    #[serde(default)]
    pub news_lost: u64,
    /// Told in the VM's pause: what had begun or changed since the look before it.
    #[serde(default)]
    pub told_in_pause: u64,
    /// TCP connections whose windows the source's kernel has stopped to check, as it no longer sees both ways of them; it
    /// never begins again, for it would call everything invalid.
    pub relaxed: u64,
    /// Looks at the source's table.
    pub looks: u64,
    /// The longest of them, the destination's answers included.
    pub longest_look_ms: Option<f64>,
    /// From the VM's stop until the destination had everything that was in the table then.
    pub settled_ms: Option<f64>,
    /// That was after COMMIT: the rest was not worth a longer pause.
    pub settled_late: bool,
}

impl ConntrackReport {
    /// What the user has to know of.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(reason) = &self.unavailable {
            warnings.push(format!(
                "the VM's connections could not be carried, {} of them were ({reason}): the others break if a node translates \
                 them or filters them by state, and have to be opened again; all else goes on",
                self.carried
            ));
        }
        if self.beyond > 0 {
            warnings.push(format!(
                "{} connections of the VM were not carried, for it has more than {MOST}: they break if a node translates them or \
                 filters them by state, and have to be opened again",
                self.beyond
            ));
        }
        if self.late > 0 {
            warnings.push(format!(
                "{} connections of the VM were carried when it ran on the destination already: if a node filters them by \
                 state, packets of theirs were lost until then, and were sent again",
                self.late
            ));
        }
        for Refused { reason, count } in &self.refused {
            warnings.push(format!(
                "{count} connections of the VM were refused by the destination ({reason}): if a node translates them or filters \
                 them by state, they may break"
            ));
        }
        if self.unavailable.is_none() && self.unanswered > 0 {
            warnings.push(format!(
                "{} connections of the VM were not carried in time: if a node translates them or filters them by state, they \
                 may break",
                self.unanswered
            ));
        }
        if self.bound_to_source > 0 {
            warnings.push(format!(
                "{} connections of the VM use an address of the source node (masqueraded, or through one of its ports): packets \
                 for it still come here, and are no longer redirected",
                self.bound_to_source
            ));
        }
        warnings
    }
}

/// Entries that the destination refused, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub reason: String,
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_that_may_break_is_told() {
        assert!(ConntrackReport::default().warnings().is_empty());
        let report = ConntrackReport {
            read: 9,
            carried: 4,
            bound_to_source: 2,
            refused: vec![Refused {
                reason: "the table is full".into(),
                count: 3,
            }],
            unanswered: 2,
            needless: 7,
            ..ConntrackReport::default()
        };
        let told = report.warnings();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].starts_with("3 connections") && told[0].contains("the table is full"));
        assert!(told[1].starts_with("2 connections") && told[1].contains("in time"));
        let report = ConntrackReport {
            unavailable: Some("the source: why".into()),
            ..report
        };
        let told = report.warnings();
        assert!(told[0].contains("the source: why"), "{told:?}");
        assert_eq!(told.len(), 3, "{told:?}");
    }
}
