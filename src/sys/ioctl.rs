//! ioctl(2) of files: inode flags, extended flags and project ids (linux/fs.h), and fs-verity (linux/fsverity.h). ENOTTY or
//! EOPNOTSUPP where the file system does not support one.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::failpoint::fail_call;
use crate::types::Errno;

/// FS_IOC_GETFLAGS.
pub const GET_FLAGS: u32 = 0x8008_6601;
/// FS_IOC_SETFLAGS.
pub const SET_FLAGS: u32 = 0x4008_6602;
/// FS_IOC32_GETFLAGS.
pub const GET_FLAGS_32: u32 = 0x8004_6601;
/// FS_IOC32_SETFLAGS.
pub const SET_FLAGS_32: u32 = 0x4004_6602;
/// FS_IOC_FSGETXATTR.
pub const GET_ATTRIBUTES: u32 = 0x801c_581f;
/// FS_IOC_FSSETXATTR.
pub const SET_ATTRIBUTES: u32 = 0x401c_5820;
/// FS_IOC_ENABLE_VERITY.
pub const ENABLE_VERITY: u32 = 0x4080_6685;
/// FS_IOC_MEASURE_VERITY.
pub const MEASURE_VERITY: u32 = 0xc004_6686;

/// Bytes of `struct fsxattr`.
pub const ATTRIBUTES_LEN: usize = 28;
/// Bytes of `struct fsverity_digest` before the digest: algorithm and length, 16 bits each.
pub const DIGEST_HEADER_LEN: usize = 4;
/// The longest digest (FS_VERITY_MAX_DIGEST_SIZE).
pub const DIGEST_LEN_MAX: usize = 64;

/// The inode's flags, as lsattr(1) shows them.
pub fn flags(file: BorrowedFd<'_>) -> Result<u32, Errno> {
    fail_call!("ioctl");
    Ok(ioctl_getflags(file)?.bits())
}

/// Sets the inode's flags, unknown ones included. EPERM without the right to change them, EOPNOTSUPP or EINVAL for flags that
/// the file system does not have, EROFS.
pub fn set_flags(file: BorrowedFd<'_>, flags: u32) -> Result<(), Errno> {
    fail_call!("ioctl");
    Ok(ioctl_setflags(file, IFlags::from_bits_retain(flags))?)
}

/// `struct fsxattr` of the inode: extended flags, extent sizes, project id.
pub fn attributes(file: BorrowedFd<'_>) -> Result<[u8; ATTRIBUTES_LEN], Errno> {
    fail_call!("ioctl");
    let mut attributes = [0; ATTRIBUTES_LEN];
    // SAFETY: the kernel writes `ATTRIBUTES_LEN` bytes, and requires no alignment.
    check(unsafe { libc::ioctl(file.as_raw_fd(), u64::from(GET_ATTRIBUTES) as _, attributes.as_mut_ptr()) })?;
    Ok(attributes)
}

/// Sets `struct fsxattr` of the inode. EPERM without the right to change it, EINVAL for values that the file system does not
/// take, EROFS.
pub fn set_attributes(file: BorrowedFd<'_>, attributes: &[u8; ATTRIBUTES_LEN]) -> Result<(), Errno> {
    fail_call!("ioctl");
    // SAFETY: the kernel reads `ATTRIBUTES_LEN` bytes.
    check(unsafe { libc::ioctl(file.as_raw_fd(), u64::from(SET_ATTRIBUTES) as _, attributes.as_ptr()) })
}

/// The parameters of FS_IOC_ENABLE_VERITY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verity<'a> {
    /// Version of the structure: 1.
    pub version: u32,
    /// An FS_VERITY_HASH_ALG_ constant.
    pub hash_algorithm: u32,
    /// Bytes of a block of the Merkle tree.
    pub block_size: u32,
    /// Salt of the hashes.
    pub salt: &'a [u8],
    /// Signature of the digest.
    pub signature: &'a [u8],
}

/// `struct fsverity_enable_arg`.
#[repr(C)]
struct EnableArgument {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved1: u32,
    signature: u64,
    reserved2: [u64; 11],
}

const _: () = assert!(size_of::<EnableArgument>() == 128);

/// Enables fs-verity on `file`, which must be open for reading. ETXTBSY while it is open for writing, EEXIST where it is enabled
/// already, EINVAL for parameters that the kernel does not take or a salt or signature above 4 GiB.
pub fn enable_verity(file: BorrowedFd<'_>, verity: &Verity<'_>) -> Result<(), Errno> {
    fail_call!("ioctl");
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| Errno::EINVAL);
    let address = |bytes: &[u8]| if bytes.is_empty() { 0 } else { bytes.as_ptr() as u64 };
    let argument = EnableArgument {
        version: verity.version,
        hash_algorithm: verity.hash_algorithm,
        block_size: verity.block_size,
        salt_size: len(verity.salt)?,
        salt: address(verity.salt),
        signature_size: len(verity.signature)?,
        reserved1: 0,
        signature: address(verity.signature),
        reserved2: [0; 11],
    };
    // SAFETY: the kernel reads the structure and the two slices whose addresses and lengths it holds. They outlive the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), u64::from(ENABLE_VERITY) as _, &raw const argument) })
}

/// The digest of a file with fs-verity: `struct fsverity_digest` with at most `len_max` bytes of digest. EOVERFLOW where the
/// digest is longer, ENODATA where fs-verity is not enabled on the file.
pub fn measure_verity(file: BorrowedFd<'_>, len_max: u16) -> Result<Vec<u8>, Errno> {
    fail_call!("ioctl");
    let mut digest = vec![0; DIGEST_HEADER_LEN + usize::from(len_max)];
    digest[2..4].copy_from_slice(&len_max.to_ne_bytes());
    // SAFETY: the kernel writes the header and at most as many bytes of digest as the header's length, `len_max`.
    check(unsafe { libc::ioctl(file.as_raw_fd(), u64::from(MEASURE_VERITY) as _, digest.as_mut_ptr()) })?;
    Ok(digest)
}

fn check(result: i32) -> Result<(), Errno> {
    if result < 0 { Err(Errno::last()) } else { Ok(()) }
}
