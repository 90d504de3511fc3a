//! Extended attributes and ioctls: replies whose length is not known before.

use std::ffi::CStr;

use zerocopy::IntoBytes;

use crate::device::answer::answer;
use crate::device::context::context;
use crate::device::in_flight::{Answered, InFlight};
use crate::fuse::abi::{GetxattrOut, IOCTL_UNRESTRICTED, IoctlIn, IoctlOut};
use crate::host::IoctlRequest;
use crate::types::{Errno, FileHandle};

/// The longest value of an extended attribute.
const XATTR_LEN_MAX: usize = 65536;

/// GETXATTR into `value`: the value's length. With `size` 0 only that is asked. Errors as in [`crate::host::Share::getxattr`].
pub(super) fn getxattr(request: &InFlight, name: &CStr, size: u32, value: &mut Vec<u8>) -> Result<usize, Errno> {
    value.clear();
    value.resize((size as usize).min(XATTR_LEN_MAX).min(request.room()), 0);
    let len = request.share().getxattr(request.header().node, name, value)?;
    value.truncate(len);
    Ok(len)
}

/// LISTXATTR into `list`: the list's length; ERANGE where it is longer than `size`, which may be 0 to ask for the length only.
/// Errors as in [`crate::host::Share::listxattr`].
pub(super) fn listxattr(request: &InFlight, size: u32, list: &mut Vec<u8>) -> Result<usize, Errno> {
    let names = request.share().listxattr(request.header().node)?;
    if size > 0 && names.len() > size as usize {
        return Err(Errno::ERANGE);
    }
    list.clear();
    list.extend_from_slice(&names);
    Ok(names.len())
}

/// Answers with `value`, or with its length where the guest asked with `size` 0.
pub(super) fn answer_xattr(got: Result<usize, Errno>, size: u32, value: &[u8], request: InFlight) -> Answered {
    match got {
        Ok(len) if size == 0 => answer(Ok(GetxattrOut { size: u32::try_from(len).unwrap_or(u32::MAX), padding: 0 }), request),
        Ok(_) => request.reply(value),
        Err(errno) => request.error(errno),
    }
}

/// IOCTL; what it brings is put into `reply`. Errors as in [`crate::host::Share::ioctl`].
pub(super) fn ioctl(request: &InFlight, ioctl: &IoctlIn, data: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
    let (handle, out_len) = (FileHandle(ioctl.fh), ioctl.out_size as usize);
    let header = request.header();
    reply.clear();
    let ioctl = IoctlRequest { handle, is_unrestricted: ioctl.flags & IOCTL_UNRESTRICTED != 0, command: ioctl.cmd, data, out_len };
    request.share().ioctl(header.node, &ioctl, &context(request), reply)
}

/// Answers an IOCTL with `reply`, or with the error.
pub(super) fn answer_ioctl(done: Result<(), Errno>, reply: &[u8], request: InFlight) -> Answered {
    match done {
        Ok(()) => request.reply_parts(IoctlOut::default().as_bytes(), reply),
        Err(errno) => request.error(errno),
    }
}
