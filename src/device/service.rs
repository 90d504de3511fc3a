//! What all queues of a session share: the exported directory, the generation of guest memory, and the
//! FUSE session.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use super::features;
use super::in_flight::InFlight;
use super::polling::{Lookers, PollTime};
use super::queue_cpus::QueueCpus;
use super::queue_engine::QueueEngine;
use crate::fuse::Negotiated;
use crate::guest::GuestMap;
use crate::host::{Closing, Export, Share};
use crate::io::{Engine, Rings, SyncEngine, UringEngine, Which};
use crate::metrics::Metrics;
use crate::state::{RequestName, RequestRecords};
use crate::trace::Limiter;
use crate::types::{Errno, QueueIndex};

/// Bounds of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Pages of the largest READ or WRITE, where the queue carries that many.
    pub max_pages: u16,
    /// Threads that serve one queue at most.
    pub threads_per_queue: u16,
    /// How long a request may have been under way when its queue is stopped: then what the host does not finish is given up.
    pub stop_timeout: Duration,
    /// How long a leader looks at its ring before it sleeps.
    pub poll: PollTime,
    /// Time between checks for leaders that sit on one request, which then lose the lead. Others wait at most twice this behind it.
    pub relieve_after: Duration,
    /// CPUs that this process may use. To be known before the sandbox: the files that say so would be the guest's in there.
    pub cpus: u16,
}

impl Default for Options {
    /// What the queue carries; 16 threads, each of which may wait for a disk: more than that would only queue there. A
    /// minute before a stop gives up: longer than a disk's own timeout (30 s in Linux's SCSI layer) or a large fsync takes.
    fn default() -> Options {
        Options {
            max_pages: u16::MAX,
            threads_per_queue: 16,
            stop_timeout: Duration::from_secs(60),
            poll: PollTime::Auto,
            relieve_after: Duration::from_millis(2),
            cpus: std::thread::available_parallelism().map_or(1, NonZeroUsize::get).try_into().unwrap_or(u16::MAX),
        }
    }
}

/// What a process takes over of one that died: its FUSE session, and its frontend, whose messages come again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resumed {
    /// The queues for which SET_VRING_BASE comes again. The positions of their rings are those of the records.
    pub rings: Vec<u16>,
    /// What is done about the requests that were left unfinished.
    pub finishing: Finishing,
    /// One of them that has ended two processes, and is answered with EIO.
    pub quarantined: Option<RequestName>,
}

/// What a process does about the requests that one which died has left unfinished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Finishing {
    /// They are executed again as if they were popped, and new ones beside them.
    #[default]
    AtOnce,
    /// They are executed again one after the other, and new ones then: one of them may be what ends processes.
    OneByOne,
    /// They are answered with EIO: it may be one of them that ends processes.
    GivenUp,
}

/// A queue of the session, as the service sees it.
pub(super) trait SessionQueue: Send + Sync {
    /// Whether the frontend has set the queue up and started it.
    fn is_started(&self) -> bool;

    /// Requests that a thread or an engine has.
    fn requests_in_flight(&self) -> u32;

    /// Ends popping, or begins it again.
    fn set_paused(&self, is_paused: bool);

    /// Whether the lock that each request takes is free within `time`.
    fn responds(&self, time: Duration) -> bool;

    /// Wakes a leader that sleeps.
    fn wake(&self);
}

/// Makes the I/O engine of a queue.
type MakeEngine = dyn Fn(QueueIndex) -> QueueEngine + Send + Sync;

/// The shared state of a session's workers.
pub struct Service {
    /// The exported directory.
    pub export: Arc<Export>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Bounds.
    pub options: Options,
    /// The records of the requests in flight.
    pub(super) records: Arc<RequestRecords>,
    /// What it goes on with.
    resumed: Option<Resumed>,
    /// CPUs of the threads that serve each queue.
    pub(super) cpus: QueueCpus,
    /// Bounds how many leaders poll at a time.
    pub(super) lookers: Lookers,
    /// Limits what guest and frontend can have logged.
    pub limiter: Limiter,
    /// Whether the frontend wants dirty pages logged; the guest maps look at it.
    pub logging: Arc<AtomicBool>,
    memory: RwLock<Arc<GuestMap>>,
    memory_generation: AtomicU64,
    /// What INIT negotiated, as [`Negotiated::to_word`], and 0 without a session: each request reads it. Changed under `changes`.
    fuse: AtomicU64,
    changes: Mutex<()>,
    /// The session's queues, the first of them hiprio. They know the service, so it does not keep them alive.
    queues: OnceLock<Vec<Weak<dyn SessionQueue>>>,
    make_engine: Box<MakeEngine>,
    rings: Option<Arc<Rings>>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("export", &self.export).field("options", &self.options).finish_non_exhaustive()
    }
}

impl Service {
    /// A service without guest memory. The FUSE session is that of the share, if another process has begun one.
    pub fn new(export: Arc<Export>, metrics: Arc<Metrics>, records: Arc<RequestRecords>) -> Service {
        let counters = Arc::clone(&metrics);
        let make_engine = move |_| QueueEngine::Sync(SyncEngine::new(Arc::clone(&counters)));
        Service {
            make_engine: Box::new(make_engine),
            rings: None,
            fuse: AtomicU64::new(export.share().negotiated_word()),
            export,
            metrics,
            records,
            resumed: None,
            options: Options::default(),
            cpus: QueueCpus::default(),
            lookers: Lookers::of_cpus(Options::default().cpus),
            limiter: Limiter::new(),
            logging: Arc::default(),
            memory: RwLock::new(Arc::new(GuestMap::empty())),
            memory_generation: AtomicU64::new(0),
            changes: Mutex::new(()),
            queues: OnceLock::new(),
        }
    }

    /// Takes note of the session's queues, once.
    pub(super) fn set_queues(&self, queues: Vec<Weak<dyn SessionQueue>>) {
        let _ = self.queues.set(queues);
    }

    /// The same with another I/O engine for each queue.
    pub fn with_engine(self, make_engine: impl Fn() -> Box<dyn Engine<InFlight>> + Send + Sync + 'static) -> Service {
        Service { make_engine: Box::new(move |_| QueueEngine::Other(make_engine())), ..self }
    }

    /// The same with the io_uring engine for request queues, as long as there are `rings`.
    pub fn with_rings(self, rings: Arc<Rings>, which: Which) -> Service {
        let (metrics, all) = (Arc::clone(&self.metrics), Arc::clone(&rings));
        let make_engine = move |index: QueueIndex| {
            if index == QueueIndex::HIPRIO {
                return QueueEngine::Sync(SyncEngine::new(Arc::clone(&metrics)));
            }
            UringEngine::new(&rings, which, Arc::clone(&metrics)).map_or_else(
                || {
                    let count = rings.count();
                    tracing::warn!(
                        "queue {} has no io_uring ring and uses system calls: {count} were made at start; give \
                         --num-request-queues the number of queues of the VMM",
                        index.0
                    );
                    QueueEngine::Sync(SyncEngine::new(Arc::clone(&metrics)))
                },
                QueueEngine::Uring,
            )
        };
        Service { make_engine: Box::new(make_engine), rings: Some(all), ..self }
    }

    /// The I/O engine of queue `index`, which starts.
    pub(super) fn make_engine(&self, index: QueueIndex) -> QueueEngine {
        (self.make_engine)(index)
    }

    /// The share of the present FUSE session, with its generation.
    pub(super) fn present_share(&self) -> (Arc<Share>, u64) {
        // The generation first: if the share is newer than it, the caller finds another generation at its next check.
        let generation = self.export.generation();
        (self.export.share(), generation)
    }

    /// Threads that are stuck in the host with a request that was withdrawn.
    pub(super) fn stuck_threads(&self) -> u64 {
        self.metrics.stuck.get().saturating_sub(self.metrics.stuck_returned.get())
    }

    /// What a thread of this process does in the host for the guest: requests in flight, requests that were given up, files of sessions that
    /// ended. The process cannot end before it is done.
    pub(super) fn in_host(&self) -> u64 {
        u64::from(self.requests_in_flight()) + self.stuck_threads() + self.export.closing() as u64
    }

    /// How many request queues the frontend has started.
    pub(super) fn running_request_queues(&self) -> usize {
        let request_queues = self.queues.get().into_iter().flatten().skip(1);
        request_queues.filter_map(Weak::upgrade).filter(|queue| queue.is_started()).count()
    }

    /// Requests of the session that a thread or an engine has.
    pub(super) fn requests_in_flight(&self) -> u32 {
        let queues = self.queues.get().into_iter().flatten();
        queues.filter_map(Weak::upgrade).map(|queue| queue.requests_in_flight()).sum()
    }

    /// Ends popping in all queues, or begins it again.
    pub(super) fn set_paused(&self, is_paused: bool) {
        self.queues.get().into_iter().flatten().filter_map(Weak::upgrade).for_each(|queue| queue.set_paused(is_paused));
    }

    /// Whether each queue of the session can be worked on: its lock is free within `time`.
    pub(super) fn responds(&self, time: Duration) -> bool {
        let mut queues = self.queues.get().into_iter().flatten();
        queues.all(|queue| queue.upgrade().is_none_or(|queue| queue.responds(time)))
    }

    /// The same for a session that an earlier process has begun, over the records that it left.
    pub fn resuming(self, resumed: Resumed) -> Service {
        Service { resumed: Some(resumed), ..self }
    }

    /// Whether an earlier process has begun the session.
    pub(super) fn is_resuming(&self) -> bool {
        self.resumed.is_some()
    }

    /// What is done about what an earlier process has left unfinished.
    pub(super) fn finishing(&self) -> Finishing {
        self.resumed.as_ref().map_or(Finishing::AtOnce, |resumed| resumed.finishing)
    }

    /// Whether the request `name` has ended two processes.
    pub(super) fn is_quarantined(&self, name: RequestName) -> bool {
        self.resumed.as_ref().is_some_and(|resumed| resumed.quarantined == Some(name))
    }

    /// Whether the frontend's messages about queue `index` come again.
    pub(super) fn is_resumed(&self, index: QueueIndex) -> bool {
        self.resumed.as_ref().is_some_and(|resumed| resumed.rings.contains(&index.0))
    }

    /// The same with other bounds.
    pub fn with(self, options: Options) -> Service {
        Service { options, lookers: Lookers::of_cpus(options.cpus), ..self }
    }

    /// The same with CPUs for the threads of its queues.
    pub fn with_cpus(self, cpus: QueueCpus) -> Service {
        Service { cpus, ..self }
    }

    /// Replaces guest memory. Requests in flight keep what they translated.
    pub fn set_memory(&self, map: GuestMap) {
        let map = Arc::new(map);
        let old = std::mem::replace(&mut *self.memory.write(), Arc::clone(&map));
        self.memory_generation.fetch_add(1, Ordering::Release);
        if let Some(rings) = &self.rings {
            rings.set_memory(&map);
        }
        // Unmapped with the lock open, if no request uses it.
        drop(old);
    }

    /// The present generation of guest memory; it changes with each `set_memory`.
    pub fn memory_generation(&self) -> u64 {
        self.memory_generation.load(Ordering::Acquire)
    }

    /// The present memory.
    pub fn memory(&self) -> Arc<GuestMap> {
        Arc::clone(&self.memory.read())
    }

    /// What INIT negotiated, if there is a FUSE session.
    pub fn negotiated(&self) -> Option<Negotiated> {
        Negotiated::from_word(self.fuse.load(Ordering::Acquire))
    }

    /// Begins a FUSE session. A guest sends INIT without a DESTROY before if it booted again, or if its connection was aborted
    /// (/sys/fs/fuse/connections): what the old session held is released first. EIO if another INIT
    /// arrived in between, or if this one was withdrawn because the host took too long; ENOMEM if there is no memory
    /// for the session's tables.
    pub fn begin_fuse(&self, negotiated: &Negotiated, is_wanted: impl Fn() -> bool) -> Result<(), Errno> {
        if let Some(closing) = self.leave_fuse() {
            tracing::info!("the guest began anew; its open files are closed");
            closing.wait(self.options.stop_timeout);
        }
        let share = {
            let _changing = self.changes.lock();
            if self.negotiated().is_some() || !is_wanted() {
                return Err(Errno::EIO);
            }
            let share = self.export.begin_session()?;
            share.begin_session(features::negotiated(negotiated), negotiated.to_word());
            self.records.set_share_arena(share.arena());
            self.fuse.store(negotiated.to_word(), Ordering::Release);
            share
        };
        share.watch_root();
        Ok(())
    }

    /// Ends the FUSE session, if there is one: DESTROY, device reset, or the end of the connection.
    pub fn end_fuse(&self) {
        if let Some(closing) = self.leave_fuse() {
            closing.wait(self.options.stop_timeout);
        }
    }

    /// From here on there is no session; what the guest held is on its way to be closed.
    fn leave_fuse(&self) -> Option<Closing> {
        let closing = {
            let _changing = self.changes.lock();
            if self.fuse.swap(0, Ordering::AcqRel) == 0 {
                return None;
            }
            let closing = self.export.end_session();
            self.records.set_share_arena(self.export.share().arena());
            closing
        };
        // Wakes the threads that sleep: they release the share of the session that ended.
        for queue in self.queues.get().into_iter().flatten().filter_map(Weak::upgrade) {
            queue.wake();
        }
        Some(closing)
    }
}
