//! Predictions for every row of a data set: a table in, a table of kept columns and the model's outputs out.
//!
//! ```text
//! rows ─► as many as one run takes ─► `dataframe_split` of the scoring protocol ─► the model ─► CSV
//! ```
//! It asks the model as MLflow's scoring protocol would, so that a row gets the same answer here as over the network: columns become
//! inputs by the same rule, missing values are the same. The result is CSV because that keeps a kept column as it was written, `007`
//! included. A list of outputs becomes a column an element (`probabilities_0`, …), a map one a label.
//!
//! How many rows go through the model at once is part of the request: it can change the last bits of a result.

use bytes::Bytes;
use serde_json::Value;
use wire::{BLOCK_BYTES_MAX, Fail, FailCode, Predict, Predicted};

use crate::data::{Cell, Guess, Head, Limits, Sink, Source, guess, read};
use crate::engine::Model;
use crate::question::Question;
use crate::tensor::Datatype;
use crate::train::Events;

/// Most rows in one run of the model.
pub const BATCH_ROWS_MAX: u32 = 4096;
/// Most columns of the result.
const COLUMNS_MAX: usize = 4096;
/// Rows between two reports of progress.
const REPORT_ROWS: u64 = 10_000;

/// Takes the next piece of the result.
pub type Give<'a> = &'a mut dyn FnMut(Bytes) -> Result<(), Fail>;

/// Asks the model about every row.
///
/// # Errors
/// [`Fail`] with the row of the data set that the model, or its input, does not take.
pub fn predict(
    source: &mut dyn Source,
    model: &mut Model,
    spec: &Predict,
    events: &mut dyn Events,
    give: Give<'_>,
) -> Result<Predicted, Fail> {
    let mut rows = Asking::new(model, spec, events, give);
    read(source, spec.format, 0..u64::MAX, Limits::default(), &mut rows)?;
    rows.finish()
}

/// A value that waits for its run.
enum Held {
    Missing,
    /// As written, of a format without types.
    Raw(String),
    Text(String),
    /// A number in decimal.
    Number(String),
    Boolean(bool),
}

impl Held {
    fn of(cell: Cell<'_>) -> Self {
        match cell {
            Cell::Missing => Self::Missing,
            Cell::Raw(text) => Self::Raw(text.to_owned()),
            Cell::Integer(integer) => Self::Number(integer.to_string()),
            Cell::Number(number) if number.is_nan() => Self::Missing,
            Cell::Number(number) => Self::Number(number.to_string()),
            Cell::Boolean(boolean) => Self::Boolean(boolean),
            Cell::Text(text) | Cell::Time(text) => Self::Text(text.to_owned()),
        }
    }

    /// As a field of the result.
    fn text(&self) -> &str {
        match self {
            Self::Missing => "",
            Self::Raw(text) | Self::Text(text) | Self::Number(text) => text,
            Self::Boolean(true) => "true",
            Self::Boolean(false) => "false",
        }
    }

    /// As JSON for an input of this type.
    fn json(&self, datatype: Datatype, out: &mut Vec<u8>) -> Result<(), Fail> {
        if datatype == Datatype::Bytes {
            let text = Value::from(self.text()).to_string();
            out.extend_from_slice(text.as_bytes());
            return Ok(());
        }
        let boolean = |value: bool| match (datatype, value) {
            (Datatype::Bool, true) => "true",
            (Datatype::Bool, false) => "false",
            (_, true) => "1",
            (_, false) => "0",
        };
        let number = |text: &str| match guess(text) {
            Guess::Marker => Ok("null".to_owned()),
            Guess::Boolean(value) => Ok(boolean(value).to_owned()),
            Guess::Integer(integer) => Ok(integer.to_string()),
            Guess::Number(number) if number.is_finite() => Ok(number.to_string()),
            _ => Err(invalid(format!("`{}` is not a number", text.chars().take(40).collect::<String>()))),
        };
        let text = match self {
            Self::Missing => "null".to_owned(),
            Self::Boolean(value) => boolean(*value).to_owned(),
            Self::Raw(text) | Self::Text(text) | Self::Number(text) => number(text)?,
        };
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// What becomes of a column of the data set.
#[derive(Clone, Copy, Default)]
struct Use {
    /// Place among the kept columns.
    kept: Option<usize>,
    /// Place among the features.
    feature: Option<usize>,
}

/// The rows on their way.
struct Asking<'a> {
    model: &'a mut Model,
    spec: &'a Predict,
    events: &'a mut dyn Events,
    give: Give<'a>,
    batch_rows: usize,
    uses: Vec<Use>,
    features: Vec<(String, Datatype)>,
    /// Rows that are not asked about yet: kept columns and features of each.
    waiting: Vec<(Vec<Held>, Vec<Held>)>,
    first_waiting: u64,
    done: u64,
    /// Names of the outputs' columns, once the first answer is there.
    outputs: Option<Vec<String>>,
    out: Vec<u8>,
    out_bytes: u64,
    failed: Option<Fail>,
}

impl<'a> Asking<'a> {
    fn new(model: &'a mut Model, spec: &'a Predict, events: &'a mut dyn Events, give: Give<'a>) -> Self {
        let one_by_one = model.inputs().iter().any(|port| port.shape.first() == Some(&1));
        let batch_rows = if one_by_one { 1 } else { spec.batch_rows.clamp(1, BATCH_ROWS_MAX) as usize };
        Self {
            model,
            spec,
            events,
            give,
            batch_rows,
            uses: Vec::new(),
            features: Vec::new(),
            waiting: Vec::new(),
            first_waiting: 0,
            done: 0,
            outputs: None,
            out: Vec::new(),
            out_bytes: 0,
            failed: None,
        }
    }

    fn finish(mut self) -> Result<Predicted, Fail> {
        if let Some(fail) = self.failed.take() {
            return Err(fail);
        }
        self.ask(usize::MAX)?;
        if self.done == 0 {
            return Err(invalid("the data set has no rows"));
        }
        self.hand_over(true)?;
        self.events.progress("predicting", self.done, self.done);
        Ok(Predicted { rows: self.done, output_bytes: self.out_bytes })
    }

    /// Which columns go where.
    fn plan(&mut self, heads: &[Head]) -> Result<(), Fail> {
        let place = |name: &str| {
            let found = heads.iter().position(|head| head.name == name);
            found.ok_or_else(|| invalid(format!("the data set has no column `{name}`")))
        };
        self.uses = vec![Use::default(); heads.len()];
        for (at, name) in self.spec.keep.iter().enumerate() {
            let column = place(name)?;
            if let Some(of) = self.uses.get_mut(column) {
                of.kept = Some(at);
            }
        }
        let inputs: Vec<(String, Datatype)> = self.model.inputs().iter().map(|port| (port.name.clone(), port.datatype)).collect();
        self.features = match (inputs.as_slice(), self.spec.features.as_slice()) {
            ([(_, datatype)], []) => {
                let others = heads.iter().filter(|head| !self.spec.keep.contains(&head.name));
                others.map(|head| (head.name.clone(), *datatype)).collect()
            }
            ([(_, datatype)], features) => features.iter().map(|name| (name.clone(), *datatype)).collect(),
            _ => inputs,
        };
        if self.features.is_empty() {
            return Err(invalid("every column is kept and none is left to ask about: name the `features`"));
        }
        for (at, (name, _)) in self.features.iter().enumerate() {
            let column = place(name)?;
            if let Some(of) = self.uses.get_mut(column) {
                of.feature = Some(at);
            }
        }
        Ok(())
    }

    /// Asks about the first `rows` waiting rows, in as many runs as that takes.
    fn ask(&mut self, rows: usize) -> Result<(), Fail> {
        let mut ready: Vec<_> = self.waiting.drain(..rows.min(self.waiting.len())).collect();
        while !ready.is_empty() {
            let rest = ready.split_off(self.batch_rows.min(ready.len()));
            self.run(&ready)?;
            self.done += ready.len() as u64;
            self.first_waiting += ready.len() as u64;
            if self.done / REPORT_ROWS != (self.done - ready.len() as u64) / REPORT_ROWS {
                self.events.progress("predicting", self.done, 0);
            }
            ready = rest;
        }
        self.hand_over(false)
    }

    /// One run of the model.
    fn run(&mut self, rows: &[(Vec<Held>, Vec<Held>)]) -> Result<(), Fail> {
        let names: Vec<&str> = self.features.iter().map(|(name, _)| name.as_str()).collect();
        let columns = serde_json::to_string(&names).map_err(|_| invalid("the columns have no names"))?;
        let mut body = format!("{{\"dataframe_split\":{{\"columns\":{columns},\"data\":[").into_bytes();
        for (at, (_, features)) in rows.iter().enumerate() {
            body.extend_from_slice(if at == 0 { b"[" } else { b",[" });
            for (column, (held, (name, datatype))) in features.iter().zip(&self.features).enumerate() {
                if column > 0 {
                    body.push(b',');
                }
                held.json(*datatype, &mut body)
                    .map_err(|fail| invalid(format!("row {}, column `{name}`: {}", self.done + at as u64 + 1, fail.message)))?;
            }
            body.push(b']');
        }
        body.extend_from_slice(b"]}}");
        let (first, last) = (self.done + 1, self.done + rows.len() as u64);
        let answer = self.model.infer(&Question::Scoring(body.into()));
        let answer = answer.map_err(|fail| Fail { message: format!("rows {first} to {last}: {}", fail.message), ..fail })?;
        let mut answer: Value = serde_json::from_slice(&answer.body).map_err(|_| internal("an answer that is no JSON"))?;
        let Value::Array(records) = answer.get_mut("predictions").map(Value::take).unwrap_or_default() else {
            return Err(Fail::new(FailCode::ModelFailed, "the model does not give a row for each row: it cannot be asked about a table"));
        };
        if records.len() != rows.len() {
            return Err(internal("another number of rows than was asked about"));
        }
        for ((kept, _), record) in rows.iter().zip(&records) {
            self.write(kept, record)?;
        }
        Ok(())
    }

    /// One row of the result, and its header before the first.
    fn write(&mut self, kept: &[Held], record: &Value) -> Result<(), Fail> {
        let mut fields = Vec::new();
        flatten(None, record, &mut fields);
        match &self.outputs {
            None => {
                let names: Vec<String> = fields.iter().map(|(name, _)| name.clone()).collect();
                let all: Vec<&str> = self.spec.keep.iter().chain(&names).map(String::as_str).collect();
                if all.len() > COLUMNS_MAX {
                    return Err(Fail::new(FailCode::TooLarge, format!("the result would have more than {COLUMNS_MAX} columns")));
                }
                if let Some(twice) = names.iter().find(|name| self.spec.keep.contains(name)) {
                    return Err(invalid(format!("the model has an output `{twice}` as well: do not keep the column of that name")));
                }
                line(all.into_iter(), &mut self.out);
                self.outputs = Some(names);
            }
            Some(names) if names.iter().eq(fields.iter().map(|(name, _)| name)) => {}
            Some(_) => return Err(Fail::new(FailCode::ModelFailed, "the model gives other outputs here than for the first row")),
        }
        line(kept.iter().map(Held::text).chain(fields.iter().map(|(_, text)| text.as_str())), &mut self.out);
        Ok(())
    }

    /// Hands over what is written, in blocks; all of it at the end.
    fn hand_over(&mut self, end: bool) -> Result<(), Fail> {
        let block = BLOCK_BYTES_MAX as usize;
        while self.out.len() >= block || (end && !self.out.is_empty()) {
            let rest = self.out.split_off(block.min(self.out.len()));
            let piece = std::mem::replace(&mut self.out, rest);
            self.out_bytes += piece.len() as u64;
            (self.give)(piece.into())?;
        }
        Ok(())
    }
}

impl Sink for Asking<'_> {
    fn columns(&mut self, heads: &[Head]) -> Result<(), Fail> {
        self.plan(heads)
    }

    fn wants(&self, column: usize) -> bool {
        self.uses.get(column).is_some_and(|of| of.kept.is_some() || of.feature.is_some())
    }

    fn cell(&mut self, column: usize, row: u64, cell: Cell<'_>) -> Result<(), Fail> {
        if let Some(fail) = self.failed.take() {
            return Err(fail);
        }
        let Some(of) = self.uses.get(column).copied() else { return Ok(()) };
        let at = usize::try_from(row.saturating_sub(self.first_waiting)).unwrap_or(usize::MAX);
        while self.waiting.len() <= at {
            let missing = |count: usize| (0..count).map(|_| Held::Missing).collect();
            self.waiting.push((missing(self.spec.keep.len()), missing(self.features.len())));
        }
        let Some((kept, features)) = self.waiting.get_mut(at) else { return Ok(()) };
        if let Some(slot) = of.kept.and_then(|at| kept.get_mut(at)) {
            *slot = Held::of(cell);
        }
        if let Some(slot) = of.feature.and_then(|at| features.get_mut(at)) {
            *slot = Held::of(cell);
        }
        Ok(())
    }

    fn rows(&mut self, rows: u64) {
        let complete = usize::try_from(rows.saturating_sub(self.first_waiting)).unwrap_or(usize::MAX);
        if self.failed.is_none() && complete >= self.batch_rows {
            // The next cell, or the end, tells of it.
            self.failed = self.ask(complete - complete % self.batch_rows).err();
        }
    }
}

/// A record as fields: lists by number, maps by label.
fn flatten(name: Option<&str>, value: &Value, fields: &mut Vec<(String, String)>) {
    let below = |part: &str| name.map_or_else(|| part.to_owned(), |name| format!("{name}_{part}"));
    match value {
        Value::Object(parts) => parts.iter().for_each(|(part, value)| flatten(Some(&below(part)), value, fields)),
        Value::Array(parts) => parts.iter().enumerate().for_each(|(at, value)| flatten(Some(&below(&at.to_string())), value, fields)),
        scalar => {
            let text = match scalar {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            fields.push((name.unwrap_or_default().to_owned(), text));
        }
    }
}

/// One line of CSV (RFC 4180).
fn line<'t>(fields: impl Iterator<Item = &'t str>, out: &mut Vec<u8>) {
    let start = out.len();
    for (at, field) in fields.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        if field.contains(['"', ',', '\n', '\r']) || field.trim() != field {
            out.push(b'"');
            out.extend_from_slice(field.replace('"', "\"\"").as_bytes());
            out.push(b'"');
        } else {
            out.extend_from_slice(field.as_bytes());
        }
    }
    if out.len() == start {
        // A blank line would be no row.
        out.extend_from_slice(b"\"\"");
    }
    out.push(b'\n');
}

fn invalid(message: impl Into<String>) -> Fail {
    Fail::new(FailCode::Invalid, message)
}

fn internal(message: &str) -> Fail {
    Fail::new(FailCode::Internal, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_become_fields() {
        let mut fields = Vec::new();
        flatten(None, &serde_json::json!({"label": "a,b", "m": {"x": 1, "y": null}, "p": [0.25, 0.75]}), &mut fields);
        let text = |(name, text): &(String, String)| format!("{name}={text}");
        let found: Vec<String> = fields.iter().map(text).collect();
        assert_eq!(found, ["label=a,b", "m_x=1", "m_y=", "p_0=0.25", "p_1=0.75"]);
        let mut out = Vec::new();
        line(["a,b", "", "say \"x\"", " 1", "2"].into_iter(), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "\"a,b\",,\"say \"\"x\"\"\",\" 1\",2\n");
    }

    #[test]
    fn values_fit_the_type_of_their_input() {
        let json = |held: Held, datatype| {
            let mut out = Vec::new();
            held.json(datatype, &mut out).map(|()| String::from_utf8(out).unwrap()).map_err(|fail| fail.message)
        };
        let raw = |text: &str| Held::Raw(text.to_owned());
        for (held, datatype, expected) in [
            (raw("1.50"), Datatype::Fp32, "1.5"),
            (raw("NA"), Datatype::Fp32, "null"),
            (raw("true"), Datatype::Fp32, "1"),
            (raw("true"), Datatype::Bool, "true"),
            (raw("007"), Datatype::Bytes, "\"007\""),
            (Held::Missing, Datatype::Fp64, "null"),
            (Held::Missing, Datatype::Bytes, "\"\""),
            (Held::Number("7".to_owned()), Datatype::Bytes, "\"7\""),
            (Held::Boolean(false), Datatype::Int64, "0"),
        ] {
            assert_eq!(json(held, datatype), Ok(expected.to_owned()));
        }
        assert_eq!(json(raw("inf"), Datatype::Fp32), Err("`inf` is not a number".to_owned()));
        assert_eq!(json(raw("x"), Datatype::Int64), Err("`x` is not a number".to_owned()));
    }
}
