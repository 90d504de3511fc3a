//! The log: its destination and its rate limits. Knows nothing of the messages.
#![forbid(unsafe_code)]

mod standard_error;
mod syslog;

use std::io::IsTerminal;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;
use tracing_subscriber::fmt::format::{DefaultFields, Format};

use syslog::Syslog;

pub use standard_error::StandardError;

/// The most lines of one call site in a second, so that a guest cannot fill the log.
const LINES_PER_SECOND_MAX: u64 = 5;

/// The socket of the syslog daemon.
pub const SYSLOG_SOCKET: &str = "/dev/log";

/// The destination of the log.
#[derive(Debug)]
pub enum Destination<'d> {
    /// Standard error.
    StandardError,
    /// The syslog daemon at this socket.
    Syslog(&'d Path),
    /// The syslog daemon at the other end of this socket, which knows this process by that id.
    SyslogSocket(OwnedFd, u32),
}

/// Starts the log. `level` is `off`, `error`, `warn`, `info`, `debug` or `trace`. On standard error the environment variable
/// RUST_LOG replaces it, if it is set. Returns the socket of the syslog daemon, and the id by which that one knows this process. An
/// error where it cannot be reached; the log then goes to standard error.
pub fn start(level: &str, destination: Destination<'_>) -> std::io::Result<Option<(RawFd, u32)>> {
    let connected = match destination {
        Destination::StandardError => Ok(None),
        Destination::Syslog(path) => Syslog::connect(path).map(Some),
        Destination::SyslogSocket(socket, pid) => Ok(Some(Syslog::of(socket, pid))),
    };
    let (syslog, result) = match connected {
        Ok(syslog) => {
            let socket = syslog.as_ref().map(Syslog::socket);
            (syslog, Ok(socket))
        }
        Err(e) => (None, Err(e)),
    };
    // After a second start in one process, as in tests, the first subscriber stays.
    let _ = match syslog {
        // The syslog daemon adds the time, and the priority has the level.
        Some(syslog) => log(level).with_writer(syslog).with_ansi(false).without_time().with_level(false).try_init(),
        None => {
            let asked = std::env::var("RUST_LOG").ok().filter(|asked| !asked.is_empty());
            let is_terminal = std::io::stderr().is_terminal();
            log(asked.as_deref().unwrap_or(level)).with_writer(StandardError::new).with_ansi(is_terminal).try_init()
        }
    };
    result
}

/// The log at `level`.
fn log(level: &str) -> SubscriberBuilder<DefaultFields, Format, EnvFilter> {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A report of a closed standard error on standard error would panic.
        .log_internal_errors(false)
        .with_target(false)
}

/// Limits the lines of one call site.
#[derive(Debug)]
struct RateLimit {
    /// The current second in the upper half, the lines written in it in the lower.
    window: AtomicU64,
}

impl RateLimit {
    /// A limit without lines so far.
    const fn new() -> RateLimit {
        RateLimit { window: AtomicU64::new(0) }
    }

    /// Whether a line may be written now. Counts it if so.
    fn allows(&self) -> bool {
        let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()) << 32;
        let mut window = self.window.load(Ordering::Relaxed);
        loop {
            let next = if window & !0xffff_ffff == second { window + 1 } else { second + 1 };
            if next - second > LINES_PER_SECOND_MAX {
                return false;
            }
            match self.window.compare_exchange_weak(window, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(seen) => window = seen,
            }
        }
    }
}

/// Limits the lines of one object, such as a share: each call site has its own limit. Objects do not share their limits, so that
/// one guest does not suppress the messages of another one in the same process.
#[derive(Debug, Default)]
pub struct Limiter {
    /// The call sites that have written lines. There are few.
    sites: Mutex<Vec<(&'static str, RateLimit)>>,
}

impl Limiter {
    /// A limiter without lines so far.
    pub const fn new() -> Limiter {
        Limiter { sites: Mutex::new(Vec::new()) }
    }

    /// Whether the call site `site` may write a line now. Counts it if so.
    pub fn allows(&self, site: &'static str) -> bool {
        let mut sites = self.sites.lock();
        if let Some((_, limit)) = sites.iter().find(|(known, _)| *known == site) {
            return limit.allows();
        }
        let limit = RateLimit::new();
        let is_allowed = limit.allows();
        sites.push((site, limit));
        is_allowed
    }
}

/// Logs a warning, at most a few times a second: `warn_limited!(limiter; "...")` for each call site and [`trace::Limiter`].
///
/// [`trace::Limiter`]: crate::trace::Limiter
#[macro_export]
macro_rules! warn_limited {
    ($limiter:expr; $($arg:tt)*) => {
        if $limiter.allows(concat!(file!(), ":", line!())) {
            tracing::warn!($($arg)*);
        }
    };
}

/// Logs an information, limited as [`warn_limited`].
#[macro_export]
macro_rules! info_limited {
    ($limiter:expr; $($arg:tt)*) => {
        if $limiter.allows(concat!(file!(), ":", line!())) {
            tracing::info!($($arg)*);
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_site_of_each_object_has_a_limit_of_its_own() {
        let (one, other) = (Limiter::new(), Limiter::new());
        // Two windows at most while the test runs.
        let count = |limiter: &Limiter, site| (0..100).filter(|_| limiter.allows(site)).count() as u64;
        for (limiter, site) in [(&one, "a.rs:1"), (&one, "b.rs:2"), (&other, "a.rs:1")] {
            let allowed = count(limiter, site);
            assert!((LINES_PER_SECOND_MAX..=3 * LINES_PER_SECOND_MAX).contains(&allowed), "{site}: {allowed}");
        }
        warn_limited!(one; "a message with {}", "an argument");
        info_limited!(one; "a message");
        assert_eq!(one.sites.lock().len(), 4);
    }

    #[test]
    fn a_kind_of_line_is_written_a_few_times_a_second() {
        let limit = RateLimit::new();
        let allowed = (0..1000).filter(|_| limit.allows()).count() as u64;
        assert!(allowed >= LINES_PER_SECOND_MAX, "{allowed}");
        assert!(allowed <= 3 * LINES_PER_SECOND_MAX, "{allowed}");
    }
}
