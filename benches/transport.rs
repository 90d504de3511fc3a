//! What a wake-up and a signal cost the device's side of the transport: kick and call, each an eventfd, with a driver on the same
//! CPU that waits for each call before it kicks again. `cargo bench --bench transport`
//!
//! Prints the CPU time of the device's thread and the round trip, each per kick: median of the rounds, which take turns.

use std::error::Error;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::thread::{ClockId, CpuSet};

const KICKS: u32 = 50_000;
const ROUNDS: usize = 5;

type Failure = Box<dyn Error + Send + Sync>;

/// How the device waits for a kick and signals the call.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// epoll_wait(2), edge-triggered, and write(2): what the daemon does.
    Epoll,
    /// A blocking read(2) of the kick, and write(2).
    Read,
    /// One io_uring_enter(2) that submits the write and waits for a multishot poll of the kick.
    Ring,
    /// The same, completions left to the thread that waits (IORING_SETUP_DEFER_TASKRUN).
    RingDeferred,
}

const WAYS: [(&str, Way); 4] = [
    ("epoll_wait, write", Way::Epoll),
    ("read, write", Way::Read),
    ("io_uring_enter", Way::Ring),
    ("io_uring_enter, DEFER_TASKRUN", Way::RingDeferred),
];

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn write_one(event: impl AsFd) -> Result<(), Failure> {
    rustix::io::write(event, &1u64.to_ne_bytes())?;
    Ok(())
}

/// Answers each kick with a call; the CPU time that took.
fn device(way: Way, kick: &OwnedFd, call: &OwnedFd) -> Result<Duration, Failure> {
    let began = cpu_time();
    match way {
        Way::Epoll => {
            let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            epoll::add(&watch, kick, epoll::EventData::new_u64(0), epoll::EventFlags::IN | epoll::EventFlags::ET)?;
            let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 3];
            for _ in 0..KICKS {
                epoll::wait(&watch, &mut events[..], None::<&Timespec>)?;
                write_one(call)?;
            }
        }
        Way::Read => {
            for _ in 0..KICKS {
                rustix::io::read(kick, &mut [0; 8])?;
                write_one(call)?;
            }
        }
        Way::Ring | Way::RingDeferred => ring(way, kick, call)?,
    }
    Ok(cpu_time() - began)
}

fn ring(way: Way, kick: &OwnedFd, call: &OwnedFd) -> Result<(), Failure> {
    let mut builder = IoUring::builder();
    if matches!(way, Way::RingDeferred) {
        builder.setup_single_issuer().setup_defer_taskrun();
    }
    let mut ring: IoUring = builder.build(8)?;
    ring.submitter().register_files(&[kick.as_raw_fd(), call.as_raw_fd()])?;
    let one = 1u64.to_ne_bytes();
    let watch = opcode::PollAdd::new(types::Fixed(0), (libc::EPOLLIN | libc::EPOLLET).cast_unsigned()).multi(true).build();
    let signal = opcode::Write::new(types::Fixed(1), one.as_ptr(), 8).build().flags(squeue::Flags::SKIP_SUCCESS);
    // SAFETY: it refers to no memory.
    unsafe { ring.submission().push(&watch)? };
    let mut kicks = 0;
    while kicks < KICKS {
        ring.submit_and_wait(1)?;
        let seen = ring.completion().filter(|entry| cqueue::more(entry.flags())).count();
        // One call for each wait, as the other ways have.
        if seen > 0 {
            kicks += 1;
            // SAFETY: `one` outlives the loop, each turn of which waits until the last write was made.
            unsafe { ring.submission().push(&signal)? };
        }
    }
    ring.submit()?;
    Ok(())
}

/// One round: CPU time of the device and time of the round trips, in us per kick.
fn round(way: Way) -> Result<(f64, f64), Failure> {
    let blocking = if matches!(way, Way::Read) { EventfdFlags::empty() } else { EventfdFlags::NONBLOCK };
    let (kick, call) = (eventfd(0, EventfdFlags::CLOEXEC | blocking)?, eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    std::thread::scope(|scope| {
        let device = scope.spawn(|| device(way, &kick, &call));
        let began = Instant::now();
        for _ in 0..KICKS {
            write_one(&kick)?;
            poll(&mut [PollFd::new(&call, PollFlags::IN)], None)?;
            rustix::io::read(&call, &mut [0; 8])?;
        }
        let round_trips = began.elapsed();
        let cpu = device.join().map_err(|_| "the device's thread ended early")??;
        Ok((cpu.as_secs_f64() * 1e6 / f64::from(KICKS), round_trips.as_secs_f64() * 1e6 / f64::from(KICKS)))
    })
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() -> Result<(), Failure> {
    // `cargo test` runs benchmarks too, with this argument: once is enough to see that they work.
    let rounds = if std::env::args().any(|arg| arg == "--bench") { ROUNDS } else { 1 };
    let mut cpu = CpuSet::new();
    cpu.set(0);
    rustix::thread::sched_setaffinity(None, &cpu)?;
    let mut figures = vec![(Vec::new(), Vec::new()); WAYS.len()];
    for _ in 0..rounds {
        for ((_, way), (cpu, trips)) in WAYS.iter().zip(&mut figures) {
            let (cpu_us, trip_us) = round(*way)?;
            cpu.push(cpu_us);
            trips.push(trip_us);
        }
    }
    println!("{:<32}{:>12}{:>14}", "", "CPU us/kick", "us/round trip");
    for ((name, _), (cpu, trips)) in WAYS.iter().zip(figures) {
        println!("{name:<32}{:>12.2}{:>14.2}", median(cpu), median(trips));
    }
    Ok(())
}
