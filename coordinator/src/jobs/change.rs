//! Changes to a render: decided by its phase, made to its session, stored, and only then told.
//!
//! A render that holds a place is stored with its session's claim. Every other is claimed for the change alone, and
//! what the store says of it by then is looked at first: somebody else may have finished it.

use std::time::Duration;

use gigasmith_proto::domain::{RenderState, RenderStatus};
use tokio_util::task::AbortOnDropHandle;

use super::phase::{Effect, End, Next, Outcome, Phase};
use super::{JobChange, JobError, Jobs};
use crate::store::{Claim, StateRecord, StoreError, StoredState};

impl Jobs {
    /// Changes a render. Goes on to its end even if the caller leaves.
    pub async fn change(&self, id: &str, change: JobChange) -> Result<RenderStatus, JobError> {
        let (jobs, id) = (self.clone(), id.to_owned());
        self.to_its_end(async move { jobs.make_change(&id, change).await }).await
    }

    async fn make_change(&self, id: &str, change: JobChange) -> Result<RenderStatus, JobError> {
        self.loaded().await;
        let unknown = || JobError::Unknown(id.to_owned());
        let changing = self.with(id, |e| e.changing.clone()).ok_or_else(unknown)?;
        let one_at_a_time = changing.lock().await;
        let claim = self.with(id, |e| e.session.as_ref()?.claim.clone()).flatten();
        if let Some(claim) = &claim {
            // What another has by now is that one's to change.
            let checked = self.0.store.check(claim).await;
            self.let_go_of_lost(id, &checked);
            if let Err(lost @ (StoreError::Superseded { .. } | StoreError::Removed(_))) = checked {
                return Err(lost.into());
            }
        }
        let refused = |state: RenderState, reason| JobError::State { id: id.to_owned(), state, reason };
        let made = self.update(id, |entry| {
            let effect = entry.phase.change(change).map_err(|reason| refused(entry.phase.state(), reason))?;
            if let JobChange::Priority(priority) = change {
                entry.priority = priority;
            }
            if !entry.phase.has_place() {
                entry.rest();
            }
            Ok::<_, JobError>((effect, entry.session.as_ref().map(|s| (s.ended.clone(), s.lane.clone()))))
        });
        let (effect, session) = made.ok_or_else(unknown)??;
        if effect == Effect::Nothing {
            return self.status(id).await.ok_or_else(unknown);
        }
        if let Some((mut ended, lane)) = session {
            self.tell_session(id, effect);
            if let (JobChange::Priority(priority), Some(lane)) = (change, lane) {
                lane.prioritise(priority).await;
            }
            if effect == Effect::Abort || claim.is_none() && effect == Effect::Leave {
                // Without its last word nobody can tell what became of it.
                let _ = ended.wait_for(|over| *over).await;
            }
        }
        let phase = self.with(id, |e| e.phase.clone()).ok_or_else(unknown)?;
        if change == JobChange::Cancel && phase != Phase::Ended(End::Cancelled) {
            let reason = "it had ended before it could be given up";
            return Err(refused(phase.state(), reason));
        }
        let stored = self.store_state(id, claim).await;
        drop(one_at_a_time);
        match stored {
            Ok(()) => {}
            Err(JobError::Store(error)) if matches!(error, StoreError::Store { .. }) => {
                self.0.tasks.spawn({
                    let (jobs, id) = (self.clone(), id.to_owned());
                    async move { jobs.store_surely(&id).await }
                });
                return Err(JobError::NotStored(error));
            }
            Err(error) => return Err(error),
        }
        self.0.changed.notify_one();
        self.status(id).await.ok_or_else(unknown)
    }

    /// Tells a session to leave or to end.
    fn tell_session(&self, id: &str, effect: Effect) {
        self.with(id, |entry| {
            let Some(session) = &entry.session else { return };
            match effect {
                Effect::Leave => session.stop.cancel(),
                Effect::Abort => session.abort.abort(),
                Effect::Nothing | Effect::Store => {}
            }
        });
    }

    /// Another coordinator has it, or it was removed: its session ends, and it rests here.
    fn let_go_of_lost(&self, id: &str, checked: &Result<(), StoreError>) {
        let Err(lost @ (StoreError::Superseded { .. } | StoreError::Removed(_))) = checked else { return };
        tracing::error!(id, error = %lost, "a render is given up here");
        let reason = lost.to_string();
        self.update(id, |entry| match &entry.session {
            Some(session) => {
                session.abort.abort();
                entry.phase = Phase::Leaving(Next::Lost(reason));
            }
            None => entry.phase = Phase::Paused { reason, elsewhere: true },
        });
    }

    /// What follows when a session has ended.
    pub(super) async fn session_ended(&self, id: &str, outcome: Outcome) {
        tracing::info!(id, ?outcome, "a render's session ends");
        let is_stored = matches!(outcome, Outcome::Failed(_) | Outcome::Stuck(_));
        self.update(id, |entry| {
            entry.phase.session_ended(outcome);
            entry.rest();
        });
        if is_stored {
            self.store_beside(id);
        }
    }

    /// Stores a render's state beside, when nobody waits for it.
    pub(super) fn store_beside(&self, id: &str) {
        let (jobs, id) = (self.clone(), id.to_owned());
        self.0.tasks.spawn(async move {
            let Some(changing) = jobs.with(&id, |e| e.changing.clone()) else { return };
            let _one_at_a_time = changing.lock().await;
            jobs.store_surely(&id).await;
        });
    }

    /// Writes a render's state to the store, with its session's claim or one of its own. The caller sees to it that
    /// it is the only one.
    async fn store_state(&self, id: &str, claim: Option<Claim>) -> Result<(), JobError> {
        let store = &self.0.store;
        let is_lost =
            |p: &Phase| matches!(p, Phase::Paused { elsewhere: true, .. } | Phase::Leaving(Next::Lost(_)));
        let now = self.with(id, |e| (e.state_record(), is_lost(&e.phase)));
        let Some((state, is_elsewhere)) = now else { return Ok(()) };
        if is_elsewhere {
            return Ok(());
        }
        let stored = match claim {
            Some(claim) => {
                let stored = store.set_state(id, &claim, &state).await;
                if stored.is_ok() && state.state == StoredState::Cancelled {
                    self.tidy(id.to_owned(), claim, state);
                }
                stored
            }
            None => self.claim_and_store(id, &state).await?,
        };
        self.let_go_of_lost(id, &stored);
        Ok(stored?)
    }

    /// The same for a render without a session.
    async fn claim_and_store(
        &self,
        id: &str,
        state: &StateRecord,
    ) -> Result<Result<(), StoreError>, JobError> {
        let store = &self.0.store;
        if store.read(id).await?.is_none() {
            self.book().remove(id);
            return Err(StoreError::Removed(format!("render {id}")).into());
        }
        let claim = store.claim(id, &self.0.options.owner).await?;
        let Some(stored) = store.read(id).await? else {
            self.book().remove(id);
            return Err(StoreError::Removed(format!("render {id}")).into());
        };
        let ended = matches!(stored.state.state, StoredState::Done | StoredState::Cancelled);
        if ended && stored.state.state != state.state {
            // Somebody else has brought it to its end.
            let now = stored.state.state.into();
            self.update(id, |entry| entry.adopt(stored.state));
            return match state.state {
                // What was wanted is that it goes on.
                StoredState::Queued => Ok(Ok(())),
                _ => Err(JobError::State { id: id.to_owned(), state: now, reason: "it has ended elsewhere" }),
            };
        }
        let set = store.set_state(id, &claim, state).await;
        if set.is_ok() && state.state == StoredState::Cancelled {
            self.tidy(id.to_owned(), claim, state.clone());
        }
        Ok(set)
    }

    /// Removes what nobody goes on from, beside.
    pub(super) fn tidy(&self, id: String, claim: Claim, state: StateRecord) {
        let (store, stopping) = (self.0.store.clone(), self.0.stopping.clone());
        self.0.tasks.spawn(async move {
            let tidied = tokio::select! {
                tidied = store.tidy(&id, &claim, state) => tidied,
                // The next start finds what is left.
                () = stopping.cancelled() => return,
            };
            if let Err(error) = tidied {
                tracing::warn!(id, %error, "the checkpoints of a render that has ended are left behind");
            }
        });
    }

    /// Writes a render's state where nobody waits to hear of a failure: tried until it is done, or the coordinator
    /// ends.
    async fn store_surely(&self, id: &str) {
        for pause in [1, 5, 20].into_iter().chain(std::iter::repeat(60)) {
            match self.store_state(id, None).await {
                Err(JobError::Store(error @ StoreError::Store { .. })) => {
                    tracing::warn!(id, %error, retry_in = pause, "a state could not be stored");
                }
                _ => return,
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(pause)) => {}
                () = self.0.stopping.cancelled() => return,
            }
        }
    }

    /// Removes a render that has ended, and everything of it.
    pub async fn remove(&self, id: &str) -> Result<(), JobError> {
        self.loaded().await;
        let unknown = || JobError::Unknown(id.to_owned());
        let changing = self.with(id, |e| e.changing.clone()).ok_or_else(unknown)?;
        let _one_at_a_time = changing.lock().await;
        let phase = self.with(id, |e| e.phase.clone()).ok_or_else(unknown)?;
        if !phase.has_ended() {
            let reason = "cancel it first";
            return Err(JobError::State { id: id.to_owned(), state: phase.state(), reason });
        }
        let (store, id_there) = (self.0.store.clone(), id.to_owned());
        let removing = AbortOnDropHandle::new(tokio::spawn(async move { store.remove(&id_there).await }));
        removing.await.map_err(|e| JobError::Bug(e.to_string()))??;
        self.book().remove(id);
        Ok(())
    }
}
