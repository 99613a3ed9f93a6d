//! Arrow IPC, file or stream.
//!
//! A file is a stream between two marks, so both are read as a stream, message by message. The length of every message is checked
//! against a limit and against the source before anything is pulled. Compressed bodies are refused: what they grow to is a claim.

use std::ops::Range;

use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::{MessageHeader, root_as_message};
use bytes::{Bytes, BytesMut};
use wire::{ColumnKind, Fail, FailCode};

use super::{Limits, Sink, Source, batch, pull};

/// Longest header of a message in bytes.
const HEADER_BYTES_MAX: u32 = 16 << 20;
/// Largest body of a message in bytes.
const BATCH_BYTES_MAX: u64 = 256 << 20;
/// Most rows of one batch; columns without buffers make a claim of any length valid.
const BATCH_ROWS_MAX: i64 = 16 << 20;

/// The mark at the start of a file with its padding in bytes, as the widest writer has it.
const MAGIC_BYTES_MAX: u64 = 64;
/// The mark at the end; it also makes the decoder hand over a message without body.
const END: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// What a message holds, as far as it must be known before it is decoded.
enum Message {
    Batch { rows: u64 },
    Other,
}

/// Hands the batches to the sink.
pub(super) fn read(source: &mut dyn Source, window: Range<u64>, limits: Limits, sink: &mut dyn Sink) -> Result<(), Fail> {
    let mut decoder = StreamDecoder::new();
    let bytes = source.bytes();
    let magic = pull::range(source, 0, bytes.min(8))?;
    let mut at = 0;
    if magic.starts_with(b"ARROW1") {
        at = 8;
        while at < MAGIC_BYTES_MAX && pull::range(source, at, 8.min(bytes.saturating_sub(at)))?.iter().all(|&byte| byte == 0) {
            at += 8;
        }
    }
    let mut row = 0_u64;
    let mut kinds: Option<Vec<ColumnKind>> = None;
    let mut ended = false;
    while row < window.end && !ended {
        let mut buffer = match next(source, at)? {
            None => {
                ended = true;
                Buffer::from(END)
            }
            Some((header, body_bytes, message)) => {
                let body_at = at + header.len() as u64;
                at = body_at.checked_add(body_bytes).ok_or_else(damaged)?;
                if let Message::Batch { rows } = message {
                    limits.rows(row.saturating_add(rows))?;
                    if row + rows <= window.start {
                        row += rows;
                        continue;
                    }
                }
                let mut whole = BytesMut::from(&*header);
                whole.extend_from_slice(&pull::range(source, body_at, body_bytes)?);
                Buffer::from(whole.freeze())
            }
        };
        while !buffer.is_empty() {
            let decoded = batch::guarded("Arrow", || decoder.decode(&mut buffer))?;
            if kinds.is_none()
                && let Some(schema) = decoder.schema()
            {
                limits.columns(schema.fields().len())?;
                kinds = Some(batch::announce(&schema, sink)?);
            }
            let Some(decoded) = decoded else { continue };
            let rows = decoded.num_rows() as u64;
            let skip = window.start.saturating_sub(row).min(rows);
            let take = rows.min(window.end.saturating_sub(row)).saturating_sub(skip);
            let part = decoded.slice(usize::try_from(skip).unwrap_or(0), usize::try_from(take).unwrap_or(0));
            for (column, (array, kind)) in part.columns().iter().zip(kinds.iter().flatten()).enumerate() {
                if *kind != ColumnKind::Other && sink.wants(column) {
                    batch::deliver(sink, column, row + skip, array)?;
                }
            }
            row += rows;
            sink.rows(row);
        }
    }
    if kinds.is_none() {
        return Err(damaged());
    }
    Ok(())
}

/// The next message: its header with prefix, the length of its body, what it is. `None` at the end.
fn next(source: &mut dyn Source, at: u64) -> Result<Option<(Bytes, u64, Message)>, Fail> {
    let left = source.bytes().saturating_sub(at);
    if left == 0 {
        return Ok(None);
    }
    let prefix = pull::range(source, at, left.min(8))?;
    let (Some(mark), length) = (prefix.get(..4), prefix.get(4..8)) else { return Err(damaged()) };
    let Some(length) = length.and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes) else {
        return if mark == [0; 4] { Ok(None) } else { Err(damaged()) };
    };
    if mark != [0xff; 4] {
        return Err(Fail::new(FailCode::Unsupported, "this Arrow file is older than version 0.15: write it again"));
    }
    if length == 0 {
        return Ok(None);
    }
    if length > HEADER_BYTES_MAX {
        return Err(Fail::new(FailCode::TooLarge, "a header in the Arrow file is longer than 16 MiB"));
    }
    let header = pull::range(source, at, 8 + u64::from(length))?;
    let (body_bytes, message) = check(header.get(8..).unwrap_or_default())?;
    Ok(Some((header, body_bytes, message)))
}

fn check(header: &[u8]) -> Result<(u64, Message), Fail> {
    let message = root_as_message(header).map_err(|_| damaged())?;
    let body_bytes = u64::try_from(message.bodyLength()).map_err(|_| damaged())?;
    if body_bytes > BATCH_BYTES_MAX {
        return Err(Fail::new(FailCode::TooLarge, "a batch in the Arrow file is larger than 256 MiB: write smaller batches"));
    }
    let (record, is_batch) = match message.header_type() {
        MessageHeader::RecordBatch => (message.header_as_record_batch(), true),
        MessageHeader::DictionaryBatch => (message.header_as_dictionary_batch().and_then(|dictionary| dictionary.data()), false),
        _ => return Ok((body_bytes, Message::Other)),
    };
    let record = record.ok_or_else(damaged)?;
    if record.compression().is_some() {
        let remedy = "the Arrow file is compressed: write it without compression, or as Parquet";
        return Err(Fail::new(FailCode::Unsupported, remedy));
    }
    let ends = record.buffers().into_iter().flatten().map(|buffer| {
        let (offset, length) = (u64::try_from(buffer.offset()).ok()?, u64::try_from(buffer.length()).ok()?);
        offset.checked_add(length)
    });
    if ends.into_iter().any(|end| end.is_none_or(|end| end > body_bytes)) {
        return Err(damaged());
    }
    let rows = record.length();
    if rows > BATCH_ROWS_MAX {
        return Err(Fail::new(
            FailCode::TooLarge,
            format!("a batch in the Arrow file has more than {BATCH_ROWS_MAX} rows: write smaller batches"),
        ));
    }
    let rows = u64::try_from(rows).map_err(|_| damaged())?;
    Ok((body_bytes, if is_batch { Message::Batch { rows } } else { Message::Other }))
}

fn damaged() -> Fail {
    Fail::new(FailCode::Invalid, "the Arrow file is damaged")
}
