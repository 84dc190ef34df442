//! Request bodies of a wanted size.

pub(super) fn configmap(name: &str, bytes: usize) -> String {
    let head = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"fill":""#
    );
    fill(head, "\"}}", bytes)
}

pub(super) fn task(namespace: &str, name: &str, bytes: usize) -> String {
    let head = format!(
        concat!(
            r#"{{"apiVersion":"rota.dev/v1","kind":"Task","metadata":{{"name":"{name}","namespace":"{namespace}","#,
            r#""labels":{{"rota.dev/job":"bench","rota.dev/job-uid":"00000000-0000-0000-0000-000000000000"}},"#,
            r#""annotations":{{"fill":""#
        ),
        name = name,
        namespace = namespace
    );
    let tail = concat!(
        r#""}},"spec":{"jobName":"bench","jobUid":"00000000-0000-0000-0000-000000000000","index":0,"attempt":0,"#,
        r#""epoch":0,"nodeName":"bench-none","queue":"default","priority":0,"#,
        r#""requests":{"cpu":"100m","memory":"64Mi"},"revision":"bench"}}"#
    );
    fill(head, tail, bytes)
}

fn fill(mut head: String, tail: &str, bytes: usize) -> String {
    let room = bytes.saturating_sub(head.len() + tail.len());
    head.extend(std::iter::repeat_n('x', room));
    head.push_str(tail);
    head
}

pub(super) fn bulk(collection: &str, items: &[String]) -> String {
    let mut body = String::from(r#"{"atomic":false,"answer":"Version","items":["#);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            body.push(',');
        }
        body.push_str(&format!(
            r#"{{"verb":"create","path":"{collection}","body":{item}}}"#
        ));
    }
    body.push_str("]}");
    body
}
