//! When the call is signalled for answers while quick requests follow each other. Knows nothing of rings and threads.
//!
//! A call is a system call here, and an interrupt and often a wake-up in the guest: one for many answers is cheapest. But a guest
//! that sleeps until the last of them is answered sends the next ones only then, and this side has nothing to do until it has woken
//! up. A guest on another CPU is therefore called while as many requests wait as are served until it is awake: it then takes all
//! answers so far, and sends new requests before the ring is empty (`docs/decisions/0014`). A guest that shares the CPU cannot run
//! before this side sleeps, and is called for all answers at once.

use std::time::{Duration, Instant};

/// Answers that one call covers at most.
pub(super) const ANSWERS_MAX: u16 = 32;
/// Time between calls at most, where answers are given. Also what wakes a guest up for the first answer of a burst after a pause.
const TIME_MAX: Duration = Duration::from_micros(50);
/// About what passes from a call until a guest that slept sends its next request. A guest that wakes up later is waited for; one that
/// wakes up earlier has fewer answers to take.
pub(super) const WAKE_UP: Duration = Duration::from_micros(25);
/// Between two calls at least, while requests wait: a guest that wakes up at once would get a call for each answer otherwise.
const GAP_MIN: Duration = Duration::from_micros(10);

/// Decides when the call is signalled. Kept under the queue's lock.
#[derive(Debug, Default)]
pub(super) struct Calling {
    /// When the call was last signalled, or the guest found not to want it.
    last_at: Option<Instant>,
    /// It wanted that call.
    was_wanted: bool,
    /// Looks at the ring find requests: the guest runs while this side does.
    runs_beside: bool,
    /// Requests that waited when the last one was taken, and whether more have arrived since the last call.
    waiting: u16,
    has_new: bool,
}

impl Calling {
    /// A request is taken off the ring, behind which `waiting` wait.
    pub fn note_taken(&mut self, waiting: u16) {
        self.has_new |= waiting >= self.waiting;
        self.waiting = waiting;
    }

    /// A look at the ring has ended; `has_arrived`: by a request.
    pub fn note_look(&mut self, has_arrived: bool) {
        self.runs_beside = has_arrived;
    }

    /// The call is signalled, or the guest found not to want it.
    pub fn note_call(&mut self, was_wanted: bool, now: Instant) {
        self.last_at = Some(now);
        self.was_wanted = was_wanted;
        self.has_new = false;
    }

    /// Whether the call is due for `unsignalled` answers, the last of which was given at `now`. `soon` tells how many requests are
    /// served in [`WAKE_UP`].
    pub fn is_due(&self, unsignalled: u16, now: Instant, soon: impl FnOnce() -> u16) -> bool {
        let gap = self.last_at.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        let is_early = || self.has_new && self.runs_beside && self.was_wanted && gap >= GAP_MIN && self.waiting <= soon();
        unsignalled > 0 && (unsignalled >= ANSWERS_MAX || gap > TIME_MAX || is_early())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers `count` requests, one in a microsecond, of which `count` waited at the beginning: which of them are called for.
    fn calls(calling: &mut Calling, start: Instant, count: u16, soon: u16, is_wanted: bool) -> Vec<u16> {
        let (mut unsignalled, mut called) = (0, Vec::new());
        for answer in 1..=count {
            calling.note_taken(count - answer);
            unsignalled += 1;
            let now = start + Duration::from_micros(answer.into());
            if calling.is_due(unsignalled, now, || soon) {
                calling.note_call(is_wanted, now);
                called.push(answer);
                unsignalled = 0;
            }
        }
        called
    }

    fn called(runs_beside: bool, was_wanted: bool, at: Instant) -> Calling {
        let mut calling = Calling::default();
        calling.note_look(runs_beside);
        calling.note_call(was_wanted, at - GAP_MIN);
        calling
    }

    #[test]
    fn a_guest_that_sleeps_on_another_cpu_is_called_while_as_many_wait_as_are_served_until_it_is_awake() {
        let start = Instant::now();
        assert_eq!(calls(&mut called(true, true, start), start, 16, 5, true), [11], "once for what had arrived by then");
        assert_eq!(calls(&mut called(true, true, start), start, 4, 12, true), [1]);
        assert_eq!(calls(&mut called(true, true, start), start, 1, 1, true), [1]);
        let mut again = called(true, true, start);
        assert_eq!(calls(&mut again, start, 8, 3, true), [5]);
        assert_eq!(calls(&mut again, start + 2 * GAP_MIN, 8, 3, true), [5], "more have arrived since");
        assert_eq!(calls(&mut again, start + 2 * GAP_MIN + Duration::from_micros(8), 8, 8, true), [7], "not at once");
    }

    #[test]
    fn what_arrives_behind_others_makes_a_call_due_again() {
        let start = Instant::now();
        let mut calling = called(true, true, start);
        calling.note_taken(2);
        assert!(calling.is_due(1, start, || 8));
        calling.note_call(true, start);
        calling.note_taken(1);
        assert!(!calling.is_due(1, start + GAP_MIN, || 8), "the guest was called for those");
        calling.note_taken(1);
        assert!(calling.is_due(2, start + GAP_MIN, || 8) && !calling.is_due(0, start + GAP_MIN, || 8));
    }

    #[test]
    fn a_guest_on_the_same_cpu_or_that_was_awake_is_called_for_many_answers_at_once() {
        let start = Instant::now();
        for (runs_beside, was_wanted) in [(false, true), (true, false), (false, false)] {
            assert_eq!(calls(&mut called(runs_beside, was_wanted, start), start, 16, 16, false), [0; 0]);
            assert_eq!(calls(&mut called(runs_beside, was_wanted, start), start, 40, 40, false), [ANSWERS_MAX]);
        }
        let mut calling = called(true, true, start);
        assert_eq!(calls(&mut calling, start, 16, 16, false), [1], "it is found awake");
        assert_eq!(calls(&mut calling, start, 16, 16, false), [0; 0]);
    }

    #[test]
    fn the_first_answer_of_a_burst_is_called_for() {
        let start = Instant::now();
        let late = start + TIME_MAX - GAP_MIN;
        assert_eq!(calls(&mut called(false, false, start), late, 16, 1, true), [1]);
        assert_eq!(calls(&mut Calling::default(), start, 16, 1, true), [1], "and the first of all");
    }
}
