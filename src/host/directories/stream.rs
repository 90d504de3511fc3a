//! An open directory's stream: entries are read ahead by one getdents64, and those that did not fit a reply are kept for the
//! next. The descriptor belongs to the handle.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::SeekFrom;

use crate::sys::dirent::{self, HostEntry};
use crate::sys::space::lseek;
use crate::types::Errno;

/// Bytes that one getdents64 fills at most: about 1000 entries. As many are read wherever a guest goes on from where it was, for
/// the requests to come: older guests ask for a page at a time.
const READ_LEN_MAX: usize = 32 * 1024;
/// Bytes for the longest entry: 19 of header, 256 of name, padded.
const READ_LEN_MIN: usize = 280;
/// Bytes that all streams of a share that have a handle keep for their next request. Beyond it, what did not fit a reply is
/// read again: a guest may have a million directories open.
const KEPT_LEN_MAX: usize = 16 << 20;

/// The position of the guest in an open directory.
#[derive(Debug)]
pub(in crate::host) struct DirectoryStream {
    /// File position of the descriptor, which is known when `read` is consumed.
    position: Option<u64>,
    /// Entries were read since the last seek.
    goes_on: bool,
    read: Vec<u8>,
    /// Start of the part of `read` that is not consumed, and the directory offset of its first entry.
    start: usize,
    start_offset: u64,
    /// This stream's part of `all_kept_len`.
    kept_len: usize,
    /// Bytes that the streams of a share keep now.
    all_kept_len: Arc<AtomicUsize>,
}

impl Drop for DirectoryStream {
    fn drop(&mut self) {
        self.all_kept_len.fetch_sub(self.kept_len, Ordering::Relaxed);
    }
}

impl DirectoryStream {
    /// A stream at the first entry. `all_kept_len` counts what the streams of the share keep.
    pub fn new(all_kept_len: &Arc<AtomicUsize>) -> DirectoryStream {
        let all_kept_len = Arc::clone(all_kept_len);
        DirectoryStream { position: Some(0), goes_on: false, read: Vec::new(), start: 0, start_offset: 0, kept_len: 0, all_kept_len }
    }

    /// A stream whose descriptor is at any position, so that it is set first.
    pub fn anywhere(all_kept_len: &Arc<AtomicUsize>) -> DirectoryStream {
        let mut stream = DirectoryStream::new(all_kept_len);
        stream.position = None;
        stream
    }

    /// Calls `take` for the entries of `file` from `offset` on, as long as it returns true. About `wanted_len` bytes of host entries
    /// will be taken. The errno of lseek(2) or getdents(2), EINVAL for an offset beyond `i64::MAX`, EIO for entries that cannot be
    /// parsed; not where entries were offered before.
    ///
    /// Offset 0 is a rewind: the directory is read again.
    pub fn each(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        wanted_len: usize,
        take: impl FnMut(&HostEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let is_read_ahead = offset == self.start_offset && (!self.read.is_empty() || self.position == Some(offset));
        if offset == 0 || !is_read_ahead {
            self.seek(file, offset)?;
        }
        let listed = self.go_on(file, wanted_len, take);
        self.keep();
        listed
    }

    /// Keeps what was read ahead for the next request, within `KEPT_LEN_MAX`.
    fn keep(&mut self) {
        let len = if self.start == self.read.len() { 0 } else { self.read.capacity() };
        let others_len = self.all_kept_len.fetch_sub(self.kept_len, Ordering::Relaxed) - self.kept_len;
        self.kept_len = if others_len + len <= KEPT_LEN_MAX { len } else { 0 };
        self.all_kept_len.fetch_add(self.kept_len, Ordering::Relaxed);
        if self.kept_len == 0 {
            (self.read, self.start) = (Vec::new(), 0);
        }
    }

    fn go_on(&mut self, file: BorrowedFd<'_>, wanted_len: usize, mut take: impl FnMut(&HostEntry<'_>) -> bool) -> Result<(), Errno> {
        let mut offered = false;
        loop {
            if self.start == self.read.len() {
                match self.fill(file, wanted_len) {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    Err(errno) => return if offered { Ok(()) } else { Err(errno) },
                }
            }
            let Some((entry, rest)) = dirent::next(&self.read[self.start..]) else {
                return Err(Errno::EIO);
            };
            if !take(&entry) {
                return Ok(());
            }
            offered = true;
            self.start_offset = entry.next_offset;
            self.start = self.read.len() - rest.len();
            if rest.is_empty() {
                self.position = Some(self.start_offset);
            }
        }
    }

    fn seek(&mut self, file: BorrowedFd<'_>, offset: u64) -> Result<(), Errno> {
        self.read.clear();
        self.start = 0;
        if self.position != Some(offset) {
            i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
            lseek(file, SeekFrom::Start(offset))?;
            self.position = Some(offset);
        }
        self.start_offset = offset;
        self.goes_on = false;
        Ok(())
    }

    /// Reads more entries. False at the end.
    fn fill(&mut self, file: BorrowedFd<'_>, wanted_len: usize) -> Result<bool, Errno> {
        let len = if self.goes_on { READ_LEN_MAX } else { wanted_len.clamp(READ_LEN_MIN, READ_LEN_MAX) };
        self.start = 0;
        dirent::read(file, &mut self.read, len)?;
        if self.read.is_empty() {
            return Ok(false);
        }
        self.goes_on = true;
        self.position = None;
        Ok(true)
    }
}
