//! What the file system of a directory offers. It is asked, not its name: /tmp and the build's directory may lie on any,
//! in a container on overlayfs. Knows nothing of daemons.
#![allow(dead_code)]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
