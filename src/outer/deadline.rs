//! A moment that two processes of one host mean the same by: milliseconds of CLOCK_MONOTONIC (man clock_gettime(2)).

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// When it is too late for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

impl Deadline {
    /// Bytes of one in a message.
    pub const LEN: usize = size_of::<u64>();

    /// In `time` from now.
    pub fn after(time: Duration) -> Deadline {
        Deadline(now_ms().saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Whether it is too late.
    pub fn has_passed(self) -> bool {
        now_ms() >= self.0
    }

    /// For a message.
    pub fn to_bytes(self) -> [u8; Deadline::LEN] {
        self.0.to_le_bytes()
    }

    /// Of a message.
    pub fn from_bytes(bytes: [u8; Deadline::LEN]) -> Deadline {
        Deadline(u64::from_le_bytes(bytes))
    }
}

fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Never negative: the clock begins at the start of the system.
    now.tv_sec.cast_unsigned() * 1000 + now.tv_nsec.cast_unsigned() / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_passes_when_its_time_is_over_wherever_it_is_sent() {
        assert!(Deadline::after(Duration::ZERO).has_passed());
        assert!(!Deadline::after(Duration::MAX).has_passed());
        let sent = Deadline::after(Duration::from_secs(3600));
        assert!(Deadline::from_bytes(sent.to_bytes()) == sent && !sent.has_passed());
    }
}
