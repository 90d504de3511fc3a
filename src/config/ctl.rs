//! The command line of gatherfsctl.

use std::path::PathBuf;

use clap::{Command, CommandFactory, Parser, Subcommand};

/// Controls a gatherfsd that runs: upgrade, status
#[derive(Debug, Clone, Parser)]
#[command(name = "gatherfsctl", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "Exit status: 0 done, 1 refused or no answer, 2 the command line is invalid.")]
pub struct CtlArguments {
    /// The daemon's --socket-path, or its --control-socket
    #[arg(long, value_name = "PATH")]
    pub socket_path: PathBuf,

    /// What to do
    #[command(subcommand)]
    pub action: CtlAction,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum CtlAction {
    /// Go on as another program, without an end of the guest's session
    Upgrade {
        /// The file of the program [default: the file that now has the path from which gatherfsd was started]
        ///
        /// gatherfsctl opens it, so it may be anywhere. Unless gatherfsd runs with --sandbox none it must be statically linked.
        #[arg(value_name = "PROGRAM")]
        program: Option<PathBuf>,

        /// End the process that serves where requests in flight are not finished within 1 s; else the upgrade is refused then
        ///
        /// They are executed again, as after a crash. A process that is in a call which cannot be interrupted ends when the host has
        /// finished that, and the guest waits as long.
        #[arg(long)]
        force: bool,
    },
    /// Print process id, version, mount tag, time since the start and what the daemon does
    Status,
}

/// The command, as parser, manual page and completions have it.
pub fn ctl_command() -> Command {
    CtlArguments::command()
}
