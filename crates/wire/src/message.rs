//! The messages of each direction and their frames.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Frame, Inferred, Inspect, Inspection, Load, ModelInfo, Predict, Predicted, Preview, Rows, Train, Trained, WireError};

/// Largest piece of a source or an output in one frame, in bytes.
pub const BLOCK_BYTES_MAX: u32 = 1 << 20;
/// Longest log line in bytes; a longer one is cut.
pub const LOG_BYTES_MAX: usize = 4096;

/// What the service says to a cell.
#[derive(Debug, Clone, PartialEq)]
pub enum ToCell {
    /// Are you there? Answered by [`FromCell::Ready`].
    Ping,
    /// Load the attached model into `slot`. Answered by [`FromCell::Model`].
    Load {
        /// Where later requests find it.
        slot: u32,
        /// What to load.
        load: Load,
    },
    /// Forget a slot. Answered by [`FromCell::Ready`].
    Unload {
        /// Which.
        slot: u32,
    },
    /// One prediction: the body of an Open Inference Protocol REST request, as the client sent it. Answered by [`FromCell::Inferred`].
    Infer {
        /// Which model.
        slot: u32,
        /// JSON.
        body: Bytes,
    },
    /// One prediction: as [`ToCell::Infer`], with tensors in binary form behind the JSON. Answered by [`FromCell::Inferred`].
    InferBinary {
        /// Which model.
        slot: u32,
        /// Length of the JSON in bytes.
        json_bytes: u32,
        /// JSON, then tensors.
        body: Bytes,
    },
    /// One prediction: a `ModelInferRequest` of the Open Inference Protocol's gRPC service, as the client sent it. Answered by
    /// [`FromCell::Inferred`] with a `ModelInferResponse`.
    InferGrpc {
        /// Which model.
        slot: u32,
        /// Protocol buffers.
        body: Bytes,
    },
    /// One prediction: the body of an MLflow scoring request, as the client sent it. Answered by [`FromCell::Inferred`].
    Score {
        /// Which model.
        slot: u32,
        /// JSON.
        body: Bytes,
    },
    /// Check the attached model as an upload. Answered by [`FromCell::Model`].
    Admit(Load),
    /// Answered by reads and [`FromCell::Inspected`].
    Inspect(Inspect),
    /// Answered by reads and [`FromCell::Previewed`].
    Preview(Preview),
    /// Answered by reads, progress, logs, outputs and [`FromCell::Trained`].
    Train(Train),
    /// Ask the attached model about every row. Answered by reads, progress, outputs and [`FromCell::Predicted`].
    Predict(Predict),
    /// The bytes a [`FromCell::Read`] asked for; shorter only at the end of the source.
    Block(Bytes),
    /// A piece of the model that the next message would otherwise have attached. Not answered.
    Piece(Bytes),
}

/// What a cell says to the service. Hostile until checked.
#[derive(Debug, Clone, PartialEq)]
pub enum FromCell {
    /// Started, or pong, or unloaded.
    Ready,
    /// A model was loaded or admitted.
    Model(ModelInfo),
    /// A prediction.
    Inferred(Inferred),
    /// The data set was read.
    Inspected(Inspection),
    /// Rows of a preview.
    Previewed(Rows),
    /// Training is done; all [`FromCell::Output`] came before.
    Trained(Trained),
    /// Every row was asked about; all [`FromCell::Output`] came before.
    Predicted(Predicted),
    /// Send me a piece of the source, at most [`BLOCK_BYTES_MAX`].
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        bytes: u32,
    },
    /// The next piece of the produced file.
    Output(Bytes),
    /// How far it is.
    Progress(Progress),
    /// A line for the job's log.
    Log(String),
    /// It did not work.
    Fail(Fail),
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// `reading`, `training`, `evaluating`, `writing`.
    pub stage: String,
    /// Done, of `total`.
    pub done: u64,
    /// Units of work; 0 when unknown.
    pub total: u64,
}

/// Why a request failed. The message is for the tenant and may quote the tenant's own input, nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct Fail {
    /// What kind of failure.
    pub code: FailCode,
    /// In the user's words: lower case, no full stop.
    pub message: String,
    /// Line of a text format, 1 is the first (header included), or row of a columnar one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Column name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
}

impl Fail {
    /// A failure without a place.
    #[must_use]
    pub fn new(code: FailCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), line: None, column: None }
    }

    /// The same with a line.
    #[must_use]
    pub fn at_line(mut self, line: u64) -> Self {
        self.line = Some(line);
        self
    }

    /// The same with a column.
    #[must_use]
    pub fn at_column(mut self, column: impl Into<String>) -> Self {
        self.column = Some(column.into());
        self
    }
}

/// Kinds of failure; the service maps each to a public error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailCode {
    /// The tenant's input is wrong: JSON, tensor, row, parameter, target.
    Invalid,
    /// The model is not acceptable: not ONNX, external data, unknown operator, over a budget.
    ModelRefused,
    /// The model failed while running.
    ModelFailed,
    /// Over a limit: rows, columns, nodes, memory.
    TooLarge,
    /// A known thing that is not supported.
    Unsupported,
    /// The slot holds no model.
    NoModel,
    /// The cell is at fault.
    Internal,
}

mod kind {
    pub(super) const PING: u8 = 1;
    pub(super) const LOAD: u8 = 2;
    pub(super) const UNLOAD: u8 = 3;
    pub(super) const INFER: u8 = 4;
    pub(super) const ADMIT: u8 = 5;
    pub(super) const INSPECT: u8 = 6;
    pub(super) const PREVIEW: u8 = 7;
    pub(super) const TRAIN: u8 = 8;
    pub(super) const BLOCK: u8 = 9;
    pub(super) const SCORE: u8 = 10;
    pub(super) const INFER_BINARY: u8 = 11;
    pub(super) const INFER_GRPC: u8 = 12;

    pub(super) const PREDICT: u8 = 20;
    pub(super) const PIECE: u8 = 21;

    pub(super) const READY: u8 = 65;
    pub(super) const MODEL: u8 = 66;
    pub(super) const INFERRED: u8 = 67;
    pub(super) const INSPECTED: u8 = 68;
    pub(super) const PREVIEWED: u8 = 69;
    pub(super) const TRAINED: u8 = 70;
    pub(super) const READ: u8 = 71;
    pub(super) const OUTPUT: u8 = 72;
    pub(super) const PROGRESS: u8 = 73;
    pub(super) const LOG: u8 = 74;
    pub(super) const FAIL: u8 = 75;
    pub(super) const PREDICTED: u8 = 84;
}

fn to_meta<T: Serialize>(value: &T) -> Result<Bytes, WireError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|_| WireError::Malformed("meta"))
}

fn from_meta<T: DeserializeOwned>(frame: &Frame) -> Result<T, WireError> {
    serde_json::from_slice(&frame.meta).map_err(|_| WireError::Malformed("meta"))
}

fn block(body: &Bytes) -> Result<Bytes, WireError> {
    if body.len() > BLOCK_BYTES_MAX as usize {
        return Err(WireError::TooLong { part: "block", bytes: body.len() as u64, bytes_max: BLOCK_BYTES_MAX.into() });
    }
    Ok(body.clone())
}

/// The length of the JSON before tensors, as `meta`.
fn length(json_bytes: u32) -> Bytes {
    Bytes::copy_from_slice(&json_bytes.to_le_bytes())
}

/// The same out of `meta`: no longer than the body.
fn json_length(frame: &Frame) -> Result<u32, WireError> {
    let length = frame.meta[..].try_into().map(u32::from_le_bytes).map_err(|_| WireError::Malformed("length of JSON"))?;
    if length as usize > frame.body.len() { Err(WireError::Malformed("length of JSON")) } else { Ok(length) }
}

impl ToCell {
    /// As a frame with this request id.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when a part is over its bound.
    pub fn frame(&self, id: u64) -> Result<Frame, WireError> {
        let none = Bytes::new;
        let (kind, slot, meta, body) = match self {
            Self::Ping => (kind::PING, 0, none(), none()),
            Self::Load { slot, load } => (kind::LOAD, *slot, to_meta(load)?, none()),
            Self::Unload { slot } => (kind::UNLOAD, *slot, none(), none()),
            Self::Infer { slot, body } => (kind::INFER, *slot, none(), body.clone()),
            Self::InferBinary { slot, json_bytes, body } => (kind::INFER_BINARY, *slot, length(*json_bytes), body.clone()),
            Self::InferGrpc { slot, body } => (kind::INFER_GRPC, *slot, none(), body.clone()),
            Self::Score { slot, body } => (kind::SCORE, *slot, none(), body.clone()),
            Self::Admit(load) => (kind::ADMIT, 0, to_meta(load)?, none()),
            Self::Inspect(inspect) => (kind::INSPECT, 0, to_meta(inspect)?, none()),
            Self::Preview(preview) => (kind::PREVIEW, 0, to_meta(preview)?, none()),
            Self::Train(train) => (kind::TRAIN, 0, to_meta(train)?, none()),
            Self::Predict(predict) => (kind::PREDICT, 0, to_meta(predict)?, none()),
            Self::Block(body) => (kind::BLOCK, 0, none(), block(body)?),
            Self::Piece(body) => (kind::PIECE, 0, none(), block(body)?),
        };
        Frame::new(kind, slot, id, meta, body)
    }

    /// From a frame.
    ///
    /// # Errors
    /// [`WireError`] for a kind of the other direction or malformed parts.
    pub fn parse(frame: &Frame) -> Result<Self, WireError> {
        Ok(match frame.kind {
            kind::PING => Self::Ping,
            kind::LOAD => Self::Load { slot: frame.slot, load: from_meta(frame)? },
            kind::UNLOAD => Self::Unload { slot: frame.slot },
            kind::INFER => Self::Infer { slot: frame.slot, body: frame.body.clone() },
            kind::INFER_BINARY => Self::InferBinary { slot: frame.slot, json_bytes: json_length(frame)?, body: frame.body.clone() },
            kind::INFER_GRPC => Self::InferGrpc { slot: frame.slot, body: frame.body.clone() },
            kind::SCORE => Self::Score { slot: frame.slot, body: frame.body.clone() },
            kind::ADMIT => Self::Admit(from_meta(frame)?),
            kind::INSPECT => Self::Inspect(from_meta(frame)?),
            kind::PREVIEW => Self::Preview(from_meta(frame)?),
            kind::TRAIN => Self::Train(from_meta(frame)?),
            kind::PREDICT => Self::Predict(from_meta(frame)?),
            kind::BLOCK => Self::Block(block(&frame.body)?),
            kind::PIECE => Self::Piece(block(&frame.body)?),
            other => return Err(WireError::Kind(other)),
        })
    }

    /// The slot that a prediction asks; none for everything else.
    #[must_use]
    pub fn asks(&self) -> Option<u32> {
        match self {
            Self::Infer { slot, .. } | Self::InferBinary { slot, .. } | Self::InferGrpc { slot, .. } | Self::Score { slot, .. } => {
                Some(*slot)
            }
            _ => None,
        }
    }

    /// Bytes of a prediction's body; 0 for everything else.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        match self {
            Self::Infer { body, .. } | Self::InferBinary { body, .. } | Self::InferGrpc { body, .. } | Self::Score { body, .. } => {
                body.len()
            }
            _ => 0,
        }
    }

    /// Whether the frame is sent with one file descriptor attached, or behind [`ToCell::Piece`]s where none can be.
    #[must_use]
    pub fn carries_descriptor(&self) -> bool {
        matches!(self, Self::Load { .. } | Self::Admit(_) | Self::Predict(_))
    }
}

impl FromCell {
    /// As a frame that answers request `id`.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when a part is over its bound.
    pub fn frame(&self, id: u64) -> Result<Frame, WireError> {
        let none = Bytes::new;
        let (kind, meta, body) = match self {
            Self::Ready => (kind::READY, none(), none()),
            Self::Model(info) => (kind::MODEL, to_meta(info)?, none()),
            Self::Inferred(inferred) => (kind::INFERRED, inferred.meta(), inferred.body.clone()),
            Self::Inspected(inspection) => (kind::INSPECTED, to_meta(inspection)?, none()),
            Self::Previewed(rows) => (kind::PREVIEWED, none(), to_meta(rows)?),
            Self::Trained(trained) => (kind::TRAINED, to_meta(trained)?, none()),
            Self::Predicted(predicted) => (kind::PREDICTED, to_meta(predicted)?, none()),
            Self::Read { offset, bytes } => {
                let mut meta = BytesMut::with_capacity(12);
                meta.put_u64_le(*offset);
                meta.put_u32_le(*bytes);
                (kind::READ, meta.freeze(), none())
            }
            Self::Output(body) => (kind::OUTPUT, none(), block(body)?),
            Self::Progress(progress) => (kind::PROGRESS, to_meta(progress)?, none()),
            Self::Log(line) => (kind::LOG, none(), cut(line)),
            Self::Fail(fail) => (kind::FAIL, to_meta(fail)?, none()),
        };
        Frame::new(kind, 0, id, meta, body)
    }

    /// From a frame. Everything in it is the word of a hostile peer.
    ///
    /// # Errors
    /// [`WireError`] for a kind of the other direction, malformed parts, or a block over its bound.
    pub fn parse(frame: &Frame) -> Result<Self, WireError> {
        Ok(match frame.kind {
            kind::READY => Self::Ready,
            kind::MODEL => Self::Model(from_meta(frame)?),
            kind::INFERRED => Self::Inferred(Inferred::parse(frame)?),
            kind::INSPECTED => Self::Inspected(from_meta(frame)?),
            kind::PREVIEWED => Self::Previewed(serde_json::from_slice(&frame.body).map_err(|_| WireError::Malformed("rows"))?),
            kind::TRAINED => Self::Trained(from_meta(frame)?),
            kind::PREDICTED => Self::Predicted(from_meta(frame)?),
            kind::READ => {
                let mut meta = frame.meta.clone();
                if meta.len() != 12 {
                    return Err(WireError::Malformed("read"));
                }
                let (offset, bytes) = (meta.get_u64_le(), meta.get_u32_le());
                if bytes > BLOCK_BYTES_MAX {
                    return Err(WireError::TooLong { part: "read", bytes: bytes.into(), bytes_max: BLOCK_BYTES_MAX.into() });
                }
                Self::Read { offset, bytes }
            }
            kind::OUTPUT => Self::Output(block(&frame.body)?),
            kind::PROGRESS => Self::Progress(from_meta(frame)?),
            kind::LOG => {
                let line = std::str::from_utf8(&frame.body).map_err(|_| WireError::Malformed("log"))?;
                if line.len() > LOG_BYTES_MAX {
                    return Err(WireError::TooLong { part: "log", bytes: line.len() as u64, bytes_max: LOG_BYTES_MAX as u64 });
                }
                Self::Log(line.to_owned())
            }
            kind::FAIL => Self::Fail(from_meta(frame)?),
            other => return Err(WireError::Kind(other)),
        })
    }
}

/// The line, cut at a character boundary to the bound.
fn cut(line: &str) -> Bytes {
    let end = line.floor_char_boundary(LOG_BYTES_MAX);
    Bytes::copy_from_slice(line.get(..end).unwrap_or_default().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batching, Run};

    #[test]
    fn every_message_survives_its_frame() {
        let load = Load { name: "m".into(), version: "3".into(), bytes: 64, nodes_max: 10, batching: None };
        let joined = Load { batching: Some(Batching { max_size: 8, window_us: 500 }), ..load.clone() };
        for message in [
            ToCell::Ping,
            ToCell::Load { slot: 2, load: load.clone() },
            ToCell::Load { slot: 3, load: joined },
            ToCell::Unload { slot: 2 },
            ToCell::Infer { slot: 1, body: Bytes::from_static(b"{}") },
            ToCell::Score { slot: 1, body: Bytes::from_static(b"{}") },
            ToCell::InferBinary { slot: 1, json_bytes: 2, body: Bytes::from_static(b"{}xyz") },
            ToCell::InferGrpc { slot: 1, body: Bytes::from_static(b"\x0a\x01d") },
            ToCell::Admit(load.clone()),
            ToCell::Predict(Predict {
                source_bytes: 7,
                format: crate::Format::Csv,
                load,
                features: vec!["x".into()],
                keep: vec!["id".into()],
                batch_rows: 256,
            }),
            ToCell::Block(Bytes::from_static(b"abc")),
            ToCell::Piece(Bytes::from_static(b"abc")),
        ] {
            assert_eq!(ToCell::parse(&message.frame(5).unwrap()).unwrap(), message);
        }
        let run = Some(Run { rows: 2, batch: 16, nanos: u64::MAX });
        for message in [
            FromCell::Ready,
            FromCell::Inferred(Bytes::from_static(b"{}").into()),
            FromCell::Inferred(Inferred { json_bytes: Some(2), ..Bytes::from_static(b"{}xyz").into() }),
            FromCell::Inferred(Inferred { run, ..Bytes::from_static(b"{}").into() }),
            FromCell::Inferred(Inferred { json_bytes: Some(0), run, ..Bytes::from_static(b"{}").into() }),
            FromCell::Read { offset: u64::MAX, bytes: 17 },
            FromCell::Output(Bytes::from_static(b"x")),
            FromCell::Predicted(Predicted { rows: 3, output_bytes: 9 }),
            FromCell::Log("line".into()),
            FromCell::Fail(Fail::new(FailCode::Invalid, "bad").at_line(3).at_column("age")),
        ] {
            assert_eq!(FromCell::parse(&message.frame(5).unwrap()).unwrap(), message);
        }
    }

    #[test]
    fn directions_do_not_mix_and_bounds_hold() {
        assert_eq!(FromCell::parse(&ToCell::Ping.frame(0).unwrap()), Err(WireError::Kind(1)));
        assert!(FromCell::Read { offset: 0, bytes: BLOCK_BYTES_MAX + 1 }.frame(0).is_ok_and(|f| FromCell::parse(&f).is_err()));
        let long = Bytes::from(vec![0; BLOCK_BYTES_MAX as usize + 1]);
        assert!(ToCell::Block(long.clone()).frame(0).is_err() && ToCell::Piece(long).frame(0).is_err());
        let past_the_end = Inferred { json_bytes: Some(3), ..Bytes::from_static(b"{}").into() };
        assert_eq!(FromCell::parse(&FromCell::Inferred(past_the_end).frame(0).unwrap()), Err(WireError::Malformed("length of JSON")));
        let kind = FromCell::Inferred(Bytes::new().into()).frame(0).unwrap().kind;
        for meta in [1, 3, 5, 15, 17, 19, 21, 4096] {
            let frame = Frame::new(kind, 0, 0, Bytes::from(vec![0; meta]), Bytes::new()).unwrap();
            assert_eq!(FromCell::parse(&frame), Err(WireError::Malformed("answer")), "{meta}");
        }
        let long = FromCell::Log("ä".repeat(LOG_BYTES_MAX)).frame(0).unwrap();
        assert!(long.body.len() <= LOG_BYTES_MAX && FromCell::parse(&long).is_ok());
    }
}
