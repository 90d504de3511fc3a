//! Processes and CPUs: the run time and the context switches of a process and its descendants, and where they run.

use std::fs;
use std::path::PathBuf;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

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

/// Context switches of the living threads of these processes, voluntary and not. Those of threads that have ended are not known.
pub fn switches(processes: &[u32]) -> u64 {
    let of_task = |task: PathBuf| switches_of(&fs::read_to_string(task.join("status")).unwrap_or_default());
    processes.iter().flat_map(|process| tasks(*process)).map(of_task).sum()
}

fn switches_of(status: &str) -> u64 {
    let counts = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
    counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
}

/// The CPUs that this process may run on.
pub fn cpus() -> Result<Vec<usize>, Failure> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Lets thread `tid` (0 is the caller) run on `cpus` only.
pub fn pin(tid: i32, cpus: &[usize]) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    Ok(sched_setaffinity(rustix::thread::Pid::from_raw(tid), &set)?)
}

/// Lets all threads of the process and its descendants run on `cpus` only.
pub fn pin_tree(pid: u32, cpus: &[usize]) -> Result<(), Failure> {
    for task in process_tree(pid).into_iter().flat_map(tasks) {
        let tid = task.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // It may have ended since it was listed.
        let pinned = pin(tid.parse()?, cpus);
        if task.exists() {
            pinned?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_context_switches_are_counted() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(switches_of(status), 157);
        assert!(switches(&[std::process::id()]) > 0);
    }

    #[test]
    fn this_process_has_run_and_may_run_somewhere() {
        assert!(cpu_ns(&[std::process::id()]).unwrap() > 0);
        assert!(!cpus().unwrap().is_empty());
        assert!(process_tree(std::process::id()).contains(&std::process::id()));
    }
}
