//! The limit of descriptors that are held for a guest: open files, inodes that are kept as descriptors, locks, and recently used
//! files. One count for all. Closing such a descriptor returns its place to the budget.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The count.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    max: usize,
}

/// Places for descriptors that are about to be opened. Dropping it returns them.
#[derive(Debug)]
pub struct Reserved<'b> {
    budget: &'b Budget,
    count: usize,
}

impl Budget {
    /// A budget of `max` descriptors.
    pub fn new(max: usize) -> Budget {
        Budget { held: AtomicUsize::new(0), max }
    }

    /// The limit.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Places that are taken.
    #[cfg(feature = "failpoints")]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes `count` places. `None` where fewer than `spare` would then be free.
    pub fn reserve(&self, count: usize, spare: usize) -> Option<Reserved<'_>> {
        let room = |held: usize| held.checked_add(count).filter(|sum| sum.saturating_add(spare) <= self.max);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        Some(Reserved { budget: self, count })
    }

    /// Takes `count` places, even where none is free: for descriptors that are open, and one that each session needs.
    pub fn take(&self, count: usize) -> Reserved<'_> {
        self.held.fetch_add(count, Ordering::Relaxed);
        Reserved { budget: self, count }
    }

    /// Returns `count` places.
    pub fn give(&self, count: usize) {
        let before = self.held.fetch_sub(count, Ordering::Relaxed);
        debug_assert!(before >= count, "more places are returned than were taken");
    }
}

impl Reserved<'_> {
    /// Keeps the places taken; the caller returns them later with [`Budget::give`].
    pub fn keep(mut self) {
        self.count = 0;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.count > 0 {
            self.budget.give(self.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_until_none_is_left_and_those_to_spare_are_kept() {
        let budget = Budget::new(10);
        budget.reserve(6, 0).unwrap().keep();
        assert!(budget.reserve(3, 2).is_none(), "two must stay");
        let three = budget.reserve(3, 1).unwrap();
        assert!(budget.reserve(2, 0).is_none());
        budget.reserve(1, 0).unwrap().keep();
        assert!(budget.reserve(1, 0).is_none());
        drop(three);
        assert!(budget.reserve(3, 0).is_some(), "what was not kept is given back");
        budget.take(1).keep();
        budget.give(8);
        assert!(budget.reserve(10, 0).is_some());
        assert!(budget.reserve(usize::MAX, 0).is_none() && budget.reserve(1, usize::MAX).is_none());
    }
}
