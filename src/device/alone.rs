//! Requests that a process which a fault has ended has left unfinished, executed one after the other over all queues, before anything
//! new is popped: where a fault ends this process too, the records name the request that was executed alone (docs/RECOVERY.md,
//! section 9). The threads of the queues execute them; this only says which one is next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::queue::{Queue, State, Turn};
use super::service::Service;
use crate::state::{Phase, RequestName, Unfinished};

/// How long the others wait for one: it has used the CPU for milliseconds by then, and waits for the host, which may not respond.
const ALONE_MAX: Duration = Duration::from_secs(1);
/// How long a queue with unfinished requests may take to start. The frontend's messages about it come within milliseconds, but not
/// where it has stopped the queue.
const START_MAX: Duration = Duration::from_secs(1);
/// Between two looks whether it has started.
const START_LOOK_AGAIN: Duration = Duration::from_micros(200);

/// Has what was left unfinished in `queues` executed one after the other. They have been held so far; then they are free.
pub(super) fn run(service: &Service, queues: &[Arc<Queue>]) {
    for queue in queues {
        run_queue(service, queue);
    }
    for queue in queues {
        queue.state.lock().turn = Turn::Free;
        queue.wake();
    }
}

/// Has the unfinished requests of `queue` executed, as far as its threads take them.
fn run_queue(service: &Service, queue: &Queue) {
    let Some(index) = queue.bound().map(|bound| bound.index) else { return };
    let mut state = queue.state.lock();
    if service.is_resumed(index) {
        await_start(queue, &mut state);
    }
    while let Some((head, Unfinished { sequence, phase, .. })) = state.recovered.front().copied() {
        let name = RequestName { queue: index, sequence };
        if let Some(records) = state.records.as_ref().filter(|_| phase == Phase::Suspended) {
            // It waits for its lock when it is suspended again.
            records.set_phase(head, Phase::Taken);
        }
        // One that is only answered is not what ends this process.
        service.records.set_alone((!service.is_quarantined(name)).then_some(name));
        state.turn = Turn::One;
        queue.wake();
        let until = Instant::now() + ALONE_MAX;
        while is_under_way(&state, head, sequence) && !queue.drained.wait_until(&mut state, until).timed_out() {}
        service.records.set_alone(None);
        if state.turn == Turn::One {
            // No thread has taken it.
            state.turn = Turn::Held;
            return;
        }
    }
}

/// Waits until the ring has started, if requests of it are unfinished.
fn await_start(queue: &Queue, state: &mut MutexGuard<'_, State>) {
    let until = Instant::now() + START_MAX;
    let has_unfinished = state.records.as_ref().is_some_and(|records| !records.recover().unfinished.is_empty());
    while has_unfinished && !state.has_started && !state.leadership.is_ending() && Instant::now() < until {
        queue.drained.wait_for(state, START_LOOK_AGAIN);
    }
}

fn is_under_way(state: &State, head: u16, sequence: u64) -> bool {
    state.records.as_ref().is_some_and(|records| records.is_under_way(head, sequence))
}
