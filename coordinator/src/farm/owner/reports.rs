//! What comes back from workers, and what people see and change of them.

use std::time::Duration;

use gigasmith_proto::convert::{Outcome, TaskFailure};
use gigasmith_proto::domain::{Component, Dtype, TaskResult, WorkerChange, WorkerState, WorkerStatus};
use gigasmith_proto::v1;
use gigasmith_proto::v1::coordinator_message::Message;

use super::super::table::{LEASE, LeaseId, Verdict, WorkerId};
use super::super::{TaskError, WorkerError, check};
use super::Owner;
use super::members::Wish;
use crate::metrics::TaskOutcome;

/// An answer of numbers that are not finite. What to do about it depends on what it was computed in.
fn not_finite(dtype: Dtype, permanent: bool) -> TaskFailure {
    let remedy = match dtype {
        Dtype::F16 => "half precision may overflow in this model; try --dtype f32 or bf16",
        Dtype::F32 | Dtype::Bf16 => {
            "the model's weights or its configuration are damaged, or no model of this kind"
        }
    };
    TaskFailure { message: format!("the answer holds numbers that are not finite: {remedy}"), permanent }
}

impl Owner {
    /// Takes in a report, whatever it is of, and acknowledges it.
    pub(super) fn report(&mut self, worker: WorkerId, lease: LeaseId, outcome: Outcome, is_finite: bool) {
        self.table.hear(self.now(), worker);
        self.send(worker, Message::Acknowledge(v1::Acknowledge { lease: lease.0 }));
        if self.exams.get(&lease) == Some(&worker) {
            self.exams.remove(&lease);
            let dtype = self.model_of(worker).map(|model| model.numeric_class.dtype);
            let outcome = match dtype {
                Some(dtype) if !is_finite => Err(not_finite(dtype, false)),
                _ => outcome,
            };
            return self.examined(worker, outcome);
        }
        let (Some(id), Some(model)) = (self.table.leased(worker, lease), self.model_of(worker)) else {
            tracing::debug!(lease = lease.0, "a late result was dropped");
            self.metrics.task("any", TaskOutcome::late);
            return;
        };
        if !is_finite {
            // The same question twice: of the same class, the same answer, wherever it is asked next.
            let pending = self.pending.get_mut(&id).expect("the table knows only pending tasks");
            let again = std::mem::replace(&mut pending.was_not_finite, true);
            return self.failed(worker, lease, not_finite(model.numeric_class.dtype, again));
        }
        let task = &self.pending[&id].task;
        let text = self.members.get(worker).and_then(|m| self.admission.text_shapes(m.skills.model));
        let checked = outcome.and_then(|result| match check::shape(task, &result, &model, text.as_ref()) {
            Ok(()) => Ok(result),
            Err(message) => Err(TaskFailure { message, permanent: false }),
        });
        match checked {
            Ok(result) => self.succeeded(worker, lease, result),
            Err(failure) => self.failed(worker, lease, failure),
        }
    }

    /// Takes in the answer to a question of an examination.
    fn examined(&mut self, worker: WorkerId, outcome: Outcome) {
        let (Some(question), Some(member)) = (self.admission.asked(worker), self.members.get(worker)) else {
            return;
        };
        let text = self.admission.text_shapes(member.skills.model);
        let checked = outcome.map_err(|failure| failure.message).and_then(|result| {
            check::shape(&question.task, &result, &member.model, text.as_ref()).map(|()| result)
        });
        match checked {
            Ok(result) => {
                if self.admission.answered(self.now(), worker, result) {
                    let class = self.model_of(worker).map(|model| model.numeric_class.to_string());
                    tracing::warn!(
                        worker = self.name(worker),
                        class,
                        "a worker's answers take the place of its class's: all others of it are examined again"
                    );
                    self.reopen_all();
                }
                self.after_exam(worker);
            }
            Err(message) => self.exam_failed(worker, &message),
        }
    }

    pub(super) fn exam_failed(&mut self, worker: WorkerId, message: &str) {
        tracing::warn!(worker = self.name(worker), message, "an examination broke off");
        self.admission.failed(worker, message);
        self.after_exam(worker);
    }

    fn after_exam(&mut self, worker: WorkerId) {
        if let Some((true, reason)) = self.admission.objection(worker) {
            tracing::error!(worker = self.name(worker), reason, "a worker is refused");
            self.tell(worker, format!("refused: {reason}"));
        }
        self.reopen(worker);
    }

    fn name(&self, worker: WorkerId) -> &str {
        self.members.get(worker).map_or("", |m| m.name.as_str())
    }

    fn succeeded(&mut self, worker: WorkerId, lease: LeaseId, result: TaskResult) {
        let age = self.table.lease_age(self.now(), lease);
        if let Verdict::Done(id) = self.table.succeed(self.now(), worker, lease) {
            if let Some((kind, took)) = age {
                self.metrics.task(kind, TaskOutcome::done);
                self.metrics.took(kind, self.name(worker), Duration::from_millis(took));
            }
            if let Some(member) = self.members.get_mut(worker) {
                member.done += 1;
            }
            let pending = self.pending.remove(&id).expect("the table knows only pending tasks");
            // The asker may have gone meanwhile: then nobody wants the answer.
            let _ = pending.reply.send(Ok(result));
        }
    }

    fn failed(&mut self, worker: WorkerId, lease: LeaseId, failure: TaskFailure) {
        let Some(id) = self.table.leased(worker, lease) else { return };
        let kind = self.pending[&id].task.kind();
        let name = self.members.get_mut(worker).map_or_else(String::new, |member| {
            member.failed += 1;
            member.name.clone()
        });
        self.metrics.task(kind, TaskOutcome::failed);
        let TaskFailure { message, permanent } = failure;
        tracing::warn!(worker = name, kind, message, "a task failed");
        let verdict = self.table.fail(self.now(), worker, lease, permanent);
        if self.table.is_blocked(worker) {
            tracing::error!(worker = name, "a worker fails again and again: it gets no more tasks");
            self.tell(worker, format!("blocked after several failures in a row, the last: {message}"));
            self.reopen(worker);
        }
        match verdict {
            Verdict::Failed(id, attempts) => {
                let pending = self.pending.remove(&id).expect("the table knows only pending tasks");
                // The asker may have gone meanwhile: then nobody wants the answer.
                let _ = pending.reply.send(Err(TaskError::Failed { kind, attempts, message }));
            }
            Verdict::Paused(job, attempts) => {
                let reason = format!("a {kind} task failed {attempts} times, last on {name}: {message}");
                if let Some(Some(told)) = self.lanes.get(&job) {
                    // A render that has ended needs no reason.
                    let _ = told.send(reason);
                }
            }
            Verdict::Done(_) | Verdict::Again | Verdict::Stale => {}
        }
    }

    /// Tells a worker's owner something, once.
    fn tell(&mut self, worker: WorkerId, text: String) {
        let Some(member) = self.members.get_mut(worker) else { return };
        if member.told.as_ref() != Some(&text) {
            member.told = Some(text.clone());
            self.send(worker, Message::Notice(v1::Notice { text }));
        }
    }

    /// A worker takes no more tasks.
    pub(super) fn draining(&mut self, worker: WorkerId) {
        if let Some(member) = self.members.get_mut(worker) {
            member.wish = Wish::Drain;
            self.reopen(worker);
        }
    }

    pub(super) fn change_worker(
        &mut self,
        name: &str,
        change: WorkerChange,
    ) -> Result<WorkerStatus, WorkerError> {
        let Some(worker) = self.members.named(name) else {
            return self.change_departed(name, change);
        };
        self.members.set_disabled(name, change == WorkerChange::Disable);
        let member = self.members.get_mut(worker).expect("found by its name");
        let skills = member.skills;
        match change {
            // A worker that drains has been told, and ends: nothing brings it back.
            WorkerChange::Enable | WorkerChange::Disable if member.wish == Wish::Drain => {}
            WorkerChange::Enable => {
                (member.wish, member.told) = (Wish::Work, None);
                self.table.forgive(worker);
                let is_free = !self.table.is_required(skills);
                self.admission.retry(worker, is_free);
            }
            WorkerChange::Disable => member.wish = Wish::Rest,
            WorkerChange::Drain => {
                member.wish = Wish::Drain;
                self.send(worker, Message::Drain(v1::Drain {}));
            }
        }
        self.reopen(worker);
        Ok(self.status(worker).expect("it is here"))
    }

    /// A worker that is away can be disabled or enabled for when it returns.
    fn change_departed(&mut self, name: &str, change: WorkerChange) -> Result<WorkerStatus, WorkerError> {
        let departed = self.members.departed().find(|d| d.name == name).cloned();
        match departed {
            Some(status) if change != WorkerChange::Drain => {
                self.members.set_disabled(name, change == WorkerChange::Disable);
                Ok(status)
            }
            _ => {
                let names: Vec<String> = self.statuses().into_iter().map(|s| s.name).collect();
                let known = match names.is_empty() {
                    true => "no worker has ever joined".to_owned(),
                    false => format!("there are {}", names.join(", ")),
                };
                Err(WorkerError::Unknown { name: name.to_owned(), known })
            }
        }
    }

    pub(super) fn statuses(&self) -> Vec<WorkerStatus> {
        let here = self.members.ids().into_iter().filter_map(|worker| self.status(worker));
        let mut all: Vec<WorkerStatus> = here.chain(self.members.departed().cloned()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub(super) fn status(&self, worker: WorkerId) -> Option<WorkerStatus> {
        let member = self.members.get(worker)?;
        let (busy, silent, pace) = self.table.worker(self.now(), worker)?;
        let (state, reason) = self.state(worker, busy, silent);
        let unet = member.model.fingerprints.iter().find(|(c, _)| *c == Component::Unet);
        Some(WorkerStatus {
            name: member.name.clone(),
            state,
            device: member.device.clone(),
            version: member.version.clone(),
            model: member.model.name.clone(),
            numeric_class: member.model.numeric_class.to_string(),
            fingerprint: unet.map_or(String::new(), |(_, f)| f.to_string()),
            slots: member.slots,
            busy: busy as u32,
            done: member.done,
            failed: member.failed,
            seconds_per_task: pace.unwrap_or(0) as f64 / 1000.0,
            silent_for: silent as f64 / 1000.0,
            reason,
        })
    }

    fn state(&self, worker: WorkerId, busy: usize, silent: u64) -> (WorkerState, String) {
        let member = self.members.get(worker).expect("the caller looked");
        if let Some((true, reason)) = self.admission.objection(worker) {
            return (WorkerState::Refused, reason);
        }
        if self.table.is_blocked(worker) {
            let last = member.told.clone().unwrap_or_else(|| "it was stuck several times".to_owned());
            let remedy = format!("{last}; `gigasmith workers enable {}` tries again", member.name);
            return (WorkerState::Blocked, remedy);
        }
        let is_connected = member.connection(worker).is_some();
        if !is_connected {
            return (
                WorkerState::Silent,
                format!("its connection broke; last heard of {} s ago", silent / 1000),
            );
        }
        if silent >= LEASE.0 {
            return (WorkerState::Silent, format!("connected, but not heard of for {} s", silent / 1000));
        }
        match member.wish {
            Wish::Drain => return (WorkerState::Draining, "it finishes what it has, and ends".to_owned()),
            Wish::Rest => return (WorkerState::Disabled, "`gigasmith workers disable`".to_owned()),
            Wish::Work => {}
        }
        if let Some((false, reason)) = self.admission.objection(worker) {
            return (WorkerState::Examined, reason);
        }
        (if busy > 0 { WorkerState::Working } else { WorkerState::Idle }, String::new())
    }
}
