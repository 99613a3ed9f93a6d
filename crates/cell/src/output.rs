//! What a run of a model gave, and which of it belongs to whom.
//!
//! Mostly one request has all of it. Where one run answers several, each is given the rows that are its own ([`Rows`]): the engine's tensors
//! are not taken apart, every answer is written from its own slice of them. What must be taken out of the engine first, texts and maps, is taken
//! out once for all.

use std::cell::OnceCell;

use ort::session::SessionOutputs;
use ort::value::{DynValue, DynValueTypeMarker, TensorElementType, ValueRef, ValueType};
use serde::Serialize;
use wire::{Fail, FailCode};

use crate::oip::Port;
use crate::tensor::{Element, not_finite, rank, unreadable, write_raw, write_slice};

/// All outputs of one run, in the model's order.
pub struct Outputs<'s>(Vec<Output<'s>>);

/// One output of a run.
pub struct Output<'s> {
    value: ValueRef<'s>,
    texts: OnceCell<Vec<String>>,
    table: OnceCell<Table>,
}

/// Rows of a run that belong to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// The first of them.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// How many the run has.
    pub of: usize,
}

/// An output as one request sees it.
#[derive(Clone, Copy)]
pub struct Part<'v, 's> {
    output: &'v Output<'s>,
    rows: Option<Rows>,
}

impl<'s> Outputs<'s> {
    /// Of a run.
    #[must_use]
    pub fn of(outputs: &'s SessionOutputs<'_>) -> Self {
        let output = |value| Output { value, texts: OnceCell::new(), table: OnceCell::new() };
        Self(outputs.values().map(output).collect())
    }

    /// As the request sees them that these rows belong to; without any, all is its own.
    pub fn parts(&self, rows: Option<Rows>) -> impl ExactSizeIterator<Item = Part<'_, 's>> {
        self.0.iter().map(move |output| Part { output, rows })
    }

    /// Whether each output has a row for each row that went in.
    ///
    /// # Errors
    /// When the engine's own values cannot be read.
    pub fn have_rows(&self, ports: &[Port], rows: usize) -> Result<bool, Fail> {
        for (part, port) in self.parts(None).zip(ports) {
            let found = match port.maps {
                Some(key) => Some(part.table(key)?.rows),
                None => part.tensor()?.1.first().and_then(|rows| usize::try_from(*rows).ok()),
            };
            if found != Some(rows) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl<'v, 's> Part<'v, 's> {
    /// The engine's value, with the rows of everybody.
    #[must_use]
    pub fn engine(self) -> &'v ValueRef<'s> {
        &self.output.value
    }

    /// Type and dimensions of a tensor.
    ///
    /// # Errors
    /// [`FailCode::ModelFailed`] when it is none.
    pub fn tensor(self) -> Result<(TensorElementType, Vec<i64>), Fail> {
        let ValueType::Tensor { ty, shape, .. } = self.output.value.dtype() else {
            return Err(Fail::new(FailCode::ModelFailed, "the model gave something else than the tensor it declares"));
        };
        let mut shape = shape.to_vec();
        if let (Some(rows), Some(first)) = (self.rows, shape.first_mut()) {
            *first = i64::try_from(rows.count).map_err(|_| not_there())?;
        }
        Ok((*ty, shape))
    }

    /// Of everybody's elements those that are meant.
    ///
    /// # Errors
    /// [`FailCode::Internal`] when they are not there.
    pub fn cut<T>(self, all: &[T]) -> Result<&[T], Fail> {
        let Some(Rows { first, count, of }) = self.rows else { return Ok(all) };
        let row = all.len().checked_div(of).ok_or_else(not_there)?;
        all.get(first * row..).and_then(|rest| rest.get(..count * row)).ok_or_else(not_there)
    }

    /// The elements of a tensor of texts, with the rows of everybody.
    ///
    /// # Errors
    /// When the engine's value is something else.
    pub fn texts(self) -> Result<&'v [String], Fail> {
        if let Some(texts) = self.output.texts.get() {
            return Ok(texts);
        }
        let (_, texts) = self.output.value.try_extract_strings().map_err(|e| unreadable(&e))?;
        Ok(self.output.texts.get_or_init(|| texts))
    }

    /// A sequence of maps as a table of these rows.
    ///
    /// # Errors
    /// When the maps do not all have the same keys, or are of other types than ZipMap makes.
    pub fn table(self, key: TensorElementType) -> Result<TableRows<'v>, Fail> {
        let table = match self.output.table.get() {
            Some(table) => table,
            None => {
                let table = Table::of(&self.output.value, key)?;
                self.output.table.get_or_init(|| table)
            }
        };
        let rows = self.rows.map_or(table.rows, |rows| rows.count);
        Ok(TableRows { labels: &table.labels, rows, values: self.cut(&table.values)? })
    }
}

#[cold]
fn not_there() -> Fail {
    Fail::new(FailCode::Internal, "rows that the run does not have")
}

/// A sequence of maps, as a classifier with ZipMap gives it, as a table.
#[derive(Debug)]
struct Table {
    labels: Vec<String>,
    rows: usize,
    /// Row-major.
    values: Vec<f32>,
}

impl Table {
    fn of(value: &ValueRef<'_>, key: TensorElementType) -> Result<Self, Fail> {
        match key {
            TensorElementType::Int64 => Self::read(value, |map| map.try_extract_key_values::<i64, f32>()),
            TensorElementType::String => Self::read(value, |map| map.try_extract_key_values::<String, f32>()),
            other => Err(Fail::new(FailCode::ModelFailed, format!("maps with keys of type {other} are not supported"))),
        }
    }

    fn read<K: Serialize>(value: &ValueRef<'_>, rows: impl Fn(&DynValue) -> ort::Result<Vec<(K, f32)>>) -> Result<Self, Fail> {
        let maps = value.try_extract_sequence::<DynValueTypeMarker>().map_err(|e| unreadable(&e))?;
        let mut table = Self { labels: Vec::new(), rows: maps.len(), values: Vec::new() };
        for (row, map) in maps.iter().enumerate() {
            let (keys, values): (Vec<K>, Vec<f32>) = rows(map).map_err(|e| unreadable(&e))?.into_iter().unzip();
            let labels: Vec<String> = keys.iter().filter_map(|key| serde_json::to_string(key).ok()).collect();
            if row == 0 {
                table.labels = labels;
            } else if table.labels != labels {
                return Err(Fail::new(FailCode::ModelFailed, format!("row {row} has other keys than row 0")));
            }
            table.values.extend(values);
        }
        Ok(table)
    }
}

/// Rows of a table.
#[derive(Debug, Clone, Copy)]
pub struct TableRows<'t> {
    /// Keys of the maps, as JSON, in ascending order: the columns.
    pub labels: &'t [String],
    /// Number of maps.
    pub rows: usize,
    /// Values, row-major.
    values: &'t [f32],
}

impl TableRows<'_> {
    /// Appends each row as an object of its keys; `ends` gets the end of each.
    ///
    /// # Errors
    /// As [`crate::tensor::Datatype::write_all`].
    pub fn write_rows(self, out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<(), Fail> {
        for values in self.values.chunks(self.labels.len().max(1)) {
            for (at, (label, value)) in self.labels.iter().zip(values).enumerate() {
                out.push(if at == 0 { b'{' } else { b',' });
                // A name is a text in JSON, also where the key is a number.
                let quote: &[u8] = if label.starts_with('"') { b"" } else { b"\"" };
                out.extend([quote, label.as_bytes(), quote, b":"].concat());
                if !value.write(out) {
                    return Err(not_finite("a value"));
                }
            }
            out.push(b'}');
            ends.push(out.len());
        }
        Ok(())
    }

    /// Appends all values in binary form.
    ///
    /// # Errors
    /// When the answer gets too long.
    pub fn write_raw(self, out: &mut Vec<u8>) -> Result<(), Fail> {
        write_raw(self.values, out)
    }

    /// The best labels of each row, `k` at most, as in `0.912000:2:virginica`.
    ///
    /// # Errors
    /// None that its numbers could cause.
    pub fn best(self, k: usize) -> Result<Vec<String>, Fail> {
        let mut best = Vec::new();
        rank(self.values, self.labels.len(), k, &mut best)?;
        for class in &mut best {
            let label = class.rsplit_once(':').and_then(|(_, index)| self.labels.get(index.parse::<usize>().ok()?));
            let label = label.map_or("", |label| label.trim_matches('"'));
            class.push(':');
            class.push_str(label);
        }
        Ok(best)
    }

    /// Appends all values as a flat JSON array.
    ///
    /// # Errors
    /// As [`crate::tensor::Datatype::write_all`].
    pub fn write_all(self, out: &mut Vec<u8>) -> Result<(), Fail> {
        write_slice(self.values, out)
    }
}
