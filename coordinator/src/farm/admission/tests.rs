//! Who is admitted, who is refused, and who waits for whom.

use gigasmith_proto::domain::TextEncoding;

use super::*;

const GPU: Skills = Skills { model: ModelKey(0), class: ClassKey(0) };
const CPU: Skills = Skills { model: ModelKey(0), class: ClassKey(1) };
const NOW: Millis = Millis(0);

fn model() -> Arc<ModelDescription> {
    Arc::new(
        gigasmith_worker::backend::Backend::describe(&gigasmith_worker::synthetic::Synthetic::new(
            "side=8".parse().unwrap(),
        ))
        .clone(),
    )
}

/// What a worker answers whose every value is off by `error`.
fn answer(question: &Question, error: f32) -> TaskResult {
    let array = |value: f32| Array::new([2], vec![1.0 + error, value]).unwrap();
    match &question.task {
        Task::EncodeText { .. } => {
            TaskResult::Text(TextEncoding { states: array(2.0), pooled: array(3.0), dropped_tokens: 0 })
        }
        Task::PredictNoise(_) => TaskResult::Noise(array(4.0)),
        Task::DecodeTile { rules, .. } if rules.wanted == Wanted::Norms => TaskResult::Norms(array(7.0)),
        Task::DecodeTile { .. } => TaskResult::Image(array(5.0)),
        Task::EncodeTile { .. } => TaskResult::Moments(array(6.0)),
    }
}

struct Hall(Admission);

impl Hall {
    fn new() -> Self {
        Self(Admission::new(true))
    }

    fn join(&mut self, worker: u64, skills: Skills) -> WorkerId {
        self.0.join(WorkerId(worker), skills, model());
        WorkerId(worker)
    }

    /// Answers all questions once; how many there were.
    fn round(&mut self, worker: WorkerId, error: f32) -> usize {
        for number in 0..QUESTIONS {
            let Some(question) = self.0.ask(NOW, worker) else { return number };
            assert!(self.0.ask(NOW, worker).is_none(), "one question at a time");
            assert_eq!(self.0.asked(worker).map(|q| q.task), Some(question.task.clone()));
            self.0.answered(NOW, worker, answer(&question, error));
        }
        QUESTIONS
    }

    fn open(&self, worker: WorkerId) -> bool {
        self.0.rating(worker).open
    }

    fn reason(&self, worker: WorkerId) -> String {
        let (refused, reason) = self.0.objection(worker).expect("it is refused");
        assert!(refused, "{reason}");
        reason
    }
}

/// A farm whose first worker (1) has founded the class `GPU`.
fn founded() -> Hall {
    let mut hall = Hall::new();
    let first = hall.join(1, GPU);
    assert_eq!(hall.round(first, 0.0), QUESTIONS);
    assert!(!hall.open(first), "the first answers everything twice");
    hall.round(first, 0.0);
    assert_eq!(hall.0.rating(first), Rating { open: true, mixes: true });
    assert_eq!(hall.round(first, 0.0), 0, "there is nothing more to ask");
    hall
}

#[test]
fn the_same_bytes_admit_and_others_are_refused_with_the_difference() {
    let mut hall = founded();
    for (worker, error, open) in [(2, 0.0, true), (3, 1e-4, false), (4, -2.0, false)] {
        let worker = hall.join(worker, GPU);
        assert!(!hall.open(worker));
        assert_eq!(hall.round(worker, error), QUESTIONS);
        assert_eq!(hall.open(worker), open);
    }
    let reason = hall.reason(WorkerId(3));
    assert!(reason.contains("in the text states 1 of 2 values differ, by up to 1.0e-4"), "{reason}");
    hall.0.retry(WorkerId(3), true);
    hall.round(WorkerId(3), 0.0);
    assert!(hall.open(WorkerId(3)), "a mended worker comes in");
}

#[test]
fn a_first_worker_that_contradicts_itself_is_refused_and_the_next_one_founds() {
    let mut hall = Hall::new();
    let (first, second) = (hall.join(1, GPU), hall.join(2, GPU));
    assert_eq!(hall.round(second, 0.0), 0, "it waits for the first");
    hall.round(first, 0.0);
    hall.round(first, 0.5);
    assert!(hall.reason(first).contains("two answers"));
    hall.round(second, 0.0);
    hall.round(second, 0.0);
    assert!(hall.open(second));
}

#[test]
fn a_first_worker_that_goes_rests_or_fails_keeps_nobody_waiting() {
    type Trouble = fn(&mut Hall, WorkerId);
    let troubles: [Trouble; 3] = [
        |hall, first| hall.0.leave(first),
        |hall, first| hall.0.set_able(first, false),
        |hall, first| hall.0.failed(first, "out of memory"),
    ];
    for trouble in troubles {
        let mut hall = Hall::new();
        let (first, second) = (hall.join(1, GPU), hall.join(2, GPU));
        assert!(hall.0.ask(NOW, first).is_some());
        trouble(&mut hall, first);
        hall.round(second, 0.0);
        hall.round(second, 0.0);
        assert!(hall.open(second));
        hall.0.set_able(first, true);
        hall.round(first, 0.0);
    }
    let mut hall = Hall::new();
    let disabled = hall.join(1, GPU);
    hall.0.set_able(disabled, false);
    assert!(hall.0.ask(NOW, disabled).is_none());
    let able = hall.join(2, GPU);
    assert!(hall.0.ask(NOW, able).is_some());
}

#[test]
fn another_class_must_agree_with_itself_and_mixes_only_when_close() {
    for (error, mixes) in [(0.01, true), (0.5, false)] {
        let mut hall = founded();
        let cpu = hall.join(2, CPU);
        hall.round(cpu, error);
        assert!(!hall.open(cpu), "once is not enough");
        hall.round(cpu, error);
        assert_eq!(hall.0.rating(cpu), Rating { open: true, mixes });
        let other = hall.join(3, CPU);
        hall.round(other, 0.0);
        assert!(!hall.open(other), "within a class every bit counts");
    }
}

#[test]
fn classes_wait_for_each_other_only_until_the_text_is_known() {
    let mut hall = Hall::new();
    let (gpu, cpu) = (hall.join(1, GPU), hall.join(2, CPU));
    assert!(hall.0.ask(NOW, cpu).is_none());
    let text = hall.0.ask(NOW, gpu).unwrap();
    hall.0.answered(NOW, gpu, answer(&text, 0.0));
    // The first one may take as long as it likes from here on.
    hall.round(cpu, 0.0);
    hall.round(cpu, 0.0);
    assert!(hall.open(cpu));
}

#[test]
fn an_examination_that_breaks_off_is_tried_again_a_few_times() {
    let mut hall = founded();
    let worker = hall.join(2, GPU);
    for _ in 1..MAX_TRIES {
        assert!(hall.0.ask(NOW, worker).is_some());
        hall.0.failed(worker, "out of memory");
    }
    assert!(hall.0.ask(NOW, worker).is_some());
    hall.0.failed(worker, "out of memory");
    assert!(hall.reason(worker).contains("out of memory"));
}

#[test]
fn a_device_that_hangs_in_its_examination_is_noticed() {
    let mut hall = founded();
    let worker = hall.join(2, GPU);
    assert!(hall.0.ask(NOW, worker).is_some());
    assert!(hall.0.overdue(Millis(LEAST_PATIENCE)).is_empty());
    assert_eq!(hall.0.overdue(Millis(LEAST_PATIENCE + 1)), [worker]);
}

#[test]
fn a_farm_that_does_not_examine_admits_everyone() {
    let mut admission = Admission::new(false);
    admission.join(WorkerId(1), GPU, model());
    assert_eq!(admission.rating(WorkerId(1)), Rating { open: true, mixes: true });
    assert!(admission.ask(NOW, WorkerId(1)).is_none());
}

#[test]
fn a_person_may_give_a_class_other_answers_once_nobody_upholds_the_old_ones() {
    let mut hall = founded();
    let (first, updated, another) = (WorkerId(1), hall.join(2, GPU), hall.join(3, GPU));
    hall.round(updated, 0.5);
    hall.round(another, 0.5);
    assert!(hall.reason(updated).contains("once none of the others is connected"));
    // While an admitted worker is here, or a render needs the old answers, a worker that differs stays out.
    hall.0.retry(updated, true);
    assert_eq!(hall.round(updated, 0.5), QUESTIONS);
    hall.reason(updated);
    hall.0.set_able(first, false);
    hall.0.retry(updated, false);
    assert_eq!(hall.round(updated, 0.5), QUESTIONS);
    hall.reason(updated);
    // It is asked everything twice, as a first one is; one that contradicts itself changes nothing.
    hall.0.retry(updated, true);
    hall.round(updated, 0.5);
    assert!(!hall.open(updated), "once is not enough");
    hall.round(updated, 0.25);
    assert!(hall.reason(updated).contains("two answers"));
    hall.0.retry(updated, true);
    hall.round(updated, 0.5);
    hall.round(updated, 0.5);
    assert!(hall.open(updated));
    // The others are examined by the new answers: those that were refused, and those that were admitted.
    assert!(!hall.open(another) && !hall.open(first));
    hall.round(another, 0.5);
    assert!(hall.open(another));
    hall.0.set_able(first, true);
    assert!(!hall.open(first), "nobody works whose answers are the old ones");
    hall.round(first, 0.0);
    hall.reason(first);
}

#[test]
fn a_mended_worker_does_not_change_its_class() {
    let mut hall = founded();
    let worker = hall.join(2, GPU);
    hall.round(worker, 0.5);
    hall.0.set_able(WorkerId(1), false);
    hall.0.retry(worker, true);
    hall.round(worker, 0.0);
    assert!(hall.open(worker), "its answers are the class's again: no second round");
    hall.0.set_able(WorkerId(1), true);
    assert!(hall.open(WorkerId(1)));
}
