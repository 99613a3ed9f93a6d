//! What is refused before anything is routed: paths that could be read in two ways, headers that contradict each other,
//! encodings we do not undo. Behind the guard a path is a list of decoded segments and nobody decodes again.

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName};
use http::{Method, Uri};

use crate::error::{Fail, Result};
use crate::route::inference::JSON_LENGTH;

/// Longest request target in bytes.
const TARGET_BYTES_MAX: usize = 8192;
/// Longest path segment in bytes, decoded.
const SEGMENT_BYTES_MAX: usize = 256;
/// Most segments of a path.
const SEGMENTS_MAX: usize = 32;

/// Headers of which two would be one too many.
const ONCE: [HeaderName; 7] = [AUTHORIZATION, CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING, HOST, EXPECT, JSON_LENGTH];

/// Checks the headers of a request.
///
/// `takes_gzip`: its address undoes gzip itself, within bounds.
pub(crate) fn headers(headers: &HeaderMap, ambiguous_length: bool, takes_gzip: bool) -> Result<()> {
    if ambiguous_length {
        return Err(Fail::new("request_ambiguous", "the request has both `Content-Length` and `Transfer-Encoding`").closing());
    }
    for name in &ONCE {
        if headers.get_all(name).iter().nth(1).is_some() {
            return Err(Fail::new("request_ambiguous", format!("the header `{name}` is there more than once")).closing());
        }
    }
    if let Some(encoding) = headers.get(CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
        && !(takes_gzip && encoding.as_bytes().eq_ignore_ascii_case(b"gzip"))
    {
        return Err(Fail::new("encoding_unsupported", "send the body without `Content-Encoding`").closing());
    }
    if let Some(expect) = headers.get(EXPECT)
        && !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Fail::new("expectation_failed", "only `100-continue` can be expected").closing());
    }
    Ok(())
}

/// The decoded segments of a request's path.
pub(crate) fn segments(method: &Method, uri: &Uri) -> Result<Vec<String>> {
    let refuse = |why: &'static str| Err(Fail::new("path_invalid", why));
    if method == Method::CONNECT || method == Method::TRACE {
        return Err(Fail::method("GET, HEAD, PUT, POST, DELETE, PATCH".to_owned()));
    }
    if uri.path_and_query().is_none_or(|target| target.as_str().len() > TARGET_BYTES_MAX) {
        return refuse("the path and query are longer than 8192 bytes");
    }
    let Some(path) = uri.path().strip_prefix('/') else { return refuse("the path does not begin with `/`") };
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let mut segments = Vec::with_capacity(8);
    for raw in path.split('/') {
        if segments.len() == SEGMENTS_MAX {
            return refuse("the path has more than 32 segments");
        }
        segments.push(segment(raw)?);
    }
    Ok(segments)
}

fn segment(raw: &str) -> Result<String> {
    let refuse = |why: &'static str| Err(Fail::new("path_invalid", why));
    let Some(bytes) = percent_decoded(raw.as_bytes(), false) else { return refuse("the path has a broken percent-encoding") };
    let Ok(text) = String::from_utf8(bytes) else { return refuse("the path is not UTF-8") };
    if text.is_empty() {
        return refuse("the path has an empty segment");
    }
    if text.len() > SEGMENT_BYTES_MAX {
        return refuse("the path has a segment longer than 256 bytes");
    }
    if text == "." || text == ".." {
        return refuse("the path has a segment `.` or `..`");
    }
    if text.contains(['/', '\\', '\0']) || text.chars().any(char::is_control) {
        return refuse("the path has a slash, backslash or control character inside a segment");
    }
    Ok(text)
}

/// Undoes percent-encoding (and `+`, in forms). None when it is broken.
pub(crate) fn percent_decoded(raw: &[u8], plus_is_space: bool) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let high = char::from(*rest.next()?).to_digit(16)?;
                let low = char::from(*rest.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if plus_is_space => b' ',
            other => *other,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn odd_paths_stop_here() {
        let cases = [
            ("/", Some(vec![])),
            ("/v1/datasets", Some(vec!["v1", "datasets"])),
            ("/v1/datasets/a%2Db", Some(vec!["v1", "datasets", "a-b"])),
            ("/v1/datasets/%C3%BC", Some(vec!["v1", "datasets", "ü"])),
            ("/v1//datasets", None),
            ("/v1/datasets/", None),
            ("/v1/../v1/tenants", None),
            ("/v1/%2e%2e/tenants", None),
            ("/v1/%2E/tenants", None),
            ("/v1/a%2fb", None),
            ("/v1/a%5cb", None),
            ("/v1/a%00", None),
            ("/v1/a%0d%0ab", None),
            ("/v1/a%c2%85", None),
            ("/v1/%ff", None),
            ("/v1/%2", None),
            ("/v1/%zz", None),
        ];
        for (path, expected) in cases {
            let got = segments(&Method::GET, &path.parse().unwrap());
            let got = got.map_err(|fail| fail.code());
            match expected {
                Some(expected) => assert_eq!(got.unwrap(), expected, "{path}"),
                None => assert_eq!(got, Err("path_invalid"), "{path}"),
            }
        }
        let long = format!("/v1/{}", "a".repeat(SEGMENT_BYTES_MAX + 1));
        assert!(segments(&Method::GET, &long.parse().unwrap()).is_err());
        assert!(segments(&Method::GET, &"/a".repeat(SEGMENTS_MAX + 1).parse().unwrap()).is_err());
        assert!(segments(&Method::TRACE, &"/v1".parse().unwrap()).is_err());
    }

    #[test]
    fn headers_that_contradict_stop_here() {
        let check = |pairs: &[(&'static str, &'static str)], ambiguous| {
            let mut map = HeaderMap::new();
            for (name, value) in pairs {
                map.append(*name, HeaderValue::from_static(value));
            }
            headers(&map, ambiguous, false).map_err(|fail| fail.code())
        };
        assert_eq!(check(&[("authorization", "Bearer a")], false), Ok(()));
        assert_eq!(check(&[("authorization", "Bearer a"), ("authorization", "Bearer b")], false), Err("request_ambiguous"));
        assert_eq!(check(&[], true), Err("request_ambiguous"));
        assert_eq!(check(&[("content-encoding", "identity")], false), Ok(()));
        assert_eq!(check(&[("content-encoding", "gzip")], false), Err("encoding_unsupported"));
        assert_eq!(check(&[("expect", "miracles")], false), Err("expectation_failed"));
        for (encoding, good) in [("gzip", true), ("GZIP", true), ("br", false), ("gzip, gzip", false)] {
            let map = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(encoding))]);
            assert_eq!(headers(&map, false, true).is_ok(), good, "{encoding}");
        }
    }
}
