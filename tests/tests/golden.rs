//! The recorded traces, replayed through the farm that `render` uses.

mod common;

use gigasmith_coordinator::sampler::torch_rng;
use gigasmith_coordinator::verify::{Report, Trace, verify};
use safetensors::SafeTensors;

/// Replays a case; every part must have been compared, but for those its golden copy leaves out.
async fn replay(case: &str, left_out: &[&str]) -> Report {
    let trace = Trace::read(&common::golden(case)).expect("the trace is whole");
    let mut farm = common::farm_of(common::golden("tiny-sdxl").to_str().expect("a plain path"));
    let lane = farm.lane().await.expect("the worker stays");
    let report = farm
        .until_worker_ends(verify(lane, &trace, &mut ()))
        .await
        .expect("the worker stays")
        .expect("it runs");
    farm.stop().await;
    assert!(report.passed(), "{case}\n{}", report.table());
    let compared = |part: &str| report.comparisons().iter().any(|c| c.part == part && c.pass == Some(true));
    let parts = [
        "schedule",
        "text",
        "base",
        "base decode",
        "resize",
        "encode",
        "guide",
        "time ids",
        "patch input",
        "noise prediction",
        "latents",
        "final decode",
    ];
    let expected = parts.iter().filter(|p| !left_out.contains(p));
    expected.for_each(|part| assert!(compared(part), "{case}: nothing was compared for {part}"));
    report
}

/// Where the golden copy has no pictures.
const WITHOUT_PICTURES: &[&str] = &["resize"];
/// Where it has no decoded base either.
const WITHOUT_BASE: &[&str] = &["resize", "base decode"];

#[tokio::test]
async fn the_plain_case() {
    let report = replay("square", &[]).await;
    // The recorded moments carry the recorder's rounding; the same network in f64 shows our own.
    let file = std::fs::read(common::golden("square/encoded_mean_f64.safetensors")).expect("it is there");
    let file = SafeTensors::deserialize(&file).expect("it is whole");
    let exact = file.tensor("encoded_mean").expect("it is recorded");
    let exact = exact.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes")));
    let ours = report.computed("encoded_mean").expect("it was computed").data();
    let (error, norm) = exact.zip(ours).fold((0.0, 0.0), |(e, n), (exact, &ours)| {
        (e + (f64::from(ours) - exact).powi(2), n + exact * exact)
    });
    assert!((error / norm).sqrt() < 3e-6, "moments are {:e} from exact ones", (error / norm).sqrt());
}

#[tokio::test]
async fn not_square_slider_at_its_end_accents_and_an_empty_negative_prompt() {
    replay("wide", &[]).await;
}

#[tokio::test]
async fn without_guidance() {
    replay("nocfg", WITHOUT_BASE).await;
}

#[tokio::test]
async fn guidance_and_perturbed_attention_together() {
    replay("pag", WITHOUT_PICTURES).await;
}

#[test]
fn torch_noise_is_that_of_pytorch() {
    for (case, seed) in [("square", 5), ("wide", 6), ("nocfg", 7), ("pag", 8)] {
        let trace = Trace::read(&common::golden(case)).expect("the trace is whole");
        let recorded = &trace.tensor("base_noise").expect("it is recorded").array;
        let ours = torch_rng::randn(seed, recorded.shape());
        for (a, b) in ours.data().iter().zip(recorded.data()) {
            // PyTorch's vector code approximates logarithm and sine.
            assert!((a - b).abs() < 2e-6, "{case}: {a} against {b}");
        }
    }
}
