//! The recorded traces, replayed through the farm that `render` uses.

mod common;

use gigasmith_coordinator::sampler::torch_rng;
use gigasmith_coordinator::verify::{Trace, verify};

async fn replay(case: &str) {
    let trace = Trace::read(&common::golden(case)).expect("the trace is whole");
    let mut farm = common::farm_of(common::golden("tiny-sdxl").to_str().expect("a plain path"));
    let handle = farm.farm().clone();
    let report = farm
        .until_worker_ends(verify(&handle, &trace, &mut ()))
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
    parts.iter().for_each(|part| assert!(compared(part), "{case}: nothing was compared for {part}"));
}

#[tokio::test]
async fn the_plain_case() {
    replay("square").await;
}

#[tokio::test]
async fn not_square_slider_at_its_end_accents_and_an_empty_negative_prompt() {
    replay("wide").await;
}

#[tokio::test]
async fn without_guidance() {
    replay("nocfg").await;
}

#[tokio::test]
async fn guidance_and_perturbed_attention_together() {
    replay("pag").await;
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
