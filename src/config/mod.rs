//! The command line: parses what the user wishes and checks it. Each room gets its own options; no room
//! reads these.
#![forbid(unsafe_code)]

mod checks;
mod listen;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::host::{IdRule, XattrMap};

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
    /// Own mount, pid and network namespaces with the share as root
    Namespace,
    /// The share as root
    Chroot,
    /// No change of root
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

/// `--posix-acl` and `--security-label`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Negotiation {
    /// Do without
    Never,
    /// Where guest and file system have it
    Auto,
    /// Refuse a guest without it
    Always,
}

/// Shares a host directory with a virtual machine: a virtio-fs device that QEMU and other monitors attach
/// to by vhost-user.
#[derive(Debug, Clone, Parser)]
#[command(name = "gatherfsd", version, max_term_width = 100)]
#[command(after_help = "Signals: SIGTERM and SIGINT finish what is in flight and end; SIGUSR1 prints the counters as one line of JSON.")]
pub struct Arguments {
    /// Directory to share
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

    /// Clear setuid, setgid and capabilities of changed files on the host: one request less for a change
    #[arg(long, overrides_with = "no_killpriv_v2")]
    pub killpriv_v2: bool,

    /// Leave that to the guest [default]
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

    /// How inodes that the guest knows are kept: as file handles (no limit; needs CAP_DAC_READ_SEARCH) or
    /// as open descriptors
    #[arg(long, value_enum, value_name = "HOW", default_value = "prefer")]
    pub inode_file_handles: InodeFileHandles,

    /// How the daemon is confined [default: namespace for root, none for other users]
    #[arg(long, value_enum, value_name = "MODE")]
    pub sandbox: Option<Sandbox>,

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
