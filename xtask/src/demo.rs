//! `cargo xtask demo`: a real service in a temporary folder, two tenants with real data, the whole main job, and then the proofs. All of
//! it goes through the `insula` program and HTTPS, as any user would; what must be compared byte for byte goes through curl.

mod service;
mod shared;
mod story;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::run::cargo;
use crate::{Result, setup};

/// Beginning of the names of our folders; the process id follows.
const FOLDER: &str = "insula-demo-";

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    keep: bool,
    json: bool,
    /// On PostgreSQL and S3 instead of the data folder.
    shared: bool,
}

impl Options {
    /// From the words after `demo`.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--keep" => options.keep = true,
                "--json" => options.json = true,
                "--stores" => match words.next().copied() {
                    Some("shared") => options.shared = true,
                    Some("embedded") => options.shared = false,
                    _ => return Err("`--stores` is followed by `embedded` or `shared`".to_owned()),
                },
                other => return Err(format!("`demo` knows --keep, --json and --stores, not `{other}`")),
            }
        }
        Ok(options)
    }
}

/// The programs and the engine.
pub(crate) struct Programs {
    insula: PathBuf,
    cell: PathBuf,
    engine: PathBuf,
}

/// One line of the result.
struct Line {
    step: &'static str,
    seen: Result<String>,
    took: Duration,
}

/// Builds, plays, shows. True when every step held.
pub(crate) fn demo(options: &Options) -> Result<bool> {
    let engine = setup::for_demo()?;
    if options.shared {
        crate::servers::Servers::prepare()?;
    }
    println!("building the service (the first time takes some minutes)");
    let (insula, cell) = build()?;
    setup::engine_beside(&engine, &insula)?;
    let programs = Programs { insula, cell, engine };
    let folder = folder()?;
    let began = Instant::now();
    let lines = play(&programs, &folder, options.shared)?;
    let took = began.elapsed();
    let held = lines.iter().all(|line| line.seen.is_ok());
    show(&lines, took, held);
    if options.json {
        println!("{}", as_json(&lines, took, held));
    }
    if options.keep || !held {
        println!("the files of this run, with the service's log, are in {}", folder.display());
    } else {
        fs::remove_dir_all(&folder).map_err(|error| format!("cannot remove `{}`: {error}", folder.display()))?;
    }
    Ok(held)
}

/// Plays step after step until one does not hold.
fn play(programs: &Programs, folder: &Path, shared: bool) -> Result<Vec<Line>> {
    let stores = if shared { Some(shared::Shared::start(folder)?) } else { None };
    let steps = story::steps(shared);
    let mut story = story::Story::new(programs, folder, stores);
    let mut lines = Vec::new();
    for (at, (step, act)) in steps.iter().enumerate() {
        println!("\n[{}/{}] {step}", at + 1, steps.len());
        let began = Instant::now();
        let seen = act(&mut story);
        let took = began.elapsed();
        match &seen {
            Ok(text) => println!("      {text} ({:.1} s)", took.as_secs_f64()),
            Err(error) => println!("      FAILED: {error}"),
        }
        let held = seen.is_ok();
        lines.push(Line { step, seen, took });
        if !held {
            break;
        }
    }
    lines.extend(steps.iter().skip(lines.len()).map(|(step, _)| Line { step, seen: Err("not reached".to_owned()), took: Duration::ZERO }));
    story.end()?;
    Ok(lines)
}

/// Builds both programs and learns where cargo put them.
fn build() -> Result<(PathBuf, PathBuf)> {
    let mut build =
        cargo(&["build", "--locked", "--package", "insula", "--package", "insula-cell", "--message-format", "json-render-diagnostics"]);
    let output = build.stderr(Stdio::inherit()).output().map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err("the build failed".to_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages = || text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = |name: &str| {
        let built = messages()
            .find(|message| message.pointer("/target/name").and_then(Value::as_str) == Some(name) && message["executable"].is_string());
        let path = built.as_ref().and_then(|message| message["executable"].as_str()).map(PathBuf::from);
        path.ok_or_else(|| format!("the build made no `{name}`"))
    };
    Ok((program("insula")?, program("insula-cell")?))
}

/// A fresh private folder. Those of earlier runs that were interrupted go.
fn folder() -> Result<PathBuf> {
    let base = std::env::temp_dir();
    for entry in fs::read_dir(&base).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let of_the_dead =
            name.strip_prefix(FOLDER).and_then(|id| id.parse::<u32>().ok()).is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists());
        if of_the_dead {
            // Another user's, perhaps; then it stays.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let folder = base.join(format!("{FOLDER}{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&folder).map_err(|error| format!("cannot make `{}`: {error}", folder.display()))?;
    Ok(folder)
}

fn show(lines: &[Line], took: Duration, held: bool) {
    let rule = "-".repeat(120);
    println!("\n{rule}");
    println!("{:<36} {:<76} {:>6}", "step", "what was seen", "time");
    println!("{rule}");
    for line in lines {
        let (mark, text) = match &line.seen {
            Ok(text) => ("  ", text),
            Err(error) => ("! ", error),
        };
        let mut words = wrapped(text, 74).into_iter();
        println!("{:<36} {mark}{:<74} {:>5.1}s", line.step, words.next().unwrap_or_default(), line.took.as_secs_f64());
        words.for_each(|more| println!("{:<36}   {more}", ""));
    }
    println!("{rule}");
    let verdict = if held { "every step held" } else { "NOT every step held" };
    println!("{verdict}, in {:.0} s", took.as_secs_f64());
}

/// Lines of at most `width` characters, broken between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let room = lines.last().map_or(0, |line| line.chars().count());
        if room > 0 && room + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

fn as_json(lines: &[Line], took: Duration, held: bool) -> Value {
    let steps: Vec<Value> = lines
        .iter()
        .map(|line| {
            let text = line.seen.as_ref().unwrap_or_else(|error| error);
            json!({"step": line.step, "held": line.seen.is_ok(), "seen": text, "seconds": line.took.as_secs_f64()})
        })
        .collect();
    json!({"held": held, "seconds": took.as_secs_f64(), "steps": steps})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        assert_eq!(Options::parse(&["--json", "--keep"]), Ok(Options { keep: true, json: true, shared: false }));
        assert_eq!(Options::parse(&["--stores", "shared"]), Ok(Options { shared: true, ..Options::default() }));
        assert!(Options::parse(&["--stores"]).is_err());
        assert!(Options::parse(&["--fast"]).is_err());
    }

    #[test]
    fn long_texts_are_wrapped() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("", 7), [""]);
    }

    #[test]
    fn one_failed_step_fails_all() {
        let line = |seen| Line { step: "s", seen, took: Duration::ZERO };
        let shown = as_json(&[line(Ok("fine".to_owned())), line(Err("not".to_owned()))], Duration::ZERO, false);
        assert_eq!(shown["steps"][1]["held"], false);
        assert_eq!(shown["held"], false);
    }
}
