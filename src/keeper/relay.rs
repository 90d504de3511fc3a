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
use serde::{Deserialize, Serialize};

use super::descriptors::one;
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
#[derive(Debug, Default, Serialize, Deserialize)]
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
#[derive(Debug, Serialize, Deserialize)]
pub struct Relay {
    #[serde(with = "one")]
    frontend: OwnedFd,
    /// `None` from when the worker has died until another one has come.
    #[serde(skip)]
    worker: Option<OwnedFd>,
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
            worker: Some(worker),
            requests: Direction::default(),
            replies: Direction::default(),
            session: Session::default(),
            pending: Pending::default(),
            repeated: 0,
            repeated_answers: VecDeque::new(),
        }
    }

    /// What to wait for before the next [`Relay::pass`]. A socket of which nothing is expected would report its hang-up again and again.
    pub fn awaited(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let flags = |into: &Direction, out_of: &Direction| {
            let read = if into.wants_input() { PollFlags::IN } else { PollFlags::empty() };
            let write = if out_of.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            read | write
        };
        let worker = self.worker.as_ref().map(|worker| (worker.as_fd(), flags(&self.replies, &self.requests)));
        let frontend = worker.is_some().then(|| (self.frontend.as_fd(), flags(&self.requests, &self.replies)));
        frontend.into_iter().chain(worker).filter(|(_, flags)| !flags.is_empty())
    }

    /// Passes at most one new message in each direction. False when the worker has hung up and the frontend has got everything, or
    /// can get nothing any more. Passes nothing while there is no worker.
    pub fn pass(&mut self) -> io::Result<bool> {
        let Some(to_worker) = self.worker.as_ref().map(AsFd::as_fd) else { return Ok(true) };
        if self.requests.wants_input()
            && let Read::Message(request) = self.requests.receive(self.frontend.as_fd())?
        {
            self.requests.outgoing.push_back(Outgoing::new(request));
        }
        let (session, pending, repeated) = (&mut self.session, &mut self.pending, &mut self.repeated);
        self.requests.send(to_worker, |request| match repeated.checked_sub(1) {
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
        let Some(worker) = &self.worker else { return Ok(false) };
        let reply = match self.replies.receive(worker.as_fd())? {
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
        self.worker = None;
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
        self.worker = Some(worker);
        Ok(())
    }

    /// The queues that the frontend has set up.
    pub fn queues(&self) -> Vec<u16> {
        self.session.rings.keys().filter_map(|index| u16::try_from(*index).ok()).collect()
    }

    /// Adds the descriptors that this owns to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        named.push(self.frontend.as_raw_fd());
        named.extend(self.worker.as_ref().map(AsRawFd::as_raw_fd));
        self.session.name_descriptors(named);
        let outgoing = self.requests.outgoing.iter().chain(&self.replies.outgoing).map(Outgoing::message);
        let incoming = [&self.requests.incoming, &self.replies.incoming].map(Incoming::beginning);
        for message in outgoing.chain(incoming).chain(self.pending.messages()) {
            named.extend(message.fds.iter().map(AsRawFd::as_raw_fd));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use vhost::vhost_user::message::FrontendReq;

    use super::*;

    fn pair() -> (OwnedFd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours.into(), theirs)
    }

    fn drain(relay: &mut Relay, socket: &UnixStream) -> Vec<u32> {
        let (mut incoming, mut seen) = (Incoming::default(), Vec::new());
        for _ in 0..10_000 {
            relay.pass().unwrap();
            while let Ok(received) = incoming.receive(socket.as_fd()) {
                match received {
                    Received::Message(message) => seen.push(message.number()),
                    _ if incoming.beginning().bytes.is_empty() => break,
                    _ => {}
                }
            }
        }
        seen
    }

    #[test]
    fn a_death_within_the_replay_repeats_nothing_twice() {
        let ((frontend, _vmm), (worker, first)) = (pair(), pair());
        let mut relay = Relay::new(frontend, worker);
        let event = || -> OwnedFd { rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap() };
        relay.session.record(Message::new(FrontendReq::SET_OWNER, 0, Vec::new(), Vec::new()));
        for index in 0..256u32 {
            let payload = |value: u32| [index.to_ne_bytes(), value.to_ne_bytes()].concat();
            relay.session.record(Message::new(FrontendReq::SET_VRING_NUM, 0, payload(256), Vec::new()));
            relay.session.record(Message::new(FrontendReq::SET_VRING_ENABLE, 0, payload(1), Vec::new()));
            let payload = u64::from(index).to_ne_bytes().to_vec();
            relay.session.record(Message::new(FrontendReq::SET_VRING_KICK, 0, payload.clone(), vec![event()]));
            relay.session.record(Message::new(FrontendReq::SET_VRING_CALL, 0, payload, vec![event()]));
        }
        let expected = relay.session.messages().unwrap().len();
        drop(first);
        let (worker, second) = pair();
        relay.join_worker(worker).unwrap();
        assert!(relay.pass().unwrap());
        assert!(relay.repeated > 0, "the socket took all");
        relay.leave_worker().unwrap();
        drop(second);
        let (worker, third) = pair();
        relay.join_worker(worker).unwrap();
        assert_eq!(drain(&mut relay, &third).len(), expected);
    }

    #[test]
    fn what_a_dead_worker_has_answered_is_taken() {
        let ((frontend, _vmm), (worker, first)) = (pair(), pair());
        let mut relay = Relay::new(frontend, worker);
        let reply = Message::new(FrontendReq::GET_VRING_BASE, 4, [1u32.to_ne_bytes(), 7u32.to_ne_bytes()].concat(), Vec::new());
        (&first).write_all(&reply.bytes).unwrap();
        relay.leave_worker().unwrap();
        assert_eq!(relay.replies.outgoing.len(), 1);
    }
}
