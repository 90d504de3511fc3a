//! Requests that were passed on to the worker and have not been answered. A worker that dies leaves them to the next one.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::message::Message;

/// Requests that are kept. A frontend that sends more before it reads an answer loses the oldest with the worker.
const PENDING_MAX: usize = 64;

/// Requests without an answer in the order in which they were passed on, and those behind them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Pending(VecDeque<Request>);

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    message: Message,
    is_answered: bool,
}

impl Pending {
    /// `message` was passed on; `acknowledges`: the worker answers every request that asks for it. `accept` gets it, and those before
    /// it, as soon as the worker owes no answer to it.
    pub fn passed(&mut self, message: Message, acknowledges: bool, accept: &mut impl FnMut(Message)) {
        let is_answered = message.has_own_reply() || acknowledges && message.wants_reply();
        self.0.push_back(Request { message, is_answered });
        if self.0.len() > PENDING_MAX
            && let Some(oldest) = self.0.pop_front()
        {
            accept(oldest.message);
        }
        self.settle(accept);
    }

    /// The worker sent `reply`. `accept` gets the request that it answers, if it was not refused, and those before it.
    pub fn answered(&mut self, reply: &Message, accept: &mut impl FnMut(Message)) {
        if let Some(place) = self.0.iter().position(|request| request.is_answered && request.message.number() == reply.number()) {
            for (at, Request { message, .. }) in self.0.drain(..=place).enumerate() {
                if at < place || !reply.refuses(&message) {
                    accept(message);
                }
            }
        }
        self.settle(accept);
    }

    fn settle(&mut self, accept: &mut impl FnMut(Message)) {
        while let Some(Request { message, .. }) = self.0.pop_front_if(|request| !request.is_answered) {
            accept(message);
        }
    }

    /// Whether nothing is owed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// They, in order.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.0.iter().map(|request| &request.message)
    }

    /// The same, to be passed on again.
    pub fn into_messages(self) -> impl Iterator<Item = Message> {
        self.0.into_iter().map(|request| request.message)
    }
}

#[cfg(test)]
mod tests {
    use vhost::vhost_user::message::FrontendReq;

    use super::*;

    fn message(request: FrontendReq, flags: u32, payload: &[u8]) -> Message {
        Message::new(request, flags, payload.to_vec(), Vec::new())
    }

    fn numbers(messages: &[Message]) -> Vec<u32> {
        messages.iter().map(Message::number).collect()
    }

    #[test]
    fn a_request_counts_when_it_is_answered_and_what_follows_it_not_before() {
        let (mut pending, mut accepted) = (Pending::default(), Vec::new());
        let mut accept = |message| accepted.push(message);
        pending.passed(message(FrontendReq::SET_OWNER, 1, &[]), true, &mut accept);
        pending.passed(message(FrontendReq::GET_VRING_BASE, 1, &[]), true, &mut accept);
        pending.passed(message(FrontendReq::SET_VRING_KICK, 1, &[]), true, &mut accept);
        pending.passed(message(FrontendReq::ADD_MEM_REG, 9, &[]), true, &mut accept);
        assert_eq!(pending.messages().count(), 3);
        pending.answered(&message(FrontendReq::GET_VRING_BASE, 5, &[0; 8]), &mut accept);
        assert_eq!(pending.messages().count(), 1);
        pending.answered(&message(FrontendReq::ADD_MEM_REG, 5, &1u64.to_ne_bytes()), &mut accept);
        assert_eq!(pending.messages().count(), 0);
        let expected = [FrontendReq::SET_OWNER, FrontendReq::GET_VRING_BASE, FrontendReq::SET_VRING_KICK];
        assert_eq!(numbers(&accepted), expected.map(u32::from), "the last one was refused");
    }

    #[test]
    fn an_answer_that_never_comes_holds_up_nothing() {
        let (mut pending, mut count) = (Pending::default(), 0);
        // As where REPLY_ACK was not negotiated.
        pending.passed(message(FrontendReq::SET_MEM_TABLE, 9, &[]), true, &mut |_| count += 1);
        pending.passed(message(FrontendReq::GET_QUEUE_NUM, 1, &[]), true, &mut |_| count += 1);
        pending.answered(&message(FrontendReq::GET_QUEUE_NUM, 5, &[0; 8]), &mut |_| count += 1);
        assert_eq!((count, pending.messages().count()), (2, 0));
        for _ in 0..1000 {
            pending.passed(message(FrontendReq::SET_MEM_TABLE, 9, &[]), true, &mut |_| count += 1);
        }
        assert_eq!((count, pending.messages().count()), (2 + 1000 - PENDING_MAX, PENDING_MAX));
        // An answer to nothing.
        pending.answered(&message(FrontendReq::GET_CONFIG, 5, &[]), &mut |_| count += 1);
        assert_eq!(pending.messages().count(), PENDING_MAX);
    }
}
