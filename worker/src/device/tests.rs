//! The device thread with a device that computes on its own.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use gigasmith_proto::domain::{NoiseTask, Rect, TextEncoding, WireDtype};

use super::*;
use crate::synthetic::Synthetic;

/// A device that takes two patches together, is done when it has been asked a few times, and answers with the
/// timestep. Timestep 13 fails, 666 panics at the start, 667 at the end, and 668 when it is asked whether it is done.
struct Slow {
    inner: Synthetic,
    log: Arc<Mutex<Vec<String>>>,
    polls: AtomicUsize,
    /// Whether it is done at once.
    is_quick: bool,
}

impl Slow {
    fn log(&self, what: &str, patches: &[Patch<'_>]) {
        let names: Vec<String> = patches.iter().map(|(task, _)| task.timestep.to_string()).collect();
        self.log.lock().unwrap().push(format!("{what} {}", names.join(" ")));
    }
}

impl Backend for Slow {
    fn describe(&self) -> &ModelDescription {
        self.inner.describe()
    }

    fn encode_text(&mut self, prompt: &str) -> Result<TextEncoding, BackendError> {
        self.log.lock().unwrap().push(format!("text {prompt}"));
        self.inner.encode_text(prompt)
    }

    fn predict_noise(&mut self, task: &NoiseTask, _: &Conditioning) -> Result<Array, BackendError> {
        match task.timestep {
            13 => Err(BackendError::MissingNegative { guidance_scale: 2.0 }),
            timestep => Ok(Array::new([1], vec![timestep as f32]).unwrap()),
        }
    }

    fn batch(&self) -> usize {
        2
    }

    fn start_noises(&mut self, patches: &[Patch<'_>]) -> Started {
        self.log("start", patches);
        assert!(patches.iter().all(|(task, _)| task.timestep != 666), "a fault at the start");
        self.polls.store(0, Ordering::Relaxed);
        Started::new(self.predict_noises(patches))
    }

    fn is_done(&self, started: &Started) -> bool {
        let answers = started.get::<Vec<Result<Array, BackendError>>>();
        let is_faulty = answers.iter().flatten().any(|array| array.data() == [668.0]);
        assert!(!is_faulty, "a fault in between");
        self.is_quick || self.polls.fetch_add(1, Ordering::Relaxed) > 20
    }

    fn finish_noises(&mut self, started: Started, patches: &[Patch<'_>]) -> Vec<Result<Array, BackendError>> {
        self.log("finish", patches);
        assert!(patches.iter().all(|(task, _)| task.timestep != 667), "a fault at the end");
        started.into()
    }

    fn encode_tile(&mut self, image: &Array, norms: Option<&Array>) -> Result<Array, BackendError> {
        self.inner.encode_tile(image, norms)
    }

    fn decode_tile(&mut self, latent: &Array, norms: Option<&Array>) -> Result<Array, BackendError> {
        self.inner.decode_tile(latent, norms)
    }

    fn encoder_norms(&mut self, i: &Array, n: Option<&Array>, part: Rect) -> Result<Array, BackendError> {
        self.inner.encoder_norms(i, n, part)
    }

    fn decoder_norms(&mut self, l: &Array, n: Option<&Array>, part: Rect) -> Result<Array, BackendError> {
        self.inner.decoder_norms(l, n, part)
    }
}

/// The answers to jobs that all wait when the thread comes to them, and what the device was asked, in order.
fn work(jobs: &[Work], is_quick: bool) -> (Vec<String>, Vec<String>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let inner = Synthetic::new(Default::default());
    let mut slow = Slow { inner, log: Arc::clone(&log), polls: AtomicUsize::new(0), is_quick };
    let conditioning =
        Arc::new(Conditioning { prompt: Array::zeros([1, 1]), pooled: Array::zeros([1]), negative: None });
    let (sender, queue) = mpsc::channel();
    let mut answers = Vec::new();
    for job in jobs {
        let (reply, answer) = oneshot::channel();
        let (task, conditioning) = match job {
            Work::Patch(timestep) => {
                let task = NoiseTask {
                    latent: Arc::new(Array::zeros([1])),
                    wire: WireDtype::F32,
                    timestep: *timestep,
                    time_ids: [0.0; 6],
                    conditioning: conditioning.id(),
                    guidance_scale: 1.0,
                    pag: None,
                };
                (Task::PredictNoise(task), Some(Arc::clone(&conditioning)))
            }
            Work::Text(prompt) => (Task::EncodeText { prompt: (*prompt).into() }, None),
        };
        assert!(sender.send(Job { task, conditioning, reply }).is_ok());
        answers.push(answer);
    }
    drop(sender);
    work_off(&mut slow, &queue);
    let answers = answers.into_iter().map(|answer| match answer.blocking_recv().unwrap() {
        Ok(TaskResult::Noise(noise)) => format!("{}", noise.data()[0]),
        Ok(other) => format!("{:?}", std::mem::discriminant(&other)),
        Err(failure) => failure.message,
    });
    let answers = answers.collect();
    let log = log.lock().unwrap().clone();
    (answers, log)
}

enum Work {
    Patch(u32),
    Text(&'static str),
}

#[test]
fn the_next_patches_start_before_the_last_are_waited_for() {
    let (answers, log) = work(&[1, 2, 3, 4, 5].map(Work::Patch), false);
    assert_eq!(answers, ["1", "2", "3", "4", "5"]);
    assert_eq!(log, ["start 1 2", "start 3 4", "finish 1 2", "start 5", "finish 3 4", "finish 5"]);
}

#[test]
fn what_is_done_is_answered_before_more_is_started() {
    let (answers, log) = work(&[1, 2, 3, 4, 5].map(Work::Patch), true);
    assert_eq!(answers, ["1", "2", "3", "4", "5"]);
    assert_eq!(log, ["start 1 2", "finish 1 2", "start 3 4", "finish 3 4", "start 5", "finish 5"]);
}

#[test]
fn other_jobs_wait_for_patches_that_are_on_their_way() {
    let (answers, log) = work(&[Work::Patch(1), Work::Text("a"), Work::Patch(2), Work::Patch(3)], false);
    assert_eq!((answers[0].as_str(), answers[2].as_str(), answers[3].as_str()), ("1", "2", "3"));
    assert_eq!(log, ["start 1", "finish 1", "text a", "start 2 3", "finish 2 3"]);
}

#[test]
fn a_fault_is_the_answer_to_those_it_concerns_and_no_others() {
    let (answers, _) = work(&[1, 13, 2, 3].map(Work::Patch), false);
    assert_eq!((answers[0].as_str(), answers[2].as_str(), answers[3].as_str()), ("1", "2", "3"));
    assert!(answers[1].contains("negative conditioning"), "{answers:?}");
    let (answers, log) = work(&[1, 668, 2].map(Work::Patch), false);
    assert_eq!(answers, ["1", "668", "2"], "asked whether it is done, it panics, and is waited for");
    assert_eq!(log.len(), 4);
    for (fault, wanted) in [(666, "a fault at the start"), (667, "a fault at the end")] {
        let (answers, _) = work(&[1, 2, fault, 3, 4, 5].map(Work::Patch), false);
        assert_eq!([0, 1, 4, 5].map(|i| answers[i].as_str()), ["1", "2", "4", "5"]);
        for i in [2, 3] {
            assert_eq!(answers[i], format!("the model panicked: {wanted}"));
        }
    }
}
