//! The capabilities that the serving process keeps when it is root, on the host or in its user namespace, and those of the
//! process that waits outside. Each with what needs it.

use std::str::FromStr;

use caps::{CapSet, Capability, CapsHashSet};

use super::error::{JailError, Step};
use crate::sys::identity;

/// What file operations for the guest's root need. The same set as virtiofsd's.
const DEFAULT: [Capability; 8] = [
    // SETATTR of owner and group.
    Capability::CAP_CHOWN,
    // Access to files of every user.
    Capability::CAP_DAC_OVERRIDE,
    // SETATTR of mode and times on every user's files.
    Capability::CAP_FOWNER,
    // SETATTR of a mode with setgid, for a group that the daemon is not in.
    Capability::CAP_FSETID,
    // Creates with the caller's ids (sys/identity.rs).
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    // MKNOD of devices.
    Capability::CAP_MKNOD,
    // SETXATTR of security.capability.
    Capability::CAP_SETFCAP,
];

/// open_by_handle_at(2), which `--inode-file-handles never` does without.
const OF_HANDLES: Capability = Capability::CAP_DAC_READ_SEARCH;

/// What the process that waits outside the sandbox needs.
const OUTSIDE: [Capability; 3] = [
    // Signals to the serving process, which may run as another user.
    Capability::CAP_KILL,
    // Removing the socket from another user's directory.
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
];

/// The capabilities that are kept, as far as the process has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    kept: CapsHashSet,
    /// Those that `--modcaps` adds.
    added: Vec<Capability>,
}

/// An invalid entry of `--modcaps`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// The entry begins with neither + nor -.
    #[error("entry {number} ({text}) begins with neither + nor -; use +NAME to keep a capability or -NAME to drop it, separated by :")]
    NoSign {
        /// Its position, from 1.
        number: usize,
        /// The entry.
        text: String,
    },
    /// The name is unknown.
    #[error("entry {number} ({text}) names no capability; use a name of capabilities(7), for example +sys_admin")]
    Unknown {
        /// Its position, from 1.
        number: usize,
        /// The entry.
        text: String,
    },
}

impl Capabilities {
    /// The default set with the changes of `--modcaps`: `+NAME` and `-NAME`, separated by `:`. `with_handles` tells whether
    /// inodes may be kept as file handles. An error for an entry without a sign, or with an unknown name.
    pub fn new(with_handles: bool, changes: Option<&str>) -> Result<Capabilities, CapabilityError> {
        let mut kept: CapsHashSet = DEFAULT.into_iter().chain(with_handles.then_some(OF_HANDLES)).collect();
        let mut added = Vec::new();
        for (index, text) in changes.iter().flat_map(|c| c.split(':')).enumerate() {
            let (number, entry) = (index + 1, || text.to_owned());
            let (keep, name) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
                (Some(name), _) => (true, name),
                (_, Some(name)) => (false, name),
                _ => return Err(CapabilityError::NoSign { number, text: entry() }),
            };
            let name = name.to_ascii_uppercase();
            let capability = Capability::from_str(&format!("CAP_{}", name.strip_prefix("CAP_").unwrap_or(&name)));
            let capability = capability.map_err(|_| CapabilityError::Unknown { number, text: entry() })?;
            added.retain(|c| *c != capability);
            if keep {
                kept.insert(capability);
                added.push(capability);
            } else {
                kept.remove(&capability);
            }
        }
        Ok(Capabilities { kept, added })
    }

    /// Drops every other capability and sets no_new_privs. An error where the kernel refuses either.
    pub fn confine(&self) -> Result<(), JailError> {
        let held = held()?;
        for missing in self.added.iter().filter(|c| !held.contains(c)) {
            tracing::warn!("--modcaps: cannot keep {missing}; the daemon was started without it");
        }
        keep(&held, &self.kept)
    }
}

/// Drops what the process that waits outside does not need. An error where the kernel refuses.
pub fn confine_outside() -> Result<(), JailError> {
    keep(&held()?, &OUTSIDE.into_iter().collect())
}

fn held() -> Result<CapsHashSet, JailError> {
    caps::read(None, CapSet::Permitted).map_err(std::io::Error::other).step("read capabilities")
}

fn keep(held: &CapsHashSet, wanted: &CapsHashSet) -> Result<(), JailError> {
    rustix::thread::set_no_new_privs(true).step("set no_new_privs")?;
    if held.is_empty() {
        return Ok(());
    }
    let keep: CapsHashSet = held.intersection(wanted).copied().collect();
    for capability in held.difference(&keep) {
        // Needs CAP_SETPCAP. Without it the permitted set and no_new_privs suffice.
        let _ = caps::drop(None, CapSet::Bounding, *capability);
    }
    let none = CapsHashSet::new();
    for (set, kept) in [(CapSet::Effective, &keep), (CapSet::Permitted, &keep), (CapSet::Inheritable, &none)] {
        caps::set(None, set, kept).map_err(std::io::Error::other).step("drop capabilities")?;
    }
    Ok(())
}

/// Clears the supplementary groups, which would otherwise add to the rights of a caller that the daemon acts for. Does nothing
/// without groups, without CAP_SETGID, or where the user namespace denies setgroups(2). Call it while /proc is mounted. An
/// error where the kernel refuses for another reason.
pub fn leave_groups() -> Result<(), JailError> {
    let has_none = rustix::process::getgroups().step("read supplementary groups")?.is_empty();
    if has_none || !held()?.contains(&Capability::CAP_SETGID) {
        return Ok(());
    }
    match identity::set_group(None) {
        Err(e) if e.raw() == libc::EPERM && may_not_set_groups() => Ok(()),
        left => left.map_err(|e| std::io::Error::from_raw_os_error(e.raw())).step("clear supplementary groups"),
    }
}

/// Whether the user namespace denies setgroups(2) (man user_namespaces(7)), as one that an unprivileged user made.
fn may_not_set_groups() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|answer| answer.trim() == "deny")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(with_handles: bool, changes: &str) -> CapsHashSet {
        Capabilities::new(with_handles, Some(changes)).unwrap().kept
    }

    #[test]
    fn modcaps_adds_and_takes_away_in_order() {
        let default = Capabilities::new(true, None).unwrap().kept;
        assert!(default.contains(&OF_HANDLES) && default.len() == DEFAULT.len() + 1);
        assert!(!Capabilities::new(false, None).unwrap().kept.contains(&OF_HANDLES));
        let changed = kept(true, "+sys_admin:-CHOWN:-cap_mknod");
        assert!(changed.contains(&Capability::CAP_SYS_ADMIN) && changed.len() == DEFAULT.len());
        assert!(!changed.contains(&Capability::CAP_CHOWN) && !changed.contains(&Capability::CAP_MKNOD));
        assert_eq!(kept(true, "-chown:+chown"), default, "the last entry counts");
        assert_eq!(kept(false, "-dac_read_search"), Capabilities::new(false, None).unwrap().kept);
    }

    #[test]
    fn an_error_of_modcaps_names_the_position_of_the_entry() {
        let said = |changes| Capabilities::new(true, Some(changes)).unwrap_err().to_string();
        assert!(said("").contains("entry 1 ()"), "{}", said(""));
        assert!(said("+chown:sys_admin").contains("entry 2 (sys_admin) begins with neither"));
        assert!(said("+chown::-mknod").contains("entry 2 ()"));
        assert!(said("-chwon").contains("entry 1 (-chwon) names no capability"));
        assert!(said("+").contains("entry 1 (+) names no capability"));
    }
}
