//! The same work by direct system calls: the floor.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use gatherfs_support::guest::memory::PAGE_SIZE;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};

use crate::figures::{Counts, repeat};
use crate::load::{Io, LOAD_DIR, LOAD_FILE, Meta, Op, Pattern, READDIR_SIZE};
use crate::options::Setup;
use crate::random::Random;
use crate::{Failure, MIB};

/// The same work by direct system calls.
pub struct Local {
    dir: OwnedFd,
    file: File,
    handle: OwnedFd,
    file_size: u64,
}

impl Local {
    pub fn new() -> Result<Self, Failure> {
        let path = || rustix::fs::openat(CWD, "/", OFlags::PATH, Mode::empty());
        Ok(Self { dir: path()?, handle: path()?, file: File::open("/")?, file_size: 0 })
    }

    pub fn prepare(&mut self, setup: &Setup, share: &Path) -> Result<(), Failure> {
        self.file_size = setup.file_size.max(1) * MIB;
        self.dir = rustix::fs::openat(CWD, share, OFlags::PATH, Mode::empty())?;
        let direct = if setup.direct { OFlags::DIRECT } else { OFlags::empty() };
        let flags = OFlags::RDWR | OFlags::CREATE | direct;
        self.file = rustix::fs::openat(&self.dir, LOAD_FILE, flags, 0o644.into())?.into();
        if self.file.metadata()?.len() < self.file_size {
            rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, self.file_size)?;
        }
        self.handle = rustix::fs::openat(&self.dir, LOAD_FILE, OFlags::PATH, Mode::empty())?;
        Ok(())
    }

    pub fn io(&mut self, io: Io, end: Instant) -> Result<Counts, Failure> {
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
            let moved = if io.op == Op::Read {
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

    pub fn meta(&mut self, meta: Meta) -> Result<(), Failure> {
        let open = |flags| rustix::fs::openat(&self.dir, LOAD_FILE, flags, Mode::empty());
        match meta {
            Meta::Getattr => drop(rustix::fs::statat(&self.handle, "", AtFlags::EMPTY_PATH)?),
            Meta::Lookup => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::statat(&self.dir, LOAD_FILE, flags)?;
            }
            Meta::LookupForget => drop(open(OFlags::PATH | OFlags::NOFOLLOW)?),
            Meta::OpenRelease => drop(open(OFlags::RDWR)?),
            Meta::CreateUnlink => {
                let flags = OFlags::CREATE | OFlags::RDWR;
                let name = "virtual-guest.local";
                drop(rustix::fs::openat(&self.dir, name, flags, 0o644.into())?);
                rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())?;
            }
            Meta::Readdirplus => self.list()?,
        }
        Ok(())
    }

    fn list(&self) -> Result<(), Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = rustix::fs::openat(&self.dir, LOAD_DIR, flags, Mode::empty())?;
        let mut room = Vec::with_capacity(READDIR_SIZE as usize);
        let mut entries = RawDir::new(&dir, room.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            rustix::fs::statat(&dir, entry?.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }
}
