//! The one task that owns the tables and performs what they decide.
//!
//! It never waits for a worker: a worker's outgoing queue has room for all its slots, and one that
//! is full anyway counts as broken. Time is the runtime's monotonic clock, counted from the farm's
//! start: a step of the wall clock changes nothing.

mod members;
mod reports;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gigasmith_proto::convert::{Outcome, welcome_to_wire};
use gigasmith_proto::domain::{
    Hello, Identifier, ModelDescription, Task, TaskResult, Welcome, WorkerChange, WorkerStatus,
};
use gigasmith_proto::v1;
use gigasmith_proto::v1::coordinator_message::Message;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::admission::Admission;
use super::table::{JobId, JobOptions, LeaseId, Millis, Requirement, TaskId, TaskOrder, TaskTable, WorkerId};
use super::{FarmOptions, LaneOptions, Roster, Shelf, TaskError, WorkerError};
use members::Members;

/// The sending end of a worker's stream.
pub(super) type ToWorker = mpsc::Sender<Result<v1::CoordinatorMessage, tonic::Status>>;

/// A task with the room its answer goes to.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) job: JobId,
    pub(super) order: TaskOrder,
    pub(super) task: Task,
    /// The task as workers get it: made by the asker, so that the owner has nothing to convert.
    pub(super) wire: v1::assignment::Task,
    pub(super) reply: oneshot::Sender<Result<TaskResult, TaskError>>,
}

/// A connection of a worker: a later one of the same worker has a higher number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) worker: WorkerId,
    pub(super) number: u64,
}

/// What the owner is told.
#[derive(Debug)]
pub(super) enum Command {
    OpenLane {
        options: LaneOptions,
        reply: oneshot::Sender<JobId>,
    },
    CloseLane {
        job: JobId,
    },
    PauseLane {
        job: JobId,
        paused: bool,
    },
    Prioritise {
        job: JobId,
        priority: i32,
    },
    LaneDepth {
        job: JobId,
        reply: oneshot::Sender<(usize, usize)>,
    },
    Depth {
        reply: oneshot::Sender<(usize, usize)>,
    },
    Submit(Box<Submission>),
    Join {
        hello: Box<Hello>,
        stream: ToWorker,
        reply: oneshot::Sender<Connection>,
    },
    Report {
        from: Connection,
        lease: LeaseId,
        outcome: Box<Outcome>,
    },
    Heartbeat {
        from: Connection,
    },
    Draining {
        from: Connection,
    },
    Leave {
        from: Connection,
        reason: String,
    },
    Workers {
        reply: oneshot::Sender<Vec<WorkerStatus>>,
    },
    ChangeWorker {
        name: String,
        change: WorkerChange,
        reply: oneshot::Sender<Result<WorkerStatus, WorkerError>>,
    },
}

struct Pending {
    task: Task,
    wire: v1::assignment::Task,
    reply: oneshot::Sender<Result<TaskResult, TaskError>>,
}

/// How often silent workers are looked for.
const TICK: Duration = Duration::from_secs(1);

struct Owner {
    started: Instant,
    incarnation: Identifier,
    table: TaskTable,
    admission: Admission,
    members: Members,
    pending: HashMap<TaskId, Pending>,
    /// Who wants to know when a lane is paused by a failure.
    lanes: HashMap<JobId, Option<mpsc::UnboundedSender<String>>>,
    /// Examinations under way.
    exams: HashMap<LeaseId, WorkerId>,
    /// Patches of founders that are not confirmed.
    held: Vec<(WorkerId, LeaseId, TaskResult)>,
    shelf: Shelf,
    roster_is_old: bool,
}

/// Performs commands until every handle is gone.
pub(super) async fn run(
    mut commands: mpsc::Receiver<Command>,
    roster: watch::Sender<Roster>,
    options: FarmOptions,
    shelf: Shelf,
) {
    let identifier = random();
    let base = u64::from_le_bytes(identifier.0[..8].try_into().expect("eight bytes")) >> 2;
    let mut owner = Owner {
        started: Instant::now(),
        incarnation: identifier,
        table: TaskTable::starting_after(base),
        admission: Admission::new(options.examines),
        members: Members::default(),
        pending: HashMap::new(),
        lanes: HashMap::new(),
        exams: HashMap::new(),
        held: Vec::new(),
        shelf,
        roster_is_old: false,
    };
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => owner.perform(command),
                None => return,
            },
            _ = tick.tick() => owner.expire(),
        }
        owner.examine();
        owner.assign();
        owner.tell_withdrawn();
        if std::mem::take(&mut owner.roster_is_old) {
            let now = owner.members.roster(&owner.table, &owner.admission);
            roster.send_if_modified(|r| {
                let changed = *r != now;
                *r = now;
                changed
            });
        }
    }
}

/// Sixteen bytes that no other process draws. [`std::collections::hash_map::RandomState`] is keyed by
/// the system's random source.
fn random() -> Identifier {
    use std::hash::{BuildHasher, RandomState};
    let half = || RandomState::new().hash_one((std::process::id(), std::time::SystemTime::now()));
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&half().to_le_bytes());
    bytes[8..].copy_from_slice(&half().to_le_bytes());
    Identifier(bytes)
}

/// Whoever asks may have gone meanwhile: then nobody wants the answer.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    let _ = reply.send(value);
}

fn message(message: Message) -> v1::CoordinatorMessage {
    v1::CoordinatorMessage { message: Some(message) }
}

impl Owner {
    fn now(&self) -> Millis {
        Millis(self.started.elapsed().as_millis() as u64)
    }

    fn perform(&mut self, command: Command) {
        match command {
            Command::OpenLane { options, reply } => {
                let job = self.open_lane(options);
                if reply.send(job).is_err() {
                    self.close_lane(job);
                }
            }
            Command::CloseLane { job } => self.close_lane(job),
            Command::PauseLane { job, paused } => self.table.pause(job, paused),
            Command::Prioritise { job, priority } => self.table.prioritise(job, priority),
            Command::LaneDepth { job, reply } => answer(reply, self.table.job_depth(job)),
            Command::Depth { reply } => answer(reply, self.table.depth()),
            Command::Workers { reply } => answer(reply, self.statuses()),
            Command::ChangeWorker { name, change, reply } => answer(reply, self.change_worker(&name, change)),
            Command::Submit(submission) => self.submit(*submission),
            Command::Join { hello, stream, reply } => {
                let from = self.join(*hello, stream);
                if reply.send(from).is_err() {
                    self.leave(from, "it went away while joining");
                }
            }
            Command::Report { from, lease, outcome } => self.report(from.worker, lease, *outcome),
            Command::Heartbeat { from } => self.table.hear(self.now(), from.worker),
            Command::Draining { from } => self.draining(from.worker),
            Command::Leave { from, reason } => self.leave(from, &reason),
        }
    }

    fn open_lane(&mut self, options: LaneOptions) -> JobId {
        let skills = self.members.skills(&options.model);
        let requirement = Requirement { model: skills.model, class: (!options.mix).then_some(skills.class) };
        let pause_on_failure = options.on_failure.is_some();
        let job = JobOptions { requirement, priority: options.priority, pause_on_failure };
        let job = self.table.open_job(job);
        self.lanes.insert(job, options.on_failure);
        job
    }

    fn close_lane(&mut self, job: JobId) {
        self.lanes.remove(&job);
        for task in self.table.close_job(job) {
            self.pending.remove(&task);
        }
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { job, order, task, wire, reply } = submission;
        // A lane that is closed has dropped the other end.
        if let Some(id) = self.table.submit(job, order, task.kind()) {
            self.pending.insert(id, Pending { task, wire, reply });
        }
    }

    fn join(&mut self, hello: Hello, stream: ToWorker) -> Connection {
        let now = self.now();
        let (leases, known) = match hello.incarnation == Some(self.incarnation) {
            true => (&hello.leases[..], self.members.of_instance(hello.instance)),
            false => (&[][..], self.members.of_instance(hello.instance)),
        };
        let (worker, standing) = match known {
            Some(worker) => (worker, self.table.reconnect(now, worker, leases)),
            None => {
                let skills = self.members.skills(&hello.model);
                let worker = self.table.join(now, skills, hello.slots);
                self.admission.join(worker, skills);
                (worker, Vec::new())
            }
        };
        // What an earlier connection was asked for its examination got lost with it.
        self.exams.retain(|_, w| *w != worker);
        let from = self.members.connect(worker, hello, stream);
        let member = self.members.get(worker).expect("just connected");
        let welcome = Welcome { name: member.name.clone(), incarnation: self.incarnation, leases: standing };
        tracing::info!(
            worker = member.name,
            device = member.device,
            model = member.model.name,
            "worker joined"
        );
        // The queue is new and empty.
        let _ = member.send(message(Message::Welcome(welcome_to_wire(&welcome))));
        self.reopen(worker);
        from
    }

    /// Lets the table know whether a worker may get tasks.
    fn reopen(&mut self, worker: WorkerId) {
        let rating = self.admission.rating(worker);
        let wanted = self.members.get(worker).is_some_and(|m| m.wish == members::Wish::Work);
        self.table.set_open(worker, rating.open && wanted, rating.mixes);
        self.roster_is_old = true;
    }

    /// Lets the table know about every worker: after an examination others may be promoted.
    fn reopen_all(&mut self) {
        self.members.ids().into_iter().for_each(|worker| self.reopen(worker));
    }

    fn leave(&mut self, from: Connection, reason: &str) {
        let Some(member) = self.members.disconnect(from) else { return };
        let is_done = member.wish == members::Wish::Drain && self.table.is_idle(from.worker);
        tracing::info!(worker = member.name, reason, "worker disconnected");
        self.exams.retain(|_, w| *w != from.worker);
        self.table.disconnect(from.worker);
        self.roster_is_old = true;
        if is_done {
            self.remove(from.worker, "it drained and ended");
        }
    }

    /// A worker is gone for good.
    fn remove(&mut self, worker: WorkerId, reason: &str) {
        let status = self.status(worker);
        self.table.leave(worker);
        self.admission.leave(worker);
        self.held.retain(|(w, ..)| *w != worker);
        self.members.depart(worker, status, reason);
        self.reopen_all();
    }

    fn expire(&mut self) {
        let expired = self.table.expire(self.now());
        let name = |w: &WorkerId| self.members.get(*w).map_or("", |m| m.name.as_str());
        for worker in &expired.silent {
            tracing::warn!(worker = name(worker), "a worker is silent: its tasks go to others");
        }
        for worker in &expired.hung {
            tracing::warn!(worker = name(worker), "a worker is stuck: its task goes to another");
        }
        let dead = self.members.disconnected().into_iter();
        let dead = dead.filter(|w| {
            self.table.worker(self.now(), *w).is_none_or(|(_, silent, _)| silent >= super::table::LEASE.0)
        });
        let gone: Vec<WorkerId> = expired.gone.into_iter().chain(dead).collect();
        gone.into_iter().for_each(|worker| self.remove(worker, "its connection broke"));
        self.roster_is_old = true;
    }

    /// Sends examinations to those that are due.
    fn examine(&mut self) {
        for worker in self.members.connected() {
            let wanted = self.members.get(worker).is_some_and(|m| m.wish == members::Wish::Work);
            if !wanted || self.exams.values().any(|w| *w == worker) {
                continue;
            }
            let Some(question) = self.admission.exam(worker) else { continue };
            let lease = LeaseId(self.table.number());
            let task = gigasmith_proto::convert::task_to_wire(&Task::PredictNoise(question.task.clone()));
            self.exams.insert(lease, worker);
            self.send_assignment(worker, lease, task);
        }
    }

    fn send_assignment(&mut self, worker: WorkerId, lease: LeaseId, task: v1::assignment::Task) {
        let assignment = v1::Assignment { lease: lease.0, task: Some(task) };
        self.send(worker, Message::Assignment(assignment));
    }

    /// Sends a message; a worker whose queue is full or closed counts as disconnected.
    fn send(&mut self, worker: WorkerId, content: Message) {
        let Some(member) = self.members.get(worker) else { return };
        if !member.send(message(content))
            && let Some(from) = member.connection(worker)
        {
            self.leave(from, "its stream takes no more messages");
        }
    }

    fn assign(&mut self) {
        while let Some((worker, lease, id)) = self.table.assign(self.now()) {
            let pending = &self.pending[&id];
            if pending.reply.is_closed() {
                self.table.withdraw(id);
                self.pending.remove(&id);
                continue;
            }
            let task = pending.wire.clone();
            self.send_assignment(worker, lease, task);
        }
    }

    fn tell_withdrawn(&mut self) {
        for (worker, lease) in self.table.take_withdrawn() {
            self.send(worker, Message::Withdraw(v1::Withdraw { lease: lease.0 }));
        }
    }

    fn model_of(&self, worker: WorkerId) -> Option<Arc<ModelDescription>> {
        self.members.get(worker).map(|m| m.model.clone())
    }
}
