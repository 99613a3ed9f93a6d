//! ONNX Runtime, one thread, one environment for the life of the process.
//!
//! The library is loaded and warmed once in the zygote; each cell inherits it by fork and only builds sessions. Everything
//! here is single-threaded by configuration: one intra-op and one inter-op thread mean that the engine runs on the
//! caller's. Sessions are built from bytes, never from a path, and are told that the bytes are ONNX so that no other loader sees them.
//! The engine's own log is swallowed: a jailed process may not write, and its lines would quote tenant data.
//!
//! Options are the engine's defaults apart from the threads, because the same options give the same bits as onnxruntime
//! in Python: no other optimisation level, and requests are joined only where their deployment asks for it (`batch`).
//!
//! What is deliberately missing: custom operators, execution providers, external data, and the ORT format, which the engine
//! writes into files only: a cell has none.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use jail::memory::Room;
use ort::environment::Environment;
use ort::session::{Session, SessionInputValue};
use wire::{Fail, FailCode, Inferred, Load, ModelInfo};

use crate::oip::{self, Signature};
use crate::output::Outputs;
use crate::question::Question;
use crate::tensor::{self, Tensor};
use crate::{admit, batch};

/// Most models in one cell.
pub const SLOTS_MAX: u32 = 1024;
/// Models from this size on are loaded into huge pages, in bytes: below, a page more would be felt in what a cell holds.
const ROOM_FROM_BYTES: usize = 8 << 20;
/// What loading allocates at once: this many times the file (the file's own structure, its weights, and these packed for the kernels).
const ROOM_PER_BYTE: usize = 3;
/// Longest engine message that is passed on, in bytes.
const WORDS_BYTES_MAX: usize = 400;

/// Why the engine cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No library.
    #[error(
        "cannot load ONNX Runtime from `{path}`: {why}\nhelp: run `cargo xtask demo`, or take libonnxruntime.so out of the PyPI wheel `onnxruntime` (1.31.1) and name it in ORT_DYLIB_PATH"
    )]
    Library {
        /// Where it was looked for.
        path: String,
        /// What the loader says.
        why: String,
    },
    /// It does not start.
    #[error("ONNX Runtime does not start: {0}")]
    Start(String),
}

/// The loaded and started library.
#[derive(Debug)]
pub struct Engine {
    environment: Environment,
}

impl Engine {
    /// Loads the library and makes its environment. Once a process.
    ///
    /// # Errors
    /// [`EngineError`] with what to do.
    pub fn start(library: &Path) -> Result<Self, EngineError> {
        let builder = ort::init_from(library)
            .map_err(|error| EngineError::Library { path: library.display().to_string(), why: error.to_string() })?;
        let environment = builder.with_name("cell").with_telemetry(false).with_logger(Arc::new(|_, _, _, _, _| {})).build();
        let environment = environment.map_err(|error| EngineError::Start(words(&error)))?;
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        Ok(Self { environment })
    }

    /// Builds and runs a session of one node, so that what the engine sets up on first use is set up.
    ///
    /// # Errors
    /// [`EngineError::Start`].
    pub fn warm(&self) -> Result<(), EngineError> {
        let fail = |fail: Fail| EngineError::Start(fail.message);
        let tiny = admit::tiny_model();
        let load = Load { name: "warm".into(), version: String::new(), bytes: tiny.len() as u64, nodes_max: 1, batching: None };
        let (mut model, _) = Model::load(self, &tiny, &load).map_err(fail)?;
        let body = Bytes::from_static(br#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[0.5]}]}"#);
        model.infer(&Question::Oip(body, None)).map(drop).map_err(fail)
    }

    fn session(&self, model: &[u8]) -> ort::Result<Session> {
        Session::builder(&self.environment)?
            .with_intra_threads(1)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            .with_config_entry("session.load_model_format", "ONNX")?
            .commit_from_memory(model)
    }
}

/// A model that is ready to predict.
#[derive(Debug)]
pub struct Model {
    pub(crate) session: Session,
    pub(crate) signature: Signature,
    /// Inputs of the request that is read.
    pub(crate) buffers: Vec<Tensor>,
    /// Inputs of those that are run together.
    pub(crate) joined: Vec<Tensor>,
    pub(crate) joins: bool,
    /// Most rows that are run together.
    pub(crate) rows_max: usize,
}

impl Model {
    /// Checks the bytes and builds the session. The bytes are not needed afterwards.
    ///
    /// # Errors
    /// [`FailCode::ModelRefused`] or [`FailCode::TooLarge`] in the user's words.
    pub fn load(engine: &Engine, bytes: &[u8], load: &Load) -> Result<(Self, ModelInfo), Fail> {
        let facts = admit::check(bytes, load.nodes_max)?;
        let before = jail::memory::heap_bytes();
        let room = (bytes.len() >= ROOM_FROM_BYTES).then(|| Room::make(bytes.len().saturating_mul(ROOM_PER_BYTE)));
        let session = engine
            .session(bytes)
            .map_err(|error| Fail::new(FailCode::ModelRefused, format!("the engine does not accept the model: {}", words(&error))))?;
        let signature = Signature::new(&session, &load.name, &load.version)?;
        let joins = load.batching.is_some() && batch::joinable(&signature);
        let rows_max = load.batching.map_or(1, |batching| batching.max_size as usize);
        let (buffers, joined) = (signature.buffers(), signature.buffers());
        drop(room);
        jail::memory::trim();
        let info = ModelInfo {
            inputs: signature.inputs.iter().map(oip::Port::info).collect(),
            outputs: signature.outputs.iter().map(oip::Port::info).collect(),
            opsets: facts.opsets,
            nodes: facts.nodes,
            producer: facts.producer,
            resident_bytes: jail::memory::heap_bytes().saturating_sub(before).saturating_add(SESSION_BYTES),
            smoke_run: false,
        };
        Ok((Self { session, signature, buffers, joined, joins, rows_max }, info))
    }

    /// What it takes, in the model's order.
    #[must_use]
    pub fn inputs(&self) -> &[oip::Port] {
        &self.signature.inputs
    }

    /// One prediction, run for itself.
    ///
    /// # Errors
    /// [`FailCode::Invalid`] for the request, [`FailCode::ModelFailed`] for the model.
    pub fn infer(&mut self, question: &Question) -> Result<Inferred, Fail> {
        let result = self.run(question);
        self.buffers.iter_mut().for_each(Tensor::trim);
        result
    }

    fn run(&mut self, question: &Question) -> Result<Inferred, Fail> {
        let understood = question.read(&self.signature, &mut self.buffers)?;
        let values = lend(&self.buffers)?;
        let outputs = self.session.run(values.as_slice()).map_err(|error| failed(&error))?;
        understood.answer(&self.signature, &Outputs::of(&outputs), None)
    }

    /// Whether requests that wait together may be run together.
    #[must_use]
    pub fn joins(&self) -> bool {
        self.joins
    }

    /// Runs on zeros, with 1 for every open dimension, and tells whether that worked. It proves little when it does not: a model may
    /// rightly fail on zeros (an encoder that knows no such category) or on so small a shape.
    pub fn smoke(&mut self) -> bool {
        for (port, buffer) in self.signature.inputs.iter().zip(&mut self.buffers) {
            let shape: Vec<i64> = port.shape.iter().map(|d| if *d < 0 { 1 } else { *d }).collect();
            let Ok(elements) = tensor::elements(&shape) else { return false };
            buffer.zeros(&shape, elements);
        }
        let done = lend(&self.buffers).is_ok_and(|values| self.session.run(values.as_slice()).is_ok());
        self.buffers.iter_mut().for_each(Tensor::trim);
        done
    }
}

/// What a session takes besides the allocator's bytes: pages it dirtied, what a first run adds.
const SESSION_BYTES: u64 = 512 << 10;

/// Borrows the buffers to the engine.
///
/// # Errors
/// As the engine says.
pub fn lend(buffers: &[Tensor]) -> Result<Vec<SessionInputValue<'_>>, Fail> {
    buffers.iter().map(Tensor::lend).collect::<ort::Result<_>>().map_err(|error| failed(&error))
}

/// A run that failed, in the engine's words.
#[cold]
#[must_use]
pub fn failed(error: &ort::Error) -> Fail {
    Fail::new(FailCode::ModelFailed, format!("the model failed: {}", words(error)))
}

/// The engine's message without its build paths, on one line, cut to a bound.
#[must_use]
pub fn words(error: &ort::Error) -> String {
    let mut out = String::new();
    for word in error.message().split_whitespace().filter(|word| !word.contains("/onnxruntime")) {
        if out.len() + word.len() >= WORDS_BYTES_MAX {
            out.push_str(" …");
            break;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}
