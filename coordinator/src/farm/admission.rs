//! Whose results can be trusted: a worker is admitted once it gave the right answers to an examination.
//!
//! Pure: events in, decisions out. Every worker is examined before its first task, by questions that follow
//! from its model's description alone: a text, a patch (with that text), a latent tile, an image tile and
//! the statistics of a latent tile, so that every component has a say. Workers of the same weights and
//! numeric class must give the same bytes. The first of a class to be examined answers everything twice; if
//! it agrees with itself to the bit, its answers become the class's. Every other worker of the class must
//! give those. A class may share a render with others (`--mix`) where its answers lie within
//! [`MIX_TOLERANCE`] of the first class's.
//!
//! A driver's update may change a class's answers and not its name, and the first worker of a class may have
//! been wrong all the time. Then every other one is refused, and a person decides: a refused worker that is
//! enabled is examined again, and if it still differs, its answers take the place of the class's, provided that it
//! agrees with itself, that no admitted worker of the class is here, and that no render under way needs the class.
//! Everybody else of the class is examined anew. So all of a render between its start, or its taking up from a
//! checkpoint, and its end is computed with the same answers. A checkpoint does not say which answers those were:
//! a render that is stopped and taken up later goes on with those that the class has then, as it does when the
//! coordinator was started again.
//!
//! Invariants: nobody works who is not admitted; a worker whose answers differ is refused, with the
//! difference as the reason, until a person has it examined again; all admitted workers of a class gave the
//! same answers; one that cannot be examined now (disabled, away, failing) does not keep the others of its
//! class waiting.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gigasmith_proto::domain::{
    Array, Conditioning, ConditioningId, ModelDescription, NoiseTask, Pixels, Task, TaskResult, TileRules,
    Wanted, WireDtype,
};

use super::table::{ClassKey, Millis, ModelKey, Skills, WorkerId};
use crate::sampler::noise::NoiseField;
use crate::sampler::philox::Purpose;
use crate::sampler::units::LatentSize;

/// How far a class's answers may lie from the first class's, as relative L2, for both to work on one
/// render: half precision moves one noise prediction of SDXL by some thousandths.
pub const MIX_TOLERANCE: f64 = 0.02;
/// How often an examination may break off before the worker is refused.
const MAX_TRIES: u32 = 3;
/// Questions in an examination.
const QUESTIONS: usize = 5;
/// The text that is asked about.
const TEXT: &str = "gigasmith";
/// Side of the tiles that are asked about, in latent pixels.
const TILE: usize = 8;
/// How long the answer to a question may take: so many times what it took the class's first worker, and
/// at least so long; without a first worker, longer.
const SLOWNESS: u64 = 20;
const LEAST_PATIENCE: u64 = 5 * 60_000;
const FIRST_PATIENCE: u64 = 60 * 60_000;

/// A question of an examination, with the text it needs.
#[derive(Debug, Clone)]
pub struct Question {
    /// What to compute.
    pub task: Task,
    /// The conditioning that the task names.
    pub conditioning: Option<Arc<Conditioning>>,
}

/// A class of which one worker agreed with itself.
#[derive(Debug)]
struct Class {
    answers: Vec<TaskResult>,
    /// Whether it lies close to the first class.
    mixes: bool,
    /// The longest time that a question took, in milliseconds.
    slowest: u64,
}

/// How far a worker's examination is.
#[derive(Debug, Default)]
struct Paper {
    /// Answers of the first round, when this is the second.
    first: Option<Vec<TaskResult>>,
    answers: Vec<TaskResult>,
    asked: Option<Millis>,
    slowest: u64,
}

#[derive(Debug)]
enum Standing {
    /// Another worker of its class is examined first, or it cannot be examined now.
    Waits,
    Examined(Paper),
    Admitted,
    Refused(String),
}

#[derive(Debug)]
struct Candidate {
    skills: Skills,
    model: Arc<ModelDescription>,
    standing: Standing,
    tries: u32,
    /// Whether it is connected and wanted.
    able: bool,
    /// Whether its answers may take the place of its class's: a person wants it examined, and no render under way
    /// needs the present ones.
    may_replace: bool,
    /// The lowest is examined first.
    turn: u64,
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
    /// The text that patches are asked with, as the first worker of a model encoded it.
    texts: HashMap<ModelKey, (ConditioningId, Arc<Conditioning>)>,
    /// The class that others must lie close to.
    first_class: HashMap<ModelKey, ClassKey>,
    classes: HashMap<(ModelKey, ClassKey), Class>,
    candidates: BTreeMap<WorkerId, Candidate>,
    turns: u64,
}

impl Admission {
    /// Admission with or without examinations.
    pub fn new(examines: bool) -> Self {
        Self { examines, ..Self::default() }
    }

    /// A worker comes.
    pub fn join(&mut self, worker: WorkerId, skills: Skills, model: Arc<ModelDescription>) {
        let standing = if self.examines { Standing::Waits } else { Standing::Admitted };
        self.turns += 1;
        let turn = self.turns;
        let candidate = Candidate { skills, model, standing, tries: 0, able: true, may_replace: false, turn };
        self.candidates.insert(worker, candidate);
        self.promote(skills.model);
    }

    /// A worker is gone.
    pub fn leave(&mut self, worker: WorkerId) {
        if let Some(candidate) = self.candidates.remove(&worker) {
            self.promote(candidate.skills.model);
        }
    }

    /// Whether a worker is connected and wanted: another does not wait for one that is not.
    pub fn set_able(&mut self, worker: WorkerId, able: bool) {
        let Some(candidate) = self.candidates.get_mut(&worker) else { return };
        if candidate.able != able {
            candidate.able = able;
            if !able {
                self.step_back(worker);
            }
            let model = self.candidates[&worker].skills.model;
            self.promote(model);
        }
    }

    /// An examination under way breaks off; others go first.
    fn step_back(&mut self, worker: WorkerId) {
        self.turns += 1;
        let turn = self.turns;
        let Some(candidate) = self.candidates.get_mut(&worker) else { return };
        if matches!(candidate.standing, Standing::Examined(_)) {
            (candidate.standing, candidate.turn) = (Standing::Waits, turn);
        }
    }

    /// Examines a refused worker again, because a person wants it. `is_free`: no render under way needs the
    /// answers that its class has, so that its own may take their place where no admitted worker of the class
    /// is here.
    pub fn retry(&mut self, worker: WorkerId, is_free: bool) {
        let Some(candidate) = self.candidates.get_mut(&worker) else { return };
        (candidate.tries, candidate.may_replace) = (0, is_free);
        if matches!(candidate.standing, Standing::Refused(_)) {
            candidate.standing = Standing::Waits;
            let model = candidate.skills.model;
            self.promote(model);
        }
    }

    /// Begins the examinations that are due: one worker's of a class that has no answers yet, everybody's
    /// of the others. Until the model's text is known one worker of the model goes first.
    fn promote(&mut self, model: ModelKey) {
        let has_text = self.texts.contains_key(&model);
        let of_model = |c: &&Candidate| c.skills.model == model;
        let under_way = self.candidates.values().filter(of_model);
        let under_way = under_way.filter(|c| matches!(c.standing, Standing::Examined(_)));
        let mut founding: Vec<ClassKey> = under_way.map(|c| c.skills.class).collect();
        let mut due: Vec<(u64, WorkerId)> = self
            .candidates
            .iter()
            .filter(|(_, c)| c.skills.model == model && c.able && matches!(c.standing, Standing::Waits))
            .map(|(&id, c)| (c.turn, id))
            .collect();
        due.sort_unstable();
        for (_, id) in due {
            let candidate = self.candidates.get_mut(&id).expect("just seen");
            let class = candidate.skills.class;
            let is_known = self.classes.contains_key(&(model, class));
            if is_known || (!founding.contains(&class) && (has_text || founding.is_empty())) {
                founding.push(class);
                candidate.standing = Standing::Examined(Paper::default());
            }
        }
    }

    /// What the farm may do with a worker now.
    pub fn rating(&self, worker: WorkerId) -> Rating {
        match self.candidates.get(&worker) {
            Some(Candidate { standing: Standing::Admitted, skills, .. }) => {
                let class = self.classes.get(&(skills.model, skills.class));
                Rating { open: true, mixes: class.is_none_or(|c| c.mixes) }
            }
            _ => Rating { open: false, mixes: false },
        }
    }

    /// Text states and pooled state as this model's workers shape them, once that is known.
    pub fn text_shapes(&self, model: ModelKey) -> Option<(Vec<usize>, Vec<usize>)> {
        let (_, text) = self.texts.get(&model)?;
        Some((text.prompt.shape().to_vec(), text.pooled.shape().to_vec()))
    }

    /// The question that a worker should be asked now, if any; it counts as asked.
    pub fn ask(&mut self, now: Millis, worker: WorkerId) -> Option<Question> {
        let candidate = self.candidates.get_mut(&worker)?;
        let Standing::Examined(paper) = &mut candidate.standing else { return None };
        if paper.asked.is_some() {
            return None;
        }
        let text = self.texts.get(&candidate.skills.model);
        // While the text is still being asked for, a worker of another class waits for it.
        let number = paper.answers.len();
        let question = question(number, &candidate.model, text)?;
        paper.asked = Some(now);
        Some(question)
    }

    /// What a worker was asked, for checking its answer's shape.
    pub fn asked(&self, worker: WorkerId) -> Option<Question> {
        let candidate = self.candidates.get(&worker)?;
        let Standing::Examined(paper) = &candidate.standing else { return None };
        question(paper.answers.len(), &candidate.model, self.texts.get(&candidate.skills.model))
    }

    /// A worker has answered; whether its answers have taken the place of its class's.
    pub fn answered(&mut self, now: Millis, worker: WorkerId, answer: TaskResult) -> bool {
        let Some(candidate) = self.candidates.get_mut(&worker) else { return false };
        let skills = candidate.skills;
        let Standing::Examined(paper) = &mut candidate.standing else { return false };
        if let Some(asked) = paper.asked.take() {
            paper.slowest = paper.slowest.max(now.since(asked));
        }
        if let (TaskResult::Text(text), false) = (&answer, self.texts.contains_key(&skills.model)) {
            let negative = (Array::zeros(text.states.shape()), Array::zeros(text.pooled.shape()));
            let (prompt, pooled) = (text.states.clone(), text.pooled.clone());
            let text = Conditioning { prompt, pooled, negative: Some(negative) };
            self.texts.insert(skills.model, (text.id(), Arc::new(text)));
        }
        paper.answers.push(answer);
        let replaces = paper.answers.len() == QUESTIONS && self.mark(worker);
        self.promote(skills.model);
        replaces
    }

    /// Whether an admitted worker of a class is connected and wanted.
    fn is_upheld(&self, skills: Skills) -> bool {
        let upholds =
            |c: &Candidate| c.skills == skills && c.able && matches!(c.standing, Standing::Admitted);
        self.candidates.values().any(upholds)
    }

    /// All questions are answered: the worker is admitted, refused, or asked everything again. Whether its
    /// answers have taken the place of its class's.
    fn mark(&mut self, worker: WorkerId) -> bool {
        let skills = self.candidates[&worker].skills;
        let is_upheld = self.is_upheld(skills);
        let candidate = self.candidates.get_mut(&worker).expect("just seen");
        let Skills { model, class } = skills;
        let Standing::Examined(paper) = &mut candidate.standing else { return false };
        let answers = std::mem::take(&mut paper.answers);
        let known = self.classes.get(&(model, class));
        let differs = known.map(|known| difference(&known.answers, &answers));
        let refuse = |what: &str, difference: String| Standing::Refused(format!("{what}: {difference}"));
        let mut replaces = false;
        candidate.standing = match (differs, paper.first.take()) {
            (Some(None), _) => Standing::Admitted,
            (Some(Some(difference)), _) if is_upheld || !candidate.may_replace => refuse(
                "its canary is not the farm's",
                format!(
                    "{difference}; see that its driver, build and weights are those of the others, then \
                     `gigasmith workers enable` it; it may differ once none of the others is connected and no \
                     render of its class is under way"
                ),
            ),
            (_, None) => {
                paper.first = Some(answers);
                return false;
            }
            (known, Some(first)) => match difference(&first, &answers) {
                Some(difference) => refuse("it gave two answers to the same question", difference),
                None => {
                    replaces = known.is_some();
                    let slowest = paper.slowest;
                    let first_class = *self.first_class.entry(model).or_insert(class);
                    let mixes = match self.classes.get(&(model, first_class)) {
                        None => true,
                        Some(other) => distance(&other.answers, &answers) <= MIX_TOLERANCE,
                    };
                    self.classes.insert((model, class), Class { answers, mixes, slowest });
                    Standing::Admitted
                }
            },
        };
        candidate.may_replace = false;
        if replaces {
            self.examine_anew(worker, skills);
        }
        replaces
    }

    /// A class has other answers: whoever was examined by the old ones waits for an examination by the new.
    /// Those under way end with the new ones.
    fn examine_anew(&mut self, founder: WorkerId, skills: Skills) {
        let others = self.candidates.iter_mut().filter(|(id, c)| **id != founder && c.skills == skills);
        for (_, candidate) in others.filter(|(_, c)| !matches!(c.standing, Standing::Examined(_))) {
            (candidate.standing, candidate.tries) = (Standing::Waits, 0);
        }
    }

    /// An examination broke off: it is tried again a few times, after others of its class.
    pub fn failed(&mut self, worker: WorkerId, message: &str) {
        let Some(candidate) = self.candidates.get_mut(&worker) else { return };
        if !matches!(candidate.standing, Standing::Examined(_)) {
            return;
        }
        candidate.tries += 1;
        let model = candidate.skills.model;
        if candidate.tries >= MAX_TRIES {
            candidate.standing = Standing::Refused(format!("its examination failed: {message}"));
        } else {
            self.step_back(worker);
        }
        self.promote(model);
    }

    /// Workers that have not answered for longer than a device that works would take.
    pub fn overdue(&self, now: Millis) -> Vec<WorkerId> {
        let late = |c: &Candidate| {
            let Standing::Examined(Paper { asked: Some(asked), .. }) = c.standing else { return false };
            let known = self.classes.get(&(c.skills.model, c.skills.class));
            let patience = known.map_or(FIRST_PATIENCE, |k| (SLOWNESS * k.slowest).max(LEAST_PATIENCE));
            now.since(asked) > patience
        };
        self.candidates.iter().filter(|(_, c)| late(c)).map(|(&id, _)| id).collect()
    }

    /// Why a worker gets no tasks, and whether it is refused for good; `None` when it may.
    pub fn objection(&self, worker: WorkerId) -> Option<(bool, String)> {
        match &self.candidates.get(&worker)?.standing {
            Standing::Waits => Some((false, "another worker of its kind is examined first".to_owned())),
            Standing::Examined(_) => Some((false, "it is examined before its first task".to_owned())),
            Standing::Admitted => None,
            Standing::Refused(reason) => Some((true, reason.clone())),
        }
    }
}

/// A question of the examination; `None` for a patch whose text is not known yet.
fn question(
    number: usize,
    model: &ModelDescription,
    text: Option<&(ConditioningId, Arc<Conditioning>)>,
) -> Option<Question> {
    let (channels, factor) = (model.latent_channels as usize, model.latent_factor as usize);
    // Any noise does, as long as it is always the same.
    let noise = |channels: usize, side: usize| {
        let field = NoiseField::from_seed(number as u64, 0, Purpose::Noise, channels);
        Arc::new(field.whole(LatentSize { height: side, width: side }))
    };
    let (task, conditioning) = match number {
        0 => (Task::EncodeText { prompt: TEXT.to_owned() }, None),
        1 => {
            let (id, text) = text?;
            let side = model.patch_side as usize;
            let pixels = (side * factor) as f32;
            let task = NoiseTask {
                latent: noise(channels, side),
                wire: WireDtype::F32,
                timestep: model.schedule.num_train_timesteps / 2,
                time_ids: [pixels, pixels, 0.0, 0.0, pixels, pixels],
                conditioning: *id,
                guidance_scale: 5.0,
                pag: None,
            };
            (Task::PredictNoise(task), Some(text.clone()))
        }
        2 => (Task::DecodeTile { latent: noise(channels, TILE), rules: TileRules::plain(TILE, TILE) }, None),
        3 => {
            let rules = TileRules { wanted: Wanted::Norms, ..TileRules::plain(TILE, TILE) };
            (Task::DecodeTile { latent: noise(channels, TILE), rules }, None)
        }
        _ => {
            let side = TILE * factor;
            let level = |v: &f32| ((v.clamp(-1.0, 1.0) + 1.0) * 127.5) as u8;
            let rgb = noise(3, side).data().iter().map(level).collect();
            let image = Pixels::new(side, side, rgb).expect("three bytes a pixel");
            (Task::EncodeTile { image: Arc::new(image), rules: TileRules::plain(TILE, TILE) }, None)
        }
    };
    Some(Question { task, conditioning })
}

/// An answer's arrays, with names for people.
fn arrays(answer: &TaskResult) -> Vec<(&'static str, &Array)> {
    match answer {
        TaskResult::Text(text) => vec![("text states", &text.states), ("pooled text", &text.pooled)],
        TaskResult::Noise(noise) => vec![("patch", noise)],
        TaskResult::Moments(moments) => vec![("encoded tile", moments)],
        TaskResult::Image(image) => vec![("decoded tile", image)],
        TaskResult::Norms(norms) => vec![("statistics", norms)],
    }
}

fn pairs<'a>(
    known: &'a [TaskResult],
    answers: &'a [TaskResult],
) -> impl Iterator<Item = (&'static str, &'a Array, &'a Array)> {
    let known = known.iter().flat_map(arrays);
    let answers = answers.iter().flat_map(arrays);
    known.zip(answers).map(|((name, known), (_, answer))| (name, known, answer))
}

/// How two sets of answers differ, if they do, in a bit.
fn difference(known: &[TaskResult], answers: &[TaskResult]) -> Option<String> {
    pairs(known, answers).find_map(|(name, known, answer)| {
        if known.shape() != answer.shape() {
            return Some(format!("the {name} has shape {:?}, not {:?}", answer.shape(), known.shape()));
        }
        let values = || known.data().iter().zip(answer.data());
        let differing = values().filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        (differing > 0).then(|| {
            let largest = values().fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            let all = known.data().len();
            format!("in the {name} {differing} of {all} values differ, by up to {largest:.1e}")
        })
    })
}

/// The largest relative L2 distance between answers.
fn distance(known: &[TaskResult], answers: &[TaskResult]) -> f64 {
    let relative = |(_, known, answer): (&str, &Array, &Array)| {
        if known.shape() != answer.shape() {
            return f64::INFINITY;
        }
        let values = known.data().iter().zip(answer.data());
        let (error, norm) = values.fold((0.0, 0.0), |(e, n), (&a, &b)| {
            (e + (f64::from(a) - f64::from(b)).powi(2), n + f64::from(a).powi(2))
        });
        if norm > 0.0 { (error / norm).sqrt() } else { error.sqrt() }
    };
    pairs(known, answers).map(relative).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests;
