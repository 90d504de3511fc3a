//! What an operation came to becomes the answer. An answer that does not reach the guest, because the request was withdrawn
//! from its thread or left too little room, gives nothing to it: what the guest would have to forget or release then is
//! forgotten or released here.

use zerocopy::{Immutable, IntoBytes};

use crate::fuse::abi::{EntryOut, OpenOut};
use crate::host::Share;
use crate::types::{Errno, FileHandle, NodeId};
use crate::virtqueue::Responder;

/// Answers with a structure, or with the error.
pub(super) fn answer<T: IntoBytes + Immutable>(responder: Responder<'_>, result: Result<T, Errno>) {
    match result {
        Ok(out) => _ = responder.reply(out.as_bytes()),
        Err(errno) => responder.error(errno),
    }
}

/// Answers with nothing but success, or with the error.
pub(super) fn answer_done(responder: Responder<'_>, result: Result<(), Errno>) {
    answer_bytes(responder, result.map(|()| &[][..]));
}

/// Answers with bytes, or with the error.
pub(super) fn answer_bytes(responder: Responder<'_>, result: Result<&[u8], Errno>) {
    match result {
        Ok(bytes) => _ = responder.reply(bytes),
        Err(errno) => responder.error(errno),
    }
}

/// Answers with what is listed in `reply`, each entry of it a lookup, or with the error.
pub(super) fn answer_listed(share: &Share, responder: Responder<'_>, result: Result<(), Errno>, reply: &[u8]) {
    let is_given = match result {
        Ok(()) => responder.reply(reply),
        Err(errno) => {
            share.forget_listed(reply);
            return responder.error(errno);
        }
    };
    if !is_given {
        share.forget_listed(reply);
    }
}

/// Answers with an entry, which counts as a lookup.
pub(super) fn answer_entry(share: &Share, responder: Responder<'_>, result: Result<EntryOut, Errno>) {
    match result {
        // Before the answer: a request that is answered must not wait for the host any more.
        Ok(entry) if responder.room() < size_of::<EntryOut>() => {
            share.forget(NodeId(entry.nodeid), 1);
            responder.error(Errno::EIO);
        }
        Ok(entry) => {
            if !responder.reply(entry.as_bytes()) {
                share.forget(NodeId(entry.nodeid), 1);
            }
        }
        Err(errno) => responder.error(errno),
    }
}

/// Answers with an open file or directory.
pub(super) fn answer_open(share: &Share, responder: Responder<'_>, result: Result<OpenOut, Errno>) {
    match result {
        Ok(open) if responder.room() < size_of::<OpenOut>() => {
            share.release_unanswered(FileHandle(open.fh));
            responder.error(Errno::EIO);
        }
        Ok(open) => {
            if !responder.reply(open.as_bytes()) {
                share.release_unanswered(FileHandle(open.fh));
            }
        }
        Err(errno) => responder.error(errno),
    }
}

/// Answers with a file that was made and opened.
pub(super) fn answer_created(share: &Share, responder: Responder<'_>, result: Result<(EntryOut, OpenOut), Errno>) {
    match result {
        Ok((entry, open)) if responder.room() < size_of::<EntryOut>() + size_of::<OpenOut>() => {
            share.release_unanswered(FileHandle(open.fh));
            share.forget(NodeId(entry.nodeid), 1);
            responder.error(Errno::EIO);
        }
        Ok((entry, open)) => {
            if !responder.reply_parts(entry.as_bytes(), open.as_bytes()) {
                share.release_unanswered(FileHandle(open.fh));
                share.forget(NodeId(entry.nodeid), 1);
            }
        }
        Err(errno) => responder.error(errno),
    }
}
