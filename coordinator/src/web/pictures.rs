//! Finished pictures of a store, opened for their tiles and kept open for a while.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;

use super::Problem;
use super::canvas::finished_version;
use crate::jobs::Jobs;
use crate::view::{self, TileSource};

/// Pictures that are kept open.
const OPEN: usize = 4;

/// A picture, once it is opened. Whoever asks first opens it, the others wait for that one.
type Opening = Arc<tokio::sync::OnceCell<Arc<dyn TileSource>>>;

/// The pictures that were looked at last.
#[derive(Default)]
pub(super) struct Pictures {
    /// By version.
    open: Mutex<VecDeque<(u64, Opening)>>,
}

impl Pictures {
    /// The picture of a finished render, and its version; `None` while there is none.
    pub(super) async fn get(
        &self,
        jobs: &Jobs,
        id: &str,
    ) -> Result<Option<(u64, Arc<dyn TileSource>)>, Problem> {
        let unusable = |e: String| unusable(id, e);
        let Some(unique) = jobs.finished(id) else { return Ok(None) };
        let version = finished_version(&unique);
        let opening = self.opening(version);
        if let Some(open) = opening.get() {
            return Ok(Some((version, open.clone())));
        }
        let Some((object, scratch)) = jobs.result_object(id).await.map_err(|e| unusable(e.to_string()))?
        else {
            return Ok(None);
        };
        // In a task of its own: a PNG is read as a whole, whether or not they wait who asked.
        let opened = tokio::spawn(async move {
            opening.get_or_try_init(|| view::open_object(object, scratch)).await.cloned()
        });
        let opened = opened.await.map_err(|e| unusable(e.to_string()))?;
        Ok(Some((version, opened.map_err(|e| unusable(e.to_string()))?)))
    }

    fn opening(&self, version: u64) -> Opening {
        let mut open = self.open.lock().expect("no holder panics");
        let found = open.iter().position(|(known, _)| *known == version).and_then(|at| open.remove(at));
        let found = found.unwrap_or_else(|| (version, Opening::default()));
        open.push_back(found.clone());
        if open.len() > OPEN {
            open.pop_front();
        }
        found.1
    }
}

/// A picture that cannot be read. Why is in the log: it tells of the store's insides.
pub(super) fn unusable(id: &str, reason: impl std::fmt::Display) -> Problem {
    tracing::warn!(id, %reason, "a picture cannot be shown");
    let said = format!("the picture of {id} cannot be read; the coordinator's log says why");
    Problem(StatusCode::BAD_GATEWAY, said)
}
