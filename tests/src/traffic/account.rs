//! What became of numbered packets: pure arithmetic over two lists.

use serde::Serialize;

use super::silence::Record;

/// One packet that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Its number, from 0.
    pub number: u64,
    /// When it came back, in ns since the epoch.
    pub at_ns: u64,
}

/// The account of one UDP run, as the client saw it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct UdpResult {
    /// Packets sent.
    pub sent: u64,
    /// Different packets that came back.
    pub received: u64,
    /// Packets that never came back.
    pub lost: u64,
    /// Copies beyond the first.
    pub duplicated: u64,
    /// Packets that came back after one with a higher number.
    pub reordered: u64,
    /// Packets that came back altered; each of them also counts as lost.
    pub corrupted: u64,
    /// Attempts to send that the kernel refused; the number was used again.
    pub send_errors: u64,
    /// Sends per second over the whole run.
    pub rate: f64,
    /// The longest time without any arrival, in ms; silence up to the last send counts, too.
    pub longest_gap_ms: f64,
    /// When that gap began, in ns since the epoch.
    pub longest_gap_at_ns: u64,
    /// Half of the packets were back after this many ms.
    pub latency_p50_ms: f64,
    /// 99 of 100 packets were back after this many ms.
    pub latency_p99_ms: f64,
    /// The slowest packet, in ms.
    pub latency_max_ms: f64,
    /// The numbers of lost packets, as inclusive ranges.
    pub lost_ranges: Vec<(u64, u64)>,
    /// What all of this was computed from.
    #[serde(skip)]
    pub record: Record,
}

impl UdpResult {
    /// Whether every packet came back once, unaltered and in order.
    #[must_use]
    pub fn is_perfect(&self) -> bool {
        self.sent > 0
            && self.received == self.sent
            && self.duplicated + self.reordered + self.corrupted == 0
    }

    fn note_gap(&mut self, from_ns: Option<u64>, to_ns: u64) {
        let Some(from_ns) = from_ns else { return };
        let gap_ms = ms(to_ns.saturating_sub(from_ns));
        if gap_ms > self.longest_gap_ms {
            (self.longest_gap_ms, self.longest_gap_at_ns) = (gap_ms, from_ns);
        }
    }
}

/// Settles the account: `sent_ns[n]` is when packet *n* was sent, `arrivals` is in order of arrival.
#[must_use]
pub fn settle(sent_ns: &[u64], arrivals: &[Arrival]) -> UdpResult {
    let mut first_ns: Vec<Option<u64>> = vec![None; sent_ns.len()];
    let mut result = UdpResult {
        sent: sent_ns.len() as u64,
        record: Record {
            sent_ns: sent_ns.to_vec(),
            arrivals: arrivals.to_vec(),
        },
        ..UdpResult::default()
    };
    let mut highest = None;
    let mut previous_ns = None;
    for arrival in arrivals {
        let slot = usize::try_from(arrival.number)
            .ok()
            .and_then(|at| first_ns.get_mut(at));
        let Some(slot) = slot else {
            result.corrupted += 1;
            continue;
        };
        result.note_gap(previous_ns, arrival.at_ns);
        previous_ns = previous_ns.max(Some(arrival.at_ns));
        if slot.is_some() {
            result.duplicated += 1;
            continue;
        }
        *slot = Some(arrival.at_ns);
        result.received += 1;
        if highest > Some(arrival.number) {
            result.reordered += 1;
        }
        highest = highest.max(Some(arrival.number));
    }
    if let Some(last) = sent_ns.last() {
        result.note_gap(previous_ns, *last);
    }
    result.lost = result.sent - result.received;
    result.lost_ranges = ranges(&first_ns);
    let mut latencies: Vec<u64> = sent_ns
        .iter()
        .zip(&first_ns)
        .filter_map(|(sent, back)| back.map(|back| back.saturating_sub(*sent)))
        .collect();
    latencies.sort_unstable();
    result.latency_p50_ms = percentile(&latencies, 50);
    result.latency_p99_ms = percentile(&latencies, 99);
    result.latency_max_ms = percentile(&latencies, 100);
    if let [first, .., last] = sent_ns
        && last > first
    {
        result.rate = (sent_ns.len() - 1) as f64 / (ms(last - first) / 1e3);
    }
    result
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// Nearest rank; 0 for an empty list.
fn percentile(sorted: &[u64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(0.0, |ns| ms(*ns))
}

fn ranges(first_ns: &[Option<u64>]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (number, back) in first_ns.iter().enumerate() {
        let number = number as u64;
        match (back, ranges.last_mut()) {
            (Some(_), _) => {}
            (None, Some((_, end))) if *end + 1 == number => *end = number,
            (None, _) => ranges.push((number, number)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn arrivals(list: &[(u64, u64)]) -> Vec<Arrival> {
        list.iter()
            .map(|&(number, at)| Arrival {
                number,
                at_ns: at * MS,
            })
            .collect()
    }

    #[test]
    fn a_run_without_fault_is_perfect() {
        let result = settle(&[0, MS, 2 * MS], &arrivals(&[(0, 1), (1, 2), (2, 3)]));
        assert!(result.is_perfect());
        assert_eq!((result.latency_p50_ms, result.longest_gap_ms), (1.0, 1.0));
    }

    #[test]
    fn a_run_in_which_nothing_was_sent_is_not_perfect() {
        assert!(!settle(&[], &[]).is_perfect());
    }

    #[test]
    fn lost_packets_are_listed_as_ranges() {
        let result = settle(&[0; 6], &arrivals(&[(0, 1), (4, 2)]));
        assert_eq!((result.lost, result.lost_ranges), (4, vec![(1, 3), (5, 5)]));
    }

    #[test]
    fn a_duplicate_does_not_make_up_for_a_loss() {
        let result = settle(&[0; 3], &arrivals(&[(0, 1), (0, 1), (2, 2)]));
        assert_eq!((result.lost, result.duplicated, result.received), (1, 1, 2));
    }

    #[test]
    fn a_late_packet_counts_as_reordered_once() {
        let result = settle(&[0; 4], &arrivals(&[(0, 1), (2, 2), (3, 3), (1, 4)]));
        assert_eq!((result.reordered, result.lost), (1, 0));
    }

    #[test]
    fn the_longest_gap_says_where_it_began() {
        let result = settle(&[0; 3], &arrivals(&[(0, 1), (1, 2), (2, 42)]));
        assert_eq!(
            (result.longest_gap_ms, result.longest_gap_at_ns),
            (40.0, 2 * MS)
        );
    }

    #[test]
    fn silence_at_the_end_is_a_gap() {
        let result = settle(&[0, 50 * MS], &arrivals(&[(0, 1)]));
        assert_eq!((result.longest_gap_ms, result.lost), (49.0, 1));
    }

    #[test]
    fn a_number_that_was_never_sent_is_corruption() {
        assert_eq!(settle(&[0], &arrivals(&[(9, 1)])).corrupted, 1);
    }
}
