//! Farms of devices that compute several tasks in a call, against the invariants of time: fair shares, and no call
//! done twice. Seeds are replayed as in `simulation.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use super::simulation::for_each_seed;
use super::*;
use crate::sampler::philox::{Philox, Purpose};

const SEEDS: u64 = 300;
const SKILLS: Skills = Skills { model: ModelKey(0), class: ClassKey(0) };

/// A worker's device: it takes up to `size` tasks at once, `task` milliseconds for each.
struct Device {
    size: usize,
    slots: usize,
    task: u64,
    queue: VecDeque<LeaseId>,
    call: BTreeSet<LeaseId>,
    ends: u64,
    calls: u32,
}

struct Farm {
    table: TaskTable,
    now: u64,
    draws: Philox,
    drawn: u64,
    devices: BTreeMap<WorkerId, Device>,
    /// Results on their way, by when they come.
    results: BTreeSet<(u64, WorkerId, LeaseId)>,
    owners: BTreeMap<TaskId, JobId>,
    done: BTreeMap<JobId, u64>,
    position: u32,
    moved: u32,
}

impl Farm {
    fn new(seed: u64) -> Self {
        Self {
            table: TaskTable::default(),
            now: 0,
            draws: Philox::new(seed, 0, Purpose::Plan),
            drawn: 0,
            devices: BTreeMap::new(),
            results: BTreeSet::new(),
            owners: BTreeMap::new(),
            done: BTreeMap::new(),
            position: 0,
            moved: 0,
        }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.drawn += 1;
        self.draws.below(self.drawn, n)
    }

    fn open(&mut self, priority: i32) -> JobId {
        let requirement = Requirement { model: SKILLS.model, class: Some(SKILLS.class) };
        let job = self.table.open_job(JobOptions { requirement, priority, pause_on_failure: false });
        self.done.insert(job, 0);
        job
    }

    fn join(&mut self, size: usize, slots: usize, task: u64) -> WorkerId {
        let worker = self.table.join(Millis(self.now), SKILLS, slots as u32);
        self.table.set_open(worker, true, true);
        let (queue, call) = (VecDeque::new(), BTreeSet::new());
        self.devices.insert(worker, Device { size, slots, task, queue, call, ends: 0, calls: 0 });
        worker
    }

    fn submit(&mut self, job: JobId) {
        self.position += 1;
        let order = TaskOrder { stage: 0, position: self.position };
        let task = self.table.submit(job, order, "patch").expect("the job is open");
        self.owners.insert(task, job);
    }

    /// What a worker is told to leave alone it does not begin any more; what it has begun it ends.
    fn withdraw(&mut self) -> Vec<(WorkerId, LeaseId)> {
        let withdrawn = self.table.take_withdrawn();
        for (worker, lease) in &withdrawn {
            self.devices.get_mut(worker).expect("it joined").queue.retain(|l| l != lease);
        }
        withdrawn
    }

    fn hand_out(&mut self) {
        self.devices.keys().for_each(|&worker| self.table.hear(Millis(self.now), worker));
        self.withdraw();
        while let Some((worker, lease, _)) = self.table.assign(Millis(self.now)) {
            for (holder, taken) in self.withdraw() {
                let device = &self.devices[&holder];
                // A call's size is learned from calls that could have been larger.
                let is_known = self.table.workers[&holder].calls.size() >= device.size;
                assert!(is_known || device.slots != 2 * device.size, "a size is forgotten");
                let has_begun = device.call.contains(&taken);
                assert!(!is_known || !has_begun, "invariant 9: taken over from a call at {}", self.now);
                self.moved += 1;
            }
            self.devices.get_mut(&worker).expect("it joined").queue.push_back(lease);
        }
        for device in self.devices.values_mut().filter(|d| d.call.is_empty() && !d.queue.is_empty()) {
            let tasks = device.queue.len().min(device.size);
            device.call = device.queue.drain(..tasks).collect();
            device.ends = self.now + device.task * tasks as u64;
        }
    }

    /// Until a call ends or a result comes; `false`: nothing is under way.
    fn step(&mut self) -> bool {
        self.hand_out();
        let ends = self.devices.values().filter(|d| !d.call.is_empty()).map(|d| d.ends);
        let Some(next) = ends.chain(self.results.first().map(|r| r.0)).min() else { return false };
        self.now = next;
        while let Some(&(at, worker, lease)) = self.results.first().filter(|r| r.0 <= next) {
            self.results.remove(&(at, worker, lease));
            if let Verdict::Done(task) = self.table.succeed(Millis(next), worker, lease) {
                *self.done.get_mut(&self.owners[&task]).expect("it is open") += 1;
            }
        }
        let ended: Vec<WorkerId> = self
            .devices
            .iter()
            .filter(|(_, d)| !d.call.is_empty() && d.ends <= next)
            .map(|(&w, _)| w)
            .collect();
        for worker in ended {
            let device = self.devices.get_mut(&worker).expect("just seen");
            device.calls += 1;
            let (call, task) = (std::mem::take(&mut device.call), device.task);
            for lease in call {
                // The line takes a moment.
                let at = next + 1 + self.below(task / 8);
                self.results.insert((at, worker, lease));
            }
        }
        true
    }
}

#[test]
fn jobs_of_equal_priority_share_the_devices() {
    for_each_seed(SEEDS, |seed| {
        let mut farm = Farm::new(seed);
        let task = 40 + farm.below(400);
        for _ in 0..1 + farm.below(4) {
            let size = 1 + farm.below(4) as usize;
            farm.join(size, 2 * size, task);
        }
        let slots: u64 = farm.devices.values().map(|d| d.slots as u64).sum();
        let mut jobs: Vec<JobId> = (0..2 + farm.below(2)).map(|_| farm.open(0)).collect();
        let humble = farm.open(-1);
        let mut since: BTreeMap<JobId, u64> = jobs.iter().map(|&job| (job, 0)).collect();
        for part in 0..2 {
            let end: u64 = farm.done.values().sum::<u64>() + 30 * slots;
            while farm.done.values().sum::<u64>() < end {
                for job in jobs.clone().into_iter().chain([humble]) {
                    while (farm.table.job_depth(job).0 as u64) < 2 * slots {
                        farm.submit(job);
                    }
                }
                farm.step();
                let done = |job: &JobId| farm.done[job] - since[job];
                let (most, least) = (jobs.iter().map(done).max(), jobs.iter().map(done).min());
                let apart = most.expect("there are some") - least.expect("there are some");
                assert!(apart <= 2 * slots, "invariant 8: {apart} tasks apart in part {part}, {slots} slots");
            }
            assert_eq!(farm.done[&humble], 0, "priorities are strict");
            // One more comes: it gets its share from here on, and no more.
            let late = farm.open(0);
            jobs.push(late);
            since = jobs.iter().map(|job| (*job, farm.done[job])).collect();
        }
    });
}

#[test]
fn a_job_that_rested_is_owed_nothing() {
    let mut farm = Farm::new(1);
    farm.join(1, 2, 100);
    let (steady, rests) = (farm.open(0), farm.open(0));
    farm.submit(rests);
    for _ in 0..200 {
        farm.submit(steady);
    }
    while farm.done[&steady] < 100 {
        farm.step();
    }
    (0..100).for_each(|_| farm.submit(rests));
    let before = farm.done[&steady];
    while farm.done[&rests] < 41 {
        farm.step();
    }
    let meanwhile = farm.done[&steady] - before;
    assert!((36..=44).contains(&meanwhile), "{meanwhile} of one while the other had 40");
}

#[test]
fn no_idle_worker_takes_over_what_is_in_a_call() {
    let moved = AtomicU32::new(0);
    for_each_seed(SEEDS, |seed| {
        let mut farm = Farm::new(seed);
        let job = farm.open(0);
        for _ in 0..2 + farm.below(4) {
            let size = 1 + farm.below(8) as usize;
            let slots = if farm.below(3) == 0 { 1 + farm.below(20) as usize } else { 2 * size };
            let task = 20 + farm.below(500);
            farm.join(size, slots, task);
        }
        // As many as there are slots, again and again: so that queues run empty while others are full.
        for _ in 0..6 {
            let tasks = 20 + farm.below(60);
            (0..tasks).for_each(|_| farm.submit(job));
            while farm.step() {}
            assert_eq!(farm.table.depth(), (0, 0), "everything ends");
        }
        moved.fetch_add(farm.moved, Relaxed);
    });
    let moved = moved.into_inner();
    assert!(moved > 100, "idle workers do take over: {moved}");
}
