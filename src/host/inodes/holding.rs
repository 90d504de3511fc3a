//! Files that others replace or remove between a guest's LOOKUP of a name and the request that uses it. Their handles find nothing
//! then. Linux looks the name up once more, and gives up with ESTALE if that file is gone as well (fs/namei.c, `LOOKUP_REVAL`), which no
//! file system of its own shows. So for a while after a file was gone each file that is looked up keeps an O_PATH descriptor, as one
//! of the recently used: the second try finds it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How long files are held after one was gone, in milliseconds. The guest tries again at once, but its CPU may be shared.
const HOLDING_MS: u64 = 1000;

/// Until when what is looked up is held.
#[derive(Debug)]
pub(super) struct Holding {
    since: Instant,
    /// In milliseconds after `since`; 0 for not at all.
    until_ms: AtomicU64,
}

impl Holding {
    /// Nothing is held yet.
    pub fn new() -> Holding {
        Holding { since: Instant::now(), until_ms: AtomicU64::new(0) }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A file was gone.
    pub fn begin(&self) {
        self.until_ms.store(self.now_ms().saturating_add(HOLDING_MS), Ordering::Relaxed);
    }

    /// Nothing is held any more that is looked up from now on.
    #[cfg(feature = "failpoints")]
    pub fn end(&self) {
        self.until_ms.store(0, Ordering::Relaxed);
    }

    /// Whether what is looked up now is held. Reads no clock where no file was gone.
    pub fn is_under_way(&self) -> bool {
        let until_ms = self.until_ms.load(Ordering::Relaxed);
        if until_ms == 0 {
            return false;
        }
        let is_under_way = self.now_ms() < until_ms;
        if !is_under_way {
            // Not where it has begun again.
            let _ = self.until_ms.compare_exchange(until_ms, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        is_under_way
    }
}
