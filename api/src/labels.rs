//! Syntax of names, label keys and label values, with the reasons that Kubernetes users know.

const LABEL_NAME_MAX: usize = 63;
const PREFIX_MAX: usize = 253;

fn alnum(b: u8) -> bool {
    b.is_ascii_alphanumeric()
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// RFC 1123 label: at most 63 lower-case letters, digits and dashes.
pub fn check_dns_label(name: &str) -> Result<(), String> {
    if name.len() > LABEL_NAME_MAX {
        return Err(format!("must be no more than {LABEL_NAME_MAX} bytes"));
    }
    let b = name.as_bytes();
    if b.is_empty()
        || !b.iter().all(|c| lower(*c) || *c == b'-')
        || !lower(b[0])
        || !lower(b[b.len() - 1])
    {
        return Err("a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')".into());
    }
    Ok(())
}

/// RFC 1123 subdomain of at most `max` characters: labels joined by dots.
pub fn check_dns_subdomain(name: &str, max: usize) -> Result<(), String> {
    if name.len() > max {
        return Err(format!("must be no more than {max} bytes"));
    }
    let part_ok = |p: &str| {
        let b = p.as_bytes();
        !b.is_empty()
            && b.iter().all(|c| lower(*c) || *c == b'-')
            && lower(b[0])
            && lower(b[b.len() - 1])
    };
    if !name.split('.').all(part_ok) {
        return Err("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".into());
    }
    Ok(())
}

fn name_part_ok(name: &str) -> bool {
    let b = name.as_bytes();
    !b.is_empty()
        && b.iter().all(|c| alnum(*c) || b"-_.".contains(c))
        && alnum(b[0])
        && alnum(b[b.len() - 1])
}

/// Key of a label, annotation or taint, or name of a finalizer or resource: `[prefix/]name`.
pub fn check_key(key: &str) -> Result<(), String> {
    let name = match key.split_once('/') {
        None => key,
        Some((prefix, name)) => {
            if prefix.is_empty() {
                return Err("prefix part must be non-empty".into());
            }
            check_dns_subdomain(prefix, PREFIX_MAX).map_err(|e| format!("prefix part {e}"))?;
            name
        }
    };
    if name.is_empty() {
        return Err("name part must be non-empty".into());
    }
    if name.len() > LABEL_NAME_MAX {
        return Err(format!(
            "name part must be no more than {LABEL_NAME_MAX} bytes"
        ));
    }
    if !name_part_ok(name) {
        return Err("name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')".into());
    }
    Ok(())
}

/// Value of a label: empty, or at most 63 characters.
pub fn check_value(value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Ok(());
    }
    if value.len() > LABEL_NAME_MAX {
        return Err(format!("must be no more than {LABEL_NAME_MAX} bytes"));
    }
    if !name_part_ok(value) {
        return Err("a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "a-1.b", "0", &"x".repeat(253)] {
            assert_eq!(check_dns_subdomain(good, 253), Ok(()), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a.",
            "-a",
            "A",
            "ä",
            "a_b",
            "a/b",
            "a b",
            "\0",
            &"x".repeat(254),
        ] {
            assert!(check_dns_subdomain(bad, 253).is_err(), "{bad}");
        }
        assert!(check_dns_label("a.b").is_err());
        assert!(check_dns_label(&"x".repeat(64)).is_err());
    }

    #[test]
    fn keys_and_values() {
        for good in ["a", "x.io/Y_1", "nvidia.com/gpu"] {
            assert_eq!(check_key(good), Ok(()), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "A.io/x", "a b", "é"] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
        assert!(check_value("").is_ok() && check_value("A_b.c").is_ok());
        assert!(check_value("-a").is_err() && check_value("a b").is_err());
    }
}
