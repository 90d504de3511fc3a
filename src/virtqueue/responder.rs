//! The answer to one request, given exactly once: used.len always equals the length in the reply's
//! header, because newer guests turn a difference into EIO (`fs/fuse/virtio_fs.c`).

use zerocopy::IntoBytes;

use super::claim::Claim;
use crate::fuse::abi::{OUT_HEADER_LEN, OutHeader};
use crate::guest::{PageDescriptor, WritableBuffers};
use crate::types::Errno;

/// What answers a request. Consumed by the answer; dropped without one, it answers EIO, so that a
/// forgotten request cannot hang the guest.
#[derive(Debug)]
pub struct Responder<'a> {
    unique: u64,
    buffers: WritableBuffers<'a>,
    used_len: &'a mut u32,
    claim: &'a Claim,
    answered: bool,
}

impl<'a> Responder<'a> {
    pub(super) fn new(unique: u64, buffers: WritableBuffers<'a>, used_len: &'a mut u32, claim: &'a Claim) -> Responder<'a> {
        *used_len = 0;
        Responder { unique, buffers, used_len, claim, answered: false }
    }

    /// Bytes that a reply may have behind its header.
    pub fn room(&self) -> usize {
        self.buffers.bytes().saturating_sub(OUT_HEADER_LEN as u64).min(u64::from(u32::MAX) - OUT_HEADER_LEN as u64) as usize
    }

    /// Whether the request still waits for this answer. An operation of several steps goes on only then.
    pub fn is_wanted(&self) -> bool {
        !self.claim.is_withdrawn()
    }

    /// Answers with `payload`. False where it does not reach the guest.
    pub fn reply(self, payload: &[u8]) -> bool {
        self.reply_parts(payload, &[])
    }

    /// Answers with `first` and `second`, one behind the other. False where they do not reach the guest: the request was
    /// withdrawn, or they do not fit and become EIO, for the guest left less room than the protocol asks for.
    pub fn reply_parts(mut self, first: &[u8], second: &[u8]) -> bool {
        let len = first.len() + second.len();
        if len > self.room() {
            self.error(Errno::EIO);
            return false;
        }
        if !self.may_answer() {
            return false;
        }
        let skip = OUT_HEADER_LEN as u64;
        self.buffers.copy_from(skip, first);
        self.buffers.copy_from(skip + first.len() as u64, second);
        self.header(0, len);
        true
    }

    /// Answers with an error.
    pub fn error(mut self, errno: Errno) {
        if self.may_answer() {
            self.header(-errno.raw(), 0);
        }
    }

    /// Answers with what `work` brings into at most `len` bytes of the reply's pages: it is given the page
    /// descriptors behind the header and tells how many bytes it wrote.
    pub fn fill(mut self, len: usize, work: impl FnOnce(&[PageDescriptor]) -> Result<usize, Errno>) {
        let skip = OUT_HEADER_LEN as u64;
        let len = len.min(self.room());
        match self.buffers.window(skip, len as u64, work) {
            Ok(done) => {
                if self.may_answer() {
                    self.buffers.mark_dirty(skip, done);
                    self.header(0, done);
                }
            }
            Err(errno) => self.error(errno),
        }
    }

    /// Returns the chain without a reply, as FORGET and INTERRUPT are.
    pub fn none(mut self) {
        self.may_answer();
    }

    /// Whether the request was not answered by somebody else meanwhile; from here on it will not be.
    fn may_answer(&mut self) -> bool {
        self.answered = true;
        self.claim.take()
    }

    /// Writes the header. Where even that has no room the chain goes back with length 0.
    fn header(&mut self, error: i32, payload_len: usize) {
        if self.buffers.bytes() < OUT_HEADER_LEN as u64 {
            return;
        }
        let len = (OUT_HEADER_LEN + payload_len) as u32;
        self.buffers.copy_from(0, OutHeader { len, error, unique: self.unique }.as_bytes());
        *self.used_len = len;
    }
}

impl Drop for Responder<'_> {
    fn drop(&mut self) {
        if !self.answered && self.may_answer() {
            self.header(-Errno::EIO.raw(), 0);
        }
    }
}
