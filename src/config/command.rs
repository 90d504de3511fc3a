//! The options as clap's command, for parsing, help, manual page and completions.

use clap::builder::BoolValueParser;
use clap::{ArgAction, CommandFactory};

use super::arguments::Arguments;

/// The command, as help, manual page and completions show it. Each flag with a long name can be taken back
/// with `=false`.
pub fn command() -> clap::Command {
    Arguments::command().mut_args(|arg| {
        if !matches!(arg.get_action(), ArgAction::SetTrue) || arg.get_long().is_none() {
            return arg;
        }
        arg.action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .value_name("BOOL")
            .value_parser(BoolValueParser::new())
            .default_value("false")
            .default_missing_value("true")
            .hide_default_value(true)
            .hide_possible_values(true)
    })
}
