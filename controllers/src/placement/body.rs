//! Bodies and paths of placement's writes.

use rota_api::names::{
    ANNOTATION_COMPLETIONS, API_VERSION, FINALIZER_LEDGER, LABEL_INDEX, LABEL_JOB, LABEL_JOB_UID,
    ledger_name,
};
use rota_api::{JobRevision, Resources};
use serde_json::{Map, Value, json};

use super::book::ChunkWrite;

/// A Job as its derived objects refer to it.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
}

impl Owner {
    fn reference(&self) -> Value {
        json!([{
            "apiVersion": API_VERSION, "kind": "Job", "name": self.name, "uid": self.uid,
            "controller": true, "blockOwnerDeletion": true,
        }])
    }

    /// Path of a collection in the Job's namespace.
    pub fn collection(&self, plural: &str) -> String {
        format!("/apis/rota.dev/v1/namespaces/{}/{plural}", self.namespace)
    }
}

/// What a batch of Tasks of one Job has in common; made once per Job and revision.
#[derive(Clone, Debug)]
pub struct Mould {
    metadata: Map<String, Value>,
    spec: Map<String, Value>,
}

impl Mould {
    /// From the revision that the Tasks will run.
    pub fn new(
        owner: &Owner,
        revision: &JobRevision,
        requests: &Resources,
        queue: &str,
        priority: i32,
        completions: u32,
    ) -> Self {
        let template = &revision.spec.template;
        let meta = template.metadata.as_ref();
        let mut labels = meta.and_then(|m| m.labels.clone()).unwrap_or_default();
        labels.insert(LABEL_JOB.into(), owner.name.clone());
        labels.insert(LABEL_JOB_UID.into(), owner.uid.clone());
        let mut annotations = meta.and_then(|m| m.annotations.clone()).unwrap_or_default();
        annotations.insert(ANNOTATION_COMPLETIONS.into(), completions.to_string());
        let metadata = json!({
            "namespace": owner.namespace, "labels": labels, "annotations": annotations,
            "finalizers": [FINALIZER_LEDGER], "ownerReferences": owner.reference(),
        });
        let mut spec = json!({
            "jobName": owner.name, "jobUid": owner.uid, "queue": queue, "priority": priority,
            "requests": requests, "revision": revision.metadata.name,
        });
        if let Some(ports) = &template.spec.ports {
            spec["ports"] = json!(ports);
        }
        let object = |value: Value| match value {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        Mould {
            metadata: object(metadata),
            spec: object(spec),
        }
    }

    /// A Task.
    pub fn task(&self, name: &str, index: u32, attempt: u32, node: &str, epoch: i64) -> Value {
        let (mut metadata, mut spec) = (self.metadata.clone(), self.spec.clone());
        metadata.insert("name".into(), name.into());
        metadata["labels"][LABEL_INDEX] = index.to_string().into();
        spec.insert("index".into(), index.into());
        spec.insert("attempt".into(), attempt.into());
        spec.insert("epoch".into(), epoch.into());
        spec.insert("nodeName".into(), node.into());
        json!({"apiVersion": API_VERSION, "kind": "Task", "metadata": metadata, "spec": spec})
    }
}

/// The bulk item that writes a ledger chunk.
pub fn ledger_item(owner: &Owner, write: &ChunkWrite) -> Value {
    let name = ledger_name(&owner.name, &owner.uid, write.chunk);
    let mut spec = json!({
        "succeeded": write.succeeded, "failed": write.failed,
        "attempts": write.attempts, "lastNodes": write.last_nodes,
    });
    match &write.version {
        Some(version) => {
            // A merge patch leaves what it does not name; null removes what an entry no longer has.
            for entry in spec["attempts"].as_object_mut().into_iter().flatten() {
                for field in ["notBeforeTime", "lastExitCode"] {
                    if entry.1.get(field).is_none() {
                        entry.1[field] = Value::Null;
                    }
                }
            }
            json!({
                "verb": "patch", "path": format!("{}/{name}", owner.collection("jobledgers")),
                "preconditions": {"resourceVersion": version}, "body": {"spec": spec},
            })
        }
        None => {
            spec["jobName"] = json!(owner.name);
            spec["jobUid"] = json!(owner.uid);
            spec["chunk"] = json!(write.chunk);
            json!({
                "verb": "create", "path": owner.collection("jobledgers"),
                "body": {
                    "apiVersion": API_VERSION, "kind": "JobLedger",
                    "metadata": {
                        "name": name, "namespace": owner.namespace,
                        "labels": {LABEL_JOB: owner.name, LABEL_JOB_UID: owner.uid},
                        "ownerReferences": owner.reference(),
                    },
                    "spec": spec,
                },
            })
        }
    }
}
