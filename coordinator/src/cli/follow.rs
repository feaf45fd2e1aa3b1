//! Following a render on a farm: a live bar on a terminal, plain lines when piped.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use gigasmith_proto::domain::{Progressed, RenderState, RenderStatus};
use indicatif::{ProgressBar, ProgressStyle};

use super::client::Client;
use super::failure::Failure;
use super::tell;

/// How long a coordinator that is away is waited for, and how often it is tried.
const PATIENCE: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(1);
/// Between two plain lines about the same stage.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Shows a render until it ends, and returns its last status. A coordinator that is away for a while is
/// waited for: the render goes on when it is back.
pub(super) async fn follow(client: &mut Client, id: &str, quiet: bool) -> Result<RenderStatus, Failure> {
    let mut view = View::new(quiet);
    let last = each(client, id, |status| {
        view.show(status);
        Ok(())
    })
    .await;
    view.finish();
    last
}

/// Passes every status of a render to `show` until it ends, and returns the last one.
pub(super) async fn each(
    client: &mut Client,
    id: &str,
    mut show: impl FnMut(&RenderStatus) -> Result<(), Failure>,
) -> Result<RenderStatus, Failure> {
    let mut stream = client.watch(id).await?;
    let mut away: Option<Instant> = None;
    loop {
        match client.next(&mut stream).await {
            Ok(Some(status)) => {
                away = None;
                show(&status)?;
                if status.state.is_final() {
                    return Ok(status);
                }
                continue;
            }
            Ok(None) => {}
            Err(error) if away.is_some_and(|since| since.elapsed() > PATIENCE) => return Err(error),
            Err(_) => {}
        }
        if away.is_none() {
            tell("the coordinator is away: waiting for it (the render goes on when it is back)");
        }
        let since = *away.get_or_insert_with(Instant::now);
        stream = loop {
            tokio::time::sleep(RETRY).await;
            match client.watch(id).await {
                Ok(stream) => break stream,
                Err(error) if since.elapsed() > PATIENCE => {
                    let hint = format!("`gigasmith watch {id}` follows the render when it is back");
                    return Err(Failure::farm(format!("{error}; {hint}")));
                }
                Err(_) => {}
            }
        };
    }
}

/// What to say to somebody who follows these renders no longer. `fetching`: commands that get what was asked for.
pub(super) fn goes_on(ids: &[&str], fetching: &[String]) -> Failure {
    let [first, others @ ..] = ids else { return Failure::Interrupted };
    let all = ids.join(", ");
    let each = if others.is_empty() { "" } else { ", and so on," };
    let (goes, ids) = if others.is_empty() { ("goes", (*first).to_owned()) } else { ("go", ids.join(" ")) };
    let fetching = match fetching {
        [] => String::new(),
        commands => format!(
            "; {} when done: {}",
            if commands.len() == 1 { "get it" } else { "get them" },
            commands.join(", ")
        ),
    };
    Failure::Unwatched(format!(
        "interrupted: {all} {goes} on at the farm; `gigasmith watch {first}`{each} follows, `gigasmith cancel {ids}` \
         ends{fetching}"
    ))
}

/// What an ended render means for the exit code.
pub(super) fn ended(status: &RenderStatus) -> Result<(), Failure> {
    match status.state {
        RenderState::Failed => {
            Err(Failure::render(format!("render {} failed: {}", status.id, status.reason)))
        }
        RenderState::Cancelled => Err(Failure::render(format!("render {} was cancelled", status.id))),
        _ => Ok(()),
    }
}

enum View {
    Quiet,
    Bar { bar: ProgressBar },
    Plain { said: String, at: Instant },
}

impl View {
    fn new(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Quiet,
            (false, false) => Self::Plain { said: String::new(), at: Instant::now() },
            (false, true) => {
                let bar = ProgressBar::new(0);
                let style = ProgressStyle::with_template("{prefix} {bar:28} {msg}");
                bar.set_style(style.expect("the template is well formed"));
                bar.enable_steady_tick(Duration::from_millis(200));
                Self::Bar { bar }
            }
        }
    }

    fn show(&mut self, status: &RenderStatus) {
        match self {
            Self::Quiet => {}
            Self::Bar { bar } => {
                let Progressed { patches, patches_done, .. } = status.progress;
                bar.set_prefix(status.id.clone());
                bar.set_length(patches.max(1));
                bar.set_position(if status.state == RenderState::Done {
                    patches.max(1)
                } else {
                    patches_done
                });
                bar.set_message(line(status));
            }
            Self::Plain { said, at } => {
                let what = heading(status);
                let is_news = *said != what;
                if is_news || at.elapsed() >= PLAIN_EVERY {
                    (*said, *at) = (what, Instant::now());
                    tell(&format!("{}: {}", status.id, line(status)));
                }
            }
        }
    }

    fn finish(self) {
        if let Self::Bar { bar } = self {
            bar.finish();
        }
    }
}

/// What changes seldom: a change of it is worth a line.
fn heading(status: &RenderStatus) -> String {
    let Progressed { stage, phase, .. } = &status.progress;
    format!("{} {stage} {phase} {}", status.state, status.reason)
}

/// A render in a line: stage, patches, rate, time left, workers, and why it waits.
pub(super) fn line(status: &RenderStatus) -> String {
    let mut parts = vec![progress(status)];
    if status.state == RenderState::Running && status.progress.phase.is_empty() {
        // Nobody knows how fast those will be who are not here yet.
        if status.workers > 0 {
            let rate = status.progress.rate;
            parts.extend((rate > 0.0).then(|| format!("{rate:.1}/s")));
            parts.extend(status.seconds_left().map(|s| format!("{} left", duration(s))));
        }
        parts.push(format!("{} worker{}", status.workers, if status.workers == 1 { "" } else { "s" }));
    }
    if !status.reason.is_empty() {
        parts.push(status.reason.clone());
    }
    parts.join("  ")
}

/// How far it is, in a few words.
pub(super) fn progress(status: &RenderStatus) -> String {
    let Progressed { stage, stages, stage_size, patches_done, patches, phase, tiles_done, tiles, .. } =
        &status.progress;
    let size = stage_size.map_or(String::new(), |(w, h)| format!(" {w}x{h}"));
    match status.state {
        RenderState::Running | RenderState::Paused if *stages > 0 => {
            let stage = format!("stage {}/{stages}{size}", stage + 1);
            match phase.is_empty() {
                true => format!("{stage} {patches_done}/{patches} patches"),
                false if *tiles > 0 => format!("{stage} {phase} {tiles_done}/{tiles}"),
                false => format!("{stage} {phase}"),
            }
        }
        RenderState::Running if !phase.is_empty() => phase.clone(),
        state => state.to_string(),
    }
}

/// Seconds as people say them.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) if h < 48 => format!("{h} h {m} min"),
        (h, ..) => format!("{} d {} h", h / 24, h % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stops_looking_is_told_how_to_get_the_picture() {
        let said = |ids: &[&str], fetching: &[&str]| {
            goes_on(ids, &fetching.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>()).to_string()
        };
        let one = said(&["r4"], &["`gigasmith fetch r4 -o x.png`"]);
        for word in ["r4 goes on", "`gigasmith watch r4`", "`gigasmith cancel r4`", "fetch r4 -o x.png"] {
            assert!(one.contains(word), "{one}");
        }
        assert!(said(&["a-1", "a-2"], &[]).contains("`gigasmith cancel a-1 a-2`"));
        assert!(said(&[], &[]).starts_with("interrupted"), "nothing was submitted");
    }

    #[test]
    fn times_are_said_as_people_say_them() {
        let said = [5.4, 65.0, 3_700.0, 200_000.0].map(duration);
        assert_eq!(said, ["5 s", "1 min 5 s", "1 h 1 min", "2 d 7 h"]);
    }
}
