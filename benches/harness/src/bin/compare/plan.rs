//! The rows that are measured: the load of each, where guest and daemon run, and its goal.

use gatherfs_harness::load::{Io, Load, Meta, Op, Pattern};

/// What a row is measured in, and which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// CPU time of the daemon for an operation, in microseconds; less is better.
    CpuUs,
    /// Operations a second.
    Rate,
    /// MB (10^6 bytes) a second.
    MbPerSecond,
}

/// A table of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    OneCpu,
    Spinning,
    Depth,
    Segments,
    Origin,
    Sizes,
    Disk,
    Queues,
}

impl Section {
    /// In the order of the report.
    pub const ALL: [Self; 8] =
        [Self::OneCpu, Self::Spinning, Self::Depth, Self::Segments, Self::Origin, Self::Sizes, Self::Disk, Self::Queues];

    /// The heading of its table.
    pub fn title(self) -> &'static str {
        match self {
            Self::OneCpu => "Guest and daemon on one CPU: CPU time of the daemon per operation",
            Self::Spinning => "Guest spinning on another CPU: requests per second",
            Self::Depth => "Throughput against depth",
            Self::Segments => "Throughput against segments",
            Self::Origin => "32 x 4 KiB, packed and unpacked",
            Self::Sizes => "Sizes, order, direction",
            Self::Disk => "On a disk: cached, cold, O_DIRECT",
            Self::Queues => "Request queues",
        }
    }

    /// What a reader must know beside the title.
    pub fn note(self) -> &'static str {
        match self {
            Self::OneCpu => "tmpfs. The guest sleeps until the device calls. Microseconds per operation; a lower ratio is better.",
            Self::Spinning => {
                "tmpfs, or the disk with O_DIRECT (both daemons with `--allow-direct-io`). The guest polls the used ring and suppresses calls."
            }
            Self::Depth => "READ 4 KiB at random offsets, tmpfs, guest and daemon on a CPU each. Requests per second.",
            Self::Segments => {
                "READ of adjacent file blocks into scattered pages, one READ at a time, tmpfs, guest spinning on another CPU. MB/s. \
                 A READ of 4 MiB is split into as few requests as the device takes: virtiofsd 4 of 1 MiB, gatherfs 2 of 2 MiB."
            }
            Self::Origin => "Guest and daemon on one CPU, tmpfs, guest sleeping. MB/s.",
            Self::Sizes => "tmpfs, guest and daemon on a CPU each, guest sleeping, depth 1 unless named. Operations per second.",
            Self::Disk => {
                "The page cache of the file is dropped before each cold round. Guest and daemon on a CPU each, guest sleeping. \
                 Operations per second."
            }
            Self::Queues => {
                "tmpfs, 16 requests in flight in total, guest sleeping, no pinning, a guest thread per queue. virtiofsd has one queue, \
                 which takes all of them. Operations per second."
            }
        }
    }

    /// What its rows are measured in.
    pub fn metric(self) -> Metric {
        match self {
            Self::OneCpu => Metric::CpuUs,
            Self::Segments | Self::Origin => Metric::MbPerSecond,
            _ => Metric::Rate,
        }
    }
}

/// Where the share lies and how many request queues there are: what daemons are started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// On the disk rather than on tmpfs.
    pub disk: bool,
    /// The load file is opened with O_DIRECT, and the daemons pass that on.
    pub direct: bool,
    /// Request queues of the guest.
    pub queues: usize,
}

/// Where guest and daemon run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// Both on the same one.
    One,
    /// On one each.
    Two,
    /// Where the scheduler puts them.
    Any,
}

/// One row of a table.
#[derive(Clone, Debug)]
pub struct Row {
    pub section: Section,
    pub name: String,
    pub place: Place,
    pub cpus: Cpus,
    /// The guest polls the used ring.
    pub spinning: bool,
    /// The page cache is dropped before each measurement.
    pub cold: bool,
    /// `Io::depth` is that of all queues together.
    pub load: Load,
    pub goal: Option<f64>,
    /// Measured by `--quick` too.
    pub quick: bool,
}

const TMPFS: Place = Place { disk: false, direct: false, queues: 1 };
const DISK: Place = Place { disk: true, direct: false, queues: 1 };
const DIRECT: Place = Place { disk: true, direct: true, queues: 1 };
const PAGE: u32 = 4096;

/// `count` segments of 4 KiB.
pub fn pages(op: Op, pattern: Pattern, count: u32, depth: usize) -> Load {
    Load::Io(Io { op, pattern, block_size: count * PAGE, segment_size: PAGE, depth, contiguous: false })
}

fn one_cpu() -> Vec<Row> {
    use Op::{Read, Write};
    use Pattern::{Random, Seq};
    let one_segment = Io { op: Read, pattern: Seq, block_size: 32 * PAGE, segment_size: 32 * PAGE, depth: 1, contiguous: true };
    let meta = Load::Meta;
    let rows = [
        ("READ 32 x 4 KiB", pages(Read, Seq, 32, 1), Some(0.70)),
        ("WRITE 32 x 4 KiB", pages(Write, Seq, 32, 1), Some(0.74)),
        ("READ 4 KiB random", pages(Read, Random, 1, 1), Some(0.60)),
        ("WRITE 4 KiB random", pages(Write, Random, 1, 1), Some(0.60)),
        ("READ 4 KiB, 32 in flight", pages(Read, Seq, 1, 32), Some(0.50)),
        ("READ 1 x 128 KiB", Load::Io(one_segment), Some(0.88)),
        ("GETATTR", meta(Meta::Getattr), Some(0.42)),
        ("LOOKUP known", meta(Meta::Lookup), Some(0.36)),
        ("LOOKUP new", meta(Meta::LookupNew), Some(0.40)),
        ("LOOKUP missing", meta(Meta::LookupMissing), Some(0.45)),
        ("OPEN + RELEASE", meta(Meta::OpenRelease), Some(0.60)),
        ("CREATE + RELEASE + UNLINK", meta(Meta::CreateUnlink), Some(0.45)),
        ("RENAME", meta(Meta::Rename), None),
        ("READDIR of 5,000", meta(Meta::Readdir), Some(0.60)),
        ("READDIRPLUS of 5,000", meta(Meta::Readdirplus), Some(0.20)),
        ("small file: LOOKUP, OPEN, READ, RELEASE", meta(Meta::SmallFile), Some(0.48)),
    ];
    rows.map(|(name, load, goal)| Row { goal, ..row(Section::OneCpu, name, TMPFS, Cpus::One, load) }).into()
}

fn row(section: Section, name: impl Into<String>, place: Place, cpus: Cpus, load: Load) -> Row {
    Row { section, name: name.into(), place, cpus, spinning: false, cold: false, load, goal: None, quick: true }
}

fn spinning(section: Section, name: impl Into<String>, place: Place, load: Load) -> Row {
    Row { spinning: true, ..row(section, name, place, Cpus::Two, load) }
}

fn spinning_rows() -> Vec<Row> {
    let goal = |name: &str, depth: usize, load: fn(usize) -> Load, goal| Row {
        goal: Some(goal),
        ..spinning(Section::Spinning, format!("{name}, depth {depth}"), TMPFS, load(depth))
    };
    let random = |depth| pages(Op::Read, Pattern::Random, 1, depth);
    let packed = |depth| pages(Op::Read, Pattern::Seq, 32, depth);
    let getattr = |depth| pages(Op::Getattr, Pattern::Seq, 1, depth);
    let mut rows = Vec::new();
    rows.extend([(1, 1.2), (4, 1.9), (16, 1.9), (64, 1.9)].map(|(depth, wanted)| goal("READ 4 KiB random", depth, random, wanted)));
    rows.extend([1, 4, 16, 64].map(|depth| goal("READ 32 x 4 KiB", depth, packed, 1.5)));
    rows.extend([4, 16, 64].map(|depth| goal("GETATTR", depth, getattr, 4.5)));
    let direct = [
        ("READ 4 KiB random", random as fn(usize) -> Load, 1, 1.15),
        ("READ 4 KiB random", random, 16, 1.3),
        ("READ 32 x 4 KiB", packed, 1, 1.1),
        ("READ 32 x 4 KiB", packed, 16, 1.2),
    ];
    rows.extend(direct.map(|(name, load, depth, wanted)| Row {
        goal: Some(wanted),
        ..spinning(Section::Spinning, format!("O_DIRECT {name}, depth {depth}"), DIRECT, load(depth))
    }));
    rows
}

fn sweeps() -> Vec<Row> {
    let random = |depth| pages(Op::Read, Pattern::Random, 1, depth);
    let mut rows = Vec::new();
    for depth in [2, 8, 32] {
        rows.push(spinning(Section::Depth, format!("guest spinning, depth {depth}"), TMPFS, random(depth)));
    }
    for depth in [1, 2, 4, 8, 16, 32, 64] {
        let quick = [1, 4, 16, 64].contains(&depth);
        rows.push(Row { quick, ..row(Section::Depth, format!("guest sleeping, depth {depth}"), TMPFS, Cpus::Two, random(depth)) });
    }
    for count in [1, 4, 16, 32, 64, 256, 1024] {
        let size = count * PAGE / 1024;
        let size = if size < 1024 { format!("{size} KiB") } else { format!("{} MiB", size / 1024) };
        let name = format!("READ {count} x 4 KiB = {size}");
        rows.push(spinning(Section::Segments, name, TMPFS, pages(Op::Read, Pattern::Seq, count, 1)));
    }
    let origin = [
        ("readv packed", Op::Read, 32),
        ("readv unpacked", Op::Read, 1),
        ("writev packed", Op::Write, 32),
        ("writev unpacked", Op::Write, 1),
    ];
    rows.extend(origin.map(|(name, op, count)| row(Section::Origin, name, TMPFS, Cpus::One, pages(op, Pattern::Seq, count, 1))));
    rows
}

fn sizes() -> Vec<Row> {
    let mut rows = Vec::new();
    for op in [Op::Read, Op::Write] {
        for (pattern, order) in [(Pattern::Seq, "sequential"), (Pattern::Random, "random")] {
            for (count, size) in [(1, "4 KiB"), (32, "128 KiB"), (256, "1 MiB")] {
                let name = format!("{} {size} {order}", if op == Op::Read { "READ" } else { "WRITE" });
                let quick = count == 32 && pattern == Pattern::Random;
                rows.push(Row { quick, ..row(Section::Sizes, name, TMPFS, Cpus::Two, pages(op, pattern, count, 1)) });
            }
        }
    }
    rows.push(row(Section::Sizes, "7 READ : 3 WRITE 4 KiB random, depth 16", TMPFS, Cpus::Two, pages(Op::Mixed, Pattern::Random, 1, 16)));
    rows
}

fn disk_and_queues() -> Vec<Row> {
    use Op::{Read, Write};
    use Pattern::{Random, Seq};
    let disk = |name: &str, place, load| row(Section::Disk, name, place, Cpus::Two, load);
    let cold = |name: &str, load| Row { cold: true, ..disk(name, DISK, load) };
    let mut rows = vec![
        disk("cached READ 4 KiB random", DISK, pages(Read, Random, 1, 1)),
        disk("cached READ 128 KiB sequential", DISK, pages(Read, Seq, 32, 1)),
        disk("cached WRITE 4 KiB random", DISK, pages(Write, Random, 1, 1)),
        disk("cached WRITE 128 KiB sequential", DISK, pages(Write, Seq, 32, 1)),
        cold("cold READ 4 KiB random", pages(Read, Random, 1, 1)),
        cold("cold READ 4 KiB random, depth 16", pages(Read, Random, 1, 16)),
        cold("cold READ 128 KiB sequential", pages(Read, Seq, 32, 1)),
        disk("O_DIRECT WRITE 4 KiB random", DIRECT, pages(Write, Random, 1, 1)),
        disk("O_DIRECT WRITE 4 KiB random, depth 16", DIRECT, pages(Write, Random, 1, 16)),
        disk("O_DIRECT READ 1 MiB sequential, depth 4", DIRECT, pages(Read, Seq, 256, 4)),
    ];
    for queues in [1, 2, 4] {
        let place = Place { queues, ..TMPFS };
        let s = if queues == 1 { "" } else { "s" };
        for (name, load) in [("READ 4 KiB random", pages(Read, Random, 1, 16)), ("READ 32 x 4 KiB", pages(Read, Seq, 32, 16))] {
            rows.push(row(Section::Queues, format!("{name}, {queues} queue{s}"), place, Cpus::Any, load));
        }
    }
    rows
}

/// All rows, those of one place together, with `quick` those of the short run.
pub fn rows(quick: bool) -> Vec<Row> {
    let mut rows = [one_cpu(), spinning_rows(), sweeps(), sizes(), disk_and_queues()].concat();
    rows.retain(|row| row.quick || !quick);
    rows.sort_by_key(|row| (row.place.disk, row.place.direct, row.place.queues));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_has_rows_in_both_runs_and_names_are_told_apart() {
        for quick in [false, true] {
            let rows = rows(quick);
            for section in Section::ALL {
                assert!(rows.iter().any(|row| row.section == section), "{section:?}");
            }
            for (i, row) in rows.iter().enumerate() {
                assert!(!rows[..i].iter().any(|other| (other.section, &other.name) == (row.section, &row.name)), "{}", row.name);
            }
        }
    }

    #[test]
    fn daemons_of_a_place_are_started_once() {
        let rows = rows(false);
        let changes = rows.windows(2).filter(|pair| pair[0].place != pair[1].place).count();
        let mut places: Vec<Place> = Vec::new();
        rows.iter().for_each(|row| {
            if !places.contains(&row.place) {
                places.push(row.place);
            }
        });
        assert_eq!(changes + 1, places.len());
    }

    #[test]
    fn every_goal_of_a_table_has_its_row() {
        let count = |section| rows(true).iter().filter(|row| row.section == section && row.goal.is_some()).count();
        assert_eq!((count(Section::OneCpu), count(Section::Spinning)), (15, 15));
    }
}
