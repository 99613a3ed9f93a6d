//! What people and scripts get to see. The only place that writes to the terminal.
//!
//! Texts that come from the service are shown with control characters replaced, so that a name or a log line cannot move the cursor,
//! recolour the screen or hide what follows.

use std::io::{IsTerminal, Write};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::failure::{Class, Failure, Result};

/// Longest cell of a table, in characters.
const CELL_CHARS_MAX: usize = 60;

/// A column of a table, or a line of a description: heading and JSON pointer.
pub(crate) type Field = (&'static str, &'static str);

/// Where results, notes and errors go.
pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Whether scripts read along.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether progress is welcome.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && !self.json && std::io::stderr().is_terminal()
    }

    /// Things as a table.
    pub(crate) fn list(&self, items: &[Value], fields: &[Field]) -> Result<()> {
        if self.json {
            return self.value(&Value::Array(items.to_vec()));
        }
        let mut rows = vec![fields.iter().map(|(heading, _)| (*heading).to_owned()).collect::<Vec<_>>()];
        rows.extend(items.iter().map(|item| fields.iter().map(|field| cell(item, field)).collect()));
        let mut text = table(&rows);
        if items.is_empty() {
            text = "none\n".to_owned();
        }
        self.raw(text.as_bytes())
    }

    /// Rows that are texts already; the first is the heading.
    pub(crate) fn rows(&self, rows: &[Vec<String>]) -> Result<()> {
        let shown: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|text| visible(text)).collect()).collect();
        self.raw(table(&shown).as_bytes())
    }

    /// One thing, a line a field; fields it does not have are left out.
    pub(crate) fn item(&self, item: &Value, fields: &[Field]) -> Result<()> {
        if self.json {
            return self.value(item);
        }
        let present = fields.iter().filter(|(_, pointer)| item.pointer(pointer).is_some_and(|value| !value.is_null()));
        let rows: Vec<Vec<String>> = present.map(|field| vec![field.0.to_owned(), whole(item, field)]).collect();
        self.raw(table(&rows).as_bytes())
    }

    /// JSON as it is.
    pub(crate) fn value(&self, value: &Value) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(Class::Failed, error.to_string()))?;
        text.push('\n');
        self.raw(text.as_bytes())
    }

    /// One line of result.
    pub(crate) fn line(&self, text: &str) -> Result<()> {
        self.raw(format!("{}\n", visible(text)).as_bytes())
    }

    /// Bytes as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            // Whoever reads has seen enough, as in `insula audit ls | head`.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(Failure::new(Class::Failed, format!("cannot write the result: {error}"))),
            Ok(()) => Ok(()),
        }
    }

    /// What was done, for people.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            to_stderr(text);
        }
    }

    /// Why the program ends.
    pub(crate) fn failure(&self, failure: &Failure) {
        let text = if self.json { failure.json().to_string() } else { failure.text() };
        to_stderr(&text);
    }
}

/// Nobody can be told when standard error is gone.
fn to_stderr(text: &str) {
    let lines: Vec<String> = text.lines().map(visible).collect();
    let _ = writeln!(std::io::stderr().lock(), "{}", lines.join("\n"));
}

/// The text with control characters, and those that reorder a line, replaced.
pub(crate) fn visible(text: &str) -> String {
    let hidden = |c: char| c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect()
}

fn cell(item: &Value, field: &Field) -> String {
    let text = whole(item, field);
    if text.chars().count() <= CELL_CHARS_MAX {
        return text;
    }
    let mut cut: String = text.chars().take(CELL_CHARS_MAX - 1).collect();
    cut.push('…');
    cut
}

fn whole(item: &Value, (_, pointer): &Field) -> String {
    visible(&plain(item.pointer(pointer).unwrap_or(&Value::Null), pointer))
}

/// A value as people write it. A number under a name that ends in `_at` is a time in Unix microseconds.
fn plain(value: &Value, pointer: &str) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) if pointer.ends_with("_at") => number.as_i64().and_then(moment).unwrap_or_else(|| number.to_string()),
        Value::Number(number) if pointer.ends_with("bytes") => number.as_u64().map_or_else(|| number.to_string(), bytes),
        Value::Array(items) => items.iter().map(|item| plain(item, "")).collect::<Vec<_>>().join(", "),
        Value::Object(map) => map.iter().map(|(key, value)| format!("{key}={}", plain(value, ""))).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn moment(micros: i64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(micros.div_euclid(1_000_000)).ok()?.format(&Rfc3339).ok()
}

/// `1.5 MiB`; exact below one KiB.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// Left-aligned columns, two blanks between.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_read_well() {
        let item =
            json!({"created_at": 1_763_800_000_000_000_i64, "bytes": 1536, "roles": ["admin", "auditor"], "tags": {"a": 1}, "gone": null});
        let shown = |pointer: &'static str| whole(&item, &("x", pointer));
        assert_eq!(shown("/created_at"), "2025-11-22T08:26:40Z");
        assert_eq!(shown("/bytes"), "1.50 KiB");
        assert_eq!(shown("/roles"), "admin, auditor");
        assert_eq!(shown("/tags"), "a=1");
        assert_eq!(shown("/gone"), "-");
        assert_eq!(shown("/absent"), "-");
    }

    #[test]
    fn a_name_cannot_play_with_the_terminal() {
        let item = json!({"name": "evil\u{1b}[2J\r\u{202e}name\nerror: none"});
        assert_eq!(whole(&item, &("name", "/name")), "evil\u{fffd}[2J\u{fffd}\u{fffd}name\u{fffd}error: none");
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["name".to_owned(), "rows".to_owned()], vec!["a-long-name".to_owned(), "7".to_owned()]];
        assert_eq!(table(&rows), "name         rows\na-long-name  7\n");
    }
}
