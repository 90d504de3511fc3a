//! GETXATTR, SETXATTR, LISTXATTR and REMOVEXATTR; ENOSYS unless the share serves them, after which the
//! guest does not ask again.

use std::ffi::CStr;
use std::os::fd::AsFd;

use crate::host::Share;
use crate::sys::working_dir::DescriptorName;
use crate::sys::xattr;
use crate::types::{Errno, NodeId};

/// The longest value and the longest list (linux/limits.h).
const LEN_MAX: usize = 65536;

/// ACLs only work if guest and host agree to enforce them, which this share does not offer.
const BLOCKED: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

fn check_blocked(name: &CStr) -> Result<(), Errno> {
    if BLOCKED.contains(&name.to_bytes()) { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
}

impl Share {
    fn with_path<R>(&self, node: NodeId, act: impl FnOnce(&CStr) -> Result<R, Errno>) -> Result<R, Errno> {
        if !self.options.xattr {
            return Err(Errno::ENOSYS);
        }
        let fd = self.path_fd(node)?;
        act(DescriptorName::of(fd.as_fd()).as_c_str())
    }

    /// GETXATTR into `value`; with an empty `value`, the length. ENODATA where there is none, ERANGE where
    /// it does not fit.
    pub fn getxattr(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
        self.with_path(node, |path| {
            check_blocked(name)?;
            xattr::get(path, name, value)
        })
    }

    /// LISTXATTR: every name with its NUL, without those that are blocked.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        self.with_path(node, |path| {
            let mut list = vec![0; LEN_MAX];
            let len = xattr::list(path, &mut list)?;
            let names = list[..len].split_inclusive(|&b| b == 0);
            Ok(names.filter(|n| !BLOCKED.contains(&&n[..n.len() - 1])).flatten().copied().collect())
        })
    }

    /// SETXATTR; `flags` are XATTR_CREATE and XATTR_REPLACE.
    pub fn setxattr(&self, node: NodeId, name: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
        self.with_path(node, |path| {
            self.writable()?;
            check_blocked(name)?;
            xattr::set(path, name, value, flags)
        })
    }

    /// REMOVEXATTR.
    pub fn removexattr(&self, node: NodeId, name: &CStr) -> Result<(), Errno> {
        self.with_path(node, |path| {
            self.writable()?;
            check_blocked(name)?;
            xattr::remove(path, name)
        })
    }
}
