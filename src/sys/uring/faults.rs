//! Failpoints of a ring: a request that a test wants to fail moves nothing and completes with the test's errno, and one that is to
//! be short moves the first half. Only with the feature `failpoints`; without it everything stays as it is.

/// What the kernel is told to move instead of `segments`, and the errno with which the request completes whatever the kernel says,
/// or 0.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn fail_transfer(_name: &'static str, segments: (*const libc::iovec, u32)) -> ((*const libc::iovec, u32), u32) {
    (segments, 0)
}

#[cfg(feature = "failpoints")]
pub fn fail_transfer(name: &'static str, (first, count): (*const libc::iovec, u32)) -> ((*const libc::iovec, u32), u32) {
    match crate::sys::failpoint::Call::begin(name) {
        Err(errno) => ((first, 0), errno.raw().cast_unsigned()),
        Ok(call) if call.is_short && count == 1 => {
            // SAFETY: the list has one entry.
            let mut half = unsafe { *first };
            half.iov_len /= 2;
            // A test makes few of them, and the kernel may read it until the request completes.
            ((Box::leak(Box::new(half)), 1), 0)
        }
        Ok(call) => ((first, if call.is_short { count / 2 } else { count }), 0),
    }
}

/// The slot of a completion and its result, of what the kernel says: a request that is to fail has its errno in the upper half of
/// `user_data`.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn completed(user_data: u64, result: i32) -> (u64, i32) {
    (user_data, result)
}

#[cfg(feature = "failpoints")]
pub fn completed(user_data: u64, result: i32) -> (u64, i32) {
    match (user_data >> 32) as i32 {
        0 => (user_data, result),
        errno => (user_data & u64::from(u32::MAX), -errno),
    }
}
