//! The frame itself: header, bounds, and a decoder that can be fed bytes in any pieces.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Length of the fixed header in bytes.
pub const HEADER_BYTES: usize = 24;
/// Largest `meta` part in bytes.
pub const META_BYTES_MAX: u32 = 1 << 20;
/// Largest `body` part in bytes.
pub const BODY_BYTES_MAX: u32 = 64 << 20;

const MAGIC: u16 = 0x1A5C;
const VERSION: u8 = 1;

/// What a peer can do wrong, or what can be too large to send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first two bytes are not ours.
    #[error("not a frame: magic {0:#06x}")]
    Magic(u16),
    /// A version this build does not speak.
    #[error("frame version {0} is not spoken here")]
    Version(u8),
    /// A kind that does not exist in this direction.
    #[error("frame kind {0} does not exist in this direction")]
    Kind(u8),
    /// A part is longer than its bound.
    #[error("{part} of {bytes} bytes is over the bound of {bytes_max}")]
    TooLong {
        /// `meta`, `body`, …
        part: &'static str,
        /// What was announced or asked for.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// `meta` or `body` is not what the kind asks for.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is; see [`crate::ToCell`] and [`crate::FromCell`].
    pub kind: u8,
    /// The model slot it speaks of, or 0.
    pub slot: u32,
    /// Ties an answer to its request.
    pub id: u64,
    /// Small structured part.
    pub meta: Bytes,
    /// Raw part.
    pub body: Bytes,
}

impl Frame {
    /// A frame within the bounds.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when a part is over its bound.
    pub fn new(kind: u8, slot: u32, id: u64, meta: Bytes, body: Bytes) -> Result<Self, WireError> {
        bounded("meta", meta.len() as u64, META_BYTES_MAX)?;
        bounded("body", body.len() as u64, BODY_BYTES_MAX)?;
        Ok(Self { kind, slot, id, meta, body })
    }

    /// The header alone; `meta` and `body` follow it on the wire.
    #[must_use]
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        let mut at = &mut out[..];
        at.put_u16_le(MAGIC);
        at.put_u8(VERSION);
        at.put_u8(self.kind);
        at.put_u32_le(self.slot);
        at.put_u64_le(self.id);
        at.put_u32_le(u32::try_from(self.meta.len()).unwrap_or(u32::MAX));
        at.put_u32_le(u32::try_from(self.body.len()).unwrap_or(u32::MAX));
        out
    }

    /// The whole frame in one piece, so that a small one leaves in one write.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.meta.len() + self.body.len());
        out.extend_from_slice(&self.header());
        out.extend_from_slice(&self.meta);
        out.extend_from_slice(&self.body);
        out
    }
}

fn bounded(part: &'static str, bytes: u64, bytes_max: u32) -> Result<(), WireError> {
    if bytes > u64::from(bytes_max) { Err(WireError::TooLong { part, bytes, bytes_max: bytes_max.into() }) } else { Ok(()) }
}

/// Turns bytes in any pieces into frames. Holds at most one frame's worth of bytes beyond what was fed.
///
/// After an error the stream has lost its place: drop the connection.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The buffer to read into directly, for callers that avoid the copy of [`Decoder::feed`].
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Bytes that are still missing until the next frame is whole; at least 1.
    ///
    /// # Errors
    /// As [`Decoder::next`].
    pub fn missing(&self) -> Result<usize, WireError> {
        Ok(match self.lengths()? {
            None => HEADER_BYTES - self.buffer.len(),
            Some((meta, body)) => (HEADER_BYTES + meta + body).saturating_sub(self.buffer.len()).max(1),
        })
    }

    /// The next whole frame, or `None` until more bytes are fed.
    ///
    /// # Errors
    /// [`WireError`] when the peer does not speak this protocol or announces a part over its bound.
    #[expect(clippy::should_implement_trait, reason = "fallible, and an iterator would suggest that None is the end")]
    pub fn next(&mut self) -> Result<Option<Frame>, WireError> {
        let Some((meta, body)) = self.lengths()? else { return Ok(None) };
        if self.buffer.len() < HEADER_BYTES + meta + body {
            return Ok(None);
        }
        let mut header = self.buffer.split_to(HEADER_BYTES);
        header.advance(3);
        let (kind, slot, id) = (header.get_u8(), header.get_u32_le(), header.get_u64_le());
        let meta = self.buffer.split_to(meta).freeze();
        let body = self.buffer.split_to(body).freeze();
        Ok(Some(Frame { kind, slot, id, meta, body }))
    }

    /// Checked lengths of `meta` and `body` once the header is there.
    fn lengths(&self) -> Result<Option<(usize, usize)>, WireError> {
        let Some(mut header) = self.buffer.get(..HEADER_BYTES) else { return Ok(None) };
        let magic = header.get_u16_le();
        if magic != MAGIC {
            return Err(WireError::Magic(magic));
        }
        let version = header.get_u8();
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        header.advance(13);
        let (meta, body) = (header.get_u32_le(), header.get_u32_le());
        bounded("meta", meta.into(), META_BYTES_MAX)?;
        bounded("body", body.into(), BODY_BYTES_MAX)?;
        Ok(Some((meta as usize, body as usize)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(meta: &[u8], body: &[u8]) -> Frame {
        Frame::new(9, 4, 77, Bytes::copy_from_slice(meta), Bytes::copy_from_slice(body)).unwrap()
    }

    #[test]
    fn a_frame_survives_any_cut() {
        let bytes = [frame(b"m", b"body").encode(), frame(b"", b"").encode()].concat();
        for cut in 0..bytes.len() {
            let mut decoder = Decoder::new();
            decoder.feed(&bytes[..cut]);
            let mut got: Vec<_> = std::iter::from_fn(|| decoder.next().unwrap()).collect();
            decoder.feed(&bytes[cut..]);
            got.extend(std::iter::from_fn(|| decoder.next().unwrap()));
            assert_eq!(got, vec![frame(b"m", b"body"), frame(b"", b"")], "cut at {cut}");
        }
    }

    #[test]
    fn lengths_are_refused_before_anything_is_allocated() {
        let mut header = frame(b"", b"").header();
        header[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut decoder = Decoder::new();
        decoder.feed(&header);
        assert!(matches!(decoder.next(), Err(WireError::TooLong { part: "body", .. })));
    }

    #[test]
    fn strangers_are_refused() {
        let good = frame(b"", b"").header();
        for (at, expected) in [(0, "magic"), (2, "version")] {
            let mut bad = good;
            bad[at] ^= 0xff;
            let mut decoder = Decoder::new();
            decoder.feed(&bad);
            assert!(decoder.next().unwrap_err().to_string().contains(expected));
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::new();
            decoder.feed(&bytes);
            while let Ok(Some(frame)) = decoder.next() {
                let _ = crate::ToCell::parse(&frame);
                let _ = crate::FromCell::parse(&frame);
            }
        }

        #[test]
        fn a_good_header_with_hostile_parts_never_panics(kind in any::<u8>(), meta in proptest::collection::vec(any::<u8>(), 0..64), body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let frame = Frame::new(kind, 0, 0, meta.into(), body.into()).unwrap();
            let _ = crate::ToCell::parse(&frame);
            let _ = crate::FromCell::parse(&frame);
        }
    }
}
