//! Arbitrates who answers a request: the thread that serves it, or the one that stops its queue because the host does not
//! finish it. Exactly one of them writes the reply.

use std::sync::atomic::{AtomicU8, Ordering};

/// Not answered; a thread serves the request.
const SERVED: u8 = 0;
/// Not answered; held by an engine or a list, not by a thread.
const SUBMITTED: u8 = 1;
/// Answered, or being answered, by the thread that serves it.
const TAKEN: u8 = 2;
/// Answered by the thread that stopped the queue.
const WITHDRAWN: u8 = 3;

/// From whom a request was withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// A serving thread, which has not come back from the host.
    Thread,
    /// An engine, or a list.
    Elsewhere,
}

/// The right to answer a request. There is one for each storage of requests, used for one request after the other. In a cache
/// line of its own, as each request writes to it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Claim(AtomicU8);

impl Claim {
    /// Starts over with a new request that a thread serves. No other thread may know of it yet.
    pub fn begin(&self) {
        self.0.store(SERVED, Ordering::Release);
    }

    /// The request leaves its thread.
    pub fn leave_thread(&self) {
        let _ = self.0.compare_exchange(SERVED, SUBMITTED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// A thread serves the request again, or finishes its transfer.
    pub fn enter_thread(&self) {
        let _ = self.0.compare_exchange(SUBMITTED, SERVED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Called before the reply is written: whether the caller may write it. The request cannot be withdrawn afterwards.
    pub fn take(&self) -> bool {
        let take_from = |from| self.0.compare_exchange(from, TAKEN, Ordering::AcqRel, Ordering::Acquire);
        match take_from(SERVED) {
            Ok(_) | Err(TAKEN) => true,
            Err(SUBMITTED) => take_from(SUBMITTED).is_ok(),
            Err(_) => false,
        }
    }

    /// Called to stop a queue: takes the request away from its holder. `None` if the holder answers it.
    pub fn withdraw(&self) -> Option<Holder> {
        let withdraw_from = |from| self.0.compare_exchange(from, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok();
        loop {
            match self.0.load(Ordering::Acquire) {
                SERVED if withdraw_from(SERVED) => return Some(Holder::Thread),
                SUBMITTED if withdraw_from(SUBMITTED) => return Some(Holder::Elsewhere),
                SERVED | SUBMITTED => {}
                _ => return None,
            }
        }
    }

    /// Whether the request was withdrawn.
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
        let withdraw: fn(&Claim) -> bool = |claim| claim.withdraw().is_some();
        for round in 1..=1000 {
            claim.begin();
            if round % 2 == 0 {
                claim.leave_thread();
            }
            std::thread::scope(|scope| {
                for get in [Claim::take, withdraw] {
                    let (claim, answers) = (&claim, &answers);
                    scope.spawn(move || _ = get(claim).then(|| answers.fetch_add(1, Ordering::Relaxed)));
                }
            });
            assert_eq!(answers.load(Ordering::Relaxed), round);
            assert_eq!(claim.take(), !claim.is_withdrawn(), "asked again, the answer is the same");
            assert_eq!(claim.withdraw(), None);
        }
    }

    #[test]
    fn a_withdrawal_tells_whether_a_thread_is_with_the_host() {
        let claim = Claim::default();
        claim.begin();
        assert_eq!(claim.withdraw(), Some(Holder::Thread));
        claim.leave_thread();
        assert!(claim.is_withdrawn() && !claim.take());
        claim.begin();
        claim.leave_thread();
        assert_eq!(claim.withdraw(), Some(Holder::Elsewhere));
        claim.begin();
        claim.leave_thread();
        claim.enter_thread();
        assert_eq!(claim.withdraw(), Some(Holder::Thread));
    }
}
