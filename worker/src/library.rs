//! Text conditioning, fetched once by its hash and kept while it is in use.

use std::collections::VecDeque;
use std::sync::Arc;

use gigasmith_proto::convert::{TaskFailure, conditioning_from_wire};
use gigasmith_proto::domain::{Conditioning, ConditioningId};
use gigasmith_proto::v1;
use tokio::sync::Mutex;

use crate::session::Client;

/// Conditionings kept: more than the renders a worker meets at a time.
const KEPT: usize = 8;

/// The conditionings in use, newest last.
#[derive(Debug, Default)]
pub(crate) struct Library {
    kept: Mutex<VecDeque<(ConditioningId, Arc<Conditioning>)>>,
}

impl Library {
    /// A conditioning, fetched at its first use: tasks that need the same one wait for that fetch.
    pub(crate) async fn get(
        &self,
        client: &Client,
        id: ConditioningId,
    ) -> Result<Arc<Conditioning>, TaskFailure> {
        let mut kept = self.kept.lock().await;
        if let Some(at) = kept.iter().position(|(k, _)| *k == id) {
            let entry = kept.remove(at).expect("found above");
            let conditioning = entry.1.clone();
            kept.push_back(entry);
            return Ok(conditioning);
        }
        let failure = |message: String| TaskFailure { message, permanent: false };
        let request = v1::GetConditioningRequest { id: id.0.to_vec().into() };
        let answer = client.clone().get_conditioning(request).await;
        let answer = answer.map_err(|e| failure(format!("fetching conditioning {id:?}: {}", e.message())))?;
        let conditioning = conditioning_from_wire(answer.into_inner()).map_err(|e| failure(e.to_string()))?;
        if conditioning.id() != id {
            return Err(failure(format!("conditioning {id:?} arrived damaged")));
        }
        let conditioning = Arc::new(conditioning);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((id, conditioning.clone()));
        Ok(conditioning)
    }
}
