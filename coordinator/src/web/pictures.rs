//! Finished pictures of a store, opened for their tiles and kept open for a while.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;

use super::Problem;
use crate::jobs::Jobs;
use crate::view::{self, TileSource};

/// Pictures that are kept open.
const OPEN: usize = 4;

/// The pictures that were looked at last.
#[derive(Default)]
pub(super) struct Pictures {
    open: Mutex<VecDeque<(String, Arc<dyn TileSource>)>>,
    /// One is opened at a time: a PNG is read as a whole.
    opening: tokio::sync::Mutex<()>,
}

impl Pictures {
    /// The picture of a finished render; `None` while there is none.
    pub(super) async fn get(&self, jobs: &Jobs, id: &str) -> Result<Option<Arc<dyn TileSource>>, Problem> {
        if let Some(known) = self.known(id) {
            return Ok(Some(known));
        }
        let _one_at_a_time = self.opening.lock().await;
        if let Some(known) = self.known(id) {
            return Ok(Some(known));
        }
        let unusable = |e: String| Problem(StatusCode::BAD_GATEWAY, e);
        let Some((object, scratch)) = jobs.result_object(id).await.map_err(|e| unusable(e.to_string()))?
        else {
            return Ok(None);
        };
        let opened = view::open_object(object, scratch).await.map_err(|e| unusable(e.to_string()))?;
        let mut open = self.open.lock().expect("no holder panics");
        open.push_back((id.to_owned(), opened.clone()));
        while open.len() > OPEN {
            open.pop_front();
        }
        Ok(Some(opened))
    }

    fn known(&self, id: &str) -> Option<Arc<dyn TileSource>> {
        let mut open = self.open.lock().expect("no holder panics");
        let at = open.iter().position(|(known, _)| known == id)?;
        let found = open.remove(at)?;
        let picture = found.1.clone();
        open.push_back(found);
        Some(picture)
    }
}
