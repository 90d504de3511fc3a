//! The CPUs on which the threads of each request queue run. Knows nothing of what the threads do.

use std::sync::Arc;

use crate::sys::affinity::Cpus;
use crate::types::QueueIndex;

/// A set of CPUs for each request queue, one for all of them, or none: then threads run where the process may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueCpus(Arc<[Cpus]>);

/// The CPUs of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OfQueue<'c> {
    /// All on which the process may run.
    Any,
    /// These.
    Only(&'c Cpus),
    /// All on which the process may run, although other queues have CPUs of their own: the VMM has more queues than there are sets.
    Missing,
}

impl QueueCpus {
    /// The first set for the first request queue, and so on; a single one for all.
    pub fn new(sets: Vec<Cpus>) -> QueueCpus {
        QueueCpus(sets.into())
    }

    /// Whether no thread is bound.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The CPUs of queue `index`. hiprio has none of its own, so that it is served while those of the request queues are busy.
    pub(super) fn of(&self, index: QueueIndex) -> OfQueue<'_> {
        let Some(request_queue) = usize::from(index.0).checked_sub(1) else { return OfQueue::Any };
        match &*self.0 {
            [] => OfQueue::Any,
            [all] => OfQueue::Only(all),
            sets => sets.get(request_queue).map_or(OfQueue::Missing, OfQueue::Only),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_queue_has_its_set_or_all_have_the_only_one() {
        let set = |text: &str| text.parse::<Cpus>().unwrap();
        let queue = QueueIndex;
        let two = QueueCpus::new(vec![set("0-3"), set("4")]);
        assert_eq!([two.of(queue(1)), two.of(queue(2))], [OfQueue::Only(&set("0-3")), OfQueue::Only(&set("4"))]);
        assert_eq!(two.of(queue(3)), OfQueue::Missing);
        let one = QueueCpus::new(vec![set("5")]);
        assert_eq!([one.of(queue(1)), one.of(queue(64))], [OfQueue::Only(&set("5")); 2]);
        for cpus in [&two, &one, &QueueCpus::default()] {
            assert_eq!(cpus.of(QueueIndex::HIPRIO), OfQueue::Any);
        }
        assert_eq!(QueueCpus::default().of(queue(1)), OfQueue::Any);
    }
}
