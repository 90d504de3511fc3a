//! The header of an arena: what it is, and where its tables are. Written when the arena is made, verified when it is attached.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::check::Check;

/// "gatherfs" in the first word of an arena.
const MAGIC: u64 = u64::from_le_bytes(*b"gatherfs");
/// The version of the layout of header and records.
const VERSION: u64 = 3;
/// The most tables of an arena.
const TABLES_MAX: usize = 16;
/// Bytes of the version of the program in the header.
const MADE_BY_LEN: usize = 24;

/// A table, as the header tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TablePlace {
    /// [`super::arena::Record::KIND`].
    pub kind: u32,
    /// Bytes of a record.
    pub record_len: u32,
    /// Bytes from the beginning of the arena.
    pub offset: u64,
    /// Records.
    pub count: u64,
}

impl TablePlace {
    /// The end of the table, in bytes from the beginning of the arena; `None` where that is no number.
    fn end(&self) -> Option<u64> {
        self.count.checked_mul(self.record_len.into()).and_then(|len| self.offset.checked_add(len))
    }
}

#[repr(C)]
#[derive(Debug)]
struct Entry {
    kind: AtomicU32,
    record_len: AtomicU32,
    offset: AtomicU64,
    count: AtomicU64,
    reserved: AtomicU64,
}

/// The header.
#[repr(C)]
#[derive(Debug)]
pub struct Header {
    magic: AtomicU64,
    version: AtomicU64,
    /// Bytes of the arena.
    len: AtomicU64,
    /// Entries of the directory.
    tables: AtomicU32,
    /// Of all but magic and version.
    check: AtomicU32,
    /// Random: tells arenas apart.
    id: AtomicU64,
    /// Version of the program, for people.
    made_by: [AtomicU64; MADE_BY_LEN / 8],
    directory: [Entry; TABLES_MAX],
}

impl Header {
    /// Writes the header of an arena of `len` bytes without tables.
    pub fn make(&self, len: u64, id: u64) {
        self.magic.store(MAGIC, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.id.store(id, Ordering::Relaxed);
        let mut made_by = [0; MADE_BY_LEN];
        made_by.iter_mut().zip(env!("CARGO_PKG_VERSION").bytes()).for_each(|(to, from)| *to = from);
        for (word, bytes) in self.made_by.iter().zip(made_by.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        self.check.store(self.checked(), Ordering::Relaxed);
        self.version.store(VERSION, Ordering::Release);
    }

    /// The arena's id.
    pub fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    /// Adds a table to the directory. False where that is full.
    pub fn add(&self, table: TablePlace) -> bool {
        let tables = self.tables.load(Ordering::Relaxed);
        let Some(entry) = self.directory.get(tables as usize) else { return false };
        entry.kind.store(table.kind, Ordering::Relaxed);
        entry.record_len.store(table.record_len, Ordering::Relaxed);
        entry.offset.store(table.offset, Ordering::Relaxed);
        entry.count.store(table.count, Ordering::Relaxed);
        self.tables.store(tables + 1, Ordering::Relaxed);
        self.check.store(self.checked(), Ordering::Release);
        true
    }

    /// The tables.
    pub fn tables(&self) -> impl Iterator<Item = TablePlace> + '_ {
        let tables = self.tables.load(Ordering::Relaxed) as usize;
        self.directory.iter().take(tables).map(|entry| TablePlace {
            kind: entry.kind.load(Ordering::Relaxed),
            record_len: entry.record_len.load(Ordering::Relaxed),
            offset: entry.offset.load(Ordering::Relaxed),
            count: entry.count.load(Ordering::Relaxed),
        })
    }

    /// What is wrong with the header of an arena of `len` bytes, `header_len` of which are before the tables; `None` where it is right.
    pub fn fault(&self, len: u64, header_len: u64) -> Option<&'static str> {
        if self.magic.load(Ordering::Relaxed) != MAGIC {
            return Some("they do not begin as an arena does");
        }
        if self.version.load(Ordering::Acquire) != VERSION {
            return Some("their layout has another version");
        }
        if self.len.load(Ordering::Relaxed) != len {
            return Some("their length is not the one in the header");
        }
        if self.tables.load(Ordering::Relaxed) as usize > TABLES_MAX || self.check.load(Ordering::Relaxed) != self.checked() {
            return Some("the header is damaged");
        }
        let places: Vec<TablePlace> = self.tables().collect();
        let is_within = |table: &TablePlace| table.offset >= header_len && table.end().is_some_and(|end| end <= len);
        if !places.iter().all(is_within) {
            return Some("a table is not within the arena");
        }
        let overlap = |a: &TablePlace, b: &TablePlace| Some(b.offset) < a.end() && Some(a.offset) < b.end();
        let is_alone = |at: usize| places[..at].iter().all(|other| !overlap(other, &places[at]));
        (!(0..places.len()).all(is_alone)).then_some("two tables overlap")
    }

    fn checked(&self) -> u32 {
        let get = |field: &AtomicU64| field.load(Ordering::Relaxed);
        let halves = |a: &AtomicU32, b: &AtomicU32| u64::from(a.load(Ordering::Relaxed)) << 32 | u64::from(b.load(Ordering::Relaxed));
        let first = [get(&self.len), u64::from(self.tables.load(Ordering::Relaxed)), get(&self.id)];
        let entry = |e: &Entry| [halves(&e.kind, &e.record_len), get(&e.offset), get(&e.count), get(&e.reserved)];
        let words = first.into_iter().chain(self.made_by.iter().map(get)).chain(self.directory.iter().flat_map(entry));
        words.fold(Check::default(), Check::with).value()
    }
}
