//! Figures as they come in, shown at once; at the end a JSON file and a table.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::client::percentile;
use crate::Result;
use crate::run::{command, quietly};

/// All figures, in the order in which they were first told.
pub(super) struct Report {
    sections: Vec<Section>,
    facts: Vec<(&'static str, String)>,
}

struct Section {
    name: String,
    figures: Vec<Figure>,
}

struct Figure {
    name: String,
    unit: String,
    goal: String,
    /// One a round.
    values: Vec<f64>,
    /// Least and greatest of single observations, where the value is a percentile of them.
    spread: Option<(f64, f64)>,
}

impl Figure {
    fn median(&self) -> f64 {
        let upper = percentile(&self.values, 0.5);
        if self.values.len() % 2 == 1 {
            return upper;
        }
        let below: Vec<f64> = self.values.iter().map(|value| -value).collect();
        (upper - percentile(&below, 0.5)) / 2.0
    }

    fn range(&self) -> (f64, f64) {
        self.spread.unwrap_or_else(|| {
            let least = self.values.iter().copied().fold(f64::INFINITY, f64::min);
            (least, self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
        })
    }
}

impl Report {
    pub(super) fn new(quick: bool, python: &Path) -> Self {
        let told = |command: &mut Command| quietly(command).map(|text| text.trim().to_owned()).unwrap_or_else(|_| "unknown".to_owned());
        let library = "import lightgbm, onnxruntime; print('LightGBM', lightgbm.__version__ + ', ONNX Runtime', onnxruntime.__version__)";
        let facts = vec![
            ("date", told(&mut command("date", &["-u", "+%Y-%m-%d %H:%M UTC"]))),
            ("machine", machine()),
            ("kernel", told(&mut command("uname", &["-sr"]))),
            ("source", told(&mut command("git", &["describe", "--always", "--dirty", "--abbrev=12"]))),
            ("control groups", groups()),
            ("compiler", told(&mut command("rustc", &["--version"]))),
            ("beside it", told(Command::new(python).args(["-c", library]))),
            ("size", if quick { "quick".to_owned() } else { "full".to_owned() }),
            ("load average at the start", load()),
        ];
        Self { sections: vec![], facts }
    }

    /// The last facts.
    pub(super) fn end(&mut self) {
        self.facts.push(("load average at the end", load()));
    }

    /// What follows belongs together.
    pub(super) fn section(&mut self, name: &str) {
        println!("\n{name} (load average {})", load());
        self.sections.push(Section { name: name.to_owned(), figures: vec![] });
    }

    /// A figure; told again, it is another round of the same.
    pub(super) fn add(&mut self, name: &str, unit: &str, goal: &str, value: f64) {
        println!("  {name}: {} {unit}", short(value));
        let Some(section) = self.sections.last_mut() else { return };
        match section.figures.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.values.push(value),
            None => section.figures.push(Figure {
                name: name.to_owned(),
                unit: unit.to_owned(),
                goal: goal.to_owned(),
                values: vec![value],
                spread: None,
            }),
        }
    }

    /// A figure that stands for many observations.
    pub(super) fn add_spread(&mut self, name: &str, unit: &str, goal: &str, value: f64, all: &[f64]) {
        self.add(name, unit, goal, value);
        let figure = self.sections.last_mut().and_then(|section| section.figures.iter_mut().find(|figure| figure.name == name));
        if let Some(figure) = figure {
            figure.spread = Some((percentile(all, 0.0), percentile(all, 1.0)));
        }
    }

    /// The table for people.
    pub(super) fn markdown(&self) -> String {
        let mut text = "# Figures\n\nMade by `cargo xtask bench`. TLS, identity, policy, quota, audit and a sandbox a tenant are on in all of it unless a line\nsays otherwise. Medians over rounds, with the least and the greatest. CPU figures and ratios can be compared between runs; wall times are those of\na machine that did other things as well.\n\n".to_owned();
        for (name, value) in &self.facts {
            let _ = writeln!(text, "- {name}: {value}");
        }
        for section in &self.sections {
            let _ = write!(text, "\n## {}\n\n| what | median | least to greatest | goal |\n|---|---:|---:|---:|\n", section.name);
            for figure in &section.figures {
                let (least, greatest) = figure.range();
                let range = if least == greatest { String::new() } else { format!("{} to {}", short(least), short(greatest)) };
                let _ = writeln!(text, "| {} | {} {} | {range} | {} |", figure.name, short(figure.median()), figure.unit, figure.goal);
            }
        }
        text
    }

    fn json(&self) -> Value {
        let figure = |figure: &Figure| {
            let (least, greatest) = figure.range();
            json!({
                "name": figure.name, "unit": figure.unit, "goal": figure.goal, "median": figure.median(),
                "least": least, "greatest": greatest, "rounds": figure.values,
            })
        };
        let section = |section: &Section| json!({"name": section.name, "figures": section.figures.iter().map(figure).collect::<Vec<_>>()});
        let facts: serde_json::Map<String, Value> = self.facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({"facts": facts, "sections": self.sections.iter().map(section).collect::<Vec<_>>()})
    }

    /// Writes both files.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let failed = |error: std::io::Error| format!("cannot write `{}`: {error}", folder.display());
        fs::create_dir_all(folder).map_err(failed)?;
        fs::write(folder.join("latest.json"), format!("{:#}\n", self.json())).map_err(failed)?;
        fs::write(folder.join("latest.md"), self.markdown()).map_err(failed)?;
        println!("written to {}", folder.display());
        Ok(())
    }
}

fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default().trim_start_matches(['\t', ' ', ':']);
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory: f64 = memory.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default();
    format!("{model}, {cores} cores, {:.0} GiB", memory / (1 << 20) as f64)
}

/// Whether the kernel was told that groups change often, on which cold starts depend (docs/operation.md).
fn groups() -> String {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let favoured = mounts.lines().any(|line| line.contains("favordynmods"));
    if favoured { "mounted with favordynmods".to_owned() } else { "mounted without favordynmods".to_owned() }
}

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Three digits that matter.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => {
            let digits = format!("{:.0}", value.abs());
            let mut text = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at) % 3 == 0 {
                    text.push(',');
                }
                text.push(digit);
            }
            if value < 0.0 { format!("-{text}") } else { text }
        }
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        let table = [(1234567.8, "1,234,568"), (-1234.0, "-1,234"), (123.4, "123"), (12.34, "12.3"), (0.0512, "0.0512"), (0.5, "0.500")];
        for (value, expected) in table {
            assert_eq!(short(value), expected);
        }
    }

    #[test]
    fn rounds_are_summed_up() {
        let mut report = Report { sections: vec![], facts: vec![] };
        report.section("s");
        [3.0, 1.0, 2.0, 10.0].iter().for_each(|value| report.add("f", "ms", "≤ 5", *value));
        assert!(report.markdown().contains("| f | 2.50 ms | 1.00 to 10.0 | ≤ 5 |"), "{}", report.markdown());
        assert_eq!(report.json().pointer("/sections/0/figures/0/rounds/3"), Some(&json!(10.0)));
    }
}
