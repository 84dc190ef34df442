//! Agenda: whose turn it is. Units (single demands and gangs) in the order of their queues.

use std::collections::BTreeMap;

use crate::cluster::Cluster;
use crate::order;
use crate::spec::{Demand, Time};

/// What is decided together: one demand, or all demands of a gang.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// Positions in the cycle's demands.
    pub demands: Vec<u32>,
    /// 0 for a single demand.
    pub gang: u64,
}

/// One unit's turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub unit: u32,
    /// Tasks that it may place before another's turn comes; a gang's minimum ignores it.
    pub most: u32,
}

pub(crate) struct Agenda {
    units: Vec<Unit>,
    next: usize,
}

impl Agenda {
    pub fn new(cluster: &Cluster, demands: &[Demand], _now: Time) -> Self {
        let mut units: Vec<Unit> = Vec::new();
        let mut gangs: BTreeMap<u64, usize> = BTreeMap::new();
        for position in order::order(cluster, demands) {
            let gang = demands[position as usize].gang;
            if gang != 0
                && let Some(unit) = gangs.get(&gang)
            {
                units[*unit].demands.push(position);
                continue;
            }
            if gang != 0 {
                gangs.insert(gang, units.len());
            }
            units.push(Unit {
                demands: vec![position],
                gang,
            });
        }
        Agenda { units, next: 0 }
    }

    pub fn unit(&self, unit: u32) -> &Unit {
        &self.units[unit as usize]
    }

    pub fn next(&mut self, _cluster: &Cluster) -> Option<Turn> {
        (self.next < self.units.len()).then_some(Turn {
            unit: self.next as u32,
            most: u32::MAX,
        })
    }

    pub fn over(&mut self, _turn: &Turn, more: bool) {
        if !more {
            self.next += 1;
        }
    }
}
