//! Counters in lanes: each thread counts in cache lines of its own, so that threads of different queues do not wait for one
//! another's lines, and by a load and a store instead of an atomic addition. Does not know what is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Lanes that belong to one thread at a time: one for each request queue, whose leader makes most of the requests. The threads
/// beyond them share another lane.
const OWNED: usize = 64;
/// The shared lane.
const SHARED: usize = OWNED;

/// Counters of a cell.
const CELL_LEN: usize = 16;

/// Two cache lines, because the processor may fetch the neighbour of a line with it.
#[repr(align(128))]
#[derive(Debug)]
struct Cell([AtomicU64; CELL_LEN]);

impl Cell {
    fn new() -> Cell {
        Cell(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// A number of counters, each in all lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Lane after lane.
    cells: Box<[Cell]>,
    /// Cells of a lane.
    lane_len: usize,
}

impl Lanes {
    /// `count` counters at 0.
    pub fn new(count: usize) -> Arc<Lanes> {
        let lane_len = count.div_ceil(CELL_LEN);
        Arc::new(Lanes { cells: (0..(OWNED + 1) * lane_len).map(|_| Cell::new()).collect(), lane_len })
    }

    #[inline]
    fn at(&self, lane: usize, number: usize) -> Option<&AtomicU64> {
        let cell = self.cells.get(lane * self.lane_len + number / CELL_LEN)?;
        Some(&cell.0[number % CELL_LEN])
    }

    /// Adds `n` to counter `number`.
    #[inline]
    pub fn add(&self, number: usize, n: u64) {
        let lane = lane();
        let Some(counter) = self.at(lane, number) else { return };
        if lane == SHARED {
            counter.fetch_add(n, Ordering::Relaxed);
        } else {
            // No other thread writes to it.
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    /// Counter `number`.
    pub fn sum(&self, number: usize) -> u64 {
        let of_lane = |lane| self.at(lane, number).map_or(0, |counter| counter.load(Ordering::Relaxed));
        (0..=SHARED).map(of_lane).fold(0, u64::wrapping_add)
    }
}

/// The owned lanes that no thread has.
static FREE: Mutex<Free> = Mutex::new(Free { begun: 0, returned: Vec::new() });

struct Free {
    /// Lanes from here on were never taken.
    begun: usize,
    returned: Vec<usize>,
}

/// The lane of a thread, until it ends. The lock orders what one owner counted before what the next one does.
struct Owned(usize);

impl Owned {
    fn take() -> Owned {
        let free = &mut *FREE.lock();
        Owned(free.returned.pop().unwrap_or_else(|| {
            let lane = free.begun;
            free.begun = (lane + 1).min(SHARED);
            lane
        }))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.0 != SHARED {
            FREE.lock().returned.push(self.0);
        }
    }
}

thread_local! {
    static LANE: Owned = Owned::take();
}

/// The lane of this thread; the shared one while the thread ends.
#[inline]
fn lane() -> usize {
    LANE.try_with(|owned| owned.0).unwrap_or(SHARED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_whatever_the_number_of_threads() {
        const COUNT: usize = CELL_LEN + 3;
        let lanes = Lanes::new(COUNT);
        let barrier = std::sync::Barrier::new(OWNED + 40);
        // More threads at once than there are lanes of their own, twice, so that lanes are used again.
        for round in 1..=2u64 {
            std::thread::scope(|scope| {
                for _ in 0..OWNED + 40 {
                    scope.spawn(|| {
                        lanes.add(0, 1);
                        barrier.wait();
                        (0..1000).for_each(|_| lanes.add(COUNT - 1, 2));
                    });
                }
            });
            assert_eq!((lanes.sum(0), lanes.sum(1), lanes.sum(COUNT - 1)), (round * 104, 0, round * 208_000));
        }
        lanes.add(COUNT + CELL_LEN * (OWNED + 1) * 2, 1);
    }

    #[test]
    fn two_threads_count_in_different_lines() {
        let first = lane();
        assert_eq!(lane(), first, "one lane a thread");
        let second = std::thread::spawn(lane).join().unwrap();
        assert!(first != second || first == SHARED);
        let lanes = Lanes::new(1);
        let address = |lane| std::ptr::from_ref(lanes.at(lane, 0).unwrap()).addr();
        assert!(address(1) - address(0) >= 128 && address(0).is_multiple_of(128));
    }
}
