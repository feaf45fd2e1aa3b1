//! Whole stages through the table under random schedules: whatever workers do, the bytes are those of
//! the patches run one by one.
//!
//! A stage's patches are tasks of a table whose workers crash, hang, lose their connection, answer late,
//! twice or wrongly reported as failures. Invariants on top of the table's: *no pixel is committed twice
//! or out of order* (the canvas panics on either), and the latent is the sequential one to the bit. A
//! failing seed is printed and replayed as in `simulation.rs`.

use std::collections::{BTreeMap, HashMap};

use gigasmith_proto::domain::{Array, ScheduleConfig};

use super::simulation::for_each_seed;
use super::*;
use crate::sampler::guidance::Guide;
use crate::sampler::noise::NoiseField;
use crate::sampler::philox::{Philox, Purpose};
use crate::sampler::plan::{Geometry, Plan, PlanKind};
use crate::sampler::schedule::Schedule;
use crate::sampler::stage::{PatchInput, StageRun, Start};
use crate::sampler::units::LatentSize;

const SEEDS: u64 = 1_000;
const STEPS: u32 = 3;

fn stage(seed: u64) -> StageRun {
    let kind = if seed.is_multiple_of(2) { PlanKind::Paper } else { PlanKind::Balanced };
    let size = LatentSize { height: 16 + (seed % 7) as usize, width: 18 + (seed % 5) as usize };
    let plan = Plan::draw(kind, Geometry::new(size, 8), STEPS as usize, seed, 1);
    let noise = NoiseField::from_seed(seed, 1, Purpose::Noise, 1);
    let latent = NoiseField::from_seed(seed, 1, Purpose::Encode, 1).whole(size);
    let guide = Guide::new(latent, noise);
    let schedule = Schedule::new(&ScheduleConfig::SDXL, STEPS).unwrap();
    StageRun::new(plan, schedule, Start::Guided { guide, slider: 2 })
}

/// A stand-in for the network.
fn predict(input: &PatchInput) -> Array {
    let mean = input.latent.data().iter().sum::<f32>() / input.latent.data().len() as f32;
    let place = (input.window.top * 3 + input.window.left) as f32 * 0.01 + input.timestep.0 as f32 * 1e-3;
    let data = input.latent.data().iter().map(|v| (v * 1.3 + mean + place).sin()).collect();
    Array::new(input.latent.shape(), data).unwrap()
}

fn sequential(seed: u64) -> Array {
    let mut run = stage(seed);
    while let Some(start) = run.next_patch(1) {
        let input = run.rules().input(start);
        let prediction = predict(&input);
        let outcome = run.rules().outcome(input, prediction);
        run.complete(outcome, &mut ());
    }
    run.into_latent()
}

struct World {
    run: StageRun,
    table: TaskTable,
    job: JobId,
    inputs: HashMap<TaskId, PatchInput>,
    /// Results that workers hold or have sent, by lease: they may arrive at any time, any number of times.
    results: BTreeMap<LeaseId, (WorkerId, Array)>,
    workers: Vec<WorkerId>,
    away: Vec<WorkerId>,
    now: Millis,
    draws: (Philox, u64),
}

impl World {
    fn new(seed: u64) -> Self {
        let mut table = TaskTable::default();
        let requirement = Requirement { model: ModelKey(0), class: Some(ClassKey(0)) };
        let job = table.open_job(JobOptions { requirement, priority: 0, pause_on_failure: true });
        Self {
            run: stage(seed),
            table,
            job,
            inputs: HashMap::new(),
            results: BTreeMap::new(),
            workers: Vec::new(),
            away: Vec::new(),
            now: Millis(0),
            draws: (Philox::new(seed, 1, Purpose::Plan), 0),
        }
    }

    fn below(&mut self, n: usize) -> usize {
        self.draws.1 += 1;
        self.draws.0.below(self.draws.1, n as u64) as usize
    }

    fn join(&mut self) {
        let skills = Skills { model: ModelKey(0), class: ClassKey(0) };
        let slots = 1 + self.below(3) as u32;
        let worker = self.table.join(self.now, skills, slots);
        self.table.set_open(worker, true, true);
        self.workers.push(worker);
    }

    /// Hands out what can be handed out; a worker's result exists from then on.
    fn hand_out(&mut self) {
        let most = 1 + self.below(8);
        while let Some(start) = self.run.next_patch(most) {
            let input = self.run.rules().input(start);
            let order = TaskOrder { stage: 1, position: input.id.0 };
            let task = self.table.submit(self.job, order, "patch").expect("the job is open");
            self.inputs.insert(task, input);
        }
        while let Some((worker, lease, task)) = self.table.assign(self.now) {
            let result = predict(&self.inputs[&task]);
            self.results.insert(lease, (worker, result));
        }
    }

    fn event(&mut self) {
        match self.below(12) {
            0 if self.workers.len() < 5 => self.join(),
            1 if self.workers.len() > 1 => {
                let at = self.below(self.workers.len());
                let worker = self.workers.swap_remove(at);
                if self.below(2) == 0 {
                    self.table.leave(worker);
                } else {
                    self.table.disconnect(worker);
                    self.away.push(worker);
                }
            }
            2 if !self.away.is_empty() => {
                let at = self.below(self.away.len());
                let worker = self.away.swap_remove(at);
                let held: Vec<u64> =
                    self.results.iter().filter(|(_, (w, _))| *w == worker).map(|(l, _)| l.0).collect();
                self.table.reconnect(self.now, worker, &held);
                self.workers.push(worker);
            }
            3 => {
                self.now = Millis(self.now.0 + self.below(SILENCE.0 as usize / 2) as u64);
                let gone = self.table.expire(self.now).gone;
                gone.iter().for_each(|&w| self.table.leave(w));
                self.away.retain(|w| !gone.contains(w));
                for i in 0..self.workers.len() {
                    if self.below(3) > 0 {
                        self.table.hear(self.now, self.workers[i]);
                    }
                }
            }
            _ => self.report(),
        }
        self.table.pause(self.job, false);
    }

    fn report(&mut self) {
        let leases: Vec<LeaseId> = self.results.keys().copied().collect();
        if leases.is_empty() {
            return;
        }
        let lease = leases[self.below(leases.len())];
        let (worker, result) = self.results[&lease].clone();
        let task = self.table.leased(worker, lease);
        if self.below(8) == 0 {
            self.table.fail(self.now, worker, lease, false);
            self.table.forgive(worker);
            return;
        }
        // The result stays in the map: it may be sent again.
        if let Verdict::Done(done) = self.table.succeed(self.now, worker, lease) {
            assert_eq!(Some(done), task);
            let input = self.inputs.remove(&done).expect("a task ends once");
            let outcome = self.run.rules().outcome(input, result);
            self.run.complete(outcome, &mut ());
        }
        if self.results.len() > 40 {
            self.results.pop_first();
        }
    }
}

#[test]
fn any_schedule_gives_the_bytes_of_the_sequential_loop() {
    for_each_seed(SEEDS, |seed| {
        let mut world = World::new(seed);
        world.join();
        for turn in 0.. {
            world.hand_out();
            if world.run.is_done() {
                break;
            }
            world.event();
            assert!(turn < 100_000, "no progress: {:?}", world.run.progress());
        }
        let bits = |a: &Array| a.data().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&world.run.into_latent()), bits(&sequential(seed)), "other bytes");
    });
}
