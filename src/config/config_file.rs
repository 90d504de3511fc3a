//! Reads a `--config` file (TOML) into arguments of the command line. Keys are the names of the long options; flags take true
//! or false, repeatable options take a list. The type of a value is taken from clap's command, so that the file supports every
//! option.

use std::any::TypeId;
use std::ffi::OsString;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::command::command;
use super::diagnostics::{diagnostic, nearest};

/// Options that are not allowed in a file.
const NOT_IN_A_FILE: &[&str] = &["config", "help", "print-capabilities", "version"];

/// An error in a file. Each message is one sentence with the file and the line.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("--config {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system call's error.
        source: std::io::Error,
    },
    /// A syntax error.
    #[error("{path}:{line}: {what}; expected KEY = VALUE (TOML)")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The TOML parser's message.
        what: String,
    },
    /// A value without quotes.
    #[error("{path}:{line}: the value of {key} is not TOML; write {wanted}")]
    Unquoted {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// The correct form.
        wanted: String,
    },
    /// A key that is not an option.
    #[error("{path}:{line}: unknown option '{key}'{}", .nearest.as_ref().map_or_else(
        || "; gatherfsd --help lists the options; omit their dashes in the file".to_owned(),
        |known| format!("; did you mean {known}?")
    ))]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// The option with the most similar name.
        nearest: Option<String>,
    },
    /// An option that is allowed on the command line only.
    #[error("{path}:{line}: {key} is allowed on the command line only; remove it from the file")]
    NotInAFile {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// A value of another type.
    #[error("{path}:{line}: {key} is {found}; write {wanted}")]
    Type {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// The type of the value.
        found: &'static str,
        /// The correct form.
        wanted: String,
    },
    /// An invalid value.
    #[error("{path}:{line}: {what}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The message about the option.
        what: String,
    },
}

/// The arguments that the file at `path` stands for, in its order.
///
/// # Errors
/// The file cannot be read, is not TOML, or contains an unknown option or an invalid value.
pub fn arguments(path: &Path) -> Result<Vec<OsString>, FileError> {
    let text = fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    arguments_of(path, &text, &command())
}

fn arguments_of(path: &Path, text: &str, command: &Command) -> Result<Vec<OsString>, FileError> {
    let file = File { path, text };
    let table = DeTable::parse(text).map_err(|e| {
        let line = file.line(e.span());
        if let Some((key, wanted)) = file.unquoted(line, command) {
            return FileError::Unquoted { path: path.to_owned(), line, key, wanted };
        }
        let what = e.message().lines().collect::<Vec<_>>().join(", ");
        FileError::Syntax { path: path.to_owned(), line, what }
    })?;
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut arguments = Vec::new();
    for (key, value) in entries {
        let line = file.line(Some(key.span()));
        let name = key.get_ref().as_ref();
        let path = || path.to_owned();
        if NOT_IN_A_FILE.contains(&name) {
            return Err(FileError::NotInAFile { path: path(), line, key: name.to_owned() });
        }
        let Some(option) = command.get_arguments().find(|arg| arg.get_long() == Some(name)) else {
            let names = command.get_arguments().filter_map(Arg::get_long);
            return Err(FileError::Unknown { path: path(), line, key: name.to_owned(), nearest: nearest(name, names) });
        };
        for argument in file.arguments_of_entry(option, name, value)? {
            let given = [OsString::from("gatherfsd"), argument.clone()];
            if let Err(e) = command.clone().try_get_matches_from(given) {
                return Err(FileError::Value { path: path(), line, what: diagnostic(&e) });
            }
            arguments.push(argument);
        }
    }
    Ok(arguments)
}

/// The file, for error messages.
struct File<'f> {
    path: &'f Path,
    text: &'f str,
}

impl File<'_> {
    fn line(&self, span: Option<Range<usize>>) -> usize {
        let start = span.map_or(0, |span| span.start).min(self.text.len());
        1 + self.text.as_bytes()[..start].iter().filter(|b| **b == b'\n').count()
    }

    /// For a line `KEY = VALUE` with an option as key and a value that is not TOML: the key, and the line in its correct form.
    fn unquoted(&self, line: usize, command: &Command) -> Option<(String, String)> {
        let text = self.text.lines().nth(line - 1)?;
        if DeTable::parse(text).is_ok() {
            return None;
        }
        let (key, value) = text.split_once('=')?;
        let key = key.trim().trim_matches(['"', '\'']);
        let value = value.split('#').next().unwrap_or_default().trim();
        let option = command.get_arguments().find(|arg| arg.get_long() == Some(key))?;
        if value.is_empty() || value.contains(['"', '\'', '\\', '[', '{']) || value.chars().any(char::is_control) {
            return None;
        }
        let wanted = match Kind::of(option) {
            Kind::Text => format!("{key} = \"{value}\""),
            kind => kind.form(option, key),
        };
        Some((key.to_owned(), wanted))
    }

    fn arguments_of_entry(&self, option: &Arg, name: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<OsString>, FileError> {
        let is_list = matches!(option.get_action(), ArgAction::Append);
        match value.get_ref() {
            DeValue::Array(values) if is_list => values.iter().map(|value| self.argument(option, name, value)).collect(),
            _ => Ok(vec![self.argument(option, name, value)?]),
        }
    }

    fn argument(&self, option: &Arg, name: &str, value: &Spanned<DeValue<'_>>) -> Result<OsString, FileError> {
        let kind = Kind::of(option);
        let text = match (kind, value.get_ref()) {
            (Kind::Flag, DeValue::Boolean(flag)) => flag.to_string(),
            (Kind::Number, DeValue::Integer(number)) if number.radix() == 10 => number.as_str().to_owned(),
            (Kind::Number, DeValue::Float(number)) => number.as_str().to_owned(),
            (Kind::Text, DeValue::String(text)) => text.clone().into_owned(),
            (_, other) => {
                let wanted = kind.form(option, name);
                let found = described(other);
                let line = self.line(Some(value.span()));
                return Err(FileError::Type { path: self.path.to_owned(), line, key: name.to_owned(), found, wanted });
            }
        };
        Ok(format!("--{name}={text}").into())
    }
}

/// The type of an option's value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flag,
    Number,
    Text,
}

impl Kind {
    fn of(option: &Arg) -> Kind {
        let parsed = option.get_value_parser().type_id();
        let is = |types: &[TypeId]| types.iter().any(|t| parsed == *t);
        if is(&[TypeId::of::<bool>()]) {
            Kind::Flag
        } else if is(&[TypeId::of::<i32>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()])
            || is(&[TypeId::of::<f64>(), TypeId::of::<Duration>()])
        {
            Kind::Number
        } else {
            Kind::Text
        }
    }
}

impl Kind {
    /// How an option of this type is written in a file.
    fn form(self, option: &Arg, name: &str) -> String {
        match self {
            Kind::Flag => format!("{name} = true or {name} = false"),
            Kind::Number => format!("{name} = N, a number without quotes"),
            Kind::Text if matches!(option.get_action(), ArgAction::Append) => format!("{name} = [\"VALUE\", ...]"),
            Kind::Text => format!("{name} = \"VALUE\", in quotes"),
        }
    }
}

fn described(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        read_for(text, &command())
    }

    fn read_for(text: &str, command: &Command) -> Result<Vec<String>, String> {
        let words = arguments_of(Path::new("f.toml"), text, command).map_err(|e| e.to_string())?;
        Ok(words.into_iter().map(|word| word.into_string().unwrap()).collect())
    }

    #[test]
    fn a_time_is_a_number() {
        let seconds = |text: &str| text.parse().map(Duration::from_secs_f64);
        let command = command().arg(Arg::new("wait").long("wait").value_parser(seconds));
        assert_eq!(read_for("wait = 0.5", &command).unwrap(), ["--wait=0.5"]);
        assert_eq!(read_for("wait = 3", &command).unwrap(), ["--wait=3"]);
        assert_eq!(read_for("wait = '3'", &command).unwrap_err(), "f.toml:1: wait is a string; write wait = N, a number without quotes");
    }

    #[test]
    fn a_list_is_an_argument_for_each_value_of_a_repeatable_option() {
        let command = command().arg(Arg::new("map").long("map").action(ArgAction::Append));
        assert_eq!(read_for("map = ['a', 'b']\nmap2 = 1", &command).unwrap_err(), "f.toml:2: unknown option 'map2'; did you mean map?");
        assert_eq!(read_for("map = ['a', 'b']", &command).unwrap(), ["--map=a", "--map=b"]);
        assert_eq!(read_for("map = 'a'", &command).unwrap(), ["--map=a"]);
        assert_eq!(read_for("map = []", &command).unwrap(), [""; 0]);
        let said = read_for("map = [\n'a',\n5]", &command).unwrap_err();
        assert_eq!(said, "f.toml:3: map is a number; write map = [\"VALUE\", ...]");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_arguments_or_one_sentence(text in "[a-z=\\[\\]{}'\", \\n0-9#.-]{0,60}") {
            if let Err(said) = read(&text) {
                proptest::prop_assert!(said.starts_with("f.toml:") && !said.contains('\n'), "{said}");
            }
        }

        #[test]
        fn any_value_of_any_option_is_arguments_or_one_sentence(at in 0usize..40, value in "('[ -&(-~]{0,20}'|[0-9_.+-]{1,12}|true|false|\\[\\])") {
            let command = command();
            let names: Vec<&str> = command.get_arguments().filter_map(Arg::get_long).collect();
            let name = names[at % names.len()];
            if let Err(said) = read(&format!("{name} = {value}")) {
                proptest::prop_assert!(said.starts_with("f.toml:1: ") && !said.contains('\n'), "{said}");
            }
        }
    }

    #[test]
    fn each_type_of_value_becomes_its_argument_in_the_files_order() {
        let text = "# usual\nxattr = true\nshared-dir = \"/srv/a b\"\nrlimit-nofile = 1_000\ncache = 'never'\nreadonly = false\n";
        let words = ["--xattr=true", "--shared-dir=/srv/a b", "--rlimit-nofile=1000", "--cache=never", "--readonly=false"];
        assert_eq!(read(text).unwrap(), words);
        assert_eq!(read("").unwrap(), [""; 0]);
    }

    #[test]
    fn every_option_with_a_long_name_is_supported_in_a_file() {
        for option in command().get_arguments() {
            let Some(name) = option.get_long().filter(|name| !NOT_IN_A_FILE.contains(name)) else { continue };
            let named = option.get_possible_values().iter().find(|v| !v.is_hide_set()).map(|v| v.get_name().to_owned());
            let value = match Kind::of(option) {
                Kind::Flag => "true".to_owned(),
                Kind::Number => "3".to_owned(),
                // Options with a syntax of their own reject this value, and name themselves.
                Kind::Text => format!("'{}'", named.unwrap_or_else(|| "x".to_owned())),
            };
            if let Err(said) = read(&format!("{name} = {value}")) {
                assert!(said.starts_with("f.toml:1: invalid value") && said.contains(&format!("--{name}")), "{said}");
            }
        }
    }

    #[test]
    fn a_mistake_is_named_with_file_line_key_and_fix() {
        let cases: [(&str, &[&str]); 20] = [
            ("\nxatr = true", &["f.toml:2:", "unknown option 'xatr'", "did you mean xattr?"]),
            ("shared_dir = '/x'", &["f.toml:1:", "did you mean shared-dir?"]),
            ("quux = 1", &["unknown option 'quux'", "--help"]),
            ("xattr = 1", &["f.toml:1: xattr is a number", "xattr = true"]),
            ("xattr = 'true'", &["xattr is a string", "xattr = true"]),
            ("tag = 5", &["tag is a number", "in quotes"]),
            ("\n\nrlimit-nofile = '5'", &["f.toml:3: rlimit-nofile is a string", "without quotes"]),
            ("fd = 0x10", &["fd is a number", "fd = N"]),
            ("tag = ['a']", &["tag is a list"]),
            ("[share]\ntag = 'a'", &["f.toml:1:", "unknown option 'share'"]),
            ("cache = 'sometimes'", &["f.toml:1:", "'sometimes' for --cache", "metadata"]),
            ("config = 'other.toml'", &["f.toml:1: config is allowed on the command line only"]),
            ("xattr = true\nxattr = false", &["f.toml:2:", "duplicate key"]),
            ("cache = always", &["f.toml:1: the value of cache is not TOML; write cache = \"always\""]),
            ("\nshared-dir = /srv/share # the share", &["f.toml:2:", "write shared-dir = \"/srv/share\""]),
            ("xattr = yes", &["f.toml:1: the value of xattr is not TOML; write xattr = true or xattr = false"]),
            ("rlimit-nofile = many", &["f.toml:1:", "write rlimit-nofile = N, a number"]),
            ("cache = \"always", &["f.toml:1:", "(TOML)"]),
            ("cash = always", &["f.toml:1:", "(TOML)"]),
            ("cache =", &["f.toml:1:", "(TOML)"]),
        ];
        for (text, parts) in cases {
            let said = read(text).unwrap_err();
            assert!(!said.contains('\n'), "{said}");
            for part in parts {
                assert!(said.contains(part), "{text}: {said}");
            }
        }
    }
}
