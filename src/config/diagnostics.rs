//! Errors of clap as one sentence with the option and the fix, and suggestions for misspelt names.

use std::num::{IntErrorKind, ParseIntError};

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::command::command;

/// One sentence for `e`, without a full stop.
pub fn diagnostic(e: &clap::Error) -> String {
    let texts = |kind| match e.get(kind) {
        Some(ContextValue::String(s)) => vec![s.clone()],
        Some(ContextValue::Strings(s)) => s.clone(),
        Some(ContextValue::StyledStr(s)) => vec![s.to_string()],
        _ => Vec::new(),
    };
    let text = |kind| texts(kind).into_iter().next().unwrap_or_default();
    // With its value: "--cache <POLICY>".
    let whole = text(ContextKind::InvalidArg);
    let option = whole.split([' ', '[', '=']).next().unwrap_or_default();
    let value = text(ContextKind::InvalidValue);
    let possible = texts(ContextKind::ValidValue);
    let known = text(ContextKind::SuggestedArg);
    match e.kind() {
        ErrorKind::UnknownArgument if !option.starts_with('-') => {
            format!("unexpected argument '{whole}'; {}", advice_for(&whole))
        }
        ErrorKind::UnknownArgument if known.is_empty() => format!("unknown option '{option}'; gatherfsd --help lists the options"),
        ErrorKind::UnknownArgument => format!("unknown option '{option}'; did you mean {known}?"),
        ErrorKind::InvalidValue if value.is_empty() && possible.is_empty() => format!("missing value for {option}; write {whole}"),
        ErrorKind::InvalidValue if value.is_empty() => format!("missing value for {option}; expected {}", alternatives(&possible)),
        ErrorKind::InvalidValue => format!("invalid value '{value}' for {option}; expected {}", alternatives(&possible)),
        ErrorKind::ValueValidation => {
            let source = std::error::Error::source(e);
            let reason = match source.and_then(|source| source.downcast_ref::<ParseIntError>()).map(ParseIntError::kind) {
                Some(IntErrorKind::PosOverflow) => "the number is too large".to_owned(),
                Some(IntErrorKind::NegOverflow) => "the number is too small".to_owned(),
                Some(_) => "expected an integer".to_owned(),
                None => source.map(ToString::to_string).unwrap_or_default(),
            };
            format!("invalid value '{value}' for {option}: {reason}")
        }
        ErrorKind::TooManyValues => format!("unexpected value '{value}' for {option}; write {option} alone"),
        ErrorKind::NoEquals => format!("missing = before the value of {option}; write {whole}"),
        ErrorKind::ArgumentConflict => {
            let other = text(ContextKind::PriorArg);
            format!("{option} and {} exclude each other; give one of them", other.split(' ').next().unwrap_or_default())
        }
        ErrorKind::InvalidUtf8 => "invalid UTF-8 in a value; only paths may contain other bytes".to_owned(),
        _ => e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    }
}

/// A suggestion for an argument that is neither an option nor the value of one.
fn advice_for(argument: &str) -> String {
    if ["true", "false"].contains(&argument) {
        return format!("the value of a flag follows =: write --OPTION={argument}");
    }
    let command = command();
    let known = nearest(argument, command.get_arguments().filter_map(clap::Arg::get_long));
    format!("did you mean --{}?", known.as_deref().unwrap_or("shared-dir"))
}

/// "a, b or c".
fn alternatives(values: &[String]) -> String {
    match values {
        [] => "another value".to_owned(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// The one of `names` that is closest to `name`, if at most two letters differ.
pub fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<String> {
    let name = name.trim_start_matches('-').replace('_', "-");
    let (distance, known) = names.map(|known| (strsim::levenshtein(&name, known), known)).min()?;
    (distance <= 2).then(|| known.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::config::command::command;

    #[test]
    fn each_mistake_is_one_sentence_with_option_and_fix() {
        let cases: [(&[&str], &str); 18] = [
            (&["--shared-dri", "/srv"], "unknown option '--shared-dri'; did you mean --shared-dir?"),
            (&["--quux"], "unknown option '--quux'; gatherfsd --help lists the options"),
            (&["-x"], "unknown option '-x'; gatherfsd --help lists the options"),
            (&["/srv"], "unexpected argument '/srv'; did you mean --shared-dir?"),
            (&["share"], "unexpected argument 'share'; did you mean --shared-dir?"),
            (&["socket_path", "/s"], "unexpected argument 'socket_path'; did you mean --socket-path?"),
            (&["--xattr", "false"], "unexpected argument 'false'; the value of a flag follows =: write --OPTION=false"),
            (&["--cache", "sometimes"], "invalid value 'sometimes' for --cache; expected auto, always, never or metadata"),
            (&["--cache"], "missing value for --cache; expected auto, always, never or metadata"),
            (&["--tag"], "missing value for --tag; write --tag <TAG>"),
            (&["-o"], "missing value for -o; write -o <KEY[=VALUE],...>"),
            (&["--xattr=maybe"], "invalid value 'maybe' for --xattr; expected true or false"),
            (&["--fd", "three"], "invalid value 'three' for --fd: expected an integer"),
            (&["--max-pages", "0"], "invalid value '0' for --max-pages: 0 is not in 1..=65535"),
            (&["--max-pages=65536"], "invalid value '65536' for --max-pages: 65536 is not in 1..=65535"),
            (
                &["--rlimit-nofile=99999999999999999999"],
                "invalid value '99999999999999999999' for --rlimit-nofile: the number is too large",
            ),
            (&["--thread-pool-size", "-1"], "unknown option '-1'; gatherfsd --help lists the options"),
            (&["--thread-pool-size=-1"], "invalid value '-1' for --thread-pool-size: expected an integer"),
        ];
        for (words, expected) in cases {
            let e = command().try_get_matches_from(std::iter::once(&"gatherfsd").chain(words)).unwrap_err();
            assert_eq!(super::diagnostic(&e), expected, "{words:?}");
        }
    }
}
