//! Counters: what the daemon did since it started. One table, each with its meaning; all of them only grow.
//! Knows the opcodes' names from the caller, nothing of requests.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Opcode numbers that are counted apart; higher ones are counted under 0.
pub const OPCODES: usize = 54;

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Every counter of the daemon.
        #[derive(Debug)]
        pub struct Metrics {
            /// Requests by opcode number; 0 holds those that are no opcode.
            pub requests: [Counter; OPCODES],
            $($(#[$doc])* pub $name: Counter),*
        }

        impl Metrics {
            /// All counters at zero.
            pub fn new() -> Metrics {
                Metrics { requests: std::array::from_fn(|_| Counter::default()), $($name: Counter::default()),* }
            }

            /// One line of JSON, without a line feed. `share` names what the counters are of; `opcode_name` spells the opcode of
            /// a number; opcodes not seen are left out.
            pub fn to_json(&self, share: &str, opcode_name: impl Fn(usize) -> &'static str) -> String {
                let mut line = format!("{{\"share\":{},\"requests\":{{", json_string(share));
                let mut comma = "";
                for (number, count) in self.requests.iter().enumerate().filter(|(_, c)| c.get() > 0) {
                    let _ = write!(line, "{comma}\"{}\":{}", opcode_name(number), count.get());
                    comma = ",";
                }
                line.push('}');
                $(let _ = write!(line, ",\"{}\":{}", stringify!($name), self.$name.get());)*
                line.push('}');
                line
            }
        }
    };
}

counters! {
    /// `preadv2` calls made for READ.
    host_reads,
    /// `pwritev2` calls made for WRITE.
    host_writes,
    /// Bytes that READ brought to guests.
    host_read_bytes,
    /// Bytes that WRITE brought to files.
    host_write_bytes,
    /// Descriptor chains that broke the virtio rules.
    malformed_chains,
    /// Requests whose bytes could not be decoded.
    malformed_requests,
    /// Avail indexes that jumped further than the ring is long.
    avail_jumps,
    /// Requests before INIT or after DESTROY.
    out_of_session,
    /// Kicks received.
    kicks,
    /// Calls (interrupts) sent.
    calls,
    /// Requests that were suspended: locks that were waited for.
    parked,
    /// Transfers that an I/O engine took over.
    submitted,
    /// Requests that an I/O engine had no room for at first.
    throttled,
    /// Requests that the host did not finish within --stop-timeout of their queue's stop; answered with EIO.
    withdrawn,
    /// Those of them that the host has finished since.
    withdrawn_finished,
    /// Threads that did not come back from the host with a request that was withdrawn.
    stuck,
    /// Those of them that have come back since.
    stuck_returned,
    /// Times a follower took over because requests waited behind a slow one.
    followers_woken,
    /// Frontend connections served.
    connections,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

/// `text` as a JSON string (RFC 8259 section 7).
fn json_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_control() => _ = write!(quoted, "\\u{:04x}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_names_what_was_counted() {
        let metrics = Metrics::new();
        metrics.requests[15].add(3);
        metrics.host_reads.add(2);
        let line = metrics.to_json("/srv/share", |n| if n == 15 { "READ" } else { "OTHER" });
        assert!(line.starts_with("{\"share\":\"/srv/share\",\"requests\":{\"READ\":3},\"host_reads\":2,\"host_writes\":0"), "{line}");
        assert!(line.ends_with('}'));
    }

    #[test]
    fn a_share_of_any_name_is_a_json_string_in_one_line() {
        let line = Metrics::new().to_json("/srv/\"a\\b\"\n\u{7f}\u{85}ä", |_| "OTHER");
        assert!(line.starts_with("{\"share\":\"/srv/\\\"a\\\\b\\\"\\u000a\\u007f\\u0085ä\",\"requests\":{},"), "{line}");
        assert_eq!(line.lines().count(), 1);
    }
}
