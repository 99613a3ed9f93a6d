//! Rules about a source file.

use super::File;

/// Longest file in lines.
const FILE_LINES_MAX: usize = 800;
/// Longest function in lines.
const FUNCTION_LINES_MAX: usize = 70;
/// A comment with these words gives the reason for what is longer.
const REASON: &str = "Long because";
/// Names that say nothing.
const EMPTY_NAMES: [&str; 6] = ["utils", "util", "common", "types", "helpers", "misc"];

pub(super) fn unsafe_code(file: &File) -> Vec<String> {
    if !file.path.ends_with(".rs") || file.path.starts_with("crates/jail/") {
        return Vec::new();
    }
    // Written in two parts so that this file does not find itself.
    let marks = [
        concat!("un", "safe {"),
        concat!("un", "safe fn"),
        concat!("un", "safe impl"),
        concat!("un", "safe extern"),
        concat!("allow(un", "safe_code"),
        concat!("expect(un", "safe_code"),
    ];
    found(file, |line| marks.iter().any(|mark| line.contains(mark)) && !line.trim_start().starts_with("//"), "unsafe code outside `jail`")
}

pub(super) fn file_length(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    if !file.path.ends_with(".rs") || lines <= FILE_LINES_MAX || file.text.contains(REASON) {
        return Vec::new();
    }
    vec![format!("{} has {lines} lines; split it, or give the reason in a comment with `{REASON}`", file.path)]
}

pub(super) fn function_length(file: &File) -> Vec<String> {
    // A table of cases may be as long as it has cases.
    let of_tests = file.path.contains("/tests/") || file.path.ends_with("tests.rs");
    if !file.path.ends_with(".rs") || of_tests {
        return Vec::new();
    }
    let lines: Vec<&str> = file.text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
    let mut problems = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line).filter(|_| !line.ends_with([';', '}'])) else { continue };
        let indent = line.len() - line.trim_start().len();
        // rustfmt puts the end of a function under its beginning.
        let is_end = |candidate: &&str| {
            let trimmed = candidate.trim_start();
            candidate.len() - trimmed.len() == indent && (trimmed == "}" || trimmed.ends_with(';'))
        };
        let Some(length) = lines.iter().skip(at + 1).position(is_end).map(|more| more + 2) else { continue };
        let explained = lines.iter().skip(at.saturating_sub(10)).take(length + 10).any(|line| line.contains(REASON));
        if length > FUNCTION_LINES_MAX && !explained {
            problems.push(format!(
                "{}:{} `{name}` has {length} lines; split it, or give the reason in a comment with `{REASON}`",
                file.path,
                at + 1
            ));
        }
    }
    problems
}

/// Name of the function that begins in this line.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        let word = rest.split([' ', '(']).next()?;
        match word {
            "fn" => return rest.strip_prefix("fn ")?.split(['(', '<']).next(),
            "pub" | "async" | "const" | "unsafe" | "extern" | "crate)" | "super)" | "\"C\"" => {
                rest = rest.get(word.len()..)?.trim_start_matches([' ', '('])
            }
            _ => return None,
        }
    }
}

pub(super) fn empty_name(file: &File) -> Vec<String> {
    let named = |part: &str| EMPTY_NAMES.contains(&part.trim_end_matches(".rs"));
    let bad = file.path.starts_with("crates/") && file.path.split('/').any(named);
    if bad { vec![format!("{}: say what it holds", file.path)] } else { Vec::new() }
}

pub(super) fn machine(file: &File) -> Vec<String> {
    if file.path == "Cargo.lock" {
        return Vec::new();
    }
    let marks = [
        concat!("/root", "/.c"),
        concat!("/wo", "rk/"),
        concat!("py", "pi.org"),
        concat!("python", "hosted.org"),
        concat!("index.crates", ".io"),
        concat!("static.crates", ".io"),
        concat!("registry.npm", "js.org"),
    ];
    found(file, |line| marks.iter().any(|mark| line.contains(mark)), "names a place of one machine or a registry's host")
}

fn found(file: &File, bad: impl Fn(&str) -> bool, what: &str) -> Vec<String> {
    let lines = file.text.lines().enumerate().filter(|(_, line)| bad(line));
    lines.map(|(at, line)| format!("{}:{}: {what}: {}", file.path, at + 1, line.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rule: fn(&File) -> Vec<String>, path: &str, text: &str) -> usize {
        rule(&File { path: path.to_owned(), text: text.to_owned() }).len()
    }

    #[test]
    fn unsafe_is_found_where_it_may_not_be() {
        let text = concat!("let x = un", "safe { y() };\n");
        assert_eq!(count(unsafe_code, "crates/server/src/a.rs", text), 1);
        assert_eq!(count(unsafe_code, "crates/jail/src/a.rs", text), 0);
        assert_eq!(count(unsafe_code, "docs/a.md", text), 0);
        let lint = concat!("#![allow(un", "safe_code)]\n");
        assert_eq!(count(unsafe_code, "crates/cell/src/main.rs", lint), 1);
    }

    #[test]
    fn length_needs_a_reason() {
        let long = "x\n".repeat(FILE_LINES_MAX + 1);
        assert_eq!(count(file_length, "a.rs", &long), 1);
        assert_eq!(count(file_length, "a.rs", &format!("// {REASON} it is one table.\n{long}")), 0);
        let function =
            |lines: usize| format!("    pub(crate) async fn f<T>(\n        a: T,\n    ) {{\n{}    }}\n", "        x;\n".repeat(lines));
        assert_eq!(count(function_length, "a.rs", &function(FUNCTION_LINES_MAX)), 1);
        assert_eq!(count(function_length, "a.rs", &function(FUNCTION_LINES_MAX - 4)), 0);
        assert_eq!(count(function_length, "a.rs", &format!("    // {REASON} it is a recipe.\n{}", function(FUNCTION_LINES_MAX))), 0);
        let declared = format!("    fn f();\n{}", "    fn g();\n".repeat(100));
        assert_eq!(count(function_length, "a.rs", &declared), 0);
    }

    #[test]
    fn names_and_places() {
        assert_eq!(count(empty_name, "crates/a/src/utils.rs", ""), 1);
        assert_eq!(count(empty_name, "crates/helpers/src/lib.rs", ""), 1);
        assert_eq!(count(empty_name, "crates/a/src/utilisation.rs", ""), 0);
        assert_eq!(count(machine, "README.md", concat!("see /root", "/.cache/x\n")), 1);
        assert_eq!(count(machine, "README.md", "see ~/.cache/x\n"), 0);
    }

    #[test]
    fn function_names() {
        for line in ["fn a() {", "    pub(crate) fn a<T>(", "pub async fn a(", "const fn a() {", "pub(super) const fn a() {"] {
            assert_eq!(function_name(line), Some("a"), "{line}");
        }
        for line in ["let f = |fn_| 3;", "// fn a()", "impl Fn for X {", "type F = fn(u8);"] {
            assert_eq!(function_name(line), None, "{line}");
        }
    }
}
