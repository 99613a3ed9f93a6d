//! What is said of one prediction besides its bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Frame, WireError};

/// Bytes of the length of the JSON in `meta`.
const LENGTH_BYTES: usize = 4;
/// Bytes of a [`Run`] in `meta`.
const RUN_BYTES: usize = 16;

/// The answer to a prediction, in the protocol of the question.
///
/// Its `meta` has no field names: this is the frequent frame. Which parts are there follows from its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inferred {
    /// The answer's body.
    pub body: Bytes,
    /// How much of the body is JSON, where tensors in binary form follow it; never more than the body has.
    pub json_bytes: Option<u32>,
    /// The run that made it, where one run may answer several.
    pub run: Option<Run>,
}

/// The run of a model behind an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Rows that were asked for.
    pub rows: u32,
    /// Rows of the whole run; 0 in all of its answers but the first, so that it counts once.
    pub batch: u32,
    /// What the engine took for all of it, in nanoseconds; 0 as above.
    pub nanos: u64,
}

impl From<Bytes> for Inferred {
    /// JSON alone, or protocol buffers.
    fn from(body: Bytes) -> Self {
        Self { body, json_bytes: None, run: None }
    }
}

impl Inferred {
    pub(crate) fn meta(&self) -> Bytes {
        if self.json_bytes.is_none() && self.run.is_none() {
            return Bytes::new();
        }
        let mut meta = BytesMut::with_capacity(LENGTH_BYTES + RUN_BYTES);
        if let Some(json_bytes) = self.json_bytes {
            meta.put_u32_le(json_bytes);
        }
        if let Some(run) = self.run {
            meta.put_u32_le(run.rows);
            meta.put_u32_le(run.batch);
            meta.put_u64_le(run.nanos);
        }
        meta.freeze()
    }

    pub(crate) fn parse(frame: &Frame) -> Result<Self, WireError> {
        let (mut meta, body) = (frame.meta.clone(), frame.body.clone());
        let (length, run) = match meta.len() {
            0 => (false, false),
            LENGTH_BYTES => (true, false),
            RUN_BYTES => (false, true),
            bytes if bytes == LENGTH_BYTES + RUN_BYTES => (true, true),
            _ => return Err(WireError::Malformed("answer")),
        };
        let json_bytes = length.then(|| meta.get_u32_le());
        if json_bytes.is_some_and(|json_bytes| json_bytes as usize > body.len()) {
            return Err(WireError::Malformed("length of JSON"));
        }
        let run = run.then(|| Run { rows: meta.get_u32_le(), batch: meta.get_u32_le(), nanos: meta.get_u64_le() });
        Ok(Self { body, json_bytes, run })
    }
}
