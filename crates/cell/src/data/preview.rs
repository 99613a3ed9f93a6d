//! A few rows as JSON.

use serde_json::Value;
use wire::{Fail, FailCode};

use super::{Cell, Guess, Head, Sink, guess};

/// Most text a preview holds, in bytes.
const PREVIEW_BYTES_MAX: usize = 4 << 20;
/// Most values a preview holds.
const PREVIEW_CELLS_MAX: usize = 1 << 18;

/// Collects rows. Untyped text is a number or boolean only when all of its column's shown values are.
pub(super) struct Preview {
    first: u64,
    names: Vec<String>,
    rows: Vec<Vec<Value>>,
    /// Whether the values of a column came without type.
    raw: Vec<bool>,
    bytes: usize,
    cells: usize,
}

impl Preview {
    pub(super) fn new(first: u64) -> Self {
        Self { first, names: Vec::new(), rows: Vec::new(), raw: Vec::new(), bytes: 0, cells: 0 }
    }

    pub(super) fn finish(mut self) -> wire::Rows {
        for column in (0..self.names.len()).filter(|&column| self.raw.get(column) == Some(&true)) {
            settle(self.rows.iter_mut().filter_map(|row| row.get_mut(column)).collect());
        }
        wire::Rows { columns: self.names, rows: self.rows }
    }

    fn text(&mut self, text: &str) -> Result<Value, Fail> {
        self.bytes += text.len();
        if self.bytes > PREVIEW_BYTES_MAX {
            return Err(Fail::new(FailCode::TooLarge, "these rows are larger than 4 MiB: ask for fewer"));
        }
        Ok(Value::from(text))
    }
}

/// Gives the untyped texts of one column their common type.
fn settle(values: Vec<&mut Value>) {
    let guesses: Vec<Guess> = values.iter().map(|value| value.as_str().map_or(Guess::Marker, guess)).collect();
    let numbers = guesses.iter().all(|guess| matches!(guess, Guess::Marker | Guess::Integer(_) | Guess::Number(_)));
    let booleans = guesses.iter().all(|guess| matches!(guess, Guess::Marker | Guess::Boolean(_)));
    if !numbers && !booleans {
        return;
    }
    for (value, guess) in values.into_iter().zip(guesses) {
        *value = match guess {
            Guess::Marker | Guess::Text => Value::Null,
            Guess::Integer(integer) => Value::from(integer),
            Guess::Number(number) => Value::from(number),
            Guess::Boolean(boolean) => Value::from(boolean),
        };
    }
}

impl Sink for Preview {
    fn columns(&mut self, heads: &[Head]) -> Result<(), Fail> {
        self.names = heads.iter().map(|head| head.name.clone()).collect();
        self.raw = vec![false; heads.len()];
        Ok(())
    }

    fn cell(&mut self, column: usize, row: u64, cell: Cell<'_>) -> Result<(), Fail> {
        let value = match cell {
            Cell::Missing => Value::Null,
            Cell::Raw(text) => {
                if let Some(raw) = self.raw.get_mut(column) {
                    *raw = true;
                }
                self.text(text)?
            }
            Cell::Text(text) | Cell::Time(text) => self.text(text)?,
            Cell::Integer(integer) => Value::from(integer),
            Cell::Number(number) => Value::from(number),
            Cell::Boolean(boolean) => Value::from(boolean),
        };
        let index = usize::try_from(row.saturating_sub(self.first)).unwrap_or(usize::MAX);
        while self.rows.len() <= index {
            self.cells += self.names.len();
            if self.cells > PREVIEW_CELLS_MAX {
                return Err(Fail::new(FailCode::TooLarge, format!("more than {PREVIEW_CELLS_MAX} values: ask for fewer rows")));
            }
            self.rows.push(vec![Value::Null; self.names.len()]);
        }
        if let Some(slot) = self.rows.get_mut(index).and_then(|row| row.get_mut(column)) {
            *slot = value;
        }
        Ok(())
    }

    fn rows(&mut self, _rows: u64) {}
}
