//! The options of the command line, with their help.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::values::{Cache, InodeFileHandles, Locks, LogLevel, MigrationMode, MigrationOnError, Negotiation, Sandbox, Seccomp, Tmpfile};
use crate::host::{IdRule, XattrMap};

/// A time in seconds, with decimals or without.
fn seconds(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    parsed.ok_or_else(|| "give a number of seconds, 0 or more, such as 0.5".to_owned())
}

/// Shares a host directory with a virtual machine: a virtio-fs device that QEMU and other monitors attach
/// to by vhost-user.
#[derive(Debug, Clone, Parser)]
#[command(name = "gatherfsd", version, max_term_width = 100, args_override_self = true)]
#[command(after_help = "An option that is given twice counts as given last; a flag can be taken back with =false.\n\n\
    Signals: SIGTERM, SIGINT and SIGHUP finish what is in flight and end; SIGUSR1 prints the counters as one line of JSON.")]
pub struct Arguments {
    /// Read options from this TOML file first: keys are the names of the long options; the command line wins
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Directory to share, or a single file
    #[arg(long, value_name = "DIR")]
    pub shared_dir: Option<PathBuf>,

    /// Unix socket to listen on; a stale one is replaced
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// An older name of --socket-path
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Group that owns the socket: a name or a number
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,

    /// Listening socket that was inherited as this descriptor, in place of --socket-path
    #[arg(long, value_name = "FD")]
    pub fd: Option<i32>,

    /// Name that the guest mounts, for monitors that ask the daemon for it; QEMU has its own tag= [default: gatherfs]
    #[arg(long, value_name = "TAG")]
    pub tag: Option<String>,

    /// Request queues, 1 to 64, for monitors that ask the daemon for the number; QEMU has its own
    /// num-request-queues= [default: one for each CPU]
    #[arg(long, value_name = "N")]
    pub num_request_queues: Option<u16>,

    /// What the guest may cache
    #[arg(long, value_enum, value_name = "POLICY", default_value = "auto", ignore_case = true)]
    pub cache: Cache,

    /// Largest READ or WRITE that a guest may send, in pages of 4096 bytes; a queue of N entries carries N-4
    /// at most [default: what the queue carries]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub max_pages: Option<u16>,

    /// Threads that serve one queue at most; 0 and 1 are the default of 16. They are started as requests pile up
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub thread_pool_size: usize,

    /// Seconds that the host may take for a request of a queue which the VMM stops, and for closing the guest's files; the
    /// request is answered with EIO then [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub stop_timeout: Option<Duration>,

    /// List directories without attributes
    #[arg(long)]
    pub no_readdirplus: bool,

    /// Tell the guest which directories are mount points [default]
    #[arg(long, overrides_with = "no_announce_submounts", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1)]
    #[arg(
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub announce_submounts: bool,

    /// Let mounts below the share look like part of it
    #[arg(long)]
    pub no_announce_submounts: bool,
    /// Seconds, also 0.5, for which the guest believes that a name is the file that it was [default: by --cache]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub entry_timeout: Option<Duration>,

    /// Seconds for which the guest believes a file's attributes [default: by --cache]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub attr_timeout: Option<Duration>,

    /// Seconds for which the guest believes that a name is not there [default: 0 for --cache auto and never, a
    /// day for always and metadata]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub negative_timeout: Option<Duration>,

    /// Watch the share for what other processes of the host change, with --cache auto: the guest believes for up to a
    /// minute what is quiet, and asks each time for what changes
    #[arg(long)]
    pub watch: bool,

    /// Let the guest map files with --cache never and metadata
    #[arg(long)]
    pub allow_mmap: bool,

    /// Refuse every change with EROFS
    #[arg(long)]
    pub readonly: bool,

    /// Let the guest keep dirty pages and write them back later
    #[arg(long)]
    pub writeback: bool,

    /// Open a file with O_DIRECT on the host when the guest does
    #[arg(long)]
    pub allow_direct_io: bool,

    /// Open a file with O_NOATIME on the host when the guest does; fails with EPERM where the daemon may not
    #[arg(long)]
    pub preserve_noatime: bool,

    /// Serve extended attributes
    #[arg(long)]
    pub xattr: bool,

    /// Let the guest change project ids and the flag that hands them on (chattr -p, +P), and so leave the project quota
    /// that the host set for the share [default: refused with EPERM]
    #[arg(long)]
    pub allow_project_ids: bool,

    /// Rename, hide or refuse extended attributes: rules such as :map::user.virtiofs.: or
    /// :prefix:all:trusted.:user.virtiofs.: (implies --xattr)
    #[arg(long, value_name = "RULES")]
    pub xattrmap: Option<XattrMap>,

    /// POSIX ACLs (implies --xattr) [without a mode: always]
    #[arg(long, value_enum, require_equals = true, num_args = 0..=1, default_value = "never", default_missing_value = "always", value_name = "MODE")]
    pub posix_acl: Negotiation,

    /// Store the label that the guest's security module gives a new file (implies --xattr) [without a mode: always]
    #[arg(long, value_enum, require_equals = true, num_args = 0..=1, default_value = "never", default_missing_value = "always", value_name = "MODE")]
    pub security_label: Negotiation,

    /// Clear setuid, setgid and capabilities of changed files on the host: fewer requests for a WRITE [default: where the
    /// shared directory is on ext4, XFS, btrfs, tmpfs or f2fs]
    #[arg(long, overrides_with = "no_killpriv_v2")]
    pub killpriv_v2: bool,

    /// Leave that to the guest
    #[arg(long, overrides_with = "killpriv_v2")]
    pub no_killpriv_v2: bool,

    /// What the guest's user ids are on the host and back: guest:GUEST:HOST:COUNT, host:HOST:GUEST:COUNT,
    /// squash-guest:GUEST:HOST:COUNT, squash-host:HOST:GUEST:COUNT, forbid-guest:GUEST:COUNT or
    /// map:GUEST:HOST:COUNT (both ways); may be given several times
    #[arg(long, value_name = "RULE")]
    pub translate_uid: Vec<IdRule>,

    /// As --translate-uid, for group ids
    #[arg(long, value_name = "RULE")]
    pub translate_gid: Vec<IdRule>,

    /// Where the guest's locks (fcntl and flock) are held
    #[arg(long, value_enum, value_name = "WHERE", default_value = "guest")]
    pub locks: Locks,

    /// Seconds that a wait for a lock may take with --locks host, also 0.5; then it fails with ENOLCK [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub lock_wait: Option<Duration>,

    /// Which guests may make files without a name (O_TMPFILE): an overlayfs of Linux before 7.2, unless it was mended
    /// since, loses track of files when its upper layer lies on a share that can
    #[arg(long, value_enum, value_name = "GUESTS", default_value = "auto")]
    pub tmpfile: Tmpfile,

    /// How inodes that the guest knows are kept: as file handles (no limit; needs CAP_DAC_READ_SEARCH) or
    /// as open descriptors
    #[arg(long, value_enum, value_name = "HOW", default_value = "prefer")]
    pub inode_file_handles: InodeFileHandles,

    /// How the daemon is confined
    #[arg(long, value_enum, value_name = "MODE", default_value = "namespace", ignore_case = true)]
    pub sandbox: Sandbox,

    /// What to do about a system call that is not on the daemon's list
    #[arg(long, value_enum, value_name = "ACTION", default_value = "kill")]
    pub seccomp: Seccomp,

    /// Capabilities to keep or to drop beside the default ones, such as +sys_admin:-chown
    #[arg(long, value_name = "CHANGES", allow_hyphen_values = true)]
    pub modcaps: Option<String>,

    /// Users of the user namespace, as :ID_IN_NAMESPACE:ID_ON_HOST:COUNT:; once for each range. Not for
    /// root [default: the daemon's own user as itself]
    #[arg(long, value_name = "RANGE")]
    pub uid_map: Vec<String>,

    /// Groups of the user namespace, as --uid-map
    #[arg(long, value_name = "RANGE")]
    pub gid_map: Vec<String>,

    /// Limit of open files; 0 leaves it as it is [default: what is allowed, up to a million]
    #[arg(long, value_name = "N")]
    pub rlimit_nofile: Option<u64>,

    /// Wait for the next monitor when one disconnects, instead of ending
    #[arg(long)]
    pub keep_listening: bool,

    /// What is logged; RUST_LOG, if set, decides instead where the log goes to standard error
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info", ignore_case = true)]
    pub log_level: LogLevel,

    /// Log to syslog (/dev/log) instead of standard error
    #[arg(long)]
    pub syslog: bool,

    /// How a migration finds inodes again; without effect, as a machine with this share cannot migrate [default: find-paths]
    #[arg(long, value_enum, value_name = "MODE")]
    pub migration_mode: Option<MigrationMode>,

    /// What a migration does about inodes that are lost; without effect, as a machine with this share cannot
    /// migrate [default: abort]
    #[arg(long, value_enum, value_name = "ACTION")]
    pub migration_on_error: Option<MigrationOnError>,

    /// Compare file handles after a migration; without effect, as a machine with this share cannot migrate
    #[arg(long)]
    pub migration_verify_handles: bool,

    /// Check paths before a migration's end; without effect, as a machine with this share cannot migrate
    #[arg(long)]
    pub migration_confirm_paths: bool,

    /// Print what a management program may rely on as JSON (vhost-user.json) and end
    #[arg(long)]
    pub print_capabilities: bool,

    /// Older spelling of options, as a list of KEY or KEY=VALUE with commas between (,, is a comma itself)
    #[arg(short = 'o', value_name = "KEY[=VALUE],...")]
    pub compat_options: Vec<String>,

    /// Older spelling of --log-level debug
    #[arg(short = 'd')]
    pub compat_debug: bool,

    /// Without effect: the daemon stays in the foreground anyway
    #[arg(short = 'f')]
    pub compat_foreground: bool,
}

impl Arguments {
    /// The level of the log, which `-d` raises.
    pub fn log_level(&self) -> LogLevel {
        if self.compat_debug { LogLevel::Debug } else { self.log_level }
    }
}
