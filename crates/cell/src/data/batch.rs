//! Cells of Arrow arrays: what both columnar formats hand over.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float64Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::{DataType, Schema, TimeUnit};
use wire::{ColumnKind, Fail, FailCode};

use super::{Cell, Head, Sink, TEXT_BYTES_MAX, check_names};

/// What a type holds.
pub(super) fn kind(data_type: &DataType) -> ColumnKind {
    use DataType as T;
    match data_type {
        T::Null => ColumnKind::Empty,
        T::Int8 | T::Int16 | T::Int32 | T::Int64 | T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 => ColumnKind::Integer,
        T::Float16 | T::Float32 | T::Float64 => ColumnKind::Number,
        T::Decimal32(..) | T::Decimal64(..) | T::Decimal128(..) | T::Decimal256(..) => ColumnKind::Number,
        T::Boolean => ColumnKind::Boolean,
        T::Utf8 | T::LargeUtf8 | T::Utf8View => ColumnKind::Text,
        T::Dictionary(_, values) if matches!(**values, T::Utf8 | T::LargeUtf8 | T::Utf8View) => ColumnKind::Text,
        T::Date32 | T::Date64 | T::Time32(_) | T::Time64(_) | T::Timestamp(..) => ColumnKind::Time,
        _ => ColumnKind::Other,
    }
}

/// Tells the sink the columns and returns what they hold. How many there may be is the caller's to ask first.
pub(super) fn announce(schema: &Schema, sink: &mut dyn Sink) -> Result<Vec<ColumnKind>, Fail> {
    check_names(schema.fields().iter().map(|field| field.name().as_str()))?;
    let kinds: Vec<ColumnKind> = schema.fields().iter().map(|field| kind(field.data_type())).collect();
    let heads: Vec<Head> =
        schema.fields().iter().zip(&kinds).map(|(field, &kind)| Head { name: field.name().clone(), kind: Some(kind) }).collect();
    if heads.is_empty() {
        return Err(Fail::new(FailCode::Invalid, "the data set has no columns"));
    }
    sink.columns(&heads)?;
    Ok(kinds)
}

/// Runs a decoder of a columnar format: its panics on damaged files become errors.
pub(super) fn guarded<T, E: std::fmt::Display>(what: &str, decode: impl FnOnce() -> Result<T, E>) -> Result<T, Fail> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            Err(Fail::new(FailCode::Invalid, format!("the {what} file is damaged or not supported: {}", short(&error.to_string()))))
        }
        Err(_) => Err(Fail::new(FailCode::Invalid, format!("the {what} file is damaged"))),
    }
}

/// Errors of the decoders quote what they read; this much of it is enough.
fn short(text: &str) -> &str {
    text.lines().next().and_then(|line| line.get(..line.floor_char_boundary(300))).unwrap_or_default()
}

/// Hands over one column; its first value is of row `row`.
pub(super) fn deliver(sink: &mut dyn Sink, column: usize, row: u64, array: &ArrayRef) -> Result<(), Fail> {
    let place = |index: usize| row + index as u64;
    let mut put = |index: usize, cell: Option<Cell<'_>>| {
        let cell = cell.unwrap_or(Cell::Missing);
        if let Cell::Text(text) = cell {
            if text.len() > TEXT_BYTES_MAX {
                return Err(Fail::new(FailCode::TooLarge, "a text is longer than 1 MiB").at_line(place(index) + 1));
            }
            if text.is_empty() {
                return sink.cell(column, place(index), Cell::Missing);
            }
        }
        sink.cell(column, place(index), cell).map_err(|fail| fail.at_line(place(index) + 1))
    };
    match kind(array.data_type()) {
        ColumnKind::Integer if array.data_type() == &DataType::UInt64 => {
            for (index, value) in array.as_primitive::<UInt64Type>().iter().enumerate() {
                let cell = value.map(|value| i64::try_from(value).map_or(Cell::Number(value as f64), Cell::Integer));
                put(index, cell)?;
            }
        }
        ColumnKind::Integer => {
            let array = guarded("columnar", || arrow_cast::cast(array, &DataType::Int64))?;
            for (index, value) in array.as_primitive::<Int64Type>().iter().enumerate() {
                put(index, value.map(Cell::Integer))?;
            }
        }
        ColumnKind::Number => {
            let array = guarded("columnar", || arrow_cast::cast(array, &DataType::Float64))?;
            for (index, value) in array.as_primitive::<Float64Type>().iter().enumerate() {
                put(index, value.map(Cell::Number))?;
            }
        }
        ColumnKind::Boolean => {
            for (index, value) in array.as_boolean().iter().enumerate() {
                put(index, value.map(Cell::Boolean))?;
            }
        }
        ColumnKind::Text => texts(array, &mut put)?,
        ColumnKind::Time => times(array, &mut put)?,
        ColumnKind::Empty | ColumnKind::Other => {
            for index in 0..array.len() {
                put(index, None)?;
            }
        }
    }
    Ok(())
}

type Put<'a> = &'a mut dyn FnMut(usize, Option<Cell<'_>>) -> Result<(), Fail>;

fn texts(array: &ArrayRef, put: Put<'_>) -> Result<(), Fail> {
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().iter().enumerate().try_for_each(|(i, text)| put(i, text.map(Cell::Text))),
        DataType::LargeUtf8 => array.as_string::<i64>().iter().enumerate().try_for_each(|(i, text)| put(i, text.map(Cell::Text))),
        DataType::Utf8View => array.as_string_view().iter().enumerate().try_for_each(|(i, text)| put(i, text.map(Cell::Text))),
        _ => {
            let Some(dictionary) = array.as_any_dictionary_opt() else { return Ok(()) };
            let values = match dictionary.values().data_type() {
                DataType::Utf8 => dictionary.values().as_string::<i32>().iter().collect::<Vec<_>>(),
                DataType::LargeUtf8 => dictionary.values().as_string::<i64>().iter().collect(),
                _ => dictionary.values().as_string_view().iter().collect(),
            };
            if values.is_empty() {
                return (0..array.len()).try_for_each(|index| put(index, None));
            }
            for (index, key) in dictionary.normalized_keys().into_iter().enumerate() {
                let text = values.get(key).copied().flatten().filter(|_| array.is_valid(index));
                put(index, text.map(Cell::Text))?;
            }
            Ok(())
        }
    }
}

/// Times as ISO 8601; a time zone is given as UTC.
fn times(array: &ArrayRef, put: Put<'_>) -> Result<(), Fail> {
    let (array, zone): (ArrayRef, &str) = match array.data_type() {
        DataType::Timestamp(unit, Some(_)) => {
            let none = None::<Arc<str>>;
            let bare: ArrayRef = match unit {
                TimeUnit::Second => Arc::new(array.as_primitive::<TimestampSecondType>().clone().with_timezone_opt(none)),
                TimeUnit::Millisecond => Arc::new(array.as_primitive::<TimestampMillisecondType>().clone().with_timezone_opt(none)),
                TimeUnit::Microsecond => Arc::new(array.as_primitive::<TimestampMicrosecondType>().clone().with_timezone_opt(none)),
                TimeUnit::Nanosecond => Arc::new(array.as_primitive::<TimestampNanosecondType>().clone().with_timezone_opt(none)),
            };
            (bare, "Z")
        }
        _ => (Arc::clone(array), ""),
    };
    let options = FormatOptions::default();
    let formatter = guarded("columnar", || ArrayFormatter::try_new(array.as_ref(), &options))?;
    let mut text = String::new();
    for index in 0..array.len() {
        if array.is_null(index) {
            put(index, None)?;
            continue;
        }
        text.clear();
        if std::fmt::Write::write_fmt(&mut text, format_args!("{}{zone}", formatter.value(index))).is_err() {
            text.push_str("out of range");
        }
        put(index, Some(Cell::Time(&text)))?;
    }
    Ok(())
}
