//! What is taken off a ring and put into it, with the records that another process goes by (docs/RECOVERY.md, section 4). Each
//! function is called with the queue's lock. Knows nothing of requests.

use std::sync::Arc;

use crate::guest::RingMemory;
use crate::state::{HeadTwice, Positions, QueueRecords, Unfinished, UsedElement};
use crate::sys::failpoint::crash_point;
use crate::virtqueue::Ring;

/// A chain that was popped, with the memory to walk it in.
#[derive(Debug)]
pub(super) struct Popped {
    pub head: u16,
    /// Its number in its queue; `None` for a head outside the ring, of which there is no record.
    pub sequence: Option<u64>,
    pub memory: Arc<RingMemory>,
    /// What another process, which had popped it, has left of it.
    pub earlier: Option<Box<Unfinished>>,
}

/// Takes the next chain off the ring; the caller saw that one waits. `None` without memory. An error where the driver offers the
/// head of a chain that is in flight: the second one is dropped.
pub(super) fn pop(ring: &mut Ring, records: &QueueRecords) -> Option<Result<Popped, HeadTwice>> {
    let size = ring.size();
    let (head, memory) = ring.pop()?;
    Some(records.pop(head, size).map(|sequence| Popped { head, sequence, memory, earlier: None }))
}

/// Puts the answer to a popped chain into the used ring, where the guest sees it. A head that the table does not have cannot be
/// named there: the chain is dropped.
pub(super) fn push(ring: &mut Ring, records: &QueueRecords, head: u16, len: u32) {
    if head < ring.size() {
        records.publish(UsedElement { at: ring.next_used(), head, len }, || ring.push_used(head, len));
    }
}

/// The ring at `memory` where an earlier process was with it, and the requests that it has left, with their heads. `frontend` are the
/// positions that count where the records have none. Whether they did is told as well.
pub(super) fn recover(
    memory: &Arc<RingMemory>,
    event_idx: bool,
    records: &QueueRecords,
    frontend: Positions,
) -> (Ring, Vec<(u16, Unfinished)>, bool) {
    let (mut ring, is_recovered) = start(memory, event_idx, records, frontend);
    // At most one, and the ring goes on behind it.
    let left = records.recover();
    crash_point!("left");
    for element in left.publishing {
        records.publish(element, || ring.push_used_at(element.at, element.head, element.len));
    }
    // The records of chains may be ahead of the position.
    let (ring, _) = start(memory, event_idx, records, frontend);
    (ring, left.unfinished, is_recovered)
}

/// The ring at `memory` where it was stopped, or at the positions of the frontend where it has set them since. Whether it is where it was.
pub(super) fn start(memory: &Arc<RingMemory>, event_idx: bool, records: &QueueRecords, frontend: Positions) -> (Ring, bool) {
    let own = records.positions();
    if own.is_none() {
        records.begin(frontend);
    }
    records.note_size(memory.size());
    let Positions { avail, used } = own.unwrap_or(frontend);
    (Ring::new(Arc::clone(memory), event_idx, avail, used), own.is_some())
}
