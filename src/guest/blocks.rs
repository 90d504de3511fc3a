//! All of a memory table as blocks of limited length, to be registered with the kernel for I/O.

use std::sync::Arc;

use super::memory::GuestMap;
use super::pages::PageDescriptor;
use super::region::Bounds;

/// The blocks of a map, which they keep: no other memory gets their addresses as long as this exists.
#[derive(Debug)]
pub struct MemoryBlocks {
    blocks: Vec<PageDescriptor>,
    #[cfg_attr(not(test), expect(dead_code, reason = "keeps the memory mapped"))]
    map: Arc<GuestMap>,
}

impl MemoryBlocks {
    /// The memory of `map` in blocks of at most `len_max` bytes, at most `count_max` of them. What is beyond is left out.
    pub fn new(map: Arc<GuestMap>, len_max: usize, count_max: usize) -> MemoryBlocks {
        let blocks = map.bounds().flat_map(|bounds| blocks_of(bounds, len_max)).take(count_max).collect();
        MemoryBlocks { blocks, map }
    }

    /// The blocks.
    pub fn pages(&self) -> &[PageDescriptor] {
        &self.blocks
    }

    /// The block that has all of `pages`. `None` where there is none, or where `pages` is empty.
    pub fn index_of(&self, pages: &[PageDescriptor]) -> Option<usize> {
        let first = pages.first()?;
        let index = self.blocks.iter().position(|block| block.contains(first))?;
        pages.iter().all(|page| self.blocks[index].contains(page)).then_some(index)
    }

    /// Blocks of the same map.
    #[cfg(test)]
    fn cut(&self, len_max: usize) -> MemoryBlocks {
        MemoryBlocks::new(Arc::clone(&self.map), len_max, usize::MAX)
    }
}

/// A region in blocks of at most `len_max` bytes.
fn blocks_of(bounds: Bounds, len_max: usize) -> impl Iterator<Item = PageDescriptor> {
    let mut guest = bounds.guest();
    std::iter::from_fn(move || {
        let len = bounds.left_at(guest).min(len_max);
        let host = bounds.host_of(guest, len as u64)?;
        guest += len as u64;
        Some(PageDescriptor::of_block(host, len))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::MappedMemory;
    use vm_memory::GuestAddress;

    #[test]
    fn pages_are_in_a_block_or_in_none() {
        let ranges = [(0x1000, 0x5000), (0x10_0000, 0x1000)].map(|(at, len)| (GuestAddress(at), len));
        let map = || Arc::new(GuestMap::new(MappedMemory::from_ranges(&ranges).unwrap(), Arc::default()));
        let blocks = MemoryBlocks::new(map(), 0x2000, 8);
        let lens: Vec<usize> = blocks.pages().iter().map(PageDescriptor::len).collect();
        assert_eq!(lens, [0x2000, 0x2000, 0x1000, 0x1000]);
        let small = blocks.cut(0x1000);
        assert_eq!(blocks.index_of(&small.pages()[..2]), Some(0));
        assert_eq!(blocks.index_of(&small.pages()[2..3]), Some(1));
        assert_eq!(blocks.index_of(&small.pages()[1..3]), None, "they are in two blocks");
        assert_eq!(blocks.index_of(&blocks.cut(usize::MAX).pages()[..1]), None, "it begins in a block and does not end there");
        assert_eq!(blocks.index_of(&[]), None);
        let other = MemoryBlocks::new(map(), usize::MAX, 8);
        assert_eq!(blocks.index_of(other.pages()), None, "another mapping of the same table");
        assert_eq!(MemoryBlocks::new(map(), 0x1000, 3).pages().len(), 3);
    }
}
