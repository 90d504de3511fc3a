//! fanotify(7) in the form that needs no privilege (Linux 5.13): marks on directories, events that name a file by
//! its handle and tell whether this process caused them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use std::ffi::CStr;

use super::file_handle::{HANDLE_LEN_MAX, Handle};

/// Bytes for events in one read: a few hundred.
const READ_LEN: usize = 32 * 1024;
/// `struct fanotify_event_metadata`.
const METADATA_LEN: usize = 24;
/// Type, padding and length of an information record.
const INFO_HEADER_LEN: usize = 4;

/// What changes a directory's entries, its files, or itself.
const CHANGES: u64 = libc::FAN_MODIFY
    | libc::FAN_ATTRIB
    | libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_DELETE_SELF
    | libc::FAN_MOVE_SELF
    | libc::FAN_EVENT_ON_CHILD
    | libc::FAN_ONDIR;

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A file, or a directory's entries, changed by another process.
    Changed(Handle),
    /// This process did it.
    Own,
    /// Events were lost, or cannot be told apart.
    Lost,
}

/// A group of marks and its events.
#[derive(Debug)]
pub struct Fanotify(OwnedFd);

impl Fanotify {
    /// A group without marks. ENOSYS, EPERM or EINVAL where the kernel has none for this process.
    pub fn new() -> io::Result<Fanotify> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID | libc::FAN_CLOEXEC;
        // SAFETY: takes integers only.
        let fd = unsafe { libc::fanotify_init(flags, (libc::O_RDONLY | libc::O_CLOEXEC) as u32) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor.
        Ok(Fanotify(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Marks the directory `name` in `dir`, which may be an O_PATH descriptor. ENOSPC beyond the user's limit of
    /// marks (fs.fanotify.max_user_marks); EXDEV, ENODEV or EOPNOTSUPP where the file system cannot.
    pub fn mark(&self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        self.change(libc::FAN_MARK_ADD, dir, name)
    }

    /// Takes the mark off the directory `name` in `dir`.
    pub fn unmark(&self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        self.change(libc::FAN_MARK_REMOVE, dir, name)
    }

    /// Takes all marks off.
    pub fn unmark_all(&self) {
        // SAFETY: no path is given, and integers else.
        unsafe { libc::fanotify_mark(self.0.as_raw_fd(), libc::FAN_MARK_FLUSH, 0, libc::AT_FDCWD, std::ptr::null()) };
    }

    fn change(&self, how: u32, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let flags = how | libc::FAN_MARK_ONLYDIR | libc::FAN_MARK_DONT_FOLLOW;
        // SAFETY: the name is a C string; the descriptors are open.
        match unsafe { libc::fanotify_mark(self.0.as_raw_fd(), flags, CHANGES, dir.as_raw_fd(), name.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for events and gives each to `take`.
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

/// Goes through events as the kernel packs them.
fn decode(mut bytes: &[u8], own_pid: i32, mut take: impl FnMut(Event)) {
    while bytes.len() >= METADATA_LEN {
        let len = word(bytes, 0).map_or(0, u32::from_ne_bytes) as usize;
        let Some(event) = bytes.get(..len).filter(|event| event.len() >= METADATA_LEN) else { return take(Event::Lost) };
        bytes = &bytes[len..];
        take(decode_one(event, own_pid).unwrap_or(Event::Lost));
    }
}

/// `None` for an event that does not name its file.
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
    let info = event.get(metadata_len..)?;
    if *info.first()? != libc::FAN_EVENT_INFO_TYPE_FID {
        return None;
    }
    // The file system's id, 8 bytes, lies between; then `struct file_handle`.
    let handle = info.get(INFO_HEADER_LEN + 8..)?;
    let len = u32::from_ne_bytes(word(handle, 0)?);
    let kind = i32::from_ne_bytes(word(handle, 4)?);
    let mut bytes = [0; HANDLE_LEN_MAX];
    bytes.get_mut(..len as usize)?.copy_from_slice(handle.get(8..8 + len as usize)?);
    Some(Event::Changed(Handle { kind, len, bytes }))
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
        let mut info = vec![libc::FAN_EVENT_INFO_TYPE_FID, 0, 28, 0, 9, 9, 9, 9, 9, 9, 9, 9];
        info.extend_from_slice(&8u32.to_ne_bytes());
        info.extend_from_slice(&1i32.to_ne_bytes());
        info.extend_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let mut bytes = event(libc::FAN_MODIFY, 5, &info);
        bytes.extend(event(libc::FAN_MODIFY, 77, &info));
        bytes.extend(event(libc::FAN_Q_OVERFLOW, 0, &[]));
        let mut handle = Handle { kind: 1, len: 8, bytes: [0; HANDLE_LEN_MAX] };
        handle.bytes[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(events(&bytes), [Event::Changed(handle), Event::Own, Event::Lost]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            events(&bytes);
        }
    }
}
