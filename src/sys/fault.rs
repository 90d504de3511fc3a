//! Faults that end the process, noted in memory that the process has in common with the one that started it: waitid(2) tells the same,
//! but only when the process's memory is taken down (docs/RECOVERY.md, section 1). SIGKILL leaves no note, nor does a system call that
//! the seccomp list has not. Does not know what follows from a fault.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Signals by which a mistake of the program ends it.
const FAULTS: [i32; 6] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS];

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// The signal of the first fault; 0 for none.
static NOTE: OnceLock<&'static AtomicI32> = OnceLock::new();
/// What handled each of [`FAULTS`] before; 0 for the default action. Rust's library tells a stack overflow there.
static BEFORE: [AtomicUsize; FAULTS.len()] = [const { AtomicUsize::new(0) }; FAULTS.len()];

/// Makes room for the note. To be called once, before the first process is started that is to leave one.
pub fn share_note() -> io::Result<()> {
    let (len, prot) = (size_of::<AtomicI32>(), ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: the kernel chooses an unused address range for the new mapping.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::SHARED) }?;
    // SAFETY: at the start of a mapping that is never removed and that is used as an atomic only.
    let note = unsafe { AtomicI32::from_ptr(base.cast()) };
    // A second call changes nothing.
    let _ = NOTE.set(note);
    Ok(())
}

/// The signal of the fault that a process has noted since the last call, which forgets it.
pub fn take_note() -> Option<i32> {
    NOTE.get().map(|note| note.swap(0, Ordering::AcqRel)).filter(|signal| *signal != 0)
}

/// Has this process note its faults. What else happens at a fault stays: a message of Rust's library, the signal as the end.
pub fn note_faults() -> io::Result<()> {
    for (signal, before) in FAULTS.into_iter().zip(&BEFORE) {
        let mut old = std::mem::MaybeUninit::<libc::sigaction>::uninit();
        let mut new = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zero is a valid action.
        let action = unsafe { new.assume_init_mut() };
        action.sa_sigaction = note as Handler as usize;
        // The default action comes back: the signal ends the process when it comes again.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
        // SAFETY: a valid action, whose handler makes calls only that signal-safety(7) allows; the kernel writes the old one to `old`.
        if unsafe { libc::sigaction(signal, action, old.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: filled by the call above, which succeeded.
        let old = unsafe { old.assume_init() };
        let has_handler = old.sa_flags & libc::SA_SIGINFO != 0 && old.sa_sigaction != note as Handler as usize;
        before.store(if has_handler { old.sa_sigaction } else { 0 }, Ordering::Relaxed);
    }
    Ok(())
}

extern "C" fn note(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if let Some(note) = NOTE.get() {
        let _ = note.compare_exchange(0, signal, Ordering::AcqRel, Ordering::Relaxed);
    }
    let before = FAULTS.iter().position(|fault| *fault == signal).map_or(0, |index| BEFORE[index].load(Ordering::Relaxed));
    if before != 0 {
        // SAFETY: the address of a handler that was installed with SA_SIGINFO.
        let before: Handler = unsafe { std::mem::transmute(before) };
        before(signal, info, context);
    }
    // SAFETY: the kernel gives such a handler an information.
    let code = unsafe { (*info).si_code };
    // A fault comes again when its instruction is executed again. What a process has sent does not.
    if code <= 0 {
        // SAFETY: a signal to this thread, which is blocked until this handler returns.
        unsafe { libc::raise(signal) };
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const IN_CHILD: &str = "GATHERFS_TEST_OVERFLOWS";

    fn overflow(depth: u64) -> u64 {
        if std::hint::black_box(depth) == u64::MAX { 0 } else { std::hint::black_box(overflow(depth + 1)) + 1 }
    }

    #[test]
    fn a_fault_is_noted_for_the_process_before_and_a_stack_overflow_is_told_as_ever() {
        if std::env::var_os(IN_CHILD).is_some() {
            share_note().unwrap();
            // SAFETY: the new process makes no call that another thread of this one could be in the middle of.
            let child = unsafe { libc::fork() };
            if child == 0 {
                note_faults().unwrap();
                overflow(0);
            }
            // SAFETY: a null pointer for the status.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            println!("noted: {:?}, {:?}", take_note(), take_note());
            return;
        }
        let this = "sys::fault::tests::a_fault_is_noted_for_the_process_before_and_a_stack_overflow_is_told_as_ever";
        let child = Command::new(std::env::current_exe().unwrap()).args(["--exact", this, "--nocapture"]).env(IN_CHILD, "1").output();
        let (out, err) =
            child.map(|child| [child.stdout, child.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).into()).unwrap();
        assert!(out.contains("noted: Some(11), None"), "{out}");
        assert!(err.contains("has overflowed its stack"), "{err}");
    }
}
