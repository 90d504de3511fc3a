//! Copies between the daemon's memory and the guest's, which the guest may change at the same time. Every access to guest memory
//! is volatile, so that the compiler neither repeats nor omits one. Eight bytes for each access, but for what lies before the
//! first aligned word in guest memory and behind the last one.

use std::ptr::NonNull;

/// Bytes of an access.
const WORD_LEN: usize = size_of::<u64>();

/// Copies guest memory at `from` to `to`.
///
/// # Safety
/// `to.len()` bytes must be mapped at `from`.
#[inline]
pub(super) unsafe fn from_guest(from: NonNull<u8>, to: &mut [u8]) {
    let head_len = from.align_offset(WORD_LEN).min(to.len());
    let (head, rest) = to.split_at_mut(head_len);
    let (words, tail) = rest.as_chunks_mut::<WORD_LEN>();
    // SAFETY: the caller has mapped `to.len()` bytes, of which `head` is the first part.
    unsafe { bytes_from_guest(from, head) };
    // SAFETY: as above.
    let mut at = unsafe { from.add(head_len) };
    for word in words {
        // SAFETY: `at` has passed as many mapped bytes as were copied, and is aligned if there is a word.
        *word = unsafe { at.cast::<u64>().read_volatile() }.to_ne_bytes();
        // SAFETY: as above.
        at = unsafe { at.add(WORD_LEN) };
    }
    // SAFETY: as above.
    unsafe { bytes_from_guest(at, tail) };
}

/// Copies `from` to guest memory at `to`.
///
/// # Safety
/// `from.len()` bytes must be mapped at `to`, and no reference to them may exist.
#[inline]
pub(super) unsafe fn to_guest(from: &[u8], to: NonNull<u8>) {
    let head_len = to.align_offset(WORD_LEN).min(from.len());
    let (head, rest) = from.split_at(head_len);
    let (words, tail) = rest.as_chunks::<WORD_LEN>();
    // SAFETY: the caller has mapped `from.len()` bytes, of which `head` is the first part.
    unsafe { bytes_to_guest(head, to) };
    // SAFETY: as above.
    let mut at = unsafe { to.add(head_len) };
    for word in words {
        // SAFETY: `at` has passed as many mapped bytes as were copied, and is aligned if there is a word.
        unsafe { at.cast::<u64>().write_volatile(u64::from_ne_bytes(*word)) };
        // SAFETY: as above.
        at = unsafe { at.add(WORD_LEN) };
    }
    // SAFETY: as above.
    unsafe { bytes_to_guest(tail, at) };
}

/// # Safety
/// As of [`from_guest`].
#[inline]
unsafe fn bytes_from_guest(from: NonNull<u8>, to: &mut [u8]) {
    let mut at = from;
    for byte in to {
        // SAFETY: the caller has mapped as many bytes as `to` has.
        *byte = unsafe { at.read_volatile() };
        // SAFETY: as above.
        at = unsafe { at.add(1) };
    }
}

/// # Safety
/// As of [`to_guest`].
#[inline]
unsafe fn bytes_to_guest(from: &[u8], to: NonNull<u8>) {
    let mut at = to;
    for byte in from {
        // SAFETY: the caller has mapped as many bytes as `from` has.
        unsafe { at.write_volatile(*byte) };
        // SAFETY: as above.
        at = unsafe { at.add(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_every_length_and_alignment_touch_their_bytes_only() {
        for (offset, len) in (0..9).flat_map(|offset| (0..40).map(move |len| (offset, len))) {
            let source: Vec<u8> = (1..=len as u8).collect();
            let mut memory = [0xffu8; 64];
            let at = NonNull::new(memory[offset..].as_mut_ptr()).unwrap();
            // SAFETY: 9 + 40 bytes lie in `memory`.
            unsafe { to_guest(&source, at) };
            let mut back = vec![0; len];
            // SAFETY: as above.
            unsafe { from_guest(at, &mut back) };
            assert_eq!(back, source);
            assert_eq!(memory[offset..offset + len], source);
            assert!(memory[..offset].iter().chain(&memory[offset + len..]).all(|byte| *byte == 0xff));
        }
    }
}
