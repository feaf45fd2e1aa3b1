//! What can be read of renders beside their statuses. Changes nothing.

use std::collections::BTreeMap;

use gigasmith_proto::domain::RenderState;

use super::entry::Entry;
use super::{JobError, Jobs};
use crate::output::Kind;
use crate::request::RenderRequest;
use crate::spec::RenderSpec;
use crate::store::{PictureFile, RenderRecord};

/// What is known of a render beside its status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Beside {
    /// Patches of all its stages; 0 until they are counted.
    pub patches_all: u64,
    /// It waits for the store.
    pub store_away: bool,
}

impl Jobs {
    /// Looks at a render that must be done.
    pub(super) fn done<T>(&self, id: &str, look: impl FnOnce(&Entry) -> T) -> Result<T, JobError> {
        let entries = self.entries();
        let entry = entries.get(id).ok_or_else(|| JobError::Unknown(id.to_owned()))?;
        if entry.state != RenderState::Done {
            let reason = "there is nothing to fetch until it is done; `gigasmith watch` follows it";
            return Err(JobError::State { id: id.to_owned(), state: entry.state, reason });
        }
        Ok(look(entry))
    }

    /// The picture of a finished render, to be read in parts; `None`: it is Deep Zoom, which is many files.
    pub async fn picture_file(&self, id: &str) -> Result<Option<PictureFile>, JobError> {
        let unique = self.done(id, |e| unique(&e.record))?;
        if let Some(file) = self.0.store.picture_file(id, &unique).await? {
            return Ok(Some(file));
        }
        let reason = "its result is no longer in the store";
        match self.0.store.result_kind(id).await? {
            Some(Kind::Dzi) => Ok(None),
            _ => Err(JobError::State { id: id.to_owned(), state: RenderState::Done, reason }),
        }
    }

    /// What was asked for, and what it was settled to, once the model is known.
    pub fn settings(&self, id: &str) -> Result<(RenderRequest, Option<RenderSpec>), JobError> {
        let entries = self.entries();
        let found = entries.get(id).map(|e| (e.record.request.clone(), e.spec.clone()));
        found.ok_or_else(|| JobError::Unknown(id.to_owned()))
    }

    /// What the statuses do not say.
    pub fn beside(&self) -> BTreeMap<String, Beside> {
        let beside = |e: &Entry| Beside { patches_all: e.patches_all, store_away: e.store_away };
        self.entries().iter().map(|(id, entry)| (id.clone(), beside(entry))).collect()
    }
}

/// What is unique about a render: two of one name, one after the other, differ in it.
pub(super) fn unique(record: &RenderRecord) -> String {
    format!("{} {}", record.id, record.nonce)
}
