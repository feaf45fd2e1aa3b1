//! Submissions under one key follow one another, so that the second finds what the first made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use gigasmith_proto::domain::Identifier;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

type Locks = HashMap<Identifier, Arc<AsyncMutex<()>>>;

/// The keys of submissions under way.
#[derive(Debug, Default)]
pub(super) struct Keys(Mutex<Locks>);

/// While it lives nobody else submits under the key.
pub(super) struct Alone<'a> {
    keys: &'a Keys,
    key: Identifier,
    _held: OwnedMutexGuard<()>,
}

impl Keys {
    pub(super) async fn alone(&self, key: Identifier) -> Alone<'_> {
        let lock = self.locks().entry(key).or_default().clone();
        Alone { keys: self, key, _held: lock.lock_owned().await }
    }

    fn locks(&self) -> MutexGuard<'_, Locks> {
        self.0.lock().expect("no holder panics")
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let mut locks = self.keys.locks();
        // The map's own and ours: nobody waits.
        if locks.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) <= 2) {
            locks.remove(&self.key);
        }
    }
}
