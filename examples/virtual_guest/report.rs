//! The tables on standard output.

use gatherfs_harness::load::{Load, Target};

use crate::targets::Measured;

pub fn print_table(rows: &[(String, Load)], targets: &[Target], table: &[Vec<Measured>]) {
    println!(
        "{:<29} {:<10} {:>9} {:>8} {:>8} {:>8} {:>9} {:>7} {:>17}",
        "operation", "daemon", "op/s", "MB/s", "p50 us", "p99 us", "CPU us/op", "op/s x", "CPU x (quartiles)"
    );
    for ((name, _), measures) in rows.iter().zip(table) {
        let first = &measures[0].median;
        for (i, (target, Measured { median: measure, cpu_ratio: [low, ratio, high] })) in targets.iter().zip(measures).enumerate() {
            println!(
                "{:<29} {:<10} {:>9.0} {:>8} {:>8.1} {:>8.1} {:>9.2} {:>7.2} {:>17}",
                if i == 0 { name } else { "" },
                target.name(),
                measure.rate(),
                match measure.counts.bytes {
                    0 => "-".into(),
                    _ => format!("{:.1}", measure.mb_per_second()),
                },
                measure.counts.latency.quantile(0.5),
                measure.counts.latency.quantile(0.99),
                measure.cpu_per_operation(),
                measure.rate() / first.rate(),
                format!("{ratio:.2} ({low:.2}-{high:.2})"),
            );
        }
    }
}

/// How many times the bytes per second of one request per segment one packed request moves.
pub fn print_origin(targets: &[Target], table: &[Vec<Measured>]) {
    println!("\n{:<29} {:<10} {:>9} {:>9}", "packed / unpacked MB/s", "daemon", "readv x", "writev x");
    for (i, target) in targets.iter().enumerate() {
        let ratio = |a: usize, b: usize| table[a][i].median.mb_per_second() / table[b][i].median.mb_per_second();
        println!("{:<29} {:<10} {:>9.1} {:>9.1}", "", target.name(), ratio(0, 1), ratio(2, 3));
    }
}
