//! Topologies: which nodes share a value of a node label, and so are one domain.

use crate::cluster::Node;
use crate::cluster::states::NONE;
use crate::intern::FxMap;

/// The label whose domains are single nodes. A node without it is a domain of its own, under its name.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The domains that one label key makes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topology {
    pub key: String,
    /// Terms that use it.
    users: u32,
    /// Domain per node, [`NONE`] for nodes in none. Nodes beyond its end are in none.
    of_node: Vec<u32>,
    /// Where each node stands in its domain's list.
    at: Vec<u32>,
    /// Nodes per domain; empty for numbers not in use.
    pub nodes: Vec<Vec<u32>>,
    values: Vec<String>,
    ids: FxMap<String, u32>,
    unused: Vec<u32>,
}

impl Topology {
    /// The domain of a node, [`NONE`] if it is in none.
    #[inline]
    pub fn of(&self, node: u32) -> u32 {
        self.of_node.get(node as usize).copied().unwrap_or(NONE)
    }

    /// Number of domains that have nodes.
    pub fn live(&self) -> usize {
        self.ids.len()
    }

    /// The value that decides a node's domain.
    pub fn value_of<'a>(&self, node: &'a Node) -> Option<&'a str> {
        if !node.present {
            return None;
        }
        let label = node.spec.labels.get(&self.key).map(String::as_str);
        label.or_else(|| (self.key == HOSTNAME).then_some(&*node.name))
    }

    /// Whether the node's domain is not the one that its labels say.
    pub fn is_stale(&self, id: u32, node: &Node) -> bool {
        let domain = self.of(id);
        let is = (domain != NONE).then(|| self.values[domain as usize].as_str());
        is != self.value_of(node)
    }

    /// Moves a node to the domain that its labels say.
    pub fn move_node(&mut self, id: u32, node: &Node) {
        let n = id as usize;
        if n >= self.of_node.len() {
            self.of_node.resize(n + 1, NONE);
            self.at.resize(n + 1, 0);
        }
        let old = self.of_node[n];
        if old != NONE {
            let members = &mut self.nodes[old as usize];
            let at = self.at[n] as usize;
            members.swap_remove(at);
            if let Some(moved) = members.get(at) {
                self.at[*moved as usize] = at as u32;
            }
            if members.is_empty() {
                self.ids
                    .remove(&std::mem::take(&mut self.values[old as usize]));
                self.unused.push(old);
            }
        }
        let domain = match self.value_of(node) {
            Some(value) => self.domain(value),
            None => NONE,
        };
        self.of_node[n] = domain;
        if domain != NONE {
            let members = &mut self.nodes[domain as usize];
            self.at[n] = members.len() as u32;
            members.push(id);
        }
    }

    fn domain(&mut self, value: &str) -> u32 {
        if let Some(id) = self.ids.get(value) {
            return *id;
        }
        let id = match self.unused.pop() {
            Some(id) => id,
            None => {
                self.nodes.push(Vec::new());
                self.values.push(String::new());
                self.nodes.len() as u32 - 1
            }
        };
        self.values[id as usize] = value.to_owned();
        self.ids.insert(value.to_owned(), id);
        id
    }
}

/// The topologies that terms use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topologies {
    /// Those without users are not kept up.
    all: Vec<Topology>,
    ids: FxMap<String, u32>,
}

impl Topologies {
    pub fn get(&self, id: u32) -> &Topology {
        &self.all[id as usize]
    }

    /// Those in use.
    pub fn used(&self) -> impl Iterator<Item = &Topology> {
        self.all.iter().filter(|t| t.users > 0)
    }

    pub fn used_mut(&mut self) -> impl Iterator<Item = &mut Topology> {
        self.all.iter_mut().filter(|t| t.users > 0)
    }

    /// Number of the topology of a key, with one user more. A new one looks at all nodes.
    pub fn keep(&mut self, key: &str, nodes: &[Node]) -> u32 {
        if let Some(id) = self.ids.get(key) {
            self.all[*id as usize].users += 1;
            return *id;
        }
        let mut topology = Topology {
            key: key.to_owned(),
            users: 1,
            ..Topology::default()
        };
        for (id, node) in nodes.iter().enumerate() {
            topology.move_node(id as u32, node);
        }
        let id = match self.all.iter().position(|t| t.users == 0) {
            Some(id) => {
                self.all[id] = topology;
                id
            }
            None => {
                self.all.push(topology);
                self.all.len() - 1
            }
        };
        self.ids.insert(key.to_owned(), id as u32);
        id as u32
    }

    pub fn drop_one(&mut self, id: u32) {
        let topology = &mut self.all[id as usize];
        topology.users -= 1;
        if topology.users == 0 {
            self.ids.remove(&topology.key);
            *topology = Topology::default();
        }
    }
}
