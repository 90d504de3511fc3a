//! Figures of a run: operations, bytes, latencies, CPU time, and the median of several runs.

use std::time::{Duration, Instant};

use crate::Failure;

/// Latencies in buckets of an eighth of a power of two nanoseconds.
#[derive(Clone)]
pub struct Latency(Vec<u64>);

impl Latency {
    fn record(&mut self, latency: Duration) {
        let ns = latency.as_nanos().clamp(8, u128::from(u32::MAX)) as u32;
        let power = ns.ilog2();
        // The three bits below the highest one choose the eighth.
        let eighth = ns >> (power - 3) & 7;
        self.0[(power * 8 + eighth) as usize] += 1;
    }

    /// The latency in microseconds that the fraction `part` of all operations does not exceed.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut left = self.0.iter().sum::<u64>() as f64 * part;
        let reached = |count: &u64| {
            left -= *count as f64;
            left <= 0.0
        };
        let bucket = self.0.iter().position(reached).unwrap_or(0) as i32;
        f64::from(8 + bucket % 8 + 1) / 8.0 * 2f64.powi(bucket / 8) / 1e3
    }
}

/// What a load has done.
#[derive(Clone)]
pub struct Counts {
    pub operations: u64,
    pub bytes: u64,
    pub latency: Latency,
}

impl Counts {
    pub fn new() -> Self {
        let latency = Latency(vec![0; 32 * 8]);
        Self { operations: 0, bytes: 0, latency }
    }

    pub fn record(&mut self, bytes: u64, latency: Duration) {
        self.operations += 1;
        self.bytes += bytes;
        self.latency.record(latency);
    }

    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        let buckets = self.latency.0.iter_mut().zip(&other.latency.0);
        buckets.for_each(|(sum, count)| *sum += count);
    }
}

/// What one run of a load came to.
#[derive(Clone)]
pub struct Measure {
    pub counts: Counts,
    pub seconds: f64,
    pub cpu_us: f64,
}

impl Measure {
    pub fn rate(&self) -> f64 {
        self.counts.operations as f64 / self.seconds
    }

    pub fn mb_per_second(&self) -> f64 {
        self.counts.bytes as f64 / self.seconds / 1e6
    }

    pub fn cpu_per_operation(&self) -> f64 {
        self.cpu_us / self.counts.operations as f64
    }
}

/// Repeats an operation until `end`.
pub fn repeat(end: Instant, mut operation: impl FnMut() -> Result<(), Failure>) -> Result<Counts, Failure> {
    let mut counts = Counts::new();
    let mut now = Instant::now();
    while now < end {
        let start = now;
        operation()?;
        now = Instant::now();
        counts.record(0, now - start);
    }
    Ok(counts)
}

/// The run with the median rate.
pub fn median(runs: &mut [Measure]) -> Measure {
    runs.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
    runs[runs.len() / 2].clone()
}
