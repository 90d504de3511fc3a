//! Kills the worker of a daemon at random moments, and upgrades the daemon. It knows nothing of the load.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gatherfs::outer::{self, Answer};
use gatherfs_harness::Failure;
use gatherfs_harness::load::cpu::process_tree;
use gatherfs_harness::load::random::Random;
use gatherfs_support::daemon::{children_of, status_field};
use rustix::process::{Pid, Signal, kill_process};

/// One kill in ten comes within this time of the new worker's start, while it may still recover.
const SOON: Duration = Duration::from_millis(20);
/// How long a new worker may take to come.
const NEXT_WORKER: Duration = Duration::from_secs(10);
/// Workers that may still be dying. The number of an earlier one may be another process's by now.
const DYING_MAX: usize = 8;
/// How often a new worker is looked for.
const LOOK: Duration = Duration::from_micros(500);

/// The keeper of a daemon and the workers that were killed.
pub struct Killer {
    keeper: u32,
    socket: PathBuf,
    killed: Vec<u32>,
    random: Random,
}

impl Killer {
    /// For the daemon that was started as process `pid` and listens at `socket`. Its processes are a chain: outer process (not with --sandbox none), keeper,
    /// worker.
    pub fn of(pid: u32, socket: &Path, seed: u64) -> Result<Self, Failure> {
        match process_tree(pid)[..] {
            [.., keeper, _] if status_field(keeper, "Threads") == "1" => {
                Ok(Self { keeper, socket: socket.to_owned(), killed: Vec::new(), random: Random(seed) })
            }
            _ => Err(format!("process {pid} has no keeper and worker: a daemon with --no-keeper, or another one than gatherfsd").into()),
        }
    }

    /// Descriptors that are open in keeper and worker, which have one table.
    pub fn descriptors(&self) -> Result<usize, Failure> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.keeper))?.count())
    }

    /// How long to wait for the next kill: at random up to twice `mean`, or not long after the last one.
    pub fn rest(&mut self, mean: Duration) -> Duration {
        let most = if self.killed.len() % 10 == 9 { SOON } else { 2 * mean };
        Duration::from_nanos(self.random.below(most.as_nanos() as u64))
    }

    /// Kills the worker: when. A new one is there afterwards.
    pub fn kill(&mut self) -> Result<Instant, Failure> {
        let worker = self.worker()?;
        let moment = Instant::now();
        let pid = Pid::from_raw(worker.cast_signed()).ok_or("no worker")?;
        kill_process(pid, Signal::KILL).map_err(|error| format!("worker {worker} ended by itself: {error}"))?;
        self.killed.push(worker);
        self.worker()?;
        Ok(moment)
    }

    /// Upgrades the daemon to the file that now has the path from which it was started: from when to when. Afterwards there is one worker
    /// and no process that has examined the program.
    pub fn upgrade(&mut self) -> Result<(Instant, Instant), Failure> {
        let begin = Instant::now();
        match outer::ask(&self.socket, outer::UPGRADE, None)? {
            Answer::Ok(_) => {}
            Answer::Refused(why) => return Err(format!("the upgrade is refused: {why}").into()),
        }
        let span = (begin, Instant::now());
        // The keeper has waited for the end of every earlier worker.
        self.killed.clear();
        while children_of(self.keeper).len() > 1 {
            if span.1.elapsed() > NEXT_WORKER {
                return Err(format!("a second process is left for {} s after an upgrade", NEXT_WORKER.as_secs()).into());
            }
            std::thread::sleep(LOOK);
        }
        Ok(span)
    }

    /// The worker that was not killed. Those that were killed last may still be dying.
    fn worker(&self) -> Result<u32, Failure> {
        let deadline = Instant::now() + NEXT_WORKER;
        loop {
            let dying = &self.killed[self.killed.len().saturating_sub(DYING_MAX)..];
            if let Some(worker) = children_of(self.keeper).into_iter().find(|pid| !dying.contains(pid)) {
                return Ok(worker);
            }
            if Instant::now() > deadline {
                return Err(format!("no new worker within {} s", NEXT_WORKER.as_secs()).into());
            }
            std::thread::sleep(LOOK);
        }
    }
}
