//! `-o` lists of older virtiofsd (in Rust and in C), expanded to long options. Knows the names of options only, not their
//! meaning.

use std::ffi::OsString;

use super::command::command;

/// The long options for a key.
#[derive(Debug, Clone, Copy)]
enum Meaning {
    /// An option, with its value if it has one.
    Fixed(&'static str),
    /// Options that take the value as it is.
    Value(&'static [&'static str]),
    /// An option whose values have other names now.
    Renamed(&'static str, &'static [(&'static str, &'static str)]),
}

use Meaning::{Fixed, Renamed, Value};

const CACHE: &[(&str, &str)] = &[("auto", "auto"), ("always", "always"), ("none", "never"), ("never", "never"), ("metadata", "metadata")];
const LEVEL: &[(&str, &str)] = &[("debug", "debug"), ("info", "info"), ("warn", "warn"), ("err", "error")];
const SANDBOX: &[(&str, &str)] = &[("namespace", "namespace"), ("chroot", "chroot")];

/// Keys of virtiofsd in Rust (its `parse_compat`) and in C (QEMU 7.2, `tools/virtiofsd`).
const KEYS: &[(&str, Meaning)] = &[
    ("source", Value(&["shared-dir"])),
    ("cache", Renamed("cache", CACHE)),
    ("loglevel", Renamed("log-level", LEVEL)),
    ("log_level", Renamed("log-level", LEVEL)),
    ("debug", Fixed("log-level=debug")),
    ("sandbox", Renamed("sandbox", SANDBOX)),
    ("modcaps", Value(&["modcaps"])),
    ("xattrmap", Value(&["xattrmap"])),
    ("timeout", Value(&["entry-timeout", "attr-timeout"])),
    ("xattr", Fixed("xattr")),
    ("no_xattr", Fixed("xattr=false")),
    ("readdirplus", Fixed("no-readdirplus=false")),
    ("no_readdirplus", Fixed("no-readdirplus")),
    ("writeback", Fixed("writeback")),
    ("no_writeback", Fixed("writeback=false")),
    ("allow_direct_io", Fixed("allow-direct-io")),
    ("no_allow_direct_io", Fixed("allow-direct-io=false")),
    ("announce_submounts", Fixed("announce-submounts")),
    ("killpriv_v2", Fixed("killpriv-v2")),
    ("no_killpriv_v2", Fixed("no-killpriv-v2")),
    ("posix_acl", Fixed("posix-acl=always")),
    ("no_posix_acl", Fixed("posix-acl=never")),
    ("security_label", Fixed("security-label=always")),
    ("no_security_label", Fixed("security-label=never")),
    ("posix_lock", Fixed("locks=host")),
    ("no_posix_lock", Fixed("locks=guest")),
    ("flock", Fixed("locks=host")),
    ("no_flock", Fixed("locks=guest")),
];

/// An invalid item of a list. `at` counts the items of all lists from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompatError {
    /// Nothing between two commas.
    #[error("-o: item {at} is empty; remove the comma, or write ,, for a comma in a value")]
    Empty {
        /// Its position.
        at: usize,
    },
    /// No such key.
    #[error("-o: unknown key '{key}' (item {at}); use one of the options that gatherfsd --help lists")]
    Unknown {
        /// Its position.
        at: usize,
        /// The key.
        key: String,
    },
    /// A key that needs a value.
    #[error("-o: missing value for {key} (item {at}); write {key}=VALUE")]
    NoValue {
        /// Its position.
        at: usize,
        /// The key.
        key: String,
    },
    /// A key that takes no value.
    #[error("-o: unexpected value for {key} (item {at}); write {key} alone")]
    HasValue {
        /// Its position.
        at: usize,
        /// The key.
        key: String,
    },
    /// A value that is not allowed for the key.
    #[error("-o: invalid value '{value}' for {key} (item {at}); expected one of {possible}")]
    BadValue {
        /// Its position.
        at: usize,
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// The allowed values.
        possible: String,
    },
    /// A key whose option is not supported.
    #[error("-o: {key} (item {at}) is --{option}, which gatherfsd does not support; leave it out")]
    NoOption {
        /// Its position.
        at: usize,
        /// The key.
        key: String,
        /// The option's long name.
        option: String,
    },
}

/// The long options that `lists` stand for, in order.
///
/// # Errors
/// The first invalid item.
pub fn expand(lists: &[String]) -> Result<Vec<OsString>, CompatError> {
    let mut arguments = Vec::new();
    let command = if lists.is_empty() { return Ok(arguments) } else { command() };
    let has = |name: &str| command.get_arguments().any(|a| a.get_long() == Some(name));
    for (i, item) in lists.iter().flat_map(|list| items(list)).enumerate() {
        let at = i + 1;
        for option in options_of(&item, at)? {
            let name = option.split('=').next().unwrap_or_default();
            if !has(name) {
                let key = item.split('=').next().unwrap_or_default().to_owned();
                return Err(CompatError::NoOption { at, key, option: name.to_owned() });
            }
            arguments.push(format!("--{option}").into());
        }
    }
    Ok(arguments)
}

/// The items of a list. Two commas are one comma in the item, as libvirt escapes paths.
fn items(list: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut rest = list.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            items.push(String::new());
        } else if let Some(item) = items.last_mut() {
            item.push(c);
        }
    }
    items
}

/// The long options with their values, without the dashes.
fn options_of(item: &str, at: usize) -> Result<Vec<String>, CompatError> {
    if item.is_empty() {
        return Err(CompatError::Empty { at });
    }
    let (key, value) = item.split_once('=').map_or((item, None), |(key, value)| (key, Some(value)));
    let key_owned = || key.to_owned();
    let Some((_, meaning)) = KEYS.iter().find(|(known, _)| *known == key) else {
        return Err(CompatError::Unknown { at, key: key_owned() });
    };
    match (meaning, value) {
        (Fixed(option), None) => Ok(vec![(*option).to_owned()]),
        (Fixed(_), Some(_)) => Err(CompatError::HasValue { at, key: key_owned() }),
        (Value(_) | Renamed(..), None | Some("")) => Err(CompatError::NoValue { at, key: key_owned() }),
        (Value(options), Some(value)) => Ok(options.iter().map(|option| format!("{option}={value}")).collect()),
        (Renamed(option, values), Some(value)) => match values.iter().find(|(older, _)| *older == value) {
            Some((_, now)) => Ok(vec![format!("{option}={now}")]),
            None => {
                let possible: Vec<&str> = values.iter().map(|(older, _)| *older).collect();
                Err(CompatError::BadValue { at, key: key_owned(), value: value.to_owned(), possible: possible.join(", ") })
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(lists: &[&str]) -> Result<Vec<String>, CompatError> {
        let lists: Vec<String> = lists.iter().map(|list| (*list).to_owned()).collect();
        Ok(expand(&lists)?.into_iter().map(|word| word.into_string().unwrap()).collect())
    }

    #[test]
    fn each_key_becomes_the_long_option_that_it_stands_for() {
        let cases: [(&[&str], &[&str]); 12] = [
            (&[], &[]),
            (&["source=/srv/a b", "cache=none"], &["--shared-dir=/srv/a b", "--cache=never"]),
            (&["source=/srv/a,,b=c,cache=auto"], &["--shared-dir=/srv/a,b=c", "--cache=auto"]),
            (&["cache=always", "cache=metadata"], &["--cache=always", "--cache=metadata"]),
            (&["xattr,no_xattr"], &["--xattr", "--xattr=false"]),
            (&["readdirplus,no_readdirplus"], &["--no-readdirplus=false", "--no-readdirplus"]),
            (&["writeback,no_writeback"], &["--writeback", "--writeback=false"]),
            (&["allow_direct_io,no_allow_direct_io"], &["--allow-direct-io", "--allow-direct-io=false"]),
            (&["announce_submounts"], &["--announce-submounts"]),
            (&["no_posix_lock,no_flock"], &["--locks=guest", "--locks=guest"]),
            (&["loglevel=err,log_level=debug,debug"], &["--log-level=error", "--log-level=debug", "--log-level=debug"]),
            (&["sandbox=chroot"], &["--sandbox=chroot"]),
        ];
        for (lists, words) in cases {
            assert_eq!(expanded(lists).unwrap(), words, "{lists:?}");
        }
    }

    #[test]
    fn keys_of_options_that_are_not_supported_are_rejected() {
        let command = command();
        for (key, meaning) in KEYS {
            let (item, option) = match meaning {
                Fixed(word) => ((*key).to_owned(), word.split('=').next().unwrap()),
                Value(options) => (format!("{key}=x"), options[0]),
                Renamed(option, values) => (format!("{key}={}", values[0].0), *option),
            };
            let there = command.get_arguments().any(|a| a.get_long() == Some(option));
            match expanded(&[&item]) {
                Ok(words) => assert!(there && !words.is_empty(), "{item}"),
                Err(e) => assert!(!there && e.to_string().contains(&format!("--{option}")), "{item}: {e}"),
            }
        }
    }

    #[test]
    fn a_mistake_is_named_with_its_position_and_the_fix() {
        let cases: [(&[&str], &[&str]); 8] = [
            (&["xattr,quux"], &["unknown key 'quux'", "item 2"]),
            (&["xattr", "cache=auto,,quux=3"], &["'auto,quux=3' for cache", "item 2", "none"]),
            (&["xattr,", "cache"], &["item 2 is empty"]),
            (&[""], &["item 1 is empty"]),
            (&["cache"], &["missing value for cache", "cache=VALUE"]),
            (&["source="], &["missing value for source"]),
            (&["xattr=on"], &["unexpected value for xattr", "alone"]),
            (&["loglevel=loud"], &["'loud' for loglevel", "err"]),
        ];
        for (lists, parts) in cases {
            let said = expanded(lists).unwrap_err().to_string();
            for part in parts {
                assert!(said.contains(part), "{lists:?}: {said}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_lists_are_options_that_the_parser_takes_or_one_sentence(lists in proptest::collection::vec("(xattr|no_xattr|cache=|source=|,|,,|none|/a|=|[ -~]){0,6}", 0..4)) {
            match expand(&lists) {
                Ok(words) => proptest::prop_assert!(words.iter().all(|word| word.to_string_lossy().starts_with("--"))),
                Err(e) => proptest::prop_assert!(e.to_string().starts_with("-o: ") && !e.to_string().contains('\n')),
            }
        }
    }
}
