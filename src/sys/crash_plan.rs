//! Where workers are to die, in memory that they and a test have in common: a file that GATHERFS_CRASHES names. Only with the feature
//! `failpoints`. Counts the points that workers pass, over all of their lives. Does not know what happens at a point.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};
use rustix::time::{ClockId, clock_gettime};

/// Deaths that can be planned.
pub const DEATHS_MAX: usize = 2;
/// Points of which the names are kept: far more than an operation passes.
const NAMES_MAX: usize = 1000;
/// The longest name that is kept whole, in bytes.
const NAME_LEN: usize = 48;

#[repr(C)]
struct Page {
    /// 1 while points are counted.
    counts: AtomicU32,
    passed: AtomicU32,
    /// The numbers of the points at which a worker dies, from 0 on; [`u32::MAX`] for none.
    dies_at: [AtomicU32; DEATHS_MAX],
    /// The signals by which it dies there.
    dies_by: [AtomicU32; DEATHS_MAX],
    deaths: AtomicU32,
    /// 1 where a transfer is short that a worker dies behind: the kernel ends it early when the process is killed in it.
    cuts: AtomicU32,
    /// When the last one died, in ns of the monotonic clock.
    died_ns: AtomicU64,
    names: [[AtomicU8; NAME_LEN]; NAMES_MAX],
}

/// The plan.
#[derive(Debug)]
pub struct CrashPlan {
    page: NonNull<Page>,
    /// The process that made the mapping: it is the keeper, or the test, and does not die.
    owner: u32,
}

// SAFETY: every field of the page is atomic, and the mapping is never undone.
unsafe impl Send for CrashPlan {}
// SAFETY: as above.
unsafe impl Sync for CrashPlan {}

static PLAN: LazyLock<Option<CrashPlan>> = LazyLock::new(|| {
    let path = std::env::var_os("GATHERFS_CRASHES")?;
    CrashPlan::map(Path::new(&path)).inspect_err(|e| tracing::error!("GATHERFS_CRASHES: {}: {e}", path.display())).ok()
});

/// A point is passed; the process may end here. Whether the call that follows is to be cut short, if it is a transfer. The first call
/// maps the plan, and has to come before the process splits.
pub(super) fn pass(name: &str, moment: &str) -> bool {
    PLAN.as_ref().is_some_and(|plan| plan.pass(name, moment))
}

/// The monotonic clock, in ns.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

impl CrashPlan {
    /// Maps the file at `path`, which is made if need be. Nothing is planned in a new one, and nothing is counted.
    pub fn map(path: &Path) -> io::Result<CrashPlan> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(size_of::<Page>() as u64)?;
        let (null, len) = (std::ptr::null_mut(), size_of::<Page>());
        // SAFETY: the kernel chooses the place of a new mapping.
        let base = unsafe { rustix::mm::mmap(null, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file.as_fd(), 0) }?;
        let page = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(CrashPlan { page, owner: std::process::id() })
    }

    fn page(&self) -> &Page {
        // SAFETY: the mapping is as long as the page, lives as long as the process, and all its values are atomic integers.
        unsafe { self.page.as_ref() }
    }

    fn pass(&self, name: &str, moment: &str) -> bool {
        let page = self.page();
        if page.counts.load(Ordering::Acquire) == 0 || std::process::id() == self.owner {
            return false;
        }
        let number = page.passed.fetch_add(1, Ordering::AcqRel);
        if let Some(kept) = page.names.get(number as usize) {
            let bytes = moment.bytes().chain(name.bytes()).chain(std::iter::repeat(0));
            kept.iter().zip(bytes).for_each(|(byte, new)| byte.store(new, Ordering::Release));
        }
        if let Some(death) = page.dies_at.iter().position(|at| at.load(Ordering::Acquire) == number) {
            let signal = page.dies_by[death].load(Ordering::Acquire).cast_signed();
            page.died_ns.store(now_ns(), Ordering::Release);
            page.deaths.fetch_add(1, Ordering::AcqRel);
            // SAFETY: the process ends here. Not by kill(2), which the sandbox forbids.
            unsafe { libc::raise(signal) };
        }
        page.cuts.load(Ordering::Acquire) != 0 && page.dies_at.iter().any(|at| at.load(Ordering::Acquire) == number + 1)
    }

    /// From here on points are counted, from 0, and workers die at the points with the numbers in `deaths`, by the signals.
    /// With `cuts` a transfer is short that one dies behind.
    pub fn begin(&self, deaths: &[(u32, i32)], cuts: bool) {
        let page = self.page();
        page.cuts.store(cuts.into(), Ordering::Release);
        for (index, (at, by)) in page.dies_at.iter().zip(&page.dies_by).enumerate() {
            let (number, signal) = deaths.get(index).copied().unwrap_or((u32::MAX, libc::SIGKILL));
            by.store(signal.cast_unsigned(), Ordering::Release);
            at.store(number, Ordering::Release);
        }
        page.passed.store(0, Ordering::Release);
        page.deaths.store(0, Ordering::Release);
        page.counts.store(1, Ordering::Release);
    }

    /// From here on no point is counted, and no worker dies.
    pub fn end(&self) {
        self.page().counts.store(0, Ordering::Release);
    }

    /// The points that were passed since the plan began, by their names.
    pub fn passed(&self) -> Vec<String> {
        let page = self.page();
        let names = page.names.iter().take(page.passed.load(Ordering::Acquire) as usize);
        let name = |kept: &[AtomicU8; NAME_LEN]| {
            kept.iter().map(|byte| char::from(byte.load(Ordering::Acquire))).take_while(|letter| *letter != '\0').collect()
        };
        names.map(name).collect()
    }

    /// Workers that have died since the plan began.
    pub fn deaths(&self) -> usize {
        self.page().deaths.load(Ordering::Acquire) as usize
    }

    /// When the last of them died, in ns of the monotonic clock.
    pub fn died_ns(&self) -> u64 {
        self.page().died_ns.load(Ordering::Acquire)
    }
}
