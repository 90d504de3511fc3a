//! Confines the serving process before it reads the first byte of a guest: namespaces with the share as root directory, or a
//! chroot; capabilities; a list of system calls; Landlock. Knows nothing of what is served.
#![forbid(unsafe_code)]

mod capabilities;
mod error;
mod id_map;
mod jail;
mod landlock;
mod limits;
mod namespace;
mod seal;
mod seccomp;
mod system_calls;
mod user_namespace;

pub use capabilities::{Capabilities, CapabilityError};
pub use error::JailError;
pub use id_map::{IdMaps, IdRange, IdRangeError, parse as parse_id_map};
pub use jail::{Confined, Entered, Jail, Mode, Options, enter};
pub use limits::{LimitError, open_files, raise_file_size, raise_locked_memory, raise_open_files};
pub use seal::{Reach, restrict_files, seal, seal_keeper};
pub use seccomp::{OptionalCalls, RootDirectory, Seccomp};
