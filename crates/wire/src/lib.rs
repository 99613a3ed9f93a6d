//! Frames between the service and a cell.
//!
//! Both ends of one Unix stream socket speak this. A frame is a fixed header, a small `meta` part and a `body`:
//!
//! ```text
//! 0      2        3     4      8      16      20      24        24+meta      24+meta+body
//! | magic | version | kind | slot |  id  | meta n | body n |  meta …  |   body …   |
//! ```
//!
//! All numbers are little endian. `meta` is JSON for the rare requests and empty for the frequent one ([`Infer`]), whose
//! `body` is the tenant's own bytes, untouched by the service. Each side reads the other as a hostile peer: both
//! parts are bounded *before* anything is allocated, an unknown kind or version is an error, and no length is trusted.
//!
//! ```
//! use wire::{ToCell, FromCell, Decoder};
//! let bytes = ToCell::Unload { slot: 3 }.frame(7)?.encode();
//! let mut decoder = Decoder::new();
//! decoder.feed(&bytes);
//! let frame = decoder.next()?.ok_or("one whole frame")?;
//! assert_eq!(frame.id, 7);
//! assert!(matches!(ToCell::parse(&frame)?, ToCell::Unload { slot: 3 }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Where large things go.** A model travels as a sealed memory file: the frame that names it ([`Load`], [`Admit`]) is sent with
//! one file descriptor attached. Where the socket passes none (a cell under a kernel of its own), it comes before that frame in
//! [`ToCell::Piece`]s. A data set never travels whole: the cell *pulls* it with [`FromCell::Read`] and the service
//! answers with [`ToCell::Block`], so that a data set of any size is read in bounded memory and at random (Parquet keeps its
//! index at the end).
//!
//! What is deliberately missing: sockets, memory files and asynchronous I/O. This crate is pure, so that both decoders can be fuzzed.
//!
//! [`Infer`]: ToCell::Infer
//! [`Load`]: ToCell::Load
//! [`Admit`]: ToCell::Admit

mod frame;
#[cfg(test)]
mod fuzz;
mod infer;
mod job;
mod message;
mod model;
pub mod protobuf;

pub use frame::{BODY_BYTES_MAX, Decoder, Frame, HEADER_BYTES, META_BYTES_MAX, WireError};
pub use infer::{Inferred, Run};
pub use job::{
    Algorithm, ColumnKind, ColumnStatistics, ColumnSummary, Format, Inspect, Inspection, Metric, Predict, Predicted, Preview, Rows, Split,
    Task, Train, Trained,
};
pub use message::{BLOCK_BYTES_MAX, Fail, FailCode, FromCell, LOG_BYTES_MAX, Progress, ToCell};
pub use model::{Batching, Load, ModelInfo, TensorInfo};
