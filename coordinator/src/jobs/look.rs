//! What can be read of renders. Changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use gigasmith_proto::domain::{RenderState, RenderStatus};
use tokio::sync::watch;

use super::book::Changes;
use super::entry::Entry;
use super::phase::{End, Phase};
use super::{JobError, Jobs, reason};
use crate::farm::{Lane, Underway};
use crate::output::Kind;
use crate::raster::Scratch;
use crate::render::Live;
use crate::request::{RenderRequest, RequestError};
use crate::spec::RenderSpec;
use crate::store::{Fetched, Part, PictureFile, ResultPlace, StateRecord};
use crate::view::StoredPicture;

/// What is known of a render beside its status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Beside {
    /// Patches of all its stages; 0 until they are counted.
    pub patches_all: u64,
    /// It waits for the store.
    pub store_away: bool,
}

impl Jobs {
    /// One render's status.
    pub async fn status(&self, id: &str) -> Option<RenderStatus> {
        self.loaded().await;
        self.statuses_of(vec![id.to_owned()]).await.pop()
    }

    /// Renders that have not ended, in the order they are served.
    pub async fn unfinished(&self) -> Vec<RenderStatus> {
        self.loaded().await;
        let mut ids: Vec<_> = self.book().unfinished().map(|e| (e.rank(), e.id.clone())).collect();
        ids.sort();
        self.statuses_of(ids.into_iter().map(|(_, id)| id).collect()).await
    }

    /// Up to `limit` renders that have ended, the newest first, and where the next page begins. `before`: where
    /// this one does, as an earlier one said.
    pub async fn ended(
        &self,
        before: Option<String>,
        limit: usize,
    ) -> Result<(Vec<RenderStatus>, Option<String>), JobError> {
        self.loaded().await;
        let cursor =
            |text: &str| Some((text.split_once('-')?.0.parse().ok()?, text.split_once('-')?.1.to_owned()));
        let from = before.map(|text| {
            let unknown =
                || RequestError::Other(format!("{text:?} is no place in the list: begin at its start"));
            cursor(&text).ok_or_else(unknown)
        });
        let from = from.transpose()?;
        let (ids, next) = {
            let book = self.book();
            let mut found = book.ended(from).map(|e| (e.summary.order, e.id.clone()));
            let page: Vec<_> = found.by_ref().take(limit).collect();
            let next = found.next().and_then(|_| page.last().map(|(order, id)| format!("{order}-{id}")));
            (page.into_iter().map(|(_, id)| id).collect(), next)
        };
        Ok((self.statuses_of(ids).await, next))
    }

    /// How many renders have ended, by how.
    pub fn ended_counts(&self) -> Vec<(RenderState, usize)> {
        let states = [RenderState::Done, RenderState::Cancelled, RenderState::Failed];
        let book = self.book();
        let count = |state| book.ended(None).filter(|e| e.phase.state() == state).count();
        states.into_iter().map(|state| (state, count(state))).collect()
    }

    /// How many renders have ended.
    pub fn ended_count(&self) -> usize {
        self.book().count_ended()
    }

    /// Every render's status: those that have not ended as they are served, then the others, the newest first.
    pub async fn statuses(&self) -> Vec<RenderStatus> {
        let mut all = self.unfinished().await;
        let ended = self.ended(None, usize::MAX).await;
        all.extend(ended.map(|(ended, _)| ended).unwrap_or_default());
        all
    }

    async fn statuses_of(&self, ids: Vec<String>) -> Vec<RenderStatus> {
        let lane = |id: &String| self.with(id, |e| e.session.as_ref()?.lane.clone()).flatten();
        let lanes: Vec<(String, Arc<Lane>)> =
            ids.iter().filter_map(|id| Some((id.clone(), lane(id)?))).collect();
        let mut depths = BTreeMap::new();
        for (id, lane) in lanes {
            depths.insert(id, lane.depth().await);
        }
        let roster = self.0.farm.roster();
        let workers = self.0.farm.workers().await;
        let book = self.book();
        let mut ranks: Vec<_> = book.unfinished().map(Entry::rank).collect();
        ranks.sort_unstable();
        let status = |id: &String| {
            let entry = book.get(id)?;
            let scene = reason::Scene {
                workers: &workers,
                roster: &roster,
                depth: depths.get(id).copied(),
                ahead: ranks.partition_point(|rank| *rank < entry.rank()),
                active: self.0.options.active,
            };
            Some(entry.status(reason::reason(entry, &scene), reason::capacity(entry, &roster)))
        };
        ids.iter().filter_map(status).collect()
    }

    /// What has changed since a version.
    pub fn changes(&self, since: u64) -> Changes {
        self.book().changes(since)
    }

    /// Is told when anything changes.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.book().versions()
    }

    /// Looks at a render that must be done.
    fn done<T>(&self, id: &str, look: impl FnOnce(&Entry) -> T) -> Result<T, JobError> {
        let looked = self.with(id, |entry| match entry.phase {
            Phase::Ended(End::Done) => Ok(look(entry)),
            _ => {
                let reason = "there is nothing to fetch until it is done; `gigasmith watch` follows it";
                Err(JobError::State { id: id.to_owned(), state: entry.phase.state(), reason })
            }
        });
        looked.ok_or_else(|| JobError::Unknown(id.to_owned()))?
    }

    /// Where the result of a finished render lies.
    async fn place_of(&self, id: &str) -> Result<(ResultPlace, String), JobError> {
        let (state, unique) = self.done(id, |e| (e.state_record(), e.summary.unique(&e.id)))?;
        let stages = match &state {
            // As version 1 kept it, by the number of its last stage.
            StateRecord { result: None, .. } => {
                let stored = self.0.store.read(id).await?;
                stored.and_then(|s| s.spec).map_or(0, |s| s.upscales.len() as u32)
            }
            _ => 0,
        };
        let place = self.0.store.result_place(id, &state, stages).await?;
        Ok((place.ok_or_else(|| gone(id, "its result is no longer in the store"))?, unique))
    }

    /// A part of a finished render.
    pub async fn fetch(&self, id: &str, part: Part) -> Result<Fetched, JobError> {
        self.loaded().await;
        let (place, _) = self.place_of(id).await?;
        let reason = match part {
            Part::Latents => "its latents are not in the store: no stage ran, or they could not be kept",
            _ => "its result is no longer in the store",
        };
        self.0.store.result(&place, part).await?.ok_or_else(|| gone(id, reason))
    }

    /// The picture of a finished render, to be read in parts; `None`: it is Deep Zoom, which is many files.
    pub async fn picture_file(&self, id: &str) -> Result<Option<PictureFile>, JobError> {
        self.loaded().await;
        let (place, unique) = self.place_of(id).await?;
        match self.0.store.picture_file(&place, &unique).await? {
            Some(file) => Ok(Some(file)),
            None if place.kind == Kind::Dzi => Ok(None),
            None => Err(gone(id, "its result is no longer in the store")),
        }
    }

    /// What can be seen of a render, and which of its tasks are under way. An error: there is no such render.
    pub async fn look(&self, id: &str) -> Result<(Option<Arc<Live>>, Vec<Underway>), JobError> {
        self.loaded().await;
        let session = |e: &Entry| e.session.as_ref().map(|s| (s.live.clone(), s.lane.clone()));
        let session = self.with(id, session).ok_or_else(|| JobError::Unknown(id.to_owned()))?;
        let Some((live, lane)) = session else { return Ok((None, Vec::new())) };
        let underway = match lane {
            Some(lane) => lane.underway().await,
            None => Vec::new(),
        };
        Ok((Some(live), underway))
    }

    /// What is unique about a render that is done: two of one name, one after the other, differ in it.
    pub fn finished(&self, id: &str) -> Option<String> {
        self.done(id, |e| e.summary.unique(&e.id)).ok()
    }

    /// Where a finished render's picture lies, and where one may be read into; `None` while there is none.
    pub async fn result_object(&self, id: &str) -> Result<Option<(StoredPicture, Scratch)>, JobError> {
        if self.finished(id).is_none() {
            return Ok(None);
        }
        let (place, _) = self.place_of(id).await?;
        Ok(Some((self.0.store.stored_picture(&place), self.0.store.scratch().clone())))
    }

    /// What was asked for, and what it was settled to, once the model is known.
    pub async fn settings(&self, id: &str) -> Result<(RenderRequest, Option<RenderSpec>), JobError> {
        self.loaded().await;
        let unknown = || JobError::Unknown(id.to_owned());
        let known = self.with(id, |e| Some((e.record.clone()?, e.spec.clone()))).ok_or_else(unknown)?;
        if let Some((record, spec)) = known {
            return Ok((record.request.clone(), spec.map(|spec| (*spec).clone())));
        }
        let stored = self.0.store.read(id).await?.ok_or_else(unknown)?;
        Ok((stored.record.request, stored.spec))
    }

    /// What a status does not say.
    pub fn beside(&self, id: &str) -> Beside {
        let beside = |e: &Entry| Beside {
            patches_all: e.patches_all,
            store_away: e.trouble.as_ref().is_some_and(|t| t.store_away),
        };
        self.with(id, beside).unwrap_or_default()
    }
}

fn gone(id: &str, reason: &'static str) -> JobError {
    JobError::State { id: id.to_owned(), state: RenderState::Done, reason }
}
