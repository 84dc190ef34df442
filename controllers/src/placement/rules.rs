//! Rules: what templates say about nodes' labels and about other tasks, as the scheduler takes it. Pure.

use std::collections::BTreeMap;

use rota_api::names::LABEL_JOB;
use rota_api::selector::{LabelOp, LabelSelector};
use rota_api::{TaskSelector, TaskSpec, WhenUnsatisfiable};
use rota_scheduler::{ClassSpec, Expression, NodeTerm, Operator, Spread, TaskTerm};

/// Whose tasks a template makes: what selectors of other templates see of them.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// Namespace of the Job.
    pub namespace: &'a str,
    /// The Job's name.
    pub job: &'a str,
    /// Labels of the template.
    pub labels: Option<&'a BTreeMap<String, String>>,
}

impl Whose<'_> {
    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.cloned().unwrap_or_default();
        labels.insert(LABEL_JOB.into(), self.job.into());
        labels
    }
}

/// Writes affinity, anti-affinity, spread and labels of a template into a class.
pub fn write(class: &mut ClassSpec, spec: &TaskSpec, whose: Whose<'_>) {
    class.namespace = whose.namespace.to_owned();
    class.labels = whose.labels();
    let own = |selector: &Option<TaskSelector>| match selector {
        Some(selector) => expressions(&selector.selector()),
        None => vec![Expression {
            key: LABEL_JOB.into(),
            operator: Operator::In,
            values: vec![whose.job.into()],
        }],
    };
    if let Some(affinity) = &spec.affinity {
        let node = |term: &rota_api::NodeTerm| -> NodeTerm { expressions(&term.selector()) };
        class.required = affinity.required.iter().flatten().map(node).collect();
        let preferred = affinity.preferred.iter().flatten();
        class.preferred = preferred.map(|p| (p.weight, node(&p.term))).collect();
        let terms = |terms: &Option<Vec<rota_api::TaskTerm>>| {
            let each = terms.iter().flatten();
            each.map(|term| TaskTerm {
                topology_key: term.topology_key.clone(),
                selector: own(&term.label_selector),
            })
            .collect()
        };
        class.affinity = terms(&affinity.task_affinity);
        class.anti_affinity = terms(&affinity.anti_affinity);
    }
    let spread = spec.spread.iter().flatten();
    class.spread = spread
        .map(|spread| Spread {
            term: TaskTerm {
                topology_key: spread.topology_key.clone(),
                selector: own(&spread.label_selector),
            },
            max_skew: spread.max_skew.max(1) as u32,
            required: spread.when_unsatisfiable == WhenUnsatisfiable::DoNotSchedule,
        })
        .collect();
}

fn expressions(selector: &LabelSelector) -> Vec<Expression> {
    let each = selector.terms().iter();
    each.map(|term| {
        let (operator, values) = match &term.op {
            LabelOp::In(values) => (Operator::In, values.iter().cloned().collect()),
            LabelOp::NotIn(values) => (Operator::NotIn, values.iter().cloned().collect()),
            LabelOp::Exists => (Operator::Exists, Vec::new()),
            LabelOp::Absent => (Operator::DoesNotExist, Vec::new()),
            LabelOp::Above(bound) => (Operator::Gt, vec![bound.to_string()]),
            LabelOp::Below(bound) => (Operator::Lt, vec![bound.to_string()]),
        };
        Expression {
            key: term.key.clone(),
            operator,
            values,
        }
    })
    .collect()
}
