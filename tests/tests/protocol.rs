//! Workers of earlier releases: a recorded conversation of each version of the protocol that is still spoken.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::Fake;
use common::by_hand::answer;
use common::net::Coordinator;
use gigasmith_coordinator::farm::{LaneOptions, TaskOrder};
use gigasmith_proto::MAX_MESSAGE_BYTES;
use gigasmith_proto::convert::hello_to_wire;
use gigasmith_proto::domain::{Hello, Identifier, PROTOCOL, Task, TaskResult, WorkerState};
use gigasmith_proto::v1;
use gigasmith_proto::v1::coordinator_message::Message as Heard;
use gigasmith_proto::v1::farm_client::FarmClient;
use gigasmith_proto::v1::worker_message::Message as Said;
use gigasmith_worker::backend::Backend;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// What both sides said from Hello to the end of a drained worker: its examination (a text, a patch, two
/// tiles), a task of a render, and the goodbye.
#[derive(Debug, Default)]
struct Conversation {
    hello: Vec<u8>,
    /// Assignments and what was reported, all under lease 0: a coordinator numbers them at random.
    tasks: BTreeMap<Vec<u8>, Vec<u8>>,
    draining: Vec<u8>,
}

impl Conversation {
    fn path(protocol: u32) -> PathBuf {
        let name = format!("protocol/conversation-{protocol}.bin");
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
    }

    /// Hello, pairs of assignment and report, Draining: each after its length.
    fn save(&self, protocol: u32) {
        let tasks = self.tasks.iter().flat_map(|(assignment, report)| [assignment, report]);
        let mut bytes = Vec::new();
        for message in [&self.hello].into_iter().chain(tasks).chain([&self.draining]) {
            prost::encode_length_delimiter(message.len(), &mut bytes).unwrap();
            bytes.extend_from_slice(message);
        }
        std::fs::create_dir_all(Self::path(protocol).parent().unwrap()).unwrap();
        std::fs::write(Self::path(protocol), bytes).unwrap();
    }

    fn load(protocol: u32) -> Self {
        let bytes = std::fs::read(Self::path(protocol)).unwrap();
        let mut rest = &bytes[..];
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let length = prost::decode_length_delimiter(&mut rest).unwrap();
            let (message, after) = rest.split_at(length);
            messages.push(message.to_vec());
            rest = after;
        }
        let (hello, draining) = (messages.remove(0), messages.pop().unwrap());
        let tasks = messages.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        Self { hello, tasks: tasks.collect(), draining }
    }
}

fn encode(said: Said) -> Vec<u8> {
    v1::WorkerMessage { message: Some(said) }.encode_to_vec()
}

/// Has the conversation with a coordinator. `report`: what the worker says of an assignment.
async fn converse(
    hello: Vec<u8>,
    draining: Vec<u8>,
    mut report: impl AsyncFnMut(&mut FarmClient<tonic::transport::Channel>, v1::Assignment) -> v1::Report,
) -> Conversation {
    let coordinator = Coordinator::start().await;
    let mut client =
        FarmClient::new(coordinator.channel().await).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let (said, stream) = mpsc::channel(64);
    let say = async |bytes: &[u8]| said.send(v1::WorkerMessage::decode(bytes).unwrap()).await.unwrap();
    say(&hello).await;
    let mut inbound = client.work(ReceiverStream::new(stream)).await.unwrap().into_inner();
    // After the examination.
    let mut task = std::pin::pin!(async {
        coordinator.until_worker("by hand", WorkerState::Idle).await;
        let lane = coordinator.farm.lane(LaneOptions::new(common::description().into())).await.unwrap();
        lane.run(TaskOrder { stage: 0, position: 0 }, Task::EncodeText { prompt: "a fox".into() })
            .await
            .unwrap()
    });
    let (mut tasks, mut answers, mut acknowledged, mut result) = (BTreeMap::new(), 0, 0, None);
    while result.is_none() || acknowledged < answers {
        let heard = tokio::select! {
            heard = inbound.message() => heard.unwrap().expect("the stream stays open"),
            done = &mut task, if result.is_none() => {
                result = Some(done);
                continue;
            }
        };
        match heard.message.unwrap() {
            Heard::Assignment(assignment) => {
                answers += 1;
                let mut answered = report(&mut client, assignment.clone()).await;
                answered.lease = assignment.lease;
                say(&encode(Said::Report(answered.clone()))).await;
                answered.lease = 0;
                let asked = v1::Assignment { lease: 0, ..assignment };
                tasks.insert(asked.encode_to_vec(), answered.encode_to_vec());
            }
            Heard::Acknowledge(_) => acknowledged += 1,
            Heard::Welcome(_) | Heard::Notice(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let Some(TaskResult::Text(text)) = result else { panic!("a text was asked for") };
    assert_eq!(text, Fake::new().encode_text("a fox").unwrap());
    say(&draining).await;
    coordinator.until_worker("by hand", WorkerState::Draining).await;
    Conversation { hello, tasks, draining }
}

/// Writes the file of a version of the protocol, once, before the next version changes anything.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes a file of the repository"]
async fn record() {
    let hello = Hello {
        name: "by hand".into(),
        device: "test".into(),
        version: "1.2.3".into(),
        slots: 1,
        model: common::description(),
        instance: Identifier([9; 16]),
        incarnation: None,
        leases: Vec::new(),
    };
    let (hello, draining) =
        (encode(Said::Hello(hello_to_wire(&hello))), encode(Said::Draining(v1::Draining {})));
    let mut fake = Fake::new();
    let conversation =
        converse(hello, draining, async |client, assignment| answer(client, &mut fake, assignment).await);
    conversation.await.save(PROTOCOL);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_the_release_before_works_as_it_did() {
    for protocol in [2] {
        let recorded = Conversation::load(protocol);
        let Conversation { hello, tasks, draining } = &recorded;
        assert!(tasks.len() > 4, "an examination and a task");
        let now = converse(hello.clone(), draining.clone(), async |_, assignment| {
            let asked = v1::Assignment { lease: 0, ..assignment }.encode_to_vec();
            // To the byte: an old worker knows no new field.
            let reported = tasks.get(&asked).expect("the coordinator asks as it did");
            v1::Report::decode(&reported[..]).unwrap()
        });
        assert!(now.await.tasks == recorded.tasks, "the coordinator asks less than it did");
    }
}

/// What the release before said to a worker of this one.
fn refuse(hello: &v1::Hello) -> Status {
    let expected = "this coordinator speaks version 2: use the same release of gigasmith on both sides";
    Status::failed_precondition(format!("`protocol` is {}: {expected}", hello.protocol))
}

/// A coordinator that takes Hellos of one version only, and closes the stream after it has welcomed one.
struct Before {
    heard: mpsc::UnboundedSender<u32>,
}

#[async_trait::async_trait]
impl v1::farm_server::Farm for Before {
    type WorkStream = ReceiverStream<Result<v1::CoordinatorMessage, Status>>;

    async fn work(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let first = request.into_inner().message().await?.unwrap().message;
        let Some(Said::Hello(hello)) = first else { panic!("Hello comes first: {first:?}") };
        self.heard.send(hello.protocol).unwrap();
        if hello.protocol != 2 {
            return Err(refuse(&hello));
        }
        let (sender, stream) = mpsc::channel(1);
        let welcome = v1::Welcome { name: hello.name, incarnation: vec![1; 16].into(), leases: Vec::new() };
        let message = Some(Heard::Welcome(welcome));
        sender.send(Ok(v1::CoordinatorMessage { message })).await.unwrap();
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_conditioning(
        &self,
        _: Request<v1::GetConditioningRequest>,
    ) -> Result<Response<v1::Conditioning>, Status> {
        Err(Status::not_found("none"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_speaks_as_a_coordinator_of_the_release_before_does() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heard, mut versions) = mpsc::unbounded_channel();
    let service = v1::farm_server::FarmServer::new(Before { heard });
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server =
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    // Only its address differs: the worker is this release's.
    let coordinator = Coordinator::start().await;
    let worker = coordinator.worker_by("new", address, Fake::new());
    let mut said = Vec::new();
    while said.len() < 3 {
        said.push(versions.recv().await.unwrap());
    }
    assert_eq!(said, [3, 2, 2], "it does not try again what was refused");
    worker.session.abort();
    server.abort();
}
