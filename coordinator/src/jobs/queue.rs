//! Whose turn it is.
//!
//! Pure, `now` is an argument. There are so many places as `--active` says, and never more renders that hold one: a
//! started render takes memory. Places go by priority, then in the order of submission. A render takes part when a
//! worker with its model is there; one that outranks all places by priority takes that of the lowest, which leaves
//! with a checkpoint and waits for its turn again. A render whose workers have gone keeps its place for a moment, for
//! they may be back, and then only while nobody else could use it. Among those that run the farm's tasks are shared by
//! work done (`farm/table/share.rs`); places are not taken from an equal, because every change costs a checkpoint, and
//! finishing one after the other gives each picture sooner than all of them at the end.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

/// How long workers that have gone are waited for.
pub(super) const GRACE: Duration = Duration::from_secs(15);

/// A render that has not ended and is not held back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) id: &'a str,
    /// Higher goes first.
    pub(super) priority: i32,
    /// Position among all renders: lower goes first.
    pub(super) order: u64,
    /// Whether it has a place.
    pub(super) has_place: bool,
    /// Whether it is told to leave it.
    pub(super) leaves: bool,
    /// Since when no worker can do its tasks; `None`: one can.
    pub(super) unfit: Option<Instant>,
}

impl<'a> Candidate<'a> {
    fn rank(&self) -> (Reverse<i32>, u64, &'a str) {
        (Reverse(self.priority), self.order, self.id)
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision<'a> {
    /// Gets a place.
    Start(&'a str),
    /// Leaves its place, after a checkpoint.
    Leave(&'a str),
}

/// What is to be done now.
pub(super) fn decide<'a>(candidates: &[Candidate<'a>], places: usize, now: Instant) -> Vec<Decision<'a>> {
    let mut waiting: Vec<_> = candidates.iter().filter(|c| !c.has_place && c.unfit.is_none()).collect();
    waiting.sort_by_key(|c| c.rank());
    let (mut held, leaving): (Vec<_>, Vec<_>) =
        candidates.iter().filter(|c| c.has_place).partition(|c| !c.leaves);
    let free = places.saturating_sub(held.len() + leaving.len());
    let mut decisions: Vec<_> = waiting.iter().take(free).map(|c| Decision::Start(c.id)).collect();
    // Those that must give way first: without workers, then the lowest.
    let is_gone = |c: &Candidate<'_>| c.unfit.is_some_and(|since| now.duration_since(since) >= GRACE);
    held.sort_by_key(|c| (Reverse(is_gone(c)), Reverse(c.rank())));
    let mut held = held.into_iter();
    // Places that are about to be free are for the first of those that still wait.
    for outranking in waiting.iter().skip(free + leaving.len()) {
        match held.next() {
            Some(gone) if is_gone(&gone) || gone.priority < outranking.priority => {
                decisions.push(Decision::Leave(gone.id));
            }
            _ => break,
        }
    }
    decisions
}

#[cfg(test)]
#[path = "queue_simulation.rs"]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(id: &str, order: u64, priority: i32) -> Candidate<'_> {
        Candidate { id, priority, order, has_place: false, leaves: false, unfit: None }
    }

    fn runs(id: &str, order: u64, priority: i32) -> Candidate<'_> {
        Candidate { has_place: true, ..waits(id, order, priority) }
    }

    #[test]
    fn places_go_by_priority_then_by_order_and_are_never_more() {
        let now = Instant::now();
        let all = [waits("a", 1, 0), waits("b", 2, 5), waits("c", 3, 5), waits("d", 4, 0)];
        let start = |ids: &[&'static str]| ids.iter().map(|id| Decision::Start(id)).collect::<Vec<_>>();
        assert_eq!(decide(&all, 1, now), start(&["b"]));
        assert_eq!(decide(&all, 3, now), start(&["b", "c", "a"]));
        let all = [waits("a", 1, 0), runs("b", 2, 5), waits("c", 3, 5), waits("d", 4, 0)];
        assert_eq!(decide(&all, 1, now), [], "an equal takes no place");
        assert_eq!(decide(&all, 2, now), start(&["c"]));
    }

    #[test]
    fn who_outranks_takes_the_lowest_place_once() {
        let now = Instant::now();
        let all = [runs("a", 1, 0), runs("b", 2, 1), waits("c", 3, 9), waits("d", 4, 1)];
        assert_eq!(decide(&all, 2, now), [Decision::Leave("a")]);
        let left = Candidate { leaves: true, ..runs("a", 1, 0) };
        let all = [left, runs("b", 2, 1), waits("c", 3, 9), waits("d", 4, 1)];
        assert_eq!(decide(&all, 2, now), [], "a place is about to be free");
    }

    #[test]
    fn who_has_no_workers_gives_way_after_a_moment_and_only_to_somebody() {
        let now = Instant::now();
        let gone = |since| Candidate { unfit: Some(since), ..runs("a", 1, 9) };
        assert_eq!(decide(&[gone(now), waits("b", 2, 0)], 1, now), []);
        let later = now + GRACE;
        assert_eq!(decide(&[gone(now), waits("b", 2, 0)], 1, later), [Decision::Leave("a")]);
        assert_eq!(decide(&[gone(now)], 1, later), []);
        let unfit = Candidate { unfit: Some(now), ..waits("b", 2, 0) };
        assert_eq!(decide(&[gone(now), unfit], 1, later), []);
    }
}
