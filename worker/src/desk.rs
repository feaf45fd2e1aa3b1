//! The tasks a worker has: under way, or finished and not acknowledged.
//!
//! A desk outlives connections. A result stays on it until the coordinator has acknowledged it, so that
//! a broken connection loses no work; a coordinator that was restarted does not know the leases, and
//! the desk is cleared.
//!
//! Invariant: every lease on the desk is under way or has a report, and is listed in the next Hello.

use std::collections::BTreeMap;

use gigasmith_proto::domain::{Identifier, Welcome};
use gigasmith_proto::v1;
use tokio::task::{AbortHandle, Id};

#[derive(Debug)]
enum Item {
    UnderWay(AbortHandle),
    Finished {
        report: v1::Report,
        /// Whether it was sent on the present connection.
        sent: bool,
    },
}

/// What a worker holds for a coordinator.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    incarnation: Option<Identifier>,
    items: BTreeMap<u64, Item>,
}

impl Desk {
    /// The coordinator that the leases are of.
    pub(crate) fn incarnation(&self) -> Option<Identifier> {
        self.incarnation
    }

    /// Every lease.
    pub(crate) fn leases(&self) -> Vec<u64> {
        self.items.keys().copied().collect()
    }

    /// Number of leases.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether the device has something to do, as far as we know.
    pub(crate) fn is_under_way(&self) -> bool {
        self.items.values().any(|item| matches!(item, Item::UnderWay(_)))
    }

    /// A coordinator has answered: drops what it does not want any more; what is finished is to be sent.
    pub(crate) fn welcome(&mut self, welcome: &Welcome) {
        if self.incarnation != Some(welcome.incarnation) {
            self.clear();
            self.incarnation = Some(welcome.incarnation);
        }
        let stale: Vec<u64> = self.items.keys().filter(|l| !welcome.leases.contains(l)).copied().collect();
        stale.into_iter().for_each(|lease| self.withdraw(lease));
        for item in self.items.values_mut() {
            if let Item::Finished { sent, .. } = item {
                *sent = false;
            }
        }
    }

    /// Passes every finished report that is not sent yet to `send`, until one is not taken.
    pub(crate) fn send(&mut self, mut send: impl FnMut(v1::Report) -> bool) {
        for item in self.items.values_mut() {
            if let Item::Finished { report, sent: sent @ false } = item {
                if !send(report.clone()) {
                    return;
                }
                *sent = true;
            }
        }
    }

    /// A task has begun.
    pub(crate) fn begin(&mut self, lease: u64, work: AbortHandle) {
        self.items.insert(lease, Item::UnderWay(work));
    }

    /// A task has ended: keeps its report, unless nobody wants it.
    pub(crate) fn finish(&mut self, report: v1::Report) {
        if let Some(item) = self.items.get_mut(&report.lease) {
            *item = Item::Finished { report, sent: false };
        }
    }

    /// The lease whose work a task of the runtime was.
    pub(crate) fn lease_of(&self, work: Id) -> Option<u64> {
        let is_it = |item: &Item| matches!(item, Item::UnderWay(handle) if handle.id() == work);
        self.items.iter().find(|(_, item)| is_it(item)).map(|(lease, _)| *lease)
    }

    /// A report has arrived.
    pub(crate) fn acknowledge(&mut self, lease: u64) {
        self.items.remove(&lease);
    }

    /// Nobody wants this task's result any more. One that the device has begun runs to its end.
    pub(crate) fn withdraw(&mut self, lease: u64) {
        if let Some(Item::UnderWay(work)) = self.items.remove(&lease) {
            work.abort();
        }
    }

    fn clear(&mut self) {
        self.leases().into_iter().for_each(|lease| self.withdraw(lease));
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lease: u64) -> v1::Report {
        v1::Report { lease, outcome: None }
    }

    fn welcome(incarnation: u8, leases: &[u64]) -> Welcome {
        let incarnation = Identifier([incarnation; 16]);
        Welcome { name: "w".into(), incarnation, leases: leases.to_vec() }
    }

    fn sent(desk: &mut Desk) -> Vec<u64> {
        let mut leases = Vec::new();
        desk.send(|report| {
            leases.push(report.lease);
            true
        });
        leases
    }

    #[tokio::test]
    async fn results_stay_until_acknowledged_and_a_new_coordinator_clears_the_desk() {
        let mut desk = Desk::default();
        desk.welcome(&welcome(1, &[]));
        let work = || tokio::spawn(std::future::pending::<()>());
        let (first, second, third) = (work(), work(), work());
        desk.begin(1, first.abort_handle());
        desk.begin(2, second.abort_handle());
        desk.begin(3, third.abort_handle());
        assert_eq!(desk.lease_of(second.id()), Some(2));
        desk.finish(report(1));
        desk.finish(report(9));
        assert_eq!(desk.lease_of(first.id()), None, "it has a report");
        desk.send(|_| false);
        assert_eq!(sent(&mut desk), [1], "9 was withdrawn; 1 met a full queue, and is sent later");
        assert!(sent(&mut desk).is_empty(), "once is enough");
        // The same coordinator after a broken connection: 1 is sent again, 2 goes on, 3 is not wanted.
        desk.welcome(&welcome(1, &[1, 2]));
        assert_eq!((sent(&mut desk), desk.leases()), (vec![1], vec![1, 2]));
        assert!(third.await.unwrap_err().is_cancelled());
        desk.acknowledge(1);
        assert_eq!(desk.leases(), [2]);
        // Another coordinator: its numbers mean something else.
        desk.welcome(&welcome(2, &[2]));
        assert_eq!((desk.leases(), desk.incarnation()), (vec![], Some(Identifier([2; 16]))));
        assert!(second.await.unwrap_err().is_cancelled());
    }
}
