//! What the file system of a directory offers. It is asked, not its name: /tmp and the build's directory may lie on any,
//! in a container on overlayfs. And where a program must lie so that every user can run it. Knows nothing of daemons.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

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

/// Directories of copies of programs, removed when this process ends.
static COPIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

extern "C" fn remove_copies() {
    for directory in COPIES.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let _ = std::fs::remove_dir_all(directory);
    }
}

/// Whether every user may run `program`: its own mode allows it, and the modes of the directories above it.
pub fn every_user_may_run(program: &Path) -> bool {
    let others = |path: &Path| std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0);
    program.ancestors().all(others)
}

/// A path by which every user can run `program`. In a clone below root's home, whose mode is 0700, that is a copy in the
/// directory for temporary files; it is removed when this process ends.
pub fn for_every_user(program: &Path) -> PathBuf {
    if every_user_may_run(program) {
        return program.to_owned();
    }
    let mut copies = COPIES.lock().unwrap_or_else(PoisonError::into_inner);
    if copies.is_empty() {
        // SAFETY: `remove_copies` has the signature that atexit(3) calls.
        assert_eq!(unsafe { libc::atexit(remove_copies) }, 0, "a function that is called at the end");
    }
    let name = format!("gfs-{}-program-{}", std::process::id(), copies.len());
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir(&directory).expect("a directory for the copy");
    copies.push(directory.clone());
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).expect("a mode");
    // By another process: a descriptor that writes the copy must not leak into a child that another thread starts at this
    // moment, since a file that is open for writing cannot be run (ETXTBSY).
    let copy = directory.join(program.file_name().expect("a file's name"));
    let copied = Command::new("cp").arg(program).arg(&copy).status().expect("cp is there");
    assert!(copied.success(), "{} cannot be copied", program.display());
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).expect("a mode");
    copy
}
