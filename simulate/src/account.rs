//! Integrals over virtual time: what was held and had, and what each owner got and was owed.

use std::collections::BTreeMap;

use rota_scheduler::{ClassSpec, Cluster, Time};

/// A dominant share of 1: the whole cluster. Integers, so that sums come back to zero exactly.
pub(crate) const WHOLE: i64 = 1 << 40;

#[derive(Clone, Debug, Default)]
struct Amount {
    held: i128,
    capacity: i128,
    held_time: f64,
    capacity_time: f64,
}

#[derive(Clone, Debug, Default)]
struct Owner {
    /// Dominant share of what it has running and waiting.
    want: i64,
    /// The same of what runs.
    used: i64,
    got: f64,
    due: f64,
}

/// All integrals of one run. [`Account::advance`] comes before every change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    now: Time,
    amounts: BTreeMap<String, Amount>,
    owners: Vec<Owner>,
    /// Owners with `want` above 0, by number.
    active: std::collections::BTreeSet<usize>,
    want: i64,
    load_time: f64,
}

impl Account {
    /// Integrates up to `now` with what holds since the last change.
    pub fn advance(&mut self, now: Time) {
        let span = (now - self.now) as f64;
        self.now = now;
        if span <= 0.0 {
            return;
        }
        for amount in self.amounts.values_mut() {
            amount.held_time += amount.held as f64 * span;
            amount.capacity_time += amount.capacity as f64 * span;
        }
        self.load_time += span * (self.want as f64 / WHOLE as f64).max(1.0);
        // Max-min fair: nobody is owed more than it wants, and what is left goes to the others.
        let mut wants: Vec<(i64, usize)> = self
            .active
            .iter()
            .map(|owner| (self.owners[*owner].want, *owner))
            .collect();
        wants.sort_unstable();
        let mut left = WHOLE;
        let mut sharing = wants.len() as i64;
        for (want, owner) in wants {
            let due = want.min(left / sharing);
            left -= due;
            sharing -= 1;
            let owner = &mut self.owners[owner];
            owner.due += due as f64 * span;
            owner.got += owner.used as f64 * span;
        }
    }

    /// Nothing before this moment counts.
    pub fn begin(&mut self, now: Time) {
        self.now = now;
        self.load_time = 0.0;
        for amount in self.amounts.values_mut() {
            (amount.held_time, amount.capacity_time) = (0.0, 0.0);
        }
    }

    /// Tells what a resource of the cluster amounts to now.
    pub fn set_capacity(&mut self, resource: &str, total: i64) {
        self.amounts.entry(resource.into()).or_default().capacity = i128::from(total);
    }

    /// Tasks of a class took (`count` above 0) or gave back what they need.
    pub fn hold(&mut self, spec: &ClassSpec, count: i64) {
        for (resource, amount) in &spec.requests {
            if let Some(entry) = self.amounts.get_mut(resource) {
                entry.held += i128::from(*amount) * i128::from(count);
            }
        }
    }

    /// An owner wants more or less; `share` is of [`WHOLE`].
    pub fn want(&mut self, owner: usize, share: i64) {
        if self.owners.len() <= owner {
            self.owners.resize(owner + 1, Owner::default());
        }
        let entry = &mut self.owners[owner];
        entry.want += share;
        self.want += share;
        if entry.want > 0 {
            self.active.insert(owner);
        } else {
            self.active.remove(&owner);
        }
    }

    /// An owner uses more or less of what it wants.
    pub fn used(&mut self, owner: usize, share: i64) {
        self.owners[owner].used += share;
    }

    /// Integral of the load (what is wanted over what there is, at least 1) over milliseconds.
    pub fn load_time(&self) -> f64 {
        self.load_time
    }

    /// Held over capacity, weighted by time, per resource that there is any of.
    pub fn utilization(&self) -> BTreeMap<String, f64> {
        self.amounts
            .iter()
            .filter(|(_, a)| a.capacity_time > 0.0)
            .map(|(name, a)| (name.clone(), a.held_time / a.capacity_time))
            .collect()
    }

    /// Held over capacity now, over all of these resources; `None` when there is none of them.
    pub fn held_now(&self, resources: impl Iterator<Item = String>) -> Option<f64> {
        let (mut held, mut capacity) = (0, 0);
        for amount in resources.filter_map(|r| self.amounts.get(&r)) {
            held += amount.held;
            capacity += amount.capacity;
        }
        (capacity > 0).then(|| held as f64 / capacity as f64)
    }

    /// Jain's index (Jain, Chiu, Hawe 1984) over owners' received share by the share owed.
    pub fn jain(&self) -> Option<f64> {
        let ratios = self.owners.iter().filter(|o| o.due > 0.0);
        let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for owner in ratios {
            let x = owner.got / owner.due;
            n += 1.0;
            sum += x;
            squares += x * x;
        }
        (squares > 0.0).then(|| sum * sum / (n * squares))
    }
}

/// The dominant share of one task, of [`WHOLE`]; at least 1 when it asks for anything that there is.
pub(crate) fn dominant(cluster: &Cluster, spec: &ClassSpec) -> i64 {
    spec.requests
        .iter()
        .map(|(resource, amount)| {
            let total = cluster.total(resource);
            if total <= 0 {
                return 0;
            }
            let share = i128::from(*amount) * i128::from(WHOLE) / i128::from(total);
            i64::try_from(share).unwrap_or(WHOLE).clamp(1, WHOLE)
        })
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_does_not_want_is_owed_to_the_others() {
        let mut account = Account::default();
        account.want(0, WHOLE / 4);
        account.want(1, WHOLE);
        account.used(0, WHOLE / 4);
        account.used(1, WHOLE * 3 / 4);
        account.advance(1000);
        assert_eq!(account.jain(), Some(1.0));
        // The first gets nothing for as long again: it has half of what it is owed.
        account.used(0, -WHOLE / 4);
        account.advance(2000);
        let jain = account.jain().unwrap_or(0.0);
        assert!((jain - 1.5 * 1.5 / (2.0 * 1.25)).abs() < 1e-9, "{jain}");
        assert_eq!(account.load_time(), 2500.0);
    }
}
