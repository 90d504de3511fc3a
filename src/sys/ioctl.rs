//! ioctl(2) of files: their flags, their project and other extended flags (linux/fs.h), and fs-verity
//! (linux/fsverity.h). ENOTTY or EOPNOTSUPP where the file system has none.

use std::os::fd::{AsRawFd, BorrowedFd};

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
    let mut flags = 0u32;
    // SAFETY: the kernel writes 32 bits, whatever the size in the request's number says.
    check(unsafe { libc::ioctl(file.as_raw_fd(), u64::from(GET_FLAGS) as _, &raw mut flags) })?;
    Ok(flags)
}

/// Sets the inode's flags.
pub fn set_flags(file: BorrowedFd<'_>, flags: u32) -> Result<(), Errno> {
    // SAFETY: the kernel reads 32 bits.
    check(unsafe { libc::ioctl(file.as_raw_fd(), u64::from(SET_FLAGS) as _, &raw const flags) })
}

/// `struct fsxattr` of the inode: extended flags, extent sizes, project id.
pub fn attributes(file: BorrowedFd<'_>) -> Result<[u8; ATTRIBUTES_LEN], Errno> {
    let mut attributes = [0; ATTRIBUTES_LEN];
    // SAFETY: the kernel writes as many bytes as the structure has; it has no alignment for user memory.
    check(unsafe { libc::ioctl(file.as_raw_fd(), u64::from(GET_ATTRIBUTES) as _, attributes.as_mut_ptr()) })?;
    Ok(attributes)
}

/// Sets what `struct fsxattr` holds.
pub fn set_attributes(file: BorrowedFd<'_>, attributes: &[u8; ATTRIBUTES_LEN]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as the structure has.
    check(unsafe { libc::ioctl(file.as_raw_fd(), u64::from(SET_ATTRIBUTES) as _, attributes.as_ptr()) })
}

/// How a file becomes one whose contents are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verity<'a> {
    /// Version of the structure: 1.
    pub version: u32,
    /// FS_VERITY_HASH_ALG_.
    pub hash_algorithm: u32,
    /// Bytes of a block of the hash tree.
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

/// Makes `file`, which must be open for reading only and by nobody for writing, one that is verified.
pub fn enable_verity(file: BorrowedFd<'_>, verity: &Verity<'_>) -> Result<(), Errno> {
    let address = |bytes: &[u8]| if bytes.is_empty() { 0 } else { bytes.as_ptr() as u64 };
    let argument = EnableArgument {
        version: verity.version,
        hash_algorithm: verity.hash_algorithm,
        block_size: verity.block_size,
        salt_size: verity.salt.len() as u32,
        salt: address(verity.salt),
        signature_size: verity.signature.len() as u32,
        reserved1: 0,
        signature: address(verity.signature),
        reserved2: [0; 11],
    };
    // SAFETY: the kernel reads the structure, and the two slices whose addresses and lengths it holds; they live
    // until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), u64::from(ENABLE_VERITY) as _, &raw const argument) })
}

/// The digest of a verified file: `struct fsverity_digest` with at most `len_max` bytes of digest. EOVERFLOW
/// where it is longer, ENODATA where the file is not verified.
pub fn measure_verity(file: BorrowedFd<'_>, len_max: u16) -> Result<Vec<u8>, Errno> {
    let mut digest = vec![0; DIGEST_HEADER_LEN + usize::from(len_max)];
    digest[2..4].copy_from_slice(&len_max.to_ne_bytes());
    // SAFETY: the kernel writes the header and at most as many bytes of digest as the header says there are.
    check(unsafe { libc::ioctl(file.as_raw_fd(), u64::from(MEASURE_VERITY) as _, digest.as_mut_ptr()) })?;
    Ok(digest)
}

fn check(result: i32) -> Result<(), Errno> {
    if result < 0 { Err(Errno::last()) } else { Ok(()) }
}
