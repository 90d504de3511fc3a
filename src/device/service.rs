//! What all queues of a session share: the exported directory, the generation of guest memory, and the
//! FUSE session.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::RwLock;

use super::queue::Queue;
use crate::fuse::Negotiated;
use crate::guest::GuestMap;
use crate::host::{Closing, Export};
use crate::metrics::Metrics;
use crate::types::Errno;

/// Bounds of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Pages of the largest READ or WRITE, where the queue carries that many.
    pub max_pages: u16,
    /// Threads that serve one queue at most.
    pub threads_per_queue: u16,
    /// How long a request may have been under way when its queue is stopped: then what the host does not finish is given up.
    pub stop_timeout: Duration,
}

impl Default for Options {
    /// What the queue carries; 16 threads, each of which may wait for a disk: more than that would only queue there. A
    /// minute before a stop gives up: longer than a disk's own timeout (30 s in Linux's SCSI layer) or a large fsync takes.
    fn default() -> Options {
        Options { max_pages: u16::MAX, threads_per_queue: 16, stop_timeout: Duration::from_secs(60) }
    }
}

/// The shared state of a session's workers.
#[derive(Debug)]
pub struct Service {
    /// The exported directory.
    pub export: Arc<Export>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Bounds.
    pub options: Options,
    /// Whether the frontend wants dirty pages logged; the guest maps look at it.
    pub logging: Arc<AtomicBool>,
    memory: RwLock<Arc<GuestMap>>,
    memory_generation: AtomicU64,
    fuse: RwLock<Option<Negotiated>>,
    /// The session's queues, the first of them hiprio. They know the service, so it does not keep them alive.
    queues: OnceLock<Vec<Weak<Queue>>>,
}

impl Service {
    /// A service without guest memory.
    pub fn new(export: Arc<Export>, metrics: Arc<Metrics>) -> Service {
        Service {
            export,
            metrics,
            options: Options::default(),
            logging: Arc::default(),
            memory: RwLock::new(Arc::new(GuestMap::empty())),
            memory_generation: AtomicU64::new(0),
            fuse: RwLock::new(None),
            queues: OnceLock::new(),
        }
    }

    /// Takes note of the session's queues, once.
    pub(super) fn set_queues(&self, queues: &[Arc<Queue>]) {
        let _ = self.queues.set(queues.iter().map(Arc::downgrade).collect());
    }

    /// How many request queues the frontend has started.
    pub(super) fn running_request_queues(&self) -> usize {
        let request_queues = self.queues.get().into_iter().flatten().skip(1);
        request_queues.filter_map(Weak::upgrade).filter(|queue| queue.is_started()).count()
    }

    /// The same with other bounds.
    pub fn with(self, options: Options) -> Service {
        Service { options, ..self }
    }

    /// Replaces guest memory. Requests in flight keep what they translated.
    pub fn set_memory(&self, map: GuestMap) {
        let old = std::mem::replace(&mut *self.memory.write(), Arc::new(map));
        self.memory_generation.fetch_add(1, Ordering::Release);
        // Unmapped, where nobody uses it, with the lock open.
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

    /// What INIT agreed on, if there is a FUSE session.
    pub fn agreed(&self) -> Option<Negotiated> {
        *self.fuse.read()
    }

    /// Begins a FUSE session. A guest sends INIT without a DESTROY before if it booted again, or if its connection was aborted
    /// (/sys/fs/fuse/connections): what was held until then is let go first. EIO where another INIT
    /// came in between, or where the host took so long that this one is not wanted any more; ENOMEM where there is no memory
    /// for the session's tables.
    pub fn begin_fuse(&self, agreed: &Negotiated, is_wanted: impl Fn() -> bool) -> Result<(), Errno> {
        if let Some(closing) = self.leave_fuse() {
            tracing::info!("the guest began anew; its open files are closed");
            closing.wait(self.options.stop_timeout);
        }
        let share = {
            let mut fuse = self.fuse.write();
            if fuse.is_some() || !is_wanted() {
                return Err(Errno::EIO);
            }
            let share = self.export.begin_session()?;
            share.begin_session(agreed);
            *fuse = Some(*agreed);
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
            let mut fuse = self.fuse.write();
            fuse.take()?;
            self.export.end_session()
        };
        // Threads that sleep let go of the share that ended.
        for queue in self.queues.get().into_iter().flatten().filter_map(Weak::upgrade) {
            if let Some(watch) = queue.watch() {
                watch.wake();
            }
        }
        Some(closing)
    }
}
