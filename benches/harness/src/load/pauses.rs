//! Pauses: how long a guest had no answer at given moments.

use std::time::{Duration, Instant};

use super::figures::quantile;

/// Shorter gaps are not kept: a moment in one of them counts as one of this length.
pub const GAP_MIN: Duration = Duration::from_micros(100);
/// A gap that begins so soon after a moment counts as one at that moment: what the daemon had answered before is still coming in.
const WITHIN: Duration = Duration::from_millis(5);

/// The times between the answers of one queue.
#[derive(Debug)]
pub struct Gaps {
    last: Instant,
    /// Begins and ends.
    long: Vec<(Instant, Instant)>,
}

impl Gaps {
    /// None before `start`.
    pub fn begin(start: Instant) -> Self {
        Self { last: start, long: Vec::new() }
    }

    /// An answer came at `now`.
    pub fn end_at(&mut self, now: Instant) {
        if now.saturating_duration_since(self.last) >= GAP_MIN {
            self.long.push((self.last, now));
        }
        self.last = now;
    }

    /// The longest gap that was under way from `first` to `last`, or began right after.
    fn within(&self, (first, last): (Instant, Instant)) -> Duration {
        let from = self.long.partition_point(|(_, end)| *end <= first);
        let there = self.long[from..].iter().take_while(|(begin, _)| *begin <= last + WITHIN);
        there.map(|(begin, end)| *end - *begin).max().unwrap_or(GAP_MIN)
    }
}

/// How long a guest waited at each of some moments, in milliseconds, in order.
#[derive(Debug)]
pub struct Pauses(Vec<f64>);

impl Pauses {
    /// The pauses of a guest with these `queues`: at each moment that of the queue which waited longest.
    pub fn at(moments: impl Iterator<Item = Instant>, queues: &[Gaps]) -> Self {
        Self::within(moments.map(|moment| (moment, moment)), queues)
    }

    /// The same for what lasted from one moment to another.
    pub fn within(spans: impl Iterator<Item = (Instant, Instant)>, queues: &[Gaps]) -> Self {
        let longest = |span| queues.iter().map(|gaps| gaps.within(span)).max().unwrap_or(GAP_MIN);
        let mut pauses: Vec<f64> = spans.map(|span| longest(span).as_secs_f64() * 1e3).collect();
        pauses.sort_by(f64::total_cmp);
        Self(pauses)
    }

    /// How many moments there were.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The pause that the fraction `part` of all does not exceed.
    pub fn quantile(&self, part: f64) -> f64 {
        quantile(&self.0, part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_the_longest_gap_that_is_under_way_or_begins_right_after() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut gaps = Gaps::begin(start);
        [10, 11, 31, 32, 40].into_iter().for_each(|ms| gaps.end_at(at(ms)));
        let ms = |moment| gaps.within((at(moment), at(moment))).as_secs_f64() * 1e3;
        assert_eq!((ms(2), ms(8), ms(12), ms(30), ms(50)), (10.0, 20.0, 20.0, 20.0, 0.1));
        assert_eq!(gaps.within((at(2), at(3))), Duration::from_millis(10));
        assert_eq!(gaps.within((at(2), at(12))), Duration::from_millis(20), "what lasts longer has the longest of its gaps");
    }

    #[test]
    fn a_guest_waits_as_long_as_the_queue_that_waits_longest() {
        let start = Instant::now();
        let queue = |us| {
            let mut gaps = Gaps::begin(start);
            gaps.end_at(start + Duration::from_micros(us));
            gaps
        };
        let pauses = Pauses::at([start, start + Duration::from_micros(2500)].into_iter(), &[queue(2000), queue(3000), queue(20)]);
        assert_eq!((pauses.count(), pauses.quantile(0.0), pauses.quantile(1.0)), (2, 3.0, 3.0));
        assert_eq!(Pauses::at([start].into_iter(), &[queue(20)]).quantile(0.5), 0.1);
    }
}
