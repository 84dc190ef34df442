//! Seeded defects, which show that the tests would notice real ones.
//!
//! Each is one switch in the code that it breaks. Outside of this crate's own unit tests a switch is
//! the constant `false`, so nothing of this is left in a build that anybody runs.

#[cfg(test)]
mod tests;

#[cfg(not(test))]
pub(crate) use off::mutant;
#[cfg(test)]
pub(crate) use on::mutant;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Limits of queues are not looked at.
    SkipLimit,
    /// A gang of which only a part fits starts with that part.
    PartOfGang,
    /// What a failed trial has placed stays.
    LoseUndo,
    /// Tasks leave, and nobody comes.
    EvictForNobody,
    /// Tasks of equal or higher priority are evicted too.
    EvictHigher,
    /// Tasks leave though their queue, or the one that asks, forbids it.
    EvictProtected,
    /// A queue takes from others whatever it likes.
    ReclaimTooMuch,
    /// One member of a gang leaves without the others.
    SplitGang,
    /// What a task that leaves frees is counted twice.
    CountLeavingTwice,
    /// What leaves is not taken for room, so that others leave too.
    ForgetLeaving,
    /// The dearest victims leave.
    DearestFirst,
    /// Tasks that would delay a reservation start.
    IgnoreReservation,
    /// Fixed ports are not looked at.
    IgnorePort,
    /// Taints are not looked at.
    IgnoreTaint,
    /// Rules between tasks are not looked at.
    IgnoreRules,
    /// A queue goes on paying for tasks that are gone.
    KeepCharge,
    /// Of two sisters the one that has more goes first.
    WrongSister,
}

#[cfg(not(test))]
mod off {
    /// Whether this defect is on: never.
    #[inline(always)]
    pub(crate) const fn mutant(_: super::Mutant) -> bool {
        false
    }
}

#[cfg(test)]
mod on {
    use std::cell::Cell;

    use super::Mutant;

    pub(crate) const ALL: [Mutant; 17] = [
        Mutant::SkipLimit,
        Mutant::PartOfGang,
        Mutant::LoseUndo,
        Mutant::EvictForNobody,
        Mutant::EvictHigher,
        Mutant::EvictProtected,
        Mutant::ReclaimTooMuch,
        Mutant::SplitGang,
        Mutant::CountLeavingTwice,
        Mutant::ForgetLeaving,
        Mutant::DearestFirst,
        Mutant::IgnoreReservation,
        Mutant::IgnorePort,
        Mutant::IgnoreTaint,
        Mutant::IgnoreRules,
        Mutant::KeepCharge,
        Mutant::WrongSister,
    ];

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether this defect is on in this thread.
    pub(crate) fn mutant(which: Mutant) -> bool {
        ON.get() == Some(which)
    }

    /// Runs with a defect, or with none.
    pub(crate) fn with<T>(which: Option<Mutant>, run: impl FnOnce() -> T) -> T {
        struct Off;
        impl Drop for Off {
            fn drop(&mut self) {
                ON.set(None);
            }
        }
        let _off = Off;
        ON.set(which);
        run()
    }
}
