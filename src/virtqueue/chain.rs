//! A descriptor chain: the single walk of it into readable and writable page descriptors, and the private copy of
//! what the device reads first. Storage is reused from chain to chain. Knows nothing of what the bytes mean.

use std::io;
use std::sync::Arc;

use crate::guest::{Appender, ChainBuffers, DescriptorTable, GuestMap, PageDescriptor, RingMemory, WritableBuffers, Writer};

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const DESC_LEN: usize = 16;

/// Descriptors of one chain. An indirect table can name 65535; the largest queue has 32768 entries and
/// a driver must not make longer chains (virtio 1.3 section 2.7.5.3.1), so more is a mistake.
pub const CHAIN_LEN_MAX: usize = 32768;
/// Bytes of arguments that are copied: the largest are a 64 KiB xattr value, its name and extensions.
/// What a WRITE carries is not copied and does not count.
pub const ARGUMENTS_LEN_MAX: usize = 128 * 1024;

/// How a chain broke the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// A descriptor index that the table does not have.
    #[error("descriptor index {0} is outside the table")]
    Index(u16),
    /// More descriptors than a chain may have: a loop.
    #[error("the chain loops or is longer than its table")]
    Loop,
    /// A buffer outside guest memory.
    #[error("buffer {address:#x}+{len:#x} is outside guest memory")]
    Outside {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// A readable descriptor behind a writable one.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// An indirect table inside an indirect table, or one that is followed by more descriptors.
    #[error("an indirect table is nested or followed by a descriptor")]
    Indirect,
    /// An indirect table whose length is no multiple of 16, zero, or above the limit.
    #[error("an indirect table has a length of {0} bytes")]
    TableLen(u32),
}

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// The entry that lies in these two words of guest memory.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the fields of the second word")]
    fn of(words: [u64; 2]) -> Descriptor {
        let [address, rest] = words.map(u64::from_le);
        Descriptor { address, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }
}

/// A descriptor chain as it came off a queue. One object holds many chains, one after the other.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    buffers: ChainBuffers,
    arguments: Vec<u8>,
    fault: Option<ChainFault>,
    ring_descriptors: u16,
}

impl Chain {
    /// An object without a chain.
    pub fn new() -> Chain {
        Chain::default()
    }

    /// Takes the whole pages of the chain's buffers, of those that are read for the first `readable_max` bytes, out of the map
    /// that it was walked with: a host call that still uses them then reaches neither the guest's memory nor what the guest
    /// puts there later. An error where that cannot be done.
    pub fn withdraw_pages(&self, readable_max: usize) -> io::Result<()> {
        self.buffers.withdraw(readable_max)
    }

    /// Whether any of the chain's buffers lies in a region of guest memory that is not in `new`.
    pub fn loses_memory(&self, new: &GuestMap) -> bool {
        self.buffers.loses_memory(new)
    }

    /// Walks the chain that begins at `head` in the ring at `memory`, which is held until [`Chain::release`] or the next
    /// walk. What can be read of a faulty chain is kept, so that it can be answered; [`Chain::fault`] tells.
    pub fn walk(&mut self, head: u16, memory: Arc<RingMemory>) {
        self.head = head;
        self.fault = None;
        self.ring_descriptors = 0;
        let (table, mut collector) = self.buffers.begin(memory);
        let mut chain = Walk::new(table);
        let mut next = Some(chain.read(head));
        while let Some(read) = next {
            let d = match read {
                Ok(d) => d,
                Err(fault) => {
                    self.fault.get_or_insert(fault);
                    return;
                }
            };
            if d.flags & DESC_INDIRECT != 0 {
                self.ring_descriptors = chain.taken();
                next = Some(chain.enter(&d));
                continue;
            }
            let writable = d.flags & DESC_WRITE != 0;
            // Faults of one buffer do not end the walk: the reply's buffers may follow.
            if !writable && collector.has_writable() {
                self.fault.get_or_insert(ChainFault::Order);
                next = chain.next(&d);
                continue;
            }
            next = match collector.open(writable, d.address, d.len) {
                Some(run) => chain.run(run, d),
                None => {
                    if !collector.append_across(writable, d.address, d.len) {
                        self.fault.get_or_insert(ChainFault::Outside { address: d.address, len: d.len });
                    }
                    chain.next(&d)
                }
            };
        }
        if self.ring_descriptors == 0 {
            self.ring_descriptors = chain.taken();
        }
    }

    /// Releases the chain and returns the memory that it lies in: a thread without a request keeps
    /// no guest memory mapped.
    pub fn release(&mut self) -> Option<Arc<RingMemory>> {
        self.buffers.release()
    }

    /// The first fault of the chain.
    pub fn fault(&self) -> Option<ChainFault> {
        self.fault
    }

    /// The chain's first descriptor: what the used ring names it by.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Entries of the ring that it came from; 0 without a chain.
    pub fn ring_size(&self) -> u16 {
        self.buffers.ring_size()
    }

    /// Descriptors of the ring's own table that the chain takes until it is answered.
    pub fn ring_descriptors(&self) -> u16 {
        self.ring_descriptors
    }

    /// Bytes that the guest sent.
    pub fn readable_bytes(&self) -> u64 {
        self.buffers.readable_bytes()
    }

    /// Bytes that a reply may have.
    pub fn writable_bytes(&self) -> u64 {
        self.buffers.writable_bytes()
    }

    /// Copies the first `len` readable bytes, or as many as there are, and forgets an earlier copy.
    pub fn copy_arguments(&mut self, len: usize) -> &[u8] {
        let readable = usize::try_from(self.buffers.readable_bytes()).unwrap_or(usize::MAX);
        let len = len.min(readable).min(ARGUMENTS_LEN_MAX);
        // `clear` first: growing must not move stale bytes.
        self.arguments.clear();
        self.arguments.resize(len, 0);
        self.buffers.readable().copy_to(0, &mut self.arguments);
        &self.arguments
    }

    /// What was copied.
    pub fn arguments(&self) -> &[u8] {
        &self.arguments
    }

    /// Copies readable bytes to `to`, from byte `skip` on. Returns the bytes copied, fewer where there are no more.
    pub fn copy_readable(&self, skip: u64, to: &mut [u8]) -> usize {
        self.buffers.readable().copy_to(skip, to)
    }

    /// Copies writable bytes to `to`, from byte `skip` on: what was written there. Returns the bytes copied.
    pub fn copy_written(&self, skip: u64, to: &mut [u8]) -> usize {
        self.buffers.written().copy_to(skip, to)
    }

    /// The memory that the device may write.
    pub fn writable(&mut self) -> WritableBuffers<'_> {
        self.buffers.writable()
    }

    /// A writer to that memory, from byte `skip` on.
    pub fn writable_from(&mut self, skip: u64) -> Writer<'_> {
        self.buffers.writable_from(skip)
    }

    /// Sets at most `len` bytes from `skip` on apart for a transfer, of those that the device may write, or read. Until
    /// [`Chain::end_transfer`] nothing else may be done with the chain's memory.
    pub fn begin_transfer(&mut self, writable: bool, skip: u64, len: u64) {
        self.buffers.begin_transfer(writable, skip, len);
    }

    /// The page descriptors that were set apart.
    pub fn transfer_pages(&self) -> &[PageDescriptor] {
        self.buffers.transfer_pages()
    }

    /// The transfer is over.
    pub fn end_transfer(&mut self) {
        self.buffers.end_transfer();
    }

    /// Bytes of storage that the page descriptors of the largest chain so far took.
    pub fn descriptor_storage_bytes(&self) -> usize {
        self.buffers.storage_bytes()
    }

    /// Bytes of storage that are kept for the next chain.
    pub fn storage_bytes(&self) -> usize {
        self.descriptor_storage_bytes() + self.arguments.capacity()
    }

    /// The page descriptors that the device may write to.
    pub fn writable_pages(&self) -> &[PageDescriptor] {
        self.buffers.writable_pages()
    }

    /// The page descriptors that the device may read.
    pub fn readable_pages(&self) -> &[PageDescriptor] {
        self.buffers.readable_pages()
    }
}

/// The rest of a chain: its table, and how many descriptors may follow before it must be a loop.
struct Walk<'m> {
    table: DescriptorTable<'m>,
    left: usize,
}

impl<'m> Walk<'m> {
    fn new(table: DescriptorTable<'m>) -> Walk<'m> {
        Walk { left: table.count(), table }
    }

    /// Descriptors read of the present table.
    #[expect(clippy::cast_possible_truncation, reason = "a table has at most CHAIN_LEN_MAX descriptors")]
    fn taken(&self) -> u16 {
        (self.table.count() - self.left) as u16
    }

    /// Descriptor `index`.
    fn read(&mut self, index: u16) -> Result<Descriptor, ChainFault> {
        if usize::from(index) >= self.table.count() {
            return Err(ChainFault::Index(index));
        }
        if self.left == 0 {
            return Err(ChainFault::Loop);
        }
        self.left -= 1;
        self.table.read(usize::from(index)).map(Descriptor::of).ok_or(ChainFault::Index(index))
    }

    /// What follows `d`; `None` at the end.
    fn next(&mut self, d: &Descriptor) -> Option<Result<Descriptor, ChainFault>> {
        (d.flags & DESC_NEXT != 0).then(|| self.read(d.next))
    }

    /// Goes on in the indirect table that `d` names: its first descriptor.
    fn enter(&mut self, d: &Descriptor) -> Result<Descriptor, ChainFault> {
        if self.table.is_indirect() || d.flags & DESC_NEXT != 0 {
            return Err(ChainFault::Indirect);
        }
        let count = d.len as usize / DESC_LEN;
        if count == 0 || count > CHAIN_LEN_MAX || !(d.len as usize).is_multiple_of(DESC_LEN) {
            return Err(ChainFault::TableLen(d.len));
        }
        let outside = ChainFault::Outside { address: d.address, len: d.len };
        self.table = self.table.indirect(d.address, count).ok_or(outside)?;
        self.left = count;
        self.read(0)
    }

    /// Appends `d` and what follows it, as long as that lies in the region of `run` too and goes the same way: most
    /// chains are one such run. What comes after it; `None` at the end of the chain.
    fn run(&mut self, mut run: Appender<'_>, mut d: Descriptor) -> Option<Result<Descriptor, ChainFault>> {
        enum After {
            Nothing,
            Another,
            Unread,
        }
        let way = d.flags & DESC_WRITE;
        let mut left = self.left;
        let after = loop {
            if !run.push(d.address, d.len) {
                break After::Another;
            }
            if d.flags & DESC_NEXT == 0 {
                break After::Nothing;
            }
            if left == 0 {
                break After::Unread;
            }
            let Some(words) = self.table.read_whole(usize::from(d.next)) else { break After::Unread };
            left -= 1;
            d = Descriptor::of(words);
            if d.flags & (DESC_WRITE | DESC_INDIRECT) != way {
                break After::Another;
            }
        };
        run.finish();
        self.left = left;
        match after {
            After::Nothing => None,
            After::Another => Some(Ok(d)),
            After::Unread => Some(self.read(d.next)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{GuestMap, MappedMemory};
    use proptest::prelude::*;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor as SplitDescriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    const TABLE_LEN: u16 = 64;

    fn memory() -> (MappedMemory, Arc<GuestMap>) {
        let memory = MappedMemory::from_ranges(&[(GuestAddress(0), 0x10_0000), (GuestAddress(0x10_0000), 0x10_0000)]).unwrap();
        let map = Arc::new(GuestMap::new(memory.clone(), Arc::default()));
        (memory, map)
    }

    fn put(memory: &MappedMemory, table: u64, index: u64, address: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(table + index * 16);
        memory.write_obj(address.to_le(), at).unwrap();
        memory.write_obj(len.to_le(), GuestAddress(at.0 + 8)).unwrap();
        memory.write_obj(flags.to_le(), GuestAddress(at.0 + 12)).unwrap();
        memory.write_obj(next.to_le(), GuestAddress(at.0 + 14)).unwrap();
    }

    /// A ring with its table at `table`; the other parts lie where no test looks.
    fn ring(map: &Arc<GuestMap>, size: u16, table: u64) -> Arc<RingMemory> {
        Arc::new(RingMemory::new(Arc::clone(map), size, table, 0xe_0000, 0xf_0000).unwrap())
    }

    fn walk(map: &Arc<GuestMap>, head: u16) -> Chain {
        let mut chain = Chain::new();
        chain.walk(head, ring(map, TABLE_LEN, 0));
        chain
    }

    #[test]
    fn direct_and_indirect_chains_give_the_same_pages() {
        let (memory, map) = memory();
        let parts = [(0x8000, 40, 0), (0x9000, 4096, 0), (0xa000, 4096, 0), (0xc000, 16, DESC_WRITE)];
        for (i, (address, len, flags)) in parts.into_iter().enumerate() {
            let next = if i < 3 { DESC_NEXT } else { 0 };
            put(&memory, 0, i as u64, address, len, flags | next, i as u16 + 1);
            put(&memory, 0x5000, i as u64, address, len, flags | next, i as u16 + 1);
        }
        put(&memory, 0, 9, 0x5000, 64, DESC_INDIRECT, 0);
        for head in [0, 9] {
            let chain = walk(&map, head);
            assert_eq!(chain.fault(), None);
            let lens: Vec<usize> = chain.readable_pages().iter().map(PageDescriptor::len).collect();
            assert_eq!(lens, [40, 8192], "adjacent pages merge");
            assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (8232, 16));
        }
    }

    #[test]
    fn a_buffer_and_a_table_that_cross_regions_are_split_not_refused() {
        let (memory, map) = memory();
        put(&memory, 0, 0, 0x10_0000 - 24, 32, DESC_INDIRECT, 0);
        put(&memory, 0x10_0000 - 24, 0, 0x10_0000 - 100, 200, DESC_NEXT, 1);
        put(&memory, 0x10_0000 - 24, 1, 0x8000, 16, DESC_WRITE, 0);
        memory.write_slice(&[7; 76], GuestAddress(0x10_0000 - 100)).unwrap();
        let chain = walk(&map, 0);
        assert_eq!(chain.fault(), None);
        assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (200, 16));
    }

    #[test]
    fn each_broken_rule_is_named() {
        let (memory, map) = memory();
        let fault = |memory: &MappedMemory, entries: &[(u64, u64, u32, u16, u16)]| {
            for &(index, address, len, flags, next) in entries {
                put(memory, 0, index, address, len, flags, next);
            }
            walk(&map, 0).fault()
        };
        assert_eq!(fault(&memory, &[(0, 0x8000, 8, DESC_NEXT, 64)]), Some(ChainFault::Index(64)));
        assert_eq!(fault(&memory, &[(0, 0x8000, 8, DESC_NEXT, 0)]), Some(ChainFault::Loop));
        assert_eq!(fault(&memory, &[(0, 0x40_0000, 8, 0, 0)]), Some(ChainFault::Outside { address: 0x40_0000, len: 8 }));
        assert_eq!(fault(&memory, &[(0, u64::MAX - 3, 8, 0, 0)]), Some(ChainFault::Outside { address: u64::MAX - 3, len: 8 }));
        assert_eq!(fault(&memory, &[(0, 0x8000, 8, DESC_NEXT | DESC_WRITE, 1), (1, 0x8000, 8, 0, 0)]), Some(ChainFault::Order));
        assert_eq!(fault(&memory, &[(0, 0x5000, 16, DESC_INDIRECT | DESC_NEXT, 1)]), Some(ChainFault::Indirect));
        assert_eq!(fault(&memory, &[(0, 0x5000, 17, DESC_INDIRECT, 1)]), Some(ChainFault::TableLen(17)));
        assert_eq!(fault(&memory, &[(0, 0x5000, 0, DESC_INDIRECT, 1)]), Some(ChainFault::TableLen(0)));
        put(&memory, 0x5000, 0, 0x5000, 16, DESC_INDIRECT, 0);
        assert_eq!(fault(&memory, &[(0, 0x5000, 16, DESC_INDIRECT, 0)]), Some(ChainFault::Indirect));
        put(&memory, 0x5000, 0, 0x8000, 16, DESC_NEXT, 1);
        assert_eq!(fault(&memory, &[(0, 0x5000, 16, DESC_INDIRECT, 0)]), Some(ChainFault::Index(1)));
        assert_eq!(walk(&map, 64).fault(), Some(ChainFault::Index(64)));
    }

    #[test]
    fn a_faulty_buffer_leaves_the_rest_of_the_chain_answerable() {
        let (memory, map) = memory();
        put(&memory, 0, 0, 0x8000, 40, DESC_NEXT, 1);
        put(&memory, 0, 1, 0x40_0000, 4096, DESC_NEXT, 2);
        put(&memory, 0, 2, 0x9000, 16, DESC_WRITE, 0);
        let mut chain = walk(&map, 0);
        assert!(matches!(chain.fault(), Some(ChainFault::Outside { .. })));
        assert_eq!((chain.copy_arguments(80).len(), chain.writable_bytes()), (40, 16));
        assert_eq!(chain.writable().copy_from(0, &[5; 20]), 16);
        assert_eq!(memory.read_obj::<[u8; 16]>(GuestAddress(0x9000)).unwrap(), [5; 16]);
    }

    #[test]
    fn storage_grows_with_the_request_as_the_architecture_says_and_is_used_again() {
        let memory = MappedMemory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let map = Arc::new(GuestMap::new(memory.clone(), Arc::default()));
        let ring = ring(&map, 2048, 0);
        // As in docs/ARCHITECTURE.md, "Memory".
        for (pages, bytes) in [(1, 64), (32, 1024), (256, 8192), (1020, 16_384)] {
            put(&memory, 0, 0, 0xf000, 16, DESC_WRITE | DESC_NEXT, 1);
            for i in 1..=pages {
                let next = if i < pages { DESC_NEXT } else { 0 };
                put(&memory, 0, i, 0x10_0000 + i * 0x2000, 4096, DESC_WRITE | next, i as u16 + 1);
            }
            let mut chain = Chain::new();
            chain.walk(0, Arc::clone(&ring));
            assert_eq!(chain.descriptor_storage_bytes(), bytes, "{pages} pages");
            chain.walk(0, Arc::clone(&ring));
            assert_eq!(chain.descriptor_storage_bytes(), bytes, "used again");
        }
    }

    proptest! {
        /// virtio-queue's iterator is the oracle: on well-formed chains both see the same buffers.
        #[test]
        fn chains_read_as_virtio_queue_reads_them(
            parts in proptest::collection::vec((0u64..0x1000, 1u32..5000), 1..40), readable in 0usize..40, indirect: bool,
        ) {
            let (memory, _) = memory();
            let queue = MockSplitQueue::new(&memory, 64);
            let readable = readable.min(parts.len());
            let descriptors: Vec<RawDescriptor> = parts.iter().enumerate().map(|(i, &(page, len))| {
                let write = if i >= readable { DESC_WRITE } else { 0 };
                let next = if i + 1 < parts.len() { DESC_NEXT } else { 0 };
                RawDescriptor::from(SplitDescriptor::new(0x8_0000 + page * 256, len, write | next, i as u16 + 1))
            }).collect();
            if indirect {
                let table = 0x6_0000u64;
                for (i, d) in descriptors.iter().enumerate() {
                    memory.write_obj(*d, GuestAddress(table + i as u64 * 16)).unwrap();
                }
                let one = SplitDescriptor::new(table, descriptors.len() as u32 * 16, DESC_INDIRECT, 0);
                queue.build_desc_chain(&[RawDescriptor::from(one)]).unwrap();
            } else {
                queue.build_desc_chain(&descriptors).unwrap();
            }
            let map = Arc::new(GuestMap::new(memory.clone(), Arc::default()));
            let mut chain = Chain::new();
            chain.walk(0, ring(&map, 64, queue.desc_table_addr().0));
            prop_assert_eq!(chain.fault(), None);

            let mut oracle: virtio_queue::Queue = queue.create_queue().unwrap();
            let descriptors = virtio_queue::QueueOwnedT::iter(&mut oracle, &memory).unwrap().next().unwrap();
            let mut theirs: [Vec<(usize, usize)>; 2] = Default::default();
            for d in descriptors {
                let mut at = d.addr();
                let mut left = d.len() as usize;
                while left > 0 {
                    let piece = memory.get_slices(at, left).next().unwrap().unwrap();
                    theirs[usize::from(d.is_write_only())].push((piece.ptr_guard().as_ptr() as usize, piece.len()));
                    left -= piece.len();
                    at.0 += piece.len() as u64;
                }
            }
            let flat = |pieces: &[(usize, usize)]| pieces.iter().flat_map(|&(at, len)| at..at + len).collect::<Vec<_>>();
            let ours = |pages: &[PageDescriptor]| {
                flat(&pages.iter().map(|p| (p.address(), p.len())).collect::<Vec<_>>())
            };
            prop_assert_eq!(ours(chain.readable_pages()), flat(&theirs[0]));
            prop_assert_eq!(ours(chain.writable_pages()), flat(&theirs[1]));
        }

        /// Whatever a guest writes into its table, the walk ends and stays inside memory.
        #[test]
        fn any_table_is_walked_to_an_end(entries in proptest::collection::vec((0u64..0x30_0000, any::<u32>(), any::<u16>(), 0u16..70), 64), head in 0u16..70) {
            let (memory, map) = memory();
            for (i, &(address, len, flags, next)) in entries.iter().enumerate() {
                put(&memory, 0, i as u64, address, len, flags & 7, next);
            }
            let chain = walk(&map, head);
            for page in chain.readable_pages().iter().chain(chain.writable_pages()) {
                let inside = |guest| {
                    let region = map.piece(guest, 0x10_0000).unwrap();
                    page.address() >= region.address() && page.address() + page.len() <= region.address() + region.len()
                };
                prop_assert!(inside(0) || inside(0x10_0000), "in one of the two regions, and in one only");
            }
        }
    }
}
