//! The graph against the oracle: a plain sequential program of the method's eight rules.

use gigasmith_types::ScheduleConfig;
use proptest::prelude::*;

use super::super::philox::Purpose;
use super::super::plan::{Geometry, PlanKind};
use super::super::units::LatentSize;
use super::*;

const CHANNELS: usize = 2;

/// SDXL's schedule.
fn schedule(steps: u32) -> Schedule {
    Schedule::new(&ScheduleConfig::SDXL, steps).unwrap()
}

/// A stand-in for the network: every output depends on the whole window, so that a single wrong input
/// pixel shows everywhere.
fn network(latent: &Array, window: Window, timestep: Timestep) -> Array {
    let mean = latent.data().iter().sum::<f32>() / latent.data().len() as f32;
    let offset = (window.top * 3 + window.left * 5) as f32 * 0.01 + timestep.0 as f32 * 1e-3;
    let data = latent
        .data()
        .iter()
        .enumerate()
        .map(|(i, v)| (v * 1.3 + mean + offset + i as f32 * 0.01).sin())
        .collect();
    Array::new(latent.shape(), data).unwrap()
}

#[derive(Debug, Clone)]
struct Case {
    plan: Plan,
    guide: Option<Guide>,
    noise: NoiseField,
    slider: usize,
}

impl Case {
    fn new(kind: PlanKind, size: LatentSize, steps: usize, slider: usize, seed: u64) -> Self {
        let plan = Plan::draw(kind, Geometry::new(size, 8), steps, seed, 1);
        let noise = NoiseField::from_seed(seed, 1, Purpose::Noise, CHANNELS);
        let latent = NoiseField::from_seed(seed, 1, Purpose::Encode, CHANNELS).whole(size);
        Self { plan, guide: (slider > 0).then(|| Guide::new(latent, noise.clone())), noise, slider }
    }

    fn start(&self) -> Start {
        match &self.guide {
            Some(guide) => Start::Guided { guide: guide.clone(), slider: self.slider },
            None => Start::Noise(self.noise.clone()),
        }
    }

    /// The eight rules, one patch after the other, as the method's text states them.
    fn oracle(&self) -> Array {
        let schedule = schedule(self.plan.steps() as u32);
        let Geometry { canvas: size, zone, .. } = self.plan.geometry();
        let guide = |s: usize, w: Window| {
            self.guide.as_ref().unwrap().at(schedule.at(Step(s as u32)).alphas_cumprod, w)
        };
        let mut now = match &self.guide {
            Some(_) => guide(0, size.rect()),
            None => self.noise.whole(size),
        };
        let at = |c: usize, y: usize, x: usize| (c * size.height + y) * size.width + x;
        for s in 0..self.plan.steps() {
            let begin = now.clone();
            let mut pending = vec![true; size.area()];
            for (id, patch) in self.plan.step(Step(s as u32)) {
                let w = self.plan.window(id);
                let is_pending = |y: usize, x: usize| pending[(w.top + y) * size.width + w.left + x];
                let x_prev = super::super::noise::crop(&begin, w);
                let source = if self.plan.kind() == PlanKind::Paper { &now } else { &begin };
                let mut x = super::super::noise::crop(source, w);
                if s >= 1 && s < self.slider {
                    PhaseMixer::default().mix(&mut x, &mut guide(s, w));
                }
                let inner = |c: usize, y: usize, x: usize| (c * w.height + y) * w.width + x;
                let cells = || (0..w.height).flat_map(|y| (0..w.width).map(move |x| (y, x)));
                if self.plan.kind() == PlanKind::Paper {
                    for (y, col) in cells().filter(|&(y, x)| !is_pending(y, x)) {
                        for c in 0..CHANNELS {
                            x.data_mut()[inner(c, y, col)] = x_prev.data()[inner(c, y, col)];
                        }
                    }
                }
                let timestep = schedule.at(Step(s as u32)).timestep;
                let prediction = network(&x, w, timestep);
                schedule.advance(Step(s as u32), x.data_mut(), prediction.data());
                if s + 1 < self.slider {
                    let next = guide(s + 1, w);
                    for (y, col) in cells().filter(|(y, x)| (y + x + usize::from(patch.bit)) % 2 == 0) {
                        for c in 0..CHANNELS {
                            x.data_mut()[inner(c, y, col)] = next.data()[inner(c, y, col)];
                        }
                    }
                }
                for (y, col) in cells() {
                    let near =
                        cells().any(|(r, q)| is_pending(r, q) && r.abs_diff(y).max(q.abs_diff(col)) <= zone);
                    for c in 0..CHANNELS {
                        let (new, old) =
                            (x.data()[inner(c, y, col)], &mut now.data_mut()[at(c, w.top + y, w.left + col)]);
                        if is_pending(y, col) {
                            *old = new;
                        } else if near {
                            *old = (*old + new) * 0.5;
                        }
                    }
                }
                cells().for_each(|(y, x)| pending[(w.top + y) * size.width + w.left + x] = false);
            }
        }
        now
    }

    fn run(&self) -> StageRun {
        StageRun::new(self.plan.clone(), schedule(self.plan.steps() as u32), self.start())
    }

    /// The same through the graph, left after every answer for which `leave` says so, and taken up from
    /// copies of what was saved some answers earlier.
    fn interrupted(
        &self,
        mut pick: impl FnMut(usize) -> usize,
        mut leave: impl FnMut() -> bool,
    ) -> (Array, usize) {
        let (mut run, mut interruptions) = (self.run(), 0);
        let mut saved = run.saved();
        let mut kept = deep(&saved);
        loop {
            let mut flying = Vec::new();
            while !run.is_done() {
                while let Some(start) = run.next_patch(usize::MAX) {
                    flying.push(run.rules().input(start));
                }
                let outcome = answered(&run, flying.swap_remove(pick(flying.len())));
                run.complete(outcome, &mut ());
                if leave() {
                    break;
                }
                if pick(3) == 0 {
                    saved = run.saved();
                    kept = deep(&saved);
                }
            }
            if run.is_done() {
                return (run.into_latent(), interruptions);
            }
            assert_eq!(deep(&saved), kept, "what is saved does not change any more");
            interruptions += 1;
            let schedule = schedule(self.plan.steps() as u32);
            run = StageRun::restore(self.plan.clone(), schedule, self.start(), deep(&kept)).unwrap();
            assert_eq!(run.progress().0, kept.committed.len());
            assert_eq!(deep(&run.saved()), kept);
        }
    }

    /// The same through the graph with `most` patches open, answers coming back in an order that `pick`
    /// chooses.
    fn through_graph(&self, most: usize, mut pick: impl FnMut(usize) -> usize) -> Array {
        let mut run = self.run();
        let (mut flying, mut taken) = (Vec::new(), 0);
        while !run.is_done() {
            while let Some(start) = run.next_patch(most) {
                flying.push(run.rules().input(start));
                taken += 1;
                assert!(taken - run.progress().0 <= most.saturating_add(1), "the bound is kept");
            }
            let outcome = answered(&run, flying.swap_remove(pick(flying.len())));
            run.complete(outcome, &mut ());
        }
        assert_eq!(run.progress().0, self.plan.len());
        run.into_latent()
    }
}

/// A copy that shares nothing.
fn deep(saved: &SavedStage) -> SavedStage {
    let copy = |values: &Arc<Array>| Arc::new(Array::clone(values));
    let block = |b: &SavedBlock| SavedBlock {
        version: 1,
        now: copy(&b.now),
        before: b.before.as_ref().map(copy),
        ..b.clone()
    };
    SavedStage { blocks: saved.blocks.iter().map(block).collect(), ..saved.clone() }
}

fn answered(run: &StageRun, input: PatchInput) -> PatchOutcome {
    let prediction = network(&input.latent, input.window, input.timestep);
    run.rules().outcome(input, prediction)
}

fn bits(a: &Array) -> Vec<u32> {
    a.data().iter().map(|v| v.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn the_graph_gives_the_bytes_of_the_sequential_loop(
        height in 4usize..26, width in 4usize..26, slider in 0usize..5, seed: u64, balanced: bool,
        picks in prop::collection::vec(any::<prop::sample::Index>(), 64), most in 1usize..12,
    ) {
        let kind = if balanced { PlanKind::Balanced } else { PlanKind::Paper };
        let case = Case::new(kind, LatentSize { height, width }, 4, slider, seed);
        let oracle = bits(&case.oracle());
        let mut turn = 0;
        let shuffled = case.through_graph(most, |n| { turn += 1; picks[turn % picks.len()].index(n) });
        prop_assert_eq!(&bits(&shuffled), &oracle);
        prop_assert_eq!(&bits(&case.through_graph(usize::MAX, |_| 0)), &oracle);
        prop_assert_eq!(&bits(&case.through_graph(most, |n| n - 1)), &oracle);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_stage_left_anywhere_and_taken_up_again_gives_the_same_bytes(
        height in 4usize..40, width in 4usize..40, slider in 0usize..5, seed: u64, balanced: bool,
        picks in prop::collection::vec(any::<prop::sample::Index>(), 64),
    ) {
        let kind = if balanced { PlanKind::Balanced } else { PlanKind::Paper };
        let case = Case::new(kind, LatentSize { height, width }, 4, slider, seed);
        let oracle = bits(&case.through_graph(usize::MAX, |_| 0));
        let (mut turn, mut answers) = (0, 0usize);
        let (latent, _) = case.interrupted(
            |n| { turn += 1; picks[turn % picks.len()].index(n) },
            || { answers += 1; answers < 300 && answers.is_multiple_of(7) },
        );
        prop_assert_eq!(bits(&latent), oracle);
    }
}

#[test]
fn a_saved_stage_that_makes_no_sense_is_refused() {
    let case = Case::new(PlanKind::Balanced, LatentSize { height: 30, width: 30 }, 3, 2, 5);
    let mut run = case.run();
    let restore = |saved| StageRun::restore(case.plan.clone(), schedule(3), case.start(), saved).err();
    for _ in 0..4 {
        let start = run.next_patch(1).unwrap();
        let outcome = answered(&run, run.rules().input(start));
        run.complete(outcome, &mut ());
    }
    let saved = run.saved();
    assert_eq!(restore(saved.clone()), None);
    let unfounded =
        PatchSet::from_ranges(&[(0, 1), (case.plan.len() as u32 - 1, case.plan.len() as u32)], 999);
    let last = PatchId(case.plan.len() as u32 - 1);
    let wrong = SavedStage { committed: unfounded.unwrap(), ..saved.clone() };
    assert_eq!(restore(wrong), Some(RestoreError::Unfounded(Unfounded(last))));
    let beyond = SavedStage { committed: PatchSet::from_ranges(&[(0, 999)], 999).unwrap(), ..saved.clone() };
    assert!(matches!(restore(beyond), Some(RestoreError::Unfounded(_))));
    let mut fewer = saved.clone();
    fewer.blocks.remove(0);
    assert!(matches!(restore(fewer), Some(RestoreError::Block(_))));
    let mut flat = saved.clone();
    flat.blocks[0].before = None;
    assert_eq!(restore(flat), Some(RestoreError::Block(0)));
    let grid = BlockGrid::new(LatentSize { height: 30, width: 31 }, 16);
    assert!(matches!(restore(SavedStage { grid, ..saved }), Some(RestoreError::Canvas(_))));
}

#[test]
fn blending_touches_nothing_outside_the_zone() {
    struct Watch {
        size: LatentSize,
        last: Option<Array>,
        plan: Plan,
    }
    impl StageObserver for Watch {
        fn committed(&mut self, input: &PatchInput, _: &Array, canvas: &Canvas) {
            let now = canvas.read_now(self.size.rect());
            if let Some(last) = &self.last {
                let earlier = self.plan.step(input.step).take_while(|(id, _)| *id < input.id);
                let earlier = earlier.map(|(id, _)| self.plan.window(id)).collect::<Vec<_>>();
                let cells = super::super::blend::cells(
                    input.window,
                    earlier.iter().copied(),
                    self.plan.geometry().zone,
                );
                for (i, (a, b)) in last.data().iter().zip(now.data()).enumerate() {
                    let (y, x) = (i % self.size.area() / self.size.width, i % self.size.width);
                    let w = input.window;
                    let inside = (w.top..w.bottom()).contains(&y) && (w.left..w.right()).contains(&x);
                    let open = inside && cells[(y - w.top) * w.width + x - w.left] != Cell::Done;
                    assert!(open || a.to_bits() == b.to_bits(), "pixel {y}, {x} changed");
                }
            }
            self.last = Some(now);
        }
    }
    let size = LatentSize { height: 20, width: 22 };
    for kind in [PlanKind::Paper, PlanKind::Balanced] {
        let case = Case::new(kind, size, 3, 2, 4);
        let mut watch = Watch { size, last: None, plan: case.plan.clone() };
        let mut run = StageRun::new(case.plan.clone(), schedule(3), case.start());
        while let Some(start) = run.next_patch(1) {
            let outcome = answered(&run, run.rules().input(start));
            run.complete(outcome, &mut watch);
        }
        assert!(run.is_done());
    }
}
