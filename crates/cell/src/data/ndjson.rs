//! Newline-delimited JSON: each line an object with the keys of the first; values are numbers, texts, booleans or null.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use wire::{ColumnKind, Fail, FailCode};

use super::{Cell, Head, Limits, Sink, Source, TEXT_BYTES_MAX, check_names, pull::Stream};

/// Longest line in bytes.
const LINE_BYTES_MAX: usize = 4 << 20;

/// Hands the lines to the sink.
pub(super) fn read(source: &mut dyn Source, window: Range<u64>, limits: Limits, sink: &mut dyn Sink) -> Result<(), Fail> {
    let mut lines = Lines { stream: Stream::new(source, 0), number: 0, data: Vec::new() };
    let mut table: Option<Table> = None;
    let mut row = 0_u64;
    while row < window.end && lines.next()? {
        let line = lines.number;
        let object = parse(&lines.data, line)?;
        let table = match &mut table {
            Some(table) => table,
            None => {
                limits.columns(object.0.len())?;
                let heads: Vec<Head> = object.0.iter().map(|(key, _)| Head { name: key.clone(), kind: None }).collect();
                check_names(heads.iter().map(|head| head.name.as_str())).map_err(|fail| fail.at_line(line))?;
                if heads.is_empty() {
                    return Err(invalid("the object has no keys").at_line(line));
                }
                sink.columns(&heads)?;
                table.insert(Table::new(&heads))
            }
        };
        limits.rows(row + 1)?;
        table.fill(object, line)?;
        if row >= window.start {
            for (column, value) in table.values.iter().enumerate() {
                sink.cell(column, row, value.cell()).map_err(|fail| fail.at_line(line))?;
            }
        }
        row += 1;
        sink.rows(row);
    }
    Ok(())
}

fn invalid(message: impl Into<String>) -> Fail {
    Fail::new(FailCode::Invalid, message)
}

fn parse(data: &[u8], line: u64) -> Result<Object, Fail> {
    if std::str::from_utf8(data).is_err() {
        return Err(invalid("the line is not UTF-8").at_line(line));
    }
    serde_json::from_slice(data).map_err(|error| {
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or_default();
        invalid(format!("the line is not a JSON object: {what} at character {}", error.column())).at_line(line)
    })
}

/// The columns, and the values of one line in their order.
struct Table {
    names: Vec<String>,
    index: BTreeMap<String, usize>,
    kinds: Vec<Option<ColumnKind>>,
    values: Vec<Value>,
    seen: Vec<bool>,
}

impl Table {
    fn new(heads: &[Head]) -> Self {
        let names: Vec<String> = heads.iter().map(|head| head.name.clone()).collect();
        let index = names.iter().cloned().enumerate().map(|(column, name)| (name, column)).collect();
        let columns = names.len();
        Self { names, index, kinds: vec![None; columns], values: vec![Value::Null; columns], seen: vec![false; columns] }
    }

    fn fill(&mut self, object: Object, line: u64) -> Result<(), Fail> {
        self.values.fill(Value::Null);
        self.seen.fill(false);
        for (position, (key, value)) in object.0.into_iter().enumerate() {
            let expected = self.names.get(position).is_some_and(|name| *name == key);
            let column = if expected { Some(position) } else { self.index.get(&key).copied() };
            let Some(column) = column else {
                return Err(invalid("the first line has no such key: write every key in the first line, null where there is no value")
                    .at_line(line)
                    .at_column(key));
            };
            let (Some(kind), Some(slot), Some(seen)) = (self.kinds.get_mut(column), self.values.get_mut(column), self.seen.get_mut(column))
            else {
                continue;
            };
            if std::mem::replace(seen, true) {
                return Err(invalid("the key is there twice").at_line(line).at_column(key));
            }
            if let Some(found) = value.kind().map_err(|fail| fail.at_line(line).at_column(&key))? {
                *kind = Some(widen(*kind, found).map_err(|fail| fail.at_line(line).at_column(&key))?);
            }
            *slot = value;
        }
        Ok(())
    }
}

/// Integers and numbers mix; nothing else does.
fn widen(before: Option<ColumnKind>, found: ColumnKind) -> Result<ColumnKind, Fail> {
    use ColumnKind::{Boolean, Integer, Number};
    let word = |kind| match kind {
        Integer | Number => "a number",
        Boolean => "a boolean",
        _ => "text",
    };
    match (before, found) {
        (None, found) => Ok(found),
        (Some(before), found) if before == found => Ok(found),
        (Some(Integer | Number), Integer | Number) => Ok(Number),
        (Some(before), found) => Err(invalid(format!("the value is {}, in an earlier line it is {}", word(found), word(before)))),
    }
}

/// A scalar.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Null,
    Boolean(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    Nested,
}

impl Value {
    fn kind(&self) -> Result<Option<ColumnKind>, Fail> {
        Ok(match self {
            Self::Null => None,
            Self::Boolean(_) => Some(ColumnKind::Boolean),
            Self::Integer(_) => Some(ColumnKind::Integer),
            Self::Number(_) => Some(ColumnKind::Number),
            Self::Text(text) if text.len() > TEXT_BYTES_MAX => {
                return Err(Fail::new(FailCode::TooLarge, "a text is longer than 1 MiB"));
            }
            Self::Text(_) => Some(ColumnKind::Text),
            Self::Nested => return Err(invalid("the value is a list or an object; taken are numbers, texts, booleans and null")),
        })
    }

    fn cell(&self) -> Cell<'_> {
        match self {
            Self::Null | Self::Nested => Cell::Missing,
            Self::Boolean(value) => Cell::Boolean(*value),
            Self::Integer(value) => Cell::Integer(*value),
            Self::Number(value) => Cell::Number(*value),
            Self::Text(value) => Cell::Text(value),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl<'de> Visitor<'de> for Scalar {
            type Value = Value;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Boolean(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Integer(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(i64::try_from(value).map_or(Value::Number(value as f64), Value::Integer))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Number(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Value::Nested)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Nested)
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

/// A line in the order of its keys.
struct Object(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry::<String, Value>()? {
                    entries.push(entry);
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// Lines that are not blank.
struct Lines<'a> {
    stream: Stream<'a>,
    number: u64,
    data: Vec<u8>,
}

impl Lines<'_> {
    /// Reads the next line into `data`; false at the end.
    fn next(&mut self) -> Result<bool, Fail> {
        loop {
            self.data.clear();
            self.number += 1;
            let ended = self.line()?;
            if self.number == 1 && self.data.starts_with(b"\xef\xbb\xbf") {
                self.data.drain(..3);
            }
            if !self.data.trim_ascii().is_empty() {
                return Ok(true);
            }
            if ended {
                return Ok(false);
            }
        }
    }

    /// Reads one line; true at the end of the source.
    fn line(&mut self) -> Result<bool, Fail> {
        loop {
            let block = self.stream.block()?;
            if block.is_empty() {
                return Ok(true);
            }
            let end = block.iter().position(|&byte| byte == b'\n');
            let (line, _) = block.split_at(end.unwrap_or(block.len()));
            self.data.extend_from_slice(line);
            if self.data.len() > LINE_BYTES_MAX {
                return Err(Fail::new(FailCode::TooLarge, "a line is longer than 4 MiB").at_line(self.number));
            }
            let used = line.len() + usize::from(end.is_some());
            self.stream.consume(used);
            if end.is_some() {
                return Ok(false);
            }
        }
    }
}
