//! Landlock (man landlock(7)), as far as the kernel has it: no TCP, no signals to processes outside, no abstract sockets
//! outside. Where inodes are kept as descriptors, also no files outside the share.
//!
//! Files are not restricted where inodes are kept as file handles: a file that is opened by its handle has no path once its
//! dentry is gone, and Landlock refuses it (docs/decisions/0004-landlock.md).

use std::os::fd::{AsFd, BorrowedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest ABI that this code was tested with. An older kernel restricts what it supports.
const KNOWN: ABI = ABI::V7;

/// The files that may still be opened and changed by path.
#[derive(Debug)]
pub struct Files<'f> {
    /// The share: a directory with everything below it, or one file.
    pub share: BorrowedFd<'f>,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// The directory of the socket, in which files may be removed.
    pub removable: Option<BorrowedFd<'f>>,
}

/// Restricts this thread and the threads that it starts. It cannot be undone. False where the kernel has no Landlock.
pub fn restrict(files: Option<&Files<'_>>) -> bool {
    // Renames to another directory need the right `Refer`, which a kernel before 5.19 cannot grant.
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
        // The daemon executes no file of the share.
        created = created.add_rule(PathBeneath::new(files.share.as_fd(), rights & !BitFlags::from(AccessFs::Execute)))?;
        if let Some(directory) = files.removable {
            created = created.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?;
        }
    }
    created.restrict_self()
}
