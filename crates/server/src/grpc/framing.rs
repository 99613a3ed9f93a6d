//! Messages on their way: five bytes before each (compressed or not, and its length), trailers behind the last.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use platform::tenancy::{Collecting, Digested};

use super::heading::{self, Heading};
use super::{CONTENT_TYPE_GRPC, status};
use crate::api::Reply;
use crate::body::{AnswerBody, RequestBody};
use crate::error::{Fail, Result};

/// Bytes before a message.
const PREFIX_BYTES: usize = 5;
/// Most memory taken for a message on the word of its length alone, in bytes.
const RESERVE_BYTES_MAX: usize = 1 << 20;
/// Longest message that is copied behind its prefix to leave in one piece, in bytes.
const COALESCE_BYTES_MAX: usize = 16 << 10;
/// How long the caller wants to wait.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Messages of a request, as they come.
pub(crate) struct Incoming {
    body: RequestBody,
    held: BytesMut,
    length: usize,
    bytes_max: u64,
}

impl Incoming {
    /// Out of a body; no message may be longer than `bytes_max`.
    pub(crate) fn new(body: RequestBody, bytes_max: u64) -> Self {
        Self { body, held: BytesMut::new(), length: 0, bytes_max }
    }

    /// Begins the next message; `false` when there is none.
    pub(crate) async fn begin(&mut self) -> Result<bool> {
        self.body.begin();
        if !self.fill(PREFIX_BYTES).await? {
            return if self.held.is_empty() { Ok(false) } else { Err(broken_off()) };
        }
        let (flag, length) = (self.held.get_u8(), self.held.get_u32());
        match flag {
            0 => {}
            1 => return Err(Fail::new("encoding_unsupported", "send messages uncompressed")),
            _ => return Err(Fail::new("invalid", "what came is no gRPC message")),
        }
        if u64::from(length) > self.bytes_max {
            return Err(Fail::new("too_large", format!("the message is larger than {} bytes", self.bytes_max)));
        }
        self.length = usize::try_from(length).map_err(Fail::internal)?;
        Ok(true)
    }

    /// The first fields of the message that was begun.
    pub(crate) async fn heading(&mut self) -> Result<Heading> {
        let start = self.length.min(heading::BYTES_MAX);
        if !self.fill(start).await? {
            return Err(broken_off());
        }
        Heading::read(self.held.get(..start).unwrap_or_default())
    }

    /// The whole message that was begun, with its digest.
    pub(crate) async fn message(&mut self) -> Result<Digested> {
        let most = u64::try_from(self.length).unwrap_or(u64::MAX);
        let mut message = Collecting::default();
        message.reserve(self.length.min(RESERVE_BYTES_MAX));
        message.push(&self.held.split_to(self.length.min(self.held.len())));
        while message.len() < self.length {
            let Some(mut piece) = self.body.piece(u64::MAX).await? else { return Err(broken_off()) };
            let own = piece.split_to(piece.len().min(self.length - message.len()));
            self.body.collect(&mut message, &own, most).await?;
            self.held.extend_from_slice(&piece);
        }
        Ok(message.finish())
    }

    /// Waits until so many bytes are there; `false` when the body ends before.
    async fn fill(&mut self, bytes: usize) -> Result<bool> {
        while self.held.len() < bytes {
            // Bounded by the length of each message, not of all together.
            match self.body.piece(u64::MAX).await? {
                Some(piece) => self.held.extend_from_slice(&piece),
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

fn broken_off() -> Fail {
    Fail::new("upload_interrupted", "the request broke off inside a message")
}

/// That the request is one of gRPC.
pub(crate) fn content_type(headers: &HeaderMap) -> Result<()> {
    let media = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    if media == CONTENT_TYPE_GRPC || media == "application/grpc+proto" {
        Ok(())
    } else {
        Err(Fail::new("media_type_unsupported", "this address speaks gRPC: `Content-Type: application/grpc`"))
    }
}

/// How long the caller wants to wait, if it says so.
pub(crate) fn time_limit(headers: &HeaderMap) -> Result<Option<Duration>> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).unwrap_or_default();
    let amount = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let amount = if amount { digits.parse::<u64>().ok() } else { None };
    let limit = amount.and_then(|amount| match unit {
        "H" => Some(Duration::from_secs(amount.saturating_mul(3600))),
        "M" => Some(Duration::from_secs(amount.saturating_mul(60))),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    });
    limit.map(Some).ok_or_else(|| Fail::new("invalid", "`grpc-timeout` is not a time"))
}

/// A message with its prefix: `head` and `body` are its two halves.
pub(crate) fn frames(head: &[u8], body: Bytes) -> Vec<Frame<Bytes>> {
    let length = head.len().saturating_add(body.len());
    let mut prefix = BytesMut::with_capacity(PREFIX_BYTES + head.len() + if length <= COALESCE_BYTES_MAX { body.len() } else { 0 });
    prefix.put_u8(0);
    prefix.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    prefix.extend_from_slice(head);
    if length <= COALESCE_BYTES_MAX {
        prefix.extend_from_slice(&body);
        return vec![Frame::data(prefix.freeze())];
    }
    vec![Frame::data(prefix.freeze()), Frame::data(body)]
}

/// An answer of one message.
pub(crate) fn reply(message: Bytes) -> Reply {
    let mut frames = frames(&[], message);
    frames.push(Frame::trailers(status::trailers(None)));
    headed(AnswerBody::frames(frames))
}

/// An answer with this body.
pub(crate) fn headed(body: AnswerBody) -> Reply {
    let headers = vec![(CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_GRPC))];
    Reply { status: StatusCode::OK, headers, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_spelling() {
        let limit = |text: &'static str| time_limit(&HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_static(text))]));
        for (text, millis) in [("1S", 1000), ("250m", 250), ("2M", 120_000), ("1H", 3_600_000), ("5000u", 5), ("7000000n", 7)] {
            assert_eq!(limit(text).unwrap(), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "1.5S", "123456789S", "1 S"] {
            assert!(limit(text).is_err(), "{text}");
        }
        assert_eq!(time_limit(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn only_grpc_is_taken() {
        let check = |text: &'static str| content_type(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(text))])).is_ok();
        assert!(check("application/grpc") && check("application/grpc+proto"));
        for other in ["application/json", "application/grpc-web", "application/grpc+json", "application/grpcx", ""] {
            assert!(!check(other), "{other}");
        }
    }

    #[test]
    fn a_message_leaves_in_one_piece_unless_it_is_large() {
        for (bytes, pieces) in [(0, 1), (COALESCE_BYTES_MAX - 2, 1), (COALESCE_BYTES_MAX, 2)] {
            let frames = frames(b"ab", Bytes::from(vec![7; bytes]));
            let all: Vec<u8> = frames.iter().filter_map(Frame::data_ref).flat_map(|piece| piece.to_vec()).collect();
            assert_eq!((frames.len(), all.len()), (pieces, bytes + 7));
            assert_eq!(all[..5], [&[0][..], &u32::try_from(bytes + 2).unwrap().to_be_bytes()].concat());
        }
    }
}
