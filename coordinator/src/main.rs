//! The program `gigasmith`: wiring, signals, exit codes.

use std::io::Write;
use std::process::ExitCode;

use gigasmith_coordinator::cli::{self, Cli, Failure};
use gigasmith_worker::memory::Blocks;

/// Keeps the large blocks that a network on a CPU uses over and over, once one is loaded.
#[global_allocator]
static ALLOCATOR: Blocks = Blocks;

#[tokio::main]
async fn main() -> ExitCode {
    give_memory_back();
    let args: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::from_args(&args) {
        Ok(cli) => cli,
        Err(failure) => return fail(&failure, cli::wants_json(&args)),
    };
    cli.log();
    let code = match cli::run(cli).await {
        Ok(()) => 0,
        Err(failure) => {
            let _ = fail(&failure, cli::wants_json(&args));
            failure.exit_code()
        }
    };
    gigasmith_worker::log::end();
    // What was to be ended has ended. A device may still be in the middle of a computation, a disk in the
    // middle of a write, for which nobody waits any more.
    std::process::exit(code.into())
}

/// Tiles and patches are megabytes each, and many threads make and free them. The C library on Linux would keep
/// most of that memory for each thread's next use: a render of 32768x32768 pixels took twice what it needs.
/// Pieces of a megabyte or more go back to the system at once, and threads share their heaps, each of which
/// keeps up to 16 MiB: without that, every second patch would have to get its pages from the system again.
#[allow(unsafe_code)]
fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes two numbers, and may be called at any time; a parameter that it does not know
    // changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 4);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 << 20);
    }
}

fn fail(failure: &Failure, as_json: bool) -> ExitCode {
    let line = match as_json {
        true => failure.json(),
        false => format!("gigasmith: {failure}"),
    };
    if !matches!(failure, Failure::Unread) {
        // Nobody reads a closed standard error.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    ExitCode::from(failure.exit_code())
}
