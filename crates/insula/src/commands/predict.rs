//! Predictions over the Open Inference Protocol. A table becomes tensors here, by the names that the model itself gives.

use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::Value;

use crate::client::Client;
use crate::commands::pair;
use crate::commands::table::{ROWS_MAX, Rows};
use crate::failure::{Class, Failure, Result};
use crate::output::Output;

/// Asks for a receipt, and carries it.
const RECEIPT: &str = "insula-receipt";
/// Largest input that is read, in bytes.
const DATA_BYTES_MAX: u64 = 256 << 20;

/// What to predict.
#[derive(Debug, Args)]
pub(crate) struct PredictArgs {
    /// Name of the deployment.
    name: String,
    /// CSV with a header, one JSON object a line, or a whole request of the Open Inference Protocol; `-` for standard input.
    #[arg(long, value_name = "FILE", required_unless_present = "rows", conflicts_with = "rows")]
    data: Option<PathBuf>,
    /// One row, as in age=41,job=nurse; repeatable.
    #[arg(long = "row", value_name = "NAME=VALUE,…", value_parser = row)]
    rows: Vec<Row>,
    /// Demand that this version answers.
    #[arg(long)]
    version: Option<u64>,
    /// Ask for a signed receipt, and keep it in this file.
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
}

/// One row of the command line.
#[derive(Debug, Clone)]
pub(crate) struct Row(Vec<(String, Value)>);

fn row(text: &str) -> Result<Row, String> {
    text.split(',').map(|cell| pair(cell).map(|(name, value)| (name, Value::from(value)))).collect::<Result<Vec<_>, _>>().map(Row)
}

pub(crate) async fn run(args: PredictArgs, client: &Client, output: &Output) -> Result<()> {
    let number = args.version.map(|version| version.to_string());
    let mut path = vec!["v2", "models", args.name.as_str()];
    if let Some(number) = &number {
        path.extend(["versions", number.as_str()]);
    }
    let (body, given) = match &args.data {
        Some(file) => match input(&bytes_of(file)?)? {
            Input::Request(body) => (body, None),
            Input::Rows(rows) => (request(&rows, &path, client).await?, Some(rows.len())),
        },
        None => {
            let mut rows = Rows::default();
            args.rows.into_iter().try_for_each(|Row(cells)| rows.push(cells))?;
            (request(&rows, &path, client).await?, Some(rows.len()))
        }
    };
    path.push("infer");
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(args.receipt.is_some().then_some((RECEIPT, "sign")));
    let (answer, headers) = client.post_bytes(&path, &headers, body).await?;
    if let Some(file) = &args.receipt {
        let receipt = headers.get(RECEIPT).and_then(|text| STANDARD.decode(text).ok());
        let receipt = receipt.ok_or_else(|| Failure::new(Class::Failed, "the service gave no receipt"))?;
        std::fs::write(file, receipt).map_err(|error| Failure::file("write", file, &error))?;
    }
    let answer: Value =
        serde_json::from_slice(&answer).map_err(|_| Failure::new(Class::Failed, "the service answered something that is no JSON"))?;
    shown(&answer, given, output)
}

/// What a file holds.
enum Input {
    /// The protocol's own form, sent as it is.
    Request(Vec<u8>),
    /// A table.
    Rows(Rows),
}

fn input(bytes: &[u8]) -> Result<Input> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Rows::from_csv(bytes).map(Input::Rows);
    }
    match serde_json::from_slice::<Value>(bytes) {
        Ok(value) if value.get("inputs").is_some_and(Value::is_array) => Ok(Input::Request(bytes.to_vec())),
        _ => Rows::from_ndjson(bytes).map(Input::Rows),
    }
}

fn bytes_of(file: &Path) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| Failure::file("read", file, &error);
    let reader: Box<dyn Read> =
        if file.as_os_str() == "-" { Box::new(std::io::stdin().lock()) } else { Box::new(std::fs::File::open(file).map_err(failed)?) };
    let mut bytes = Vec::new();
    reader.take(DATA_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > DATA_BYTES_MAX {
        true => Err(Failure::input(format!("`{}` is larger than {DATA_BYTES_MAX} bytes", file.display()))),
        false => Ok(bytes),
    }
}

/// Asks the deployment for its inputs and lays the rows into them.
async fn request(rows: &Rows, path: &[&str], client: &Client) -> Result<Vec<u8>> {
    let metadata = client.get(path, &[]).await?;
    let inputs = metadata.get("inputs").and_then(Value::as_array).cloned().unwrap_or_default();
    let features = if inputs.len() == 1 { features(path, client).await } else { Vec::new() };
    serde_json::to_vec(&rows.request(&inputs, &features)?).map_err(|error| Failure::new(Class::Failed, error.to_string()))
}

/// Order of the features of a model that takes them all in one tensor, as its run recorded it. Who may only predict, or uploaded
/// the model, has no run to look at: then the order of the columns is the order of the features.
async fn features(path: &[&str], client: &Client) -> Vec<String> {
    let Some(name) = path.get(2) else { return Vec::new() };
    let found = async {
        let deployment = client.get(&["v1", "deployments", name], &[]).await.ok()?;
        let (model, version) = (deployment.get("model")?.as_str()?, deployment.get("serving_version")?.as_u64()?);
        let version = client.get(&["v1", "models", model, "versions", &version.to_string()], &[]).await.ok()?;
        let run = client.get(&["v1", "runs", version.get("run_id")?.as_str()?], &[]).await.ok()?;
        serde_json::from_value(run.get("features")?.clone()).ok()
    };
    found.await.unwrap_or_default()
}

fn shown(answer: &Value, rows: Option<usize>, output: &Output) -> Result<()> {
    if output.is_json() {
        return output.value(answer);
    }
    let outputs = answer.get("outputs").and_then(Value::as_array).cloned().unwrap_or_default();
    let count = rows.or_else(|| {
        outputs.first().and_then(|first| first.pointer("/shape/0")).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
    });
    let count = count.unwrap_or(1).clamp(1, ROWS_MAX);
    let mut table = vec![vec!["row".to_owned()]];
    table.extend((1..=count).map(|row| vec![row.to_string()]));
    for tensor in &outputs {
        let data = tensor.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
        let width = data.len().checked_div(count).unwrap_or(0).max(1);
        let mut cells = data.chunks(width);
        for (number, line) in table.iter_mut().enumerate() {
            if number == 0 {
                line.push(tensor.get("name").and_then(Value::as_str).unwrap_or_default().to_owned());
            } else {
                line.push(cells.next().map(text).unwrap_or_default());
            }
        }
    }
    output.rows(&table)
}

fn text(cells: &[Value]) -> String {
    let one = |cell: &Value| match cell {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => format!("{:.6}", number.as_f64().unwrap_or(f64::NAN)),
        other => other.to_string(),
    };
    cells.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_form_of_the_input_is_told_from_the_content() {
        assert!(matches!(input(br#" {"inputs": []}"#), Ok(Input::Request(_))));
        assert!(matches!(input(b"{\"a\": 1}\n{\"a\": 2}\n"), Ok(Input::Rows(rows)) if rows.len() == 2));
        assert!(matches!(input(b"a,b\n1,2\n"), Ok(Input::Rows(rows)) if rows.len() == 1));
        assert!(input(b"{nonsense").is_err());
    }

    #[test]
    fn answers_are_text() {
        assert_eq!(text(&[json!("a"), json!(1), json!(0.5)]), "a 1 0.500000");
    }
}
