//! One item: what it asks for, whether the caller may, and the write that it amounts to.

use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::auth::Attributes;
use crate::body::Decoded;
use crate::error::{ApiError, ApiResult};
use crate::objects::Object;
use crate::request::{self, ResourcePath};
use crate::server::{Caller, Served, Server};
use crate::storage::{Done, Prepared};
use crate::verbs::create::{self, Template};
use crate::verbs::delete::{self, DeleteOptions};
use crate::verbs::update::{self, Part, Preconditions, Target};
use crate::verbs::{FieldValidation, WriteOptions};

const OPTIONS: WriteOptions = WriteOptions {
    dry_run: false,
    field_validation: FieldValidation::Warn,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Patch,
    Status,
    Delete,
}

/// What is done to what, after the caller was found to be allowed to do it.
pub(super) struct Place {
    pub verb: Verb,
    pub served: Arc<Served>,
    pub path: ResourcePath,
}

/// Finds the places of one request's items. Creations in one collection share theirs.
pub(super) struct Places<'a> {
    server: &'a Server,
    caller: &'a Caller,
    last: Option<(String, Arc<Place>)>,
}

impl<'a> Places<'a> {
    pub(super) fn new(server: &'a Server, caller: &'a Caller) -> Self {
        Places {
            server,
            caller,
            last: None,
        }
    }

    fn find(&mut self, verb: Verb, text: &str) -> ApiResult<Arc<Place>> {
        if let Some((known, place)) = &self.last
            && place.verb == verb
            && known == text
        {
            return Ok(place.clone());
        }
        let place = Arc::new(place(self.server, self.caller, verb, text)?);
        self.last = Some((text.to_string(), place.clone()));
        Ok(place)
    }
}

fn place(server: &Server, caller: &Caller, verb: Verb, text: &str) -> ApiResult<Place> {
    let request::Target::Resource(path) = request::target(text)? else {
        return Err(ApiError::no_resource());
    };
    let served = server
        .find(&path.group, &path.version, &path.plural)
        .ok_or_else(ApiError::no_resource)?
        .clone();
    if path.name.is_empty() != (verb == Verb::Create) || !path.subresource.is_empty() {
        return Err(ApiError::bad_request(
            "create takes the path of a collection, the other verbs that of an object",
        ));
    }
    if served.kind.namespaced == path.namespace.is_empty() {
        return Err(ApiError::no_resource());
    }
    if verb == Verb::Status && !served.kind.status {
        return Err(ApiError::no_resource());
    }
    server.authorize(
        &caller.user,
        &Attributes {
            verb: match verb {
                Verb::Create => "create",
                Verb::Patch | Verb::Status => "patch",
                Verb::Delete => "delete",
            },
            group: path.group.clone(),
            resource: path.plural.clone(),
            subresource: if verb == Verb::Status {
                "status".into()
            } else {
                String::new()
            },
            namespace: path.namespace.clone(),
            name: path.name.clone(),
            ..Attributes::default()
        },
    )?;
    Ok(Place { verb, served, path })
}

/// One item as read.
pub(super) struct Item {
    pub place: Arc<Place>,
    preconditions: Preconditions,
    drop_finalizers: Vec<String>,
    body: Value,
}

impl Item {
    pub(super) fn read(places: &mut Places, raw: &RawValue) -> ApiResult<Self> {
        let Value::Object(mut item) = crate::body::parse_text(raw.get(), "the item")?.value else {
            return Err(ApiError::bad_request("an item must be an object"));
        };
        let verb = match item.get("verb").and_then(Value::as_str) {
            Some("create") => Verb::Create,
            Some("patch") => Verb::Patch,
            Some("status") => Verb::Status,
            Some("delete") => Verb::Delete,
            other => {
                return Err(ApiError::bad_request(format!(
                    "verb {other:?} is none of create, patch, status, delete"
                )));
            }
        };
        let text = item
            .get("path")
            .and_then(Value::as_str)
            .ok_or_else(|| ApiError::bad_request("an item needs a path"))?;
        let place = places.find(verb, text)?;
        let given = item.get("preconditions").unwrap_or(&Value::Null);
        let string = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(String::from);
        Ok(Item {
            place,
            preconditions: Preconditions {
                uid: string(&given["uid"]),
                resource_version: string(&given["resourceVersion"]),
            },
            drop_finalizers: item
                .get("dropFinalizers")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|f| f.as_str().map(String::from))
                .collect(),
            body: item.remove("body").unwrap_or(Value::Null),
        })
    }

    /// The object to be created, checked; takes the body out of the item.
    pub(super) fn template(&mut self, caller: &Caller) -> ApiResult<Template> {
        let (served, path) = (&self.place.served, &self.place.path);
        let mut value = std::mem::take(&mut self.body);
        crate::body::check_kind(&mut value, &served.kind)?;
        let body = Decoded {
            value,
            duplicates: Vec::new(),
        };
        Template::new(caller, served, &path.namespace, body, OPTIONS)
    }

    fn delete_options(&self) -> DeleteOptions {
        DeleteOptions {
            preconditions: self.preconditions.clone(),
            drop_finalizers: self.drop_finalizers.clone(),
            ..DeleteOptions::default()
        }
    }

    /// The write on an object that exists.
    pub(super) fn prepare(&self, caller: &Caller, object: &Arc<Object>) -> ApiResult<Prepared> {
        let (served, path) = (&*self.place.served, &self.place.path);
        let name = path.name.as_str();
        if self.place.verb == Verb::Delete {
            return delete::prepare(
                served,
                &path.namespace,
                name,
                object,
                &self.delete_options(),
            );
        }
        let current = served.shown(object);
        self.preconditions
            .check(served, name, &current, object.version)?;
        if !self.body.is_object() {
            return Err(ApiError::bad_request(
                "the body of a patch or status item must be a merge patch object",
            ));
        }
        let mut wanted = current.clone();
        json_patch::merge(&mut wanted, &self.body);
        let target = Target {
            served,
            namespace: &path.namespace,
            name,
            part: if self.place.verb == Verb::Status {
                Part::Status
            } else {
                Part::Main
            },
        };
        update::prepare(
            caller,
            &target,
            object,
            &current,
            wanted,
            Vec::new(),
            OPTIONS,
        )
    }

    /// Does the item by itself, with all the patience that a request of its own would have.
    pub(super) async fn run(mut self, server: &Server, caller: &Caller) -> ApiResult<Done> {
        let place = self.place.clone();
        let (served, path) = (&*place.served, &place.path);
        match place.verb {
            Verb::Create => {
                let template = self.template(caller)?;
                create::commit(server, caller, served, &path.namespace, template, false).await
            }
            Verb::Patch | Verb::Status | Verb::Delete => {
                server
                    .commit_change(
                        caller,
                        served,
                        &path.namespace,
                        &path.name,
                        false,
                        |object| self.prepare(caller, object),
                    )
                    .await
            }
        }
    }
}
