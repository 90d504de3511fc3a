//! The clock that file systems take their times from, and the one that all processes of the host have in common.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since 1970 as of the last tick of the kernel: no file that is made from now on is older. No system call where the
/// vDSO has the clock.
pub fn coarse_ns() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `now` only. It does not fail: every kernel has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut now) };
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// Microseconds of CLOCK_MONOTONIC (man clock_gettime(2)).
pub fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Never negative: the clock begins at the start of the system.
    now.tv_sec.cast_unsigned().saturating_mul(1_000_000).saturating_add(now.tv_nsec.cast_unsigned() / 1000)
}
