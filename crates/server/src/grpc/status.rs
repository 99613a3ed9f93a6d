//! The one place where errors become gRPC: every code of [`crate::error::CODES`] has its status here.

use http::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::CONTENT_TYPE_GRPC;
use crate::body::AnswerBody;
use crate::error::Fail;

/// How a call ended.
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Why, percent-encoded.
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// What messages may be compressed with.
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Longest message in a header, in bytes before encoding.
const MESSAGE_BYTES_MAX: usize = 2048;

const CANCELLED: u8 = 1;
const INVALID_ARGUMENT: u8 = 3;
const DEADLINE_EXCEEDED: u8 = 4;
const NOT_FOUND: u8 = 5;
const PERMISSION_DENIED: u8 = 7;
const RESOURCE_EXHAUSTED: u8 = 8;
const FAILED_PRECONDITION: u8 = 9;
const ABORTED: u8 = 10;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;
const DATA_LOSS: u8 = 15;
const UNAUTHENTICATED: u8 = 16;

/// The status of a code; `None` for one that nobody put here.
fn known(code: &str) -> Option<u8> {
    Some(match code {
        "unauthenticated" => UNAUTHENTICATED,
        "forbidden" | "credential_kind" | "tenant_state" | "gate_closed" => PERMISSION_DENIED,
        "not_found" => NOT_FOUND,
        "route_unknown" | "method_not_allowed" | "not_implemented" | "unsupported" | "encoding_unsupported" | "media_type_unsupported" => {
            UNIMPLEMENTED
        }
        "invalid" | "invalid_input" | "path_invalid" | "request_ambiguous" | "json_invalid" | "query_invalid" | "grant_unsupported"
        | "expectation_failed" => INVALID_ARGUMENT,
        "quota_exceeded" | "too_large" | "out_of_memory" => RESOURCE_EXHAUSTED,
        "model_refused" | "model_failed" | "not_deployable" | "mlflow_state" => FAILED_PRECONDITION,
        "conflict" => ABORTED,
        "deadline_exceeded" | "body_timeout" => DEADLINE_EXCEEDED,
        "cancelled" | "upload_interrupted" => CANCELLED,
        "unavailable" | "overloaded" | "model_unstable" | "cell_unavailable" => UNAVAILABLE,
        // Not UNAVAILABLE, at which clients ask again by themselves: what broke a sandbox would break the next.
        "internal" | "cell_failed" | "node_lost" => INTERNAL,
        "integrity" => DATA_LOSS,
        _ => return None,
    })
}

/// Trailers of a call that went well, or of one that did not.
pub(crate) fn trailers(fail: Option<&Fail>) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(3);
    let status = fail.map_or(0, |fail| known(fail.code()).unwrap_or(INTERNAL));
    trailers.insert(GRPC_STATUS, HeaderValue::from(u16::from(status)));
    if let Some(fail) = fail {
        if let Ok(message) = HeaderValue::from_str(&encoded(fail.detail())) {
            trailers.insert(GRPC_MESSAGE, message);
        }
        if status == UNIMPLEMENTED {
            trailers.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
    }
    trailers
}

/// A call that failed before any message of its answer: trailers alone.
pub(crate) fn answer(fail: &Fail) -> Response<AnswerBody> {
    let mut answer = Response::new(AnswerBody::full(bytes::Bytes::new()));
    *answer.headers_mut() = trailers(Some(fail));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_GRPC));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Percent-encoding as the protocol has it: printable ASCII stays, `%` does not.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.get(..text.floor_char_boundary(MESSAGE_BYTES_MAX)).unwrap_or_default().bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::CODES;

    #[test]
    fn every_code_has_a_status() {
        let without: Vec<&str> = CODES.iter().map(|(code, ..)| *code).filter(|code| known(code).is_none()).collect();
        assert_eq!(without, Vec::<&str>::new());
    }

    #[test]
    fn messages_are_encoded() {
        for (text, expected) in [("plain `x` ~", "plain `x` ~"), ("100 %", "100 %25"), ("ü\n", "%C3%BC%0A"), ("", "")] {
            assert_eq!(encoded(text), expected);
        }
        assert!(encoded(&"ü".repeat(5000)).len() <= 3 * MESSAGE_BYTES_MAX);
        let fail = Fail::new("encoding_unsupported", "x");
        assert_eq!(trailers(Some(&fail))[GRPC_ACCEPT_ENCODING], "identity");
        assert_eq!(trailers(None).len(), 1);
    }
}
