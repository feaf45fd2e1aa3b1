//! The program `gigasmith`: wiring, signals, exit codes.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use gigasmith_coordinator::cli::{self, Cli, Failure};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let Err(failure) = cli::run(cli).await else { return ExitCode::SUCCESS };
    // Nobody reads a closed standard error.
    let _ = writeln!(std::io::stderr(), "gigasmith: {failure}");
    if matches!(failure, Failure::Interrupted) {
        // The device may be in the middle of a long computation that nobody waits for any more.
        std::process::exit(failure.exit_code().into());
    }
    ExitCode::from(failure.exit_code())
}
