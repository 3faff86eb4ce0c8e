//! How long the client waited for an answer: when something was on its way and nothing came back.
//!
//! A pause of the sender is no silence: it begins when the next packet has been sent. So a client
//! that was not scheduled for a while does not count its own absence.

use std::fmt;

use super::account::Arrival;

/// A time without any answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// When it began, in ns since the epoch.
    pub began_ns: u64,
    /// When the next answer came, or the last packet was sent that nobody answered.
    pub ended_ns: u64,
}

impl Silence {
    /// Its length, in ms.
    #[must_use]
    pub fn ms(&self) -> f64 {
        (self.ended_ns - self.began_ns) as f64 / 1e6
    }
}

/// A packet that came back after one that was sent later. Times are in ns since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overtaken {
    /// Its number.
    pub number: u64,
    /// When it was sent.
    pub sent_ns: u64,
    /// When it came back.
    pub at_ns: u64,
    /// The highest number that was there before it.
    pub by: u64,
    /// When that one was sent.
    pub by_sent_ns: u64,
    /// When that one came back.
    pub by_at_ns: u64,
}

/// When every packet was sent and when it came back. Its [`Debug`](fmt::Debug) tells how many, for a person is to read it.
#[derive(Clone, Default, PartialEq)]
pub struct Record {
    /// By number, in ns since the epoch.
    pub sent_ns: Vec<u64>,
    /// In order of arrival.
    pub arrivals: Vec<Arrival>,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, arrived) = (self.sent_ns.len(), self.arrivals.len());
        write!(f, "Record({sent} sent, {arrived} arrived)")
    }
}

impl Record {
    /// The longest silence of which at least a part lies between two moments, in ns since the epoch.
    #[must_use]
    pub fn longest_silence(&self, from_ns: u64, to_ns: u64) -> Option<Silence> {
        let touches = |silence: &Silence| silence.ended_ns >= from_ns && silence.began_ns <= to_ns;
        self.silences()
            .filter(touches)
            .max_by_key(|silence| silence.ended_ns - silence.began_ns)
    }

    /// How many answers came between two moments, in ns since the epoch.
    #[must_use]
    pub fn answers(&self, from_ns: u64, to_ns: u64) -> usize {
        let within = |arrival: &&Arrival| (from_ns..to_ns).contains(&arrival.at_ns);
        self.arrivals.iter().filter(within).count()
    }

    /// Every packet that came back after one that was sent later, in order of arrival.
    pub fn overtaken(&self) -> impl Iterator<Item = Overtaken> {
        let mut seen = vec![false; self.sent_ns.len()];
        let mut highest: Option<Arrival> = None;
        self.arrivals.iter().filter_map(move |&arrival| {
            let at = usize::try_from(arrival.number).ok()?;
            let first = !std::mem::replace(seen.get_mut(at)?, true);
            let ahead = highest.filter(|highest| highest.number > arrival.number);
            if ahead.is_none() {
                highest = Some(arrival);
            }
            let ahead = ahead.filter(|_| first)?;
            let by = usize::try_from(ahead.number).ok()?;
            Some(Overtaken {
                number: arrival.number,
                sent_ns: self.sent_ns[at],
                at_ns: arrival.at_ns,
                by: ahead.number,
                by_sent_ns: *self.sent_ns.get(by)?,
                by_at_ns: ahead.at_ns,
            })
        })
    }

    fn silences(&self) -> impl Iterator<Item = Silence> {
        let mut next_number = 0;
        let mut previous_ns = 0;
        let ends = self
            .arrivals
            .iter()
            .map(|arrival| (arrival.at_ns, arrival.number + 1));
        let last = self.sent_ns.last().map(|at_ns| (*at_ns, u64::MAX));
        ends.chain(last).filter_map(move |(ended_ns, after)| {
            let outstanding = usize::try_from(next_number).ok();
            let sent_ns = outstanding.and_then(|at| self.sent_ns.get(at));
            let silence = sent_ns.map(|sent_ns| Silence {
                began_ns: previous_ns.max(*sent_ns),
                ended_ns,
            });
            next_number = next_number.max(after);
            previous_ns = previous_ns.max(ended_ns);
            silence.filter(|silence| silence.ended_ns > silence.began_ns)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sent_ns: &[u64], arrivals: &[(u64, u64)]) -> Record {
        let arrival = |&(number, at_ns): &(u64, u64)| Arrival { number, at_ns };
        Record {
            sent_ns: sent_ns.to_vec(),
            arrivals: arrivals.iter().map(arrival).collect(),
        }
    }

    fn longest(record: &Record) -> (u64, u64) {
        let silence = record.longest_silence(0, u64::MAX).unwrap();
        (silence.began_ns, silence.ended_ns)
    }

    #[test]
    fn a_silence_lasts_from_one_answer_to_the_next() {
        let record = record(&[0, 10, 20], &[(0, 5), (1, 15), (2, 90)]);
        assert_eq!(longest(&record), (20, 90));
    }

    #[test]
    fn a_pause_of_the_sender_is_no_silence() {
        let record = record(&[0, 10, 500], &[(0, 5), (1, 17), (2, 505)]);
        assert_eq!(longest(&record), (10, 17));
    }

    #[test]
    fn packets_that_never_come_back_are_waited_for_until_the_next_answer() {
        let record = record(&[0, 10, 20, 80], &[(0, 5), (3, 85)]);
        assert_eq!(longest(&record), (10, 85));
    }

    #[test]
    fn what_is_never_answered_is_waited_for_to_the_last_send() {
        let record = record(&[0, 10, 70], &[(0, 5)]);
        assert_eq!(longest(&record), (10, 70));
    }

    #[test]
    fn a_packet_is_overtaken_by_the_highest_that_came_before_it_and_a_copy_is_not() {
        let record = record(
            &[0, 1, 2, 3],
            &[(0, 10), (3, 11), (1, 12), (0, 13), (2, 14)],
        );
        let overtaken: Vec<_> = record
            .overtaken()
            .map(|late| (late.number, late.by))
            .collect();
        assert_eq!(overtaken, [(1, 3), (2, 3)]);
        let first = record.overtaken().next().unwrap();
        assert_eq!(
            (first.sent_ns, first.at_ns, first.by_sent_ns, first.by_at_ns),
            (1, 12, 3, 11)
        );
    }

    #[test]
    fn only_silences_that_touch_the_window_count() {
        let record = record(&[0, 1, 100, 200], &[(0, 1), (1, 80), (2, 101), (3, 230)]);
        let silence = record.longest_silence(90, 150).unwrap();
        assert_eq!((silence.began_ns, silence.ended_ns), (100, 101));
        assert_eq!(record.answers(80, 101), 1);
    }
}
