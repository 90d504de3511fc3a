//! vhost-user-backend's view of a queue: its own vring keeps what the crate asks back, and everything the
//! frontend says is passed on to ours.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost_user_backend::{VringRwLock, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::QueueT;
use vm_memory::GuestMemoryAtomic;

use super::queue::Queue;
use super::worker;
use crate::guest::MappedMemory;

/// Guest memory as the crate hands it over.
pub(super) type Memory = GuestMemoryAtomic<MappedMemory>;

thread_local! {
    /// Queues that the crate has made on this thread since the last `collect_queues`: `VringT::new` has no argument that could
    /// carry them, and `Session::accept` collects them right after. Empty at all other times.
    static MADE: RefCell<Vec<Arc<Queue>>> = const { RefCell::new(Vec::new()) };
}

/// The queues made on this thread since the last call, in order.
pub(super) fn collect_queues() -> Vec<Arc<Queue>> {
    MADE.take()
}

/// A vring that passes what the frontend sets on to our queue.
#[derive(Clone)]
pub struct HookedVring {
    inner: VringRwLock<Memory>,
    queue: Arc<Queue>,
}

impl std::fmt::Debug for HookedVring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HookedVring").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl<'a> VringStateGuard<'a, Memory> for HookedVring {
    type G = <VringRwLock<Memory> as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for HookedVring {
    type G = <VringRwLock<Memory> as VringStateMutGuard<'a, Memory>>::G;
}

/// A descriptor of ours for what the crate keeps.
fn ours_of(file: &File) -> Option<OwnedFd> {
    let ours = file.try_clone();
    if let Err(e) = &ours {
        tracing::error!("a queue's kick or call is lost: {e}; raise --rlimit-nofile");
    }
    ours.ok().map(Into::into)
}

type VringResult<T> = Result<T, virtio_queue::Error>;

impl VringT<Memory> for HookedVring {
    fn new(mem: Memory, max_queue_size: u16) -> VringResult<Self> {
        let queue = Arc::new(Queue::default());
        MADE.with_borrow_mut(|made| made.push(Arc::clone(&queue)));
        Ok(HookedVring { inner: VringRwLock::new(mem, max_queue_size)?, queue })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.inner.get_mut()
    }

    // The crate's own rings are never touched: these are part of the trait only.
    fn add_used(&self, desc_index: u16, len: u32) -> VringResult<()> {
        self.inner.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> VringResult<bool> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> VringResult<()> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> VringResult<bool> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.inner.set_enabled(enabled);
        self.queue.configure(|s| s.enabled = enabled);
    }

    fn set_queue_info(&self, desc_table: u64, avail_ring: u64, used_ring: u64) -> VringResult<()> {
        self.inner.set_queue_info(desc_table, avail_ring, used_ring)?;
        self.queue.set_addresses(desc_table, avail_ring, used_ring);
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.inner.set_queue_next_avail(base);
        self.queue.set_base(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        // Read from guest memory whenever addresses are set. A running ring has the right value.
        if !self.queue.is_running() {
            self.inner.set_queue_next_used(idx);
            self.queue.configure(|s| s.next_used = idx);
        }
    }

    fn queue_used_idx(&self) -> VringResult<u16> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        // The crate refuses what is no power of two and keeps the old size; so do we.
        self.inner.set_queue_size(num);
        let size = self.inner.get_ref().get_queue().size();
        self.queue.configure(|s| s.size = size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
        self.queue.configure(|s| s.event_idx = enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.inner.set_queue_ready(ready);
        self.queue.configure(|s| s.ready = ready);
        worker::ensure_served(&self.queue);
    }

    fn set_kick(&self, file: Option<File>) {
        let ours = file.as_ref().and_then(ours_of);
        // The crate starts a ring at its first kick only. After RESET_DEVICE it takes the ring for started.
        let is_started = ours.is_some() && self.inner.get_ref().get_queue().ready();
        self.inner.set_kick(file);
        if let Err(e) = self.queue.set_kick(ours) {
            tracing::error!("cannot watch a queue's kick: {e}; raise --rlimit-nofile");
        }
        if is_started {
            self.set_queue_ready(true);
        }
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.inner.read_kick()
    }

    fn set_call(&self, file: Option<File>) {
        let ours = file.as_ref().and_then(ours_of).map(Arc::new);
        self.inner.set_call(file);
        self.queue.set_call(ours);
    }

    fn set_err(&self, file: Option<File>) {
        self.inner.set_err(file);
    }
}
