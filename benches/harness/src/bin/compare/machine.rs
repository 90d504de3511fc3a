//! The machine: its CPUs, and what a reader of the figures must know of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use gatherfs_harness::Failure;
use gatherfs_harness::load::cpu;

use super::plan::Cpus;

/// Which CPUs guest and daemon run on.
#[derive(Clone, Debug)]
pub struct CpuPlan {
    /// All that this process may use.
    all: Vec<usize>,
    /// One that shares no core with the first, where there is one.
    other: Option<usize>,
}

impl CpuPlan {
    /// From the CPUs that this process may use now.
    pub fn new() -> Result<Self, Failure> {
        let all = cpu::cpus()?;
        let first = *all.first().ok_or("there is no CPU to run on")?;
        let siblings = fs::read_to_string(format!("/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list"));
        let siblings = cpu_list(&siblings.unwrap_or_default());
        let apart = all.iter().skip(1).find(|cpu| !siblings.contains(cpu));
        Ok(Self { other: apart.or(all.get(1)).copied(), all })
    }

    /// The CPUs of the guest and those of the daemon.
    pub fn of(&self, cpus: Cpus) -> (Vec<usize>, Vec<usize>) {
        let first = vec![self.all[0]];
        match (cpus, self.other) {
            (Cpus::One, _) | (_, None) => (first.clone(), first),
            (Cpus::Two, Some(other)) => (first, vec![other]),
            (Cpus::Any, Some(_)) => (self.all.clone(), self.all.clone()),
        }
    }

    /// Whether guest and daemon can have a CPU each.
    pub fn has_two(&self) -> bool {
        self.other.is_some()
    }
}

/// A list of CPUs as "0-2,5".
fn cpu_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// The name of the file system of `path`.
pub fn file_system(path: &Path) -> String {
    let Ok(stat) = rustix::fs::statfs(path) else {
        return "?".to_owned();
    };
    match stat.f_type {
        0xef53 => "ext4".to_owned(),
        0x0102_1994 => "tmpfs".to_owned(),
        0x5846_5342 => "XFS".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        0x794c_7630 => "overlayfs".to_owned(),
        other => format!("file system {other:#x}"),
    }
}

/// The commit that is checked out in this directory.
pub fn commit() -> Option<String> {
    let said = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=9"]).stderr(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&said.stdout).trim().to_owned()).filter(|commit| !commit.is_empty())
}

/// What the machine is, one item a line of a Markdown list.
pub fn description(disk: &Path) -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = field(&cpuinfo, "model name").unwrap_or("?");
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = field(&memory, "MemTotal").and_then(|value| value.split(' ').next()?.parse().ok()).unwrap_or(0);
    let virtual_machine = if cpuinfo.split_whitespace().any(|flag| flag == "hypervisor") { ", in a virtual machine" } else { "" };
    let kernel = rustix::system::uname();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "- CPU: {model}, {count} CPUs{virtual_machine}; {:.0} GiB of memory; load average before the run {}\n- Kernel: Linux {}\n- Disk: {}\n",
        kib as f64 / f64::from(1 << 20),
        load.split(' ').next().unwrap_or("?"),
        kernel.release().to_string_lossy(),
        file_system(disk),
    )
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_have_ranges() {
        assert_eq!(cpu_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(cpu_list(""), Vec::<usize>::new());
    }

    #[test]
    fn guest_and_daemon_share_a_cpu_where_they_must() {
        let plan = CpuPlan { all: vec![3, 4, 5], other: Some(5) };
        assert_eq!(plan.of(Cpus::One), (vec![3], vec![3]));
        assert_eq!(plan.of(Cpus::Two), (vec![3], vec![5]));
        assert_eq!(plan.of(Cpus::Any).1, [3, 4, 5]);
        assert_eq!(CpuPlan { all: vec![3], other: None }.of(Cpus::Two), (vec![3], vec![3]));
    }

    #[test]
    fn the_machine_is_described() {
        let text = description(Path::new("/proc"));
        assert!(text.contains("CPUs") && text.contains("Linux ") && text.contains("file system 0x9fa0"), "{text}");
        assert_eq!(field("a : 1\nmodel name\t: X\n", "model name"), Some("X"));
    }
}
