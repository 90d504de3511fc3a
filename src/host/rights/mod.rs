//! Rights, ids and extended attributes: credentials of the caller, id maps, names of attributes, ACLs. Does not know single files.

pub(super) mod caller;
pub(super) mod id_map;
pub(super) mod policy;
pub(super) mod xattr_map;
