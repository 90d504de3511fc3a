//! Values of the options that take one of a list.

use clap::ValueEnum;

/// `--cache`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cache {
    /// Lookups and attributes cached for 1 s; file data revalidated at open
    Auto,
    /// Lookups, attributes and file data cached for 24 h: only if nothing else changes the share
    Always,
    /// Nothing cached
    Never,
    /// Lookups and attributes cached for 24 h, no file data
    Metadata,
}

/// `--inode-file-handles`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InodeFileHandles {
    /// An open descriptor per inode
    Never,
    /// A file handle if the file system and the capabilities allow it, otherwise a descriptor
    Prefer,
    /// Deprecated spelling of prefer
    #[value(hide = true)]
    Fallback,
    /// A file handle; exit if the share has none
    Mandatory,
}

/// `--io-engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IoEngine {
    /// Direct I/O by io_uring if requests overlap and the kernel allows it, otherwise as sync
    Auto,
    /// By system calls of the queue's threads
    Sync,
    /// All by io_uring; exit if the kernel forbids it
    Uring,
}

/// `--locks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Locks {
    /// In the guest's kernel: other guests and the host do not see them; a signal interrupts a wait
    Guest,
    /// On the host: other guests and host processes see them; Linux guests cannot interrupt a wait
    Host,
}

/// `--tmpfile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tmpfile {
    /// Guests with FUSE 7.46 (Linux 7.3) or newer, whose overlayfs supports it
    Auto,
    /// All guests
    Always,
    /// No guest
    Never,
}

/// `--sandbox`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    /// Own mount, pid and network namespaces, with the share as root directory; in a user namespace if not run as root
    Namespace,
    /// chroot(2) to the share; requires root
    Chroot,
    /// The root directory and the namespaces of the host
    None,
}

/// `--migration-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MigrationMode {
    /// By paths relative to the share
    FindPaths,
    /// By file handles
    FileHandles,
}

/// `--migration-on-error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MigrationOnError {
    /// Abort the migration
    Abort,
    /// Return errors to the guest
    GuestError,
}

/// `--seccomp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Seccomp {
    /// Kill the daemon
    Kill,
    /// Allow it and write it to the kernel's log
    Log,
    /// Send SIGSYS to the thread
    Trap,
    /// No filter
    None,
}

/// `--log-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Nothing
    Off,
    /// Errors
    Error,
    /// Warnings, too
    Warn,
    /// Start, connections and mounts, too
    Info,
    /// Debugging detail, too
    Debug,
    /// Everything
    Trace,
}

impl LogLevel {
    /// The level as the log filter spells it.
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
    /// Disabled
    Never,
    /// Enabled if the guest and the file system support it
    Auto,
    /// Required, guests without support are rejected
    Always,
}
