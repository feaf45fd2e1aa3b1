//! Which patches must be done before which: one graph over all steps of a stage, without barriers.
//!
//! - A patch of step s+1 *starts* after every patch of step s that its window overlaps.
//! - Where windows read what earlier windows of the same step wrote (plan `paper`, guided steps but
//!   the first), a patch also starts after every earlier overlapping patch of its step.
//! - Results are *committed* in plan order where windows of a step overlap, whatever order they
//!   come in; one that comes early is held.
//! - Whoever drives says how many patches may be *open* (taken, and not committed): results that are
//!   held take memory, and one slow patch would let those of a whole step pile up.
//!
//! Invariant: following these rules gives the bytes of running the patches one by one in plan order.
//! What a patch reads is fixed when it starts, and no later patch that touches those pixels can have
//! been committed, because it waits for this one.
//!
//! Invariant: no bound on open patches stops a run. Edges lead from smaller to larger ids, so whatever the
//! first uncommitted patch waits for is committed: it may start, and its result is committed at once, never
//! held. It is handed out whatever the bound is; so something is under way, or can start, until all is done.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use super::patch_set::PatchSet;
use super::plan::{Plan, PlanKind};
use super::units::{PatchId, Step, Window};

/// A set of committed patches that no run can have left: one of them stands on one that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("patch {} is committed, but one that it stands on is not", .0.0)]
pub struct Unfounded(pub PatchId);

/// Lists of patches, one per patch, stored flat.
#[derive(Debug, Default)]
struct Lists {
    ends: Vec<u32>,
    items: Vec<PatchId>,
}

impl Lists {
    fn from_edges(len: usize, edges: &[(PatchId, PatchId)]) -> Self {
        let mut ends = vec![0u32; len];
        edges.iter().for_each(|(from, _)| ends[from.index()] += 1);
        let mut total = 0;
        for end in &mut ends {
            total += *end;
            *end = total;
        }
        // Filled from the back, so that each `end` moves to its list's start and then stays known.
        let mut starts = ends.clone();
        let mut items = vec![PatchId(0); edges.len()];
        for &(from, to) in edges.iter().rev() {
            starts[from.index()] -= 1;
            items[starts[from.index()] as usize] = to;
        }
        Self { ends, items }
    }

    fn of(&self, id: PatchId) -> &[PatchId] {
        let start = if id.0 == 0 { 0 } else { self.ends[id.index() - 1] };
        &self.items[start as usize..self.ends[id.index()] as usize]
    }
}

/// The dependencies of a stage's patches.
#[derive(Debug)]
pub struct Graph {
    /// Patches that may start only after this one is committed.
    unblocks_start: Lists,
    /// Patches that may be committed only after this one is.
    unblocks_commit: Lists,
    /// Earlier overlapping patches of the same step.
    earlier: Lists,
    starts_after: Vec<u32>,
    commits_after: Vec<u32>,
}

impl Graph {
    /// The graph of a plan with `slider` guided steps.
    pub fn new(plan: &Plan, slider: usize) -> Self {
        let (mut start, mut commit, mut earlier) = (Vec::new(), Vec::new(), Vec::new());
        let mut below = Buckets::default();
        for step in 0..plan.steps() {
            let mut here = Buckets::default();
            let reads_step = reads_within_step(plan.kind(), Step(step as u32), slider);
            for (id, _) in plan.step(Step(step as u32)) {
                let window = plan.window(id);
                below.overlapping(window, |other| start.push((other, id)));
                here.overlapping(window, |other| {
                    earlier.push((id, other));
                    if reads_step {
                        start.push((other, id));
                    } else {
                        commit.push((other, id));
                    }
                });
                here.insert(window, id);
            }
            below = here;
        }
        let count = |edges: &[(PatchId, PatchId)]| {
            let mut counts = vec![0u32; plan.len()];
            edges.iter().for_each(|(_, to)| counts[to.index()] += 1);
            counts
        };
        Self {
            starts_after: count(&start),
            commits_after: count(&commit),
            unblocks_start: Lists::from_edges(plan.len(), &start),
            unblocks_commit: Lists::from_edges(plan.len(), &commit),
            earlier: Lists::from_edges(plan.len(), &earlier),
        }
    }

    /// The earlier patches of the same step whose windows overlap this one's, in plan order.
    pub fn earlier(&self, id: PatchId) -> &[PatchId] {
        self.earlier.of(id)
    }
}

/// Whether the patches of a step read what earlier patches of that step wrote.
pub fn reads_within_step(kind: PlanKind, step: Step, slider: usize) -> bool {
    kind == PlanKind::Paper && (1..slider).contains(&step.index())
}

/// Windows by the window-sized cells they touch, so that overlaps are found without comparing all.
#[derive(Debug, Default)]
struct Buckets {
    cells: BTreeMap<(usize, usize), Vec<(Window, PatchId)>>,
}

impl Buckets {
    fn cells_of(window: Window) -> impl Iterator<Item = (usize, usize)> {
        let rows = window.top / window.height..=(window.bottom() - 1) / window.height;
        let columns = window.left / window.width..=(window.right() - 1) / window.width;
        rows.flat_map(move |r| columns.clone().map(move |c| (r, c)))
    }

    fn insert(&mut self, window: Window, id: PatchId) {
        Self::cells_of(window).for_each(|cell| self.cells.entry(cell).or_default().push((window, id)));
    }

    /// Calls `found` once for each window that overlaps, in the order of their ids.
    fn overlapping(&self, window: Window, mut found: impl FnMut(PatchId)) {
        let mut ids: Vec<PatchId> = Self::cells_of(window)
            .filter_map(|cell| self.cells.get(&cell))
            .flatten()
            .filter(|(other, _)| window.intersection(*other).is_some())
            .map(|&(_, id)| id)
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().for_each(&mut found);
    }
}

/// Which patches can start now, which results wait for an earlier one, what is done.
#[derive(Debug)]
pub struct Frontier<R> {
    graph: Arc<Graph>,
    ready: BinaryHeap<Reverse<PatchId>>,
    starts_after: Vec<u32>,
    commits_after: Vec<u32>,
    under_way: BTreeSet<PatchId>,
    held: BTreeMap<PatchId, R>,
    committed: usize,
}

impl<R> Frontier<R> {
    /// Nothing is done yet.
    pub fn new(graph: Arc<Graph>) -> Self {
        let (starts_after, commits_after) = (graph.starts_after.clone(), graph.commits_after.clone());
        let free = starts_after.iter().enumerate().filter(|(_, n)| **n == 0);
        let ready = free.map(|(i, _)| Reverse(PatchId(i as u32))).collect();
        let (under_way, held) = (BTreeSet::new(), BTreeMap::new());
        Self { graph, ready, starts_after, commits_after, under_way, held, committed: 0 }
    }

    /// Where a run stood that had committed these patches.
    pub fn restore(graph: Arc<Graph>, committed: &PatchSet) -> Result<Self, Unfounded> {
        let mut frontier = Self::new(graph);
        let Self { graph, ready, starts_after, commits_after, .. } = &mut frontier;
        // Ascending order is an order in which they can have been committed.
        for id in committed.iter() {
            match (starts_after.get(id.index()), commits_after.get(id.index())) {
                (Some(0), Some(0)) => {}
                _ => return Err(Unfounded(id)),
            }
            graph.unblocks_commit.of(id).iter().for_each(|next| commits_after[next.index()] -= 1);
            graph.unblocks_start.of(id).iter().for_each(|next| starts_after[next.index()] -= 1);
        }
        let open = (0..).map(PatchId).zip(starts_after.iter()).filter(|(_, n)| **n == 0);
        *ready = open.map(|(id, _)| id).filter(|id| !committed.contains(*id)).map(Reverse).collect();
        frontier.committed = committed.len();
        Ok(frontier)
    }

    /// Takes the first patch, in plan order, whose input is final. While `most` patches are open, only
    /// one that comes before all that are under way: so no more than `most` + 1 are ever open.
    pub fn next_ready(&mut self, most: usize) -> Option<PatchId> {
        let &Reverse(id) = self.ready.peek()?;
        let may_start = self.open() < most || self.under_way.first().is_none_or(|first| id < *first);
        may_start.then(|| {
            self.ready.pop();
            self.under_way.insert(id);
            id
        })
    }

    /// Patches that are taken and not committed: under way, or held.
    pub fn open(&self) -> usize {
        self.under_way.len() + self.held.len()
    }

    /// Takes in a result and calls `commit` for every result that may be committed now, in an order
    /// that respects the plan's. Panics when the patch is not under way: the caller keeps to one result each.
    pub fn complete(&mut self, id: PatchId, result: R, mut commit: impl FnMut(PatchId, R)) {
        assert!(self.under_way.remove(&id), "a result belongs to a patch under way");
        self.held.insert(id, result);
        let mut open = if self.commits_after[id.index()] == 0 { vec![id] } else { Vec::new() };
        while let Some(id) = open.pop() {
            let Some(result) = self.held.remove(&id) else { continue };
            commit(id, result);
            self.committed += 1;
            for &next in self.graph.unblocks_commit.of(id) {
                self.commits_after[next.index()] -= 1;
                if self.commits_after[next.index()] == 0 && self.held.contains_key(&next) {
                    open.push(next);
                }
            }
            for &next in self.graph.unblocks_start.of(id) {
                self.starts_after[next.index()] -= 1;
                if self.starts_after[next.index()] == 0 {
                    self.ready.push(Reverse(next));
                }
            }
        }
    }

    /// Number of patches committed.
    pub fn committed(&self) -> usize {
        self.committed
    }

    /// Whether every patch is committed.
    pub fn is_done(&self) -> bool {
        self.committed == self.starts_after.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Geometry;
    use super::super::units::LatentSize;
    use super::*;

    #[test]
    fn overlaps_found_by_cells_are_all_overlaps() {
        let geometry = Geometry::new(LatentSize { height: 70, width: 45 }, 16);
        let plan = Plan::draw(PlanKind::Paper, geometry, 3, 9, 1);
        let graph = Graph::new(&plan, 2);
        for step in 0..3 {
            let ids: Vec<PatchId> = plan.step(Step(step)).map(|(id, _)| id).collect();
            for &id in &ids {
                let overlaps = |o: &&PatchId| plan.window(**o).intersection(plan.window(id)).is_some();
                let expected: Vec<PatchId> =
                    ids.iter().take_while(|o| **o < id).filter(overlaps).copied().collect();
                assert_eq!(graph.earlier(id), expected);
            }
        }
    }

    #[test]
    fn any_completion_order_commits_everything_in_plan_order_where_windows_overlap() {
        let geometry = Geometry::new(LatentSize { height: 48, width: 48 }, 16);
        for (kind, slider, seed) in
            [(PlanKind::Paper, 3, 1), (PlanKind::Balanced, 2, 2), (PlanKind::Paper, 0, 3)]
        {
            let plan = Plan::draw(kind, geometry, 4, seed, 1);
            let mut frontier = Frontier::new(Arc::new(Graph::new(&plan, slider)));
            let (mut flying, mut order) = (Vec::new(), Vec::new());
            while !frontier.is_done() {
                while let Some(id) = frontier.next_ready(usize::MAX) {
                    flying.push(id);
                }
                // Newest first: as far from plan order as the graph lets results come.
                let id = flying.pop().expect("something can always start");
                frontier.complete(id, (), |id, ()| order.push(id));
            }
            assert_eq!(order.len(), plan.len());
            for (i, &a) in order.iter().enumerate() {
                for &b in &order[i + 1..] {
                    let apart = plan.window(a).intersection(plan.window(b)).is_none();
                    assert!(a < b || apart, "{a:?} before {b:?}");
                }
            }
        }
    }

    #[test]
    fn one_slow_patch_lets_no_more_results_wait_than_the_bound() {
        let geometry = Geometry::new(LatentSize { height: 64, width: 64 }, 16);
        for (kind, slider) in [(PlanKind::Paper, 3), (PlanKind::Paper, 0), (PlanKind::Balanced, 2)] {
            let plan = Plan::draw(kind, geometry, 3, 5, 1);
            let graph = Arc::new(Graph::new(&plan, slider));
            for most in [1, 2, 7] {
                let mut frontier = Frontier::new(graph.clone());
                let (mut flying, mut fullest) = (BTreeSet::new(), 0);
                while !frontier.is_done() {
                    while let Some(id) = frontier.next_ready(most) {
                        flying.insert(id);
                        assert!(frontier.open() <= most + 1, "{} are open", frontier.open());
                    }
                    // The first one takes as long as there is anything else to do.
                    let id = flying.pop_last().expect("something is under way");
                    frontier.complete(id, (), |_, ()| ());
                    fullest = fullest.max(frontier.held.len());
                }
                assert!(fullest <= most, "{fullest} results waited, not {most}");
                assert!(fullest >= most - 1, "the bound is made use of: {fullest}");
            }
        }
    }
}
