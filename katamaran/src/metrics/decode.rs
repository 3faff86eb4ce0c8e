//! Reads back what [`super::encode`](super::encode::encode) wrote, and nothing else: what it does not
//! know, it refuses, because to skip a line would be to forget what somebody has counted. (Parsers of
//! the format in general skip such lines.)

use std::collections::BTreeMap;

use super::catalogue::{Family, Kind, catalogue};
use super::encode::END;
use super::page::{Histogram, LabelValues, Page, Value};
use super::vocabulary::ROLES;
use crate::session_id::SessionId;

/// Why a text is not one of ours.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Corrupt {
    #[error("it does not end with {END:?}: it was cut short, or something else wrote it")]
    Incomplete,
    #[error("line {line}: {problem}: {text:?}")]
    Line {
        line: usize,
        problem: &'static str,
        text: String,
    },
    #[error("{family}{labels:?} is not a whole histogram of this version")]
    Histogram {
        family: &'static str,
        labels: Vec<String>,
    },
}

/// What the lines of one histogram have said so far.
#[derive(Default)]
struct Parts {
    /// Cumulative, by the text of the bound.
    buckets: BTreeMap<String, u64>,
    sum: Option<f64>,
    count: Option<u64>,
}

pub(super) fn decode(text: &str) -> Result<Page, Corrupt> {
    if !text.ends_with(&format!("{END}\n")) {
        return Err(Corrupt::Incomplete);
    }
    let mut page = Page::default();
    let mut histograms: BTreeMap<(&'static str, LabelValues), (&'static Family, Parts)> =
        BTreeMap::new();
    for (at, text) in text.lines().enumerate() {
        if text.starts_with('#') {
            continue;
        }
        let corrupt = |problem| Corrupt::Line {
            line: at + 1,
            problem,
            text: text.to_owned(),
        };
        let sample = Sample::parse(text).map_err(corrupt)?;
        let (family, part) = known(sample.name).ok_or_else(|| corrupt("not a metric of ours"))?;
        let (labels, bound) = sample.labels_of(family, part).map_err(corrupt)?;
        match (family.kind, part) {
            (Kind::Histogram(_), _) => {
                let entry = histograms
                    .entry((family.name, labels))
                    .or_insert_with(|| (family, Parts::default()));
                entry.1.take(part, bound, sample.value).map_err(corrupt)?;
            }
            (kind, _) => {
                if page.contains(family, &labels) {
                    return Err(corrupt("told twice"));
                }
                if kind == Kind::Counter && sample.value < 0.0 {
                    return Err(corrupt("a counter below 0"));
                }
                page.insert(family, labels, Value::Number(sample.value));
            }
        }
    }
    for ((_, labels), (family, parts)) in histograms {
        let histogram = parts.whole(family).ok_or_else(|| Corrupt::Histogram {
            family: family.name,
            labels: labels.clone(),
        })?;
        page.insert(family, labels, Value::Histogram(histogram));
    }
    Ok(page)
}

/// Which line of a metric a sample is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    Whole,
    Bucket,
    Sum,
    Count,
}

fn known(name: &str) -> Option<(&'static Family, Part)> {
    catalogue().iter().find_map(|family| {
        let part = match (family.kind, name.strip_prefix(family.name)?) {
            (Kind::Gauge | Kind::Counter, "") => Part::Whole,
            (Kind::Histogram(_), "_bucket") => Part::Bucket,
            (Kind::Histogram(_), "_sum") => Part::Sum,
            (Kind::Histogram(_), "_count") => Part::Count,
            _ => return None,
        };
        Some((*family, part))
    })
}

/// One line that is no comment.
#[derive(Debug)]
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Result<Self, &'static str> {
        let end = line
            .find(['{', ' '])
            .ok_or("neither labels nor a value follow the name")?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                let (label, after) = rest.split_once("=\"").ok_or("a label without a value")?;
                let (value, after) = unquote(after)?;
                labels.push((label, value));
                if let Some(after) = after.strip_prefix(',') {
                    rest = after;
                } else {
                    rest = after.strip_prefix('}').ok_or("labels without an end")?;
                    break;
                }
            }
        }
        let value = rest
            .strip_prefix(' ')
            .and_then(|text| text.parse::<f64>().ok())
            .filter(|value| value.is_finite())
            .ok_or("the value is no number")?;
        Ok(Self {
            name,
            labels,
            value,
        })
    }

    /// The values of the family's labels, and that of `le` for a bucket.
    fn labels_of(
        &self,
        family: &Family,
        part: Part,
    ) -> Result<(LabelValues, Option<String>), &'static str> {
        let mut values = Vec::new();
        let mut given = self.labels.iter();
        for wanted in family.labels {
            let (name, value) = given.next().ok_or("a label is missing")?;
            let fits = match *wanted {
                "role" => ROLES.contains(&value.as_str()),
                "session" => value.parse::<SessionId>().is_ok(),
                _ => true,
            };
            if name != wanted || !fits {
                return Err("not the labels of this metric");
            }
            values.push(value.clone());
        }
        let bound = match (part, given.next()) {
            (Part::Bucket, Some(("le", bound))) => Some(bound.clone()),
            (Part::Whole | Part::Sum | Part::Count, None) => None,
            _ => return Err("not the labels of this metric"),
        };
        if given.next().is_some() {
            return Err("not the labels of this metric");
        }
        Ok((values, bound))
    }
}

/// A label's value up to its closing quote, and what follows.
fn unquote(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, c @ ('\\' | '"'))) => value.push(c),
                _ => return Err("an escape that does not exist"),
            },
            c => value.push(c),
        }
    }
    Err("a label's value without an end")
}

impl Parts {
    fn take(&mut self, part: Part, bound: Option<String>, value: f64) -> Result<(), &'static str> {
        let told_before = match (part, bound) {
            (Part::Sum, _) => self.sum.replace(value).is_some(),
            (Part::Bucket, Some(bound)) => self.buckets.insert(bound, whole(value)?).is_some(),
            _ => self.count.replace(whole(value)?).is_some(),
        };
        if told_before {
            return Err("told twice");
        }
        Ok(())
    }

    /// The histogram, if all of it is there and agrees with itself.
    fn whole(mut self, family: &Family) -> Option<Histogram> {
        let Kind::Histogram(bounds) = family.kind else {
            return None;
        };
        let mut histogram = Histogram::empty(bounds);
        histogram.sum = self.sum?;
        let mut below = 0;
        let names = bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bucket, bound) in histogram.buckets.iter_mut().zip(names) {
            let cumulative = self.buckets.remove(&bound)?;
            *bucket = cumulative.checked_sub(below)?;
            below = cumulative;
        }
        (self.buckets.is_empty() && self.count == Some(below)).then_some(histogram)
    }
}

fn whole(value: f64) -> Result<u64, &'static str> {
    // 2^53: what a number of the format can count one by one.
    if value < 0.0 || value.fract() != 0.0 || value > 9_007_199_254_740_992.0 {
        return Err("not a number of observations");
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked above"
    )]
    let whole = value as u64;
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::catalogue::{DISK_SIZE, DOWNTIME, DURATION, LOST, START_TIME};
    use crate::metrics::encode::encode;

    fn full() -> Page {
        let mut page = Page::zero();
        page.count(&LOST, &["destination"], 7.0);
        page.observe(&DOWNTIME, &["source"], 0.0166);
        page.observe(&DURATION, &["source", "success"], 90_000.0);
        page.set(&START_TIME, &["source", "00000000000000aa"], 1.5e9);
        page.set(
            &DISK_SIZE,
            &["source", "00000000000000aa", "a \"b\"\\c\nd,e}f=g"],
            1e12,
        );
        page.complete();
        page
    }

    #[test]
    fn what_was_written_is_read_back() {
        assert_eq!(decode(&encode(&full())).unwrap(), full());
    }

    #[test]
    fn a_file_that_was_cut_short_anywhere_is_corrupt() {
        let text = encode(&full());
        for (at, _) in text.char_indices() {
            assert!(decode(&text[..at]).is_err(), "{at}: {:?}", &text[..at]);
        }
    }

    #[test]
    fn a_line_that_is_missing_from_a_histogram_is_noticed() {
        let text = encode(&full());
        let histogram = |line: &&str| line.starts_with("katamaran_migration_downtime_seconds");
        for gone in text.lines().filter(histogram) {
            let rest: String = text
                .lines()
                .filter(|line| line != &gone)
                .map(|line| format!("{line}\n"))
                .collect();
            assert!(
                matches!(decode(&rest), Err(Corrupt::Histogram { .. })),
                "without {gone}"
            );
        }
    }

    #[test]
    fn what_is_not_ours_is_refused_with_its_line() {
        for line in [
            "node_cpu_seconds_total{cpu=\"0\"} 1",
            "katamaran_migration_lost_packets_total{role=\"source\"} many",
            "katamaran_migration_lost_packets_total{role=\"source\"} NaN",
            "katamaran_migration_lost_packets_total{role=\"source\"} -1",
            "katamaran_migration_lost_packets_total{role=\"source\"} 1 1700000000",
            "katamaran_migration_lost_packets_total{role=\"bystander\"} 1",
            "katamaran_migration_lost_packets_total{role=\"source\",more=\"1\"} 1",
            "katamaran_migration_lost_packets_total 1",
            "katamaran_migration_lost_packets_total{role=\"source} 1",
            "katamaran_migration_lost_packets_total{role=\"so\\urce\"} 1",
            "katamaran_migration_lost_packets_total{role=\"source\"",
            "katamaran_migration_downtime_seconds{role=\"source\"} 1",
            "katamaran_migration_start_time_seconds{role=\"source\",session=\"x\"} 1",
            "garbage",
            "",
        ] {
            let text = format!("# a comment\n{line}\n# EOF\n");
            let Err(Corrupt::Line { line: at, .. }) = decode(&text) else {
                panic!("{line:?} was taken: {:?}", decode(&text))
            };
            assert_eq!(at, 2, "{line}");
        }
        let twice = "katamaran_migration_lost_packets_total{role=\"source\"} 1\n".repeat(2);
        assert!(decode(&format!("{twice}# EOF\n")).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            drop(decode(&format!("{text}\n# EOF\n")));
        }

        #[test]
        fn any_drive_name_survives(name in "\\PC*", size in 0u32..) {
            let mut page = Page::default();
            page.set(&DISK_SIZE, &["source", "00000000000000aa", &name], size.into());
            prop_assert_eq!(decode(&encode(&page)).unwrap(), page);
        }
    }
}
