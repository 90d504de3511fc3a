//! Copies between the daemon's memory and the guest's, which the guest may change at the same time. Every access to guest memory
//! is volatile, so that the compiler neither repeats nor omits one. Eight bytes for each access.

use std::ptr::NonNull;

/// Bytes of an access.
const WORD_LEN: usize = size_of::<Word>();

/// A word at any alignment.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Word(u64);

/// Copies guest memory at `from` to `to`.
///
/// # Safety
/// `to.len()` bytes must be mapped at `from`.
pub(super) unsafe fn from_guest(from: NonNull<u8>, to: &mut [u8]) {
    let (words, tail) = to.as_chunks_mut::<WORD_LEN>();
    let mut at = from;
    for word in words {
        // SAFETY: the caller has mapped `to.len()` bytes, of which `at` has passed as many as were copied. `Word` is packed.
        let value = unsafe { at.cast::<Word>().read_volatile() };
        *word = { value.0 }.to_ne_bytes();
        // SAFETY: as above.
        at = unsafe { at.add(WORD_LEN) };
    }
    for byte in tail {
        // SAFETY: as above.
        *byte = unsafe { at.read_volatile() };
        // SAFETY: as above.
        at = unsafe { at.add(1) };
    }
}

/// Copies `from` to guest memory at `to`.
///
/// # Safety
/// `from.len()` bytes must be mapped at `to`, and no reference to them may exist.
pub(super) unsafe fn to_guest(from: &[u8], to: NonNull<u8>) {
    let (words, tail) = from.as_chunks::<WORD_LEN>();
    let mut at = to;
    for word in words {
        // SAFETY: the caller has mapped `from.len()` bytes, of which `at` has passed as many as were copied. `Word` is packed.
        unsafe { at.cast::<Word>().write_volatile(Word(u64::from_ne_bytes(*word))) };
        // SAFETY: as above.
        at = unsafe { at.add(WORD_LEN) };
    }
    for byte in tail {
        // SAFETY: as above.
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
