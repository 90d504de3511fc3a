//! Rights, ids and extended attributes: the caller's credentials, id maps, names of attributes, ACLs and labels. Does not know
//! nodes or open files.

mod caller;
mod id_map;
mod policy;
mod xattr_map;

pub use caller::Caller;
pub(super) use caller::acting_as;
pub use id_map::{IdMap, IdRule, IdRuleError, Translation};
pub(super) use policy::RightsPolicy;
pub use policy::{KillPriv, Rights, Support, UnsupportedGuest};
pub use xattr_map::{CATCH_ALL, XattrMap, XattrMapError};
