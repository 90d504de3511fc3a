//! READ, WRITE and FSYNC: what the share prepares, the engine moves, and what it moved becomes the answer.

use super::answer::{answer, answer_done};
use super::context::context;
use super::in_flight::{Answered, Extent, InFlight};
use super::queue_engine::QueueEngine;
use super::served::Served;
use super::service::Service;
use crate::fuse::abi::{IN_HEADER_LEN, OUT_HEADER_LEN, WriteIn, WriteOut};
use crate::host::{Appended, FileInUse, Left, PreparedTransfer, WriteRequest};
use crate::io::{Action, Engine, Finished, Submission, Thread, Transfer, TransferOwner, Unaligned};
use crate::types::{Errno, FileHandle};

/// Bytes before a WRITE's payload.
pub(super) const WRITE_HEAD_LEN: usize = IN_HEADER_LEN + size_of::<WriteIn>();

/// Bytes of the smallest unit in which file systems meet an error of their disk.
const SECTOR_LEN: u64 = 512;

/// READ of `size` bytes.
pub(super) fn read(service: &Service, engine: &QueueEngine, request: InFlight, handle: FileHandle, offset: u64, size: u32) -> Served {
    if size as usize > request.room() {
        return Served::Answered(request.error(Errno::EINVAL));
    }
    let prepared = request.share().prepare_read(request.header().node, handle);
    submit(service, engine, request, prepared, (offset, OUT_HEADER_LEN, size as usize))
}

/// WRITE of `size` bytes.
pub(super) fn write(service: &Service, engine: &QueueEngine, request: InFlight, write: &WriteRequest, size: u32) -> Served {
    if u64::from(size) > request.readable_bytes() - WRITE_HEAD_LEN as u64 {
        return Served::Answered(request.error(Errno::EINVAL));
    }
    let prepared = request.share().prepare_write(write);
    if let Ok(PreparedTransfer { action: Action::Write { append: true }, .. }) = prepared {
        return append(service, engine, request, prepared, size as usize);
    }
    submit(service, engine, request, prepared, (write.offset, WRITE_HEAD_LEN, size as usize))
}

/// FSYNC.
pub(super) fn sync(service: &Service, engine: &QueueEngine, request: InFlight, handle: FileHandle, data_only: bool) -> Served {
    let prepared = request.share().prepare_sync(request.header().node, handle, data_only);
    match context(&request).left() {
        Left::Nothing => {
            request.record().begin(0);
            submit(service, engine, request, prepared, (0, 0, 0))
        }
        // A process that died may have used the error up that this one looks for.
        _ => {
            let sync = |file: FileInUse| {
                let synced = request.share().sync_again(&file, data_only, &context(&request));
                request.share().let_go(file);
                synced
            };
            let synced = prepared.and_then(|prepared| sync(prepared.file));
            Served::Answered(answer_done(synced, request))
        }
    }
}

/// WRITE of `len` bytes to the end of the file, on this thread: the record has the file's length before.
fn append(service: &Service, engine: &QueueEngine, mut request: InFlight, prepared: Result<PreparedTransfer, Errno>, len: usize) -> Served {
    let PreparedTransfer { file, action, thread, unaligned, waits_for_disk, must_be_whole } = match prepared {
        Ok(prepared) => prepared,
        Err(errno) => return Served::Answered(request.error(errno)),
    };
    let payload = |at, to: &mut [u8]| request.copy_readable(WRITE_HEAD_LEN + at, to);
    let appended = request.share().appended_before(request.header().node, len, payload, &context(&request));
    request.begin_transfer(file, Extent { writable: false, skip: WRITE_HEAD_LEN, len, must_be_whole });
    if matches!(appended, Appended::Part(_)) && !request.is_wanted() {
        request.end_transfer();
        return Served::Answered(request.error(Errno::EIO));
    }
    engine.flush();
    let result = match appended {
        Appended::Part(written) => {
            if written > 0 {
                request.go_on_behind(written);
            }
            request.share().append(request.file(), request.pages(), written, thread, &service.metrics, &context(&request))
        }
        Appended::Done(result) => result,
    };
    let is_alone = request.is_alone();
    let transfer = Transfer { owner: request, offset: 0, action, thread, unaligned, waits_for_disk, is_alone };
    Served::Answered(finish(service, Finished { transfer, result }))
}

/// Submits the transfer of `len` bytes, `skip` bytes into the request's memory, at `offset` of the file.
fn submit(
    service: &Service,
    engine: &QueueEngine,
    mut request: InFlight,
    prepared: Result<PreparedTransfer, Errno>,
    (offset, skip, len): (u64, usize, usize),
) -> Served {
    let PreparedTransfer { file, action, thread, unaligned, waits_for_disk, must_be_whole } = match prepared {
        Ok(prepared) => prepared,
        Err(errno) => return Served::Answered(request.error(errno)),
    };
    request.begin_transfer(file, Extent { writable: action == Action::Read, skip, len, must_be_whole });
    // What was prepared may have waited for the host.
    if !request.is_wanted() {
        request.end_transfer();
        return Served::Answered(request.error(Errno::EIO));
    }
    let is_alone = request.is_alone();
    match engine.submit(Transfer { owner: request, offset, action, thread, unaligned, waits_for_disk, is_alone }) {
        Submission::Finished(finished) => Served::Answered(finish(service, finished)),
        Submission::Submitted => {
            service.metrics.submitted.increment();
            Served::Submitted(None)
        }
        Submission::Full(Transfer { owner: mut request, .. }) => {
            request.end_transfer();
            request.leave_thread();
            Served::Throttled(request)
        }
    }
}

/// Answers a request whose transfer is finished.
pub(super) fn finish(service: &Service, finished: Finished<InFlight>) -> Answered {
    let Finished { transfer, mut result } = finished;
    let Transfer { owner: mut request, offset, action, thread, unaligned, .. } = transfer;
    // An append was made by this thread, and may not be made twice.
    let may_repeat = action != (Action::Write { append: true });
    if matches!(result, Err(Errno::EAGAIN | Errno::EINTR | Errno::ECANCELED | Errno::EFAULT)) && may_repeat && request.is_wanted() {
        // The kernel gave it up: the thread that submitted it has ended, or the memory registered under its number was replaced.
        result = request.share().transfer_again(request.file(), request.pages(), offset, (action, thread), &service.metrics);
    }
    if result == Err(Errno::EINVAL) && unaligned == Unaligned::Buffered && request.is_wanted() {
        let (share, pages) = (request.share(), request.pages());
        let retry = |file| share.transfer_buffered(file, pages, offset, (action, thread), &service.metrics);
        result = request.held_file().and_then(retry).unwrap_or(result);
    }
    let Extent { len, must_be_whole, .. } = request.extent();
    if let Ok(moved @ 1..) = result
        && must_be_whole
        && moved < len
        && request.is_wanted()
    {
        result = complete(service, &mut request, (offset, action, thread), moved);
    }
    if matches!(action, Action::Sync { .. }) {
        context(&request).note_result(result.map(|_| 0));
    }
    request.end_transfer();
    match (action, result) {
        (_, Err(errno)) => request.error(errno),
        (Action::Read, Ok(len)) => {
            service.metrics.host_read_bytes.add(len as u64);
            request.reply_filled(len)
        }
        (Action::Write { .. }, Ok(len)) => {
            service.metrics.host_write_bytes.add(len as u64);
            answer(Ok(WriteOut { size: u32::try_from(len).unwrap_or(u32::MAX), padding: 0 }), request)
        }
        (Action::Sync { .. }, Ok(_)) => answer_done(Ok(()), request),
    }
}

/// Goes on with a transfer that must be whole, and of which the first `moved` bytes were moved. The kernel makes a transfer short that meets an
/// error, and tells it to the next one only. A READ that ends inside a sector ends with the file.
fn complete(
    service: &Service,
    request: &mut InFlight,
    (offset, action, thread): (u64, Action, Thread),
    mut moved: usize,
) -> Result<usize, Errno> {
    while moved < request.extent().len {
        let behind = offset + moved as u64;
        if action == Action::Read && !behind.is_multiple_of(SECTOR_LEN) {
            break;
        }
        request.go_on_behind(moved);
        match request.share().transfer_again(request.file(), request.pages(), behind, (action, thread), &service.metrics) {
            Ok(0) if action == Action::Read => break,
            Ok(0) => return Err(Errno::EIO),
            // Direct I/O refuses the end of the file where that is not aligned.
            Err(Errno::EINVAL) if action == Action::Read => break,
            Ok(more) => moved += more,
            Err(errno) => return Err(errno),
        }
    }
    Ok(moved)
}
