//! A message on its way into a stream. Never waits.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize};

use super::message::{FDS_MAX, Message};

/// A message, of which a part may have been sent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outgoing {
    message: Message,
    sent: usize,
}

impl Outgoing {
    /// Nothing of `message` has been sent.
    pub fn new(message: Message) -> Outgoing {
        Outgoing { message, sent: 0 }
    }

    /// The message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The same, to be sent to another socket from its beginning on.
    pub fn into_unsent(self) -> Outgoing {
        Outgoing { sent: 0, ..self }
    }

    /// Sends as much as `socket` takes, the descriptors with the first byte. The message, once all of it was sent. EPIPE or
    /// ECONNRESET where nobody reads it any more.
    pub fn send(mut self, socket: BorrowedFd<'_>) -> io::Result<Result<Message, Outgoing>> {
        while self.sent < self.message.bytes.len() {
            match self.send_once(socket) {
                Ok(len) => self.sent += len,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(Err(self)),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Ok(self.message))
    }

    fn send_once(&self, socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
        let fds: Vec<BorrowedFd<'_>> = self.message.fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if self.sent == 0 && !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let rest = [IoSlice::new(&self.message.bytes[self.sent..])];
        sendmsg(socket, &rest, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
    }
}
