//! What a user types: arguments become a resolved configuration, and everything is wired up.
//!
//! Arguments are parsed first and resolved second; nothing below this module looks at the command
//! line, the environment or the terminal.

mod certs;
mod client;
mod completions;
mod download;
mod estimate;
mod failure;
mod files;
mod follow;
mod kept;
mod manage;
mod progress;
mod render;
mod renders;
mod resume;
mod seeds;
mod serve;
mod settings;
mod submit;
mod verify;
mod view;
mod worker;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use gigasmith_proto::v1::change_render_request::Change;
use gigasmith_worker::cli::WorkerArgs;
use gigasmith_worker::log::LogFormat;
use gigasmith_worker::session::Ended;
use gigasmith_worker::settings::{self as settings_file, Precedence, Rules};
use gigasmith_worker::signals::{asked_again, asked_to_end as interrupted};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

pub use failure::Failure;

/// Renders gigapixel images from text, patch by patch, with diffusion models.
#[derive(Debug, Parser)]
#[command(name = "gigasmith", version, propagate_version = true, after_help = AFTER)]
pub struct Cli {
    /// Settings file; gigasmith.toml in the working folder unless given. One that is not named may name a
    /// coordinator only if it is your own file, and secrets only beside it.
    #[arg(long, value_name = "FILE.toml", global = true)]
    config: Option<PathBuf>,
    /// How log lines look (RUST_LOG says which there are, for example RUST_LOG=gigasmith_coordinator=debug).
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

const AFTER: &str = "Every flag may also come from the environment (GIGASMITH_ and its name in capitals) or \
from a TOML file with a table per command (exception: `render` takes --store and --name only from the command line \
and the table [render]).\n\n\
A gigasmith.toml that was only found in the working folder could be somebody else's. So it may name a coordinator, a \
token or a certificate only if the file belongs to you and not everybody may write to it; the token and the \
certificate must lie in its folder or below; and a token from elsewhere is not shown to its coordinator. A file that \
is named, with --config or GIGASMITH_CONFIG, may do all of that.\n\n\
With --json an error is a line on standard error: {\"error\": MESSAGE, \"exit_code\": N}.\n\n\
Ctrl-C, SIGTERM and SIGHUP (a closed terminal) end with a last checkpoint, where there is a store; nohup keeps SIGHUP \
away.\n\n\
Exit codes: 0 done, 1 a verification failed, 2 wrong arguments, 3 the model cannot be used, 4 an input \
cannot be read, 5 an output or the store cannot be written, or a disk is too small, 6 the render failed, 7 the farm \
cannot be reached or refuses, 8 another coordinator took over, 130 interrupted.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Turn a prompt, or an existing picture, into a high-resolution picture on this machine.
    Render(Box<render::RenderArgs>),
    /// Go on with an interrupted render of a store, on this machine.
    Resume(resume::ResumeArgs),
    /// List the renders of a store, and whether they can go on; remove them.
    Renders(renders::RendersArgs),
    /// Say what a render will take: calls, bytes, memory, disk, time.
    Estimate(Box<estimate::EstimateArgs>),
    /// Look at a finished picture in the browser.
    View(view::ViewArgs),
    /// Coordinate a farm: accept renders, hand patches to workers, keep what they make. In a browser its address
    /// shows all of it.
    Serve(serve::ServeArgs),
    /// Work for a coordinator elsewhere, on one device.
    Worker(WorkerArgs),
    /// Give a render to a farm.
    Submit(Box<submit::SubmitArgs>),
    /// Show a farm's renders, and why they wait.
    Status(manage::StatusArgs),
    /// Follow a render live.
    Watch(manage::WatchArgs),
    /// Hold renders back.
    Pause(manage::ChangeArgs),
    /// Let paused renders go on.
    Continue(manage::ChangeArgs),
    /// Give renders up.
    Cancel(manage::ChangeArgs),
    /// Remove ended renders of a farm, with their pictures.
    Rm(manage::ChangeArgs),
    /// Give a render another priority.
    Priority(manage::PriorityArgs),
    /// Get a finished render's picture, latents or plan.
    Fetch(manage::FetchArgs),
    /// List a farm's workers; enable, disable or drain them.
    Workers(manage::WorkersArgs),
    /// Make certificates for a farm of one's own.
    Certs(certs::CertsArgs),
    /// Print what a shell needs to complete commands and flags: source <(gigasmith completions bash).
    Completions(completions::CompletionsArgs),
    /// Replay a recorded trace and compare every number: does this device and build match the publication?
    Verify(verify::VerifyArgs),
}

/// Settings that say how large a picture is: typed ones are not mixed with those of a file.
const SIZES: &[&str] = &["width", "height", "scale", "stages"];

/// A typed size excludes sizes from elsewhere; a typed `--from` all settings of a picture, which would
/// otherwise win over those of the picture made before.
const RULES: Rules = Rules {
    precedence: &[
        Precedence { typed: SIZES, alone: SIZES },
        Precedence { typed: &["from"], alone: settings::OF_A_PICTURE },
    ],
    own_table: None,
    // `serve` has a store and a worker a name: neither says that pictures made here are to be kept there.
    own_flags: &[("render", &["store", "name"])],
    joined: &["seed", "budget"],
    bare: &["completions"],
};

impl Cli {
    /// Begins to log to standard error.
    pub fn log(&self) {
        let levels = match self.is_daemon() {
            true => "error,gigasmith_coordinator=info,gigasmith_worker=info",
            // A download says what it waits for, and when the hub is away; a model, what of its files is not followed.
            false => "error,gigasmith_worker::model=warn,gigasmith_worker::model::hub=info",
        };
        gigasmith_worker::log::begin(levels, self.log_format, "gigasmith");
    }

    /// Parses arguments, with the environment and the settings file behind them.
    pub fn from_args(args: &[OsString]) -> Result<Self, Failure> {
        let applied = settings_file::apply(Self::command(), args, &RULES).map_err(Failure::usage)?;
        applied.warnings.iter().for_each(|w| tell(&format!("warning: {w}")));
        let parsed = applied.command.try_get_matches_from(args).and_then(|m| Self::from_arg_matches(&m));
        parsed.map_err(|error| match error.use_stderr() && wants_json(args) {
            true => Failure::usage(error.to_string().trim_start_matches("error: ").trim_end()),
            // As people like to read it; also help and version.
            false => error.exit(),
        })
    }

    /// Whether it runs until it is told to stop: its log is what people see of it.
    fn is_daemon(&self) -> bool {
        matches!(self.command, Command::Serve(_) | Command::Worker(_))
    }
}

/// Whether an error is to be JSON.
pub fn wants_json(args: &[OsString]) -> bool {
    args.iter().take_while(|a| *a != "--").any(|a| a == "--json")
}

/// Runs what the command line asks for.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        // These mind the signals themselves.
        Command::Serve(args) => serve::run(args).await,
        Command::View(args) => view::run(args).await,
        Command::Submit(args) => Box::pin(submit::run(*args)).await,
        Command::Watch(args) => manage::watch(args).await,
        Command::Worker(args) => {
            let asks = gigasmith_worker::signals::asks();
            let asks = asks.map_err(|e| Failure::farm(format!("cannot listen for signals: {e}")))?;
            match gigasmith_worker::cli::run(args, asks).await? {
                Ended::Drained => Ok(()),
                Ended::Interrupted => Err(Failure::Stopped),
            }
        }
        // These leave a last checkpoint.
        command @ (Command::Render(_) | Command::Resume(_)) => {
            let stop = CancellationToken::new();
            let told = stop.clone();
            // In a task of its own: arithmetic must not keep us from hearing a signal.
            let mut work = tokio::spawn(async move {
                match command {
                    Command::Render(args) => Box::pin(render::run(*args, told)).await,
                    Command::Resume(args) => Box::pin(resume::run(args, told)).await,
                    _ => unreachable!("it is one of the two"),
                }
            });
            let ended = |done: Result<Result<(), Failure>, JoinError>| match done {
                Ok(done) => done,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            tokio::select! {
                done = &mut work => return ended(done),
                signal = interrupted() => {
                    signal.map_err(|e| Failure::render(format!("cannot listen for Ctrl-C: {e}")))?;
                }
            }
            stop.cancel();
            tokio::select! {
                done = &mut work => ended(done),
                // Asked twice, it ends at once.
                _ = asked_again() => Err(Failure::Interrupted),
            }
        }
        command => {
            tokio::select! {
                done = run_once(command) => done,
                signal = interrupted() => {
                    signal.map_err(|e| Failure::render(format!("cannot listen for Ctrl-C: {e}")))?;
                    Err(Failure::Interrupted)
                }
            }
        }
    }
}

/// Runs what ends by itself.
async fn run_once(command: Command) -> Result<(), Failure> {
    match command {
        Command::Renders(args) => renders::run(args).await,
        Command::Estimate(args) => estimate::run(*args).await,
        Command::Status(args) => manage::status(args).await,
        Command::Pause(args) => manage::change(args, Change::Paused(true)).await,
        Command::Continue(args) => manage::change(args, Change::Paused(false)).await,
        Command::Cancel(args) => manage::change(args, Change::Cancel(true)).await,
        Command::Rm(args) => manage::remove(args).await,
        Command::Priority(args) => manage::priority(args).await,
        Command::Fetch(args) => manage::fetch(args).await,
        Command::Workers(args) => manage::workers(args).await,
        Command::Certs(args) => certs::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Verify(args) => verify::run(args).await,
        Command::Serve(_)
        | Command::Submit(_)
        | Command::View(_)
        | Command::Watch(_)
        | Command::Worker(_)
        | Command::Render(_)
        | Command::Resume(_) => {
            unreachable!("they mind the signals themselves")
        }
    }
}

/// A line for people. A closed standard error is no reason to stop working.
fn tell(line: &str) {
    // Whatever a file or a server called itself, a terminal does not obey it.
    let line: String = line.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A line of output.
fn print(line: &str) -> Result<(), Failure> {
    writeln!(io::stdout().lock(), "{line}").map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::Unread,
        _ => Failure::output(format!("cannot write to standard output: {e}")),
    })
}
