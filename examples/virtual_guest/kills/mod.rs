//! Workers that are killed, and live upgrades, under load: every answer is checked, and what the guest sees of it is measured.

mod killer;
mod lanes;
mod work;

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gatherfs_harness::Failure;
use gatherfs_harness::load::Daemon;
use gatherfs_harness::load::pauses::{Gaps, Pauses};
use gatherfs_support::guest::frontend::FIRST_REQUEST;
use gatherfs_support::guest::fuse::ROOT;

use crate::options::{Kills, Setup};
use killer::Killer;
use lanes::{Progress, Queue};
use work::Place;

/// The directory below the share that all of it is in.
const DIR: &str = "virtual-guest.kills";
/// Moments without a kill for which a pause is told: one each.
const QUIET_EVERY: Duration = Duration::from_millis(50);
/// How long the load goes on after the last kill, which is to be survived as well.
const LAST: Duration = Duration::from_secs(1);
/// How often a rest looks for what failed.
const STEP: Duration = Duration::from_millis(20);
/// Failures that are printed.
const PRINTED_MAX: usize = 20;

/// Kills the worker of `daemon` as `kills` says, and prints what came of it.
pub fn kills(daemon: &mut Daemon, share: &Path, setup: &Setup, kills: &Kills) -> Result<(), Failure> {
    let queues = daemon.guest.request_queues();
    if queues < setup.queues {
        return Err(format!("the daemon has {queues} request queues, --queues wants {}", setup.queues).into());
    }
    let options = daemon.guest.lock(FIRST_REQUEST).options();
    if !options.indirect && kills.depth * work::DESCRIPTORS_MAX > options.size.into() {
        return Err("the requests in flight need more descriptors than the queue has; see --depth and --queue-size".into());
    }
    let killer = Killer::of(daemon.pid, &daemon.socket, kills.seed)?;
    let host = share.join(DIR);
    if host.exists() {
        fs::remove_dir_all(&host)?;
    }
    let dir = daemon.client.mkdir(ROOT, DIR, 0o755)?.nodeid;
    let place = |index: usize| Place::make(&mut daemon.client, (dir, &host), &index.to_string(), kills.depth, setup.direct);
    let places = (0..queues).map(place).collect::<Result<Vec<_>, _>>()?;
    let mut run = Run { progress: Progress::default(), killer, moments: Vec::new(), upgrades: Vec::new(), phases: Vec::new() };
    let before = run.killer.descriptors()?;
    let (gaps, mut failures) = run.under_load(daemon, &places, kills);
    for place in places {
        failures.extend(place.end(&mut daemon.client).err());
    }
    run.report(&gaps, &failures, (before, run.killer.descriptors()?));
    fs::remove_dir_all(host)?;
    match failures.len() {
        0 => Ok(()),
        count => {
            let (done, upgrades) = (run.moments.len(), run.upgrades.len());
            Err(format!("{}: {count} errors, {done} kills, {upgrades} upgrades, seed {}", daemon.name, kills.seed).into())
        }
    }
}

/// A part of the run and how much was done in it.
struct Phase {
    name: &'static str,
    begin: Instant,
    end: Instant,
    answered: u64,
}

/// A run and what has come of it.
struct Run {
    progress: Progress,
    killer: Killer,
    /// When a worker was killed.
    moments: Vec<Instant>,
    /// From when to when an upgrade took.
    upgrades: Vec<(Instant, Instant)>,
    phases: Vec<Phase>,
}

impl Run {
    /// Loads every queue and kills meanwhile. How long each queue had no answer, and what failed.
    fn under_load(&mut self, daemon: &Daemon, places: &[Place], kills: &Kills) -> (Vec<Gaps>, Vec<Failure>) {
        let Self { progress, killer, moments, upgrades, phases } = self;
        let progress = &*progress;
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (index, place) in places.iter().enumerate() {
                let client = daemon.client.on_queue(FIRST_REQUEST + index);
                threads.push(scope.spawn(move || {
                    let queue = Queue::new(client, progress);
                    let (gaps, failures) = queue.run(place.lanes(&queue, kills.depth, kills.seed + (index * kills.depth) as u64));
                    (gaps, failures.into_iter().map(|failure| format!("queue {index}: {failure}").into()).collect::<Vec<Failure>>())
                }));
            }
            let mut phase = |name, run: &mut dyn FnMut() -> Result<(), Failure>| {
                let (begin, before) = (Instant::now(), progress.answered.load(Ordering::Relaxed));
                let result = run();
                phases.push(Phase { name, begin, end: Instant::now(), answered: progress.answered.load(Ordering::Relaxed) - before });
                result
            };
            let quiet = phase("without kills", &mut || rest(progress, Duration::from_secs_f64(kills.quiet_seconds)));
            let killed = quiet.and_then(|()| {
                phase("with kills", &mut || {
                    // The fewer of them are spread over the more.
                    let (turns, mean) = (kills.count.max(kills.upgrades), Duration::from_millis(kills.every_ms));
                    for turn in 1..=turns {
                        if turn * kills.count / turns > moments.len() {
                            rest(progress, killer.rest(mean))?;
                            moments.push(killer.kill()?);
                        }
                        if turn * kills.upgrades / turns > upgrades.len() {
                            rest(progress, killer.rest(mean))?;
                            upgrades.push(killer.upgrade()?);
                        }
                    }
                    rest(progress, LAST)
                })
            });
            progress.ends.store(true, Ordering::Relaxed);
            let (mut gaps, mut failures) = (Vec::new(), Vec::from_iter(killed.err()));
            for thread in threads {
                let (of_queue, failed) = thread.join().expect("the load does not panic");
                gaps.push(of_queue);
                failures.extend(failed);
            }
            (gaps, failures)
        })
    }

    fn report(&self, gaps: &[Gaps], failures: &[Failure], (before, after): (usize, usize)) {
        println!("{:<22} {} of a worker, by SIGKILL", "kills", self.moments.len());
        println!("{:<22} {} of the program, by the control socket", "upgrades", self.upgrades.len());
        println!("{:<22} {}", "errors", failures.len());
        failures.iter().take(PRINTED_MAX).for_each(|failure| println!("{:<22} {failure}", ""));
        for Phase { name, begin, end, answered } in &self.phases {
            let seconds = (*end - *begin).as_secs_f64();
            println!("{:<22} {:.0}/s: {answered} in {seconds:.1} s", format!("requests {name}"), *answered as f64 / seconds);
        }
        if let Some(quiet) = self.phases.first() {
            let moments = (1..).map(|turn| quiet.begin + QUIET_EVERY * turn).take_while(|moment| *moment < quiet.end);
            print_pauses("pauses without kills", &Pauses::at(moments, gaps));
        }
        if !self.moments.is_empty() {
            print_pauses("pauses at kills", &Pauses::at(self.moments.iter().copied(), gaps));
        }
        if !self.upgrades.is_empty() {
            print_pauses("pauses at upgrades", &Pauses::within(self.upgrades.iter().copied(), gaps));
            let mut took: Vec<Duration> = self.upgrades.iter().map(|(begin, end)| *end - *begin).collect();
            took.sort_unstable();
            let [median, longest] = [took[took.len() / 2], took[took.len() - 1]].map(|time| time.as_secs_f64() * 1e3);
            println!("{:<22} median {median:.1} ms, longest {longest:.1} ms, with the examination", "upgrades took");
        }
        println!("{:<22} {before} at the start, {after} at the end", "open descriptors");
    }
}

fn print_pauses(name: &str, pauses: &Pauses) {
    let [median, most, longest] = [0.5, 0.99, 1.0].map(|part| pauses.quantile(part));
    println!("{name:<22} median {median:.1} ms, 99th percentile {most:.1} ms, longest {longest:.1} ms, of {}", pauses.count());
}

/// Waits, as long as no lane has failed.
fn rest(progress: &Progress, time: Duration) -> Result<(), Failure> {
    let end = Instant::now() + time;
    loop {
        if progress.has_failed.load(Ordering::Relaxed) {
            return Err("stopped at the first error".into());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(STEP));
    }
}
