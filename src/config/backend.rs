//! What `--print-capabilities` prints: the description of a vhost-user backend program that
//! `docs/interop/vhost-user.json` of QEMU defines and libvirt reads.

/// What libvirt may rely on; `docs/packaging/50-gatherfsd.json` names the same. `separate-options`: the
/// long options, so that libvirt does not write `-o` lists. `migrate-precopy` is not there.
const FEATURES: &[&str] = &["separate-options"];

/// The description as JSON.
pub fn capabilities() -> String {
    let features: Vec<String> = FEATURES.iter().map(|feature| format!("    \"{feature}\"")).collect();
    format!("{{\n  \"type\": \"fs\",\n  \"features\": [\n{}\n  ]\n}}\n", features.join(",\n"))
}
