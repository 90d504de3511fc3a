//! Operations that make a name: MKNOD, MKDIR, SYMLINK, LINK, CREATE and TMPFILE. All but LINK are done with the caller's
//! credentials, so that owner, group and setgid directories are handled as for a process of the host. The mode arrives with the
//! guest's umask applied, and the daemon's own umask is 0. If POSIX ACLs were negotiated, the daemon applies the umask instead,
//! as a default ACL on the host replaces it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::lookup::NodeEntry;
use super::open::Opened;
use crate::host::features::Feature;
use crate::host::fs_limits::is_no_tmpfile;
use crate::host::inodes::open_path;
use crate::host::options::TmpfilePolicy;
use crate::host::repeating::NewFile;
use crate::host::request_context::{Left, RequestContext};
use crate::host::rights::{Caller, acting_as};
use crate::host::share::Share;
use crate::sys::clock;
use crate::sys::failpoint::crash_point;
use crate::sys::names::{linkat, mkdirat, mknodat, symlinkat, unlinkat};
use crate::sys::open;
use crate::sys::working_dir::DescriptorName;
use crate::sys::xattr;
use crate::types::{Errno, GuestGid, NodeId};

/// Permission bits with setuid, setgid and sticky.
const MODE_MASK: u32 = 0o7777;
/// Bits of a umask.
const PERMISSIONS: u32 = 0o777;

/// The label of a new file: an extended attribute that it gets.
#[derive(Debug, Clone, Copy)]
pub struct Label<'a> {
    /// Name of the attribute, as the guest calls it.
    pub name: &'a CStr,
    /// Value of the attribute.
    pub value: &'a [u8],
}

/// The caller of a create, and what the new file gets besides its name and mode.
#[derive(Debug, Clone, Copy)]
pub struct CreateContext<'a> {
    request: RequestContext<'a>,
    caller: Caller,
    umask: Mode,
    label: Option<Label<'a>>,
}

impl Share {
    /// The context of a create by `request`. EPERM where an id of its caller is forbidden.
    pub fn create_context<'a>(
        &self,
        request: RequestContext<'a>,
        umask: u32,
        group: Option<GuestGid>,
        label: Option<Label<'a>>,
    ) -> Result<CreateContext<'a>, Errno> {
        let caller = Caller::of_guest(&self.policy.translation, request.uid, request.gid, group)?;
        let umask = Mode::from_raw_mode(if self.session.has_acls() { umask & PERMISSIONS } else { 0 });
        Ok(CreateContext { request, caller, umask, label })
    }

    /// MKNOD: a regular file, FIFO, socket or device, which is made and not opened. EINVAL for other types; errors as in man
    /// mknod(2), as of the caller's credentials, and as of LOOKUP.
    pub fn mknod(
        &self,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        device: (u32, u32),
        context: &CreateContext<'_>,
    ) -> Result<NodeEntry, Errno> {
        let kind = match mode & libc::S_IFMT {
            0 => FileType::RegularFile,
            kind => FileType::from_raw_mode(kind),
        };
        if matches!(kind, FileType::Unknown | FileType::Directory | FileType::Symlink) {
            return Err(Errno::EINVAL);
        }
        let mode = Mode::from_raw_mode(mode & MODE_MASK);
        let new = NewFile { kind, mode, umask: context.umask, device, target: None };
        self.make(parent, name, &new, context, |dir| mknodat(dir, name, kind, mode, device))
    }

    /// MKDIR. Errors as in man mkdir(2), and as of [`Share::mknod`].
    pub fn mkdir(&self, parent: NodeId, name: &CStr, mode: u32, context: &CreateContext<'_>) -> Result<NodeEntry, Errno> {
        let mode = Mode::from_raw_mode(mode & MODE_MASK);
        let new = NewFile { kind: FileType::Directory, mode, umask: context.umask, device: (0, 0), target: None };
        self.make(parent, name, &new, context, |dir| mkdirat(dir, name, mode))
    }

    /// SYMLINK: `target` is stored unchanged; the host never follows it. Errors as in man symlink(2), and as of [`Share::mknod`].
    pub fn symlink(&self, parent: NodeId, name: &CStr, target: &CStr, context: &CreateContext<'_>) -> Result<NodeEntry, Errno> {
        let new = NewFile { kind: FileType::Symlink, mode: Mode::empty(), umask: Mode::empty(), device: (0, 0), target: Some(target) };
        self.make(parent, name, &new, context, |dir| symlinkat(target, dir, name))
    }

    /// LINK: another name for `node`. Errors as in man link(2); EROFS, ESTALE and EIO as of [`Share::mknod`].
    pub fn link(&self, node: NodeId, parent: NodeId, name: &CStr, context: &RequestContext<'_>) -> Result<NodeEntry, Errno> {
        self.writable()?;
        let (file, dir) = (self.inodes.path_fd(node)?, self.inodes.path_fd(parent)?);
        context.check_wanted()?;
        if let Some(entry) = self.entry_before(parent, context) {
            return Ok(entry);
        }
        if !self.linked_before(file.as_fd(), dir.as_fd(), name, context)? {
            context.once(0, || linkat(file.as_fd(), dir.as_fd(), name))?;
        }
        self.know_new(parent, dir.as_fd(), name, None, (AtFlags::empty(), context))
    }

    /// CREATE: makes and opens a file; without O_EXCL, opens an existing one. Errors as in man open(2), as of [`Share::mknod`] and
    /// [`Share::open`]; ENFILE where too many files are open.
    pub fn create(
        &self,
        parent: NodeId,
        name: &CStr,
        flags: u32,
        mode: u32,
        kill_suidgid: bool,
        context: &CreateContext<'_>,
    ) -> Result<(NodeEntry, Opened), Errno> {
        let host_flags = self.host_flags(flags);
        // A new file needs no truncation; O_EXCL never follows a link and never opens an existing file.
        let make_flags = OFlags::from_bits_retain(host_flags.cast_unsigned()) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(mode & MODE_MASK);
        let request = &context.request;
        if let Some(entry) = self.entry_before(parent, request) {
            // What another process wrote to a file that is new is not truncated.
            let is_new = matches!(request.left(), Left::Made(Ok(_)));
            let flags = if is_new { flags & !libc::O_TRUNC.cast_unsigned() } else { flags };
            return self.open_found(entry, flags, kill_suidgid, request);
        }
        let new = NewFile { kind: FileType::RegularFile, mode, umask: context.umask, device: (0, 0), target: None };
        let made = match self.made_before(parent, name, &new, (&context.caller, request)) {
            Ok(None) => self.create_in(parent, context, |dir| open::openat2(dir, name, make_flags, mode)),
            Ok(Some(dir)) => {
                let flags = make_flags - OFlags::CREATE - OFlags::EXCL - OFlags::TRUNC;
                open::openat2(dir.as_fd(), name, flags, Mode::empty()).map(|file| (dir, file))
            }
            Err(errno) => Err(errno),
        };
        match made {
            Ok((dir, file)) => {
                let known = self.know_created(parent, file, host_flags, context);
                known.inspect_err(|errno| {
                    let _ = unlinkat(dir.as_fd(), name, AtFlags::empty());
                    request.note_result(Err(*errno));
                })
            }
            Err(Errno::EEXIST) if flags.cast_signed() & libc::O_EXCL == 0 => {
                let entry = self.look_up_at(parent, self.inodes.path_fd(parent)?.as_fd(), name, request.record)?;
                self.open_found(entry, flags, kill_suidgid, request)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Opens what CREATE has found. The lookup is taken back where that fails.
    fn open_found(
        &self,
        entry: NodeEntry,
        flags: u32,
        kill_suidgid: bool,
        request: &RequestContext<'_>,
    ) -> Result<(NodeEntry, Opened), Errno> {
        let opened = self.open(entry.node, flags, kill_suidgid, request);
        if opened.is_err() {
            self.uncount(entry.node, request.record);
        }
        Ok((entry, opened?))
    }

    /// TMPFILE: a file without a name in `parent`. EOPNOTSUPP where the host's file system has none, ENOSYS where it is
    /// not offered.
    pub fn tmpfile(&self, parent: NodeId, flags: u32, mode: u32, context: &CreateContext<'_>) -> Result<(NodeEntry, Opened), Errno> {
        if !self.offers_tmpfile() {
            return Err(Errno::ENOSYS);
        }
        let host_flags = self.host_flags(flags);
        let request = &context.request;
        if let Some(handle) = self.opened_before(request)
            && let Some(entry) = self.entry_before(parent, request)
        {
            return Ok((entry, self.opened(handle, entry.node, host_flags)));
        }
        // The descriptor that a nameless file had is closed, and the file gone.
        self.take_lookup_back(request);
        // O_EXCL is passed on: with it the file may never get a name.
        let exclusive = OFlags::from_bits_retain(flags) & OFlags::EXCL;
        let make_flags = OFlags::from_bits_retain(host_flags.cast_unsigned()) | exclusive;
        let mode = Mode::from_raw_mode(mode & MODE_MASK);
        let make = |dir: BorrowedFd<'_>| match open::nameless(dir, make_flags, mode) {
            Err(errno) if is_no_tmpfile(errno) => Err(Errno::EOPNOTSUPP),
            made => made,
        };
        let (_, file) = self.create_in(parent, context, make)?;
        self.know_created(parent, file, host_flags, context)
    }

    /// Makes the file `new` as `name` in `parent` by `create`, and looks it up.
    fn make(
        &self,
        parent: NodeId,
        name: &CStr,
        new: &NewFile<'_>,
        context: &CreateContext<'_>,
        create: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<NodeEntry, Errno> {
        if let Some(entry) = self.entry_before(parent, &context.request) {
            return Ok(entry);
        }
        let dir = match self.made_before(parent, name, new, (&context.caller, &context.request))? {
            Some(dir) => dir,
            None => self.create_in(parent, context, create)?.0,
        };
        let removal = if new.kind == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        self.know_new(parent, dir.as_fd(), name, context.label, (removal, &context.request))
    }

    /// Runs `create` on the directory `parent` with the caller's credentials. EROFS on a read-only share, ESTALE where `parent` is
    /// gone, EIO where the request was withdrawn, and the errors of `create`.
    fn create_in<R>(
        &self,
        parent: NodeId,
        context: &CreateContext<'_>,
        create: impl Fn(BorrowedFd<'_>) -> Result<R, Errno>,
    ) -> Result<(std::sync::Arc<OwnedFd>, R), Errno> {
        self.writable()?;
        let dir = self.inodes.path_fd(parent)?;
        context.request.check_wanted()?;
        let groups_known = self.session.negotiated(Feature::CreateGroup);
        let act = || {
            acting_as(&context.caller, self.policy.own_ids, groups_known, || {
                if context.umask.is_empty() {
                    return create(dir.as_fd());
                }
                // Each serving thread has a umask of its own (man unshare(2), CLONE_FS).
                rustix::process::umask(context.umask);
                let made = create(dir.as_fd());
                rustix::process::umask(Mode::empty());
                made
            })
        };
        let made = context.request.once(clock::coarse_ns(), act)?;
        Ok((dir, made))
    }

    /// Labels the new file behind `fd`, where it is to have a label. The errno of setxattr(2).
    fn label(&self, fd: BorrowedFd<'_>, label: Option<Label<'_>>) -> Result<(), Errno> {
        let Some(label) = label else { return Ok(()) };
        let name = self.policy.rights.host_xattr_name(label.name, self.session.has_acls())?;
        xattr::set(DescriptorName::of(fd).as_c_str(), &name, label.value, 0)
    }

    /// Labels and looks up what was just made as `name` in `dir`, which is `parent`. The name is removed again where that fails: a
    /// caller who hears an error has made nothing, as with O_EXCL for a lock file. `removal` are the flags for that.
    fn know_new(
        &self,
        parent: NodeId,
        dir: BorrowedFd<'_>,
        name: &CStr,
        label: Option<Label<'_>>,
        (removal, request): (AtFlags, &RequestContext<'_>),
    ) -> Result<NodeEntry, Errno> {
        let labelled = if label.is_some() { open_path(dir, name).and_then(|fd| self.label(fd.as_fd(), label)) } else { Ok(()) };
        let entry = labelled.and_then(|()| self.look_up_at(parent, dir, name, request.record));
        entry.inspect_err(|errno| {
            let _ = unlinkat(dir, name, removal);
            request.note_result(Err(*errno));
        })
    }

    /// Whether TMPFILE is offered: a guest whose overlayfs does not support it looks up the name of the nameless file and gets
    /// ESTALE.
    fn offers_tmpfile(&self) -> bool {
        match self.policy.tmpfile {
            TmpfilePolicy::Auto => self.session.negotiated(Feature::OverlayTmpfile),
            TmpfilePolicy::Always => true,
            TmpfilePolicy::Never => false,
        }
    }

    /// Labels and looks up `file`, which was just made in `parent`, and makes a handle for it. ENFILE where there are too many; the
    /// lookup is taken back then.
    fn know_created(
        &self,
        parent: NodeId,
        file: OwnedFd,
        host_flags: i32,
        context: &CreateContext<'_>,
    ) -> Result<(NodeEntry, Opened), Errno> {
        let record = context.request.record;
        self.label(file.as_fd(), context.label)?;
        let entry = self.look_up_open(parent, file.as_fd(), record)?;
        crash_point!("counted");
        let node = entry.node;
        // Opening the file again by its flags must not truncate it.
        match self.files.insert(file, node, host_flags & !libc::O_TRUNC, record, || self.session.has_ended()) {
            Ok(handle) => Ok((entry, self.opened(handle, node, host_flags))),
            Err(errno) => {
                self.uncount(node, record);
                Err(errno)
            }
        }
    }
}
