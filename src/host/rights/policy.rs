//! POSIX ACLs, security labels, names of attributes, and who clears setuid bits: what the options ask for, and what is in force
//! on the share's file system. What is negotiated depends on the guest, too.

use std::borrow::Cow;
use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::xattr_map::{CATCH_ALL, XattrMap};
use crate::host::features::{Feature, Features};
use crate::sys::working_dir::DescriptorName;
use crate::sys::xattr;
use crate::types::Errno;

/// The ACLs' own names.
const ACL_NAMES: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];
/// Whether a feature is offered that the guest or the file system may not support.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Support {
    /// Disabled.
    #[default]
    Never,
    /// Enabled where both support it.
    Auto,
    /// Required: a guest without it is refused.
    Always,
}

/// Whether host or guest clears setuid, setgid and capabilities of a file that is changed (FUSE's HANDLE_KILLPRIV_V2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KillPriv {
    /// The host if its file system is known to do so, otherwise the guest.
    #[default]
    Auto,
    /// The host. Guests before Linux 5.11 get the first version.
    Host,
    /// The guest.
    Guest,
}

/// Options about rights.
#[derive(Debug, Clone, Default)]
pub struct Rights {
    /// POSIX ACLs.
    pub posix_acl: Support,
    /// Labels of new files.
    pub security_label: Support,
    /// Whether host or guest clears setuid, setgid and capabilities.
    pub killpriv: KillPriv,
    /// Names of extended attributes between guest and host.
    pub xattr_map: Option<XattrMap>,
}

/// A feature that the guest's kernel does not support, and that an option requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedGuest {
    /// `--posix-acl=always`.
    #[error(
        "--posix-acl=always: the guest's kernel does not support POSIX ACLs for FUSE; use Linux 5.12 or newer in the guest, or --posix-acl=auto"
    )]
    PosixAcl,
    /// `--security-label=always`.
    #[error(
        "--security-label=always: the guest's kernel does not send security labels; use Linux 5.17 or newer in the guest, or --security-label=auto"
    )]
    SecurityLabel,
}

/// What is in force of [`Rights`] on the share's file system.
#[derive(Debug)]
pub(in crate::host) struct RightsPolicy {
    posix_acl: Support,
    security_label: Support,
    killpriv: KillPriv,
    xattr_map: Option<XattrMap>,
    /// The share's file system clears setuid, setgid and capabilities in the call that changes a file.
    is_local: bool,
}

impl RightsPolicy {
    /// `asked` on the file system behind `root`, which lies at `path`; `serves_xattr`: extended attributes are served. Logs what
    /// the file system does not support. `None` where labels are required and not supported: each create would fail.
    pub fn new(asked: Rights, serves_xattr: bool, root: BorrowedFd<'_>, path: &Path, is_local: bool) -> Option<RightsPolicy> {
        let Rights { mut posix_acl, mut security_label, killpriv, xattr_map } = asked;
        let lacks = |name| xattr::of_open(root, name) == Err(Errno::EOPNOTSUPP);
        let path = path.display();
        if let Some(map) = &xattr_map
            && !map.is_complete()
        {
            tracing::warn!(
                "--xattrmap: no rule matches every name; names without a rule are refused and hidden; add {CATCH_ALL} at the end"
            );
        }
        if serves_xattr && lacks(c"user.gatherfs") && lacks(c"security.gatherfs") {
            tracing::warn!("the file system of {path} does not support extended attributes; the guest gets EOPNOTSUPP for them");
            if security_label == Support::Always {
                return None;
            }
            security_label = Support::Never;
        } else if posix_acl != Support::Never && lacks(ACL_NAMES[0]) {
            tracing::warn!("the file system of {path} does not support POSIX ACLs; the guest gets EOPNOTSUPP for them");
        }
        // With "always" the umask and the file systems below the share are served as with ACLs.
        if posix_acl == Support::Auto && lacks(ACL_NAMES[0]) {
            posix_acl = Support::Never;
        }
        Some(RightsPolicy { posix_acl, security_label, killpriv, xattr_map, is_local })
    }

    /// Features about rights to offer to a guest that supports `guest`. An error where it lacks one that an option requires.
    pub fn offered(&self, guest: Features) -> Result<Features, UnsupportedGuest> {
        // Linux allows it with default_permissions, which virtiofs always has.
        let mut offered = Features::default().with(Feature::MappedIds);
        if self.clears_on_host() && guest.has(Feature::ClearOnRequest) {
            offered = offered.with(Feature::ClearOnRequest);
        } else if self.killpriv == KillPriv::Host {
            // Guests before Linux 5.11 know the first version only, which clears more.
            offered = offered.with(Feature::ClearAlways);
        }
        match (self.posix_acl, guest.has(Feature::PosixAcl)) {
            (Support::Never, _) => {}
            (_, true) => offered = offered.with(Feature::PosixAcl),
            (Support::Auto, false) => tracing::warn!("the guest's kernel does not support POSIX ACLs for FUSE; they are disabled"),
            (Support::Always, false) => return Err(UnsupportedGuest::PosixAcl),
        }
        match (self.security_label, guest.has(Feature::SecurityLabel)) {
            (Support::Never, _) => {}
            (_, true) => offered = offered.with(Feature::SecurityLabel),
            (Support::Auto, false) => tracing::warn!("the guest's kernel does not send security labels; they are disabled"),
            (Support::Always, false) => return Err(UnsupportedGuest::SecurityLabel),
        }
        Ok(offered)
    }

    /// Whether the host clears setuid, setgid and capabilities of changed files, for guests that can request it.
    fn clears_on_host(&self) -> bool {
        match self.killpriv {
            // The kernel clears them there in the same call, as it does for a process of the host.
            KillPriv::Auto => self.is_local,
            KillPriv::Host => true,
            KillPriv::Guest => false,
        }
    }

    /// The name on the host of the guest's attribute `name`; `has_acls`: POSIX ACLs were negotiated. EOPNOTSUPP for ACLs
    /// otherwise: without the guest they would not be enforced. EPERM and EOPNOTSUPP where the map says so.
    pub fn host_xattr_name<'n>(&self, name: &'n CStr, has_acls: bool) -> Result<Cow<'n, CStr>, Errno> {
        if ACL_NAMES.contains(&name) && !has_acls {
            return Err(Errno::EOPNOTSUPP);
        }
        let host_name = match &self.xattr_map {
            Some(map) => map.to_host(name)?,
            None => Cow::Borrowed(name),
        };
        // Nor by a rule that maps another name to an ACL's.
        if ACL_NAMES.contains(&&*host_name) && !has_acls { Err(Errno::EOPNOTSUPP) } else { Ok(host_name) }
    }

    /// The name in the guest of the host's attribute `name` (without NUL); `None` where it is hidden.
    pub fn guest_xattr_name<'n>(&self, name: &'n [u8], has_acls: bool) -> Option<&'n [u8]> {
        let name = match &self.xattr_map {
            Some(map) => map.to_guest(name)?,
            None => name,
        };
        let is_acl = ACL_NAMES.iter().any(|acl| acl.to_bytes() == name);
        (!is_acl || has_acls).then_some(name)
    }

    /// Whether `name` is the access ACL, as the guest calls it.
    pub fn is_access_acl(name: &CStr) -> bool {
        name == ACL_NAMES[0]
    }

    /// Removes the capabilities of the regular file behind `fd` where their attribute has another name on the host, so that the
    /// host's kernel does not remove them itself. The errno of getxattr(2) or removexattr(2).
    pub fn drop_mapped_capability(&self, fd: BorrowedFd<'_>, is_regular: impl FnOnce() -> Result<bool, Errno>) -> Result<(), Errno> {
        let Some(name) = self.xattr_map.as_ref().and_then(XattrMap::hidden_capability) else { return Ok(()) };
        if !is_regular()? {
            return Ok(());
        }
        let path = DescriptorName::of(fd);
        // Read first: removing takes write access, which an open file may not have, and mostly there is none.
        match xattr::get(path.as_c_str(), name, &mut []) {
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => return Ok(()),
            Err(errno) => return Err(errno),
            Ok(_) => {}
        }
        match xattr::remove(path.as_c_str(), name) {
            Err(Errno::ENODATA) | Ok(()) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}
