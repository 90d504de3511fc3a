//! IOCTL: a file's flags, its project id, and fs-verity. Every other command is ENOTTY, as it was not examined for safety.

use std::os::fd::BorrowedFd;

use crate::host::request_context::RequestContext;
use crate::host::share::Share;
use crate::sys::ioctl::{self as sys, ATTRIBUTES_LEN, DIGEST_HEADER_LEN, DIGEST_LEN_MAX, Verity};
use crate::sys::stat;
use crate::types::{Errno, FileHandle, GuestUid, NodeId};

/// FS_PROJINHERIT_FL (linux/fs.h): new entries of a directory get its project id.
const PROJINHERIT_FLAG: u32 = 0x2000_0000;
/// FS_XFLAG_PROJINHERIT: the same bit in `struct fsxattr`.
const PROJINHERIT_XFLAG: u32 = 0x200;
/// Where `fsx_xflags` and `fsx_projid` lie in `struct fsxattr`.
const XFLAGS_AT: usize = 0;
const PROJECT_ID_AT: usize = 12;

/// Bytes of `struct fsverity_enable_arg`; salt and signature follow it in the request.
const ENABLE_LEN: usize = 128;

/// The caller in requests of a guest whose mounts may map ids.
const UNNAMED: GuestUid = GuestUid(u32::MAX);

/// Arguments of an IOCTL.
#[derive(Debug, Clone, Copy)]
pub struct IoctlRequest<'a> {
    /// The open file.
    pub handle: FileHandle,
    /// The caller's memory may be read and written anywhere (character devices only): EINVAL.
    pub is_unrestricted: bool,
    /// The number of the command.
    pub command: u32,
    /// Input bytes.
    pub data: &'a [u8],
    /// Number of output bytes.
    pub out_len: usize,
}

/// The commands that are served. Their structures are the same for callers of 32 and 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command<'a> {
    GetFlags,
    SetFlags(u32),
    GetAttributes,
    SetAttributes(&'a [u8; ATTRIBUTES_LEN]),
    EnableVerity(Verity<'a>),
    MeasureVerity { len_max: u16 },
}

impl<'a> Command<'a> {
    /// ENOTTY for a command that is not served, EINVAL for lengths that it does not have.
    fn of(request: &IoctlRequest<'a>) -> Result<Command<'a>, Errno> {
        let (data, out_len) = (request.data, request.out_len);
        let when = |fits: bool, command| if fits { Ok(command) } else { Err(Errno::EINVAL) };
        match request.command {
            // Linux sends the 64-bit number with the four bytes that file systems use.
            sys::GET_FLAGS | sys::GET_FLAGS_32 => when((4..=8).contains(&out_len), Command::GetFlags),
            sys::SET_FLAGS | sys::SET_FLAGS_32 => Ok(Command::SetFlags(u32_at(data, 0)?)),
            sys::GET_ATTRIBUTES => when(out_len == ATTRIBUTES_LEN, Command::GetAttributes),
            sys::SET_ATTRIBUTES => data.try_into().map(Command::SetAttributes).map_err(|_| Errno::EINVAL),
            sys::ENABLE_VERITY => verity(data).map(Command::EnableVerity),
            sys::MEASURE_VERITY => {
                let len_max = u32_at(data, 0)?.to_ne_bytes();
                let len_max = u16::from_ne_bytes([len_max[2], len_max[3]]);
                let len = DIGEST_HEADER_LEN + usize::from(len_max);
                when(usize::from(len_max) <= DIGEST_LEN_MAX && len <= out_len, Command::MeasureVerity { len_max })
            }
            _ => Err(Errno::ENOTTY),
        }
    }
}

fn u32_at(data: &[u8], at: usize) -> Result<u32, Errno> {
    let bytes = data.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or(Errno::EINVAL)?;
    Ok(u32::from_ne_bytes(bytes))
}

/// Project id and PROJINHERIT of `struct fsxattr`: they decide which project quota a file counts towards.
fn project_of(attributes: &[u8; ATTRIBUTES_LEN]) -> Result<(u32, bool), Errno> {
    Ok((u32_at(attributes, PROJECT_ID_AT)?, u32_at(attributes, XFLAGS_AT)? & PROJINHERIT_XFLAG != 0))
}

/// The pointers in the guest's structure are ignored: salt and signature follow the structure.
fn verity(data: &[u8]) -> Result<Verity<'_>, Errno> {
    let (salt_len, signature_len) = (u32_at(data, 12)? as usize, u32_at(data, 24)? as usize);
    let reserved = data.get(40..ENABLE_LEN).ok_or(Errno::EINVAL)?;
    if u32_at(data, 28)? != 0 || reserved.iter().any(|&b| b != 0) {
        return Err(Errno::EINVAL);
    }
    let (salt, rest) = data[ENABLE_LEN..].split_at_checked(salt_len).ok_or(Errno::EINVAL)?;
    let signature = rest.get(..signature_len).ok_or(Errno::EINVAL)?;
    Ok(Verity { version: u32_at(data, 0)?, hash_algorithm: u32_at(data, 4)?, block_size: u32_at(data, 8)?, salt, signature })
}

impl Share {
    /// IOCTL: output bytes are appended to `reply`.
    ///
    /// # Errors
    /// ENOTTY for a command that is not served here or by the host's file system; EINVAL for wrong lengths; EBADF where the handle
    /// is not open; EROFS for a change on a read-only share; EPERM for a change by a caller who may not make it, as the guest's
    /// kernel does not always check; EOPNOTSUPP for enabling fs-verity without a caller.
    pub fn ioctl(&self, node: NodeId, request: &IoctlRequest<'_>, context: &RequestContext<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let caller = context.uid;
        if request.is_unrestricted {
            return Err(Errno::EINVAL);
        }
        let command = Command::of(request)?;
        let opened = self.open_target(node, request.handle)?;
        let file = opened.fd();
        match command {
            Command::GetFlags => {
                reply.extend_from_slice(&sys::flags(file)?.to_ne_bytes());
                reply.resize(request.out_len, 0);
            }
            Command::GetAttributes => reply.extend_from_slice(&sys::attributes(file)?),
            Command::MeasureVerity { len_max } => reply.extend_from_slice(&sys::measure_verity(file, len_max)?),
            Command::SetFlags(flags) => {
                self.check_owner(file, caller)?;
                let inherits = |flags: u32| flags & PROJINHERIT_FLAG != 0;
                self.check_project(|| Ok(inherits(sys::flags(file)?) == inherits(flags)))?;
                sys::set_flags(file, flags)?;
            }
            Command::SetAttributes(attributes) => {
                self.check_owner(file, caller)?;
                self.check_project(|| Ok(project_of(&sys::attributes(file)?)? == project_of(attributes)?))?;
                sys::set_attributes(file, attributes)?;
            }
            Command::EnableVerity(verity) => {
                self.check_owner(file, caller)?;
                // No guest kernel checks the caller of this command.
                if caller == UNNAMED {
                    return Err(Errno::EOPNOTSUPP);
                }
                context.once_or_made(|| sys::enable_verity(file, &verity), |errno| errno == Errno::EEXIST)?;
            }
        }
        Ok(())
    }

    /// EPERM for a request that would change a file's project, unless `--allow-project-ids` permits it. `is_kept`: whether the
    /// request leaves project id and PROJINHERIT unchanged. In a user namespace the kernel refuses the change with EINVAL;
    /// chattr(1) and xfs_io(8) print the errno only, and EPERM is clearer.
    fn check_project(&self, is_kept: impl FnOnce() -> Result<bool, Errno>) -> Result<(), Errno> {
        if self.policy.allow_project_ids || is_kept()? { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Checks that `caller` may change what only a file's owner may: EPERM where not, EROFS on a read-only share. A guest that sends
    /// no caller is Linux 6.12 or newer, which has checked flags and attributes itself.
    fn check_owner(&self, file: BorrowedFd<'_>, caller: GuestUid) -> Result<(), Errno> {
        self.writable()?;
        let (owner, _) = stat::owner(&stat::of(file)?);
        if caller.0 == 0 || caller == UNNAMED || caller == self.policy.translation.guest_uid(owner) { Ok(()) } else { Err(Errno::EPERM) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(number: u32, data: &[u8], out_len: usize) -> Result<Command<'_>, Errno> {
        Command::of(&IoctlRequest { handle: FileHandle(1), is_unrestricted: false, command: number, data, out_len })
    }

    /// `struct fsverity_enable_arg` with pointers that lead anywhere.
    fn enable(salt_len: u32, signature_len: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [1, 2, 4096, salt_len, 0xdead_beef, 0xffff, signature_len, 0, 0xdead_beef, 0xffff] {
            bytes.extend_from_slice(&u32::to_ne_bytes(word));
        }
        bytes.resize(ENABLE_LEN, 0);
        bytes
    }

    #[test]
    fn salt_and_signature_are_what_follows_the_structure() {
        let data = [&enable(4, 5)[..], b"saltsigna"].concat();
        let Ok(Command::EnableVerity(verity)) = command(sys::ENABLE_VERITY, &data, 0) else { panic!("not understood") };
        assert_eq!((verity.version, verity.hash_algorithm, verity.block_size), (1, 2, 4096));
        assert_eq!((verity.salt, verity.signature), (&b"salt"[..], &b"signa"[..]));
        for cut in [0, 1, 127, 128, 131, 136] {
            assert_eq!(command(sys::ENABLE_VERITY, &data[..cut], 0), Err(Errno::EINVAL), "{cut} bytes");
        }
        assert_eq!(command(sys::ENABLE_VERITY, &enable(u32::MAX, u32::MAX), 0), Err(Errno::EINVAL));
        let mut reserved = enable(0, 0);
        reserved[127] = 1;
        assert_eq!(command(sys::ENABLE_VERITY, &reserved, 0), Err(Errno::EINVAL));
    }

    #[test]
    fn a_project_is_the_id_and_the_flag_that_hands_it_on() {
        let mut attributes = [0; ATTRIBUTES_LEN];
        assert_eq!(project_of(&attributes), Ok((0, false)));
        // FS_XFLAG_NODUMP, extent size and the number of extents are no part of it.
        attributes[..12].copy_from_slice(&[0x80, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(project_of(&attributes), Ok((0, false)));
        attributes[1] = 2;
        attributes[12..16].copy_from_slice(&4711u32.to_ne_bytes());
        assert_eq!(project_of(&attributes), Ok((4711, true)));
    }

    #[test]
    fn lengths_that_do_not_go_with_the_number_are_einval_and_other_numbers_enotty() {
        assert_eq!(command(sys::GET_FLAGS, &[], 4), Ok(Command::GetFlags));
        assert_eq!(command(sys::GET_FLAGS, &[], 8), Ok(Command::GetFlags));
        assert_eq!(command(sys::SET_FLAGS_32, &7u32.to_ne_bytes(), 0), Ok(Command::SetFlags(7)));
        let digest = [0, 0, 32, 0];
        assert_eq!(command(sys::MEASURE_VERITY, &digest, 36), Ok(Command::MeasureVerity { len_max: 32 }));
        let bad: [(u32, &[u8], usize); 8] = [
            (sys::GET_FLAGS, &[], 3),
            (sys::GET_FLAGS, &[], 9),
            (sys::SET_FLAGS, &[0; 3], 0),
            (sys::GET_ATTRIBUTES, &[], 27),
            (sys::SET_ATTRIBUTES, &[0; 29], 0),
            (sys::MEASURE_VERITY, &digest[..3], 36),
            (sys::MEASURE_VERITY, &digest, 35),
            (sys::MEASURE_VERITY, &[0, 0, 65, 0], 4096),
        ];
        for (number, data, out_len) in bad {
            assert_eq!(command(number, data, out_len), Err(Errno::EINVAL), "{number:#x} {data:?} {out_len}");
        }
        // FIONREAD, BLKGETSIZE64, FICLONE, FS_IOC_GETVERSION.
        for number in [0x541b, 0x8008_1272, 0x4004_9409, 0x8008_7601, 0, u32::MAX] {
            assert_eq!(command(number, &[0; 64], 64), Err(Errno::ENOTTY), "{number:#x}");
        }
    }
}
