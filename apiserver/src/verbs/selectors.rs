//! Label and field selectors of a request, bound to a kind's indexed fields.

use rota_api::selector::{FieldSelector, LabelSelector};

use crate::cache::Interest;
use crate::error::{ApiError, ApiResult};
use crate::objects::Object;
use crate::request::Query;
use crate::server::Served;

/// Both selectors, ready to be asked about cached objects.
pub struct Selectors {
    labels: LabelSelector,
    fields: Vec<Term>,
    /// `metadata.name` that must match exactly, if one is given.
    pub name: Option<String>,
    /// `spec.nodeName` that must match exactly, if one is given.
    pub node: Option<String>,
    empty: bool,
}

struct Term {
    place: Place,
    value: String,
    equal: bool,
}

enum Place {
    Name,
    Namespace,
    Field(usize),
}

impl Selectors {
    /// From the query; 400 with what is selectable when a field is not.
    pub fn parse(served: &Served, query: &Query) -> ApiResult<Self> {
        let label_text = query.get("labelSelector").unwrap_or("");
        let labels = LabelSelector::parse(label_text)
            .map_err(|e| ApiError::bad_request(format!("unable to parse labelSelector: {e}")))?;
        let field_text = query.get("fieldSelector").unwrap_or("");
        let parsed = FieldSelector::parse(field_text)
            .map_err(|e| ApiError::bad_request(format!("unable to parse fieldSelector: {e}")))?;
        let mut fields = Vec::new();
        let (mut name, mut node) = (None, None);
        for term in parsed.terms() {
            let place = match term.field.as_str() {
                "metadata.name" => Place::Name,
                "metadata.namespace" => Place::Namespace,
                other => match served.fields.iter().position(|f| f == other) {
                    Some(i) => Place::Field(i),
                    None => {
                        let mut known = vec!["metadata.name", "metadata.namespace"];
                        known.extend(served.fields.iter().map(String::as_str));
                        return Err(ApiError::bad_request(format!(
                            "field label not supported: {other}; {} can be selected by {}",
                            served.kind.plural,
                            known.join(", ")
                        )));
                    }
                },
            };
            if term.equal && matches!(place, Place::Name) {
                name = Some(term.value.clone());
            }
            if term.equal && term.field == "spec.nodeName" {
                node = Some(term.value.clone());
            }
            fields.push(Term {
                place,
                value: term.value.clone(),
                equal: term.equal,
            });
        }
        let empty = label_text.is_empty() && fields.is_empty();
        Ok(Selectors {
            labels,
            fields,
            name,
            node,
            empty,
        })
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// Whether an object is chosen.
    pub fn matches(&self, object: &Object) -> bool {
        self.empty
            || (self.fields.iter().all(|t| {
                let is = match t.place {
                    Place::Name => object.name(),
                    Place::Namespace => object.namespace(),
                    Place::Field(i) => &object.fields[i],
                };
                (is == t.value) == t.equal
            }) && self.labels.matches(object))
    }

    /// The narrowest queue that a watch with these selectors can use.
    pub fn interest(&self, served: &Served, namespace: &str) -> Interest {
        if let Some(name) = &self.name
            && !(served.kind.namespaced && namespace.is_empty())
        {
            return Interest::Key(served.cache_key(namespace, name).into());
        }
        match &self.node {
            Some(node) => Interest::Field(node.as_str().into()),
            None => Interest::All,
        }
    }
}

impl rota_api::selector::Labels for Object {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.label(key)
    }
}
