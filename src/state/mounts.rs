//! Records of what a session has learnt of mounts, and the index of each device in inode numbers. Does not know what a mount is used
//! for.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::arena::{Arena, ArenaError, Record, Records};
use super::attached::Refused;
use super::check::Check;
use super::slots::{SlotUse, Slots};
use crate::sys::descriptor::is_open;

/// Mounts below a share are few. What has no record is learnt again, but for open mounts, whose nodes are then ESTALE.
const MOUNTS_MAX: u32 = 8192;
/// As many as there are indexes of devices (`host/inodes/numbers.rs`).
const DEVICES_MAX: u32 = 1 << 15;
const MOUNTS_LEN: usize = MOUNTS_MAX as usize * size_of::<MountRecord>();
/// Bytes of both tables.
pub const TABLE_LEN: usize = MOUNTS_LEN + DEVICES_MAX as usize * size_of::<DeviceRecord>();

/// Values of [`MountRecord::state`], beside 0 for none.
const OPEN: u64 = 1;
const ANNOUNCED: u64 = 2;
const BY_DESCRIPTOR: u64 = 3;

#[repr(C)]
#[derive(Debug)]
struct MountRecord {
    /// Which of the [`MountNote`]s it is; stored last, and cleared before a descriptor is closed.
    state: AtomicU64,
    mount_id: AtomicU64,
    device: AtomicU64,
    fd: AtomicI32,
    check: AtomicU32,
}

// SAFETY: every field is an atomic integer.
unsafe impl Record for MountRecord {
    const KIND: u32 = 4;
}

impl MountRecord {
    fn checked(&self, slot: u32, state: u64) -> u32 {
        let fd = u64::from(self.fd.load(Ordering::Relaxed).cast_unsigned());
        let words = [u64::from(slot), state, self.mount_id.load(Ordering::Relaxed), self.device.load(Ordering::Relaxed), fd];
        words.into_iter().fold(Check::default(), Check::with).value()
    }
}

#[repr(C)]
#[derive(Debug)]
struct DeviceRecord {
    device: AtomicU64,
    /// Not 0 where the record is one; stored last.
    is_live: AtomicU32,
    check: AtomicU32,
}

// SAFETY: every field is an atomic integer.
unsafe impl Record for DeviceRecord {
    const KIND: u32 = 5;
}

impl DeviceRecord {
    fn checked(&self, slot: u32) -> u32 {
        Check::default().with(slot.into()).with(self.device.load(Ordering::Relaxed)).value()
    }
}

/// What is recorded of a mount, by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountNote {
    /// A descriptor on it is open.
    Open {
        /// The mount.
        mount_id: u64,
        /// The number of the descriptor.
        fd: RawFd,
    },
    /// It was announced to the guest.
    Announced {
        /// The mount.
        mount_id: u64,
        /// Its device.
        device: u64,
    },
    /// Its inodes are kept as descriptors.
    ByDescriptor {
        /// The mount.
        mount_id: u64,
    },
}

/// A record of a mount, to be removed later; `None` inside where the table was full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountSlot(Option<u32>);

/// The records.
#[derive(Debug)]
pub struct MountRecords {
    mounts: Records<MountRecord>,
    slots: Slots,
    devices: Records<DeviceRecord>,
}

/// The descriptor of a mount that an attached record names, owned by nobody yet.
#[derive(Debug)]
pub struct AttachedMountFd(RawFd);

impl AttachedMountFd {
    /// Its number.
    pub fn number(&self) -> RawFd {
        self.0
    }

    /// The descriptor.
    pub fn own(self) -> OwnedFd {
        // SAFETY: `MountRecords::attach` found it open and named by a record whose process has ended; it gives each out once, and the
        // caller has dropped what two records name.
        unsafe { OwnedFd::from_raw_fd(self.0) }
    }
}

/// Records that were attached.
#[derive(Debug)]
pub struct AttachedMounts {
    /// The records.
    pub records: MountRecords,
    /// Open mounts.
    pub open: Vec<(u64, AttachedMountFd, MountSlot)>,
    /// Announced mounts, with their devices.
    pub announced: Vec<(u64, u64, MountSlot)>,
    /// Mounts whose inodes are kept as descriptors.
    pub by_descriptor: Vec<u64>,
    /// Devices with their indexes.
    pub devices: Vec<(u64, u32)>,
}

impl MountRecords {
    /// The tables in `arena`, `offset` bytes after its header.
    pub fn new(arena: &Arc<Arena>, offset: usize) -> MountRecords {
        let mounts = arena.table(offset, MOUNTS_MAX as usize);
        MountRecords { mounts, slots: Slots::new(MOUNTS_MAX), devices: arena.table(offset + MOUNTS_LEN, DEVICES_MAX as usize) }
    }

    /// The tables in `arena`, which was attached, and what is in them. [`ArenaError::Unusable`] where they have another size.
    pub fn attach(arena: &Arc<Arena>) -> Result<AttachedMounts, ArenaError> {
        let (mounts, devices) = (arena.attached_table::<MountRecord>()?, arena.attached_table::<DeviceRecord>()?);
        if mounts.count() != MOUNTS_MAX as usize || devices.count() != DEVICES_MAX as usize {
            return Err(ArenaError::Unusable("the table of mounts has another size"));
        }
        let (mut open, mut announced, mut by_descriptor) = (Vec::new(), Vec::new(), Vec::new());
        let (mut used, mut refused) = (Vec::new(), Refused::new("mount", 0));
        for slot in mounts.with_memory()?.into_iter().flatten().filter(|slot| *slot > 0) {
            let record = mounts.at(slot);
            let state = record.state.load(Ordering::Acquire);
            let (mount_id, fd) = (record.mount_id.load(Ordering::Relaxed), record.fd.load(Ordering::Relaxed));
            let is_whole = record.checked(slot, state) == record.check.load(Ordering::Relaxed);
            match state {
                0 => continue,
                OPEN if is_whole && is_open(fd) => open.push((mount_id, AttachedMountFd(fd), MountSlot(Some(slot)))),
                ANNOUNCED if is_whole => announced.push((mount_id, record.device.load(Ordering::Relaxed), MountSlot(Some(slot)))),
                BY_DESCRIPTOR if is_whole => by_descriptor.push(mount_id),
                _ => {
                    refused.add(slot, 0);
                    continue;
                }
            }
            used.push((slot, SlotUse::Taken));
        }
        refused.freed().for_each(|(slot, _)| mounts.at(slot).state.store(0, Ordering::Relaxed));
        let slots = Slots::rebuilt(MOUNTS_MAX, 0, used.into_iter(), |_, _| ());
        let is_device = |slot: &u32| {
            let record = devices.at(*slot);
            record.is_live.load(Ordering::Acquire) != 0 && record.checked(*slot) == record.check.load(Ordering::Relaxed)
        };
        let found = devices.with_memory()?.into_iter().flatten().filter(is_device);
        let found = found.map(|slot| (devices.at(slot).device.load(Ordering::Relaxed), slot)).collect();
        Ok(AttachedMounts { records: MountRecords { mounts, slots, devices }, open, announced, by_descriptor, devices: found })
    }

    /// Forgets the mounts in `arena`, before it is attached: their ids and descriptors are those of a process that is gone. Indexes of
    /// devices stay.
    pub fn make_over(arena: &Arc<Arena>) -> Result<(), ArenaError> {
        let mounts = arena.attached_table::<MountRecord>()?;
        let used = mounts.with_memory()?.into_iter().flatten();
        used.for_each(|slot| mounts.at(slot).state.store(0, Ordering::Relaxed));
        Ok(())
    }

    /// Records `note`, before what it says can be seen.
    pub fn add(&self, note: MountNote) -> MountSlot {
        let Ok(slot) = self.slots.take() else {
            tracing::warn!("more than {MOUNTS_MAX} mounts below the share: some are not known any more if this process dies");
            return MountSlot(None);
        };
        let (state, mount_id, device, fd) = match note {
            MountNote::Open { mount_id, fd } => (OPEN, mount_id, 0, fd),
            MountNote::Announced { mount_id, device } => (ANNOUNCED, mount_id, device, 0),
            MountNote::ByDescriptor { mount_id } => (BY_DESCRIPTOR, mount_id, 0, 0),
        };
        let record = self.mounts.at(slot);
        record.mount_id.store(mount_id, Ordering::Relaxed);
        record.device.store(device, Ordering::Relaxed);
        record.fd.store(fd, Ordering::Relaxed);
        record.check.store(record.checked(slot, state), Ordering::Relaxed);
        record.state.store(state, Ordering::Release);
        MountSlot(Some(slot))
    }

    /// Removes a record, before its descriptor is closed.
    pub fn remove(&self, slot: MountSlot) {
        if let Some(slot) = slot.0 {
            self.mounts.at(slot).state.store(0, Ordering::Release);
            self.slots.give(slot, 0, |_, _| ());
        }
    }

    /// Records that `device` has `index`, before a number with it is shown.
    pub fn add_device(&self, device: u64, index: u16) {
        let slot = u32::from(index);
        let Some(record) = self.devices.get(slot) else { return };
        record.device.store(device, Ordering::Relaxed);
        record.check.store(record.checked(slot), Ordering::Relaxed);
        record.is_live.store(1, Ordering::Release);
    }
}
