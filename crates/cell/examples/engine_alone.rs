//! The engine without the service, for `cargo xtask bench`: the same library, the same options, one thread, no sandbox, no HTTP.
//!
//! `engine_alone MODE LIBRARY MODEL REQUEST.json RUNS` prints one JSON line. With the mode `tensors` only the run with a ready tensor is
//! measured, which is the limit; with `json` the cell's own way from the request's bytes to the answer's bytes.

#![expect(dead_code, unreachable_pub, reason = "the cell is a program: its modules come in by path, and only some of them are used")]

#[path = "../src/admit.rs"]
mod admit;
#[path = "../src/batch.rs"]
mod batch;
#[path = "../src/element.rs"]
mod element;
#[path = "../src/engine.rs"]
mod engine;
#[path = "../src/grpc.rs"]
mod grpc;
#[path = "../src/json.rs"]
mod json;
#[path = "../src/oip.rs"]
mod oip;
#[path = "../src/onnx.rs"]
mod onnx;
#[path = "../src/output.rs"]
mod output;
#[path = "../src/question.rs"]
mod question;
#[path = "../src/scoring.rs"]
mod scoring;
#[path = "../src/tensor.rs"]
mod tensor;

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use ort::session::Session;
use ort::value::TensorRef;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, library, model, request, runs] = arguments.as_slice() else {
        return Err("usage: engine_alone tensors|json LIBRARY MODEL REQUEST.json RUNS".into());
    };
    let (library, runs) = (Path::new(library), runs.parse()?);
    let (model, request) = (std::fs::read(model)?, std::fs::read(request)?);
    let figures = match mode.as_str() {
        "tensors" => tensors(library, &model, &request, runs)?,
        "json" => whole(library, &model, &request, runs)?,
        other => return Err(format!("there is no mode `{other}`").into()),
    };
    writeln!(std::io::stdout(), "{figures}")?;
    Ok(())
}

/// Runs with one ready tensor, as a C program would.
fn tensors(library: &Path, model: &[u8], request: &[u8], runs: usize) -> Result<serde_json::Value> {
    let request: serde_json::Value = serde_json::from_slice(request)?;
    let data = request.pointer("/inputs/0/data").and_then(|data| data.as_array()).ok_or("the request has no data")?;
    let data: Vec<f32> = data.iter().filter_map(serde_json::Value::as_f64).map(|number| number as f32).collect();
    let shape = [1_i64, i64::try_from(data.len())?];
    let environment = ort::init_from(library)?.with_name("alone").with_telemetry(false).build()?;
    let mut session = Session::builder(&environment)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .commit_from_memory(model)?;
    measure(runs, || {
        let input = TensorRef::from_array_view((shape.to_vec(), data.as_slice()))?;
        let outputs = session.run(ort::inputs![input])?;
        std::hint::black_box(&outputs);
        Ok(())
    })
}

/// Bytes in, bytes out, through the cell's parser and encoder.
fn whole(library: &Path, model: &[u8], request: &[u8], runs: usize) -> Result<serde_json::Value> {
    let engine = engine::Engine::start(library)?;
    engine.warm()?;
    let load = wire::Load { name: "m".into(), version: "1".into(), bytes: model.len() as u64, nodes_max: 100_000, batching: None };
    let (mut model, _) = engine::Model::load(&engine, model, &load).map_err(|fail| fail.message)?;
    let question = question::Question::Oip(bytes::Bytes::copy_from_slice(request), None);
    measure(runs, || {
        model.infer(&question).map_err(|fail| fail.message)?;
        Ok(())
    })
}

fn measure(runs: usize, mut run: impl FnMut() -> Result<()>) -> Result<serde_json::Value> {
    for _ in 0..runs / 10 + 1 {
        run()?;
    }
    let mut micros = Vec::with_capacity(runs);
    let (began, cpu) = (Instant::now(), cpu_seconds()?);
    for _ in 0..runs {
        let start = Instant::now();
        run()?;
        micros.push(start.elapsed().as_secs_f64() * 1e6);
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    micros.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| micros.get((micros.len() as f64 * share) as usize).copied().unwrap_or_default();
    let per_run = runs.max(1) as f64;
    Ok(serde_json::json!({"p50_micros": at(0.5), "p99_micros": at(0.99), "cpu_ms": cpu * 1e3 / per_run, "per_second": per_run / seconds}))
}

/// CPU of this process's only busy thread.
fn cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanos: f64 = text.split_whitespace().next().ok_or("schedstat is empty")?.parse()?;
    Ok(nanos / 1e9)
}
