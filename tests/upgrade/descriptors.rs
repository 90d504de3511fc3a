//! An upgrade while the guest has very many files open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gatherfs_support::daemon::{Daemon, built_program, eventually};
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::fuse::ROOT;
use rustix::process::{Pid, Signal, kill_process};

use super::{assert_upgraded, mount};

/// Files that are opened, where RLIMIT_NOFILE of this machine allows so many; else as many as the daemon opens.
const OPEN_MAX: usize = 100_000;

/// The longest time that a GETATTR took while `run` ran.
fn longest(mut client: Client, run: impl FnOnce()) -> Duration {
    let is_over = Arc::new(AtomicBool::new(false));
    let asks = {
        let is_over = Arc::clone(&is_over);
        std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !is_over.load(Ordering::Relaxed) {
                let began = Instant::now();
                client.getattr(ROOT, None).expect("GETATTR");
                longest = longest.max(began.elapsed());
            }
            longest
        })
    };
    run();
    is_over.store(true, Ordering::Relaxed);
    asks.join().expect("no request failed")
}

/// Prints the pause: `cargo test --release --test upgrade -- --ignored --nocapture a_hundred_thousand`.
#[test]
#[ignore = "a measurement, of which the time is much a debug build's"]
fn a_hundred_thousand_open_files_are_open_afterwards() {
    let daemon = Daemon::start(&[]);
    let (guest, mut client) = mount(daemon.socket());
    let node = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE").entry.nodeid;
    let handles: Vec<u64> = (0..OPEN_MAX).map_while(|_| client.open(node, libc::O_RDWR).ok()).map(|open| open.fh).collect();
    let count = handles.len();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", daemon.keeper())).expect("the process is there").count();
    assert!(open() > count, "{}", open());
    for round in 1..=3u8 {
        let mut took = Duration::ZERO;
        let pause = longest(client.on_queue(client.queue()), || {
            let began = Instant::now();
            assert_upgraded(&daemon, daemon.socket(), &built_program());
            took = began.elapsed();
        });
        println!("upgrade {round} with {} descriptors: the guest waited {pause:?}, gatherfsctl {took:?}", open());
    }
    let worker = daemon.serving();
    let pause = longest(client.on_queue(client.queue()), || {
        kill_process(Pid::from_raw(worker.cast_signed()).expect("an id"), Signal::KILL).expect("the process is there");
        assert!(eventually(|| daemon.log().contains("ended by signal 9 (SIGKILL)")), "{}", daemon.log());
    });
    println!("a kill of the worker: the guest waited {pause:?}");
    for (at, fh) in handles.iter().enumerate().step_by(97) {
        client.write(node, *fh, 0, &at.to_le_bytes()).expect("WRITE");
        assert_eq!(client.read(node, *fh, 0, 8).expect("READ"), at.to_le_bytes());
    }
    assert!(open() > count, "{}", open());
    drop(guest);
}
