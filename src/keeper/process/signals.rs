//! The signals that the keeper gets, while there is a worker and while there is none.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::Keeper;
use crate::keeper::life::Life;
use crate::keeper::worker_end::Beginning;
use crate::sys::signal;

impl Keeper {
    /// Passes on to the worker what has arrived.
    pub(super) fn pass_signals(&mut self, life: &Life) -> io::Result<()> {
        while let Some(arrived) = self.signals.next()? {
            if arrived.signal == libc::SIGUSR2 {
                tracing::warn!("SIGUSR2 to the keeper is ignored: send it to the process that was started");
                continue;
            }
            self.is_stopping |= signal::is_end(arrived.signal);
            // One that waits for the host to close a file does not listen yet.
            if self.is_stopping && life.is_later && !life.is_ready {
                self.dismiss(life, Beginning::Idle);
            }
            // The kernel sent ^C to the worker too.
            if !arrived.by_kernel
                && let Some(signal) = Signal::from_named_raw(arrived.signal)
            {
                // It may just have ended.
                let _ = life.worker.send(signal);
            }
        }
        Ok(())
    }

    /// Waits before a worker is started. False where gatherfsd is to end instead.
    pub(super) fn rest(&mut self, time: Duration) -> io::Result<bool> {
        let until = Instant::now() + time;
        loop {
            while let Some(arrived) = self.signals.next()? {
                if signal::is_end(arrived.signal) {
                    return Ok(false);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(true);
            }
            let mut watched = [PollFd::new(&self.signals, PollFlags::IN)];
            match poll(&mut watched, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
