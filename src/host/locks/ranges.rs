//! The byte ranges that one owner holds on one file, split and merged as POSIX says (man fcntl(2)).
//! Does not know the host.

use crate::sys::lock::{LockKind, Span};
use crate::types::FileHandle;

/// One range that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLock {
    /// The byte range.
    pub span: Span,
    /// Shared or exclusive.
    pub kind: LockKind,
    /// The guest's process that requested it.
    pub pid: u32,
    /// The open file that it was requested through.
    pub through: FileHandle,
}

impl HeldLock {
    /// Whether this lock conflicts with one of `kind` on `span` of another owner.
    pub fn conflicts_with(&self, span: Span, kind: LockKind) -> bool {
        let overlap = self.span.start <= span.end && span.start <= self.span.end;
        overlap && (self.kind == LockKind::Exclusive || kind == LockKind::Exclusive)
    }
}

/// The ranges of one owner: sorted, none overlapping, neighbours of one kind joined.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LockRanges(Vec<HeldLock>);

impl LockRanges {
    /// Sets `held`; it replaces what overlaps it.
    pub fn set(&mut self, held: HeldLock) {
        self.replace(held.span, Some(held));
    }

    /// Removes what is held of `span`.
    pub fn clear(&mut self, span: Span) {
        self.replace(span, None);
    }

    fn replace(&mut self, span: Span, by: Option<HeldLock>) {
        let mut next = Vec::with_capacity(self.0.len() + 2);
        for held in &self.0 {
            if held.span.start < span.start {
                let end = held.span.end.min(span.start - 1);
                next.push(HeldLock { span: Span { end, ..held.span }, ..*held });
            }
            if held.span.end > span.end {
                let start = held.span.start.max(span.end + 1);
                next.push(HeldLock { span: Span { start, ..held.span }, ..*held });
            }
        }
        next.extend(by);
        next.sort_unstable_by_key(|h| h.span.start);
        next.dedup_by(|b, a| {
            let same = (a.kind, a.pid, a.through) == (b.kind, b.pid, b.through);
            let joins = same && a.span.end.checked_add(1) == Some(b.span.start);
            if joins {
                a.span.end = b.span.end;
            }
            joins
        });
        self.0 = next;
    }

    /// The first range that conflicts with `kind` on `span` of another owner.
    pub fn conflicting(&self, span: Span, kind: LockKind) -> Option<&HeldLock> {
        self.0.iter().find(|h| h.conflicts_with(span, kind))
    }

    /// Every range.
    pub fn iter(&self) -> impl Iterator<Item = &HeldLock> {
        self.0.iter()
    }

    /// The ranges that were taken through the open file `handle`.
    pub fn taken_through(&self, handle: FileHandle) -> Vec<Span> {
        self.0.iter().filter(|h| h.through == handle).map(|h| h.span).collect()
    }

    /// Whether no range is held.
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

    fn put(ranges: &mut LockRanges, span: Span, kind: Option<LockKind>) {
        match kind {
            Some(kind) => ranges.set(HeldLock { span, kind, pid: 7, through: FileHandle(3) }),
            None => ranges.clear(span),
        }
    }

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
                put(&mut ranges, span, kind);
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
                    prop_assert_eq!(ranges.conflicting(one, LockKind::Exclusive).is_some(), byte.is_some());
                    prop_assert_eq!(ranges.conflicting(one, LockKind::Shared).is_some(), *byte == Some(LockKind::Exclusive));
                }
            }
        }
    }

    #[test]
    fn the_end_of_any_file_is_a_bound_like_another() {
        let mut ranges = LockRanges::default();
        put(&mut ranges, Span::WHOLE, Some(LockKind::Shared));
        put(&mut ranges, Span { start: 10, end: 19 }, None);
        assert_eq!(ranges.len(), 2);
        put(&mut ranges, Span { start: 10, end: 19 }, Some(LockKind::Shared));
        assert_eq!(ranges.len(), 1);
        assert_eq!((ranges.taken_through(FileHandle(3)).len(), ranges.taken_through(FileHandle(4)).len()), (1, 0));
        put(&mut ranges, Span::WHOLE, None);
        assert!(ranges.is_empty());
    }
}
