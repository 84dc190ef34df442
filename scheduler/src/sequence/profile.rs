//! Free amounts over time, added up over all nodes.

use crate::spec::Time;

/// Steps: from each moment to the next one's, the last for ever.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    at: Vec<Time>,
    /// Per step and resource.
    free: Vec<i64>,
    width: usize,
}

impl Profile {
    pub fn new(now: Time, free: Vec<i64>) -> Self {
        Profile {
            at: vec![now],
            width: free.len(),
            free,
        }
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        self.at.len()
    }

    /// More is free from a moment on; moments come in ascending order.
    pub fn release(&mut self, at: Time, amounts: impl Iterator<Item = i64>) {
        let last = self.len() - 1;
        if self.at[last] != at {
            self.at.push(at);
            self.free.extend_from_within(last * self.width..);
        }
        let start = (self.len() - 1) * self.width;
        for (free, amount) in self.free[start..].iter_mut().zip(amounts) {
            *free = free.saturating_add(amount);
        }
    }

    /// Takes the amounts for `run` from the earliest moment at which they are free for so long;
    /// None when that never comes.
    pub fn book(&mut self, amounts: &[i64], run: Time) -> Option<Time> {
        let mut first = 0;
        loop {
            first += (first..self.len()).position(|i| self.fits(i, amounts))?;
            let end = self.at[first].saturating_add(run);
            let inside = self.at[first..].partition_point(|at| *at < end);
            let last = first + inside;
            match (first + 1..last).find(|i| !self.fits(*i, amounts)) {
                Some(blocked) => first = blocked + 1,
                None => {
                    self.take(first, last, end, amounts);
                    return Some(self.at[first]);
                }
            }
        }
    }

    /// The same if they are free so long from the first moment on; false when they are not.
    pub fn book_now(&mut self, amounts: &[i64], run: Time) -> bool {
        let end = self.at[0].saturating_add(run);
        let last = self.at.partition_point(|at| *at < end).max(1);
        let free = (0..last).all(|step| self.fits(step, amounts));
        if free {
            self.take(0, last, end, amounts);
        }
        free
    }

    fn fits(&self, step: usize, amounts: &[i64]) -> bool {
        let free = &self.free[step * self.width..][..self.width];
        free.iter()
            .zip(amounts)
            .all(|(free, amount)| free >= amount)
    }

    /// Takes from the steps `first..last`, which reach at least to `end`.
    fn take(&mut self, first: usize, last: usize, end: Time, amounts: &[i64]) {
        if self.at.get(last) != Some(&end) && end != Time::MAX {
            self.at.insert(last, end);
            let before: Vec<i64> = self.free[(last - 1) * self.width..last * self.width].to_vec();
            let place = last * self.width;
            self.free.splice(place..place, before);
        }
        for step in self.free[first * self.width..last * self.width].chunks_mut(self.width.max(1)) {
            for (free, amount) in step.iter_mut().zip(amounts) {
                *free -= amount;
            }
        }
    }
}
