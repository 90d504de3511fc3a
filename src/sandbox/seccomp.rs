//! The seccomp filters of the serving process and of the keeper (man seccomp(2)): the calls of [`super::system_calls`], and those
//! that are allowed with certain arguments only.
//!
//! A process that the keeper starts inherits its filter and cannot leave it, so the keeper may make every call that a worker may.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use libc::c_long;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

use super::system_calls::{
    CALLS, CALLS_OF_ARCH, CALLS_OF_KEEPER, CALLS_OF_LINKER, CALLS_OF_MUSL, FCNTLS, FCNTLS_OF_KEEPER, IOCTLS, IOCTLS_OF_KEEPER, PRCTLS,
    PRCTLS_OF_KEEPER,
};
use crate::sys::uring::REGISTRATIONS;

/// What the kernel does with a call that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    /// Ends the process with SIGSYS.
    Kill,
    /// Makes the call and writes it to the kernel's log.
    Log,
    /// Sends SIGSYS to the thread and does not make the call.
    Trap,
    /// No filter is installed.
    None,
}

/// What is allowed where an option needs it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OptionalCalls {
    /// The descriptors of the io_uring rings that may be used.
    pub rings: Vec<RawFd>,
    /// Guest memory may be registered with them.
    pub registers_memory: bool,
    /// A thread may change its own affinity.
    pub binds_threads: bool,
}

/// Flags of clone(2) that must be set (a thread of this process), and flags that must not be set (processes, namespaces).
const OF_A_THREAD: u64 = word(libc::CLONE_THREAD | libc::CLONE_VM);
const OF_A_PROCESS: u64 = word(
    libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_VFORK,
);

/// The flags of clone3(2) are in memory, which a filter cannot read. The C library falls back to clone(2) on ENOSYS.
const WITHOUT_CLONE3: SeccompAction = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());

/// What the root directory of the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootDirectory {
    /// The host's.
    Host,
    /// The share, or what the guest can change otherwise: openat(2) of a path finds nothing there, and so neither does the C library or
    /// the standard library, which look for files of the host's.
    Share,
}

/// What openat(2) answers without a directory where the root directory is the share.
const WITHOUT_FILE: SeccompAction = SeccompAction::Errno(libc::ENOENT.cast_unsigned());

/// Installs the filter in every thread of this process. It cannot be removed. `None` installs nothing. An error
/// where the kernel has no seccomp filters, or where the process has neither CAP_SYS_ADMIN nor no_new_privs.
pub fn install(wanted: Seccomp, root: RootDirectory, optional: &OptionalCalls) -> Result<(), seccompiler::Error> {
    install_rules(wanted, root, rules(optional)?)
}

/// As [`install`], for the keeper, for what its workers do before they install their own, and for the program that takes over.
pub fn install_for_keeper(wanted: Seccomp, root: RootDirectory) -> Result<(), seccompiler::Error> {
    install_rules(wanted, root, rules_of_keeper(root)?)
}

fn install_rules(wanted: Seccomp, root: RootDirectory, rules: Rules) -> Result<(), seccompiler::Error> {
    let refused = match wanted {
        Seccomp::Kill => SeccompAction::KillProcess,
        Seccomp::Log => SeccompAction::Log,
        Seccomp::Trap => SeccompAction::Trap,
        Seccomp::None => return Ok(()),
    };
    let list = program(rules, refused, SeccompAction::Allow)?;
    let clone3 = program(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), SeccompAction::Allow, WITHOUT_CLONE3)?;
    // Two filters, because a filter has one action for all calls that match. The stricter action counts. The list comes last,
    // because that of the serving process does not allow seccomp(2).
    seccompiler::apply_filter_all_threads(&clone3)?;
    if root == RootDirectory::Share {
        let without_directory = (libc::SYS_openat, one_of(0, [word(libc::AT_FDCWD)].into_iter())?);
        // Of musl.
        #[cfg(all(target_env = "musl", target_arch = "x86_64"))]
        let paths = BTreeMap::from([without_directory, (libc::SYS_open, Vec::new())]);
        #[cfg(not(all(target_env = "musl", target_arch = "x86_64")))]
        let paths = BTreeMap::from([without_directory]);
        seccompiler::apply_filter_all_threads(&program(paths, SeccompAction::Allow, WITHOUT_FILE)?)?;
    }
    seccompiler::apply_filter_all_threads(&list)
}

/// A flag or command as the kernel compares it: 32 bits.
const fn word(value: i32) -> u64 {
    value.cast_unsigned() as u64
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn program(rules: Rules, mismatch: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, mismatch, matched, arch)?.try_into()
}

fn one_of(argument: u8, values: impl Iterator<Item = u64>) -> Result<Vec<SeccompRule>, BackendError> {
    values.map(|value| SeccompRule::new(vec![SeccompCondition::new(argument, Dword, Eq, value)?])).collect()
}

/// The calls of every worker, without the numbers of one, those of the keeper, and of a program that begins.
fn rules_of_keeper(root: RootDirectory) -> Result<Rules, BackendError> {
    let mut rules = rules(&OptionalCalls { binds_threads: true, ..OptionalCalls::default() })?;
    // In the share there must be no program that is linked when it begins.
    let of_linker = if root == RootDirectory::Host { CALLS_OF_LINKER } else { &[] };
    rules.extend(CALLS_OF_KEEPER.iter().chain(of_linker).map(|(call, _)| (*call, Vec::new())));
    let (ioctls, fcntls, prctls) = (IOCTLS_OF_KEEPER.iter(), FCNTLS_OF_KEEPER.iter(), PRCTLS_OF_KEEPER.iter());
    rules.entry(libc::SYS_ioctl).or_default().extend(one_of(1, ioctls.map(|(n, _)| u64::from(*n)))?);
    rules.entry(libc::SYS_fcntl).or_default().extend(one_of(1, fcntls.map(|(n, _)| word(*n)))?);
    rules.entry(libc::SYS_prctl).or_default().extend(one_of(0, prctls.map(|(n, _)| word(*n)))?);
    // sys/process.rs: asks whether there are other threads.
    rules.entry(libc::SYS_unshare).or_default().extend(one_of(0, [word(libc::CLONE_THREAD)].into_iter())?);
    // abort in a worker, whose process id is not known yet.
    rules.insert(libc::SYS_tgkill, Vec::new());
    // sys/process.rs: a worker, with memory of its own and in the same namespaces.
    let worker = MaskedEq(OF_A_THREAD | OF_A_PROCESS);
    let clone = SeccompRule::new(vec![SeccompCondition::new(0, Qword, worker, 0)?])?;
    rules.entry(libc::SYS_clone).or_default().push(clone);
    Ok(rules)
}

fn rules(optional: &OptionalCalls) -> Result<Rules, BackendError> {
    let mut rules: Rules = CALLS.iter().chain(CALLS_OF_ARCH).chain(CALLS_OF_MUSL).map(|(call, _)| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_ioctl, one_of(1, IOCTLS.iter().map(|(n, _)| u64::from(*n)))?);
    rules.insert(libc::SYS_fcntl, one_of(1, FCNTLS.iter().map(|(n, _)| word(*n)))?);
    rules.insert(libc::SYS_prctl, one_of(0, PRCTLS.iter().map(|(n, _)| word(*n)))?);
    // sys/working_dir.rs: the working directory of a serving thread. No namespaces.
    rules.insert(libc::SYS_unshare, one_of(0, [word(libc::CLONE_FS)].into_iter())?);
    // The C library's raise(3), for abort: signals to this process only.
    rules.insert(libc::SYS_tgkill, one_of(0, [u64::from(std::process::id())].into_iter())?);
    // musl's raise(3) uses tkill(2), which names a thread without its process: SIGABRT only.
    if cfg!(target_env = "musl") {
        rules.insert(libc::SYS_tkill, one_of(1, [word(libc::SIGABRT)].into_iter())?);
    }
    let all = |conditions: Vec<Result<SeccompCondition, BackendError>>| -> Result<Vec<SeccompRule>, BackendError> {
        Ok(vec![SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)?])
    };
    // The C library's pthread_create.
    let threads = MaskedEq(OF_A_THREAD | OF_A_PROCESS);
    rules.insert(libc::SYS_clone, all(vec![SeccompCondition::new(0, Qword, threads, OF_A_THREAD)])?);
    // guest/mapping.rs, vm-memory, malloc and thread stacks: memory that is not executable.
    let data = || SeccompCondition::new(2, Dword, MaskedEq(word(libc::PROT_EXEC)), 0);
    rules.insert(libc::SYS_mmap, all(vec![data()])?);
    rules.insert(libc::SYS_mprotect, all(vec![data()])?);
    // host/share.rs (RLIMIT_AS): reads limits of this process, and sets none.
    let own = SeccompCondition::new(0, Dword, Eq, 0);
    rules.insert(libc::SYS_prlimit64, all(vec![own, SeccompCondition::new(2, Qword, Eq, 0)])?);
    // trace/syslog.rs writes a line, and keeper/handover.rs what an examined program says: connected sockets, no address.
    rules.insert(libc::SYS_sendto, all(vec![SeccompCondition::new(4, Qword, Eq, 0)])?);
    // sys/affinity.rs: a thread that starts binds itself, and no other thread or process.
    if optional.binds_threads {
        rules.insert(libc::SYS_sched_setaffinity, one_of(0, [0].into_iter())?);
    }
    // sys/uring/in_flight.rs and sys/uring/buffers.rs: only the rings that were made before, which are restricted.
    // io_uring_setup(2) has its flags in memory, so that a filter could not tell a restricted ring from another one.
    if !optional.rings.is_empty() {
        rules.insert(libc::SYS_io_uring_enter, one_of(0, optional.rings.iter().map(|fd| word(*fd)))?);
    }
    if optional.registers_memory && !optional.rings.is_empty() {
        let fds = optional.rings.iter().flat_map(|fd| REGISTRATIONS.map(|registration| (*fd, registration)));
        let rule = |(fd, registration): (RawFd, u8)| -> Result<SeccompRule, BackendError> {
            SeccompRule::new(vec![
                SeccompCondition::new(0, Dword, Eq, word(fd))?,
                SeccompCondition::new(1, Dword, Eq, registration.into())?,
            ])
        };
        rules.insert(libc::SYS_io_uring_register, fds.map(rule).collect::<Result<_, _>>()?);
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_out_is_not_listed() {
        let rules = rules(&OptionalCalls::default()).unwrap();
        let ways_out = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_kill,
            libc::SYS_mount,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_io_uring_setup,
            libc::SYS_seccomp,
            // Threads bind themselves with --queue-cpus only.
            libc::SYS_sched_setaffinity,
        ];
        for call in ways_out {
            assert!(!rules.contains_key(&call), "system call {call}");
        }
    }

    #[test]
    fn the_keeper_may_make_every_call_of_a_worker_and_none_that_leads_out_of_the_sandbox() {
        let optional = OptionalCalls { rings: vec![5], registers_memory: true, binds_threads: true };
        let (keeper, worker) = (rules_of_keeper(RootDirectory::Share).unwrap(), rules(&optional).unwrap());
        for (call, conditions) in worker {
            let of_keeper = keeper.get(&call).unwrap_or_else(|| panic!("system call {call}"));
            let allows = of_keeper.is_empty() || conditions.iter().all(|condition| of_keeper.contains(condition));
            assert!(allows && (of_keeper.is_empty() || !conditions.is_empty()), "system call {call}");
        }
        // execveat(2) is for a file that is open, and keeps all limits.
        let ways_out = [
            libc::SYS_execve,
            libc::SYS_kill,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_pidfd_getfd,
            libc::SYS_mount,
            libc::SYS_chroot,
            libc::SYS_setns,
            libc::SYS_bpf,
        ];
        assert_eq!(ways_out.iter().find(|call| keeper.contains_key(call)), None);
    }

    #[test]
    fn a_thread_of_an_unnamed_process_gets_signals_only_where_the_c_library_aborts_so() {
        let rules = rules(&OptionalCalls::default()).unwrap();
        assert_eq!(rules.get(&libc::SYS_tkill).map(Vec::len), cfg!(target_env = "musl").then_some(1));
        assert_eq!(rules[&libc::SYS_tgkill].len(), 1);
    }

    #[test]
    fn a_thread_may_bind_itself_where_an_option_needs_it() {
        let optional = OptionalCalls { binds_threads: true, ..OptionalCalls::default() };
        let itself = SeccompRule::new(vec![SeccompCondition::new(0, Dword, Eq, 0).unwrap()]).unwrap();
        assert_eq!(rules(&optional).unwrap()[&libc::SYS_sched_setaffinity], [itself]);
    }

    #[test]
    fn the_filter_fits_the_kernels_limit() {
        let list = program(rules(&OptionalCalls::default()).unwrap(), SeccompAction::KillProcess, SeccompAction::Allow).unwrap();
        // BPF_MAXINSNS.
        assert!(list.len() < 4096, "{} instructions", list.len());
    }
}
