//! Figures of a run: operations, bytes, latencies, CPU time, context switches and notifications.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Failure;

/// The longest latency that is told from longer ones, in nanoseconds: a minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Latencies, to two digits.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u32>);

impl Latency {
    fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_NS_MAX, 2).expect("the bounds are in order"))
    }

    fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).clamp(1, LATENCY_NS_MAX));
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// The latency in microseconds that the fraction `part` of all operations does not exceed.
    pub fn quantile(&self, part: f64) -> f64 {
        self.0.value_at_quantile(part) as f64 / 1e3
    }
}

/// What a load has done.
#[derive(Clone, Debug)]
pub struct Counts {
    /// Operations completed.
    pub operations: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Their latencies.
    pub latency: Latency,
}

impl Counts {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { operations: 0, bytes: 0, latency: Latency::new() }
    }

    /// One operation.
    pub fn record(&mut self, bytes: u64, latency: Duration) {
        self.operations += 1;
        self.bytes += bytes;
        self.latency.record(latency);
    }

    /// The operations of another queue.
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.latency.add(&other.latency);
    }
}

/// What one run of a load came to.
#[derive(Clone, Debug)]
pub struct Measure {
    /// What the load has done.
    pub counts: Counts,
    /// How long it took.
    pub seconds: f64,
    /// CPU time of the target, in microseconds.
    pub cpu_us: f64,
    /// Context switches of the target's threads, wanted and unwanted.
    pub switches: u64,
    /// Kicks that the guest sent and calls that it received.
    pub notifications: (u64, u64),
}

impl Measure {
    /// Operations a second.
    pub fn rate(&self) -> f64 {
        self.counts.operations as f64 / self.seconds
    }

    /// MB (10^6 bytes) a second.
    pub fn mb_per_second(&self) -> f64 {
        self.counts.bytes as f64 / self.seconds / 1e6
    }

    /// CPU time of the target for an operation, in microseconds.
    pub fn cpu_per_operation(&self) -> f64 {
        self.cpu_us / self.operations()
    }

    /// Context switches of the target for an operation.
    pub fn switches_per_operation(&self) -> f64 {
        self.switches as f64 / self.operations()
    }

    /// Kicks of the guest and calls of the device for an operation.
    pub fn notifications_per_operation(&self) -> (f64, f64) {
        let (kicks, calls) = self.notifications;
        (kicks as f64 / self.operations(), calls as f64 / self.operations())
    }

    fn operations(&self) -> f64 {
        self.counts.operations.max(1) as f64
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

/// The value in the middle; of an even number the upper one. 0 where there is none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The value that the fraction `part` of the values, which are in order, does not exceed. 0 where there is none.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).ceil() as usize).copied().unwrap_or(0.0)
}

/// The lower quartile, the median and the upper quartile.
pub fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [0.25, 0.5, 0.75].map(|part| quantile(&values, part))
}

/// The run with the median rate.
pub fn median_run(runs: &mut [Measure]) -> Measure {
    runs.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
    runs[runs.len() / 2].clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_hundredth() {
        let mut counts = Counts::new();
        (1..=1000).for_each(|us| counts.record(1, Duration::from_micros(us)));
        for (part, us) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let found = counts.latency.quantile(part);
            assert!((found - us).abs() <= us / 100.0, "{part}: {found} instead of {us}");
        }
        let mut other = Counts::new();
        (0..9000).for_each(|_| other.record(0, Duration::from_micros(1)));
        counts.add(&other);
        assert_eq!((counts.operations, counts.bytes), (10_000, 1000));
        assert!(counts.latency.quantile(0.5) < 1.1 && counts.latency.quantile(0.99) > 890.0);
    }

    #[test]
    fn a_latency_without_bounds_is_counted() {
        let mut counts = Counts::new();
        counts.record(0, Duration::MAX);
        counts.record(0, Duration::ZERO);
        assert!(counts.latency.quantile(1.0) >= 59e6);
    }

    #[test]
    fn the_median_is_that_of_the_values_in_order() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(vec![2.0, 1.0]), 2.0);
        assert_eq!(median(Vec::new()), 0.0);
        assert_eq!(quartiles(vec![4.0, 2.0, 5.0, 3.0, 1.0]), [2.0, 3.0, 4.0]);
        assert_eq!((quantile(&[1.0, 2.0], 0.01), quantile(&[], 0.5)), (2.0, 0.0));
    }
}
