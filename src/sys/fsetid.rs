//! CAP_FSETID of the calling thread. With it in the effective set, the thread's changes of a file keep setuid and setgid bits.
//! Does not know when the guest wants either.

use std::cell::Cell;

use caps::Capability;

use super::identity;

/// State of CAP_FSETID in the thread's effective set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fsetid {
    Unknown,
    /// Not permitted to this process.
    Absent,
    Effective,
    Cleared,
}

thread_local! {
    static FSETID: Cell<Fsetid> = const { Cell::new(Fsetid::Unknown) };
}

/// Sets whether the next changes by this thread keep setuid and setgid bits. No system call where that is set already: Linux
/// guests request clearing with each WRITE of a user other than root.
///
/// Every other change takes the capability up first (`Share::writable`), so that a chmod can set setgid, and so does every use
/// of a descriptor's name (`working_dir`).
pub fn keep_suidgid(keep: bool) {
    let known = FSETID.get();
    match (known, keep) {
        (Fsetid::Absent, _) | (Fsetid::Unknown | Fsetid::Effective, true) | (Fsetid::Cleared, false) => {}
        (Fsetid::Cleared, true) => {
            let is_back = identity::set_capability(Capability::CAP_FSETID, true);
            assert!(is_back, "cannot restore a permitted capability");
            FSETID.set(Fsetid::Effective);
        }
        (Fsetid::Unknown, false) if !identity::has_capability(Capability::CAP_FSETID) => FSETID.set(Fsetid::Absent),
        (Fsetid::Unknown | Fsetid::Effective, false) => {
            if identity::set_capability(Capability::CAP_FSETID, false) {
                FSETID.set(Fsetid::Cleared);
            }
        }
    }
}

/// Runs `change` so that the kernel clears setuid and setgid bits as it does for an unprivileged writer. `change` must use no
/// name of a descriptor.
pub fn without_fsetid<R>(change: impl FnOnce() -> R) -> R {
    keep_suidgid(false);
    let result = change();
    keep_suidgid(true);
    result
}
