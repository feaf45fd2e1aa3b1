//! Progress for people: bars on a terminal, plain lines now and then when piped.

use std::fmt;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::follow::duration;
use super::tell;
use crate::estimate::plural;
use crate::render::{Progress, StageBegin};

/// Between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Where progress is shown.
#[derive(Debug)]
pub(super) enum Display {
    /// Nowhere.
    Quiet,
    /// Bars that redraw themselves.
    Bars(Option<ProgressBar>),
    /// Lines.
    Plain { stage: Option<PlainStage>, tiles: PlainPhase },
}

/// What happens between stages, shown in lines.
#[derive(Debug)]
pub(super) struct PlainPhase {
    phase: &'static str,
    shown: Instant,
}

/// A stage that is shown in lines.
#[derive(Debug)]
pub(super) struct PlainStage {
    label: String,
    patches: usize,
    /// Patches that an earlier run has done.
    before: usize,
    started: Instant,
    shown: Instant,
}

impl Display {
    /// Bars on a terminal, lines elsewhere.
    pub(super) fn new(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Bars(None),
            (false, false) => {
                Self::Plain { stage: None, tiles: PlainPhase { phase: "", shown: Instant::now() } }
            }
        }
    }

    /// A line that stays.
    pub(super) fn say(&mut self, line: &str) {
        self.finish();
        if !matches!(self, Self::Quiet) {
            tell(line);
        }
    }

    /// Ends the stage that is shown.
    pub(super) fn finish(&mut self) {
        match self {
            Self::Quiet => {}
            Self::Bars(bar) => {
                if let Some(bar) = bar.take() {
                    if bar.length().is_some() { bar.finish() } else { bar.finish_and_clear() }
                }
            }
            Self::Plain { stage, .. } => *stage = None,
        }
    }
}

/// The time that is left, once something is done that it can be told from.
fn left(state: &ProgressState, out: &mut dyn fmt::Write) {
    if state.pos() > 0 && state.len().is_some_and(|all| state.pos() < all) {
        let _ = write!(out, "{} left", duration(state.eta().as_secs_f64()));
    }
}

/// Patches per second, with one digit after the point.
fn rate(state: &ProgressState, out: &mut dyn fmt::Write) {
    // The line is drawn without it where it cannot be written.
    let _ = write!(out, "{:.1}/s", state.per_sec());
}

impl Progress for Display {
    fn stage(&mut self, begin: StageBegin) {
        let StageBegin { stage, total, size, patches, done } = begin;
        self.finish();
        let label = format!("stage {}/{total} {size}", stage + 1);
        match self {
            Self::Quiet => {}
            Self::Bars(bar) => {
                let style = "{msg:<22} {bar:32} {pos:>5}/{len} patches  {rate:>8}  {left}";
                let style = ProgressStyle::with_template(style).expect("the template is well formed");
                let style = style.with_key("rate", rate).with_key("left", left);
                let new = ProgressBar::new(patches as u64).with_style(style).with_message(label);
                // What an earlier run has done says nothing about the rate.
                *bar = Some(new.with_position(done as u64));
                bar.iter().for_each(ProgressBar::reset_eta);
            }
            Self::Plain { stage: plain, .. } => {
                match done {
                    0 => tell(&format!("{label}: {}", plural(patches as u64, "patch", "patches"))),
                    _ => tell(&format!("{label}: {patches} patches, {done} of them done")),
                }
                let now = Instant::now();
                *plain = Some(PlainStage { label, patches, before: done, started: now, shown: now });
            }
        }
    }

    fn patches(&mut self, done: usize) {
        match self {
            Self::Bars(Some(bar)) => bar.set_position(done as u64),
            Self::Plain { stage: Some(stage), .. } if stage.shown.elapsed() >= PLAIN_EVERY => {
                stage.shown = Instant::now();
                let rate = (done - stage.before) as f64 / stage.started.elapsed().as_secs_f64();
                let left = (stage.patches - done) as f64 / rate;
                let left =
                    if left.is_finite() { format!(", {} left", duration(left)) } else { String::new() };
                tell(&format!("{}: {done}/{} patches, {rate:.1}/s{left}", stage.label, stage.patches));
            }
            _ => {}
        }
    }

    fn phase(&mut self, what: &'static str) {
        self.finish();
        if let Self::Plain { tiles, .. } = self {
            *tiles = PlainPhase { phase: what, shown: Instant::now() };
        }
        if let Self::Bars(bar) = self {
            let spinner = ProgressBar::new_spinner().with_message(what);
            spinner.enable_steady_tick(Duration::from_millis(120));
            *bar = Some(spinner);
        }
    }

    fn tiles(&mut self, done: usize, total: usize) {
        match self {
            Self::Bars(Some(bar)) => {
                if bar.length() != Some(total as u64) {
                    let style = "{msg:<22} {bar:32} {pos:>5}/{len}  {left}";
                    let style = ProgressStyle::with_template(style).expect("the template is well formed");
                    bar.set_style(style.with_key("left", left));
                    bar.set_length(total as u64);
                    bar.reset_eta();
                }
                bar.set_position(done as u64);
            }
            Self::Plain { tiles, .. } if tiles.shown.elapsed() >= PLAIN_EVERY => {
                tiles.shown = Instant::now();
                tell(&format!("{}: {done}/{total}", tiles.phase));
            }
            _ => {}
        }
    }

    fn late(&mut self, reason: Option<&str>) {
        let line = match reason {
            Some(reason) => format!("warning: checkpoints are late: {reason}; the render goes on"),
            None => "checkpoints are on time again".to_owned(),
        };
        match self {
            Self::Bars(Some(bar)) => bar.suspend(|| tell(&line)),
            _ => tell(&line),
        }
    }

    fn warn(&mut self, message: &str) {
        self.finish();
        tell(&format!("warning: {message}"));
    }
}
