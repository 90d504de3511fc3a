//! The system calls that the daemon may make once it serves (man seccomp(2)), each with its user. Knows no
//! more of the daemon than this list.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

/// What becomes of a call that is not on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    /// The process ends with SIGSYS.
    Kill,
    /// It is made, and written to the kernel's log.
    Log,
    /// It is not made; the thread gets SIGSYS.
    Trap,
    /// There is no list.
    None,
}

/// fchmodat2(2) has one number everywhere; not every C library knows it.
const FCHMODAT2: c_long = 452;

/// Calls with any arguments, each with who makes it.
const CALLS: &[(c_long, &str)] = &[
    // Names and attributes.
    (libc::SYS_statx, "LOOKUP, GETATTR; the sizes of memory regions"),
    (libc::SYS_fstat, "the C library"),
    (libc::SYS_newfstatat, "the C library"),
    (libc::SYS_fstatfs, "STATFS"),
    (libc::SYS_name_to_handle_at, "LOOKUP of a new file"),
    (libc::SYS_open_by_handle_at, "OPEN; a file that was not used for a while"),
    (libc::SYS_openat, "OPEN through the descriptors' directory; the C library"),
    (libc::SYS_openat2, "LOOKUP, CREATE, TMPFILE: one component, no links"),
    (libc::SYS_readlinkat, "READLINK"),
    (libc::SYS_mkdirat, "MKDIR"),
    (libc::SYS_mknodat, "MKNOD"),
    (libc::SYS_symlinkat, "SYMLINK"),
    (libc::SYS_linkat, "LINK"),
    (libc::SYS_unlinkat, "UNLINK, RMDIR; removing the socket"),
    (libc::SYS_renameat2, "RENAME2"),
    (libc::SYS_fchmodat, "SETATTR of the mode"),
    (FCHMODAT2, "SETATTR of the mode"),
    (libc::SYS_fchownat, "SETATTR of the owner"),
    (libc::SYS_truncate, "SETATTR of the size"),
    (libc::SYS_ftruncate, "SETATTR of the size; the arena of records"),
    (libc::SYS_utimensat, "SETATTR of times"),
    (libc::SYS_getdents64, "READDIR, READDIRPLUS"),
    (libc::SYS_getxattr, "GETXATTR"),
    (libc::SYS_setxattr, "SETXATTR"),
    (libc::SYS_listxattr, "LISTXATTR"),
    (libc::SYS_removexattr, "REMOVEXATTR"),
    (libc::SYS_fgetxattr, "GETXATTR of an open file"),
    (libc::SYS_fsetxattr, "SETXATTR of an open file"),
    (libc::SYS_flistxattr, "LISTXATTR of an open file"),
    (libc::SYS_fremovexattr, "REMOVEXATTR of an open file"),
    // Data.
    (libc::SYS_preadv2, "READ"),
    (libc::SYS_pwritev2, "WRITE"),
    (libc::SYS_preadv, "READ where a C library has no preadv2"),
    (libc::SYS_pwritev, "WRITE where a C library has no pwritev2"),
    (libc::SYS_pread64, "the C library"),
    (libc::SYS_lseek, "LSEEK, READDIR; the sizes of memory regions"),
    (libc::SYS_fallocate, "FALLOCATE; the arena of records"),
    (libc::SYS_copy_file_range, "COPY_FILE_RANGE"),
    (libc::SYS_fsync, "FSYNC, FSYNCDIR"),
    (libc::SYS_fdatasync, "FSYNC of data"),
    (libc::SYS_syncfs, "SYNCFS"),
    (libc::SYS_flock, "FLOCK"),
    (libc::SYS_dup, "FLUSH"),
    (libc::SYS_close, "every descriptor"),
    // On whose behalf: the calling thread alone.
    (libc::SYS_setresuid, "creating as the caller"),
    (libc::SYS_setresgid, "creating as the caller"),
    (libc::SYS_setgroups, "creating as the caller"),
    (libc::SYS_capget, "permission checks off, or setuid bits cleared, for one operation"),
    (libc::SYS_capset, "as capget"),
    (libc::SYS_geteuid, "the daemon's own ids"),
    (libc::SYS_getegid, "the daemon's own ids"),
    (libc::SYS_getuid, "the C library"),
    (libc::SYS_getgid, "the C library"),
    (libc::SYS_fchdir, "a serving thread enters the descriptors' directory"),
    (libc::SYS_umask, "creating with the guest's umask"),
    // The monitor.
    (libc::SYS_accept4, "a monitor connects"),
    (libc::SYS_recvmsg, "vhost-user messages with descriptors"),
    (libc::SYS_sendmsg, "vhost-user replies"),
    (libc::SYS_shutdown, "the end of a connection"),
    (libc::SYS_getsockopt, "the peer's credentials, socket errors"),
    (libc::SYS_getsockname, "the standard library's sockets"),
    (libc::SYS_read, "eventfds, pipes"),
    (libc::SYS_write, "the call to the guest; the log"),
    (libc::SYS_readv, "the standard library"),
    (libc::SYS_writev, "the standard library's standard error"),
    (libc::SYS_recvfrom, "signals' own socket"),
    (libc::SYS_eventfd2, "wake-ups"),
    (libc::SYS_epoll_create1, "a queue's thread"),
    (libc::SYS_epoll_ctl, "a queue's thread"),
    (libc::SYS_epoll_pwait, "a queue's thread"),
    (libc::SYS_ppoll, "waiting for a monitor"),
    (libc::SYS_fanotify_init, "watching the share"),
    (libc::SYS_fanotify_mark, "watching the share"),
    // Memory.
    (libc::SYS_munmap, "guest memory, thread stacks, the heap"),
    (libc::SYS_mremap, "the heap"),
    (libc::SYS_madvise, "the heap; memory that is given back"),
    (libc::SYS_brk, "the heap"),
    (libc::SYS_memfd_create, "the arena of records; the log of dirty pages"),
    (libc::SYS_membarrier, "the C library"),
    // Threads, time and signals.
    (libc::SYS_clone3, "threads; answered with ENOSYS, see `WITHOUT_CLONE3`"),
    (libc::SYS_futex, "locks"),
    (libc::SYS_set_robust_list, "a thread starts"),
    (libc::SYS_rseq, "a thread starts"),
    (libc::SYS_set_tid_address, "a thread starts"),
    (libc::SYS_sched_getaffinity, "a thread starts; the number of CPUs"),
    (libc::SYS_sched_yield, "spinning"),
    (libc::SYS_gettid, "the C library"),
    (libc::SYS_getpid, "the C library"),
    (libc::SYS_clock_gettime, "time where the vDSO has none"),
    (libc::SYS_clock_getres, "the C library"),
    (libc::SYS_gettimeofday, "time where the vDSO has none"),
    (libc::SYS_clock_nanosleep, "sleeping"),
    (libc::SYS_nanosleep, "sleeping, in older C libraries"),
    (libc::SYS_restart_syscall, "a wait goes on after a signal or a tracer"),
    (libc::SYS_getrandom, "hash tables"),
    (libc::SYS_rt_sigaction, "panic and abort; the signals' thread"),
    (libc::SYS_rt_sigprocmask, "the signals' thread; abort"),
    (libc::SYS_rt_sigreturn, "the end of a signal handler"),
    (libc::SYS_sigaltstack, "a thread starts or ends"),
    (libc::SYS_getcwd, "a panic's backtrace"),
    (libc::SYS_exit, "a thread ends"),
    (libc::SYS_exit_group, "the daemon ends"),
];

/// Calls of this architecture only, or of its C libraries.
#[cfg(target_arch = "x86_64")]
const CALLS_OF_ARCH: &[(c_long, &str)] = &[
    (libc::SYS_epoll_wait, "a queue's thread"),
    (libc::SYS_poll, "waiting for a monitor"),
    (libc::SYS_open, "musl"),
    (libc::SYS_stat, "musl"),
    (libc::SYS_lstat, "musl"),
    (libc::SYS_readlink, "a panic's backtrace"),
    (libc::SYS_time, "time where the vDSO has none"),
];
#[cfg(not(target_arch = "x86_64"))]
const CALLS_OF_ARCH: &[(c_long, &str)] = &[];

/// Requests of ioctl(2): 32 bits wide (linux/fs.h, linux/fsverity.h, asm-generic/ioctls.h).
const IOCTLS: &[(u32, &str)] = &[
    (0x8008_6601, "FS_IOC_GETFLAGS: IOCTL"),
    (0x4008_6602, "FS_IOC_SETFLAGS: IOCTL"),
    (0x801c_581f, "FS_IOC_FSGETXATTR: IOCTL"),
    (0x401c_5820, "FS_IOC_FSSETXATTR: IOCTL"),
    (0x4080_6685, "FS_IOC_ENABLE_VERITY: IOCTL"),
    (0xc004_6686, "FS_IOC_MEASURE_VERITY: IOCTL"),
    (0x5421, "FIONBIO: the listening socket"),
    (0x5451, "FIOCLEX: the standard library's descriptors"),
    (0x5401, "TCGETS: whether standard error is a terminal"),
];

/// Commands of fcntl(2).
const FCNTLS: &[(i32, &str)] = &[
    (libc::F_DUPFD, "duplicates"),
    (libc::F_DUPFD_CLOEXEC, "FLUSH; the listener for a session"),
    (libc::F_GETFD, "debug builds look at what they close"),
    (libc::F_SETFD, "descriptors from the monitor"),
    (libc::F_GETFL, "descriptors from the monitor"),
    (libc::F_SETFL, "descriptors from the monitor"),
    (libc::F_OFD_GETLK, "GETLK"),
    (libc::F_OFD_SETLK, "SETLK"),
    (libc::F_ADD_SEALS, "the arena of records"),
    (libc::F_GET_SEALS, "guest memory"),
];

/// Options of prctl(2).
const PRCTLS: &[(i32, &str)] =
    &[(libc::PR_SET_NAME, "a thread starts"), (libc::PR_GET_NAME, "a thread starts"), (libc::PR_SET_VMA, "the C library names its memory")];

/// What a thread shares with the others; what would make a process or namespaces instead must be off.
const OF_A_THREAD: u64 = (libc::CLONE_THREAD | libc::CLONE_VM) as u64;
const OF_A_PROCESS: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_VFORK) as u64;

/// The flags of clone3(2) lie in memory, where a filter cannot look. Told that there is no such call, the C
/// library uses clone(2).
const WITHOUT_CLONE3: SeccompAction = SeccompAction::Errno(libc::ENOSYS as u32);

/// Installs the filter in every thread of this process, for good; `None` installs nothing.
pub fn install(wanted: Seccomp) -> Result<(), seccompiler::Error> {
    let refused = match wanted {
        Seccomp::Kill => SeccompAction::KillProcess,
        Seccomp::Log => SeccompAction::Log,
        Seccomp::Trap => SeccompAction::Trap,
        Seccomp::None => return Ok(()),
    };
    let list = program(rules()?, refused, SeccompAction::Allow)?;
    let clone3 = program(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), SeccompAction::Allow, WITHOUT_CLONE3)?;
    // The list comes last: seccomp(2) is not on it. Where both speak, the stricter counts.
    seccompiler::apply_filter_all_threads(&clone3)?;
    seccompiler::apply_filter_all_threads(&list)
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn program(rules: Rules, mismatch: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, mismatch, matched, arch)?.try_into()
}

fn rules() -> Result<Rules, BackendError> {
    let mut rules: Rules = CALLS.iter().chain(CALLS_OF_ARCH).map(|(call, _)| (*call, Vec::new())).collect();
    let one_of = |argument, values: &mut dyn Iterator<Item = u64>| -> Result<Vec<SeccompRule>, BackendError> {
        values.map(|value| SeccompRule::new(vec![SeccompCondition::new(argument, Dword, Eq, value)?])).collect()
    };
    rules.insert(libc::SYS_ioctl, one_of(1, &mut IOCTLS.iter().map(|(n, _)| u64::from(*n)))?);
    rules.insert(libc::SYS_fcntl, one_of(1, &mut FCNTLS.iter().map(|(n, _)| *n as u64))?);
    rules.insert(libc::SYS_prctl, one_of(0, &mut PRCTLS.iter().map(|(n, _)| *n as u64))?);
    // A serving thread's own working directory; no namespace.
    rules.insert(libc::SYS_unshare, one_of(0, &mut [libc::CLONE_FS as u64].into_iter())?);
    // Abort, and SIGSYS of the standard library: signals to itself.
    rules.insert(libc::SYS_tgkill, one_of(0, &mut [u64::from(std::process::id())].into_iter())?);
    // musl aborts through tkill(2), which names a thread and no process: nothing but an abort, and only there.
    if cfg!(target_env = "musl") {
        rules.insert(libc::SYS_tkill, one_of(1, &mut [libc::SIGABRT as u64].into_iter())?);
    }
    let all = |conditions: Vec<Result<SeccompCondition, BackendError>>| -> Result<Vec<SeccompRule>, BackendError> {
        Ok(vec![SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)?])
    };
    let threads = MaskedEq(OF_A_THREAD | OF_A_PROCESS);
    rules.insert(libc::SYS_clone, all(vec![SeccompCondition::new(0, Qword, threads, OF_A_THREAD)])?);
    // Guest memory, the heap and thread stacks: nothing that can be run.
    let data = || SeccompCondition::new(2, Dword, MaskedEq(libc::PROT_EXEC as u64), 0);
    rules.insert(libc::SYS_mmap, all(vec![data()])?);
    rules.insert(libc::SYS_mprotect, all(vec![data()])?);
    // A thread asks how large its stack may be; the limits stay.
    let own = SeccompCondition::new(0, Dword, Eq, 0);
    rules.insert(libc::SYS_prlimit64, all(vec![own, SeccompCondition::new(2, Qword, Eq, 0)])?);
    // A signal handler wakes the signals' thread by a socket that is connected: no address.
    rules.insert(libc::SYS_sendto, all(vec![SeccompCondition::new(4, Qword, Eq, 0)])?);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_listed_twice_and_each_names_its_user() {
        let mut seen = std::collections::HashSet::new();
        for (call, user) in CALLS.iter().chain(CALLS_OF_ARCH) {
            assert!(seen.insert(*call), "system call {call} is listed twice");
            assert!(!user.is_empty(), "system call {call} has no user");
        }
        let users = IOCTLS.iter().map(|(_, u)| u).chain(FCNTLS.iter().map(|(_, u)| u)).chain(PRCTLS.iter().map(|(_, u)| u));
        assert!(users.into_iter().all(|user| !user.is_empty()));
    }

    #[test]
    fn what_leads_out_is_not_listed() {
        let rules = rules().unwrap();
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
        ];
        for call in ways_out {
            assert!(!rules.contains_key(&call), "system call {call}");
        }
    }

    #[test]
    fn a_thread_of_an_unnamed_process_gets_signals_only_where_the_c_library_aborts_so() {
        let rules = rules().unwrap();
        assert_eq!(rules.get(&libc::SYS_tkill).map(Vec::len), cfg!(target_env = "musl").then_some(1));
        assert_eq!(rules[&libc::SYS_tgkill].len(), 1);
    }

    #[test]
    fn calls_that_nobody_makes_are_not_listed() {
        let rules = rules().unwrap();
        for call in [libc::SYS_timerfd_create, libc::SYS_pwrite64, libc::SYS_fchmod, libc::SYS_fchown, libc::SYS_faccessat2] {
            assert!(!rules.contains_key(&call), "system call {call}");
        }
    }

    #[test]
    fn the_filter_fits_the_kernels_limit() {
        let list = program(rules().unwrap(), SeccompAction::KillProcess, SeccompAction::Allow).unwrap();
        // BPF_MAXINSNS.
        assert!(list.len() < 4096, "{} instructions", list.len());
    }
}
