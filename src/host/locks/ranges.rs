//! The byte ranges that one owner holds on one file, split and merged as POSIX says (man fcntl(2)).
//! Does not know the host.

use crate::state::{HeldLock, RangeSlot};
use crate::sys::lock::{LockKind, Span};
use crate::types::FileHandle;

/// Whether `held` conflicts with a lock of `kind` on `span` of another owner.
fn conflicts(held: &HeldLock, span: Span, kind: LockKind) -> bool {
    let overlap = held.span.start <= span.end && span.start <= held.span.end;
    overlap && (held.kind == LockKind::Exclusive || kind == LockKind::Exclusive)
}

/// A range, with the record that says the same of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The range.
    pub held: HeldLock,
    /// Its record; `None` where there is none yet.
    pub record: Option<RangeSlot>,
}

/// The ranges of one owner: sorted, none overlapping, neighbours of one kind joined.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LockRanges(Vec<Range>);

impl LockRanges {
    /// The ranges when `changes` were set one after the other.
    pub fn after(changes: &[Range]) -> LockRanges {
        let mut by_start: Vec<usize> = (0..changes.len()).collect();
        by_start.sort_unstable_by_key(|at| changes[*at].held.span.start);
        // To set one takes as long as there are ranges, so only those are set that overlap others: few.
        let mut overlaps = vec![false; changes.len()];
        let mut furthest = None;
        for &at in &by_start {
            let Span { start, end } = changes[at].held.span;
            match furthest {
                Some((other, last)) if start <= last => (overlaps[at], overlaps[other]) = (true, true),
                _ => {}
            }
            if furthest.is_none_or(|(_, last)| end > last) {
                furthest = Some((at, end));
            }
        }
        let alone = LockRanges(by_start.iter().filter(|at| !overlaps[**at]).map(|at| changes[*at]).collect());
        let others = changes.iter().zip(&overlaps).filter(|(_, overlaps)| **overlaps);
        others.fold(alone, |ranges, (range, _)| ranges.with(*range))
    }

    /// The ranges when `range` is set; it replaces what overlaps it. One that is changed by this has no record.
    pub fn with(&self, range: Range) -> LockRanges {
        self.replaced(range.held.span, Some(range))
    }

    /// The ranges without what is held of `span`. One that is changed by this has no record.
    pub fn without(&self, span: Span) -> LockRanges {
        self.replaced(span, None)
    }

    fn replaced(&self, span: Span, by: Option<Range>) -> LockRanges {
        let mut next = Vec::with_capacity(self.0.len() + 2);
        let part = |held: &HeldLock, start, end| Range { held: HeldLock { span: Span { start, end }, ..*held }, record: None };
        for range in &self.0 {
            let Span { start, end } = range.held.span;
            if end < span.start || start > span.end {
                next.push(*range);
                continue;
            }
            if start < span.start {
                next.push(part(&range.held, start, span.start - 1));
            }
            if end > span.end {
                next.push(part(&range.held, span.end + 1, end));
            }
        }
        next.extend(by);
        next.sort_unstable_by_key(|range| range.held.span.start);
        next.dedup_by(|b, a| {
            let (first, second) = (&mut a.held, &b.held);
            let same = (first.kind, first.pid, first.through) == (second.kind, second.pid, second.through);
            let joins = same && first.span.end.checked_add(1) == Some(second.span.start);
            if joins {
                first.span.end = second.span.end;
                a.record = None;
            }
            joins
        });
        LockRanges(next)
    }

    /// The ranges without a record, to get one.
    pub fn unrecorded(&mut self) -> impl Iterator<Item = &mut Range> {
        self.0.iter_mut().filter(|range| range.record.is_none())
    }

    /// Calls `act` with each range that has a record which none of `others` has.
    pub fn each_not_in(&self, others: &LockRanges, mut act: impl FnMut(RangeSlot, &HeldLock)) {
        let mut others = others.0.iter().peekable();
        for Range { held, record } in &self.0 {
            // A range with the same record is the same range.
            while others.next_if(|other| other.held.span.start < held.span.start).is_some() {}
            if let Some(record) = record.filter(|record| others.peek().is_none_or(|other| other.record != Some(*record))) {
                act(record, held);
            }
        }
    }

    /// The first range that conflicts with `kind` on `span` of another owner.
    pub fn conflicting(&self, span: Span, kind: LockKind) -> Option<&HeldLock> {
        self.iter().find(|held| conflicts(held, span, kind))
    }

    /// Every range.
    pub fn iter(&self) -> impl Iterator<Item = &HeldLock> {
        self.0.iter().map(|range| &range.held)
    }

    /// The records of the ranges.
    pub fn records(&self) -> impl Iterator<Item = RangeSlot> {
        self.0.iter().filter_map(|range| range.record)
    }

    /// The ranges that were taken through the open file `handle`.
    pub fn taken_through(&self, handle: FileHandle) -> Vec<Span> {
        self.iter().filter(|held| held.through == handle).map(|held| held.span).collect()
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
        *ranges = match kind {
            Some(kind) => ranges.with(Range { held: HeldLock { span, kind, pid: 7, through: FileHandle(3) }, record: None }),
            None => ranges.without(span),
        };
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
                for held in ranges.iter() {
                    for byte in held.span.start..=held.span.end {
                        prop_assert_eq!(seen[byte as usize], None);
                        seen[byte as usize] = Some(held.kind);
                    }
                }
                prop_assert_eq!(seen, bytes);
                let held: Vec<HeldLock> = ranges.iter().copied().collect();
                prop_assert!(held.windows(2).all(|w| w[0].span.end + 1 < w[1].span.start || w[0].kind != w[1].kind));
                for (at, byte) in bytes.iter().enumerate() {
                    let one = Span { start: at as u64, end: at as u64 };
                    prop_assert_eq!(ranges.conflicting(one, LockKind::Exclusive).is_some(), byte.is_some());
                    prop_assert_eq!(ranges.conflicting(one, LockKind::Shared).is_some(), *byte == Some(LockKind::Exclusive));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn to_set_all_at_once_is_to_set_one_after_the_other(changes in prop::collection::vec((0..200u64, 0..12u64, any::<bool>()), 0..30)) {
            let range = |(start, more, is_shared)| {
                let kind = if is_shared { LockKind::Shared } else { LockKind::Exclusive };
                Range { held: HeldLock { span: Span { start, end: start + more }, kind, pid: 7, through: FileHandle(3) }, record: None }
            };
            let changes: Vec<Range> = changes.into_iter().map(range).collect();
            let one_by_one = changes.iter().fold(LockRanges::default(), |ranges, range| ranges.with(*range));
            let bytes = |ranges: &LockRanges| {
                let mut bytes = [None; 212];
                ranges.iter().for_each(|held| bytes[held.span.start as usize..=held.span.end as usize].fill(Some(held.kind)));
                bytes
            };
            prop_assert_eq!(bytes(&LockRanges::after(&changes)), bytes(&one_by_one));
        }
    }

    proptest! {
        /// A change writes its new ranges and then removes the old ones. Whatever a death leaves of both, the same change once more has the
        /// same result.
        #[test]
        fn a_change_that_is_made_again_ends_where_it_would_have(
            before in prop::collection::vec((0..60u64, 0..12u64, kind()), 0..12),
            (start, more, kind) in (0..60u64, 0..12u64, kind()),
        ) {
            let mut old = LockRanges::default();
            before.into_iter().for_each(|(start, more, kind)| put(&mut old, Span { start, end: start + more }, kind));
            let span = Span { start, end: start + more };
            let mut next = old.clone();
            put(&mut next, span, kind);
            let new: Vec<Range> = next.0.iter().filter(|range| !old.0.contains(range)).copied().collect();
            let gone: Vec<Range> = old.0.iter().filter(|range| !next.0.contains(range)).copied().collect();
            let kept: Vec<Range> = old.0.iter().filter(|range| next.0.contains(range)).copied().collect();
            let written = (0..=new.len()).map(|count| (&gone[..], &new[..count]));
            let removed = (0..=gone.len()).map(|count| (&gone[count..], &new[..]));
            for (gone, new) in written.chain(removed) {
                let mut left = LockRanges::after(&[&kept, gone, new].concat());
                put(&mut left, span, kind);
                prop_assert_eq!(&left, &next, "{} of the old ranges and {} of the new ones", gone.len(), new.len());
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
