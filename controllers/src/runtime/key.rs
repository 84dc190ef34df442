//! The name of an object inside its kind.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// `namespace/name`, or `name` for cluster-wide objects; cheap to clone, ordered by namespace, then name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// Key of an object; an empty namespace means cluster-wide.
    pub fn new(namespace: &str, name: &str) -> Self {
        if namespace.is_empty() {
            Key(name.into())
        } else {
            Key(format!("{namespace}/{name}").into())
        }
    }

    /// Key of the object that has this metadata.
    pub fn of(meta: &ObjectMeta) -> Self {
        Key::new(
            meta.namespace.as_deref().unwrap_or(""),
            meta.name.as_deref().unwrap_or(""),
        )
    }

    /// The namespace, empty for cluster-wide objects.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(ns, _)| ns)
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, name)| name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
