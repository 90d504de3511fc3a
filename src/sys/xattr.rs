//! Extended attributes by path, followed (man xattr(7)); the path is a descriptor's name, see `working_dir`.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;

use crate::types::Errno;

/// Reads attribute `name` into `value`; with an empty `value`, its length.
pub fn get(path: &CStr, name: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    // The binding answers 0 for an empty buffer.
    Ok(if value.is_empty() { rustix::fs::getxattr_query(path, name) } else { rustix::fs::getxattr(path, name, value) }?)
}

/// The length of attribute `name` of a file that is open, not O_PATH.
pub fn of_open(file: BorrowedFd<'_>, name: &CStr) -> Result<usize, Errno> {
    Ok(rustix::fs::fgetxattr_query(file, name)?)
}

/// Sets attribute `name`; `flags` as in man setxattr(2).
pub fn set(path: &CStr, name: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
    Ok(rustix::fs::setxattr(path, name, value, XattrFlags::from_bits_retain(flags))?)
}

/// Lists the names, each with its NUL, into `list`, which is not empty.
pub fn list(path: &CStr, list: &mut [u8]) -> Result<usize, Errno> {
    // The buffer is bytes; the binding takes C chars.
    Ok(rustix::fs::listxattr(path, list)?)
}

/// Removes attribute `name`.
pub fn remove(path: &CStr, name: &CStr) -> Result<(), Errno> {
    Ok(rustix::fs::removexattr(path, name)?)
}
