//! The words of a command line: those of a `--config` file first, then those that were typed, then those
//! that `-o` lists stand for. The last one wins, so a file says what is usual and the command line what is
//! not; `-o` lists win as they do in virtiofsd.

use std::ffi::OsString;

use clap::FromArgMatches;
use clap::error::ErrorKind;

use super::arguments::Arguments;
use super::command::{command, short_command};
use super::compat::{self, CompatError};
use super::config_file::{self, FileError};
use super::diagnostics::diagnostic;

/// Why words are no command line. Each is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// No argument at all.
    #[error("usage: gatherfsd --shared-dir DIR --socket-path PATH [OPTION]...; gatherfsd --help lists the options")]
    NoArguments,
    /// Help or version were asked for, or a word makes no sense.
    #[error("{}", diagnostic(.0))]
    Clap(#[from] clap::Error),
    /// A `-o` list makes no sense.
    #[error(transparent)]
    Compat(#[from] CompatError),
    /// The file makes no sense.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Parses a command line; the first word is the program's name.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Arguments, ParseError> {
    let typed: Vec<OsString> = words.into_iter().collect();
    if typed.len() <= 1 {
        return Err(ParseError::NoArguments);
    }
    let first = read(&typed)?;
    if first.config.is_none() && first.compat_options.is_empty() {
        return Ok(first);
    }
    let mut all: Vec<OsString> = typed.iter().take(1).cloned().collect();
    if let Some(path) = &first.config {
        all.extend(config_file::words(path)?);
    }
    all.extend(typed.into_iter().skip(1));
    all.extend(compat::expand(&first.compat_options)?);
    Ok(read(&all)?)
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
    fn the_last_word_wins_and_a_flag_can_be_taken_back() {
        let a = parsed("--cache never --cache ALWAYS --xattr --xattr=false --readonly=true --log-level Debug --sandbox None").unwrap();
        assert_eq!((a.cache, a.log_level, a.sandbox), (Cache::Always, LogLevel::Debug, Sandbox::None));
        assert!(!a.xattr && a.readonly);
    }

    #[test]
    fn lists_win_over_words_wherever_they_stand() {
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
    fn a_flag_takes_no_value_but_true_and_false_and_none_from_the_next_word() {
        assert!(parsed("--xattr=maybe").unwrap_err().to_string().contains("--xattr"));
        assert!(parsed("--xattr false").unwrap_err().to_string().contains("write --OPTION=false"));
    }
}
