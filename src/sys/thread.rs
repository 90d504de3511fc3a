//! Threads, and records by which another process sees that they have ended, before it sees that of their process: the last thread of a
//! process unmaps its memory first, which takes tens of milliseconds for each GiB of a guest's (docs/RECOVERY.md, section 1).
//!
//! The kernel marks a futex of a thread's robust list when the thread has left its last system call (man get_robust_list(2)). The C
//! library has lists of its own for robust mutexes; nothing in this process uses these.

use std::cell::Cell;
use std::io;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Threads with a record. Those of 64 request queues at --thread-pool-size 16, twice: late ones of an earlier connection may be there.
const THREADS_MAX: usize = 2048;
/// The thread that took the futex has ended (linux/futex.h).
const OWNER_DIED: u32 = 0x4000_0000;
/// The bits of a futex that have the id of its owner.
const OWNER: u32 = 0x3fff_ffff;

/// A thread's robust list with its one entry, as the kernel reads them (`struct robust_list_head`).
#[repr(C, align(64))]
#[derive(Debug)]
struct ThreadRecord {
    /// The first entry of the list.
    first: AtomicPtr<libc::c_void>,
    /// From an entry to its futex.
    futex_offset: AtomicU64,
    /// An entry that is being added.
    pending: AtomicPtr<libc::c_void>,
    /// The entry: where the next one is, which is the list itself.
    next: AtomicPtr<libc::c_void>,
    /// The id of the thread, or that there is none any more.
    owner: AtomicU32,
}

const FUTEX_OFFSET: u64 = (std::mem::offset_of!(ThreadRecord, owner) - std::mem::offset_of!(ThreadRecord, next)) as u64;
/// Bytes of `struct robust_list_head`.
const HEAD_LEN: usize = 24;

/// Records of threads, in memory that the processes share which this one starts. The first one that is all zero was never used, nor
/// were those behind it.
#[derive(Debug)]
struct ThreadRecords(NonNull<ThreadRecord>);

// SAFETY: records consist of atomics, in a mapping that is never removed.
unsafe impl Send for ThreadRecords {}
// SAFETY: as above.
unsafe impl Sync for ThreadRecords {}

static RECORDS: OnceLock<ThreadRecords> = OnceLock::new();

thread_local! {
    static IS_RECORDED: Cell<bool> = const { Cell::new(false) };
}

impl ThreadRecords {
    fn new() -> io::Result<ThreadRecords> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        let len = THREADS_MAX * size_of::<ThreadRecord>();
        // SAFETY: the kernel chooses an unused address range for the new mapping.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, flags) }?;
        let first = NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(ThreadRecords(first))
    }

    fn all(&self) -> &[ThreadRecord] {
        // SAFETY: as many records are mapped; all zeroes, and anything else, is a valid one.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), THREADS_MAX) }
    }

    /// The records that were used.
    fn used(&self) -> impl Iterator<Item = &ThreadRecord> {
        self.all().iter().take_while(|record| record.owner.load(Ordering::Acquire) != 0)
    }

    /// A record that no thread has, for thread `id`.
    fn take(&self, id: u32) -> Option<&ThreadRecord> {
        self.all().iter().find(|record| {
            let owner = record.owner.load(Ordering::Relaxed);
            owner & OWNER == 0 && record.owner.compare_exchange(owner, id, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// Gives the calling thread a record, where one is free.
    fn record_this(&self) {
        let id = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let Some(record) = self.take(id) else {
            return tracing::error!("{THREADS_MAX} threads run: the end of another one is seen late");
        };
        let list: *mut libc::c_void = std::ptr::from_ref(record).cast_mut().cast();
        record.first.store(std::ptr::from_ref(&record.next).cast_mut().cast(), Ordering::Relaxed);
        record.futex_offset.store(FUTEX_OFFSET, Ordering::Relaxed);
        record.next.store(list, Ordering::Relaxed);
        // SAFETY: the list and its entry are in a mapping that is never removed, and belong to this thread.
        if unsafe { libc::syscall(libc::SYS_set_robust_list, list, HEAD_LEN) } != 0 {
            tracing::error!("the kernel does not note the end of a thread: {}", io::Error::last_os_error());
        }
    }

    fn have_all_ended(&self) -> bool {
        let mut used = self.used().peekable();
        used.peek().is_some() && used.all(|record| record.owner.load(Ordering::Acquire) & OWNER == 0)
    }

    fn note_all_ended(&self) {
        self.used().for_each(|record| record.owner.store(OWNER_DIED, Ordering::Release));
    }
}

/// Makes the records, which are empty. To be called once, before the first process is started that is to share them.
pub fn record_threads() -> io::Result<()> {
    let records = ThreadRecords::new()?;
    // A second call changes nothing.
    let _ = RECORDS.set(records);
    Ok(())
}

/// Gives the calling thread a record, where there are records and one is free. Threads of [`start`] have one.
pub fn record_this() {
    if let Some(records) = RECORDS.get()
        && !IS_RECORDED.replace(true)
    {
        records.record_this();
    }
}

/// Whether every thread with a record has ended: none of its system calls is in progress, and none follows. False without records.
pub fn have_all_ended() -> bool {
    RECORDS.get().is_some_and(ThreadRecords::have_all_ended)
}

/// The process whose threads have records has ended, as something else says.
pub fn note_all_ended() {
    if let Some(records) = RECORDS.get() {
        records.note_all_ended();
    }
}

/// Starts a thread, named `name` for debuggers. EAGAIN where there are too many.
pub fn start<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        record_this();
        body()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_record_tells_whether_its_thread_has_ended() {
        let records = Arc::new(ThreadRecords::new().unwrap());
        assert!(!records.have_all_ended(), "there was none");
        let (begin, begun) = channel();
        let (end, ended) = channel::<()>();
        let of_thread = Arc::clone(&records);
        let first = std::thread::spawn(move || {
            of_thread.record_this();
            begin.send(()).unwrap();
            ended.recv()
        });
        begun.recv().unwrap();
        let of_thread = Arc::clone(&records);
        std::thread::spawn(move || of_thread.record_this()).join().unwrap();
        assert!(!records.have_all_ended(), "the first one runs");
        drop(end);
        assert!(first.join().unwrap().is_err());
        // The C library wakes those that join before the kernel looks at the list.
        while !records.have_all_ended() {
            std::thread::yield_now();
        }
        assert_eq!(records.used().count(), 2);
        assert!(std::ptr::eq(records.take(1).unwrap(), &raw const records.all()[0]), "a record is used again");
        assert!(!records.have_all_ended());
        records.note_all_ended();
        assert!(records.have_all_ended());
    }
}
