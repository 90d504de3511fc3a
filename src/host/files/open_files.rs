//! All that the guest's objects keep open. Descriptors that were used recently are closed when others need their places.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::by_node::{ByNode, Pinnable};
use super::counted::Counted;
use super::descriptors::Descriptors;
use super::no_open::NoOpen;
use super::target::{FileInUse, Held};
use crate::host::directories::OpenDirectory;
use crate::state::{Budget, HandleTable, OpenFile, RequestRecord, Reserved};
use crate::sys::stat;
use crate::types::{Errno, FileHandle, NodeId};

/// One part in this many stays for files that the guest opens, when inodes have taken the rest.
const FOR_OPEN_FILES: usize = 16;

/// The guest's handles and the descriptors that are found by node.
#[derive(Debug)]
pub(in crate::host) struct OpenFiles {
    handles: HandleTable,
    budget: Arc<Budget>,
    path_fds: ByNode<OwnedFd>,
    no_open: NoOpen,
}

impl OpenFiles {
    /// Nothing is open yet; `handles` are the records, counted in `budget` as everything here.
    pub fn new(handles: HandleTable, limits: Descriptors, budget: Arc<Budget>) -> OpenFiles {
        let path_fds = ByNode::new(limits.recent, Arc::clone(&budget));
        OpenFiles { handles, path_fds, no_open: NoOpen::new(limits.recent, &budget), budget }
    }

    /// The budget of descriptors.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Open handles.
    #[cfg(feature = "failpoints")]
    pub fn handle_count(&self) -> usize {
        self.handles.open_count()
    }

    /// Places for `count` descriptors, of which `spare` others stay free. Closes recently used descriptors for them. ENFILE
    /// where there are none left.
    fn reserve(&self, count: usize, spare: usize) -> Result<Reserved<'_>, Errno> {
        loop {
            if let Some(reserved) = self.budget.reserve(count, spare) {
                return Ok(reserved);
            }
            if !self.path_fds.close_recent() && !self.no_open.close_recent() {
                return Err(Errno::ENFILE);
            }
        }
    }

    /// Makes a handle for `file`, which is `node` and was opened with `flags`, and notes it in `record`. ENFILE where there are too
    /// many; EIO where `has_ended` says that the session ended, and its handles may have been closed already.
    pub fn insert(
        &self,
        file: OwnedFd,
        node: NodeId,
        flags: i32,
        record: &RequestRecord,
        has_ended: impl Fn() -> bool,
    ) -> Result<FileHandle, Errno> {
        let reserved = self.reserve(HandleTable::descriptors_of(flags), 0)?;
        let waits_for_disk = flags & libc::O_DIRECT != 0 && stat::has_async_direct_io(file.as_fd()).unwrap_or(false);
        let handle = self.handles.insert(file, node, flags, reserved, |handle| record.note_handle(handle)).map_err(|_| Errno::ENFILE)?;
        if waits_for_disk && let Some(file) = self.handles.get(handle) {
            file.set_waits_for_disk(true);
        }
        if has_ended() {
            self.handles.remove(handle);
            return Err(Errno::EIO);
        }
        Ok(handle)
    }

    /// The open file behind `handle`; EBADF where there is none.
    pub fn get(&self, handle: FileHandle) -> Result<OpenFile<'_>, Errno> {
        self.handles.get(handle).ok_or(Errno::EBADF)
    }

    /// An open file of `node`.
    pub fn find(&self, node: NodeId) -> Option<OpenFile<'_>> {
        self.handles.find(node)
    }

    /// Closes `handle`; EBADF where it is not open.
    pub fn remove(&self, handle: FileHandle) -> Result<(), Errno> {
        if self.handles.remove(handle) { Ok(()) } else { Err(Errno::EBADF) }
    }

    /// The open file that `file` holds; `None` where the guest sends no OPEN.
    pub fn user_of(&self, file: &FileInUse) -> Option<OpenFile<'_>> {
        match &file.0 {
            Held::Handle(held) => self.handles.user_of(held),
            Held::Node(_) => None,
        }
    }

    /// Gives back `file`, which is closed here if its RELEASE came meanwhile.
    pub fn let_go(&self, file: FileInUse) {
        match file.0 {
            Held::Handle(file) => drop(self.handles.take_up(file)),
            Held::Node(file) => drop(file),
        }
    }

    /// New handles have this generation or a later one.
    pub fn begin_at(&self, generation: u32) {
        self.handles.begin_at(generation);
    }

    /// Every open directory.
    pub fn open_directories(&self) -> impl Iterator<Item = FileHandle> + '_ {
        self.handles.open().filter(|(_, flags)| flags & libc::O_DIRECTORY != 0).map(|(handle, _)| handle)
    }

    /// Adds the numbers of the descriptors of open files and of nodes that keep one to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        self.handles.name_descriptors(named);
        self.path_fds.each_pinned(|fd| named.push(fd.as_raw_fd()));
    }

    /// Closes every handle.
    pub fn close_handles(&self) {
        self.handles.clear();
    }

    /// The O_PATH descriptor that is kept of `node`.
    pub fn path_fd(&self, node: NodeId) -> Option<Arc<OwnedFd>> {
        self.path_fds.get(node)
    }

    /// Keeps an O_PATH descriptor of `node` as one of the recently used.
    pub fn keep_path_fd(&self, node: NodeId, fd: &Arc<OwnedFd>) {
        self.path_fds.insert(node, Arc::clone(fd));
    }

    /// Keeps an O_PATH descriptor as long as `node` is known.
    pub fn pin_path_fd(&self, node: NodeId, fd: Pinnable<'_, OwnedFd>) {
        self.path_fds.pin(node, fd);
    }

    /// `fd` with a place in the budget, to be pinned. ENFILE where there are too many.
    pub fn pinnable(&self, fd: OwnedFd) -> Result<Pinnable<'_, OwnedFd>, Errno> {
        Ok(Pinnable::new(fd, self.reserve(1, self.budget.max() / FOR_OPEN_FILES)?))
    }

    /// As [`OpenFiles::pinnable`], for one that is needed or open in any case: the root's, also where the ending session has not given
    /// its places back yet, and those of a process that died.
    pub fn pinnable_open(&self, fd: OwnedFd) -> Pinnable<'_, OwnedFd> {
        Pinnable::new(fd, self.budget.take(1))
    }

    /// What `open` opens, counted. ENFILE where there are too many, and nothing is opened then; the errors of `open`.
    pub fn counted(&self, open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<Counted, Errno> {
        let reserved = self.reserve(1, 0)?;
        Ok(Counted::new(open()?, reserved, &self.budget))
    }

    /// `file`, which a process that died had open, counted where there are too many as well.
    pub fn counted_open(&self, file: OwnedFd) -> Counted {
        Counted::new(file, self.budget.take(1), &self.budget)
    }

    /// The file `node`, open for a guest that sends no OPEN.
    pub fn file_of(&self, node: NodeId) -> Option<Arc<OwnedFd>> {
        self.no_open.files.get(node)
    }

    /// Keeps the file `node` open for a guest that sends no OPEN.
    pub fn keep_file_of(&self, node: NodeId, file: &Arc<OwnedFd>) {
        self.no_open.files.insert(node, Arc::clone(file));
    }

    /// The directory `node`, open for a guest that sends no OPENDIR.
    pub fn directory_of(&self, node: NodeId) -> Option<Arc<OpenDirectory>> {
        self.no_open.directories.get(node)
    }

    /// Keeps the directory `node` open for a guest that sends no OPENDIR.
    pub fn keep_directory_of(&self, node: NodeId, directory: &Arc<OpenDirectory>) {
        self.no_open.directories.insert(node, Arc::clone(directory));
    }

    /// Closes what is open of `node` beside the guest's handles, so that a deleted file's space is freed.
    pub fn close_node(&self, node: NodeId) {
        self.path_fds.remove(node);
        self.no_open.remove(node);
    }
}
