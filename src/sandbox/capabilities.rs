//! The rights that the serving process keeps when it runs as root, each with its user.

use caps::{CapSet, Capability, CapsHashSet};

use super::{JailError, Step};
use crate::sys::identity;

/// What file operations on behalf of the guest's root need; the same set as virtiofsd's.
const KEPT: [Capability; 9] = [
    // SETATTR of owner and group.
    Capability::CAP_CHOWN,
    // Files of every user are the guest's.
    Capability::CAP_DAC_OVERRIDE,
    // open_by_handle_at.
    Capability::CAP_DAC_READ_SEARCH,
    // SETATTR of mode and times on every user's files.
    Capability::CAP_FOWNER,
    // setgid bits that the guest sets.
    Capability::CAP_FSETID,
    // Creates with the caller's ids.
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    // MKNOD of devices.
    Capability::CAP_MKNOD,
    // security.capability attributes.
    Capability::CAP_SETFCAP,
];

/// Drops every other capability and the way to get new ones.
pub fn confine() -> Result<(), JailError> {
    rustix::thread::set_no_new_privs(true).step("give up new privileges")?;
    let held = caps::read(None, CapSet::Permitted).map_err(std::io::Error::other).step("read capabilities")?;
    if held.is_empty() {
        return Ok(());
    }
    if held.contains(&Capability::CAP_SETGID) {
        // The daemon's own groups would count as the caller's when it acts for one.
        identity::set_groups(&[]).map_err(|e| std::io::Error::from_raw_os_error(e.raw())).step("leave supplementary groups")?;
    }
    let keep: CapsHashSet = KEPT.into_iter().filter(|c| held.contains(c)).collect();
    for capability in held.difference(&keep) {
        // Only with CAP_SETPCAP; without it the permitted set is what counts.
        let _ = caps::drop(None, CapSet::Bounding, *capability);
    }
    let none = CapsHashSet::new();
    for (set, kept) in [(CapSet::Effective, &keep), (CapSet::Permitted, &keep), (CapSet::Inheritable, &none)] {
        caps::set(None, set, kept).map_err(std::io::Error::other).step("drop capabilities")?;
    }
    Ok(())
}
