//! Failpoints: places in front of the system calls of the guest's operations where a test of the faults of a host takes hold, and
//! crash points: places between the stores of an operation where a test has it end. Only with the feature `failpoints`; without it
//! `fail_call` and `crash_point` expand to nothing. Does not know which faults a test wants, and when.

/// Marks the system call that the rest of the block makes, by its name in section 2 of the manual. To stand in front of it in a
/// function that returns `Result<_, Errno>`. Behind the name, `short` asks in addition for the transfer to be made in part: the
/// value is then whether it is.
#[cfg(feature = "failpoints")]
macro_rules! fail_call {
    ($name:literal) => {
        let _returns = $crate::sys::failpoint::Call::begin($name)?;
    };
    ($name:literal, short $is_short:ident) => {
        let call = $crate::sys::failpoint::Call::begin($name)?;
        let $is_short = call.is_short;
    };
}

#[cfg(not(feature = "failpoints"))]
macro_rules! fail_call {
    ($name:literal) => {};
    ($name:literal, short $is_short:ident) => {
        let $is_short = false;
    };
}

pub(in crate::sys) use fail_call;

/// Marks a point between two stores that another process reads after this one's death, by a name. With GATHERFS_FAIL=name:n in the
/// environment the process is killed when it comes here for the nth time.
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(test)]
        $crate::sys::failpoint::at_crash_point($name);
        #[cfg(feature = "failpoints")]
        $crate::sys::failpoint::reach($name);
    };
}

pub(crate) use crash_point;

/// Marks a point at which a request names something. The process faults where GATHERFS_FAULT in the environment is that name, and makes
/// a system call that no worker may make where GATHERFS_FORBIDDEN is.
macro_rules! fault_point {
    ($name:expr) => {
        #[cfg(feature = "failpoints")]
        $crate::sys::failpoint::reach_name($name);
    };
}

pub(crate) use fault_point;

#[cfg(test)]
type CrashHook = Box<dyn Fn(&'static str)>;

#[cfg(test)]
thread_local! {
    static AT_CRASH_POINT: std::cell::RefCell<Option<CrashHook>> = const { std::cell::RefCell::new(None) };
}

/// Runs the hook of the calling thread.
#[cfg(test)]
pub(crate) fn at_crash_point(name: &'static str) {
    AT_CRASH_POINT.with_borrow(|hook| hook.as_ref().into_iter().for_each(|hook| hook(name)));
}

/// Sets the hook of the calling thread, which runs at each crash point.
#[cfg(test)]
pub(crate) fn set_crash_hook(hook: CrashHook) {
    AT_CRASH_POINT.set(Some(hook));
}

#[cfg(feature = "failpoints")]
pub use hooked::{Call, Fault, Hook, Moment, reach, reach_name, set_hook};

#[cfg(feature = "failpoints")]
mod hooked {
    use std::ffi::{CStr, OsString};
    use std::os::unix::ffi::OsStrExt;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use parking_lot::RwLock;
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

    use crate::sys::crash_plan;
    use crate::types::Errno;

    /// What a call does instead of its work.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Fault {
        /// It is not made, and fails.
        Errno(Errno),
        /// It transfers less than asked, where it is one that transfers data.
        Short,
    }

    /// When the hook runs.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Moment {
        /// The call is about to be made.
        Before,
        /// The call has been made; a fault has no effect any more.
        After,
        /// It is no call, but a crash point.
        Between,
    }

    /// Runs on the thread that makes the call, with the call's name. It must make no such call itself.
    pub type Hook = Box<dyn Fn(&'static str, Moment) -> Option<Fault> + Send + Sync>;

    static HOOK: RwLock<Option<Hook>> = RwLock::new(None);

    /// Sets the hook of the whole process, or removes it. Waits until the present one does not run.
    pub fn set_hook(hook: Option<Hook>) {
        *HOOK.write() = hook;
    }

    fn run(name: &'static str, moment: Moment) -> Option<Fault> {
        let is_cut = crash_plan::pass(
            name,
            match moment {
                Moment::Before => "before ",
                Moment::After => "after ",
                Moment::Between => "",
            },
        );
        HOOK.read().as_ref().and_then(|hook| hook(name, moment)).or(is_cut.then_some(Fault::Short))
    }

    /// The crash point that is selected, and how often the process comes there until it dies.
    static SELECTED: LazyLock<Option<(String, AtomicU32)>> = LazyLock::new(|| {
        let selected = std::env::var("GATHERFS_FAIL").ok()?;
        let (name, count) = selected.split_once(':')?;
        Some((name.to_owned(), AtomicU32::new(count.parse().ok()?)))
    });

    /// The process has come to the crash point `name`.
    pub fn reach(name: &'static str) {
        run(name, Moment::Between);
        let selected = SELECTED.as_ref().filter(|(selected, _)| selected == name);
        if selected.is_some_and(|(_, left)| left.fetch_sub(1, Ordering::Relaxed) == 1) {
            // SAFETY: the process ends here. Not by kill(2), which the sandbox forbids.
            unsafe { libc::raise(libc::SIGKILL) };
        }
    }

    /// The name with which a request ends the process.
    static FAULTY_NAME: LazyLock<Option<OsString>> = LazyLock::new(|| std::env::var_os("GATHERFS_FAULT"));

    /// The name with which a request has the process make a forbidden system call.
    static FORBIDDEN_NAME: LazyLock<Option<OsString>> = LazyLock::new(|| std::env::var_os("GATHERFS_FORBIDDEN"));

    /// A request names `name`.
    pub fn reach_name(name: &CStr) {
        if FORBIDDEN_NAME.as_deref().is_some_and(|forbidden| forbidden.as_bytes() == name.to_bytes()) {
            // SAFETY: takes a number, and changes nothing where it is allowed.
            unsafe { libc::syscall(libc::SYS_getpgid, 0) };
        }
        if FAULTY_NAME.as_deref().is_some_and(|faulty| faulty.as_bytes() == name.to_bytes()) {
            // SAFETY: the kernel chooses the place of a new mapping.
            let page = unsafe { mmap_anonymous(std::ptr::null_mut(), 1, ProtFlags::empty(), MapFlags::PRIVATE) };
            // SAFETY: the mapping cannot be read: the process ends here, by SIGSEGV.
            let _ = page.map(|page| unsafe { page.cast::<u8>().read_volatile() });
        }
    }

    /// A call that is being made, until this is dropped.
    #[derive(Debug)]
    pub struct Call {
        name: &'static str,
        /// The transfer is to be made in part.
        pub is_short: bool,
    }

    impl Call {
        /// The call `name` begins. The errno of the fault that the hook wants.
        pub fn begin(name: &'static str) -> Result<Call, Errno> {
            match run(name, Moment::Before) {
                Some(Fault::Errno(errno)) => Err(errno),
                fault => Ok(Call { name, is_short: fault == Some(Fault::Short) }),
            }
        }
    }

    impl Drop for Call {
        fn drop(&mut self) {
            run(self.name, Moment::After);
        }
    }
}
