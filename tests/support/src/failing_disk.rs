//! A file system on a disk whose last blocks fail with EIO, for reads and for writes.
//!
//! The disk is a loop device over a memfd, which is cut off and may not grow again (F_SEAL_GROW, man memfd_create(2)). Needs root.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::private_mounts::Mount;

/// Bytes of the disk: one block group of ext4, whose own structures are at its beginning.
const LEN: u64 = 64 << 20;
const BLOCK: u64 = 4096;
/// FIBMAP of linux/fs.h: the block of the disk that has a block of the file.
const FIBMAP: libc::c_ulong = 1;

/// The disk, with an ext4 that is mounted until this is dropped.
#[derive(Debug)]
pub struct FailingDisk {
    disk: File,
    _mount: Mount,
}

impl FailingDisk {
    /// A disk whose blocks all work yet, with an empty file system on the directory `at`, which is made. `None`, with the reason
    /// printed, where there is no mkfs.ext4, no loop device or no ext4.
    pub fn new(at: &Path) -> Option<FailingDisk> {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        assert!(fd >= 0, "memfd_create: {}", io::Error::last_os_error());
        // SAFETY: the call above made the descriptor.
        let disk = unsafe { File::from_raw_fd(fd) };
        disk.set_len(LEN).expect("a sparse file");
        // By its name in this process, since others mount it.
        let image = format!("/proc/{}/fd/{fd}", std::process::id());
        let mkfs = ["mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal"];
        Some(FailingDisk { disk, _mount: Mount::made(&mkfs, Path::new(&image), at)? })
    }

    /// Has the disk fail from the last of the blocks that the files `paths` have on. Returns which file has this block, and its number
    /// there; all other blocks of these files work. `None`, with the reason printed, where the kernel's loop device reads zeros behind
    /// the end.
    pub fn fail_in(&self, paths: &[&Path]) -> Option<(usize, u64)> {
        let files: Vec<File> = paths.iter().map(|path| open(path)).collect();
        let blocks_of = |which: usize| (0..files[which].metadata().expect("a file").len() / BLOCK).map(move |block| (which, block));
        let blocks = (0..files.len()).flat_map(blocks_of);
        let (which, last) = blocks.max_by_key(|(which, block)| place_of(&files[*which], *block)).expect("a block");
        self.disk.set_len(place_of(&files[which], last) * BLOCK).expect("the disk can be cut off");
        // SAFETY: fcntl(2) takes numbers.
        let sealed = unsafe { libc::fcntl(self.disk.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_GROW) };
        assert_eq!(sealed, 0, "F_ADD_SEALS: {}", io::Error::last_os_error());
        let mut memory = vec![0; 2 * BLOCK as usize];
        let start = memory.as_ptr().align_offset(BLOCK as usize);
        let read = files[which].read_at(&mut memory[start..][..BLOCK as usize], last * BLOCK);
        if read.as_ref().map_err(io::Error::raw_os_error) != Err(Some(libc::EIO)) {
            println!("skipped: a loop device without errors: {read:?}");
            return None;
        }
        Some((which, last))
    }
}

/// The file, all of whose blocks are on the disk.
fn open(path: &Path) -> File {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("a file");
    file.sync_all().expect("its blocks");
    file
}

fn place_of(file: &File, block: u64) -> u64 {
    let mut place = i32::try_from(block).expect("a small file");
    // SAFETY: FIBMAP reads and writes one number.
    let found = unsafe { libc::ioctl(file.as_raw_fd(), FIBMAP as _, &raw mut place) };
    assert!(found == 0 && place > 0, "FIBMAP: {place}, {}", io::Error::last_os_error());
    place as u64
}
