//! How long the guest waited, by operation, by point and by kind of point.

use std::collections::BTreeMap;
use std::fmt;

/// Pauses in microseconds, from the death to the answer.
#[derive(Default)]
pub struct Table {
    operations: Vec<(String, Vec<u64>)>,
    points: BTreeMap<String, Vec<u64>>,
}

impl Table {
    /// The worker died at `point` of `operation`, and the guest waited.
    pub fn add(&mut self, operation: &str, point: &str, pause_us: Option<u64>) {
        if self.operations.last().is_none_or(|(last, _)| last != operation) {
            self.operations.push((operation.to_owned(), Vec::new()));
        }
        if let Some((_, pauses)) = self.operations.last_mut() {
            pauses.extend(pause_us);
        }
        self.points.entry(point.to_owned()).or_default().extend(pause_us);
    }
}

/// The kind of a point, by its name.
fn kind_of(point: &str) -> &'static str {
    match point.split_once(' ').map_or(point, |(first, _)| first) {
        "before" => "before a system call",
        "after" => "behind a system call",
        "pop," => "while the request is taken off the ring",
        "publish," | "push," => "while the answer is put into the ring",
        "attached" | "recovered" | "swept" | "ready" | "left" => "in the recovery, between its steps",
        _ => "between the stores of the operation's records",
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, pauses: &[u64]| {
            let mut sorted = pauses.to_vec();
            sorted.sort_unstable();
            let ms = |us: Option<&u64>| us.map_or(0.0, |us| *us as f64 / 1000.0);
            writeln!(f, "| {name} | {} | {:.1} | {:.1} |", sorted.len(), ms(sorted.get(sorted.len() / 2)), ms(sorted.last()))
        };
        writeln!(f, "| operation | deaths | median pause, ms | longest, ms |\n|---|--:|--:|--:|")?;
        self.operations.iter().try_for_each(|(name, pauses)| row(f, name, pauses))?;
        writeln!(f, "\n| point | deaths | median pause, ms | longest, ms |\n|---|--:|--:|--:|")?;
        self.points.iter().try_for_each(|(name, pauses)| row(f, name, pauses))?;
        let mut kinds: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        self.points.iter().for_each(|(name, pauses)| kinds.entry(kind_of(name)).or_default().extend(pauses));
        writeln!(f, "\n| kind of point | deaths | median pause, ms | longest, ms |\n|---|--:|--:|--:|")?;
        kinds.iter().try_for_each(|(name, pauses)| row(f, name, pauses))?;
        let all: Vec<u64> = self.points.values().flatten().copied().collect();
        row(f, "all", &all)
    }
}
