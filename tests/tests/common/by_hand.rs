//! A worker written by hand: it answers tasks over the wire, without a session.

use gigasmith_proto::convert::{assignment_from_wire, conditioning_from_wire, report_to_wire};
use gigasmith_proto::domain::{Task, TaskResult, Wanted, WireDtype};
use gigasmith_proto::v1;
use gigasmith_proto::v1::farm_client::FarmClient;
use gigasmith_worker::backend::Backend;

use super::Fake;

/// Its report of a task.
pub(crate) async fn answer(
    client: &mut FarmClient<tonic::transport::Channel>,
    fake: &mut Fake,
    assignment: v1::Assignment,
) -> v1::Report {
    let (lease, task) = assignment_from_wire(assignment).unwrap();
    let result = match task {
        Task::EncodeText { prompt } => TaskResult::Text(fake.encode_text(&prompt).unwrap()),
        Task::EncodeTile { image, rules } => {
            TaskResult::Moments(rules.part.of(&fake.encode_tile(&image.to_array(), None).unwrap(), 1))
        }
        Task::DecodeTile { latent, rules } if rules.wanted == Wanted::Norms => {
            TaskResult::Norms(fake.decoder_norms(&latent, None, rules.part).unwrap())
        }
        Task::DecodeTile { latent, rules } => {
            TaskResult::Image(rules.part.of(&fake.decode_tile(&latent, None).unwrap(), 4))
        }
        Task::PredictNoise(task) => {
            let request = v1::GetConditioningRequest { id: task.conditioning.0.to_vec().into() };
            let conditioning = client.get_conditioning(request).await.unwrap().into_inner();
            let conditioning = conditioning_from_wire(conditioning).unwrap();
            TaskResult::Noise(fake.predict_noise(&task, &conditioning).unwrap())
        }
    };
    report_to_wire(lease, Ok(result), WireDtype::F32)
}
