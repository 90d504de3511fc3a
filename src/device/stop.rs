//! Stopping a queue: what is in service is waited for, up to a bound. What the host has not finished by then is withdrawn
//! from its thread or engine and answered with EIO, so that a frontend that waits in GET_VRING_BASE goes on. Data or results
//! that the host delivers for it later are discarded. Also waits, as long, for what uses memory that the frontend removes.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::claim::Holder;
use super::in_flight_table::{ChainAt, Withdrawn};
use super::queue::{Bound, Queue, State, signal_call};
use super::reply;
use crate::fuse::abi::IN_HEADER_LEN;
use crate::fuse::{Opcode, decode_header};
use crate::guest::GuestMap;
use crate::io::Engine;
use crate::state::Phase;
use crate::types::{Errno, Unique};
use crate::virtqueue::{Chain, Ring};

/// How long a stop waits at least, if --stop-timeout is not less, and for answers that are being written when it gives up.
const STOP_MIN: Duration = Duration::from_secs(1);
/// What a WRITE carries at most, for each descriptor of its queue: the guest's pages.
const PAGE_LEN: usize = 4096;

impl Queue {
    /// Stops the queue: waits until everything popped is answered, by its threads or, where the host does not finish it, with EIO.
    /// Suspended requests are not waited for.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.setup.ready = false;
        // What an earlier process has left of a ring that it served is finished before the ring stops.
        if !state.has_started
            && state.leadership.threads() > 0
            && state.records.as_ref().is_some_and(|records| records.positions().is_some())
            && let Some(bound) = self.bound()
        {
            state.fit_ring(&bound.service);
            self.wake();
        }
        let mut deadline = self.deadline(&state);
        while state.in_flight.in_service() > 0 || !state.recovered.is_empty() {
            let Some(at) = deadline else {
                self.drained.wait(&mut state);
                continue;
            };
            if self.drained.wait_until(&mut state, at).timed_out() {
                self.give_up(&mut state);
                deadline = Instant::now().checked_add(STOP_MIN);
            }
        }
        if let Some(bound) = self.bound() {
            signal_call(&mut state, &bound.service, Instant::now());
        }
        if let Some(ring) = state.ring.take() {
            state.setup.next_avail = ring.next_avail();
            state.setup.next_used = ring.next_used();
        }
    }

    /// When the requests that are in service now have had --stop-timeout. It counts from when they began, so that queues that are
    /// stopped one after the other do not each wait for the same host. `None` where the time has no end.
    fn deadline(&self, state: &State) -> Option<Instant> {
        let timeout = self.bound().map_or(Duration::MAX, |bound| bound.service.options.stop_timeout);
        let now = Instant::now();
        let deadline = state.in_flight.last_began().unwrap_or(now).checked_add(timeout);
        deadline.map(|at| at.max(now + STOP_MIN.min(timeout)))
    }

    /// Guest memory was replaced by `new`: waits until no request uses memory that is not there any more. Returns how many the host
    /// has not finished within --stop-timeout: they go on using the memory that they were sent with.
    pub fn leave_memory(&self, new: &GuestMap) -> usize {
        let mut state = self.state.lock();
        let chains = |state: &State| state.in_flight.chains(state.ring.as_ref().and_then(Ring::memory)).collect::<Vec<_>>();
        let mut users = chains(&state);
        let Some(Bound { service, .. }) = self.bound() else { return 0 };
        // Where the ring could not follow, each answer is still written to it, wherever the buffers are.
        if state.memory_generation == service.memory_generation() {
            MutexGuard::unlocked(&mut state, || {
                let mut chain = Chain::new();
                users.retain(|ChainAt { head, memory }| {
                    chain.walk(*head, Arc::clone(memory));
                    chain.loses_memory(new)
                });
            });
        }
        // A request that came meanwhile is one of the ring's present memory.
        let is_user = |chain: &&ChainAt| users.iter().any(|user| user.head == chain.head && Arc::ptr_eq(&user.memory, &chain.memory));
        let users_in_service = |state: &State| chains(state).iter().filter(is_user).count();
        let deadline = self.deadline(&state);
        state.is_leaving_memory = true;
        while users_in_service(&state) > 0 {
            match deadline {
                None => self.drained.wait(&mut state),
                Some(at) if self.drained.wait_until(&mut state, at).timed_out() => break,
                Some(_) => {}
            }
        }
        state.is_leaving_memory = false;
        // An answer to a suspended request does not do so when it is written.
        state.follow_memory(service);
        users_in_service(&state)
    }

    /// Answers with EIO what the host has not finished.
    fn give_up(&self, state: &mut MutexGuard<'_, State>) {
        let Some(Bound { index, service, .. }) = self.bound() else { return };
        let popped_from = state.ring.as_ref().and_then(Ring::memory).cloned();
        let mut withdrawn = state.in_flight.withdraw();
        if withdrawn.is_empty() && state.recovered.is_empty() {
            return;
        }
        // Its threads count no more, and none of them leads: the next start finds or makes others.
        let stuck = withdrawn.iter().filter(|withdrawn| withdrawn.holder == Holder::Thread).count();
        service.metrics.stuck.add(stuck as u64);
        state.leadership.lose_threads(u16::try_from(stuck).unwrap_or(u16::MAX));
        self.followers.notify_one();
        // A leader that was not stuck sleeps on the watch: it leaves, so that two threads never sleep there.
        self.wake();
        // None of them waits to be served again. Storage takes the lock when it is dropped.
        let throttled = state.take_throttled();
        state.note_engine_room();
        MutexGuard::unlocked(state, || drop(throttled));
        let unserved = std::mem::take(&mut state.recovered);
        withdrawn.extend(unserved.into_iter().map(|(head, _)| Withdrawn { head, memory: None, holder: Holder::Elsewhere }));
        // The pages that are taken out of the old mappings are still there in the new ones.
        service.set_memory(service.memory().renewed());
        state.follow_memory(service);
        if let Some(records) = &state.records {
            withdrawn.iter().for_each(|withdrawn| records.set_phase(withdrawn.head, Phase::Withdrawn));
        }
        for Withdrawn { head, memory, .. } in withdrawn {
            service.metrics.withdrawn.increment();
            let Some(memory) = memory.or_else(|| popped_from.clone()) else { continue };
            let mut chain = Chain::new();
            let written_max = usize::from(memory.size()) * PAGE_LEN;
            chain.walk(head, memory);
            if let Err(e) = chain.withdraw_pages(written_max) {
                tracing::error!("guest memory cannot be taken back from the host: {e}; what the host still brings may reach the guest");
            }
            let Some(memory) = state.ring.as_ref().and_then(Ring::memory).cloned() else { continue };
            chain.walk(head, memory);
            let header = decode_header(chain.copy_arguments(IN_HEADER_LEN));
            let name = header.as_ref().and_then(|header| Opcode::from_number(header.opcode)).map_or("request", Opcode::name);
            tracing::error!(
                "queue {} is stopped and the host has not finished a {name} within --stop-timeout: it is answered with EIO",
                index.0
            );
            let used_len = reply::write_error(&mut chain, header.map_or(Unique(0), |header| header.unique), Errno::EIO);
            state.push_used(head, used_len);
        }
    }

    /// Ends the queue: drains it and waits for its threads, except for those that are stuck in the host.
    pub fn end(&self) {
        self.stop();
        self.state.lock().leadership.end();
        self.followers.notify_all();
        self.wake();
        let handles = std::mem::take(&mut *self.handles.lock());
        // A stuck thread ends when the host call returns, or with the process. So does one whose transfers a kernel worker has.
        let has_transfers = self.engine().is_some_and(|engine| engine.in_flight() > 0);
        let is_stuck = |handle: &JoinHandle<()>| has_transfers || self.state.lock().in_flight.is_stuck(handle.thread().id());
        for handle in handles.into_iter().filter(|handle| !is_stuck(handle)) {
            // A thread that panicked has said so; the others still must be waited for.
            let _ = handle.join();
        }
        // What the engine still finishes was withdrawn, and refers to the queue.
        if let Some(engine) = self.engine() {
            engine.end();
        }
    }
}
