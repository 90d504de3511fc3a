//! One request: its bytes become an operation, the operation is carried out on the share, and the result becomes the answer. A
//! guest's mistake is answered with an errno and counted; nothing here ends the loop.
//!
//! The match in [`carry_out`] names every operation, so that none is forgotten. What takes more than a line lies in the files of
//! `serve/`, and in `transfer.rs`.

mod again;
mod arguments;
mod attributes;
mod directories;
mod locks;
mod names;
mod session;

use super::answer::{answer, answer_bytes, answer_created, answer_done, answer_entry, answer_open};
use super::context::context;
use super::in_flight::{Answered, InFlight};
use super::queue_engine::QueueEngine;
use super::served::Served;
use super::service::Service;
use super::transfer;
use super::wire;
use crate::fuse::abi::{CopyFileRangeOut, IN_HEADER_LEN, LseekOut, WRITE_CACHE, WRITE_KILL_PRIV, WriteOut};
use crate::fuse::{Opcode, Operation, decode, decode_header};
use crate::host::WriteRequest;
use crate::io::Engine;
use crate::types::Errno;
use crate::virtqueue::ChainFault;
use crate::warn_limited;

/// Bytes of each request that are copied first: all but the payload of a WRITE, and enough to tell which one it is.
pub(super) const FIRST_LEN: usize = transfer::WRITE_HEAD_LEN;

/// Serves `request`, of which [`FIRST_LEN`] bytes were copied. `scratch` is room for replies that are put together here.
pub(super) fn serve(service: &Service, engine: &QueueEngine, mut request: InFlight, scratch: &mut Vec<u8>) -> Served {
    let Some(header) = decode_header(request.arguments()) else {
        return Served::Answered(refuse_headerless(service, request));
    };
    if again::refuses(service, &mut request, &header) {
        request.set_header(header);
        return Served::Answered(answer_error(Errno::EIO, request));
    }
    request.set_header(header);
    let opcode = Opcode::from_number(header.opcode);
    service.metrics.requests[opcode.map_or(0, |o| o as usize)].increment();
    let readable = request.readable_bytes();
    if let Some(fault) = request.fault() {
        return Served::Answered(answer_error(refuse_chain(service, fault), request));
    }
    if u64::from(header.len) != readable {
        service.metrics.malformed_requests.increment();
        warn_limited!(service.limiter; "a request says {} bytes and has {readable}; answered with EINVAL", header.len);
        return Served::Answered(answer_error(Errno::EINVAL, request));
    }
    if opcode != Some(Opcode::Write) && readable > FIRST_LEN as u64 {
        request.copy_arguments(usize::try_from(readable).unwrap_or(usize::MAX));
        if (request.arguments().len() as u64) < readable {
            service.metrics.malformed_requests.increment();
            return Served::Answered(answer_error(Errno::E2BIG, request));
        }
    }
    carry_out(service, engine, request, scratch)
}

/// Serves a request again that was throttled.
pub(super) fn serve_again(service: &Service, engine: &QueueEngine, request: InFlight, scratch: &mut Vec<u8>) -> Served {
    if !request.is_wanted() {
        return Served::Answered(request.error(Errno::EIO));
    }
    carry_out(service, engine, request, scratch)
}

/// Decodes the operation and carries it out.
fn carry_out(service: &Service, engine: &QueueEngine, request: InFlight, scratch: &mut Vec<u8>) -> Served {
    let header = *request.header();
    let negotiated = service.negotiated();
    let operation = match decode(&header, &request.arguments()[IN_HEADER_LEN..], negotiated.as_ref()) {
        Ok(operation) if negotiated.is_some() || matches!(operation, Operation::Init(_)) => operation,
        Ok(_) => {
            service.metrics.out_of_session.increment();
            return Served::Answered(answer_error(Errno::EIO, request));
        }
        Err(errno) => {
            service.metrics.malformed_requests.increment();
            return Served::Answered(answer_error(errno, request));
        }
    };
    let (share, node) = (request.share(), header.node);
    // Transfers that were collected do not wait for what this one does on the host.
    if !matches!(operation, Operation::Read { .. } | Operation::Write { .. } | Operation::Fsync { .. }) {
        engine.flush();
    }
    // SETLKW checks for an early INTERRUPT itself.
    if !matches!(operation, Operation::Setlkw(_)) {
        share.forget_interrupt(header.unique);
    }
    // Each result is computed before the request, which its names and values borrow, is consumed by the answer.
    Served::Answered(match operation {
        // The session.
        Operation::Init(init) => session::init(service, &init, request),
        Operation::Destroy => {
            service.end_fuse();
            answer_done(Ok(()), request)
        }
        Operation::Interrupt { unique } => {
            share.interrupt(unique);
            request.none()
        }
        Operation::NotifyReply => request.none(),

        // Contents and open files.
        Operation::Read { handle, offset, size } => return transfer::read(service, engine, request, handle, offset, size),
        Operation::Write { handle, offset, size, flags, write_flags } => {
            let (from_cache, clears_suidgid) = (write_flags & WRITE_CACHE != 0, write_flags & WRITE_KILL_PRIV != 0);
            let write = WriteRequest { handle, offset, flags, from_cache, clears_suidgid };
            return transfer::write(service, engine, request, &write, size);
        }
        Operation::Open { flags, kill_suidgid } => {
            let opened = share.open(node, flags, kill_suidgid, &context(&request));
            answer_open(opened.map(|opened| wire::open_out(&opened)), request)
        }
        Operation::Release { handle, flock_owner } => answer_done(share.release(handle, flock_owner, &context(&request)), request),
        Operation::Flush { handle, lock_owner } => answer_done(share.flush(handle, lock_owner, &context(&request)), request),
        Operation::Fsync { handle, data_only } => return transfer::sync(service, engine, request, handle, data_only),
        Operation::Fallocate { handle, offset, len, mode } => {
            answer_done(share.fallocate(handle, offset, len, mode, &context(&request)), request)
        }
        Operation::Lseek { handle, offset, whence } => {
            answer(share.lseek(node, handle, offset, whence).map(|offset| LseekOut { offset }), request)
        }
        Operation::CopyFileRange { copy, wide_reply: true } => answer(
            share.copy_file_range(&arguments::copy_range(&copy), header.uid).map(|bytes_copied| CopyFileRangeOut { bytes_copied }),
            request,
        ),
        Operation::CopyFileRange { copy, wide_reply: false } => {
            // At most 2 GiB: `copy_file_range` has a limit.
            let size = share.copy_file_range(&arguments::copy_range(&copy), header.uid).map(|size| u32::try_from(size).unwrap_or(u32::MAX));
            answer(size.map(|size| WriteOut { size, padding: 0 }), request)
        }
        Operation::Ioctl { request: ioctl, data } => {
            attributes::answer_ioctl(attributes::ioctl(&request, &ioctl, data, scratch), scratch, request)
        }

        // Locks.
        Operation::Getlk(lk) => answer(locks::get(&lk, &request), request),
        Operation::Setlk(lk) => answer_done(locks::try_set(&lk, &request), request),
        Operation::Setlkw(lk) => return locks::wait(&lk, request),

        // Directories.
        Operation::Opendir { .. } => answer_open(share.opendir(node, &context(&request)).map(|opened| wire::open_out(&opened)), request),
        Operation::Readdir { handle, offset, size } => directories::readdir(request, handle, offset, size),
        Operation::Readdirplus { handle, offset, size } => directories::readdirplus(request, handle, offset, size, scratch),
        Operation::Releasedir { handle } => answer_done(share.releasedir(handle, &context(&request)), request),
        Operation::Fsyncdir { handle, data_only } => answer_done(share.fsyncdir(node, handle, data_only, &context(&request)), request),

        // Nodes and their attributes.
        Operation::Lookup { name } => {
            answer_entry(share.lookup(node, name, &context(&request)).map(|found| wire::lookup_out(&found)), request)
        }
        Operation::Forget { count } => {
            share.forget_each(std::iter::once((node, count)), &context(&request));
            request.none()
        }
        Operation::BatchForget { nodes } => {
            share.forget_each(arguments::forgets(nodes), &context(&request));
            request.none()
        }
        Operation::Getattr { target } => answer(share.getattr(node, arguments::handle(target)).map(|got| wire::attr_out(&got)), request),
        Operation::Setattr(set) => {
            let changed = share.setattr(node, &arguments::attribute_change(&set), &context(&request));
            answer(changed.map(|got| wire::attr_out(&got)), request)
        }
        Operation::Statx { target, flags, mask } => {
            let got = share.statx(node, arguments::handle(target), flags, mask);
            answer(got.map(|got| wire::statx_out(&got)), request)
        }
        Operation::Access { mask } => answer_done(share.access(node, (header.uid, header.gid), mask), request),
        Operation::Readlink => answer_bytes(share.readlink(node).as_deref().map_err(|errno| *errno), request),
        Operation::Setxattr { name, value, flags, kill_sgid } => {
            answer_done(share.setxattr(node, name, value, flags, kill_sgid, &context(&request)), request)
        }
        Operation::Getxattr { name, size } => {
            let got = attributes::getxattr(&request, name, size, scratch);
            attributes::answer_xattr(got, size, scratch, request)
        }
        Operation::Listxattr { size } => {
            let listed = attributes::listxattr(&request, size, scratch);
            attributes::answer_xattr(listed, size, scratch, request)
        }
        Operation::Removexattr { name } => answer_done(share.removexattr(node, name, &context(&request)), request),

        // Names.
        Operation::Symlink { name, target, extensions } => {
            let made = names::create_with(&request, 0, &extensions, |create| share.symlink(node, name, target, create));
            answer_entry(made.map(|entry| wire::entry_out(&entry)), request)
        }
        Operation::Mknod { name, mode, rdev, umask, extensions } => {
            let made =
                names::create_with(&request, umask, &extensions, |create| share.mknod(node, name, mode, wire::decode_device(rdev), create));
            answer_entry(made.map(|entry| wire::entry_out(&entry)), request)
        }
        Operation::Mkdir { name, mode, umask, extensions } => {
            let made = names::create_with(&request, umask, &extensions, |create| share.mkdir(node, name, mode, create));
            answer_entry(made.map(|entry| wire::entry_out(&entry)), request)
        }
        Operation::Unlink { name } => answer_done(share.unlink(node, name, &context(&request)), request),
        Operation::Rmdir { name } => answer_done(share.rmdir(node, name, &context(&request)), request),
        Operation::Rename { name, new_parent, new_name, flags } => {
            answer_done(share.rename((node, name), (new_parent, new_name), flags, &context(&request)), request)
        }
        Operation::Link { node: old, name } => {
            answer_entry(share.link(old, node, name, &context(&request)).map(|entry| wire::entry_out(&entry)), request)
        }
        Operation::Create { name, flags, mode, umask, kill_suidgid, extensions } => {
            let made =
                names::create_with(&request, umask, &extensions, |create| share.create(node, name, flags, mode, kill_suidgid, create));
            answer_created(made.map(|created| wire::created_out(&created)), request)
        }
        Operation::Tmpfile { flags, mode, umask, extensions } => {
            let made = names::create_with(&request, umask, &extensions, |create| share.tmpfile(node, flags, mode, create));
            answer_created(made.map(|created| wire::created_out(&created)), request)
        }

        // The file system.
        Operation::Statfs => answer(share.statfs(node).map(|st| wire::kstatfs(&st)), request),
        Operation::Syncfs => answer_done(share.syncfs(node), request),

        // No logic behind these; the guest's kernel then does without.
        Operation::Bmap { .. } | Operation::Poll(_) | Operation::Setupmapping(_) | Operation::Removemapping { .. } => {
            request.error(Errno::ENOSYS)
        }
    })
}

/// Answers an error, unless the guest expects no answer to what it sent.
fn answer_error(errno: Errno, request: InFlight) -> Answered {
    let opcode = Opcode::from_number(request.header().opcode);
    if opcode.is_none_or(Opcode::wants_reply) { request.error(errno) } else { request.none() }
}

/// Answers a chain that is too short for a header, if its reply buffers have room.
fn refuse_headerless(service: &Service, request: InFlight) -> Answered {
    let errno = match request.fault() {
        Some(fault) => refuse_chain(service, fault),
        None => {
            service.metrics.malformed_requests.increment();
            warn_limited!(service.limiter; "a request of {} bytes has no header", request.readable_bytes());
            Errno::EINVAL
        }
    };
    request.error(errno)
}

/// Counts a chain that breaks the rules: the errno for it.
fn refuse_chain(service: &Service, fault: ChainFault) -> Errno {
    service.metrics.malformed_chains.increment();
    warn_limited!(service.limiter; "a descriptor chain was refused: {fault}");
    match fault {
        ChainFault::Outside { .. } => Errno::EFAULT,
        _ => Errno::EINVAL,
    }
}
