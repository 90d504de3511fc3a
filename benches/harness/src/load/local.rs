//! The same work by direct system calls: the floor.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use gatherfs_support::guest::memory::PAGE_SIZE;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};

use super::figures::{Counts, repeat};
use super::random::Random;
use super::tree::{LOAD_DIR, LOAD_FILE, NAMES_DIR, READDIR_SIZE, SMALL_DIR, SMALL_FILE_SIZE, SMALL_FILES, entry_name};
use super::work::{Io, Meta, Op, Pattern};
use crate::Failure;

/// The same work by direct system calls.
#[derive(Debug)]
pub struct Local {
    dir: OwnedFd,
    file: File,
    handle: OwnedFd,
    file_size: u64,
    next: usize,
    renamed: bool,
}

impl Local {
    /// On the load file in `share`, which is made as far as it is missing.
    pub fn open(share: &Path, file_size: u64, direct: bool) -> Result<Self, Failure> {
        let dir = rustix::fs::openat(CWD, share, OFlags::PATH, Mode::empty())?;
        let direct = if direct { OFlags::DIRECT } else { OFlags::empty() };
        let flags = OFlags::RDWR | OFlags::CREATE | direct;
        let file: File = rustix::fs::openat(&dir, LOAD_FILE, flags, 0o644.into())?.into();
        if file.metadata()?.len() < file_size {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, file_size)?;
        }
        let handle = rustix::fs::openat(&dir, LOAD_FILE, OFlags::PATH, Mode::empty())?;
        Ok(Self { dir, file, handle, file_size, next: 0, renamed: false })
    }

    /// READs and WRITEs until `end`, one at a time: nothing is in flight where there is no device.
    pub fn io(&mut self, io: Io, end: Instant) -> Result<Counts, Failure> {
        if io.op == Op::Getattr {
            return repeat(end, || self.meta(Meta::Getattr));
        }
        let block = u64::from(io.block_size);
        let (segment, stride) = (io.segment_size as usize, io.stride() as usize);
        // Room to start at a page border, as O_DIRECT wants.
        let len = io.segments() as usize * stride;
        let mut room = vec![0x5a; len + PAGE_SIZE as usize];
        let skip = room.as_ptr().align_offset(PAGE_SIZE as usize);
        let data = &mut room[skip..skip + len];
        let (mut offset, mut random) = (0, Random(1));
        let mut counts = repeat(end, || {
            offset = match io.pattern {
                Pattern::Random => random.below(self.file_size / block) * block,
                Pattern::Seq if offset + 2 * block > self.file_size => 0,
                Pattern::Seq => offset + block,
            };
            let parts = data.chunks_mut(stride).enumerate();
            let parts = parts.map(|(i, part)| {
                let len = segment.min(block as usize - i * segment);
                &mut part[..len]
            });
            let reads = match io.op {
                Op::Mixed => random.below(10) < 7,
                op => op == Op::Read,
            };
            let moved = if reads {
                let mut parts: Vec<_> = parts.map(IoSliceMut::new).collect();
                rustix::io::preadv(&self.file, &mut parts, offset)?
            } else {
                let parts: Vec<_> = parts.map(|part| IoSlice::new(part)).collect();
                rustix::io::pwritev(&self.file, &parts, offset)?
            };
            if moved as u64 == block { Ok(()) } else { Err("a short transfer".into()) }
        })?;
        counts.bytes = counts.operations * block;
        Ok(counts)
    }

    /// The host's part of one metadata operation.
    pub fn meta(&mut self, meta: Meta) -> Result<(), Failure> {
        let open = |name: &str, flags| rustix::fs::openat(&self.dir, name, flags, Mode::empty());
        let stat = |name: &str| rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW);
        match meta {
            Meta::Getattr => {
                rustix::fs::statat(&self.handle, "", AtFlags::EMPTY_PATH)?;
            }
            Meta::Lookup => {
                stat(LOAD_FILE)?;
            }
            Meta::LookupForget => drop(open(LOAD_FILE, OFlags::PATH | OFlags::NOFOLLOW)?),
            Meta::LookupNew => {
                self.next += 1;
                stat(&format!("{NAMES_DIR}/{}", entry_name(self.next % SMALL_FILES)))?;
            }
            Meta::LookupMissing => stat("virtual-guest.missing").map_or((), |_| ()),
            Meta::OpenRelease => drop(open(LOAD_FILE, OFlags::RDWR)?),
            Meta::CreateUnlink => {
                let flags = OFlags::CREATE | OFlags::RDWR;
                let name = "virtual-guest.local";
                drop(rustix::fs::openat(&self.dir, name, flags, 0o644.into())?);
                rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())?;
            }
            Meta::Rename => self.rename()?,
            Meta::Readdir => self.list(false)?,
            Meta::Readdirplus => self.list(true)?,
            Meta::SmallFile => self.read_small_file()?,
        }
        Ok(())
    }

    fn rename(&mut self) -> Result<(), Failure> {
        let name = |renamed| if renamed { "virtual-guest.local.b" } else { "virtual-guest.local.a" };
        let (from, to) = (name(self.renamed), name(!self.renamed));
        match rustix::fs::renameat(&self.dir, from, &self.dir, to) {
            Err(rustix::io::Errno::NOENT) => {
                drop(rustix::fs::openat(&self.dir, to, OFlags::CREATE | OFlags::RDWR, 0o644.into())?);
            }
            done => done?,
        }
        self.renamed = !self.renamed;
        Ok(())
    }

    fn list(&self, plus: bool) -> Result<(), Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = rustix::fs::openat(&self.dir, LOAD_DIR, flags, Mode::empty())?;
        let mut room = Vec::with_capacity(READDIR_SIZE as usize);
        let mut entries = RawDir::new(&dir, room.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if plus {
                rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        Ok(())
    }

    fn read_small_file(&mut self) -> Result<(), Failure> {
        self.next = (self.next + 1) % SMALL_FILES;
        let path = format!("{SMALL_DIR}/{}", entry_name(self.next));
        rustix::fs::statat(&self.dir, &path, AtFlags::SYMLINK_NOFOLLOW)?;
        let file = rustix::fs::openat(&self.dir, &path, OFlags::RDONLY, Mode::empty())?;
        let mut room = [0u8; SMALL_FILE_SIZE as usize];
        match rustix::io::pread(&file, &mut room, 0)? {
            count if count == room.len() => Ok(()),
            count => Err(format!("{count} bytes of {path}").into()),
        }
    }
}
