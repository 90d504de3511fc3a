//! Credentials of the calling thread. glibc's functions change those of every thread, so these are direct system calls (man
//! setresuid(2), "C library/kernel differences").

use caps::{CapSet, Capability};

use super::failpoint::fail_call;
use crate::types::{Errno, HostGid, HostUid};

/// Leaves an id unchanged.
const KEEP: libc::c_long = -1;

fn check(r: libc::c_long) -> Result<(), Errno> {
    if r == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// An id as an argument of the call. EINVAL for -1, which would leave the id unchanged.
fn new_id(id: u32) -> Result<libc::c_long, Errno> {
    if id == u32::MAX { Err(Errno::EINVAL) } else { Ok(libc::c_long::from(id)) }
}

/// Sets the thread's effective user id. EPERM without CAP_SETUID, EINVAL for an id that is not mapped.
pub fn set_effective_uid(uid: HostUid) -> Result<(), Errno> {
    let uid = new_id(uid.0)?;
    fail_call!("setresuid");
    // SAFETY: takes integers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, KEEP, uid, KEEP) })
}

/// Sets the thread's effective group id. EPERM without CAP_SETGID, EINVAL for an id that is not mapped.
pub fn set_effective_gid(gid: HostGid) -> Result<(), Errno> {
    let gid = new_id(gid.0)?;
    fail_call!("setresgid");
    // SAFETY: takes integers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, KEEP, gid, KEEP) })
}

/// Sets the thread's supplementary groups to `group`, or to none. EPERM without CAP_SETGID or where the user namespace denies
/// it, EINVAL for an id that is not mapped.
pub fn set_group(group: Option<HostGid>) -> Result<(), Errno> {
    fail_call!("setgroups");
    let id: libc::gid_t = group.map_or(0, |group| group.0);
    // SAFETY: the kernel reads at most one id from the pointer.
    check(unsafe { libc::syscall(libc::SYS_setgroups, usize::from(group.is_some()), &raw const id) })
}

/// The thread's effective ids.
pub fn effective() -> (HostUid, HostGid) {
    (HostUid(rustix::process::geteuid().as_raw()), HostGid(rustix::process::getegid().as_raw()))
}

/// Clears the thread's effective set. The permitted set is unchanged. EPERM where the kernel refuses.
pub fn lay_down_capabilities() -> Result<(), Errno> {
    caps::clear(None, CapSet::Effective).map_err(|_| Errno::EPERM)
}

/// Makes the thread's permitted capabilities effective. EPERM where the kernel refuses.
pub fn take_capabilities_up() -> Result<(), Errno> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(|_| Errno::EPERM)?;
    caps::set(None, CapSet::Effective, &permitted).map_err(|_| Errno::EPERM)
}

/// Lets the program that the thread executes next have its permitted capabilities too, whoever its user is (man capabilities(7),
/// "Transformation of capabilities during execve()"). EPERM where the kernel refuses.
pub fn pass_capabilities_on() -> Result<(), Errno> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(|_| Errno::EPERM)?;
    // Only with something to pass on: the kernel may be without ambient capabilities (Linux before 4.3), or may not allow them.
    if permitted.is_empty() {
        return Ok(());
    }
    caps::set(None, CapSet::Inheritable, &permitted).map_err(|_| Errno::EPERM)?;
    permitted.into_iter().try_for_each(|capability| caps::raise(None, CapSet::Ambient, capability)).map_err(|_| Errno::EPERM)
}

/// Undoes [`pass_capabilities_on`]. EPERM where the kernel refuses.
pub fn keep_capabilities() -> Result<(), Errno> {
    // Clears the ambient ones too.
    caps::clear(None, CapSet::Inheritable).map_err(|_| Errno::EPERM)
}

/// Adds a capability to the thread's effective set, or removes it. False where the kernel refuses, as for one that is not
/// permitted.
pub fn set_capability(capability: Capability, on: bool) -> bool {
    let change = if on { caps::raise } else { caps::drop };
    change(None, CapSet::Effective, capability).is_ok()
}

/// Whether the thread has a capability in its effective set.
pub fn has_capability(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}
