//! System calls of the daemons for an operation, counted by strace(1).

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gatherfs_harness::Failure;
use gatherfs_harness::load::{Io, Load, Meta, Op, Pattern, Target, cpu};
use rustix::process::{Pid, Signal, kill_process};

use super::plan::{Cpus, pages};
use super::rounds::{Effort, settle};
use super::text::table;

/// Seconds of a load with requests in flight under strace.
const SECONDS: f64 = 0.3;
/// Lone operations under strace, and the pause before each: the daemon waits for the next one when it comes.
const LONE: u64 = 300;
const PAUSE: Duration = Duration::from_millis(1);
/// Calls that are fewer for an operation are not named: those of attaching, and of threads that start.
const NAMED_MIN: f64 = 0.05;

fn loads() -> [(&'static str, Load); 10] {
    [
        ("READ 4 KiB", pages(Op::Read, Pattern::Seq, 1, 1)),
        ("READ 32 x 4 KiB", pages(Op::Read, Pattern::Seq, 32, 1)),
        ("READ 4 KiB, 16 in flight", pages(Op::Read, Pattern::Seq, 1, 16)),
        ("WRITE 32 x 4 KiB", pages(Op::Write, Pattern::Seq, 32, 1)),
        ("GETATTR", Load::Meta(Meta::Getattr)),
        ("LOOKUP known", Load::Meta(Meta::Lookup)),
        ("LOOKUP new", Load::Meta(Meta::LookupNew)),
        ("OPEN + RELEASE", Load::Meta(Meta::OpenRelease)),
        ("CREATE + RELEASE + UNLINK", Load::Meta(Meta::CreateUnlink)),
        ("small file: LOOKUP, OPEN, READ, RELEASE", Load::Meta(Meta::SmallFile)),
    ]
}

/// A strace that counts the calls of some processes and all their threads.
struct Tracer(Child);

impl Tracer {
    /// Attaches to `processes`, and waits until it has.
    fn attach(processes: &[u32], out: &Path) -> Result<Self, Failure> {
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-o"]).arg(out);
        command.args(processes.iter().flat_map(|process| ["-p".to_owned(), process.to_string()]));
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|e| format!("strace: {e}; install it as root, with: apt-get install strace"))?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("strace has no standard error")?).lines();
        let mut said = String::new();
        let mut left = processes.len();
        while left > 0 {
            let Some(line) = lines.next() else {
                child.wait()?;
                return Err(format!("strace cannot trace the daemons: {said}").into());
            };
            said = line?;
            left -= usize::from(said.contains(" attached"));
        }
        // It tells of each new thread; without a reader it would end.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self(child))
    }

    /// Detaches, and writes its counts.
    fn detach(mut self) -> Result<(), Failure> {
        kill_process(Pid::from_child(&self.0), Signal::INT)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Calls by name, from the summary of strace -c.
fn counts(summary: &str) -> BTreeMap<String, u64> {
    let count = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, calls) = (*words.last()?, words.get(3)?);
        if name == "total" { None } else { Some((name.to_owned(), calls.parse().ok()?)) }
    };
    summary.lines().filter_map(count).collect()
}

/// The sum for an operation, and the calls that make it up.
fn describe(counts: &BTreeMap<String, u64>, operations: u64) -> (String, String) {
    let per = |calls: u64| calls as f64 / operations.max(1) as f64;
    let mut named: Vec<_> = counts.iter().map(|(name, calls)| (per(*calls), name)).filter(|(calls, _)| *calls >= NAMED_MIN).collect();
    named.sort_by(|a, b| b.0.total_cmp(&a.0));
    let names: Vec<String> = named.iter().map(|(calls, name)| format!("{name} {calls:.2}")).collect();
    (format!("{:.2}", named.iter().fold(0.0, |sum, (calls, _)| sum + calls)), names.join(", "))
}

/// The table for the targets named `names`, with the guest sleeping on another CPU.
pub fn system_calls(targets: &mut [Target], names: &[&str], effort: &Effort, scratch: &Path) -> Result<String, Failure> {
    let out = scratch.join("strace");
    let mut rows = Vec::new();
    for (what, load) in loads() {
        for name in names {
            let Some(target) = targets.iter_mut().find(|target| target.name() == *name) else {
                continue;
            };
            settle(target, Cpus::Two, false, effort)?;
            let pid = target.daemon().map(|daemon| daemon.pid).ok_or("the floor has no daemon to trace")?;
            let tracer = Tracer::attach(&cpu::process_tree(pid), &out)?;
            let operations = match load {
                Load::Io(Io { depth, .. }) if depth > 1 => target.measure(load, SECONDS)?.counts.operations,
                _ => target.lone(load, LONE, PAUSE)?,
            };
            tracer.detach()?;
            let (sum, calls) = describe(&counts(&fs::read_to_string(&out)?), operations);
            let daemon = if *name == super::daemons::GATHERFS { *name } else { "virtiofsd" };
            rows.push(vec![what.to_owned(), daemon.to_owned(), sum, calls]);
        }
    }
    let head = ["operation", "daemon ", "calls", "which "];
    Ok(format!(
        "## System calls per operation\n\nCounted by `strace -f -c`, guest sleeping, tmpfs, virtiofsd in its default configuration. {LONE} operations with \
         a pause before each, so that waiting for the kick is counted, unless requests are in flight; those a daemon takes in other batches under \
         strace than without.\n\n{}",
        table(&head, &rows)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000600           6       100           preadv2
 39.00    0.000390           3       130        30 epoll_wait
  1.00    0.000010           1         1           mmap
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000           4       231        30 total
";

    #[test]
    fn calls_are_counted_with_and_without_errors() {
        let counts = counts(SUMMARY);
        assert_eq!((counts.len(), counts["preadv2"], counts["epoll_wait"], counts["mmap"]), (3, 100, 130, 1));
        assert_eq!(describe(&counts, 100), ("2.30".into(), "epoll_wait 1.30, preadv2 1.00".into()));
        assert_eq!(describe(&BTreeMap::new(), 0), ("0.00".into(), String::new()));
    }
}
