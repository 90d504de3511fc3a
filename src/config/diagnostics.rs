//! What the parser of the command line found, as one sentence that names the option and the fix.

use std::num::{IntErrorKind, ParseIntError};

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::command::command;

/// One sentence for `e`.
pub fn diagnostic(e: &clap::Error) -> String {
    let texts = |kind| match e.get(kind) {
        Some(ContextValue::String(s)) => vec![s.clone()],
        Some(ContextValue::Strings(s)) => s.clone(),
        Some(ContextValue::StyledStr(s)) => vec![s.to_string()],
        _ => Vec::new(),
    };
    let text = |kind| texts(kind).into_iter().next().unwrap_or_default();
    // With the name of its value: "--cache <POLICY>".
    let whole = text(ContextKind::InvalidArg);
    let option = whole.split([' ', '[', '=']).next().unwrap_or_default();
    let value = text(ContextKind::InvalidValue);
    let possible = texts(ContextKind::ValidValue);
    let known = text(ContextKind::SuggestedArg);
    match e.kind() {
        ErrorKind::UnknownArgument if !option.starts_with('-') => {
            format!("unexpected argument {whole}; {}", advice_for(&whole))
        }
        ErrorKind::UnknownArgument if known.is_empty() => format!("there is no option {option}; gatherfsd --help lists the options"),
        ErrorKind::UnknownArgument => format!("there is no option {option}; did you mean {known}?"),
        ErrorKind::InvalidValue if value.is_empty() && possible.is_empty() => format!("{option} needs a value; write {whole}"),
        ErrorKind::InvalidValue if value.is_empty() => format!("{option} needs a value; give {}", alternatives(&possible)),
        ErrorKind::InvalidValue => format!("{option} {value} is not possible; give {}", alternatives(&possible)),
        ErrorKind::ValueValidation => {
            let source = std::error::Error::source(e);
            let reason = match source.and_then(|source| source.downcast_ref::<ParseIntError>()).map(ParseIntError::kind) {
                Some(IntErrorKind::PosOverflow | IntErrorKind::NegOverflow) => "give a smaller number".to_owned(),
                Some(_) => "give a whole number".to_owned(),
                None => source.map(ToString::to_string).unwrap_or_default(),
            };
            format!("{option} {value} is not possible: {reason}")
        }
        ErrorKind::TooManyValues => format!("{option} takes no value {value}; write {option} alone"),
        ErrorKind::NoEquals => format!("{option} takes its value behind =; write {whole}"),
        ErrorKind::ArgumentConflict => {
            let other = text(ContextKind::PriorArg);
            format!("{option} and {} exclude each other; give one of them", other.split(' ').next().unwrap_or_default())
        }
        ErrorKind::InvalidUtf8 => "a value is no UTF-8 text; only paths may be other bytes".to_owned(),
        _ => e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    }
}

/// What an argument that is neither an option nor the value of one may have been meant for.
fn advice_for(word: &str) -> String {
    if ["true", "false"].contains(&word) {
        return format!("the value of a flag follows =: write --OPTION={word}");
    }
    let command = command();
    let known = nearest(word, command.get_arguments().filter_map(clap::Arg::get_long));
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
            (&["--shared-dri", "/srv"], "there is no option --shared-dri; did you mean --shared-dir?"),
            (&["--quux"], "there is no option --quux; gatherfsd --help lists the options"),
            (&["-x"], "there is no option -x; gatherfsd --help lists the options"),
            (&["/srv"], "unexpected argument /srv; did you mean --shared-dir?"),
            (&["share"], "unexpected argument share; did you mean --shared-dir?"),
            (&["socket_path", "/s"], "unexpected argument socket_path; did you mean --socket-path?"),
            (&["--xattr", "false"], "unexpected argument false; the value of a flag follows =: write --OPTION=false"),
            (&["--cache", "sometimes"], "--cache sometimes is not possible; give auto, always, never or metadata"),
            (&["--cache"], "--cache needs a value; give auto, always, never or metadata"),
            (&["--tag"], "--tag needs a value; write --tag <TAG>"),
            (&["-o"], "-o needs a value; write -o <KEY[=VALUE],...>"),
            (&["--xattr=maybe"], "--xattr maybe is not possible; give true or false"),
            (&["--fd", "three"], "--fd three is not possible: give a whole number"),
            (&["--max-pages", "0"], "--max-pages 0 is not possible: 0 is not in 1..=65535"),
            (&["--max-pages=65536"], "--max-pages 65536 is not possible: 65536 is not in 1..=65535"),
            (&["--rlimit-nofile=99999999999999999999"], "--rlimit-nofile 99999999999999999999 is not possible: give a smaller number"),
            (&["--thread-pool-size", "-1"], "there is no option -1; gatherfsd --help lists the options"),
            (&["--thread-pool-size=-1"], "--thread-pool-size -1 is not possible: give a whole number"),
        ];
        for (words, expected) in cases {
            let e = command().try_get_matches_from(std::iter::once(&"gatherfsd").chain(words)).unwrap_err();
            assert_eq!(super::diagnostic(&e), expected, "{words:?}");
        }
    }
}
