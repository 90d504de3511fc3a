//! One request: its bytes become an operation, the operation is carried out on the share, and the
//! responder answers. A guest's mistake is answered with an errno and counted; nothing here ends the loop.

use std::ffi::CStr;

use zerocopy::IntoBytes;

use super::answer::{answer, answer_bytes, answer_created, answer_done, answer_entry, answer_listed, answer_open};
use super::parked::{Parked, Place};
use super::service::Service;
use crate::fuse::abi::{CopyFileRangeOut, GetxattrOut, IN_HEADER_LEN, IoctlIn, IoctlOut, LkIn, LseekOut, WriteIn, WriteOut};
use crate::fuse::{Extensions, InitRequest, Limits, Opcode, Operation, RequestHeader, SessionError, decode, decode_header, negotiate};
use crate::guest::ReadableBuffers;
use crate::host::{IoctlRequest, LockAnswer, LockWait, Locked, Maker, Share, WriteRequest};
use crate::types::{Errno, FileHandle, GuestGid, GuestUid};
use crate::virtqueue::{ChainFault, Request, Responder};
use crate::{info_limited, warn_limited};

/// Bytes before a WRITE's payload.
const WRITE_HEAD_LEN: usize = IN_HEADER_LEN + size_of::<WriteIn>();
/// The longest value of an extended attribute.
const XATTR_LEN_MAX: usize = 65536;

/// The longest part of a listing: it is put together in memory, and the guest asks for the rest.
const LISTING_LEN_MAX: usize = 1 << 20;

/// Descriptors of a chain that carry no page: the guest keeps four for headers and arguments
/// (FUSE_HEADER_OVERHEAD of `fs/fuse/virtio_fs.c`).
const HEADER_DESCRIPTORS: u16 = 4;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    /// It is answered.
    Answered,
    /// Its answer comes later.
    Parked,
}

/// Serves `request`, which was walked and lies at `place`. The size of its queue bounds what INIT may agree on; `scratch` is
/// room for replies that are put together here.
pub(super) fn serve(
    service: &Service,
    share: &Share,
    queue_size: u16,
    request: &mut Request,
    scratch: &mut Vec<u8>,
    place: Place<'_>,
) -> Served {
    let readable = request.readable_bytes();
    let fault = request.fault();
    let bytes = request.copy_arguments(WRITE_HEAD_LEN);
    let Some(header) = decode_header(bytes) else {
        refuse_headerless(service, request, fault);
        return Served::Answered;
    };
    let opcode = Opcode::from_number(header.opcode);
    service.metrics.requests[opcode.map_or(0, |o| o as usize)].increment();
    let refusal = match fault {
        Some(fault) => Some(refuse_chain(service, fault)),
        None if u64::from(header.len) != readable => {
            service.metrics.malformed_requests.increment();
            warn_limited!("a request says {} bytes and has {readable}; answered with EINVAL", header.len);
            Some(Errno::EINVAL)
        }
        None => None,
    };
    if refusal.is_none() && opcode != Some(Opcode::Write) && readable > WRITE_HEAD_LEN as u64 {
        request.copy_arguments(readable as usize);
    }
    let ring_descriptors = request.ring_descriptors();
    let (bytes, payload, responder) = request.parts(header.unique.0);
    if let Some(errno) = refusal {
        answer_error(opcode, responder, errno);
        return Served::Answered;
    }
    if opcode != Some(Opcode::Write) && (bytes.len() as u64) < readable {
        service.metrics.malformed_requests.increment();
        answer_error(opcode, responder, Errno::E2BIG);
        return Served::Answered;
    }
    let agreed = service.agreed();
    match decode(&header, &bytes[IN_HEADER_LEN..], agreed.as_ref()) {
        Ok(operation) if agreed.is_none() && !matches!(operation, Operation::Init(_)) => {
            service.metrics.out_of_session.increment();
            answer_error(opcode, responder, Errno::EIO);
        }
        Ok(operation) => {
            let park = || place.park(header.unique, ring_descriptors);
            // A wait for a lock looks for its INTERRUPT itself.
            if !matches!(operation, Operation::Setlkw(_)) {
                share.forget_interrupt(header.unique);
            }
            let call = Call { service, share, header: &header, queue_size, park: &park, scratch };
            return call.carry_out(&operation, payload, responder);
        }
        Err(errno) => {
            service.metrics.malformed_requests.increment();
            answer_error(opcode, responder, errno);
        }
    }
    Served::Answered
}

/// SETLKW: where the lock is not free the request is parked, and answered when it is.
fn wait_for_lock(
    share: &Share,
    header: &RequestHeader,
    lk: &LkIn,
    park: impl Fn() -> Result<Parked, Errno>,
    responder: Responder<'_>,
) -> Served {
    let make_answer = || -> Result<LockAnswer, Errno> {
        let parked = park()?;
        Ok(Box::new(move |result| parked.answer(result)))
    };
    let locked = share.setlk(header.node, lk, Some(&LockWait { unique: header.unique, answer: &make_answer }));
    if locked == Ok(Locked::Waits) {
        responder.none();
        return Served::Parked;
    }
    share.forget_interrupt(header.unique);
    answer_done(responder, locked.map(|_| ()));
    Served::Answered
}

/// Answers an error, unless the guest expects no answer to `opcode`.
fn answer_error(opcode: Option<Opcode>, responder: Responder<'_>, errno: Errno) {
    if opcode.is_none_or(Opcode::wants_reply) { responder.error(errno) } else { responder.none() }
}

/// A chain without even a header: the guest is told which errno, if there is room, and nothing else.
fn refuse_headerless(service: &Service, request: &mut Request, fault: Option<ChainFault>) {
    let errno = match fault {
        Some(fault) => refuse_chain(service, fault),
        None => {
            service.metrics.malformed_requests.increment();
            warn_limited!("a request of {} bytes has no header", request.readable_bytes());
            Errno::EINVAL
        }
    };
    let (_, _, responder) = request.parts(0);
    responder.error(errno);
}

fn refuse_chain(service: &Service, fault: ChainFault) -> Errno {
    service.metrics.malformed_chains.increment();
    warn_limited!("a descriptor chain was refused: {fault}");
    match fault {
        ChainFault::Outside { .. } => Errno::EFAULT,
        _ => Errno::EINVAL,
    }
}

/// INIT.
fn begin(service: &Service, share: &Share, queue_size: u16, init: &InitRequest, responder: Responder<'_>) {
    let max_pages = queue_size.saturating_sub(HEADER_DESCRIPTORS).clamp(1, service.options.max_pages.max(1));
    let rights = match share.rights_flags(init.flags) {
        Ok(flags) => flags,
        Err(lacks) => {
            tracing::error!("{lacks}");
            return responder.error(Errno::EPROTO);
        }
    };
    let limits = Limits { wanted: share.wanted_flags() | rights, max_pages };
    match negotiate(init, &limits) {
        Ok((out, agreed)) => {
            if let Err(errno) = service.begin_fuse(&agreed, || responder.is_wanted()) {
                return responder.error(errno);
            }
            let queues = service.running_request_queues();
            info_limited!("the guest mounted the share: FUSE {}.{} in its kernel, {queues} request queue(s)", init.major, init.minor);
            tracing::debug!("FUSE 7.{} session: flags {:#x}, {} pages a request", agreed.minor, agreed.flags, out.max_pages);
            answer(responder, Ok(out));
        }
        Err(SessionError::RetryWithOurs(out)) => answer(responder, Ok(out)),
        Err(SessionError::TooOld) => {
            tracing::error!("the guest speaks FUSE {}.{}; 7.27 (Linux 4.20) or newer is needed", init.major, init.minor);
            responder.error(Errno::EPROTO);
        }
    }
}

/// One operation in a session.
struct Call<'c> {
    service: &'c Service,
    share: &'c Share,
    header: &'c RequestHeader,
    queue_size: u16,
    /// Parks the request, whose answer then comes later.
    park: &'c dyn Fn() -> Result<Parked, Errno>,
    scratch: &'c mut Vec<u8>,
}

impl Call<'_> {
    /// Makes something on the caller's behalf.
    fn make<R>(&self, umask: u32, extensions: &Extensions<'_>, make: impl FnOnce(&Maker<'_>) -> Result<R, Errno>) -> Result<R, Errno> {
        make(&self.share.maker(self.caller(), umask, extensions)?)
    }

    fn caller(&self) -> (GuestUid, GuestGid) {
        (self.header.uid, self.header.gid)
    }

    /// Carries out `operation`. The match names every operation, so that none is forgotten.
    fn carry_out(self, operation: &Operation<'_>, payload: ReadableBuffers<'_>, responder: Responder<'_>) -> Served {
        let (share, node) = (self.share, self.header.node);
        match *operation {
            // The session.
            Operation::Init(ref init) => begin(self.service, share, self.queue_size, init, responder),
            Operation::Destroy => {
                self.service.end_fuse();
                answer_done(responder, Ok(()));
            }
            Operation::Interrupt { unique } => {
                share.interrupt(unique);
                responder.none();
            }
            Operation::NotifyReply => responder.none(),

            // Contents and open files.
            Operation::Read { handle, offset, size } => self.read(handle, offset, size as usize, responder),
            Operation::Write { handle, offset, size, flags, write_flags } => {
                self.write(&WriteRequest { handle, offset, flags, write_flags }, size, payload, responder);
            }
            Operation::Open { flags, kill_suidgid } => answer_open(share, responder, share.open(node, flags, kill_suidgid)),
            Operation::Release { handle, flock_owner } => answer_done(responder, share.release(handle, flock_owner)),
            Operation::Flush { handle, lock_owner } => answer_done(responder, share.flush(handle, lock_owner)),
            Operation::Fsync { handle, data_only } => answer_done(responder, share.fsync(node, handle, data_only)),
            Operation::Fallocate { handle, offset, len, mode } => {
                answer_done(responder, share.fallocate(handle, offset, len, mode, self.header.uid));
            }
            Operation::Lseek { handle, offset, whence } => {
                answer(responder, share.lseek(node, handle, offset, whence).map(|offset| LseekOut { offset }));
            }
            Operation::CopyFileRange { ref copy, wide_reply: true } => {
                answer(responder, share.copy_file_range(copy, self.header.uid).map(|bytes_copied| CopyFileRangeOut { bytes_copied }));
            }
            Operation::CopyFileRange { ref copy, wide_reply: false } => {
                answer(responder, share.copy_file_range(copy, self.header.uid).map(|size| WriteOut { size: size as u32, padding: 0 }));
            }
            Operation::Ioctl { ref request, data } => self.ioctl(request, data, responder),

            // Locks.
            Operation::Getlk(ref lk) => answer(responder, share.getlk(node, lk)),
            Operation::Setlk(ref lk) => answer_done(responder, share.setlk(node, lk, None).map(|_| ())),
            Operation::Setlkw(ref lk) => return wait_for_lock(share, self.header, lk, self.park, responder),

            // Directories.
            Operation::Opendir { .. } => answer_open(share, responder, share.opendir(node)),
            Operation::Readdir { handle, offset, size } => {
                self.scratch.clear();
                let done = share.readdir(node, handle, offset, listing_len(size, &responder), self.scratch);
                answer_bytes(responder, done.map(|()| self.scratch.as_slice()));
            }
            Operation::Readdirplus { handle, offset, size } => {
                self.scratch.clear();
                let done = share.readdirplus(node, handle, offset, listing_len(size, &responder), self.scratch);
                answer_listed(share, responder, done, self.scratch);
            }
            Operation::Releasedir { handle } => answer_done(responder, share.releasedir(handle)),
            Operation::Fsyncdir { handle, data_only } => answer_done(responder, share.fsyncdir(node, handle, data_only)),

            // Nodes and their attributes.
            Operation::Lookup { name } => answer_entry(share, responder, share.lookup(node, name)),
            Operation::Forget { count } => {
                share.forget(node, count);
                responder.none();
            }
            Operation::BatchForget { nodes } => {
                share.batch_forget(nodes);
                responder.none();
            }
            Operation::Getattr { target } => answer(responder, share.getattr(node, target)),
            Operation::Setattr(ref set) => {
                let done = share.setattr(node, set, || responder.is_wanted());
                answer(responder, done);
            }
            Operation::Statx { target, flags, mask } => answer(responder, share.statx(node, target, flags, mask)),
            Operation::Access { mask } => answer_done(responder, share.access(node, self.caller(), mask)),
            Operation::Readlink => answer_bytes(responder, share.readlink(node).as_deref().map_err(|errno| *errno)),
            Operation::Setxattr { name, value, flags, kill_sgid } => {
                answer_done(responder, share.setxattr(node, name, value, flags, kill_sgid));
            }
            Operation::Getxattr { name, size } => self.getxattr(name, size as usize, responder),
            Operation::Listxattr { size } => match share.listxattr(node) {
                Ok(list) if size == 0 => answer(responder, Ok(GetxattrOut { size: list.len() as u32, padding: 0 })),
                Ok(list) if list.len() > size as usize => responder.error(Errno::ERANGE),
                list => answer_bytes(responder, list.as_deref().map_err(|errno| *errno)),
            },
            Operation::Removexattr { name } => answer_done(responder, share.removexattr(node, name)),

            // Names.
            Operation::Symlink { name, target, ref extensions } => {
                answer_entry(share, responder, self.make(0, extensions, |maker| share.symlink(node, name, target, maker)));
            }
            Operation::Mknod { name, mode, rdev, umask, ref extensions } => {
                answer_entry(share, responder, self.make(umask, extensions, |maker| share.mknod(node, name, mode, rdev, maker)));
            }
            Operation::Mkdir { name, mode, umask, ref extensions } => {
                answer_entry(share, responder, self.make(umask, extensions, |maker| share.mkdir(node, name, mode, maker)));
            }
            Operation::Unlink { name } => answer_done(responder, share.unlink(node, name)),
            Operation::Rmdir { name } => answer_done(responder, share.rmdir(node, name)),
            Operation::Rename { name, new_parent, new_name, flags } => {
                answer_done(responder, share.rename((node, name), (new_parent, new_name), flags, self.caller()));
            }
            Operation::Link { node: old, name } => answer_entry(share, responder, share.link(old, node, name)),
            Operation::Create { name, flags, mode, umask, kill_suidgid, ref extensions } => {
                let make = |maker: &Maker<'_>| share.create(node, name, flags, mode, kill_suidgid, maker);
                answer_created(share, responder, self.make(umask, extensions, make));
            }
            Operation::Tmpfile { flags, mode, umask, ref extensions } => {
                answer_created(share, responder, self.make(umask, extensions, |maker| share.tmpfile(node, flags, mode, maker)));
            }

            // The file system.
            Operation::Statfs => answer(responder, share.statfs(node)),
            Operation::Syncfs => answer_done(responder, share.syncfs(node)),

            // No logic behind these; the guest's kernel then does without.
            Operation::Bmap { .. } | Operation::Poll(_) | Operation::Setupmapping(_) | Operation::Removemapping { .. } => {
                responder.error(Errno::ENOSYS);
            }
        }
        Served::Answered
    }

    fn read(self, handle: FileHandle, offset: u64, size: usize, responder: Responder<'_>) {
        let metrics = &self.service.metrics;
        if size > responder.room() {
            return responder.error(Errno::EINVAL);
        }
        responder.fill(size, |pages| {
            let done = self.share.read(self.header.node, handle, offset, pages, &metrics.host_reads)?;
            metrics.host_read_bytes.add(done as u64);
            Ok(done)
        });
    }

    fn write(self, write: &WriteRequest, size: u32, mut payload: ReadableBuffers<'_>, responder: Responder<'_>) {
        let metrics = &self.service.metrics;
        let head = WRITE_HEAD_LEN as u64;
        if u64::from(size) > payload.bytes() - head {
            return responder.error(Errno::EINVAL);
        }
        let done = payload.window(head, u64::from(size), |pages| self.share.write(write, pages, &metrics.host_writes));
        if let Ok(done) = done {
            metrics.host_write_bytes.add(done as u64);
        }
        answer(responder, done.map(|done| WriteOut { size: done as u32, padding: 0 }));
    }

    /// GETXATTR: the value, or its length where the guest gave no room.
    fn getxattr(self, name: &CStr, size: usize, responder: Responder<'_>) {
        if size == 0 {
            let len = self.share.getxattr(self.header.node, name, &mut []);
            return answer(responder, len.map(|len| GetxattrOut { size: len as u32, padding: 0 }));
        }
        self.scratch.clear();
        self.scratch.resize(size.min(XATTR_LEN_MAX).min(responder.room()), 0);
        let done = self.share.getxattr(self.header.node, name, self.scratch);
        self.scratch.truncate(*done.as_ref().unwrap_or(&0));
        answer_bytes(responder, done.map(|_| self.scratch.as_slice()));
    }

    fn ioctl(self, request: &IoctlIn, data: &[u8], responder: Responder<'_>) {
        let (handle, out_len) = (FileHandle(request.fh), request.out_size as usize);
        let ioctl = IoctlRequest { handle, flags: request.flags, command: request.cmd, data, out_len };
        self.scratch.clear();
        match self.share.ioctl(self.header.node, &ioctl, self.header.uid, self.scratch) {
            Ok(()) => _ = responder.reply_parts(IoctlOut::default().as_bytes(), self.scratch),
            Err(errno) => responder.error(errno),
        }
    }
}

/// Bytes of a listing for a guest that asks for `size`.
fn listing_len(size: u32, responder: &Responder<'_>) -> usize {
    (size as usize).min(LISTING_LEN_MAX).min(responder.room())
}
