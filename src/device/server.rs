//! Serves frontends on a listening socket, one after the other, until it is stopped. Owns what outlives a connection: the
//! exported directory, counters and bounds. Knows nothing of command lines, signals or confinement.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::config_space::ConfigSpace;
use super::queue_cpus::QueueCpus;
use super::service::{Options, Resumed, Service};
use super::session::{Session, SessionError, Stopper};
use crate::fuse::Opcode;
use crate::host::{Export, Share};
use crate::io::{Rings, Which};
use crate::metrics::Metrics;
use crate::state::RequestRecords;
use crate::sys::shortage;

/// Between two looks whether requests are finished, while the guest waits.
const DRAIN_LOOK_AGAIN: Duration = Duration::from_micros(200);

/// Where frontends come from.
pub trait Frontends {
    /// Readable when a frontend connects.
    fn readiness(&self) -> BorrowedFd<'_>;

    /// The socket on which it is accepted.
    fn listener(&self) -> io::Result<UnixListener>;

    /// Whether another process goes on with a session for which this one lacks something.
    fn is_replaced(&self) -> bool {
        false
    }
}

impl Frontends for UnixListener {
    fn readiness(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn listener(&self) -> io::Result<UnixListener> {
        self.try_clone()
    }
}

/// How frontends are served.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Bounds of each session.
    pub device: Options,
    /// What frontends that ask for it read as configuration space.
    pub config_space: Option<ConfigSpace>,
    /// Wait for another frontend when one has disconnected.
    pub keep_listening: bool,
    /// Rings for the request queues, and what goes to them.
    pub rings: Option<(Arc<Rings>, Which)>,
    /// CPUs of the threads that serve each request queue.
    pub queue_cpus: QueueCpus,
    /// The records of the requests in flight.
    pub records: Arc<RequestRecords>,
    /// What the first frontend's session goes on with, where an earlier process has begun it.
    pub resumed: Option<Resumed>,
}

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Waiting for a connection failed.
    #[error("cannot wait for a connection: {0}")]
    Wait(#[from] io::Error),
    /// A session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl ServeError {
    /// Whether the host lacks a thread, memory or an open file at the moment, and nothing else is wrong.
    pub fn is_shortage(&self) -> bool {
        match self {
            ServeError::Wait(e) => shortage::is_one(e),
            ServeError::Session(e) => e.is_shortage(),
        }
    }
}

/// An exported directory with all that its sessions share.
#[derive(Debug)]
pub struct Server {
    export: Arc<Export>,
    metrics: Arc<Metrics>,
    options: ServerOptions,
    stop: Arc<Stop>,
}

impl Server {
    /// Serves `share`, and those that follow it in later FUSE sessions. An error where the process is out of descriptors.
    pub fn new(share: Share, options: ServerOptions) -> io::Result<Server> {
        let metrics = Arc::new(Metrics::new(&share.path().to_string_lossy(), &Opcode::NAMES));
        options.records.set_share_arena(share.arena());
        // Where that fails nothing is dropped: what the guest has open is for the next worker.
        let export = ManuallyDrop::new(Arc::new(Export::new(share)));
        let stop = Arc::new(Stop::new()?);
        Ok(Server { export: ManuallyDrop::into_inner(export), metrics, options, stop })
    }

    /// The share of the present FUSE session, or of the next one.
    pub fn share(&self) -> Arc<Share> {
        self.export.share()
    }

    /// Counters of all sessions.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What stops serving from another thread.
    pub fn stopper(&self) -> ServerStopper {
        ServerStopper(Arc::clone(&self.stop))
    }

    /// Serves the `frontends` that connect, one after the other, or only the first, until [`ServerStopper::stop`]. Without
    /// `keep_listening` a session's error is returned, else logged.
    pub fn serve(&self, frontends: &impl Frontends) -> Result<(), ServeError> {
        self.serve_with(frontends, |service| service)
    }

    /// As [`Server::serve`]; `change` may give each session's service other parts.
    pub fn serve_with(&self, frontends: &impl Frontends, change: impl Fn(Service) -> Service) -> Result<(), ServeError> {
        let options = &self.options;
        let mut resumed = options.resumed.clone();
        while self.stop.wait_for_frontend(frontends.readiness())? {
            let service = Service::new(Arc::clone(&self.export), Arc::clone(&self.metrics), Arc::clone(&options.records))
                .with(options.device)
                .with_cpus(options.queue_cpus.clone());
            let service = match &options.rings {
                Some((rings, which)) => service.with_rings(Arc::clone(rings), *which),
                None => service,
            };
            let service = match resumed.take() {
                Some(resumed) => service.resuming(resumed),
                None => service,
            };
            match self.serve_one(frontends, &Arc::new(change(service))) {
                // The keeper starts another worker, which goes on with the session.
                Err(e) if options.keep_listening && !(frontends.is_replaced() && e.is_shortage()) => tracing::error!("{e}"),
                Err(e) => return Err(e),
                Ok(()) => {}
            }
            if !options.keep_listening {
                break;
            }
        }
        Ok(())
    }

    /// Serves the frontend that connects next.
    fn serve_one(&self, frontends: &impl Frontends, service: &Arc<Service>) -> Result<(), ServeError> {
        let session = Session::accept(frontends.listener()?, service, self.options.config_space.clone(), frontends.is_replaced())?;
        tracing::info!("a VMM connected");
        self.stop.set_session(session.stopper().map(|stopper| (stopper, Arc::downgrade(service))));
        let ended = session.wait();
        self.stop.set_session(None);
        match ended {
            Ok(()) => tracing::info!("the VMM disconnected"),
            // The connection was shut down under the frontend's message.
            Err(_) if self.stop.is_wanted.load(Ordering::Acquire) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }
}

/// Stops a [`Server`] from another thread.
#[derive(Debug, Clone)]
pub struct ServerStopper(Arc<Stop>);

impl ServerStopper {
    /// Ends the wait for a frontend, or the session with one, whose requests in flight are finished first. Returns their number.
    pub fn stop(&self) -> u32 {
        self.0.stop()
    }

    /// For another process that is to go on: takes no more requests, and waits until no thread is in the host for the guest, at most for
    /// `time`. If some are then, takes requests again, and returns their number.
    pub fn drain(&self, time: Duration) -> u64 {
        let service = self.0.session.lock().as_ref().and_then(|(_, service)| service.upgrade());
        let Some(service) = service else { return 0 };
        service.set_paused(true);
        let until = Instant::now() + time;
        loop {
            match service.in_host() {
                0 => return 0,
                left if Instant::now() >= until => {
                    service.set_paused(false);
                    return left;
                }
                _ => std::thread::sleep(DRAIN_LOOK_AGAIN),
            }
        }
    }

    /// Whether every queue of the session can be worked on: the lock that each of its requests takes is free within `time`. A request that
    /// waits for the host does not hold it.
    pub fn responds(&self, time: Duration) -> bool {
        let Some(session) = self.0.session.try_lock_for(time) else { return false };
        let service = session.as_ref().and_then(|(_, service)| service.upgrade());
        drop(session);
        service.is_none_or(|service| service.responds(time))
    }
}

type CurrentSession = (Stopper, Weak<Service>);

/// State that [`ServerStopper`] and the serving thread share.
struct Stop {
    is_wanted: AtomicBool,
    /// Readable once stopping is wanted.
    event: OwnedFd,
    session: Mutex<Option<CurrentSession>>,
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stop").field("is_wanted", &self.is_wanted).finish_non_exhaustive()
    }
}

impl Stop {
    fn new() -> io::Result<Stop> {
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Stop { is_wanted: AtomicBool::new(false), event, session: Mutex::new(None) })
    }

    /// Sleeps until a frontend connects; false where a stop is wanted. Does not change the listener: an inherited one may be
    /// shared with another process.
    fn wait_for_frontend(&self, readiness: BorrowedFd<'_>) -> io::Result<bool> {
        let mut watched = [PollFd::from_borrowed_fd(readiness, PollFlags::IN), PollFd::new(&self.event, PollFlags::IN)];
        loop {
            match poll(&mut watched, None) {
                Ok(_) if !watched[1].revents().is_empty() => return Ok(false),
                Ok(_) if !watched[0].revents().is_empty() => return Ok(true),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// A session began, or ended.
    fn set_session(&self, session: Option<CurrentSession>) {
        let mut current = self.session.lock();
        *current = session;
        if self.is_wanted.load(Ordering::Acquire)
            && let Some((stopper, _)) = current.as_ref()
        {
            stopper.stop();
        }
    }

    fn stop(&self) -> u32 {
        let current = self.session.lock();
        self.is_wanted.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        let Some((stopper, service)) = current.as_ref() else { return 0 };
        let in_flight = service.upgrade().map_or(0, |service| service.requests_in_flight());
        stopper.stop();
        in_flight
    }
}
