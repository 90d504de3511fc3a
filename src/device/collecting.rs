//! Collecting FORGETs: whether the thread of the hiprio queue waits a moment for more of them before it asks for a kick and
//! signals the call. Knows nothing of rings and threads.
//!
//! No process in the guest waits for a FORGET, and a guest that removes files or runs short of memory sends many of them one by
//! one. Served together they cost one kick, one wake-up and one call, instead of one each.

use std::time::{Duration, Instant};

/// How long FORGETs are collected for. An INTERRUPT, which shares the queue, waits as long at most. The guest gets its buffers back up
/// to twice as late: no further wait begins once the first answer is that old.
pub(super) const COLLECT_TIME: Duration = Duration::from_millis(1);
/// FORGETs come close together if there is no longer gap between them.
const GAP_MAX: Duration = Duration::from_millis(2);
/// Requests that are served at once, after FORGETs were waited for in vain: a guest that does wait for each of them is to lose
/// no more than a hundredth of its time.
const SKIPS_MAX: u32 = 4096;

/// Chains that are served without further waiting: a quarter of a ring of `ring_len`, whose rest the guest goes on filling while
/// the thread wakes up, or 32, by when a kick for each would have cost most of what can be saved.
pub(super) fn enough(ring_len: u16) -> u16 {
    (ring_len / 4).clamp(1, 32)
}

/// Decides when to collect.
#[derive(Debug, Default)]
pub(super) struct Collecting {
    /// When the queue was last found empty.
    emptied_at: Option<Instant>,
    /// When the first wait since the last call began.
    since: Option<Instant>,
    /// Times that it is not to be waited, and how many there were after the last wait in vain.
    skips_left: u32,
    skips: u32,
}

impl Collecting {
    /// The queue is found empty after something was served: whether to wait for more.
    pub fn is_worth_it(&mut self, now: Instant) -> bool {
        let before = self.emptied_at.replace(now);
        if before.is_none_or(|before| now.saturating_duration_since(before) > GAP_MAX) {
            return false;
        }
        let is_due = self.skips_left == 0;
        self.skips_left = self.skips_left.saturating_sub(1);
        if is_due && now.saturating_duration_since(*self.since.get_or_insert(now)) >= COLLECT_TIME {
            self.since = None;
            return false;
        }
        is_due
    }

    /// The call was signalled: no answer waits for it.
    pub fn note_called(&mut self) {
        self.since = None;
    }

    /// Learns whether anything came while it was waited. In vain, the next waits become rare, twice as rare each time.
    pub fn note(&mut self, has_found: bool) {
        self.skips = if has_found { 0 } else { (self.skips * 2).clamp(1, SKIPS_MAX) };
        self.skips_left = self.skips;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits among `count` requests that come `gap` apart, where a wait finds something if `guest_goes_on`.
    fn waits(collecting: &mut Collecting, start: Instant, count: u32, gap: Duration, guest_goes_on: bool) -> u32 {
        (0..count)
            .filter(|i| {
                collecting.is_worth_it(start + gap * *i) && {
                    collecting.note(guest_goes_on);
                    true
                }
            })
            .count() as u32
    }

    #[test]
    fn what_comes_close_together_is_collected_and_what_does_not_is_served_at_once() {
        let start = Instant::now();
        let mut collecting = Collecting::default();
        // A wait that finds something is followed by another one until the call is due.
        assert!(waits(&mut collecting, start, 1000, COLLECT_TIME / 10, true) > 900);
        assert_eq!(waits(&mut collecting, start + Duration::from_secs(10), 1000, 3 * COLLECT_TIME, true), 0);
    }

    #[test]
    fn an_answer_waits_for_its_call_for_two_waits_at_most() {
        // Each wait finds one more, and no call is due because of their number.
        let (start, mut collecting, mut oldest, mut longest) = (Instant::now(), Collecting::default(), None, Duration::ZERO);
        for i in 0..32 {
            let now = start + COLLECT_TIME * i;
            if collecting.is_worth_it(now) {
                collecting.note(true);
                longest = longest.max(now + COLLECT_TIME - *oldest.get_or_insert(now));
            } else {
                oldest = None;
            }
        }
        assert!(longest <= 2 * COLLECT_TIME, "{longest:?}");
    }

    #[test]
    fn a_guest_that_waits_for_each_is_made_to_wait_rarely() {
        let mut collecting = Collecting::default();
        let vain = waits(&mut collecting, Instant::now(), 100_000, Duration::from_micros(10), false);
        assert!((10..=40).contains(&vain), "{vain} waits");
        let start = Instant::now() + Duration::from_secs(10);
        assert!(waits(&mut collecting, start, 10_000, Duration::from_micros(10), true) > 5_000, "it is tried again");
    }
}
