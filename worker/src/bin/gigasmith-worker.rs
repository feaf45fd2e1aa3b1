//! The program `gigasmith-worker`: one device, one model, for a coordinator elsewhere.

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use gigasmith_worker::cli::{self, WorkerArgs};
use gigasmith_worker::log::{self, LogFormat};
use gigasmith_worker::memory::Blocks;
use gigasmith_worker::session::Ended;
use gigasmith_worker::settings::{self, Rules};
use gigasmith_worker::signals;

/// Computes patches for a gigasmith coordinator.
#[derive(Debug, Parser)]
#[command(name = "gigasmith-worker", version, after_help = AFTER)]
struct Cli {
    /// Settings file; gigasmith.toml in the working folder unless given. One that is not named may name a
    /// coordinator only if it is your own file, and secrets only beside it.
    #[arg(long, value_name = "FILE.toml")]
    config: Option<std::path::PathBuf>,
    /// How log lines look (RUST_LOG says which there are).
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(flatten)]
    worker: WorkerArgs,
}

const RULES: Rules = Rules { own_table: Some("worker"), ..Rules::EMPTY };

const AFTER: &str = "Every flag may also come from the environment (GIGASMITH_ and its name in capitals) or \
from a TOML file.\n\nSIGTERM, SIGHUP and Ctrl-C drain: the worker finishes what it has, then ends. Exit codes: 0 drained, \
2 wrong arguments, 3 the model cannot be used, 4 a file cannot be read, 7 the coordinator refuses, 130 \
interrupted.";

/// Keeps the large blocks that a network on a CPU uses over and over.
#[global_allocator]
static ALLOCATOR: Blocks = Blocks;

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let settings::Applied { command, warnings } = match settings::apply(Cli::command(), &args, &RULES) {
        Ok(applied) => applied,
        Err(error) => return fail(&error, 2),
    };
    for warning in warnings {
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
    let cli = match Cli::from_arg_matches(&command.get_matches_from(args)) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    log::begin("error,gigasmith_worker=info", cli.log_format, "gigasmith-worker");
    let asks = match signals::asks() {
        Ok(asks) => asks,
        Err(error) => return fail(&error, 1),
    };
    let ended = cli::run(cli.worker, asks).await;
    log::end();
    match ended {
        Ok(Ended::Drained) => ExitCode::SUCCESS,
        // The device may be in the middle of a long computation that nobody waits for any more.
        Ok(Ended::Interrupted) => std::process::exit(130),
        Err(error) => fail(&error, error.exit_code()),
    }
}

fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    // Nobody reads a closed standard error.
    let _ = writeln!(std::io::stderr(), "gigasmith-worker: {error}");
    ExitCode::from(code)
}
