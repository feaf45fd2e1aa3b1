//! A hub that is away, busy, broken or unwilling: a complete cache serves, and who has none is told what to do.

use std::time::{Duration, Instant};

use crate::stand_in::{Habits, Hub};
use crate::{error, filled, offline, open, options};

/// Every way a hub can be of no use.
fn bad_days() -> Vec<(&'static str, Habits)> {
    let status = |status| Habits { status: Some(status), ..Habits::default() };
    vec![
        ("is refused (401)", status(401)),
        ("is refused (403)", status(403)),
        ("has no model", status(404)),
        ("status 429 (5 tries); try again later, or set HF_TOKEN", status(429)),
        ("status 500 (5 tries)", status(500)),
        ("status 503 (5 tries)", status(503)),
        ("status 504 (5 tries)", status(504)),
        ("status 418", status(418)),
        ("a web page came in its place", Habits { is_rubbish: true, ..Habits::default() }),
        ("no answer for 0.2 s (5 tries)", Habits { is_silent: true, ..Habits::default() }),
    ]
}

#[test]
fn a_complete_cache_serves_whatever_the_hub_does() {
    let (hub, _cache, online) = filled();
    let mut hasty = online.clone();
    hasty.network.answer_timeout = Duration::from_millis(200);
    // With time to wait for a hub that recovers, which nobody needs to take who has everything.
    hasty.network.retry_pause = Duration::from_secs(100);
    for (_, habits) in bad_days() {
        *hub.habits() = habits;
        open("farm/tiny", hasty.clone()).unwrap();
    }
    // Port 9 is the discard service, which nobody runs.
    let away = options(&online.cache, "http://127.0.0.1:9");
    open("farm/tiny", away).unwrap();
}

#[test]
fn without_a_cache_every_failure_says_what_to_do() {
    let hub = Hub::start();
    let cache = tempfile::tempdir().unwrap();
    let mut hasty = options(cache.path(), &hub.address);
    hasty.network.answer_timeout = Duration::from_millis(200);
    for (said, habits) in bad_days() {
        *hub.habits() = habits;
        let message = error("farm/tiny", hasty.clone()).to_string();
        assert!(message.contains(said), "{said}: {message}");
    }
    *hub.habits() = Habits::default();
    for id in ["farm/none", "farm/tiny@nope"] {
        let message = error(id, hasty.clone()).to_string();
        assert!(message.contains("has no model") && message.contains("check the spelling"), "{message}");
    }
    let message = error("farm/tiny", offline(&hasty)).to_string();
    assert!(message.contains("`farm/tiny` (revision main) is not complete in the cache"), "{message}");
    let message = error("farm/tiny", options(cache.path(), "http://127.0.0.1:9")).to_string();
    assert!(message.contains("http://127.0.0.1:9 cannot be reached"), "{message}");
}

#[test]
fn a_hub_may_ask_for_a_moment() {
    let hub = Hub::start();
    hub.habits().failures = 4;
    let cache = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let mut patient = options(cache.path(), &hub.address);
    patient.network.retry_pause = Duration::from_millis(20);
    open("farm/tiny", patient).unwrap();
    // 20, 40, 80 and 160 ms.
    assert!(began.elapsed() >= Duration::from_millis(300));
}
