//! The columns of a training table, whole in memory as FP32 and codes.

use wire::{ColumnKind, Fail, FailCode, Format};

use super::summary::{Dictionary, Summary};
use super::{Cell, Guess, Head, Limits, Sink, Source, guess, read};

/// Largest table in bytes.
const TABLE_BYTES_MAX: u64 = 1 << 30;
/// Code of a missing text.
pub(crate) const MISSING: u32 = u32::MAX;

/// All usable columns.
pub(crate) struct Table {
    /// In file order.
    pub(crate) columns: Vec<Column>,
    /// Columns of a kind that is not loaded, or excluded: name and kind.
    pub(crate) left_out: Vec<(String, ColumnKind)>,
    /// Rows of every column.
    pub(crate) rows: usize,
}

/// One column.
pub(crate) struct Column {
    /// Name as in the file.
    pub(crate) name: String,
    /// What it holds.
    pub(crate) kind: ColumnKind,
    /// Its values.
    pub(crate) values: Values,
}

/// Values by row.
pub(crate) enum Values {
    /// NaN is missing; a boolean is 0 or 1.
    Numbers(Vec<f32>),
    /// As read, for a target.
    Wide(Vec<f64>),
    /// Codes into the texts; [`MISSING`] is missing.
    Texts {
        /// By row.
        codes: Vec<u32>,
        /// By code, in the order of first appearance.
        texts: Vec<String>,
    },
}

/// Loads all columns but the excluded ones; numbers of the `target` at full width. Reads the source twice: the first time says
/// what each column is.
pub(crate) fn load(source: &mut dyn Source, format: Format, target: &str, exclude: &[String], texts_max: u64) -> Result<Table, Fail> {
    let mut summary = Summary::default();
    read(source, format, 0..u64::MAX, Limits::default(), &mut summary)?;
    let (rows, summaries) = summary.finish();
    let names = || summaries.iter().map(|column| format!("`{}`", column.name)).collect::<Vec<_>>().join(", ");
    for name in std::iter::once(target).chain(exclude.iter().map(String::as_str)) {
        if !summaries.iter().any(|column| column.name == name) {
            let list: String = names().chars().take(600).collect();
            return Err(Fail::new(FailCode::Invalid, format!("there is no column `{name}`; there are {list}")));
        }
    }
    let mut loader = Loader { slots: Vec::new() };
    let mut left_out = Vec::new();
    let mut bytes = 0_u64;
    for column in summaries {
        let is_target = column.name == target;
        let loaded = match column.kind {
            _ if exclude.contains(&column.name) => false,
            ColumnKind::Integer | ColumnKind::Number | ColumnKind::Boolean => true,
            ColumnKind::Text => is_target || column.statistics.distinct.is_some_and(|distinct| distinct <= texts_max),
            ColumnKind::Time | ColumnKind::Empty | ColumnKind::Other => false,
        };
        if !loaded {
            left_out.push((column.name, column.kind));
            loader.slots.push(None);
            continue;
        }
        bytes = bytes.saturating_add(rows.saturating_mul(if is_target { 8 } else { 4 }));
        if bytes > TABLE_BYTES_MAX {
            return Err(Fail::new(FailCode::TooLarge, "the table is larger than 1 GiB in memory: exclude columns or train on fewer rows"));
        }
        loader.slots.push(Some(Slot::new(column.name, column.kind, is_target, usize::try_from(rows).unwrap_or(0))));
    }
    read(source, format, 0..u64::MAX, Limits::default(), &mut loader)?;
    let columns: Vec<Column> = loader.slots.into_iter().flatten().map(Slot::finish).collect();
    Ok(Table { columns, left_out, rows: usize::try_from(rows).unwrap_or(0) })
}

struct Loader {
    /// By column of the file; none when it is left out.
    slots: Vec<Option<Slot>>,
}

struct Slot {
    column: Column,
    dictionary: Dictionary,
}

impl Slot {
    fn new(name: String, kind: ColumnKind, is_target: bool, rows: usize) -> Self {
        let values = match kind {
            ColumnKind::Text => Values::Texts { codes: Vec::with_capacity(rows), texts: Vec::new() },
            _ if is_target => Values::Wide(Vec::with_capacity(rows)),
            _ => Values::Numbers(Vec::with_capacity(rows)),
        };
        Self { column: Column { name, kind, values }, dictionary: Dictionary::default() }
    }

    fn finish(mut self) -> Column {
        if let Values::Texts { texts, .. } = &mut self.column.values {
            *texts = self.dictionary.texts;
        }
        self.column
    }
}

impl Sink for Loader {
    fn columns(&mut self, heads: &[Head]) -> Result<(), Fail> {
        if heads.len() != self.slots.len() {
            return Err(Fail::new(FailCode::Internal, "the source changed while it was read"));
        }
        Ok(())
    }

    fn wants(&self, column: usize) -> bool {
        self.slots.get(column).is_some_and(Option::is_some)
    }

    fn cell(&mut self, column: usize, _row: u64, cell: Cell<'_>) -> Result<(), Fail> {
        let Some(Some(slot)) = self.slots.get_mut(column) else { return Ok(()) };
        let name = &slot.column.name;
        match &mut slot.column.values {
            Values::Texts { codes, .. } => codes.push(match cell {
                Cell::Raw(text) | Cell::Text(text) => slot.dictionary.code(text),
                _ => MISSING,
            }),
            Values::Wide(values) => values.push(number(cell)),
            Values::Numbers(values) => {
                let wide = number(cell);
                let value = wide as f32;
                if value.is_infinite() {
                    let message = format!("`{wide:?}` does not fit a number of single precision");
                    return Err(Fail::new(FailCode::Invalid, message).at_column(name));
                }
                values.push(value);
            }
        }
        Ok(())
    }

    fn rows(&mut self, _rows: u64) {}
}

fn number(cell: Cell<'_>) -> f64 {
    match cell {
        Cell::Integer(integer) => integer as f64,
        Cell::Number(number) => number,
        Cell::Boolean(boolean) => f64::from(u8::from(boolean)),
        Cell::Raw(text) => match guess(text) {
            Guess::Integer(integer) => integer as f64,
            Guess::Number(number) => number,
            Guess::Boolean(boolean) => f64::from(u8::from(boolean)),
            Guess::Marker | Guess::Text => f64::NAN,
        },
        Cell::Missing | Cell::Text(_) | Cell::Time(_) => f64::NAN,
    }
}
