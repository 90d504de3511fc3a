//! A load and what it runs on: a daemon with the guest that loads it, or the host itself as the floor.

pub mod cpu;
pub mod daemon;
pub mod figures;
pub mod held;
pub mod leftovers;
pub mod local;
mod meta;
pub mod pauses;
mod pump;
pub mod random;
pub mod target;
pub mod tree;
pub mod work;

pub use daemon::Daemon;
pub use figures::{Counts, Measure};
pub use local::Local;
pub use target::Target;
pub use work::{Io, Load, Meta, Op, Pattern};
