//! Rules about documents: what they name exists, and what must be documented is.

use std::collections::BTreeSet;

use super::File;
use crate::root;

/// Documents that a newcomer looks for.
const PRESENT: [&str; 9] = [
    "README.md",
    "ARCHITECTURE.md",
    "DESIGN.md",
    "SECURITY.md",
    "GLOSSARY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "docs/errors.md",
];
/// Documents whose named paths must exist.
const NAMING: [&str; 6] = ["README.md", "ARCHITECTURE.md", "DESIGN.md", "SECURITY.md", "GLOSSARY.md", "CONTRIBUTING.md"];
/// Folders that paths begin with.
const FOLDERS: [&str; 7] = ["crates/", "docs/", "policy/", "xtask/", "examples/", ".ci/", ".cargo/"];
/// Where the public error codes are.
const CODES_FILE: &str = "crates/server/src/error.rs";

pub(super) fn present(files: &[File]) -> Vec<String> {
    let there = |name: &&str| files.iter().any(|file| file.path == **name);
    PRESENT.iter().filter(|name| !there(name)).map(|name| format!("{name} is missing")).collect()
}

pub(super) fn paths(files: &[File]) -> Vec<String> {
    let exists = |path: &str| root().join(path).exists();
    files.iter().filter(|file| NAMING.contains(&file.path.as_str())).flat_map(|file| gone(file, exists)).collect()
}

fn gone(file: &File, exists: impl Fn(&str) -> bool) -> Vec<String> {
    // Between back-ticks, or the target of a link; what follows `#` or `:` is a place inside.
    let named = file.text.split(['`', '(', ')']).filter(|word| !word.contains([' ', '*', '{', '<', '…', '\n']));
    let named = named.filter_map(|word| word.split(['#', ':']).next()).filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder)));
    let unique: BTreeSet<&str> = named.collect();
    unique.into_iter().filter(|path| !exists(path)).map(|path| format!("{} names `{path}`, which does not exist", file.path)).collect()
}

pub(super) fn error_codes(files: &[File]) -> Vec<String> {
    let text = |path: &str| files.iter().find(|file| file.path == path).map_or("", |file| file.text.as_str());
    let codes: BTreeSet<&str> = codes(text(CODES_FILE)).collect();
    let documented: BTreeSet<&str> =
        text("docs/errors.md").lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    if codes.is_empty() {
        return vec![format!("no codes were found in {CODES_FILE}")];
    }
    let missing = codes.difference(&documented).map(|code| format!("`{code}` has no line"));
    missing.chain(documented.difference(&codes).map(|code| format!("`{code}` has a line and does not exist"))).collect()
}

/// First words of the table's lines, as in `("not_found", 404, "…"),`.
fn codes(text: &str) -> impl Iterator<Item = &str> {
    let table = text.lines().skip_while(|line| !line.contains("const CODES")).take_while(|line| !line.starts_with("];"));
    table.filter_map(|line| line.trim_start().strip_prefix("(\"")?.split('"').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_path_that_is_gone_is_named() {
        let text = "See `crates/a/src/lib.rs`, [errors](docs/errors.md#x), `crates/b:12`, `cargo run`, and `docs/*.md`.";
        let problems = gone(&file("README.md", text), |path| path == "docs/errors.md" || path == "crates/b");
        assert_eq!(problems, ["README.md names `crates/a/src/lib.rs`, which does not exist"]);
    }

    #[test]
    fn codes_are_compared_both_ways() {
        let code =
            file(CODES_FILE, "const CODES: &[X] = &[\n    (\"a\", 1, \"t\"),\n    (\"b\", 2, \"t\"),\n];\n    (\"c\", 3, \"no code\"),\n");
        let table = |lines: &str| file("docs/errors.md", lines);
        assert!(error_codes(&[file(CODES_FILE, &code.text), table("| `a` | 1 |\n| `b` | 2 |\n")]).is_empty());
        assert_eq!(
            error_codes(&[file(CODES_FILE, &code.text), table("| `a` | 1 |\n| `z` | 2 |\n")]),
            ["`b` has no line", "`z` has a line and does not exist"]
        );
        assert_eq!(error_codes(&[]).len(), 1);
    }

    #[test]
    fn missing_documents_are_named() {
        assert_eq!(present(&[]).len(), PRESENT.len());
    }
}
