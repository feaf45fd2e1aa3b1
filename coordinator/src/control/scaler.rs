//! KEDA's external scaler protocol: as many workers as there is work for.
//!
//! The metric `gigasmith_tasks` is the number of tasks that wait or are in flight, at least 1 while a
//! render is unfinished; `tasksPerWorker` in the ScaledObject says how many a worker should have (2 unless
//! given: one computed, one waiting).

use gigasmith_proto::keda::external_scaler_server::{ExternalScaler, ExternalScalerServer};
use gigasmith_proto::keda::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};
use tonic::{Request, Response, Status};

use crate::jobs::Jobs;

const METRIC: &str = "gigasmith_tasks";
const PER_WORKER: &str = "tasksPerWorker";

/// The service that KEDA asks.
pub fn server(jobs: Jobs) -> ExternalScalerServer<impl ExternalScaler> {
    ExternalScalerServer::new(Scaler { jobs })
}

struct Scaler {
    jobs: Jobs,
}

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    async fn is_active(&self, _: Request<ScaledObjectRef>) -> Result<Response<IsActiveResponse>, Status> {
        Ok(Response::new(IsActiveResponse { result: self.jobs.load_now().await.0 }))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let per_worker = request.get_ref().scaler_metadata.get(PER_WORKER);
        let target_size = match per_worker.map(|text| (text, text.parse())) {
            None => 2,
            Some((_, Ok(number @ 1..))) => number,
            Some((text, _)) => {
                let message = format!("{PER_WORKER} is `{text}`: give a whole number above 0");
                return Err(Status::invalid_argument(message));
            }
        };
        let metric_specs = vec![MetricSpec { metric_name: METRIC.into(), target_size }];
        Ok(Response::new(GetMetricSpecResponse { metric_specs }))
    }

    async fn get_metrics(
        &self,
        _: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let tasks = self.jobs.load_now().await.1;
        let metric_values = vec![MetricValue { metric_name: METRIC.into(), metric_value: tasks as i64 }];
        Ok(Response::new(GetMetricsResponse { metric_values }))
    }
}
