//! Extended attributes (man xattr(7)). The path is the name of a descriptor, see `working_dir`, and symbolic links are followed.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;

use super::failpoint::fail_call;
use crate::types::Errno;

/// Reads attribute `name` into `value` and returns its length. With an empty `value`, only the length. ENODATA where the file
/// has no such attribute, ERANGE where `value` is too small, EOPNOTSUPP where the file system has no such attributes.
pub fn get(path: &CStr, name: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    fail_call!("getxattr");
    // rustix returns 0 for an empty buffer.
    Ok(if value.is_empty() { rustix::fs::getxattr_query(path, name) } else { rustix::fs::getxattr(path, name, value) }?)
}

/// The length of attribute `name` of an open file, which must not be an O_PATH descriptor. Errors as for [`get`], EBADF for
/// O_PATH.
pub fn of_open(file: BorrowedFd<'_>, name: &CStr) -> Result<usize, Errno> {
    fail_call!("fgetxattr");
    Ok(rustix::fs::fgetxattr_query(file, name)?)
}

/// Sets attribute `name`. `flags` are those of setxattr(2): EEXIST with XATTR_CREATE where the attribute exists, ENODATA with
/// XATTR_REPLACE where it does not. ENOSPC, EDQUOT, EPERM and EOPNOTSUPP as of setxattr(2).
pub fn set(path: &CStr, name: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
    fail_call!("setxattr");
    Ok(rustix::fs::setxattr(path, name, value, XattrFlags::from_bits_retain(flags))?)
}

/// Reads the names of the attributes, each with its NUL, into `list`, which must not be empty, and returns the bytes written.
/// ERANGE where `list` is too small.
pub fn list(path: &CStr, list: &mut [u8]) -> Result<usize, Errno> {
    fail_call!("listxattr");
    Ok(rustix::fs::listxattr(path, list)?)
}

/// Removes attribute `name`. ENODATA where the file does not have it.
pub fn remove(path: &CStr, name: &CStr) -> Result<(), Errno> {
    fail_call!("removexattr");
    Ok(rustix::fs::removexattr(path, name)?)
}
