//! The system calls that the serving process and the keeper may make (man seccomp(2)), each with the call site that needs it. A test holds
//! the call sites of this crate against the source text, and the crates against Cargo.lock.
//!
//! Only what is called after [`super::seal`] counts. rustix makes its calls directly, so they do not depend on the C library.

use libc::c_long;

use crate::sys::{ioctl, mode};

/// Where a call is made.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), expect(dead_code, reason = "documentation, which a test holds against the source text"))]
pub(super) enum Caller {
    /// This crate: a file below src/, and what its code says there.
    Here(&'static str, &'static str),
    /// A dependency, by its name in Cargo.lock, and the item of it.
    Crate(&'static str, &'static str),
    /// The standard library.
    Std(&'static str),
    /// The C library: glibc, or musl where a list says so.
    C(&'static str),
    /// The kernel itself.
    Kernel(&'static str),
}

use Caller::{C, Crate, Here, Kernel, Std};

/// Calls that are allowed with any arguments.
pub(super) const CALLS: &[(c_long, Caller)] = &[
    // Names and attributes.
    (libc::SYS_statx, Here("sys/stat.rs", "libc::statx(")),
    (libc::SYS_fstatfs, Here("sys/stat.rs", "rustix::fs::fstatvfs(")),
    (libc::SYS_name_to_handle_at, Here("sys/file_handle.rs", "libc::SYS_name_to_handle_at")),
    (libc::SYS_open_by_handle_at, Here("sys/file_handle.rs", "libc::SYS_open_by_handle_at")),
    (libc::SYS_openat, Here("sys/open.rs", "rustix::fs::openat(")),
    (libc::SYS_openat2, Here("sys/open.rs", "rustix::fs::openat2(")),
    (libc::SYS_readlinkat, Here("sys/names.rs", "rustix::fs::readlinkat(")),
    (libc::SYS_mkdirat, Here("sys/names.rs", "rustix::fs::mkdirat(")),
    (libc::SYS_mknodat, Here("sys/names.rs", "rustix::fs::mknodat(")),
    (libc::SYS_symlinkat, Here("sys/names.rs", "rustix::fs::symlinkat(")),
    (libc::SYS_linkat, Here("sys/names.rs", "rustix::fs::linkat(")),
    (libc::SYS_unlinkat, Here("sys/names.rs", "rustix::fs::unlinkat(")),
    (libc::SYS_renameat2, Here("sys/names.rs", "rustix::fs::renameat_with(")),
    (mode::SYS_FCHMODAT2, Here("sys/mode.rs", "SYS_FCHMODAT2")),
    (libc::SYS_fchmodat, Here("sys/mode.rs", "rustix::fs::chmodat(")),
    (libc::SYS_fchownat, Here("sys/attributes.rs", "rustix::fs::chownat(")),
    (libc::SYS_ftruncate, Here("sys/space.rs", "rustix::fs::ftruncate(")),
    (libc::SYS_utimensat, Here("sys/attributes.rs", "rustix::fs::utimensat(")),
    (libc::SYS_getdents64, Here("sys/dirent.rs", "libc::SYS_getdents64")),
    (libc::SYS_getxattr, Here("sys/xattr.rs", "rustix::fs::getxattr(")),
    (libc::SYS_setxattr, Here("sys/xattr.rs", "rustix::fs::setxattr(")),
    (libc::SYS_listxattr, Here("sys/xattr.rs", "rustix::fs::listxattr(")),
    (libc::SYS_removexattr, Here("sys/xattr.rs", "rustix::fs::removexattr(")),
    (libc::SYS_fgetxattr, Here("sys/xattr.rs", "rustix::fs::fgetxattr_query(")),
    // Data.
    (libc::SYS_preadv2, Here("sys/vectored.rs", "libc::preadv2(")),
    (libc::SYS_pwritev2, Here("sys/vectored.rs", "libc::pwritev2(")),
    (libc::SYS_lseek, Here("sys/space.rs", "rustix::fs::seek(")),
    (libc::SYS_fallocate, Here("sys/space.rs", "rustix::fs::fallocate(")),
    (libc::SYS_copy_file_range, Here("sys/space.rs", "rustix::fs::copy_file_range(")),
    (libc::SYS_fsync, Here("sys/descriptor.rs", "rustix::fs::fsync(")),
    (libc::SYS_fdatasync, Here("sys/descriptor.rs", "rustix::fs::fdatasync(")),
    (libc::SYS_syncfs, Here("sys/descriptor.rs", "rustix::fs::syncfs(")),
    (libc::SYS_flock, Here("sys/lock.rs", "rustix::fs::flock(")),
    (libc::SYS_close, Here("sys/descriptor.rs", "libc::close(")),
    // Credentials of the calling thread.
    (libc::SYS_setresuid, Here("sys/identity.rs", "libc::SYS_setresuid")),
    (libc::SYS_setresgid, Here("sys/identity.rs", "libc::SYS_setresgid")),
    (libc::SYS_setgroups, Here("sys/identity.rs", "libc::SYS_setgroups")),
    (libc::SYS_capget, Here("sys/identity.rs", "caps::read(")),
    (libc::SYS_capset, Here("sys/identity.rs", "caps::set(")),
    (libc::SYS_fchdir, Here("sys/working_dir.rs", "rustix::process::fchdir(")),
    (libc::SYS_umask, Here("host/ops/create.rs", "rustix::process::umask(")),
    // The connection to the frontend.
    (libc::SYS_accept4, Crate("vhost", "Listener::accept")),
    (libc::SYS_recvmsg, Crate("vhost", "Endpoint::recv_into_iovec, through vmm-sys-util")),
    (libc::SYS_sendmsg, Crate("vhost", "Endpoint::send_iovec, through vmm-sys-util")),
    (libc::SYS_getsockopt, Crate("vhost", "get_socket_opt: the type of a socket that SET_BACKEND_REQ_FD brings")),
    (libc::SYS_shutdown, Crate("vhost-user-backend", "VhostUserDaemon::start_daemon, when the connection ends")),
    (libc::SYS_eventfd2, Here("sys/event.rs", "eventfd(0")),
    (libc::SYS_epoll_create1, Here("sys/event.rs", "epoll::create(")),
    (libc::SYS_epoll_ctl, Here("sys/event.rs", "epoll::add(")),
    (libc::SYS_epoll_pwait, Here("sys/event.rs", "epoll::wait(")),
    (libc::SYS_ppoll, Here("device/server.rs", "poll(")),
    (libc::SYS_read, Here("sys/fanotify.rs", "rustix::io::read(")),
    (libc::SYS_write, Here("sys/event.rs", "rustix::io::write(")),
    (libc::SYS_writev, C("__libc_message: why a corrupted heap or stack ends the process")),
    // Watching the share (--watch).
    (libc::SYS_fanotify_init, Here("sys/fanotify.rs", "libc::fanotify_init(")),
    (libc::SYS_fanotify_mark, Here("sys/fanotify.rs", "libc::fanotify_mark(")),
    // Memory.
    (libc::SYS_munmap, Here("guest/mapping.rs", "rustix::mm::munmap(")),
    (libc::SYS_mremap, Here("guest/mapping.rs", "rustix::mm::mremap_fixed(")),
    (libc::SYS_madvise, Here("state/arena.rs", "rustix::mm::madvise(")),
    (libc::SYS_brk, C("malloc")),
    (libc::SYS_memfd_create, Here("state/arena.rs", "rustix::fs::memfd_create(")),
    // Threads, time and signals.
    (libc::SYS_clone3, C("pthread_create; answered with ENOSYS, see `WITHOUT_CLONE3`")),
    // What an earlier worker has left open.
    (libc::SYS_close_range, Here("sys/descriptor.rs", "libc::SYS_close_range")),
    (libc::SYS_futex, Crate("parking_lot_core", "ThreadParker")),
    (libc::SYS_set_robust_list, C("a thread starts")),
    (libc::SYS_rseq, C("a thread starts")),
    (libc::SYS_sched_getaffinity, Here("sys/affinity.rs", "sched_getaffinity(")),
    (libc::SYS_sched_yield, Crate("parking_lot_core", "SpinWait")),
    (libc::SYS_gettid, Std("a thread starts")),
    (libc::SYS_getrusage, Here("sys/process.rs", "libc::getrusage(")),
    (libc::SYS_getpid, Here("sys/fanotify.rs", "std::process::id()")),
    (libc::SYS_clock_gettime, C("clock_gettime, where the kernel's vDSO does not read the clock source")),
    (libc::SYS_clock_nanosleep, Std("thread::sleep")),
    (libc::SYS_restart_syscall, Kernel("continues a wait that a signal or a tracer interrupted")),
    (libc::SYS_getrandom, Std("RandomState of HashMap")),
    (libc::SYS_rt_sigaction, C("pthread_create, for the first thread; abort")),
    (libc::SYS_rt_sigprocmask, Here("sys/signal.rs", "libc::pthread_sigmask(")),
    (libc::SYS_rt_sigreturn, Kernel("the end of a signal handler")),
    (libc::SYS_sigaltstack, Std("a thread starts or ends")),
    (libc::SYS_getcwd, Std("the backtrace of a panic")),
    (libc::SYS_exit, C("a thread ends")),
    (libc::SYS_exit_group, C("exit")),
];

/// Calls that only this architecture has.
#[cfg(target_arch = "x86_64")]
pub(super) const CALLS_OF_ARCH: &[(c_long, Caller)] =
    &[(libc::SYS_readlink, Std("the backtrace of a panic: /proc/self/exe, where the sandbox has no /proc/self/maps"))];
#[cfg(not(target_arch = "x86_64"))]
pub(super) const CALLS_OF_ARCH: &[(c_long, Caller)] = &[];

/// Calls that only musl makes.
#[cfg(target_env = "musl")]
pub(super) const CALLS_OF_MUSL: &[(c_long, Caller)] = &[
    (libc::SYS_preadv, C("musl: preadv2 without flags")),
    (libc::SYS_pwritev, C("musl: pwritev2 without flags")),
    (libc::SYS_fstat, C("musl: fstat")),
    (libc::SYS_newfstatat, C("musl: fstatat")),
    (libc::SYS_set_tid_address, C("musl: a detached thread ends, before 1.2")),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, C("musl: open")),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_stat, C("musl: stat")),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lstat, C("musl: lstat")),
];
#[cfg(not(target_env = "musl"))]
pub(super) const CALLS_OF_MUSL: &[(c_long, Caller)] = &[];

/// Calls that the keeper may make beyond those, and a worker before its own list is in force.
pub(super) const CALLS_OF_KEEPER: &[(c_long, Caller)] = &[
    // The worker.
    (libc::SYS_pidfd_send_signal, Here("sys/process.rs", "rustix::process::pidfd_send_signal(")),
    (libc::SYS_pidfd_open, Here("sys/process.rs", "libc::SYS_pidfd_open")),
    (libc::SYS_waitid, Here("sys/process.rs", "rustix::process::waitid(")),
    (libc::SYS_getppid, Here("sys/process.rs", "rustix::process::getppid(")),
    (libc::SYS_signalfd4, Here("sys/signal.rs", "libc::signalfd(")),
    // A frontend's connection to it.
    (libc::SYS_socketpair, Here("keeper/life.rs", "socketpair(")),
    (libc::SYS_socket, Here("keeper/connection.rs", "socket_with(")),
    (libc::SYS_bind, Here("keeper/connection.rs", "bind(")),
    (libc::SYS_getsockname, Here("keeper/connection.rs", "getsockname(")),
    (libc::SYS_listen, Here("keeper/connection.rs", "listen(")),
    (libc::SYS_connect, Here("keeper/connection.rs", "connect(")),
    // The worker's rings and its own list.
    (libc::SYS_io_uring_setup, Crate("io-uring", "Builder::build")),
    (libc::SYS_io_uring_enter, Crate("io-uring", "Submitter::submit")),
    (libc::SYS_io_uring_register, Crate("io-uring", "Submitter::register_restrictions")),
    (libc::SYS_seccomp, Crate("seccompiler", "apply_filter_all_threads")),
    // A program that takes over, and its examination.
    (libc::SYS_execveat, Here("sys/process.rs", "libc::SYS_execveat")),
    (libc::SYS_recvfrom, Here("keeper/program.rs", "recv(")),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_arch_prctl, C("a program begins")),
    (libc::SYS_set_tid_address, C("a program begins")),
    (libc::SYS_geteuid, Here("sys/identity.rs", "rustix::process::geteuid(")),
    (libc::SYS_getegid, Here("sys/identity.rs", "rustix::process::getegid(")),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, Std("a program begins: whether standard input, output and error are open")),
];

/// Calls of the dynamic linker, which the keeper may make where a program that takes over may be linked dynamically.
pub(super) const CALLS_OF_LINKER: &[(c_long, Caller)] = &[
    (libc::SYS_mmap, C("ld.so: memory that is executable")),
    (libc::SYS_mprotect, C("ld.so: memory that is executable")),
    (libc::SYS_pread64, C("ld.so: headers of a library")),
    (libc::SYS_newfstatat, C("ld.so: a library")),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_access, C("ld.so: /etc/ld.so.preload")),
    #[cfg(not(target_arch = "x86_64"))]
    (libc::SYS_faccessat, C("ld.so: /etc/ld.so.preload")),
];

/// Requests of ioctl(2). The filter compares their lower 32 bits.
pub(super) const IOCTLS: &[(u32, Caller)] = &[
    (ioctl::GET_FLAGS, Here("sys/ioctl.rs", "ioctl_getflags(")),
    (ioctl::SET_FLAGS, Here("sys/ioctl.rs", "ioctl_setflags(")),
    (ioctl::GET_ATTRIBUTES, Here("sys/ioctl.rs", "u64::from(GET_ATTRIBUTES)")),
    (ioctl::SET_ATTRIBUTES, Here("sys/ioctl.rs", "u64::from(SET_ATTRIBUTES)")),
    (ioctl::ENABLE_VERITY, Here("sys/ioctl.rs", "u64::from(ENABLE_VERITY)")),
    (ioctl::MEASURE_VERITY, Here("sys/ioctl.rs", "u64::from(MEASURE_VERITY)")),
];

/// Requests of ioctl(2) as of [`CALLS_OF_KEEPER`].
pub(super) const IOCTLS_OF_KEEPER: &[(u32, Caller)] = &[
    (0x5421, Std("FIONBIO: UnixStream::set_nonblocking, keeper/process.rs")),
    (0x5401, Std("TCGETS: IsTerminal, for the log of a program that takes over")),
];

/// Commands of fcntl(2).
pub(super) const FCNTLS: &[(i32, Caller)] = &[
    (libc::F_DUPFD_CLOEXEC, Here("sys/descriptor.rs", "rustix::io::fcntl_dupfd_cloexec(")),
    (libc::F_GETFD, Here("sys/descriptor.rs", "rustix::io::fcntl_getfd(")),
    (libc::F_OFD_GETLK, Here("sys/lock.rs", "libc::F_OFD_GETLK")),
    (libc::F_OFD_SETLK, Here("sys/lock.rs", "libc::F_OFD_SETLK")),
    #[cfg(target_env = "musl")]
    (libc::F_SETFD, C("musl: fcntl, behind F_DUPFD_CLOEXEC, for kernels that do not know that")),
];

/// Commands of fcntl(2) as of [`CALLS_OF_KEEPER`].
pub(super) const FCNTLS_OF_KEEPER: &[(i32, Caller)] = &[
    (libc::F_SETFD, Here("sys/descriptor.rs", "rustix::io::fcntl_setfd(")),
    (libc::F_GET_SEALS, Here("sys/descriptor.rs", "rustix::fs::fcntl_get_seals(")),
];

/// Options of prctl(2).
pub(super) const PRCTLS: &[(i32, Caller)] = &[
    (libc::PR_SET_NAME, Std("a thread starts")),
    (libc::PR_SET_VMA, C("malloc, where the tunable glibc.mem.decorate_maps is set (glibc 2.39)")),
];

/// Linux 6.4.
const PR_GET_AUXV: i32 = 0x4155_5856;

/// Options of prctl(2) as of [`CALLS_OF_KEEPER`].
pub(super) const PRCTLS_OF_KEEPER: &[(i32, Caller)] = &[
    (libc::PR_GET_DUMPABLE, Here("sys/process.rs", "rustix::process::dumpable_behavior(")),
    (libc::PR_SET_DUMPABLE, Here("sys/process.rs", "rustix::process::set_dumpable_behavior(")),
    (libc::PR_SET_PDEATHSIG, Here("sys/process.rs", "rustix::process::set_parent_process_death_signal(")),
    (libc::PR_SET_NO_NEW_PRIVS, Crate("seccompiler", "apply_filter_all_threads")),
    // A program that takes over.
    (libc::PR_CAP_AMBIENT, Here("sys/identity.rs", "CapSet::Ambient")),
    (PR_GET_AUXV, Crate("rustix", "param::page_size")),
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn everything() -> impl Iterator<Item = Caller> {
        let lists = [CALLS, CALLS_OF_ARCH, CALLS_OF_MUSL, CALLS_OF_KEEPER, CALLS_OF_LINKER];
        let calls = lists.into_iter().flatten().map(|(_, caller)| *caller);
        let commands = [FCNTLS, FCNTLS_OF_KEEPER, PRCTLS, PRCTLS_OF_KEEPER].into_iter().flatten().map(|(_, caller)| *caller);
        calls.chain(IOCTLS.iter().chain(IOCTLS_OF_KEEPER).map(|(_, caller)| *caller)).chain(commands)
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut seen = std::collections::HashSet::new();
        for (call, _) in CALLS.iter().chain(CALLS_OF_ARCH).chain(CALLS_OF_MUSL).chain(CALLS_OF_KEEPER) {
            assert!(seen.insert(*call), "system call {call} is listed twice");
        }
    }

    #[test]
    fn every_call_that_is_allowed_has_a_call_site() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let lock = fs::read_to_string(root.join("Cargo.lock")).unwrap();
        let is_missing = |caller: &Caller| match *caller {
            Here(file, code) => {
                let text = fs::read_to_string(root.join("src").join(file)).unwrap_or_default();
                let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
                !text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(code))
            }
            Crate(name, item) => item.is_empty() || !lock.contains(&format!("name = \"{name}\"\n")),
            Std(item) | C(item) | Kernel(item) => item.is_empty(),
        };
        let missing: Vec<String> = everything().filter(is_missing).map(|caller| format!("{caller:?}")).collect();
        assert!(missing.is_empty(), "allowed system calls without a call site; remove them from the list:\n{}", missing.join("\n"));
    }
}
