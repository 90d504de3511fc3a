//! Who answers a request: the thread that serves it, or whoever stops its queue because the host does not finish it.
//! Exactly one of them writes to the guest's reply.

use std::sync::atomic::{AtomicU8, Ordering};

/// Nobody has answered yet.
const OPEN: u8 = 0;
/// The serving thread answers, or has answered.
const TAKEN: u8 = 1;
/// Somebody else has answered.
const WITHDRAWN: u8 = 2;

/// The right to answer one request. A serving thread has one object, which it uses for one request after the other.
#[derive(Debug, Default)]
pub struct Claim(AtomicU8);

impl Claim {
    /// A new request begins, which nobody else knows of yet.
    pub fn begin(&self) {
        self.0.store(OPEN, Ordering::Release);
    }

    /// For the serving thread: whether the request is its to answer. From then on nobody can withdraw it.
    pub fn take(&self) -> bool {
        let taken = self.0.compare_exchange(OPEN, TAKEN, Ordering::AcqRel, Ordering::Acquire);
        taken.is_ok() || taken == Err(TAKEN)
    }

    /// For whoever stops the queue: takes the request away from its thread. False where that is about to answer it.
    pub fn withdraw(&self) -> bool {
        self.0.compare_exchange(OPEN, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether the request was taken away.
    pub fn is_withdrawn(&self) -> bool {
        self.0.load(Ordering::Acquire) == WITHDRAWN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn one_of_two_gets_the_request() {
        let (claim, answers) = (Claim::default(), AtomicUsize::new(0));
        for round in 1..=1000 {
            claim.begin();
            std::thread::scope(|scope| {
                for get in [Claim::take, Claim::withdraw] {
                    let (claim, answers) = (&claim, &answers);
                    scope.spawn(move || _ = get(claim).then(|| answers.fetch_add(1, Ordering::Relaxed)));
                }
            });
            assert_eq!(answers.load(Ordering::Relaxed), round);
            assert_eq!(claim.take(), !claim.is_withdrawn(), "asked again, the answer is the same");
            assert!(!claim.withdraw());
        }
    }
}
