//! A coordinator on a port of this machine, and workers in this process that reach it over TCP.

use std::net::SocketAddr;
use std::sync::Arc;

use gigasmith_coordinator::control;
use gigasmith_coordinator::farm::{Farm, FarmOptions};
use gigasmith_coordinator::jobs::{JobSubmission, Jobs, JobsOptions};
use gigasmith_coordinator::net::{self, auth::Gate, doorman};
use gigasmith_coordinator::request::RenderRequest;
use gigasmith_coordinator::sampler::plan::PlanKind;
use gigasmith_coordinator::store::{self, KeepOptions, Owner};
use gigasmith_proto::domain::{RenderState, RenderStatus, WorkerState, WorkerStatus};
use gigasmith_worker::backend::Backend;
use gigasmith_worker::connect::{ConnectArgs, Token};
use gigasmith_worker::device::DeviceThread;
use gigasmith_worker::lifecycle::Ask;
use gigasmith_worker::session::{self, Ended, SessionError, SessionOptions};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Duration, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::Fake;

/// No step of a test takes longer, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Coordinator {
    pub(crate) farm: Farm,
    pub(crate) jobs: Jobs,
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.server.abort();
    }
}

impl Coordinator {
    pub(crate) async fn start() -> Self {
        Self::with_places(64).await
    }

    /// A coordinator that takes so many connections at a time.
    pub(crate) async fn with_places(places: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let farm = Farm::start(FarmOptions { examines: true, ..FarmOptions::default() });
        let store = store::open("memory:///").expect("memory is there");
        let owner = Owner { incarnation: "a test".into(), name: "a test".into() };
        let options = JobsOptions { active: 2, keep: KeepOptions::default(), owner, claim: None };
        let jobs = Jobs::new(farm.clone(), store, options);
        let routes =
            control::routes(farm.clone(), jobs.clone(), Gate::new(None), net::Tasks::default()).await;
        let incoming = doorman::incoming(listener, places);
        let server = tokio::spawn(net::serve(
            net::server(None).expect("no certificate"),
            routes,
            incoming,
            CancellationToken::new(),
        ));
        let shutdown = CancellationToken::new();
        tokio::spawn(jobs.clone().run(shutdown.clone()));
        Self { farm, jobs, address, shutdown, server }
    }

    pub(crate) fn connect(&self) -> ConnectArgs {
        connect(self.address)
    }

    pub(crate) async fn channel(&self) -> Channel {
        self.connect().connect().await.expect("it listens")
    }

    /// A worker that reaches the coordinator at `address`, which may be a detour.
    pub(crate) fn worker_by(&self, name: &str, address: SocketAddr, fake: Fake) -> Worker {
        let device =
            DeviceThread::start(
                move || Ok::<_, std::convert::Infallible>(Box::new(fake) as Box<dyn Backend>),
            );
        let options = SessionOptions {
            name: name.into(),
            device: "test".into(),
            slots: 2,
            coordinator: address.to_string(),
            reconnects: true,
        };
        let (asks, asked) = mpsc::unbounded_channel();
        let channel = connect(address).lazy().expect("the address is good");
        let device = Arc::new(device.expect("a fake loads"));
        let session = tokio::spawn(session::serve(channel, Token::default(), device, options, asked));
        Worker { asks, session }
    }

    pub(crate) fn worker(&self, name: &str, fake: Fake) -> Worker {
        self.worker_by(name, self.address, fake)
    }

    pub(crate) async fn submit(&self, request: RenderRequest) -> String {
        let submission = JobSubmission { request, ..JobSubmission::default() };
        self.jobs.submit(submission).await.expect("it is a good request").id
    }

    pub(crate) async fn until(&self, id: &str, wanted: impl Fn(&RenderStatus) -> bool) -> RenderStatus {
        let wait = async {
            loop {
                let status = self.jobs.status(id).await.expect("it was submitted");
                if wanted(&status) {
                    return status;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        match timeout(PATIENCE, wait).await {
            Ok(status) => status,
            Err(_) => panic!("it never comes: {:?}", self.jobs.status(id).await),
        }
    }

    /// The finished picture.
    pub(crate) async fn done(&self, id: &str) -> Vec<u8> {
        let status = self.until(id, |s| s.state.is_final()).await;
        assert_eq!(status.state, RenderState::Done, "{status:?}");
        let mut fetched = self.jobs.fetch(id, store::Part::Picture).await.expect("it is done");
        let mut bytes = Vec::new();
        while let Some(piece) = fetched.pieces.next().await {
            bytes.extend_from_slice(&piece.expect("the store is there").bytes);
        }
        bytes
    }

    pub(crate) async fn until_worker(&self, name: &str, state: WorkerState) -> WorkerStatus {
        let wait = async {
            loop {
                let all = self.farm.workers().await;
                if let Some(worker) = all.into_iter().find(|w| w.name == name && w.state == state) {
                    return worker;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        match timeout(PATIENCE, wait).await {
            Ok(status) => status,
            Err(_) => panic!("{name} is never {state}: {:?}", self.farm.workers().await),
        }
    }
}

fn connect(address: SocketAddr) -> ConnectArgs {
    ConnectArgs {
        coordinator: format!("http://{address}"),
        token_file: None,
        tls_ca: None,
        tls_cert: None,
        tls_key: None,
    }
}

pub(crate) struct Worker {
    asks: mpsc::UnboundedSender<Ask>,
    pub(crate) session: JoinHandle<Result<Ended, SessionError>>,
}

impl Worker {
    pub(crate) async fn drain(self) {
        self.asks.send(Ask::Drain).expect("it runs");
        let ended = timeout(PATIENCE, self.session).await.expect("it drains");
        let ended = ended.expect("it does not panic").expect("it ends well");
        assert_eq!(ended, Ended::Drained);
    }
}

/// A small render of the fake: three stages, some dozens of patches.
pub(crate) fn request(plan: PlanKind) -> RenderRequest {
    RenderRequest {
        prompt: "a fox".into(),
        model: "fake".into(),
        stages: vec![2.0, 3.0],
        slider: vec![2, 3],
        plan: Some(plan),
        seed: 7,
        ..RenderRequest::default()
    }
}
