//! The thread of a process that serves, with or without a keeper, which acts on signals and shows that the process lives. It runs as
//! long as the process, so that the keeper can tell from its end that the process ends.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::upgrade::DRAIN_MAX;
use super::worker_end::Witness;
use crate::device::ServerStopper;
use crate::metrics::Metrics;
use crate::outer::{Herald, alive_every};
use crate::sys::process;
use crate::sys::signal::Signals;
use crate::trace::StandardError;

/// How long the lock of a queue may be held by whoever works on it: it is never held over a system call that can wait.
const RESPONSE_MAX: Duration = Duration::from_secs(1);

/// What the thread that watches signals needs.
#[derive(Debug)]
pub struct Watching {
    /// Stops the server.
    pub stopper: ServerStopper,
    /// Its counters.
    pub metrics: Arc<Metrics>,
    /// Where there is a keeper.
    pub witness: Option<Witness>,
    /// Where there is none.
    pub herald: Arc<Herald>,
}

impl Watching {
    /// Acts on signals, and shows at times that this process lives, where somebody watches it.
    pub fn run(self, signals: &Signals) {
        // This thread lives as long as the process.
        if let Some(Err(e)) = self.witness.as_ref().map(Witness::testify) {
            tracing::warn!("the keeper does not watch a thread: {e}");
        }
        let every = alive_every();
        let mut alive_at = every.map(|_| Instant::now());
        loop {
            match signals.wait(alive_at) {
                Ok(None) => {
                    self.show_life();
                    alive_at = every.map(|every| Instant::now() + every);
                }
                Ok(Some(signal)) => self.act_on(signal),
                Err(e) => {
                    tracing::error!("signals do not come through: {e}");
                    return;
                }
            }
        }
    }

    fn show_life(&self) {
        if !self.stopper.responds(RESPONSE_MAX) {
            return tracing::error!("a queue is locked for more than {} s", RESPONSE_MAX.as_secs());
        }
        match self.witness.as_ref().map(Witness::say_alive) {
            None => self.herald.alive(),
            Some(Err(e)) => tracing::debug!("the keeper does not get to know that this process lives: {e}"),
            Some(Ok(())) => {}
        }
    }

    fn act_on(&self, signal: i32) {
        match signal {
            libc::SIGUSR1 => {
                // In one write, so that no other line comes in between.
                let line = self.metrics.to_json() + "\n";
                let _ = StandardError.write_all(line.as_bytes());
            }
            libc::SIGUSR2 if self.witness.is_some() => {
                if self.stopper.drain(DRAIN_MAX) == 0 {
                    tracing::debug!("another program goes on");
                    process::end_now(0);
                }
                if let Some(Err(e)) = self.witness.as_ref().map(Witness::say_busy) {
                    tracing::error!("the keeper does not get to know that requests are not finished: {e}");
                }
            }
            libc::SIGUSR2 => tracing::warn!("SIGUSR2 is ignored: an upgrade needs a keeper"),
            _ => {
                let in_flight = self.stopper.stop();
                tracing::info!("shutting down; waiting for {in_flight} requests in flight");
            }
        }
    }
}
