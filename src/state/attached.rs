//! What is left of tables whose process died: records that cannot be trusted, and numbers of descriptors.

use std::os::fd::RawFd;

use rustc_hash::FxHashSet;

use crate::trace::Limiter;
use crate::warn_limited;

/// How far beyond every known generation a damaged record's slot goes on: its own generation may be damaged, and its true one must not
/// come again. No power of two, which is what one wrong bit makes of a number.
const GENERATION_GAP: u32 = 0x0001_0001;

/// Records of a table that are not what they were when they were made.
#[derive(Debug)]
pub struct Refused {
    kind: &'static str,
    slots: Vec<u32>,
    generation_max: u32,
    limiter: Limiter,
}

impl Refused {
    /// None yet, of a table of `kind` whose free slots begin at `generation`.
    pub fn new(kind: &'static str, generation: u32) -> Refused {
        Refused { kind, slots: Vec::new(), generation_max: generation, limiter: Limiter::new() }
    }

    /// A record with `generation` is good.
    pub fn pass(&mut self, generation: u32) {
        self.generation_max = self.generation_max.max(generation);
    }

    /// The record in `slot`, which seems to have `generation`, is not.
    pub fn add(&mut self, slot: u32, generation: u32) {
        let kind = self.kind;
        warn_limited!(self.limiter; "the record of {kind} {slot} (generation {generation}) is damaged; what it stood for is lost to the guest");
        self.pass(generation);
        self.slots.push(slot);
    }

    /// Their slots, with the generation that each is free with.
    pub fn freed(self) -> impl Iterator<Item = (u32, u32)> {
        let Refused { kind, slots, generation_max, .. } = self;
        if !slots.is_empty() {
            tracing::error!("{} damaged records of {kind}s were dropped", slots.len());
        }
        let generation = generation_max.wrapping_add(GENERATION_GAP);
        slots.into_iter().map(move |slot| (slot, generation))
    }
}

/// Those of `numbers` that are there more than once. A descriptor that two records name is neither's: closed for one, its number
/// would be a stranger's file to the other.
pub fn named_twice(mut numbers: Vec<RawFd>) -> FxHashSet<RawFd> {
    numbers.sort_unstable();
    let twice: FxHashSet<RawFd> = numbers.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    if !twice.is_empty() {
        tracing::error!("{} descriptors are named by two records each; the guest gets an error where it uses them", twice.len());
    }
    twice
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Arc;
    use std::time::Instant;

    use proptest::prelude::*;

    use crate::state::{Arena, ArenaError, Budget, HANDLES_LEN, HandleTable, InodeIdentity, InodeRecords, inodes_len};
    use crate::sys::file_handle::{HANDLE_LEN_MAX, Handle};
    use crate::types::{FileHandle, NodeId};

    const INODES_MAX: u32 = 1 << 16;
    const INODES: u64 = 60;
    const HANDLES: u64 = 20;

    fn identity(ino: u64) -> InodeIdentity {
        let mut bytes = [0; HANDLE_LEN_MAX];
        bytes[..8].copy_from_slice(&ino.to_ne_bytes());
        let handle = Some(Handle { kind: 1, len: 8, bytes });
        InodeIdentity { device: 1, ino, mount_id: 3, birth_ns: 4, kind: libc::S_IFREG, type_seen: true, handle }
    }

    fn look_up(records: &InodeRecords, identity: &InodeIdentity) -> NodeId {
        let key = crate::state::FileKey { device: identity.device, ino: identity.ino, mount_id: identity.mount_id };
        let mut locked = records.lock(&key);
        locked.node().unwrap_or_else(|| {
            let node = records.create(identity, None).unwrap();
            locked.insert(node);
            node
        })
    }

    fn budget() -> Arc<Budget> {
        Arc::new(Budget::new(1000))
    }

    /// What a process leaves that dies with inodes and open files.
    struct Left {
        arena: OwnedFd,
        nodes: Vec<(NodeId, InodeIdentity)>,
        handles: Vec<FileHandle>,
    }

    fn leave(inodes_max: u32, inodes: u64) -> Left {
        let arena = Arena::new(inodes_len(inodes_max) + HANDLES_LEN).unwrap();
        let records = InodeRecords::new(&arena, 0, inodes_max);
        let nodes = (1..=inodes).map(identity).map(|identity| (look_up(&records, &identity), identity)).collect();
        let budget = budget();
        let table = HandleTable::new(&arena, inodes_len(inodes_max), Arc::clone(&budget));
        let open = |number: u64| {
            let file = std::fs::File::open("/dev/null").unwrap().into();
            table.insert(file, NodeId(number), 0, budget.reserve(1, 0).unwrap(), |_| ()).unwrap()
        };
        let handles = (0..HANDLES).map(open).collect();
        std::mem::forget(table);
        let memfd = rustix::io::fcntl_dupfd_cloexec(arena.descriptor().unwrap(), 0).unwrap();
        Left { arena: memfd, nodes, handles }
    }

    fn attach(memfd: OwnedFd) -> Result<(InodeRecords, HandleTable), ArenaError> {
        let arena = Arena::attach(memfd)?;
        Ok((InodeRecords::attach(&arena)?.records, HandleTable::attach(&arena, budget())?))
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Place {
        Header(u64),
        Inode(u64, u64),
        Handle(u64, u64),
    }

    impl Place {
        /// Its offset in the arena.
        fn offset(self) -> u64 {
            let tables = crate::state::PAGE_LEN_MAX as u64;
            match self {
                Place::Header(word) => word * 8,
                Place::Inode(slot, word) => tables + slot * 128 + word * 8,
                Place::Handle(slot, word) => tables + inodes_len(INODES_MAX) as u64 + slot * 64 + word * 8,
            }
        }
    }

    fn place() -> impl Strategy<Value = Place> {
        prop_oneof![
            1 => (0u64..72).prop_map(Place::Header),
            8 => (0u64..INODES + 200, 0u64..16).prop_map(|(slot, word)| Place::Inode(slot, word)),
            8 => (0u64..HANDLES + 100, 0u64..8).prop_map(|(slot, word)| Place::Handle(slot, word)),
        ]
    }

    fn change() -> impl Strategy<Value = u64> {
        prop_oneof![(0u32..64).prop_map(|bit| 1 << bit), 1u64..=u64::MAX]
    }

    proptest! {
        #[test]
        fn whatever_is_damaged_the_rest_goes_on(damages in prop::collection::vec((place(), change()), 0..12)) {
            let left = leave(INODES_MAX, INODES);
            for (place, change) in &damages {
                let mut word = [0; 8];
                rustix::io::pread(&left.arena, &mut word[..], place.offset()).unwrap();
                let word = (u64::from_ne_bytes(word) ^ change).to_ne_bytes();
                rustix::io::pwrite(&left.arena, &word, place.offset()).unwrap();
            }
            let is_hit = |is_it: &dyn Fn(Place) -> bool| damages.iter().any(|(place, _)| is_it(*place));
            let (records, handles) = match attach(left.arena) {
                Ok(attached) => attached,
                Err(ArenaError::Unusable(_)) => {
                    prop_assert!(is_hit(&|place| matches!(place, Place::Header(_) | Place::Inode(1, _))));
                    return Ok(());
                }
                Err(e) => return Err(TestCaseError::fail(e.to_string())),
            };
            for (node, identity) in &left.nodes {
                let found = records.identity(*node);
                if is_hit(&|place| matches!(place, Place::Inode(slot, _) if slot == node.0 & 0xffff_ffff)) {
                    // What changes in the life of a record is not covered: its birth time and whether its type was seen.
                    let known = |found: InodeIdentity| InodeIdentity { birth_ns: 4, type_seen: true, ..found };
                    prop_assert!(found.map(known).is_none_or(|found| found == *identity), "{:?}", found);
                } else {
                    prop_assert_eq!(found, Some(*identity));
                    prop_assert_eq!(look_up(&records, identity), *node);
                }
            }
            for (at, handle) in left.handles.iter().enumerate() {
                let is_hit = is_hit(&|place| matches!(place, Place::Handle(slot, _) if slot == handle.0 & 0xffff_ffff));
                match handles.get(*handle) {
                    Some(file) => prop_assert_eq!(file.node(), NodeId(at as u64)),
                    None => prop_assert!(is_hit, "handle {} is gone", at),
                }
            }
            // What is made from now on has no id that was given before.
            for ino in 1000..1000 + 3 * INODES {
                let node = look_up(&records, &identity(ino));
                prop_assert!(left.nodes.iter().all(|(known, _)| *known != node), "{:?} again", node);
            }
        }

        #[test]
        fn bytes_that_are_no_arena_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000), len in 0u64..1 << 20) {
            let memfd = rustix::fs::memfd_create(c"none", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::io::pwrite(&memfd, &bytes, 0).unwrap();
            rustix::fs::ftruncate(&memfd, len).unwrap();
            prop_assert!(matches!(attach(memfd), Err(ArenaError::Unusable(_))));
        }
    }

    /// Another table of descriptors, other ids of mounts: twice, as where a process dies in the first.
    #[test]
    fn what_is_made_over_keeps_ids_and_loses_what_cannot_be_found() {
        let budget = budget();
        let arena = Arena::new(inodes_len(INODES_MAX) + HANDLES_LEN).unwrap();
        let records = InodeRecords::new(&arena, 0, INODES_MAX);
        let root = identity(1);
        let elsewhere = InodeIdentity { mount_id: 9, ..identity(3) };
        let pinned = InodeIdentity { handle: None, ..identity(4) };
        let nodes = [root, identity(2), elsewhere].map(|identity| look_up(&records, &identity));
        let pinned = records.create(&pinned, Some(0)).unwrap();
        let table = HandleTable::new(&arena, inodes_len(INODES_MAX), Arc::clone(&budget));
        let open = |node: NodeId, flags: i32| {
            let file = std::fs::File::open("/dev/null").unwrap().into();
            table.insert(file, node, flags, budget.reserve(1, 0).unwrap(), |_| ()).unwrap()
        };
        let handles = [(nodes[1], libc::O_APPEND), (nodes[2], 0), (pinned, 0)].map(|(node, flags)| open(node, flags));
        std::mem::forget(table);
        let memfd = || rustix::io::fcntl_dupfd_cloexec(arena.descriptor().unwrap(), 0).unwrap();
        let there = InodeIdentity { mount_id: 5, ..root };
        for (round, lost) in [(1, (2, 2)), (2, (0, 0))] {
            let tables = Arena::attach(memfd()).unwrap();
            let inodes = InodeRecords::make_over(&tables, &there).unwrap();
            let again = |node, flags| {
                assert!(node != nodes[1] || flags == libc::O_APPEND);
                (node == nodes[1]).then(|| std::fs::File::open("/dev/null").unwrap().into())
            };
            assert_eq!((inodes, HandleTable::make_over(&tables, again).unwrap()), lost, "round {round}");
        }
        let (attached, table) = attach(memfd()).unwrap();
        assert_eq!(attached.identity(nodes[1]), Some(InodeIdentity { mount_id: 5, ..identity(2) }));
        assert_eq!([nodes[2], pinned].map(|node| attached.identity(node)), [None, None]);
        assert_eq!(look_up(&attached, &InodeIdentity { mount_id: 5, ..identity(2) }), nodes[1]);
        assert_eq!(handles.map(|handle| table.get(handle).is_some()), [true, false, false]);
        let other = InodeIdentity { ino: 77, ..there };
        assert!(matches!(InodeRecords::make_over(&Arena::attach(memfd()).unwrap(), &other), Err(ArenaError::Unusable(_))));
    }

    #[test]
    fn an_arena_of_another_length_is_refused() {
        for cut in [true, false] {
            let left = leave(INODES_MAX, 3);
            let len = rustix::fs::seek(left.arena.as_fd(), rustix::fs::SeekFrom::End(0)).unwrap();
            rustix::fs::ftruncate(&left.arena, if cut { len / 2 } else { len + 4096 }).unwrap();
            assert!(matches!(attach(left.arena), Err(ArenaError::Unusable(_))));
        }
    }

    #[test]
    fn to_attach_takes_no_memory_for_records_that_were_never_used() {
        let left = leave(crate::state::inodes_max(None), 3);
        let resident = || rustix::fs::fstat(&left.arena).unwrap().st_blocks * 512;
        let before = resident();
        let attached = attach(left.arena.try_clone().unwrap()).unwrap();
        assert!(resident() <= before, "{} bytes more", resident() - before);
        drop(attached);
    }

    /// Prints how long the walk takes: cargo test --release --lib -- --ignored --nocapture million
    #[test]
    #[ignore = "a measurement"]
    fn a_million_inodes_are_attached() {
        let left = leave(crate::state::inodes_max(None), 1_000_000);
        for _ in 0..5 {
            let memfd = left.arena.try_clone().unwrap();
            let start = Instant::now();
            let arena = Arena::attach(memfd).unwrap();
            let attached = InodeRecords::attach(&arena).unwrap();
            println!("1,000,000 inodes attached in {:?}", start.elapsed());
            assert_eq!(attached.records.nodes().count(), 1_000_000);
        }
    }
}
