//! The options as clap's command, for parsing, help, manual page and completions.

use clap::builder::BoolValueParser;
use clap::{Arg, ArgAction, Command, CommandFactory};

use super::arguments::{Arguments, COMPATIBILITY};

const USAGE: &str = "gatherfsd --shared-dir DIR --socket-path PATH [OPTION]...\n       gatherfsd --config FILE [OPTION]...";

/// Above the options: what the program is, how it is called, and examples.
const TEMPLATE: &str = "{about-with-newline}\n{usage-heading} {usage}\n\n{before-help}{all-args}{after-help}";

const EXAMPLES: &str = "\
Examples:
  gatherfsd --shared-dir /srv/share --socket-path /run/share.sock
  gatherfsd --shared-dir /srv/public --socket-path /run/public.sock --readonly --cache always";

const EXAMPLES_LONG: &str = "\
Examples:
  Share a directory with the VMM that connects to the socket:
      gatherfsd --shared-dir /srv/share --socket-path /run/share.sock
  Share it read-only; the guest caches for 24 h:
      gatherfsd --shared-dir /srv/public --socket-path /run/public.sock --readonly --cache always";

const AFTER: &str = "gatherfsd --help shows details and the values of each option.";

const AFTER_LONG: &str = "\
If an option is repeated, the last one counts, unless it is repeatable. --FLAG=false disables a flag.

Signals: SIGTERM, SIGINT and SIGHUP end the daemon after the requests in flight. SIGUSR1 prints the metrics to standard \
error as one line of JSON. SIGUSR2 has it go on as the program that is now installed, as gatherfsctl(1) does.";

fn with_help_options(command: Command) -> Command {
    let help = Arg::new("help").short('h').long("help").action(ArgAction::Help).help("Print help: -h in short, --help with details");
    let version = Arg::new("version").short('V').long("version").action(ArgAction::Version).help("Print the version");
    command
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args([version, help].map(|arg| arg.help_heading(COMPATIBILITY)))
        .override_usage(USAGE)
        .help_template(TEMPLATE)
        .before_help(EXAMPLES)
        .before_long_help(EXAMPLES_LONG)
        .after_help(AFTER)
        .after_long_help(AFTER_LONG)
}

/// The command, as parser, `--help`, manual page and completions have it. Each flag with a long name takes `=false`.
pub fn command() -> Command {
    with_help_options(Arguments::command().mut_args(|arg| {
        if !matches!(arg.get_action(), ArgAction::SetTrue) || arg.get_long().is_none() {
            return arg;
        }
        let arg = if arg.get_default_values().is_empty() { arg.default_value("false") } else { arg };
        arg.action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .value_name("BOOL")
            .value_parser(BoolValueParser::new())
            .default_missing_value("true")
            .hide_default_value(true)
            .hide_possible_values(true)
    }))
}

/// The command whose help `-h` prints: one line for each option, without the values that it takes.
pub fn short_command() -> Command {
    let one_line = |arg: Arg| {
        let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
        arg.hide_possible_values(!is_flag)
    };
    with_help_options(Arguments::command().mut_args(one_line))
}
