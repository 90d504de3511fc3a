//! Which slots of a table are free. Derived from the records: a walk over them rebuilds it.

use parking_lot::Mutex;

/// Every slot is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the table is full")]
pub struct TableFull;

/// The free slots: those freed before, last freed first, then those never used.
#[derive(Debug)]
pub struct Slots {
    count: u32,
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    freed: Vec<u32>,
    never_used: u32,
}

impl Slots {
    /// Slots `first` to `count - 1`, all free.
    pub fn new(first: u32, count: u32) -> Slots {
        Slots { count, free: Mutex::new(Free { freed: Vec::new(), never_used: first }) }
    }

    /// Takes a free slot.
    pub fn take(&self) -> Result<u32, TableFull> {
        let mut free = self.free.lock();
        if let Some(slot) = free.freed.pop() {
            return Ok(slot);
        }
        if free.never_used == self.count {
            return Err(TableFull);
        }
        free.never_used += 1;
        Ok(free.never_used - 1)
    }

    /// Gives a slot back.
    pub fn give(&self, slot: u32) {
        self.free.lock().freed.push(slot);
    }

    /// One more than the highest slot that was ever taken: a walk ends here.
    pub fn end(&self) -> u32 {
        self.free.lock().never_used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_slots_are_taken_again_before_new_ones_and_the_end_is_an_error() {
        let slots = Slots::new(1, 4);
        assert_eq!((slots.take(), slots.take()), (Ok(1), Ok(2)));
        slots.give(1);
        assert_eq!((slots.take(), slots.take(), slots.take()), (Ok(1), Ok(3), Err(TableFull)));
        assert_eq!(slots.end(), 4);
    }
}
