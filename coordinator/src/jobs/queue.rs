//! Whose turn it is.
//!
//! Pure. Renders are served by priority, then in the order they were submitted. A bounded number is
//! started at a time, because a started render takes memory; one that outranks those is started beside
//! them, up to twice the number, and the others keep what they have and wait for its workers. Renders
//! that wait for a model or for a person don't count towards the first number.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use gigasmith_proto::domain::RenderState;

use super::entry::Entry;
use crate::spec::RenderSpec;

fn rank(entry: &Entry) -> (Reverse<i32>, u64, &str) {
    (Reverse(entry.priority), entry.record.order, &entry.record.id)
}

/// How many unfinished renders are served before each unfinished one.
pub(super) fn ranks<'a>(entries: impl Iterator<Item = &'a Entry>) -> BTreeMap<String, usize> {
    let mut unfinished: Vec<&Entry> = entries.filter(|e| !e.state.is_final()).collect();
    unfinished.sort_by_key(|e| rank(e));
    unfinished.into_iter().enumerate().map(|(i, e)| (e.record.id.clone(), i)).collect()
}

/// Ids of the renders to start now: those among the first `active` whose model is there (`has_model`) and
/// that are not started.
pub(super) fn due<'a>(
    entries: impl Iterator<Item = &'a Entry>,
    active: usize,
    has_model: impl Fn(&RenderSpec) -> bool,
) -> Vec<String> {
    let can_run = |e: &&Entry| match e.state {
        RenderState::Running => true,
        RenderState::Queued => e.spec.as_ref().is_some_and(&has_model),
        _ => false,
    };
    let entries: Vec<&Entry> = entries.collect();
    let started = entries.iter().filter(|e| e.runner.is_some()).count();
    let room = (2 * active).saturating_sub(started);
    let mut runnable: Vec<&Entry> = entries.into_iter().filter(can_run).collect();
    runnable.sort_by_key(|e| rank(e));
    let first = runnable.into_iter().take(active);
    first.filter(|e| e.state == RenderState::Queued).map(|e| e.record.id.clone()).take(room).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::JobChange;
    use crate::request::RenderRequest;
    use crate::store::{RenderRecord, StateRecord, StoreError, Stored, VERSION};

    fn entry(id: &str, order: u64, priority: i32) -> Entry {
        let request = RenderRequest::default();
        let id = id.to_owned();
        let (picture, plan) = (None, None);
        let record = RenderRecord {
            version: VERSION,
            id,
            nonce: String::new(),
            order,
            request,
            priority,
            picture,
            plan,
        };
        let state = StateRecord::queued(priority);
        Entry::stored(Stored { record, spec: Some(crate::spec::tests::spec()), state })
    }

    #[test]
    fn the_first_by_priority_then_by_order_are_started() {
        let mut entries = [entry("a", 1, 0), entry("b", 2, 5), entry("c", 3, 5), entry("d", 4, 0)];
        let due = |entries: &[Entry], active| due(entries.iter(), active, |_| true);
        assert_eq!(due(&entries, 1), ["b"]);
        assert_eq!(due(&entries, 3), ["b", "c", "a"]);
        entries[1].state = RenderState::Running;
        assert!(due(&entries, 1).is_empty(), "one is started already");
        assert_eq!(due(&entries, 2), ["c"]);
        entries[3].priority = 9;
        assert_eq!(due(&entries, 1), ["d"], "a higher one is started beside it");
        entries[1].change(JobChange::Pause).unwrap();
        assert_eq!(due(&entries, 2), ["d", "c"], "a paused one takes no place");
        assert_eq!(ranks(entries.iter())["a"], 3);
    }

    #[test]
    fn a_store_that_is_away_is_told_from_other_trouble() {
        let mut one = entry("a", 1, 0);
        let away =
            || object_store::Error::NotImplemented { operation: "get".into(), implementer: "x".into() };
        one.troubled(&StoreError::Store { path: "renders/a".into(), source: away() });
        assert!(one.store_away && one.trouble.contains("renders/a"));
        one.troubled(&StoreError::Scratch(std::io::Error::other("the disk is full")));
        assert!(!one.store_away && one.trouble.contains("full"));
        one.troubled(&StoreError::Store { path: "renders/a".into(), source: away() });
        one.untroubled();
        assert!(!one.store_away && one.trouble.is_empty());
        one.troubled(&StoreError::Store { path: "renders/a".into(), source: away() });
        one.end(RenderState::Cancelled, String::new());
        assert!(!one.store_away, "what has ended waits for nothing");
    }

    #[test]
    fn all_patches_are_those_of_every_stage() {
        let mut one = entry("a", 1, 0);
        let size = crate::sampler::units::ImageSize { width: 512, height: 512 };
        let begin = |stage, patches, done| crate::render::StageBegin { stage, total: 3, size, patches, done };
        let per_stage = [30, 120, 480];
        for (stage, patches, done, left) in [(0, 30, 0, 630), (1, 120, 20, 580), (2, 480, 480, 0)] {
            one.stage(begin(stage, patches, done), &per_stage);
            assert_eq!((one.patches_all, one.progress.patches_left), (630, left));
        }
    }

    #[test]
    fn renders_without_their_model_take_no_place() {
        let mut entries = [entry("a", 1, 0), entry("b", 2, 0)];
        entries[0].spec = None;
        assert_eq!(due(entries.iter(), 1, |_| true), ["b"]);
        assert!(due(entries.iter(), 1, |_| false).is_empty());
    }
}
