//! Files on this side: downloads that are whole or absent, and tables that become tensors.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use reqwest::Method;
use serde_json::{Map, Value, json};
use tokio::fs::{self, OpenOptions};

use crate::client::{Client, Wanted};
use crate::failure::{Class, Failure, Result};
use crate::output::Output;
use crate::progress;

/// Most rows of one prediction request.
pub(crate) const ROWS_MAX: usize = 100_000;

/// Downloads to a file that appears only when it is whole and has the digest that the service promised.
pub(crate) async fn save(path: &[&str], file: &Path, force: bool, sha256: Option<&str>, client: &Client, output: &Output) -> Result<()> {
    save_wanted(&Wanted { method: Method::GET, path, query: &[], header: None }, file, force, sha256, client, output).await
}

/// The same for what is asked in another way.
pub(crate) async fn save_wanted(
    wanted: &Wanted<'_>,
    file: &Path,
    force: bool,
    sha256: Option<&str>,
    client: &Client,
    output: &Output,
) -> Result<()> {
    let bar = progress::transfer(output, &file.display().to_string(), None);
    let mut digest = Context::new(&SHA256);
    if file.as_os_str() == "-" {
        client.download(wanted, &mut tokio::io::stdout(), &bar, |piece| digest.update(piece)).await?;
        return same(digest, sha256);
    }
    if !force && fs::try_exists(file).await.unwrap_or(true) {
        return Err(Failure::usage(format!("`{}` is there already", file.display())).help("give --force to overwrite it"));
    }
    let part = PathBuf::from(format!("{}.part", file.display()));
    let result = async {
        let mut options = OpenOptions::new();
        let mut to =
            options.write(true).create(true).truncate(true).open(&part).await.map_err(|error| Failure::file("write", &part, &error))?;
        let bytes = client.download(wanted, &mut to, &bar, |piece| digest.update(piece)).await?;
        to.sync_all().await.map_err(|error| Failure::file("write", &part, &error))?;
        same(digest, sha256)?;
        fs::rename(&part, file).await.map_err(|error| Failure::file("write", file, &error))?;
        Ok(bytes)
    }
    .await;
    match result {
        Ok(bytes) => {
            output.note(&format!("{} in `{}`", crate::output::bytes(bytes), file.display()));
            Ok(())
        }
        Err(failure) => {
            // What is left of a download that failed is of no use; that it cannot be removed changes nothing.
            let _ = fs::remove_file(&part).await;
            Err(failure)
        }
    }
}

/// SHA-256 of all that can be read, in hex.
pub(crate) fn sha256(from: &mut dyn std::io::Read) -> std::io::Result<String> {
    let (mut digest, mut piece) = (Context::new(&SHA256), vec![0; 64 << 10]);
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(hex(digest)),
            read => digest.update(piece.get(..read).unwrap_or_default()),
        }
    }
}

fn hex(digest: Context) -> String {
    digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn same(digest: Context, sha256: Option<&str>) -> Result<()> {
    let found = hex(digest);
    match sha256 {
        Some(expected) if !expected.eq_ignore_ascii_case(&found) => {
            Err(Failure::new(Class::Verification, format!("the download has SHA-256 `{found}`, not `{expected}` as it should")))
        }
        _ => Ok(()),
    }
}

/// Rows by column name.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Rows {
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
}

impl Rows {
    /// CSV with a header.
    pub(crate) fn from_csv(text: &[u8]) -> Result<Self> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text);
        let bad = |error: csv::Error| Failure::input(format!("the CSV is not valid: {error}"));
        let columns: Vec<String> = reader.headers().map_err(bad)?.iter().map(str::to_owned).collect();
        let mut rows = Vec::new();
        for record in reader.records() {
            rows.push(record.map_err(bad)?.iter().map(|cell| if cell.is_empty() { Value::Null } else { Value::from(cell) }).collect());
            at_most(rows.len())?;
        }
        Ok(Self { columns, rows })
    }

    /// One JSON object a line.
    pub(crate) fn from_ndjson(text: &[u8]) -> Result<Self> {
        let mut all = Self::default();
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty()) {
            let object: Map<String, Value> =
                serde_json::from_slice(line).map_err(|error| Failure::input(format!("line {}: {error}", number + 1)))?;
            all.push(object.into_iter().collect())?;
        }
        Ok(all)
    }

    /// A row; the columns of the first row are those of all.
    pub(crate) fn push(&mut self, pairs: Vec<(String, Value)>) -> Result<()> {
        if self.rows.is_empty() {
            self.columns = pairs.iter().map(|(name, _)| name.clone()).collect();
        }
        let cell = |column: &String| {
            let found = pairs.iter().find(|(name, _)| name == column).map(|(_, value)| value.clone());
            found.ok_or_else(|| Failure::input(format!("row {} has no `{column}`", self.rows.len() + 1)))
        };
        let row = self.columns.iter().map(cell).collect::<Result<Vec<_>>>()?;
        if let Some((odd, _)) = pairs.iter().find(|(name, _)| !self.columns.contains(name)) {
            return Err(Failure::input(format!("row {} has a `{odd}`, the first row has not", self.rows.len() + 1)));
        }
        self.rows.push(row);
        at_most(self.rows.len())
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// A request of the Open Inference Protocol for a model with these inputs: one input a column where names agree, or
    /// one input that takes all features in a row, in the order of `features` (or, without them, of the columns).
    pub(crate) fn request(&self, inputs: &[Value], features: &[String]) -> Result<Value> {
        if self.rows.is_empty() {
            return Err(Failure::input("there are no rows"));
        }
        let name = |input: &Value| input.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let [only] = inputs
            && !self.columns.contains(&name(only))
        {
            let order = if features.is_empty() { &self.columns } else { features };
            let cells = order.iter().map(|column| self.place(column)).collect::<Result<Vec<_>>>()?;
            return Ok(json!({"inputs": [self.tensor(only, &cells, vec![self.rows.len(), cells.len()])?]}));
        }
        let tensors = inputs.iter().map(|input| {
            let rank = input.get("shape").and_then(Value::as_array).map_or(2, Vec::len);
            let shape = if rank == 1 { vec![self.rows.len()] } else { vec![self.rows.len(), 1] };
            self.tensor(input, &[self.place(&name(input))?], shape)
        });
        Ok(json!({"inputs": tensors.collect::<Result<Vec<_>>>()?}))
    }

    fn place(&self, column: &str) -> Result<usize> {
        self.columns.iter().position(|known| known == column).ok_or_else(|| {
            Failure::input(format!("the data has no column `{column}`, which the model needs"))
                .help(format!("it has: {}", self.columns.join(", ")))
        })
    }

    fn tensor(&self, input: &Value, places: &[usize], shape: Vec<usize>) -> Result<Value> {
        let datatype = input.get("datatype").and_then(Value::as_str).unwrap_or("FP32");
        let mut data = Vec::with_capacity(self.rows.len() * places.len());
        for (number, row) in self.rows.iter().enumerate() {
            for place in places {
                let value = row.get(*place).unwrap_or(&Value::Null);
                let column = self.columns.get(*place).map_or("", String::as_str);
                data.push(typed(value, datatype).map_err(|why| Failure::input(format!("row {}, column `{column}`: {why}", number + 1)))?);
            }
        }
        Ok(json!({"name": input.get("name"), "datatype": datatype, "shape": shape, "data": data}))
    }
}

fn at_most(rows: usize) -> Result<()> {
    if rows <= ROWS_MAX { Ok(()) } else { Err(Failure::input(format!("more than {ROWS_MAX} rows: predict them in parts"))) }
}

/// A cell as the element of a tensor.
fn typed(value: &Value, datatype: &str) -> Result<Value, String> {
    let text = match value {
        Value::Null if datatype == "BYTES" => String::new(),
        Value::Null => return Err("is missing".to_owned()),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let wrong = |what: &str| format!("`{text}` is not {what}");
    match datatype {
        "BYTES" => Ok(text.into()),
        "BOOL" => text.parse::<bool>().map(Value::from).map_err(|_| wrong("true or false")),
        kind if kind.starts_with("FP") || kind == "BF16" => {
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
            number.map(Value::from).ok_or_else(|| wrong("a number"))
        }
        kind if kind.starts_with("UINT") => text.parse::<u64>().map(Value::from).map_err(|_| wrong("a whole number from 0")),
        _ => text.parse::<i64>().map(Value::from).map_err(|_| wrong("a whole number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, datatype: &str, shape: &[i64]) -> Value {
        json!({"name": name, "datatype": datatype, "shape": shape})
    }

    #[test]
    fn columns_find_their_inputs() {
        let rows = Rows::from_csv(b"b,a\n2.5,x\n 4 ,y\n").unwrap();
        let inputs = [input("a", "BYTES", &[-1, 1]), input("b", "FP32", &[-1])];
        let request = rows.request(&inputs, &[]).unwrap();
        assert_eq!(request["inputs"][0], json!({"name": "a", "datatype": "BYTES", "shape": [2, 1], "data": ["x", "y"]}));
        assert_eq!(request["inputs"][1], json!({"name": "b", "datatype": "FP32", "shape": [2], "data": [2.5, 4.0]}));
    }

    #[test]
    fn one_input_takes_all_features_in_their_order() {
        let rows = Rows::from_ndjson(b"{\"b\": 2, \"a\": 1}\n\n{\"a\": 3, \"b\": 4}\n").unwrap();
        let wide = [input("x", "INT64", &[-1, 2])];
        let features = ["a".to_owned(), "b".to_owned()];
        let request = rows.request(&wide, &features).unwrap();
        assert_eq!(request["inputs"][0], json!({"name": "x", "datatype": "INT64", "shape": [2, 2], "data": [1, 2, 3, 4]}));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let table = [
            (&b"a\nx\n"[..], "row 1, column `a`: `x` is not a number"),
            (&b"a\nNaN\n"[..], "`NaN` is not a number"),
            (&b"a,z\n,1\n"[..], "row 1, column `a`: is missing"),
            (&b"a\n"[..], "there are no rows"),
            (&b"a,b\n1\n"[..], "the CSV is not valid"),
        ];
        for (text, expected) in table {
            let result = Rows::from_csv(text).and_then(|rows| rows.request(&[input("a", "FP32", &[-1, 1])], &[]));
            let told = result.unwrap_err().text();
            assert!(told.contains(expected), "{told}");
        }
        let two = [input("a", "FP32", &[-1, 1]), input("b", "FP32", &[-1, 1])];
        let told = Rows::from_csv(b"a\n1\n").unwrap().request(&two, &[]).unwrap_err().text();
        assert!(told.contains("no column `b`"), "{told}");
        assert!(Rows::from_ndjson(b"{\"a\":1}\n{\"b\":1}\n").unwrap_err().text().contains("row 2 has no `a`"));
        assert!(Rows::from_ndjson(b"{\"a\":1}\nnonsense\n").unwrap_err().text().contains("line 2"));
    }

    #[test]
    fn a_digest_that_differs_is_refused() {
        let digest = || {
            let mut digest = Context::new(&SHA256);
            digest.update(b"abc");
            digest
        };
        let right = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
        assert!(same(digest(), Some(right)).is_ok());
        assert_eq!(same(digest(), Some(&right.replace('B', "A"))).unwrap_err().class(), Class::Verification);
    }
}
