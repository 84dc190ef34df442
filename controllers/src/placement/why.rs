//! Why: the scheduler's blockers and changes in words for people. Pure.

use rota_api::{Quantity, WaitReason, WaitingFor};
use rota_scheduler::{Blocker, Change, Detached, Explanation, Taint};

/// Most reasons that a status holds.
const REASONS_MAX: usize = 16;

/// The `waitingFor` of an explanation; `queue` is the Job's.
pub fn waiting_for(why: &Explanation, queue: &str) -> WaitingFor {
    let reasons = why.blockers.iter().take(REASONS_MAX);
    WaitingFor {
        reasons: reasons.map(|b| reason(b, queue)).collect(),
        smallest_change: why.change.as_ref().map(|c| change(c, queue)),
        estimated_start: None,
    }
}

/// The same with another reason before the others, if there is one.
pub fn after(first: Option<WaitReason>, mut waiting: WaitingFor) -> WaitingFor {
    if let Some(reason) = first {
        waiting.reasons.insert(0, reason);
        waiting.reasons.truncate(REASONS_MAX);
    }
    waiting
}

/// One reason.
pub fn plain(reason: &str, message: impl Into<String>) -> WaitReason {
    WaitReason {
        reason: reason.into(),
        message: message.into().chars().take(1024).collect(),
        ..WaitReason::default()
    }
}

fn reason(blocker: &Blocker, queue: &str) -> WaitReason {
    let nodes_of = |word: &str, count: u32, message: String| WaitReason {
        nodes: Some(count.min(i32::MAX as u32) as i32),
        ..plain(word, message)
    };
    let resource_of = |name: &str, reason: WaitReason| WaitReason {
        resource: Some(name.to_owned()),
        ..reason
    };
    match blocker {
        Blocker::NoNodes => plain("NoNodes", "there is no node"),
        Blocker::QueueMissing => plain("QueueNotFound", format!("there is no Queue {queue}")),
        Blocker::QueueDetached(Detached::ParentMissing) => plain(
            "QueueNotFound",
            format!("a Queue above Queue {queue} does not exist"),
        ),
        Blocker::QueueDetached(Detached::Cycle) => plain(
            "QueueNotFound",
            format!("Queue {queue} is below itself: its parents form a circle"),
        ),
        Blocker::TooFewTogether { needed, fit } => plain(
            "Gang",
            format!("{needed} tasks must start together; there is room for {fit} now"),
        ),
        Blocker::QueueLimit {
            queue,
            resource,
            limit,
            used,
            request,
        } => resource_of(
            resource,
            plain(
                "QueueLimit",
                format!(
                    "{} of {resource} is needed; Queue {queue} holds {} of its limit of {}",
                    amount(resource, *request),
                    amount(resource, *used),
                    amount(resource, *limit)
                ),
            ),
        ),
        Blocker::NodeNotReady { nodes } => {
            nodes_of("NodeNotReady", *nodes, format!("{} not ready", are(*nodes)))
        }
        Blocker::NodeUnschedulable { nodes } => nodes_of(
            "NodeUnschedulable",
            *nodes,
            format!("{} cordoned", are(*nodes)),
        ),
        Blocker::TaintNotTolerated { taint, nodes } => nodes_of(
            "TaintNotTolerated",
            *nodes,
            format!(
                "{} the taint {}, which is not tolerated",
                have(*nodes),
                named(taint)
            ),
        ),
        Blocker::NodeSelectorMismatch { nodes } => nodes_of(
            "NodeSelectorMismatch",
            *nodes,
            format!("{} not the labels of nodeSelector", have(*nodes)),
        ),
        Blocker::NodeAffinityMismatch { nodes } => nodes_of(
            "NodeAffinityMismatch",
            *nodes,
            format!(
                "{} not the labels that node affinity requires",
                have(*nodes)
            ),
        ),
        Blocker::InsufficientResource {
            resource,
            nodes,
            request,
            most_free,
        } => resource_of(
            resource,
            nodes_of(
                "InsufficientResource",
                *nodes,
                format!(
                    "a task needs {} of {resource}; {} less free, at most {}",
                    amount(resource, *request),
                    have(*nodes),
                    amount(resource, *most_free)
                ),
            ),
        ),
        Blocker::PortInUse { nodes } => nodes_of(
            "PortInUse",
            *nodes,
            format!("{} a fixed port in use already", have(*nodes)),
        ),
        Blocker::Affinity { nodes } => nodes_of(
            "Affinity",
            *nodes,
            format!("{} no task near that this one must be with", have(*nodes)),
        ),
        Blocker::AntiAffinity { nodes } => nodes_of(
            "AntiAffinity",
            *nodes,
            format!(
                "{} a task near that must be kept apart from this one",
                have(*nodes)
            ),
        ),
        Blocker::SpreadSkew { nodes } => nodes_of(
            "SpreadSkew",
            *nodes,
            format!(
                "{} more tasks near than the allowed skew over the emptiest part",
                have(*nodes)
            ),
        ),
        Blocker::NeverFits {
            resource,
            request,
            most,
        } => resource_of(
            resource,
            plain(
                "NeverFits",
                format!(
                    "a task needs {} of {resource}; no node that it may use could hold it even when empty (the most is {})",
                    amount(resource, *request),
                    amount(resource, *most)
                ),
            ),
        ),
    }
}

fn change(change: &Change, queue: &str) -> String {
    let list = |changes: &[(String, i64, i64)]| {
        let each = changes.iter().map(|(resource, from, to)| {
            format!(
                "{resource} from {} to {}",
                amount(resource, *from),
                amount(resource, *to)
            )
        });
        each.collect::<Vec<_>>().join(" and ")
    };
    match change {
        Change::Lower(cuts) => format!("lower {}", list(cuts)),
        Change::DropSelector { key, value, nodes } => format!(
            "remove {key}={value} from nodeSelector ({} room then)",
            have(*nodes)
        ),
        Change::DropNodeAffinity { nodes } => format!(
            "remove the required node affinity ({} room then)",
            have(*nodes)
        ),
        Change::Tolerate { taint, nodes } => {
            format!("tolerate {} ({} room then)", named(taint), have(*nodes))
        }
        Change::RaiseQueueLimit(raises) => {
            let each = raises.iter().map(|(queue, resource, from, to)| {
                format!(
                    "the limit of Queue {queue} for {resource} from {} to {}",
                    amount(resource, *from),
                    amount(resource, *to)
                )
            });
            format!("raise {}", each.collect::<Vec<_>>().join(" and "))
        }
        Change::LowerTogether { from, to } => {
            format!("lower gang.minAvailable from {from} to {to}")
        }
        Change::CreateQueue => format!("create Queue {queue}"),
    }
}

fn amount(resource: &str, base: i64) -> Quantity {
    Quantity::from_base(resource, base)
}

fn named(taint: &Taint) -> String {
    let value = if taint.value.is_empty() {
        String::new()
    } else {
        format!("={}", taint.value)
    };
    format!("{}{value}:{:?}", taint.key, taint.effect)
}

fn are(nodes: u32) -> String {
    match nodes {
        1 => "1 node is".into(),
        n => format!("{n} nodes are"),
    }
}

fn have(nodes: u32) -> String {
    match nodes {
        1 => "1 node has".into(),
        n => format!("{n} nodes have"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_like_a_sentence() {
        let why = Explanation {
            blockers: vec![Blocker::InsufficientResource {
                resource: "cpu".into(),
                nodes: 2,
                request: 8000,
                most_free: 4500,
            }],
            change: Some(Change::Lower(vec![("cpu".into(), 8000, 4500)])),
            ..Explanation::default()
        };
        let words = waiting_for(&why, "q");
        assert_eq!(
            words.reasons[0].message,
            "a task needs 8 of cpu; 2 nodes have less free, at most 4500m"
        );
        assert_eq!(
            words.smallest_change.as_deref(),
            Some("lower cpu from 8 to 4500m")
        );
    }
}
