//! What takes a name away or moves it: UNLINK, RMDIR and RENAME.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, RenameFlags};

use crate::host::Share;
use crate::types::{Errno, NodeId};

impl Share {
    /// UNLINK: the name of anything but a directory.
    pub fn unlink(&self, parent: NodeId, name: &CStr) -> Result<(), Errno> {
        self.writable()?;
        Ok(rustix::fs::unlinkat(self.path_fd(parent)?.as_fd(), name, AtFlags::empty())?)
    }

    /// RMDIR: an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: &CStr) -> Result<(), Errno> {
        self.writable()?;
        Ok(rustix::fs::unlinkat(self.path_fd(parent)?.as_fd(), name, AtFlags::REMOVEDIR)?)
    }

    /// RENAME and RENAME2; `flags` as in man renameat2(2), EINVAL for others.
    pub fn rename(&self, parent: NodeId, name: &CStr, new_parent: NodeId, new_name: &CStr, flags: u32) -> Result<(), Errno> {
        self.writable()?;
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        let (from, to) = (self.path_fd(parent)?, self.path_fd(new_parent)?);
        Ok(rustix::fs::renameat_with(from.as_fd(), name, to.as_fd(), new_name, flags)?)
    }
}
