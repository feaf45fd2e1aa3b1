//! The one task that owns the table and performs what it decides.
//!
//! It never waits for a worker: a worker's outgoing queue has room for all its slots, and one that
//! is full anyway counts as broken. Time is the runtime's monotonic clock, counted from the farm's
//! start: a step of the wall clock changes nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gigasmith_proto::convert::{Outcome, TaskFailure, assignment_to_wire};
use gigasmith_proto::domain::{ModelDescription, Task, TaskResult};
use gigasmith_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::table::{LeaseId, Millis, TaskId, TaskOrder, TaskTable, Verdict, WorkerId};
use super::{Roster, TaskError, check};

/// The sending end of a worker's stream.
pub(super) type ToWorker = mpsc::Sender<Result<v1::CoordinatorMessage, tonic::Status>>;

/// What the owner is told.
#[derive(Debug)]
pub(super) enum Command {
    Submit {
        order: TaskOrder,
        task: Task,
        reply: oneshot::Sender<Result<TaskResult, TaskError>>,
    },
    Join {
        name: String,
        slots: u32,
        model: Box<ModelDescription>,
        stream: ToWorker,
        reply: oneshot::Sender<WorkerId>,
    },
    Report {
        worker: WorkerId,
        lease: LeaseId,
        outcome: Box<Outcome>,
    },
    Heartbeat {
        worker: WorkerId,
    },
    Leave {
        worker: WorkerId,
        reason: String,
    },
}

struct Pending {
    task: Task,
    reply: oneshot::Sender<Result<TaskResult, TaskError>>,
}

struct Member {
    name: String,
    model: Arc<ModelDescription>,
    stream: ToWorker,
}

/// How often silent workers are looked for.
const TICK: Duration = Duration::from_secs(1);

struct Owner {
    started: Instant,
    table: TaskTable,
    pending: HashMap<TaskId, Pending>,
    members: HashMap<WorkerId, Member>,
    model: Option<Arc<ModelDescription>>,
}

/// Performs commands until every handle is gone.
pub(super) async fn run(mut commands: mpsc::UnboundedReceiver<Command>, roster: watch::Sender<Roster>) {
    let mut owner = Owner {
        started: Instant::now(),
        table: TaskTable::default(),
        pending: HashMap::new(),
        members: HashMap::new(),
        model: None,
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
        owner.assign();
        let (workers, slots) = owner.table.capacity();
        let model = owner.model.clone();
        roster.send_if_modified(|r| {
            let now = Roster { workers, slots, model };
            let changed = *r != now;
            *r = now;
            changed
        });
    }
}

impl Owner {
    fn now(&self) -> Millis {
        Millis(self.started.elapsed().as_millis() as u64)
    }

    fn expire(&mut self) {
        for worker in self.table.expire(self.now()) {
            let name = self.members.get(&worker).map_or("", |m| m.name.as_str());
            tracing::warn!(worker = name, "a worker is silent: its tasks go to others");
        }
    }

    fn perform(&mut self, command: Command) {
        match command {
            Command::Submit { order, task, reply } => {
                let id = self.table.submit(order);
                self.pending.insert(id, Pending { task, reply });
            }
            Command::Join { name, slots, model, stream, reply } => {
                let worker = self.table.join(self.now(), slots);
                let model = Arc::new(*model);
                self.model.get_or_insert_with(|| model.clone());
                self.members.insert(worker, Member { name, model, stream });
                if reply.send(worker).is_err() {
                    self.leave(worker, "it went away while joining");
                }
            }
            Command::Report { worker, lease, outcome } => self.report(worker, lease, *outcome),
            Command::Heartbeat { worker } => self.table.hear(self.now(), worker),
            Command::Leave { worker, reason } => self.leave(worker, &reason),
        }
    }

    fn leave(&mut self, worker: WorkerId, reason: &str) {
        self.table.leave(worker);
        if let Some(member) = self.members.remove(&worker) {
            tracing::info!(worker = member.name, reason, "worker left");
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
            let assignment = assignment_to_wire(lease.0, pending.task.clone());
            let message = v1::coordinator_message::Message::Assignment(assignment);
            let message = v1::CoordinatorMessage { message: Some(message) };
            let sent = self.members.get(&worker).is_some_and(|m| m.stream.try_send(Ok(message)).is_ok());
            if !sent {
                self.leave(worker, "its stream takes no more messages");
            }
        }
    }

    fn report(&mut self, worker: WorkerId, lease: LeaseId, outcome: Outcome) {
        let now = self.now();
        self.table.hear(now, worker);
        let (Some(id), Some(member)) = (self.table.leased(worker, lease), self.members.get(&worker)) else {
            tracing::debug!(lease = lease.0, "a late result was dropped");
            return;
        };
        let task = &self.pending[&id].task;
        let checked = outcome.and_then(|result| match check::result(task, &result, &member.model) {
            Ok(()) => Ok(result),
            Err(message) => Err(TaskFailure { message, permanent: false }),
        });
        let kind = task.kind();
        let (verdict, answer) = match checked {
            Ok(result) => (self.table.succeed(now, worker, lease), Ok(result)),
            Err(TaskFailure { message, permanent }) => {
                tracing::warn!(worker = member.name, kind, message, "a task failed");
                let verdict = self.table.fail(now, worker, lease, permanent);
                if self.table.is_blocked(worker) {
                    tracing::error!(
                        worker = member.name,
                        "a worker fails again and again: it gets no more tasks"
                    );
                }
                let attempts = if let Verdict::Failed(_, attempts) = verdict { attempts } else { 0 };
                (verdict, Err(TaskError::Failed { kind, attempts, message }))
            }
        };
        if let Verdict::Done(id) | Verdict::Failed(id, _) = verdict {
            let pending = self.pending.remove(&id).expect("the table knows only pending tasks");
            // The asker may have gone meanwhile: then nobody wants the answer.
            let _ = pending.reply.send(answer);
        }
    }
}
