//! Bytes of a source: one after the other, or by range.

use bytes::{Bytes, BytesMut};
use wire::{BLOCK_BYTES_MAX, Fail, FailCode};

use super::Source;

/// A source from its start to its end, a block ahead.
pub(super) struct Stream<'a> {
    source: &'a mut dyn Source,
    block: Bytes,
    offset: u64,
}

impl<'a> Stream<'a> {
    /// From `offset` on.
    pub(super) fn new(source: &'a mut dyn Source, offset: u64) -> Self {
        Self { source, block: Bytes::new(), offset }
    }

    /// The bytes at hand; empty only at the end of the source.
    pub(super) fn block(&mut self) -> Result<&[u8], Fail> {
        if self.block.is_empty() && self.offset < self.source.bytes() {
            self.block = self.source.read_at(self.offset, BLOCK_BYTES_MAX)?;
            if self.block.is_empty() {
                return Err(Fail::new(FailCode::Internal, "the source ended early"));
            }
            self.offset = self.offset.saturating_add(self.block.len() as u64);
        }
        Ok(&self.block)
    }

    /// Forgets the next `bytes` of the block.
    pub(super) fn consume(&mut self, bytes: usize) {
        let _ = self.block.split_to(bytes.min(self.block.len()));
    }
}

/// The bytes from `offset`, all of them.
pub(super) fn range(source: &mut dyn Source, offset: u64, bytes: u64) -> Result<Bytes, Fail> {
    if offset.checked_add(bytes).is_none_or(|end| end > source.bytes()) {
        return Err(Fail::new(FailCode::Invalid, "the file is damaged: it points past its end"));
    }
    let mut all = BytesMut::new();
    let mut at = offset;
    let end = offset + bytes;
    while at < end {
        let want = u32::try_from(end - at).unwrap_or(u32::MAX).min(BLOCK_BYTES_MAX);
        let block = source.read_at(at, want)?;
        if block.is_empty() || block.len() > want as usize {
            return Err(Fail::new(FailCode::Internal, "the source ended early"));
        }
        if bytes == block.len() as u64 {
            return Ok(block);
        }
        if all.is_empty() {
            all.reserve(usize::try_from(bytes).unwrap_or(0));
        }
        at += block.len() as u64;
        all.extend_from_slice(&block);
    }
    Ok(all.freeze())
}
