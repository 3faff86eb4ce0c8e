//! The cutover as a picture: the moments of the report, and under them what the client saw.
//!
//! ```text
//!     0.0 ms  flip       |
//!     0.8     drained    |=
//!    12.2     released    ==========
//!             client   ##.............###    27.1 ms without an answer
//! ```

use katamaran::migrate::report::Cutover;

use crate::traffic::{Record, Silence};

/// Columns of the picture itself.
const WIDTH: usize = 50;
/// Part of the picture that shows what was before the flip.
const BEFORE: usize = 4;

/// The picture, or `None` if it did not come to a flip.
pub(super) fn picture(cutover: &Cutover, client: Option<(&Record, Silence)>) -> Option<String> {
    let flip_ns = u64::try_from(cutover.flip_us?).ok()? * 1000;
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
    let end_of_silence = client.map(|(_, silence)| after(flip_ns, silence.ended_ns));
    let last = moments
        .iter()
        .map(|moment| moment.0)
        .chain(end_of_silence)
        .fold(1.0, f64::max);
    // A tenth more than needed, so that the traffic is seen to go on.
    let step_ms = last * 1.1 / (WIDTH - BEFORE) as f64;
    let mut lines = vec![String::from("  cutover, ms after the flip")];
    let mut previous = 0.0;
    for (at, name) in moments {
        let (from, to) = (column(previous, step_ms), column(at, step_ms));
        let bar: String = (0..=to)
            .map(|column| match column {
                column if column == to => '|',
                column if column >= from => '=',
                _ => ' ',
            })
            .collect();
        lines.push(format!("  {at:>8.1}  {name:<10} {bar}"));
        previous = at;
    }
    if let Some((record, silence)) = client {
        lines.push(format!(
            "{:12}{:<10} {}",
            "",
            "answers",
            answers(record, flip_ns, step_ms)
        ));
        lines.push(format!(
            "{:23}('#' the client gets answers, '.' it waits; here {:.1} ms at most)",
            "",
            silence.ms()
        ));
    }
    Some(lines.join("\n"))
}

fn answers(record: &Record, flip_ns: u64, step_ms: f64) -> String {
    let edge = |column: usize| {
        let ms = (column as f64 - BEFORE as f64) * step_ms;
        flip_ns.saturating_add_signed(nanoseconds(ms))
    };
    let mark = |column| match record.answers(edge(column), edge(column + 1)) {
        0 => '.',
        _ => '#',
    };
    (0..WIDTH).map(mark).collect()
}

fn column(at_ms: f64, step_ms: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a moment after the flip, as one of fifty columns"
    )]
    let column = (at_ms.max(0.0) / step_ms) as usize;
    (BEFORE + column).min(WIDTH - 1)
}

fn nanoseconds(ms: f64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "a few seconds at most")]
    let ns = (ms * 1e6) as i64;
    ns
}

/// Milliseconds from the flip to a moment.
fn after(flip_ns: u64, at_ns: u64) -> f64 {
    at_ns.saturating_sub(flip_ns) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::account::Arrival;

    #[test]
    fn the_picture_shows_moments_in_order_and_the_clients_wait() {
        let cutover = Cutover {
            flip_us: Some(1_000_000),
            drained_ms: Some(1.0),
            stopped_ms: Some(2.0),
            committed_ms: Some(9.5),
            released_ms: Some(9.0),
            ..Cutover::default()
        };
        let arrivals = (0..60)
            .map(|number| Arrival {
                number,
                at_ns: 995_000_000 + number * 500_000,
            })
            .filter(|arrival| !(1_001_000_000..1_010_000_000).contains(&arrival.at_ns))
            .collect();
        let record = Record {
            sent_ns: Vec::new(),
            arrivals,
        };
        let silence = Silence {
            began_ns: 1_000_500_000,
            ended_ns: 1_010_000_000,
        };
        let picture = picture(&cutover, Some((&record, silence))).unwrap();
        let names: Vec<&str> = picture
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1))
            .take(6)
            .collect();
        assert_eq!(
            names,
            ["ms", "flip", "drained", "stopped", "released", "committed"]
        );
        assert!(picture.contains("####"), "{picture}");
        assert!(picture.contains("......"), "{picture}");
        assert!(
            picture.lines().all(|line| line.chars().count() <= 80),
            "{picture}"
        );
    }

    #[test]
    fn without_a_flip_there_is_no_picture() {
        assert!(picture(&Cutover::default(), None).is_none());
    }
}
