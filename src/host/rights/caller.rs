//! On whose behalf something is created: the guest's caller, taken on by the thread for one operation.

use std::cell::Cell;

use caps::Capability;

use crate::host::rights::id_map::Translation;
use crate::sys::identity;
use crate::types::{Errno, GuestGid, GuestUid, HostGid, HostUid};

/// The credentials of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: HostUid,
    /// Group.
    pub gid: HostGid,
    /// The one supplementary group that matters to a create: that of the parent directory.
    pub group: Option<HostGid>,
}

impl Caller {
    /// The guest's caller as the host knows it. EPERM where one of its ids is forbidden.
    pub fn of_guest(ids: &Translation, uid: GuestUid, gid: GuestGid, group: Option<GuestGid>) -> Result<Caller, Errno> {
        let group = group.map(|g| ids.host_gid(g)).transpose()?;
        Ok(Caller { uid: ids.host_uid(uid)?, gid: ids.host_gid(gid)?, group })
    }

    /// The guest's root is whoever the daemon is, so that an unprivileged daemon serves it too. Groups are not
    /// taken on for it: they give it nothing.
    fn on_host(&self, own: (HostUid, HostGid)) -> Caller {
        Caller {
            uid: if self.uid.0 == 0 { own.0 } else { self.uid },
            gid: if self.gid.0 == 0 { own.1 } else { self.gid },
            group: self.group.filter(|_| self.uid.0 != 0),
        }
    }
}

/// The thread acts as the caller until this is dropped.
#[derive(Debug)]
#[must_use]
struct Acting {
    own: (HostUid, HostGid),
    caller: Caller,
    /// The caller's group is not among the thread's: this process may not set groups.
    lacks_group: bool,
    laid_down: bool,
}

impl Acting {
    fn as_caller(caller: &Caller, own: (HostUid, HostGid)) -> Result<Acting, Errno> {
        let mut acting = Acting { own, caller: Caller { uid: own.0, gid: own.1, group: None }, lacks_group: false, laid_down: false };
        // Groups first and the user last: each step needs the rights that the last one gives up.
        if let Some(group) = caller.group.filter(|g| *g != caller.gid) {
            match identity::set_group(Some(group)) {
                Ok(()) => acting.caller.group = Some(group),
                Err(Errno::EPERM) => acting.lacks_group = true,
                Err(e) => return Err(e),
            }
        }
        if caller.gid != own.1 {
            identity::set_effective_gid(caller.gid)?;
            acting.caller.gid = caller.gid;
        }
        if caller.uid != own.0 {
            identity::set_effective_uid(caller.uid)?;
            acting.caller.uid = caller.uid;
            // Of root the kernel takes the capabilities then (man capabilities(7)); of another user it does not.
            if own.0.0 != 0 {
                identity::lay_down_capabilities()?;
                acting.laid_down = true;
            }
        }
        Ok(acting)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        let uid = if self.caller.uid == self.own.0 { Ok(()) } else { identity::set_effective_uid(self.own.0) };
        let gid = if self.caller.gid == self.own.1 { Ok(()) } else { identity::set_effective_gid(self.own.1) };
        let capabilities = if self.laid_down { identity::take_capabilities_up() } else { Ok(()) };
        let groups = if self.caller.group.is_none() { Ok(()) } else { identity::set_group(None) };
        // A thread that stays somebody else would act on the next guest's request with the wrong rights.
        let is_back = uid.is_ok() && gid.is_ok() && capabilities.is_ok() && groups.is_ok();
        assert!(is_back, "cannot take the daemon's own credentials back");
    }
}

/// Runs `create` as the caller. No system call where the caller is the daemon itself.
///
/// `groups_known` says that the guest sends the supplementary group it relies on. An older guest does not, and
/// in a user namespace that forbids setgroups(2) no group can be taken on. A create that the host then refuses
/// for want of permission is tried once more with permission checks off: the guest's kernel has checked them
/// already (`default_permissions`).
pub fn acting_as<R>(
    caller: &Caller,
    own: (HostUid, HostGid),
    groups_known: bool,
    create: impl Fn() -> Result<R, Errno>,
) -> Result<R, Errno> {
    let caller = &caller.on_host(own);
    let acting = Acting::as_caller(caller, own)?;
    let is_complete = groups_known && !acting.lacks_group;
    match create() {
        Err(Errno::EACCES) if !is_complete && caller.uid != own.0 && identity::set_capability(Capability::CAP_DAC_OVERRIDE, true) => {
            let result = create();
            identity::set_capability(Capability::CAP_DAC_OVERRIDE, false);
            result
        }
        result => result,
    }
}

/// What is known of CAP_FSETID in the thread's effective set. Whoever has it keeps setuid and setgid bits of what it writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fsetid {
    Unknown,
    /// Not permitted to this process.
    Absent,
    Effective,
    LaidDown,
}

thread_local! {
    static FSETID: Cell<Fsetid> = const { Cell::new(Fsetid::Unknown) };
}

/// Decides whether what the thread changes next keeps setuid and setgid bits. No system call where that was decided in
/// the same way before: Linux guests ask for it with each WRITE of a user other than root.
///
/// Every other change takes it up again first (`Share::writable`), so that a chmod can set setgid.
pub fn keep_suidgid(keep: bool) {
    let known = FSETID.get();
    match (known, keep) {
        (Fsetid::Absent, _) | (Fsetid::Unknown | Fsetid::Effective, true) | (Fsetid::LaidDown, false) => {}
        (Fsetid::LaidDown, true) => {
            let is_back = identity::set_capability(Capability::CAP_FSETID, true);
            assert!(is_back, "cannot take a permitted capability up again");
            FSETID.set(Fsetid::Effective);
        }
        (Fsetid::Unknown, false) if !identity::has_capability(Capability::CAP_FSETID) => FSETID.set(Fsetid::Absent),
        (Fsetid::Unknown | Fsetid::Effective, false) => {
            if identity::set_capability(Capability::CAP_FSETID, false) {
                FSETID.set(Fsetid::LaidDown);
            }
        }
    }
}

/// Runs `change` so that the kernel clears setuid and setgid bits as it does for an unprivileged writer.
pub fn without_fsetid<R>(change: impl FnOnce() -> R) -> R {
    keep_suidgid(false);
    let result = change();
    keep_suidgid(true);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_root_is_whoever_the_daemon_is() {
        let caller = |uid, gid, group| Caller { uid: HostUid(uid), gid: HostGid(gid), group };
        let (root, user) = ((HostUid(0), HostGid(0)), (HostUid(1000), HostGid(100)));
        assert_eq!(caller(0, 0, None).on_host(user), caller(1000, 100, None));
        assert_eq!(caller(5, 6, Some(HostGid(7))).on_host(user), caller(5, 6, Some(HostGid(7))));
        assert_eq!(caller(5, 6, Some(HostGid(7))).on_host(root), caller(5, 6, Some(HostGid(7))));
        assert_eq!(caller(0, 6, Some(HostGid(7))).on_host(root), caller(0, 6, None));
    }
}
