//! The memory of one descriptor chain: its readable and its writable buffers, and the ring memory that it came from. Only the
//! walk of that ring's table fills the lists, so that all buffers are in one map, which is held as long as they are.

use std::io;
use std::sync::Arc;

use super::copy;
use super::memory::GuestMap;
use super::pages::{Appender, Cursor, PageDescriptor, PageList};
use super::region::Part;
use super::ring_memory::RingMemory;
use super::table::DescriptorTable;

/// The parts of the first `len` bytes of `list`.
fn parts_of(list: &PageList, len: usize) -> Vec<Part> {
    let mut parts = Vec::new();
    list.each(0, len, |part| parts.push(part));
    parts
}

/// The buffers of a chain. One object is used for many chains, one after the other.
#[derive(Debug, Default)]
pub struct ChainBuffers {
    // Empty without `memory`, whose map holds the buffers.
    readable: PageList,
    writable: PageList,
    memory: Option<Arc<RingMemory>>,
}

impl ChainBuffers {
    /// Starts with a new chain of the ring `memory`. Returns the ring's table, and the collector of the chain's buffers.
    pub fn begin(&mut self, memory: Arc<RingMemory>) -> (DescriptorTable<'_>, Collector<'_>) {
        self.readable.clear();
        self.writable.clear();
        let memory: &RingMemory = self.memory.insert(memory);
        let collector = Collector { map: memory.map(), readable: &mut self.readable, writable: &mut self.writable };
        (memory.table(), collector)
    }

    /// Forgets the chain and returns its ring memory.
    pub fn release(&mut self) -> Option<Arc<RingMemory>> {
        self.readable.clear();
        self.writable.clear();
        self.memory.take()
    }

    /// The memory that the device may read.
    pub fn readable(&self) -> ReadableBuffers<'_> {
        ReadableBuffers { list: &self.readable }
    }

    /// The memory that the device may write, to read what was written there.
    pub fn written(&self) -> ReadableBuffers<'_> {
        ReadableBuffers { list: &self.writable }
    }

    /// The memory that the device may write.
    pub fn writable(&mut self) -> WritableBuffers<'_> {
        let map = self.memory.as_deref().map(RingMemory::map);
        WritableBuffers { list: &self.writable, map }
    }

    /// A writer to that memory, from byte `skip` on.
    pub fn writable_from(&mut self, skip: u64) -> Writer<'_> {
        Writer { cursor: self.writable.cursor(skip) }
    }

    /// Begins a transfer of at most `len` bytes from byte `skip` on, of the writable or of the readable buffers. Until
    /// [`ChainBuffers::end_transfer`], only [`ChainBuffers::transfer_pages`] may be called.
    pub fn begin_transfer(&mut self, writable: bool, skip: u64, len: u64) {
        if writable { self.writable.narrow(skip, len) } else { self.readable.narrow(skip, len) }
    }

    /// The page descriptors of the transfer.
    pub fn transfer_pages(&self) -> &[PageDescriptor] {
        let written = self.writable.narrowed();
        if written.is_empty() { self.readable.narrowed() } else { written }
    }

    /// Ends the transfer.
    pub fn end_transfer(&mut self) {
        self.readable.widen();
        self.writable.widen();
    }

    /// Replaces the whole pages of the buffers in their map by private memory; [`GuestMap::renewed`] still has the guest's. A host
    /// call that still uses them then reads copies of the first `readable_max` readable bytes, and writes to memory that is not
    /// the guest's. An error where not all of them can be replaced, see [`GuestMap::withdraw`].
    pub fn withdraw(&self, readable_max: usize) -> io::Result<()> {
        let Some(map) = self.memory.as_deref().map(RingMemory::map) else { return Ok(()) };
        let written = map.withdraw(&parts_of(&self.writable, usize::MAX), false);
        written.and(map.withdraw(&parts_of(&self.readable, readable_max), true))
    }

    /// Whether any of the buffers lies in a region that is not in `new`.
    pub fn loses_memory(&self, new: &GuestMap) -> bool {
        let Some(map) = self.memory.as_deref().map(RingMemory::map) else { return false };
        let is_lost = |list| parts_of(list, usize::MAX).iter().any(|part| !map.is_kept(part.region, new));
        is_lost(&self.writable) || is_lost(&self.readable)
    }

    /// The size of the ring that the chain came from; 0 without a chain.
    pub fn ring_size(&self) -> u16 {
        self.memory.as_deref().map_or(0, RingMemory::size)
    }

    /// Bytes that the device may read.
    pub fn readable_bytes(&self) -> u64 {
        self.readable.bytes()
    }

    /// Bytes that the device may write.
    pub fn writable_bytes(&self) -> u64 {
        self.writable.bytes()
    }

    /// The page descriptors that the device may read.
    pub fn readable_pages(&self) -> &[PageDescriptor] {
        self.readable.pages()
    }

    /// The page descriptors that the device may write.
    pub fn writable_pages(&self) -> &[PageDescriptor] {
        self.writable.pages()
    }

    /// Bytes of storage of the page descriptors: that of the largest chain so far.
    pub fn storage_bytes(&self) -> usize {
        self.readable.storage_bytes() + self.writable.storage_bytes()
    }
}

/// Collects the buffers of a chain by their guest addresses.
#[derive(Debug)]
pub struct Collector<'b> {
    map: &'b GuestMap,
    readable: &'b mut PageList,
    writable: &'b mut PageList,
}

impl Collector<'_> {
    /// Whether the chain has a writable buffer so far.
    #[inline]
    pub fn has_writable(&self) -> bool {
        self.writable.bytes() > 0
    }

    /// Opens a list for buffers in the region of the `len` bytes at `guest`, which the first `push` appends. `None` where they are
    /// not all in one region.
    #[inline]
    pub fn open(&mut self, writable: bool, guest: u64, len: u32) -> Option<Appender<'_>> {
        let place = self.map.region_of(guest, u64::from(len))?;
        Some(self.list(writable).open(place))
    }

    /// Appends a buffer, one piece for each region. False where a part of it is not in guest memory; the part before is appended.
    pub fn append_across(&mut self, writable: bool, guest: u64, len: u32) -> bool {
        let map = self.map;
        self.list(writable).append_across(map, guest, len)
    }

    #[inline]
    fn list(&mut self, writable: bool) -> &mut PageList {
        if writable { self.writable } else { self.readable }
    }
}

/// Memory of a chain that is read: the device-readable one, with header, arguments, and the payload of a WRITE.
#[derive(Debug)]
pub struct ReadableBuffers<'b> {
    list: &'b PageList,
}

impl ReadableBuffers<'_> {
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.list.bytes()
    }

    /// Copies from byte `skip` on to `to`. Returns the bytes copied, fewer than `to` has where the buffers end before.
    pub fn copy_to(&self, skip: u64, to: &mut [u8]) -> usize {
        let mut cursor = self.list.cursor(skip);
        let mut done = 0;
        while done < to.len() {
            let Some((host, len)) = cursor.part(to.len() - done) else { break };
            // SAFETY: the part is guest memory that the chain's map keeps mapped. The map is borrowed with the list.
            unsafe { copy::from_guest(host, &mut to[done..done + len]) };
            done += len;
        }
        done
    }
}

/// The device-writable memory of a chain: the reply.
#[derive(Debug)]
pub struct WritableBuffers<'b> {
    list: &'b PageList,
    /// The map of the buffers. `None` only where the list is empty.
    map: Option<&'b GuestMap>,
}

impl WritableBuffers<'_> {
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.list.bytes()
    }

    /// Copies `from` to the bytes from `skip` on and marks the pages dirty. Returns the bytes copied, fewer than `from` has where
    /// the buffers end before.
    pub fn copy_from(&mut self, skip: u64, from: &[u8]) -> usize {
        let mut done = 0;
        self.list.each(skip, from.len(), |part| {
            // SAFETY: the part is guest memory that the chain's map keeps mapped, and no reference to it exists. The map is
            // borrowed with the list.
            unsafe { copy::to_guest(&from[done..done + part.len], part.host) };
            done += part.len;
        });
        self.mark_dirty(skip, done);
        done
    }

    /// Marks `len` bytes from byte `skip` on as dirty, after the kernel or a [`Writer`] wrote them.
    pub fn mark_dirty(&self, skip: u64, len: usize) {
        if let Some(map) = self.map.filter(|map| map.is_logging()) {
            self.list.each(skip, len, |part| map.mark_dirty(part.region, part.host, part.len));
        }
    }
}

/// Writes the device-writable memory of a chain from front to back, in small pieces. What it wrote is to be marked with
/// [`WritableBuffers::mark_dirty`] in the end.
#[derive(Debug)]
pub struct Writer<'b> {
    cursor: Cursor<'b>,
}

impl Writer<'_> {
    /// Copies `from` to the next bytes. False where the buffers end before; what fits is copied.
    #[inline(always)]
    pub fn write(&mut self, mut from: &[u8]) -> bool {
        while !from.is_empty() {
            let Some((host, len)) = self.cursor.part(from.len()) else { return false };
            let (now, rest) = from.split_at(len);
            // SAFETY: the part is guest memory that the chain's map keeps mapped, and no reference to it exists. The map is
            // borrowed with the list.
            unsafe { copy::to_guest(now, host) };
            from = rest;
        }
        true
    }
}
