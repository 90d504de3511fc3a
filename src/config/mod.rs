//! The command line: parses what the user wishes and checks it. Each room gets its own options; no room
//! reads these.
#![forbid(unsafe_code)]

mod checks;
mod listen;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

pub use checks::{Checked, ConfigError, check};
pub use listen::{ListenError, Listening, SocketFile, listen};

/// `--cache`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cache {
    /// Names and attributes for a second; file contents until they change
    Auto,
    /// Everything for a day: only this guest changes the share
    Always,
    /// Nothing
    Never,
    /// Names and attributes for a day, no file contents
    Metadata,
}

/// `--inode-file-handles`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InodeFileHandles {
    /// Keep a descriptor open for each
    Never,
    /// Keep a file handle where that is possible
    Prefer,
    /// Keep a file handle or refuse
    Mandatory,
}

/// `--sandbox`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    /// Own mount, pid and network namespaces with the share as root; for users who are not root, in a user
    /// namespace
    Namespace,
    /// The share as root; only for root
    Chroot,
    /// No change of root
    None,
}

/// `--seccomp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Seccomp {
    /// End the daemon
    Kill,
    /// Make the call and write it to the kernel's log
    Log,
    /// Send SIGSYS to the thread
    Trap,
    /// Have no list
    None,
}

/// `--log-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Nothing
    Off,
    /// What went wrong
    Error,
    /// And what looks wrong
    Warn,
    /// And what the daemon does
    Info,
    /// And why
    Debug,
    /// And everything else
    Trace,
}

impl LogLevel {
    /// As the log filter spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Off => "off",
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// Shares a host directory with a virtual machine: a virtio-fs device that QEMU and other monitors attach
/// to by vhost-user.
#[derive(Debug, Clone, Parser)]
#[command(name = "gatherfsd", version, max_term_width = 100)]
#[command(after_help = "Signals: SIGTERM and SIGINT finish what is in flight and end; SIGUSR1 prints the counters as one line of JSON.")]
pub struct Arguments {
    /// Directory to share, or a single file
    #[arg(long, value_name = "DIR")]
    pub shared_dir: Option<PathBuf>,

    /// Unix socket to listen on; a stale one is replaced
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

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
    #[arg(long, value_enum, value_name = "POLICY", default_value = "auto")]
    pub cache: Cache,

    /// Refuse every change with EROFS
    #[arg(long)]
    pub readonly: bool,

    /// Let the guest keep dirty pages and write them back later
    #[arg(long)]
    pub writeback: bool,

    /// Open a file with O_DIRECT on the host when the guest does
    #[arg(long)]
    pub allow_direct_io: bool,

    /// Serve extended attributes
    #[arg(long)]
    pub xattr: bool,

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

    /// What is logged to standard error
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,
}
