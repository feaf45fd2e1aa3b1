//! A coordinator's pages, what they ask for, and what machines ask for.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use gigasmith_proto::domain::WorkerChange;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::pictures::Pictures;
use super::{Problem, assets, canvas, download, edge, events, guard, status, tile_position};
use crate::farm::{Farm, WorkerError};
use crate::jobs::{JobChange, JobError, Jobs};
use crate::metrics::Present;
use crate::net::Tasks;
use crate::net::auth::Gate;
use crate::store::StoreError;

/// Between two states that the pages are told, and between two canvases.
const STATE_EVERY: Duration = Duration::from_millis(500);
const CANVAS_EVERY: Duration = Duration::from_millis(500);
/// Ended renders in an answer: unless said, and at most.
const ENDED_PAGE: u16 = 50;
const MAX_ENDED_PAGE: u16 = 1000;
/// How long a picture that cannot be shown is left alone.
const TROUBLE: Duration = Duration::from_secs(10);

/// What the pages of a coordinator show.
#[derive(Clone)]
pub struct FarmPages {
    jobs: Jobs,
    farm: Farm,
    pictures: Arc<Pictures>,
    /// Everything as JSON, while somebody listens: made once for all of them.
    state: watch::Sender<Value>,
    tasks: Tasks,
}

impl std::fmt::Debug for FarmPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FarmPages").finish_non_exhaustive()
    }
}

impl FarmPages {
    /// Pages of a coordinator's renders. Must be called within a tokio runtime.
    pub fn new(farm: Farm, jobs: Jobs, tasks: Tasks) -> Self {
        let state = watch::Sender::new(Value::Null);
        let pages = Self { jobs, farm, pictures: Arc::default(), state, tasks };
        let (jobs, farm, state) = (pages.jobs.clone(), pages.farm.clone(), pages.state.clone());
        pages.tasks.spawn_until_stop(async move {
            loop {
                tokio::time::sleep(STATE_EVERY).await;
                if state.receiver_count() > 0 {
                    let now = status::state(&jobs, &farm).await;
                    state.send_if_modified(|old| {
                        let changed = *old != now;
                        *old = now;
                        changed
                    });
                }
            }
        });
        pages
    }
}

/// Everything that a coordinator answers over plain HTTP.
pub fn routes(pages: FarmPages, gate: Gate) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/api/state", get(state))
        .route("/api/events", get(state_events))
        .route("/api/renders/{id}/canvas", get(canvas_now))
        .route("/api/renders/{id}/events", get(canvas_events))
        .route("/api/renders/{id}/tiles/{version}/{level}/{name}", get(tile))
        .route("/api/renders/{id}/picture", get(picture))
        .route("/api/renders/{id}/settings", get(settings))
        .route("/api/renders", get(list_renders))
        .route("/api/renders/{id}", delete(remove_render))
        .route("/api/renders/{id}/{change}", post(change_render))
        .route("/api/workers/{change}", post(change_worker))
        .layer(from_fn_with_state(gate.clone(), guard::check))
        .with_state(pages.clone());
    let open = Router::new()
        .route("/", get(assets::index))
        .route("/assets/{*name}", get(assets::asset))
        .route("/healthz", get(async || "ok\n"));
    let ready = Router::new().route("/readyz", get(readyz)).with_state(pages);
    let door = Router::new()
        .route("/api/mode", get(guard::mode))
        .route("/api/login", post(guard::login))
        .layer(Extension(guard::Guesses::default()))
        .with_state(gate);
    open.merge(ready).merge(door).merge(guarded).layer(from_fn(edge::edge))
}

/// What is neither a page nor a call that we know.
pub async fn fallback(headers: HeaderMap) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|h| h.to_str().ok()).unwrap_or_default();
    match kind.starts_with("application/grpc") {
        true => tonic::Status::unimplemented("this program has no such call").into_http::<Body>(),
        false => edge::finish(Problem::missing("there is no such page").into_response()),
    }
}

/// Ready: the store's renders are read, and the farm answers.
async fn readyz(State(pages): State<FarmPages>) -> Result<&'static str, Problem> {
    if pages.tasks.is_stopping() {
        let reason = "the coordinator is shutting down, or another one has taken over its store";
        return Err(Problem(StatusCode::SERVICE_UNAVAILABLE, reason.to_owned()));
    }
    if !pages.jobs.is_loaded() {
        let reason = "the renders of the store are being read";
        return Err(Problem(StatusCode::SERVICE_UNAVAILABLE, reason.to_owned()));
    }
    pages.farm.depth().await;
    Ok("ok\n")
}

async fn metrics(State(pages): State<FarmPages>) -> impl IntoResponse {
    let present = Present {
        depth: pages.farm.depth().await,
        workers: pages.farm.workers().await,
        renders: pages.jobs.unfinished().await,
        ended: pages.jobs.ended_counts(),
    };
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], pages.farm.metrics().text(&present))
}

async fn state(State(pages): State<FarmPages>) -> Json<Value> {
    Json(status::state(&pages.jobs, &pages.farm).await)
}

async fn state_events(State(pages): State<FarmPages>) -> impl IntoResponse {
    let listening = Arc::new(tokio::sync::Mutex::new((pages.state.subscribe(), true)));
    events::stream(pages.tasks.clone(), "state", Duration::ZERO, move || {
        let (listening, pages) = (listening.clone(), pages.clone());
        async move {
            let (receiver, is_first) = &mut *listening.lock().await;
            if std::mem::take(is_first) {
                let now = status::state(&pages.jobs, &pages.farm).await;
                // What comes next is compared with this, for everybody.
                pages.state.send_replace(now.clone());
                receiver.mark_unchanged();
                return Some(now);
            }
            receiver.changed().await.ok()?;
            let now = receiver.borrow_and_update().clone();
            Some(now)
        }
    })
}

async fn canvas_now(State(pages): State<FarmPages>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    match canvas::canvas(&pages.jobs, &pages.pictures, &id, &mut None).await? {
        Value::Null => Err(Problem::missing("there is nothing to see of it yet")),
        canvas => Ok(Json(canvas)),
    }
}

async fn canvas_events(
    State(pages): State<FarmPages>,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    // An unknown render is known as such at once.
    pages.jobs.look(&id).await.map_err(Problem::missing)?;
    let seen = Arc::new(tokio::sync::Mutex::new(None));
    Ok(events::stream(pages.tasks.clone(), "canvas", CANVAS_EVERY, move || {
        let (pages, id, seen) = (pages.clone(), id.clone(), seen.clone());
        async move {
            let seen = &mut *seen.lock().await;
            match canvas::canvas(&pages.jobs, &pages.pictures, &id, seen).await {
                Ok(canvas) => Some(canvas),
                // It was removed.
                Err(problem) if problem.0 == StatusCode::NOT_FOUND => None,
                Err(_) => {
                    tokio::time::sleep(TROUBLE).await;
                    Some(Value::Null)
                }
            }
        }
    }))
}

async fn tile(
    State(pages): State<FarmPages>,
    Path((id, version, level, name)): Path<(String, u64, u32, String)>,
) -> Result<Response, Problem> {
    let position = tile_position(&name).ok_or_else(|| Problem::missing(format!("{name} names no tile")))?;
    let made = canvas::tile(&pages.jobs, &pages.pictures, &id, (version, level), position).await?;
    let (bytes, kind) = made;
    // What is under way changes; what is finished never does.
    let cache = if canvas::is_finished(version) { "private, max-age=86400" } else { "no-store" };
    Ok(([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, cache)], bytes).into_response())
}

/// The finished file, or a part of it; of Deep Zoom, which is many files, the command that fetches it.
async fn picture(
    State(pages): State<FarmPages>,
    Path(id): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    match pages.jobs.picture_file(&id).await.map_err(problem)? {
        Some(file) => download::answer(&id, &file, &method, &headers).await,
        None => {
            let reason = format!("a Deep Zoom picture has many files: `gigasmith fetch {id}` gets them");
            Err(Problem(StatusCode::CONFLICT, reason))
        }
    }
}

async fn settings(State(pages): State<FarmPages>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let (request, spec) = pages.jobs.settings(&id).await.map_err(problem)?;
    Ok(Json(status::settings(request, spec)))
}

/// Which renders are listed.
#[derive(Debug)]
struct Listed {
    is_ended: bool,
    before: Option<String>,
    limit: u16,
}

impl Listed {
    /// From the part of an address after `?`.
    fn parse(query: &str) -> Result<Self, Problem> {
        let wrong = |what: String| Problem(StatusCode::BAD_REQUEST, what);
        let (mut state, mut before, mut limit) = (None, None, ENDED_PAGE);
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match (&*name, value.parse()) {
                ("state", _) => state = Some(value.into_owned()),
                ("before", _) => before = Some(value.into_owned()),
                ("limit", Ok(number @ 1..=MAX_ENDED_PAGE)) => limit = number,
                ("limit", _) => return Err(wrong(format!("limit {value} is not 1 to {MAX_ENDED_PAGE}"))),
                _ => return Err(wrong(format!("unknown: {name}; known are state, before and limit"))),
            }
        }
        let is_ended = match state.as_deref() {
            Some("ended") => true,
            Some("unfinished") => false,
            _ => return Err(wrong("give state=unfinished or state=ended".to_owned())),
        };
        Ok(Self { is_ended, before, limit })
    }
}

/// The unfinished renders in the order they are served, or a page of the ended ones, the newest first; `before`: where
/// the page before ended.
async fn list_renders(
    State(pages): State<FarmPages>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Problem> {
    let Listed { is_ended, before, limit } = Listed::parse(&query.unwrap_or_default())?;
    let (renders, next) = match is_ended {
        false => (pages.jobs.unfinished().await, None),
        true => pages.jobs.ended(before, limit.into()).await.map_err(problem)?,
    };
    let beside = |id: &str| pages.jobs.beside(id);
    let renders: Vec<Value> = renders.iter().map(|r| status::render(r, beside(&r.id))).collect();
    Ok(Json(json!({ "renders": renders, "next": next, "ended": pages.jobs.ended_count() })))
}

async fn remove_render(
    State(pages): State<FarmPages>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    pages.jobs.remove(&id).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn change_render(
    State(pages): State<FarmPages>,
    Path((id, change)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let change = match change.as_str() {
        "pause" => JobChange::Pause,
        "continue" => JobChange::Continue,
        "cancel" => JobChange::Cancel,
        other => return Err(Problem::missing(format!("a render cannot `{other}`"))),
    };
    let changed = pages.jobs.change(&id, change).await.map_err(problem)?;
    Ok(Json(status::render(&changed, pages.jobs.beside(&id))))
}

/// A worker, in a body: its name may be anything, and an address cannot hold everything.
#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

async fn change_worker(
    State(pages): State<FarmPages>,
    Path(change): Path<String>,
    Json(Named { name }): Json<Named>,
) -> Result<Json<Value>, Problem> {
    let change = match change.as_str() {
        "drain" => WorkerChange::Drain,
        "disable" => WorkerChange::Disable,
        "enable" => WorkerChange::Enable,
        other => return Err(Problem::missing(format!("a worker cannot `{other}`"))),
    };
    match pages.farm.change_worker(&name, change).await {
        Ok(worker) => Ok(Json(json!(status::worker(&worker)))),
        Err(error @ WorkerError::Unknown { .. }) => Err(Problem::missing(error)),
        Err(error @ WorkerError::Closed) => Err(Problem(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

fn problem(error: JobError) -> Problem {
    let code = match &error {
        JobError::Store(error @ StoreError::Store { .. }) => return download::away(error),
        JobError::NotStored(error) => {
            tracing::warn!(%error, "a change is not stored yet");
            let said = "the change is made, but could not be stored yet, which goes on being tried; the \
                        coordinator's log says why";
            return Problem(StatusCode::SERVICE_UNAVAILABLE, said.to_owned());
        }
        JobError::Unknown(_) => StatusCode::NOT_FOUND,
        JobError::State { .. } => StatusCode::CONFLICT,
        JobError::Request(_) | JobError::Name(_) => StatusCode::BAD_REQUEST,
        JobError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        JobError::Bug(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Problem(code, error.to_string())
}
