//! `status`, `watch`, `pause`, `continue`, `cancel`, `rm`, `priority`, `fetch` and `workers`: what people do with
//! a farm's renders and workers.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use gigasmith_proto::domain::{RenderState, RenderStatus, WorkerState, WorkerStatus};
use gigasmith_proto::v1;
use gigasmith_proto::v1::change_render_request::Change;
use gigasmith_worker::connect::ConnectArgs;

use super::client::Client;
use super::failure::Failure;
use super::files::{ClobberArgs, LATENTS, PLAN, check_ending, check_kind, format_of};
use super::follow::{duration, each, ended, follow, goes_on, progress};
use super::{interrupted, print, submit};
use crate::output::{Kind, check_replaceable};

/// Ended renders that `status` shows, and that one answer holds with `--all`.
const ENDED: u32 = 20;
const PAGE: u32 = 500;

/// Arguments of `gigasmith status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// The render; unless given the unfinished ones, in the order they are served, and the newest that have ended.
    id: Option<String>,
    /// All that have ended.
    #[arg(long, conflicts_with = "id")]
    all: bool,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Print JSON: an object for one render, an array for several.
    #[arg(long)]
    json: bool,
}

/// Arguments of `gigasmith watch`.
#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// The render.
    id: String,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Print a line of JSON for every change instead.
    #[arg(long)]
    json: bool,
}

/// Arguments of `pause`, `continue`, `cancel` and `rm`.
#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    /// The renders.
    #[arg(required = true)]
    ids: Vec<String>,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `gigasmith priority`.
#[derive(Debug, Args)]
pub(super) struct PriorityArgs {
    /// The render.
    id: String,
    /// Its new priority: higher goes first.
    #[arg(allow_negative_numbers = true)]
    priority: i32,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `gigasmith fetch`.
#[derive(Debug, Args)]
pub(super) struct FetchArgs {
    /// The render.
    id: String,
    #[command(flatten)]
    connect: ConnectArgs,
    /// The file to write: ID and its ending unless given. A picture keeps the format it was submitted with.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    clobber: ClobberArgs,
    /// What to fetch.
    #[arg(long, value_enum, value_name = "PART", default_value = "picture")]
    part: PartArg,
    /// Say nothing.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PartArg {
    /// The picture, in the format that the render was asked for.
    Picture,
    /// The last stage's latents, a safetensors file.
    Latents,
    /// The plans of the upscale stages, JSON.
    Plan,
}

/// Arguments of `gigasmith workers`.
#[derive(Debug, Args)]
pub(super) struct WorkersArgs {
    #[command(subcommand)]
    action: Option<WorkersAction>,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum WorkersAction {
    /// Every worker that is here or was lately (the default).
    List,
    /// Let workers take tasks again: their failures are forgotten, refused ones are examined again.
    Enable {
        /// The workers.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Workers take no more tasks, and stay connected.
    Disable {
        /// The workers.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Workers finish what they have, and end.
    Drain {
        /// The workers.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub(super) async fn status(args: StatusArgs) -> Result<(), Failure> {
    let mut client = Client::connect(&args.connect).await?;
    if let Some(id) = &args.id {
        let one = client.render(id).await?;
        return print(&if args.json { pretty(&json(&one)) } else { detail(&one) });
    }
    let mut page = client.renders(ENDED, "").await?;
    let mut renders = std::mem::take(&mut page.renders);
    while args.all && !page.next.is_empty() {
        page = client.renders(PAGE, &page.next).await?;
        renders.append(&mut page.renders);
    }
    if args.json {
        return print(&pretty(&renders.iter().map(json).collect::<Vec<_>>()));
    }
    let shown = renders.iter().filter(|r| r.state.is_final()).count() as u64;
    match &renders[..] {
        [] => print("no renders"),
        renders => print(&table(renders)),
    }?;
    match page.ended.saturating_sub(shown) {
        0 => Ok(()),
        more => print(&format!("and {more} more that have ended: --all shows them")),
    }
}

/// Removes each render.
pub(super) async fn remove(args: ChangeArgs) -> Result<(), Failure> {
    let mut client = Client::connect(&args.connect).await?;
    let mut act = async |id: &str| client.remove(id).await.map(|()| id.to_owned());
    let to_json = |id: &String| serde_json::json!({ "id": id, "state": "removed" });
    each_of(&args.ids, args.json, &mut act, to_json, |id, _| format!("{id} is removed")).await
}

pub(super) async fn watch(args: WatchArgs) -> Result<(), Failure> {
    let work = async {
        let mut client = Client::connect(&args.connect).await?;
        if !args.json {
            return ended(&follow(&mut client, &args.id, false).await?);
        }
        let last = each(&mut client, &args.id, |status| print(&line(&json(status)))).await?;
        ended(&last)
    };
    tokio::select! {
        done = work => done,
        signal = interrupted() => {
            signal.map_err(|e| Failure::render(format!("cannot listen for signals: {e}")))?;
            Err(goes_on(&[&args.id], &[format!("`gigasmith fetch {}`", args.id)]))
        }
    }
}

/// What a person may have written, without what would move the cursor or change colours.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// JSON on one line.
fn line(value: &serde_json::Value) -> String {
    value.to_string()
}

fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("a status is plain data")
}

/// A render as JSON: its status, and the seconds left where they are known.
pub(super) fn json(status: &RenderStatus) -> serde_json::Value {
    let mut value = serde_json::to_value(status).expect("a status is plain data");
    value["seconds_left"] = status.seconds_left().into();
    value
}

/// Does something to each of several things: all are tried, and the last failure decides the exit code. In JSON a
/// failed one has `id` and `error`.
async fn each_of<T>(
    names: &[String],
    as_json: bool,
    mut act: impl AsyncFnMut(&str) -> Result<T, Failure>,
    to_json: impl Fn(&T) -> serde_json::Value,
    say: impl Fn(&str, &T) -> String,
) -> Result<(), Failure> {
    let (mut done, mut failed) = (Vec::new(), None);
    for name in names {
        match act(name).await {
            Ok(value) if as_json => done.push(to_json(&value)),
            Ok(value) => print(&say(name, &value))?,
            Err(error) => {
                if as_json {
                    done.push(serde_json::json!({ "id": name, "error": error.to_string() }));
                }
                if let Some(earlier) = failed.replace(error).filter(|_| !as_json) {
                    super::tell(&format!("gigasmith: {earlier}"));
                }
            }
        }
    }
    if as_json {
        print(&pretty(&done))?;
    }
    failed.map_or(Ok(()), Err)
}

/// Makes a change to each render.
pub(super) async fn change(args: ChangeArgs, change: Change) -> Result<(), Failure> {
    let mut client = Client::connect(&args.connect).await?;
    let act = async |id: &str| client.change(id, change).await;
    each_of(&args.ids, args.json, act, json, |id, status| format!("{id} is {}", status.state)).await
}

pub(super) async fn priority(args: PriorityArgs) -> Result<(), Failure> {
    let mut client = Client::connect(&args.connect).await?;
    let status = client.change(&args.id, Change::Priority(args.priority)).await?;
    match args.json {
        true => print(&pretty(&json(&status))),
        false => print(&format!("{} has priority {}", status.id, status.priority)),
    }
}

pub(super) async fn fetch(args: FetchArgs) -> Result<(), Failure> {
    if let Some(path) = &args.output {
        match args.part {
            PartArg::Picture => format_of(path, None).map(drop)?,
            PartArg::Latents => check_ending(path, LATENTS)?,
            PartArg::Plan => check_ending(path, PLAN)?,
        }
    }
    let mut client = Client::connect(&args.connect).await?;
    let (part, kind) = match args.part {
        PartArg::Picture => {
            let format = client.render(&args.id).await?.format;
            // One that this release does not know is shown by what comes.
            let kind = [Kind::Png, Kind::Tif, Kind::Dzi].into_iter().find(|k| k.extension() == format);
            (v1::FetchedPart::Picture, kind)
        }
        PartArg::Latents => (v1::FetchedPart::Latents, None),
        PartArg::Plan => (v1::FetchedPart::Plan, None),
    };
    let ending = match args.part {
        PartArg::Picture => kind.unwrap_or_default().extension(),
        PartArg::Latents => LATENTS,
        PartArg::Plan => PLAN,
    };
    let path: PathBuf = args.output.unwrap_or_else(|| format!("{}.{ending}", args.id).into());
    kind.map_or(Ok(()), |kind| check_kind(&args.id, kind, &path))?;
    args.clobber.check(&path)?;
    if kind == Some(Kind::Dzi) {
        check_replaceable(&path)?;
    }
    submit::save(&mut client, &args.id, part, &path, args.quiet).await
}

pub(super) async fn workers(args: WorkersArgs) -> Result<(), Failure> {
    let mut client = Client::connect(&args.connect).await?;
    let (names, change) = match args.action {
        None | Some(WorkersAction::List) => {
            let workers = client.workers().await?;
            return match (args.json, workers.is_empty()) {
                (true, _) => print(&pretty(&workers)),
                (false, true) => print("no workers"),
                (false, false) => print(&worker_table(&workers)),
            };
        }
        Some(WorkersAction::Enable { names }) => (names, v1::WorkerChange::Enable),
        Some(WorkersAction::Disable { names }) => (names, v1::WorkerChange::Disable),
        Some(WorkersAction::Drain { names }) => (names, v1::WorkerChange::Drain),
    };
    let act = async |name: &str| client.change_worker(name, change).await;
    let to_json = |worker: &WorkerStatus| serde_json::to_value(worker).expect("a status is plain data");
    each_of(&names, args.json, act, to_json, |name, worker| format!("{name} is {}", worker.state)).await
}

/// A render on its own, line by line.
fn detail(render: &RenderStatus) -> String {
    let mut lines = vec![
        format!("id        {}", render.id),
        format!("state     {}", render.state),
        format!("progress  {}", progress(render)),
        format!("prompt    {}", plain(&render.prompt)),
        format!("seed      {}", render.seed),
        format!("model     {}", plain(&render.model)),
        format!("priority  {}", render.priority),
        format!("workers   {}", render.workers),
    ];
    let mut add = |name: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("{name:<9} {value}")));
    };
    add("size", render.size.map(|(w, h)| format!("{w}x{h}")));
    add("rate", rate(render).map(|rate| format!("{rate:.2} patches/s")));
    add("left", left(render));
    add("reason", Some(render.reason.clone()).filter(|r| !r.is_empty()));
    render.warnings.iter().for_each(|w| add("warning", Some(w.clone())));
    lines.join("\n")
}

/// Patches per second, while there are any.
fn rate(render: &RenderStatus) -> Option<f64> {
    let rate = render.progress.rate;
    (rate > 0.0 && render.workers > 0 && render.state == RenderState::Running).then_some(rate)
}

/// The time left, while somebody works on it.
fn left(render: &RenderStatus) -> Option<String> {
    render.seconds_left().filter(|_| render.workers > 0).map(duration)
}

fn table(renders: &[RenderStatus]) -> String {
    let mut rows = vec![
        ["ID", "STATE", "PRIO", "SIZE", "PROGRESS", "RATE", "LEFT", "WORKERS", "WHY"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(renders.iter().map(|r| {
        vec![
            r.id.clone(),
            r.state.to_string(),
            r.priority.to_string(),
            r.size.map_or("?".into(), |(w, h)| format!("{w}x{h}")),
            progress(r),
            rate(r).map_or(String::new(), |rate| format!("{rate:.1}/s")),
            left(r).unwrap_or_default(),
            r.workers.to_string(),
            r.reason.clone(),
        ]
    }));
    columns(&rows)
}

fn worker_table(workers: &[WorkerStatus]) -> String {
    let mut rows = vec![
        ["NAME", "STATE", "MODEL", "CLASS", "BUSY", "DONE", "FAILED", "S/TASK", "VERSION", "WHY"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(workers.iter().map(|w| {
        let busy = match w.state {
            WorkerState::Offline => String::new(),
            _ => format!("{}/{}", w.busy, w.slots),
        };
        let pace = match w.seconds_per_task {
            0.0 => String::new(),
            seconds => format!("{seconds:.2}"),
        };
        vec![
            w.name.clone(),
            w.state.to_string(),
            w.model.clone(),
            w.numeric_class.clone(),
            busy,
            w.done.to_string(),
            w.failed.to_string(),
            pace,
            w.version.clone(),
            w.reason.clone(),
        ]
    }));
    columns(&rows)
}

/// Rows of cells as aligned columns.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{:<width$}", plain(cell)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
