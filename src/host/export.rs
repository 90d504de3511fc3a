//! The exported directory over its FUSE sessions: each has a [`Share`] of its own. What a session held is closed after its end,
//! concurrently with the next one, as an unresponsive host may take any time to close a file. A request that finishes late
//! still uses the share that it began with, not the next session's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::host::share::Share;
use crate::sys::thread;
use crate::types::Errno;

/// Ended sessions whose files the host has not closed. With more, no session begins: each keeps a thread, descriptors and memory.
const CLOSING_MAX: usize = 64;
/// How often a thread that has closed a session's files checks whether it is the last that refers to its share.
const LAST_LOOK: Duration = Duration::from_millis(20);

/// The share of the present session or of the next one.
#[derive(Debug)]
pub struct Export {
    share: RwLock<Arc<Share>>,
    /// Changes with each share.
    generation: AtomicU64,
    /// The shares of sessions that ended, until their files are closed.
    ended: Arc<Mutex<Vec<Arc<Share>>>>,
}

impl Export {
    /// Exports `share`, the first session's.
    pub fn new(share: Share) -> Export {
        Export { share: RwLock::new(Arc::new(share)), generation: AtomicU64::new(0), ended: Arc::default() }
    }

    /// The present share.
    pub fn share(&self) -> Arc<Share> {
        Arc::clone(&self.share.read())
    }

    /// The generation of the present share; changes when it is replaced.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// A share for a session that begins. ENOMEM where there is no memory for it; EIO where the host has not closed the files of
    /// too many earlier ones.
    pub fn begin_session(&self) -> Result<Arc<Share>, Errno> {
        if self.ended.lock().iter().filter(|share| !share.session.is_closed()).count() > CLOSING_MAX {
            tracing::error!("the host has not closed the files of {CLOSING_MAX} sessions; new sessions are refused with EIO until it has");
            return Err(Errno::EIO);
        }
        let share = self.share();
        if share.session.has_ended() { self.renew(&share).ok_or(Errno::from_raw(libc::ENOMEM)) } else { Ok(share) }
    }

    /// Ends the session: the next one has another share, and a thread closes what the guest held. Does not block.
    pub fn end_session(&self) -> Closing {
        let old = self.share();
        old.mark_ended();
        self.renew(&old);
        Closing::begin(old, &self.ended)
    }

    /// Replaces `old`. `None` where there is no memory for another share; tried again when a session begins.
    fn renew(&self, old: &Share) -> Option<Arc<Share>> {
        let renewed = old.renewed().inspect_err(|e| tracing::error!("cannot create the tables of the next session: {e}"));
        let new = Arc::new(renewed.ok()?);
        new.take_over_watch();
        *self.share.write() = Arc::clone(&new);
        self.generation.fetch_add(1, Ordering::Release);
        Some(new)
    }

    /// Sessions that ended, and whose files the host has not closed yet.
    pub fn closing(&self) -> usize {
        self.ended.lock().len()
    }
}

/// The files of a session that ended, while a thread closes them.
#[derive(Debug)]
#[must_use]
pub struct Closing(Receiver<()>);

impl Closing {
    fn begin(share: Arc<Share>, ended: &Arc<Mutex<Vec<Arc<Share>>>>) -> Closing {
        let (done, closing) = sync_channel(1);
        ended.lock().push(share);
        let all = Arc::clone(ended);
        // Without a thread the share stays in the list; the end of the next session closes it.
        if let Err(e) = thread::start("closing", move || close(&all, &done)) {
            tracing::error!("cannot start the thread that closes the guest's files: {e}");
        }
        Closing(closing)
    }

    /// Waits until everything is closed, at most for `timeout`; the rest is closed in the background.
    pub fn wait(self, timeout: Duration) {
        if self.0.recv_timeout(timeout).is_err() {
            tracing::error!("the host has not closed all files of the guest within --stop-timeout; closing continues in the background");
        }
    }
}

/// Closes what the sessions in `ended` held, except where another thread does. Each share is kept until no other reference is
/// left: dropping the last one may block on the host.
fn close(ended: &Mutex<Vec<Arc<Share>>>, done: &SyncSender<()>) {
    let shares: Vec<Arc<Share>> = ended.lock().iter().filter(|share| share.session.begin_closing()).cloned().collect();
    for share in &shares {
        share.close_session();
    }
    let _ = done.send(());
    for share in shares {
        // The references of this thread and of the list.
        while Arc::strong_count(&share) > 2 {
            std::thread::sleep(LAST_LOOK);
        }
        let mut ended = ended.lock();
        ended.retain(|other| !Arc::ptr_eq(other, &share));
        drop(ended);
        drop(share);
    }
}
