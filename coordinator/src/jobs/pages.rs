//! What listings ask of the renders: those that are unfinished, the ended ones page by page, and what has changed.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};

use gigasmith_proto::domain::{RenderState, RenderStatus};
use tokio::sync::watch;

use super::{JobError, Jobs};
use crate::request::RequestError;

/// Changes that are remembered: who looks less often reads everything anew.
const REMEMBERED: usize = 4096;

/// What has changed since a version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The version now.
    pub version: u64,
    /// Renders that are new or changed.
    pub changed: Vec<String>,
    /// Renders that are gone.
    pub removed: Vec<String>,
    /// The version is too old to tell: everything may have changed.
    pub all: bool,
}

/// The last changes, by version.
#[derive(Debug, Default)]
pub(super) struct Log {
    version: watch::Sender<u64>,
    /// (version, id): the newest last.
    recent: Mutex<VecDeque<(u64, String)>>,
}

impl Log {
    fn recent(&self) -> MutexGuard<'_, VecDeque<(u64, String)>> {
        self.recent.lock().expect("no holder panics")
    }

    /// Something of a render has changed.
    pub(super) fn note(&self, id: &str) {
        let mut recent = self.recent();
        let version = *self.version.borrow() + 1;
        // What changes all the time takes one place.
        if recent.back().is_some_and(|(_, last)| last == id) {
            recent.pop_back();
        }
        if recent.len() == REMEMBERED {
            recent.pop_front();
        }
        recent.push_back((version, id.to_owned()));
        self.version.send_replace(version);
    }

    /// The version now, and which renders have changed since another; `None`: that is too long ago, or was never.
    fn since(&self, since: u64) -> (u64, Option<BTreeSet<String>>) {
        let recent = self.recent();
        let version = *self.version.borrow();
        // Two notes of one render in a row leave a gap of versions, none of another's.
        let forgotten =
            recent.len() == REMEMBERED && recent.front().is_some_and(|(first, _)| *first > since + 1);
        let is_known = since <= version && !forgotten;
        let changed = recent.iter().rev().take_while(|(at, _)| *at > since).map(|(_, id)| id.clone());
        (version, is_known.then(|| changed.collect()))
    }
}

impl Jobs {
    /// Every render that has not ended, in the order they are served.
    pub async fn unfinished(&self) -> Vec<RenderStatus> {
        let mut all = self.statuses().await;
        all.retain(|status| !status.state.is_final());
        all
    }

    /// Ended renders, the newest first, at most `limit`, and the cursor with which the next ones come; `before`:
    /// such a cursor. Fails with a cursor that was not given out.
    pub async fn ended(
        &self,
        before: Option<String>,
        limit: usize,
    ) -> Result<(Vec<RenderStatus>, Option<String>), JobError> {
        let before: Option<u64> = match before {
            None => None,
            Some(cursor) => Some(cursor.parse().map_err(|_| {
                RequestError::Other(format!("{cursor:?} is no place in the list: begin at its start"))
            })?),
        };
        let mut ids: Vec<(u64, String)> = {
            let entries = self.entries();
            let ended = entries.values().filter(|e| e.state.is_final());
            let places = ended.map(|e| (e.record.order, e.record.id.clone()));
            places.filter(|(order, _)| before.is_none_or(|before| *order < before)).collect()
        };
        ids.sort_unstable_by(|a, b| b.cmp(a));
        let more = ids.len() > limit;
        ids.truncate(limit);
        let next = ids.last().filter(|_| more).map(|(order, _)| order.to_string());
        let mut statuses = self.statuses().await;
        let mut take = |id: &str| {
            let at = statuses.iter().position(|status| status.id == id)?;
            Some(statuses.swap_remove(at))
        };
        Ok((ids.iter().filter_map(|(_, id)| take(id)).collect(), next))
    }

    /// How many renders have ended.
    pub fn ended_count(&self) -> usize {
        self.entries().values().filter(|e| e.state.is_final()).count()
    }

    /// What has changed since a version that this process gave out; 0: since it began.
    pub fn changes(&self, since: u64) -> Changes {
        match self.0.log.since(since) {
            (version, None) => Changes { version, all: true, ..Changes::default() },
            (version, Some(ids)) => {
                let entries = self.entries();
                let (changed, removed) = ids.into_iter().partition(|id| entries.contains_key(id));
                Changes { version, changed, removed, all: false }
            }
        }
    }

    /// Is told when anything changes.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.0.log.version.subscribe()
    }

    /// Removes an ended render and everything of it. Goes on to its end even if the caller leaves.
    pub async fn remove(&self, id: &str) -> Result<(), JobError> {
        let (jobs, id) = (self.clone(), id.to_owned());
        let removed = tokio::spawn(async move { jobs.remove_now(&id).await }).await;
        removed.unwrap_or_else(|e| Err(JobError::Bug(e.to_string())))
    }

    async fn remove_now(&self, id: &str) -> Result<(), JobError> {
        let unknown = || JobError::Unknown(id.to_owned());
        let changing = self.entries().get(id).map(|e| e.changing.clone()).ok_or_else(unknown)?;
        let _one_at_a_time = changing.lock().await;
        let state: RenderState = self.entries().get(id).map(|e| e.state).ok_or_else(unknown)?;
        if !state.is_final() {
            return Err(JobError::State { id: id.to_owned(), state, reason: "cancel it first" });
        }
        if let Some(claim) = &self.0.options.claim {
            self.0.store.check(claim).await?;
        }
        self.0.store.remove(id).await?;
        self.entries().remove(id);
        self.0.log.note(id);
        tracing::info!(id, "a render was removed");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_known_since_any_version_that_is_remembered() {
        let log = Log::default();
        let since = |version: u64| {
            let (now, changed) = log.since(version);
            (now, changed.map(|ids| ids.into_iter().collect::<Vec<_>>()))
        };
        let ids = |ids: &[&str]| Some(ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
        assert_eq!((since(0), since(1)), ((0, ids(&[])), (0, None)));
        for id in ["a", "b", "b", "b", "a", "c"] {
            log.note(id);
        }
        assert_eq!(since(0), (6, ids(&["a", "b", "c"])));
        assert_eq!((since(3).1, since(5).1, since(6).1), (ids(&["a", "b", "c"]), ids(&["c"]), ids(&[])));
        for n in 0..REMEMBERED {
            log.note(&format!("{}", n % 7));
        }
        let (now, _) = since(0);
        assert_eq!((since(0).1, since(now - REMEMBERED as u64 - 1).1), (None, None));
        assert_eq!(since(now - REMEMBERED as u64).1.map(|ids| ids.len()), Some(7));
    }
}
