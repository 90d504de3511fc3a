//! Descriptors passed by a service manager (LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES, man sd_listen_fds(3)): a listening socket, used if
//! neither `--socket-path` nor `--fd` is given, and what an earlier process of this service had it keep.

use std::env::var_os;
use std::ffi::OsString;
use std::os::fd::OwnedFd;

use super::arguments::Arguments;
use super::checks::ConfigError;
use crate::outer::{KEPT_MAX, NAME_BEGIN};
use crate::sys::descriptor::inherited;

/// SD_LISTEN_FDS_START.
const FIRST: i32 = 3;

/// `arguments` with the passed socket as `--fd`, if they name no socket.
///
/// # Errors
/// [`ConfigError::ListenFds`] if the number of sockets passed to this process is neither 0 nor 1.
pub fn with_inherited_socket(mut arguments: Arguments) -> Result<Arguments, ConfigError> {
    if arguments.socket_path.is_none() && arguments.socket.is_none() && arguments.fd.is_none() {
        let passed = passed_to(std::process::id(), var_os("LISTEN_PID"), var_os("LISTEN_FDS"), var_os("LISTEN_FDNAMES"));
        arguments.fd = one_socket(passed)?;
        arguments.line.extend(arguments.fd.map(|fd| format!("--fd={fd}").into()));
    }
    Ok(arguments)
}

/// Descriptors of a session, with their numbers in it.
pub type KeptDescriptors = Vec<(usize, OwnedFd)>;

/// What an earlier process of this service had the service manager keep, in the order of the numbers in their names. To be called once,
/// before any descriptor is opened.
pub fn kept_descriptors() -> KeptDescriptors {
    let passed = passed_to(std::process::id(), var_os("LISTEN_PID"), var_os("LISTEN_FDS"), var_os("LISTEN_FDNAMES"));
    let mut kept: KeptDescriptors = passed.kept.into_iter().filter_map(|(number, fd)| Some((number, inherited(fd).ok()?))).collect();
    kept.sort_by_key(|(number, _)| *number);
    kept
}

/// Descriptors that were passed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Passed {
    /// LISTEN_FDS, where it is a number.
    count: Option<String>,
    /// Those that are no sockets of a kept session.
    sockets: Vec<i32>,
    /// Those that were kept, with the numbers in their names.
    kept: Vec<(usize, i32)>,
}

/// The descriptors passed to process `pid`. Variables for another process are ignored.
fn passed_to(pid: u32, listen_pid: Option<OsString>, listen_fds: Option<OsString>, names: Option<OsString>) -> Passed {
    let is_ours = listen_pid.and_then(|pid| pid.to_str()?.parse().ok()) == Some(pid);
    let Some(text) = listen_fds.filter(|_| is_ours).map(|count| count.to_string_lossy().into_owned()) else { return Passed::default() };
    let names = names.unwrap_or_default().to_string_lossy().into_owned();
    let mut names = names.split(':');
    let mut passed = Passed { count: Some(text.clone()), ..Passed::default() };
    for fd in (FIRST..).take(text.parse::<u16>().unwrap_or(0).into()) {
        let name = names.next().unwrap_or_default();
        match name.strip_prefix(NAME_BEGIN).and_then(|number| number.parse().ok()).filter(|number| *number < KEPT_MAX) {
            Some(number) => passed.kept.push((number, fd)),
            None => passed.sockets.push(fd),
        }
    }
    passed
}

/// The socket to listen on, if there is one.
fn one_socket(passed: Passed) -> Result<Option<i32>, ConfigError> {
    match (passed.count, &passed.sockets[..]) {
        (None, _) => Ok(None),
        (Some(_), [fd]) => Ok(Some(*fd)),
        (Some(count), []) if count == "0" || !passed.kept.is_empty() => Ok(None),
        (Some(count), _) => Err(ConfigError::ListenFds(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_socket_for_this_process_is_taken_and_others_are_not() {
        let passed = |pid: Option<&str>, fds: Option<&str>| one_socket(passed_to(42, pid.map(Into::into), fds.map(Into::into), None));
        assert_eq!(passed(Some("42"), Some("1")), Ok(Some(3)));
        let nothing =
            [(None, None), (Some("42"), None), (None, Some("1")), (Some("43"), Some("1")), (Some("x"), Some("2")), (Some("42"), Some("0"))];
        for (pid, fds) in nothing {
            assert_eq!(passed(pid, fds), Ok(None), "{pid:?} {fds:?}");
        }
        for fds in ["2", "-1", "one", ""] {
            let said = passed(Some("42"), Some(fds)).unwrap_err().to_string();
            assert!(said.contains(&format!("LISTEN_FDS={fds} ")) && said.contains("ListenStream"), "{said}");
        }
    }

    #[test]
    fn what_was_kept_is_no_socket_to_listen_on() {
        let names = "gatherfs-session-1:gatherfsd@a.socket:gatherfs-session-0";
        let passed = passed_to(42, Some("42".into()), Some("3".into()), Some(names.into()));
        assert_eq!((&passed.sockets[..], &passed.kept[..]), (&[4][..], &[(1, 3), (0, 5)][..]));
        assert_eq!(one_socket(passed), Ok(Some(4)));
        let passed = passed_to(42, Some("42".into()), Some("1".into()), Some("gatherfs-session-0".into()));
        assert_eq!(one_socket(passed), Ok(None));
        // Nobody has given such a name to be kept.
        let names = format!("gatherfs-session-{}", usize::MAX);
        let passed = passed_to(42, Some("42".into()), Some("1".into()), Some(names.into()));
        assert_eq!((&passed.sockets[..], &passed.kept[..]), (&[3][..], &[][..]));
    }
}
