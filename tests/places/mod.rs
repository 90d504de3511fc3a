//! What the file system of a directory offers. It is asked, not its name: /tmp and the build's directory may lie on any,
//! in a container on overlayfs. Knows nothing of daemons.
#![allow(dead_code)]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, XattrFlags};

/// Whether files in this directory have handles. Those of an overlay do where it is mounted with nfs_export=on.
pub fn has_file_handles(path: &Path) -> bool {
    let name = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    gatherfs::sys::file_handle::of(rustix::fs::CWD, &name).expect("the directory is there").is_some()
}

/// Whether a daemon of this user's finds the files of this directory by handles, and keeps no descriptor for each. Only
/// root may.
pub fn is_served_by_handles(path: &Path) -> bool {
    rustix::process::geteuid().is_root() && has_file_handles(path)
}

/// Whether root can make a whiteout in this directory, a device 0, 0. An overlay refuses.
pub fn has_whiteouts(path: &Path) -> bool {
    let name = path.join("whiteout");
    let made = rustix::fs::mknodat(rustix::fs::CWD, &name, FileType::CharacterDevice, Mode::empty(), 0);
    made.is_ok() && std::fs::remove_file(name).is_ok()
}

/// Whether a file in this directory can have a user attribute of `len` bytes: 65,536 at most (linux/limits.h), and on
/// ext4 no more than a block.
pub fn has_attributes_of(path: &Path, len: usize) -> bool {
    let name = path.join("attribute");
    std::fs::write(&name, b"").expect("a file");
    let set = rustix::fs::setxattr(&name, "user.attribute", &vec![b'x'; len], XattrFlags::empty());
    set.is_ok() & std::fs::remove_file(name).is_ok()
}
