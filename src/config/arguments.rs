//! The options of the command line, with their help: the first paragraph of each is what `-h` shows, `--help` and the
//! manual page show all of it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::control_socket::ControlPath;
use super::queue_cpus::CpuLists;
use super::values::{
    Cache, InodeFileHandles, IoEngine, Locks, LogLevel, MigrationMode, MigrationOnError, Negotiation, Sandbox, Seccomp, Tmpfile,
};
use crate::device::PollTime;
use crate::host::{IdRule, XattrMap};

const SHARE: &str = "Share";
const SOCKET_AND_DEVICE: &str = "Socket and device";
const CACHING: &str = "Caching";
const PERFORMANCE: &str = "Performance";
const IDS_AND_ATTRIBUTES: &str = "Ids and attributes";
const SECURITY: &str = "Security";
const LOCKS: &str = "Locks";
const LOGGING: &str = "Logging";
/// Older spellings, options without effect (hidden from the help) and what management programs ask for.
pub const COMPATIBILITY: &str = "Compatibility";

/// A time in seconds, with or without decimals.
fn seconds(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    parsed.ok_or_else(|| "expected a number of seconds, 0 or more, for example 0.5".to_owned())
}

/// Longest `--reconnect-timeout`: nobody waits longer for a VMM to come back, and until then the files and locks of its guest are held.
const RECONNECT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// As [`seconds`], at most [`RECONNECT_MAX`].
fn reconnect_time(text: &str) -> Result<Duration, String> {
    let time = seconds(text).ok().filter(|time| *time <= RECONNECT_MAX);
    time.ok_or_else(|| format!("expected a number of seconds from 0 to {}, for example 0.5", RECONNECT_MAX.as_secs()))
}

/// Longest `--poll-us`: a thread that looks for a second keeps its CPU busy all the time, and longer looks add nothing to that.
const POLL_US_MAX: u64 = 1_000_000;

/// `auto`, or microseconds.
fn poll_time(text: &str) -> Result<PollTime, String> {
    if text == "auto" {
        return Ok(PollTime::Auto);
    }
    let us = text.parse().ok().filter(|us| *us <= POLL_US_MAX);
    us.map(|us| PollTime::Fixed(Duration::from_micros(us)))
        .ok_or_else(|| format!("expected auto or a number of microseconds up to {POLL_US_MAX}, for example 50"))
}

/// Shares a host directory with a virtual machine: virtio-fs over vhost-user, for QEMU and other VMMs
#[derive(Debug, Clone, Parser)]
#[command(name = "gatherfsd", version, max_term_width = 100, args_override_self = true)]
pub struct Arguments {
    /// Read options from a TOML file; the command line overrides it
    ///
    /// Keys are the names of the long options, without dashes. Flags are true or false, options that may be repeated take
    /// a list.
    #[arg(long, value_name = "FILE", help_heading = SHARE)]
    pub config: Option<PathBuf>,

    /// Directory to share, or a single file
    #[arg(long, value_name = "DIR", help_heading = SHARE)]
    pub shared_dir: Option<PathBuf>,

    /// Share read-only: changes fail with EROFS
    #[arg(long, help_heading = SHARE)]
    pub readonly: bool,

    /// Report mount points below the share to the guest [default]
    ///
    /// The guest sees a mount point as one, and the files below it have an st_dev of their own.
    #[arg(long, overrides_with = "no_announce_submounts", default_value_t = true, help_heading = SHARE)]
    pub announce_submounts: bool,

    /// Do not report mount points below the share to the guest
    #[arg(long, help_heading = SHARE)]
    pub no_announce_submounts: bool,

    /// How to hold inodes known to the guest
    ///
    /// File handles need CAP_DAC_READ_SEARCH, and their number is not limited. Descriptors count towards --rlimit-nofile.
    #[arg(long, value_enum, value_name = "HOW", default_value = "prefer", help_heading = SHARE)]
    pub inode_file_handles: InodeFileHandles,

    /// Limit of open files (RLIMIT_NOFILE); 0: unchanged
    ///
    /// [default: the highest limit allowed, at most 1000000]
    #[arg(long, value_name = "N", help_heading = SHARE)]
    pub rlimit_nofile: Option<u64>,

    /// Which guests may create unnamed files (O_TMPFILE)
    ///
    /// With its upper layer on a share that supports O_TMPFILE, overlayfs before Linux 7.2 loses track of files (ESTALE),
    /// unless the fix was backported.
    #[arg(long, value_enum, value_name = "GUESTS", default_value = "auto", help_heading = SHARE)]
    pub tmpfile: Tmpfile,

    /// Path of the Unix socket to listen on (vhost-user)
    ///
    /// A stale socket at this path is replaced. PATH.pid contains the process id while the daemon runs.
    #[arg(long, value_name = "PATH", help_heading = SOCKET_AND_DEVICE)]
    pub socket_path: Option<PathBuf>,

    /// Group of the socket, as name or number
    ///
    /// Members of the group may connect. [default: only the daemon's user may connect]
    #[arg(long, value_name = "GROUP", help_heading = SOCKET_AND_DEVICE)]
    pub socket_group: Option<String>,

    /// Path of the control socket; none: no such socket
    ///
    /// gatherfsctl(1) connects to it, as root or as the daemon's user. With --no-keeper there is none.
    /// [default: the path of --socket-path with .control behind it, if a socket can be made there; none with --fd]
    #[arg(long, value_name = "PATH", help_heading = SOCKET_AND_DEVICE)]
    pub control_socket: Option<ControlPath>,

    /// Inherited listening socket, instead of --socket-path
    #[arg(long, value_name = "FD", help_heading = SOCKET_AND_DEVICE)]
    pub fd: Option<i32>,

    /// Do not exit when the VMM disconnects: wait for the next one
    #[arg(long, help_heading = SOCKET_AND_DEVICE)]
    pub keep_listening: bool,

    /// Limit for a VMM to connect again and go on [default: 10]
    ///
    /// In seconds, for example 0.5; 0: it cannot. Until then the guest's files and locks are kept after the VMM disconnects, and the
    /// daemon does not exit. Only for a VMM that asks for it (INFLIGHT_SHMFD), as Cloud Hypervisor does; QEMU does not. Not with
    /// --no-keeper.
    #[arg(long, value_name = "TIME", value_parser = reconnect_time, help_heading = SOCKET_AND_DEVICE)]
    pub reconnect_timeout: Option<Duration>,

    /// Mount tag offered to the VMM [default: gatherfs]
    ///
    /// QEMU ignores it and uses its own tag=.
    #[arg(long, value_name = "TAG", help_heading = SOCKET_AND_DEVICE)]
    pub tag: Option<String>,

    /// Request queues offered to the VMM, 1 to 64 [default: one per CPU]
    ///
    /// QEMU ignores it and uses its own num-request-queues=.
    #[arg(long, value_name = "N", help_heading = SOCKET_AND_DEVICE)]
    pub num_request_queues: Option<u16>,

    /// Maximum size of a READ or WRITE, in pages of 4096 bytes
    ///
    /// A queue of N entries carries at most N-4 pages. [default: what the queue carries]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = SOCKET_AND_DEVICE)]
    pub max_pages: Option<u16>,

    /// Maximum number of threads per queue; 0 and 1: default of 16
    ///
    /// Threads are started while requests wait, and exit when idle.
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true, help_heading = SOCKET_AND_DEVICE)]
    pub thread_pool_size: usize,

    /// Limit for the requests of a queue that the VMM stops [default: 60]
    ///
    /// In seconds, for example 0.5. Requests that the host has not completed by then are answered with EIO. The limit also
    /// applies to closing the guest's files.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = SOCKET_AND_DEVICE)]
    pub stop_timeout: Option<Duration>,

    /// What the guest may cache
    #[arg(long, value_enum, value_name = "POLICY", default_value = "auto", ignore_case = true, help_heading = CACHING)]
    pub cache: Cache,

    /// How long the guest may cache name lookups (entry timeout)
    ///
    /// In seconds, for example 0.5. [default: set by --cache]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = CACHING)]
    pub entry_timeout: Option<Duration>,

    /// How long the guest may cache attributes
    ///
    /// In seconds, for example 0.5. [default: set by --cache]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = CACHING)]
    pub attr_timeout: Option<Duration>,

    /// How long the guest may cache that a name does not exist
    ///
    /// In seconds, for example 0.5. [default: 0 with --cache auto and never, 86400 with always and metadata]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = CACHING)]
    pub negative_timeout: Option<Duration>,

    /// Adapt the timeouts to changes by other host processes
    ///
    /// Only with --cache auto. The guest caches unchanged files for up to 60 s and revalidates files that change. With
    /// CAP_SYS_ADMIN, all changes in the file system are seen, except through mmap; otherwise only changes that are
    /// made through a name in directories that the guest knows. No effect on network and FUSE file systems.
    #[arg(long, help_heading = CACHING)]
    pub watch: bool,

    /// Enable the writeback cache: the guest writes dirty pages later
    #[arg(long, help_heading = CACHING)]
    pub writeback: bool,

    /// Allow mmap with --cache never and metadata
    #[arg(long, help_heading = CACHING)]
    pub allow_mmap: bool,

    /// Pass O_DIRECT of the guest on to the host
    #[arg(long, help_heading = CACHING)]
    pub allow_direct_io: bool,

    /// Disable READDIRPLUS: list directories without attributes
    #[arg(long, help_heading = CACHING)]
    pub no_readdirplus: bool,

    /// How file data is read and written
    ///
    /// With auto, rings are made if --allow-direct-io is given, one for each request queue (--num-request-queues).
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "auto", help_heading = PERFORMANCE)]
    pub io_engine: IoEngine,

    /// Time to look for the next request before sleeping
    ///
    /// In microseconds, at most 1000000; 0: never. auto: up to 50, while requests come close together and a CPU is free for it.
    #[arg(long, value_name = "auto|N", default_value = "auto", value_parser = poll_time, help_heading = PERFORMANCE)]
    pub poll_us: PollTime,

    /// Keep guest memory in RAM and registered with io_uring
    ///
    /// Saves CPU time of direct I/O (Linux 6.15). Needs a limit of locked memory (RLIMIT_MEMLOCK) of the guest's size; the host
    /// cannot swap out or reclaim guest memory, by a balloon for example.
    #[arg(long, help_heading = PERFORMANCE)]
    pub pin_guest_memory: bool,

    /// CPUs of the threads that serve each request queue
    ///
    /// LISTS is a list of CPUs for each queue, such as 0-3,8, separated by colons, or one list for all of them: 0-3:4-7 binds the
    /// threads of the first queue to CPUs 0 to 3, and those of the second to 4 to 7. Threads of hiprio are not bound.
    /// [default: no thread is bound]
    #[arg(long, value_name = "LISTS", help_heading = PERFORMANCE)]
    pub queue_cpus: Option<CpuLists>,

    /// Enable extended attributes
    #[arg(long, help_heading = IDS_AND_ATTRIBUTES)]
    pub xattr: bool,

    /// Rename, hide or reject extended attributes
    ///
    /// Rules as of virtiofsd, for example :map::user.virtiofs.: or :prefix:all:trusted.:user.virtiofs.: (any delimiter).
    /// Implies --xattr.
    #[arg(long, value_name = "RULES", help_heading = IDS_AND_ATTRIBUTES)]
    pub xattrmap: Option<XattrMap>,

    /// POSIX ACLs
    ///
    /// --posix-acl without MODE is always. Implies --xattr.
    #[arg(long, value_enum, require_equals = true, num_args = 0..=1, default_value = "never", default_missing_value = "always")]
    #[arg(value_name = "MODE", help_heading = IDS_AND_ATTRIBUTES)]
    pub posix_acl: Negotiation,

    /// Security labels of new files, such as of SELinux
    ///
    /// The label that the guest sends is stored when the file is created. --security-label without MODE is always. Implies
    /// --xattr.
    #[arg(long, value_enum, require_equals = true, num_args = 0..=1, default_value = "never", default_missing_value = "always")]
    #[arg(value_name = "MODE", help_heading = IDS_AND_ATTRIBUTES)]
    pub security_label: Negotiation,

    /// Clear setuid, setgid and capabilities of changed files on the host
    ///
    /// Saves the guest a request before each WRITE. [default: if the shared directory is on ext4, XFS, btrfs, tmpfs or f2fs]
    #[arg(long, overrides_with = "no_killpriv_v2", help_heading = IDS_AND_ATTRIBUTES)]
    pub killpriv_v2: bool,

    /// Leave clearing them to the guest
    #[arg(long, overrides_with = "killpriv_v2", help_heading = IDS_AND_ATTRIBUTES)]
    pub no_killpriv_v2: bool,

    /// Translate user ids between guest and host (repeatable)
    ///
    /// RULE is guest:GUEST:HOST:COUNT, host:HOST:GUEST:COUNT, squash-guest:GUEST:HOST:COUNT, squash-host:HOST:GUEST:COUNT,
    /// forbid-guest:GUEST:COUNT or map:GUEST:HOST:COUNT (both directions). Other ids are not translated.
    #[arg(long, value_name = "RULE", help_heading = IDS_AND_ATTRIBUTES)]
    pub translate_uid: Vec<IdRule>,

    /// Translate group ids, as --translate-uid (repeatable)
    #[arg(long, value_name = "RULE", help_heading = IDS_AND_ATTRIBUTES)]
    pub translate_gid: Vec<IdRule>,

    /// Allow the guest to change project ids (chattr -p, +P)
    ///
    /// The guest can then leave the project quota that the host set for the share. Without this option it gets EPERM.
    #[arg(long, help_heading = IDS_AND_ATTRIBUTES)]
    pub allow_project_ids: bool,

    /// Pass O_NOATIME of the guest on to the host
    ///
    /// An open for which the daemon lacks the permission (open(2)) fails with EPERM.
    #[arg(long, help_heading = IDS_AND_ATTRIBUTES)]
    pub preserve_noatime: bool,

    /// Tell the guest the birth times of files (STATX)
    ///
    /// Programs that ask for it, as those written in Rust and for Node.js do with every stat, then take one more request for each
    /// file. Without this option files in the guest have no birth time.
    #[arg(long, help_heading = IDS_AND_ATTRIBUTES)]
    pub birth_times: bool,

    /// How the daemon is isolated from the host
    #[arg(long, value_enum, value_name = "MODE", default_value = "namespace", ignore_case = true, help_heading = SECURITY)]
    pub sandbox: Sandbox,

    /// Action on a system call that is not allowed
    #[arg(long, value_enum, value_name = "ACTION", default_value = "kill", help_heading = SECURITY)]
    pub seccomp: Seccomp,

    /// Capabilities to add to or drop from the default set
    ///
    /// Separated by colons, for example +sys_admin:-chown.
    #[arg(long, value_name = "CHANGES", allow_hyphen_values = true, help_heading = SECURITY)]
    pub modcaps: Option<String>,

    /// User ids of the user namespace (repeatable)
    ///
    /// RANGE is :ID_IN_NAMESPACE:ID_ON_HOST:COUNT: (any delimiter). Only with --sandbox namespace and not as root. Ids other
    /// than the daemon's own need newuidmap(1). [default: the daemon's user id, unchanged]
    #[arg(long, value_name = "RANGE", help_heading = SECURITY)]
    pub uid_map: Vec<String>,

    /// Group ids of the user namespace, as --uid-map (repeatable)
    #[arg(long, value_name = "RANGE", help_heading = SECURITY)]
    pub gid_map: Vec<String>,

    /// Serve in the process that owns the VMM's connection
    ///
    /// By default that process, the keeper, starts another one that serves, the worker, and passes the VMM's messages on. With this
    /// option there is one process less, for example for a debugger.
    #[arg(long, help_heading = SECURITY)]
    pub no_keeper: bool,

    /// Where the guest's fcntl and flock locks are held
    #[arg(long, value_enum, value_name = "WHERE", default_value = "guest", help_heading = LOCKS)]
    pub locks: Locks,

    /// How long a request may wait for a lock, with --locks host
    ///
    /// In seconds, for example 0.5; then it fails with ENOLCK. [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = LOCKS)]
    pub lock_wait: Option<Duration>,

    /// What is logged
    ///
    /// RUST_LOG overrides it when the log goes to standard error.
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info", ignore_case = true, help_heading = LOGGING)]
    pub log_level: LogLevel,

    /// Log to syslog (/dev/log) instead of standard error
    #[arg(long, help_heading = LOGGING)]
    pub syslog: bool,

    /// Deprecated spelling of --socket-path
    #[arg(long, value_name = "PATH", help_heading = COMPATIBILITY)]
    pub socket: Option<PathBuf>,

    /// Deprecated list of options, as for older virtiofsd
    ///
    /// KEY or KEY=VALUE, separated by commas; ,, is a comma in a value. The list overrides other options.
    #[arg(short = 'o', value_name = "KEY[=VALUE],...", help_heading = COMPATIBILITY)]
    pub compat_options: Vec<String>,

    /// Deprecated spelling of --log-level debug
    #[arg(short = 'd', help_heading = COMPATIBILITY)]
    pub compat_debug: bool,

    /// No effect: the daemon always stays in the foreground
    #[arg(short = 'f', hide = true, help_heading = COMPATIBILITY)]
    pub compat_foreground: bool,

    /// No effect, since migration is not supported: how inodes are found on the target [default: find-paths]
    #[arg(long, value_enum, value_name = "MODE", hide = true, help_heading = COMPATIBILITY)]
    pub migration_mode: Option<MigrationMode>,

    /// No effect, since migration is not supported: what happens if an inode is not found [default: abort]
    #[arg(long, value_enum, value_name = "ACTION", hide = true, help_heading = COMPATIBILITY)]
    pub migration_on_error: Option<MigrationOnError>,

    /// No effect, since migration is not supported: compare file handles on the target
    #[arg(long, hide = true, help_heading = COMPATIBILITY)]
    pub migration_verify_handles: bool,

    /// No effect, since migration is not supported: check paths before the end
    #[arg(long, hide = true, help_heading = COMPATIBILITY)]
    pub migration_confirm_paths: bool,

    /// Print the supported features as JSON (vhost-user.json) and exit
    #[arg(long, help_heading = COMPATIBILITY)]
    pub print_capabilities: bool,

    /// The whole line, with what a `--config` file and `-o` lists stand for.
    #[arg(skip)]
    pub line: Vec<OsString>,
}

impl Arguments {
    /// The level of the log; `-d` sets it to debug.
    pub fn log_level(&self) -> LogLevel {
        if self.compat_debug { LogLevel::Debug } else { self.log_level }
    }
}
