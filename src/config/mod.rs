//! The command lines: parsing and checks. Each room gets its own options; no room reads these.
//!
//! `command_line.rs` joins a `--config` file (`config_file.rs`), the arguments and their `-o` lists (`compat.rs`) into one
//! command line; `diagnostics.rs` formats the errors of clap; `checks.rs` finds options that do not go together;
//! `queue_cpus.rs` does so for CPUs; `deprecations.rs` and `policy_summary.rs` are for the log at start.
#![forbid(unsafe_code)]

mod arguments;
mod backend;
mod checks;
mod command;
mod command_line;
mod compat;
mod config_file;
mod control_socket;
mod ctl;
mod deprecations;
mod diagnostics;
mod inherited_socket;
mod listen;
mod pid_file;
mod policy_summary;
mod queue_cpus;
mod values;

pub use arguments::Arguments;
pub use backend::capabilities;
pub use checks::{Checked, ConfigError, IoOptions, check};
pub use command::command;
pub use command_line::{ParseError, parse, parse_line};
pub use compat::CompatError;
pub use config_file::FileError;
pub use control_socket::{ControlError, ControlPath, ControlPlace};
pub use ctl::{CtlAction, CtlArguments, ctl_command};
pub use deprecations::{Deprecation, deprecations};
pub use inherited_socket::{KeptDescriptors, kept_descriptors, with_inherited_socket};
pub use listen::{ListenError, Listening, SocketFile, listen};
pub use policy_summary::PolicySummary;
pub use queue_cpus::{CpuLists, CpuListsError, QueueCpusError};
pub use values::{
    Cache, InodeFileHandles, IoEngine, Locks, LogLevel, MigrationMode, MigrationOnError, Negotiation, Sandbox, Seccomp, Tmpfile,
};
