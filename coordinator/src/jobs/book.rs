//! All renders by id, with those that have not ended apart, so that what is asked often does not cost what was made
//! long ago.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::sync::watch;

use super::entry::Entry;

/// Removals that are remembered.
const REMOVALS: usize = 1000;

/// What has changed since a version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The version now.
    pub version: u64,
    /// Renders that changed.
    pub changed: Vec<String>,
    /// Renders that are gone.
    pub removed: Vec<String>,
    /// The version is too old: everything may have changed.
    pub all: bool,
}

/// All renders.
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: BTreeMap<String, Entry>,
    /// Ids by nonce.
    nonces: BTreeMap<String, String>,
    unfinished: BTreeSet<String>,
    /// By order.
    ended: BTreeSet<(u64, String)>,
    /// Who changed at which version.
    changes: BTreeMap<u64, String>,
    removals: VecDeque<(u64, String)>,
    /// Removals up to this version are forgotten.
    forgotten: u64,
    last_order: u64,
    version: watch::Sender<u64>,
}

impl Book {
    pub(super) fn get(&self, id: &str) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// The render whose submission had this nonce.
    pub(super) fn of_nonce(&self, nonce: &str) -> Option<String> {
        self.nonces.get(nonce).cloned()
    }

    /// Renders that have not ended.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = &Entry> {
        self.unfinished.iter().filter_map(|id| self.entries.get(id))
    }

    /// The same, for what is no change that anybody is told of.
    pub(super) fn for_unfinished(&mut self, mut work: impl FnMut(&mut Entry)) {
        self.unfinished.iter().for_each(|id| self.entries.get_mut(id).into_iter().for_each(&mut work));
    }

    pub(super) fn ids(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// Those that have ended, the newest first, below a position.
    pub(super) fn ended(&self, before: Option<(u64, String)>) -> impl Iterator<Item = &Entry> {
        let below = before.unwrap_or((u64::MAX, String::new()));
        self.ended.range(..below).rev().filter_map(|(_, id)| self.entries.get(id))
    }

    pub(super) fn count_ended(&self) -> usize {
        self.ended.len()
    }

    /// The position after all others, and not before `least`.
    pub(super) fn next_order(&mut self, least: u64) -> u64 {
        self.last_order = least.max(self.last_order + 1);
        self.last_order
    }

    pub(super) fn insert(&mut self, entry: Entry) -> Option<Entry> {
        let id = entry.id.clone();
        self.last_order = self.last_order.max(entry.summary.order);
        let before = self.take(&id);
        self.nonces.insert(entry.summary.nonce.clone(), id.clone());
        self.entries.insert(id.clone(), entry);
        self.touch(&id);
        before
    }

    fn take(&mut self, id: &str) -> Option<Entry> {
        let entry = self.entries.remove(id)?;
        self.unfinished.remove(id);
        self.nonces.remove(&entry.summary.nonce);
        self.ended.remove(&(entry.summary.order, id.to_owned()));
        self.changes.remove(&entry.changed);
        Some(entry)
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Entry> {
        let entry = self.take(id)?;
        let version = self.next_version();
        self.removals.push_back((version, id.to_owned()));
        if self.removals.len() > REMOVALS
            && let Some((forgotten, _)) = self.removals.pop_front()
        {
            self.forgotten = forgotten;
        }
        Some(entry)
    }

    /// Changes an entry and tells those who watch.
    pub(super) fn update<T>(&mut self, id: &str, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let done = change(self.entries.get_mut(id)?);
        self.touch(id);
        Some(done)
    }

    fn next_version(&self) -> u64 {
        self.version.send_modify(|v| *v += 1);
        *self.version.borrow()
    }

    fn touch(&mut self, id: &str) {
        let version = self.next_version();
        let Some(entry) = self.entries.get_mut(id) else { return };
        self.changes.remove(&std::mem::replace(&mut entry.changed, version));
        let (order, has_ended) = (entry.summary.order, entry.phase.has_ended());
        self.changes.insert(version, id.to_owned());
        match has_ended {
            true => {
                self.unfinished.remove(id);
                self.ended.insert((order, id.to_owned()));
            }
            false => {
                self.ended.remove(&(order, id.to_owned()));
                self.unfinished.insert(id.to_owned());
            }
        }
    }

    pub(super) fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(super) fn changes(&self, since: u64) -> Changes {
        let changed = self.changes.range(since + 1..).map(|(_, id)| id.clone()).collect();
        let removed = self.removals.iter().filter(|(v, _)| *v > since).map(|(_, id)| id.clone()).collect();
        Changes { version: *self.version.borrow(), changed, removed, all: since < self.forgotten }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::entry;
    use super::super::phase::{End, Phase};
    use super::*;

    #[test]
    fn changes_are_told_once_and_ended_ones_come_in_pages() {
        let mut book = Book::default();
        for (i, id) in ["a", "b", "c"].into_iter().enumerate() {
            book.insert(entry(id, i as u64, 0));
        }
        let seen = book.changes(0);
        assert_eq!(seen.changed, ["a", "b", "c"]);
        assert_eq!(book.changes(seen.version).changed, [""; 0]);
        for id in ["a", "c", "a"] {
            book.update(id, |e| e.phase = Phase::Ended(End::Done));
        }
        let now = book.changes(seen.version);
        assert_eq!(now.changed, ["c", "a"], "each once, as they last changed");
        assert_eq!(book.unfinished().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["b"]);
        let ids = |before| book.ended(before).map(|e| e.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(None), ["c", "a"]);
        assert_eq!(ids(Some((2, "c".into()))), ["a"]);
        book.remove("c");
        assert_eq!(book.changes(now.version).removed, ["c"]);
        assert_eq!((book.count_ended(), book.ids()), (1, vec!["a".to_owned(), "b".to_owned()]));
        for _ in 0..REMOVALS {
            book.insert(entry("d", 9, 0));
            book.remove("d");
        }
        assert!(book.changes(now.version).all && !book.changes(now.version + 10).all);
    }
}
