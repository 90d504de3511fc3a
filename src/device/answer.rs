//! Turns the result of an operation into the reply to its request. A reply may not reach the guest, because the request was
//! withdrawn or its reply buffers are too small; the lookup count or open file that it would have passed to the guest is then
//! dropped here.

use zerocopy::{Immutable, IntoBytes};

use super::in_flight::{Answered, InFlight};
use super::reply;
use crate::fuse::abi::{EntryOut, OpenOut};
use crate::types::{Errno, FileHandle, NodeId};

impl InFlight {
    /// Answers with `payload`; with EIO where it does not fit, for the guest left less room than the protocol asks for.
    pub(super) fn reply(self, payload: &[u8]) -> Answered {
        self.reply_parts(payload, &[])
    }

    /// The same with `first` and `second`, one behind the other.
    pub(super) fn reply_parts(self, first: &[u8], second: &[u8]) -> Answered {
        if first.len() + second.len() > self.room() {
            return self.error(Errno::EIO).instead();
        }
        self.answer_with(|chain, unique| reply::write_parts(chain, unique, first, second))
    }

    /// Answers with `len` bytes that were brought into the reply's pages behind the header.
    pub(super) fn reply_filled(self, len: usize) -> Answered {
        self.answer_with(|chain, unique| reply::write_filled(chain, unique, len))
    }

    /// Answers with an error.
    pub(super) fn error(self, errno: Errno) -> Answered {
        self.answer_with(|chain, unique| reply::write_error(chain, unique, errno))
    }

    /// Returns the chain without a reply, as those of FORGET and INTERRUPT are.
    pub(super) fn none(self) -> Answered {
        self.answer_with(|_, _| 0)
    }
}

/// Answers with a structure, or with the error.
pub(super) fn answer<T: IntoBytes + Immutable>(result: Result<T, Errno>, request: InFlight) -> Answered {
    match result {
        Ok(out) => request.reply(out.as_bytes()),
        Err(errno) => request.error(errno),
    }
}

/// Answers with nothing but success, or with the error.
pub(super) fn answer_done(result: Result<(), Errno>, request: InFlight) -> Answered {
    answer_bytes(result.map(|()| &[][..]), request)
}

/// Answers with bytes, or with the error.
pub(super) fn answer_bytes(result: Result<&[u8], Errno>, request: InFlight) -> Answered {
    match result {
        Ok(bytes) => request.reply(bytes),
        Err(errno) => request.error(errno),
    }
}

/// Answers with an entry, which counts as a lookup.
pub(super) fn answer_entry(result: Result<EntryOut, Errno>, request: InFlight) -> Answered {
    let Ok(entry) = result else { return answer(result, request) };
    // Before the answer: a request that is answered must not wait for the host any more.
    if request.room() < size_of::<EntryOut>() {
        request.share().uncount(NodeId(entry.nodeid), request.record());
        return request.error(Errno::EIO);
    }
    let answered = request.reply(entry.as_bytes());
    if !answered.is_given {
        answered.share().forget(NodeId(entry.nodeid), 1);
    }
    answered
}

/// Answers with an open file or directory.
pub(super) fn answer_open(result: Result<OpenOut, Errno>, request: InFlight) -> Answered {
    let Ok(open) = result else { return answer(result, request) };
    if request.room() < size_of::<OpenOut>() {
        request.share().release_unanswered(FileHandle(open.fh));
        return request.error(Errno::EIO);
    }
    let answered = request.reply(open.as_bytes());
    if !answered.is_given {
        answered.share().release_unanswered(FileHandle(open.fh));
    }
    answered
}

/// Answers with a file that was made and opened.
pub(super) fn answer_created(result: Result<(EntryOut, OpenOut), Errno>, request: InFlight) -> Answered {
    let (entry, open) = match result {
        Ok(created) => created,
        Err(errno) => return request.error(errno),
    };
    if request.room() < size_of::<EntryOut>() + size_of::<OpenOut>() {
        request.share().release_unanswered(FileHandle(open.fh));
        request.share().uncount(NodeId(entry.nodeid), request.record());
        return request.error(Errno::EIO);
    }
    let answered = request.reply_parts(entry.as_bytes(), open.as_bytes());
    if !answered.is_given {
        answered.share().release_unanswered(FileHandle(open.fh));
        answered.share().forget(NodeId(entry.nodeid), 1);
    }
    answered
}
