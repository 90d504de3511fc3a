//! FUSE requests that make no sense: names, nodes, handles, sizes, offsets, opcodes and lengths.

use std::fs;

use gatherfs_support::guest::client::{Call, CallError, Client, Piece};
use gatherfs_support::guest::frontend::FIRST_REQUEST;
use gatherfs_support::guest::fuse::*;
use zerocopy::IntoBytes;

use super::{FILE, Mounted, QUEUES, errno};

/// Room for the reply of any request here.
const ROOM: u32 = 512;

/// The (positive) errno that `args` of `opcode` on `nodeid` are answered with.
fn outcome(client: &mut Client, opcode: u32, nodeid: u64, args: &[u8]) -> i32 {
    errno(&client.raw(opcode, nodeid, args, ROOM).unwrap_or_else(|e| panic!("opcode {opcode}: {e}")))
}

/// The requests that carry a name, each with the bytes in front of it and behind it.
fn named_requests() -> Vec<(u32, Vec<u8>, &'static [u8])> {
    let rename2 = Rename2In { newdir: ROOT, flags: 0, padding: 0 };
    let behind_a_name = |fixed: &[u8]| [fixed, b"fine\0"].concat();
    vec![
        (opcode::LOOKUP, vec![], b""),
        (opcode::UNLINK, vec![], b""),
        (opcode::RMDIR, vec![], b""),
        (opcode::MKDIR, MkdirIn { mode: 0o755, umask: 0 }.as_bytes().to_vec(), b""),
        (opcode::MKNOD, MknodIn { mode: libc::S_IFREG | 0o644, ..MknodIn::default() }.as_bytes().to_vec(), b""),
        (opcode::CREATE, CreateIn { flags: libc::O_RDWR as u32, mode: 0o100_644, ..CreateIn::default() }.as_bytes().to_vec(), b""),
        (opcode::SYMLINK, vec![], b"target\0"),
        (opcode::LINK, LinkIn { oldnodeid: ROOT }.as_bytes().to_vec(), b""),
        (opcode::RENAME, RenameIn { newdir: ROOT }.as_bytes().to_vec(), b"fine\0"),
        (opcode::RENAME, behind_a_name(RenameIn { newdir: ROOT }.as_bytes()), b""),
        (opcode::RENAME2, rename2.as_bytes().to_vec(), b"fine\0"),
        (opcode::RENAME2, behind_a_name(rename2.as_bytes()), b""),
    ]
}

/// Sends every request that carries a name with `name`, NUL and all, and expects `expected` from each.
fn every_named_request_is(expected: i32, names: &[&[u8]]) {
    let mut mounted = Mounted::new(&[]);
    let mut sent = 0;
    for queue in QUEUES {
        let mut client = mounted.on(queue);
        for (opcode, before, behind) in named_requests() {
            for name in names {
                // LOOKUP alone knows the node itself and its parent by these names.
                if opcode == opcode::LOOKUP && matches!(*name, b".\0" | b"..\0") {
                    continue;
                }
                let args = [&before[..], name, behind].concat();
                assert_eq!(
                    outcome(&mut client, opcode, ROOT, &args),
                    expected,
                    "opcode {opcode}, name {:?}",
                    name.escape_ascii().to_string()
                );
                sent += 1;
            }
        }
    }
    assert_eq!(mounted.count("malformed_requests"), sent);
    let left: Vec<_> = fs::read_dir(mounted.daemon.share()).expect("the share").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(left, [FILE], "nothing was made, moved or removed");
    mounted.assert_serves("bad names");
}

#[test]
fn names_of_more_or_less_than_one_component_are_einval() {
    every_named_request_is(libc::EINVAL, &[b"a/b\0", b"/\0", b"witness/\0", b"../witness\0", b"..\0", b".\0", b"\0"]);
}

#[test]
fn a_name_of_256_bytes_is_enametoolong() {
    let long = [&[b'x'; 256][..], b"\0"].concat();
    every_named_request_is(libc::ENAMETOOLONG, &[&long]);
}

#[test]
fn a_name_of_255_bytes_is_a_name() {
    let mut mounted = Mounted::new(&[]);
    let name = "x".repeat(255);
    let made = mounted.client.mkdir(ROOT, &name, 0o755).expect("MKDIR");
    assert_eq!(mounted.client.lookup(ROOT, &name).map(|e| e.nodeid), Ok(made.nodeid));
}

#[test]
fn a_name_that_holds_or_lacks_a_nul_is_einval() {
    let mut mounted = Mounted::new(&[]);
    for queue in QUEUES {
        let mut client = mounted.on(queue);
        for (opcode, before, _) in named_requests().into_iter().filter(|(.., behind)| behind.is_empty()) {
            for name in [&b"wit\0ness\0"[..], b"witness", b"witness\0\0", b""] {
                let args = [&before[..], name].concat();
                assert_eq!(outcome(&mut client, opcode, ROOT, &args), libc::EINVAL, "opcode {opcode}, name {name:?}");
            }
        }
    }
    mounted.assert_serves("names without their NUL");
}

/// Node ids that name nothing: none, never given, the root's of another generation, the largest.
const NO_NODES: [u64; 5] = [0, 2, 1 << 20, 1 << 32 | ROOT, u64::MAX];

#[test]
fn an_unknown_node_is_estale() {
    let mut mounted = Mounted::new(&["--xattr", "--birth-times"]);
    let setattr = SetattrIn { valid: flag::FATTR_MODE, mode: 0o777, ..SetattrIn::default() };
    let setxattr = SetxattrIn { size: 1, ..SetxattrIn::default() };
    let requests: [(u32, Vec<u8>); 16] = [
        (opcode::LOOKUP, name(FILE)),
        (opcode::GETATTR, GetattrIn::default().as_bytes().to_vec()),
        (opcode::SETATTR, setattr.as_bytes().to_vec()),
        (opcode::STATX, StatxIn { sx_mask: 0x7ff, ..StatxIn::default() }.as_bytes().to_vec()),
        (opcode::READLINK, vec![]),
        (opcode::UNLINK, name(FILE)),
        (opcode::MKDIR, [MkdirIn::default().as_bytes(), b"d\0"].concat()),
        (opcode::SYMLINK, b"link\0target\0".to_vec()),
        (opcode::OPEN, OpenIn::default().as_bytes().to_vec()),
        (opcode::OPENDIR, OpenIn::default().as_bytes().to_vec()),
        (opcode::CREATE, [CreateIn::default().as_bytes(), b"f\0"].concat()),
        (opcode::STATFS, vec![]),
        (opcode::ACCESS, AccessIn::default().as_bytes().to_vec()),
        (opcode::SYNCFS, SyncfsIn::default().as_bytes().to_vec()),
        (opcode::GETXATTR, [GetxattrIn { size: 8, padding: 0 }.as_bytes(), b"user.a\0"].concat()),
        (opcode::SETXATTR, [&setxattr.as_bytes()[..8], b"user.a\0v"].concat()),
    ];
    for queue in QUEUES {
        let mut client = mounted.on(queue);
        for node in NO_NODES {
            for (opcode, args) in &requests {
                assert_eq!(outcome(&mut client, *opcode, node, args), libc::ESTALE, "opcode {opcode} on node {node:#x}");
            }
            // Nodes in the arguments.
            assert_eq!(client.rename(ROOT, FILE, node, "moved"), Err(libc::ESTALE.into()), "to node {node:#x}");
            assert_eq!(client.link(node, ROOT, "linked").err(), Some(libc::ESTALE.into()), "of node {node:#x}");
        }
    }
    mounted.assert_serves("unknown nodes");
}

#[test]
fn an_unknown_handle_is_ebadf() {
    let mut mounted = Mounted::new(&[]);
    let file = mounted.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    let open = mounted.client.open(file, libc::O_RDWR).expect("OPEN").fh;
    for queue in QUEUES {
        let mut c = mounted.on(queue);
        for fh in [open + 1, open ^ 1 << 32, 1 << 20, u64::MAX] {
            let ebadf = CallError::Errno(libc::EBADF);
            let range = |fh_in, fh_out| CopyFileRangeIn { fh_in, fh_out, nodeid_out: file, len: 1, ..CopyFileRangeIn::default() };
            let outcomes = [
                ("READ", c.read(file, fh, 0, 4096).err()),
                ("WRITE", c.write(file, fh, 0, b"x").err()),
                ("FLUSH", c.flush(file, fh).err()),
                ("FSYNC", c.fsync(file, fh, false).err()),
                ("RELEASE", c.release(file, fh).err()),
                ("FALLOCATE", c.fallocate(file, &FallocateIn { fh, length: 1, ..FallocateIn::default() }).err()),
                ("LSEEK", c.lseek(file, fh, 0, libc::SEEK_DATA).err()),
                ("COPY_FILE_RANGE from", c.copy_file_range(file, &range(fh, open)).err()),
                ("COPY_FILE_RANGE to", c.copy_file_range(file, &range(open, fh)).err()),
                ("GETATTR", c.getattr(file, Some(fh)).err()),
                ("SETATTR", c.truncate(file, Some(fh), 0).err()),
                ("READDIR", c.readdir(ROOT, fh, 0, 4096).err()),
                ("READDIRPLUS", c.readdirplus(ROOT, fh, 0, 4096).err()),
                ("RELEASEDIR", c.releasedir(ROOT, fh).err()),
                ("FSYNCDIR", c.fsyncdir(ROOT, fh, false).err()),
            ];
            for (what, outcome) in outcomes {
                assert_eq!(outcome, Some(ebadf.clone()), "{what} of handle {fh:#x}");
            }
        }
    }
    mounted.assert_serves("unknown handles");
}

#[test]
fn a_handle_of_a_file_is_none_of_a_directory_and_stays_open() {
    let mut mounted = Mounted::new(&[]);
    let file = mounted.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    for queue in QUEUES {
        let mut c = mounted.on(queue);
        let fh = c.open(file, libc::O_RDWR).expect("OPEN").fh;
        assert_eq!(c.readdir(file, fh, 0, 4096), Err(libc::EBADF.into()));
        assert_eq!(c.readdirplus(file, fh, 0, 4096), Err(libc::EBADF.into()));
        assert_eq!(c.fsyncdir(file, fh, false), Err(libc::EBADF.into()));
        assert_eq!(c.releasedir(file, fh), Err(libc::EBADF.into()));
        assert_eq!(c.read(file, fh, 0, 4096).as_deref(), Ok(super::CONTENT), "the handle is still open");
        assert_eq!(c.release(file, fh), Ok(()));
    }
}

#[test]
fn a_handle_of_a_directory_is_none_of_a_file_and_stays_open() {
    let mounted = Mounted::new(&[]);
    for queue in QUEUES {
        let mut c = mounted.on(queue);
        let fh = c.opendir(ROOT).expect("OPENDIR").fh;
        let read = c.read(ROOT, fh, 0, 4096);
        assert!(matches!(read, Err(CallError::Errno(libc::EBADF | libc::EISDIR))), "{read:?}");
        assert_eq!(c.release(ROOT, fh), Err(libc::EBADF.into()));
        assert_eq!(c.readdir(ROOT, fh, 0, 4096).map(|list| list.len()), Ok(3), "the handle is still open");
        assert_eq!(c.releasedir(ROOT, fh), Ok(()));
    }
}

#[test]
fn a_handle_is_released_once() {
    let mut mounted = Mounted::new(&[]);
    let file = mounted.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    for queue in QUEUES {
        let mut c = mounted.on(queue);
        let fh = c.open(file, libc::O_RDONLY).expect("OPEN").fh;
        assert_eq!(c.release(file, fh), Ok(()));
        assert_eq!(c.release(file, fh), Err(libc::EBADF.into()));
        let dir = c.opendir(ROOT).expect("OPENDIR").fh;
        assert_eq!(c.releasedir(ROOT, dir), Ok(()));
        assert_eq!(c.releasedir(ROOT, dir), Err(libc::EBADF.into()));
    }
    mounted.assert_serves("double releases");
}

#[test]
fn sizes_larger_than_their_descriptors_are_einval() {
    let mut mounted = Mounted::new(&["--xattr"]);
    let file = mounted.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    for queue in QUEUES {
        let mut c = mounted.on(queue);
        let fh = c.open(file, libc::O_RDWR).expect("OPEN").fh;
        for size in [ROOM + 1, 1 << 20, i32::MAX as u32, u32::MAX] {
            let read = ReadIn { fh, size, ..ReadIn::default() };
            assert_eq!(outcome(&mut c, opcode::READ, file, read.as_bytes()), libc::EINVAL, "READ of {size}");
        }
        for size in [5, 4096, i32::MAX as u32, u32::MAX] {
            let write = [WriteIn { fh, size, ..WriteIn::default() }.as_bytes(), b"data"].concat();
            assert_eq!(outcome(&mut c, opcode::WRITE, file, &write), libc::EINVAL, "WRITE of {size} in 4 bytes");
            let set = [SetxattrIn { size, ..SetxattrIn::default() }.as_bytes()[..8].to_vec(), b"user.a\0data".to_vec()].concat();
            let expected = if size > 65536 { libc::E2BIG } else { libc::EINVAL };
            assert_eq!(outcome(&mut c, opcode::SETXATTR, file, &set), expected, "SETXATTR of {size} in 4 bytes");
        }
        assert_eq!(c.release(file, fh), Ok(()));
    }
    assert_eq!(mounted.daemon.content(FILE), super::CONTENT, "nothing was written");
    mounted.assert_serves("sizes beyond their descriptors");
}

#[test]
fn a_read_of_almost_four_gigabytes_with_room_for_them_reads_what_there_is() {
    let mut mounted = Mounted::new(&[]);
    let file = mounted.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    for queue in QUEUES {
        let mut c = mounted.on(queue);
        let fh = c.open(file, libc::O_RDONLY).expect("OPEN").fh;
        // The same 32 MiB, offered over and over.
        let segment = c.place(&[Piece { offset: 0, len: 32 << 20 }], true)[0];
        let room = vec![segment; 127];
        let read = ReadIn { fh, size: 127 * (32 << 20), ..ReadIn::default() };
        let reply = c.exchange(&Call { data_out: &room, ..Call::new(opcode::READ, file, &[read.as_bytes()]) }).expect("READ");
        assert_eq!((errno(&reply), reply.header.len), (0, 16 + super::CONTENT.len() as u32));
        assert_eq!(c.gather(&room, super::CONTENT.len() as u32), super::CONTENT);
    }
    mounted.assert_serves("a READ of four gigabytes");
}

#[test]
fn offsets_that_no_file_has_are_refused_and_change_nothing() {
    let mut mounted = Mounted::new(&[]);
    let file = mounted.client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    for queue in QUEUES {
        let mut c = mounted.on(queue);
        let fh = c.open(file, libc::O_RDWR).expect("OPEN").fh;
        for offset in [1 << 63, u64::MAX - 1, u64::MAX] {
            let range = CopyFileRangeIn { fh_in: fh, off_in: offset, fh_out: fh, off_out: 64, nodeid_out: file, len: 1, flags: 0 };
            let einval = [libc::EINVAL];
            let outcomes = [
                ("READ", c.read(file, fh, offset, 16).err(), &einval[..]),
                ("WRITE", c.write(file, fh, offset, b"x").err(), &einval[..]),
                ("FALLOCATE", c.fallocate(file, &FallocateIn { fh, offset, length: 1, ..FallocateIn::default() }).err(), &einval[..]),
                ("FALLOCATE of", c.fallocate(file, &FallocateIn { fh, length: offset, ..FallocateIn::default() }).err(), &einval[..]),
                ("LSEEK", c.lseek(file, fh, offset, libc::SEEK_DATA).err(), &[libc::ENXIO, libc::EINVAL]),
                ("SETATTR of the size", c.truncate(file, Some(fh), offset).err(), &[libc::EFBIG, libc::EINVAL]),
                ("COPY_FILE_RANGE", c.copy_file_range(file, &range).err(), &[libc::EINVAL, libc::EOVERFLOW]),
            ];
            for (what, outcome, expected) in outcomes {
                let errno = outcome.as_ref().and_then(CallError::errno);
                assert!(errno.is_some_and(|e| expected.contains(&e)), "{what} at {offset:#x} on queue {queue}: {outcome:?}");
            }
        }
        let last = c.read(file, fh, i64::MAX as u64, 16);
        assert!(last == Ok(vec![]) || last == Err(libc::EINVAL.into()), "READ at the last offset there is: {last:?}");
        let write = c.write(file, fh, i64::MAX as u64, b"x");
        assert!(matches!(write, Err(CallError::Errno(libc::EFBIG | libc::EINVAL))), "WRITE at the last offset there is: {write:?}");
        assert_eq!(c.lseek(file, fh, 0, 99), Err(libc::EINVAL.into()));
        let odd = FallocateIn { fh, length: 1, mode: 1 << 30, ..FallocateIn::default() };
        assert_eq!(c.fallocate(file, &odd), Err(libc::EOPNOTSUPP.into()));
        assert_eq!(c.fallocate(file, &FallocateIn { fh, ..FallocateIn::default() }), Err(libc::EINVAL.into()));
        assert_eq!(c.release(file, fh), Ok(()));
    }
    assert_eq!(mounted.daemon.content(FILE), super::CONTENT, "the file is as it was");
    mounted.assert_serves("absurd offsets");
}

#[test]
fn a_directory_read_at_an_absurd_offset_or_into_no_room_is_answered() {
    let mut mounted = Mounted::new(&[]);
    for queue in QUEUES {
        let mut c = mounted.on(queue);
        let fh = c.opendir(ROOT).expect("OPENDIR").fh;
        for opcode in [opcode::READDIR, opcode::READDIRPLUS] {
            for offset in [1 << 62, 1 << 63, u64::MAX] {
                let read = ReadIn { fh, offset, size: ROOM, ..ReadIn::default() };
                let reply = c.raw(opcode, ROOT, read.as_bytes(), ROOM).expect("a reply");
                // Offsets are the file system's own: it may well know this one.
                let list = dirents(&reply.payload, opcode == opcode::READDIRPLUS).expect("whole entries");
                let possible = errno(&reply) == 0 && (offset < 1 << 63 || list.is_empty());
                assert!(possible || errno(&reply) == libc::EINVAL, "opcode {opcode} at {offset:#x}: {reply:?}");
            }
            let none = ReadIn { fh, size: 0, ..ReadIn::default() };
            assert_eq!(outcome(&mut c, opcode, ROOT, none.as_bytes()), libc::EINVAL, "room for no entry");
            // More than there is room for: what fits.
            let large = ReadIn { fh, size: u32::MAX, ..ReadIn::default() };
            let reply = c.raw(opcode, ROOT, large.as_bytes(), ROOM).expect("a reply");
            let list = dirents(&reply.payload, opcode == opcode::READDIRPLUS).expect("whole entries");
            assert!(errno(&reply) == 0 && !list.is_empty(), "{reply:?}");
        }
        assert_eq!(c.releasedir(ROOT, fh), Ok(()));
    }
    mounted.assert_serves("absurd directory reads");
}

#[test]
fn an_opcode_that_is_none_is_enosys() {
    let mut mounted = Mounted::new(&[]);
    let mut sent = 0;
    for queue in QUEUES {
        let mut client = mounted.on(queue);
        for opcode in [0, 7, 19, 54, 55, 255, 4096, 1 << 20, u32::MAX] {
            assert_eq!(outcome(&mut client, opcode, ROOT, &[0; 64]), libc::ENOSYS, "opcode {opcode}");
            sent += 1;
        }
    }
    assert_eq!(mounted.count("malformed_requests"), sent);
    mounted.assert_serves("unknown opcodes");
}

#[test]
fn arguments_cut_short_are_einval() {
    let mut mounted = Mounted::new(&[]);
    let lengths: [(u32, usize); 22] = [
        (opcode::GETATTR, 16),
        (opcode::SETATTR, 88),
        (opcode::STATX, 24),
        (opcode::MKNOD, 16),
        (opcode::MKDIR, 8),
        (opcode::RENAME, 8),
        (opcode::RENAME2, 16),
        (opcode::LINK, 8),
        (opcode::OPEN, 8),
        (opcode::OPENDIR, 8),
        (opcode::READ, 40),
        (opcode::WRITE, 40),
        (opcode::RELEASE, 24),
        (opcode::RELEASEDIR, 24),
        (opcode::FSYNC, 16),
        (opcode::FLUSH, 24),
        (opcode::READDIRPLUS, 40),
        (opcode::ACCESS, 8),
        (opcode::CREATE, 16),
        (opcode::FALLOCATE, 32),
        (opcode::LSEEK, 24),
        (opcode::COPY_FILE_RANGE, 56),
    ];
    for queue in QUEUES {
        let mut client = mounted.on(queue);
        for (opcode, len) in lengths {
            for cut in [0, 1, len / 2, len - 1] {
                assert_eq!(outcome(&mut client, opcode, ROOT, &vec![0; cut]), libc::EINVAL, "opcode {opcode} with {cut} of {len} bytes");
            }
        }
    }
    mounted.assert_serves("short arguments");
}

#[test]
fn a_huge_argument_area_is_e2big() {
    let mut mounted = Mounted::new(&[]);
    for queue in QUEUES {
        let mut client = mounted.on(queue);
        for len in [200 << 10, 16 << 20] {
            assert_eq!(outcome(&mut client, opcode::LOOKUP, ROOT, &vec![b'x'; len]), libc::E2BIG, "{len} bytes");
        }
        // Within the bound the name itself is what is wrong.
        let mut long = vec![b'x'; 100 << 10];
        assert_eq!(outcome(&mut client, opcode::LOOKUP, ROOT, &long), libc::EINVAL, "a name without NUL");
        long.push(0);
        assert_eq!(outcome(&mut client, opcode::LOOKUP, ROOT, &long), libc::ENAMETOOLONG);
    }
    assert_eq!(mounted.count("malformed_requests"), 8);
    mounted.assert_serves("huge arguments");
}

#[test]
fn extensions_that_lie_about_their_length_are_einval() {
    let mut mounted = Mounted::new(&[]);
    let mkdir = [MkdirIn { mode: 0o755, umask: 0 }.as_bytes(), b"dir\0"].concat();
    let group = |size: u32, count: u32| [[size, EXT_GROUPS].as_bytes(), [count, 7].as_bytes()].concat();
    for queue in QUEUES {
        let mut client = mounted.on(queue);
        for (size, count) in [(0, 1), (7, 1), (17, 1), (u32::MAX, 1), (16, 2), (16, u32::MAX)] {
            let extensions = group(size, count);
            let args: &[&[u8]] = &[&mkdir];
            let call = Call { extensions: &extensions, room: ROOM, ..Call::new(opcode::MKDIR, ROOT, args) };
            let reply = client.exchange(&call).expect("a reply");
            assert_eq!(errno(&reply), libc::EINVAL, "a block of {size} bytes with {count} groups");
        }
    }
    assert!(!mounted.daemon.share().join("dir").exists());
    mounted.assert_serves("bad extensions");
}

#[test]
fn operations_that_the_device_does_not_offer_are_enosys() {
    let mut mounted = Mounted::new(&[]);
    let unsupported = [opcode::BMAP, opcode::POLL, opcode::SETUPMAPPING, opcode::REMOVEMAPPING];
    for opcode in unsupported {
        assert_eq!(outcome(&mut mounted.client, opcode, ROOT, &[0; 64]), libc::ENOSYS, "opcode {opcode}");
    }
    assert_eq!(mounted.client.queue(), FIRST_REQUEST);
    mounted.assert_serves("operations not offered");
}
