//! Stopping a queue: what is in flight is waited for, up to a bound. What the host has not finished by then is withdrawn
//! from its thread and answered with EIO, so that a frontend that waits in GET_VRING_BASE goes on. Whatever the host does
//! with it later, data for the guest or an answer, reaches nobody.

use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::queue::{Popped, Queue, State, publish_and_call};
use super::service::Service;
use crate::fuse::abi::IN_HEADER_LEN;
use crate::fuse::{Opcode, decode_header};
use crate::types::Errno;
use crate::virtqueue::{Claim, Request, Ring};

/// How long a stop waits at least, if --stop-timeout is not less, and for answers that are being written when it gives up.
const STOP_MIN: Duration = Duration::from_secs(1);
/// Threads that the host does not let go: with as many the daemon starts no more. A host that does not answer would else take
/// threads and memory with each reset of the VM.
pub(super) const STUCK_MAX: u64 = 512;
/// What a WRITE carries at most, for each descriptor of its queue: the guest's pages.
const PAGE_LEN: usize = 4096;

/// A request that a thread serves.
#[derive(Debug)]
struct InService {
    popped: Popped,
    since: Instant,
}

/// What is known of a serving thread.
#[derive(Debug)]
struct Seat {
    thread: ThreadId,
    /// The right to answer its request.
    claim: Arc<Claim>,
    request: Option<InService>,
    /// Its request was withdrawn and it has not come back from the host.
    is_stuck: bool,
}

/// A thread's place in [`Serving`].
#[derive(Debug, Clone, Copy)]
pub(super) struct SeatIndex(usize);

/// The threads of a queue, and the requests that they serve.
#[derive(Debug, Default)]
pub(super) struct Serving {
    seats: Vec<Option<Seat>>,
}

impl Serving {
    /// The calling thread will serve requests, one after the other, and answer them by `claim`.
    pub fn enter(&mut self, claim: &Arc<Claim>) -> SeatIndex {
        let thread = std::thread::current().id();
        let seat = Some(Seat { thread, claim: Arc::clone(claim), request: None, is_stuck: false });
        let free = self.seats.iter().position(Option::is_none);
        match free {
            Some(index) => self.seats[index] = seat,
            None => self.seats.push(seat),
        }
        SeatIndex(free.unwrap_or(self.seats.len() - 1))
    }

    /// The thread ends.
    pub fn leave(&mut self, index: SeatIndex) {
        self.seats[index.0] = None;
    }

    /// The thread at `index` begins to serve `popped`, at `since`.
    pub fn begin(&mut self, index: SeatIndex, popped: &Popped, since: Instant) {
        if let Some(seat) = &mut self.seats[index.0] {
            seat.claim.begin();
            seat.request = Some(InService { popped: popped.clone(), since });
        }
    }

    /// The thread has done with its request. False where that was withdrawn meanwhile: somebody else has answered it.
    pub fn end(&mut self, index: SeatIndex) -> bool {
        let Some(seat) = &mut self.seats[index.0] else { return false };
        seat.is_stuck = false;
        seat.request.take().is_some()
    }

    /// When the last of the requests began.
    fn last_began(&self) -> Option<Instant> {
        self.seats.iter().flatten().filter_map(|seat| seat.request.as_ref()).map(|request| request.since).max()
    }

    /// Whether `thread` has not come back from the host since its request was withdrawn.
    pub fn is_stuck(&self, thread: ThreadId) -> bool {
        self.seats.iter().flatten().any(|seat| seat.thread == thread && seat.is_stuck)
    }

    /// Takes away the requests that their threads are not about to answer.
    fn withdraw(&mut self) -> Vec<InService> {
        let serving = self.seats.iter_mut().flatten().filter(|seat| seat.request.is_some() && seat.claim.withdraw());
        serving
            .filter_map(|seat| {
                seat.is_stuck = true;
                seat.request.take()
            })
            .collect()
    }
}

impl Queue {
    /// Stops the queue: waits until everything popped is answered and published, by its threads or, where the host does not
    /// finish it, with EIO.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.setup.ready = false;
        let timeout = self.bound().map_or(Duration::MAX, |(_, service)| service.options.stop_timeout);
        // The time counts from when the requests began, so that queues that are stopped one after the other do not each wait
        // for the same host. No deadline where the time has no end.
        let now = Instant::now();
        let deadline = state.in_service.last_began().unwrap_or(now).checked_add(timeout);
        let mut deadline = deadline.map(|at| at.max(now + STOP_MIN.min(timeout)));
        while state.serving > 0 {
            let Some(at) = deadline else {
                self.drained.wait(&mut state);
                continue;
            };
            if self.drained.wait_until(&mut state, at).timed_out() {
                self.give_up(&mut state);
                deadline = Instant::now().checked_add(STOP_MIN);
            }
        }
        if let Some((_, service)) = self.bound() {
            publish_and_call(&mut state, service);
        }
        if let Some(ring) = state.ring.take() {
            state.setup.next_avail = ring.next_avail();
            state.setup.next_used = ring.next_used();
        }
    }

    /// Answers with EIO what the host has not finished.
    fn give_up(&self, state: &mut MutexGuard<'_, State>) {
        let Some((index, service)) = self.bound() else { return };
        let withdrawn = state.in_service.withdraw();
        if withdrawn.is_empty() {
            return;
        }
        // Its threads count no more, and none of them leads: the next start finds or makes others.
        state.threads = state.threads.saturating_sub(withdrawn.len() as u16);
        state.led = false;
        self.followers.notify_one();
        // A leader that was not stuck sleeps on the watch: it leaves, so that two threads never sleep there.
        if let Some(watch) = self.watch() {
            watch.wake();
        }
        // What is withdrawn from the old mappings is in the guest's place in the new ones.
        service.set_memory(service.memory().renewed());
        state.follow_memory(service);
        for InService { popped, .. } in withdrawn {
            service.metrics.withdrawn.increment();
            let mut request = Request::new();
            let written_max = usize::from(popped.memory.size()) * PAGE_LEN;
            request.walk(popped.head, popped.memory);
            if let Err(e) = request.withdraw_pages(written_max) {
                tracing::error!("guest memory cannot be taken back from the host: {e}; what the host still brings may reach the guest");
            }
            let Some(memory) = state.ring.as_ref().and_then(Ring::memory).cloned() else {
                state.answer(popped.head, 0);
                continue;
            };
            request.walk(popped.head, memory);
            let header = decode_header(request.copy_arguments(IN_HEADER_LEN));
            let name = header.as_ref().and_then(|header| Opcode::from_number(header.opcode)).map_or("request", Opcode::name);
            tracing::error!(
                "queue {} is stopped and the host has not finished a {name} within --stop-timeout: it is answered with EIO",
                index.0
            );
            let (_, _, responder) = request.parts(header.map_or(0, |header| header.unique.0));
            responder.error(Errno::EIO);
            state.answer(popped.head, request.used_len());
        }
    }
}

/// A thread came back from the host with a request that was withdrawn from it.
pub(super) fn note_late(queue: &Queue) {
    if let Some((index, service)) = queue.bound() {
        service.metrics.withdrawn_finished.increment();
        tracing::warn!("the host has finished a request that was given up when queue {} was stopped; nothing came of it", index.0);
    }
}

impl Service {
    /// Threads that the host does not let go.
    pub(super) fn stuck_threads(&self) -> u64 {
        self.metrics.withdrawn.get().saturating_sub(self.metrics.withdrawn_finished.get())
    }
}
