//! The namespace sandbox of a user who is not root: a user namespace that owns the others, and its id maps (man
//! user_namespaces(7)). A process may map its own id without privileges. Other maps are written by the programs newuidmap and
//! newgidmap, according to /etc/subuid and /etc/subgid.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::process::{Gid, Pid, Uid, WaitOptions, getegid, geteuid, getpid};
use rustix::thread::UnshareFlags;

use super::error::{JailError, Step};
use super::id_map::{IdMaps, IdRange};
use crate::sys::process::{self, Side};

/// A program of the package uidmap and the ranges that it is to map.
struct Mapping {
    program: &'static str,
    option: &'static str,
    ranges: Vec<IdRange>,
}

/// A process that stays in the outer user namespace and maps the ids of this one.
struct Mapper {
    process: Pid,
    /// A byte written here starts the mapping.
    start: OwnedFd,
    /// Reads the error message; empty where the ids were mapped.
    failure: OwnedFd,
}

/// Moves the process to new user, mount and network namespaces, and its next child to a new pid namespace. Not for root. Call
/// it before any thread is started. [`JailError::UserNamespace`] where the kernel allows no user namespaces or refuses the map
/// of the own id, [`JailError::IdMap`] where newuidmap or newgidmap fails.
pub fn leave_host(maps: &IdMaps) -> Result<(), JailError> {
    let own = |ranges: &[IdRange], id: u32| {
        let itself = IdRange { inside: id, outside: id, count: 1 };
        if ranges.is_empty() { vec![itself] } else { ranges.to_vec() }
    };
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let (users, groups) = (own(&maps.uid, uid), own(&maps.gid, gid));
    let alone = |ranges: &[IdRange], id| matches!(ranges, [r] if r.outside == id && r.count == 1);
    let (alone_user, alone_group) = (alone(&users, uid), alone(&groups, gid));
    let mut mappings = Vec::new();
    if !alone_user {
        mappings.push(Mapping { program: "newuidmap", option: "--uid-map", ranges: users.clone() });
    }
    if !alone_group {
        mappings.push(Mapping { program: "newgidmap", option: "--gid-map", ranges: groups.clone() });
    }
    let mapper = if mappings.is_empty() { None } else { Some(start_mapper(&mappings)?) };
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWPID;
    process::unshare(flags).map_err(JailError::UserNamespace)?;
    if let Some(mapper) = mapper {
        mapper.map()?;
    }
    let map = |file: &str, r: IdRange| fs::write(file, format!("{} {} 1", r.inside, r.outside));
    if alone_user {
        map("/proc/self/uid_map", users[0]).map_err(JailError::UserNamespace)?;
    }
    if alone_group {
        // The kernel requires it: an unprivileged process could otherwise leave a group that denies access.
        fs::write("/proc/self/setgroups", "deny").map_err(JailError::UserNamespace)?;
        map("/proc/self/gid_map", groups[0]).map_err(JailError::UserNamespace)?;
    }
    Ok(())
}

/// Starts the process that maps. It waits for a byte from [`Mapper::map`].
fn start_mapper(mappings: &[Mapping]) -> Result<Mapper, JailError> {
    let cloexec = rustix::pipe::PipeFlags::CLOEXEC;
    let (wait, start) = rustix::pipe::pipe_with(cloexec).step("make a pipe")?;
    let (failure, report) = rustix::pipe::pipe_with(cloexec).step("make a pipe")?;
    let mapped = getpid();
    match process::fork().step("start a process that maps ids")? {
        Side::Parent(process) => Ok(Mapper { process, start, failure }),
        Side::Child => {
            drop((start, failure));
            // End of file: unshare(2) failed, which the other process reports.
            if rustix::io::read(&wait, &mut [0]).is_ok_and(|n| n == 1) {
                let failure = mappings.iter().find_map(|m| run(m, mapped).err());
                let _ = rustix::io::write(&report, failure.unwrap_or_default().as_bytes());
            }
            process::end_now(0)
        }
    }
}

/// Runs the program of `mapping` for process `mapped`. The error is a message for the user.
fn run(mapping: &Mapping, mapped: Pid) -> Result<(), String> {
    let Mapping { program, option, ranges } = mapping;
    let mut command = Command::new(program);
    command.arg(mapped.to_string());
    for range in ranges {
        command.args([range.inside, range.outside, range.count].map(|n| n.to_string()));
    }
    let output = command.output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!("{option} needs the program {program}, which is not installed; install the package uidmap"),
        _ => format!("{option}: {program} cannot be started: {e}"),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let file = if *program == "newuidmap" { "/etc/subuid" } else { "/etc/subgid" };
    Err(format!("{option} is refused ({}); give ranges that {file} allows this user, or add them there", message.trim()))
}

impl Mapper {
    /// Has the ids mapped and waits until they are. [`JailError::IdMap`] with the program's message where it fails.
    fn map(self) -> Result<(), JailError> {
        rustix::io::write(&self.start, &[1]).step("have ids mapped")?;
        let mut failure = String::new();
        File::from(self.failure).read_to_string(&mut failure).step("have ids mapped")?;
        rustix::process::waitpid(Some(self.process), WaitOptions::empty()).step("wait for the process that maps ids")?;
        if failure.is_empty() { Ok(()) } else { Err(JailError::IdMap(failure)) }
    }
}

/// Sets the user and group ids of this process to 0 where the maps have an id 0 in the namespace. An error where the kernel
/// refuses.
pub fn become_root(maps: &IdMaps) -> Result<(), JailError> {
    let has_root = |ranges: &[IdRange]| ranges.iter().any(|r| r.inside == 0);
    if has_root(&maps.gid) {
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step("become the namespace's root")?;
    }
    if has_root(&maps.uid) {
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step("become the namespace's root")?;
    }
    Ok(())
}
