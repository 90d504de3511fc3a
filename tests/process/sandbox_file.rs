//! A single file as the share: it is the guest's root itself.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use gatherfs_support::daemon::{Process, Scratch, gatherfsd, is_root};
use gatherfs_support::guest::fuse::{ROOT, SetattrIn, flag};

use super::mount;

/// A daemon that shares one file.
struct SharedFile {
    process: Process,
    file: PathBuf,
    scratch: Scratch,
}

impl SharedFile {
    /// Starts it as `user`, with `options`.
    fn start(user: u32, options: &[&str]) -> SharedFile {
        let scratch = Scratch::new();
        let file = scratch.join("file");
        fs::write(&file, "what the host wrote").expect("a file");
        fs::write(scratch.join("beside"), "not shared").expect("a file");
        fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o777)).expect("a mode");
        let mut command = gatherfsd();
        command.arg("--shared-dir").arg(&file).arg("--socket-path").arg(scratch.join("s")).args(options);
        if user != rustix::process::geteuid().as_raw() {
            std::os::unix::fs::chown(&file, Some(user), Some(user)).expect("root may");
            command.uid(user).gid(user);
        }
        let process = Process::spawn(&mut command);
        process.wait_for_line("sharing ");
        SharedFile { process, file, scratch }
    }
}

/// What the guest sees of the file, and that there is nothing else.
fn check(user: u32, options: &[&str]) {
    let mut shared = SharedFile::start(user, options);
    let (guest, mut client) = mount(&shared.scratch.join("s"));
    let attr = client.getattr(ROOT, None).expect("GETATTR").attr;
    assert_eq!(attr.mode & libc::S_IFMT, libc::S_IFREG, "{options:?}");
    assert_eq!((attr.size, attr.ino), (19, fs::metadata(&shared.file).expect("the file").ino()));

    let open = client.open(ROOT, libc::O_RDWR).expect("OPEN");
    assert_eq!(client.read(ROOT, open.fh, 0, 100).as_deref(), Ok(&b"what the host wrote"[..]), "{options:?}");
    assert_eq!(client.write(ROOT, open.fh, 9, b"guest"), Ok(5));
    assert_eq!(client.fsync(ROOT, open.fh, false), Ok(()));
    assert_eq!(client.truncate(ROOT, None, 14).expect("SETATTR").attr.size, 14, "{options:?}");
    let mode = SetattrIn { valid: flag::FATTR_MODE, mode: 0o640, ..SetattrIn::default() };
    assert_eq!(client.setattr(ROOT, &mode).map(|a| a.attr.mode), Ok(libc::S_IFREG | 0o640));
    assert_eq!(client.release(ROOT, open.fh), Ok(()));
    assert!(client.statfs(ROOT).is_ok());
    assert_eq!(fs::read(&shared.file).expect("the file"), b"what the guest");

    let not_dir = Some(libc::ENOTDIR.into());
    for name in ["file", "beside", "x"] {
        assert_eq!(client.lookup(ROOT, name).err(), not_dir, "{options:?}: {name}");
    }
    assert_eq!(client.opendir(ROOT).err(), not_dir, "{options:?}");
    assert_eq!(client.create(ROOT, "x", 0o644, libc::O_RDWR).err(), not_dir);
    assert_eq!(client.mkdir(ROOT, "x", 0o755).err(), not_dir);
    assert_eq!(client.unlink(ROOT, "beside").err(), not_dir);
    drop((guest, client));
    assert_eq!(shared.process.wait().code(), Some(0), "{}", shared.process.log());
    assert!(!shared.scratch.join("s").exists(), "{options:?}: the socket is removed");
}

#[test]
fn a_single_file_is_the_guests_root() {
    let own = rustix::process::geteuid().as_raw();
    for handles in ["prefer", "never"] {
        check(own, &["--sandbox", "none", "--inode-file-handles", handles]);
    }
    if is_root("a chroot, and becoming another user") {
        for sandbox in ["namespace", "chroot"] {
            for handles in ["prefer", "never"] {
                check(own, &["--sandbox", sandbox, "--inode-file-handles", handles]);
            }
        }
        for sandbox in ["namespace", "none"] {
            check(65534, &["--sandbox", sandbox]);
        }
    }
}

#[test]
fn the_sandbox_of_a_single_file_is_an_empty_directory() {
    if !is_root("looking at another process") {
        return;
    }
    for sandbox in ["namespace", "chroot"] {
        let shared = SharedFile::start(0, &["--sandbox", sandbox]);
        let root = format!("/proc/{}/root/.", shared.process.children()[0]);
        assert_eq!(fs::read_dir(&root).expect("its root").count(), 0, "--sandbox {sandbox}");
        assert!(fs::write(format!("{root}/new"), "").is_err(), "--sandbox {sandbox}: it cannot be written to");
    }
}
