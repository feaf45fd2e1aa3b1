//! Between generated messages and domain types. Outbound conversions cannot fail; inbound ones
//! check everything once and name the field that is wrong.

mod array;
mod control;
mod hello;
mod model;
mod task;

pub use array::{array_from_wire, array_to_wire, pixels_from_wire, pixels_to_wire};
pub use control::{
    render_status_from_wire, render_status_to_wire, worker_status_from_wire, worker_status_to_wire,
};
pub use hello::{hello_from_wire, hello_to_wire, welcome_from_wire, welcome_to_wire};
pub use model::{model_from_wire, model_to_wire};
pub use task::{
    Outcome, TaskFailure, assignment_from_wire, conditioning_from_wire, conditioning_id_from_wire,
    conditioning_to_wire, report_from_wire, report_to_wire, task_to_wire,
};

/// A message that does not mean anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A required field is absent.
    #[error("the message lacks `{0}`")]
    Missing(&'static str),
    /// A payload is not the one that was sent.
    #[error("`{0}` arrived damaged: its checksum does not fit")]
    Damaged(&'static str),
    /// A field holds a value outside its range.
    #[error("`{field}` is {value}: {expected}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
}

impl WireError {
    fn invalid(field: &'static str, value: impl ToString, expected: &'static str) -> Self {
        Self::Invalid { field, value: value.to_string(), expected }
    }
}

fn required<T>(value: Option<T>, field: &'static str) -> Result<T, WireError> {
    value.ok_or(WireError::Missing(field))
}

fn hash(bytes: &[u8], field: &'static str) -> Result<[u8; 32], WireError> {
    bytes.try_into().map_err(|_| {
        WireError::invalid(field, format!("{} bytes long", bytes.len()), "a BLAKE3 hash has 32 bytes")
    })
}
