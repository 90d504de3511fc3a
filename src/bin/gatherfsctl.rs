//! gatherfsctl: asks a gatherfsd that runs, by its control socket.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Parser;
use gatherfs::config::{CtlAction, CtlArguments};
use gatherfs::outer::{self, Answer};

fn main() -> ExitCode {
    // clap ends the process with status 2 where the command line is invalid.
    let arguments = CtlArguments::parse();
    match ask(&arguments) {
        Ok(Answer::Ok(text)) => {
            // The reader of standard output may have gone.
            let _ = writeln!(std::io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Ok(Answer::Refused(text)) => fail(&text),
        Err(text) => fail(&text),
    }
}

fn ask(arguments: &CtlArguments) -> Result<Answer, String> {
    let path = &arguments.socket_path;
    let answer = match &arguments.action {
        CtlAction::Status => outer::ask(path, outer::STATUS, None),
        CtlAction::Upgrade { program: None, force } => outer::ask(path, request(*force), None),
        CtlAction::Upgrade { program: Some(program), force } => {
            let file = File::open(program).map_err(|e| format!("cannot open {}: {e}; give the file of a gatherfsd", program.display()))?;
            outer::ask(path, request(*force), Some(file.as_fd()))
        }
    };
    answer.map_err(|e| e.to_string())
}

fn request(force: bool) -> &'static str {
    if force { outer::UPGRADE_FORCE } else { outer::UPGRADE }
}

fn fail(text: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "gatherfsctl: {text}");
    ExitCode::FAILURE
}
