//! Requests under way on one queue: each lane is a future that sends a request and goes on when that is answered, so that a
//! sequence of requests reads as one. It does not know what the lanes send.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use gatherfs_harness::Failure;
use gatherfs_harness::load::pauses::Gaps;
use gatherfs_support::guest::client::{Call, CallError, Client, Reply};
use gatherfs_support::guest::fuse::OutHeader;
use gatherfs_support::guest::memory::PAGE_SIZE;
use gatherfs_support::guest::ring::Segment;
use zerocopy::FromBytes;

/// How long no request of a queue may be answered before the run fails.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// A sequence of requests, at most one of them under way.
pub type Lane<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + 'a>>;

/// What all queues share.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests that were answered.
    pub answered: AtomicU64,
    /// The lanes are to end.
    pub ends: AtomicBool,
    /// A lane has failed.
    pub has_failed: AtomicBool,
}

/// The driver of one queue and its lanes.
pub struct Queue<'a> {
    client: RefCell<Client>,
    answered: Cell<u64>,
    progress: &'a Progress,
}

impl<'a> Queue<'a> {
    /// A driver that sends by `client`.
    pub fn new(client: Client, progress: &'a Progress) -> Self {
        Self { client: RefCell::new(client), answered: Cell::new(0), progress }
    }

    /// Whether a lane is to go on.
    pub fn goes_on(&self) -> bool {
        !self.progress.ends.load(Ordering::Relaxed)
    }

    /// Sends a request and comes back with its reply, which may be an errno.
    pub async fn exchange(&self, call: &Call<'_>) -> Result<Reply, CallError> {
        let mut pending = Some(self.client.borrow_mut().begin(call));
        poll_fn(|_| {
            let mut client = self.client.borrow_mut();
            match pending.take_if(|pending| client.is_put_by(pending)) {
                Some(answered) => {
                    self.answered.set(self.answered.get() + 1);
                    Poll::Ready(client.finish(answered))
                }
                None => Poll::Pending,
            }
        })
        .await
    }

    /// A request whose reply is a `T`; `what` it is, for a failure.
    pub async fn ask<T: FromBytes>(&self, what: &str, call: Call<'_>) -> Result<T, Failure> {
        let reply = self.succeed(what, Call { room: size_of::<T>() as u32, ..call }).await?;
        T::read_from_bytes(&reply.payload).map_err(|_| format!("{what}: a reply of {} bytes", reply.payload.len()).into())
    }

    /// A request that must succeed; the reply's bytes are checked by the caller.
    pub async fn succeed(&self, what: &str, call: Call<'_>) -> Result<Reply, Failure> {
        let reply = self.exchange(&call).await.map_err(|error| format!("{what}: {error}"))?;
        match reply.header.error {
            0 => Ok(reply),
            error => Err(format!("{what}: {}", CallError::Errno(-error)).into()),
        }
    }

    /// As `succeed`, for a reply whose data lies in segments of the caller's: the bytes of it.
    pub async fn read(&self, what: &str, call: Call<'_>) -> Result<u32, Failure> {
        Ok(self.succeed(what, call).await?.header.len - size_of::<OutHeader>() as u32)
    }

    /// A request that must fail with `errno`.
    pub async fn fail(&self, what: &str, errno: i32, call: Call<'_>) -> Result<(), Failure> {
        match self.exchange(&call).await.map_err(|error| format!("{what}: {error}"))?.header.error {
            error if error == -errno => Ok(()),
            0 => Err(format!("{what}: succeeds instead of {}", CallError::Errno(errno)).into()),
            error => Err(format!("{what}: {} instead of {}", CallError::Errno(-error), CallError::Errno(errno)).into()),
        }
    }

    /// FORGET, which has no answer.
    pub fn forget(&self, nodeid: u64, nlookup: u64) -> Result<(), Failure> {
        Ok(self.client.borrow_mut().forget_unwaited(nodeid, nlookup)?)
    }

    /// `count` pages of guest memory, each apart from the next one.
    pub fn pages(&self, count: usize) -> Vec<Segment> {
        let memory = Arc::clone(self.client.borrow().guest().memory());
        let page = |_| Segment { addr: memory.alloc(2 * PAGE_SIZE, PAGE_SIZE), len: PAGE_SIZE as u32, writable: false };
        (0..count).map(page).collect()
    }

    /// Fills `segments` with `bytes`.
    pub fn scatter(&self, segments: &[Segment], bytes: &[u8]) {
        self.client.borrow().scatter(segments, bytes);
    }

    /// The first `count` bytes of `segments`.
    pub fn gather(&self, segments: &[Segment], count: u32) -> Vec<u8> {
        self.client.borrow().gather(segments, count)
    }

    /// Runs `lanes` to their ends: how long the guest saw no answer of this queue, and what failed. A lane that fails ends.
    pub fn run(&self, mut lanes: Vec<Lane<'_>>) -> (Gaps, Vec<Failure>) {
        let (guest, queue) = (Arc::clone(self.client.borrow().guest()), self.client.borrow().queue());
        let (mut gaps, mut failures) = (Gaps::begin(Instant::now()), Vec::new());
        let mut context = Context::from_waker(Waker::noop());
        while !lanes.is_empty() {
            let (answered, looked_at) = (self.answered.get(), Instant::now());
            guest.lock(queue).put_by_used();
            lanes.retain_mut(|lane| match lane.as_mut().poll(&mut context) {
                Poll::Ready(result) => {
                    failures.extend(result.err());
                    false
                }
                Poll::Pending => true,
            });
            if !failures.is_empty() {
                self.progress.has_failed.store(true, Ordering::Relaxed);
            }
            let new = self.answered.get() - answered;
            if new > 0 {
                gaps.end_at(looked_at);
                self.progress.answered.fetch_add(new, Ordering::Relaxed);
            } else if !lanes.is_empty() {
                // No lane took an answer, so none was put by since the look above.
                let mut ring = guest.lock(queue);
                if !ring.wait(REPLY_TIMEOUT) {
                    failures.push(format!("no answer within {} s: {}", REPLY_TIMEOUT.as_secs(), ring.describe()).into());
                    break;
                }
            }
        }
        if !failures.is_empty() {
            self.progress.has_failed.store(true, Ordering::Relaxed);
        }
        (gaps, failures)
    }
}
