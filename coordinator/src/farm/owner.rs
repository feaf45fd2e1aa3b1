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
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::admission::Admission;
use super::table::{JobId, JobOptions, LeaseId, Millis, Requirement, TaskId, TaskOrder, TaskTable, WorkerId};
use super::{FarmOptions, LaneOptions, Roster, Shelf, TaskError, Underway, WorkerError};
use crate::metrics::{Direction, LeaseEvent, Metrics};
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
    Underway {
        job: JobId,
        reply: oneshot::Sender<Vec<Underway>>,
    },
    Depth {
        reply: oneshot::Sender<(usize, usize)>,
    },
    Submit(Box<Submission>),
    Join {
        hello: Box<Hello>,
        stream: ToWorker,
        reply: oneshot::Sender<Result<Connection, String>>,
    },
    Report {
        from: Connection,
        lease: LeaseId,
        outcome: Box<Outcome>,
        /// Whether every number of it is.
        is_finite: bool,
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
    /// Whether an answer held numbers that are not finite: a fault of a device gives them once, the model always.
    was_not_finite: bool,
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
    shelf: Shelf,
    metrics: Metrics,
    roster_is_old: bool,
    /// Something happened that may let an examination go on.
    exams_are_due: bool,
}

/// Performs commands until every handle is gone.
pub(super) async fn run(
    mut commands: mpsc::Receiver<Command>,
    roster: watch::Sender<Roster>,
    options: FarmOptions,
    shelf: Shelf,
) {
    let identifier = Identifier::random();
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
        shelf,
        metrics: options.metrics,
        roster_is_old: false,
        exams_are_due: false,
    };
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_tick = Instant::now();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => owner.perform(command),
                None => return,
            },
            _ = tick.tick() => {
                // What has arrived counts before the time does; and after a long sleep of this process the
                // others had no chance to be heard of.
                while let Ok(command) = commands.try_recv() {
                    owner.perform(command);
                }
                if last_tick.elapsed() < 5 * TICK {
                    owner.expire();
                }
                last_tick = Instant::now();
            }
        }
        if std::mem::take(&mut owner.exams_are_due) {
            owner.examine();
        }
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
            Command::Underway { job, reply } => answer(reply, self.underway(job)),
            Command::Depth { reply } => answer(reply, self.table.depth()),
            Command::Workers { reply } => answer(reply, self.statuses()),
            Command::ChangeWorker { name, change, reply } => answer(reply, self.change_worker(&name, change)),
            Command::Submit(submission) => self.submit(*submission),
            Command::Join { hello, stream, reply } => {
                let joined = self.join(*hello, stream);
                if let Err(Ok(from)) = reply.send(joined) {
                    self.leave(from, "it went away while joining");
                }
            }
            Command::Report { from, lease, outcome, is_finite } => {
                self.report(from.worker, lease, *outcome, is_finite);
            }
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

    fn underway(&self, job: JobId) -> Vec<Underway> {
        let leases = self.table.underway(self.now(), job).into_iter();
        let named = |(order, kind, worker, since): (TaskOrder, &'static str, WorkerId, u64)| Underway {
            order,
            kind,
            worker: self.members.get(worker).map_or(String::new(), |m| m.name.clone()),
            seconds: since as f64 / 1000.0,
        };
        leases.map(named).collect()
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { job, order, task, wire, reply } = submission;
        // A lane that is closed has dropped the other end.
        if let Some(id) = self.table.submit(job, order, task.kind()) {
            self.pending.insert(id, Pending { task, wire, reply, was_not_finite: false });
        }
    }

    fn join(&mut self, hello: Hello, stream: ToWorker) -> Result<Connection, String> {
        let now = self.now();
        self.members.check(&hello.model)?;
        let is_ours = hello.incarnation == Some(self.incarnation);
        let leases = if is_ours { &hello.leases[..] } else { &[] };
        let known = self.members.of_instance(hello.instance);
        let (worker, standing) = match known {
            Some(worker) => (worker, self.table.reconnect(now, worker, leases)),
            None => {
                let skills = self.members.skills(&hello.model);
                (self.table.join(now, skills, hello.slots), Vec::new())
            }
        };
        // A question asked on an earlier connection is lost with it, whether we saw that one break or not.
        self.exams.retain(|_, w| *w != worker);
        self.admission.set_able(worker, false);
        let from = self.members.connect(worker, hello, stream);
        let member = self.members.get(worker).expect("just connected");
        if known.is_none() {
            self.admission.join(worker, member.skills, member.model.clone());
        }
        let welcome = Welcome { name: member.name.clone(), incarnation: self.incarnation, leases: standing };
        let (name, device, model) = (&member.name, &member.device, &member.model.name);
        tracing::info!(worker = name, device, model, "worker connected");
        // The queue is new and empty.
        let _ = member.send(message(Message::Welcome(welcome_to_wire(&welcome))));
        if member.wish == members::Wish::Drain {
            // It may have been told on a connection that broke before it could hear.
            let _ = member.send(message(Message::Drain(v1::Drain {})));
        }
        self.reopen(worker);
        Ok(from)
    }

    /// Lets table and admission know whether a worker is wanted and here.
    fn reopen(&mut self, worker: WorkerId) {
        let member = self.members.get(worker);
        let is_wanted = member.is_some_and(|m| m.wish == members::Wish::Work);
        let is_here = member.is_some_and(|m| m.connection(worker).is_some());
        let is_able = is_wanted && is_here && !self.table.is_blocked(worker);
        if !is_able {
            self.exams.retain(|_, w| *w != worker);
        }
        self.admission.set_able(worker, is_able);
        let rating = self.admission.rating(worker);
        self.table.set_open(worker, rating.open && is_wanted, rating.mixes);
        (self.roster_is_old, self.exams_are_due) = (true, true);
    }

    /// Lets the table know about every worker: after an examination others may be promoted.
    fn reopen_all(&mut self) {
        self.members.ids().into_iter().for_each(|worker| self.reopen(worker));
    }

    fn leave(&mut self, from: Connection, reason: &str) {
        let Some(member) = self.members.disconnect(from) else { return };
        let is_done = member.wish == members::Wish::Drain && self.table.is_idle(from.worker);
        tracing::info!(worker = member.name, reason, "worker disconnected");
        self.table.disconnect(from.worker);
        self.reopen(from.worker);
        if is_done {
            self.remove(from.worker, "it drained and ended");
        }
    }

    /// A worker is gone for good.
    fn remove(&mut self, worker: WorkerId, reason: &str) {
        let status = self.status(worker);
        if let Some(status) = &status {
            self.metrics.forget(&status.name, &Task::KINDS);
        }
        self.table.leave(worker);
        self.admission.leave(worker);
        self.members.depart(worker, status, reason);
        self.reopen_all();
    }

    fn expire(&mut self) {
        let expired = self.table.expire(self.now());
        let ended = expired.silent.len() + expired.hung.len() + expired.gone.len();
        self.metrics.leases(LeaseEvent::expired, ended as u64);
        let name = |w: &WorkerId| self.members.get(*w).map_or("", |m| m.name.as_str());
        for worker in &expired.silent {
            tracing::warn!(worker = name(worker), "a worker is silent: its tasks go to others");
        }
        for worker in &expired.hung {
            tracing::warn!(worker = name(worker), "a worker is stuck: its task goes to another");
        }
        for worker in expired.gone {
            self.remove(worker, "its connection broke");
        }
        for worker in expired.hung {
            self.reopen(worker);
        }
        for worker in self.admission.overdue(self.now()) {
            self.exams.retain(|_, w| *w != worker);
            self.exam_failed(worker, "the device did not answer");
        }
        self.roster_is_old = true;
    }

    /// Sends examinations to those that are due.
    fn examine(&mut self) {
        let now = self.now();
        for worker in self.members.connected() {
            let Some(question) = self.admission.ask(now, worker) else { continue };
            if let (Some(conditioning), Task::PredictNoise(task)) = (&question.conditioning, &question.task) {
                let mut shelf = self.shelf.lock().expect("no holder panics");
                shelf.insert(task.conditioning, Arc::downgrade(conditioning));
            }
            let lease = LeaseId(self.table.number());
            self.exams.insert(lease, worker);
            self.send_assignment(worker, lease, gigasmith_proto::convert::task_to_wire(&question.task));
        }
    }

    fn send_assignment(&mut self, worker: WorkerId, lease: LeaseId, task: v1::assignment::Task) {
        let assignment = v1::Assignment { lease: lease.0, task: Some(task) };
        self.metrics.bytes(Direction::sent, assignment.encoded_len() as u64);
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
            self.metrics.leases(LeaseEvent::granted, 1);
            self.send_assignment(worker, lease, task);
        }
    }

    fn tell_withdrawn(&mut self) {
        for (worker, lease) in self.table.take_withdrawn() {
            self.metrics.leases(LeaseEvent::withdrawn, 1);
            self.send(worker, Message::Withdraw(v1::Withdraw { lease: lease.0 }));
        }
    }

    fn model_of(&self, worker: WorkerId) -> Option<Arc<ModelDescription>> {
        self.members.get(worker).map(|m| m.model.clone())
    }
}
