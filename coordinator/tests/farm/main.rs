//! Farms of real processes and sockets: whatever happens to workers and coordinators, the picture and
//! the latents are those of one embedded worker, to the byte.
#![cfg(unix)]

#[allow(dead_code)]
mod process;

mod answers;
mod endings;
mod places;

use std::io::{BufReader, Read};
use std::time::Duration;

use process::{Coordinator, Draws, Running, program, reference};

/// A small cascade of the synthetic model: 3 stages, some hundred patches.
fn settings(plan: &str) -> Vec<&str> {
    vec![
        "-p",
        "a fox",
        "--model",
        "synthetic:side=16",
        "--steps",
        "6",
        "--slider",
        "4,3",
        "--stages",
        "2,4",
        "--plan",
        plan,
    ]
}

fn submit(coordinator: &Coordinator, plan: &str, more: &[&str]) -> String {
    coordinator.told(&[&["submit", "-q"], &settings(plan)[..], more].concat())
}

const PLANS: [&str; 2] = ["balanced", "paper"];

#[test]
fn any_number_of_workers_of_any_speed_gives_the_same_bytes() {
    let coordinator = Coordinator::start(&[]);
    let expected = PLANS.map(|plan| reference(coordinator.folder.path(), &settings(plan)));
    assert_ne!(expected[0], expected[1], "the plans differ");
    let mut workers: Vec<Running> = Vec::new();
    // The first is quick, the second slow, the third in between, and one of them is the slim program.
    for (model, name) in [
        ("synthetic:side=16", "quick"),
        ("synthetic:side=16,latency=25", "slow-slim"),
        ("synthetic:side=16,latency=5", "middling"),
    ] {
        workers.push(coordinator.worker(model, name));
        coordinator.until(&["workers"], |w| w.as_array().is_some_and(|w| w.len() == workers.len()));
        for (plan, expected) in PLANS.iter().zip(&expected) {
            let id = submit(&coordinator, plan, &["--wait"]);
            assert!(coordinator.results(&id) == *expected, "{plan} with {} workers", workers.len());
        }
    }
    let all = coordinator.json(&["workers"]);
    let done = |name: &str| {
        let worker = all.as_array().unwrap().iter().find(|w| w["name"] == name).unwrap().clone();
        worker["done"].as_u64().unwrap()
    };
    assert!(done("middling") > 0 && done("quick") > 0, "everybody works: {all:#}");
}

#[test]
fn workers_that_join_leave_and_are_killed_change_nothing() {
    let coordinator = Coordinator::start(&[]);
    let mut draws = Draws(7);
    for plan in PLANS {
        let expected = reference(coordinator.folder.path(), &settings(plan));
        let mut id = submit(&coordinator, plan, &[]);
        let mut workers: Vec<Running> = Vec::new();
        let (mut born, mut killed, mut drained) = (0, 0, 0);
        loop {
            if coordinator.json(&["status", &id])["state"] == "done" && (killed < 3 || drained == 0) {
                // It ended before enough had happened to it.
                assert!(coordinator.results(&id) == expected, "{plan}: {killed} killed, {drained} drained");
                id = submit(&coordinator, plan, &[]);
            }
            let status = coordinator.json(&["status", &id]);
            if status["state"] == "done" {
                break;
            }
            assert!(born < 200, "the render does not end: {status:#}");
            while workers.len() < 3 {
                born += 1;
                let latency = draws.below(12);
                let model = format!("synthetic:side=16,latency={latency}");
                workers.push(coordinator.worker(&model, &format!("w{born}")));
            }
            std::thread::sleep(Duration::from_millis(60 + draws.below(250)));
            let at = draws.below(3) as usize;
            let mut worker = workers.swap_remove(at);
            if draws.below(3) == 0 {
                worker.signal("TERM");
                assert_eq!(worker.end(), Some(0), "a drained worker ends well");
                drained += 1;
            } else {
                // Dropping it is SIGKILL.
                killed += 1;
            }
        }
        assert!(killed >= 3 && drained > 0);
        assert!(coordinator.results(&id) == expected, "{plan}: {killed} killed, {drained} drained");
    }
}

#[test]
fn a_worker_that_stops_answering_holds_nothing_up_and_its_late_results_do_no_harm() {
    let coordinator = Coordinator::start(&[]);
    let expected = reference(coordinator.folder.path(), &settings("paper"));
    let hung = coordinator.worker("synthetic:side=16,latency=10", "hung");
    let id = submit(&coordinator, "paper", &[]);
    coordinator.until(&["status", &id], |s| s["patches_done"].as_u64() > Some(1));
    let _good = coordinator.worker("synthetic:side=16,latency=2", "good");
    coordinator.until(&["workers"], |w| w.as_array().is_some_and(|w| w.len() == 2));
    // As a partition does: the connection stands, and nothing comes.
    hung.signal("STOP");
    coordinator.until(&["status", &id], |s| s["stage"] == 2 && s["patches_done"].as_u64() > Some(20));
    hung.signal("CONT");
    coordinator.until_done(&id);
    assert!(coordinator.results(&id) == expected);
}

#[test]
fn a_coordinator_that_restarts_goes_on_with_the_workers_that_wait_for_it() {
    let mut coordinator = Coordinator::start(&[]);
    let workers = ["a", "b"].map(|name| coordinator.worker("synthetic:side=16,latency=30", name));
    for (plan, power_cut) in PLANS.into_iter().zip([true, false]) {
        let expected = reference(coordinator.folder.path(), &settings(plan));
        let id = submit(&coordinator, plan, &[]);
        for stage in [0, 2] {
            coordinator
                .until(&["status", &id], |s| s["stage"] == stage && s["patches_done"].as_u64() > Some(2));
            if power_cut {
                coordinator.kill();
            } else {
                assert_eq!(coordinator.terminate(), Some(0));
            }
            coordinator.restart();
        }
        let status = coordinator.until(&["status", &id], |s| s["stage"].is_u64() && s["patches"] != 0);
        assert_eq!(status["stage"], 2, "a finished stage is not run again");
        coordinator.until_done(&id);
        assert!(coordinator.results(&id) == expected, "{plan}");
        let left = coordinator.folder.path().join(format!("store/renders/{id}/checkpoints"));
        assert!(left.read_dir().is_ok_and(|mut d| d.next().is_none()), "nobody needs its checkpoints");
    }
    for mut worker in workers {
        worker.signal("TERM");
        assert_eq!(worker.end(), Some(0));
    }
}

#[test]
fn renders_share_a_farm_by_priority_and_can_be_paused_continued_and_cancelled() {
    let coordinator = Coordinator::start(&[]);
    let first = submit(&coordinator, "balanced", &["--name", "first"]);
    assert_eq!(first, "first");
    let waiting = coordinator.json(&["status", "first"]);
    assert_eq!(waiting["state"], "queued");
    assert!(waiting["reason"].as_str().unwrap().contains("no worker is connected"), "{waiting:#}");
    let _other = coordinator.worker("pocket", "other");
    coordinator.until(&["status", "first"], |s| {
        s["reason"].as_str().unwrap().contains("with the model `synthetic`")
    });
    coordinator.told(&["pause", "first"]);
    let second = submit(&coordinator, "balanced", &["--priority", "5", "--seed", "3"]);
    let third = submit(&coordinator, "balanced", &["--seed", "4"]);
    let _worker = coordinator.worker("synthetic:side=16,latency=20", "worker");
    coordinator.until(&["status", &second], |s| s["patches_done"].as_u64() > Some(0));
    let paused = coordinator.json(&["status", "first"]);
    assert_eq!(paused["state"], "paused");
    assert!(paused["reason"].as_str().unwrap().contains("gigasmith continue first"), "{paused:#}");
    coordinator.told(&["cancel", &third]);
    assert_eq!(coordinator.json(&["status", &third])["state"], "cancelled");
    coordinator.told(&["priority", "first", "9"]);
    coordinator.told(&["continue", "first"]);
    coordinator.until_done("first");
    let order = coordinator.json(&["status", &second]);
    assert_eq!(order["state"], "running", "the one of higher priority ended first: {order:#}");
    assert!(coordinator.results("first") == reference(coordinator.folder.path(), &settings("balanced")));
    coordinator.told(&["workers", "disable", "worker"]);
    coordinator.until(&["status", &second], |s| s["reason"].as_str().unwrap().contains("1 disabled"));
    coordinator.told(&["workers", "enable", "worker"]);
    coordinator.until_done(&second);
    let refused = |args: &[&str], words: &[&str]| {
        let output = coordinator.ask(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(7), "{args:?}: {said}");
        words.iter().for_each(|w| assert!(said.contains(w), "{args:?}: `{w}` is missing in: {said}"));
    };
    refused(&["status", "nobody"], &["nobody", "gigasmith status"]);
    refused(&["continue", "first"], &["first is done"]);
    refused(&["fetch", &third], &["cancelled", "until it is done"]);
    refused(&["workers", "drain", "nobody"], &["nobody", "other, worker"]);
    refused(&[&["submit", "--name", "first"][..], &settings("paper")].concat(), &["first", "another name"]);
}

#[test]
fn wrong_settings_are_refused_at_once_or_when_their_model_comes() {
    let coordinator = Coordinator::start(&[]);
    let wrong = [&["submit"][..], &settings("paper"), &["--pag-scale", "2", "--pag-blocks", "d99"]].concat();
    let id = coordinator.told(&wrong);
    let _worker = coordinator.worker("synthetic:side=16", "w");
    let status = coordinator.until(&["status", &id], |s| s["state"] == "failed");
    assert!(status["reason"].as_str().unwrap().contains("d99"), "{status:#}");
    let output = coordinator.ask(&wrong);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("d99"));
    for name in ["a/b", ".hidden", ""] {
        let args = [&["submit", "--name", name][..], &settings("paper")].concat();
        let output = coordinator.ask(&args);
        assert_eq!(output.status.code(), Some(2), "`{name}`");
    }
}

#[test]
fn an_existing_picture_a_plan_and_half_precision_go_through_a_farm_as_through_one_worker() {
    let coordinator = Coordinator::start(&[]);
    let folder = coordinator.folder.path();
    let _workers = ["a", "b"].map(|name| coordinator.worker("synthetic:side=16,latency=1", name));
    reference(folder, &[&settings("paper")[..], &["--save-plan", "plan.json"]].concat());
    std::fs::rename(folder.join("reference.png"), folder.join("base.png")).unwrap();
    for more in [
        &["--image", "base.png", "--scale", "2", "--wire", "f16"][..],
        &["--plan-file", "plan.json", "--wire", "f16"],
        &["--from", "base.png", "--wire", "f32"],
    ] {
        let mut args = vec!["-p", "a hare", "--model", "synthetic:side=16", "--steps", "6"];
        args.extend(if more[0] == "--plan-file" { vec!["--stages", "2,4"] } else { vec![] });
        args.extend(more);
        let expected = reference(folder, &args);
        let id = coordinator.told(&[&["submit", "-q", "--wait"], &args[..]].concat());
        assert!(coordinator.results(&id) == expected, "{more:?}");
    }
}

#[test]
fn submissions_made_at_the_same_time_keep_their_own_pictures() {
    let coordinator = Coordinator::start(&[]);
    let folder = coordinator.folder.path();
    for (name, level) in [("dark", 10u8), ("light", 240)] {
        let picture = image::RgbImage::from_pixel(600, 600, image::Rgb([level; 3]));
        picture.save(folder.join(format!("{name}.png"))).unwrap();
    }
    let submit = |name: &str| {
        let mut command = program();
        command.current_dir(folder).env("GIGASMITH_COORDINATOR", &coordinator.url);
        command.args(["submit", "-q", "--model", "synthetic", "-p", name, "--image", &format!("{name}.png")]);
        Running(command.stdout(std::process::Stdio::null()).spawn().unwrap())
    };
    for _ in 0..4 {
        ["dark", "light"].map(submit).into_iter().for_each(|mut s| assert_eq!(s.end(), Some(0)));
    }
    let renders = coordinator.json(&["status"]);
    assert_eq!(renders.as_array().unwrap().len(), 8);
    for render in renders.as_array().unwrap() {
        let at = folder.join("store/renders").join(render["id"].as_str().unwrap());
        let record = std::fs::read_to_string(at.join("render.json")).unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        let pixels =
            std::fs::read(at.join("inputs").join(record["picture"]["hash"].as_str().unwrap())).unwrap();
        let level = if render["prompt"] == "dark" { 10 } else { 240 };
        assert!(pixels.len() == 600 * 600 * 3 && pixels.iter().all(|&p| p == level), "{render:#}");
    }
}

#[test]
fn one_who_waits_is_not_put_off_by_a_restart() {
    let mut coordinator = Coordinator::start(&[]);
    let expected = reference(coordinator.folder.path(), &settings("balanced"));
    let _worker = coordinator.worker("synthetic:side=16,latency=8", "w");
    let mut command = program();
    command.current_dir(coordinator.folder.path()).env("GIGASMITH_COORDINATOR", &coordinator.url);
    command.args(["submit", "--name", "patient", "-o", "patient.png"]).args(settings("balanced"));
    let mut waiting = Running(command.stdout(std::process::Stdio::null()).spawn().unwrap());
    let is_known = || coordinator.ask(&["status", "patient"]).status.success();
    while !is_known() {
        std::thread::sleep(Duration::from_millis(20));
    }
    coordinator.until(&["status", "patient"], |s| s["patches_done"].as_u64() > Some(2));
    coordinator.kill();
    coordinator.restart();
    assert_eq!(waiting.end(), Some(0));
    let written = std::fs::read(coordinator.folder.path().join("patient.png")).unwrap();
    assert!(written == expected.0);
}

#[test]
fn settings_come_from_the_environment_and_a_file() {
    let coordinator = Coordinator::start(&[]);
    let folder = coordinator.folder.path();
    let file = format!("coordinator = \"{}\"\n[submit]\nsteps = 2\nmodel = \"synthetic\"\n", coordinator.url);
    std::fs::write(folder.join("farm.toml"), file).unwrap();
    let run = |args: &[&str], variable: Option<(&str, &str)>| {
        let mut command = program();
        command.current_dir(folder).args(args).envs(variable);
        command.output().unwrap()
    };
    let output = run(&["submit", "-p", "x", "--config", "farm.toml"], None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(coordinator.json(&["status", "r1"])["model"], "synthetic");
    let output = run(&["submit", "--config", "farm.toml"], Some(("GIGASMITH_PROMPT", "from outside")));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(coordinator.json(&["status", "r2"])["prompt"], "from outside");
    std::fs::write(folder.join("gigasmith.toml"), "stepz = 3").unwrap();
    let output = run(&["status"], None);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`stepz` is no setting"));
    // Half an identity is refused wherever it comes from: nobody should believe in encryption that is not there.
    for half in ["tls-cert = 'x.pem'", "tls-client-ca = 'x.pem'"] {
        std::fs::write(folder.join("gigasmith.toml"), format!("[serve]\n{half}\n")).unwrap();
        let output = run(&["serve", "--listen", "127.0.0.1:0"], None);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("belong together"));
    }
}

#[test]
fn strangers_are_sent_away_and_the_farm_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let run = |args: &[&str]| program().current_dir(at).args(args).output().unwrap();
    let said = |args: &[&str], code: i32| {
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        said
    };
    std::fs::write(at.join("token"), "0123456789abcdef0123").unwrap();
    std::fs::write(at.join("wrong"), "0123456789abcdef9999").unwrap();
    std::fs::write(at.join("short"), "abc").unwrap();
    for args in [&["init"][..], &["issue", "farm"], &["issue", "alice"]] {
        assert!(run(&[&["certs"], args].concat()).status.success());
    }
    for name in ["", ".", "..", "a\nb", &"x".repeat(129)] {
        assert!(said(&["worker", "--model", "certs", "--name", name], 2).contains("no name for a worker"));
    }
    assert!(said(&["serve", "--listen", "0.0.0.0:0"], 2).contains("--token-file"));
    assert!(said(&["serve", "--token-file", "short"], 4).contains("at least 16"));
    assert!(said(&["serve", "--store", "ftp://x"], 5).contains("s3://"));
    let mixed =
        ["serve", "--listen", "127.0.0.1:0", "--tls-cert", "certs/farm.pem", "--tls-key", "certs/alice.key"];
    assert!(said(&mixed, 4).contains("certs/alice.key"));
    assert!(said(&["certs", "issue", "x", "--host", "https://x:1"], 2).contains("neither a host name"));
    assert!(said(&["status", "--coordinator", "http://127.0.0.1:1"], 7).contains("gigasmith serve"));
    let path = |name: &str| at.join(name).to_str().unwrap().to_owned();
    let (token, ca) = (path("token"), path("certs/ca.pem"));
    let (cert, key) = (path("certs/farm.pem"), path("certs/farm.key"));
    let tls = ["--token-file", &token, "--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca];
    let coordinator = Coordinator::start(&tls);
    let url = coordinator.url.clone();
    assert!(url.starts_with("https://"));
    let plain = url.replace("https", "http");
    assert!(said(&["status", "--coordinator", &plain, "--token-file", "token"], 7).contains("https://"));
    let status = ["status", "--coordinator", &url, "--tls-ca", "certs/ca.pem"];
    let own = ["--tls-cert", "certs/alice.pem", "--tls-key", "certs/alice.key"];
    said(&[&status[..], &["--token-file", "token"]].concat(), 7);
    let known = [&status[..], &own].concat();
    assert!(said(&known, 7).contains("asks for its token"));
    assert!(said(&[&known[..], &["--token-file", "wrong"]].concat(), 7).contains("not the farm's token"));
    assert!(said(&["status", "--coordinator", &url, "--token-file", "token"], 7).contains("--tls-ca"));
    // A worker without the token is told why, and does not try for ever: before it loads a model, which this is
    // none.
    let mut stranger = coordinator.worker_with(
        &path("certs"),
        "stranger",
        &["--tls-ca", &ca, "--tls-cert", &path("certs/alice.pem"), "--tls-key", &path("certs/alice.key")],
    );
    assert_eq!(stranger.end(), Some(7));
    let mut words = String::new();
    BufReader::new(stranger.0.stderr.take().unwrap()).read_to_string(&mut words).unwrap();
    assert!(words.contains("asks for its token"), "{words}");
    // And with everything in its place all goes well.
    let all = [&own[..], &["--tls-ca", "certs/ca.pem", "--token-file", "token"]].concat();
    let all: Vec<String> =
        all.iter().map(|a| if a.starts_with("--") { (*a).to_owned() } else { path(a) }).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let _worker = coordinator.worker_with("synthetic:side=16", "w", &all);
    let submit = [&["submit", "-q", "--wait"][..], &settings("balanced"), &all].concat();
    assert!(!coordinator.told(&submit).is_empty());
}

/// A picture that is decoded in seamless tiles; its tiles take a moment.
#[test]
fn workers_and_coordinator_may_die_while_a_large_picture_is_decoded() {
    let mut coordinator = Coordinator::start(&["--checkpoint-every", "100ms"]);
    let settings =
        ["-p", "a fox", "--model", "synthetic:side=16", "--steps", "2", "--slider", "1", "--stages", "9"];
    let expected = reference(coordinator.folder.path(), &settings);
    let model = "synthetic:side=16,tile=25";
    let mut workers: Vec<Running> = ["a", "b", "c"].map(|name| coordinator.worker(model, name)).into();
    let id = coordinator.told(&[&["submit", "-q"], &settings[..]].concat());
    let decodes = |s: &serde_json::Value, least: u64| {
        s["phase"] == "decoding" && s["tiles_done"].as_u64() >= Some(least)
    };
    coordinator.until(&["status", &id], |s| decodes(s, 10));
    workers.pop();
    let before = coordinator.until(&["status", &id], |s| decodes(s, 30));
    assert!(before["tiles_done"].as_u64() < before["tiles"].as_u64(), "{before:#}");
    coordinator.kill();
    coordinator.restart();
    // Decoding goes on from the newest checkpoint: the patches are not done again.
    let after = coordinator.until(&["status", &id], |s| s["state"] == "done" || decodes(s, 1));
    assert_eq!(after["patches_done"], 0, "{after:#}");
    coordinator.until_done(&id);
    assert!(coordinator.results(&id) == expected, "other bytes");
}
