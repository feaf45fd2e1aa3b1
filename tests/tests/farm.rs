//! Whole renders on a fake network: determinism, and what happens when answers are wrong.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::Fake;
use gigasmith_coordinator::embedded::EmbeddedFarm;
use gigasmith_coordinator::render::{RenderError, Rendered, render};
use gigasmith_coordinator::sampler::plan::PlanKind;
use gigasmith_coordinator::sampler::resize::Picture;
use gigasmith_coordinator::sampler::tiles::VaeMode;
use gigasmith_coordinator::sampler::units::ImageSize;
use gigasmith_coordinator::spec::{Crops, ModelSpec, RenderSpec, Rng, SPEC_VERSION, UpscaleSpec};
use gigasmith_proto::domain::Array;
use gigasmith_worker::backend::BackendError;

fn spec() -> RenderSpec {
    let size = |width, height| ImageSize { width, height };
    RenderSpec {
        version: SPEC_VERSION,
        prompt: "a fox".into(),
        negative_prompt: None,
        model: ModelSpec::of(&common::description()),
        base: size(64, 64),
        base_in_windows: false,
        upscales: vec![
            UpscaleSpec { size: size(128, 128), slider: 2 },
            UpscaleSpec { size: size(196, 260), slider: 3 },
        ],
        steps: 4,
        guidance_scale: 5.0,
        pag: None,
        seed: 7,
        plan: PlanKind::Balanced,
        plan_hash: None,
        rng: Rng::Philox,
        crops: Crops::True,
        vae: VaeMode::Tiled,
        image_hash: None,
        wire: Default::default(),
        mix: false,
    }
}

async fn run_on(
    mut farm: EmbeddedFarm,
    spec: &RenderSpec,
    inputs: Option<Picture>,
) -> Result<Rendered, RenderError> {
    let lane = farm.lane().await.expect("the worker stays");
    let done = farm.until_worker_ends(render(lane, spec, inputs, &mut ())).await.expect("the worker stays");
    farm.stop().await;
    done
}

async fn run(spec: &RenderSpec) -> Rendered {
    run_on(common::farm_with(|| Ok(Box::new(Fake::new()))), spec, None).await.expect("it renders")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_spec_gives_the_same_bytes_and_every_setting_counts() {
    let first = run(&spec()).await;
    assert_eq!(first.picture.picture_size(), ImageSize { width: 196, height: 260 });
    let again = run(&spec()).await;
    assert_eq!(
        (first.picture.to_picture().unwrap().rgb(), &first.latent),
        (again.picture.to_picture().unwrap().rgb(), &again.latent)
    );
    type Change = fn(&mut RenderSpec);
    let changes: [(&str, Change); 8] = [
        ("seed", |s| s.seed = 8),
        ("prompt", |s| s.prompt.push('!')),
        ("steps", |s| s.steps = 5),
        ("slider", |s| s.upscales[1].slider = 1),
        ("no slider", |s| s.upscales[1].slider = 0),
        ("plan", |s| s.plan = PlanKind::Paper),
        ("rng", |s| s.rng = Rng::Torch),
        ("crops", |s| s.crops = Crops::Published),
    ];
    for (name, change) in changes {
        let mut other = spec();
        change(&mut other);
        assert_ne!(
            run(&other).await.picture.to_picture().unwrap().rgb(),
            first.picture.to_picture().unwrap().rgb(),
            "{name} changes nothing"
        );
    }
}

#[tokio::test]
async fn a_picture_takes_the_place_of_the_base() {
    let size = ImageSize { width: 66, height: 50 };
    let picture = Picture::new(size, (0..66 * 50 * 3).map(|i| (i % 251) as u8).collect());
    let mut spec = spec();
    (spec.base, spec.image_hash) = (size, Some("hash".into()));
    spec.upscales = vec![UpscaleSpec { size: ImageSize { width: 132, height: 100 }, slider: 4 }];
    let inputs = Some(picture);
    let rendered =
        run_on(common::farm_with(|| Ok(Box::new(Fake::new()))), &spec, inputs).await.expect("it renders");
    assert_eq!(rendered.picture.picture_size(), ImageSize { width: 132, height: 100 });
    let counts = rendered.plans.counts();
    assert!(counts.len() == 2 && counts[0] == 0 && counts[1] > 0, "{counts:?}");
}

/// A farm whose network spoils every answer of one kind for the first `times`.
fn spoiled(
    kind: &'static str,
    times: u32,
    spoil: fn(Array) -> Result<Array, BackendError>,
) -> (EmbeddedFarm, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let counter = calls.clone();
    let farm = common::farm_with(move || {
        let mut fake = Fake::new();
        fake.spoil = Box::new(move |what, array| {
            let spoiled = what == kind && counter.fetch_add(1, Ordering::SeqCst) < times;
            if spoiled { spoil(array) } else { Ok(array) }
        });
        Ok(Box::new(fake))
    });
    (farm, calls)
}

fn not_a_number(mut array: Array) -> Result<Array, BackendError> {
    array.data_mut()[3] = f32::NAN;
    Ok(array)
}

fn out_of_memory(_: Array) -> Result<Array, BackendError> {
    Err(BackendError::Device { what: "noise", message: "out of memory".into() })
}

fn misshapen(array: Array) -> Result<Array, BackendError> {
    let (c, h, w) = array.chw().expect("three axes");
    Ok(Array::zeros([c, h, w + 1]))
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_faults_are_tried_again_and_leave_no_mark() {
    let good = run(&spec()).await;
    // Numbers that are not finite are tried once more, other faults twice.
    for (kind, times, spoil) in [
        ("patch", 1, not_a_number as fn(Array) -> Result<Array, BackendError>),
        ("patch", 2, out_of_memory),
        ("encode", 2, misshapen),
        ("decode", 2, |_| panic!("a bug in the network")),
    ] {
        let (farm, calls) = spoiled(kind, times, spoil);
        let rendered = run_on(farm, &spec(), None).await.expect("the last attempt works");
        assert!(calls.load(Ordering::SeqCst) > times);
        assert_eq!(rendered.picture.to_picture().unwrap().rgb(), good.picture.to_picture().unwrap().rgb());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lasting_faults_end_the_render_with_their_reason() {
    let (farm, _) = spoiled("patch", u32::MAX, not_a_number);
    let error = run_on(farm, &spec(), None).await.unwrap_err().to_string();
    // The same question has the same answer: no third worker is asked. In f32 nothing overflows.
    for word in ["patch task failed", "attempt 2 was the last", "not finite", "weights or its configuration"]
    {
        assert!(error.contains(word), "{word}: {error}");
    }
    let (farm, _) = spoiled("decode", u32::MAX, |_| panic!("a bug in the network"));
    let error = run_on(farm, &spec(), None).await.unwrap_err().to_string();
    assert!(error.contains("a bug in the network"), "{error}");
}

#[tokio::test]
async fn questions_without_an_answer_are_not_repeated() {
    let (farm, calls) = spoiled("patch", u32::MAX, |array| {
        Err(BackendError::Shape {
            what: "latent",
            actual: array.shape().to_vec(),
            expected: "nothing".into(),
        })
    });
    assert!(run_on(farm, &spec(), None).await.is_err());
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}
