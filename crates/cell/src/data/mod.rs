//! Data sets of a tenant: told from content, read in bounded memory, checked row by row.
//!
//! A data set is never here as a whole. Readers pull blocks of at most a mebibyte through a [`Source`] and hand cells to a
//! [`Sink`]; what is held at once is a record (text), a column of a row group (Parquet) or a batch (Arrow), each with a named
//! limit. Three sinks exist: statistics ([`inspect`]), a few rows ([`preview`]) and the columns of a training table
//! ([`load::load`]).
//!
//! ```text
//! Source ──► csv | ndjson | parquet | arrow ──► cells, by column ──► Sink
//! ```
//!
//! A reader may hand over the cells of many rows column by column; it says when rows are complete. Cells of CSV are
//! [`Cell::Raw`]: what they are depends on the whole column, so each sink decides.
//!
//! What is deliberately missing: nested values. Lists, structures and bytes of the columnar formats are named in the schema and
//! not read, so that no claimed length in them can cost anything.

mod arrow;
mod batch;
mod csv;
pub(crate) mod load;
mod ndjson;
mod parquet;
mod preview;
mod pull;
mod sniff;
mod summary;
#[cfg(test)]
pub(crate) mod tests;
mod thrift;

use std::ops::Range;

use bytes::Bytes;
use wire::{ColumnKind, Fail, FailCode, Format};

/// Most rows a preview gives.
pub const PREVIEW_ROWS_MAX: u32 = 1_000;
/// Longest report of an inspection in bytes: it has to fit the `meta` part of one frame.
const REPORT_BYTES_MAX: usize = 1_000_000;
/// Longest text of one cell in bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// Where the bytes of a data set come from.
pub trait Source {
    /// Length in bytes.
    fn bytes(&self) -> u64;
    /// The bytes from `offset`; at most `wire::BLOCK_BYTES_MAX`, and fewer than asked only at the end.
    ///
    /// # Errors
    /// Whatever the other side says.
    fn read_at(&mut self, offset: u64, bytes: u32) -> Result<Bytes, Fail>;
}

/// Reads everything, checks every row, and reports schema, count and statistics.
///
/// # Errors
/// [`Fail`] with line and column for a bad row, [`FailCode::TooLarge`] over a limit, [`FailCode::Unsupported`] for a known format
/// that is not taken.
pub fn inspect(source: &mut dyn Source, spec: &wire::Inspect) -> Result<wire::Inspection, Fail> {
    let found = sniff::format(source)?;
    if let Some(demanded) = spec.format.filter(|&demanded| demanded != found) {
        return Err(Fail::new(FailCode::Invalid, format!("this is {}, not {}", sniff::name(found), sniff::name(demanded))));
    }
    let limits = Limits { rows_max: spec.rows_max, columns_max: spec.columns_max };
    let mut summary = summary::Summary::default();
    read(source, found, 0..u64::MAX, limits, &mut summary)?;
    let (rows, columns) = summary.finish();
    let mut inspection = wire::Inspection { format: found, rows, columns };
    if report_bytes(&inspection) > REPORT_BYTES_MAX {
        inspection.columns.iter_mut().for_each(|column| column.statistics.top.clear());
    }
    if report_bytes(&inspection) > REPORT_BYTES_MAX {
        return Err(Fail::new(FailCode::TooLarge, "the names and statistics of all columns are longer than 1 MB: use fewer columns"));
    }
    Ok(inspection)
}

fn report_bytes(inspection: &wire::Inspection) -> usize {
    serde_json::to_vec(inspection).map_or(usize::MAX, |bytes| bytes.len())
}

/// Reads a few rows: at most [`PREVIEW_ROWS_MAX`] from `offset`.
///
/// # Errors
/// As [`inspect`], as far as the rows are read.
pub fn preview(source: &mut dyn Source, spec: &wire::Preview) -> Result<wire::Rows, Fail> {
    let rows = u64::from(spec.rows.min(PREVIEW_ROWS_MAX));
    let window = spec.offset..spec.offset.saturating_add(rows);
    let mut sink = preview::Preview::new(window.start);
    read(source, spec.format, window, Limits::default(), &mut sink)?;
    Ok(sink.finish())
}

/// What a data set may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most rows.
    pub(crate) rows_max: u64,
    /// Most columns.
    pub(crate) columns_max: u32,
}

impl Default for Limits {
    /// Those of a data set that was inspected before; its own limits held then.
    fn default() -> Self {
        Self { rows_max: u64::MAX, columns_max: 100_000 }
    }
}

impl Limits {
    fn rows(self, rows: u64) -> Result<(), Fail> {
        if rows > self.rows_max {
            return Err(Fail::new(FailCode::TooLarge, format!("more than {} rows", self.rows_max)));
        }
        Ok(())
    }

    fn columns(self, columns: usize) -> Result<(), Fail> {
        if columns > self.columns_max as usize {
            return Err(Fail::new(FailCode::TooLarge, format!("more than {} columns", self.columns_max)));
        }
        Ok(())
    }
}

/// Name and, where the format says it, kind of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Unique and not empty.
    pub(crate) name: String,
    /// Absent where only the values tell.
    pub(crate) kind: Option<ColumnKind>,
}

/// One value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cell<'a> {
    /// None.
    Missing,
    /// Text of a format without types, not empty.
    Raw(&'a str),
    /// A whole number.
    Integer(i64),
    /// A number; NaN counts as missing.
    Number(f64),
    /// True or false.
    Boolean(bool),
    /// Text.
    Text(&'a str),
    /// A date or time in ISO 8601.
    Time(&'a str),
}

/// Who takes the cells.
pub(crate) trait Sink {
    /// The columns, once and before any cell.
    fn columns(&mut self, heads: &[Head]) -> Result<(), Fail>;
    /// Whether cells of this column are wanted.
    fn wants(&self, column: usize) -> bool {
        let _ = column;
        true
    }
    /// One value; rows count from 0. Within a column rows come in order; columns may come one after the other.
    fn cell(&mut self, column: usize, row: u64, cell: Cell<'_>) -> Result<(), Fail>;
    /// All cells of the first `rows` rows have come.
    fn rows(&mut self, rows: u64);
}

/// Hands the rows of `window` to the sink.
pub(crate) fn read(source: &mut dyn Source, format: Format, window: Range<u64>, limits: Limits, sink: &mut dyn Sink) -> Result<(), Fail> {
    match format {
        Format::Csv => csv::read(source, window, limits, sink),
        Format::Ndjson => ndjson::read(source, window, limits, sink),
        Format::Parquet => parquet::read(source, window, limits, sink),
        Format::Arrow => arrow::read(source, window, limits, sink),
    }
}

/// Checks that names are unique and not empty.
fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), Fail> {
    let mut seen = std::collections::BTreeSet::new();
    for (number, name) in names.enumerate() {
        if name.trim().is_empty() {
            return Err(Fail::new(FailCode::Invalid, format!("column {} has no name", number + 1)).at_line(1));
        }
        if !seen.insert(name) {
            return Err(Fail::new(FailCode::Invalid, format!("two columns are called `{name}`")).at_line(1).at_column(name));
        }
    }
    Ok(())
}

/// What a text without type is by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Guess {
    /// A word for "no value".
    Marker,
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// True or false.
    Boolean(bool),
    /// Anything else.
    Text,
}

/// What this text is by itself; spaces around a number do not count.
pub(crate) fn guess(text: &str) -> Guess {
    let text = text.trim_matches([' ', '\t']);
    if let Ok(integer) = text.parse::<i64>() {
        return Guess::Integer(integer);
    }
    match text {
        "" | "NA" | "NaN" | "nan" | "null" | "NULL" => return Guess::Marker,
        "true" | "True" | "TRUE" => return Guess::Boolean(true),
        "false" | "False" | "FALSE" => return Guess::Boolean(false),
        _ => {}
    }
    match text.parse::<f64>() {
        Ok(number) if !number.is_nan() => Guess::Number(number),
        _ => Guess::Text,
    }
}
