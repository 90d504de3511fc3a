//! Landlock on top of the rest (man landlock(7)), as far as the kernel has it: no network, no signals to
//! others and no abstract sockets; and where inodes are kept as descriptors, no file outside the share.
//!
//! Not so where they are kept as file handles: a file that is opened by its handle after the kernel forgot
//! its name has no path, and Landlock then refuses it (docs/decisions/0004-landlock.md).

use std::os::fd::{AsFd, BorrowedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest rights that this code was tried with; the kernel may know fewer.
const KNOWN: ABI = ABI::V7;

/// The only files that may be opened and changed by path.
#[derive(Debug)]
pub struct Files<'f> {
    /// The share: a directory with all below, or one file.
    pub share: BorrowedFd<'f>,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// A directory from which files may be removed: the socket's.
    pub removable: Option<BorrowedFd<'f>>,
}

/// Restricts this thread and those that it starts, for good. A kernel without Landlock restricts nothing,
/// which is false.
pub fn restrict(files: Option<&Files<'_>>) -> bool {
    // The one right without which a rename to another directory would fail (Linux 5.19).
    let by_path = files.filter(|_| {
        let refer = Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::Refer);
        refer.and_then(Ruleset::create).is_ok()
    });
    match apply(by_path) {
        Ok(status) => {
            tracing::debug!("Landlock: {:?}, files by path: {}", status.ruleset, by_path.is_some());
            status.ruleset != RulesetStatus::NotEnforced
        }
        Err(e) => {
            tracing::debug!("Landlock restricts nothing: {e}");
            false
        }
    }
}

fn apply(files: Option<&Files<'_>>) -> Result<RestrictionStatus, RulesetError> {
    let mut ruleset = Ruleset::default().handle_access(AccessNet::from_all(KNOWN))?.scope(Scope::from_all(KNOWN))?;
    if files.is_some() {
        ruleset = ruleset.handle_access(AccessFs::from_all(KNOWN))?;
    }
    let mut created = ruleset.create()?;
    if let Some(files) = files {
        let rights = if files.is_directory { AccessFs::from_all(KNOWN) } else { AccessFs::from_file(KNOWN) };
        // Nothing in the share is run here.
        created = created.add_rule(PathBeneath::new(files.share.as_fd(), rights & !BitFlags::from(AccessFs::Execute)))?;
        if let Some(directory) = files.removable {
            created = created.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?;
        }
    }
    created.restrict_self()
}
