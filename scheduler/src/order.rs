//! Order: which demand of one queue goes before which, by the queue's own rule. Between queues it
//! is the shares that decide; see [`crate::fair`].

use std::cmp::Ordering;

use crate::spec::{Demand, Order};

/// Compares two demands of one queue; under [`Order::Fair`], two of one owner.
///
/// The shortest-first rules look at nothing but the time, not even at priority: that is what makes
/// the mean wait least. Ties go to age everywhere, so the order is total.
pub(crate) fn within(rule: Order, a: &Demand, b: &Demand) -> Ordering {
    let by_age = || (a.created, a.id).cmp(&(b.created, b.id));
    match rule {
        Order::Fifo => by_age(),
        Order::ShortestJobFirst | Order::ShortestRemainingTimeFirst => {
            a.run.cmp(&b.run).then_with(by_age)
        }
        Order::Fair | Order::Priority => b.priority.cmp(&a.priority).then_with(by_age),
    }
}

/// The same among demands that can only overtake one that has a reservation: of equal priority the
/// shortest first, because each start in a gap keeps the others out of it for as long as it runs.
pub(crate) fn overtaking(a: &Demand, b: &Demand) -> Ordering {
    let by_age = || (a.created, a.id).cmp(&(b.created, b.id));
    let by_run = a.run.cmp(&b.run);
    b.priority.cmp(&a.priority).then(by_run).then_with(by_age)
}
