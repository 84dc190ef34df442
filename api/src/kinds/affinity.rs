//! Affinity: which nodes a task needs, likes and avoids, and how the tasks of a set lie to each other.
//!
//! Everything here is a question about labels, so each piece turns into a [`LabelSelector`], the one
//! matcher there is.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::selector::{LabelOp, LabelSelector, LabelTerm};

/// Which nodes a task needs and prefers, and which tasks it wants near it or away from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Affinity {
    /// The node must match at least one of these terms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub required: Option<Vec<NodeTerm>>,
    /// Nodes that match are tried first; the weights of all terms that match a node add up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub preferred: Option<Vec<PreferredTerm>>,
    /// Each term needs a task that it selects in the node's domain. Where no such task runs
    /// anywhere and the term selects this task itself, every domain will do: it is the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub task_affinity: Option<Vec<TaskTerm>>,
    /// No task that one of these terms selects may be in the node's domain. It holds both ways: a
    /// running task keeps out later ones that it does not want beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub anti_affinity: Option<Vec<TaskTerm>>,
}

/// A question about a node's labels: all expressions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTerm {
    /// What is asked of the labels, all of it.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Vec<NodeExpression>,
}

/// A term that is liked, and how much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreferredTerm {
    /// How much a match counts beside the other terms.
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,
    /// Which nodes.
    pub term: NodeTerm,
}

/// One question about one label of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeExpression {
    /// Label key.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How the label is compared.
    pub operator: NodeOperator,
    /// In, NotIn: at least one. Gt, Lt: one integer. Exists, DoesNotExist: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "atomic"), inner(length(max = 63)))]
    pub values: Option<Vec<String>>,
}

/// How a node's label is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum NodeOperator {
    /// The value is one of `values`.
    In,
    /// The label is absent or its value none of `values`.
    NotIn,
    /// The label is there.
    #[default]
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The value is an integer above the one in `values`.
    Gt,
    /// The value is an integer below the one in `values`.
    Lt,
}

/// Tasks of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskTerm {
    /// Node label whose values are the domains: `kubernetes.io/hostname` for single nodes,
    /// `topology.kubernetes.io/zone` for zones. Nodes without it are in no domain.
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: String,
    /// Tasks of the same namespace that are meant, by their labels: the template's, and
    /// `rota.dev/job`. Absent: the Job's own tasks. Empty: every task of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<TaskSelector>,
}

/// Levels tasks out over domains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Spread {
    /// Node label whose values are the domains. Nodes without it get no such task under DoNotSchedule.
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: String,
    /// Most that a domain may have above the domain that has least, among the domains with a node
    /// that the task's selector, affinity and tolerations allow.
    #[schemars(range(min = 1, max = 10000000))]
    pub max_skew: i32,
    /// What happens where no node keeps the skew.
    pub when_unsatisfiable: WhenUnsatisfiable,
    /// Tasks of the same namespace that are counted. Absent: the Job's own tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<TaskSelector>,
}

/// What happens to a task that no node takes within the skew.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub enum WhenUnsatisfiable {
    /// It waits.
    #[default]
    DoNotSchedule,
    /// It goes where the skew is least.
    ScheduleAnyway,
}

/// Selects tasks by their labels: all of it must hold; empty selects every task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskSelector {
    /// Labels with exactly these values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Further questions about labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Option<Vec<TaskExpression>>,
}

/// One question about one label of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskExpression {
    /// Label key.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How the label is compared.
    pub operator: TaskOperator,
    /// In, NotIn: at least one. Exists, DoesNotExist: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "atomic"), inner(length(max = 63)))]
    pub values: Option<Vec<String>>,
}

/// How a task's label is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TaskOperator {
    /// The value is one of `values`.
    In,
    /// The label is absent or its value none of `values`.
    NotIn,
    /// The label is there.
    #[default]
    Exists,
    /// The label is absent.
    DoesNotExist,
}

fn set(values: Option<&Vec<String>>) -> BTreeSet<String> {
    values.into_iter().flatten().cloned().collect()
}

impl NodeTerm {
    /// The same question as a selector of node labels. What validation would have refused matches nothing.
    pub fn selector(&self) -> LabelSelector {
        let terms = self.match_expressions.iter().map(|e| {
            let number = || e.values.iter().flatten().next()?.parse::<i64>().ok();
            let nothing = LabelOp::In(BTreeSet::new());
            LabelTerm {
                key: e.key.clone(),
                op: match e.operator {
                    NodeOperator::In => LabelOp::In(set(e.values.as_ref())),
                    NodeOperator::NotIn => LabelOp::NotIn(set(e.values.as_ref())),
                    NodeOperator::Exists => LabelOp::Exists,
                    NodeOperator::DoesNotExist => LabelOp::Absent,
                    NodeOperator::Gt => number().map_or(nothing, LabelOp::Above),
                    NodeOperator::Lt => number().map_or(nothing, LabelOp::Below),
                },
            }
        });
        LabelSelector::all_of(terms.collect())
    }
}

impl TaskSelector {
    /// The same question as a selector of task labels.
    pub fn selector(&self) -> LabelSelector {
        let equal = self
            .match_labels
            .iter()
            .flatten()
            .map(|(key, value)| LabelTerm {
                key: key.clone(),
                op: LabelOp::In(BTreeSet::from([value.clone()])),
            });
        let expressions = self.match_expressions.iter().flatten().map(|e| LabelTerm {
            key: e.key.clone(),
            op: match e.operator {
                TaskOperator::In => LabelOp::In(set(e.values.as_ref())),
                TaskOperator::NotIn => LabelOp::NotIn(set(e.values.as_ref())),
                TaskOperator::Exists => LabelOp::Exists,
                TaskOperator::DoesNotExist => LabelOp::Absent,
            },
        });
        LabelSelector::all_of(equal.chain(expressions).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn node_terms_compare_as_kubernetes_does() {
        let labels = json!({"zone": "a", "cores": "16", "bare": ""});
        for (expression, holds) in [
            (
                json!({"key": "zone", "operator": "In", "values": ["a", "b"]}),
                true,
            ),
            (
                json!({"key": "zone", "operator": "In", "values": ["b"]}),
                false,
            ),
            (
                json!({"key": "zone", "operator": "NotIn", "values": ["b"]}),
                true,
            ),
            (
                json!({"key": "none", "operator": "NotIn", "values": ["b"]}),
                true,
            ),
            (json!({"key": "bare", "operator": "Exists"}), true),
            (json!({"key": "none", "operator": "DoesNotExist"}), true),
            (
                json!({"key": "cores", "operator": "Gt", "values": ["8"]}),
                true,
            ),
            (
                json!({"key": "cores", "operator": "Gt", "values": ["16"]}),
                false,
            ),
            (
                json!({"key": "cores", "operator": "Lt", "values": ["17"]}),
                true,
            ),
            (
                json!({"key": "zone", "operator": "Gt", "values": ["0"]}),
                false,
            ),
            (
                json!({"key": "none", "operator": "Lt", "values": ["9"]}),
                false,
            ),
        ] {
            let term: NodeTerm =
                serde_json::from_value(json!({"matchExpressions": [expression]})).unwrap();
            assert_eq!(term.selector().matches(&labels), holds, "{expression}");
        }
        let both: NodeTerm = serde_json::from_value(json!({"matchExpressions": [
            {"key": "zone", "operator": "Exists"}, {"key": "none", "operator": "Exists"}]}))
        .unwrap();
        assert!(!both.selector().matches(&labels));
    }

    #[test]
    fn task_selectors_take_all_parts_together() {
        let selector: TaskSelector = serde_json::from_value(json!({
            "matchLabels": {"app": "db"},
            "matchExpressions": [{"key": "role", "operator": "NotIn", "values": ["backup"]}]}))
        .unwrap();
        let selector = selector.selector();
        assert!(selector.matches(&json!({"app": "db"})));
        assert!(selector.matches(&json!({"app": "db", "role": "main"})));
        assert!(!selector.matches(&json!({"app": "db", "role": "backup"})));
        assert!(!selector.matches(&json!({"role": "main"})));
        assert!(TaskSelector::default().selector().matches(&json!({})));
    }
}
