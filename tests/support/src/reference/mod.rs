//! Random sequences of operations, and the side of the guest that carries them out: for tests that compare with the host.

pub mod operation;
pub mod through_daemon;

/// The number that the environment has by the name `name`, as GATHERFS_SEED.
pub fn number_from_env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}
