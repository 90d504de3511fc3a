//! Files and directories of a guest that does not open them (FUSE_NO_OPEN_SUPPORT, FUSE_NO_OPENDIR_SUPPORT): its
//! requests carry handle 0, and what is open here is found by node. Both sets are bounded; what fell out is
//! opened again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::fuse::abi::init_flags;
use crate::host::caching::policy::CachePolicy;
use crate::host::directories::stream::Directory;
use crate::host::files::by_node::ByNode;
use crate::host::share::Share;
use crate::state::{Budget, OpenFile};
use crate::types::{Errno, FileHandle, NodeId};

/// Directories that are kept open by node: each keeps up to 32 KiB of entries, so these are 8 MiB.
const DIRECTORIES_MAX: usize = 256;

/// What is open by node.
#[derive(Debug)]
pub struct Handleless {
    files: ByNode<OwnedFd>,
    directories: ByNode<OpenDirectory>,
}

/// A directory with its stream.
#[derive(Debug)]
pub(in crate::host) struct OpenDirectory {
    file: OwnedFd,
    stream: Mutex<Directory>,
}

impl Handleless {
    /// Keeps about `recent_max` files open, which take the place of handles, and fewer directories, for beside
    /// those files may have handles.
    pub fn new(recent_max: usize, budget: &Arc<Budget>) -> Handleless {
        let files = ByNode::new(recent_max, Arc::clone(budget));
        Handleless { files, directories: ByNode::new((recent_max / 4).min(DIRECTORIES_MAX), Arc::clone(budget)) }
    }

    /// Closes one that was not used for a while. False where there is none.
    pub fn close_recent(&self) -> bool {
        self.files.close_recent() || self.directories.close_recent()
    }

    /// Closes what is open of `node`.
    pub fn remove(&self, node: NodeId) {
        self.files.remove(node);
        self.directories.remove(node);
    }
}

/// What a request on an open file speaks of.
#[derive(Debug)]
pub(in crate::host) enum Opened<'s> {
    /// What the guest has opened.
    Handle(OpenFile<'s>),
    /// What was opened for it, for reading.
    File(Arc<OwnedFd>),
    /// The same of a directory.
    Directory(Arc<OpenDirectory>),
}

impl Opened<'_> {
    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Opened::Handle(file) => file.fd(),
            Opened::File(file) => file.as_fd(),
            Opened::Directory(directory) => directory.file.as_fd(),
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        match self {
            Opened::Handle(file) => file.flags() & libc::O_DIRECTORY != 0,
            Opened::File(_) => false,
            Opened::Directory(_) => true,
        }
    }
}

impl Share {
    /// INIT flags by which the guest need not open. Directories: where it may keep what it listed. Files: where
    /// besides nobody removes or changes them, so that none must be kept alive by a handle, and O_DIRECT, which
    /// comes with OPEN, means nothing.
    pub(in crate::host) fn handleless_flags(&self) -> u64 {
        let o = &self.options;
        match o.cache {
            CachePolicy::Always if o.readonly && !o.allow_direct_io => init_flags::NO_OPENDIR_SUPPORT | init_flags::NO_OPEN_SUPPORT,
            CachePolicy::Always => init_flags::NO_OPENDIR_SUPPORT,
            _ => 0,
        }
    }

    /// Whether the guest does not open files. A lock on the host is held by an open file, so it must then.
    pub(in crate::host) fn has_no_open(&self) -> bool {
        self.agreed(init_flags::NO_OPEN_SUPPORT) && !self.has_host_locks()
    }

    /// Whether the guest does not open directories.
    pub(in crate::host) fn has_no_opendir(&self) -> bool {
        self.agreed(init_flags::NO_OPENDIR_SUPPORT)
    }

    /// What is open behind `handle`; EBADF where there is nothing. Without a handle, where the guest may do
    /// without: what is open of `node`, opened if need be; ESTALE where that is gone.
    pub(in crate::host) fn opened(&self, node: NodeId, handle: FileHandle) -> Result<Opened<'_>, Errno> {
        if handle != FileHandle::NONE {
            return self.open_file(handle).map(Opened::Handle);
        }
        match self.kind(node)? {
            libc::S_IFREG if self.has_no_open() => self.open_file_of(node).map(Opened::File),
            libc::S_IFDIR if self.has_no_opendir() => self.open_directory_of(node).map(Opened::Directory),
            _ => Err(Errno::EBADF),
        }
    }

    fn open_file_of(&self, node: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(file) = self.handleless.files.get(node) {
            return Ok(file);
        }
        let file = Arc::new(self.open_node(node, libc::O_RDONLY)?);
        self.handleless.files.insert(node, Arc::clone(&file));
        self.drop_if_forgotten(node);
        Ok(file)
    }

    fn open_directory_of(&self, node: NodeId) -> Result<Arc<OpenDirectory>, Errno> {
        if let Some(directory) = self.handleless.directories.get(node) {
            return Ok(directory);
        }
        let file = self.open_node(node, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let directory = Arc::new(OpenDirectory { file, stream: Mutex::default() });
        self.handleless.directories.insert(node, Arc::clone(&directory));
        self.drop_if_forgotten(node);
        Ok(directory)
    }

    /// Runs `list` on the directory behind `handle`, or on `node` where there are no handles; then one that was
    /// removed meanwhile has no entries.
    pub(in crate::host) fn with_directory(
        &self,
        node: NodeId,
        handle: FileHandle,
        list: impl FnOnce(BorrowedFd<'_>, &mut Directory) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if handle != FileHandle::NONE {
            let stream = self.directory(handle)?;
            let mut stream = stream.lock();
            let file = self.open_file(handle)?;
            return list(file.fd(), &mut stream);
        }
        if !self.has_no_opendir() || self.kind(node)? != libc::S_IFDIR {
            return Err(Errno::EBADF);
        }
        let listed = self.open_directory_of(node).and_then(|directory| list(directory.file.as_fd(), &mut directory.stream.lock()));
        match listed {
            Err(Errno::ENOENT | Errno::ESTALE) => Ok(()),
            listed => listed,
        }
    }
}
