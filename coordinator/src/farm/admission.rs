//! Whose results can be trusted: a worker is admitted once it gave the right answer to a patch.
//!
//! Pure: events in, decisions out. Workers of the same weights and numeric class must give the same
//! bytes. The first worker of a farm for some weights, the *founder*, computes its first patch twice; if
//! both answers agree to the bit, the patch becomes the *canary* of these weights. Every other worker
//! computes the canary before anything else: one of a known class must give the known bytes; the first of
//! another class computes it twice, and its class may share a render with others (`--mix`) where its
//! answer lies within [`MIX_TOLERANCE`] of the first class's.
//!
//! Invariants: no patch of an unconfirmed founder counts; a worker whose answer differs gets no tasks,
//! with the difference as the reason, until a person has it examined again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gigasmith_proto::domain::{Array, Conditioning, NoiseTask};

use super::table::{ClassKey, ModelKey, Skills, WorkerId};

/// How far a class's canary may lie from the first class's, as relative L2, for both to work on one
/// render: half precision moves one noise prediction of SDXL by some thousandths.
pub const MIX_TOLERANCE: f64 = 0.02;
/// How often an examination may break off before the worker is refused.
const MAX_TRIES: u32 = 3;

/// A patch and what it needs.
#[derive(Debug, Clone)]
pub struct Question {
    /// The patch.
    pub task: NoiseTask,
    /// Its text.
    pub conditioning: Arc<Conditioning>,
}

#[derive(Debug)]
struct Canary {
    question: Arc<Question>,
    /// The first class's answer.
    answer: Arc<Array>,
}

/// A class of which one worker was confirmed.
#[derive(Debug)]
struct Class {
    /// Its answer to the canary.
    answer: Arc<Array>,
    mixes: bool,
}

#[derive(Debug)]
enum Standing {
    /// Another worker of its kind is being examined first.
    Waits,
    /// The first of its kind; what it answered first, when it has.
    Founder(Option<(Arc<Question>, Arc<Array>)>),
    /// Must give the known answer.
    Examined,
    Admitted,
    Refused(String),
}

#[derive(Debug)]
struct Candidate {
    skills: Skills,
    standing: Standing,
    tries: u32,
}

/// What the farm may do with a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rating {
    /// It may get tasks.
    pub open: bool,
    /// Also of renders that allow any class.
    pub mixes: bool,
}

/// Who is admitted.
#[derive(Debug, Default)]
pub struct Admission {
    /// Whether workers are examined at all: a farm of one inside the process has nothing to compare.
    examines: bool,
    canaries: HashMap<ModelKey, Canary>,
    classes: HashMap<(ModelKey, ClassKey), Class>,
    candidates: BTreeMap<WorkerId, Candidate>,
}

impl Admission {
    /// Admission with or without examinations.
    pub fn new(examines: bool) -> Self {
        Self { examines, ..Self::default() }
    }

    /// A worker comes.
    pub fn join(&mut self, worker: WorkerId, skills: Skills) {
        let standing = if self.examines { Standing::Waits } else { Standing::Admitted };
        self.candidates.insert(worker, Candidate { skills, standing, tries: 0 });
        self.promote(skills.model);
    }

    /// A worker is gone.
    pub fn leave(&mut self, worker: WorkerId) {
        if let Some(candidate) = self.candidates.remove(&worker) {
            self.promote(candidate.skills.model);
        }
    }

    /// Examines a refused worker again.
    pub fn retry(&mut self, worker: WorkerId) {
        let Some(candidate) = self.candidates.get_mut(&worker) else { return };
        if matches!(candidate.standing, Standing::Refused(_)) {
            (candidate.standing, candidate.tries) = (Standing::Waits, 0);
            let skills = candidate.skills;
            self.promote(skills.model);
        }
    }

    /// Gives those who wait their turn: a founder where a class has none (one class at a time until there
    /// is a canary), everyone else once their class's answer is known.
    fn promote(&mut self, model: ModelKey) {
        let has_canary = self.canaries.contains_key(&model);
        let of_model = |c: &&Candidate| c.skills.model == model;
        let founders = self.candidates.values().filter(of_model);
        let founders = founders.filter(|c| matches!(c.standing, Standing::Founder(_)));
        let mut founding: Vec<ClassKey> = founders.map(|c| c.skills.class).collect();
        for candidate in self.candidates.values_mut().filter(|c| c.skills.model == model) {
            let class = candidate.skills.class;
            if !matches!(candidate.standing, Standing::Waits) {
                continue;
            }
            if self.classes.contains_key(&(model, class)) {
                candidate.standing = Standing::Examined;
            } else if !founding.contains(&class) && (has_canary || founding.is_empty()) {
                founding.push(class);
                candidate.standing = Standing::Founder(None);
            }
        }
    }

    /// What the farm may do with a worker now.
    pub fn rating(&self, worker: WorkerId) -> Rating {
        let Some(candidate) = self.candidates.get(&worker) else {
            return Rating { open: false, mixes: false };
        };
        let Skills { model, class } = candidate.skills;
        match candidate.standing {
            Standing::Admitted if !self.examines => Rating { open: true, mixes: true },
            Standing::Admitted => {
                Rating { open: true, mixes: self.classes.get(&(model, class)).is_some_and(|c| c.mixes) }
            }
            // Before there is a canary a founder works: its first patch becomes the canary.
            Standing::Founder(None) if !self.canaries.contains_key(&model) => {
                Rating { open: true, mixes: true }
            }
            _ => Rating { open: false, mixes: false },
        }
    }

    /// Whether patches of this worker must be held until its founding patch is confirmed.
    pub fn is_unconfirmed(&self, worker: WorkerId) -> bool {
        self.candidates.get(&worker).is_some_and(|c| matches!(c.standing, Standing::Founder(_)))
    }

    /// A founder without a canary has done its first patch. Whether that patch becomes the candidate for
    /// the canary: later ones don't.
    pub fn founding_patch(&mut self, worker: WorkerId, question: Question, answer: Arc<Array>) -> bool {
        match self.candidates.get_mut(&worker).map(|c| &mut c.standing) {
            Some(Standing::Founder(first @ None)) => {
                *first = Some((Arc::new(question), answer));
                true
            }
            _ => false,
        }
    }

    /// The patch that a worker should compute next to be examined, if any.
    pub fn exam(&self, worker: WorkerId) -> Option<Arc<Question>> {
        let candidate = self.candidates.get(&worker)?;
        match &candidate.standing {
            Standing::Founder(Some((question, _))) => Some(question.clone()),
            Standing::Founder(None) | Standing::Examined => {
                self.canaries.get(&candidate.skills.model).map(|c| c.question.clone())
            }
            _ => None,
        }
    }

    /// A worker has answered its examination.
    pub fn answered(&mut self, worker: WorkerId, answer: Arc<Array>) {
        let Some(candidate) = self.candidates.get_mut(&worker) else { return };
        let skills = candidate.skills;
        let key = (skills.model, skills.class);
        match &mut candidate.standing {
            Standing::Founder(first @ None) => {
                if let Some(canary) = self.canaries.get(&skills.model) {
                    *first = Some((canary.question.clone(), answer));
                }
                return;
            }
            Standing::Founder(Some((question, first))) => {
                if let Some(difference) = difference(first, &answer) {
                    candidate.standing =
                        Standing::Refused(format!("it gave two answers to the same patch: {difference}"));
                } else {
                    let (question, answer) = (question.clone(), first.clone());
                    candidate.standing = Standing::Admitted;
                    let canary = self
                        .canaries
                        .entry(skills.model)
                        .or_insert_with(|| Canary { question, answer: answer.clone() });
                    let mixes = relative_l2(&canary.answer, &answer) <= MIX_TOLERANCE;
                    self.classes.insert(key, Class { answer, mixes });
                }
            }
            standing @ Standing::Examined => {
                let known = self.classes.get(&key).map(|c| &c.answer);
                *standing = match known.and_then(|known| difference(known, &answer)) {
                    None => Standing::Admitted,
                    Some(difference) => Standing::Refused(format!(
                        "its canary patch is not the farm's: {difference}; see that its driver, build and \
                         weights are those of the others, then `gigasmith workers enable` it"
                    )),
                };
            }
            _ => return,
        }
        self.promote(skills.model);
    }

    /// An examination broke off: it is tried again a few times.
    pub fn exam_failed(&mut self, worker: WorkerId, message: &str) {
        let Some(candidate) = self.candidates.get_mut(&worker) else { return };
        candidate.tries += 1;
        if candidate.tries >= MAX_TRIES && !matches!(candidate.standing, Standing::Admitted) {
            candidate.standing = Standing::Refused(format!("its examination failed: {message}"));
            let skills = candidate.skills;
            self.promote(skills.model);
        }
    }

    /// Why a worker gets no tasks; `None` when it may, and whether it is refused for good.
    pub fn objection(&self, worker: WorkerId) -> Option<(bool, String)> {
        match &self.candidates.get(&worker)?.standing {
            Standing::Waits => Some((false, "another worker of its kind is examined first".to_owned())),
            Standing::Founder(Some(_)) => Some((false, "its first patch is computed twice".to_owned())),
            Standing::Founder(None) if self.rating(worker).open => None,
            Standing::Founder(None) | Standing::Examined => {
                Some((false, "it computes a patch whose answer is known".to_owned()))
            }
            Standing::Admitted => None,
            Standing::Refused(reason) => Some((true, reason.clone())),
        }
    }
}

/// How two answers differ, if they do, in a bit.
fn difference(known: &Array, answer: &Array) -> Option<String> {
    if known.shape() != answer.shape() {
        return Some(format!("shape {:?}, not {:?}", answer.shape(), known.shape()));
    }
    let pairs = || known.data().iter().zip(answer.data());
    let differing = pairs().filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    (differing > 0).then(|| {
        let largest = pairs().fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        format!("{differing} of {} values differ, by up to {largest:.1e}", known.data().len())
    })
}

fn relative_l2(known: &Array, answer: &Array) -> f64 {
    let (error, norm) = known.data().iter().zip(answer.data()).fold((0.0, 0.0), |(e, n), (&a, &b)| {
        (e + (f64::from(a) - f64::from(b)).powi(2), n + f64::from(a).powi(2))
    });
    if norm > 0.0 { (error / norm).sqrt() } else { error.sqrt() }
}

#[cfg(test)]
mod tests {
    use gigasmith_proto::domain::{ConditioningId, WireDtype};

    use super::*;

    const GPU: Skills = Skills { model: ModelKey(0), class: ClassKey(0) };
    const CPU: Skills = Skills { model: ModelKey(0), class: ClassKey(1) };

    fn answer(value: f32) -> Arc<Array> {
        Arc::new(Array::new([2], vec![1.0, value]).unwrap())
    }

    fn question() -> Question {
        let task = NoiseTask {
            latent: Arc::new(Array::zeros([1, 1, 2])),
            wire: WireDtype::F32,
            timestep: 1,
            time_ids: [0.0; 6],
            conditioning: ConditioningId([0; 32]),
            guidance_scale: 1.0,
            pag: None,
        };
        let (prompt, pooled) = (Array::zeros([1, 1]), Array::zeros([1]));
        Question { task, conditioning: Arc::new(Conditioning { prompt, pooled, negative: None }) }
    }

    /// A farm whose first worker (1) has founded the class `GPU`.
    fn founded() -> Admission {
        let mut admission = Admission::new(true);
        admission.join(WorkerId(1), GPU);
        assert!(admission.rating(WorkerId(1)).open && admission.is_unconfirmed(WorkerId(1)));
        assert!(admission.exam(WorkerId(1)).is_none(), "there is nothing to ask yet");
        assert!(admission.founding_patch(WorkerId(1), question(), answer(2.0)));
        assert!(!admission.founding_patch(WorkerId(1), question(), answer(3.0)), "only the first");
        assert!(!admission.rating(WorkerId(1)).open && admission.exam(WorkerId(1)).is_some());
        admission.answered(WorkerId(1), answer(2.0));
        assert_eq!(admission.rating(WorkerId(1)), Rating { open: true, mixes: true });
        admission
    }

    #[test]
    fn the_same_bytes_admit_and_others_are_refused_with_the_difference() {
        let mut admission = founded();
        for (worker, value, open) in [(2, 2.0, true), (3, 2.0001, false), (4, -2.0, false)] {
            let worker = WorkerId(worker);
            admission.join(worker, GPU);
            assert!(!admission.rating(worker).open && admission.exam(worker).is_some());
            admission.answered(worker, answer(value));
            assert_eq!(admission.rating(worker).open, open);
            assert!(admission.exam(worker).is_none());
        }
        let (refused, reason) = admission.objection(WorkerId(3)).unwrap();
        assert!(refused && reason.contains("1 of 2 values differ, by up to 1.0e-4"), "{reason}");
        admission.retry(WorkerId(3));
        admission.answered(WorkerId(3), answer(2.0));
        assert!(admission.rating(WorkerId(3)).open, "a mended worker comes in");
    }

    #[test]
    fn a_founder_that_contradicts_itself_is_refused_and_the_next_one_founds() {
        let mut admission = Admission::new(true);
        admission.join(WorkerId(1), GPU);
        admission.join(WorkerId(2), GPU);
        assert!(!admission.rating(WorkerId(2)).open, "it waits for the founder");
        admission.founding_patch(WorkerId(1), question(), answer(2.0));
        admission.answered(WorkerId(1), answer(2.5));
        assert!(admission.objection(WorkerId(1)).unwrap().1.contains("two answers"));
        assert!(admission.rating(WorkerId(2)).open && admission.is_unconfirmed(WorkerId(2)));
        admission.leave(WorkerId(2));
        admission.join(WorkerId(3), GPU);
        assert!(admission.rating(WorkerId(3)).open, "a founder that left is replaced");
    }

    #[test]
    fn another_class_must_agree_with_itself_and_mixes_only_when_close() {
        for (value, mixes) in [(2.01, true), (2.5, false)] {
            let mut admission = founded();
            admission.join(WorkerId(2), CPU);
            admission.answered(WorkerId(2), answer(value));
            assert!(!admission.rating(WorkerId(2)).open, "once is not enough");
            admission.answered(WorkerId(2), answer(value));
            assert_eq!(admission.rating(WorkerId(2)), Rating { open: true, mixes });
            admission.join(WorkerId(3), CPU);
            admission.answered(WorkerId(3), answer(2.0));
            assert!(!admission.rating(WorkerId(3)).open, "within a class every bit counts");
        }
    }

    #[test]
    fn one_class_founds_at_a_time() {
        let mut admission = Admission::new(true);
        admission.join(WorkerId(1), GPU);
        admission.join(WorkerId(2), CPU);
        assert!(!admission.rating(WorkerId(2)).open);
        admission.founding_patch(WorkerId(1), question(), answer(2.0));
        admission.answered(WorkerId(1), answer(2.0));
        assert!(admission.exam(WorkerId(2)).is_some(), "the other class answers the same canary");
    }

    #[test]
    fn an_examination_that_breaks_off_is_tried_again_a_few_times() {
        let mut admission = founded();
        admission.join(WorkerId(2), GPU);
        for _ in 1..MAX_TRIES {
            admission.exam_failed(WorkerId(2), "out of memory");
            assert!(admission.exam(WorkerId(2)).is_some());
        }
        admission.exam_failed(WorkerId(2), "out of memory");
        assert!(admission.objection(WorkerId(2)).unwrap().1.contains("out of memory"));
    }

    #[test]
    fn a_farm_that_does_not_examine_admits_everyone() {
        let mut admission = Admission::new(false);
        admission.join(WorkerId(1), GPU);
        assert_eq!(admission.rating(WorkerId(1)), Rating { open: true, mixes: true });
        assert!(!admission.is_unconfirmed(WorkerId(1)));
    }
}
