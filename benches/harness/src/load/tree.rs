//! The files that loads work on, in the shared directory, and making them on the host.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use crate::{Failure, MIB};

/// The file every READ and WRITE goes to.
pub const LOAD_FILE: &str = "virtual-guest.load";
/// The directory whose entries READDIR and READDIRPLUS list.
pub const LOAD_DIR: &str = "virtual-guest.entries";
/// The directory of names that are looked up once each.
pub const NAMES_DIR: &str = "virtual-guest.names";
/// The directory of small files, and how many there are.
pub const SMALL_DIR: &str = "virtual-guest.small";
/// Small files.
pub const SMALL_FILES: usize = 256;
/// Bytes of a small file.
pub const SMALL_FILE_SIZE: u32 = 4096;
/// The buffer of one READDIR or READDIRPLUS: what glibc's readdir asks for.
pub const READDIR_SIZE: u32 = 32 << 10;

/// The name of entry `index` in `LOAD_DIR`, `NAMES_DIR` or `SMALL_DIR`.
pub fn entry_name(index: usize) -> String {
    format!("entry-{index:06}")
}

/// Makes all of it below `share`, with a load file of `file_size` bytes whose blocks are on the disk, and `entries` entries
/// and names.
pub fn make(share: &Path, file_size: u64, entries: usize) -> Result<(), Failure> {
    write_file(&share.join(LOAD_FILE), file_size)?;
    for (dir, count, size) in [(LOAD_DIR, entries, 0), (NAMES_DIR, entries, 0), (SMALL_DIR, SMALL_FILES, SMALL_FILE_SIZE)] {
        let dir = share.join(dir);
        fs::create_dir_all(&dir)?;
        for index in 0..count {
            fs::write(dir.join(entry_name(index)), vec![0x5a; size as usize])?;
        }
    }
    Ok(())
}

fn write_file(path: &Path, size: u64) -> Result<(), Failure> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let block = vec![0x5a; MIB as usize];
    for _ in 0..size.div_ceil(MIB) {
        file.write_all(&block)?;
    }
    // Dirty pages would be written back during a measurement, and stay in the cache when it is dropped.
    Ok(file.sync_all()?)
}

/// Drops the pages of the load file from the page cache.
pub fn drop_cache(share: &Path) -> Result<(), Failure> {
    let file = File::open(share.join(LOAD_FILE))?;
    file.sync_all()?;
    Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
}

/// Brings the load file into the page cache.
pub fn fill_cache(share: &Path) -> Result<(), Failure> {
    let mut file = File::open(share.join(LOAD_FILE))?;
    let mut block = vec![0; MIB as usize];
    while file.read(&mut block)? > 0 {}
    Ok(())
}
