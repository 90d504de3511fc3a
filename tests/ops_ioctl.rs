//! IOCTL beside the host's own: flags, extended attributes of the inode, fs-verity.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use gatherfs_support::guest;
use gatherfs_support::guest::client::CallError;
use gatherfs_support::guest::fuse::{IoctlIn, ROOT, flag, init};
use gatherfs_support::private_mounts::{self, Mount};
use gatherfs_support::share::{self, Scratch, Setup, Share, errno};

/// linux/fs.h and linux/fsverity.h.
const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;
const GETFLAGS_32: u32 = 0x8004_6601;
const SETFLAGS_32: u32 = 0x4004_6602;
const FSGETXATTR: u32 = 0x801c_581f;
const FSSETXATTR: u32 = 0x401c_5820;
const ENABLE_VERITY: u32 = 0x4080_6685;
const MEASURE_VERITY: u32 = 0xc004_6686;
const NODUMP: u32 = 0x40;
const NOATIME: u32 = 0x80;
const IMMUTABLE: u32 = 0x10;
const PROJINHERIT: u32 = 0x2000_0000;
/// FS_XFLAG_ of `struct fsxattr`.
const XFLAG_NODUMP: u32 = 0x80;
const XFLAG_PROJINHERIT: u32 = 0x200;
const DIRECTORY: u32 = 1 << 4;
const UNRESTRICTED: u32 = 1 << 1;

/// What the host's ioctl makes of `argument`: the errno, or 0.
fn on_host(path: &Path, command: u32, argument: &mut [u8]) -> i32 {
    let file = File::open(path).unwrap();
    assert!(argument.len() >= (command >> 16 & 0x3fff) as usize, "room for what the number says");
    // SAFETY: there is as much room as the request's number says.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), u64::from(command) as _, argument.as_mut_ptr()) };
    if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
}

/// Holds the guest's result to the host's: the errno, or what came out.
#[track_caller]
fn agrees(guest: &Result<Vec<u8>, CallError>, failed: i32, out: &[u8]) {
    let host = if failed == 0 { Ok(out.to_vec()) } else { Err(CallError::Errno(failed)) };
    assert_eq!(*guest, host);
}

fn host_flags(path: &Path) -> u32 {
    let mut flags = [0; 8];
    assert_eq!(on_host(path, GETFLAGS, &mut flags), 0);
    u32::from_ne_bytes(flags[..4].try_into().unwrap())
}

fn set_host_flags(path: &Path, flags: u32) {
    assert_eq!(on_host(path, SETFLAGS, &mut u64::from(flags).to_ne_bytes()), 0);
}

/// Name, node and handle.
type Opened = (&'static str, u64, u64);

/// An open file and an open directory on `share`.
fn opened(mut share: Share) -> (Share, [Opened; 2]) {
    let file = share.make("file");
    let dir = share.client().mkdir(ROOT, "dir", 0o755).unwrap().nodeid;
    let dir_fh = share.client().opendir(dir).unwrap().fh;
    (share, [("file", file.node, file.fh), ("dir", dir, dir_fh)])
}

/// A share on disk and one in memory, each with an open file and an open directory.
fn shares() -> Vec<(Share, [Opened; 2])> {
    vec![opened(Share::on_disk(&[])), opened(Share::new())]
}

/// A directory on a file system that has project ids, with its mount. `None`, with the reason printed, where none can be mounted.
fn projects() -> Option<(Mount, Scratch)> {
    if !private_mounts::enter() {
        return None;
    }
    let directory = Scratch::on_disk();
    let makers: [&[&str]; 2] = [&["mkfs.xfs", "-q", "-f"], &["mkfs.ext4", "-q", "-O", "project,quota"]];
    let mount = makers.iter().find_map(|mkfs| Mount::image(mkfs, 320 << 20, directory.path()))?;
    Some((mount, directory))
}

/// Project id and extended flags as the host tells them.
fn project(path: &Path) -> (u32, u32) {
    let mut attributes = [0; 28];
    assert_eq!(on_host(path, FSGETXATTR, &mut attributes), 0);
    let word = |at: usize| u32::from_ne_bytes(attributes[at..at + 4].try_into().unwrap());
    (word(12), word(0) & (XFLAG_NODUMP | XFLAG_PROJINHERIT))
}

/// `struct fsxattr` with a project id and extended flags.
fn attributes_of(project: u32, xflags: u32) -> [u8; 28] {
    let mut attributes = [0; 28];
    attributes[..4].copy_from_slice(&xflags.to_ne_bytes());
    attributes[12..16].copy_from_slice(&project.to_ne_bytes());
    attributes
}

#[test]
fn flags_are_those_of_the_host_file() {
    for (mut share, opened) in shares() {
        assert_ne!(share.client().init_flags() & init::HAS_IOCTL_DIR, 0);
        for (name, node, fh) in opened {
            let path = share.path(name);
            let plain = host_flags(&path);
            for (set, get, get_len) in [(SETFLAGS, GETFLAGS, 4), (SETFLAGS_32, GETFLAGS_32, 4), (SETFLAGS, GETFLAGS, 8)] {
                for flags in [NODUMP, NOATIME, NODUMP | NOATIME, 0] {
                    let wanted = plain | flags;
                    assert_eq!(share.client().ioctl(node, fh, set, &wanted.to_ne_bytes(), 0).unwrap(), b"");
                    assert_eq!(host_flags(&path), wanted, "{name} {flags:#x}");
                    set_host_flags(&path, plain | (flags ^ NODUMP));
                    let mut expected = (plain | (flags ^ NODUMP)).to_ne_bytes().to_vec();
                    expected.resize(get_len as usize, 0);
                    assert_eq!(share.client().ioctl(node, fh, get, &[], get_len).unwrap(), expected, "{name} {flags:#x}");
                }
            }
            // The guest's kernel says so of directories.
            let request = IoctlIn { fh, flags: DIRECTORY, cmd: GETFLAGS, arg: 0, in_size: 0, out_size: 4 };
            assert!(share.client().ioctl_with(node, &request, &[]).is_ok());
        }
    }
}

#[test]
fn extended_flags_and_project_ids_come_out_as_on_the_host() {
    let options = &["--allow-project-ids"];
    for (mut share, opened) in [opened(Share::on_disk(options)), opened(Share::with(options))] {
        for (name, node, fh) in opened {
            let path = share.path(name);
            let twin = share.path("twin");
            if name == "dir" { std::fs::create_dir(&twin) } else { std::fs::write(&twin, b"") }.unwrap();
            let mut expected = [0; 28];
            let failed = on_host(&path, FSGETXATTR, &mut expected);
            let got = share.client().ioctl(node, fh, FSGETXATTR, &[], 28);
            agrees(&got, failed, &expected);
            // No change, nodump and noatime (FS_XFLAG_), a project.
            for (at, value) in [(0, 0u32), (0, 0x80), (0, 0x40), (12, 4711)] {
                let mut attributes = [0; 28];
                attributes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
                let failed = on_host(&twin, FSSETXATTR, &mut attributes.clone());
                let set = share.client().ioctl(node, fh, FSSETXATTR, &attributes, 0);
                agrees(&set, failed, b"");
                let read = |path: &Path| {
                    let mut attributes = [0; 28];
                    (on_host(path, FSGETXATTR, &mut attributes), attributes)
                };
                assert_eq!(read(&path), read(&twin), "{name}: {value:#x} at {at}");
            }
            if name == "dir" { std::fs::remove_dir(&twin) } else { std::fs::remove_file(&twin) }.unwrap();
        }
    }
}

#[test]
fn a_guest_stays_in_the_project_that_the_host_gave_the_share() {
    let Some((_mount, directory)) = projects() else { return };
    let (mut share, opened) = opened(Share::start(Setup { directory, ..Setup::default() }));
    for (name, node, fh) in opened {
        let path = share.path(name);
        let given = if name == "dir" { (42, XFLAG_PROJINHERIT) } else { (42, 0) };
        assert_eq!(on_host(&path, FSSETXATTR, &mut attributes_of(given.0, given.1)), 0);
        let inherits = given.1 != 0;
        let mut set = |project, xflags| share.client().ioctl(node, fh, FSSETXATTR, &attributes_of(project, xflags), 0);
        for project in [0, 43, u32::MAX] {
            assert_eq!(errno(set(project, given.1)), libc::EPERM, "{name} {project}");
        }
        assert_eq!(errno(set(42, given.1 ^ XFLAG_PROJINHERIT)), libc::EPERM, "{name}");
        assert_eq!(project(&path), given, "{name}");
        // What leaves the project as it is goes through.
        assert_eq!(set(42, given.1 | XFLAG_NODUMP).unwrap(), b"");
        assert_eq!(project(&path), (42, given.1 | XFLAG_NODUMP), "{name}");
        assert_eq!(set(42, given.1).unwrap(), b"");

        let plain = host_flags(&path);
        assert_eq!(plain & PROJINHERIT != 0, inherits, "{name}");
        for (command, flags) in [(SETFLAGS, plain ^ PROJINHERIT), (SETFLAGS_32, plain ^ PROJINHERIT | NODUMP)] {
            assert_eq!(errno(share.client().ioctl(node, fh, command, &flags.to_ne_bytes(), 0)), libc::EPERM, "{name} {flags:#x}");
        }
        assert_eq!(host_flags(&path), plain, "{name}");
        assert_eq!(share.client().ioctl(node, fh, SETFLAGS, &(plain | NODUMP).to_ne_bytes(), 0).unwrap(), b"");
        assert_eq!((project(&path), host_flags(&path)), ((42, given.1 | XFLAG_NODUMP), plain | NODUMP), "{name}");
    }
    // What is made below a directory with the flag counts towards its project, and stays there.
    let dir = opened[1].1;
    let made = share.client().create(dir, "made", 0o644, libc::O_RDWR).unwrap();
    assert_eq!(project(&share.path("dir/made")).0, 42);
    let change = share.client().ioctl(made.entry.nodeid, made.open.fh, FSSETXATTR, &attributes_of(0, 0), 0);
    assert_eq!(errno(change), libc::EPERM);
    assert_eq!(project(&share.path("dir/made")).0, 42);
}

#[test]
fn project_ids_are_the_guests_where_the_option_allows_it() {
    let Some((_mount, directory)) = projects() else { return };
    let (mut share, opened) = opened(Share::start(Setup { directory, options: &["--allow-project-ids"], ..Setup::default() }));
    for (name, node, fh) in opened {
        assert_eq!(share.client().ioctl(node, fh, FSSETXATTR, &attributes_of(43, 0), 0).unwrap(), b"");
        assert_eq!(project(&share.path(name)), (43, 0), "{name}");
    }
    let (name, node, fh) = opened[1];
    let flags = host_flags(&share.path(name)) | PROJINHERIT;
    assert_eq!(share.client().ioctl(node, fh, SETFLAGS, &flags.to_ne_bytes(), 0).unwrap(), b"");
    assert_eq!(project(&share.path(name)), (43, XFLAG_PROJINHERIT));
}

#[test]
fn fs_verity_is_the_hosts_or_refused_as_the_host_refuses_it() {
    for (mut share, opened) in shares() {
        let (name, node, writable) = opened[0];
        share.client().write(node, writable, 0, &[7; 10_000]).unwrap();
        // A file that is open for writing cannot become a verified one.
        share.client().release(node, writable).unwrap();
        let fh = share.client().open(node, libc::O_RDONLY).unwrap().fh;
        std::fs::copy(share.path(name), share.path("twin")).unwrap();

        let mut enable = [0u8; 128];
        for (at, value) in [(0, 1u32), (4, 1), (8, 4096)] {
            enable[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut digest = [0u8; 68];
        digest[2] = 64;
        let failed = on_host(&share.path("twin"), ENABLE_VERITY, &mut enable.clone());
        let enabled = share.client().ioctl(node, fh, ENABLE_VERITY, &enable, 0);
        println!("fs-verity on the host: errno {failed}");
        agrees(&enabled, failed, b"");
        let mut expected = digest;
        let failed = on_host(&share.path("twin"), MEASURE_VERITY, &mut expected);
        let measured = share.client().ioctl(node, fh, MEASURE_VERITY, &digest, 68);
        agrees(&measured, failed, &expected);
    }
}

#[test]
fn other_ioctls_are_enotty_and_odd_ones_einval() {
    let (mut share, opened) = shares().remove(0);
    let (_, node, fh) = opened[0];
    let c = share.client();
    // FIONREAD, FICLONE, FS_IOC_GETVERSION, FS_IOC_FIEMAP.
    for command in [0x541b, 0x4004_9409, 0x8008_7601, 0xc020_660b, 0, u32::MAX] {
        assert_eq!(errno(c.ioctl(node, fh, command, &[0; 32], 32)), libc::ENOTTY, "{command:#x}");
    }
    for (command, data, out) in
        [(GETFLAGS, 0, 0), (GETFLAGS, 0, u32::MAX >> 8), (SETFLAGS, 0, 0), (FSGETXATTR, 0, 27), (FSSETXATTR, 27, 0), (ENABLE_VERITY, 8, 0)]
    {
        let request = IoctlIn { fh, cmd: command, in_size: data, out_size: out, ..IoctlIn::default() };
        let reply = c.ioctl_with(node, &IoctlIn { out_size: out.min(4096), ..request }, &vec![0; data as usize]);
        assert_eq!(errno(reply), libc::EINVAL, "{command:#x}");
    }
    // More goes in than was sent; memory of the caller's at will.
    let lying = IoctlIn { fh, cmd: SETFLAGS, in_size: 1 << 30, ..IoctlIn::default() };
    assert_eq!(errno(c.ioctl_with(node, &lying, &[0; 4])), libc::EINVAL);
    let at_will = IoctlIn { fh, cmd: GETFLAGS, flags: UNRESTRICTED, out_size: 4, ..IoctlIn::default() };
    assert_eq!(errno(c.ioctl_with(node, &at_will, &[])), libc::EINVAL);
    assert_eq!(errno(c.ioctl(node, 4711, GETFLAGS, &[], 4)), libc::EBADF);
    assert_eq!(errno(c.ioctl(node, 0, GETFLAGS, &[], 4)), libc::EBADF);
}

#[test]
fn changes_are_for_the_owner_and_not_for_a_readonly_share() {
    let (mut share, opened) = shares().remove(0);
    let (_, node, fh) = opened[0];
    let plain = host_flags(&share.path("file"));
    if share::is_root() {
        share.client().caller.uid = 4321;
        let nodump = (plain | NODUMP).to_ne_bytes();
        assert_eq!(errno(share.client().ioctl(node, fh, SETFLAGS, &nodump, 0)), libc::EPERM);
        assert!(share.client().ioctl(node, fh, GETFLAGS, &[], 4).is_ok());
        let owned = guest::fuse::SetattrIn { uid: 4321, ..share::change(flag::FATTR_UID) };
        share.client().setattr(node, &owned).unwrap();
        assert_eq!(share.client().ioctl(node, fh, SETFLAGS, &nodump, 0).unwrap(), b"");
        // FUSE_INVALID_UIDGID, as a guest sends that may map ids.
        share.client().caller.uid = u32::MAX;
        assert_eq!(share.client().ioctl(node, fh, SETFLAGS, &plain.to_ne_bytes(), 0).unwrap(), b"", "the guest's kernel checks");
        assert_eq!(share.client().ioctl(node, fh, FSSETXATTR, &[0; 28], 0).map_err(|_| ()), Ok(vec![]));
        let verity = [&[1, 0, 0, 0, 1, 0, 0, 0, 0, 16][..], &[0; 118]].concat();
        assert_eq!(errno(share.client().ioctl(node, fh, ENABLE_VERITY, &verity, 0)), libc::EOPNOTSUPP, "nobody checks");
        share.client().caller.uid = 0;
        let fixed = (plain | IMMUTABLE).to_ne_bytes();
        assert_eq!(errno(share.client().ioctl(node, fh, SETFLAGS, &fixed, 0)), libc::EPERM, "the daemon has no CAP_LINUX_IMMUTABLE");
    }

    let mut share = Share::on_disk(&["--readonly", "--cache", "always"]);
    share.put("file", b"");
    let c = share.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    // Neither need be opened here.
    for node in [node, ROOT] {
        assert!(c.ioctl(node, 0, GETFLAGS, &[], 4).is_ok());
        assert_eq!(errno(c.ioctl(node, 0, SETFLAGS, &[0; 4], 0)), libc::EROFS);
        assert_eq!(errno(c.ioctl(node, 0, FSSETXATTR, &[0; 28], 0)), libc::EROFS);
        assert_eq!(errno(c.ioctl(node, 0, ENABLE_VERITY, &[0; 128], 0)), libc::EROFS);
    }
}
