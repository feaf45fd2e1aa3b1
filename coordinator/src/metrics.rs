//! What is counted, and shown to Prometheus (OpenMetrics text).
//!
//! Counters and histograms are kept as things happen; what has a present value (queues, workers, renders,
//! checkpoints) is asked for when somebody looks.

use std::sync::Arc;
use std::time::Duration;

use gigasmith_proto::domain::{RenderState, RenderStatus, Task, WorkerState, WorkerStatus};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds of the times that tasks take, in seconds.
const SECONDS: [f64; 14] = [0.01, 0.03, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 180.0, 600.0];

/// What becomes of a task's attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
pub enum TaskOutcome {
    /// Its result counts.
    done,
    /// It failed, or its result was bad.
    failed,
    /// Its result came when nobody wanted it any more.
    late,
}

/// What happens to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
pub enum LeaseEvent {
    /// A worker got a task.
    granted,
    /// Its worker was silent, gone or stuck.
    expired,
    /// The task is another's, or nobody's, now.
    withdrawn,
}

/// Which way bytes go, seen from the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
pub enum Direction {
    /// To workers.
    sent,
    /// From workers.
    received,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindOutcome {
    kind: &'static str,
    outcome: TaskOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindWorker {
    kind: &'static str,
    worker: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    event: LeaseEvent,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: Direction,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabel {
    worker: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RenderLabel {
    render: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    version: &'static str,
}

/// The counters of one coordinator. Cheap to clone: all clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    tasks: Family<KindOutcome, Counter>,
    seconds: Family<KindWorker, Histogram, fn() -> Histogram>,
    leases: Family<EventLabel, Counter>,
    bytes: Family<DirectionLabel, Counter>,
    patches: Counter,
    checkpoints: Counter,
    checkpoint_bytes: Counter,
}

impl Default for Counters {
    fn default() -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(SECONDS);
        let counters = Self {
            tasks: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            leases: Family::default(),
            bytes: Family::default(),
            patches: Counter::default(),
            checkpoints: Counter::default(),
            checkpoint_bytes: Counter::default(),
        };
        counters.begin();
        counters
    }
}

impl Counters {
    /// Series begin at 0: the first failure must show as an increase.
    fn begin(&self) {
        for kind in Task::KINDS {
            for outcome in [TaskOutcome::done, TaskOutcome::failed] {
                drop(self.tasks.get_or_create(&KindOutcome { kind, outcome }));
            }
        }
        drop(self.tasks.get_or_create(&KindOutcome { kind: "any", outcome: TaskOutcome::late }));
        for event in [LeaseEvent::granted, LeaseEvent::expired, LeaseEvent::withdrawn] {
            drop(self.leases.get_or_create(&EventLabel { event }));
        }
        for direction in [Direction::sent, Direction::received] {
            drop(self.bytes.get_or_create(&DirectionLabel { direction }));
        }
    }
}

/// What has a value now.
#[derive(Debug, Clone)]
pub struct Present {
    /// Tasks that wait, and tasks in flight.
    pub depth: (usize, usize),
    /// Every worker.
    pub workers: Vec<WorkerStatus>,
    /// Every render.
    pub renders: Vec<RenderStatus>,
    /// How many have ended, by how.
    pub ended: Vec<(RenderState, usize)>,
}

impl Metrics {
    /// An attempt at a task has ended.
    pub fn task(&self, kind: &'static str, outcome: TaskOutcome) {
        self.0.tasks.get_or_create(&KindOutcome { kind, outcome }).inc();
    }

    /// A worker took so long from the lease to the result.
    pub fn took(&self, kind: &'static str, worker: &str, time: Duration) {
        let label = KindWorker { kind, worker: worker.to_owned() };
        self.0.seconds.get_or_create(&label).observe(time.as_secs_f64());
    }

    /// A worker is gone for good: its series end.
    pub fn forget(&self, worker: &str, kinds: &[&'static str]) {
        for kind in kinds {
            self.0.seconds.remove(&KindWorker { kind, worker: worker.to_owned() });
        }
    }

    /// So many leases met with something.
    pub fn leases(&self, event: LeaseEvent, count: u64) {
        if count > 0 {
            self.0.leases.get_or_create(&EventLabel { event }).inc_by(count);
        }
    }

    /// Bytes of tasks or results have travelled.
    pub fn bytes(&self, direction: Direction, bytes: u64) {
        self.0.bytes.get_or_create(&DirectionLabel { direction }).inc_by(bytes);
    }

    /// Patches were committed.
    pub fn patches(&self, count: u64) {
        self.0.patches.inc_by(count);
    }

    /// A checkpoint was written, of so many bytes.
    pub fn checkpoint(&self, bytes: u64) {
        self.0.checkpoints.inc();
        self.0.checkpoint_bytes.inc_by(bytes);
    }

    /// Everything as OpenMetrics text.
    pub fn text(&self, present: &Present) -> String {
        let mut registry = Registry::with_prefix("gigasmith");
        let Counters { tasks, seconds, leases, bytes, patches, checkpoints, checkpoint_bytes } = &*self.0;
        registry.register("tasks", "Attempts at tasks that have ended", tasks.clone());
        registry.register("task_seconds", "From a task's lease to its result", seconds.clone());
        registry.register("leases", "What happened to leases", leases.clone());
        registry.register("wire_bytes", "Bytes of tasks and results", bytes.clone());
        registry.register("patches", "Patches committed", patches.clone());
        registry.register("checkpoints", "Checkpoints written", checkpoints.clone());
        registry.register(
            "checkpoint_written_bytes",
            "Bytes written for checkpoints",
            checkpoint_bytes.clone(),
        );
        present.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).expect("a string takes everything");
        text
    }
}

impl Present {
    fn register(&self, registry: &mut Registry) {
        let info: Family<VersionLabel, Gauge> = Family::default();
        info.get_or_create(&VersionLabel { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "The program's version", info);
        self.register_states(registry);
        self.register_workers(registry);
        self.register_renders(registry);
    }

    fn register_states(&self, registry: &mut Registry) {
        let by_state = |pairs: Vec<(String, usize)>| {
            let family: Family<StateLabel, Gauge> = Family::default();
            pairs.into_iter().for_each(|(state, count)| {
                family.get_or_create(&StateLabel { state }).set(count as i64);
            });
            family
        };
        let (waiting, in_flight) = self.depth;
        let tasks = by_state(vec![("waiting".into(), waiting), ("in_flight".into(), in_flight)]);
        registry.register("tasks_now", "Tasks that wait, and tasks that workers have", tasks);
        let count = |state: WorkerState| self.workers.iter().filter(|w| w.state == state).count();
        let workers = WorkerState::ALL.iter().map(|(state, name)| ((*name).to_owned(), count(*state)));
        registry.register("workers", "Workers by state", by_state(workers.collect()));
        let count = |state: RenderState| self.renders.iter().filter(|r| r.state == state).count();
        let unfinished = [RenderState::Queued, RenderState::Running, RenderState::Paused];
        let renders = unfinished.into_iter().map(|state| (state, count(state))).chain(self.ended.clone());
        let renders = renders.map(|(state, count)| (state.to_string(), count)).collect();
        registry.register("renders", "Renders by state", by_state(renders));
    }

    fn register_workers(&self, registry: &mut Registry) {
        let here = || self.workers.iter().filter(|w| w.state != WorkerState::Offline);
        let mut gauge = |name: &str, help: &str, value: fn(&WorkerStatus) -> f64| {
            let family: Family<WorkerLabel, FloatGauge> = Family::default();
            here().for_each(|w| {
                family.get_or_create(&WorkerLabel { worker: w.name.clone() }).set(value(w));
            });
            registry.register(name, help, family);
        };
        gauge("worker_busy", "Tasks in flight to a worker", |w| f64::from(w.busy));
        gauge("worker_slots", "Tasks that may be in flight to a worker", |w| f64::from(w.slots));
        gauge("worker_seconds_per_task", "A worker's pace, lately", |w| w.seconds_per_task);
    }

    fn register_renders(&self, registry: &mut Registry) {
        let mut gauge = |name: &str, help: &str, value: fn(&RenderStatus) -> Option<f64>| {
            let family: Family<RenderLabel, FloatGauge> = Family::default();
            for render in self.renders.iter().filter(|r| !r.state.is_final()) {
                if let Some(value) = value(render) {
                    family.get_or_create(&RenderLabel { render: render.id.clone() }).set(value);
                }
            }
            registry.register(name, help, family);
        };
        let late = |r: &RenderStatus| r.warnings.iter().any(|w| w.starts_with("checkpoints are late"));
        gauge("render_patches_done", "Patches done of the stage under way", |r| {
            Some(r.progress.patches_done as f64)
        });
        gauge("render_patches_left", "Patches left in all", |r| Some(r.progress.patches_left as f64));
        gauge("render_patches_per_second", "Patches per second, lately; 0 unless it runs", |r| {
            Some(if r.state == RenderState::Running { r.progress.rate } else { 0.0 })
        });
        gauge("render_stage", "The stage under way, 0 for the base", |r| Some(f64::from(r.progress.stage)));
        gauge("checkpoint_age_seconds", "Since the newest checkpoint", |r| Some(r.checkpoint?.age));
        gauge("checkpoint_bytes", "Written for the newest checkpoint", |r| Some(r.checkpoint?.bytes as f64));
        let family: Family<RenderLabel, Gauge> = Family::default();
        for render in self.renders.iter().filter(|r| r.state == RenderState::Running) {
            let label = RenderLabel { render: render.id.clone() };
            family.get_or_create(&label).set(i64::from(late(render)));
        }
        registry.register("checkpoints_late", "1 while checkpoints are late", family);
    }
}

/// A gauge of any number.
type FloatGauge = Gauge<f64, std::sync::atomic::AtomicU64>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        metrics.task("patch", TaskOutcome::done);
        metrics.task("patch", TaskOutcome::done);
        metrics.task("decode", TaskOutcome::failed);
        metrics.took("patch", "rack \"3\"", Duration::from_millis(300));
        metrics.leases(LeaseEvent::granted, 3);
        metrics.bytes(Direction::sent, 1024);
        metrics.patches(2);
        metrics.checkpoint(77);
        let present = Present { depth: (4, 2), workers: Vec::new(), renders: Vec::new(), ended: Vec::new() };
        let text = metrics.text(&present);
        for line in [
            r#"gigasmith_tasks_total{kind="patch",outcome="done"} 2"#,
            r#"gigasmith_tasks_total{kind="decode",outcome="failed"} 1"#,
            r#"gigasmith_task_seconds_bucket{le="0.5",kind="patch",worker="rack \"3\""} 1"#,
            r#"gigasmith_task_seconds_count{kind="patch",worker="rack \"3\""} 1"#,
            r#"gigasmith_leases_total{event="granted"} 3"#,
            r#"gigasmith_wire_bytes_total{direction="sent"} 1024"#,
            "gigasmith_patches_total 2",
            "gigasmith_checkpoints_total 1",
            "gigasmith_checkpoint_written_bytes_total 77",
            r#"gigasmith_tasks_now{state="waiting"} 4"#,
            r#"gigasmith_workers{state="idle"} 0"#,
            r#"gigasmith_renders{state="running"} 0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        metrics.forget("rack \"3\"", &["patch"]);
        assert!(!metrics.text(&present).contains("rack"));
    }
}
