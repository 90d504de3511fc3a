//! The three parts of a split virtqueue (virtio 1.3 section 2.7) in guest memory: descriptor table, avail ring and used ring,
//! with their map. Every ring index is taken modulo the size of the queue, so that none is out of bounds. All accesses are
//! volatile or atomic, because the guest may change the memory at any time.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::memory::GuestMap;
use super::region::RegionIndex;
use super::table::DescriptorTable;

/// Bytes before the elements of a ring: flags and index.
const RING_HEADER_LEN: usize = 4;
/// Bytes of an element of the used ring.
const USED_ELEMENT_LEN: usize = 8;

/// The memory of a virtqueue.
#[derive(Debug)]
pub struct RingMemory {
    map: Arc<GuestMap>,
    /// Entries: a power of two, 1 to 32768.
    size: u16,
    /// 16 bytes an entry, 16-byte aligned.
    descriptors: NonNull<u8>,
    /// 6 + 2 * size bytes, 2-byte aligned.
    avail: NonNull<u8>,
    /// 6 + 8 * size bytes, 4-byte aligned.
    used: NonNull<u8>,
    used_region: RegionIndex,
}

// SAFETY: the pointers lead into mappings that `map` keeps; every access is volatile or atomic.
unsafe impl Send for RingMemory {}
// SAFETY: as above.
unsafe impl Sync for RingMemory {}

impl RingMemory {
    /// Translates the guest addresses of a virtqueue. `None` where a part is not in one region or is misaligned, or where the size
    /// is not a power of two.
    pub fn new(map: Arc<GuestMap>, size: u16, descriptors: u64, avail: u64, used: u64) -> Option<RingMemory> {
        if !size.is_power_of_two() {
            return None;
        }
        let n = u64::from(size);
        let part = |guest: u64, len: u64, align: usize| {
            let (region, bounds) = map.region_of(guest, len)?;
            let host = bounds.host_of(guest, len)?;
            host.addr().get().is_multiple_of(align).then_some((host, region))
        };
        let (descriptors, _) = part(descriptors, 16 * n, 16)?;
        let (avail, _) = part(avail, 6 + 2 * n, 2)?;
        let (used, used_region) = part(used, 6 + 8 * n, 4)?;
        Some(RingMemory { size, descriptors, avail, used, used_region, map })
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor table.
    #[inline]
    pub fn table(&self) -> DescriptorTable<'_> {
        // SAFETY: `new` checked that `size` entries are in one region of the map, which is borrowed with `self`.
        unsafe { DescriptorTable::of_ring(&self.map, self.descriptors, usize::from(self.size)) }
    }

    /// The map of the three parts.
    pub(super) fn map(&self) -> &GuestMap {
        &self.map
    }

    /// The position of ring index `index`.
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// Word `word` of the avail ring; the last one for a greater number.
    fn avail_word(&self, word: usize) -> &AtomicU16 {
        let word = word.min(RING_HEADER_LEN / 2 + usize::from(self.size));
        // SAFETY: `new` checked that 6 + 2 * size bytes are in one region, which `map` keeps mapped. The word is in these bytes.
        let address = unsafe { self.avail.add(2 * word) };
        // SAFETY: as above, and 2-byte aligned. This process accesses the word only as an atomic.
        unsafe { AtomicU16::from_ptr(address.as_ptr().cast()) }
    }

    /// Word `word` of the used ring; the last one for a greater number.
    fn used_word(&self, word: usize) -> &AtomicU16 {
        let word = word.min((RING_HEADER_LEN + USED_ELEMENT_LEN * usize::from(self.size)) / 2);
        // SAFETY: as in `avail_word`, for 6 + 8 * size bytes.
        let address = unsafe { self.used.add(2 * word) };
        // SAFETY: as above.
        unsafe { AtomicU16::from_ptr(address.as_ptr().cast()) }
    }

    fn mark_used(&self, from: NonNull<u8>, len: usize) {
        self.map.mark_dirty(self.used_region, from, len);
    }

    /// Marks the whole used ring as dirty.
    pub fn mark_used_ring(&self) {
        self.mark_used(self.used, RING_HEADER_LEN + USED_ELEMENT_LEN * usize::from(self.size) + 2);
    }

    /// Writes a word of the used ring. A value that is there already is not written, so that it dirties no page.
    fn store_used_word(&self, word: usize, value: u16) {
        let word = self.used_word(word);
        if word.load(Ordering::Relaxed) != value.to_le() {
            word.store(value.to_le(), Ordering::Relaxed);
            self.mark_used(NonNull::from(word).cast(), 2);
        }
    }

    /// Flags of the avail ring.
    pub fn avail_flags(&self) -> u16 {
        u16::from_le(self.avail_word(0).load(Ordering::Relaxed))
    }

    /// The driver's avail index. Loaded with acquire ordering: what the driver wrote before is visible.
    pub fn avail_index(&self) -> u16 {
        u16::from_le(self.avail_word(1).load(Ordering::Acquire))
    }

    /// The head of the descriptor chain at avail index `index`.
    pub fn avail_head(&self, index: u16) -> u16 {
        u16::from_le(self.avail_word(RING_HEADER_LEN / 2 + self.slot(index)).load(Ordering::Relaxed))
    }

    /// The used index at which the driver wants a call (EVENT_IDX).
    pub fn used_event(&self) -> u16 {
        u16::from_le(self.avail_word(RING_HEADER_LEN / 2 + usize::from(self.size)).load(Ordering::Relaxed))
    }

    /// Sets the flags of the used ring.
    pub fn set_used_flags(&self, flags: u16) {
        self.store_used_word(0, flags);
    }

    /// Sets the avail index at which the device wants a kick (EVENT_IDX).
    pub fn set_avail_event(&self, index: u16) {
        self.store_used_word((RING_HEADER_LEN + USED_ELEMENT_LEN * usize::from(self.size)) / 2, index);
    }

    /// Writes the used element at used index `index`.
    pub fn set_used_element(&self, index: u16, head: u16, len: u32) {
        let element = [u32::from(head).to_le(), len.to_le()];
        // SAFETY: `slot` is below `size`, so the element is in the used ring, which `new` checked and `map` keeps mapped.
        let address = unsafe { self.used.add(RING_HEADER_LEN + USED_ELEMENT_LEN * self.slot(index)) };
        // SAFETY: as above, and 4-byte aligned. No reference to the element exists in this process.
        unsafe { address.cast::<[u32; 2]>().write_volatile(element) };
        self.mark_used(address, USED_ELEMENT_LEN);
    }

    /// Sets the used index, with release ordering: the driver then reads the used elements before it.
    pub fn set_used_index(&self, index: u16) {
        self.used_word(1).store(index.to_le(), Ordering::Release);
        self.mark_used(self.used, RING_HEADER_LEN);
    }
}

#[cfg(test)]
mod tests {
    use super::super::MappedMemory;
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    fn map(len: usize) -> (MappedMemory, Arc<GuestMap>) {
        let memory = MappedMemory::from_ranges(&[(GuestAddress(0), len)]).unwrap();
        (memory.clone(), Arc::new(GuestMap::new(memory, Arc::default())))
    }

    #[test]
    fn a_ring_must_lie_in_one_region_aligned_and_of_a_power_of_two() {
        let (_, map) = map(0x1_0000);
        let ring = |size, descriptors, avail, used| RingMemory::new(Arc::clone(&map), size, descriptors, avail, used);
        assert!(ring(128, 0, 0x1000, 0x2000).is_some());
        for size in [0, 100] {
            assert!(ring(size, 0, 0x1000, 0x2000).is_none());
        }
        assert!(ring(128, 8, 0x1000, 0x2000).is_none());
        assert!(ring(128, 0, 0x1001, 0x2000).is_none());
        assert!(ring(128, 0, 0x1000, 0x2002).is_none());
        assert!(ring(32768, 0, 0x1000, 0x2000).is_none());
    }

    #[test]
    fn no_index_leads_out_of_the_rings() {
        let (memory, map) = map(0x1000);
        memory.write_slice(&[0xee; 0x1000], GuestAddress(0)).unwrap();
        let (avail, used) = (0x100, 0x200);
        let ring = RingMemory::new(map, 4, 0, avail, used).unwrap();
        for index in [0, 3, 4, 5, u16::MAX] {
            ring.set_used_element(index, index, 7);
            ring.avail_head(index);
        }
        ring.set_used_flags(1);
        ring.set_used_index(u16::MAX);
        ring.set_avail_event(u16::MAX);
        let mut bytes = vec![0; 0x1000];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        let outside = bytes[..used as usize].iter().chain(&bytes[used as usize + 6 + 8 * 4..]);
        assert!(outside.into_iter().all(|byte| *byte == 0xee));
        assert_eq!(
            (ring.avail_word(usize::MAX).load(Ordering::Relaxed), ring.used_word(usize::MAX).load(Ordering::Relaxed)),
            (0xeeee, 0xffff)
        );
    }
}
