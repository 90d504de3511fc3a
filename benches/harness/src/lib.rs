//! Loads for vhost-user-fs daemons, made by the synthetic guest of `gatherfs-support`, and what they measure.
//!
//! `examples/virtual_guest` and `benches/compare` are made of it. It knows nothing of tables, plots and which daemons there are.

pub mod load;

use std::error::Error;

/// Bytes.
pub const MIB: u64 = 1 << 20;

/// Why a measurement cannot go on, for a person to read.
pub type Failure = Box<dyn Error + Send + Sync>;
