//! The signals that ask a program to end: Ctrl-C, SIGTERM, and SIGHUP, which comes when a terminal closes or a
//! connection to it drops.
//!
//! A program that was started with SIGHUP ignored (`nohup`) goes on ignoring it. SIGHUP never counts as asking
//! again: shells, terminals and supervisors send it beside another signal.

use std::io;

use tokio::sync::mpsc;

use crate::lifecycle::Ask;
use crate::session::Asks;

/// Resolves when the program is asked to end.
pub async fn asked_to_end() -> io::Result<()> {
    #[cfg(unix)]
    {
        let mut hangup = unix::hangup()?;
        tokio::select! {
            asked = asked_again() => asked,
            () = unix::next(&mut hangup) => Ok(()),
        }
    }
    #[cfg(not(unix))]
    asked_again().await
}

/// Resolves when a program that is ending already is asked once more: by Ctrl-C or SIGTERM.
pub async fn asked_again() -> io::Result<()> {
    #[cfg(unix)]
    {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            signal = tokio::signal::ctrl_c() => signal,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

/// Turns signals into what a worker is asked: Ctrl-C is a person's, SIGTERM and SIGHUP a supervisor's.
pub fn asks() -> io::Result<Asks> {
    let (asks, received) = mpsc::unbounded_channel();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut hangup = unix::hangup()?;
        tokio::spawn(async move {
            loop {
                let ask = tokio::select! {
                    _ = interrupt.recv() => Ask::Interrupt,
                    _ = terminate.recv() => Ask::Drain,
                    () = unix::next(&mut hangup) => Ask::Drain,
                };
                if asks.send(ask).is_err() {
                    return;
                }
            }
        });
    }
    #[cfg(not(unix))]
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() && asks.send(Ask::Interrupt).is_ok() {}
    });
    Ok(received)
}

#[cfg(unix)]
mod unix {
    use std::io;
    use std::mem::MaybeUninit;

    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// SIGHUP, unless the program is to ignore it.
    pub(super) fn hangup() -> io::Result<Option<Signal>> {
        (!ignores_hangups()).then(|| signal(SignalKind::hangup())).transpose()
    }

    /// The next one; never, when they are ignored.
    pub(super) async fn next(signal: &mut Option<Signal>) {
        match signal {
            Some(signal) => {
                signal.recv().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Whether SIGHUP was ignored when the program started, as `nohup` has it. Listening ends that for good, so
    /// it is asked before.
    #[allow(unsafe_code)]
    fn ignores_hangups() -> bool {
        let mut now = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: without a new action `sigaction` changes nothing; it writes the present one to where `now` is.
        let asked = unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), now.as_mut_ptr()) };
        // SAFETY: all zeros is a valid action, and so is what was written over it.
        asked == 0 && unsafe { now.assume_init() }.sa_sigaction == libc::SIG_IGN
    }
}
