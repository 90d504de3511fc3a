//! The exported directory over its FUSE sessions: each has a [`Share`] of its own. What a session held is let go when it
//! ends, beside the next one, for a host that does not answer may take as long as it likes to close a file; and a request
//! that such a host finishes late finds the share that it began with, and not the next guest's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use parking_lot::RwLock;

use super::share::Share;

/// The share of the present session or of the next one.
#[derive(Debug)]
pub struct Export {
    share: RwLock<Arc<Share>>,
    /// Changes with each share.
    generation: AtomicU64,
}

impl Export {
    /// Exports `share`, the first session's.
    pub fn new(share: Share) -> Export {
        Export { share: RwLock::new(Arc::new(share)), generation: AtomicU64::new(0) }
    }

    /// The present share.
    pub fn share(&self) -> Arc<Share> {
        Arc::clone(&self.share.read())
    }

    /// The generation of the present share: another one once that was replaced.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Ends the session: the next one has another share, and what the guest held is let go. Waits for nothing.
    pub fn end_session(&self) -> Closing {
        let old = {
            let mut present = self.share.write();
            let old = Arc::clone(&present);
            match old.renewed() {
                Ok(new) => {
                    *present = Arc::new(new);
                    present.take_over_watch();
                    self.generation.fetch_add(1, Ordering::Release);
                }
                // It can serve the next session too, if the host lets everything go in time.
                Err(e) => tracing::error!("the next session cannot have tables of its own: {e}"),
            }
            old
        };
        Closing::begin(&old)
    }
}

/// The files of a session that ended, on their way to be closed.
#[derive(Debug)]
#[must_use]
pub struct Closing(Receiver<()>);

impl Closing {
    fn begin(share: &Arc<Share>) -> Closing {
        let (done, closing) = sync_channel(1);
        let close = {
            let (share, done) = (Arc::clone(share), done.clone());
            move || {
                share.end_session();
                let _ = done.send(());
            }
        };
        if let Err(e) = std::thread::Builder::new().name("closing".to_owned()).spawn(close) {
            tracing::debug!("no thread to close the guest's files: {e}");
            share.end_session();
            let _ = done.send(());
        }
        Closing(closing)
    }

    /// Waits until everything is closed, and no longer than `timeout`: then the host closes the rest when it can.
    pub fn wait(self, timeout: Duration) {
        if self.0.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the host has not closed all files of the guest within --stop-timeout; they are left to it");
        }
    }
}
