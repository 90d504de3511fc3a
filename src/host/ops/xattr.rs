//! GETXATTR, SETXATTR, LISTXATTR and REMOVEXATTR. All of them are ENOSYS unless the share serves extended attributes, after which
//! the guest sends no more, and ESTALE where the node is gone.

use std::borrow::Cow;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use crate::host::request_context::RequestContext;
use crate::host::rights::RightsPolicy;
use crate::host::share::Share;
use crate::sys::working_dir::DescriptorName;
use crate::sys::{mode, stat, xattr};
use crate::types::{Errno, NodeId};

/// Length of the longest value and of the longest list (linux/limits.h).
const LEN_MAX: usize = 65536;
/// Permission bits with setuid and sticky, without setgid.
const MODE_WITHOUT_SETGID: u32 = 0o5777;

impl Share {
    /// GETXATTR into `value`; with an empty `value`, the length only. ENODATA where there is none or the map refuses the name,
    /// EOPNOTSUPP for ACLs that were not negotiated, ERANGE where it does not fit; errors as in man getxattr(2).
    pub fn getxattr(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
        self.with_path(node, |path, _| match self.host_xattr_name(name) {
            Ok(name) => xattr::get(path, &name, value),
            Err(Errno::EPERM) => Err(Errno::ENODATA),
            Err(errno) => Err(errno),
        })
    }

    /// LISTXATTR: every name with its NUL, mapped for the guest, without hidden ones. Errors as in man listxattr(2).
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        self.with_path(node, |path, _| {
            let mut list = vec![0; LEN_MAX];
            let len = xattr::list(path, &mut list)?;
            let mut shown = Vec::with_capacity(len);
            for name in list[..len].split(|&b| b == 0).filter(|n| !n.is_empty()) {
                if let Some(name) = self.policy.rights.guest_xattr_name(name, self.session.has_acls()) {
                    shown.extend_from_slice(name);
                    shown.push(0);
                }
            }
            Ok(shown)
        })
    }

    /// SETXATTR; `flags` are XATTR_CREATE and XATTR_REPLACE. `kill_sgid`: the caller may not keep the setgid bit when the access ACL
    /// changes (man acl(5)). EROFS on a read-only share, EPERM where the map refuses the name, EOPNOTSUPP for ACLs that were not
    /// negotiated; errors as in man setxattr(2).
    pub fn setxattr(
        &self,
        node: NodeId,
        name: &CStr,
        value: &[u8],
        flags: u32,
        kill_sgid: bool,
        context: &RequestContext<'_>,
    ) -> Result<(), Errno> {
        self.with_path(node, |path, fd| {
            self.writable()?;
            let host_name = self.host_xattr_name(name)?;
            // EEXIST of XATTR_CREATE.
            let says_made = |errno| errno == Errno::EEXIST && has_value(path, &host_name, value);
            context.once_or_made(|| xattr::set(path, &host_name, value, flags), says_made)?;
            if kill_sgid && self.session.has_acls() && RightsPolicy::is_access_acl(name) {
                // The host did not clear it, as the daemon may keep it.
                let without_setgid = u32::from(stat::of(fd)?.stx_mode) & MODE_WITHOUT_SETGID;
                mode::set(fd, without_setgid)?;
            }
            Ok(())
        })
    }

    /// REMOVEXATTR. EROFS, EPERM and EOPNOTSUPP as of [`Share::setxattr`]; errors as in man removexattr(2).
    pub fn removexattr(&self, node: NodeId, name: &CStr, context: &RequestContext<'_>) -> Result<(), Errno> {
        self.with_path(node, |path, _| {
            self.writable()?;
            let name = self.host_xattr_name(name)?;
            context.once_or_made(|| xattr::remove(path, &name), |errno| errno == Errno::ENODATA)
        })
    }

    fn with_path<R>(&self, node: NodeId, act: impl FnOnce(&CStr, BorrowedFd<'_>) -> Result<R, Errno>) -> Result<R, Errno> {
        if !self.policy.xattr {
            return Err(Errno::ENOSYS);
        }
        let fd = self.inodes.path_fd(node)?;
        act(DescriptorName::of(fd.as_fd()).as_c_str(), fd.as_fd())
    }

    fn host_xattr_name<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>, Errno> {
        self.policy.rights.host_xattr_name(name, self.session.has_acls())
    }
}

/// Whether the attribute `name` has `value`.
fn has_value(path: &CStr, name: &CStr, value: &[u8]) -> bool {
    // A byte more: a longer value is another one, and an empty buffer would ask for the length only.
    let mut present = vec![0; value.len() + 1];
    xattr::get(path, name, &mut present).is_ok_and(|len| present[..len] == *value)
}
