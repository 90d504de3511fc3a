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

/// How long a stop waits for answers that are being written, and for more requests once it gave up on some.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// A request that a thread serves.
#[derive(Debug)]
pub(super) struct InService {
    popped: Popped,
    claim: Arc<Claim>,
    thread: ThreadId,
}

/// The requests that threads serve.
#[derive(Debug, Default)]
pub(super) struct Serving {
    requests: Vec<InService>,
    /// Threads whose request was withdrawn and that have not come back from the host.
    stuck: Vec<ThreadId>,
}

impl Serving {
    /// The calling thread begins to serve `popped`.
    pub fn begin(&mut self, popped: &Popped, claim: &Arc<Claim>) {
        claim.begin();
        self.requests.push(InService { popped: popped.clone(), claim: Arc::clone(claim), thread: std::thread::current().id() });
    }

    /// The calling thread has done with the request. False where it was withdrawn meanwhile: somebody else has answered it.
    pub fn end(&mut self, claim: &Arc<Claim>) -> bool {
        if let Some(place) = self.requests.iter().position(|request| Arc::ptr_eq(&request.claim, claim)) {
            self.requests.swap_remove(place);
            return true;
        }
        let own = std::thread::current().id();
        self.stuck.retain(|thread| *thread != own);
        false
    }

    /// Whether `thread` has not come back from the host since its request was withdrawn.
    pub fn is_stuck(&self, thread: ThreadId) -> bool {
        self.stuck.contains(&thread)
    }

    /// Takes away the requests that their threads are not about to answer.
    fn withdraw(&mut self) -> Vec<InService> {
        let withdrawn: Vec<_> = self.requests.extract_if(.., |request| request.claim.withdraw()).collect();
        self.stuck.extend(withdrawn.iter().map(|request| request.thread));
        withdrawn
    }
}

impl Queue {
    /// Stops the queue: waits until everything popped is answered and published, by its threads or, where the host does not
    /// finish it, with EIO.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.setup.ready = false;
        let mut deadline = self.bound().and_then(|(_, service)| service.stop_deadline());
        while state.serving > 0 {
            let Some(at) = deadline else {
                self.drained.wait(&mut state);
                continue;
            };
            if self.drained.wait_until(&mut state, at).timed_out() {
                self.give_up(&mut state);
                deadline = Instant::now().checked_add(AFTERWARDS);
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
        service.set_gave_up(true);
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
            request.walk(popped.head, popped.memory);
            if let Err(e) = request.withdraw_pages() {
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
    if let Some((index, _)) = queue.bound() {
        tracing::warn!("the host has finished a request that was given up when queue {} was stopped; nothing came of it", index.0);
    }
}

impl Service {
    /// When a queue that is stopped now gives up on the host; `None` where it never does. Queues that are stopped one after
    /// the other wait for a host that does not answer once and not once each.
    fn stop_deadline(&self) -> Option<Instant> {
        let timeout = self.options.stop_timeout;
        let wait = if self.has_given_up() { timeout.min(AFTERWARDS) } else { timeout };
        Instant::now().checked_add(wait)
    }
}
