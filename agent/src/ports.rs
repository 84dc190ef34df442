//! Dynamic ports: which of the node's range are given out.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};

use rota_api::kinds::Port;

/// Ports of one node.
#[derive(Debug)]
pub struct Ports {
    range: (u16, u16),
    next: u16,
    used: BTreeSet<u16>,
}

/// Whether nothing on the machine listens on a TCP port now.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

impl Ports {
    /// A range, inclusive.
    pub fn new(range: (u16, u16)) -> Self {
        Ports {
            range,
            next: range.0,
            used: BTreeSet::new(),
        }
    }

    /// Starts at a random place of the range instead of its beginning. Several nodes of one machine
    /// share the range and see each other's ports only once something listens there, so they
    /// should not all begin with the same ones.
    pub fn scattered(mut self) -> Self {
        let (low, high) = self.range;
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), low);
        let offset = random % (u64::from(high - low) + 1);
        self.next = low + u16::try_from(offset).unwrap_or(0);
        self
    }

    /// Gives every port without a number one that is neither given out nor in use on the machine.
    /// Going round the range keeps a port that was just released unused for long.
    pub fn assign(&mut self, wanted: &[Port], free: impl Fn(u16) -> bool) -> Option<Vec<Port>> {
        let mut got: Vec<Port> = Vec::with_capacity(wanted.len());
        for port in wanted {
            if port.port != 0 {
                got.push(port.clone());
                continue;
            }
            let Some(number) = self.take(&free) else {
                self.release(&got);
                return None;
            };
            got.push(Port {
                name: port.name.clone(),
                port: i32::from(number),
            });
        }
        Some(got)
    }

    fn take(&mut self, free: &impl Fn(u16) -> bool) -> Option<u16> {
        let (low, high) = self.range;
        for _ in 0..=u32::from(high - low) {
            let candidate = self.next;
            self.next = if candidate >= high {
                low
            } else {
                candidate + 1
            };
            if !self.used.contains(&candidate) && free(candidate) {
                self.used.insert(candidate);
                return Some(candidate);
            }
        }
        None
    }

    /// Takes note of ports that a task has already.
    pub fn reserve(&mut self, ports: &[Port]) {
        let ours: Vec<u16> = ports.iter().filter_map(|p| self.ours(p)).collect();
        self.used.extend(ours);
    }

    /// Ports may be given out again.
    pub fn release(&mut self, ports: &[Port]) {
        for p in ports {
            if let Some(n) = self.ours(p) {
                self.used.remove(&n);
            }
        }
    }

    fn ours(&self, p: &Port) -> Option<u16> {
        let n = u16::try_from(p.port).ok()?;
        (self.range.0..=self.range.1).contains(&n).then_some(n)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn port(name: &str, port: i32) -> Port {
        Port {
            name: name.into(),
            port,
        }
    }

    #[test]
    fn any_place_of_the_range_may_come_first() {
        let mut seen = BTreeSet::new();
        for _ in 0..200 {
            let mut p = Ports::new((100, 103)).scattered();
            seen.insert(p.assign(&[port("a", 0)], |_| true).unwrap()[0].port);
        }
        assert_eq!(seen, BTreeSet::from([100, 101, 102, 103]));
    }

    #[test]
    fn gives_free_ports_round_and_round_and_none_when_all_are_taken() {
        let mut p = Ports::new((100, 103));
        let free = |n| n != 101;
        let first = p.assign(&[port("a", 0), port("fixed", 80)], free).unwrap();
        assert_eq!(first, [port("a", 100), port("fixed", 80)]);
        assert_eq!(p.assign(&[port("b", 0)], free).unwrap(), [port("b", 102)]);
        assert_eq!(p.assign(&[port("c", 0), port("d", 0)], free), None);
        assert_eq!(
            p.assign(&[port("c", 0)], free).unwrap(),
            [port("c", 103)],
            "a refusal keeps nothing"
        );
        p.release(&first);
        assert_eq!(p.assign(&[port("e", 0)], free).unwrap(), [port("e", 100)]);
        p.reserve(&[port("x", 102), port("y", 5)]);
        assert_eq!(p.assign(&[port("f", 0)], free), None);
    }
}
