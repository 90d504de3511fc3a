//! Guest memory: memfd-backed regions at chosen guest-physical addresses, and an allocator.
//!
//! Regions may lie apart or adjoin each other; a buffer that crosses two adjoining regions is one
//! range for the guest and two mappings for the device.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Size of a guest page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// One memory slot of the guest: a memfd mapped shared. Lives until the last user drops it.
#[derive(Debug)]
pub struct Region {
    gpa: u64,
    len: u64,
    file: File,
    host: NonNull<u8>,
}

// SAFETY: the mapping is plain shared memory and stays in place until Drop; whoever writes to it
// through a pointer answers for the ordering, as with any memory a device sees.
unsafe impl Send for Region {}
// SAFETY: as for Send; `&Region` gives out addresses only.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes (a multiple of the page size) of fresh zeroed memory for address `gpa`.
    pub fn new(gpa: u64, len: u64) -> io::Result<Self> {
        let fd = memfd_create(c"guest-memory", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, len)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let host = unsafe { mmap(ptr::null_mut(), len as usize, access, MapFlags::SHARED, &fd, 0)? };
        let host = NonNull::new(host.cast()).expect("mmap does not return null");
        Ok(Self { gpa, len, file: fd.into(), host })
    }

    /// First guest-physical address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// First guest-physical address after the region.
    pub fn end(&self) -> u64 {
        self.gpa + self.len
    }

    /// Where the region is mapped in this process: the `userspace_addr` of the vhost-user table.
    pub fn user_addr(&self) -> u64 {
        self.host.as_ptr() as u64
    }

    /// The memfd behind the region.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The host address of `gpa`, which must lie in the region.
    pub fn host(&self, gpa: u64) -> *mut u8 {
        assert!((self.gpa..self.end()).contains(&gpa), "{gpa:#x} is not in this region");
        self.host.as_ptr().wrapping_add((gpa - self.gpa) as usize)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and nothing can reach it after this.
        let unmapped = unsafe { munmap(self.host.as_ptr().cast(), self.len as usize) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A free range, never across a region border.
#[derive(Clone, Copy, Debug)]
struct Free {
    gpa: u64,
    len: u64,
}

/// The whole of guest memory. Shared by every ring and client of a guest.
#[derive(Debug)]
pub struct Memory {
    regions: RwLock<Vec<Arc<Region>>>,
    free: Mutex<Vec<Free>>,
}

impl Memory {
    /// Makes memory of `layout`, a list of `(gpa, length)`.
    pub fn new(layout: &[(u64, u64)]) -> io::Result<Self> {
        let memory = Self { regions: RwLock::default(), free: Mutex::default() };
        for &(gpa, len) in layout {
            memory.add(gpa, len)?;
        }
        Ok(memory)
    }

    /// Adds a region and returns it. It must not overlap another one.
    pub fn add(&self, gpa: u64, len: u64) -> io::Result<Arc<Region>> {
        let overlaps = |r: &Arc<Region>| gpa < r.end() && r.gpa() < gpa + len;
        assert!(!self.regions().iter().any(overlaps), "regions overlap");
        let region = Arc::new(Region::new(gpa, len)?);
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.push(Arc::clone(&region));
        regions.sort_by_key(|r| r.gpa());
        drop(regions);
        self.give(gpa, len);
        Ok(region)
    }

    /// Takes the region that starts at `gpa` out of the memory, with all that was allocated there.
    pub fn remove(&self, gpa: u64) -> Option<Arc<Region>> {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        let index = regions.iter().position(|r| r.gpa() == gpa)?;
        let region = regions.remove(index);
        drop(regions);
        self.free().retain(|f| f.gpa < region.gpa() || f.gpa >= region.end());
        Some(region)
    }

    /// The regions, by rising address.
    pub fn regions(&self) -> Vec<Arc<Region>> {
        self.regions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn free(&self) -> MutexGuard<'_, Vec<Free>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates `len` bytes inside one region, at a multiple of `align` (a power of two).
    /// Panics when memory is exhausted.
    pub fn alloc(&self, len: u64, align: u64) -> u64 {
        let mut free = self.free();
        let fits = |f: &&Free| f.gpa.next_multiple_of(align) + len <= f.gpa + f.len;
        let gpa = free.iter().find(fits).expect("guest memory is exhausted").gpa;
        let gpa = gpa.next_multiple_of(align);
        assert!(carve(&mut free, gpa, len));
        gpa
    }

    /// Allocates exactly `[gpa, gpa + len)` inside one region; false when a part of it is taken.
    pub fn alloc_at(&self, gpa: u64, len: u64) -> bool {
        carve(&mut self.free(), gpa, len)
    }

    /// Allocates the last `before` bytes of region `k` together with the first `after` bytes of the
    /// region that adjoins it, and returns the address of the first byte.
    pub fn alloc_across(&self, k: usize, before: u64, after: u64) -> u64 {
        let regions = self.regions();
        let border = regions[k].end();
        assert_eq!(regions[k + 1].gpa(), border, "the regions do not adjoin");
        assert!(self.alloc_at(border - before, before), "the end of region {k} is taken");
        assert!(self.alloc_at(border, after), "the start of region {} is taken", k + 1);
        border - before
    }

    /// Returns a range to the allocator; it may cross adjoining regions.
    pub fn release(&self, gpa: u64, len: u64) {
        for region in self.regions() {
            let start = gpa.max(region.gpa());
            let end = (gpa + len).min(region.end());
            if start < end {
                self.give(start, end - start);
            }
        }
    }

    fn give(&self, gpa: u64, len: u64) {
        let borders: Vec<u64> = self.regions().iter().map(|r| r.gpa()).collect();
        let mut free = self.free();
        let at = free.partition_point(|f| f.gpa < gpa);
        let apart = |f: &Free| f.gpa + f.len <= gpa || gpa + len <= f.gpa;
        assert!(free.iter().all(apart), "{gpa:#x} is released twice");
        free.insert(at, Free { gpa, len });
        let adjoin = |a: Free, b: Free| a.gpa + a.len == b.gpa && !borders.contains(&b.gpa);
        if at + 1 < free.len() && adjoin(free[at], free[at + 1]) {
            free[at].len += free.remove(at + 1).len;
        }
        if at > 0 && adjoin(free[at - 1], free[at]) {
            free[at - 1].len += free.remove(at).len;
        }
    }

    /// Calls `each(host address, length, offset in the range)` for every piece of the range that is
    /// contiguous in this process. Panics when a byte of it is not guest memory.
    fn pieces(&self, gpa: u64, len: usize, mut each: impl FnMut(*mut u8, usize, usize)) {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < len {
            let at = gpa + done as u64;
            let region = regions.iter().find(|r| (r.gpa()..r.end()).contains(&at));
            let region = region.unwrap_or_else(|| panic!("{at:#x} is not guest memory"));
            let count = (len - done).min((region.end() - at) as usize);
            each(region.host(at), count, done);
            done += count;
        }
    }

    /// Copies guest memory at `gpa` into `bytes`.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) {
        let target = bytes.as_mut_ptr();
        self.pieces(gpa, bytes.len(), |host, len, offset| {
            // SAFETY: `pieces` gives ranges inside one live mapping and inside `bytes`; the driver
            // reads only buffers the device has handed back.
            unsafe { ptr::copy_nonoverlapping(host, target.wrapping_add(offset), len) };
        });
    }

    /// Copies `bytes` into guest memory at `gpa`.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        let source = bytes.as_ptr();
        self.pieces(gpa, bytes.len(), |host, len, offset| {
            // SAFETY: as in `read`; the driver writes only buffers the device does not hold.
            unsafe { ptr::copy_nonoverlapping(source.wrapping_add(offset), host, len) };
        });
    }

    /// Sets `len` bytes at `gpa` to `byte`.
    pub fn fill(&self, gpa: u64, len: usize, byte: u8) {
        self.pieces(gpa, len, |host, len, _| {
            // SAFETY: as in `write`.
            unsafe { ptr::write_bytes(host, byte, len) };
        });
    }

    /// The `len` bytes at `gpa`.
    pub fn read_vec(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(gpa, &mut bytes);
        bytes
    }

    /// The region that holds `[gpa, gpa + len)` whole, to keep the mapping while a ring points in.
    pub fn region_of(&self, gpa: u64, len: u64) -> Arc<Region> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let holds = |r: &&Arc<Region>| r.gpa() <= gpa && gpa + len <= r.end();
        Arc::clone(regions.iter().find(holds).expect("the range lies in one region"))
    }

    /// The highest guest-physical address plus one.
    pub fn end(&self) -> u64 {
        self.regions().last().map_or(0, |r| r.end())
    }
}

/// Takes `[gpa, gpa + len)` out of the free list; false when it is not free as one range.
fn carve(free: &mut Vec<Free>, gpa: u64, len: u64) -> bool {
    let holds = |f: &Free| f.gpa <= gpa && gpa + len <= f.gpa + f.len;
    let Some(at) = free.iter().position(holds) else {
        return false;
    };
    let Free { gpa: start, len: total } = free[at];
    let after = Free { gpa: gpa + len, len: start + total - gpa - len };
    free[at].len = gpa - start;
    if after.len > 0 {
        free.insert(at + 1, after);
    }
    if free[at].len == 0 {
        free.remove(at);
    }
    true
}
