//! Passes messages between the frontend and the worker, one at a time in each direction, and shows them to the record of the
//! session. What is no message is passed on as it came, so that the worker answers or ends the connection as it would without a
//! keeper. Never waits for either of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::net::{Shutdown, shutdown};

use super::incoming::{Incoming, Received};
use super::message::Message;
use super::outgoing::Outgoing;
use super::session::Session;

/// One direction of a connection.
#[derive(Debug, Default)]
struct Direction {
    incoming: Incoming,
    outgoing: Option<Outgoing>,
    /// Nothing more comes.
    is_last: bool,
    /// The receiver was told so, or has gone.
    has_ended: bool,
}

impl Direction {
    fn wants_input(&self) -> bool {
        !self.is_last && self.outgoing.is_none()
    }

    /// Reads a message from `from`, if the last one has been sent, and sends it to `to`. Returns it when all of it was sent.
    fn pass(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<Option<Message>> {
        if self.wants_input() {
            match self.incoming.receive(from)? {
                Received::Message(message) => self.outgoing = Some(Outgoing::new(message)),
                Received::Nothing => {}
                Received::Last(rest) => {
                    self.is_last = true;
                    self.outgoing = Some(Outgoing::new(rest));
                }
            }
        }
        let Some(outgoing) = self.outgoing.take() else { return Ok(None) };
        let sent = match outgoing.send(to) {
            Ok(Ok(message)) => Some(message),
            Ok(Err(rest)) => {
                self.outgoing = Some(rest);
                return Ok(None);
            }
            // The receiver has gone.
            Err(_) => {
                self.is_last = true;
                None
            }
        };
        if self.is_last {
            // Without a receiver there is nobody to tell.
            let _ = shutdown(to, Shutdown::Write);
            self.has_ended = true;
            return Ok(None);
        }
        Ok(sent)
    }
}

/// A frontend's connection.
#[derive(Debug)]
pub struct Relay {
    frontend: OwnedFd,
    worker: OwnedFd,
    requests: Direction,
    replies: Direction,
    session: Session,
}

impl Relay {
    /// Between two connected stream sockets.
    pub fn new(frontend: OwnedFd, worker: OwnedFd) -> Relay {
        Relay { frontend, worker, requests: Direction::default(), replies: Direction::default(), session: Session::default() }
    }

    /// What to wait for before the next [`Relay::pass`].
    pub fn awaited(&self) -> [(BorrowedFd<'_>, PollFlags); 2] {
        let flags = |into: &Direction, out_of: &Direction| {
            let read = if into.wants_input() { PollFlags::IN } else { PollFlags::empty() };
            let write = if out_of.outgoing.is_some() { PollFlags::OUT } else { PollFlags::empty() };
            read | write
        };
        [(self.frontend.as_fd(), flags(&self.requests, &self.replies)), (self.worker.as_fd(), flags(&self.replies, &self.requests))]
    }

    /// Passes at most one message in each direction. False when the worker has hung up and the frontend has got everything, or can
    /// get nothing any more.
    pub fn pass(&mut self) -> io::Result<bool> {
        if let Some(request) = self.requests.pass(self.frontend.as_fd(), self.worker.as_fd())? {
            self.session.record(request);
        }
        if let Some(reply) = self.replies.pass(self.worker.as_fd(), self.frontend.as_fd())? {
            self.session.record(reply);
        }
        Ok(!self.replies.has_ended)
    }

    /// The session so far.
    pub fn session(&self) -> &Session {
        &self.session
    }
}
