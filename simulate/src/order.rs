//! The orders that a simulation can be run with: Rota's own, and the classic ones to compare with.

use rota_scheduler::{Backfill, Order, QueueSpec};

/// What may overtake the first job that cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backfilling {
    /// Nothing: the first job that does not fit blocks all behind it. No queue of Rota works so;
    /// it is the textbook baseline, and is played by offering the scheduler one job at a time.
    Strict,
    /// As the scheduler's queues do it.
    Queue(Backfill),
}

/// A named combination of a queue's rules.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// What `--order` takes.
    pub name: &'static str,
    /// Who goes first.
    pub order: Order,
    /// What may overtake.
    pub backfilling: Backfilling,
    /// Whether running tasks may be evicted for waiting ones.
    pub preemptive: bool,
    /// One line for people.
    pub help: &'static str,
}

/// The registry.
pub const ORDERS: &[Preset] = &[
    Preset {
        name: "default",
        order: Order::Priority,
        backfilling: Backfilling::Queue(Backfill::Easy),
        preemptive: false,
        help: "what a Queue without further rules does",
    },
    Preset {
        name: "fifo",
        order: Order::Fifo,
        backfilling: Backfilling::Strict,
        preemptive: false,
        help: "by arrival; a job that does not fit blocks all behind it",
    },
    Preset {
        name: "first-fit",
        order: Order::Fifo,
        backfilling: Backfilling::Queue(Backfill::Off),
        preemptive: false,
        help: "by arrival; whatever fits starts",
    },
    Preset {
        name: "easy",
        order: Order::Fifo,
        backfilling: Backfilling::Queue(Backfill::Easy),
        preemptive: false,
        help: "by arrival; what does not delay the first waiting job may overtake",
    },
    Preset {
        name: "conservative",
        order: Order::Fifo,
        backfilling: Backfilling::Queue(Backfill::Conservative),
        preemptive: false,
        help: "by arrival; what delays no earlier job may overtake",
    },
    Preset {
        name: "sjf",
        order: Order::ShortestJobFirst,
        backfilling: Backfilling::Queue(Backfill::Easy),
        preemptive: false,
        help: "shortest expected run time first",
    },
    Preset {
        name: "srtf",
        order: Order::ShortestRemainingTimeFirst,
        backfilling: Backfilling::Queue(Backfill::Easy),
        preemptive: true,
        help: "shortest remaining time first; running jobs make room",
    },
    Preset {
        name: "fair",
        order: Order::Fair,
        backfilling: Backfilling::Queue(Backfill::Easy),
        preemptive: false,
        help: "between the trace's users by least usage",
    },
];

/// The preset of this name.
pub fn preset(name: &str) -> Option<&'static Preset> {
    ORDERS.iter().find(|p| p.name == name)
}

impl Preset {
    /// The rules as a queue has them.
    pub(crate) fn apply(&self, spec: &mut QueueSpec) {
        spec.order = self.order;
        spec.backfill = match self.backfilling {
            Backfilling::Strict => Backfill::Off,
            Backfilling::Queue(backfill) => backfill,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_what_queues_do() {
        let mut spec = QueueSpec::default();
        ORDERS[0].apply(&mut spec);
        assert_eq!(spec, QueueSpec::default());
    }
}
