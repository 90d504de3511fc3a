//! What both sides are told to do, and what they tell of it.

use proptest::collection::vec;
use proptest::prelude::*;

/// Callers that there are: root, two users, and one of them with the other's group beside his own.
const CALLERS: u8 = 4;
/// Files that may be open at a time.
pub const SLOTS: u8 = 5;

/// User, group and supplementary group of a caller.
pub fn identity(caller: u8) -> (u32, u32, Option<u32>) {
    match caller {
        0 => (0, 0, None),
        1 => (1000, 1000, None),
        2 => (1001, 1001, None),
        _ => (1000, 1000, Some(1001)),
    }
}

/// A directory, as the names that lead to it.
pub type Directory = &'static [&'static str];

const DIRECTORIES: [Directory; 5] = [&[], &["x"], &["y"], &["x", "y"], &["x", "y", "x"]];
/// The names of directories are among them, so that a path may lead through a file or a symlink.
const NAMES: [&str; 5] = ["a", "b", "c", "x", "y"];

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub directory: Directory,
    pub name: &'static str,
}

/// What is done. A slot is a place for an open file; what uses an empty one does nothing.
#[derive(Clone, Debug)]
pub enum Operation {
    Create {
        place: Place,
        slot: u8,
        mode: u32,
        flags: i32,
        caller: u8,
    },
    Tmpfile {
        directory: Directory,
        slot: u8,
        mode: u32,
        caller: u8,
    },
    Open {
        place: Place,
        slot: u8,
        flags: i32,
    },
    Close {
        slot: u8,
    },
    Read {
        slot: u8,
        offset: u64,
        len: u32,
    },
    Write {
        slot: u8,
        offset: u64,
        len: u32,
        seed: u8,
    },
    TruncateOpen {
        slot: u8,
        len: u64,
    },
    Allocate {
        slot: u8,
        mode: i32,
        offset: u64,
        len: u64,
    },
    Seek {
        slot: u8,
        offset: u64,
        whence: i32,
    },
    Copy {
        from: u8,
        from_offset: u64,
        to: u8,
        to_offset: u64,
        len: u64,
    },
    LookOpen {
        slot: u8,
    },
    Sync {
        slot: u8,
        data_only: bool,
    },
    Mkdir {
        place: Place,
        mode: u32,
        caller: u8,
    },
    Fifo {
        place: Place,
        mode: u32,
        caller: u8,
    },
    Symlink {
        place: Place,
        target: &'static str,
        caller: u8,
    },
    Unlink {
        place: Place,
    },
    Rmdir {
        place: Place,
    },
    Rename {
        from: Place,
        to: Place,
        flags: u32,
    },
    Link {
        from: Place,
        to: Place,
    },
    LinkOpen {
        slot: u8,
        to: Place,
    },
    Readlink {
        place: Place,
    },
    Look {
        place: Place,
    },
    Truncate {
        place: Place,
        len: u64,
    },
    Chmod {
        place: Place,
        mode: u32,
    },
    Chown {
        place: Place,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    SetTimes {
        place: Place,
        seconds: u64,
    },
    List {
        directory: Directory,
        with_attributes: bool,
    },
    /// The guest forgets every node that it does not have open.
    Forget,
}

/// What must agree of a file's attributes. A directory's size and blocks are the file system's own affair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub size: u64,
}

impl Attributes {
    pub fn new(mode: u32, uid: u32, gid: u32, nlink: u32, size: u64) -> Attributes {
        Attributes { mode, uid, gid, nlink, size: if mode & libc::S_IFMT == libc::S_IFDIR { 0 } else { size } }
    }
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Nothing,
    Errno(i32),
    Number(u64),
    Bytes(Vec<u8>),
    Attributes(Attributes),
    /// Attributes, and the second that the times were set to.
    Times(Attributes, u64, u64),
    /// Names and types, sorted.
    Names(Vec<(Vec<u8>, u32)>),
}

fn place() -> impl Strategy<Value = Place> {
    let directory = proptest::sample::select(&DIRECTORIES[..]);
    (directory, proptest::sample::select(&NAMES[..])).prop_map(|(directory, name)| Place { directory, name })
}

fn directory() -> impl Strategy<Value = Directory> {
    proptest::sample::select(&DIRECTORIES[..])
}

fn mode() -> impl Strategy<Value = u32> {
    proptest::sample::select(&[0o644, 0o600, 0o666, 0o755, 0o777, 0o775, 0o4755, 0o2755, 0o6777, 0o1777, 0o2777, 0o000, 0o020][..])
}

fn flags() -> impl Strategy<Value = i32> {
    let access = proptest::sample::select(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR, libc::O_RDWR][..]);
    let more = proptest::sample::select(&[0, 0, 0, libc::O_APPEND, libc::O_TRUNC, libc::O_SYNC][..]);
    (access, more).prop_map(|(access, more)| access | more)
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..200, 2 => 4000u64..9000, 1 => Just(0), 1 => Just((1 << 32) + 17)]
}

/// Bytes to move: a guest sends no empty READ or WRITE.
fn len() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1u64..200, 2 => 4000u64..9000]
}

/// Lengths of files, and places in them: small, since each is read whole at the end.
fn small() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..200, 2 => 4000u64..9000]
}

/// Operations on open files.
fn on_open() -> impl Strategy<Value = Operation> {
    use Operation as O;
    let slot = || 0..SLOTS;
    let modes = [0, libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE];
    let whence = proptest::sample::select(&[libc::SEEK_DATA, libc::SEEK_HOLE][..]);
    prop_oneof![
        5 => (slot(), offset(), len()).prop_map(|(slot, offset, len)| O::Read { slot, offset, len: len as u32 }),
        6 => (slot(), small(), len(), any::<u8>()).prop_map(|(slot, offset, len, seed)| O::Write { slot, offset, len: len as u32, seed }),
        2 => (slot(), small()).prop_map(|(slot, len)| O::TruncateOpen { slot, len }),
        2 => (slot(), proptest::sample::select(modes.to_vec()), small(), len())
            .prop_map(|(slot, mode, offset, len)| O::Allocate { slot, mode, offset, len }),
        1 => (slot(), small(), whence).prop_map(|(slot, offset, whence)| O::Seek { slot, offset, whence }),
        2 => (slot(), small(), slot(), small(), len())
            .prop_map(|(from, from_offset, to, to_offset, len)| O::Copy { from, from_offset, to, to_offset, len }),
        3 => slot().prop_map(|slot| O::LookOpen { slot }),
        1 => (slot(), any::<bool>()).prop_map(|(slot, data_only)| O::Sync { slot, data_only }),
        2 => slot().prop_map(|slot| O::Close { slot }),
        1 => (slot(), place()).prop_map(|(slot, to)| O::LinkOpen { slot, to }),
    ]
}

/// Operations that make a name or open what it names.
fn making() -> impl Strategy<Value = Operation> {
    use Operation as O;
    let slot = || 0..SLOTS;
    let caller = || 0..CALLERS;
    let exclusive = proptest::sample::select(&[0, 0, libc::O_EXCL][..]);
    let targets = proptest::sample::select(&["a", "x", "../b", "/etc/passwd", "nowhere"][..]);
    prop_oneof![
        6 => (place(), slot(), mode(), flags(), exclusive, caller())
            .prop_map(|(place, slot, mode, flags, exclusive, caller)| O::Create { place, slot, mode, flags: flags | exclusive, caller }),
        1 => (directory(), slot(), mode(), caller())
            .prop_map(|(directory, slot, mode, caller)| O::Tmpfile { directory, slot, mode, caller }),
        4 => (place(), slot(), flags()).prop_map(|(place, slot, flags)| O::Open { place, slot, flags }),
        6 => (place(), mode(), caller()).prop_map(|(place, mode, caller)| O::Mkdir { place, mode: mode & 0o1777, caller }),
        1 => (place(), mode(), caller()).prop_map(|(place, mode, caller)| O::Fifo { place, mode, caller }),
        2 => (place(), targets, caller()).prop_map(|(place, target, caller)| O::Symlink { place, target, caller }),
        2 => (place(), place()).prop_map(|(from, to)| O::Link { from, to }),
    ]
}

/// Operations that move, change, show or remove what is there.
fn on_names() -> impl Strategy<Value = Operation> {
    use Operation as O;
    let id = || proptest::option::of(proptest::sample::select(&[0u32, 1000, 1001][..]));
    let rename = proptest::sample::select(&[0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE, 64][..]);
    prop_oneof![
        3 => place().prop_map(|place| O::Unlink { place }),
        2 => place().prop_map(|place| O::Rmdir { place }),
        5 => (place(), place(), rename).prop_map(|(from, to, flags)| O::Rename { from, to, flags }),
        1 => place().prop_map(|place| O::Readlink { place }),
        4 => place().prop_map(|place| O::Look { place }),
        2 => (place(), small()).prop_map(|(place, len)| O::Truncate { place, len }),
        3 => (place(), mode()).prop_map(|(place, mode)| O::Chmod { place, mode }),
        // One of both at least: a SETATTR that sets nothing asks for setuid and setgid to be cleared (tests/rights/killpriv.rs).
        2 => (place(), id(), id())
            .prop_filter("sets nothing", |(_, uid, gid)| uid.is_some() || gid.is_some())
            .prop_map(|(place, uid, gid)| O::Chown { place, uid, gid }),
        1 => (place(), 0u64..1 << 33).prop_map(|(place, seconds)| O::SetTimes { place, seconds }),
        3 => (directory(), any::<bool>()).prop_map(|(directory, with_attributes)| O::List { directory, with_attributes }),
        1 => Just(O::Forget),
    ]
}

/// Sequences of up to `len_max` operations.
pub fn sequence(len_max: usize) -> impl Strategy<Value = Vec<Operation>> {
    // A tree to begin with: without one most paths lead nowhere.
    let begin = ["x", "y"].map(|name| Operation::Mkdir { place: Place { directory: &[], name }, mode: 0o777, caller: 0 });
    vec(prop_oneof![3 => on_open(), 4 => making(), 4 => on_names()], 1..=len_max)
        .prop_map(move |rest| begin.iter().cloned().chain(rest).collect())
}
