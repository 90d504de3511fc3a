//! Passes messages between the frontend and the worker, in each direction in order, and keeps the record of the session. What is no
//! message is passed on as it came, so that the worker answers or ends the connection as it would without a keeper. Never waits for
//! either of them.
//!
//! A request about what the worker does not know is held back until every one before it is answered, and is answered here.
//!
//! When the worker has died, another one gets the record of the session first, then what the dead one had not answered.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};
use serde::{Deserialize, Serialize};
use vhost::vhost_user::message::FrontendReq;

use super::descriptors::one;
use super::incoming::{Incoming, Received};
use super::inflight::{self, Inflight, Region};
use super::life::is_ready;
use super::message::{Message, REPLY, word};
use super::outgoing::Outgoing;
use super::pending::Pending;
use super::retention::Retained;
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

/// What [`Relay::pass`] has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// There will be more.
    More,
    /// The frontend has hung up, and may connect again.
    Left,
    /// The frontend is not the one whose session is retained, and the worker must not go on with that one.
    Another,
    /// The worker has hung up and the frontend has got everything, or can get nothing any more.
    Ended,
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
    /// The receiver has gone.
    #[serde(default)]
    is_deserted: bool,
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
                    (self.is_last, self.is_deserted) = (true, true);
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
    #[serde(default)]
    inflight: Inflight,
    /// A request that waits until those before it are answered. Nothing is read behind it.
    #[serde(default)]
    held: Option<Message>,
    /// Queues that ran when the frontend connected again, and were not stopped since.
    #[serde(default)]
    resumed: Vec<u16>,
}

impl Relay {
    /// Between two connected stream sockets. `may_return`: the frontend is offered to connect again.
    pub fn new(frontend: OwnedFd, worker: OwnedFd, may_return: bool) -> Relay {
        Relay {
            frontend,
            worker: Some(worker),
            requests: Direction::default(),
            replies: Direction::default(),
            session: Session::default(),
            pending: Pending::default(),
            repeated: 0,
            repeated_answers: VecDeque::new(),
            inflight: Inflight::new(may_return),
            held: None,
            resumed: Vec::new(),
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
        let held = if self.held.is_some() { PollFlags::IN } else { PollFlags::empty() };
        let frontend = worker.is_some().then(|| (self.frontend.as_fd(), flags(&self.requests, &self.replies) - held));
        frontend.into_iter().chain(worker).filter(|(_, flags)| !flags.is_empty())
    }

    /// Passes at most one new message in each direction, and nothing while there is no worker. `retained` is the session that goes on if
    /// the frontend shows that it is its own, before it starts a ring: then it is taken.
    /// Reads from the frontend with `reads` only ([`Relay::brings_more`]).
    pub fn pass(&mut self, retained: &mut Option<Retained>, reads: bool) -> io::Result<Passed> {
        let Some(to_worker) = self.worker.as_ref().map(AsFd::as_fd) else { return Ok(Passed::More) };
        if reads
            && self.held.is_none()
            && self.requests.wants_input()
            && let Read::Message(mut request) = self.requests.receive(self.frontend.as_fd())?
        {
            self.inflight.agree(&mut request);
            let starts = retained.is_some() && request.request() == Some(FrontendReq::SET_VRING_KICK);
            if starts || self.inflight.answers(&request) {
                self.held = Some(request);
            } else {
                self.requests.outgoing.push_back(Outgoing::new(request));
            }
        }
        if self.requests.is_last && (retained.is_some() || self.inflight.can_return()) {
            return Ok(Passed::Left);
        }
        let (session, pending, repeated) = (&mut self.session, &mut self.pending, &mut self.repeated);
        self.requests.send(to_worker, |request| match repeated.checked_sub(1) {
            Some(left) => *repeated = left,
            None => pending.passed(request, session.acknowledges(), &mut |request| session.record(request)),
        });
        if self.replies.wants_input() {
            self.receive_reply()?;
        }
        let is_settled = self.requests.outgoing.is_empty() && self.pending.is_empty();
        if let Some(request) = self.held.take_if(|_| is_settled)
            && let Err(request) = self.answer(request, retained)
        {
            self.held = Some(request);
            return Ok(Passed::Another);
        }
        self.replies.send(self.frontend.as_fd(), drop);
        Ok(match self.replies.has_ended {
            true if self.replies.is_deserted && (retained.is_some() || self.inflight.can_return()) => Passed::Left,
            true => Passed::Ended,
            false => Passed::More,
        })
    }

    /// Answers what was held back, or passes it on. It comes back where it shows that the session of `retained` is not this frontend's.
    fn answer(&mut self, request: Message, retained: &mut Option<Retained>) -> Result<(), Message> {
        let shown = inflight::shown(&request);
        if let Some(Retained { region, queues, .. }) = retained.take_if(|retained| shown.is_some_and(|file| retained.region.is(file))) {
            tracing::info!("the VMM is back, and its session goes on");
            self.inflight.know(region);
            self.resumed = queues;
        }
        let is_senseless = request.request() == Some(FrontendReq::SET_INFLIGHT_FD) && shown.is_none();
        if retained.is_some() && !is_senseless {
            return Err(request);
        }
        match request.request() {
            Some(FrontendReq::GET_INFLIGHT_FD) => self.replies.outgoing.push_back(Outgoing::new(self.inflight.give(&request))),
            Some(FrontendReq::SET_INFLIGHT_FD) => {
                let is_accepted = self.inflight.take(&request);
                if request.wants_reply() && self.session.acknowledges() {
                    let payload = u64::from(!is_accepted).to_ne_bytes().to_vec();
                    self.replies.outgoing.push_back(Outgoing::new(Message::new(FrontendReq::SET_INFLIGHT_FD, REPLY, payload, Vec::new())));
                }
            }
            _ => self.requests.outgoing.push_back(Outgoing::new(request)),
        }
        Ok(())
    }

    /// Reads once what the worker sent. False where nothing came.
    fn receive_reply(&mut self) -> io::Result<bool> {
        let Some(worker) = &self.worker else { return Ok(false) };
        let reply = match self.replies.receive(worker.as_fd())? {
            Read::Message(mut reply) => {
                self.inflight.offer(&mut reply);
                reply
            }
            read => return Ok(matches!(read, Read::Piece)),
        };
        if self.repeated_answers.front() == Some(&reply.number()) {
            self.repeated_answers.pop_front();
            return Ok(true);
        }
        let Relay { session, pending, .. } = self;
        pending.answered(&reply, &mut |request| session.record(request));
        session.record_reply(&reply);
        if reply.request() == Some(FrontendReq::GET_VRING_BASE) {
            self.resumed.retain(|index| u32::from(*index) != word(reply.payload(), 0));
        }
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

    /// Whether the next [`Relay::pass`] reads something of the frontend's.
    pub fn brings_more(&self) -> io::Result<bool> {
        Ok(self.worker.is_some() && self.requests.wants_input() && is_ready(self.frontend.as_fd(), None)?)
    }

    /// Whether the session is all that there is of this connection: no message is on its way, and neither side has hung up.
    pub fn is_quiet(&self) -> bool {
        let is_empty = |direction: &Direction| direction.outgoing.is_empty() && direction.incoming.beginning().bytes.is_empty();
        let has_all = is_empty(&self.requests) && is_empty(&self.replies) && self.held.is_none();
        has_all && self.is_under_way() && self.repeated == 0 && self.repeated_answers.is_empty() && self.pending.messages().next().is_none()
    }

    /// Whether the frontend has gone.
    pub fn has_hung_up(&self) -> io::Result<bool> {
        let mut watched = [PollFd::new(&self.frontend, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        Ok(poll(&mut watched, Some(&now))? > 0)
    }

    /// The queues of which the frontend has said where they are served from, and which ran before it connected again.
    pub fn queues(&self) -> Vec<u16> {
        let said = self.session.rings.iter().filter(|(_, ring)| ring.has_base);
        said.filter_map(|(index, _)| u16::try_from(*index).ok()).chain(self.resumed.iter().copied()).collect()
    }

    /// What the frontend will be known by when it connects again, and the queues that run. `None` where it will not.
    pub fn into_region(self) -> Option<(Region, Vec<u16>)> {
        let running = self.session.rings.iter().filter(|(_, ring)| ring.kick.is_some());
        let queues = running.filter_map(|(index, _)| u16::try_from(*index).ok()).chain(self.resumed.iter().copied()).collect();
        Some((self.inflight.into_region()?, queues))
    }

    /// Adds the descriptors that this owns to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        named.push(self.frontend.as_raw_fd());
        named.extend(self.worker.as_ref().map(AsRawFd::as_raw_fd));
        self.session.name_descriptors(named);
        self.inflight.name_descriptors(named);
        let outgoing = self.requests.outgoing.iter().chain(&self.replies.outgoing).map(Outgoing::message);
        let incoming = [&self.requests.incoming, &self.replies.incoming].map(Incoming::beginning);
        for message in outgoing.chain(incoming).chain(self.pending.messages()).chain(&self.held) {
            named.extend(message.fds.iter().map(AsRawFd::as_raw_fd));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use vhost::vhost_user::message::VhostUserProtocolFeatures;

    use super::super::message::long_word;
    use super::super::retention::Retention;
    use super::*;

    fn pair() -> (OwnedFd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours.into(), theirs)
    }

    fn drain(relay: &mut Relay, socket: &UnixStream) -> Vec<u32> {
        let (mut incoming, mut seen) = (Incoming::default(), Vec::new());
        for _ in 0..10_000 {
            relay.pass(&mut None, true).unwrap();
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
        let mut relay = Relay::new(frontend, worker, false);
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
        assert_eq!(relay.pass(&mut None, true).unwrap(), Passed::More);
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
        let mut relay = Relay::new(frontend, worker, false);
        let reply = Message::new(FrontendReq::GET_VRING_BASE, 4, [1u32.to_ne_bytes(), 7u32.to_ne_bytes()].concat(), Vec::new());
        (&first).write_all(&reply.bytes).unwrap();
        relay.leave_worker().unwrap();
        assert_eq!(relay.replies.outgoing.len(), 1);
    }

    /// Requests that ask for an acknowledgement.
    const NEED_REPLY: u32 = 1 << 3;
    const INFLIGHT: u64 = VhostUserProtocolFeatures::INFLIGHT_SHMFD.bits();
    const ACK: u64 = VhostUserProtocolFeatures::REPLY_ACK.bits();

    fn long(value: u64) -> Vec<u8> {
        value.to_ne_bytes().to_vec()
    }

    fn numbers() -> Vec<u8> {
        [&[0; 16][..], &2u16.to_ne_bytes(), &8u16.to_ne_bytes(), &[0; 4]].concat()
    }

    /// Both ends of a relay in the test's hands.
    struct Ends {
        relay: Relay,
        frontend: UnixStream,
        worker: UnixStream,
        incoming: [Incoming; 2],
    }

    impl Ends {
        fn new() -> Ends {
            let ((ours, frontend), (worker_end, worker)) = (pair(), pair());
            Ends { relay: Relay::new(ours, worker_end, true), frontend, worker, incoming: Default::default() }
        }

        fn say(&self, request: FrontendReq, flags: u32, payload: Vec<u8>, fds: Vec<OwnedFd>) {
            Outgoing::new(Message::new(request, flags, payload, fds)).send(self.frontend.as_fd()).unwrap().unwrap();
        }

        fn answer(&self, request: FrontendReq, payload: Vec<u8>) {
            Outgoing::new(Message::new(request, REPLY, payload, Vec::new())).send(self.worker.as_fd()).unwrap().unwrap();
        }

        /// What comes of some rounds: at the frontend, and at the worker.
        fn pass(&mut self, retained: &mut Option<Retained>) -> (Passed, Vec<Message>, Vec<Message>) {
            let mut seen = [Vec::new(), Vec::new()];
            for _ in 0..20 {
                let passed = self.relay.pass(retained, true).unwrap();
                for (at, socket) in [&self.frontend, &self.worker].into_iter().enumerate() {
                    loop {
                        match self.incoming[at].receive(socket.as_fd()).unwrap() {
                            Received::Message(message) => seen[at].push(message),
                            Received::Piece => {}
                            _ => break,
                        }
                    }
                }
                if passed != Passed::More {
                    let [frontend, worker] = seen;
                    return (passed, frontend, worker);
                }
            }
            let [frontend, worker] = seen;
            (Passed::More, frontend, worker)
        }

        /// Agrees on the feature, with acknowledgements.
        fn agree(&mut self, retained: &mut Option<Retained>) {
            self.say(FrontendReq::SET_PROTOCOL_FEATURES, 0, long(INFLIGHT | ACK), Vec::new());
            let (_, frontend, worker) = self.pass(retained);
            assert!(frontend.is_empty());
            assert_eq!(long_word(worker[0].payload(), 0), ACK, "the worker does not know the feature");
        }

        fn get(&mut self) -> OwnedFd {
            self.say(FrontendReq::GET_INFLIGHT_FD, NEED_REPLY, numbers(), Vec::new());
            let (_, mut frontend, worker) = self.pass(&mut None);
            assert!(worker.is_empty());
            assert_eq!((frontend.len(), frontend[0].number()), (1, u32::from(FrontendReq::GET_INFLIGHT_FD)));
            frontend[0].fds.remove(0)
        }
    }

    #[test]
    fn what_the_keeper_answers_comes_behind_what_the_worker_owes_and_before_what_follows() {
        let mut ends = Ends::new();
        ends.say(FrontendReq::GET_PROTOCOL_FEATURES, 0, Vec::new(), Vec::new());
        assert_eq!(ends.pass(&mut None).2.len(), 1);
        ends.answer(FrontendReq::GET_PROTOCOL_FEATURES, long(ACK));
        assert_eq!(long_word(ends.pass(&mut None).1[0].payload(), 0), ACK | INFLIGHT);
        ends.agree(&mut None);
        ends.say(FrontendReq::SET_VRING_NUM, NEED_REPLY, long(0), Vec::new());
        ends.say(FrontendReq::GET_INFLIGHT_FD, NEED_REPLY, numbers(), Vec::new());
        ends.say(FrontendReq::GET_QUEUE_NUM, 0, Vec::new(), Vec::new());
        let (_, frontend, worker) = ends.pass(&mut None);
        assert!(frontend.is_empty() && worker.len() == 1, "the second waits for the first, the third for the second");
        ends.answer(FrontendReq::SET_VRING_NUM, long(0));
        let (_, frontend, worker) = ends.pass(&mut None);
        let seen: Vec<u32> = frontend.iter().map(Message::number).collect();
        assert_eq!(seen, [FrontendReq::SET_VRING_NUM, FrontendReq::GET_INFLIGHT_FD].map(u32::from));
        assert_eq!(worker.len(), 1);
    }

    #[test]
    fn set_inflight_fd_is_acknowledged_once_where_that_is_asked_for() {
        let mut ends = Ends::new();
        ends.agree(&mut None);
        let file = ends.get();
        for (flags, fds, expected) in
            [(NEED_REPLY, 1, vec![0]), (NEED_REPLY, 0, vec![1]), (NEED_REPLY, 2, vec![1]), (0, 1, vec![]), (0, 0, vec![])]
        {
            let fds = (0..fds).map(|_| file.try_clone().unwrap()).collect();
            ends.say(FrontendReq::SET_INFLIGHT_FD, flags, numbers(), fds);
            let (passed, frontend, worker) = ends.pass(&mut None);
            assert_eq!((passed, worker.len()), (Passed::More, 0));
            assert_eq!(frontend.iter().map(|ack| long_word(ack.payload(), 0)).collect::<Vec<_>>(), expected);
        }
        // It has a file, and may come back.
        drop(std::mem::replace(&mut ends.frontend, pair().1));
        assert_eq!(ends.pass(&mut None).0, Passed::Left);
        assert!(ends.relay.into_region().unwrap().0.is(file.as_fd()));
    }

    #[test]
    fn the_end_of_a_frontend_without_a_file_is_passed_on() {
        for is_agreed in [false, true] {
            let mut ends = Ends::new();
            if is_agreed {
                ends.agree(&mut None);
            }
            drop(std::mem::replace(&mut ends.frontend, pair().1));
            assert_eq!(ends.pass(&mut None).0, Passed::More);
            drop(std::mem::replace(&mut ends.worker, pair().1));
            assert_eq!(ends.pass(&mut None).0, Passed::Ended);
        }
    }

    /// A frontend before, whose queues 0 and 1 ran: its file, and what is retained.
    fn retained() -> (OwnedFd, Option<Retained>) {
        let mut before = Ends::new();
        before.agree(&mut None);
        let (file, mut retention) = (before.get(), Retention::default());
        let (region, _) = before.relay.into_region().unwrap();
        retention.keep(region, vec![0, 1]);
        (file, retention.retained)
    }

    #[test]
    fn a_frontend_that_shows_the_file_goes_on_and_its_ring_starts_behind_that() {
        let (file, mut retained) = retained();
        let mut ends = Ends::new();
        ends.agree(&mut retained);
        assert!(ends.relay.queues().is_empty());
        ends.say(FrontendReq::SET_INFLIGHT_FD, 0, numbers(), vec![file]);
        ends.say(FrontendReq::SET_VRING_KICK, 0, long(0x100), Vec::new());
        let (passed, _, worker) = ends.pass(&mut retained);
        assert_eq!((passed, worker.len(), retained.is_none()), (Passed::More, 1, true));
        assert_eq!(ends.relay.queues(), [0, 1], "before it has said anything about them");
        ends.say(FrontendReq::GET_VRING_BASE, 0, long(1), Vec::new());
        ends.pass(&mut retained);
        ends.answer(FrontendReq::GET_VRING_BASE, [1u32.to_ne_bytes(), 7u32.to_ne_bytes()].concat());
        ends.pass(&mut retained);
        assert_eq!(ends.relay.into_region().unwrap().1, [0], "the other one was stopped");
    }

    #[test]
    fn a_frontend_that_is_another_one_starts_no_ring_in_the_worker_of_the_one_before() {
        let said: [(FrontendReq, Vec<u8>, bool); 3] = [
            (FrontendReq::SET_VRING_KICK, long(0x100), false),
            (FrontendReq::GET_INFLIGHT_FD, numbers(), false),
            (FrontendReq::SET_INFLIGHT_FD, numbers(), true),
        ];
        for (request, payload, brings) in said {
            let (_, mut retained) = retained();
            let mut ends = Ends::new();
            ends.agree(&mut retained);
            let foreign = brings.then(|| rustix::fs::memfd_create(c"x", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
            ends.say(request, 0, payload, foreign.into_iter().collect());
            let (passed, _, worker) = ends.pass(&mut retained);
            assert_eq!((passed, worker.len()), (Passed::Another, 0), "{request:?}");
            // The next worker gets it, where it is for a worker.
            ends.relay.leave_worker().unwrap();
            let (ours, theirs) = pair();
            ends.worker = theirs;
            ends.relay.join_worker(ours).unwrap();
            let (passed, frontend, worker) = ends.pass(&mut None);
            assert_eq!((passed, frontend.len()), (Passed::More, usize::from(request == FrontendReq::GET_INFLIGHT_FD)), "{request:?}");
            let is_passed = worker.iter().any(|message| message.request() == Some(request));
            assert_eq!(is_passed, request == FrontendReq::SET_VRING_KICK);
        }
    }

    #[test]
    fn one_that_hangs_up_before_it_is_known_leaves_what_is_retained() {
        let (file, mut retained) = retained();
        let mut ends = Ends::new();
        ends.say(FrontendReq::SET_OWNER, 0, Vec::new(), Vec::new());
        drop(std::mem::replace(&mut ends.frontend, pair().1));
        assert_eq!(ends.pass(&mut retained).0, Passed::Left);
        assert!(retained.unwrap().region.is(file.as_fd()) && ends.relay.into_region().is_none());
    }
}
