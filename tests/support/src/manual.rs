//! The manual page and the completions, made of gatherfsd's command and of the sections in docs/manual.

use std::fs;
use std::io;
use std::path::Path;

use clap_complete::Shell;
use clap_mangen::Man;

/// What stands before the options, and after them.
const BEFORE_OPTIONS: &str = include_str!("../../../docs/manual/description.roff");
const AFTER_OPTIONS: &[&str] = &[include_str!("../../../docs/manual/examples.roff"), include_str!("../../../docs/manual/operation.roff")];

/// The name of the page.
pub const PAGE: &str = "gatherfsd.1";
/// The shells that are completed, with the names of their files.
pub const COMPLETIONS: [(Shell, &str); 3] = [(Shell::Bash, "gatherfsd.bash"), (Shell::Zsh, "_gatherfsd"), (Shell::Fish, "gatherfsd.fish")];

/// The manual page, as roff.
pub fn page() -> io::Result<Vec<u8>> {
    // A page of the same sources is the same page, so it has no date. An empty one would be left out and
    // what follows take its place.
    let man = Man::new(gatherfs::config::command()).manual("System Administration").date(" ");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    page.extend_from_slice(BEFORE_OPTIONS.as_bytes());
    man.render_options_section(&mut page)?;
    for section in AFTER_OPTIONS {
        page.extend_from_slice(section.as_bytes());
    }
    Ok(page)
}

/// The completion script of `shell`.
pub fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut gatherfs::config::command(), "gatherfsd", &mut script);
    script
}

/// Writes all of them into `directory`, which is made where it is missing.
pub fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join(PAGE), page()?)?;
    COMPLETIONS.iter().try_for_each(|(shell, name)| fs::write(directory.join(name), completion(*shell)))
}
