//! Workers that misbehave, connections that break, strangers at the door: over TCP, with fake networks.

mod common;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use common::Fake;
use common::by_hand::answer;
use common::net::{Coordinator, request};
use gigasmith_coordinator::jobs::JobChange;
use gigasmith_coordinator::request::RenderRequest;
use gigasmith_coordinator::sampler::plan::PlanKind;
use gigasmith_proto::MAX_MESSAGE_BYTES;
use gigasmith_proto::convert::{hello_to_wire, welcome_from_wire};
use gigasmith_proto::domain::{Array, Dtype, Hello, Identifier, RenderState, WorkerChange, WorkerState};
use gigasmith_proto::keda::external_scaler_client::ExternalScalerClient;
use gigasmith_proto::keda::{GetMetricsRequest, ScaledObjectRef};
use gigasmith_proto::v1;
use gigasmith_proto::v1::coordinator_message::Message;
use gigasmith_proto::v1::farm_client::FarmClient;
use gigasmith_proto::v1::worker_message::Message as Said;
use gigasmith_worker::backend::BackendError;
use gigasmith_worker::session::Ended;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

type Spoil = fn(&'static str, Array) -> Result<Array, BackendError>;

fn spoiled(spoil: Spoil) -> Fake {
    let mut fake = Fake::new();
    fake.spoil = Box::new(spoil);
    fake
}

/// What one good worker makes.
async fn expected(plan: PlanKind) -> Vec<u8> {
    let coordinator = Coordinator::start().await;
    let _worker = coordinator.worker("good", Fake::new());
    let id = coordinator.submit(request(plan)).await;
    coordinator.done(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_canary_differs_is_refused_with_the_difference_and_stays_visible() {
    let expected = expected(PlanKind::Balanced).await;
    let coordinator = Coordinator::start().await;
    let _good = coordinator.worker("good", Fake::new());
    let first = coordinator.submit(request(PlanKind::Balanced)).await;
    coordinator.done(&first).await;
    let _deviant = coordinator.worker(
        "deviant",
        spoiled(|kind, mut array| {
            if kind == "patch" {
                array.data_mut()[7] += 1e-3;
            }
            Ok(array)
        }),
    );
    let refused = coordinator.until_worker("deviant", WorkerState::Refused).await;
    assert!(refused.reason.contains("1 of 1024 values differ, by up to 1.0e-3"), "{}", refused.reason);
    let again = coordinator.submit(request(PlanKind::Balanced)).await;
    assert!(coordinator.done(&again).await == expected);
    let workers = coordinator.farm.workers().await;
    let done = |name: &str| workers.iter().find(|w| w.name == name).expect("it is listed").done;
    assert_eq!(done("deviant"), 0);
    // Statistics that all tiles share count as well.
    let _measures = coordinator.worker(
        "measures",
        spoiled(|kind, mut array| {
            if kind == "decoder statistics" {
                array.data_mut()[0] += 1e-3;
            }
            Ok(array)
        }),
    );
    let refused = coordinator.until_worker("measures", WorkerState::Refused).await;
    assert!(refused.reason.contains("in the statistics 1 of 4 values differ"), "{}", refused.reason);
    // One that agrees is admitted and works.
    let _second = coordinator.worker("second", Fake::new());
    coordinator.until_worker("second", WorkerState::Idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_worker_that_contradicts_itself_founds_nothing() {
    let expected = expected(PlanKind::Balanced).await;
    let coordinator = Coordinator::start().await;
    let mut moody = Fake::new();
    let mut calls = 0;
    moody.spoil = Box::new(move |kind, mut array| {
        calls += u32::from(kind == "patch");
        array.data_mut()[0] += calls as f32 * 1e-4;
        Ok(array)
    });
    let _moody = coordinator.worker("moody", moody);
    let refused = coordinator.until_worker("moody", WorkerState::Refused).await;
    assert!(refused.reason.contains("two answers to the same question"), "{}", refused.reason);
    let id = coordinator.submit(request(PlanKind::Balanced)).await;
    let waiting = coordinator.jobs.status(&id).await.expect("it was submitted");
    assert!(waiting.reason.contains("1 refused"), "{waiting:?}");
    let _good = coordinator.worker("good", Fake::new());
    assert!(coordinator.done(&id).await == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_worker_that_cannot_or_may_not_work_holds_nobody_up() {
    let broken: Spoil = |_, _| Err(BackendError::Device { what: "noise", message: "out of memory".into() });
    let coordinator = Coordinator::start().await;
    let _broken = coordinator.worker("broken", spoiled(broken));
    let refused = coordinator.until_worker("broken", WorkerState::Refused).await;
    assert!(refused.reason.contains("out of memory"), "{}", refused.reason);
    // Another class first, which no render wants.
    let mut other = Fake::new();
    other.model.numeric_class.dtype = Dtype::F16;
    let _other = coordinator.worker("other", other);
    coordinator.until_worker("other", WorkerState::Idle).await;
    let rests = coordinator.worker("rests", Fake::new());
    coordinator.until_worker("rests", WorkerState::Idle).await;
    coordinator.farm.change_worker("rests", WorkerChange::Disable).await.unwrap();
    let f32_only = RenderRequest { dtype: Some(Dtype::F32), ..request(PlanKind::Paper) };
    let id = coordinator.submit(f32_only).await;
    let status = coordinator.until(&id, |s| s.reason.contains("1 disabled")).await;
    assert_eq!(status.workers, 0);
    let _good = coordinator.worker("good", Fake::new());
    assert!(coordinator.done(&id).await == expected(PlanKind::Paper).await);
    rests.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_to_drain_while_it_was_away_drains_when_it_returns() {
    let coordinator = Coordinator::start().await;
    let detour = Detour::to(coordinator.address).await;
    let worker = coordinator.worker_by("far", detour.address, Fake::new());
    coordinator.until_worker("far", WorkerState::Idle).await;
    detour.cut.send_modify(|c| *c += 1);
    coordinator.until_worker("far", WorkerState::Silent).await;
    coordinator.farm.change_worker("far", WorkerChange::Drain).await.unwrap();
    let ended = timeout(Duration::from_secs(30), worker.session).await.expect("it drains");
    assert_eq!(ended.unwrap().unwrap(), Ended::Drained);
    let gone = coordinator.until_worker("far", WorkerState::Offline).await;
    assert!(gone.reason.contains("drained"), "{}", gone.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_answers_block_their_worker_and_leave_no_mark() {
    let expected = expected(PlanKind::Paper).await;
    let wrong: [(&str, Spoil); 4] = [
        ("nan", |kind, mut array| {
            array.data_mut()[3] = if kind == "patch" { f32::NAN } else { array.data()[3] };
            Ok(array)
        }),
        ("misshapen", |_, array| Ok(Array::zeros([4, 3, array.data().len()]))),
        ("broken", |_, _| Err(BackendError::Device { what: "noise", message: "out of memory".into() })),
        ("panics", |kind, array| if kind == "patch" { panic!("a bug in the network") } else { Ok(array) }),
    ];
    for (name, spoil) in wrong {
        let coordinator = Coordinator::start().await;
        let good = coordinator.worker("good", Fake::new());
        let id = coordinator.submit(request(PlanKind::Paper)).await;
        coordinator.until(&id, |s| s.progress.patches_done > 1).await;
        // It passes its examination of a patch, two tiles and statistics, then goes bad.
        let mut fake = Fake::new();
        let mut calls = 0;
        fake.spoil = Box::new(move |kind, array| {
            calls += 1;
            if calls > 4 { spoil(kind, array) } else { Ok(array) }
        });
        let _bad = coordinator.worker(name, fake);
        assert!(coordinator.done(&id).await == expected, "{name}");
        for _ in 0..20 {
            if coordinator
                .farm
                .workers()
                .await
                .iter()
                .any(|w| w.name == name && w.state == WorkerState::Blocked)
            {
                break;
            }
            let id = coordinator.submit(request(PlanKind::Paper)).await;
            coordinator.done(&id).await;
        }
        let blocked = coordinator.until_worker(name, WorkerState::Blocked).await;
        assert!(blocked.reason.contains("workers enable"), "{}", blocked.reason);
        good.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_everywhere_pauses_its_render_until_a_person_continues_it() {
    let coordinator = Coordinator::start().await;
    let is_broken = Arc::new(AtomicBool::new(false));
    let _workers = ["a", "b"].map(|name| {
        let (mut fake, broken) = (Fake::new(), is_broken.clone());
        fake.spoil = Box::new(move |kind, array| match kind {
            "decode" if broken.load(Ordering::SeqCst) => {
                Err(BackendError::Device { what: "image", message: "out of memory".into() })
            }
            _ => Ok(array),
        });
        coordinator.worker(name, fake)
    });
    for name in ["a", "b"] {
        coordinator.until_worker(name, WorkerState::Idle).await;
    }
    is_broken.store(true, Ordering::SeqCst);
    let id = coordinator.submit(request(PlanKind::Balanced)).await;
    let paused = coordinator.until(&id, |s| s.state == RenderState::Paused).await;
    assert!(
        paused.reason.contains("decode task failed 3 times") && paused.reason.contains("out of memory"),
        "{paused:?}"
    );
    is_broken.store(false, Ordering::SeqCst);
    for name in ["a", "b"] {
        coordinator.farm.change_worker(name, WorkerChange::Enable).await.unwrap();
    }
    coordinator.jobs.change(&id, JobChange::Continue).await.unwrap();
    assert!(coordinator.done(&id).await == expected(PlanKind::Balanced).await);
}

/// A detour that can be cut: what has passed has passed.
struct Detour {
    address: SocketAddr,
    cut: tokio::sync::watch::Sender<u64>,
}

impl Detour {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let (cut, cuts) = tokio::sync::watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_lose_no_finished_work() {
    let coordinator = Coordinator::start().await;
    let detour = Detour::to(coordinator.address).await;
    let calls = Arc::new(AtomicU32::new(0));
    let (mut fake, counter) = (Fake::new(), calls.clone());
    fake.spoil = Box::new(move |kind, array| {
        counter.fetch_add(u32::from(kind == "patch"), Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(3));
        Ok(array)
    });
    let worker = coordinator.worker_by("far", detour.address, fake);
    coordinator.until_worker("far", WorkerState::Idle).await;
    let id = coordinator.submit(request(PlanKind::Paper)).await;
    let mut cuts = 0u32;
    while !coordinator.jobs.status(&id).await.expect("it was submitted").state.is_final() {
        sleep(Duration::from_millis(150)).await;
        detour.cut.send_modify(|c| *c += 1);
        cuts += 1;
        assert!(cuts < 600, "the render does not end");
    }
    assert!(coordinator.done(&id).await == expected(PlanKind::Paper).await);
    assert!(cuts > 1);
    // Without hand-ins after a reconnection every cut would cost the task under way.
    let plain = Arc::new(AtomicU32::new(0));
    let (mut fake, counter) = (Fake::new(), plain.clone());
    fake.spoil = Box::new(move |kind, array| {
        counter.fetch_add(u32::from(kind == "patch"), Ordering::SeqCst);
        Ok(array)
    });
    let undisturbed = Coordinator::start().await;
    let _near = undisturbed.worker("near", fake);
    let id = undisturbed.submit(request(PlanKind::Paper)).await;
    undisturbed.done(&id).await;
    let again = calls.load(Ordering::SeqCst) - plain.load(Ordering::SeqCst);
    assert!(again * 3 <= cuts, "{again} patches were computed again after {cuts} cuts");
    worker.drain().await;
}

/// A worker written by hand: it reports everything twice, the newest first, and once more under a
/// lease that never was.
#[tokio::test(flavor = "multi_thread")]
async fn duplicated_and_reordered_results_change_nothing() {
    for plan in [PlanKind::Balanced, PlanKind::Paper] {
        let coordinator = Coordinator::start().await;
        let channel = coordinator.channel().await;
        let mut client = FarmClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut fake = Fake::new();
        let (said, stream) = mpsc::channel(256);
        let hello = hello(|_| {});
        said.send(v1::WorkerMessage { message: Some(Said::Hello(hello)) }).await.unwrap();
        let mut inbound = client.work(ReceiverStream::new(stream)).await.unwrap().into_inner();
        let first = inbound.message().await.unwrap().unwrap().message.unwrap();
        let Message::Welcome(welcome) = first else { panic!("Welcome comes first: {first:?}") };
        assert_eq!(welcome_from_wire(welcome).unwrap().name, "by hand");
        let id = coordinator.submit(request(plan)).await;
        let mut waiting = Vec::new();
        let mut sent: Vec<v1::Report> = Vec::new();
        loop {
            match timeout(Duration::from_millis(30), inbound.message()).await {
                Ok(Ok(Some(v1::CoordinatorMessage { message: Some(Message::Assignment(a)) }))) => {
                    waiting.push(a);
                }
                Ok(Ok(Some(_))) => {}
                Ok(other) => panic!("the stream ended: {other:?}"),
                // Nothing more comes: answer what there is, the newest first.
                Err(_) => {
                    if coordinator.jobs.status(&id).await.unwrap().state.is_final() {
                        break;
                    }
                    while let Some(assignment) = waiting.pop() {
                        let report = answer(&mut client, &mut fake, assignment).await;
                        sent.push(report.clone());
                        let foreign = v1::Report { lease: 5, ..report.clone() };
                        let old = sent[sent.len() / 2].clone();
                        for report in [report.clone(), foreign, report, old] {
                            said.send(v1::WorkerMessage { message: Some(Said::Report(report)) })
                                .await
                                .unwrap();
                        }
                    }
                }
            }
        }
        assert!(coordinator.done(&id).await == expected(plan).await, "{plan:?}");
    }
}

fn hello(change: impl FnOnce(&mut v1::Hello)) -> v1::Hello {
    let mut hello = hello_to_wire(&Hello {
        name: "by hand".into(),
        device: "test".into(),
        version: "1.2.3".into(),
        slots: 4,
        model: common::description(),
        instance: Identifier([9; 16]),
        incarnation: None,
        leases: vec![1, 2, 3],
    });
    change(&mut hello);
    hello
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_in_words_and_the_farm_goes_on() {
    let coordinator = Coordinator::start().await;
    let first_words = async |message: Option<Said>| {
        let (said, stream) = mpsc::channel(4);
        said.send(v1::WorkerMessage { message }).await.unwrap();
        let mut client = FarmClient::new(coordinator.channel().await);
        client.work(ReceiverStream::new(stream)).await.map(|_| ()).unwrap_err()
    };
    type Change = fn(&mut v1::Hello);
    let cases: [(Change, &str); 6] = [
        (|h| h.protocol = 1, "takes versions 2 and 3"),
        (|h| h.slots = 0, "give 1 to 64"),
        (|h| h.instance = vec![1].into(), "16 bytes"),
        (|h| h.name.clear(), "a name has"),
        (|h| h.model = None, "lacks `model`"),
        (|h| h.model.as_mut().unwrap().patch_side = 0, "patch_side"),
    ];
    for (change, words) in cases {
        let status = first_words(Some(Said::Hello(hello(change)))).await;
        assert!(status.message().contains(words), "{status:?}");
        assert_eq!(status.code(), Code::FailedPrecondition);
    }
    for message in [None, Some(Said::Heartbeat(v1::Heartbeat {}))] {
        assert!(first_words(message).await.message().contains("first message of a stream is Hello"));
    }
    // A message over the limit ends its stream, not the coordinator.
    let huge = v1::Array { data: vec![0; MAX_MESSAGE_BYTES + 1].into(), ..v1::Array::default() };
    let report = v1::Report { lease: 1, outcome: Some(v1::report::Outcome::Noise(huge)) };
    let status = first_words(Some(Said::Report(report))).await;
    assert!(status.message().contains("too large"), "{status:?}");
    // Bytes that are no HTTP/2, and connections that say nothing.
    let mut silent = Vec::new();
    for _ in 0..10 {
        let mut stream = std::net::TcpStream::connect(coordinator.address).unwrap();
        // It may be closed before everything is written.
        let _ = stream.write_all(&[0x42; 4096]);
        silent.push(std::net::TcpStream::connect(coordinator.address).unwrap());
    }
    let _worker = coordinator.worker("good", Fake::new());
    let id = coordinator.submit(request(PlanKind::Balanced)).await;
    assert!(coordinator.done(&id).await == expected(PlanKind::Balanced).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_connections_is_turned_away_and_those_inside_go_on() {
    let coordinator = Coordinator::with_places(16).await;
    let _worker = coordinator.worker("good", Fake::new());
    coordinator.until_worker("good", WorkerState::Idle).await;
    let id = coordinator.submit(request(PlanKind::Balanced)).await;
    let (mut held, mut turned_away) = (Vec::new(), 0);
    for _ in 0..300 {
        let stream = TcpStream::connect(coordinator.address).await.unwrap();
        let mut byte = [0u8];
        // One that is let in hears nothing before it speaks, one that is not hears the end.
        match timeout(Duration::from_millis(200), stream.readable()).await {
            Ok(Ok(())) if matches!(stream.try_read(&mut byte), Ok(0) | Err(_)) => turned_away += 1,
            _ => held.push(stream),
        }
        if held.len() > 16 {
            break;
        }
    }
    assert!(turned_away > 200 && held.len() < 16, "{turned_away} turned away, {} held", held.len());
    assert!(coordinator.done(&id).await == expected(PlanKind::Balanced).await);
    drop(held);
    sleep(Duration::from_millis(200)).await;
    coordinator.channel().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_lose_their_places() {
    let coordinator = Coordinator::with_places(4).await;
    let mut silent = TcpStream::connect(coordinator.address).await.unwrap();
    let mut bytes = Vec::new();
    let ended =
        timeout(Duration::from_secs(30), tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut bytes));
    // However it is told, it is told.
    let _ = ended.await.expect("it is closed");
    coordinator.channel().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn classes_mix_only_where_a_render_allows_it_and_their_results_lie_close() {
    let class = |dtype: Dtype, error: f32| {
        let mut fake = Fake::new();
        fake.model.numeric_class.dtype = dtype;
        fake.spoil = Box::new(move |kind, mut array| {
            if kind == "patch" {
                array.data_mut().iter_mut().for_each(|v| *v *= 1.0 + error);
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(array)
        });
        fake
    };
    let coordinator = Coordinator::start().await;
    let _exact = coordinator.worker("exact", class(Dtype::F32, 0.0));
    let strict = coordinator.submit(request(PlanKind::Balanced)).await;
    let expected = expected(PlanKind::Balanced).await;
    assert!(coordinator.done(&strict).await == expected);
    let _close = coordinator.worker("close", class(Dtype::F16, 1e-3));
    let _far = coordinator.worker("far", class(Dtype::Bf16, 0.3));
    for name in ["close", "far"] {
        coordinator.until_worker(name, WorkerState::Idle).await;
    }
    let f32_only = RenderRequest { dtype: Some(Dtype::F32), ..request(PlanKind::Balanced) };
    let strict = coordinator.submit(f32_only.clone()).await;
    let mixed = RenderRequest { mix: true, ..f32_only };
    assert!(coordinator.done(&strict).await == expected);
    let done = async |name: &str| {
        coordinator.farm.workers().await.iter().find(|w| w.name == name).expect("it is here").done
    };
    assert_eq!((done("close").await, done("far").await), (0, 0));
    let mixed = coordinator.submit(mixed).await;
    coordinator.done(&mixed).await;
    assert!(done("close").await > 0);
    assert_eq!(done("far").await, 0, "its canary lies too far away");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_autoscalers_are_answered() {
    let coordinator = Coordinator::start().await;
    let mut health = HealthClient::new(coordinator.channel().await);
    let answer = health.check(HealthCheckRequest { service: String::new() }).await.unwrap();
    assert_eq!(answer.into_inner().status, 1);
    let mut reflection = ServerReflectionClient::new(coordinator.channel().await);
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        reflection.server_reflection_info(tokio_stream::once(question)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = answer else { panic!("a list: {answer:?}") };
    let services: Vec<&str> = listed.service.iter().map(|s| s.name.as_str()).collect();
    for service in ["gigasmith.v1.Farm", "gigasmith.v1.Control", "grpc.health.v1.Health"] {
        assert!(services.contains(&service), "{services:?}");
    }
    let mut scaler = ExternalScalerClient::new(coordinator.channel().await);
    let object = |per_worker: Option<&str>| ScaledObjectRef {
        name: "workers".into(),
        namespace: "farm".into(),
        scaler_metadata: per_worker
            .map(|n| ("tasksPerWorker".to_owned(), n.to_owned()))
            .into_iter()
            .collect(),
    };
    assert!(!scaler.is_active(object(None)).await.unwrap().into_inner().result);
    let specs = scaler.get_metric_spec(object(Some("3"))).await.unwrap().into_inner().metric_specs;
    assert_eq!((specs[0].metric_name.as_str(), specs[0].target_size), ("gigasmith_tasks", 3));
    assert!(scaler.get_metric_spec(object(Some("many"))).await.unwrap_err().message().contains("many"));
    let tasks = async |scaler: &mut ExternalScalerClient<_>| {
        let request = GetMetricsRequest { scaled_object_ref: None, metric_name: String::new() };
        scaler.get_metrics(request).await.unwrap().into_inner().metric_values[0].metric_value
    };
    assert_eq!(tasks(&mut scaler).await, 0);
    // A render that waits for its first worker is reason enough to start one.
    let id = coordinator.submit(request(PlanKind::Balanced)).await;
    assert!(scaler.is_active(object(None)).await.unwrap().into_inner().result);
    assert_eq!(tasks(&mut scaler).await, 1);
    let _worker = coordinator.worker("good", Fake::new());
    coordinator.done(&id).await;
    assert!(!scaler.is_active(object(None)).await.unwrap().into_inner().result);
}
