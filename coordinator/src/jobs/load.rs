//! What the store has: read beside everything else, so that a coordinator answers at once however much there is.

use std::sync::Arc;
use std::time::Duration;

use gigasmith_proto::domain::ModelDescription;

use super::entry::{Entry, Trouble};
use super::phase::{End, Phase};
use super::{JobError, Jobs, choose_model};
use crate::request::resolve;
use crate::spec::RenderSpec;
use crate::store::{RenderRecord, StateRecord, StoreError, StoredState, Summary};

/// Between two attempts to read the store.
const RETRY: Duration = Duration::from_secs(5);
/// How often it is looked for renders that were removed by others.
const SWEEP: Duration = Duration::from_secs(30);

impl Jobs {
    /// Reads the renders of the store, then drops those that are removed from it.
    pub(super) async fn load(&self) {
        let mut untidy = Vec::new();
        loop {
            match self.until_stopped(self.0.store.index()).await {
                None => return,
                Some(Ok(indexed)) => {
                    let mut book = self.book();
                    let known = book.ids();
                    // One that was submitted meanwhile is newer than the listing.
                    for one in indexed.into_iter().filter(|one| !known.contains(&one.id)) {
                        let ended = matches!(one.state.state, StoredState::Done | StoredState::Cancelled);
                        if ended && !one.state.tidied {
                            let summary = Some(one.summary.clone());
                            untidy.push((one.id.clone(), StateRecord { summary, ..one.state.clone() }));
                        }
                        book.insert(Entry::indexed(one));
                    }
                    let unfinished = book.unfinished().count();
                    drop(book);
                    if unfinished > 0 {
                        tracing::info!(unfinished, "renders are taken up from the store");
                    }
                    break;
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, retry_in = ?RETRY, "the renders of the store cannot be listed yet");
                    if self.until_stopped(tokio::time::sleep(RETRY)).await.is_none() {
                        return;
                    }
                }
            }
        }
        self.0.loaded.send_replace(true);
        self.0.changed.notify_one();
        for (id, state) in untidy {
            self.tidy_left(id, state).await;
        }
        while self.until_stopped(tokio::time::sleep(SWEEP)).await.is_some() {
            self.sweep().await;
        }
    }

    /// Removes the checkpoints of a render that has ended, should a crash have left some.
    async fn tidy_left(&self, id: String, state: StateRecord) {
        match self.until_stopped(self.0.store.claim(&id, &self.0.options.owner)).await {
            Some(Ok(claim)) => self.tidy(id, claim, state),
            Some(Err(error)) => tracing::debug!(id, %error, "a render is tidied at the next start"),
            None => {}
        }
    }

    /// Drops renders that somebody else has removed from the store.
    async fn sweep(&self) {
        let before: Vec<String> = self.book().ended(None).map(|e| e.id.clone()).collect();
        if before.is_empty() {
            return;
        }
        let Some(Ok(there)) = self.until_stopped(self.0.store.ids()).await else { return };
        let there: std::collections::BTreeSet<String> = there.into_iter().collect();
        for id in before.iter().filter(|id| !there.contains(*id)) {
            // It may have come again since.
            if self.with(id, |e| e.phase.has_ended()) == Some(true) {
                tracing::info!(id, "a render was removed from the store");
                self.book().remove(id);
            }
        }
    }

    /// `None`: the coordinator ends.
    pub(super) async fn until_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.0.stopping.cancelled() => None,
        }
    }

    /// Whether the store's renders are known.
    pub fn is_loaded(&self) -> bool {
        *self.0.loaded.borrow()
    }

    /// Waits until the store's renders are known, or the coordinator ends.
    pub(super) async fn loaded(&self) {
        let mut loaded = self.0.loaded.subscribe();
        self.until_stopped(loaded.wait_for(|loaded| *loaded)).await;
    }

    /// Reads what is needed to run of renders that wait, and settles those whose model has come.
    pub(super) fn prepare_queued(&self) {
        let roster = self.0.farm.roster();
        let mut due = Vec::new();
        self.book().for_unfinished(|entry| {
            let model = entry.record.as_ref().and_then(|r| choose_model(&roster, &r.request));
            let wants = entry.record.is_none() || entry.spec.is_none() && model.is_some();
            if wants && !entry.is_prepared && entry.phase == Phase::Queued {
                entry.is_prepared = true;
                due.push((entry.id.clone(), entry.record.clone(), model));
            }
        });
        for (id, record, model) in due {
            let jobs = self.clone();
            self.0.tasks.spawn(async move { jobs.prepare(&id, record, model).await });
        }
    }

    async fn prepare(
        &self,
        id: &str,
        record: Option<Arc<RenderRecord>>,
        model: Option<Arc<ModelDescription>>,
    ) {
        let (jobs, named) = (self.clone(), id.to_owned());
        // In a task of its own: whatever a request does to us, the others go on.
        let preparing = tokio::spawn(async move {
            match (record, model) {
                (Some(record), Some(model)) => jobs.settle(&record, &model).await,
                _ => jobs.read(&named).await,
            }
        });
        let prepared = preparing.await.unwrap_or_else(|e| Err(JobError::Bug(e.to_string())));
        match prepared {
            Ok(()) => {}
            Err(JobError::Store(error @ StoreError::Store { .. })) => {
                // The store may come back: the render waits.
                tracing::warn!(id, %error, "a render cannot be settled yet");
                self.update(id, |entry| entry.trouble = Some(Trouble::of(&error)));
                self.until_stopped(tokio::time::sleep(RETRY)).await;
            }
            Err(error) => {
                self.update(id, |entry| {
                    // A person may have changed it meanwhile.
                    if entry.phase == Phase::Queued {
                        entry.phase = Phase::Ended(End::Failed(error.to_string()));
                        entry.rest();
                    }
                });
                self.store_beside(id);
            }
        }
        self.update(id, |entry| entry.is_prepared = false);
        self.0.changed.notify_one();
    }

    /// Reads a render's request and settings.
    async fn read(&self, id: &str) -> Result<(), JobError> {
        let Some(stored) = self.0.store.read(id).await? else {
            self.book().remove(id);
            return Ok(());
        };
        self.update(id, |entry| {
            entry.summary = Summary::of(&stored.record, stored.spec.as_ref());
            entry.record = Some(Arc::new(stored.record));
            entry.spec = stored.spec.map(Arc::new);
            entry.trouble = None;
        });
        Ok(())
    }

    async fn settle(&self, record: &RenderRecord, model: &ModelDescription) -> Result<(), JobError> {
        let facts = self.0.store.facts(record).await?;
        let resolved = resolve(&record.request, &facts, model)?;
        let spec: RenderSpec = self.0.store.settle(&record.id, &resolved.spec).await?;
        self.update(&record.id, |entry| entry.settle(spec, resolved.warnings));
        Ok(())
    }
}
