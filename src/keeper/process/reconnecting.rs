//! The keeper's part when a frontend hangs up that may connect again (INFLIGHT_SHMFD; docs/RECOVERY.md, section 10). The worker is ended
//! at once: the memory is the guest's, which may be with another frontend now.

use std::io;
use std::time::Duration;

use rustix::process::Signal;

use super::{Keeper, Link, Verdict};
use crate::keeper::life::Life;
use crate::keeper::relay::Passed;
use crate::keeper::worker_end::Beginning;
use crate::sys::process::End;

impl Keeper {
    /// Has frontends connect again within `time`, if they can: zero is never.
    pub fn retaining(mut self, time: Duration) -> Keeper {
        // Records without a file are gone with the worker.
        self.retention.set_time(if self.start.is_some() { time } else { Duration::ZERO });
        self
    }

    /// Frontend and worker do not go on as before.
    pub(super) fn follow_frontend(&mut self, life: &Life, passed: io::Result<Passed>) {
        match passed {
            Ok(Passed::More) => {}
            Ok(Passed::Left) if !self.is_stopping => self.retain(life),
            Ok(Passed::Another) => {
                tracing::info!("a VMM connects that is not the one before, whose session ends");
                self.drop_retained(life);
            }
            ended => {
                if let Err(e) = ended {
                    tracing::error!("the connection to the VMM failed: {e}");
                }
                self.retention.retained = None;
                self.hang_up();
            }
        }
    }

    /// The frontend has hung up. Its session is kept, or the one before is, which it has not gone on with.
    fn retain(&mut self, life: &Life) {
        self.dismiss(life, Beginning::Recovery);
        if let Link::Connected(relay) = std::mem::replace(&mut self.link, Link::Awaited)
            && let Some((region, queues)) = relay.into_region()
        {
            let seconds = self.retention.time().as_secs_f64();
            tracing::info!("the VMM disconnected; its session is kept for {seconds} s, in case that it connects again");
            self.retention.keep(region, queues);
        }
    }

    /// Ends a session that was kept for long enough.
    pub(super) fn end_overdue(&mut self, life: &Life) {
        if self.retention.left().is_some_and(|left| left.is_zero()) {
            tracing::info!("the VMM that disconnected did not connect again in time; its session ends");
            self.drop_retained(life);
            if matches!(self.link, Link::Awaited) {
                self.hang_up();
            }
        }
    }

    fn drop_retained(&mut self, life: &Life) {
        self.retention.retained = None;
        self.dismiss(life, Beginning::Idle);
        // No ring of another guest starts in this worker.
        if let Link::Connected(relay) = &mut self.link
            && let Err(e) = relay.leave_worker()
        {
            tracing::error!("the connection to the VMM failed: {e}");
            self.hang_up();
        }
    }

    /// Ends the worker. Comes before its connection is closed, of which it would take the end for that of the session: what it hears from now
    /// on does not leave the kernel.
    pub(super) fn dismiss(&mut self, life: &Life, next: Beginning) {
        self.retention.dismiss(next);
        // It may just have ended.
        let _ = life.worker.send(Signal::KILL);
    }

    /// What follows a worker that the keeper has ended. `end` as of [`Keeper::follow`].
    pub(super) fn follow_dismissed(&mut self, life: Life, end: Option<End>, next: Beginning) -> io::Result<Verdict> {
        if next == Beginning::Idle {
            // No worker may take them for those of the next session, whatever happens to the one that begins it.
            self.records.clear();
            self.records.set_share_arena(None);
        }
        let is_over = self.is_stopping || matches!(self.link, Link::Over);
        match end {
            None if is_over => _ = life.worker.wait()?,
            None => {
                self.retention.expect_end(life.worker.pid());
                self.ending.push(life.worker);
            }
            Some(_) => {}
        }
        Ok(if is_over { Verdict::End(End::Exit(0)) } else { Verdict::Next(next) })
    }

    /// Whether there is a session with which the next worker goes on.
    pub(super) fn has_session(&self) -> bool {
        matches!(self.link, Link::Connected(_)) || self.retention.retained.is_some()
    }

    /// The queues of this session.
    pub(super) fn queues(&self) -> Vec<u16> {
        let mut queues = match &self.link {
            Link::Connected(relay) => relay.queues(),
            _ => Vec::new(),
        };
        queues.extend(self.retention.retained.iter().flat_map(|retained| &retained.queues));
        queues.sort_unstable();
        queues.dedup();
        queues
    }
}
