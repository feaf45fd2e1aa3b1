//! What ends with a coordinator, and what is removed from one.

use gigasmith_proto::v1;
use gigasmith_proto::v1::control_client::ControlClient;
use gigasmith_proto::v1::submit_request::Part;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::process::{Coordinator, program};

const MODEL: [&str; 4] = ["-p", "a fox", "--model", "synthetic:side=16"];

fn submit(coordinator: &Coordinator, more: &[&str]) -> String {
    coordinator.told(&[&["submit", "-q"], &MODEL[..], &["--steps", "2", "--stages", "2"], more].concat())
}

/// A small window, so that what is sent waits for us.
async fn client(url: &str) -> ControlClient<tonic::transport::Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned()).unwrap();
    let endpoint = endpoint.initial_stream_window_size(1 << 16).initial_connection_window_size(1 << 16);
    ControlClient::new(endpoint.connect().await.unwrap()).max_decoding_message_size(64 << 20)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_when_a_coordinator_is_told_to_stop_ends_well() {
    let mut coordinator = Coordinator::start(&[]);
    let worker = coordinator.worker("synthetic:side=16", "w");
    let id =
        coordinator.told(&[&["submit", "-q", "--wait", "--steps", "2", "--scale", "8"], &MODEL[..]].concat());
    let (mut fetching, mut submitting) = (client(&coordinator.url).await, client(&coordinator.url).await);
    let request = v1::FetchRequest { id: id.clone(), part: v1::FetchedPart::Latents.into() };
    let mut pieces = fetching.fetch(request).await.unwrap().into_inner();
    // Half of the pixels.
    let (parts, stream) = mpsc::channel(4);
    let submission = v1::Submission {
        id: "late".into(),
        settings: r#"{"prompt":"a fox","model":"synthetic","scale":2,"steps":2}"#.into(),
        picture: Some(v1::Size { width: 128, height: 128 }),
        ..v1::Submission::default()
    };
    let pixels = |n: usize| Some(Part::Pixels(vec![7; n].into()));
    let half = 128 * 128 * 3 / 2;
    for part in [Some(Part::Submission(submission)), pixels(half)] {
        parts.send(v1::SubmitRequest { part }).await.unwrap();
    }
    let answer = tokio::spawn(async move { submitting.submit(ReceiverStream::new(stream)).await });
    // It has begun to read: the piece is taken out of the channel.
    while parts.capacity() < 4 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    coordinator.process().signal("TERM");
    // Nobody new comes in; the others go on.
    while tokio::net::TcpStream::connect(coordinator.url.strip_prefix("http://").unwrap()).await.is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    parts.send(v1::SubmitRequest { part: pixels(half) }).await.unwrap();
    drop(parts);
    let accepted = answer.await.unwrap().unwrap().into_inner().render.unwrap();
    assert_eq!(accepted.id, "late");
    let (mut total, mut got) = (0, 0);
    while let Some(piece) = pieces.message().await.unwrap() {
        (total, got) = (piece.total, got + piece.data.len() as u64);
    }
    assert_eq!(got, total);
    assert!(total > 1 << 17, "more than travels by itself: {total}");
    assert_eq!(coordinator.end(), Some(0));
    coordinator.restart();
    assert_eq!(coordinator.json(&["status", "late"])["id"], "late", "what was accepted is there");
    drop(worker);
}

#[test]
fn ended_renders_are_listed_by_pages_and_removed() {
    let coordinator = Coordinator::start(&[]);
    let _worker = coordinator.worker("synthetic:side=16", "w");
    let waits = coordinator.told(&["submit", "-q", "-p", "x", "--model", "pocket", "--name", "waits"]);
    for n in 1..=22 {
        submit(&coordinator, &["--name", &format!("p{n}")]);
    }
    coordinator.until_done("p22");
    for n in 1..=22 {
        coordinator.until_done(&format!("p{n}"));
    }
    let ids = |args: &[&str]| -> Vec<String> {
        let listed = coordinator.json(args);
        listed.as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap().to_owned()).collect()
    };
    let shown = ids(&["status"]);
    assert_eq!((shown.len(), &shown[..3]), (21, &[waits, "p22".into(), "p21".into()][..]));
    assert!(coordinator.told(&["status"]).ends_with("and 2 more that have ended: --all shows them"));
    let all = ids(&["status", "--all"]);
    assert_eq!((all.len(), all.last().unwrap().as_str()), (23, "p1"));
    // What has not ended stays.
    let refused = coordinator.ask(&["rm", "waits"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("cancel it first"), "{said}");
    assert_eq!(coordinator.told(&["rm", "p1", "p22"]), "p1 is removed\np22 is removed");
    let all = ids(&["status", "--all"]);
    assert!(all.len() == 21 && !all.contains(&"p1".to_owned()), "{all:?}");
    let store = coordinator.folder.path().join("store/renders");
    assert!(!store.join("p1").exists() && store.join("p2").exists());
    assert!(!coordinator.ask(&["status", "p1"]).status.success());
    // The name is free.
    assert_eq!(submit(&coordinator, &["--name", "p1", "--wait"]), "p1");
    let help = program().args(["--help"]).output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("  rm "));
}
