//! The manual pages and the completions, generated from the commands and the sections in docs/manual.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Arg, Command};
use clap_complete::Shell;
use clap_mangen::Man;

/// The sections before the options and after them.
const BEFORE_OPTIONS: &str = include_str!("../../../docs/manual/description.roff");
const AFTER_OPTIONS: &[&str] = &[include_str!("../../../docs/manual/examples.roff"), include_str!("../../../docs/manual/operation.roff")];

/// The name of the page.
pub const PAGE: &str = "gatherfsd.1";
/// The sections of the page of gatherfsctl.
const OF_CTL: &str = include_str!("../../../docs/manual/gatherfsctl.roff");
/// Its name.
pub const CTL_PAGE: &str = "gatherfsctl.1";
/// The shells with completions, and the names of the files.
pub const COMPLETIONS: [(Shell, &str); 3] = [(Shell::Bash, "gatherfsd.bash"), (Shell::Zsh, "_gatherfsd"), (Shell::Fish, "gatherfsd.fish")];

/// The manual page, as roff.
///
/// # Errors
/// None in practice: the writer is memory.
pub fn page() -> io::Result<Vec<u8>> {
    // Without a date, so that the build is reproducible. The title would omit an empty one, and the next field move to its place.
    let man = Man::new(gatherfs::config::command()).manual("System Administration").date(" ");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    page.extend_from_slice(BEFORE_OPTIONS.as_bytes());
    page.extend_from_slice(options(&man)?.as_bytes());
    for section in AFTER_OPTIONS {
        page.extend_from_slice(section.as_bytes());
    }
    Ok(page)
}

/// The manual page of gatherfsctl, as roff.
///
/// # Errors
/// None in practice: the writer is memory.
pub fn ctl_page() -> io::Result<Vec<u8>> {
    let man = Man::new(gatherfs::config::ctl_command()).manual("System Administration").date(" ");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    page.extend_from_slice(OF_CTL.as_bytes());
    Ok(page)
}

/// The options in the groups of the help, which clap_mangen would give sections of their own, then those without effect, which
/// the help hides.
fn options(man: &Man) -> io::Result<String> {
    let mut sections = Vec::new();
    man.render_options_section(&mut sections)?;
    let sections = String::from_utf8_lossy(&sections);
    let mut text = String::from(".SH OPTIONS\n");
    let command = gatherfs::config::command();
    for line in sections.lines() {
        let title = line.strip_prefix(".SH ").map(|title| title.trim_matches('"'));
        let group = title.and_then(|title| command.get_arguments().filter_map(Arg::get_help_heading).find(|h| h.to_uppercase() == title));
        text += &group.map_or_else(|| format!("{line}\n"), |group| format!(".SS \"{group}\"\n"));
    }
    text += ".PP\nAccepted as by virtiofsd, without effect:\n";
    let hidden: Vec<String> = command.get_arguments().filter(|arg| arg.is_hide_set()).map(spelling).collect();
    text += &format!("{}.\n", hidden.join(",\n"));
    Ok(text)
}

/// The option as it is typed, in bold.
fn spelling(option: &Arg) -> String {
    let name = option.get_long().map_or_else(|| option.get_short().map(String::from).unwrap_or_default(), |long| format!("-{long}"));
    format!("\\fB\\-{}\\fR", name.replace('-', "\\-"))
}

/// The completion script of `shell`, without the options that the help hides.
pub fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let whole = gatherfs::config::command();
    let shown = whole.get_arguments().filter(|arg| !arg.is_hide_set()).cloned();
    let mut command =
        Command::new("gatherfsd").version(env!("CARGO_PKG_VERSION")).disable_help_flag(true).disable_version_flag(true).args(shown);
    clap_complete::generate(shell, &mut command, "gatherfsd", &mut script);
    script
}

/// Writes all of them into `directory`, which is created if it does not exist.
///
/// # Errors
/// A file or the directory cannot be written.
pub fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join(PAGE), page()?)?;
    fs::write(directory.join(CTL_PAGE), ctl_page()?)?;
    COMPLETIONS.iter().try_for_each(|(shell, name)| fs::write(directory.join(name), completion(*shell)))
}
