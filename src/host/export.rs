//! The exported directory over its FUSE sessions: each has a [`Share`] of its own. What a session held is let go when it
//! ends, beside the next one, for a host that does not answer may take as long as it likes to close a file; and a request
//! that such a host finishes late finds the share that it began with, and not the next guest's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::host::share::Share;
use crate::types::Errno;

/// Sessions whose files the host has not closed. With more no session begins: each keeps a thread, descriptors and memory.
const CLOSING_MAX: usize = 64;
/// How often a thread that has closed a session's files looks whether it is the last that has its share.
const LAST_LOOK: Duration = Duration::from_millis(20);

/// The share of the present session or of the next one.
#[derive(Debug)]
pub struct Export {
    share: RwLock<Arc<Share>>,
    /// Changes with each share.
    generation: AtomicU64,
    /// Those of sessions that ended, until their files are closed.
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

    /// The generation of the present share: another one once that was replaced.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// A share for a session that begins. ENOMEM where there can be none; EIO where the host has not closed the files of too
    /// many earlier ones.
    pub fn begin_session(&self) -> Result<Arc<Share>, Errno> {
        if self.ended.lock().iter().filter(|share| !share.session.is_closed()).count() > CLOSING_MAX {
            tracing::error!("the host has not closed the files of {CLOSING_MAX} sessions: no other begins until it has");
            return Err(Errno::EIO);
        }
        let share = self.share();
        if share.session.has_ended() { self.renew(&share).ok_or(Errno::from_raw(libc::ENOMEM)) } else { Ok(share) }
    }

    /// Ends the session: the next one has another share, and what the guest held is let go. Waits for nothing.
    pub fn end_session(&self) -> Closing {
        let old = self.share();
        old.mark_ended();
        self.renew(&old);
        Closing::begin(old, &self.ended)
    }

    /// Puts another share in the place of `old`. `None` where there can be none: it is tried again when a session begins.
    fn renew(&self, old: &Share) -> Option<Arc<Share>> {
        let renewed = old.renewed().inspect_err(|e| tracing::error!("the next session cannot have tables of its own: {e}"));
        let new = Arc::new(renewed.ok()?);
        new.take_over_watch();
        *self.share.write() = Arc::clone(&new);
        self.generation.fetch_add(1, Ordering::Release);
        Some(new)
    }
}

/// The files of a session that ended, on their way to be closed.
#[derive(Debug)]
#[must_use]
pub struct Closing(Receiver<()>);

impl Closing {
    fn begin(share: Arc<Share>, ended: &Arc<Mutex<Vec<Arc<Share>>>>) -> Closing {
        let (done, closing) = sync_channel(1);
        ended.lock().push(share);
        let all = Arc::clone(ended);
        // Where there is no thread the share stays in the list, and nobody waits for it: the next session's end tries again.
        if let Err(e) = std::thread::Builder::new().name("closing".to_owned()).spawn(move || close(&all, &done)) {
            tracing::error!("no thread to close the guest's files: {e}");
        }
        Closing(closing)
    }

    /// Waits until everything is closed, and no longer than `timeout`: then the host closes the rest when it can.
    pub fn wait(self, timeout: Duration) {
        if self.0.recv_timeout(timeout).is_err() {
            tracing::error!("the host has not closed all files of the guest within --stop-timeout; they are left to it");
        }
    }
}

/// Lets go of what the sessions in `ended` held that no other thread sees to. Each share is kept until nobody else has it: the
/// last one that lets go of it may have to wait for the host.
fn close(ended: &Mutex<Vec<Arc<Share>>>, done: &SyncSender<()>) {
    let shares: Vec<Arc<Share>> = ended.lock().iter().filter(|share| share.session.begin_closing()).cloned().collect();
    for share in &shares {
        share.close_session();
    }
    let _ = done.send(());
    for share in shares {
        // This one's, and the list's.
        while Arc::strong_count(&share) > 2 {
            std::thread::sleep(LAST_LOOK);
        }
        let mut ended = ended.lock();
        ended.retain(|other| !Arc::ptr_eq(other, &share));
        drop(ended);
        drop(share);
    }
}
