//! What a scrape shows: series and their values. Adding what one migration counted to what others
//! have counted before is plain arithmetic on two pages.

use std::collections::BTreeMap;

use super::catalogue::{
    ACTIVE, BUILD_INFO, Family, Kind, MIGRATIONS, REFUSALS, START_TIME, VERDICTS, catalogue,
};
use super::vocabulary::{RESULTS, ROLES, VERDICTS as VERDICT_NAMES};
use crate::session_id::SessionId;

/// Values of the labels, in the order of [`Family::labels`].
pub(super) type LabelValues = Vec<String>;

/// Counted observations.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Histogram {
    /// Observations up to each bound and above the one before; the last one is above all bounds.
    pub(super) buckets: Vec<u64>,
    pub(super) sum: f64,
}

impl Histogram {
    pub(super) fn empty(bounds: &[f64]) -> Self {
        Self {
            buckets: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    fn observe(&mut self, bounds: &[f64], value: f64) {
        let at = bounds.partition_point(|bound| *bound < value);
        self.buckets[at] += 1;
        self.sum += value;
    }

    fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// The value of one series.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Number(f64),
    Histogram(Histogram),
}

/// All series.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Page {
    series: BTreeMap<(&'static str, LabelValues), Value>,
}

impl Page {
    /// What is known before the first migration: nothing has been counted, and that is no guess. Sums of
    /// what migrations measure are left out until one has measured them.
    pub(super) fn zero() -> Self {
        let mut page = Self::default();
        for role in ROLES {
            for result in RESULTS {
                page.set(&MIGRATIONS, &[role, result], 0.0);
            }
            for verdict in VERDICT_NAMES {
                page.set(&VERDICTS, &[role, verdict], 0.0);
            }
            page.set(&REFUSALS, &[role], 0.0);
        }
        page
    }

    /// Sets a gauge, or a counter to what was read back.
    pub(super) fn set(&mut self, family: &'static Family, labels: &[&str], value: f64) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        self.insert(family, owned(labels), Value::Number(value));
    }

    /// Sets a gauge to what was measured, or takes it away: what was not measured is absent.
    pub(super) fn set_measured(
        &mut self,
        family: &'static Family,
        labels: &[&str],
        value: Option<f64>,
    ) {
        match value.filter(|value| value.is_finite()) {
            Some(value) => self.set(family, labels, value),
            None => {
                self.series.remove(&(family.name, owned(labels)));
            }
        }
    }

    /// Adds to a counter.
    pub(super) fn count(&mut self, family: &'static Family, labels: &[&str], by: f64) {
        debug_assert_eq!(family.kind, Kind::Counter, "{}", family.name);
        let mut one = Self::default();
        one.set(family, labels, by);
        self.add(&one);
    }

    /// Adds an observation to a histogram.
    pub(super) fn observe(&mut self, family: &'static Family, labels: &[&str], value: f64) {
        let Kind::Histogram(bounds) = family.kind else {
            debug_assert!(false, "{} is no histogram", family.name);
            return;
        };
        let mut one = Histogram::empty(bounds);
        one.observe(bounds, value);
        let mut page = Self::default();
        page.insert(family, owned(labels), Value::Histogram(one));
        self.add(&page);
    }

    pub(super) fn insert(&mut self, family: &'static Family, labels: LabelValues, value: Value) {
        self.series.insert((family.name, labels), value);
    }

    pub(super) fn contains(&self, family: &'static Family, labels: &[String]) -> bool {
        self.series.contains_key(&(family.name, labels.to_vec()))
    }

    /// Counters and histograms are added, gauges replaced.
    pub(super) fn add(&mut self, other: &Self) {
        for (key, value) in &other.series {
            let is_gauge = catalogue()
                .iter()
                .any(|family| family.name == key.0 && family.kind == Kind::Gauge);
            match (self.series.get_mut(key), value) {
                (Some(Value::Number(mine)), Value::Number(theirs)) if !is_gauge => *mine += theirs,
                (Some(Value::Histogram(mine)), Value::Histogram(theirs)) => mine.add(theirs),
                _ => {
                    self.series.insert(key.clone(), value.clone());
                }
            }
        }
    }

    /// The series of one metric.
    pub(super) fn series<'a>(
        &'a self,
        family: &'static Family,
    ) -> impl Iterator<Item = (&'a LabelValues, &'a Value)> {
        self.series
            .range((family.name, LabelValues::new())..)
            .take_while(move |((name, _), _)| *name == family.name)
            .map(|((_, labels), value)| (labels, value))
    }

    /// The migrations that this page says are in progress.
    pub(super) fn migrations(&self) -> Vec<(&'static str, SessionId)> {
        self.series(&START_TIME)
            .filter_map(|(labels, _)| {
                let role = ROLES
                    .into_iter()
                    .find(|role| labels.first().is_some_and(|l| l == role))?;
                Some((role, labels.get(1)?.parse().ok()?))
            })
            .collect()
    }

    /// Takes away everything that belongs to one migration.
    pub(super) fn forget(&mut self, role: &str, session: SessionId) {
        let session = session.to_string();
        self.series.retain(|(name, labels), _| {
            let is_live = catalogue()
                .iter()
                .any(|family| family.name == *name && family.is_live());
            !(is_live && labels[0] == role && labels[1] == session)
        });
    }

    /// Sets what follows from the rest, and who wrote it.
    pub(super) fn complete(&mut self) {
        self.series
            .retain(|(name, _), _| *name != BUILD_INFO.name && *name != ACTIVE.name);
        self.set(&BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
        let migrations = self.migrations();
        for role in ROLES {
            let active = migrations.iter().filter(|(r, _)| *r == role).count();
            #[expect(clippy::cast_precision_loss, reason = "a handful")]
            self.set(&ACTIVE, &[role], active as f64);
        }
    }
}

fn owned(labels: &[&str]) -> LabelValues {
    labels.iter().map(|label| (*label).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::catalogue::{DOWNTIME, LOST, PHASE, RAM_SIZE};

    fn number(page: &Page, family: &'static Family, labels: &[&str]) -> Option<f64> {
        page.series(family)
            .find(|(l, _)| l.as_slice() == labels)
            .map(|(_, value)| match value {
                Value::Number(number) => *number,
                Value::Histogram(_) => panic!("a histogram"),
            })
    }

    #[test]
    fn counters_add_up_and_gauges_do_not() {
        let mut page = Page::zero();
        let mut other = Page::default();
        other.count(&LOST, &["source"], 3.0);
        other.set(&RAM_SIZE, &["source", "00000000000000aa"], 5.0);
        page.add(&other);
        page.add(&other);
        assert_eq!(number(&page, &LOST, &["source"]), Some(6.0));
        assert_eq!(
            number(&page, &RAM_SIZE, &["source", "00000000000000aa"]),
            Some(5.0)
        );
    }

    #[test]
    fn an_observation_is_in_the_bucket_whose_bound_it_does_not_exceed() {
        let mut page = Page::default();
        for seconds in [0.0005, 0.001, 0.04, 0.05, 31.0] {
            page.observe(&DOWNTIME, &["source"], seconds);
        }
        let (_, value) = page.series(&DOWNTIME).next().unwrap();
        let Value::Histogram(histogram) = value else {
            panic!("no histogram")
        };
        assert_eq!(histogram.count(), 5);
        assert_eq!(histogram.buckets[0], 2, "up to 1 ms");
        assert_eq!(histogram.buckets[6], 2, "up to 50 ms");
        assert_eq!(histogram.buckets.last(), Some(&1), "above 30 s");
        assert!((histogram.sum - 31.0915).abs() < 1e-9);
    }

    #[test]
    fn what_was_not_measured_is_absent() {
        let mut page = Page::default();
        let labels = ["source", "00000000000000aa"];
        page.set_measured(&RAM_SIZE, &labels, None);
        assert_eq!(number(&page, &RAM_SIZE, &labels), None);
        page.set_measured(&RAM_SIZE, &labels, Some(0.0));
        assert_eq!(number(&page, &RAM_SIZE, &labels), Some(0.0));
        page.set_measured(&RAM_SIZE, &labels, Some(f64::INFINITY));
        assert_eq!(number(&page, &RAM_SIZE, &labels), None);
    }

    #[test]
    fn a_forgotten_migration_leaves_the_others_and_the_counters() {
        let mut page = Page::zero();
        for session in ["00000000000000aa", "00000000000000bb"] {
            page.set(&START_TIME, &["source", session], 1.0);
            page.set(&PHASE, &["source", session, "copy RAM"], 1.0);
        }
        page.forget("source", SessionId(0xaa));
        assert_eq!(page.migrations(), [("source", SessionId(0xbb))]);
        assert_eq!(page.series(&PHASE).count(), 1);
        assert_eq!(page.series(&MIGRATIONS).count(), 12);
        page.complete();
        assert_eq!(number(&page, &ACTIVE, &["source"]), Some(1.0));
        assert_eq!(number(&page, &ACTIVE, &["destination"]), Some(0.0));
    }
}
