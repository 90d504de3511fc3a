//! `--queue-cpus`: a list of CPUs for each request queue, checked against those of the machine and those that this process may use.

use std::str::FromStr;

use crate::device::{QueueCpus, REQUEST_QUEUES_MAX};
use crate::sys::affinity::{CpuListError, Cpus};
use crate::types::Errno;

/// The value of the option: one list of CPUs or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuLists(Vec<Cpus>);

/// The value is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuListsError {
    /// A list is.
    #[error("list {number} ({text}): {source}; separate the lists of the queues by colons")]
    List {
        /// Which one, from 1.
        number: usize,
        /// The list.
        text: String,
        /// What is wrong with it.
        source: CpuListError,
    },
    /// There are more lists than queues can be.
    #[error("more than {REQUEST_QUEUES_MAX} lists; expected one for each request queue, or one for all")]
    TooMany,
}

impl FromStr for CpuLists {
    type Err = CpuListsError;

    fn from_str(value: &str) -> Result<CpuLists, CpuListsError> {
        let parse = |(at, text): (usize, &str)| {
            text.parse().map_err(|source| CpuListsError::List { number: at + 1, text: text.to_owned(), source })
        };
        if value.split(':').nth(REQUEST_QUEUES_MAX.into()).is_some() {
            return Err(CpuListsError::TooMany);
        }
        value.split(':').enumerate().map(parse).collect::<Result<_, _>>().map(CpuLists)
    }
}

/// Why queues cannot be bound to the CPUs of the lists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueCpusError {
    /// Some queues have no list, or some lists have no queue.
    #[error("{lists} lists with --num-request-queues {queues}; give one for each queue, or one for all")]
    Count {
        /// Lists that were given.
        lists: usize,
        /// Request queues that were given.
        queues: u16,
    },
    /// A CPU that is not there.
    #[error("list {number} ({list}) has CPUs that this machine does not have ({absent}); name some of {present}")]
    Absent {
        /// Which list, from 1.
        number: usize,
        /// The list.
        list: String,
        /// Those of it that are not there.
        absent: String,
        /// The CPUs of the machine.
        present: String,
    },
    /// No CPU of a list can be used.
    #[error("list {number} ({list}) has no CPU that this process may use; name some of {allowed}, or change its affinity or cpuset")]
    NoneAllowed {
        /// Which list, from 1.
        number: usize,
        /// The list.
        list: String,
        /// The CPUs that this process may use.
        allowed: String,
    },
    /// The CPUs that this process may use are not known.
    #[error("the CPUs that this process may use cannot be read: {0}; leave the option out")]
    Unknown(Errno),
}

/// Warning about a list some of whose CPUs cannot be used.
#[derive(Debug, PartialEq, Eq)]
struct Reduced {
    number: usize,
    list: Cpus,
    used: Cpus,
}

/// The CPUs of each queue: those of its list that this process may use. With a warning where that is not all of them.
///
/// # Errors
/// The number of lists is not that of `request_queues`, which were given, or a list has CPUs that are not there, or none that this
/// process may use.
pub fn queue_cpus(lists: Option<&CpuLists>, request_queues: Option<u16>) -> Result<QueueCpus, QueueCpusError> {
    let Some(lists) = lists else { return Ok(QueueCpus::default()) };
    let allowed = Cpus::allowed().map_err(|e| QueueCpusError::Unknown(e.into()))?;
    let (cpus, reduced) = usable(lists, request_queues, &allowed, Cpus::present().as_ref())?;
    for Reduced { number, list, used } in reduced {
        let missing = list.without(&used);
        tracing::warn!("--queue-cpus: list {number} ({list}): this process may not use {missing}; the threads of the queue run on {used}");
    }
    Ok(QueueCpus::new(cpus))
}

fn usable(
    CpuLists(lists): &CpuLists,
    request_queues: Option<u16>,
    allowed: &Cpus,
    present: Option<&Cpus>,
) -> Result<(Vec<Cpus>, Vec<Reduced>), QueueCpusError> {
    if let Some(queues) = request_queues.filter(|queues| lists.len() != 1 && lists.len() != usize::from(*queues)) {
        return Err(QueueCpusError::Count { lists: lists.len(), queues });
    }
    let (mut cpus, mut reduced) = (Vec::new(), Vec::new());
    for (number, list) in (1..).zip(lists) {
        if let Some(present) = present.filter(|present| !list.without(present).is_empty()) {
            return Err(QueueCpusError::Absent {
                number,
                list: list.to_string(),
                absent: list.without(present).to_string(),
                present: present.to_string(),
            });
        }
        let used = list.and(allowed);
        if used.is_empty() {
            return Err(QueueCpusError::NoneAllowed { number, list: list.to_string(), allowed: allowed.to_string() });
        }
        if used != *list {
            reduced.push(Reduced { number, list: *list, used });
        }
        cpus.push(used);
    }
    Ok((cpus, reduced))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(text: &str) -> Cpus {
        text.parse().unwrap()
    }

    /// On a machine with the CPUs 0 to 7, of which the process may use 2 to 5.
    fn of(value: &str, request_queues: Option<u16>) -> Result<(Vec<Cpus>, Vec<Reduced>), String> {
        let lists = value.parse().map_err(|e: CpuListsError| e.to_string())?;
        usable(&lists, request_queues, &cpus("2-5"), Some(&cpus("0-7"))).map_err(|e| e.to_string())
    }

    #[test]
    fn each_list_is_reduced_to_what_may_be_used() {
        assert_eq!(of("2:3-4:5", None), Ok((vec![cpus("2"), cpus("3-4"), cpus("5")], vec![])));
        assert_eq!(of("2-3", Some(9)).unwrap().0, [cpus("2-3")], "one for all");
        assert_eq!(of("2:3", Some(2)).unwrap().0, [cpus("2"), cpus("3")]);
        let reduced = Reduced { number: 2, list: cpus("4-7"), used: cpus("4-5") };
        assert_eq!(of("2:4-7", None), Ok((vec![cpus("2"), cpus("4-5")], vec![reduced])));
        // Without /sys it is not known whether the others are there.
        let lists = "0-99".parse().unwrap();
        assert_eq!(usable(&lists, None, &cpus("2-5"), None).unwrap().0, [cpus("2-5")]);
    }

    #[test]
    fn each_mistake_is_a_sentence_with_the_list_and_what_to_do() {
        let cases = [
            ("", None, "list 1 (): expected numbers and ranges of CPUs, for example 0-3,8; separate the lists of the queues by colons"),
            ("2:", None, "list 2 (): expected numbers and ranges of CPUs, for example 0-3,8; separate the lists of the queues by colons"),
            (
                "2;3",
                None,
                "list 1 (2;3): expected numbers and ranges of CPUs, for example 0-3,8; separate the lists of the queues by colons",
            ),
            (
                "2:3-5000",
                None,
                "list 2 (3-5000): the highest number that a CPU can have is 1023; separate the lists of the queues by colons",
            ),
            ("2:3", Some(3), "2 lists with --num-request-queues 3; give one for each queue, or one for all"),
            ("2:3:4", Some(1), "3 lists with --num-request-queues 1; give one for each queue, or one for all"),
            ("2:5-9", None, "list 2 (5-9) has CPUs that this machine does not have (8-9); name some of 0-7"),
            ("2:0-1,6", None, "list 2 (0-1,6) has no CPU that this process may use; name some of 2-5, or change its affinity or cpuset"),
        ];
        for (value, request_queues, expected) in cases {
            assert_eq!(of(value, request_queues), Err(expected.to_owned()), "{value}");
        }
        assert!(of(&["2"; 64].join(":"), Some(64)).is_ok());
        let expected = "more than 64 lists; expected one for each request queue, or one for all";
        assert_eq!(of(&["2"; 65].join(":"), None), Err(expected.to_owned()));
    }

    proptest::proptest! {
        #[test]
        fn any_value_is_a_set_for_each_list_or_one_sentence(value in "[0-9,:-]{0,16}|\\PC{0,16}", request_queues in proptest::option::of(1u16..4)) {
            match of(&value, request_queues) {
                Ok((sets, _)) => {
                    proptest::prop_assert_eq!(sets.len(), value.split(':').count());
                    proptest::prop_assert!(sets.iter().all(|set| !set.is_empty() && set.without(&cpus("2-5")).is_empty()));
                }
                Err(said) => proptest::prop_assert!(!said.contains('\n'), "{said}"),
            }
        }
    }
}
