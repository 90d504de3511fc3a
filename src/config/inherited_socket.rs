//! A listening socket passed by a service manager (LISTEN_PID and LISTEN_FDS, man sd_listen_fds(3)), used if neither
//! `--socket-path` nor `--fd` is given.

use std::ffi::OsString;

use super::arguments::Arguments;
use super::checks::ConfigError;

/// SD_LISTEN_FDS_START.
const FIRST: i32 = 3;

/// `arguments` with the passed socket as `--fd`, if they name no socket.
///
/// # Errors
/// [`ConfigError::ListenFds`] if the number of sockets passed to this process is neither 0 nor 1.
pub fn with_inherited_socket(mut arguments: Arguments) -> Result<Arguments, ConfigError> {
    if arguments.socket_path.is_none() && arguments.socket.is_none() && arguments.fd.is_none() {
        arguments.fd = inherited_by(std::process::id(), std::env::var_os("LISTEN_PID"), std::env::var_os("LISTEN_FDS"))?;
        arguments.line.extend(arguments.fd.map(|fd| format!("--fd={fd}").into()));
    }
    Ok(arguments)
}

/// The descriptor passed to process `pid`. Variables for another process are ignored.
fn inherited_by(pid: u32, listen_pid: Option<OsString>, listen_fds: Option<OsString>) -> Result<Option<i32>, ConfigError> {
    let is_ours = listen_pid.and_then(|pid| pid.to_str()?.parse().ok()) == Some(pid);
    match listen_fds {
        Some(count) if is_ours => match count.to_str() {
            Some("0") => Ok(None),
            Some("1") => Ok(Some(FIRST)),
            _ => Err(ConfigError::ListenFds(count.to_string_lossy().into_owned())),
        },
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_socket_for_this_process_is_taken_and_others_are_not() {
        let passed = |pid: Option<&str>, fds: Option<&str>| inherited_by(42, pid.map(Into::into), fds.map(Into::into));
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
}
