//! How far a download is: a bar on a terminal, else a line in the log now and then.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::error::bytes;

/// Between two lines.
const LINES: Duration = Duration::from_secs(15);

/// How far one file is.
pub(super) struct Progress {
    file: String,
    size: Option<u64>,
    bar: ProgressBar,
    /// When the last line was, where there are lines.
    line: Option<Instant>,
}

impl Progress {
    pub(super) fn new(file: &str, size: Option<u64>, is_shown: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let target = match is_shown && on_terminal {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(size, target);
        let style = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        bar.set_style(ProgressStyle::with_template(style).expect("the template is right"));
        bar.set_prefix(file.to_owned());
        Self { file: file.to_owned(), size, bar, line: (is_shown && !on_terminal).then(Instant::now) }
    }

    /// So many bytes of the file are there.
    pub(super) fn at(&mut self, done: u64) {
        self.bar.set_position(done);
        if self.line.is_some_and(|at| at.elapsed() >= LINES) {
            self.line = Some(Instant::now());
            let of = self.size.map_or(String::new(), |size| format!(" of {}", bytes(size)));
            tracing::info!("fetching {}: {}{of}", self.file, bytes(done));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
