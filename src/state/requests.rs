//! The arena of requests: for each queue its positions, and a record for each head that is in flight. They are what another process
//! needs to go on where this one died (docs/RECOVERY.md, sections 3.5 and 4). Knows no ring and no operation.
//!
//! Each store is a Release: another process reads the records after this one's end, and then has a prefix of each thread's stores.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::arena::{Arena, ArenaError, PAGE_LEN_MAX, Record, Records};
use super::request_slot::{Phase, RequestName, RequestSlot, Unfinished, UsedElement, word_of};
use crate::sys::descriptor::duplicate;
use crate::sys::failpoint::crash_point;
use crate::types::{Errno, FileHandle, NodeId, QueueIndex, Unique};

/// Queues of a device: hiprio, and 64 request queues.
const QUEUES_MAX: u32 = 65;
/// The largest queue that virtio allows (virtio 1.3 section 2.7), and so the heads of a queue.
const HEADS_MAX: u32 = 32768;
/// Where the records of the requests begin, behind the words and the records of the queues.
const REQUESTS_OFFSET: usize = PAGE_LEN_MAX;
/// Where the records of the queues begin, behind the words.
const QUEUES_OFFSET: usize = 64;
const WORDS: usize = QUEUES_OFFSET / size_of::<AtomicU64>();
const LEN: usize = REQUESTS_OFFSET + (QUEUES_MAX * HEADS_MAX) as usize * size_of::<RequestSlot>();

/// The positions of a queue.
#[repr(C)]
#[derive(Debug)]
struct QueueSlot {
    /// 1 where the positions are those of the queue; 0 where the frontend sets them.
    has_positions: AtomicU64,
    /// The sequence of the next request. Its low 16 bits are the avail index of the next chain.
    popped: AtomicU64,
    /// The used index of the next element.
    published: AtomicU64,
    /// Entries of the largest ring that the queue has had since its records were cleared: the records of all other heads are free.
    heads: AtomicU64,
    reserved: [AtomicU64; 4],
}

const _: () = assert!(size_of::<QueueSlot>() == 64 && QUEUES_OFFSET + QUEUES_MAX as usize * 64 <= REQUESTS_OFFSET);

// SAFETY: every field is an atomic integer or an array of them.
unsafe impl Record for QueueSlot {
    const KIND: u32 = 9;
}

/// The arena of requests.
#[derive(Debug)]
pub struct RequestRecords {
    /// The first: the number of the present share arena's descriptor, plus 1; 0 for none. The second: the request that is executed
    /// alone, as a [`RequestName`]; 0 for none. The third: changes of what the session is, counted by twos, so that a copy of
    /// it that is kept elsewhere can be told to be old; odd from before the first is another one until after it.
    words: Records<AtomicU64>,
    queues: Records<QueueSlot>,
    requests: Records<RequestSlot>,
    /// Where a byte is written when there is another share arena.
    notice: OnceLock<OwnedFd>,
}

impl RequestRecords {
    /// An arena without requests: 130 MiB of address space, of which memory is taken where it is used. [`ArenaError::Map`] as in
    /// [`Arena::new`].
    pub fn new() -> Result<Arc<RequestRecords>, ArenaError> {
        let arena = Arena::new(LEN)?;
        let (words, queues) = (arena.table(0, WORDS), arena.table(QUEUES_OFFSET, QUEUES_MAX as usize));
        let requests = arena.table(REQUESTS_OFFSET, (QUEUES_MAX * HEADS_MAX) as usize);
        Ok(Arc::new(RequestRecords { words, queues, requests, notice: OnceLock::new() }))
    }

    /// The arena that another program in this process has made. The errors of [`Arena::attach`].
    pub fn attach(memfd: OwnedFd) -> Result<Arc<RequestRecords>, ArenaError> {
        let arena = Arena::attach(memfd)?;
        let (words, queues, requests) = (arena.attached_table()?, arena.attached_table()?, arena.attached_table()?);
        let records = RequestRecords { words, queues, requests, notice: OnceLock::new() };
        let counts = [records.words.count(), records.queues.count(), records.requests.count()];
        let least = [WORDS, QUEUES_MAX as usize, (QUEUES_MAX * HEADS_MAX) as usize];
        if counts == least { Ok(Arc::new(records)) } else { Err(ArenaError::Unusable("a table has another length")) }
    }

    /// The descriptor by which another program can attach the arena; `None` where it has none.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.words.arena().descriptor()
    }

    /// Names the arena of the present share. To be called when that arena has all that another process needs of it.
    pub fn set_share_arena(&self, arena: Option<BorrowedFd<'_>>) {
        let word = arena.and_then(|fd| u64::try_from(fd.as_raw_fd()).ok()).map_or(0, |fd| fd + 1);
        let changes = self.words.at(2);
        if self.words.at(0).load(Ordering::Acquire) == word && changes.load(Ordering::Acquire).is_multiple_of(2) {
            return;
        }
        changes.fetch_or(1, Ordering::AcqRel);
        self.words.at(0).store(word, Ordering::Release);
        changes.fetch_add(1, Ordering::AcqRel);
        if let Some(notice) = self.notice.get() {
            // Where there is no room, the keeper has not read the bytes of before.
            let _ = rustix::io::write(notice, &[1]);
        }
    }

    /// From now on a byte is written to `notice`, which does not block, when another share arena is named, in this process and in those
    /// that are split off it. Only the first one counts.
    pub fn set_notice(&self, notice: OwnedFd) {
        let _ = self.notice.set(notice);
    }

    /// The number of [`RequestRecords::set_notice`].
    pub fn notice(&self) -> Option<RawFd> {
        self.notice.get().map(AsRawFd::as_raw_fd)
    }

    /// The session is about to be another one: the frontend says something, or there is another share arena.
    pub fn note_change(&self) {
        self.words.at(2).fetch_add(2, Ordering::AcqRel);
    }

    /// A number that grows with each change; `None` while there is going to be another share arena.
    pub fn changes(&self) -> Option<u64> {
        Some(self.words.at(2).load(Ordering::Acquire)).filter(|changes| changes.is_multiple_of(2))
    }

    /// Another descriptor of the arena of the share of a process that died. The number that is named is not used otherwise: where that
    /// process died early, it may be something else by now. `None` where none was named, or it is not open. EMFILE where there is no
    /// descriptor left.
    pub fn inherit_share_arena(&self) -> io::Result<Option<OwnedFd>> {
        let Some(fd) = self.share_arena() else { return Ok(None) };
        // SAFETY: the number is only duplicated; the kernel answers EBADF where it is not open.
        match duplicate(unsafe { BorrowedFd::borrow_raw(fd) }) {
            Ok(arena) => Ok(Some(arena)),
            Err(Errno::EBADF) => Ok(None),
            Err(errno) => Err(io::Error::from_raw_os_error(errno.raw())),
        }
    }

    /// The descriptor of the present share's arena; `None` where none was named.
    pub fn share_arena(&self) -> Option<RawFd> {
        self.words.at(0).load(Ordering::Acquire).checked_sub(1).and_then(|fd| RawFd::try_from(fd).ok())
    }

    /// Names the request that is executed while no other one is; `None` when there is none any more.
    pub fn set_alone(&self, name: Option<RequestName>) {
        self.words.at(1).store(name.map_or(0, RequestName::to_word), Ordering::Release);
    }

    /// The request that is executed alone, or was when the process that executed it died. Forgets it.
    pub fn take_alone(&self) -> Option<RequestName> {
        RequestName::from_word(self.words.at(1).swap(0, Ordering::AcqRel))
    }

    /// The records of queue `index`; `None` beyond the table.
    pub fn queue(self: &Arc<Self>, index: QueueIndex) -> Option<QueueRecords> {
        let index = u32::from(index.0);
        (index < QUEUES_MAX).then(|| QueueRecords { records: Arc::clone(self), index })
    }

    /// Forgets all requests and positions: what comes next is another device.
    pub fn clear(self: &Arc<Self>) {
        for index in 0..QUEUES_MAX {
            let queue = QueueRecords { records: Arc::clone(self), index };
            queue.forget_positions();
            queue.free_all();
        }
    }
}

/// What the driver must not do: offer the head of a chain that is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadTwice(pub u16);

/// The positions with which a ring starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// The avail index of the next chain.
    pub avail: u16,
    /// The used index of the next element.
    pub used: u16,
}

/// The records of one queue. Each method is called with the queue's lock.
#[derive(Debug)]
pub struct QueueRecords {
    records: Arc<RequestRecords>,
    index: u32,
}

impl QueueRecords {
    fn queue(&self) -> &QueueSlot {
        self.records.queues.at(self.index)
    }

    fn slot(&self, head: u16) -> Option<&RequestSlot> {
        let head = u32::from(head);
        (head < HEADS_MAX).then(|| self.records.requests.at(self.index * HEADS_MAX + head))
    }

    fn heads(&self) -> u16 {
        u16::try_from(self.queue().heads.load(Ordering::Acquire)).unwrap_or(u16::MAX)
    }

    /// Where the ring is, unless the frontend is to say so.
    #[expect(clippy::cast_possible_truncation, reason = "the avail index is the low half of a sequence's low word")]
    pub fn positions(&self) -> Option<Positions> {
        let queue = self.queue();
        let get = |word: &AtomicU64| word.load(Ordering::Acquire) as u16;
        (queue.has_positions.load(Ordering::Acquire) == 1).then(|| Positions { avail: get(&queue.popped), used: get(&queue.published) })
    }

    /// The frontend sets the positions of the ring, which does not run.
    pub fn forget_positions(&self) {
        self.queue().has_positions.store(0, Ordering::Release);
    }

    /// The ring starts at `positions` of the frontend. Both 0: the guest has reset it, and waits for nothing of before.
    pub fn begin(&self, positions: Positions) {
        if positions == (Positions { avail: 0, used: 0 }) {
            self.free_all();
        }
        let queue = self.queue();
        // Greater than any sequence before, so that no request is taken for another one.
        let sequence = (queue.popped.load(Ordering::Relaxed) | 0xffff) + 1 + u64::from(positions.avail);
        queue.popped.store(sequence, Ordering::Release);
        queue.published.store(positions.used.into(), Ordering::Release);
        queue.has_positions.store(1, Ordering::Release);
    }

    /// The ring runs with `size` entries.
    pub fn note_size(&self, size: u16) {
        let heads = &self.queue().heads;
        if heads.load(Ordering::Relaxed) < size.into() {
            heads.store(size.into(), Ordering::Release);
        }
    }

    fn free_all(&self) {
        (0..self.heads()).filter_map(|head| self.slot(head)).for_each(|slot| slot.word.store(0, Ordering::Release));
    }

    /// The chain at `head` of a ring with `size` entries was popped, or dropped: its sequence. `None` for a head outside the ring.
    /// An error where that head is in flight.
    pub fn pop(&self, head: u16, size: u16) -> Result<Option<u64>, HeadTwice> {
        let popped = &self.queue().popped;
        let sequence = popped.load(Ordering::Relaxed);
        let mut taken = Ok(None);
        if head < size
            && let Some(slot) = self.slot(head)
        {
            taken =
                if Phase::from_word(slot.word.load(Ordering::Relaxed)) == Phase::Free { Ok(Some(sequence)) } else { Err(HeadTwice(head)) };
            if taken.is_ok() {
                for field in [&slot.unique, &slot.node, &slot.handle, &slot.counted, &slot.used] {
                    field.store(0, Ordering::Release);
                }
                slot.before.store(0, Ordering::Release);
                slot.result.store(0, Ordering::Release);
                crash_point!("pop, before the record");
                slot.word.store(word_of(sequence, Phase::Taken), Ordering::Release);
            }
        }
        crash_point!("pop, before the position");
        popped.store(sequence + 1, Ordering::Release);
        crash_point!("pop, after the position");
        taken
    }

    /// The request at `head` is in another phase.
    pub fn set_phase(&self, head: u16, phase: Phase) {
        if let Some(slot) = self.slot(head) {
            slot.set_phase(phase);
        }
    }

    /// Whether the request at `head` with the number `sequence` is to be executed or is being: it is neither answered nor suspended.
    pub fn is_under_way(&self, head: u16, sequence: u64) -> bool {
        let word = self.slot(head).map_or(0, |slot| slot.word.load(Ordering::Acquire));
        word >> 16 == sequence && !matches!(Phase::from_word(word), Phase::Free | Phase::Suspended)
    }

    /// The reply to the request of `element` is in guest memory: `push` puts the element into the used ring.
    pub fn publish(&self, element: UsedElement, push: impl FnOnce()) {
        let UsedElement { at, head, len } = element;
        let Some(slot) = self.slot(head) else { return push() };
        crash_point!("publish, before the place");
        slot.used.store(u64::from(at) << 32 | u64::from(len), Ordering::Release);
        crash_point!("publish, before the phase");
        slot.set_phase(Phase::Publishing);
        crash_point!("publish, before the element");
        push();
        crash_point!("publish, before the position");
        self.queue().published.store(at.wrapping_add(1).into(), Ordering::Release);
        crash_point!("publish, before the record is free");
        slot.set_phase(Phase::Free);
        crash_point!("publish, after");
    }

    /// What an earlier process has left of the queue.
    pub fn recover(&self) -> Left {
        let mut left = Left::default();
        for (head, slot) in (0..self.heads()).filter_map(|head| Some((head, self.slot(head)?))) {
            match slot.unfinished() {
                Some(Unfinished { phase: Phase::Publishing, .. }) => left.publishing.push(slot.used_element(head)),
                Some(unfinished) => left.unfinished.push((head, unfinished)),
                None => {}
            }
            // A process that died between the two stores of a pop has left a record that is one ahead.
            let word = slot.word.load(Ordering::Acquire);
            if Phase::from_word(word) != Phase::Free {
                let popped = &self.queue().popped;
                popped.store(popped.load(Ordering::Relaxed).max((word >> 16) + 1), Ordering::Release);
            }
        }
        left.unfinished.sort_by_key(|(_, unfinished)| unfinished.sequence);
        left
    }
}

/// What a process has left of a queue.
#[derive(Debug, Default)]
pub struct Left {
    /// The used elements that may be missing in the ring.
    pub publishing: Vec<UsedElement>,
    /// The other requests with their heads, in the order in which they were popped.
    pub unfinished: Vec<(u16, Unfinished)>,
}

/// The record of the request that a thread serves. What another request has meanwhile, after this one was withdrawn, is not touched.
#[derive(Debug)]
pub struct RequestRecord {
    place: Place,
    sequence: u64,
}

#[derive(Debug)]
enum Place {
    /// In no arena.
    Own(Box<RequestSlot>),
    /// For requests of the queue. The head is `None` for one outside the ring, of which nothing is recorded.
    Of(QueueRecords, Option<u16>),
}

impl Default for RequestRecord {
    /// A record that is in no arena, of a request that was taken.
    fn default() -> RequestRecord {
        let slot = RequestSlot { word: AtomicU64::new(word_of(0, Phase::Taken)), ..RequestSlot::default() };
        RequestRecord { place: Place::Own(Box::new(slot)), sequence: 0 }
    }
}

impl RequestRecord {
    /// For requests of a queue, one after the other.
    pub fn of(queue: QueueRecords) -> RequestRecord {
        RequestRecord { place: Place::Of(queue, None), sequence: 0 }
    }

    /// From here on it is that of the request at `head`, which [`QueueRecords::pop`] has recorded as `sequence`.
    pub fn follow(&mut self, head: u16, sequence: Option<u64>) {
        self.sequence = sequence.unwrap_or(0);
        if let Place::Of(_, followed) = &mut self.place {
            *followed = sequence.map(|_| head);
        }
    }

    /// The record and its word, as long as the request is not answered.
    fn current(&self) -> Option<(&RequestSlot, u64)> {
        let slot = match &self.place {
            Place::Own(slot) => &**slot,
            Place::Of(queue, head) => queue.slot((*head)?)?,
        };
        let word = slot.word.load(Ordering::Acquire);
        let is_ours = word >> 16 == self.sequence && !matches!(Phase::from_word(word), Phase::Free | Phase::Publishing | Phase::Withdrawn);
        is_ours.then_some((slot, word))
    }

    fn change_phase(&self, phase: Phase) {
        if let Some((slot, word)) = self.current() {
            // A stop may withdraw the request meanwhile, and another one may take its place.
            let _ = slot.word.compare_exchange(word, word & !0xff | phase as u64, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// The phase; Free once the request is answered.
    pub fn phase(&self) -> Phase {
        self.current().map_or(Phase::Free, |(_, word)| Phase::from_word(word))
    }

    /// The request's header was read.
    pub fn note_header(&self, unique: Unique, node: NodeId, opcode: u32) {
        if let Some((slot, _)) = self.current() {
            slot.unique.store(unique.0, Ordering::Release);
            slot.node.store(node.0, Ordering::Release);
            let opcode = u16::try_from(opcode).ok().and_then(|opcode| opcode.checked_add(1)).unwrap_or(0);
            slot.used.store(u64::from(opcode) << 48, Ordering::Release);
        }
    }

    /// A call that cannot simply be repeated comes next; `before` is what its repetition needs to know of the time before.
    pub fn begin(&self, before: i64) {
        if let Some((slot, _)) = self.current() {
            slot.before.store(before, Ordering::Release);
            self.change_phase(Phase::Begun);
        }
    }

    /// The call has returned `result`, a count or a negative errno.
    pub fn note_made(&self, result: i64) {
        if let Some((slot, _)) = self.current() {
            slot.result.store(result, Ordering::Release);
            self.change_phase(Phase::Made);
        }
    }

    /// An I/O engine is about to have the request.
    pub fn note_submitted(&self) {
        self.change_phase(Phase::Submitted);
    }

    /// The request has counted a lookup of `node`. To be called directly after the count was raised.
    pub fn note_counted(&self, node: NodeId) {
        if let Some((slot, _)) = self.current() {
            slot.counted.store(node.0, Ordering::Release);
        }
    }

    /// The request has made `handle`.
    pub fn note_handle(&self, handle: FileHandle) {
        if let Some((slot, _)) = self.current() {
            slot.handle.store(handle.0, Ordering::Release);
        }
    }

    /// What is recorded; `None` once the request is answered.
    pub fn unfinished(&self) -> Option<Unfinished> {
        self.current().and_then(|(slot, _)| slot.unfinished())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const START: Positions = Positions { avail: 7, used: 5 };

    fn queue() -> (Arc<RequestRecords>, QueueRecords) {
        let records = RequestRecords::new().unwrap();
        let queue = records.queue(QueueIndex(64)).unwrap();
        queue.begin(START);
        queue.note_size(4);
        (records, queue)
    }

    fn popped(records: &Arc<RequestRecords>, queue: &QueueRecords, head: u16) -> RequestRecord {
        let mut record = RequestRecord::of(records.queue(QueueIndex(64)).unwrap());
        record.follow(head, queue.pop(head, 4).unwrap());
        record
    }

    #[test]
    fn the_present_share_is_named_by_its_descriptor() {
        let records = RequestRecords::new().unwrap();
        assert_eq!(records.share_arena(), None);
        let file = std::fs::File::open("/dev/null").unwrap();
        records.set_share_arena(Some(file.as_fd()));
        assert_eq!(records.share_arena(), Some(file.as_raw_fd()));
        records.set_share_arena(None);
        assert_eq!(records.share_arena(), None);
        assert!(records.queue(QueueIndex(65)).is_none());
    }

    #[test]
    fn the_request_that_is_executed_alone_is_named_until_it_is_asked_for() {
        let (records, queue) = queue();
        let sequence = queue.pop(1, 4).unwrap().unwrap();
        assert_eq!(records.take_alone(), None);
        for (queue, sequence) in [(0, 0), (64, sequence), (64, (1 << 48) - 1)] {
            let name = RequestName { queue: QueueIndex(queue), sequence };
            records.set_alone(Some(name));
            assert_eq!((records.take_alone(), records.take_alone()), (Some(name), None));
        }
        records.set_alone(Some(RequestName { queue: QueueIndex(0), sequence }));
        records.set_alone(None);
        assert_eq!(records.take_alone(), None);
        let is_under_way = |phase| {
            queue.set_phase(1, phase);
            queue.is_under_way(1, sequence)
        };
        assert!(is_under_way(Phase::Begun) && is_under_way(Phase::Submitted) && is_under_way(Phase::Withdrawn));
        assert!(!is_under_way(Phase::Suspended) && is_under_way(Phase::Taken));
        assert!(!queue.is_under_way(1, sequence + 1) && !queue.is_under_way(0, sequence));
        queue.publish(UsedElement { at: 5, head: 1, len: 16 }, || ());
        assert!(!queue.is_under_way(1, sequence));
    }

    #[test]
    fn positions_count_what_was_popped_and_published() {
        let (_records, queue) = queue();
        assert_eq!(queue.positions(), Some(START));
        assert_eq!(queue.pop(4, 4), Ok(None), "a head outside the ring is passed over");
        assert!(queue.pop(3, 4).unwrap().is_some());
        assert_eq!(queue.pop(3, 4), Err(HeadTwice(3)));
        queue.publish(UsedElement { at: 5, head: 3, len: 16 }, || ());
        assert_eq!(queue.positions(), Some(Positions { avail: 10, used: 6 }));
        assert!(queue.pop(3, 4).unwrap().is_some(), "it is back");
        queue.forget_positions();
        assert_eq!(queue.positions(), None);
    }

    #[test]
    fn a_reset_frees_what_was_in_flight_and_another_start_does_not() {
        let (records, queue) = queue();
        let before = popped(&records, &queue, 1);
        queue.begin(START);
        assert_eq!(queue.recover().unfinished.len(), 1);
        queue.begin(Positions { avail: 0, used: 0 });
        assert!(queue.recover().unfinished.is_empty());
        assert_eq!((queue.positions().unwrap(), before.phase()), (Positions { avail: 0, used: 0 }, Phase::Free));
        popped(&records, &queue, 1);
        records.clear();
        assert!(queue.positions().is_none() && queue.recover().unfinished.is_empty());
    }

    #[test]
    fn what_is_recorded_is_found_again_in_the_order_of_the_pops() {
        let (records, queue) = queue();
        let (first, second) = (popped(&records, &queue, 2), popped(&records, &queue, 0));
        first.note_header(Unique(8), NodeId(1), 16);
        first.begin(-3);
        first.note_counted(NodeId(9));
        first.note_handle(FileHandle(6));
        first.note_made(4096);
        second.note_header(Unique(10), NodeId(1), u32::MAX);
        let left = queue.recover();
        let [(2, one), (0, other)] = left.unfinished[..] else { panic!("{left:?}") };
        assert_eq!((one.phase, one.unique, one.opcode, one.node), (Phase::Made, Unique(8), Some(16), NodeId(1)));
        assert_eq!((one.before, one.result, one.counted, one.handle), (-3, 4096, NodeId(9), FileHandle(6)));
        assert_eq!((other.phase, other.opcode, other.sequence), (Phase::Taken, None, one.sequence + 1));
        assert_eq!(first.unfinished(), Some(one));
    }

    #[test]
    fn a_thread_that_comes_back_late_does_not_touch_the_record_of_another_request() {
        let (records, queue) = queue();
        let late = popped(&records, &queue, 1);
        late.begin(1);
        queue.set_phase(1, Phase::Withdrawn);
        late.note_made(2);
        queue.publish(UsedElement { at: 5, head: 1, len: 16 }, || ());
        late.note_made(2);
        assert_eq!(queue.recover().unfinished, [], "free stays free");
        let next = popped(&records, &queue, 1);
        late.note_made(2);
        late.note_counted(NodeId(3));
        let found = next.unfinished().unwrap();
        assert_eq!((found.phase, found.counted, found.result), (Phase::Taken, NodeId(0), 0));
        let mut outside = RequestRecord::of(records.queue(QueueIndex(64)).unwrap());
        outside.follow(1, None);
        outside.begin(1);
        assert_eq!((outside.phase(), next.phase()), (Phase::Free, Phase::Taken));
    }
}
