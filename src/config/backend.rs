//! What `--print-capabilities` prints: the description of a vhost-user backend program that
//! `docs/interop/vhost-user.json` of QEMU defines and libvirt reads.

use super::command::command;

/// Features that libvirt may use, each with the option that implements it; `docs/packaging/50-gatherfsd.json` lists the same.
/// With `separate-options` libvirt passes long options instead of `-o` lists. `migrate-precopy` is not supported.
const FEATURES: &[(&str, &str)] = &[
    ("posix-acl-negotiation-mode", "posix-acl"),
    ("security-label-negotiation-mode", "security-label"),
    ("separate-options", "shared-dir"),
];

/// The description as JSON.
pub fn capabilities() -> String {
    let command = command();
    let has = |option: &str| command.get_arguments().any(|arg| arg.get_long() == Some(option));
    let features = FEATURES.iter().filter(|(_, option)| has(option)).map(|(feature, _)| format!("    \"{feature}\""));
    format!("{{\n  \"type\": \"fs\",\n  \"features\": [\n{}\n  ]\n}}\n", features.collect::<Vec<_>>().join(",\n"))
}
