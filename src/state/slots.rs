//! The free slots of a table. The allocator is not stored in the arena.
//!
//! Slots are grouped in blocks. The next slot comes from the lowest block with a free one, so that after many inodes were
//! forgotten, new ones fill the low blocks, and the memory of whole blocks can be returned to the host.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// Every slot of the table is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the table is full")]
pub struct TableFull;

/// Slots of a block: 256 KiB of inode records. The system call that returns their memory is then rare.
pub const BLOCK: u32 = 2048;

/// The most blocks that are kept for idle slots only: 32 MiB of inode records, four times what the idle ones take side by side.
pub const IDLE_BLOCKS_MAX: usize = 128;

/// The free slots of a table. Slot 0 is never taken.
#[derive(Debug)]
pub struct Slots {
    count: u32,
    /// The end of the last block in `Free::blocks`: a slot at or above it was not taken since its block was removed.
    end: AtomicU32,
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    /// The blocks up to the highest one that is in use.
    blocks: Vec<Block>,
    /// The numbers of the blocks with a free slot.
    open: BTreeSet<u32>,
    /// The numbers of the blocks of which every taken slot is idle.
    idle: BTreeSet<u32>,
    /// The block without a taken slot that keeps its memory, so that a guest that takes and frees one slot causes no system calls.
    spare: Option<u32>,
    /// The highest generation with which a free slot is to be taken.
    generation_max: u32,
}

#[derive(Debug, Default)]
struct Block {
    /// Slots that were freed, relative to the block's first. The last one is taken first.
    freed: Vec<u16>,
    /// The first slot that was not taken since the block's memory was returned. Slots from here on have no memory.
    fresh: u16,
    /// Slots that are taken.
    taken: u16,
    /// Those of them that are idle.
    idle: u16,
}

/// What [`Slots::rebuilt`] finds in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotUse {
    /// Nothing; to be taken with this generation.
    Free(u32),
    /// A record.
    Taken,
    /// A record that could be freed.
    Idle,
}

impl Slots {
    /// Slots 1 to `count - 1`, all free.
    pub fn new(count: u32) -> Slots {
        // Slot 0 counts as taken.
        let first = Block { fresh: 1, taken: 1, ..Block::default() };
        let free = Free { blocks: vec![first], open: BTreeSet::from([0]), idle: BTreeSet::new(), spare: None, generation_max: 0 };
        Slots { count, end: AtomicU32::new(BLOCK.min(count)), free: Mutex::new(free) }
    }

    /// Free slots are to be taken with `generation`, which no slot has had.
    pub fn begin_at(&self, generation: u32) {
        self.free.lock().generation_max = generation;
    }

    /// The slots of a table that was attached: `used`, ascending, are those that were taken since their block's memory was
    /// returned. Calls `let_go` as [`Slots::give`] does. Free slots are to be taken with `generation`, or a later one.
    pub fn rebuilt(
        count: u32,
        generation: u32,
        used: impl Iterator<Item = (u32, SlotUse)>,
        mut let_go: impl FnMut(Range<u32>, u32),
    ) -> Slots {
        let slots = Slots::new(count);
        let mut locked = slots.free.lock();
        let free = &mut *locked;
        free.generation_max = generation;
        for (slot, slot_use) in used.filter(|(slot, _)| (1..count).contains(slot)) {
            while free.block_count() <= slot / BLOCK {
                free.blocks.push(Block::default());
            }
            let block = &mut free.blocks[(slot / BLOCK) as usize];
            // A slot that was never used lies between those that were, where a process died after it had taken the slot.
            block.freed.extend(block.fresh..within_block(slot));
            block.fresh = within_block(slot) + 1;
            match slot_use {
                SlotUse::Free(generation) => {
                    block.freed.push(within_block(slot));
                    free.generation_max = free.generation_max.max(generation);
                }
                SlotUse::Taken => block.taken += 1,
                SlotUse::Idle => (block.taken, block.idle) = (block.taken + 1, block.idle + 1),
            }
        }
        for number in 0..free.block_count() {
            let first = number * BLOCK;
            let is_spare = free.spare.is_none();
            let block = &mut free.blocks[number as usize];
            if block.taken == 0 && block.fresh > 0 {
                if is_spare {
                    free.spare = Some(number);
                } else {
                    let_go(first..(first + BLOCK).min(count), free.generation_max);
                    *block = Block::default();
                }
            }
            // The lowest one is taken first.
            block.freed.reverse();
            if block.taken > 0 && block.idle == block.taken {
                free.idle.insert(number);
            }
            if !block.freed.is_empty() || u32::from(block.fresh) < BLOCK {
                free.open.insert(number);
            } else {
                free.open.remove(&number);
            }
        }
        slots.drop_end(free);
        drop(locked);
        slots
    }

    /// Takes a free slot. [`TableFull`] where there is none.
    pub fn take(&self) -> Result<u32, TableFull> {
        let free = &mut *self.free.lock();
        let number = match free.open.first() {
            Some(&number) => number,
            None => self.add_block(free)?,
        };
        let first = number * BLOCK;
        let block = free.blocks.get_mut(number as usize).ok_or(TableFull)?;
        let within = match block.freed.pop() {
            Some(within) => within,
            None if first + u32::from(block.fresh) < self.count => {
                block.fresh += 1;
                block.fresh - 1
            }
            None => return Err(TableFull),
        };
        block.taken += 1;
        let has_idle = block.idle > 0;
        if block.freed.is_empty() && u32::from(block.fresh) == BLOCK {
            free.open.remove(&number);
        }
        if free.spare == Some(number) {
            free.spare = None;
        }
        if has_idle {
            free.idle.remove(&number);
        }
        Ok(first + u32::from(within))
    }

    fn add_block(&self, free: &mut Free) -> Result<u32, TableFull> {
        let number = free.block_count();
        let first = number * BLOCK;
        if first >= self.count {
            return Err(TableFull);
        }
        free.blocks.push(Block::default());
        free.open.insert(number);
        self.end.store((first + BLOCK).min(self.count), Ordering::Release);
        Ok(number)
    }

    /// Frees `slot`, which is to be taken with `generation` next. Where that leaves a second block without a taken slot, calls
    /// `let_go` with the slots of the higher one and a generation that none of them has had. No slot can be taken before `let_go`
    /// returns.
    pub fn give(&self, slot: u32, generation: u32, let_go: impl FnOnce(Range<u32>, u32)) {
        let free = &mut *self.free.lock();
        let number = slot / BLOCK;
        let Some(block) = free.blocks.get_mut(number as usize) else { return };
        free.generation_max = free.generation_max.max(generation);
        block.freed.push(within_block(slot));
        block.taken -= 1;
        let (taken, idle) = (block.taken, block.idle);
        free.open.insert(number);
        if taken > 0 {
            if idle == taken {
                free.idle.insert(number);
            }
            return;
        }
        let Some(spare) = free.spare.replace(number) else { return };
        // The lower block keeps its memory, because its slots are taken first.
        let emptied = spare.max(number);
        free.spare = Some(spare.min(number));
        let first = emptied * BLOCK;
        let_go(first..(first + BLOCK).min(self.count), free.generation_max);
        free.blocks[emptied as usize] = Block::default();
        self.drop_end(free);
    }

    /// Marks the taken `slot` as idle or not: an idle one could be freed, and is no longer idle when it is. Returns the slots of the
    /// highest block in which every taken slot is idle, where there are more than [`IDLE_BLOCKS_MAX`] of these.
    pub fn set_idle(&self, slot: u32, idle: bool) -> Option<Range<u32>> {
        let free = &mut *self.free.lock();
        let number = slot / BLOCK;
        let block = free.blocks.get_mut(number as usize)?;
        if !idle {
            block.idle -= 1;
            free.idle.remove(&number);
            return None;
        }
        block.idle += 1;
        if block.idle == block.taken {
            free.idle.insert(number);
        }
        let highest = free.idle.last().filter(|_| free.idle.len() > IDLE_BLOCKS_MAX)?;
        Some(highest * BLOCK..highest.saturating_add(1).saturating_mul(BLOCK).min(self.count))
    }

    /// Removes the last blocks as long as no slot of them was taken since their memory was returned.
    fn drop_end(&self, free: &mut Free) {
        while free.blocks.last().is_some_and(|block| block.fresh == 0) {
            free.blocks.pop();
            free.open.remove(&free.block_count());
        }
        self.end.store((free.block_count() * BLOCK).min(self.count), Ordering::Release);
    }

    /// Whether `slot` may be taken now. A guest may send any slot number, and an access to a record beyond the last block would
    /// allocate memory for it.
    pub fn may_be_taken(&self, slot: u32) -> bool {
        slot < self.end.load(Ordering::Acquire)
    }

    /// All slots that are taken, and some of the free ones.
    pub fn taken(&self) -> impl Iterator<Item = u32> + use<> {
        let ranges: Vec<Range<u32>> = {
            let free = self.free.lock();
            let blocks = (0..).step_by(BLOCK as usize).zip(&free.blocks);
            blocks.filter(|(_, block)| block.taken > 0).map(|(first, block)| first..first + u32::from(block.fresh)).collect()
        };
        ranges.into_iter().flatten().filter(|slot| *slot > 0)
    }
}

impl Free {
    fn block_count(&self) -> u32 {
        // A block has 2048 of at most 2^32 slots.
        u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)
    }
}

/// The position of `slot` in its block.
fn within_block(slot: u32) -> u16 {
    const { assert!(BLOCK <= 1 << 16) };
    (slot % BLOCK) as u16
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn keeps(range: Range<u32>, _: u32) {
        panic!("the memory of {range:?} was returned");
    }

    #[test]
    fn freed_slots_are_taken_again_before_new_ones_and_the_end_is_an_error() {
        let slots = Slots::new(4);
        assert_eq!((slots.take(), slots.take()), (Ok(1), Ok(2)));
        slots.give(1, 1, keeps);
        assert_eq!((slots.take(), slots.take(), slots.take()), (Ok(1), Ok(3), Err(TableFull)));
        assert_eq!(slots.taken().collect::<Vec<_>>(), [1, 2, 3]);
        assert!(slots.may_be_taken(3) && !slots.may_be_taken(4));
    }

    #[test]
    fn a_slot_at_the_border_of_a_block_that_comes_and_goes_lets_nothing_go() {
        let slots = Slots::new(10 * BLOCK);
        for slot in 1..BLOCK {
            assert_eq!(slots.take(), Ok(slot));
        }
        for generation in 1..100 {
            assert_eq!(slots.take(), Ok(BLOCK));
            slots.give(BLOCK, generation, keeps);
        }
    }

    #[test]
    fn of_too_many_blocks_with_idle_slots_only_the_highest_is_to_be_freed() {
        let blocks = u32::try_from(IDLE_BLOCKS_MAX).unwrap() + 2;
        let slots = Slots::new((blocks + 1) * BLOCK);
        while slots.take().unwrap() < blocks * BLOCK {}
        (1..blocks * BLOCK).filter(|slot| slot % BLOCK > 0).for_each(|slot| slots.give(slot, 1, keeps));
        let mut firsts = (1..=blocks).map(|block| block * BLOCK);
        for first in firsts.by_ref().take(IDLE_BLOCKS_MAX) {
            assert_eq!(slots.set_idle(first, true), None);
        }
        let (next, last) = (firsts.next().unwrap(), firsts.next().unwrap());
        assert_eq!(slots.set_idle(next, true), Some(next..next + BLOCK));
        assert_eq!(slots.set_idle(last, true), Some(last..last + BLOCK));
        assert_eq!(slots.set_idle(last, false), None);
        for slot in [BLOCK, next] {
            slots.set_idle(slot, false);
        }
        assert_eq!(slots.set_idle(last, true), None, "as many as are kept");
    }

    #[test]
    fn a_table_that_was_attached_goes_on_where_it_was() {
        let used = [
            (1, SlotUse::Taken),
            (4, SlotUse::Free(9)),
            (5, SlotUse::Idle),
            (BLOCK, SlotUse::Free(70)),
            (3 * BLOCK + 1, SlotUse::Free(80)),
        ];
        let mut gone = Vec::new();
        let slots = Slots::rebuilt(10 * BLOCK, 50, used.into_iter(), |range, generation| gone.push((range, generation)));
        assert_eq!(gone, [(3 * BLOCK..4 * BLOCK, 80)], "one block without a record keeps its memory");
        let first: Vec<u32> = (0..4).map(|_| slots.take().unwrap()).collect();
        assert_eq!(first, [2, 3, 4, 6], "also slots that were taken by a process which died before it had written a record");
        assert!(slots.may_be_taken(2 * BLOCK - 1) && !slots.may_be_taken(2 * BLOCK));
        for slot in [1, 5] {
            slots.give(slot, 1, keeps);
        }
        assert_eq!([slots.take(), slots.take()], [Ok(5), Ok(1)]);
    }

    proptest! {
        #[test]
        fn rebuilt_slots_are_those_that_were(
            count in 1u32..4 * BLOCK,
            taken in prop::collection::btree_set(1u32..4 * BLOCK, 0..300),
            freed in prop::collection::btree_set(1u32..4 * BLOCK, 0..300),
        ) {
            let used = |slot: &u32| (*slot, if taken.contains(slot) { SlotUse::Taken } else { SlotUse::Free(3) });
            let all: BTreeSet<u32> = taken.union(&freed).copied().collect();
            let slots = Slots::rebuilt(count, 0, all.iter().map(used), |range, _| {
                assert_eq!(taken.range(range.clone()).count(), 0, "{range:?} let go");
            });
            let mut found = BTreeSet::new();
            while let Ok(slot) = slots.take() {
                prop_assert!(slot > 0 && slot < count && found.insert(slot), "{} twice", slot);
            }
            let expected: BTreeSet<u32> = (1..count).filter(|slot| !taken.contains(slot)).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_slot_is_taken_twice_and_what_is_let_go_is_free(
            count in 1u32..6 * BLOCK,
            // Long runs, so that blocks fill and empty.
            runs in prop::collection::vec((0..3, 1usize..5000, any::<u64>()), 1..12),
        ) {
            let slots = Slots::new(count);
            // Whether each is idle.
            let mut taken: BTreeMap<u32, bool> = BTreeMap::new();
            for (what, len, seed) in runs {
                let mut random = seed | 1;
                for _ in 0..len {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    if what == 0 {
                        match slots.take() {
                            Ok(slot) => {
                                prop_assert!(slot > 0 && slot < count && slots.may_be_taken(slot));
                                prop_assert!(taken.insert(slot, false).is_none(), "{} twice", slot);
                            }
                            Err(TableFull) => prop_assert_eq!(taken.len() as u32, count - 1),
                        }
                        continue;
                    }
                    let Some((&slot, &idle)) = taken.range((random >> 33) as u32 % count..).next().or(taken.first_key_value()) else { break };
                    if what == 1 || idle {
                        slots.set_idle(slot, !idle);
                        taken.insert(slot, !idle);
                    }
                    if what == 2 {
                        taken.remove(&slot);
                        let mut gone = 0..0;
                        slots.give(slot, 1, |range, _| gone = range);
                        prop_assert_eq!(taken.range(gone.clone()).count(), 0, "{:?} let go", gone);
                    }
                }
                let idle_only = |block: &u32| {
                    let mut within = taken.range(block * BLOCK..(block + 1) * BLOCK).peekable();
                    // Slot 0 counts as taken.
                    *block > 0 && within.peek().is_some() && within.all(|(_, idle)| *idle)
                };
                prop_assert_eq!(slots.free.lock().idle.clone(), (0..6).filter(idle_only).collect::<BTreeSet<u32>>());
                let listed: Vec<u32> = slots.taken().collect();
                prop_assert!(taken.keys().all(|slot| listed.binary_search(slot).is_ok()));
                prop_assert!(listed.len() <= taken.len().next_multiple_of(BLOCK as usize) + 6 * BLOCK as usize);
            }
        }
    }
}
