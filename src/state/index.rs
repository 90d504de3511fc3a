//! The index of inode records: which record has a key. The records of a bucket are a chain through the records themselves, and the
//! buckets are in the arena, so nothing is allocated on the heap. Does not know what a key means, nor when a record is free.
//!
//! Linear hashing: buckets are added and removed one at a time, as records come and go. An insertion or a removal moves the records
//! of a few buckets at most, whatever the number of records, and memory follows it in both directions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::arena::{Arena, ArenaError, PAGE_LEN_MAX, Record, Records};

/// Parts of the index with a lock of their own: more than there are threads.
const SHARDS: u32 = 64;
/// Buckets are added up to this many for each record: 8 bytes a record, and one lookup in four or so reads a second record.
const BUCKETS_WANTED: u32 = 2;
/// Buckets are removed down to this many for each record. More than are added, so that a file that is looked up and forgotten in
/// turn moves nothing.
const BUCKETS_KEPT: u32 = 4;
/// Buckets that a shard always has. Those of all shards are in 16 KiB, so that a guest with few files does not take a page for each
/// shard.
const FIRST_BUCKETS: u32 = 64;

/// Device, inode number and mount of a file; a later file may have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// Device: major in the upper half, minor in the lower.
    pub device: u64,
    /// Inode number.
    pub ino: u64,
    /// Mount: one file seen through two mounts is two nodes, as the mounts may differ in options.
    pub mount_id: u64,
}

impl FileKey {
    /// The shard, and the hash within it.
    #[expect(clippy::cast_possible_truncation, reason = "6 bits, and the 32 below them")]
    fn place(&self) -> (u32, u32) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        // A multiplication mixes upwards only: the upper half is folded down and mixed again.
        let mixed = (self.ino ^ self.device.rotate_left(17) ^ self.mount_id.rotate_left(40)).wrapping_mul(ODD);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(ODD);
        ((mixed >> 58) as u32, (mixed >> 26) as u32)
    }
}

/// A record that the index can have.
pub trait Chained: Record {
    /// Its key. Does not change while the index has the record.
    fn key(&self) -> FileKey;
    /// The slot of the next record of its chain, 0 at the end. The index's own.
    fn next(&self) -> &AtomicU32;
}

/// The index.
#[derive(Debug)]
pub struct Index {
    /// The slot of the first record of each chain, 0 where there is none.
    buckets: Records<Bucket>,
    shards: [Shard; SHARDS as usize],
    /// The most buckets of a shard.
    buckets_max: u32,
}

/// The slot of the first record of a chain, 0 where there is none.
#[derive(Debug)]
#[repr(transparent)]
struct Bucket(AtomicU32);

// SAFETY: an atomic integer.
unsafe impl Record for Bucket {
    const KIND: u32 = 2;
}

/// In a cache line of its own, so that threads do not wait for each other's lines.
#[derive(Debug)]
#[repr(align(64))]
struct Shard(Mutex<Size>);

#[derive(Debug)]
struct Size {
    records: u32,
    buckets: u32,
    /// Buckets from here on have no memory.
    touched: u32,
}

/// The part of the index that a key belongs to, locked.
#[derive(Debug)]
pub struct Locked<'i, R: Chained> {
    index: &'i Index,
    records: &'i Records<R>,
    size: MutexGuard<'i, Size>,
    key: FileKey,
    shard: u32,
    hash: u32,
}

fn shard_buckets_max(records_max: u32) -> u32 {
    (records_max / SHARDS).saturating_mul(BUCKETS_WANTED).max(FIRST_BUCKETS)
}

/// Bytes of the buckets for `records_max` records, in whole pages.
pub fn table_len(records_max: u32) -> usize {
    (bucket_count(records_max) as usize * size_of::<Bucket>()).next_multiple_of(PAGE_LEN_MAX)
}

fn bucket_count(records_max: u32) -> u32 {
    SHARDS * (shard_buckets_max(records_max) + FIRST_BUCKETS)
}

impl Index {
    /// An empty index of at most `records_max` records, with its buckets in `arena`, `offset` bytes after its header.
    pub fn new(arena: &Arc<Arena>, offset: usize, records_max: u32) -> Index {
        Index::of(arena.table(offset, bucket_count(records_max) as usize), records_max)
    }

    /// An empty index in place of the one in the attached `arena`, which may have been left in the middle of a change.
    /// [`ArenaError::Unusable`] where that is for another number of records.
    pub fn anew(arena: &Arc<Arena>, records_max: u32) -> Result<Index, ArenaError> {
        let buckets: Records<Bucket> = arena.attached_table()?;
        if buckets.count() != bucket_count(records_max) as usize {
            return Err(ArenaError::Unusable("the index is not that of the inodes"));
        }
        buckets.discard(0..bucket_count(records_max));
        // What was not in whole pages, or could not be returned.
        for bucket in buckets.with_memory()?.into_iter().flatten() {
            buckets.at(bucket).0.store(0, Ordering::Relaxed);
        }
        Ok(Index::of(buckets, records_max))
    }

    fn of(buckets: Records<Bucket>, records_max: u32) -> Index {
        let empty = || Shard(Mutex::new(Size { records: 0, buckets: FIRST_BUCKETS, touched: FIRST_BUCKETS }));
        Index { buckets, shards: std::array::from_fn(|_| empty()), buckets_max: shard_buckets_max(records_max) }
    }

    /// Gives an index without records the buckets that `records` of them take, so that their insertion moves none.
    pub fn make_room(&self, records: usize) {
        let of_shard = u32::try_from(records).unwrap_or(u32::MAX) / SHARDS;
        let buckets = of_shard.saturating_mul(BUCKETS_WANTED).clamp(FIRST_BUCKETS, self.buckets_max);
        for shard in &self.shards {
            let mut size = shard.0.lock();
            debug_assert_eq!(size.records, 0, "records would be in other buckets");
            (size.buckets, size.touched) = (buckets, buckets);
        }
    }

    /// Locks the part that `key` belongs to. `records` are those that the index was used with before.
    pub fn lock<'i, R: Chained>(&'i self, records: &'i Records<R>, key: &FileKey) -> Locked<'i, R> {
        let (shard, hash) = key.place();
        let size = self.shards[shard as usize].0.lock();
        Locked { index: self, records, size, key: *key, shard, hash }
    }

    /// The place of `bucket` of a shard. The first ones of all shards are together, behind the shards' own ranges.
    fn position(&self, shard: u32, bucket: u32) -> u32 {
        if bucket < FIRST_BUCKETS { SHARDS * self.buckets_max + shard * FIRST_BUCKETS + bucket } else { shard * self.buckets_max + bucket }
    }
}

/// The bit of a bucket's number that distinguishes it from the bucket that it is split from.
fn split_bit(bucket: u32) -> u32 {
    1 << bucket.ilog2()
}

impl<'i, R: Chained> Locked<'i, R> {
    fn bucket(&self, bucket: u32) -> &'i AtomicU32 {
        &self.index.buckets.at(self.index.position(self.shard, bucket)).0
    }

    /// The bucket of the key.
    fn own_bucket(&self) -> &'i AtomicU32 {
        let mask = self.size.buckets.next_power_of_two() - 1;
        let bucket = self.hash & mask;
        // A bucket that is not there yet was not split off.
        self.bucket(if bucket < self.size.buckets { bucket } else { bucket & mask >> 1 })
    }

    /// The record that `link` leads to, with its slot.
    fn follow(&self, link: &AtomicU32) -> Option<(u32, &'i R)> {
        let slot = link.load(Ordering::Relaxed);
        (slot != 0).then(|| (slot, self.records.at(slot)))
    }

    /// The slot of the record with the key.
    pub fn find(&self) -> Option<u32> {
        let mut link = self.own_bucket();
        while let Some((slot, record)) = self.follow(link) {
            if record.key() == self.key {
                return Some(slot);
            }
            link = record.next();
        }
        None
    }

    /// Adds the record of `slot`, which has the key, instead of the one that `find` finds.
    pub fn insert(&mut self, slot: u32) {
        if let Some(known) = self.find() {
            self.unlink(known);
        }
        let bucket = self.own_bucket();
        self.records.at(slot).next().store(bucket.load(Ordering::Relaxed), Ordering::Relaxed);
        bucket.store(slot, Ordering::Relaxed);
        self.size.records += 1;
        while self.size.buckets < self.size.records.saturating_mul(BUCKETS_WANTED).min(self.index.buckets_max) {
            self.add_bucket();
        }
    }

    /// Removes the record of `slot`, where `find` finds it.
    pub fn remove(&mut self, slot: u32) {
        if !self.unlink(slot) {
            return;
        }
        while self.size.buckets > self.size.records.saturating_mul(BUCKETS_KEPT).max(FIRST_BUCKETS) {
            self.remove_bucket();
        }
        self.return_memory();
    }

    fn unlink(&mut self, slot: u32) -> bool {
        let mut link = self.own_bucket();
        while let Some((at, record)) = self.follow(link) {
            if at == slot {
                link.store(record.next().load(Ordering::Relaxed), Ordering::Relaxed);
                self.size.records -= 1;
                return true;
            }
            link = record.next();
        }
        false
    }

    /// Adds a bucket. Its records move there from the bucket that it is split from.
    fn add_bucket(&mut self) {
        let added = self.size.buckets;
        let bit = split_bit(added);
        let mut link = self.bucket(added - bit);
        let mut moved = 0;
        while let Some((slot, record)) = self.follow(link) {
            if record.key().place().1 & bit == 0 {
                link = record.next();
            } else {
                link.store(record.next().load(Ordering::Relaxed), Ordering::Relaxed);
                record.next().store(moved, Ordering::Relaxed);
                moved = slot;
            }
        }
        self.bucket(added).store(moved, Ordering::Relaxed);
        self.size.buckets += 1;
        self.size.touched = self.size.touched.max(self.size.buckets);
    }

    /// Removes the last bucket. Its records move back to the bucket that it was split from.
    fn remove_bucket(&mut self) {
        let removed = self.size.buckets - 1;
        let mut end = self.bucket(removed - split_bit(removed));
        while let Some((_, record)) = self.follow(end) {
            end = record.next();
        }
        end.store(self.bucket(removed).swap(0, Ordering::Relaxed), Ordering::Relaxed);
        self.size.buckets = removed;
    }

    /// Returns the memory behind the page after the last bucket. One page stays, so that a number of records that goes up and down a
    /// little causes no system calls.
    fn return_memory(&mut self) {
        let page = self.index.buckets.per_page();
        let kept = self.size.buckets.next_multiple_of(page).saturating_add(page);
        if kept < self.size.touched {
            let first = self.shard * self.index.buckets_max;
            let end = self.size.touched.next_multiple_of(page).min(self.index.buckets_max);
            self.index.buckets.discard(first + kept..first + end);
            self.size.touched = kept;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::AtomicU64;

    use proptest::prelude::*;

    use super::*;

    const RECORDS_MAX: u32 = 1 << 15;

    #[repr(C)]
    #[derive(Debug)]
    struct Numbered {
        ino: AtomicU64,
        next: AtomicU32,
        unused: AtomicU32,
    }

    // SAFETY: every field is an atomic integer.
    unsafe impl Record for Numbered {}

    impl Chained for Numbered {
        fn key(&self) -> FileKey {
            file(self.ino.load(Ordering::Relaxed))
        }

        fn next(&self) -> &AtomicU32 {
            &self.next
        }
    }

    fn file(ino: u64) -> FileKey {
        FileKey { device: 8 << 32 | 1, ino, mount_id: 30 }
    }

    /// An index over records of a number each.
    struct Tables {
        arena: Arc<Arena>,
        records: Records<Numbered>,
        index: Index,
    }

    impl Tables {
        fn new(records_max: u32) -> Tables {
            let records_len = records_max as usize * size_of::<Numbered>();
            let arena = Arena::new(records_len + table_len(records_max)).unwrap();
            let records = arena.table(0, records_max as usize);
            Tables { index: Index::new(&arena, records_len, records_max), records, arena }
        }

        fn insert(&self, slot: u32, ino: u64) {
            let mut locked = self.index.lock(&self.records, &file(ino));
            self.records.at(slot).ino.store(ino, Ordering::Relaxed);
            locked.insert(slot);
        }

        fn find(&self, ino: u64) -> Option<u32> {
            self.index.lock(&self.records, &file(ino)).find()
        }

        fn remove(&self, slot: u32, ino: u64) {
            self.index.lock(&self.records, &file(ino)).remove(slot);
        }

        fn sizes(&self) -> (u32, u32) {
            self.index.shards.iter().map(|shard| shard.0.lock()).fold((0, 0), |(r, b), size| (r + size.records, b + size.buckets))
        }

        /// The length of the longest chain.
        fn longest(&self) -> usize {
            let shards =
                (0..SHARDS).flat_map(|shard| (0..self.index.shards[shard as usize].0.lock().buckets).map(move |bucket| (shard, bucket)));
            let len = |(shard, bucket)| {
                let mut slot = self.index.buckets.at(self.index.position(shard, bucket)).0.load(Ordering::Relaxed);
                std::iter::from_fn(|| {
                    let this = (slot != 0).then_some(slot)?;
                    slot = self.records.at(this).next.load(Ordering::Relaxed);
                    Some(this)
                })
                .count()
            };
            shards.map(len).max().unwrap()
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// Records of numbers from `first` on get a slot each.
        Add { first: u64, count: u64, stride: u64 },
        /// Records of every so many numbers are removed.
        Remove { every: u64, rest: u64 },
        /// A record of a number that may have one gets another slot.
        Replace { ino: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..4000, 1u64..6000, prop_oneof![Just(1), 1u64..8, Just(1 << 32), Just(1 << 50)])
                .prop_map(|(first, count, stride)| Step::Add { first, count, stride }),
            (1u64..6, any::<u64>()).prop_map(|(every, rest)| Step::Remove { every, rest: rest % every }),
            (0u64..4000).prop_map(|ino| Step::Replace { ino }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_finds_what_a_map_finds_while_it_grows_and_shrinks(steps in prop::collection::vec(step(), 1..12)) {
            let tables = Tables::new(RECORDS_MAX);
            let mut model: HashMap<u64, u32> = HashMap::new();
            let mut free: Vec<u32> = (1..RECORDS_MAX).collect();
            for step in steps {
                match step {
                    Step::Add { first, count, stride } => {
                        for ino in (0..count).map(|i| first.wrapping_add(i.wrapping_mul(stride))) {
                            if model.contains_key(&ino) {
                                continue;
                            }
                            let Some(slot) = free.pop() else { break };
                            tables.insert(slot, ino);
                            model.insert(ino, slot);
                        }
                    }
                    Step::Remove { every, rest } => {
                        let gone: Vec<(u64, u32)> = model.iter().filter(|(ino, _)| *ino % every == rest).map(|(i, s)| (*i, *s)).collect();
                        for (ino, slot) in gone {
                            model.remove(&ino);
                            tables.remove(slot, ino);
                            tables.remove(slot, ino);
                            free.push(slot);
                        }
                    }
                    Step::Replace { ino } => {
                        let Some(slot) = free.pop() else { continue };
                        tables.insert(slot, ino);
                        if let Some(old) = model.insert(ino, slot) {
                            // No longer in the index: removing it leaves its successor.
                            tables.remove(old, ino);
                            free.push(old);
                        }
                    }
                }
                let (records, buckets) = tables.sizes();
                prop_assert_eq!(records as usize, model.len());
                // Where the table is almost full, some of the shards are: they have got more than their part.
                prop_assert!(buckets >= (records * BUCKETS_WANTED).min(SHARDS * tables.index.buckets_max / 4 * 3));
                prop_assert!(buckets <= records * BUCKETS_KEPT + SHARDS * FIRST_BUCKETS);
                for (ino, slot) in &model {
                    prop_assert_eq!(tables.find(*ino), Some(*slot));
                }
                for ino in (0..4000).filter(|ino| !model.contains_key(ino)) {
                    prop_assert_eq!(tables.find(ino), None);
                }
            }
        }
    }

    #[test]
    fn numbers_in_sequence_and_numbers_that_differ_in_upper_bits_are_spread() {
        for stride in [1u64, 2, 64, 256, 1 << 20, 1 << 32, 1 << 40, 0x1_0000_0001] {
            let tables = Tables::new(RECORDS_MAX);
            (1..10_000).for_each(|slot| tables.insert(slot, u64::from(slot).wrapping_mul(stride)));
            // Random numbers in as many buckets have chains of 7 or 8 at most.
            assert!(tables.longest() <= 10, "stride {stride:#x}: a chain of {}", tables.longest());
        }
    }

    #[test]
    fn memory_follows_the_number_of_records_in_both_directions() {
        const MANY: u32 = 1 << 17;
        let tables = Tables::new(MANY);
        // The records stay: what changes is the index.
        (1..MANY).for_each(|slot| tables.records.at(slot).ino.store(0, Ordering::Relaxed));
        let before = tables.arena.resident_len().unwrap();
        let taken = || tables.arena.resident_len().unwrap() - before;
        tables.insert(1, 1);
        assert!(taken() <= 8192, "one file takes {} bytes", taken());
        let page = u64::from(tables.index.buckets.per_page()) * 4;
        for round in 0..3 {
            (1..MANY).for_each(|slot| tables.insert(slot, slot.into()));
            let buckets = u64::from(MANY * BUCKETS_WANTED) * 4;
            assert!((buckets..buckets + u64::from(SHARDS + 4) * page).contains(&taken()), "round {round}: {} bytes", taken());
            (1..MANY).for_each(|slot| tables.remove(slot, slot.into()));
            assert!(taken() <= u64::from(2 * SHARDS + 4) * page, "round {round}: {} bytes stay", taken());
        }
    }

    #[test]
    fn threads_that_insert_and_remove_at_once_each_find_their_own() {
        let tables = Tables::new(RECORDS_MAX);
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let tables = &tables;
                scope.spawn(move || {
                    let slots = || {
                        (1 + thread * 4096..1 + thread * 4096 + 3000).map(|slot| (slot, u64::from(slot % 4096) << 8 | u64::from(thread)))
                    };
                    for _ in 0..5 {
                        slots().for_each(|(slot, ino)| tables.insert(slot, ino));
                        slots().for_each(|(slot, ino)| assert_eq!(tables.find(ino), Some(slot)));
                        slots().for_each(|(slot, ino)| tables.remove(slot, ino));
                        slots().for_each(|(_, ino)| assert_eq!(tables.find(ino), None));
                    }
                });
            }
        });
        assert_eq!(tables.sizes(), (0, SHARDS * FIRST_BUCKETS));
    }
}
