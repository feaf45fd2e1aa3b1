//! From ready to drained: what a worker does when it is asked to end.
//!
//! Pure: events in, state out. A worker that drains takes no more tasks, finishes those it has, and ends
//! once every result is acknowledged. Asked a second time by a person at the keyboard, it ends at once;
//! a supervisor's repeated SIGTERM changes nothing.

/// Who asks a worker to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// A supervisor (SIGTERM), or the coordinator (`workers drain`).
    Drain,
    /// A person at the keyboard (Ctrl-C).
    Interrupt,
}

/// Where a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lifecycle {
    /// Takes tasks.
    #[default]
    Ready,
    /// Finishes what it has.
    Draining,
    /// Has nothing left to hand in, or was told not to wait for it.
    Drained,
}

impl Lifecycle {
    /// The state after being asked to end with `unfinished` tasks under way or not acknowledged.
    pub fn asked(self, ask: Ask, unfinished: usize) -> Self {
        match (self, ask) {
            (Self::Draining, Ask::Interrupt) => Self::Drained,
            _ => Self::Draining.settled(unfinished),
        }
    }

    /// The state once `unfinished` tasks are left.
    pub fn settled(self, unfinished: usize) -> Self {
        match self {
            Self::Draining if unfinished == 0 => Self::Drained,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draining_waits_for_every_result_and_an_impatient_person_does_not() {
        let draining = Lifecycle::Ready.asked(Ask::Drain, 2);
        assert_eq!(draining, Lifecycle::Draining);
        assert_eq!(draining.asked(Ask::Drain, 2), Lifecycle::Draining, "SIGTERM may be repeated");
        assert_eq!(draining.settled(1), Lifecycle::Draining);
        assert_eq!(draining.settled(0), Lifecycle::Drained);
        assert_eq!(draining.asked(Ask::Interrupt, 2), Lifecycle::Drained);
        assert_eq!(Lifecycle::Ready.asked(Ask::Interrupt, 0), Lifecycle::Drained, "nothing to finish");
        assert_eq!(Lifecycle::Ready.settled(0), Lifecycle::Ready, "idle is not drained");
    }
}
