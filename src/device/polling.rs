//! Polling: whether and how long a leader looks at its ring before it sleeps. Knows nothing of rings, requests or threads.
//!
//! A sleep costs both sides: the guest's kick, two system calls here, and on most hosts 20 to 100 us until a thread runs again on
//! another CPU. A leader whose guest sends requests close together therefore looks at the avail index for a short time first. By
//! default it does so only where that has been seen to help (`docs/decisions/0010`).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest look with [`PollTime::Auto`]. About what a sleep and a wake-up on another CPU cost: an unlucky look costs no more than
/// the sleep that it was to save.
const AUTO_WINDOW: Duration = Duration::from_micros(50);
/// Sleeps without a look at most, after looks in vain: one in so many tries again.
const SKIPS_MAX: u32 = 4096;
/// A step of the clock, within a look, that is longer than an interrupt or a short wake-up takes: another thread had this CPU.
const PREEMPTED_MIN: Duration = Duration::from_micros(200);
/// How long nothing is polled after that. A time slice is about 3 ms, so polling costs that other thread a few per cent.
const PREEMPTED_PAUSE: Duration = Duration::from_millis(100);

/// `--poll-us`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PollTime {
    /// Up to 50 us, where requests come close together and there is a CPU to spare.
    #[default]
    Auto,
    /// This long before each sleep; zero for never.
    Fixed(Duration),
}

/// How long a look may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    time: Duration,
    /// It ends where another thread had this CPU.
    gives_way: bool,
}

/// How a look ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// There is something to do.
    Found,
    /// The time was over.
    Nothing,
    /// Another thread had this CPU meanwhile.
    Preempted,
}

/// Decides when the leader of one queue polls. Kept under the queue's lock.
#[derive(Debug, Default)]
pub(super) struct Polling {
    /// Sleeps that follow without a look, and how many there were after the last look in vain.
    skips_left: u32,
    skips: u32,
    paused_until: Option<Instant>,
}

impl Polling {
    /// How long to look before this sleep; `None` for not at all.
    pub fn window(&mut self, time: PollTime, now: impl FnOnce() -> Instant) -> Option<Window> {
        match time {
            PollTime::Fixed(time) => (!time.is_zero()).then_some(Window { time, gives_way: false }),
            PollTime::Auto if self.skips_left > 0 => {
                self.skips_left -= 1;
                None
            }
            PollTime::Auto => {
                if self.paused_until.is_some_and(|until| now() < until) {
                    return None;
                }
                self.paused_until = None;
                Some(Window { time: AUTO_WINDOW, gives_way: true })
            }
        }
    }

    /// Learns how a look ended. Looks in vain make the next ones rare, twice as rare each time; one that finds something makes all
    /// of them worth it again.
    pub fn note(&mut self, look: Look, now: Instant) {
        match look {
            Look::Found => self.skips = 0,
            Look::Nothing => {
                self.skips = (self.skips * 2).clamp(1, SKIPS_MAX);
                self.skips_left = self.skips;
            }
            Look::Preempted => self.paused_until = Some(now + PREEMPTED_PAUSE),
        }
    }
}

/// Leaders that look at their rings at the same time, at most as many as there are CPUs to spare for that. They are counted only
/// where there are more threads than that: each look would write to a cache line of all queues otherwise.
#[derive(Debug)]
pub(super) struct Lookers {
    count: AtomicUsize,
    threads: AtomicUsize,
    max: usize,
}

/// A thread that may look, until this is dropped.
#[derive(Debug)]
pub(super) struct Seat<'l>(&'l Lookers);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lookers {
    /// One of the `cpus` is left to the guest, but where this process may use only one: the guest then may have another one.
    pub fn of_cpus(cpus: u16) -> Lookers {
        let cpus = usize::from(cpus);
        Lookers { count: AtomicUsize::new(0), threads: AtomicUsize::new(0), max: cpus.saturating_sub(1).max(1) }
    }

    /// To be called by each thread that will look.
    pub fn enter(&self) -> Seat<'_> {
        self.threads.fetch_add(1, Ordering::Relaxed);
        Seat(self)
    }

    /// Whether all threads may look at the same time.
    fn has_room_for_all(&self) -> bool {
        self.threads.load(Ordering::Relaxed) <= self.max
    }

    /// Whether there may be one more.
    pub fn has_room(&self) -> bool {
        self.has_room_for_all() || self.count.load(Ordering::Relaxed) < self.max
    }

    /// Looks, if there may be one more: calls `is_ready` until it is true, for `window` at most. `None` where there may not be. The time
    /// at the end is the second result.
    pub fn look(&self, window: Window, is_ready: impl FnMut() -> bool) -> Option<(Look, Instant)> {
        if self.has_room_for_all() {
            return Some(spin(window, is_ready, Instant::now));
        }
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let ended = spin(window, is_ready, Instant::now);
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(ended)
    }
}

/// Calls `is_ready` until it is true or `window` is over.
fn spin(window: Window, mut is_ready: impl FnMut() -> bool, mut now: impl FnMut() -> Instant) -> (Look, Instant) {
    let began = now();
    let mut last = began;
    loop {
        if is_ready() {
            return (Look::Found, last);
        }
        std::hint::spin_loop();
        let time = now();
        if window.gives_way && time.saturating_duration_since(last) > PREEMPTED_MIN {
            return (Look::Preempted, time);
        }
        if time.saturating_duration_since(began) > window.time {
            return (Look::Nothing, time);
        }
        last = time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTO: PollTime = PollTime::Auto;

    fn looks(polling: &mut Polling, sleeps: u32, now: Instant, mut outcome: impl FnMut() -> Look) -> u32 {
        let mut looks = 0;
        for _ in 0..sleeps {
            if polling.window(AUTO, || now).is_some() {
                looks += 1;
                polling.note(outcome(), now);
            }
        }
        looks
    }

    #[test]
    fn looks_that_find_something_go_on_and_looks_in_vain_become_rare() {
        let (mut polling, now) = (Polling::default(), Instant::now());
        assert_eq!(looks(&mut polling, 1000, now, || Look::Found), 1000);
        // 1 + 2 + 4 + ... sleeps without a look, and one in 4096 after that.
        assert_eq!(looks(&mut polling, 8000, now, || Look::Nothing), 13);
        assert_eq!(looks(&mut polling, 409_700, now, || Look::Nothing), 100);
        assert!(looks(&mut polling, SKIPS_MAX + 1, now, || Look::Found) > 0, "the guest has become busy");
        assert_eq!(looks(&mut polling, 1000, now, || Look::Found), 1000);
    }

    #[test]
    fn nothing_is_polled_for_a_while_after_another_thread_had_the_cpu() {
        let (mut polling, now) = (Polling::default(), Instant::now());
        assert_eq!(looks(&mut polling, 100, now, || Look::Preempted), 1);
        assert_eq!(looks(&mut polling, 100, now + PREEMPTED_PAUSE / 2, || Look::Found), 0);
        assert_eq!(looks(&mut polling, 100, now + PREEMPTED_PAUSE, || Look::Found), 100);
    }

    #[test]
    fn a_fixed_time_is_used_before_each_sleep_and_zero_is_never() {
        let (mut polling, now) = (Polling::default(), Instant::now());
        for us in [0, 1, 20, 1000] {
            let time = Duration::from_micros(us);
            for _ in 0..10 {
                polling.note(Look::Nothing, now);
                let expected = (us > 0).then_some(Window { time, gives_way: false });
                assert_eq!(polling.window(PollTime::Fixed(time), || now), expected);
            }
        }
    }

    #[test]
    fn one_cpu_is_left_to_the_guest() {
        for (cpus, max) in [(1, 1), (2, 1), (4, 3)] {
            let lookers = Lookers::of_cpus(cpus);
            fn nest(lookers: &Lookers) -> usize {
                let mut deeper = 0;
                let looked = lookers.look(Window { time: Duration::from_secs(1), gives_way: false }, || {
                    deeper = nest(lookers);
                    true
                });
                looked.map_or(0, |_| deeper + 1)
            }
            let seats: Vec<_> = (0..=max).map(|_| lookers.enter()).collect();
            assert_eq!(nest(&lookers), max, "{cpus} CPUs");
            assert_eq!(nest(&lookers), max, "they are given back");
            drop(seats);
            let _seat = lookers.enter();
            assert!(
                lookers.look(Window { time: Duration::ZERO, gives_way: false }, || lookers.count.load(Ordering::Relaxed) == 0).is_some()
            );
        }
    }

    #[test]
    fn a_look_ends_with_the_time_or_at_a_step_of_the_clock() {
        let began = Instant::now();
        let clock = |step: Duration| {
            let mut time = began;
            move || {
                time += step;
                time
            }
        };
        let (time, step) = (Duration::from_micros(50), Duration::from_micros(1));
        let window = Window { time, gives_way: true };
        assert_eq!(spin(window, || false, clock(step)), (Look::Nothing, began + time + 2 * step));
        let mut calls = 0;
        let found = || {
            calls += 1;
            calls == 3
        };
        assert_eq!(spin(window, found, clock(step)).0, Look::Found);
        let long = |gives_way| Window { time: Duration::from_secs(1), gives_way };
        assert_eq!(spin(long(true), || false, clock(PREEMPTED_MIN + step)).0, Look::Preempted);
        assert_eq!(spin(long(false), || false, clock(PREEMPTED_MIN + step)).0, Look::Nothing);
    }
}
