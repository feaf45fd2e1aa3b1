//! The pages and what machines ask for, from the built program: a coordinator's and `gigasmith view`'s.
#![cfg(unix)]

#[allow(dead_code)]
#[path = "../farm/process.rs"]
mod process;

mod browser;
mod edge;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use process::{Coordinator, PATIENCE, Running, program};
use serde_json::Value;

struct Answer {
    code: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A request as plain as can be. `more`: header lines.
fn ask(url: &str, method: &str, path: &str, more: &[&str], body: &str) -> Answer {
    let address = url.split("://").nth(1).expect("a URL").trim_end_matches('/');
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let host = if more.iter().any(|m| m.starts_with("Host:")) {
        String::new()
    } else {
        format!("Host: {address}\r\n")
    };
    let more: String = more.iter().map(|m| format!("{m}\r\n")).collect();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\n{host}{more}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("it takes a request");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("it answers");
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").expect("there is a head");
    let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
    let code = head.split_whitespace().nth(1).and_then(|c| c.parse().ok()).expect("there is a code");
    let body = match head.contains("transfer-encoding: chunked") {
        true => unchunked(&all[end + 4..]),
        false => all[end + 4..].to_vec(),
    };
    Answer { code, head, body }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let length =
            usize::from_str_radix(String::from_utf8_lossy(&rest[..end]).trim(), 16).expect("a length");
        body.extend_from_slice(&rest[end + 2..][..length]);
        rest = &rest[end + 2 + length + 2..];
        if length == 0 {
            break;
        }
    }
    body
}

fn get(url: &str, path: &str) -> Answer {
    ask(url, "GET", path, &[], "")
}

/// The first event of a stream that is as wanted.
fn event(url: &str, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let address = url.split("://").nth(1).expect("a URL");
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("it takes a request");
    let started = Instant::now();
    for line in BufReader::new(stream).lines() {
        let line = line.expect("it goes on");
        if let Some(data) = line.strip_prefix("data: ") {
            let value: Value = serde_json::from_str(data).expect("events are JSON");
            if wanted(&value) {
                return value;
            }
        }
        assert!(started.elapsed() < PATIENCE, "it never comes");
    }
    panic!("the stream ended");
}

/// Tells a worker something, as the pages do.
fn change_worker(url: &str, change: &str, name: &str) -> Answer {
    let headers = ["X-Gigasmith: 1", "Content-Type: application/json"];
    ask(
        url,
        "POST",
        &format!("/api/workers/{change}"),
        &headers,
        &serde_json::json!({ "name": name }).to_string(),
    )
}

fn submit(coordinator: &Coordinator, name: &str, more: &[&str]) {
    let settings = ["submit", "-q", "-p", "a fox", "--steps", "6", "--stages", "2,4", "--name", name];
    coordinator.told(&[&settings[..], more].concat());
}

#[test]
fn a_render_is_seen_from_its_first_patch_to_its_picture() {
    let coordinator = Coordinator::start(&["--checkpoint-every", "100ms"]);
    let url = coordinator.url.clone();
    let model = "synthetic:side=16,latency=30";
    let _workers = [coordinator.worker(model, "quick"), coordinator.worker(model, "slow")];
    submit(&coordinator, "fox", &["--model", "synthetic:side=16", "--format", "tif"]);
    let state = event(&url, "/api/events", |s| s["renders"][0]["patches_done"].as_u64() > Some(3));
    assert_eq!((&state["renders"][0]["id"], &state["renders"][0]["format"]), (&"fox".into(), &"tif".into()));
    let canvas = event(&url, "/api/renders/fox/events", |c| {
        c["in_flight"].as_array().is_some_and(|f| f.iter().any(|f| f["worker"] == "slow")) && c["stage"] == 2
    });
    assert_eq!((&canvas["kind"], &canvas["width"]), (&"latents".into(), &512.into()));
    let (version, level) = (canvas["version"].as_u64().unwrap(), canvas["max_level"].as_u64().unwrap());
    assert!(version > 1_000_000, "versions go on from the time: {version}");
    let tile = get(&url, &format!("/api/renders/fox/tiles/{version}/{level}/1_1"));
    assert_eq!(image::load_from_memory(&tile.body).expect("a JPEG").width(), 256, "{}", tile.head);
    for missing in [format!("{version}/{level}/2_0"), format!("{version}/99/0_0"), format!("1/{level}/0_0")] {
        assert_eq!(get(&url, &format!("/api/renders/fox/tiles/{missing}")).code, 404, "{missing}");
    }
    // What is under way is paused and goes on.
    let change = |path: &str| ask(&url, "POST", path, &["X-Gigasmith: 1"], "");
    assert_eq!(change("/api/renders/fox/pause").json()["state"], "paused");
    let continued = change("/api/renders/fox/continue").json();
    assert!(continued["state"] == "queued" || continued["state"] == "running", "{continued:#}");
    assert_eq!(change_worker(&url, "drain", "slow").code, 200);
    coordinator.until_done("fox");
    let picture = event(&url, "/api/renders/fox/events", |c| c["kind"] == "picture");
    assert_eq!(picture["cells"], Value::Null);
    let file = get(&url, "/api/renders/fox/picture");
    assert!(file.head.contains("filename=\"fox.tif\"") && file.body.starts_with(b"II"), "{}", file.head);

    // The numbers add up.
    let metrics = get(&url, "/metrics").text();
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|l| l.strip_prefix(name).filter(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).trim().parse().expect("a number")
    };
    let patches = value("gigasmith_patches_total");
    // What was under way when it was paused is done again.
    assert!(value(r#"gigasmith_tasks_total{kind="patch",outcome="done"}"#) >= patches);
    assert!(patches > 100.0 && value(r#"gigasmith_leases_total{event="granted"}"#) >= patches);
    assert_eq!(value(r#"gigasmith_renders{state="done"}"#), 1.0);
    assert!(
        value("gigasmith_checkpoints_total") >= 2.0
            && value("gigasmith_checkpoint_written_bytes_total") > 1e4
    );
    assert!(value(r#"gigasmith_task_seconds_count{kind="patch",worker="quick"}"#) > 10.0);
    assert!(value(r#"gigasmith_wire_bytes_total{direction="received"}"#) > 1e5);

    // After a restart the picture is read from the store.
    let mut coordinator = coordinator;
    assert_eq!(coordinator.terminate(), Some(0));
    coordinator.restart();
    let canvas = get(&url, "/api/renders/fox/canvas").json();
    assert_eq!((&canvas["kind"], &canvas["height"]), (&"picture".into(), &512.into()));
    let version = canvas["version"].as_u64().unwrap();
    let tile = get(&url, &format!("/api/renders/fox/tiles/{version}/{}/0_0", canvas["max_level"]));
    assert!(image::load_from_memory(&tile.body).is_ok(), "{}", tile.text());
    assert!(tile.head.contains("max-age"), "{}", tile.head);
    // One of the same name that came before had another.
    assert_eq!(get(&url, &format!("/api/renders/fox/tiles/{}/0/0_0", version + 1)).code, 404);
}

#[test]
fn only_who_may_come_in_does() {
    let coordinator = Coordinator::start(&[]);
    let url = coordinator.url.as_str();
    for (path, kind) in [
        ("/", "text/html"),
        ("/assets/js/main.js", "text/javascript"),
        ("/healthz", "text/plain"),
        ("/readyz", "text/plain"),
    ] {
        let answer = get(url, path);
        assert!(answer.code == 200 && answer.head.contains(kind), "{path}: {}", answer.head);
    }
    let head = get(url, "/").head;
    assert!(head.contains("content-security-policy: default-src 'self'"), "{head}");
    let tag = head.lines().find_map(|l| l.strip_prefix("etag: ")).expect("a tag").to_owned();
    assert_eq!(ask(url, "GET", "/", &[&format!("If-None-Match: {tag}")], "").code, 304);
    for path in ["/assets/../Cargo.toml", "/assets/%2e%2e/Cargo.toml", "/nothing", "/api/renders/none/canvas"]
    {
        assert_eq!(get(url, path).code, 404, "{path}");
    }
    // No page of another site: neither under another name, nor by a change without the header.
    let foreign = ask(url, "GET", "/api/state", &["Host: evil.example"], "");
    assert!(foreign.code == 403 && foreign.text().contains("evil.example"), "{}", foreign.text());
    assert_eq!(ask(url, "POST", "/api/renders/none/cancel", &[], "").code, 403);
    for call in ["/gigasmith.v1.Control/ChangeRender", "/gigasmith.v1.Farm/GetConditioning"] {
        for kind in ["text/plain", "application/grpc"] {
            let kind = format!("Content-Type: {kind}");
            assert_eq!(ask(url, "POST", call, &[&kind], "\0\0\0\0\0").code, 415, "{call} {kind}");
        }
    }
    assert_eq!(ask(url, "POST", "/api/renders/none/cancel", &["X-Gigasmith: 1"], "").code, 404);

    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "a-long-shared-secret").unwrap();
    let coordinator = Coordinator::start(&["--token-file", token.to_str().unwrap()]);
    let url = coordinator.url.as_str();
    assert_eq!(get(url, "/healthz").code, 200);
    assert_eq!(get(url, "/api/mode").json()["login"], true);
    for path in ["/api/state", "/api/events", "/metrics", "/api/renders/none/canvas"] {
        assert_eq!(get(url, path).code, 401, "{path}");
    }
    let login = |token: &str| {
        let headers = ["X-Gigasmith: 1", "Content-Type: application/json"];
        ask(url, "POST", "/api/login", &headers, &format!("{{\"token\":\"{token}\"}}"))
    };
    assert_eq!(login("a-long-shared-secre").code, 401);
    let entered = login("a-long-shared-secret");
    let cookie = entered.head.lines().find_map(|l| l.strip_prefix("set-cookie: ")).expect("a cookie");
    assert!(cookie.contains("httponly") && cookie.contains("samesite=strict"), "{cookie}");
    let cookie = format!("Cookie: {}", cookie.split(';').next().unwrap());
    assert_eq!(ask(url, "GET", "/api/state", &[&cookie], "").code, 200);
    assert_eq!(ask(url, "GET", "/api/mode", &[&cookie], "").json()["login"], false);
    assert_eq!(ask(url, "GET", "/metrics", &["Authorization: Bearer a-long-shared-secret"], "").code, 200);
    assert_eq!(ask(url, "GET", "/metrics", &["Authorization: Bearer wrong"], "").code, 401);
}

/// `gigasmith view`, and where it shows the picture.
fn view(folder: &Path, picture: &str) -> (Running, String) {
    let mut child = program()
        .current_dir(folder)
        .args(["view", picture])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("it says where");
    let url = line.split_whitespace().find(|w| w.starts_with("http://")).expect("an address").to_owned();
    (Running(child), url)
}

fn render(folder: &Path, output: &str) {
    let settings =
        ["render", "-q", "-p", "a fox", "--model", "synthetic:side=16", "--steps", "2", "--stages", "2,5"];
    let done = program().current_dir(folder).args(settings).args(["-o", output]).output().expect("it starts");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn finished_pictures_of_every_format_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("kept")).unwrap();
    for name in ["a.png", "a.tif", "kept/a.dzi"] {
        render(folder.path(), name);
        let by_url = format!("file://{}/{name}", folder.path().canonicalize().unwrap().display());
        for named in [name, &by_url] {
            let (mut shown, url) = view(folder.path(), named);
            assert_eq!(get(&url, "/api/mode").json()["mode"], "picture");
            let picture = get(&url, "/api/picture").json();
            assert_eq!((&picture["name"], &picture["width"]), (&"a".into(), &640.into()), "{named}");
            assert!(picture["parameters"].as_str().unwrap().starts_with("a fox\n"), "{named}");
            assert_eq!(picture["settings"]["spec"]["prompt"], "a fox");
            let level = picture["max_level"].as_u64().unwrap();
            for (level, tile) in [(level, "1_2"), (0, "0_0")] {
                let tile = get(&url, &format!("/api/picture/tiles/{level}/{tile}"));
                assert!(image::load_from_memory(&tile.body).is_ok(), "{named}: {}", tile.text());
            }
            assert_eq!(get(&url, &format!("/api/picture/tiles/{level}/9_0")).code, 404);
            shown.signal("INT");
            assert_eq!(shown.end(), Some(0));
        }
    }
    for (wrong, word, code) in
        [("missing.tif", "missing.tif", 4), ("a.jpg", "a.jpg", 4), ("http://127.0.0.1:1/", "browser", 2)]
    {
        let output = program().current_dir(folder.path()).args(["view", wrong]).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(word), "{wrong}: {said}");
    }
}
