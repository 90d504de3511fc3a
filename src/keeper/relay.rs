//! Passes messages between the frontend and the worker, in each direction in order, and keeps the record of the session. What is no
//! message is passed on as it came, so that the worker answers or ends the connection as it would without a keeper. Never waits for
//! either of them.
//!
//! When the worker has died, another one gets the record of the session first, then what the dead one had not answered.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::PollFlags;
use rustix::net::{Shutdown, shutdown};

use super::incoming::{Incoming, Received};
use super::message::Message;
use super::outgoing::Outgoing;
use super::pending::Pending;
use super::session::Session;

/// What a read brought.
enum Read {
    /// A whole message.
    Message(Message),
    /// A part of one.
    Piece,
    /// Nothing, now or ever.
    Nothing,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Direction {
    incoming: Incoming,
    outgoing: VecDeque<Outgoing>,
    /// Nothing more comes.
    is_last: bool,
    /// The receiver was told so, or has gone.
    has_ended: bool,
}

impl Direction {
    fn wants_input(&self) -> bool {
        !self.is_last && self.outgoing.is_empty()
    }

    /// Reads once. What is no message is passed on all the same.
    fn receive(&mut self, from: BorrowedFd<'_>) -> io::Result<Read> {
        Ok(match self.incoming.receive(from)? {
            Received::Message(message) => Read::Message(message),
            Received::Piece => Read::Piece,
            Received::Nothing => Read::Nothing,
            Received::Last(rest) => {
                self.is_last = true;
                self.outgoing.push_back(Outgoing::new(rest));
                Read::Nothing
            }
        })
    }

    /// Sends as much as `to` takes. Calls `sent` with each message of which all was sent.
    fn send(&mut self, to: BorrowedFd<'_>, mut sent: impl FnMut(Message)) {
        while let Some(outgoing) = self.outgoing.pop_front() {
            match outgoing.send(to) {
                Ok(Ok(message)) if self.is_last && self.outgoing.is_empty() => drop(message),
                Ok(Ok(message)) => sent(message),
                Ok(Err(rest)) => {
                    self.outgoing.push_front(rest);
                    return;
                }
                // The receiver has gone.
                Err(_) => {
                    self.is_last = true;
                    self.outgoing.clear();
                }
            }
        }
        if self.is_last && !self.has_ended {
            // Without a receiver there is nobody to tell.
            let _ = shutdown(to, Shutdown::Write);
            self.has_ended = true;
        }
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
    pending: Pending,
    /// Messages that are sent again before anything else: the frontend knows nothing of them.
    repeated: usize,
    /// Requests among them that the worker answers.
    repeated_answers: VecDeque<u32>,
}

impl Relay {
    /// Between two connected stream sockets.
    pub fn new(frontend: OwnedFd, worker: OwnedFd) -> Relay {
        Relay {
            frontend,
            worker,
            requests: Direction::default(),
            replies: Direction::default(),
            session: Session::default(),
            pending: Pending::default(),
            repeated: 0,
            repeated_answers: VecDeque::new(),
        }
    }

    /// What to wait for before the next [`Relay::pass`].
    pub fn awaited(&self) -> [(BorrowedFd<'_>, PollFlags); 2] {
        let flags = |into: &Direction, out_of: &Direction| {
            let read = if into.wants_input() { PollFlags::IN } else { PollFlags::empty() };
            let write = if out_of.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            read | write
        };
        [(self.frontend.as_fd(), flags(&self.requests, &self.replies)), (self.worker.as_fd(), flags(&self.replies, &self.requests))]
    }

    /// Passes at most one new message in each direction. False when the worker has hung up and the frontend has got everything, or
    /// can get nothing any more.
    pub fn pass(&mut self) -> io::Result<bool> {
        if self.requests.wants_input()
            && let Read::Message(request) = self.requests.receive(self.frontend.as_fd())?
        {
            self.requests.outgoing.push_back(Outgoing::new(request));
        }
        let Relay { session, pending, repeated, .. } = self;
        self.requests.send(self.worker.as_fd(), |request| match repeated.checked_sub(1) {
            Some(left) => *repeated = left,
            None => pending.passed(request, session.acknowledges(), &mut |request| session.record(request)),
        });
        if self.replies.wants_input() {
            self.receive_reply()?;
        }
        self.replies.send(self.frontend.as_fd(), drop);
        Ok(!self.replies.has_ended)
    }

    /// Reads once what the worker sent. False where nothing came.
    fn receive_reply(&mut self) -> io::Result<bool> {
        let reply = match self.replies.receive(self.worker.as_fd())? {
            Read::Message(reply) => reply,
            read => return Ok(matches!(read, Read::Piece)),
        };
        if self.repeated_answers.front() == Some(&reply.number()) {
            self.repeated_answers.pop_front();
            return Ok(true);
        }
        let Relay { session, pending, .. } = self;
        pending.answered(&reply, &mut |request| session.record(request));
        session.record_reply(&reply);
        self.replies.outgoing.push_back(Outgoing::new(reply));
        Ok(true)
    }

    /// Whether frontend and worker still had to do with each other when the worker died: neither had hung up.
    pub fn is_under_way(&self) -> bool {
        !(self.requests.is_last || self.replies.is_last)
    }

    /// The worker has died: takes what it has sent, as far as it came.
    pub fn leave_worker(&mut self) -> io::Result<()> {
        while !self.replies.is_last && self.receive_reply()? {}
        self.replies.incoming = Incoming::default();
        Ok(())
    }

    /// Another worker, at `worker`, gets the record of the session, what was not answered, and then what comes.
    pub fn join_worker(&mut self, worker: OwnedFd) -> io::Result<()> {
        let again = self.session.messages()?;
        // Not what the last worker should have been told again.
        let unsent = self.requests.outgoing.split_off(self.repeated.min(self.requests.outgoing.len()));
        self.repeated = again.len();
        self.repeated_answers = again.iter().filter(|message| message.has_own_reply()).map(Message::number).collect();
        let unanswered = std::mem::take(&mut self.pending).into_messages();
        let unsent = unsent.into_iter().map(Outgoing::into_unsent);
        self.requests.outgoing = again.into_iter().chain(unanswered).map(Outgoing::new).chain(unsent).collect();
        self.worker = worker;
        Ok(())
    }

    /// The queues that the frontend has set up.
    pub fn queues(&self) -> Vec<u16> {
        self.session.rings.keys().filter_map(|index| u16::try_from(*index).ok()).collect()
    }

    /// Adds the descriptors that this owns to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        named.extend([self.frontend.as_raw_fd(), self.worker.as_raw_fd()]);
        self.session.name_descriptors(named);
        let outgoing = self.requests.outgoing.iter().chain(&self.replies.outgoing).map(Outgoing::message);
        let incoming = [&self.requests.incoming, &self.replies.incoming].map(Incoming::beginning);
        for message in outgoing.chain(incoming).chain(self.pending.messages()) {
            named.extend(message.fds.iter().map(AsRawFd::as_raw_fd));
        }
    }
}
