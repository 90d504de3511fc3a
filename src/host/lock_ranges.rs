//! What one owner of locks holds on one file: byte ranges, split and merged as POSIX says (man fcntl(2)).
//! Knows nothing of the host.

use crate::sys::lock::{LockKind, Span};

/// One range that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its bytes.
    pub span: Span,
    /// How.
    pub kind: LockKind,
    /// The guest's process that asked for it.
    pub pid: u32,
}

impl Held {
    /// Whether this lock keeps somebody else from one of `kind` on `span`.
    pub fn is_in_the_way_of(&self, span: Span, kind: LockKind) -> bool {
        let overlap = self.span.start <= span.end && span.start <= self.span.end;
        overlap && (self.kind == LockKind::Exclusive || kind == LockKind::Exclusive)
    }
}

/// The ranges of one owner: sorted, none overlapping, neighbours of one kind joined.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LockRanges(Vec<Held>);

impl LockRanges {
    /// Puts `kind` on `span` in place of what was there; `None` takes it off.
    pub fn set(&mut self, span: Span, kind: Option<LockKind>, pid: u32) {
        let mut next = Vec::with_capacity(self.0.len() + 2);
        for held in &self.0 {
            if held.span.start < span.start {
                let end = held.span.end.min(span.start - 1);
                next.push(Held { span: Span { end, ..held.span }, ..*held });
            }
            if held.span.end > span.end {
                let start = held.span.start.max(span.end + 1);
                next.push(Held { span: Span { start, ..held.span }, ..*held });
            }
        }
        if let Some(kind) = kind {
            next.push(Held { span, kind, pid });
        }
        next.sort_unstable_by_key(|h| h.span.start);
        next.dedup_by(|b, a| {
            let joins = a.kind == b.kind && a.pid == b.pid && a.span.end.checked_add(1) == Some(b.span.start);
            if joins {
                a.span.end = b.span.end;
            }
            joins
        });
        self.0 = next;
    }

    /// The first range that keeps another owner from `kind` on `span`.
    pub fn in_the_way_of(&self, span: Span, kind: LockKind) -> Option<&Held> {
        self.0.iter().find(|h| h.is_in_the_way_of(span, kind))
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ranges are held.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: usize = 24;

    fn kind() -> impl Strategy<Value = Option<LockKind>> {
        prop_oneof![Just(None), Just(Some(LockKind::Shared)), Just(Some(LockKind::Exclusive))]
    }

    proptest! {
        /// A byte of the file at a time is the oracle.
        #[test]
        fn ranges_agree_with_an_array_of_bytes(changes in prop::collection::vec((0..BYTES as u64, 0..8u64, kind()), 1..40)) {
            let mut ranges = LockRanges::default();
            let mut bytes = [None; BYTES + 8];
            for (start, more, kind) in changes {
                let span = Span { start, end: start + more };
                ranges.set(span, kind, 7);
                bytes[start as usize..=(start + more) as usize].fill(kind);
                let mut seen = [None; BYTES + 8];
                for held in &ranges.0 {
                    for byte in held.span.start..=held.span.end {
                        prop_assert_eq!(seen[byte as usize], None);
                        seen[byte as usize] = Some(held.kind);
                    }
                }
                prop_assert_eq!(seen, bytes);
                prop_assert!(ranges.0.windows(2).all(|w| w[0].span.end + 1 < w[1].span.start || w[0].kind != w[1].kind));
                for (at, byte) in bytes.iter().enumerate() {
                    let one = Span { start: at as u64, end: at as u64 };
                    prop_assert_eq!(ranges.in_the_way_of(one, LockKind::Exclusive).is_some(), byte.is_some());
                    prop_assert_eq!(ranges.in_the_way_of(one, LockKind::Shared).is_some(), *byte == Some(LockKind::Exclusive));
                }
            }
        }
    }

    #[test]
    fn the_end_of_any_file_is_a_bound_like_another() {
        let mut ranges = LockRanges::default();
        ranges.set(Span::WHOLE, Some(LockKind::Shared), 1);
        ranges.set(Span { start: 10, end: 19 }, None, 1);
        assert_eq!(ranges.len(), 2);
        ranges.set(Span { start: 10, end: 19 }, Some(LockKind::Shared), 1);
        assert_eq!(ranges.len(), 1);
        ranges.set(Span::WHOLE, None, 1);
        assert!(ranges.is_empty());
    }
}
