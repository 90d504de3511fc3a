//! Rights beyond mode bits: names of extended attributes, POSIX ACLs, labels of new files, and who clears setuid
//! bits and capabilities.

mod acls;
mod killpriv;
mod labels;
mod xattr_names;

use std::path::Path;

use gatherfs_support::guest::client::Client;
use gatherfs_support::share::Share;

/// Attribute `name` of the host's file; an error where it has none.
fn on_host(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = [0u8; 1024];
    rustix::fs::lgetxattr(path, name, &mut value).map(|len| value[..len].to_vec())
}

/// Sets an attribute on the host.
fn put(share: &Share, file: &str, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(share.path(file), name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// The guest's list of a node's attributes, sorted.
fn listed(c: &mut Client, node: u64) -> Vec<String> {
    let list = c.listxattr(node, 65_536).unwrap();
    let mut names: Vec<String> = list.split(|b| *b == 0).map(|n| String::from_utf8(n.to_vec()).unwrap()).collect();
    assert_eq!(names.pop(), Some(String::new()), "each name ends with NUL");
    names.sort();
    names
}

/// `security.capability` with nothing in it (VFS_CAP_REVISION_2): any file may have it, and setting it needs no more
/// than the daemon has.
fn capability() -> Vec<u8> {
    [0x0200_0000u32, 0, 0, 0, 0].iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// The permission bits on the host.
fn mode(share: &Share, name: &str) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(share.path(name)).unwrap().mode() & 0o7777
}

/// Sets the permission bits on the host.
fn set_mode(share: &Share, name: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(share.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
}
