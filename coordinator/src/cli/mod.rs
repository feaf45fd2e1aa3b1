//! What a user types: arguments become a resolved configuration, and everything is wired up.
//!
//! Arguments are parsed first and resolved second; nothing below this module looks at the command
//! line, the environment or the terminal.

mod failure;
mod progress;
mod render;
mod resolve;
mod seeds;
mod verify;
mod worker;

use std::io::{self, Write};

use clap::{Parser, Subcommand};

pub use failure::Failure;

/// Renders gigapixel images from text, patch by patch, with diffusion models.
#[derive(Debug, Parser)]
#[command(name = "gigasmith", version, about, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 a verification failed, 2 wrong arguments, 3 the model \
cannot be used, 4 an input cannot be read, 5 an output cannot be written, 6 the render failed, \
130 interrupted.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Turn a prompt, or an existing picture, into a high-resolution picture.
    Render(Box<render::RenderArgs>),
    /// Replay a recorded trace and compare every number: does this device and build match the publication?
    Verify(verify::VerifyArgs),
}

/// Runs what the command line asks for.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    let work = async {
        match cli.command {
            Command::Render(args) => render::run(*args).await,
            Command::Verify(args) => verify::run(args).await,
        }
    };
    tokio::select! {
        done = work => done,
        signal = interrupted() => {
            signal.map_err(|e| Failure::render(format!("cannot listen for Ctrl-C: {e}")))?;
            Err(Failure::Interrupted)
        }
    }
}

/// Resolves at Ctrl-C, or, where there is such a thing, at SIGTERM.
async fn interrupted() -> io::Result<()> {
    #[cfg(unix)]
    {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            signal = tokio::signal::ctrl_c() => signal,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

/// A line for people. A closed standard error is no reason to stop working.
fn tell(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A line of output.
fn print(line: &str) -> Result<(), Failure> {
    writeln!(io::stdout().lock(), "{line}")
        .map_err(|e| Failure::output(format!("cannot write to standard output: {e}")))
}
