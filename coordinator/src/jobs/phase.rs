//! Where a render stands with this coordinator, and what may become of it.
//!
//! Pure. What a phase has belongs to it: a render holds a place exactly while it is `Starting`, `Running` or
//! `Leaving`, and those are the phases in which a session lives for it. So a paused render with a canvas, or a
//! cancelled one that somebody makes go on, cannot be written down.

use gigasmith_proto::domain::RenderState;

use super::JobChange;
use crate::store::StoredState;

/// Where a render stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits for its turn.
    Queued,
    /// Has a place: it is claimed, and its checkpoint is read.
    Starting,
    /// Has a place, and tasks on the farm.
    Running,
    /// Has a place until its session has ended, after a last checkpoint.
    Leaving(Next),
    /// Held back, without a place, canvas or claim.
    Paused {
        /// Why; empty: a person wants it.
        reason: String,
        /// Another coordinator has it: nothing of it is written here before `continue` takes it back.
        elsewhere: bool,
    },
    /// Nothing more happens, unless a failed one is tried again.
    Ended(End),
}

/// What comes after a session that is told to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Its place is needed: it waits for its turn again.
    Queue,
    /// It is held back; the reason.
    Pause(String),
    /// It is given up.
    Cancel,
    /// Another coordinator has it, or it was removed: how that was told.
    Lost(String),
}

/// How a render ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    Done,
    Cancelled,
    /// Why.
    Failed(String),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The result is in the store.
    Done,
    /// It was given up elsewhere.
    Cancelled,
    /// It left, and can go on.
    Left,
    /// Another coordinator has it, or it was removed.
    Lost(String),
    /// Something must be mended first.
    Stuck(String),
    /// It cannot be done.
    Failed(String),
}

/// What a change asks of a render's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing changes: it was said before.
    Nothing,
    /// There is no session, or it need not hear of it.
    Store,
    /// It ends, after a last checkpoint.
    Leave,
    /// It ends at once.
    Abort,
}

/// Why a change is refused.
const ENDED: &str = "it has ended, and nothing changes it any more";
const ELSEWHERE: &str = "another coordinator has it; `continue` takes it back";
const NOT_PAUSED: &str = "only a paused or failed render can be continued";
const GIVEN_UP: &str = "it is being given up";

impl Phase {
    /// As the store had it.
    pub(super) fn stored(state: StoredState, reason: &str) -> Self {
        match state {
            StoredState::Queued => Self::Queued,
            StoredState::Paused => Self::Paused { reason: reason.to_owned(), elsewhere: false },
            StoredState::Done => Self::Ended(End::Done),
            StoredState::Cancelled => Self::Ended(End::Cancelled),
            StoredState::Failed => Self::Ended(End::Failed(reason.to_owned())),
        }
    }

    /// Whether it has one of the places.
    pub(super) fn has_place(&self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Leaving(_))
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self, Self::Ended(_))
    }

    /// As people see it: what they asked for counts as done.
    pub(super) fn state(&self) -> RenderState {
        match self {
            Self::Queued | Self::Leaving(Next::Queue) => RenderState::Queued,
            Self::Starting | Self::Running => RenderState::Running,
            Self::Paused { .. } | Self::Leaving(Next::Pause(_) | Next::Lost(_)) => RenderState::Paused,
            Self::Leaving(Next::Cancel) | Self::Ended(End::Cancelled) => RenderState::Cancelled,
            Self::Ended(End::Done) => RenderState::Done,
            Self::Ended(End::Failed(_)) => RenderState::Failed,
        }
    }

    /// Why it is held back or has failed; empty when there is nothing to say.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Paused { reason, .. }
            | Self::Leaving(Next::Pause(reason) | Next::Lost(reason))
            | Self::Ended(End::Failed(reason)) => reason,
            _ => "",
        }
    }

    /// A person's change.
    pub(super) fn change(&mut self, change: JobChange) -> Result<Effect, &'static str> {
        let (next, effect) = match (change, &*self) {
            // Said twice, or said again because it could not be stored.
            (JobChange::Cancel, Self::Ended(End::Cancelled) | Self::Leaving(Next::Cancel)) => {
                return Ok(Effect::Nothing);
            }
            (JobChange::Continue, Self::Ended(End::Failed(_))) => (Self::Queued, Effect::Store),
            (_, Self::Ended(_)) => return Err(ENDED),
            (_, Self::Leaving(Next::Cancel)) => return Err(GIVEN_UP),
            (_, Self::Leaving(Next::Lost(_))) => return Err(ELSEWHERE),
            (JobChange::Continue, Self::Paused { .. }) => (Self::Queued, Effect::Store),
            (JobChange::Continue, Self::Leaving(Next::Pause(_))) => {
                (Self::Leaving(Next::Queue), Effect::Store)
            }
            (JobChange::Continue, _) => return Err(NOT_PAUSED),
            (_, Self::Paused { elsewhere: true, .. }) => return Err(ELSEWHERE),
            (JobChange::Priority(_), _) => return Ok(Effect::Store),
            (JobChange::Pause, Self::Queued | Self::Paused { .. }) => {
                (Self::Paused { reason: String::new(), elsewhere: false }, Effect::Store)
            }
            (JobChange::Pause, _) => (Self::Leaving(Next::Pause(String::new())), Effect::Leave),
            (JobChange::Cancel, Self::Queued | Self::Paused { .. }) => {
                (Self::Ended(End::Cancelled), Effect::Store)
            }
            (JobChange::Cancel, _) => (Self::Leaving(Next::Cancel), Effect::Abort),
        };
        *self = next;
        Ok(effect)
    }

    /// A task failed on every worker: it is held back, with the reason. Whether its session is to leave.
    pub(super) fn fail_task(&mut self, reason: String) -> bool {
        let is_running = matches!(self, Self::Starting | Self::Running | Self::Leaving(Next::Queue));
        if is_running {
            *self = Self::Leaving(Next::Pause(reason));
        }
        is_running
    }

    /// Its session has ended: what follows. Whether it is to be stored.
    pub(super) fn session_ended(&mut self, outcome: Outcome) -> bool {
        let paused = |reason, elsewhere| Self::Paused { reason, elsewhere };
        let is_stored = !matches!(outcome, Outcome::Lost(_) | Outcome::Done | Outcome::Cancelled);
        *self = match (outcome, &*self) {
            // Somebody else decides what becomes of it.
            (Outcome::Lost(reason), _) => paused(reason, true),
            (_, Self::Leaving(Next::Lost(reason))) => paused(reason.clone(), true),
            (Outcome::Done, _) => Self::Ended(End::Done),
            (Outcome::Cancelled, _) | (_, Self::Leaving(Next::Cancel)) => Self::Ended(End::Cancelled),
            (Outcome::Failed(reason), _) => Self::Ended(End::Failed(reason)),
            (Outcome::Stuck(reason), _) => paused(reason, false),
            (Outcome::Left, Self::Leaving(Next::Pause(reason))) => paused(reason.clone(), false),
            (Outcome::Left, _) => Self::Queued,
        };
        is_stored
    }
}
