//! How far renders are: one small object for each change, created once and never written again.
//!
//! `states/ID/E-S.json` is the state as the owner of the render's epoch E wrote it the S-th time; the newest name
//! counts. So a writer that wakes up late adds an object that is outranked, and spoils nothing. Whoever has written
//! a newer one deletes those before it; the newest is never deleted but with the render. Epoch 0 is the submission.
//!
//! The objects of all renders lie side by side, and each has what a listing shows: a listing is one LIST and one
//! small GET a render, many at a time, whatever the renders consist of.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use object_store::path::Path;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

use super::manifest::ManifestName;
use super::records::Summary;
use super::{Claim, RenderStore, StateRecord, StoreError, Stored, json};

/// States that are read at a time.
const AT_A_TIME: usize = 48;
/// How often states are listed again when what was listed is gone.
const RELISTS: usize = 5;

/// A render as a listing shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Indexed {
    /// Its id.
    pub id: String,
    /// How far it is.
    pub state: StateRecord,
    /// What it is.
    pub summary: Summary,
}

impl RenderStore {
    fn states(&self, id: &str) -> Path {
        self.root.clone().join("states").join(id)
    }

    fn state_path(&self, id: &str, name: ManifestName) -> Path {
        self.states(id).join(name.to_string())
    }

    /// The names of a render's states, the newest last.
    async fn state_names(&self, id: &str) -> Result<Vec<ManifestName>, StoreError> {
        let objects = self.objects_below(&self.states(id)).await?;
        let mut names: Vec<ManifestName> =
            objects.iter().filter_map(|o| o.location.filename()?.parse().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The newest state; `None` where none was written. One that is damaged is passed over; with nothing but
    /// damage the render has failed, with the damage as its reason.
    pub(super) async fn state(&self, id: &str) -> Result<Option<StateRecord>, StoreError> {
        for _ in 0..RELISTS {
            let (names, newest) = self.try_state(id).await?;
            // States that are listed and gone were given up for a newer one.
            if newest.is_some() || !names {
                return Ok(newest);
            }
        }
        let path = self.states(id).to_string();
        Err(StoreError::Damaged { path, reason: "what it lists is not there".into() })
    }

    /// Whether any are listed, and the newest.
    async fn try_state(&self, id: &str) -> Result<(bool, Option<StateRecord>), StoreError> {
        let mut names = self.state_names(id).await?;
        // The listing may be a little behind.
        while let Some(&ManifestName { epoch, sequence }) = names.last() {
            let next = ManifestName { epoch, sequence: sequence + 1 };
            if self.get(&self.state_path(id, next)).await?.is_none() {
                break;
            }
            names.push(next);
        }
        Ok((!names.is_empty(), self.newest_of(id, names).await?))
    }

    async fn newest_of(&self, id: &str, names: Vec<ManifestName>) -> Result<Option<StateRecord>, StoreError> {
        let mut damage = None;
        let of_version_1 = names.is_empty().then(|| self.path(id, "state.json"));
        let paths = names.into_iter().rev().map(|name| self.state_path(id, name));
        for path in paths.chain(of_version_1) {
            match self.get_versioned::<StateRecord>(&path).await {
                Ok(Some(state)) => return Ok(Some(state)),
                // Given up for a newer one since it was listed.
                Ok(None) => {}
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::debug!(id, %error, "a state is passed over");
                    damage = damage.or(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(damage.map(|damage| StateRecord::failed(0, damage.to_string())))
    }

    /// The first state of a render, by whoever submits it; one that is there stays.
    pub(super) async fn first_state(&self, id: &str, state: &StateRecord) -> Result<(), StoreError> {
        let path = self.state_path(id, ManifestName { epoch: 0, sequence: 1 });
        self.create(&path, json(state)).await.map(drop)
    }

    /// Stores a render's state, unless somebody newer has taken it over.
    pub async fn set_state(&self, id: &str, claim: &Claim, state: &StateRecord) -> Result<(), StoreError> {
        self.check(claim).await?;
        let bytes = json(state);
        let name = loop {
            let sequence = claim.states.fetch_add(1, Ordering::Relaxed) + 1;
            let name = ManifestName { epoch: claim.epoch, sequence };
            let path = self.state_path(id, name);
            // One that is there and not ours was torn.
            if self.create(&path, bytes.clone()).await? || self.get(&path).await?.as_ref() == Some(&bytes) {
                break name;
            }
        };
        // What cannot be deleted now goes with the next.
        for older in self.state_names(id).await.unwrap_or_default().into_iter().filter(|n| *n < name) {
            if self.delete(&self.state_path(id, older)).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    pub(super) async fn remove_states(&self, id: &str) -> Result<(), StoreError> {
        self.delete_below(&self.states(id)).await
    }

    /// Every render, in the order they were submitted. One that cannot be read is logged and left out.
    pub async fn index(&self) -> Result<Vec<Indexed>, StoreError> {
        let ids = self.ids().await?;
        let prefix = self.root.clone().join("states");
        let mut names: BTreeMap<String, Vec<ManifestName>> =
            ids.into_iter().map(|id| (id, Vec::new())).collect();
        let mut listed = self.objects.list(Some(&prefix));
        while let Some(found) = listed.next().await {
            let found = found.map_err(|source| StoreError::Store { path: prefix.to_string(), source })?;
            let mut parts = found.location.prefix_match(&prefix).into_iter().flatten();
            let id = parts.next().map(|id| id.as_ref().to_owned());
            let name = parts.next().and_then(|name| name.as_ref().parse().ok());
            if let Some((known, name)) = id.and_then(|id| names.get_mut(&id)).zip(name) {
                known.push(name);
            }
        }
        drop(listed);
        let (mut waiting, mut reading, mut renders) = (names.into_iter(), JoinSet::new(), Vec::new());
        loop {
            while reading.len() < AT_A_TIME {
                let Some((id, mut names)) = waiting.next() else { break };
                names.sort_unstable();
                let store = self.clone();
                reading.spawn(async move { (store.indexed(&id, names).await, id) });
            }
            match reading.join_next().await {
                None => break,
                Some(Ok((Ok(found), _))) => renders.extend(found),
                Some(Ok((Err(error @ StoreError::Store { .. }), _))) => return Err(error),
                Some(Ok((Err(error), id))) => tracing::error!(id, %error, "a render cannot be read"),
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        renders.sort_by(|a, b| (a.summary.order, &a.id).cmp(&(b.summary.order, &b.id)));
        Ok(renders)
    }

    async fn indexed(&self, id: &str, names: Vec<ManifestName>) -> Result<Option<Indexed>, StoreError> {
        let newest = if names.is_empty() { None } else { self.newest_of(id, names).await? };
        if let Some((state, summary)) = newest.and_then(|s| Some((s.clone(), s.summary?))) {
            return Ok(Some(Indexed { id: id.to_owned(), state, summary }));
        }
        // As version 1 kept it; or a submission that broke off.
        let Some(Stored { record, spec, state }) = self.read(id).await? else { return Ok(None) };
        let summary = Summary::of(&record, spec.as_ref());
        Ok(Some(Indexed { id: id.to_owned(), state, summary }))
    }
}
