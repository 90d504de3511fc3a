//! The payload of a request: fragments laid out in guest memory, filled and read back.

use super::super::memory::PAGE_SIZE;
use super::super::ring::Segment;
use super::Client;

/// One payload fragment: `len` bytes that start `offset` bytes into a fresh page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the page.
    pub offset: u32,
    /// Length in bytes; it may run over the end of the page.
    pub len: u32,
}

/// `size` bytes as Linux lays them out without large folios: whole pages, then the rest.
pub fn pages(size: u32) -> Vec<Piece> {
    let page = PAGE_SIZE as u32;
    (0..size.div_ceil(page)).map(|i| Piece { offset: 0, len: page.min(size - i * page) }).collect()
}

impl Client {
    /// Lays `pieces` out over fresh pages of the client's payload buffer.
    pub fn place(&mut self, pieces: &[Piece], writable: bool) -> Vec<Segment> {
        let layout = |base: u64| {
            let mut end = base;
            let mut segments = Vec::with_capacity(pieces.len());
            for piece in pieces {
                let addr = end.next_multiple_of(PAGE_SIZE) + u64::from(piece.offset);
                end = addr + u64::from(piece.len);
                segments.push(Segment { addr, len: piece.len, writable });
            }
            (segments, end)
        };
        let (_, len) = layout(0);
        self.payload = self.room(self.payload, len.max(1));
        layout(self.payload.gpa).0
    }

    /// The first `count` bytes that lie in `segments`.
    pub fn gather(&self, segments: &[Segment], count: u32) -> Vec<u8> {
        let mut bytes = vec![0; count as usize];
        let mut rest = &mut bytes[..];
        for segment in segments {
            let (part, tail) = rest.split_at_mut(rest.len().min(segment.len as usize));
            self.guest.memory().read(segment.addr, part);
            rest = tail;
        }
        bytes
    }

    /// Spreads `bytes` over `segments`.
    pub fn scatter(&self, segments: &[Segment], mut bytes: &[u8]) {
        for segment in segments {
            let (part, rest) = bytes.split_at(bytes.len().min(segment.len as usize));
            self.guest.memory().write(segment.addr, part);
            bytes = rest;
        }
    }
}
