//! The workers as people know them: names, streams, what is wanted of them, and who was here before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use gigasmith_proto::domain::{
    Component, Fingerprint, Hello, Identifier, ModelDescription, NumericClass, WorkerState, WorkerStatus,
};
use gigasmith_proto::v1;

use super::super::admission::Admission;
use super::super::roster::{Kind, Roster};
use super::super::table::{ClassKey, ModelKey, Skills, TaskTable, WorkerId};
use super::{Connection, ToWorker};

/// Workers that are remembered after they have gone.
const REMEMBERED: usize = 200;

/// What a person, or the worker itself, wants of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Work,
    Rest,
    Drain,
}

/// A worker that is here, or was a moment ago.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) device: String,
    pub(super) version: String,
    pub(super) slots: u32,
    pub(super) model: Arc<ModelDescription>,
    pub(super) wish: Wish,
    pub(super) done: u64,
    pub(super) failed: u64,
    /// The last refusal it was told of.
    pub(super) told: Option<String>,
    instance: Identifier,
    pub(super) skills: Skills,
    stream: Option<(u64, ToWorker)>,
}

impl Member {
    /// Puts a message into the worker's queue; false when it is full, closed or absent.
    pub(super) fn send(&self, message: v1::CoordinatorMessage) -> bool {
        // A worker between two connections loses what is said meanwhile: it asks what stands when it returns.
        self.stream.as_ref().is_none_or(|(_, stream)| stream.try_send(Ok(message)).is_ok())
    }

    pub(super) fn connection(&self, worker: WorkerId) -> Option<Connection> {
        self.stream.as_ref().map(|(number, _)| Connection { worker, number: *number })
    }
}

/// All workers.
#[derive(Debug, Default)]
pub(super) struct Members {
    members: BTreeMap<WorkerId, Member>,
    departed: VecDeque<WorkerStatus>,
    /// Names of workers that a person disabled: they stay so when they return.
    disabled: BTreeSet<String>,
    models: Vec<Vec<(Component, Fingerprint)>>,
    classes: Vec<NumericClass>,
    connections: u64,
}

impl Members {
    /// The farm's numbers for a model's weights and class.
    pub(super) fn skills(&mut self, model: &ModelDescription) -> Skills {
        fn number<T: Clone + PartialEq>(known: &mut Vec<T>, value: &T) -> u32 {
            let at = known.iter().position(|k| k == value).unwrap_or_else(|| {
                known.push(value.clone());
                known.len() - 1
            });
            at as u32
        }
        Skills {
            model: ModelKey(number(&mut self.models, &model.fingerprints)),
            class: ClassKey(number(&mut self.classes, &model.numeric_class)),
        }
    }

    /// Whether a model is described as others with the same weights describe it: all that decides shapes
    /// and arithmetic on our side.
    pub(super) fn check(&self, model: &ModelDescription) -> Result<(), String> {
        let facts = |m: &ModelDescription| {
            let sizes = [m.patch_side, m.latent_channels, m.latent_factor, m.vae_tile];
            (sizes, m.scaling_factor.to_bits(), m.schedule, m.force_zeros_for_empty_prompt)
        };
        let same_weights = |m: &&Member| m.model.fingerprints == model.fingerprints;
        match self.members.values().find(same_weights).filter(|m| facts(&m.model) != facts(model)) {
            None => Ok(()),
            Some(other) => Err(format!(
                "its model `{}` has the weights of {}'s, but other sizes or another schedule: use the same \
                 files and the same release on both",
                model.name, other.name
            )),
        }
    }

    pub(super) fn of_instance(&self, instance: Identifier) -> Option<WorkerId> {
        self.members.iter().find(|(_, m)| m.instance == instance).map(|(&id, _)| id)
    }

    /// A worker connects, for the first time or again.
    pub(super) fn connect(&mut self, worker: WorkerId, hello: Hello, stream: ToWorker) -> Connection {
        self.connections += 1;
        let number = self.connections;
        if let Some(member) = self.members.get_mut(&worker) {
            member.stream = Some((number, stream));
            return Connection { worker, number };
        }
        let name = self.free_name(&hello.name);
        self.departed.retain(|d| d.name != name);
        let wish = if self.disabled.contains(&name) { Wish::Rest } else { Wish::Work };
        let skills = self.skills(&hello.model);
        let model = self.members.values().find(|m| *m.model == hello.model).map(|m| m.model.clone());
        let member = Member {
            name,
            device: hello.device,
            version: hello.version,
            slots: hello.slots,
            model: model.unwrap_or_else(|| Arc::new(hello.model)),
            wish,
            done: 0,
            failed: 0,
            told: None,
            instance: hello.instance,
            skills,
            stream: Some((number, stream)),
        };
        self.members.insert(worker, member);
        Connection { worker, number }
    }

    /// `name`, or `name-2` and so on where that is taken.
    fn free_name(&self, name: &str) -> String {
        let is_taken = |name: &str| self.members.values().any(|m| m.name == name);
        if !is_taken(name) {
            return name.to_owned();
        }
        (2u64..).map(|i| format!("{name}-{i}")).find(|n| !is_taken(n)).expect("names do not run out")
    }

    /// Ends a connection; `None` when the worker has a newer one.
    pub(super) fn disconnect(&mut self, from: Connection) -> Option<&Member> {
        let member = self.members.get_mut(&from.worker)?;
        if member.stream.as_ref().is_none_or(|(number, _)| *number != from.number) {
            return None;
        }
        member.stream = None;
        Some(member)
    }

    /// A worker is gone for good, and remembered.
    pub(super) fn depart(&mut self, worker: WorkerId, status: Option<WorkerStatus>, reason: &str) {
        self.members.remove(&worker);
        if let Some(status) = status {
            if self.departed.len() == REMEMBERED {
                self.departed.pop_front();
            }
            let says_more = matches!(status.state, WorkerState::Refused | WorkerState::Blocked);
            let reason = if says_more { status.reason } else { reason.to_owned() };
            let state = WorkerState::Offline;
            self.departed.push_back(WorkerStatus { state, busy: 0, reason, ..status });
        }
    }

    pub(super) fn get(&self, worker: WorkerId) -> Option<&Member> {
        self.members.get(&worker)
    }

    pub(super) fn get_mut(&mut self, worker: WorkerId) -> Option<&mut Member> {
        self.members.get_mut(&worker)
    }

    pub(super) fn ids(&self) -> Vec<WorkerId> {
        self.members.keys().copied().collect()
    }

    pub(super) fn connected(&self) -> Vec<WorkerId> {
        self.members.iter().filter(|(_, m)| m.stream.is_some()).map(|(&id, _)| id).collect()
    }

    pub(super) fn named(&self, name: &str) -> Option<WorkerId> {
        self.members.iter().find(|(_, m)| m.name == name).map(|(&id, _)| id)
    }

    /// Remembers what a person wants of the worker of this name, now and when it returns.
    pub(super) fn set_disabled(&mut self, name: &str, disabled: bool) {
        if disabled {
            self.disabled.insert(name.to_owned());
        } else {
            self.disabled.remove(name);
        }
    }

    pub(super) fn departed(&self) -> impl Iterator<Item = &WorkerStatus> {
        self.departed.iter()
    }

    /// Workers counted by kind.
    pub(super) fn roster(&self, table: &TaskTable, admission: &Admission) -> Roster {
        let mut kinds: Vec<(Skills, Kind)> = Vec::new();
        for (&id, member) in self.members.iter().filter(|(_, m)| m.stream.is_some()) {
            let at = kinds.iter().position(|(skills, _)| *skills == member.skills).unwrap_or_else(|| {
                let model = member.model.clone();
                kinds
                    .push((member.skills, Kind { model, workers: 0, able: 0, open: 0, mixing: 0, slots: 0 }));
                kinds.len() - 1
            });
            let rating = admission.rating(id);
            let kind = &mut kinds[at].1;
            kind.workers += 1;
            let is_refused = admission.objection(id).is_some_and(|(refused, _)| refused);
            if is_refused || member.wish != Wish::Work || table.is_blocked(id) {
                continue;
            }
            kind.able += 1;
            if rating.open {
                kind.open += 1;
                kind.mixing += usize::from(rating.mixes);
                kind.slots += member.slots as usize;
            }
        }
        Roster { kinds: kinds.into_iter().map(|(_, kind)| kind).collect() }
    }
}
