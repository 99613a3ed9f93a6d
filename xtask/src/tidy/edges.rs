//! The crates' edges: who may know whom, and which heavy or telling dependencies stay where they belong.

use serde_json::Value;

use crate::Result;
use crate::run::{cargo, quietly};

/// Each of our crates with those it may depend on. What is not here must not exist.
const EDGES: &[(&str, &[&str])] = &[
    ("tlog", &[]),
    ("wire", &[]),
    ("jail", &[]),
    ("tenancy", &["tlog"]),
    ("platform", &["tenancy", "jail", "wire"]),
    ("server", &["platform"]),
    ("insula", &["server"]),
    ("insula-cell", &["wire", "jail"]),
    ("xtask", &[]),
];

/// Dependencies that only these may have, because they are what the others must know nothing of.
const KEPT: &[(&str, &[&str])] = &[
    ("hyper", &["server"]),
    ("axum", &["server"]),
    // The kernel speaks no protocol of ours; an object store can only be reached and managed over its own.
    ("http", &["server", "tenancy"]),
    ("reqwest", &["insula", "server", "tenancy"]),
    ("sqlx", &["tenancy"]),
    ("libsqlite3-sys", &["tenancy"]),
    ("cedar-policy", &["tenancy"]),
    ("jsonwebtoken", &["tenancy"]),
    ("ort", &["insula-cell"]),
    ("parquet", &["insula-cell"]),
    ("arrow-array", &["insula-cell"]),
    ("seccompiler", &["jail"]),
    ("landlock", &["jail"]),
];

pub(super) fn check() -> Result<Vec<String>> {
    let text = quietly(&mut cargo(&["metadata", "--no-deps", "--format-version", "1", "--offline"]))?;
    let metadata: Value = serde_json::from_str(&text).map_err(|error| format!("cargo metadata: {error}"))?;
    Ok(problems(&metadata))
}

fn problems(metadata: &Value) -> Vec<String> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let packages = metadata.get("packages").and_then(Value::as_array).cloned().unwrap_or_default();
    let names: Vec<String> = packages.iter().map(|package| text(package, "name")).collect();
    let mut problems = Vec::new();
    for package in &packages {
        let name = text(package, "name");
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == name) else {
            problems.push(format!("`{name}` is not in the list of crates in xtask/src/tidy/edges.rs"));
            continue;
        };
        for dependency in package.get("dependencies").and_then(Value::as_array).into_iter().flatten() {
            let to = text(dependency, "name");
            let for_tests = dependency.get("kind").and_then(Value::as_str) == Some("dev");
            if names.contains(&to) && !allowed.contains(&to.as_str()) {
                problems.push(format!("`{name}` depends on `{to}`, which the design does not allow"));
            }
            // A test may look from outside, with the tools of an outsider.
            if let Some((_, keepers)) = KEPT.iter().find(|(kept, _)| *kept == to)
                && !for_tests
                && !keepers.contains(&name.as_str())
            {
                problems.push(format!("`{name}` depends on `{to}`, which belongs to {keepers:?} alone"));
            }
        }
    }
    let gone = EDGES.iter().filter(|(known, _)| !names.iter().any(|name| name == known));
    problems.extend(gone.map(|(known, _)| format!("`{known}` is listed and does not exist")));
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata(extra: &[(&str, &str, Option<&str>)]) -> Value {
        let packages: Vec<Value> = EDGES
            .iter()
            .map(|(name, allowed)| {
                let own = allowed.iter().map(|to| json!({"name": to, "kind": null}));
                let more = extra.iter().filter(|(from, ..)| from == name).map(|(_, to, kind)| json!({"name": to, "kind": kind}));
                json!({"name": name, "dependencies": own.chain(more).collect::<Vec<_>>()})
            })
            .collect();
        json!({ "packages": packages })
    }

    #[test]
    fn the_design_holds_and_anything_else_does_not() {
        assert_eq!(problems(&metadata(&[])), Vec::<String>::new());
        let wrong = [
            ("insula", "tenancy", None),
            ("server", "jail", None),
            ("tenancy", "wire", None),
            ("platform", "insula-cell", Some("dev")),
            ("tlog", "wire", Some("build")),
            ("platform", "sqlx", None),
            ("tenancy", "hyper", None),
            ("server", "ort", None),
        ];
        for (from, to, kind) in wrong {
            assert_eq!(problems(&metadata(&[(from, to, kind)])).len(), 1, "{from} → {to}");
        }
        assert!(problems(&metadata(&[("tenancy", "reqwest", Some("dev"))])).is_empty());
        let mut more = metadata(&[]);
        more["packages"].as_array_mut().unwrap().push(json!({"name": "utils", "dependencies": []}));
        assert_eq!(problems(&more).len(), 1);
    }
}
