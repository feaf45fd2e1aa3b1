//! How the program ends when it does not succeed: a message, and an exit code per kind.

use std::fmt;

use gigasmith_worker::cli::WorkerFailure;
use gigasmith_worker::connect::ConnectError;
use gigasmith_worker::model::LoadError;

use crate::embedded::EmbeddedError;
use crate::output::{ReadError, SettingsError, WriteError};
use crate::render::RenderError;
use crate::verify::{TraceError, VerifyError};

/// Why the program ends without success.
#[derive(Debug)]
pub enum Failure {
    /// The arguments make no sense: exit code 2, as clap's own.
    Usage(String),
    /// The model cannot be loaded or does not fit: 3.
    Model(String),
    /// An input file cannot be read: 4.
    Input(String),
    /// An output cannot be written: 5.
    Output(String),
    /// The render itself failed: 6.
    Render(String),
    /// The coordinator cannot be reached, or refuses: 7.
    Farm(String),
    /// A verification found a deviation: 1.
    Deviation,
    /// Ctrl-C, SIGTERM or SIGHUP: 130.
    Interrupted,
    /// A worker that did not finish what it had: 130.
    Stopped,
    /// Somebody stopped looking at a render, which goes on: 130.
    Unwatched(String),
    /// A render was interrupted that can go on: 130.
    Left(String),
    /// Somebody newer works on it: 8.
    Superseded(String),
    /// Nobody reads the output any more: 0, as it is no fault.
    Unread,
}

impl Failure {
    pub(super) fn usage(message: impl ToString) -> Self {
        Self::Usage(message.to_string())
    }

    pub(super) fn output(message: impl ToString) -> Self {
        Self::Output(message.to_string())
    }

    pub(super) fn farm(message: impl ToString) -> Self {
        Self::Farm(message.to_string())
    }

    pub(super) fn render(message: impl ToString) -> Self {
        Self::Render(message.to_string())
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Deviation => 1,
            Self::Usage(_) => 2,
            Self::Model(_) => 3,
            Self::Input(_) => 4,
            Self::Output(_) => 5,
            Self::Render(_) => 6,
            Self::Farm(_) => 7,
            Self::Superseded(_) => 8,
            Self::Interrupted | Self::Stopped | Self::Unwatched(_) | Self::Left(_) => 130,
            Self::Unread => 0,
        }
    }
}

impl Failure {
    /// A line of JSON: the message, and the exit code.
    pub fn json(&self) -> String {
        serde_json::json!({ "error": self.to_string(), "exit_code": self.exit_code() }).to_string()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(m)
            | Self::Model(m)
            | Self::Input(m)
            | Self::Output(m)
            | Self::Render(m)
            | Self::Farm(m)
            | Self::Superseded(m)
            | Self::Unwatched(m)
            | Self::Left(m) => f.write_str(m),
            Self::Deviation => f.write_str("the trace does not match: see what did not pass"),
            Self::Interrupted => f.write_str("interrupted: no unfinished picture was written"),
            Self::Stopped => f.write_str("interrupted: what this worker had goes to others"),
            Self::Unread => Ok(()),
        }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::Model(error.to_string())
    }
}

impl From<WorkerFailure> for Failure {
    fn from(error: WorkerFailure) -> Self {
        match error {
            WorkerFailure::Load(error) => error.into(),
            WorkerFailure::Start(message) => Self::Model(message),
            WorkerFailure::Connect(error) => error.into(),
            WorkerFailure::Session(error) => Self::Farm(error.to_string()),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Address(_) | ConnectError::HalfIdentity => Self::Usage(error.to_string()),
            ConnectError::File { .. } => Self::Input(error.to_string()),
            ConnectError::Unreachable { .. } => Self::Farm(error.to_string()),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<TraceError> for Failure {
    fn from(error: TraceError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        Self::Output(error.to_string())
    }
}

impl From<EmbeddedError> for Failure {
    fn from(error: EmbeddedError) -> Self {
        Self::Render(error.to_string())
    }
}

impl From<RenderError> for Failure {
    fn from(error: RenderError) -> Self {
        match error {
            RenderError::Schedule(error) => Self::Usage(error.to_string()),
            RenderError::Stopped => Self::Interrupted,
            // As for any file that cannot be written.
            error @ RenderError::Scratch(_) => Self::Output(error.to_string()),
            // Trying again would not help.
            error @ (RenderError::Plan | RenderError::Restore(_)) => Self::Model(error.to_string()),
            error => Self::Render(error.to_string()),
        }
    }
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Trace(error) => error.into(),
            VerifyError::Render(error) => error.into(),
            error @ VerifyError::OtherModel { .. } => Self::Model(error.to_string()),
        }
    }
}
