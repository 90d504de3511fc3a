//! Values of the options that take one of a list.

use clap::ValueEnum;

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
    /// An older name of prefer
    #[value(hide = true)]
    Fallback,
    /// Keep a file handle or refuse
    Mandatory,
}

/// `--locks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Locks {
    /// Held by the guest's kernel: they exclude processes of one guest, and a signal ends a wait
    Guest,
    /// Held on the host: other guests and host processes see them; a wait cannot be killed under Linux
    Host,
}

/// `--tmpfile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tmpfile {
    /// Guests of FUSE 7.46 (Linux 7.3) and newer, whose overlayfs bears it
    Auto,
    /// Every guest
    Always,
    /// No guest
    Never,
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

/// `--migration-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MigrationMode {
    /// By paths below the share
    FindPaths,
    /// By file handles
    FileHandles,
}

/// `--migration-on-error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MigrationOnError {
    /// End the migration
    Abort,
    /// Let the guest see errors
    GuestError,
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
