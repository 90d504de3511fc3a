//! The inode number shown to the guest: the host's, as long as it is unique on the device that the file is on in the guest. A
//! file of another device of the host gets that device's index in the upper 16 bits.
//!
//! The guest has one device for the share, and one for each mount that was announced to it (a directory with
//! FUSE_ATTR_SUBMOUNT). It has none for a file that is a mount point, for btrfs subvolumes inside one mount, and for any mount
//! if mounts are not announced.

use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::FxHashMap;

use super::identity::FileKey;
use crate::state::{MountNote, MountRecords, MountSlot};

/// Numbers below this are kept in the lower bits; higher ones are hashed into them.
const EXACT_BITS: u32 = 48;
/// Set in a number that was hashed, so that it is never one that was kept.
const HASHED: u64 = 1 << 63;
/// The index that devices share when there are more than 32,766: their numbers are hashed with the device.
const INDEX_SHARED: u16 = 0x7fff;

/// The numbers shown so far in this session.
#[derive(Debug)]
pub(super) struct InodeNumbers {
    /// The device of each announced mount, with its record.
    announced: RwLock<FxHashMap<u64, (u64, MountSlot)>>,
    /// The index of each other device, 1 or more.
    indexes: RwLock<FxHashMap<u64, u16>>,
    /// The same for a process that goes on with the session.
    records: Arc<MountRecords>,
}

impl InodeNumbers {
    /// No number was shown yet, or what `announced` and `devices` say: mounts with their devices, and devices with their indexes.
    pub fn new(records: Arc<MountRecords>, announced: Vec<(u64, u64, MountSlot)>, devices: Vec<(u64, u32)>) -> InodeNumbers {
        let announced = announced.into_iter().map(|(mount_id, device, slot)| (mount_id, (device, slot))).collect();
        let indexes = devices.into_iter().filter_map(|(device, index)| Some((device, u16::try_from(index).ok()?))).collect();
        InodeNumbers { announced: RwLock::new(announced), indexes: RwLock::new(indexes), records }
    }

    /// Records that the mount with the root `key` is announced.
    pub fn announce(&self, key: &FileKey) {
        let is_known = |known: Option<&(u64, MountSlot)>| known.is_some_and(|(device, _)| *device == key.device);
        if is_known(self.announced.read().get(&key.mount_id)) {
            return;
        }
        let mut announced = self.announced.write();
        if is_known(announced.get(&key.mount_id)) {
            return;
        }
        let slot = self.records.add(MountNote::Announced { mount_id: key.mount_id, device: key.device });
        if let Some((_, old)) = announced.insert(key.mount_id, (key.device, slot)) {
            self.records.remove(old);
        }
    }

    /// The number of the file `key` on a share whose root is `root`. `announces`: mounts are announced to the guest.
    pub fn number(&self, key: &FileKey, root: &FileKey, announces: bool) -> u64 {
        let guest_device = if key.mount_id == root.mount_id || !announces {
            Some(root.device)
        } else {
            // None for a file that is a mount point: in the guest it is on its directory's device, whichever that is.
            self.announced.read().get(&key.mount_id).map(|(device, _)| *device)
        };
        if guest_device == Some(key.device) { key.ino } else { fold(self.index(key.device), key.device, key.ino) }
    }

    fn index(&self, device: u64) -> u16 {
        if let Some(&index) = self.indexes.read().get(&device) {
            return index;
        }
        let mut indexes = self.indexes.write();
        let next = u16::try_from(indexes.len() + 1).unwrap_or(INDEX_SHARED).min(INDEX_SHARED);
        // Devices beyond the limit share one index and are not recorded.
        if next == INDEX_SHARED {
            return INDEX_SHARED;
        }
        *indexes.entry(device).or_insert_with(|| {
            self.records.add_device(device, next);
            next
        })
    }
}

fn fold(index: u16, device: u64, ino: u64) -> u64 {
    let upper = u64::from(index) << EXACT_BITS;
    if ino >> EXACT_BITS == 0 && index != INDEX_SHARED {
        return upper | ino;
    }
    // Multiplication by an odd number is a bijection; its upper half is the best mixed.
    let mixed = (ino ^ device.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    HASHED | upper | ((mixed ^ mixed >> 32) & ((1 << EXACT_BITS) - 1))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn numbers() -> InodeNumbers {
        let arena = crate::state::Arena::new(crate::state::MOUNTS_LEN).unwrap();
        InodeNumbers::new(Arc::new(MountRecords::new(&arena, 0)), Vec::new(), Vec::new())
    }

    const ROOT: FileKey = FileKey { device: 7, ino: 2, mount_id: 1 };

    fn file(device: u64, ino: u64, mount_id: u64) -> FileKey {
        FileKey { device, ino, mount_id }
    }

    proptest! {
        #[test]
        fn no_two_files_of_a_device_that_the_guest_sees_have_one_number(
            // Devices and mounts: few, so that they meet. Numbers: small ones, and any.
            files in prop::collection::vec((0u64..5, prop_oneof![0u64..20, 0u64..1 << EXACT_BITS], 1u64..4), 1..200),
            announces: bool,
        ) {
            let numbers = numbers();
            // Mount 2 is announced as device 8; mount 3 is that of a file.
            numbers.announce(&file(8, 1, 2));
            let mut seen: HashMap<(u64, u64), (u64, u64)> = HashMap::new();
            for (device, ino, mount_id) in files {
                let key = file(device + 5, ino, mount_id);
                let number = numbers.number(&key, &ROOT, announces);
                prop_assert_eq!(number, numbers.number(&key, &ROOT, announces), "the same each time");
                // What the guest takes for one device: the share's own, or that of the announced mount.
                let guest_device = if announces && mount_id == 2 { 2 } else { 1 };
                let first = *seen.entry((guest_device, number)).or_insert((key.device, ino));
                prop_assert_eq!(first, (key.device, ino), "number {:#x}", number);
            }
        }

        #[test]
        fn a_hashed_number_is_never_one_that_was_kept(device: u64, ino: u64, index in 1..=INDEX_SHARED, kept in 0u64..1 << EXACT_BITS) {
            let kept = fold(index.min(INDEX_SHARED - 1), device, kept);
            let number = fold(index, device, ino);
            prop_assert!(number >> EXACT_BITS != 0, "nor one of the share's own");
            if ino >> EXACT_BITS != 0 || index == INDEX_SHARED {
                prop_assert!(number != kept && number & HASHED != 0);
            }
        }
    }

    #[test]
    fn the_guests_own_devices_keep_their_numbers() {
        let numbers = numbers();
        let huge = u64::MAX - 1;
        numbers.announce(&file(9, 1, 4));
        for ino in [1, 1 << EXACT_BITS, huge] {
            assert_eq!(numbers.number(&file(7, ino, 1), &ROOT, true), ino, "the share's own");
            assert_eq!(numbers.number(&file(9, ino, 4), &ROOT, true), ino, "an announced mount's");
            assert_eq!(numbers.number(&file(7, ino, 4), &ROOT, false), ino, "the same device mounted below");
            assert_ne!(numbers.number(&file(9, ino, 4), &ROOT, false), ino, "a mount that was not announced");
            assert_ne!(numbers.number(&file(8, ino, 1), &ROOT, true), ino, "a subvolume");
            assert_ne!(numbers.number(&file(9, ino, 5), &ROOT, true), ino, "a file that is a mount point");
        }
    }

    #[test]
    fn devices_beyond_the_last_index_share_it() {
        let numbers = numbers();
        let told: std::collections::HashSet<u64> = (10..40_010).map(|device| numbers.number(&file(device, 1, 1), &ROOT, true)).collect();
        assert_eq!(told.len(), 40_000);
        assert_eq!(numbers.indexes.read().len(), usize::from(INDEX_SHARED) - 1);
    }
}
