//! Held: nodes whose domain has enough tasks for now, kept by domain until it opens again. With
//! them an array is spread like water: every node is looked at once, and then by its domain.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::Side;
use super::rules::Rules;

/// Position of a bound in the rules, and a domain.
type Gate = (usize, u32);

#[derive(Debug, Default)]
pub(super) struct Held {
    /// Nodes with the score they had, best first.
    nodes: BTreeMap<Gate, BinaryHeap<(i64, Reverse<u32>)>>,
    /// Gates that may be open, of those that have nodes.
    ready: BTreeSet<Gate>,
}

impl Held {
    pub fn hold(&mut self, gate: Gate, score: i64, node: u32) {
        let nodes = self.nodes.entry(gate).or_default();
        nodes.push((score, Reverse(node)));
    }

    /// A node behind a gate that is open.
    pub fn next(&mut self, rules: &Rules, side: &Side) -> Option<(i64, u32)> {
        while let Some(gate) = self.ready.first().copied() {
            if rules.is_open(side, gate.0, gate.1)
                && let Some(nodes) = self.nodes.get_mut(&gate)
            {
                if let Some((score, Reverse(node))) = nodes.pop() {
                    return Some((score, node));
                }
                self.nodes.remove(&gate);
            }
            self.ready.remove(&gate);
        }
        None
    }

    /// Finds the gates of a bound that have opened.
    pub fn look(&mut self, rules: &Rules, side: &Side, i: usize) {
        for gate in self.nodes.range((i, 0)..=(i, u32::MAX)).map(|(g, _)| *g) {
            if rules.is_open(side, gate.0, gate.1) {
                self.ready.insert(gate);
            }
        }
    }

    /// Widens one bound that is no must, so that a gate opens. False when there is none.
    pub fn lift(&mut self, rules: &mut Rules, side: &Side) -> bool {
        self.nodes.retain(|_, nodes| !nodes.is_empty());
        let bounds: BTreeSet<usize> = self.nodes.keys().map(|(i, _)| *i).collect();
        for i in bounds {
            let domains = self.nodes.range((i, 0)..=(i, u32::MAX));
            if rules.lift(side, i, domains.map(|((_, d), _)| *d)) {
                self.look(rules, side, i);
                return true;
            }
        }
        false
    }
}
