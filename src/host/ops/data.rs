//! READ, WRITE, FALLOCATE, LSEEK and COPY_FILE_RANGE: a file's contents.

use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, SeekFrom};

use crate::fuse::abi::{CopyFileRangeIn, WRITE_CACHE, WRITE_KILL_PRIV, init_flags};
use crate::guest::PageDescriptor;
use crate::host::Share;
use crate::host::files::held_file::{Held, HeldFile};
use crate::host::files::no_open::Opened;
use crate::host::rights::caller::{keep_suidgid, without_fsetid};
use crate::io::{self, Direction, Thread, Unaligned};
use crate::metrics::Metrics;
use crate::state::OpenFile;
use crate::sys::stat;
use crate::types::{Errno, FileHandle, GuestUid, NodeId};

/// Bytes that one COPY_FILE_RANGE copies at most: the old reply has 32 bits, and the guest asks again.
const COPY_LEN_MAX: u64 = 0x7fff_f000;

/// What a WRITE says of itself.
#[derive(Debug, Clone, Copy)]
pub struct WriteRequest {
    /// The open file.
    pub handle: FileHandle,
    /// Byte offset.
    pub offset: u64,
    /// The guest's open flags at the time of the write.
    pub flags: u32,
    /// FUSE_WRITE_ bits.
    pub write_flags: u32,
}

/// What a READ or WRITE comes to on the host.
#[derive(Debug)]
pub struct PreparedTransfer {
    /// The open file.
    pub file: HeldFile,
    /// Which way the bytes go.
    pub direction: Direction,
    /// Which thread may move them.
    pub thread: Thread,
    /// A file opened with O_DIRECT also serves the guest's page cache (mmap, write-back of an odd-sized file): what O_DIRECT
    /// refuses for its alignment then goes through a second descriptor without it.
    pub unaligned: Unaligned,
}

impl Share {
    /// READ: EBADF where nothing is open, EISDIR for a directory.
    pub fn prepare_read(&self, node: NodeId, handle: FileHandle) -> Result<PreparedTransfer, Errno> {
        let opened = self.opened(node, handle)?;
        let unaligned = if let Opened::Handle(file) = &opened { when_unaligned(file, true) } else { Unaligned::Fail };
        let file = opened.hold().ok_or(Errno::from_raw(libc::EISDIR))?;
        Ok(PreparedTransfer { file, direction: Direction::Read, thread: Thread::Any, unaligned })
    }

    /// WRITE: EROFS on a read-only share, EBADF where nothing is open. The calling thread clears setuid and setgid bits by its
    /// next write(2), or keeps them, as the request says.
    pub fn prepare_write(&self, write: &WriteRequest) -> Result<PreparedTransfer, Errno> {
        self.not_readonly()?;
        let file = self.open_file(write.handle)?;
        // Pages that the guest's cache writes back have their place; only an application's own write appends.
        let from_cache = write.write_flags & WRITE_CACHE != 0;
        let append = !from_cache && !self.agreed(init_flags::WRITEBACK_CACHE) && write.flags.cast_signed() & libc::O_APPEND != 0;
        self.drop_hidden_capability(file.node(), file.fd())?;
        let kills = self.kills_suidgid(write.write_flags & WRITE_KILL_PRIV != 0);
        keep_suidgid(!kills);
        let thread = if kills { Thread::Submitting } else { Thread::Any };
        let unaligned = when_unaligned(&file, from_cache);
        let file = HeldFile(Held::Handle(file.hold()));
        Ok(PreparedTransfer { file, direction: Direction::Write { append }, thread, unaligned })
    }

    /// Makes a transfer again that O_DIRECT refused, without it. `None` where alignment was not what it complained of. To be
    /// called on the thread that made it, where it had to stay there.
    pub fn transfer_buffered(
        &self,
        file: &HeldFile,
        pages: &[PageDescriptor],
        offset: u64,
        direction: Direction,
        metrics: &Metrics,
    ) -> Option<Result<usize, Errno>> {
        let Held::Handle(held) = &file.0 else { return None };
        if is_aligned(pages, offset) {
            return None;
        }
        let file = self.handles.user_of(held)?;
        Some(self.buffered(&file).and_then(|buffered| io::run(buffered, pages, offset, direction, metrics)))
    }

    /// The descriptor of `file` without O_DIRECT, opened when it is first needed.
    fn buffered<'f>(&self, file: &'f OpenFile<'_>) -> Result<BorrowedFd<'f>, Errno> {
        if file.buffered().is_none() {
            file.set_buffered(self.reopen(file.fd(), file.flags() & !libc::O_DIRECT)?);
        }
        file.buffered().ok_or(Errno::EBADF)
    }

    /// Changes `file` for `caller` without a WRITE's flags: with killpriv, setuid and setgid bits go as they do
    /// for such a writer.
    fn change_for<R>(&self, caller: GuestUid, file: &OpenFile<'_>, change: impl FnOnce() -> rustix::io::Result<R>) -> Result<R, Errno> {
        self.drop_hidden_capability(file.node(), file.fd())?;
        let has_bits = || stat::of(file.fd()).is_ok_and(|st| u32::from(st.stx_mode) & (libc::S_ISUID | libc::S_ISGID) != 0);
        Ok(if self.kills_suidgid_for(caller) && has_bits() { without_fsetid(change) } else { change() }?)
    }

    /// FALLOCATE; `mode` as in man fallocate(2).
    pub fn fallocate(&self, handle: FileHandle, offset: u64, len: u64, mode: u32, caller: GuestUid) -> Result<(), Errno> {
        self.writable()?;
        let file = self.open_file(handle)?;
        let flags = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        if i64::try_from(offset).is_err() || i64::try_from(len).is_err() {
            return Err(Errno::EINVAL);
        }
        self.change_for(caller, &file, || rustix::fs::fallocate(file.fd(), flags, offset, len))
    }

    /// LSEEK: SEEK_DATA and SEEK_HOLE. The guest answers other kinds itself; EINVAL for them. ENOSYS where
    /// the guest writes back, after which it stops asking.
    pub fn lseek(&self, node: NodeId, handle: FileHandle, offset: u64, whence: u32) -> Result<u64, Errno> {
        // The host would call the guest's dirty pages a hole, and whoever copies the file would leave them out.
        if self.agreed(init_flags::WRITEBACK_CACHE) {
            return Err(Errno::ENOSYS);
        }
        let file = self.opened(node, handle)?;
        let from = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::EINVAL),
        };
        if i64::try_from(offset).is_err() {
            return Err(Errno::from_raw(libc::ENXIO));
        }
        Ok(rustix::fs::seek(file.fd(), from)?)
    }

    /// COPY_FILE_RANGE: bytes copied, in one call; the guest asks again for the rest.
    pub fn copy_file_range(&self, copy: &CopyFileRangeIn, caller: GuestUid) -> Result<u64, Errno> {
        self.writable()?;
        if copy.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let (from, to) = (self.open_file(FileHandle(copy.fh_in))?, self.open_file(FileHandle(copy.fh_out))?);
        let (mut off_in, mut off_out) = (copy.off_in, copy.off_out);
        let len = copy.len.min(COPY_LEN_MAX) as usize;
        let copy = || rustix::fs::copy_file_range(from.fd(), Some(&mut off_in), to.fd(), Some(&mut off_out), len);
        self.change_for(caller, &to, copy).map(|copied| copied as u64)
    }
}

/// What follows when O_DIRECT refuses a transfer of `file`, which may be made without it where `buffered_too` says so.
fn when_unaligned(file: &OpenFile<'_>, buffered_too: bool) -> Unaligned {
    if buffered_too && file.flags() & libc::O_DIRECT != 0 { Unaligned::Buffered } else { Unaligned::Fail }
}

/// Whether offset and every page are multiples of the smallest block, so that alignment is not what
/// O_DIRECT complained of.
fn is_aligned(pages: &[PageDescriptor], offset: u64) -> bool {
    const BLOCK: u64 = 4096;
    let page_aligned = |p: &PageDescriptor| (p.address() as u64).is_multiple_of(BLOCK) && (p.len() as u64).is_multiple_of(BLOCK);
    offset.is_multiple_of(BLOCK) && pages.iter().all(page_aligned)
}
