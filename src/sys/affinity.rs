//! Sets of CPUs: in the kernel's list syntax (man cpuset(7), "List format"), and as the affinity of the calling thread (man
//! sched_setaffinity(2)).

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Numbers of CPUs are smaller than this, as in the C library's cpu_set_t.
pub const CPUS_MAX: usize = CpuSet::MAX_CPU;

/// The CPUs of this machine, as the kernel lists them.
const PRESENT: &str = "/sys/devices/system/cpu/present";

/// A set of CPUs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cpus(CpuSet);

/// A text is not a list of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuListError {
    /// Neither a number nor a range.
    #[error("expected numbers and ranges of CPUs, for example 0-3,8")]
    Malformed,
    /// Beyond the numbers that a set has.
    #[error("the highest number that a CPU can have is {}", CPUS_MAX - 1)]
    TooHigh,
}

impl Cpus {
    /// The CPUs on which the calling thread may run: of its affinity, those that its cpuset allows and that are online. EINVAL where
    /// the kernel has more CPUs than [`CPUS_MAX`].
    pub fn allowed() -> io::Result<Cpus> {
        Ok(Cpus(sched_getaffinity(None)?))
    }

    /// The CPUs that the machine has, online or not. `None` where they cannot be read, as without /sys.
    pub fn present() -> Option<Cpus> {
        std::fs::read_to_string(PRESENT).ok()?.trim().parse().ok()
    }

    /// Has the calling thread, and the threads that it starts from now on, run on these CPUs only. EINVAL where its cpuset allows
    /// none of them; those that it does not allow are left out.
    pub fn bind_thread(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.0)?)
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        u16::try_from(self.0.count()).unwrap_or(u16::MAX)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Those that are in both sets.
    pub fn and(&self, other: &Cpus) -> Cpus {
        self.filtered(|cpu| other.0.is_set(cpu))
    }

    /// Those that are not in `other`.
    pub fn without(&self, other: &Cpus) -> Cpus {
        self.filtered(|cpu| !other.0.is_set(cpu))
    }

    fn filtered(&self, is_kept: impl Fn(usize) -> bool) -> Cpus {
        let mut kept = CpuSet::new();
        for cpu in (0..CPUS_MAX).filter(|cpu| self.0.is_set(*cpu) && is_kept(*cpu)) {
            kept.set(cpu);
        }
        Cpus(kept)
    }
}

impl FromStr for Cpus {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Cpus, CpuListError> {
        let mut cpus = CpuSet::new();
        for item in text.split(',') {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(CpuListError::Malformed);
            }
            for cpu in first..=last {
                cpus.set(cpu);
            }
        }
        Ok(Cpus(cpus))
    }
}

fn number(text: &str) -> Result<usize, CpuListError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(CpuListError::Malformed);
    }
    text.parse().ok().filter(|cpu| *cpu < CPUS_MAX).ok_or(CpuListError::TooHigh)
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut cpu, mut comma) = (0, "");
        while cpu < CPUS_MAX {
            let len = (cpu..CPUS_MAX).take_while(|cpu| self.0.is_set(*cpu)).count();
            match len {
                0 => {}
                1 => write!(f, "{comma}{cpu}")?,
                _ => write!(f, "{comma}{cpu}-{}", cpu + len - 1)?,
            }
            if len > 0 {
                comma = ",";
            }
            cpu += len + 1;
        }
        Ok(())
    }
}

impl fmt::Debug for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cpus({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn cpus(text: &str) -> Cpus {
        text.parse().unwrap()
    }

    #[test]
    fn a_list_is_numbers_and_ranges() {
        for (text, shortest) in [("0", "0"), ("3,1,2", "1-3"), ("0-3,8", "0-3,8"), ("7-7,5", "5,7"), ("1-4,2-9", "1-9"), ("007", "7")] {
            assert_eq!(cpus(text).to_string(), shortest);
        }
        assert_eq!(cpus("1022-1023").to_string(), "1022-1023");
        for text in ["", ",", "1,", "-", "1-", "-1", "3-1", "1-2-3", "a", "+1", " 1", "1 2", "0x1", "1:2", "0-3/2", "\u{0661}"] {
            assert_eq!(text.parse::<Cpus>(), Err(CpuListError::Malformed), "{text:?}");
        }
        for text in ["1024", "0-1024", "99999999999999999999999"] {
            assert_eq!(text.parse::<Cpus>(), Err(CpuListError::TooHigh), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_again(numbers in proptest::collection::btree_set(0..CPUS_MAX, 1..40)) {
            let text = numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            let set = cpus(&text);
            proptest::prop_assert_eq!(cpus(&set.to_string()), set);
            let found: BTreeSet<usize> = (0..CPUS_MAX).filter(|cpu| set.0.is_set(*cpu)).collect();
            proptest::prop_assert_eq!(found, numbers);
        }

        #[test]
        fn any_text_is_a_list_or_an_error(text in "[0-9,-]{0,12}|\\PC{0,12}") {
            if let Ok(set) = text.parse::<Cpus>() {
                proptest::prop_assert!(!set.is_empty());
            }
        }

        #[test]
        fn sets_are_joined_and_taken_apart(a in 1u64.., b in 1u64..) {
            let of = |bits: u64| cpus(&(0..64).filter(|i| bits >> i & 1 == 1).map(|i| i.to_string()).collect::<Vec<_>>().join(","));
            let bits = |set: Cpus| (0..64).filter(|cpu| set.0.is_set(*cpu)).fold(0, |bits, cpu| bits | 1u64 << cpu);
            proptest::prop_assert_eq!(bits(of(a).and(&of(b))), a & b);
            proptest::prop_assert_eq!(bits(of(a).without(&of(b))), a & !b);
        }
    }

    #[test]
    fn a_thread_is_bound_and_so_is_what_it_starts() {
        let all = Cpus::allowed().unwrap();
        if let Some(present) = Cpus::present() {
            assert!(all.without(&present).is_empty(), "{all} of {present}");
        }
        for cpu in (0..CPUS_MAX).filter(|cpu| all.0.is_set(*cpu)) {
            let one = cpus(&cpu.to_string());
            let bound = std::thread::spawn(move || {
                one.bind_thread().unwrap();
                let started = std::thread::spawn(|| Cpus::allowed().unwrap());
                (Cpus::allowed().unwrap(), started.join().unwrap())
            });
            assert_eq!(bound.join().unwrap(), (one, one));
        }
        assert_eq!(Cpus::allowed().unwrap(), all, "of this thread");
    }

    #[test]
    fn a_thread_is_not_bound_to_cpus_that_are_not_there() {
        let absent = cpus("1023");
        let all = Cpus::allowed().unwrap();
        assert!(all.and(&absent).is_empty(), "a machine of 1024 CPUs");
        assert_eq!(absent.bind_thread().map_err(|e| e.raw_os_error()), Err(Some(libc::EINVAL)));
        assert_eq!(Cpus::allowed().unwrap(), all);
    }
}
