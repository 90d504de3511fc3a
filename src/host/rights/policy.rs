//! What guest and daemon agree on about rights: POSIX ACLs, security labels, who clears setuid bits, mapped ids.
//! Some of it depends on the guest, some on the share's file system.

use std::borrow::Cow;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use crate::fuse::abi::init_flags as f;
use crate::host::rights::xattr_map::XattrMap;
use crate::host::share::{Options, Share};
use crate::sys::working_dir::DescriptorName;
use crate::sys::xattr;
use crate::types::{Errno, GuestUid, NodeId};

/// The ACLs' own names.
const ACL_NAMES: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];
/// POSIX ACLs take all of these: the guest checks them, the daemon applies the umask, and SETXATTR says when
/// setgid goes.
const ACL_FLAGS: u64 = f::POSIX_ACL | f::DONT_MASK | f::SETXATTR_EXT;

/// How much something that the guest or the file system may lack is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Not offered.
    #[default]
    Never,
    /// Offered where both have it.
    Auto,
    /// Refuse a guest without it.
    Always,
}

/// Who clears setuid, setgid and capabilities of a file that is changed (FUSE's HANDLE_KILLPRIV_V2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KillPriv {
    /// The host where its file system is known to, else the guest.
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
    pub posix_acl: Wanted,
    /// Labels of new files.
    pub security_label: Wanted,
    /// Who clears setuid, setgid and capabilities.
    pub killpriv: KillPriv,
    /// Names of extended attributes between guest and host.
    pub xattr_map: Option<XattrMap>,
}

/// What the guest's kernel lacks, and which option asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestLacks {
    /// `--posix-acl=always`.
    #[error("the guest's kernel has no POSIX ACLs for FUSE, which --posix-acl=always asks for; give it Linux 5.12, or say auto")]
    PosixAcl,
    /// `--security-label=always`.
    #[error("the guest's kernel sends no security labels, which --security-label=always asks for; give it Linux 5.17, or say auto")]
    SecurityLabel,
}

/// Takes back what the file system behind `root` cannot do and says so, once. False where labels are
/// demanded and cannot be: each create would fail.
pub(in crate::host) fn fit(options: &mut Options, root: BorrowedFd<'_>) -> bool {
    let lacks = |name| xattr::of_open(root, name) == Err(Errno::EOPNOTSUPP);
    let path = options.shared_dir.display();
    let rights = &mut options.rights;
    if let Some(map) = &rights.xattr_map
        && !map.is_complete()
    {
        let say = crate::host::rights::xattr_map::CATCH_ALL;
        tracing::warn!("--xattrmap does not say what becomes of every name; others are refused and hidden: end it with {say}");
    }
    if options.xattr && lacks(c"user.gatherfs") && lacks(c"security.gatherfs") {
        tracing::warn!("{path} lies on a file system without extended attributes: the guest gets EOPNOTSUPP for them");
        if rights.security_label == Wanted::Always {
            return false;
        }
        rights.security_label = Wanted::Never;
    } else if rights.posix_acl != Wanted::Never && lacks(ACL_NAMES[0]) {
        tracing::warn!("{path} lies on a file system without POSIX ACLs: the guest gets EOPNOTSUPP for them");
    }
    // Who says always wants the umask and the file systems below the share to be served as with ACLs.
    if rights.posix_acl == Wanted::Auto && lacks(ACL_NAMES[0]) {
        rights.posix_acl = Wanted::Never;
    }
    true
}

impl Share {
    /// INIT flags about rights, for a guest that can do `guest`.
    pub fn rights_flags(&self, guest: u64) -> Result<u64, GuestLacks> {
        let rights = &self.options.rights;
        // Linux allows it with default_permissions, which virtiofs always has.
        let mut flags = f::ALLOW_IDMAP;
        if self.clears_privileges() && guest & f::HANDLE_KILLPRIV_V2 != 0 {
            flags |= f::HANDLE_KILLPRIV_V2;
        } else if rights.killpriv == KillPriv::Host {
            // Guests before Linux 5.11 know the first version only, which clears more.
            flags |= f::HANDLE_KILLPRIV;
        }
        match (rights.posix_acl, guest & ACL_FLAGS == ACL_FLAGS) {
            (Wanted::Never, _) => {}
            (_, true) => flags |= ACL_FLAGS,
            (Wanted::Auto, false) => tracing::warn!("the guest's kernel has no POSIX ACLs for FUSE; it goes without"),
            (Wanted::Always, false) => return Err(GuestLacks::PosixAcl),
        }
        match (rights.security_label, guest & f::SECURITY_CTX != 0) {
            (Wanted::Never, _) => {}
            (_, true) => flags |= f::SECURITY_CTX,
            (Wanted::Auto, false) => tracing::warn!("the guest's kernel sends no security labels; it goes without"),
            (Wanted::Always, false) => return Err(GuestLacks::SecurityLabel),
        }
        Ok(flags)
    }

    /// Whether setuid, setgid and capabilities of changed files are cleared on the host, for guests that know how to ask for it.
    pub fn clears_privileges(&self) -> bool {
        match self.options.rights.killpriv {
            // The kernel clears them there in the same call, as it does for a process of the host.
            KillPriv::Auto => self.is_local,
            KillPriv::Host => true,
            KillPriv::Guest => false,
        }
    }

    /// Whether the guest enforces POSIX ACLs and leaves the umask to the daemon.
    pub(in crate::host) fn has_acls(&self) -> bool {
        self.agreed(f::POSIX_ACL)
    }

    /// Whether a write or truncation clears setuid and setgid: always where the first version of killpriv was
    /// agreed on, else where the request says so.
    pub(in crate::host) fn kills_suidgid(&self, requested: bool) -> bool {
        requested || self.agreed(f::HANDLE_KILLPRIV)
    }

    /// As `kills_suidgid`, for requests that have no way to say so: every caller's but root's. A guest whose mounts may map ids
    /// (Linux 6.12) names no caller, and asks before such a request.
    pub(in crate::host) fn kills_suidgid_for(&self, caller: GuestUid) -> bool {
        self.kills_suidgid(self.leaves_clearing_to_host() && caller != GuestUid(0) && caller != GuestUid(u32::MAX))
    }

    /// Whether the guest leaves it to the daemon to clear setuid and setgid, and says when.
    pub(in crate::host) fn leaves_clearing_to_host(&self) -> bool {
        self.agreed(f::HANDLE_KILLPRIV_V2)
    }

    /// Removes the capabilities of the file behind `fd`, where the host's kernel does not know them by their
    /// name. The host does it itself otherwise.
    pub(in crate::host) fn drop_hidden_capability(&self, node: NodeId, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let Some(name) = self.options.rights.xattr_map.as_ref().and_then(XattrMap::hidden_capability) else { return Ok(()) };
        if self.kind(node)? != libc::S_IFREG {
            return Ok(());
        }
        let path = DescriptorName::of(fd.as_fd());
        // Asked first: to remove takes a right to write that an open file may go without, and mostly there is none.
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

    /// What the guest's attribute `name` is called on the host. EOPNOTSUPP for ACLs unless they were agreed on:
    /// without the guest's help they would not be enforced. EPERM and EOPNOTSUPP where the map says so.
    pub(in crate::host) fn host_xattr_name<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>, Errno> {
        if ACL_NAMES.contains(&name) && !self.has_acls() {
            return Err(Errno::EOPNOTSUPP);
        }
        let host_name = match &self.options.rights.xattr_map {
            Some(map) => map.to_host(name)?,
            None => Cow::Borrowed(name),
        };
        // Nor by way of a rule that makes another name one of theirs.
        if ACL_NAMES.contains(&&*host_name) && !self.has_acls() { Err(Errno::EOPNOTSUPP) } else { Ok(host_name) }
    }

    /// What the host's attribute `name` (without NUL) is called in the guest; `None` where it is hidden.
    pub(in crate::host) fn guest_xattr_name<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let name = match &self.options.rights.xattr_map {
            Some(map) => map.to_guest(name)?,
            None => name,
        };
        let is_acl = ACL_NAMES.iter().any(|acl| acl.to_bytes() == name);
        (!is_acl || self.has_acls()).then_some(name)
    }

    /// Whether `name` is the access ACL, as the guest calls it.
    pub(in crate::host) fn is_access_acl(name: &CStr) -> bool {
        name == ACL_NAMES[0]
    }
}
