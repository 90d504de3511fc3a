//! The log: where lines go and how many of one kind. Knows nothing of what they say.
#![forbid(unsafe_code)]

mod syslog;

use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;
use tracing_subscriber::fmt::format::{DefaultFields, Format};

use syslog::Syslog;

/// Lines of one kind that are written in a second; a guest cannot flood the log past this.
const LINES_PER_SECOND_MAX: u64 = 5;

/// Where syslog listens.
pub const SYSLOG_SOCKET: &str = "/dev/log";

/// Where the log goes.
#[derive(Debug, Clone, Copy)]
pub enum Destination<'d> {
    /// To standard error.
    StandardError,
    /// To the syslog daemon that listens on this socket.
    Syslog(&'d Path),
}

/// Starts the log. `level` is `off`, `error`, `warn`, `info`, `debug` or `trace`; on standard error the
/// variable RUST_LOG decides instead, if it is set. Where syslog cannot be reached, the log goes to standard
/// error and the result is why.
pub fn start(level: &str, destination: Destination<'_>) -> std::io::Result<()> {
    let (syslog, result) = match destination {
        Destination::StandardError => (None, Ok(())),
        Destination::Syslog(path) => match Syslog::connect(path) {
            Ok(syslog) => (Some(syslog), Ok(())),
            Err(e) => (None, Err(e)),
        },
    };
    // A second start in one process (tests) keeps the first subscriber.
    let _ = match syslog {
        // The daemon there has a clock and knows levels.
        Some(syslog) => log(level).with_writer(syslog).with_ansi(false).without_time().with_level(false).try_init(),
        None => {
            let asked = std::env::var("RUST_LOG").ok().filter(|asked| !asked.is_empty());
            let is_terminal = std::io::stderr().is_terminal();
            log(asked.as_deref().unwrap_or(level)).with_writer(std::io::stderr).with_ansi(is_terminal).try_init()
        }
    };
    result
}

/// The log at `level`.
fn log(level: &str) -> SubscriberBuilder<DefaultFields, Format, EnvFilter> {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Whoever read standard error may have gone; complaining there of that would panic.
        .log_internal_errors(false)
        .with_target(false)
}

/// Lets a few lines a second through. One for each kind of line, in a `static`.
#[derive(Debug)]
pub struct RateLimit {
    /// The second in the upper half, lines written in it in the lower.
    window: AtomicU64,
}

impl RateLimit {
    /// A limit that has let nothing through yet.
    pub const fn new() -> RateLimit {
        RateLimit { window: AtomicU64::new(0) }
    }

    /// Whether one more line may be written now.
    pub fn allows(&self) -> bool {
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

impl Default for RateLimit {
    fn default() -> Self {
        RateLimit::new()
    }
}

/// Warns, at most a few times a second from this place in the source.
#[macro_export]
macro_rules! warn_limited {
    ($($arg:tt)*) => {{
        static LIMIT: $crate::trace::RateLimit = $crate::trace::RateLimit::new();
        if LIMIT.allows() {
            tracing::warn!($($arg)*);
        }
    }};
}

/// Says what the daemon does, at most a few times a second from this place in the source.
#[macro_export]
macro_rules! info_limited {
    ($($arg:tt)*) => {{
        static LIMIT: $crate::trace::RateLimit = $crate::trace::RateLimit::new();
        if LIMIT.allows() {
            tracing::info!($($arg)*);
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_line_is_written_a_few_times_a_second() {
        let limit = RateLimit::new();
        let allowed = (0..1000).filter(|_| limit.allows()).count() as u64;
        assert!(allowed >= LINES_PER_SECOND_MAX, "{allowed}");
        assert!(allowed <= 3 * LINES_PER_SECOND_MAX, "{allowed}");
    }
}
