//! The program `gigasmith`: wiring, signals, exit codes.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use gigasmith_coordinator::cli::{self, Cli, Failure};

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::from_args(&args) {
        Ok(cli) => cli,
        Err(failure) => return fail(&failure),
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let levels = match cli.is_daemon() {
        true => "error,gigasmith_coordinator=info,gigasmith_worker=info",
        false => "error",
    };
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(levels));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    let code = match cli::run(cli).await {
        Ok(()) => 0,
        Err(failure) => {
            let _ = fail(&failure);
            failure.exit_code()
        }
    };
    // What was to be ended has ended. A device may still be in the middle of a computation, a disk in the
    // middle of a write, for which nobody waits any more.
    std::process::exit(code.into())
}

fn fail(failure: &Failure) -> ExitCode {
    if !matches!(failure, Failure::Unread) {
        // Nobody reads a closed standard error.
        let _ = writeln!(std::io::stderr(), "gigasmith: {failure}");
    }
    ExitCode::from(failure.exit_code())
}
