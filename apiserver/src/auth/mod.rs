//! Who calls, and whether they may.

pub mod authn;
pub mod authorizer;
pub mod csr;
pub mod pki;

use std::sync::Arc;

/// An authenticated caller. Put into the request's extensions as `Arc<User>` by whoever
/// authenticated it: the TLS accept loop, the token check, or the in-process client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Name, for example `system:node:n1`.
    pub name: String,
    /// Groups, without the implied `system:authenticated`.
    pub groups: Vec<String>,
}

impl User {
    /// A caller with these groups.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Arc<Self> {
        Arc::new(User {
            name: name.into(),
            groups: groups.iter().map(|g| g.to_string()).collect(),
        })
    }

    /// Whether the caller is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What is asked for, in the words of an access review.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// get, list, watch, create, update, patch, delete, deletecollection; for a path that is no resource the lower-case method.
    pub verb: &'static str,
    /// API group; empty for core.
    pub group: String,
    /// Plural; empty when the path is no resource.
    pub resource: String,
    /// status, scale, log ...; empty without.
    pub subresource: String,
    /// Namespace; empty for cluster scope or all namespaces.
    pub namespace: String,
    /// Object name; empty for a collection.
    pub name: String,
    /// `spec.nodeName` of the field selector of a list or watch, where one is given.
    pub selected_node: Option<String>,
    /// The path of a request that is no resource.
    pub path: String,
}
