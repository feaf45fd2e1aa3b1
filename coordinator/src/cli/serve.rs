//! `gigasmith serve`: the coordinator.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use gigasmith_worker::connect::{explain, read_token};
use gigasmith_worker::signals::asked_again;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use super::failure::Failure;
use super::files::check_scratch;
use super::kept::{KeepArgs, owner, warn_of};
use super::{interrupted, print};
use crate::control;
use crate::farm::{Farm, FarmOptions};
use crate::jobs::{Jobs, JobsOptions};
use crate::net::auth::Gate;
use crate::net::{self, doorman};
use crate::raster::Scratch;
use crate::store::{self, Claim, RenderStore, StoreError};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long renders may take to end, each with a last checkpoint, and requests in flight.
const FAREWELL: Duration = Duration::from_secs(25);
/// How often it is looked whether another coordinator has taken over the store.
const WATCH: Duration = Duration::from_secs(10);

/// Arguments of `gigasmith serve`.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Address and port to listen on; port 0 takes a free one. Anything but this machine's own address
    /// needs --token-file.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7464")]
    listen: String,
    /// Where renders are kept: a folder, file://, s3://, gs://, az:// or memory://. Credentials and
    /// endpoints come from the usual environment variables.
    #[arg(long, value_name = "URL", default_value = "gigasmith-store")]
    store: String,
    /// Renders that are begun at a time; each takes memory. The others wait their turn.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    active: u16,
    #[command(flatten)]
    keep: KeepArgs,
    /// Folder for pictures under way, on a disk with 4 bytes for each pixel: the store's, if it is a folder, or
    /// the system's.
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,
    /// Connections at a time, workers and people together.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(2..))]
    max_connections: u32,
    /// A file with the farm's shared token: clients without the token are rejected.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Our certificate: connections are encrypted then. `gigasmith certs` makes one.
    #[arg(long, value_name = "FILE.pem", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of our certificate.
    #[arg(long, value_name = "FILE.pem", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Certificate of an authority: clients without a certificate that it signed are rejected.
    #[arg(long, value_name = "FILE.pem", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
}

/// Serves until a signal.
pub(super) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    let tls = args.tls()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let server = net::server(tls).map_err(|e| {
        let files = [&args.tls_cert, &args.tls_key, &args.tls_client_ca].into_iter().flatten();
        let files: Vec<String> = files.map(|f| f.display().to_string()).collect();
        Failure::Input(format!("cannot use {}: {}", files.join(", "), explain(&e)))
    })?;
    let listener = args.bind(token.is_some(), scheme == "https").await?;
    let address =
        listener.local_addr().map_err(|e| Failure::farm(format!("the port has no address: {e}")))?;
    let store = store::open(&args.store).map_err(Failure::output)?;
    let store = match &args.scratch {
        Some(folder) => store.with_scratch(Scratch::new(folder)),
        None => store,
    };
    check_scratch(store.scratch())?;
    let unusable = |e: StoreError| Failure::output(format!("the store {} cannot be used: {e}", args.store));
    let owner = owner();
    warn_of(store.probe().await.map_err(unusable)?, &args.store);
    let claim = store.claim_store(&owner).await.map_err(unusable)?;
    let farm = Farm::start(FarmOptions { examines: true, ..FarmOptions::default() });
    let options = JobsOptions {
        active: args.active.into(),
        keep: args.keep.options(),
        owner,
        claim: Some(claim.clone()),
    };
    let jobs = Jobs::new(farm.clone(), store.clone(), options);
    let tasks = net::Tasks::default();
    let routes = control::routes(farm, jobs.clone(), Gate::new(token.as_deref()), tasks.clone()).await;
    let incoming = doorman::incoming(listener, args.max_connections as usize);
    let mut server = tokio::spawn(net::serve(server, routes, incoming, tasks.closing()));
    let shutdown = CancellationToken::new();
    let mut running = tokio::spawn(jobs.run(shutdown.clone()));
    let mut lost = None;
    print(&format!("listening on {scheme}://{address}, renders in {}", args.store))?;
    tokio::select! {
        ended = &mut server => {
            let reason = match ended {
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(())) => "it ended".to_owned(),
                Err(error) => error.to_string(),
            };
            return Err(Failure::farm(format!("the server failed: {reason}")));
        }
        ended = &mut running => {
            let reason = ended.err().map_or("it ended".to_owned(), |e| e.to_string());
            return Err(Failure::farm(format!("a bug in gigasmith, please report it: {reason}")));
        }
        taken_over = superseded(&store, &claim) => lost = Some(Failure::Superseded(taken_over.to_string())),
        signal = interrupted() => signal.map_err(|e| Failure::farm(format!("cannot listen for signals: {e}")))?,
    }
    tracing::info!("stopping, after a last checkpoint of each render: they are taken up at the next start");
    shutdown.cancel();
    tasks.stop();
    // Submissions and downloads under way as well.
    let all = async { tokio::join!(running, &mut server, tasks.ended()) };
    tokio::select! {
        _ = tokio::time::timeout(FAREWELL, all) => {}
        // Asked twice, it ends at once.
        _ = asked_again() => {}
    }
    server.abort();
    lost.map_or(Ok(()), Err)
}

/// Resolves when another coordinator has taken over the store.
async fn superseded(store: &RenderStore, claim: &Claim) -> StoreError {
    loop {
        tokio::time::sleep(WATCH).await;
        // A store that is away shows nobody newer.
        let checked = store.check(claim).await;
        if let Err(error @ (StoreError::Superseded { .. } | StoreError::Removed(_))) = checked {
            return error;
        }
    }
}

impl ServeArgs {
    /// Listens, unless that would let strangers in.
    async fn bind(&self, has_token: bool, has_tls: bool) -> Result<TcpListener, Failure> {
        let listen = &self.listen;
        let addresses = tokio::net::lookup_host(listen).await;
        let addresses: Vec<SocketAddr> = addresses
            .map_err(|e| Failure::usage(format!("cannot listen on {listen}: {e}; give ADDRESS:PORT")))?
            .collect();
        if !has_token && let Some(open) = addresses.iter().find(|a| !a.ip().to_canonical().is_loopback()) {
            return Err(Failure::usage(format!(
                "listening on {open} lets everyone in who reaches this machine: pass --token-file with a shared \
                 token (`openssl rand -hex 32 > token`), or listen on 127.0.0.1"
            )));
        }
        if !has_tls && addresses.iter().any(|a| !a.ip().to_canonical().is_loopback()) {
            tracing::warn!(
                "connections are not encrypted: token and pictures can be read on the way; see --tls-cert"
            );
        }
        TcpListener::bind(&addresses[..]).await.map_err(|e| {
            Failure::farm(format!("cannot listen on {listen}: {e}; is another coordinator running?"))
        })
    }

    fn tls(&self) -> Result<Option<ServerTlsConfig>, Failure> {
        let (cert, key) = match (&self.tls_cert, &self.tls_key) {
            (None, None) if self.tls_client_ca.is_none() => return Ok(None),
            (Some(cert), Some(key)) => (cert, key),
            // Also from a settings file: nobody should believe in an encryption that is not there.
            _ => {
                return Err(Failure::usage(
                    "--tls-cert and --tls-key belong together, and --tls-client-ca needs both",
                ));
            }
        };
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|e| Failure::Input(format!("cannot read {}: {e}", path.display())))
        };
        let config = ServerTlsConfig::new().identity(Identity::from_pem(read(cert)?, read(key)?));
        let config = config.timeout(HANDSHAKE);
        Ok(Some(match &self.tls_client_ca {
            None => config,
            Some(ca) => config.client_ca_root(Certificate::from_pem(read(ca)?)),
        }))
    }
}
