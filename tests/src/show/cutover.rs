//! The cutover as a picture: the moments of the report, and what the client saw around them.
//!
//! ```text
//!     0.0  flip       |
//!     0.8  drained    =|
//!    12.2  released    ===========|
//!
//!    ####|..................######
//! ```

use katamaran::migrate::report::Cutover;

use crate::traffic::{Record, Silence};

/// Columns of the moments' bars.
const BARS: usize = 52;
/// Columns of the client's answers.
const ANSWERS: usize = 72;
/// Those of them that show what was before the flip.
const BEFORE: usize = 8;

/// The moments after the flip, or `None` if it did not come to one.
pub(super) fn moments(cutover: &Cutover) -> Option<String> {
    cutover.flip_us?;
    let mut moments: Vec<(f64, &str)> = [
        (Some(0.0), "flip"),
        (cutover.drained_ms, "drained"),
        (cutover.stopped_ms, "stopped"),
        (cutover.loaded_ms, "loaded"),
        (cutover.committed_ms, "committed"),
        (cutover.released_ms, "released"),
    ]
    .into_iter()
    .filter_map(|(at, name)| Some((at?, name)))
    .collect();
    moments.sort_by(|a, b| a.0.total_cmp(&b.0));
    let last = moments.last().map_or(1.0, |moment| moment.0.max(0.1));
    let mut lines = vec![String::from("  cutover, ms after the flip")];
    let mut previous = 0;
    for (at, name) in moments {
        let end = column(at, last / (BARS - 1) as f64);
        let bar = format!("{:previous$}{:=<length$}|", "", "", length = end - previous);
        lines.push(format!("  {at:>8.1}  {name:<10} {bar}"));
        previous = end;
    }
    Some(lines.join("\n"))
}

/// When the client got answers, around the flip.
pub(super) fn answers(flip_us: i64, record: &Record, silence: Silence) -> Option<String> {
    let flip_ns = u64::try_from(flip_us).ok()? * 1000;
    // As much more as there is before the flip, so that the traffic is seen to go on.
    let after_ms = silence.ended_ns.saturating_sub(flip_ns) as f64 / 1e6;
    let step_ms = (after_ms / (ANSWERS - 2 * BEFORE) as f64).max(0.1);
    let edge = |column: usize| {
        let ms = (column as f64 - BEFORE as f64) * step_ms;
        flip_ns.saturating_add_signed(nanoseconds(ms))
    };
    let mark = |column| match record.answers(edge(column), edge(column + 1)) {
        0 => '.',
        _ => '#',
    };
    let marks: String = (0..ANSWERS).map(mark).collect();
    Some(format!(
        "  answers that the client got around the flip (#; {step_ms:.1} ms a column)\n    {marks}\n    {:BEFORE$}^ flip",
        ""
    ))
}

fn column(at_ms: f64, step_ms: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a moment after the flip, as one of some fifty columns"
    )]
    let column = (at_ms.max(0.0) / step_ms).round() as usize;
    column.min(BARS - 1)
}

fn nanoseconds(ms: f64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "a few seconds at most")]
    let ns = (ms * 1e6) as i64;
    ns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::account::Arrival;

    #[test]
    fn the_moments_are_in_order_and_fit_a_terminal() {
        let cutover = Cutover {
            flip_us: Some(1_000_000),
            drained_ms: Some(1.0),
            stopped_ms: Some(2.0),
            committed_ms: Some(9.5),
            released_ms: Some(9.0),
            ..Cutover::default()
        };
        let picture = moments(&cutover).unwrap();
        let names: Vec<&str> = picture
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(1))
            .collect();
        assert_eq!(
            names,
            ["flip", "drained", "stopped", "released", "committed"]
        );
        assert!(picture.lines().all(|line| line.len() <= 80), "{picture}");
    }

    #[test]
    fn without_a_flip_there_are_no_moments() {
        assert!(moments(&Cutover::default()).is_none());
    }

    #[test]
    fn the_clients_wait_begins_at_the_flip() {
        let arrivals = (0..60)
            .map(|number| Arrival {
                number,
                at_ns: 995_000_000 + number * 500_000,
            })
            .filter(|arrival| !(1_000_000_000..1_010_000_000).contains(&arrival.at_ns))
            .collect();
        let record = Record {
            sent_ns: Vec::new(),
            arrivals,
        };
        let silence = Silence {
            began_ns: 999_500_000,
            ended_ns: 1_010_000_000,
        };
        let picture = answers(1_000_000, &record, silence).unwrap();
        let marks = picture.lines().nth(1).unwrap().trim();
        let (before, after) = marks.split_at(BEFORE);
        assert!(before.contains('#'), "{picture}");
        assert!(after.starts_with("..........."), "{picture}");
        assert!(after.contains('#'), "{picture}");
        assert!(picture.lines().all(|line| line.len() <= 80), "{picture}");
    }
}
