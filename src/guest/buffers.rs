//! Page descriptors `<address, length>`: a descriptor chain's memory as a flat list that the kernel
//! takes as it is (`struct iovec`), and copies to and from it.
//!
//! The list's storage grows with the largest request and is used again: 16 bytes a page descriptor.

use std::ptr::NonNull;
use std::sync::Arc;

use super::memory::{GuestMap, GuestPiece};
use crate::sys::vectored::Segments;

/// One contiguous stretch of guest memory, laid out as `struct iovec` (man readv(2)).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageDescriptor {
    /// Host address.
    pub address: NonNull<u8>,
    /// Bytes.
    pub len: usize,
}

const _: () = assert!(size_of::<PageDescriptor>() == size_of::<libc::iovec>());

// SAFETY: an address of guest memory; who uses it holds the map that it came from.
unsafe impl Send for PageDescriptor {}
// SAFETY: as above; it is never written through without a copy routine of this module or the kernel.
unsafe impl Sync for PageDescriptor {}

// SAFETY: page descriptors are iovecs (asserted above) of guest memory; the buffers that hand them out
// keep the map, and with it the mapping, alive. Guest memory is never behind a Rust reference.
unsafe impl Segments for [PageDescriptor] {
    fn raw(&self) -> (*const libc::iovec, usize) {
        (self.as_ptr().cast(), self.len())
    }
}

/// Page descriptors in the order of the chain, neighbours merged.
#[derive(Debug, Default)]
pub struct PageList {
    /// The storage; the first `count` are the list.
    slots: Vec<PageDescriptor>,
    count: usize,
    bytes: u64,
    /// Where the last descriptor ends.
    end: usize,
}

/// What a list that needs storage begins with.
const SLOTS_MIN: usize = 4;
/// What an unused slot holds.
const UNUSED: PageDescriptor = PageDescriptor { address: NonNull::dangling(), len: 0 };

/// A list that is being appended to: by value, so that its fields stay in registers from one piece to the
/// next.
#[derive(Debug)]
pub struct Appender<'l> {
    slots: &'l mut [PageDescriptor],
    count: usize,
    bytes: u64,
    end: usize,
}

/// What an appender came to; given back to its list.
#[derive(Debug, Clone, Copy)]
pub struct Appended {
    count: usize,
    bytes: u64,
    end: usize,
}

impl Appender<'_> {
    /// Appends a piece; one that begins where the last one ends makes it longer. False, and nothing
    /// appended, where the storage is full.
    #[inline(always)]
    pub fn push(&mut self, piece: GuestPiece) -> bool {
        let begin = piece.host.as_ptr() as usize;
        if begin == self.end && self.count > 0 {
            self.slots[self.count - 1].len += piece.len;
        } else if let Some(slot) = self.slots.get_mut(self.count) {
            *slot = PageDescriptor { address: piece.host, len: piece.len };
            self.count += 1;
        } else {
            return false;
        }
        self.bytes += piece.len as u64;
        self.end = begin + piece.len;
        true
    }

    /// What was appended.
    #[inline(always)]
    pub fn finish(self) -> Appended {
        Appended { count: self.count, bytes: self.bytes, end: self.end }
    }
}

impl PageList {
    /// Forgets the pages, keeps the storage.
    pub fn clear(&mut self) {
        self.close(Appended { count: 0, bytes: 0, end: 0 });
    }

    /// Opens the list for a run of pieces; `close` takes what came of it.
    #[inline(always)]
    pub fn open(&mut self) -> Appender<'_> {
        Appender { slots: &mut self.slots, count: self.count, bytes: self.bytes, end: self.end }
    }

    /// Takes over what an appender of this list came to.
    #[inline(always)]
    pub fn close(&mut self, appended: Appended) {
        (self.count, self.bytes, self.end) = (appended.count, appended.bytes, appended.end);
    }

    /// Makes room for more.
    #[cold]
    pub fn grow(&mut self) {
        self.slots.resize((2 * self.slots.len()).max(SLOTS_MIN), UNUSED);
    }

    /// Appends one piece.
    pub fn push(&mut self, piece: GuestPiece) {
        loop {
            let mut appender = self.open();
            let fits = appender.push(piece);
            let appended = appender.finish();
            self.close(appended);
            if fits {
                return;
            }
            self.grow();
        }
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The descriptors.
    pub fn pages(&self) -> &[PageDescriptor] {
        &self.slots[..self.count]
    }

    /// Bytes of the list's storage.
    pub fn storage_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<PageDescriptor>()
    }

    /// Runs `work` on the descriptors of `len` bytes from `skip` on. Both ends are shortened in place and
    /// restored, so that the list is not copied. Fewer bytes than asked where the list ends.
    fn window<R>(&mut self, skip: u64, len: u64, work: impl FnOnce(&[PageDescriptor]) -> R) -> R {
        let mut first = 0;
        let mut offset = skip;
        while first < self.count && offset >= self.slots[first].len as u64 {
            offset -= self.slots[first].len as u64;
            first += 1;
        }
        if len == 0 || first == self.count {
            return work(&[]);
        }
        let mut end = first;
        let mut surplus = 0;
        let mut wanted = len.saturating_add(offset);
        while end < self.count && wanted > 0 {
            let held = self.slots[end].len as u64;
            surplus = held.saturating_sub(wanted);
            wanted = wanted.saturating_sub(held);
            end += 1;
        }
        let (head, tail) = (self.slots[first], self.slots[end - 1]);
        self.slots[end - 1].len -= surplus as usize;
        // SAFETY: `offset` is below the descriptor's length, so the address stays inside it.
        self.slots[first].address = unsafe { head.address.add(offset as usize) };
        self.slots[first].len -= offset as usize;
        let result = work(&self.slots[first..end]);
        self.slots[end - 1] = tail;
        self.slots[first] = head;
        result
    }
}

/// The memory that the guest lets us read: header, arguments, and the payload of a WRITE.
#[derive(Debug)]
pub struct ReadableBuffers {
    list: PageList,
    map: Arc<GuestMap>,
}

/// The memory that the guest lets us write: the reply.
#[derive(Debug)]
pub struct WritableBuffers {
    list: PageList,
    map: Arc<GuestMap>,
}

macro_rules! buffers {
    ($name:ident) => {
        impl $name {
            /// No memory yet.
            pub fn empty() -> $name {
                $name { list: PageList::default(), map: Arc::new(GuestMap::empty()) }
            }

            /// Starts over with pieces of `map`.
            pub fn restart(&mut self, map: &Arc<GuestMap>) {
                self.list.clear();
                if !Arc::ptr_eq(&self.map, map) {
                    self.map = Arc::clone(map);
                }
            }

            /// The list, for pieces that were translated by the map given to `restart`.
            pub fn list_mut(&mut self) -> &mut PageList {
                &mut self.list
            }

            /// Bytes in all.
            pub fn bytes(&self) -> u64 {
                self.list.bytes()
            }

            /// The page descriptors.
            pub fn pages(&self) -> &[PageDescriptor] {
                self.list.pages()
            }

            /// Bytes of the list's storage.
            pub fn storage_bytes(&self) -> usize {
                self.list.storage_bytes()
            }

            /// Runs `work` on the page descriptors of at most `len` bytes from `skip` on.
            pub fn window<R>(&mut self, skip: u64, len: u64, work: impl FnOnce(&[PageDescriptor]) -> R) -> R {
                self.list.window(skip, len, work)
            }
        }
    };
}

buffers!(ReadableBuffers);
buffers!(WritableBuffers);

impl ReadableBuffers {
    /// Copies from byte `skip` on into `to`; the number of bytes that were there.
    pub fn copy_to(&self, skip: u64, to: &mut [u8]) -> usize {
        let mut done = 0;
        self.list.each(skip, to.len(), |address, len| {
            // SAFETY: the list holds only translated guest memory, which the map keeps mapped; `to` is
            // ours and has `len` bytes left. The guest may change the source meanwhile: bytes are bytes.
            unsafe { std::ptr::copy_nonoverlapping(address, to[done..].as_mut_ptr(), len) };
            done += len;
        });
        done
    }
}

impl WritableBuffers {
    /// Copies `from` to byte `skip` on and marks the pages dirty; the number of bytes that had room.
    pub fn copy_from(&mut self, skip: u64, from: &[u8]) -> usize {
        let mut done = 0;
        let map = &self.map;
        self.list.each(skip, from.len(), |address, len| {
            // SAFETY: as in `copy_to`, with the directions exchanged.
            unsafe { std::ptr::copy_nonoverlapping(from[done..].as_ptr(), address, len) };
            if let Some(host) = NonNull::new(address) {
                map.mark_dirty(host, len);
            }
            done += len;
        });
        done
    }

    /// Marks the first `len` bytes from `skip` on as written, after the kernel wrote them.
    pub fn mark_dirty(&self, skip: u64, len: usize) {
        if self.map.is_logging() {
            self.list.each(skip, len, |address, len| {
                if let Some(host) = NonNull::new(address) {
                    self.map.mark_dirty(host, len);
                }
            });
        }
    }
}

impl PageList {
    /// Calls `visit` with each contiguous stretch of at most `len` bytes from `skip` on.
    fn each(&self, skip: u64, len: usize, mut visit: impl FnMut(*mut u8, usize)) {
        let mut offset = skip;
        let mut left = len;
        for page in self.pages() {
            if left == 0 {
                return;
            }
            if offset >= page.len as u64 {
                offset -= page.len as u64;
                continue;
            }
            let stretch = left.min(page.len - offset as usize);
            visit(page.address.as_ptr().wrapping_add(offset as usize), stretch);
            left -= stretch;
            offset = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_at(address: *const u8, len: usize) -> Vec<u8> {
        // SAFETY: the tests' lists lead into a buffer that outlives them.
        unsafe { std::slice::from_raw_parts(address, len) }.to_vec()
    }

    fn list_over(buffer: &mut [u8], lens: &[usize]) -> PageList {
        let mut list = PageList::default();
        let mut at = 0;
        for &len in lens {
            let host = NonNull::new(buffer[at..].as_mut_ptr()).unwrap();
            list.push(GuestPiece { host, len });
            at += len + 1; // a gap, so that neighbours do not merge
        }
        list
    }

    #[test]
    fn neighbours_merge_and_others_do_not() {
        let mut buffer = [0u8; 64];
        let host = NonNull::new(buffer.as_mut_ptr()).unwrap();
        let mut list = PageList::default();
        list.push(GuestPiece { host, len: 8 });
        for at in [8, 17] {
            let host = NonNull::new(buffer[at..].as_mut_ptr()).unwrap();
            list.push(GuestPiece { host, len: 8 });
        }
        assert_eq!(list.pages().iter().map(|p| p.len).collect::<Vec<_>>(), [16, 8]);
        assert_eq!(list.bytes(), 24);
    }

    proptest! {
        #[test]
        fn a_window_shows_exactly_its_bytes_and_restores_the_list(
            lens in proptest::collection::vec(1usize..9, 1..9), skip in 0u64..40, len in 0u64..60,
        ) {
            let mut buffer = vec![0u8; 128];
            for (i, byte) in buffer.iter_mut().enumerate() {
                *byte = i as u8;
            }
            let mut list = list_over(&mut buffer, &lens);
            let before = list.pages().to_vec();
            let mut flat = Vec::new();
            list.each(0, usize::MAX, |p, n| flat.extend(bytes_at(p, n)));
            let want: Vec<u8> = flat.iter().copied().skip(skip as usize).take(len as usize).collect();
            let mut got = Vec::new();
            list.window(skip, len, |pages| {
                for page in pages {
                    assert!(page.len > 0);
                    got.extend(bytes_at(page.address.as_ptr(), page.len));
                }
            });
            prop_assert_eq!(&got, &want);
            prop_assert_eq!(list.pages(), &before[..]);
            let mut each = Vec::new();
            list.each(skip, len as usize, |p, n| each.extend(bytes_at(p, n)));
            prop_assert_eq!(each, want);
        }
    }
}
