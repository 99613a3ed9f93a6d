//! MLflow's scoring protocol (`/invocations`): four forms of a request to tensors, the engine's outputs to predictions.
//!
//! ```text
//! {"dataframe_split": {"columns": ["age", "income"], "data": [[41, 3.5], [29, null]]}}    {"predictions": [{"label": 1}, {"label": 0}]}
//! {"dataframe_records": [{"age": 41, "income": 3.5}, {"age": 29, "income": null}]}        (the same)
//! {"inputs": [[41, 3.5]]}, {"inputs": {"x": [[41, 3.5]]}}                                  {"predictions": {"label": [1]}}
//! {"instances": [[41, 3.5]]}, {"instances": [{"x": [41, 3.5]}]}                            (the same)
//! ```
//!
//! As MLflow's own ONNX flavor does it: the columns of a data frame become the one input of a model, in the order sent, or each the input
//! of its name, and predictions come back a record a row; tensors are answered by tensors. A column that no input is named after is
//! left out when the model has several. `null` is not-a-number, where the input's type has that.
//!
//! The text is walked twice: once to find what is there, once to read it. Nothing is built in between but the names of columns.
//!
//! What is deliberately missing: CSV, and `params`, which an ONNX model has no use for.

use serde_json::json;
use wire::{BODY_BYTES_MAX, Fail, FailCode};

use crate::json::{Reader, invalid};
use crate::oip::{PORTS_MAX, Port, Signature, names};
use crate::output::Part;
use crate::tensor::{Datatype, RANK_MAX, Tensor, too_long};

/// Most columns of a data frame.
const COLUMNS_MAX: usize = 1 << 16;

/// How predictions are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A record a row; the number of rows.
    Records(usize),
    /// A list an output.
    Tensors,
}

/// Reads a request's body; the tensors go into `buffers`, which are in the model's order.
///
/// # Errors
/// [`FailCode::Invalid`] in the user's words.
pub fn parse(body: &[u8], signature: &Signature, buffers: &mut [Tensor]) -> Result<Form, Fail> {
    const FORMS: &str = "`dataframe_split`, `dataframe_records`, `inputs` or `instances`";
    buffers.iter_mut().for_each(Tensor::begin);
    let mut reader = Reader::new(body)?;
    let mut found: Option<(&str, usize)> = None;
    reader.object(&format!("an object with {FORMS}"), |reader, field| {
        let name = match field {
            "dataframe_split" => "dataframe_split",
            "dataframe_records" => "dataframe_records",
            "inputs" => "inputs",
            "instances" => "instances",
            "params" => {
                let given = reader.skip()?;
                let empty = given == "null" || given.bytes().all(|b| matches!(b, b'{' | b'}' | b' ' | b'\n' | b'\r' | b'\t'));
                return if empty { Ok(()) } else { Err(invalid("`params` are not supported: an ONNX model takes none")) };
            }
            other => return Err(invalid(format!("the request has an unknown field `{other}`: give one of {FORMS}"))),
        };
        if let Some((before, _)) = found {
            return Err(invalid(format!("the request has `{before}` and `{name}`: give one of {FORMS}")));
        }
        found = Some((name, reader.offset()));
        reader.skip().map(drop)
    })?;
    reader.end()?;
    let (form, at) = found.ok_or_else(|| invalid(format!("the request has nothing to predict from: give one of {FORMS}")))?;
    let mut reader = reader.at(at);
    match form {
        "dataframe_split" => split(&mut reader, signature, buffers).map(Form::Records),
        "dataframe_records" => records(&mut reader, signature, buffers).map(Form::Records),
        "inputs" if reader.peek() == Some(b'{') => named(&mut reader, signature, buffers).map(|()| Form::Tensors),
        "instances" if first_is_object(&reader) => stacked(&mut reader, signature, buffers).map(|()| Form::Tensors),
        _ => single(&mut reader, signature, buffers).map(|()| Form::Tensors),
    }
}

/// Which input each column of a data frame goes into.
struct Plan {
    /// By column; `None` is left out.
    inputs: Vec<Option<usize>>,
    /// All columns are the one input.
    matrix: bool,
}

impl Plan {
    fn new(columns: &[String], signature: &Signature) -> Result<Self, Fail> {
        if signature.inputs.len() <= 1 {
            return Ok(Self { inputs: vec![Some(0); columns.len()], matrix: true });
        }
        let mut inputs = vec![None; columns.len()];
        for (index, port) in signature.inputs.iter().enumerate() {
            let mut found = columns.iter().zip(&mut inputs).filter(|(name, _)| **name == port.name);
            let (_, input) = found.next().ok_or_else(|| {
                invalid(format!("column `{}` is missing: the model has the inputs {}", port.name, names(&signature.inputs)))
            })?;
            if found.next().is_some() {
                return Err(invalid(format!("column `{}` is there twice", port.name)));
            }
            *input = Some(index);
        }
        Ok(Self { inputs, matrix: false })
    }

    /// Reads the value of one column.
    fn put(&self, reader: &mut Reader<'_>, column: usize, buffers: &mut [Tensor]) -> Result<(), Fail> {
        match self.inputs.get(column).copied().flatten().and_then(|input| buffers.get_mut(input)) {
            Some(buffer) => buffer.push(reader),
            None => reader.skip().map(drop),
        }
    }

    /// Gives the inputs their shapes when all rows are read.
    fn done(&self, rows: usize, signature: &Signature, buffers: &mut [Tensor]) -> Result<usize, Fail> {
        let (count, width) = (dimension(rows)?, dimension(self.inputs.len())?);
        for (port, buffer) in signature.inputs.iter().zip(buffers) {
            let shape = match (self.matrix, port.shape.len()) {
                (true, 1) if width == 1 => vec![count],
                (true, _) => vec![count, width],
                (false, 1) => vec![count],
                (false, _) => vec![count, 1],
            };
            shaped(port, buffer, &shape)?;
        }
        Ok(rows)
    }
}

/// `{"columns": […], "data": [[…], …]}`, `index` ignored.
fn split(reader: &mut Reader<'_>, signature: &Signature, buffers: &mut [Tensor]) -> Result<usize, Fail> {
    let (mut columns, mut data, mut index) = (None, None, false);
    reader.object("an object with `columns` and `data`", |reader, field| match field {
        "columns" if columns.is_none() => {
            let mut found = Vec::new();
            reader.array("an array of column names", |reader| {
                if found.len() == COLUMNS_MAX {
                    return Err(invalid(format!("more than {COLUMNS_MAX} columns")));
                }
                found.push(if reader.peek() == Some(b'"') {
                    reader.string("a name")?.into_owned()
                } else {
                    reader.number()?.text.to_owned()
                });
                Ok(())
            })?;
            columns = Some(found);
            Ok(())
        }
        "data" if data.is_none() => {
            data = Some(reader.offset());
            reader.skip().map(drop)
        }
        "index" if !index => {
            index = true;
            reader.skip().map(drop)
        }
        other => {
            Err(invalid(format!("`dataframe_split` has an unknown or repeated field `{other}`: known are `columns`, `data`, `index`")))
        }
    })?;
    let mut reader = reader.at(data.ok_or_else(|| invalid("`dataframe_split` has no `data`"))?);
    let columns = match columns {
        Some(columns) => columns,
        None => (0..first_length(&reader)?).map(|at| at.to_string()).collect(),
    };
    let plan = Plan::new(&columns, signature)?;
    let mut rows = 0;
    reader.array("an array of rows", |reader| {
        let mut at = 0;
        reader.array("a row", |reader| {
            let name = columns.get(at).ok_or_else(|| invalid(format!("row {rows} has more than {} values", columns.len())))?;
            plan.put(reader, at, buffers).map_err(|fail| placed(fail, rows, name))?;
            at += 1;
            Ok(())
        })?;
        if at < columns.len() {
            return Err(invalid(format!("row {rows} has {at} values where there are {} columns", columns.len())));
        }
        rows += 1;
        Ok(())
    })?;
    plan.done(rows, signature, buffers)
}

/// `[{"age": 41, …}, …]`: each record has the columns of the first, in any order.
fn records(reader: &mut Reader<'_>, signature: &Signature, buffers: &mut [Tensor]) -> Result<usize, Fail> {
    let mut columns: Vec<String> = Vec::new();
    let mut plan = None;
    let mut cells: Vec<Option<usize>> = Vec::new();
    let mut rows = 0;
    reader.array("an array of records", |reader| {
        cells.iter_mut().for_each(|cell| *cell = None);
        let mut next = 0;
        reader.object("a record", |reader, field| {
            if rows == 0 {
                if columns.len() == COLUMNS_MAX {
                    return Err(invalid(format!("more than {COLUMNS_MAX} columns")));
                }
                columns.push(field.to_owned());
                cells.push(Some(reader.offset()));
            } else {
                // Mostly they come in the same order.
                let at = if columns.get(next).is_some_and(|name| name == field) {
                    next
                } else {
                    let found = columns.iter().position(|name| name == field);
                    found.ok_or_else(|| invalid(format!("record {rows} has `{field}`, which record 0 has not")))?
                };
                next = at + 1;
                let cell = cells.get_mut(at).ok_or_else(|| invalid("a record without its columns"))?;
                if cell.replace(reader.offset()).is_some() {
                    return Err(invalid(format!("record {rows} has `{field}` twice")));
                }
            }
            reader.skip().map(drop)
        })?;
        if plan.is_none() {
            plan = Some(Plan::new(&columns, signature)?);
        }
        for (at, (name, cell)) in columns.iter().zip(&cells).enumerate() {
            let cell = cell.ok_or_else(|| invalid(format!("record {rows} has no `{name}`, which record 0 has")))?;
            if let Some(plan) = &plan {
                plan.put(&mut reader.at(cell), at, buffers).map_err(|fail| placed(fail, rows, name))?;
            }
        }
        rows += 1;
        Ok(())
    })?;
    let plan = plan.ok_or_else(|| invalid("`dataframe_records` has no record"))?;
    plan.done(rows, signature, buffers)
}

/// One tensor for the only input.
fn single(reader: &mut Reader<'_>, signature: &Signature, buffers: &mut [Tensor]) -> Result<(), Fail> {
    let ([port], [buffer]) = (signature.inputs.as_slice(), buffers) else {
        return Err(invalid(format!("the model has several inputs: give an object with {}", names(&signature.inputs))));
    };
    let shape = shape_of(reader)?;
    fill(reader, &shape, buffer).map_err(|fail| at_input(port, fail))?;
    shaped(port, buffer, &shape)
}

/// `{"x": […], "y": […]}`: a tensor an input.
fn named(reader: &mut Reader<'_>, signature: &Signature, buffers: &mut [Tensor]) -> Result<(), Fail> {
    let mut given = vec![false; signature.inputs.len()];
    reader.object("an object of inputs", |reader, name| {
        let (index, port) = input_named(signature, name)?;
        let (Some(given), Some(buffer)) = (given.get_mut(index), buffers.get_mut(index)) else {
            return Err(invalid("an input without its place"));
        };
        if std::mem::replace(given, true) {
            return Err(invalid(format!("input `{name}` is given twice")));
        }
        let shape = shape_of(reader)?;
        fill(reader, &shape, buffer).map_err(|fail| at_input(port, fail))?;
        shaped(port, buffer, &shape)
    })?;
    missing(signature, &given)
}

/// `[{"x": …, "y": …}, …]`: an object a row, stacked to a tensor an input.
fn stacked(reader: &mut Reader<'_>, signature: &Signature, buffers: &mut [Tensor]) -> Result<(), Fail> {
    let mut shapes: Vec<Option<Vec<i64>>> = vec![None; signature.inputs.len().min(PORTS_MAX)];
    let mut rows = 0usize;
    reader.array("an array of instances", |reader| {
        let mut given = vec![false; signature.inputs.len()];
        reader.object("an object of inputs", |reader, name| {
            let (index, port) = input_named(signature, name)?;
            let (Some(given), Some(buffer), Some(shape)) = (given.get_mut(index), buffers.get_mut(index), shapes.get_mut(index)) else {
                return Err(invalid("an input without its place"));
            };
            if std::mem::replace(given, true) {
                return Err(invalid(format!("instance {rows} has `{name}` twice")));
            }
            if shape.is_none() {
                *shape = Some(shape_of(reader)?);
            }
            let shape = shape.as_deref().unwrap_or_default();
            fill(reader, shape, buffer)
                .map_err(|fail| at_input(port, Fail { message: format!("instance {rows}: {}", fail.message), ..fail }))
        })?;
        missing(signature, &given)?;
        rows += 1;
        Ok(())
    })?;
    for ((port, buffer), shape) in signature.inputs.iter().zip(buffers).zip(shapes) {
        let mut stacked = vec![dimension(rows)?];
        stacked.extend(shape.unwrap_or_default());
        shaped(port, buffer, &stacked)?;
    }
    Ok(())
}

fn input_named<'s>(signature: &'s Signature, name: &str) -> Result<(usize, &'s Port), Fail> {
    let found = signature.inputs.iter().enumerate().find(|(_, port)| port.name == name);
    found.ok_or_else(|| invalid(format!("the model has no input `{name}`: it has {}", names(&signature.inputs))))
}

fn missing(signature: &Signature, given: &[bool]) -> Result<(), Fail> {
    match signature.inputs.iter().zip(given).find(|(_, given)| !**given) {
        None => Ok(()),
        Some((port, _)) => {
            Err(invalid(format!("input `{}` is missing: expected {} of shape {:?}", port.name, port.datatype.name(), port.shape)))
        }
    }
}

/// Ends an input's tensor, if the model takes one of this shape.
fn shaped(port: &Port, buffer: &mut Tensor, shape: &[i64]) -> Result<(), Fail> {
    if !port.accepts(shape) {
        return Err(invalid(format!("input `{}`: expected shape {:?} (-1 is any), got {shape:?}", port.name, port.shape)));
    }
    buffer.shaped(shape).map_err(|fail| at_input(port, fail))
}

/// The shape of nested lists, as their first elements say.
fn shape_of(reader: &mut Reader<'_>) -> Result<Vec<i64>, Fail> {
    let mut shape = Vec::new();
    let start = reader.offset();
    let mut level = reader.at(start);
    while level.peek() == Some(b'[') {
        if shape.len() == RANK_MAX {
            return Err(invalid(format!("lists nest deeper than {RANK_MAX} dimensions")));
        }
        let (mut count, mut first) = (0, None);
        level.array("a list", |reader| {
            first = first.or(Some(reader.offset()));
            count += 1;
            reader.skip().map(drop)
        })?;
        shape.push(dimension(count)?);
        let Some(first) = first else { break };
        level = reader.at(first);
    }
    Ok(shape)
}

/// Reads nested lists: each must be as long as its dimension says.
fn fill(reader: &mut Reader<'_>, shape: &[i64], buffer: &mut Tensor) -> Result<(), Fail> {
    let Some((dimension, inner)) = shape.split_first() else { return buffer.push(reader) };
    let mut count = 0i64;
    reader.array("a list as deep as the first one", |reader| {
        count += 1;
        fill(reader, inner, buffer)
    })?;
    if count == *dimension { Ok(()) } else { Err(invalid(format!("a list has {count} elements where the first one has {dimension}"))) }
}

fn first_is_object(reader: &Reader<'_>) -> bool {
    let mut reader = reader.at_here();
    reader.take(b'[') && reader.peek() == Some(b'{')
}

/// Length of the first list in a list.
fn first_length(reader: &Reader<'_>) -> Result<usize, Fail> {
    let mut reader = reader.at_here();
    let mut count = 0;
    if reader.take(b'[') && reader.peek() == Some(b'[') {
        reader.array("a row", |reader| {
            count += 1;
            reader.skip().map(drop)
        })?;
    }
    if count > COLUMNS_MAX { Err(invalid(format!("more than {COLUMNS_MAX} columns"))) } else { Ok(count) }
}

fn dimension(count: usize) -> Result<i64, Fail> {
    i64::try_from(count).map_err(|_| invalid("too many rows"))
}

#[cold]
fn placed(fail: Fail, row: usize, column: &str) -> Fail {
    Fail { message: format!("row {row}, column `{column}`: {}", fail.message), ..fail }
}

#[cold]
fn at_input(port: &Port, fail: Fail) -> Fail {
    Fail { message: format!("input `{}`: {}", port.name, fail.message), ..fail }
}

/// Writes the answer's body.
///
/// # Errors
/// [`FailCode::ModelFailed`] for outputs that JSON cannot carry, [`FailCode::TooLarge`].
pub fn write(signature: &Signature, form: Form, outputs: &[Part<'_, '_>], out: &mut Vec<u8>) -> Result<(), Fail> {
    out.clear();
    let columns: Vec<Output> =
        signature.outputs.iter().zip(outputs).map(|(port, value)| Output::of(port, *value)).collect::<Result<_, _>>()?;
    out.extend_from_slice(b"{\"predictions\":");
    match form {
        // An output that has not a row for each row cannot be answered in records.
        Form::Records(rows) if columns.iter().all(|column| column.ends.len() == rows) => {
            out.push(b'[');
            for row in 0..rows {
                out.extend_from_slice(if row == 0 { b"{" } else { b",{" });
                for (at, column) in columns.iter().enumerate() {
                    column.name_to(at, out);
                    out.extend_from_slice(column.row(row));
                }
                out.push(b'}');
                if out.len() > BODY_BYTES_MAX as usize {
                    return Err(too_long());
                }
            }
            out.push(b']');
        }
        _ => {
            out.push(b'{');
            for (at, column) in columns.iter().enumerate() {
                column.name_to(at, out);
                column.all_to(out);
            }
            out.push(b'}');
        }
    }
    out.push(b'}');
    if out.len() > BODY_BYTES_MAX as usize { Err(too_long()) } else { Ok(()) }
}

/// One output, as the texts of its rows.
struct Output {
    name: String,
    text: Vec<u8>,
    ends: Vec<usize>,
    /// It has no dimension: one value, which is no list.
    scalar: bool,
    /// Its rows are lists of one value, which records hold bare.
    single: bool,
}

impl Output {
    fn of(port: &Port, value: Part<'_, '_>) -> Result<Self, Fail> {
        let named = |fail: Fail| Fail { message: format!("output `{}`: {}", port.name, fail.message), ..fail };
        let mut output = Self { name: json!(port.name).to_string(), text: Vec::new(), ends: Vec::new(), scalar: false, single: false };
        if let Some(key) = port.maps {
            value.table(key).and_then(|table| table.write_rows(&mut output.text, &mut output.ends)).map_err(named)?;
            return Ok(output);
        }
        let (ty, shape) = value.tensor().map_err(named)?;
        if Datatype::of(ty) != Some(port.datatype) {
            return Err(named(Fail::new(FailCode::ModelFailed, format!("the model declares {} and gave {ty}", port.datatype.name()))));
        }
        let row = shape.get(1..).unwrap_or_default();
        output.scalar = shape.is_empty();
        output.single = row.len() == 1 && row.first() == Some(&1);
        port.datatype.write_rows(value, row, &mut output.text, &mut output.ends).map_err(named)?;
        Ok(output)
    }

    fn name_to(&self, at: usize, out: &mut Vec<u8>) {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(self.name.as_bytes());
        out.push(b':');
    }

    fn whole_row(&self, row: usize) -> &[u8] {
        let start = row.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(row).and_then(|end| self.text.get(start..*end)).unwrap_or(b"null")
    }

    /// A row as a record holds it.
    fn row(&self, row: usize) -> &[u8] {
        let whole = self.whole_row(row);
        if self.single { whole.strip_prefix(b"[").and_then(|row| row.strip_suffix(b"]")).unwrap_or(whole) } else { whole }
    }

    /// All rows as a list.
    fn all_to(&self, out: &mut Vec<u8>) {
        if self.scalar {
            return out.extend_from_slice(self.whole_row(0));
        }
        out.push(b'[');
        for row in 0..self.ends.len() {
            if row > 0 {
                out.push(b',');
            }
            out.extend_from_slice(self.whole_row(row));
        }
        out.push(b']');
    }
}
