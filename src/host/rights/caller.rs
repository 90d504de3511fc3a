//! The credentials of the guest's caller, which the thread takes for one operation.

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
    /// The guest's caller with the host's ids. EPERM where one of its ids is forbidden.
    pub fn of_guest(ids: &Translation, uid: GuestUid, gid: GuestGid, group: Option<GuestGid>) -> Result<Caller, Errno> {
        let group = group.map(|g| ids.host_gid(g)).transpose()?;
        Ok(Caller { uid: ids.host_uid(uid)?, gid: ids.host_gid(gid)?, group })
    }

    /// The guest's root maps to the daemon's own ids, so that an unprivileged daemon serves it too. It gets no supplementary
    /// groups, which would give it no further rights.
    pub fn on_host(&self, own: (HostUid, HostGid)) -> Caller {
        Caller {
            uid: if self.uid.0 == 0 { own.0 } else { self.uid },
            gid: if self.gid.0 == 0 { own.1 } else { self.gid },
            group: self.group.filter(|_| self.uid.0 != 0),
        }
    }
}

/// The thread has the caller's credentials until this is dropped.
#[derive(Debug)]
#[must_use]
struct Acting {
    own: (HostUid, HostGid),
    caller: Caller,
    /// The thread could not take the caller's supplementary group: this process may not set groups.
    lacks_group: bool,
    cleared_capabilities: bool,
}

impl Acting {
    fn as_caller(caller: &Caller, own: (HostUid, HostGid)) -> Result<Acting, Errno> {
        let mut acting =
            Acting { own, caller: Caller { uid: own.0, gid: own.1, group: None }, lacks_group: false, cleared_capabilities: false };
        // Groups first and the user last: changing the user gives up the right to change groups.
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
            // Leaving uid 0 clears the effective capabilities (man capabilities(7)); leaving another uid does not.
            if own.0.0 != 0 {
                identity::lay_down_capabilities()?;
                acting.cleared_capabilities = true;
            }
        }
        Ok(acting)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        let uid = if self.caller.uid == self.own.0 { Ok(()) } else { identity::set_effective_uid(self.own.0) };
        let gid = if self.caller.gid == self.own.1 { Ok(()) } else { identity::set_effective_gid(self.own.1) };
        let capabilities = if self.cleared_capabilities { identity::take_capabilities_up() } else { Ok(()) };
        let groups = if self.caller.group.is_none() { Ok(()) } else { identity::set_group(None) };
        // A thread that keeps the caller's credentials would serve the next request with the wrong rights.
        let is_back = uid.is_ok() && gid.is_ok() && capabilities.is_ok() && groups.is_ok();
        assert!(is_back, "cannot restore the daemon's own credentials");
    }
}

/// Runs `create` with the caller's credentials. No system call where they are the daemon's own. Errors of `create`, and of setting
/// the credentials.
///
/// `groups_known`: the guest sends the supplementary group that a create relies on. An older guest does not, and in a user
/// namespace that forbids setgroups(2) no group can be taken. A create that fails with EACCES is then tried once more without
/// permission checks: the guest's kernel has done them already (`default_permissions`).
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
