//! Counters of what the daemon did, for each share. One table has the names, units and stability; counters only grow.
//! Knows nothing of requests: the caller passes the names of the opcodes.
//!
//! Counting takes no lock and no cache line of another thread (`metrics/lanes.rs`), and a [`Metrics`] holds the counters of its
//! share, so that the hot path looks up nothing.
#![forbid(unsafe_code)]

mod lanes;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter as Count;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{self, Registry as Text};

use lanes::Lanes;

/// One counter.
#[derive(Debug)]
pub struct Counter {
    lanes: Arc<Lanes>,
    number: usize,
}

impl Counter {
    /// Adds one.
    #[inline]
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.lanes.add(self.number, n);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.lanes.sum(self.number)
    }
}

/// What a counter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Events.
    Events,
    /// Bytes. The name ends with it.
    Bytes,
}

/// What a user may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stability {
    /// Name and meaning stay until a release that announces the change.
    Stable,
    /// Name or meaning may change with any release, because they follow the implementation.
    Internal,
}

/// A row of the table of counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// The key in the JSON line. In the text format, `gatherfs_` precedes and `_total` follows it.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// What a user may rely on.
    pub stability: Stability,
    /// The meaning, in a sentence without a full stop.
    pub help: &'static str,
}

impl Definition {
    /// Adds the counters of all shares to `text`.
    fn register<L>(&self, text: &mut Text) -> Family<L, Count>
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq + std::fmt::Debug + Send + Sync + 'static,
    {
        let family = Family::default();
        let help = match self.stability {
            Stability::Stable => self.help.to_owned(),
            Stability::Internal => format!("{} (internal: may change with any release)", self.help),
        };
        match self.unit {
            Unit::Events => text.register(self.name, help, family.clone()),
            Unit::Bytes => {
                // The registry appends the unit.
                let name = self.name.strip_suffix("_bytes").unwrap_or(self.name);
                text.register_with_unit(name, help, registry::Unit::Bytes, family.clone());
            }
        }
        family
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfShare {
    share: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOpcode {
    share: String,
    opcode: &'static str,
}

/// The name of the requests that have no opcode.
const UNKNOWN: &str = "unknown";

macro_rules! definition {
    ($name:ident: $unit:ident, $stability:ident, $help:literal) => {
        Definition { name: stringify!($name), unit: Unit::$unit, stability: Stability::$stability, help: $help }
    };
}

macro_rules! counters {
    ($($name:ident: $unit:ident, $stability:ident, $help:literal;)*) => {
        /// The table of counters, apart from [`REQUESTS`].
        pub const COUNTERS: &[Definition] = &[
            $(definition!($name: $unit, $stability, $help)),*
        ];

        #[derive(Debug)]
        struct Families {
            requests: Family<OfOpcode, Count>,
            $($name: Family<OfShare, Count>),*
        }

        impl Families {
            fn new(text: &mut Text) -> Families {
                Families {
                    requests: REQUESTS.register(text),
                    $($name: definition!($name: $unit, $stability, $help).register(text)),*
                }
            }

            /// Sets the exported counters of `metrics`.
            fn export(&self, metrics: &Metrics) {
                let set = |exported: &Count, counter: &Counter| exported.inner().store(counter.get(), Ordering::Relaxed);
                let share = &metrics.share;
                for (number, (name, counter)) in metrics.registry.opcodes.iter().zip(&metrics.requests).enumerate() {
                    let opcode = if number == 0 { UNKNOWN } else { *name };
                    // A number without an opcode is never counted, and not exported.
                    if !opcode.is_empty() {
                        set(&self.requests.get_or_create_owned(&OfOpcode { share: share.clone(), opcode }), counter);
                    }
                }
                let of_share = OfShare { share: share.clone() };
                $(set(&self.$name.get_or_create_owned(&of_share), &metrics.$name);)*
            }
        }

        /// The counters of one share.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Arc<Registry>,
            share: String,
            /// Requests by opcode number, as many as the registry has names of opcodes; 0 counts those without an opcode.
            pub requests: Box<[Counter]>,
            $(#[doc = $help] pub $name: Counter),*
        }

        impl Registry {
            /// The counters of the share `share`. A second call for the same share returns the same counters.
            pub fn share(self: &Arc<Self>, share: &str) -> Metrics {
                let mut numbers = 0..;
                let count = self.opcodes.len() + COUNTERS.len();
                let lanes = Arc::clone(self.shares.lock().entry(share.to_owned()).or_insert_with(|| Lanes::new(count)));
                let mut next = || Counter { lanes: Arc::clone(&lanes), number: numbers.next().unwrap_or(count) };
                Metrics {
                    $($name: next(),)*
                    requests: self.opcodes.iter().map(|_| next()).collect(),
                    registry: Arc::clone(self),
                    share: share.to_owned(),
                }
            }
        }

        impl Metrics {
            /// The counters in the order of [`COUNTERS`].
            fn in_order(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
                [$((stringify!($name), &self.$name)),*].into_iter()
            }
        }
    };
}

/// The requests, which have the label `opcode` in addition.
pub const REQUESTS: Definition =
    Definition { name: "requests", unit: Unit::Events, stability: Stability::Stable, help: "Requests by opcode" };

counters! {
    host_reads: Events, Stable, "System calls preadv2 for READ";
    host_writes: Events, Stable, "System calls pwritev2 for WRITE";
    host_read_bytes: Bytes, Stable, "Bytes that READ returned to the guest";
    host_write_bytes: Bytes, Stable, "Bytes that WRITE wrote to files";
    malformed_chains: Events, Stable, "Descriptor chains that violate the virtio specification";
    malformed_requests: Events, Stable, "Requests that could not be decoded";
    avail_jumps: Events, Stable, "Avail indexes that are ahead by more than the queue size";
    heads_twice: Events, Stable, "Descriptor chains that were dropped because their head was in flight already";
    recovered: Events, Stable, "Requests that a worker which died left unfinished, and that were executed again or answered with EIO";
    quarantined: Events, Stable, "Requests that ended two workers, the second one while they were executed alone, and were answered with EIO";
    out_of_session: Events, Stable, "Requests before INIT or after DESTROY";
    kicks: Events, Stable, "Kicks received";
    calls: Events, Stable, "Calls (interrupts) sent";
    parked: Events, Internal, "Requests that were suspended to wait for a lock";
    submitted: Events, Internal, "Transfers that an I/O engine accepted to complete later";
    ring_enters: Events, Internal, "System calls that submitted READs and WRITEs to io_uring";
    pinned_transfers: Events, Internal, "READs and WRITEs that were submitted with registered guest memory";
    throttled: Events, Internal, "Requests that waited because an I/O engine was full";
    withdrawn: Events, Stable, "Requests answered with EIO because the host did not finish them within --stop-timeout";
    withdrawn_finished: Events, Stable, "Withdrawn requests that the host has finished since";
    stuck: Events, Internal, "Threads that did not return from the host with a withdrawn request";
    stuck_returned: Events, Internal, "Stuck threads that have returned since";
    polls_found: Events, Internal, "Looks at a ring before a sleep that found a request";
    polls_in_vain: Events, Internal, "Looks at a ring before a sleep that found nothing";
    followers_woken: Events, Internal, "Times a follower took the lead because requests waited behind a slow one";
    connections: Events, Stable, "Frontend connections served";
}

/// The counters of the shares of a process, with the label `share`.
#[derive(Debug)]
pub struct Registry {
    opcodes: &'static [&'static str],
    /// The counters of each share.
    shares: Mutex<BTreeMap<String, Arc<Lanes>>>,
    families: Families,
    text: Text,
}

impl Registry {
    /// A registry without shares. `opcodes` are the names of the opcodes by number, "" for a number without an opcode.
    pub fn new(opcodes: &'static [&'static str]) -> Arc<Registry> {
        let mut text = Text::with_prefix("gatherfs");
        Arc::new(Registry { opcodes, shares: Mutex::default(), families: Families::new(&mut text), text })
    }

    /// The counters of all shares in the OpenMetrics text format.
    pub fn to_text(self: &Arc<Self>) -> String {
        let shares: Vec<String> = self.shares.lock().keys().cloned().collect();
        shares.iter().for_each(|share| self.families.export(&self.share(share)));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.text);
        text
    }
}

impl Metrics {
    /// The counters of the share `share`, in a registry of its own. `opcodes` as for [`Registry::new`].
    pub fn new(share: &str, opcodes: &'static [&'static str]) -> Metrics {
        Registry::new(opcodes).share(share)
    }

    /// The registry of the counters.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The counters as one line of JSON, without a line feed. Opcodes without requests are omitted.
    pub fn to_json(&self) -> String {
        let mut line = format!("{{\"share\":{},\"requests\":{{", json_string(&self.share));
        let mut comma = "";
        for (name, count) in self.registry.opcodes.iter().zip(&self.requests).filter(|(_, count)| count.get() > 0) {
            let name = if name.is_empty() { UNKNOWN } else { name };
            let _ = write!(line, "{comma}\"{name}\":{}", count.get());
            comma = ",";
        }
        line.push('}');
        for (name, count) in self.in_order() {
            let _ = write!(line, ",\"{name}\":{}", count.get());
        }
        line.push('}');
        line
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

    const OPCODES: &[&str] = &["", "LOOKUP", "", "READ"];

    #[test]
    fn json_names_what_was_counted() {
        let metrics = Metrics::new("/srv/share", OPCODES);
        metrics.requests[3].add(3);
        metrics.host_reads.add(2);
        let line = metrics.to_json();
        assert!(line.starts_with("{\"share\":\"/srv/share\",\"requests\":{\"READ\":3},\"host_reads\":2,\"host_writes\":0"), "{line}");
        assert!(line.ends_with(",\"connections\":0}"), "{line}");
        metrics.requests[0].increment();
        assert!(metrics.to_json().contains("\"requests\":{\"unknown\":1,\"READ\":3}"));
        for row in COUNTERS {
            assert_eq!(line.matches(&format!("\"{}\":", row.name)).count(), 1, "{}", row.name);
        }
    }

    #[test]
    fn a_share_of_any_name_is_a_json_string_in_one_line() {
        let line = Metrics::new("/srv/\"a\\b\"\n\u{7f}\u{85}ä", OPCODES).to_json();
        assert!(line.starts_with("{\"share\":\"/srv/\\\"a\\\\b\\\"\\u000a\\u007f\\u0085ä\",\"requests\":{},"), "{line}");
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn shares_of_one_registry_are_counted_apart_and_exported_together() {
        let registry = Registry::new(OPCODES);
        let (one, other) = (registry.share("/one"), registry.share("/other"));
        one.host_read_bytes.add(4096);
        one.requests[3].increment();
        other.requests[0].add(2);
        registry.share("/one").connections.increment();
        let text = registry.to_text();
        for line in [
            "# TYPE gatherfs_host_read_bytes counter",
            "gatherfs_host_read_bytes_total{share=\"/one\"} 4096",
            "gatherfs_host_read_bytes_total{share=\"/other\"} 0",
            "gatherfs_requests_total{share=\"/one\",opcode=\"READ\"} 1",
            "gatherfs_requests_total{share=\"/other\",opcode=\"unknown\"} 2",
            "gatherfs_connections_total{share=\"/one\"} 1",
        ] {
            assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{line}\n{text}");
        }
        assert_eq!(text.matches("gatherfs_requests_total{").count(), 2 * 3, "numbers without an opcode are not exported");
        assert_eq!((one.connections.get(), other.connections.get()), (1, 0));
    }

    #[test]
    fn a_unit_is_the_end_of_the_name_and_each_name_is_in_the_table_once() {
        let mut seen = std::collections::BTreeSet::new();
        for row in COUNTERS.iter().chain([&REQUESTS]) {
            assert!(seen.insert(row.name) && !row.help.ends_with('.'), "{}", row.name);
            assert_eq!(row.unit == Unit::Bytes, row.name.ends_with("_bytes"), "{}", row.name);
        }
    }
}
