//! What the user named: `jobs`, `jobs,tasks`, `all`, `job/pi job/e`, `job pi e`.

use crate::discovery::{Discovery, Resource};
use crate::error::{CliError, Result};

/// One kind and the names asked for; none means all that the selectors match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Kind.
    pub resource: Resource,
    /// Names.
    pub names: Vec<String>,
}

/// Reads the positional arguments of get, describe, delete, wait.
pub fn targets(args: &[String], discovery: &Discovery) -> Result<Vec<Target>> {
    let Some(first) = args.first() else {
        return Err(CliError::new(
            "no kind named",
            format!(
                "name one, such as `jobs` or `job/NAME`; this server has: {}",
                discovery.names()
            ),
        ));
    };
    if args.iter().any(|a| a.contains('/')) {
        return slashed(args, discovery);
    }
    let names: Vec<String> = args[1..].to_vec();
    let mut out = Vec::new();
    for word in first.split(',').filter(|w| !w.is_empty()) {
        let category = discovery.category(word);
        if !category.is_empty() {
            if !names.is_empty() {
                return Err(CliError::new(
                    format!("{word:?} is a group of kinds, which cannot be combined with names"),
                    "name one kind, such as `job NAME`",
                ));
            }
            for r in category {
                push(&mut out, r, None);
            }
            continue;
        }
        let resource = discovery.resolve(word)?;
        push(&mut out, resource, None);
        for n in &names {
            push(&mut out, resource, Some(n));
        }
    }
    Ok(out)
}

fn slashed(args: &[String], discovery: &Discovery) -> Result<Vec<Target>> {
    let mut out = Vec::new();
    for a in args {
        match a.split_once('/') {
            Some((kind, name)) if !kind.is_empty() && !name.is_empty() && !name.contains('/') => {
                push(&mut out, discovery.resolve(kind)?, Some(name));
            }
            _ => {
                return Err(CliError::new(
                    format!("{a:?} is not KIND/NAME"),
                    "write all as KIND/NAME, or one kind and then its names",
                ));
            }
        }
    }
    Ok(out)
}

fn push(out: &mut Vec<Target>, resource: &Resource, name: Option<&str>) {
    let at = match out.iter().position(|t| t.resource == *resource) {
        Some(i) => i,
        None => {
            out.push(Target {
                resource: resource.clone(),
                names: Vec::new(),
            });
            out.len() - 1
        }
    };
    if let Some(n) = name
        && !out[at].names.iter().any(|have| have == n)
    {
        out[at].names.push(n.to_string());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn discovery() -> Discovery {
        let r = |plural: &str, singular: &str, categories: &[&str]| Resource {
            group: "rota.dev".into(),
            version: "v1".into(),
            plural: plural.into(),
            singular: singular.into(),
            categories: categories.iter().map(|s| s.to_string()).collect(),
            verbs: vec!["list".into()],
            ..Resource::default()
        };
        Discovery::from_resources(vec![
            r("jobs", "job", &["all"]),
            r("tasks", "task", &["all"]),
            r("queues", "queue", &[]),
        ])
    }

    fn read(args: &[&str]) -> Result<Vec<(String, Vec<String>)>> {
        let args: Vec<String> = args.iter().map(|s| s.to_string()).collect();
        Ok(targets(&args, &discovery())?
            .into_iter()
            .map(|t| (t.resource.plural, t.names))
            .collect())
    }

    #[test]
    fn all_forms_that_kubectl_knows() {
        let names = |n: &[&str]| n.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        assert_eq!(
            read(&["job", "a", "b"]).unwrap(),
            vec![("jobs".into(), names(&["a", "b"]))]
        );
        assert_eq!(
            read(&["job/a", "task/x", "job/b"]).unwrap(),
            vec![
                ("jobs".into(), names(&["a", "b"])),
                ("tasks".into(), names(&["x"]))
            ]
        );
        assert_eq!(read(&["jobs,queues"]).unwrap().len(), 2);
        assert_eq!(read(&["all"]).unwrap().len(), 2);
        assert!(read(&["all", "x"]).is_err());
        assert!(read(&["job/a", "b"]).is_err());
        assert!(read(&[]).is_err());
    }
}
