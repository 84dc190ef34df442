//! What placement tells people of Queues: what each holds, is owed, borrows and lends, and whether
//! its place in the tree and its guarantee can be kept.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use rota_api::{Quantity, Queue, Resources};
use rota_scheduler::{Detached, Standing, standings};
use serde_json::{Map, Value, json};

use super::decide::{Answer, Op, Write};
use super::memory::Memory;
use super::status::set;

/// Millionths in one thousandth: shares are told with three places.
const MILLIONTHS: u64 = 1000;

impl Memory {
    /// Status writes of Queues whose figures changed.
    pub fn queue_statuses(&mut self, now: Timestamp) -> Vec<Write> {
        let hungry = self.hungry.iter();
        let demands: Vec<_> = hungry
            .filter_map(|serial| self.demand(*serial, self.jobs.get(serial)?))
            .collect();
        let standings: BTreeMap<String, Standing> = standings(&self.cluster, &demands)
            .into_iter()
            .map(|s| (self.cluster.queue_name(s.queue).to_string(), s))
            .collect();
        let mut conditions: BTreeMap<String, Vec<Condition>> = BTreeMap::new();
        for (name, memory) in &self.queues {
            if let Some(queue) = &memory.queue {
                let trouble = self.trouble(name, queue);
                conditions.insert(name.clone(), queue_conditions(queue, trouble, now));
            }
        }
        let mut writes = Vec::new();
        for (name, memory) in &mut self.queues {
            let Some(queue) = memory.queue.as_ref().filter(|_| !memory.in_flight) else {
                continue;
            };
            let id = self.cluster.queue(name);
            let used = self.cluster.queue_used(id);
            let mut figures = json!({
                "used": resources(used.map(|(r, v)| (r.to_owned(), v))),
                "running": count(self.cluster.queue_running(id)),
                "wastedByPreemption": resources(memory.wasted()),
                "conditions": conditions.get(name),
            });
            if let Some(standing) = standings.get(name) {
                figures["waiting"] = count(standing.waiting);
                figures["guaranteed"] = resources(standing.guaranteed.clone());
                figures["borrowed"] = resources(standing.borrowed.clone());
                figures["lent"] = resources(standing.lent.clone());
                figures["dominantShare"] = decimal(standing.dominant_share).into();
                figures["fairShare"] = decimal(standing.fair_share).into();
            }
            let generation = queue.metadata.generation.unwrap_or(0);
            if memory.told.as_ref() == Some(&(figures.clone(), generation)) {
                continue;
            }
            let mut status = figures.clone();
            let stored = json!(queue.status);
            for map in ["used", "guaranteed", "borrowed", "lent"] {
                let told = memory.told.as_ref().map(|t| &t.0[map]);
                forget_absent(&mut status[map], [Some(&stored[map]), told]);
            }
            status["observedGeneration"] = json!(generation);
            memory.told = Some((figures, generation));
            memory.in_flight = true;
            writes.push(Write {
                op: Op::QueueStatus(name.clone()),
                together: 0,
                item: json!({
                    "verb": "status", "path": format!("/apis/rota.dev/v1/queues/{name}"),
                    "preconditions": {"uid": queue.metadata.uid}, "body": {"status": status},
                }),
            });
        }
        writes
    }

    pub(super) fn queue_status_answered(&mut self, name: &str, answer: &Answer) {
        if let Some(memory) = self.queues.get_mut(name) {
            memory.in_flight = false;
            if !matches!(answer, Answer::Done(_)) {
                memory.told = None;
            }
        }
    }

    /// What keeps a Queue from being what it says: reason and message.
    fn trouble(&self, name: &str, queue: &Queue) -> Option<(&'static str, String)> {
        let parent = queue.spec.parent.as_deref();
        let id = self.cluster.queue_named(name)?;
        match self.cluster.detached(id) {
            Some(Detached::ParentMissing) => {
                let above = parent.unwrap_or("");
                let text = format!(
                    "Queue {above}, or one above it, does not exist; nothing is started from here until it does"
                );
                return Some(("ParentNotFound", text));
            }
            Some(Detached::Cycle) => {
                let text = "its parents form a circle; nothing is started from here until one of them has another parent";
                return Some(("Cycle", text.into()));
            }
            None => {}
        }
        let above = parent.and_then(|p| self.queues.get(p)?.queue.as_ref());
        for (resource, _) in queue.spec.guarantee.iter().flatten() {
            let guarantee = |q: &Queue| {
                let amounts = q.spec.guarantee.as_ref();
                amounts.and_then(|g| Some(g.get(resource)?.base_floor(resource)))
            };
            let sisters = self.queues.values().filter_map(|q| q.queue.as_deref());
            let sisters = sisters.filter(|q| q.spec.parent == queue.spec.parent);
            let sum = sisters.filter_map(guarantee).fold(0, i64::saturating_add);
            let (all, whose) = match above.and_then(|q| guarantee(q)) {
                Some(all) => (all, format!("Queue {} is guaranteed", parent.unwrap_or(""))),
                None => (self.cluster.total(resource), "all nodes have".to_owned()),
            };
            // Nodes may be still to come: a cluster without any of it is no mistake of the Queue's.
            if sum > all && all > 0 {
                let amount = |base| Quantity::from_base(resource, base);
                let text = format!(
                    "it and its siblings are guaranteed {} of {resource}, {whose} {}",
                    amount(sum),
                    amount(all)
                );
                return Some(("GuaranteeTooLarge", text));
            }
        }
        None
    }
}

fn count(n: u64) -> Value {
    json!(n.min(i32::MAX as u64))
}

fn resources(amounts: impl IntoIterator<Item = (String, i64)>) -> Value {
    let amounts = amounts.into_iter();
    let named: Resources = amounts
        .map(|(r, v)| (r.clone(), Quantity::from_base(&r, v)))
        .collect();
    json!(named)
}

/// Millionths as a decimal number with up to three places.
pub(super) fn decimal(millionths: u64) -> String {
    let thousandths = millionths / MILLIONTHS;
    let text = format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A merge patch keeps what it does not name: what is no longer there is set to null.
fn forget_absent(map: &mut Value, before: [Option<&Value>; 2]) {
    let names = before.into_iter().flatten().filter_map(Value::as_object);
    let names: Vec<String> = names.flat_map(Map::keys).cloned().collect();
    for name in names {
        if map.get(&name).is_none() {
            map[name.as_str()] = Value::Null;
        }
    }
}

fn queue_conditions(
    queue: &Queue,
    trouble: Option<(&'static str, String)>,
    now: Timestamp,
) -> Vec<Condition> {
    let status = queue.status.as_ref();
    let mut list = status
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let generation = queue.metadata.generation;
    let (reason, message) = match &trouble {
        None => ("Ready", "tasks are placed from it"),
        Some((reason, message)) => (*reason, message.as_str()),
    };
    // What is guaranteed in vain does not keep tasks from being placed.
    let places = matches!(reason, "Ready" | "GuaranteeTooLarge");
    let word = |holds: bool| if holds { "True" } else { "False" };
    for (type_, holds) in [
        ("Ready", places),
        ("Reconciling", false),
        ("Stalled", trouble.is_some()),
    ] {
        let condition = (word(holds), reason, message);
        set(&mut list, type_, condition, generation, now);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_up_to_three_places() {
        for (millionths, text) in [
            (0, "0"),
            (250_000, "0.25"),
            (1_000_000, "1"),
            (1_499, "0.001"),
        ] {
            assert_eq!(decimal(millionths), text);
        }
    }

    #[test]
    fn what_is_gone_is_set_to_null() {
        let mut map = json!({"cpu": "1"});
        forget_absent(&mut map, [Some(&json!({"cpu": "2", "gpu": "1"})), None]);
        assert_eq!(map, json!({"cpu": "1", "gpu": null}));
    }
}
