//! One frontend's connection, from accept to disconnect, on vhost-user-backend with our own threads.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Backend, Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, ShutdownHandle, VhostUserBackend, VhostUserDaemon};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddressSpace, GuestMemoryBackend};
use vmm_sys_util::epoll::EventSet;

use super::activity::Activity;
use super::alone;
use super::config_space::{ConfigSpace, REQUEST_QUEUES_MAX};
use super::queue::{Bound, Queue};
use super::service::{Finishing, Service, SessionQueue};
use super::vring::{HookedVring, Memory, collect_queues};
use super::watchdog;
use crate::guest::{DirtyLog, GuestMap, MappedMemory};
use crate::sys::{shortage, thread};
use crate::types::QueueIndex;

/// The largest queue that virtio allows (virtio 1.3 section 2.7).
const QUEUE_SIZE_MAX: usize = 32768;

/// Why a session did not begin or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection could not be taken.
    #[error("cannot take a connection: {0}")]
    Accept(DaemonError),
    /// A thread or descriptor was missing.
    #[error("cannot serve the connection: {0}")]
    Start(#[from] io::Error),
    /// The frontend broke the vhost-user protocol.
    #[error("the frontend broke the vhost-user protocol: {0}")]
    Protocol(DaemonError),
}

impl SessionError {
    /// Whether the host lacks a thread, memory or an open file at the moment, and nothing else is wrong.
    pub(super) fn is_shortage(&self) -> bool {
        matches!(self, SessionError::Start(e) | SessionError::Accept(DaemonError::StartDaemon(e)) if shortage::is_one(e))
    }
}

/// The backend object that the crate calls.
struct Device {
    service: Arc<Service>,
    config: Option<ConfigSpace>,
    queues: OnceLock<Vec<Arc<Queue>>>,
    /// Held so that the channel stays open for the frontend.
    backend_channel: Mutex<Option<Backend>>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Device {
    fn queues(&self) -> &[Arc<Queue>] {
        self.queues.get().map_or(&[], Vec::as_slice)
    }

    /// Waits for the requests that use memory which the frontend has removed: once it has the reply, it may use that memory for
    /// something else.
    fn leave_removed_memory(&self) {
        let memory = self.service.memory();
        for queue in self.queues() {
            let left = queue.leave_memory(&memory);
            if left > 0 {
                tracing::error!(
                    "guest memory is removed while the host has not finished {left} request(s) within --stop-timeout: what it still \
                     brings for them lands in the memory that was removed"
                );
            }
        }
    }
}

impl VhostUserBackend for Device {
    type Bitmap = DirtyLog;
    type Vring = HookedVring;

    fn num_queues(&self) -> usize {
        1 + usize::from(REQUEST_QUEUES_MAX)
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE_MAX
    }

    fn features(&self) -> u64 {
        let rings = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        rings | (VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL).bits()
    }

    fn acked_features(&self, features: u64) {
        // The crate's thread, before the first message by which it does anything to what other processes use.
        thread::record_this();
        let logs = features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        self.service.logging.store(logs, Ordering::Relaxed);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        use VhostUserProtocolFeatures as F;
        let config = if self.config.is_some() { F::CONFIG } else { F::empty() };
        config | F::MQ | F::REPLY_ACK | F::CONFIGURE_MEM_SLOTS | F::LOG_SHMFD | F::RESET_DEVICE | F::BACKEND_REQ
    }

    fn reset_device(&self) {
        for queue in self.queues() {
            queue.stop();
        }
        self.service.end_fuse();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // Each vring has its own call for it.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config.as_ref().map_or_else(Vec::new, |config| config.read(offset, size))
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let memory: MappedMemory = (*memory.memory()).clone();
        // A table that is replaced in the middle of a migration goes on logging.
        if self.service.logging.load(Ordering::Relaxed)
            && let Some(log) = self.service.memory().dirty_log().and_then(DirtyLog::log)
        {
            for region in memory.iter().filter(|r| (***r).bitmap().log().is_none()) {
                // An error here would end the connection, and with it the guest's mount.
                if let Err(e) = DirtyLog::join(region, &log) {
                    tracing::error!("guest memory beyond the migration's log is not logged: {e}");
                }
            }
        }
        self.service.set_memory(GuestMap::new(memory, Arc::clone(&self.service.logging)));
        for queue in self.queues() {
            queue.follow_memory();
        }
        self.leave_removed_memory();
        Ok(())
    }

    fn set_backend_req_fd(&self, backend: Backend) {
        *self.backend_channel.lock() = Some(backend);
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        // No threads of the crate's: ours wait for the kicks.
        Vec::new()
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        if let Some(queue) = self.queues().get(index as usize) {
            queue.stop();
        }
        Ok(())
    }

    fn handle_event(&self, _event: u16, _set: EventSet, _vrings: &[HookedVring], _thread: usize) -> io::Result<()> {
        // Never called: there is no thread of the crate's.
        Ok(())
    }
}

/// Ends a session from another thread.
#[derive(Clone)]
pub struct Stopper(ShutdownHandle);

impl std::fmt::Debug for Stopper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stopper")
    }
}

impl Stopper {
    /// Hangs up on the frontend; the session then drains and ends.
    pub fn stop(&self) {
        self.0.shutdown();
    }
}

/// A connection that is being served.
pub struct Session {
    daemon: VhostUserDaemon<Arc<Device>>,
    device: Arc<Device>,
    activity: Arc<Activity>,
    watchdog: Option<JoinHandle<()>>,
    /// The thread that has requests executed one after the other.
    one_by_one: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Session {
    /// Waits for a frontend on `listener` and serves it. A configuration space is offered if there is one. With `is_replaced` a frontend
    /// that cannot be served for lack of a thread does not notice: `listener` stays open for the process that goes on.
    pub fn accept(
        listener: UnixListener,
        service: &Arc<Service>,
        config: Option<ConfigSpace>,
        is_replaced: bool,
    ) -> Result<Session, SessionError> {
        if !service.is_resuming() {
            service.records.clear();
        }
        let device = Device { service: Arc::clone(service), config, queues: OnceLock::new(), backend_channel: Mutex::new(None) };
        let device = Arc::new(device);
        let memory = Memory::new(MappedMemory::new());
        // Drop queues that a failed attempt left behind.
        drop(collect_queues());
        let daemon = VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(&device), memory).map_err(SessionError::Accept)?;
        let queues = collect_queues();
        let activity = Arc::new(Activity::default());
        for (index, queue) in (0..).zip(&queues) {
            let (index, service, activity) = (QueueIndex(index), Arc::clone(service), Arc::clone(&activity));
            let is_resumed = service.is_resumed(index);
            queue.bind(Bound { index, service, activity }, is_resumed);
        }
        let _ = device.queues.set(queues.clone());
        service.set_queues(queues.iter().map(|queue| Arc::downgrade(queue) as Weak<dyn SessionQueue>).collect());
        let (watchdog, one_by_one) = match start_threads(service, &queues, &activity) {
            Ok(threads) => threads,
            Err(e) => {
                activity.end();
                if is_replaced {
                    std::mem::forget(listener);
                }
                return Err(e.into());
            }
        };
        let mut session = Session { daemon, device, activity, watchdog: Some(watchdog), one_by_one };
        if let Err(e) = session.daemon.start(&mut Listener::from(listener)) {
            if is_replaced {
                // Its end would be that of what the guest has open.
                std::mem::forget(session);
            }
            return Err(SessionError::Accept(e));
        }
        service.metrics.connections.increment();
        Ok(session)
    }

    /// What ends this session from another thread.
    pub fn stopper(&self) -> Option<Stopper> {
        self.daemon.shutdown_handle().map(Stopper)
    }

    /// Serves until the frontend disconnects, then drains every queue and releases what the guest held. An error if the frontend
    /// broke the protocol.
    pub fn wait(mut self) -> Result<(), SessionError> {
        let result = self.daemon.wait();
        self.end();
        match result {
            Ok(()) => Ok(()),
            Err(DaemonError::HandleRequest(VhostUserError::Disconnected | VhostUserError::PartialMessage)) => Ok(()),
            Err(e) => Err(SessionError::Protocol(e)),
        }
    }

    fn end(&mut self) {
        for queue in self.device.queues() {
            queue.end();
        }
        self.activity.end();
        for thread in self.watchdog.take().into_iter().chain(self.one_by_one.take()) {
            let _ = thread.join();
        }
        self.device.service.end_fuse();
        // Guest memory that is pinned is released.
        self.device.service.set_memory(GuestMap::empty());
    }
}

/// The watchdog, and the thread that has requests executed one by one where that is to be.
type Threads = (JoinHandle<()>, Option<JoinHandle<()>>);

/// Starts the threads of a session. An error where there is no room for one.
fn start_threads(service: &Arc<Service>, queues: &[Arc<Queue>], activity: &Arc<Activity>) -> io::Result<Threads> {
    let one_by_one = if service.finishing() == Finishing::OneByOne {
        let (service, queues) = (Arc::clone(service), queues.to_vec());
        Some(thread::start("one by one", move || alone::run(&service, &queues))?)
    } else {
        None
    };
    let watchdog = {
        let (activity, queues, every) = (Arc::clone(activity), queues.to_vec(), service.options.relieve_after);
        thread::start("watchdog", move || watchdog::run(&activity, &queues, every))?
    };
    // The crate closes the connection where it cannot start its thread: whether there is room for one more is seen before.
    let _ = thread::start("room", || ())?.join();
    Ok((watchdog, one_by_one))
}

impl Drop for Session {
    fn drop(&mut self) {
        self.daemon.request_shutdown();
        let _ = self.daemon.wait();
        self.end();
    }
}
