//! `gigasmith completions`: what a shell needs to complete commands and flags.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::failure::Failure;
use super::{Cli, print};

/// Arguments of `gigasmith completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Prints the script.
pub(super) fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "gigasmith", &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}
