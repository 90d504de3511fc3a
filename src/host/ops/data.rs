//! READ, WRITE, FSYNC, FALLOCATE, LSEEK and COPY_FILE_RANGE: file data.

use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, SeekFrom};

use crate::guest::PageDescriptor;
use crate::host::files::{FileInUse, OpenTarget};
use crate::host::repeating::{moved_before, size_word};
use crate::host::request_context::{Left, RequestContext};
use crate::host::share::Share;
use crate::io::{self, Action, Thread, Unaligned};
use crate::metrics::Metrics;
use crate::state::OpenFile;
use crate::sys::descriptor;
use crate::sys::fsetid::{keep_suidgid, without_fsetid};
use crate::sys::open;
use crate::sys::space::{self, lseek};
use crate::sys::stat;
use crate::types::{Errno, FileHandle, GuestUid, NodeId};

/// Largest COPY_FILE_RANGE: the old reply has 32 bits. The guest sends another request for the rest.
const COPY_LEN_MAX: u64 = 0x7fff_f000;

/// Arguments of a WRITE.
#[derive(Debug, Clone, Copy)]
pub struct WriteRequest {
    /// The open file.
    pub handle: FileHandle,
    /// Byte offset.
    pub offset: u64,
    /// The guest's open flags at the time of the write.
    pub flags: u32,
    /// The guest's page cache writes back; otherwise an application writes.
    pub from_cache: bool,
    /// The caller may not keep setuid and setgid bits of the file.
    pub clears_suidgid: bool,
}

/// What COPY_FILE_RANGE copies.
#[derive(Debug, Clone, Copy)]
pub struct CopyRange {
    /// The file to read.
    pub from: FileHandle,
    /// Byte offset in it.
    pub from_offset: u64,
    /// The file to write.
    pub to: FileHandle,
    /// Byte offset in it.
    pub to_offset: u64,
    /// Bytes.
    pub len: u64,
    /// As in man copy_file_range(2): none is defined.
    pub flags: u64,
}

/// A READ, WRITE or FSYNC that was checked, for an I/O engine.
#[derive(Debug)]
pub struct PreparedTransfer {
    /// The open file.
    pub file: FileInUse,
    /// What is to be done.
    pub action: Action,
    /// Which thread may make the call.
    pub thread: Thread,
    /// A file opened with O_DIRECT also serves the guest's page cache (mmap, write-back of an odd-sized file): a transfer that
    /// O_DIRECT refuses for its alignment is made through a second descriptor without it.
    pub unaligned: Unaligned,
    /// As in [`io::Transfer`].
    pub waits_for_disk: bool,
    /// The guest takes what was not moved for the end of the file, or for written: a READ, and a WRITE of its page cache.
    pub must_be_whole: bool,
}

impl Share {
    /// READ. EBADF where the handle is not open, EISDIR for a directory; ESTALE where the guest sends no OPEN and the file is gone.
    pub fn prepare_read(&self, node: NodeId, handle: FileHandle) -> Result<PreparedTransfer, Errno> {
        let opened = self.open_target(node, handle)?;
        let (unaligned, waits_for_disk) = match &opened {
            OpenTarget::Handle(file) => (when_unaligned(file, true), file.waits_for_disk()),
            _ => (Unaligned::Fail, false),
        };
        let file = opened.hold().ok_or(Errno::from_raw(libc::EISDIR))?;
        Ok(PreparedTransfer { file, action: Action::Read, thread: Thread::Any, unaligned, waits_for_disk, must_be_whole: true })
    }

    /// WRITE. EROFS on a read-only share, EBADF where the handle is not open. The calling thread's next write(2) clears setuid and
    /// setgid bits, or keeps them, as the request says.
    pub fn prepare_write(&self, write: &WriteRequest) -> Result<PreparedTransfer, Errno> {
        self.not_readonly()?;
        let file = self.files.get(write.handle)?;
        // Pages that the guest's cache writes back have their offset; only an application's own write appends.
        let append = !write.from_cache && !self.session.has_writeback() && write.flags.cast_signed() & libc::O_APPEND != 0;
        self.drop_mapped_capability(file.node(), file.fd())?;
        let clears = self.session.clears_suidgid(write.clears_suidgid);
        keep_suidgid(!clears);
        let thread = if clears { Thread::Submitting } else { Thread::Any };
        let (unaligned, waits_for_disk) = (when_unaligned(&file, write.from_cache), file.waits_for_disk());
        let file = FileInUse::of_handle(file);
        let must_be_whole = write.from_cache;
        Ok(PreparedTransfer { file, action: Action::Write { append }, thread, unaligned, waits_for_disk, must_be_whole })
    }

    /// FSYNC. EBADF where the handle is not open, EISDIR for a directory, which has FSYNCDIR.
    pub fn prepare_sync(&self, node: NodeId, handle: FileHandle, data_only: bool) -> Result<PreparedTransfer, Errno> {
        let prepared = self.prepare_read(node, handle)?;
        Ok(PreparedTransfer { action: Action::Sync { data_only }, unaligned: Unaligned::Fail, must_be_whole: false, ..prepared })
    }

    /// Makes a transfer of `file` on this thread, on which it was not prepared.
    pub fn transfer_again(
        &self,
        file: BorrowedFd<'_>,
        pages: &[PageDescriptor],
        offset: u64,
        (action, thread): (Action, Thread),
        metrics: &Metrics,
    ) -> Result<usize, Errno> {
        if matches!(action, Action::Write { .. }) {
            keep_suidgid(thread == Thread::Any);
        }
        io::run(file, pages, offset, action, metrics)
    }

    /// Appends `pages` to `file` by a call of this thread, which is recorded with the file's length before it. Behind `written` bytes
    /// that a process which died has appended, `pages` are the rest: how many there are then. Errors of pwritev2(2) and statx(2).
    pub fn append(
        &self,
        file: BorrowedFd<'_>,
        pages: &[PageDescriptor],
        written: usize,
        thread: Thread,
        metrics: &Metrics,
        context: &RequestContext<'_>,
    ) -> Result<usize, Errno> {
        let write = || match self.transfer_again(file, pages, 0, (Action::Write { append: true }, thread), metrics) {
            Ok(len) => Ok(written + len),
            // As the kernel does with an error behind bytes that it has written: the next WRITE meets it.
            Err(_) if written > 0 => Ok(written),
            Err(errno) => Err(errno),
        };
        let before = match context.left() {
            Left::Begun(before) if written > 0 => before,
            _ => size_word(file)?,
        };
        context.once_counted(before, write, |len| i64::try_from(*len).unwrap_or(i64::MAX))
    }

    /// FSYNC by a request that a process which died had begun.
    pub fn sync_again(&self, file: &FileInUse, data_only: bool, context: &RequestContext<'_>) -> Result<(), Errno> {
        self.once_witnessed(file.fd(), context, || descriptor::sync(file.fd(), data_only))
    }

    /// Repeats a transfer that failed with O_DIRECT through a descriptor without it. `None` where alignment was not the cause.
    pub fn transfer_buffered(
        &self,
        file: &FileInUse,
        pages: &[PageDescriptor],
        offset: u64,
        (action, thread): (Action, Thread),
        metrics: &Metrics,
    ) -> Option<Result<usize, Errno>> {
        if is_aligned(pages, offset) {
            return None;
        }
        let file = self.files.user_of(file)?;
        let again = |buffered| self.transfer_again(buffered, pages, offset, (action, thread), metrics);
        Some(self.buffered(&file).and_then(again))
    }

    /// FALLOCATE; `mode` and errors as in man fallocate(2). EROFS on a read-only share, EBADF where the handle is not open,
    /// EOPNOTSUPP for an unknown `mode`, EINVAL for a range beyond `i64::MAX`.
    pub fn fallocate(&self, handle: FileHandle, offset: u64, len: u64, mode: u32, context: &RequestContext<'_>) -> Result<(), Errno> {
        self.writable()?;
        let file = self.files.get(handle)?;
        let flags = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        if i64::try_from(offset).is_err() || i64::try_from(len).is_err() {
            return Err(Errno::EINVAL);
        }
        let allocate = || space::fallocate(file.fd(), flags, offset, len);
        // All others lead to the same bytes however often they are made.
        if !flags.intersects(FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE) {
            return self.change_for(context.uid, &file, allocate);
        }
        let size = size_word(file.fd())?;
        let grown = if flags.contains(FallocateFlags::INSERT_RANGE) { len.cast_signed() } else { -len.cast_signed() };
        if let Some(moved) = moved_before(size, grown, context) {
            return moved;
        }
        self.change_for(context.uid, &file, || context.once(size, allocate))
    }

    /// LSEEK: SEEK_DATA and SEEK_HOLE; EINVAL for others, which the guest handles itself. ENXIO as in man lseek(2), EBADF where the
    /// handle is not open. ENOSYS with the writeback cache, after which the guest sends no more.
    pub fn lseek(&self, node: NodeId, handle: FileHandle, offset: u64, whence: u32) -> Result<u64, Errno> {
        // The host would report the guest's dirty pages as a hole, and a copy of the file would lack them.
        if self.session.has_writeback() {
            return Err(Errno::ENOSYS);
        }
        let file = self.open_target(node, handle)?;
        let from = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::EINVAL),
        };
        if i64::try_from(offset).is_err() {
            return Err(Errno::from_raw(libc::ENXIO));
        }
        lseek(file.fd(), from)
    }

    /// COPY_FILE_RANGE: bytes copied by one call; the guest sends another request for the rest. EROFS on a read-only share, EINVAL
    /// for flags, EBADF where a handle is not open; errors as in man copy_file_range(2).
    pub fn copy_file_range(&self, copy: &CopyRange, caller: GuestUid) -> Result<u64, Errno> {
        self.writable()?;
        if copy.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let (from, to) = (self.files.get(copy.from)?, self.files.get(copy.to)?);
        let len = copy.len.min(COPY_LEN_MAX) as usize;
        let copy = || space::copy_file_range((from.fd(), copy.from_offset), (to.fd(), copy.to_offset), len);
        self.change_for(caller, &to, copy).map(|copied| copied as u64)
    }

    /// The descriptor of `file` without O_DIRECT, opened when it is first needed. The errno of open(2).
    fn buffered<'f>(&self, file: &'f OpenFile<'_>) -> Result<BorrowedFd<'f>, Errno> {
        if file.buffered().is_none() {
            file.set_buffered(open::again(file.fd(), file.flags() & !libc::O_DIRECT)?);
        }
        file.buffered().ok_or(Errno::EBADF)
    }

    /// Changes `file` for `caller`, by a request without the flags of a WRITE: where killpriv was negotiated, setuid and setgid bits
    /// are cleared as for a write by this caller.
    fn change_for<R>(&self, caller: GuestUid, file: &OpenFile<'_>, change: impl FnOnce() -> Result<R, Errno>) -> Result<R, Errno> {
        self.drop_mapped_capability(file.node(), file.fd())?;
        let has_bits = || stat::of(file.fd()).is_ok_and(|st| u32::from(st.stx_mode) & (libc::S_ISUID | libc::S_ISGID) != 0);
        if self.session.clears_suidgid_for(caller) && has_bits() { without_fsetid(change) } else { change() }
    }
}

/// What to do when O_DIRECT refuses a transfer of `file`; `buffered_too`: it may be made without O_DIRECT.
fn when_unaligned(file: &OpenFile<'_>, buffered_too: bool) -> Unaligned {
    if buffered_too && file.flags() & libc::O_DIRECT != 0 { Unaligned::Buffered } else { Unaligned::Fail }
}

/// Whether offset and every page are multiples of the smallest block, so that alignment cannot be why O_DIRECT failed.
fn is_aligned(pages: &[PageDescriptor], offset: u64) -> bool {
    const BLOCK: u64 = 4096;
    let page_aligned = |p: &PageDescriptor| (p.address() as u64).is_multiple_of(BLOCK) && (p.len() as u64).is_multiple_of(BLOCK);
    offset.is_multiple_of(BLOCK) && pages.iter().all(page_aligned)
}
