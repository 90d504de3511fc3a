//! What keeper and worker say to each other, beside the messages of vhost-user: packets on a pair of sockets, one pair a life. The
//! first one names the descriptor by which the keeper watches the worker.

/// What the worker says once its descriptors are in order.
pub const READY: u8 = 1;
/// What a thread of the worker's says that lives as long as the process; its id follows.
pub const THREAD: u8 = 2;
/// What the worker says before it ends in order.
pub const LEAVING: u8 = 3;
/// What the worker says of its io_uring rings; the numbers of their descriptors follow.
pub const RINGS: u8 = 4;
/// What the worker says at times, where somebody watches whether it lives.
pub const ALIVE: u8 = 5;
/// What the worker says instead of ending, where requests in flight are not finished in the time that it has to drain.
pub const BUSY: u8 = 6;
/// Rings of a worker at most: one for each request queue.
pub const RINGS_MAX: usize = 64;
