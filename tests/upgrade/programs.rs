//! Programs to upgrade to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use gatherfs_support::daemon::{Scratch, built_program};

/// The cargo that built this test, for the build's own directory.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    // They would go before what the arguments say of flags.
    command.args(arguments).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

/// gatherfsd linked statically, as `cargo static` does for a release.
pub fn linked_statically() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        let flags = "build.rustflags=['-Ctarget-feature=+crt-static']";
        let build = ["build", "--quiet", "--locked", "--bin", "gatherfsd", "--target", "host-tuple", "--config", flags];
        let mut command = cargo(&build);
        assert!(command.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo starts").success(), "{command:?}");
        let target = built_program().ancestors().nth(2).expect("the build's directory").to_owned();
        target.join(format!("{}-unknown-linux-gnu/debug/gatherfsd", std::env::consts::ARCH))
    });
    &PROGRAM
}

/// gatherfsd, but that it says to be of version [`OTHER_VERSION`].
pub fn of_other_version(scratch: &Scratch) -> PathBuf {
    let version = env!("CARGO_PKG_VERSION").as_bytes();
    let mut file = fs::read(built_program()).expect("the program");
    let places: Vec<usize> = file.windows(version.len()).enumerate().filter(|(_, bytes)| *bytes == version).map(|(at, _)| at).collect();
    places.iter().for_each(|at| file[*at..][..version.len()].copy_from_slice(OTHER_VERSION.as_bytes()));
    let path = scratch.join("other-version");
    fs::write(&path, file).expect("a program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permission to execute it");
    path
}

/// As long as the version of this source.
pub const OTHER_VERSION: &str = "0.9.9";

/// An ELF program that consists of `code`, at most 64 bytes of machine instructions, statically linked.
pub fn of_code(scratch: &Scratch, name: &str, code: &[u8]) -> PathBuf {
    const BASE: u64 = 0x0040_0000;
    const HEADERS: u64 = 64 + 56;
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // e_type, e_machine; e_version; e_entry, e_phoff, e_shoff; e_flags; e_ehsize, e_phentsize, e_phnum and three of sections.
    file.extend([2u16, machine].iter().flat_map(|field| field.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    file.extend([BASE + HEADERS, 64, 0].iter().flat_map(|field: &u64| field.to_le_bytes()));
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 1, 64, 0, 0].iter().flat_map(|field| field.to_le_bytes()));
    // PT_LOAD, readable and executable; offset, addresses, sizes, alignment.
    file.extend([1u32, 5].iter().flat_map(|field| field.to_le_bytes()));
    let len = HEADERS + code.len() as u64;
    file.extend([0, BASE, BASE, len, len, 0x1000].iter().flat_map(|field: &u64| field.to_le_bytes()));
    file.extend(code);
    let path = scratch.join(name);
    fs::write(&path, file).expect("a program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permission to execute it");
    path
}

/// Goes on for ever.
pub const ENDLESS: &[u8] = if cfg!(target_arch = "x86_64") { &[0xeb, 0xfe] } else { &[0x00, 0x00, 0x00, 0x14] };
/// Is no instruction.
pub const FAULT: &[u8] = if cfg!(target_arch = "x86_64") { &[0x0f, 0x0b] } else { &[0x00, 0x00, 0x00, 0x00] };
/// sethostname(2): `mov eax, 170; syscall`, and on aarch64 `mov x8, 161; svc 0`.
pub const FORBIDDEN: &[u8] = if cfg!(target_arch = "x86_64") {
    &[0xb8, 0xaa, 0x00, 0x00, 0x00, 0x0f, 0x05]
} else {
    &[0x28, 0x14, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4]
};

/// The commit that came with live upgrade: the oldest program that can be upgraded, and that this one is to go on with.
const OLDER: &str = "6556df08aca73178f2eb5708ae2ab8e5a9aced37";

/// gatherfsd of [`OLDER`], built here. `None` where this source has no history.
pub fn older() -> Option<PathBuf> {
    let source = env!("CARGO_MANIFEST_DIR");
    let git = |arguments: &[&str]| Command::new("git").arg("-C").arg(source).args(arguments).output();
    if !git(&["cat-file", "-e", OLDER]).is_ok_and(|output| output.status.success()) {
        println!("skipped: this source has no history with commit {OLDER}");
        return None;
    }
    let place = built_program().ancestors().nth(2).expect("the build's directory").join("older");
    let (old_source, archive) = (place.join("source"), place.join("source.tar"));
    fs::create_dir_all(&old_source).expect("a directory");
    let file = |path: &Path| path.to_str().expect("text").to_owned();
    assert!(git(&["archive", "-o", &file(&archive), OLDER]).expect("git starts").status.success());
    let unpacked = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&old_source).status().expect("tar starts");
    assert!(unpacked.success());
    let mut build = cargo(&["build", "--quiet", "--locked", "--bin", "gatherfsd", "--target-dir", &file(&place.join("build"))]);
    assert!(build.current_dir(&old_source).status().expect("cargo starts").success(), "{build:?}");
    Some(place.join("build/debug/gatherfsd"))
}
