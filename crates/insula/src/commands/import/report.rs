//! What was found on both sides, what was written, and what differs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::api::{Answer, Refusal, Trouble};
use super::forms::Texts;
use crate::failure::{Class, Failure, Result};
use crate::output::Output;

/// Most differences that are told one by one.
const DIFFERENCES_MAX: usize = 1000;
/// Longest value that is repeated in a difference, in characters.
const VALUE_CHARS_MAX: usize = 80;

/// What comes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Experiment,
    ExperimentTag,
    Run,
    Param,
    Tag,
    Point,
    Link,
    LoggedModel,
    LoggedModelText,
    LoggedModelPoint,
    Artifact,
    Model,
    ModelTag,
    Alias,
    Version,
    VersionTag,
}

impl Kind {
    const ALL: [Self; 16] = [
        Self::Experiment,
        Self::ExperimentTag,
        Self::Run,
        Self::Param,
        Self::Tag,
        Self::Point,
        Self::Link,
        Self::LoggedModel,
        Self::LoggedModelText,
        Self::LoggedModelPoint,
        Self::Artifact,
        Self::Model,
        Self::ModelTag,
        Self::Alias,
        Self::Version,
        Self::VersionTag,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Experiment => "experiments",
            Self::ExperimentTag => "experiment tags",
            Self::Run => "runs",
            Self::Param => "params",
            Self::Tag => "run tags",
            Self::Point => "metric points",
            Self::Link => "inputs and outputs",
            Self::LoggedModel => "logged models",
            Self::LoggedModelText => "logged model params and tags",
            Self::LoggedModelPoint => "logged model metrics",
            Self::Artifact => "artifacts",
            Self::Model => "registered models",
            Self::ModelTag => "registered model tags",
            Self::Alias => "aliases",
            Self::Version => "versions",
            Self::VersionTag => "version tags",
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    source: u64,
    target: u64,
    written: u64,
}

/// One thing that is not the same on both sides.
struct Difference {
    kind: Kind,
    of: String,
    name: String,
    what: String,
}

/// The whole of it.
#[derive(Default)]
pub(crate) struct Report {
    counts: BTreeMap<Kind, Count>,
    differences: Vec<Difference>,
    more: u64,
}

impl Report {
    pub(crate) fn source(&mut self, kind: Kind, count: usize) {
        self.counts.entry(kind).or_default().source += count as u64;
    }

    pub(crate) fn target(&mut self, kind: Kind, count: usize) {
        self.counts.entry(kind).or_default().target += count as u64;
    }

    pub(crate) fn written(&mut self, kind: Kind, count: usize) {
        self.counts.entry(kind).or_default().written += count as u64;
    }

    /// Something is not as it should be.
    pub(crate) fn differs(&mut self, kind: Kind, of: &str, name: &str, what: impl Into<String>) {
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(Difference { kind, of: of.to_owned(), name: name.to_owned(), what: what.into() });
        } else {
            self.more += 1;
        }
    }

    /// Two values that should be one.
    pub(crate) fn same(&mut self, kind: Kind, of: &str, name: &str, source: &str, target: &str) {
        if source != target {
            self.differs(kind, of, name, format!("`{}` in the source, `{}` here", short(source), short(target)));
        }
    }

    /// Texts on both sides.
    pub(crate) fn texts(&mut self, kind: Kind, of: &str, source: &Texts, target: &Texts) {
        self.source(kind, source.len());
        self.target(kind, target.len());
        for (key, value) in source {
            match target.get(key) {
                Some(there) => self.same(kind, of, key, value, there),
                None => self.differs(kind, of, key, "missing here"),
            }
        }
        for key in target.keys().filter(|key| !source.contains_key(*key)) {
            self.differs(kind, of, key, "not in the source");
        }
    }

    /// A refusal is noted here and is the end of what was asked for; other trouble is the end of the import.
    pub(crate) fn settled<T>(&mut self, kind: Kind, of: &str, name: &str, answer: Answer<T>) -> Result<Option<T>> {
        match answer {
            Ok(thing) => Ok(Some(thing)),
            Err(Trouble::Refused(Refusal { message, .. })) => {
                self.differs(kind, of, name, format!("refused: {message}"));
                Ok(None)
            }
            Err(Trouble::Failed(failure) | Trouble::Broken(failure)) => Err(failure),
            Err(Trouble::Busy(_)) => Err(Failure::new(Class::Quota, "the rate is used up")),
        }
    }

    /// Shown, and judged.
    pub(crate) fn finish(self, from: &str, tenant: &str, dry: bool, output: &Output) -> Result<()> {
        let counted = |kind: &Kind| self.counts.get(kind).copied().unwrap_or_default();
        let found = self.differences.len() as u64 + self.more;
        if output.is_json() {
            let counts: serde_json::Map<String, Value> = Kind::ALL
                .iter()
                .map(|kind| {
                    let Count { source, target, written } = counted(kind);
                    let shown =
                        if dry { json!({"source": source}) } else { json!({"source": source, "target": target, "written": written}) };
                    (kind.word().to_owned(), shown)
                })
                .collect();
            let differences: Vec<Value> = self
                .differences
                .iter()
                .map(|Difference { kind, of, name, what }| json!({"kind": kind.word(), "of": of, "name": name, "what": what}))
                .collect();
            output.value(&json!({
                "from": from, "tenant": tenant, "dry_run": dry, "counts": counts, "differences": differences, "differences_total": found,
            }))?;
        } else {
            let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
            let mut rows = vec![if dry { row(&["", "source"]) } else { row(&["", "source", "tenant", "written"]) }];
            rows.extend(Kind::ALL.iter().map(|kind| {
                let Count { source, target, written } = counted(kind);
                let cells = [kind.word().to_owned(), source.to_string(), target.to_string(), written.to_string()];
                cells.into_iter().take(if dry { 2 } else { 4 }).collect()
            }));
            output.rows(&rows)?;
            for Difference { kind, of, name, what } in &self.differences {
                let named: Vec<&str> =
                    [kind.word(), of.as_str(), name.as_str(), what.as_str()].into_iter().filter(|part| !part.is_empty()).collect();
                output.line(&named.join(": "))?;
            }
            if self.more > 0 {
                output.line(&format!("and {} more", self.more))?;
            }
        }
        if found > 0 {
            let help = "nothing that was here was changed; what is listed has to be looked at one by one (docs/mlflow.md, Moving in)";
            return Err(Failure::new(Class::Verification, format!("{found} differences between the source and the tenant")).help(help));
        }
        output.note(match dry {
            true => "Nothing was written.",
            false => "Everything was read back and is the same on both sides. Traces, webhooks and permissions are not carried over.",
        });
        Ok(())
    }
}

fn short(text: &str) -> String {
    let mut short: String = text.chars().take(VALUE_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_difference_is_one() {
        let texts = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Texts>();
        let mut report = Report::default();
        report.texts(Kind::Param, "run r", &texts(&[("a", "1"), ("b", "2"), ("c", "3")]), &texts(&[("a", "1"), ("b", "x"), ("d", "4")]));
        let told: Vec<_> = report.differences.iter().map(|found| format!("{}: {}", found.name, found.what)).collect();
        assert_eq!(told, ["b: `2` in the source, `x` here", "c: missing here", "d: not in the source"]);
        let output = Output::new(true, true);
        assert_eq!(report.finish("s", "t", false, &output).unwrap_err().class(), Class::Verification);
        assert!(Report::default().finish("s", "t", false, &output).is_ok());
    }

    #[test]
    fn what_is_kept_of_differences_is_bounded() {
        let mut report = Report::default();
        (0..DIFFERENCES_MAX + 5).for_each(|_| report.differs(Kind::Run, "", "", ""));
        assert_eq!((report.differences.len(), report.more), (DIFFERENCES_MAX, 5));
    }
}
