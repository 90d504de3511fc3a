//! How a ring starts, also where an earlier process has left requests of it unfinished (docs/RECOVERY.md, section 4): those are
//! executed again by the threads of the queue, as if they were popped. What that means for an operation is in `serve/again.rs` and
//! with the operation.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::queue::{State, Turn, Work};
use super::recorded::{self, Popped};
use super::service::Service;
use crate::guest::RingMemory;
use crate::state::Positions;
use crate::virtqueue::Chain;

impl State {
    /// Starts the ring at `memory`.
    pub fn start_ring(&mut self, memory: &Arc<RingMemory>, service: &Service) {
        let Some(records) = &self.records else { return };
        let s = &self.setup;
        let frontend = Positions { avail: s.next_avail, used: s.next_used };
        if records.positions().is_none() && frontend == (Positions { avail: 0, used: 0 }) {
            // The guest has reset the queue, and waits for nothing of before.
            self.in_flight.clear_suspended();
            self.late.clear();
        }
        let mut ring = if std::mem::replace(&mut self.has_started, true) {
            recorded::start(memory, s.event_idx, records, frontend).0
        } else {
            let (ring, unfinished, is_recovered) = recorded::recover(memory, s.event_idx, records, frontend);
            // Whether the guest has seen what is in the used ring is not known.
            self.is_call_due = is_recovered;
            self.recovered = unfinished.into();
            if is_recovered && service.logging.load(Ordering::Relaxed) {
                self.mark_recovered(memory);
            }
            if !self.recovered.is_empty() {
                service.metrics.recovered.add(self.recovered.len() as u64);
                tracing::info!("{} requests that the worker before left unfinished are executed again", self.recovered.len());
            }
            ring
        };
        // The leader is awake: starting the queue has woken it.
        ring.disable_kicks();
        self.ring = Some(ring);
    }

    /// Marks what the earlier process may have written to, and not marked, as dirty.
    fn mark_recovered(&self, memory: &Arc<RingMemory>) {
        memory.mark_used_ring();
        let mut chain = Chain::new();
        for (head, _) in &self.recovered {
            chain.walk(*head, Arc::clone(memory));
            let len = usize::try_from(chain.writable_bytes()).unwrap_or(usize::MAX);
            chain.writable().mark_dirty(0, len);
        }
    }

    /// The next request that an earlier process has left; also of a queue that is about to stop.
    pub fn next_recovered(&mut self) -> Option<Work> {
        if self.recovered.is_empty() {
            return None;
        }
        let memory = Arc::clone(self.ring.as_ref()?.memory()?);
        let (head, earlier) = self.recovered.pop_front()?;
        if self.turn == Turn::One {
            self.turn = Turn::Held;
        }
        let waiting = u16::try_from(self.recovered.len()).unwrap_or(u16::MAX);
        let popped = Popped { head, sequence: Some(earlier.sequence), memory, earlier: Some(Box::new(earlier)) };
        Some(Work::New { popped, waiting })
    }
}
