//! What threads of the daemon cost each other: READ of 4 KiB and GETATTR, as far as the share does them, on two threads with a file
//! each, and with the same file; the bare system calls beside. `cargo bench --bench sharing`, as root.
//!
//! Prints nanoseconds of an operation on one thread, and how many operations two threads do for each of one thread.

use std::error::Error;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gatherfs::host::{Descriptors, Features, Lookup, Pending, RequestContext, Share};
use gatherfs::state::RequestRecord;
use gatherfs::sys::stat;
use gatherfs::sys::working_dir::DescriptorDir;
use gatherfs::types::{FileHandle, GuestGid, GuestUid, NodeId, QueueIndex, RequestId, Unique};
use gatherfs_support::in_process::share_options;
use gatherfs_support::scratch::Scratch;
use rustix::thread::CpuSet;

const BLOCK_LEN: usize = 4096;
const ROUNDS: usize = 7;
const ROUND_TIME: Duration = Duration::from_millis(200);
const LOOK_EACH: u64 = 256;

type Failure = Box<dyn Error + Send + Sync>;
/// An operation on the file of this number.
type Operation<'o> = &'o (dyn Fn(usize) + Sync);

struct Wanted;

impl Pending for Wanted {
    fn is_wanted(&self) -> bool {
        true
    }
}

/// A file as the guest and as the host has it.
struct Opened {
    node: NodeId,
    handle: FileHandle,
    file: File,
}

fn open(share: &Share, scratch: &Scratch, name: &str) -> Result<Opened, Failure> {
    let path = scratch.path().join(name);
    std::fs::write(&path, vec![7; BLOCK_LEN])?;
    let id = RequestId { queue: QueueIndex(1), head: 0, unique: Unique(1) };
    let record = RequestRecord::default();
    let context = RequestContext { id, uid: GuestUid(0), gid: GuestGid(0), pending: &Wanted, record: &record, earlier: None };
    let Ok(Lookup::Found(entry)) = share.lookup(NodeId::ROOT, &CString::new(name)?, &context) else { return Err("LOOKUP failed".into()) };
    let opened = share.open(entry.node, 0, false, &context).map_err(|errno| format!("OPEN: {errno}"))?;
    Ok(Opened { node: entry.node, handle: opened.handle, file: File::open(path)? })
}

/// Operations of `threads` threads in a round, thread i with the file `file_of(i)`.
fn operations(share: &Share, threads: usize, file_of: fn(usize) -> usize, operation: Operation<'_>) -> u64 {
    let (is_over, start) = (AtomicBool::new(false), Barrier::new(threads + 1));
    std::thread::scope(|scope| {
        let counts: Vec<_> = (0..threads)
            .map(|thread| {
                let (is_over, start) = (&is_over, &start);
                scope.spawn(move || {
                    let mut cpus = CpuSet::new();
                    cpus.set(thread);
                    rustix::thread::sched_setaffinity(None, &cpus).expect("a CPU for each thread");
                    share.enter_thread().expect("/proc/self/fd");
                    start.wait();
                    let mut count = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        (0..LOOK_EACH).for_each(|_| operation(file_of(thread)));
                        count += LOOK_EACH;
                    }
                    count
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        while began.elapsed() < ROUND_TIME {
            std::thread::sleep(ROUND_TIME / 4);
        }
        is_over.store(true, Ordering::Relaxed);
        counts.into_iter().map(|count| count.join().expect("a thread")).sum()
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Failure> {
    let scratch = Scratch::on_tmpfs();
    let root = File::open(scratch.path())?.into();
    let share = Share::export(share_options(), Descriptors::of(4096, None), root, DescriptorDir::open()?)?;
    share.begin_session(Features::default(), 1);
    share.enter_thread()?;
    let files = [open(&share, &scratch, "a")?, open(&share, &scratch, "b")?];
    let read = |file: &File| _ = file.read_at(&mut [0; BLOCK_LEN], 0).expect("a block");
    let cases: [(&str, Operation<'_>); 4] = [
        ("READ 4 KiB, share", &|i| {
            let prepared = share.prepare_read(files[i].node, files[i].handle).expect("an open file");
            read(&files[i].file);
            share.let_go(prepared.file);
        }),
        ("READ 4 KiB, bare", &|i| read(&files[i].file)),
        ("GETATTR, share", &|i| _ = share.getattr(files[i].node, None).expect("attributes")),
        ("GETATTR, bare", &|i| _ = stat::Room::empty().of(files[i].file.as_fd()).expect("attributes")),
    ];
    println!("{:20} {:>14} {:>22} {:>20}", "", "one thread, ns", "two, a file each, x", "two, same file, x");
    for (name, operation) in cases {
        let mut rounds = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            let alone = operations(&share, 1, |_| 0, operation) as f64;
            rounds[0].push(ROUND_TIME.as_nanos() as f64 / alone);
            rounds[1].push(operations(&share, 2, |thread| thread, operation) as f64 / alone);
            rounds[2].push(operations(&share, 2, |_| 0, operation) as f64 / alone);
        }
        let [alone, apart, same] = rounds.map(median);
        println!("{name:20} {alone:14.0} {apart:22.2} {same:20.2}");
    }
    Ok(())
}
