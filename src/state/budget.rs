//! How many descriptors the objects of the guest may hold together: its open files, its inodes that are kept as
//! descriptors, its locks, and what is kept open because it was used recently. One count for all, so that each takes what
//! it needs. Whoever closes such a descriptor gives its place back.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The count.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    max: usize,
}

/// Places that were taken for descriptors and whose owner is not there yet; given back when this is dropped.
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

    /// How many there are.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Takes `count` places, if `spare` others stay free.
    pub fn reserve(&self, count: usize, spare: usize) -> Option<Reserved<'_>> {
        let room = |held: usize| held.checked_add(count).filter(|sum| sum.saturating_add(spare) <= self.max);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        Some(Reserved { budget: self, count })
    }

    /// Takes one place, also where none is left: for what there is once in each session.
    pub fn take_one(&self) -> Reserved<'_> {
        self.held.fetch_add(1, Ordering::Relaxed);
        Reserved { budget: self, count: 1 }
    }

    /// Gives `count` places back.
    pub fn give(&self, count: usize) {
        let before = self.held.fetch_sub(count, Ordering::Relaxed);
        debug_assert!(before >= count, "more places were given back than taken");
    }
}

impl Reserved<'_> {
    /// Leaves the places to an owner, who gives them back by [`Budget::give`].
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
        budget.take_one().keep();
        budget.give(8);
        assert!(budget.reserve(10, 0).is_some());
        assert!(budget.reserve(usize::MAX, 0).is_none() && budget.reserve(1, usize::MAX).is_none());
    }
}
