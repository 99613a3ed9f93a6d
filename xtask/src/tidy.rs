//! The rules that no compiler knows. Each is a function from the tree (or from one file) to what is wrong with it, so that a test can
//! show it a wrong one.

mod documents;
mod edges;
mod sources;

use std::fs;

use crate::run::{command, quietly};
use crate::{Result, root};

/// How many rules hold.
pub(crate) struct Report {
    pub(crate) held: u64,
    pub(crate) broken: u64,
}

/// One file of the repository.
pub(crate) struct File {
    /// From the repository's folder.
    pub(crate) path: String,
    /// What is in it; empty for what is no text.
    pub(crate) text: String,
}

/// Longest file that is looked into, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Says what is wrong; true when nothing is.
pub(crate) fn tidy() -> Result<bool> {
    let report = report()?;
    println!("{} rules hold, {} do not", report.held, report.broken);
    Ok(report.broken == 0)
}

/// Checks every rule and prints what breaks it.
pub(crate) fn report() -> Result<Report> {
    let files = files()?;
    let rules: [(&str, Vec<String>); 9] = [
        ("crates depend only along the edges of the design", edges::check()?),
        ("unsafe code lives in `jail` alone", each(&files, sources::unsafe_code)),
        ("files are short, or say why not", each(&files, sources::file_length)),
        ("functions are short, or say why not", each(&files, sources::function_length)),
        ("no crate or module is called after nothing", each(&files, sources::empty_name)),
        ("no path of a machine and no package registry's host is in the tree", each(&files, sources::machine)),
        ("paths that documents name exist", documents::paths(&files)),
        ("every document of the front page is there", documents::present(&files)),
        ("every public error code has its line in docs/errors.md", documents::error_codes(&files)),
    ];
    let mut report = Report { held: 0, broken: 0 };
    for (rule, problems) in rules {
        if problems.is_empty() {
            report.held += 1;
            continue;
        }
        report.broken += 1;
        println!("tidy: {rule}:");
        for problem in problems {
            println!("  {problem}");
        }
    }
    Ok(report)
}

fn each(files: &[File], rule: fn(&File) -> Vec<String>) -> Vec<String> {
    files.iter().flat_map(rule).collect()
}

/// What git knows, and what is new and not ignored.
fn files() -> Result<Vec<File>> {
    let list = quietly(&mut command("git", &["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    let paths =
        list.lines().filter(|path| fs::metadata(root().join(path)).is_ok_and(|facts| facts.is_file() && facts.len() <= FILE_BYTES_MAX));
    Ok(paths.map(|path| File { path: path.to_owned(), text: fs::read_to_string(root().join(path)).unwrap_or_default() }).collect())
}
