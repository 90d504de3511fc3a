//! A mapping of a guest memory region that is ours alone, beside that of vhost-user-backend. Only with one of our own can
//! pages be taken away from a host call that does not end, without anybody else losing sight of them.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags};
use vm_memory::FileOffset;

/// A shared mapping of a part of the guest's memory file.
#[derive(Debug)]
pub(super) struct Mapping {
    host: NonNull<u8>,
    len: usize,
}

// SAFETY: an address range that stays mapped as long as the object lives; what is done with it is up to `GuestMap`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file`.
    pub fn new(file: &FileOffset, len: usize) -> io::Result<Mapping> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let host = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, file.file(), file.start()) }?;
        let host = NonNull::new(host.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Mapping { host, len })
    }

    /// Where it begins.
    pub fn host(&self) -> NonNull<u8> {
        self.host
    }

    /// Puts a private copy in the place of the whole pages among the `len` bytes at `offset`: a host call that still uses
    /// these addresses goes on with the copy, and the guest's memory is left alone. Pages that a call has pinned (direct
    /// I/O) are not the mapping's any more and stay in use. Bytes of pages that are only partly named stay shared: others'
    /// may lie beside them. An error where the mapping cannot be cut there, as one of huge pages.
    pub fn withdraw(&self, offset: usize, len: usize) -> io::Result<()> {
        let page = rustix::param::page_size();
        let end = offset.saturating_add(len).min(self.len) / page * page;
        let begin = offset.next_multiple_of(page);
        if begin >= end {
            return Ok(());
        }
        let len = end - begin;
        // SAFETY: `begin` lies inside the mapping.
        let shared = unsafe { self.host.add(begin) };
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let copy = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags) }?;
        // SAFETY: `len` bytes were mapped just now, and nobody else has their address yet.
        let bytes = unsafe { std::slice::from_raw_parts_mut(copy.cast::<u8>(), len) };
        // SAFETY: as many bytes lie in the mapping from `begin` on.
        unsafe { super::copy::from_guest(shared, bytes) };
        // SAFETY: the new mapping takes the place of pages of ours that hold nothing of Rust's.
        let moved = unsafe { rustix::mm::mremap_fixed(copy, len, len, MremapFlags::MAYMOVE, shared.as_ptr().cast()) };
        if moved.is_err() {
            // SAFETY: made above, and nobody has its address.
            let _ = unsafe { rustix::mm::munmap(copy, len) };
        }
        moved?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`; `GuestMap` lets nobody keep an address beyond its own life. Pages that were withdrawn lie
        // in the same range.
        let _ = unsafe { rustix::mm::munmap(self.host.as_ptr().cast(), self.len) };
    }
}
