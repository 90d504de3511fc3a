//! Any bytes as a request: decoding ends, with an operation or an errno, and never panics.
#![no_main]

use gatherfs::fuse::{decode, decode_header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(header) = decode_header(bytes) {
        let _ = decode(&header, &bytes[40..], None);
    }
});
