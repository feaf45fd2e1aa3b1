//! Text conditioning, fetched once by its hash and kept while it is in use.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gigasmith_proto::convert::{TaskFailure, conditioning_from_wire};
use gigasmith_proto::domain::{Conditioning, ConditioningId};
use gigasmith_proto::v1;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

use crate::session::Client;

/// Conditionings kept: more than the renders a worker meets at a time.
const KEPT: usize = 8;
/// How long a fetch may take, and how often it is tried, with a pause between: connections break.
const PATIENCE: Duration = Duration::from_secs(60);
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

type Cell = Arc<OnceCell<Arc<Conditioning>>>;

/// The conditionings in use, newest last.
#[derive(Debug, Default)]
pub(crate) struct Library {
    kept: Mutex<VecDeque<(ConditioningId, Cell)>>,
}

impl Library {
    /// A conditioning, fetched at its first use: tasks that need the same one wait for that fetch, others
    /// don't.
    pub(crate) async fn get(
        &self,
        client: &Client,
        id: ConditioningId,
    ) -> Result<Arc<Conditioning>, TaskFailure> {
        let cell = self.cell(id);
        cell.get_or_try_init(|| fetch(client, id)).await.cloned()
    }

    fn cell(&self, id: ConditioningId) -> Cell {
        let mut kept = self.kept.lock().expect("no holder panics");
        let found = kept.iter().position(|(k, _)| *k == id).and_then(|at| kept.remove(at));
        let entry = found.unwrap_or_else(|| (id, Cell::default()));
        let cell = entry.1.clone();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(entry);
        cell
    }
}

async fn fetch(client: &Client, id: ConditioningId) -> Result<Arc<Conditioning>, TaskFailure> {
    let failure = |message: String| TaskFailure { message, permanent: false };
    let mut tries = 1;
    let answer = loop {
        let request = v1::GetConditioningRequest { id: id.0.to_vec().into() };
        match timeout(PATIENCE, client.clone().get_conditioning(request)).await {
            Ok(Ok(answer)) => break answer,
            Ok(Err(status)) if status.code() == tonic::Code::NotFound || tries == TRIES => {
                return Err(failure(format!("fetching conditioning {id:?}: {}", status.message())));
            }
            Err(_) if tries == TRIES => {
                return Err(failure(format!("fetching conditioning {id:?} took too long")));
            }
            Ok(Err(_)) | Err(_) => {}
        }
        tries += 1;
        sleep(PAUSE).await;
    };
    let conditioning = conditioning_from_wire(answer.into_inner()).map_err(|e| failure(e.to_string()))?;
    if conditioning.id() != id {
        return Err(failure(format!("conditioning {id:?} arrived damaged")));
    }
    Ok(Arc::new(conditioning))
}
