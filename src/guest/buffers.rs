//! The memory of one descriptor chain: its readable and its writable buffers, with the memory of the ring that it
//! came from. Only the walk of that ring's table fills the lists, so that all of them lie in one map, which stays
//! as long as they do.

use std::io;
use std::sync::Arc;

use super::copy;
use super::memory::GuestMap;
use super::pages::{Appender, PageDescriptor, PageList};
use super::ring_memory::RingMemory;
use super::table::DescriptorTable;

/// The buffers of a chain. One object serves many chains, one after the other.
#[derive(Debug, Default)]
pub struct ChainBuffers {
    // Not empty only while `memory`, in which they lie, is held.
    readable: PageList,
    writable: PageList,
    memory: Option<Arc<RingMemory>>,
}

impl ChainBuffers {
    /// Starts over with a chain of the ring at `memory`: its table, and what takes the buffers.
    pub fn begin(&mut self, memory: Arc<RingMemory>) -> (DescriptorTable<'_>, Collector<'_>) {
        self.readable.clear();
        self.writable.clear();
        let memory: &RingMemory = self.memory.insert(memory);
        let collector = Collector { map: memory.map(), readable: &mut self.readable, writable: &mut self.writable };
        (memory.table(), collector)
    }

    /// Lets go of the chain and of its memory, which is given back.
    pub fn release(&mut self) -> Option<Arc<RingMemory>> {
        self.readable.clear();
        self.writable.clear();
        self.memory.take()
    }

    /// The memory that the device may read.
    pub fn readable(&self) -> ReadableBuffers<'_> {
        ReadableBuffers { list: &self.readable }
    }

    /// The memory that the device may write.
    pub fn writable(&mut self) -> WritableBuffers<'_> {
        let map = self.memory.as_deref().map(RingMemory::map);
        WritableBuffers { list: &self.writable, map }
    }

    /// Sets at most `len` bytes from `skip` on apart for a transfer, of those that the device may write, or read. Until
    /// [`ChainBuffers::end_transfer`] nothing else may be done with the buffers.
    pub fn begin_transfer(&mut self, writable: bool, skip: u64, len: u64) {
        if writable { self.writable.narrow(skip, len) } else { self.readable.narrow(skip, len) }
    }

    /// The page descriptors that were set apart.
    pub fn transfer_pages(&self) -> &[PageDescriptor] {
        let written = self.writable.narrowed();
        if written.is_empty() { self.readable.narrowed() } else { written }
    }

    /// The transfer is over.
    pub fn end_transfer(&mut self) {
        self.readable.widen();
        self.writable.widen();
    }

    /// Takes the whole pages of the buffers out of their map ([`GuestMap::renewed`] has them still): a host call that goes on
    /// with them reaches copies of the first `readable_max` bytes that it reads, and room that nobody sees for what it writes.
    /// An error where that cannot be done for all of them.
    pub fn withdraw(&self, readable_max: usize) -> io::Result<()> {
        let Some(map) = self.memory.as_deref().map(RingMemory::map) else { return Ok(()) };
        let parts_of = |list: &PageList, len| {
            let mut parts = Vec::new();
            list.each(0, len, |part| parts.push(part));
            parts
        };
        let written = map.withdraw(&parts_of(&self.writable, usize::MAX), false);
        written.and(map.withdraw(&parts_of(&self.readable, readable_max), true))
    }

    /// Entries of the ring that the chain came from; 0 without a chain.
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

    /// Bytes of storage that the page descriptors of the largest chain so far took.
    pub fn storage_bytes(&self) -> usize {
        self.readable.storage_bytes() + self.writable.storage_bytes()
    }
}

/// Takes the buffers of a chain, by their guest addresses.
#[derive(Debug)]
pub struct Collector<'b> {
    map: &'b GuestMap,
    readable: &'b mut PageList,
    writable: &'b mut PageList,
}

impl Collector<'_> {
    /// Whether a writable buffer came.
    #[inline]
    pub fn has_writable(&self) -> bool {
        self.writable.bytes() > 0
    }

    /// Opens a list for the buffer of `len` bytes at `guest` and those after it, which mostly lie in the same region: the
    /// first `push` takes it. `None` where no region holds it whole.
    #[inline]
    pub fn open(&mut self, writable: bool, guest: u64, len: u32) -> Option<Appender<'_>> {
        let place = self.map.region_of(guest, u64::from(len))?;
        Some(self.list(writable).open(place))
    }

    /// Appends a buffer in as many pieces as it crosses regions. False where it leaves memory; what lies before is appended
    /// then.
    pub fn append_across(&mut self, writable: bool, guest: u64, len: u32) -> bool {
        let map = self.map;
        self.list(writable).append_across(map, guest, len)
    }

    #[inline]
    fn list(&mut self, writable: bool) -> &mut PageList {
        if writable { self.writable } else { self.readable }
    }
}

/// The memory that the guest lets us read: header, arguments, and the payload of a WRITE.
#[derive(Debug)]
pub struct ReadableBuffers<'b> {
    list: &'b PageList,
}

impl ReadableBuffers<'_> {
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.list.bytes()
    }

    /// Copies from byte `skip` on into `to`; the number of bytes that were there.
    pub fn copy_to(&self, skip: u64, to: &mut [u8]) -> usize {
        let mut done = 0;
        self.list.each(skip, to.len(), |part| {
            // SAFETY: the part is guest memory that the chain's map, borrowed with the list, keeps mapped.
            unsafe { copy::from_guest(part.host, &mut to[done..done + part.len]) };
            done += part.len;
        });
        done
    }
}

/// The memory that the guest lets us write: the reply.
#[derive(Debug)]
pub struct WritableBuffers<'b> {
    list: &'b PageList,
    /// The map that the list lies in; `None` with an empty list only.
    map: Option<&'b GuestMap>,
}

impl WritableBuffers<'_> {
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.list.bytes()
    }

    /// Copies `from` to byte `skip` on and marks the pages dirty; the number of bytes that had room.
    pub fn copy_from(&mut self, skip: u64, from: &[u8]) -> usize {
        let mut done = 0;
        self.list.each(skip, from.len(), |part| {
            // SAFETY: the part is guest memory that the chain's map, borrowed with the list, keeps mapped; no reference leads there.
            unsafe { copy::to_guest(&from[done..done + part.len], part.host) };
            done += part.len;
        });
        self.mark_dirty(skip, done);
        done
    }

    /// Marks the first `len` bytes from `skip` on as written, after the kernel wrote them.
    pub fn mark_dirty(&self, skip: u64, len: usize) {
        if let Some(map) = self.map.filter(|map| map.is_logging()) {
            self.list.each(skip, len, |part| map.mark_dirty(part.region, part.host, part.len));
        }
    }
}
