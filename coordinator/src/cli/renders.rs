//! `gigasmith renders`: what lies in a store.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::kept::{DEFAULT_STORE, open_existing};
use super::{print, tell};
use crate::store::{Inventory, Standing, StoreError, StoredState};

/// Arguments of `gigasmith renders`.
#[derive(Debug, Args)]
pub(super) struct RendersArgs {
    /// The store: a folder, file://, s3://, gs:// or az://.
    #[arg(long, value_name = "URL", default_value = DEFAULT_STORE, global = true)]
    store: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Remove renders and everything of them. Whoever works on one notices and stops.
    Rm {
        /// The renders.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Lists or removes.
pub(super) async fn run(args: RendersArgs) -> Result<(), Failure> {
    match args.action {
        Some(Action::Rm { ids }) => remove(&args.store, &ids).await,
        None => list(&args.store, args.json).await,
    }
}

async fn remove(url: &str, ids: &[String]) -> Result<(), Failure> {
    let store = open_existing(url)?;
    let fail = |e: StoreError| Failure::output(format!("the store {url} cannot be used: {e}"));
    let there = store.ids().await.map_err(fail)?;
    if let Some(id) = ids.iter().find(|id| !there.contains(id)) {
        return Err(Failure::Input(format!("there is no render `{id}` in {url}; nothing was removed")));
    }
    for id in ids {
        store.remove(id).await.map_err(fail)?;
        tell(&format!("removed {id}"));
    }
    Ok(())
}

async fn list(url: &str, json: bool) -> Result<(), Failure> {
    let store = open_existing(url)?;
    let fail = |e: StoreError| Failure::output(format!("the store {url} cannot be used: {e}"));
    let mut rows = Vec::new();
    for id in store.ids().await.map_err(fail)? {
        let inventory = store.inventory(&id).await.map_err(fail)?;
        rows.push((inventory.stored.as_ref().map(|s| s.record.order), id, inventory));
    }
    rows.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let now = SystemTime::now();
    if json {
        let rows: Vec<_> = rows.iter().map(|(_, id, inventory)| as_json(id, inventory, now)).collect();
        return print(&serde_json::to_string_pretty(&rows).expect("rows are plain data"));
    }
    if rows.is_empty() {
        return print(&format!("no renders in {url}"));
    }
    let head = ["id", "state", "progress", "size", "store", "checkpoint", "note"].map(str::to_owned);
    let rows: Vec<[String; 7]> =
        std::iter::once(head).chain(rows.iter().map(|(_, id, inventory)| row(id, inventory, now))).collect();
    let widths: Vec<usize> =
        (0..6).map(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let cells = widths.iter().zip(&row).map(|(&width, cell)| format!("{cell:<width$}"));
        let line = cells.chain(row.last().cloned()).collect::<Vec<_>>().join("  ");
        print(line.trim_end())?;
    }
    Ok(())
}

fn state(inventory: &Inventory) -> &'static str {
    match &inventory.stored {
        None if inventory.damage.is_some() => "damaged",
        None => "removed",
        Some(stored) => match stored.state.state {
            StoredState::Queued if inventory.standing.is_some() => "begun",
            StoredState::Queued => "queued",
            StoredState::Paused => "paused",
            StoredState::Done => "done",
            StoredState::Cancelled => "cancelled",
            StoredState::Failed => "failed",
        },
    }
}

/// Whether it can go on, and if not, why.
fn resumable(inventory: &Inventory) -> Result<(), String> {
    let Some(stored) = &inventory.stored else {
        return Err(inventory.damage.clone().unwrap_or_else(|| {
            "its request is gone: a removal or a submission broke off; `renders rm` cleans up".into()
        }));
    };
    match stored.state.state {
        StoredState::Done => Err(String::new()),
        StoredState::Cancelled => Err("it was given up".into()),
        StoredState::Queued | StoredState::Paused | StoredState::Failed => Ok(()),
    }
}

/// Why it stands still, or why it cannot go on.
fn remark(inventory: &Inventory) -> String {
    let reason = inventory.stored.as_ref().map_or(String::new(), |s| s.state.reason.clone());
    match resumable(inventory) {
        Err(reason) => reason,
        Ok(()) if reason.is_empty() => "resumable".into(),
        Ok(()) => format!("resumable; {reason}"),
    }
}

/// The share of the stages' patches that is done: `stage 2/3 45%`.
fn progress(inventory: &Inventory) -> String {
    let stages = inventory.stored.as_ref().and_then(|s| s.spec.as_ref()).map(|s| s.upscales.len() + 1);
    match (&inventory.standing, stages) {
        (Some(Standing { stage, patches, .. }), Some(stages)) => match patches {
            Some((done, all)) => {
                format!("stage {}/{stages} {}%", stage + 1, u64::from(*done) * 100 / u64::from((*all).max(1)))
            }
            None => format!("stage {}/{stages} decoding", stage + 1),
        },
        _ => "-".into(),
    }
}

fn size(inventory: &Inventory) -> Option<crate::sampler::units::ImageSize> {
    let spec = inventory.stored.as_ref()?.spec.as_ref()?;
    Some(spec.upscales.last().map_or(spec.base, |u| u.size))
}

fn age(standing: &Standing, now: SystemTime) -> Duration {
    Duration::from_secs(now.duration_since(standing.written).unwrap_or_default().as_secs())
}

fn row(id: &str, inventory: &Inventory, now: SystemTime) -> [String; 7] {
    let checkpoint = inventory.standing.as_ref();
    [
        id.to_owned(),
        state(inventory).to_owned(),
        progress(inventory),
        size(inventory).map_or("-".into(), |s| s.to_string()),
        crate::estimate::bytes(inventory.bytes),
        checkpoint.map_or("-".into(), |s| format!("{} ago", indicatif::HumanDuration(age(s, now)))),
        remark(inventory),
    ]
}

fn as_json(id: &str, inventory: &Inventory, now: SystemTime) -> serde_json::Value {
    let standing = inventory.standing.as_ref();
    let reason = remark(inventory);
    serde_json::json!({
        "id": id,
        "state": state(inventory),
        "width": size(inventory).map(|s| s.width),
        "height": size(inventory).map(|s| s.height),
        "stage": standing.map(|s| s.stage),
        "patches_done": standing.and_then(|s| s.patches).map(|p| p.0),
        "patches": standing.and_then(|s| s.patches).map(|p| p.1),
        "bytes": inventory.bytes,
        "checkpoints": standing.map_or(0, |s| s.checkpoints),
        "checkpoint_age_seconds": standing.map(|s| age(s, now).as_secs()),
        "resumable": resumable(inventory).is_ok(),
        "reason": if reason == "resumable" { "" } else { &reason },
    })
}
