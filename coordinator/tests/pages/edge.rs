//! What the HTTP edge promises: downloads in parts, guards and errors of one shape, names of any kind, pings.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::process::{Coordinator, PATIENCE};
use super::{Answer, ask, change_worker, event, get, submit};

/// What a download is asked for, and what comes.
fn download(url: &str, id: &str, method: &str, more: &[&str]) -> Answer {
    ask(url, method, &format!("/api/renders/{id}/picture"), more, "")
}

#[test]
fn a_broken_download_goes_on_where_it_was() {
    let coordinator = Coordinator::start(&[]);
    let url = coordinator.url.clone();
    let _worker = coordinator.worker("synthetic:side=16", "quick");
    for (name, format, kind) in [("one", "png", "image/png"), ("two", "tif", "image/tiff")] {
        submit(&coordinator, name, &["--model", "synthetic:side=16", "--format", format]);
        coordinator.until_done(name);
        let whole = download(&url, name, "GET", &[]);
        let length = whole.body.len();
        assert!(length > 1000 && whole.code == 200, "{}", whole.head);
        for line in ["accept-ranges: bytes", &format!("content-length: {length}"), kind] {
            assert!(whole.head.contains(line), "{line}: {}", whole.head);
        }
        let tag = whole.head.lines().find_map(|l| l.strip_prefix("etag: ")).expect("a tag").to_owned();
        let head = download(&url, name, "HEAD", &[]);
        assert!(head.code == 200 && head.body.is_empty(), "{}", head.head);
        assert!(head.head.contains(&format!("content-length: {length}")), "{}", head.head);

        // Broken off twice, and put together again.
        let cuts = [0, length / 3, length - 1, length];
        let mut parts = Vec::new();
        for pair in cuts.windows(2) {
            let range = match pair[1] {
                end if end == length => format!("Range: bytes={}-", pair[0]),
                end => format!("Range: bytes={}-{}", pair[0], end - 1),
            };
            let part = download(&url, name, "GET", &[&range, &format!("If-Range: {tag}")]);
            let said = format!("content-range: bytes {}-{}/{length}", pair[0], pair[1] - 1);
            assert!(part.code == 206 && part.head.contains(&said), "{range}: {}", part.head);
            parts.extend(part.body);
        }
        assert!(parts == whole.body, "the parts are the whole");
        let tail = download(&url, name, "GET", &["Range: bytes=-100"]);
        assert!(tail.code == 206 && tail.body == whole.body[length - 100..]);

        // Of another version it begins anew; beyond the end there is nothing.
        let other = download(&url, name, "GET", &["Range: bytes=5-", "If-Range: \"other\""]);
        assert!(other.code == 200 && other.body == whole.body);
        let beyond = download(&url, name, "GET", &[&format!("Range: bytes={length}-")]);
        assert!(beyond.code == 416 && beyond.head.contains(&format!("content-range: bytes */{length}")));
        assert_eq!(download(&url, name, "GET", &["If-Match: \"other\""]).code, 412);
        for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", W/{tag}"), "*".to_owned()] {
            let same = download(&url, name, "GET", &[&format!("If-None-Match: {known}")]);
            assert!(same.code == 304 && same.body.is_empty(), "{known}: {}", same.head);
        }
        assert_eq!(download(&url, name, "GET", &["If-None-Match: \"x\""]).code, 200);
    }
    submit(&coordinator, "deep", &["--model", "synthetic:side=16", "--format", "dzi"]);
    coordinator.until_done("deep");
    let deep = download(&url, "deep", "GET", &[]);
    assert!(deep.code == 409 && deep.text().contains("gigasmith fetch deep"), "{}", deep.text());
    assert_eq!(download(&url, "none", "GET", &[]).code, 404);

    // How it was made.
    let settings = get(&url, "/api/renders/one/settings").json();
    assert_eq!((&settings["prompt"], &settings["settings"]["spec"]["steps"]), (&"a fox".into(), &6.into()));
    assert!(settings["parameters"].as_str().unwrap().contains("Steps: 6"), "{settings:#}");
    let state = get(&url, "/api/state").json();
    assert_eq!(state["renders"][0]["store_away"], false);
    assert!(state["renders"][0]["patches_all"].as_u64().unwrap() > 12, "{state:#}");
    // What waits for its model was only asked for.
    submit(&coordinator, "later", &["--model", "nobody-has-it", "--negative-prompt", "fog"]);
    let settings = get(&url, "/api/renders/later/settings").json();
    assert_eq!((&settings["negative_prompt"], &settings["parameters"]), (&"fog".into(), &Value::Null));
}

#[test]
fn every_answer_is_guarded_and_every_error_has_one_shape() {
    let coordinator = Coordinator::start(&[]);
    let url = coordinator.url.as_str();
    let guards = [
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cross-origin-resource-policy: same-origin",
        "cache-control: ",
        "content-security-policy: ",
        "frame-ancestors 'none'",
    ];
    let guarded = |answer: &Answer, what: &str| {
        for guard in guards {
            assert!(answer.head.contains(guard), "{what} lacks {guard}: {}", answer.head);
        }
        assert!(!answer.head.contains("unsafe-inline"), "{}", answer.head);
    };
    for path in ["/", "/assets/style.css", "/healthz", "/readyz", "/metrics", "/api/mode", "/api/state"] {
        let answer = get(url, path);
        assert_eq!(answer.code, 200, "{path}");
        guarded(&answer, path);
    }
    let (json, page) = ("Content-Type: application/json", "X-Gigasmith: 1");
    let long = format!("X-Long: {}", "a".repeat(60_000));
    let wrong: [(&str, &str, &[&str], &str, u16); 14] = [
        ("GET", "/nothing", &[], "", 404),
        ("GET", "/assets/nothing", &[], "", 404),
        ("GET", "/api/renders/none/canvas", &[], "", 404),
        ("GET", "/api/renders/none/events", &[], "", 404),
        ("GET", "/api/renders/none/settings", &[], "", 404),
        ("GET", "/api/renders/none/tiles/x/0/0_0", &[], "", 400),
        ("GET", "/api/renders/%ff/canvas", &[], "", 400),
        ("POST", "/api/state", &[page], "", 405),
        ("DELETE", "/", &[], "", 405),
        ("POST", "/api/login", &[page, json], "{", 400),
        ("POST", "/api/login", &[page], "{}", 415),
        ("POST", "/api/login", &[page, json], "{}", 422),
        ("POST", "/api/workers/drain", &[page, json], "{\"name\":\"nobody\"}", 404),
        ("GET", "/api/state", &[&long], "", 431),
    ];
    for (method, path, more, body, code) in wrong {
        let answer = ask(url, method, path, more, body);
        assert_eq!(answer.code, code, "{method} {path}: {}", answer.text());
        assert!(answer.json()["error"].as_str().is_some_and(|e| !e.is_empty()), "{path}: {}", answer.text());
        guarded(&answer, path);
    }
    // Pages of other sites may embed nothing.
    for (site, mode, code) in [
        ("cross-site", "no-cors", 403),
        ("same-site", "no-cors", 403),
        ("cross-site", "navigate", 200),
        ("same-origin", "cors", 200),
    ] {
        let more = [format!("Sec-Fetch-Site: {site}"), format!("Sec-Fetch-Mode: {mode}")];
        let answer = ask(url, "GET", "/api/state", &[&more[0], &more[1]], "");
        assert_eq!(answer.code, code, "{site} {mode}");
    }
    for host in
        ["localhost:80@evil.example", "localhost\r\nHost: evil.example", "evil.example\r\nHost: localhost"]
    {
        assert_eq!(ask(url, "GET", "/api/state", &[&format!("Host: {host}")], "").code, 403, "{host}");
    }
    let tag = get(url, "/").head.lines().find_map(|l| l.strip_prefix("etag: ")).expect("a tag").to_owned();
    assert_eq!(ask(url, "GET", "/", &[&format!("If-None-Match: \"x\", W/{tag}")], "").code, 304);
}

#[test]
fn a_worker_of_any_name_is_told_what_to_do() {
    let coordinator = Coordinator::start(&[]);
    let url = coordinator.url.as_str();
    let name = "shelf 1, a~b (new) %2e";
    let _worker = coordinator.worker("synthetic:side=16", name);
    event(url, "/api/events", |s| s["workers"][0]["name"] == name);
    assert_eq!(change_worker(url, "disable", name).json()["state"], "disabled");
    assert_eq!(change_worker(url, "enable", name).json()["state"], "idle");
    assert_eq!(change_worker(url, "enable", "..").code, 404);
    assert_eq!(change_worker(url, "fly", name).code, 404);
}

#[test]
fn every_stream_pings_while_there_is_nothing_to_tell() {
    let coordinator = Coordinator::start(&[]);
    submit(&coordinator, "fox", &["--model", "nobody-has-it"]);
    for path in ["/api/events", "/api/renders/fox/events"] {
        let address = coordinator.url.split("://").nth(1).expect("a URL");
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("it takes a request");
        let lines = BufReader::new(stream).lines().map(|line| line.expect("it goes on"));
        // An event without data is none for a browser.
        let mut pings = 0;
        let mut was_ping = false;
        for line in lines {
            pings += usize::from(was_ping && line.starts_with("data: {"));
            was_ping = line == "event: ping";
            if pings == 2 {
                break;
            }
        }
        assert_eq!(pings, 2, "{path}");
    }
}
