//! Processes and CPUs: the run time of a process and its descendants, and where they run.

use std::fs;
use std::path::PathBuf;

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::Failure;

/// The process and all its descendants.
pub fn process_tree(pid: u32) -> Vec<u32> {
    let mut tree = vec![pid];
    let mut next = 0;
    while next < tree.len() {
        for task in tasks(tree[next]) {
            let children = fs::read_to_string(task.join("children")).unwrap_or_default();
            tree.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        }
        next += 1;
    }
    tree
}

fn tasks(pid: u32) -> Vec<PathBuf> {
    let list = fs::read_dir(format!("/proc/{pid}/task"));
    list.into_iter().flatten().flatten().map(|task| task.path()).collect()
}

/// Run time of these processes in nanoseconds, with that of their threads that have ended (man clock_getcpuclockid(3)).
pub fn cpu_ns(processes: &[u32]) -> Result<u64, Failure> {
    processes.iter().try_fold(0, |sum, process| Ok(sum + process_cpu_ns(*process)?))
}

fn process_cpu_ns(process: u32) -> Result<u64, Failure> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: the C library writes one clock id.
    let error = unsafe { libc::clock_getcpuclockid(process.cast_signed(), &mut clock) };
    if error != 0 {
        return Err(std::io::Error::from_raw_os_error(error).into());
    }
    // SAFETY: the kernel writes one timespec.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned())
}

/// Pins thread `tid` (0 is the caller) to one CPU.
pub fn pin(tid: i32, cpu: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(rustix::thread::Pid::from_raw(tid), &set)?)
}

/// Pins all threads of the process and its descendants to one CPU.
pub fn pin_tree(pid: u32, cpu: usize) -> Result<(), Failure> {
    for task in process_tree(pid).into_iter().flat_map(tasks) {
        let tid = task.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        pin(tid.parse()?, cpu)?;
    }
    Ok(())
}
