//! Parses the command line: the options of a `--config` file, then the arguments, then the options that `-o` lists stand for.
//! The last one wins: arguments override the file, and `-o` lists override arguments as in virtiofsd.

use std::ffi::OsString;

use clap::FromArgMatches;
use clap::error::ErrorKind;

use super::arguments::Arguments;
use super::command::{command, short_command};
use super::compat::{self, CompatError};
use super::config_file::{self, FileError};
use super::diagnostics::diagnostic;

/// Why the command line is invalid. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// No argument at all.
    #[error("usage: gatherfsd --shared-dir DIR --socket-path PATH [OPTION]...; gatherfsd --help lists the options")]
    NoArguments,
    /// `--help` or `--version`, or an invalid argument.
    #[error("{}", diagnostic(.0))]
    Clap(#[from] clap::Error),
    /// An invalid `-o` list.
    #[error(transparent)]
    Compat(#[from] CompatError),
    /// An invalid `--config` file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Parses a command line; the first argument is the program's name.
///
/// # Errors
/// No arguments, an invalid argument, `-o` list or `--config` file; `--help` and `--version` are [`ParseError::Clap`] too.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, ParseError> {
    let typed: Vec<OsString> = arguments.into_iter().collect();
    if typed.len() <= 1 {
        return Err(ParseError::NoArguments);
    }
    let first = read(&typed)?;
    if first.config.is_none() && first.compat_options.is_empty() {
        return Ok(Arguments { line: typed, ..first });
    }
    let mut all: Vec<OsString> = typed.iter().take(1).cloned().collect();
    if let Some(path) = &first.config {
        all.extend(config_file::arguments(path)?);
    }
    all.extend(typed.into_iter().skip(1));
    all.extend(compat::expand(&first.compat_options)?);
    parse_line(all)
}

/// Parses [`Arguments::line`] of another process. Reads no file.
///
/// # Errors
/// An argument that this program does not know or take.
pub fn parse_line(line: Vec<OsString>) -> Result<Arguments, ParseError> {
    let arguments = read(&line)?;
    Ok(Arguments { line, ..arguments })
}

fn read(arguments: &[OsString]) -> Result<Arguments, clap::Error> {
    let matches = command().try_get_matches_from(arguments).map_err(|e| {
        let is_short = e.kind() == ErrorKind::DisplayHelp && arguments.iter().any(|argument| argument == "-h");
        let short = is_short.then(|| short_command().try_get_matches_from(["gatherfsd", "-h"]).err());
        short.flatten().unwrap_or(e)
    })?;
    Arguments::from_arg_matches(&matches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::{Cache, LogLevel, Sandbox};

    fn parsed(line: &str) -> Result<Arguments, ParseError> {
        parse(std::iter::once("gatherfsd").chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn the_last_argument_wins_and_a_flag_can_be_disabled() {
        let a = parsed("--cache never --cache ALWAYS --xattr --xattr=false --readonly=true --log-level Debug --sandbox None").unwrap();
        assert_eq!((a.cache, a.log_level, a.sandbox), (Cache::Always, LogLevel::Debug, Sandbox::None));
        assert!(!a.xattr && a.readonly);
    }

    #[test]
    fn lists_override_arguments_wherever_they_stand() {
        let a = parsed("-o no_xattr,cache=none --xattr --cache auto -o source=/srv").unwrap();
        assert!(!a.xattr);
        assert_eq!((a.cache, a.shared_dir), (Cache::Never, Some("/srv".into())));
    }

    #[test]
    fn no_arguments_at_all_are_answered_with_the_usage_in_one_line() {
        let said = parsed("").unwrap_err().to_string();
        assert!(said.starts_with("usage: gatherfsd --shared-dir DIR") && said.contains("--help") && !said.contains('\n'), "{said}");
    }

    #[test]
    fn a_flag_takes_only_true_or_false_and_only_behind_an_equals_sign() {
        assert!(parsed("--xattr=maybe").unwrap_err().to_string().contains("--xattr"));
        assert!(parsed("--xattr false").unwrap_err().to_string().contains("write --OPTION=false"));
    }
}
