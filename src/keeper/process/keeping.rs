//! The keeper's part in what outlives it: the session is kept for another process, or was, and is taken over (docs/RECOVERY.md, section
//! 10).

use std::os::fd::AsRawFd;

use super::{Keeper, Link};
use crate::keeper::keeping::Kept;
use crate::keeper::life::Life;
use crate::keeper::worker_end::Beginning;

impl Keeper {
    /// The keeper that goes on with the session of a process that is gone. `kept.records` are this one's.
    pub fn restoring(mut self, kept: Kept) -> Keeper {
        let Kept { connection, share_arena, restarts, .. } = kept;
        let mut owned = Vec::new();
        connection.name_descriptors(&mut owned);
        owned.push(share_arena.as_raw_fd());
        // They may be closed one day.
        self.first.retain(|fd| !owned.contains(fd));
        self.link = Link::Connected(connection);
        (self.keeping.taken_over, self.keeping.restarts) = (Some(share_arena), restarts);
        self
    }

    /// What a worker begins with, instead of `beginning`, as long as none has opened the guest's files in this table of descriptors.
    pub(super) fn in_this_table(&self, beginning: Beginning) -> Beginning {
        let trusts = !matches!(beginning, Beginning::Idle | Beginning::Fresh);
        if self.keeping.taken_over.is_some() && trusts { Beginning::Restored } else { beginning }
    }

    /// Has the session kept, where it has changed. Not with io_uring: the kernel ends a ring behind the end of its process, which nobody
    /// could wait for. Nor while a frontend is away, or has not shown yet that it is the one of before.
    pub(super) fn keep_session(&mut self, life: &Life) {
        self.keeping.hear();
        let Some(start) = &self.start else { return };
        let connection = match &self.link {
            Link::Connected(relay) if life.rings.is_empty() && self.retention.retained.is_none() && !self.is_stopping => Some(&**relay),
            _ => None,
        };
        self.keeping.keep(start, &self.records, connection);
    }

    /// gatherfsd ends in order, or for a reason that would end another process too.
    pub(super) fn forget_session(&mut self) {
        if let Some(start) = &self.start {
            self.keeping.keep(start, &self.records, None);
        }
    }
}
