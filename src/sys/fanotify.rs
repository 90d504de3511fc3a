//! fanotify(7): marks on directories, which need no privilege (Linux 5.13), or on a whole file system, which needs
//! CAP_SYS_ADMIN. Events identify a file by its handle, and the process that caused them.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::file_handle::{HANDLE_LEN_MAX, Handle};

/// Bytes of one read: a few hundred events.
const READ_LEN: usize = 32 * 1024;
/// Bytes of `struct fanotify_event_metadata`.
const METADATA_LEN: usize = 24;
/// Bytes of `struct fanotify_event_info_header`: type, padding and length.
const INFO_HEADER_LEN: usize = 4;

/// Events that change a file or a directory's entries.
const CHANGES: u64 = libc::FAN_MODIFY
    | libc::FAN_ATTRIB
    | libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_DELETE_SELF
    | libc::FAN_MOVE_SELF
    | libc::FAN_ONDIR;

/// A change by another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The file that changed, or the directory whose entries did.
    pub file: Handle,
    /// The directory of `file`, or the directory itself. Only for a group that watches a file system, and not for a file that was
    /// opened by its handle while it had no dentry.
    pub directory: Option<Handle>,
    /// The file's contents changed.
    pub contents: bool,
}

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A file, or a directory's entries, changed by another process.
    Changed(Change),
    /// A change by this process.
    Own,
    /// Events were lost, or an event does not identify its file.
    Lost,
}

/// A group of marks and its events.
#[derive(Debug)]
pub struct Fanotify(OwnedFd);

impl From<OwnedFd> for Fanotify {
    fn from(group: OwnedFd) -> Fanotify {
        Fanotify(group)
    }
}

impl AsRawFd for Fanotify {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Fanotify {
    /// A group without marks. ENOSYS, EPERM or EINVAL where the kernel does not allow this process a group, EMFILE beyond the
    /// user's limit of groups (fs.fanotify.max_user_groups).
    pub fn new() -> io::Result<Fanotify> {
        Fanotify::reporting(libc::FAN_REPORT_FID)
    }

    /// A group that reports every change in the file system of directory `dir`, including changes through files that were opened
    /// by handle. EPERM without CAP_SYS_ADMIN; EXDEV, ENODEV or EOPNOTSUPP where the file system does not support it.
    pub fn of_file_system(dir: BorrowedFd<'_>) -> io::Result<Fanotify> {
        let group = Fanotify::reporting(libc::FAN_REPORT_FID | libc::FAN_REPORT_DIR_FID)?;
        group.change(libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM, CHANGES, dir, c".")?;
        Ok(group)
    }

    fn reporting(report: u32) -> io::Result<Fanotify> {
        let flags = libc::FAN_CLASS_NOTIF | report | libc::FAN_CLOEXEC;
        // SAFETY: takes integers only.
        let fd = unsafe { libc::fanotify_init(flags, (libc::O_RDONLY | libc::O_CLOEXEC).cast_unsigned()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above returned this descriptor, and it has no other owner.
        Ok(Fanotify(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Marks the directory `name` in `dir`, which may be an O_PATH descriptor. ENOSPC beyond the user's limit of marks
    /// (fs.fanotify.max_user_marks); EXDEV, ENODEV or EOPNOTSUPP where the file system does not support it; ENOENT or ENOTDIR
    /// where it is not a directory any more.
    pub fn mark(&self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        self.change(libc::FAN_MARK_ADD, CHANGES | libc::FAN_EVENT_ON_CHILD, dir, name)
    }

    /// Removes the mark of the directory `name` in `dir`. ENOENT where it has none.
    pub fn unmark(&self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        self.change(libc::FAN_MARK_REMOVE, CHANGES | libc::FAN_EVENT_ON_CHILD, dir, name)
    }

    /// Removes the marks of all directories.
    pub fn unmark_all(&self) {
        // SAFETY: the path is null, the other arguments are integers.
        unsafe { libc::fanotify_mark(self.0.as_raw_fd(), libc::FAN_MARK_FLUSH, 0, libc::AT_FDCWD, std::ptr::null()) };
    }

    fn change(&self, how: u32, mask: u64, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let flags = how | libc::FAN_MARK_ONLYDIR | libc::FAN_MARK_DONT_FOLLOW;
        // SAFETY: the name is a C string; the descriptors are open.
        match unsafe { libc::fanotify_mark(self.0.as_raw_fd(), flags, mask, dir.as_raw_fd(), name.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for events and passes each to `take`. EINTR where a signal interrupts the wait.
    pub fn read(&self, take: impl FnMut(Event)) -> io::Result<()> {
        let mut buffer = [0; READ_LEN];
        let len = rustix::io::read(&self.0, &mut buffer)?;
        decode(&buffer[..len], std::process::id().cast_signed(), take);
        Ok(())
    }
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Decodes events in the kernel's format.
fn decode(mut bytes: &[u8], own_pid: i32, mut take: impl FnMut(Event)) {
    while bytes.len() >= METADATA_LEN {
        let len = word(bytes, 0).map_or(0, u32::from_ne_bytes) as usize;
        let Some(event) = bytes.get(..len).filter(|event| event.len() >= METADATA_LEN) else { return take(Event::Lost) };
        bytes = &bytes[len..];
        take(decode_one(event, own_pid).unwrap_or(Event::Lost));
    }
}

/// `None` for an event that does not identify its file.
fn decode_one(event: &[u8], own_pid: i32) -> Option<Event> {
    let metadata_len = usize::from(u16::from_ne_bytes(word(event, 6)?));
    let mask = u64::from_ne_bytes(word(event, 8)?);
    let pid = i32::from_ne_bytes(word(event, 20)?);
    if mask & libc::FAN_Q_OVERFLOW != 0 {
        return None;
    }
    if pid == own_pid {
        return Some(Event::Own);
    }
    let (mut file, mut directory) = (None, None);
    let mut rest = event.get(metadata_len..)?;
    while let Some(&kind) = rest.first() {
        let len = usize::from(u16::from_ne_bytes(word(rest, 2)?));
        let info = rest.get(..len).filter(|info| info.len() >= INFO_HEADER_LEN)?;
        match kind {
            libc::FAN_EVENT_INFO_TYPE_FID => file = Some(handle_in(info)?),
            libc::FAN_EVENT_INFO_TYPE_DFID => directory = Some(handle_in(info)?),
            _ => {}
        }
        rest = &rest[len..];
    }
    Some(Event::Changed(Change { file: file.or(directory)?, directory, contents: mask & libc::FAN_MODIFY != 0 }))
}

fn handle_in(info: &[u8]) -> Option<Handle> {
    // The file system's id, 8 bytes, precedes `struct file_handle`.
    let handle = info.get(INFO_HEADER_LEN + 8..)?;
    let len = u32::from_ne_bytes(word(handle, 0)?);
    let kind = i32::from_ne_bytes(word(handle, 4)?);
    let mut bytes = [0; HANDLE_LEN_MAX];
    bytes.get_mut(..len as usize)?.copy_from_slice(handle.get(8..8 + len as usize)?);
    Some(Handle { kind, len, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(mask: u64, pid: i32, info: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&((METADATA_LEN + info.len()) as u32).to_ne_bytes());
        bytes.extend_from_slice(&[3, 0]);
        bytes.extend_from_slice(&(METADATA_LEN as u16).to_ne_bytes());
        bytes.extend_from_slice(&mask.to_ne_bytes());
        bytes.extend_from_slice(&(-1i32).to_ne_bytes());
        bytes.extend_from_slice(&pid.to_ne_bytes());
        bytes.extend_from_slice(info);
        bytes
    }

    fn events(bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        decode(bytes, 77, |event| events.push(event));
        events
    }

    #[test]
    fn events_name_a_file_or_this_process_or_count_as_lost() {
        let file = info(libc::FAN_EVENT_INFO_TYPE_FID, 1);
        let mut bytes = event(libc::FAN_MODIFY, 5, &file);
        bytes.extend(event(libc::FAN_MODIFY, 77, &file));
        bytes.extend(event(libc::FAN_Q_OVERFLOW, 0, &[]));
        bytes.extend(event(libc::FAN_MODIFY, 5, &file[..10]));
        let changed = Event::Changed(Change { file: handle(1), directory: None, contents: true });
        assert_eq!(events(&bytes), [changed, Event::Own, Event::Lost, Event::Lost]);
    }

    #[test]
    fn a_file_system_names_the_directory_too() {
        let directory = info(libc::FAN_EVENT_INFO_TYPE_DFID, 2);
        let mut bytes = event(libc::FAN_ATTRIB, 5, &[directory.clone(), info(libc::FAN_EVENT_INFO_TYPE_FID, 1)].concat());
        bytes.extend(event(libc::FAN_CREATE, 5, &directory));
        let changed = |file, directory| Event::Changed(Change { file: handle(file), directory: Some(handle(directory)), contents: false });
        assert_eq!(events(&bytes), [changed(1, 2), changed(2, 2)]);
    }

    fn handle(first: u8) -> Handle {
        Handle { kind: 1, len: 8, bytes: std::array::from_fn(|i| if i < 8 { first + i as u8 } else { 0 }) }
    }

    fn info(kind: u8, first: u8) -> Vec<u8> {
        let mut info = vec![kind, 0, 28, 0, 9, 9, 9, 9, 9, 9, 9, 9];
        info.extend_from_slice(&8u32.to_ne_bytes());
        info.extend_from_slice(&1i32.to_ne_bytes());
        info.extend_from_slice(&handle(first).bytes[..8]);
        info
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            events(&bytes);
        }
    }
}
