//! The one place where errors become HTTP. Every code that a client can see is in [`CODES`] with its status and title, and
//! has its line in docs/errors.md with what to do; a test compares both ways.
//!
//! Five forms: problem+json (RFC 9457) on `/v1`, `{"error": …}` of the Open Inference Protocol on `/v2`, the OAuth form
//! (RFC 6749, 5.2) on `/oauth/token`, and `{"error_code": …, "message": …}` of MLflow on `/api`, and trailers
//! for gRPC ([`crate::grpc::status`]). An answer never holds the request id in its body: absent, foreign and hidden things
//! answer with the same bytes.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use platform::tenancy::Peer;
use serde_json::json;

use crate::body::AnswerBody;
use crate::grpc::{self, CONTENT_TYPE_GRPC};

/// Every public code with its status and title.
pub(crate) const CODES: &[(&str, u16, &str)] = &[
    // the kernel
    ("unauthenticated", 401, "the credential is missing, expired or not valid"),
    ("not_found", 404, "there is no such thing"),
    ("forbidden", 403, "not allowed"),
    ("invalid", 400, "the request is not valid"),
    ("conflict", 409, "in conflict with what is there"),
    ("quota_exceeded", 429, "a limit of the tenant is reached"),
    ("tenant_state", 403, "the tenant does not take requests"),
    ("integrity", 500, "stored data failed its integrity check"),
    ("unavailable", 503, "the service cannot do this now"),
    ("internal", 500, "the service failed"),
    // the platform
    ("invalid_input", 400, "the data does not fit"),
    ("model_refused", 422, "the model is not admitted"),
    ("model_failed", 422, "the model cannot do this"),
    ("too_large", 413, "larger than allowed"),
    ("unsupported", 415, "not supported"),
    ("cell_failed", 502, "the sandbox ended"),
    ("out_of_memory", 422, "the tenant's memory limit is too small for this"),
    ("cell_unavailable", 503, "no sandbox could be started"),
    ("deadline_exceeded", 504, "no result in time"),
    ("overloaded", 503, "too much is waiting"),
    ("model_unstable", 503, "the model keeps breaking its sandbox"),
    ("not_deployable", 422, "the version holds nothing to deploy"),
    ("gate_closed", 403, "the model's gate is closed"),
    ("upload_interrupted", 400, "the upload broke off"),
    ("cancelled", 409, "cancelled"),
    // the door
    ("path_invalid", 400, "the path is not valid"),
    ("request_ambiguous", 400, "the request can be read in two ways"),
    ("route_unknown", 404, "there is no such address"),
    ("method_not_allowed", 405, "this address does not take the method"),
    ("media_type_unsupported", 415, "the content type is not supported"),
    ("encoding_unsupported", 415, "the content encoding is not supported"),
    ("json_invalid", 400, "the JSON is not valid"),
    ("query_invalid", 400, "the query is not valid"),
    ("body_timeout", 408, "the body came too slowly"),
    ("expectation_failed", 417, "the expectation cannot be met"),
    ("credential_kind", 403, "another kind of credential is needed"),
    ("grant_unsupported", 400, "the grant type is not supported"),
    ("mlflow_state", 400, "the run or experiment is not in a state for this"),
    ("not_implemented", 501, "this part of the protocol is not there"),
    ("node_lost", 502, "the node that worked on this was lost"),
];

/// Which form an error takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// RFC 9457.
    Problem,
    /// Open Inference Protocol.
    Inference,
    /// RFC 6749.
    OAuth,
    /// MLflow's REST API.
    Mlflow,
    /// gRPC: trailers.
    Grpc,
}

impl Form {
    /// The form that belongs to a request.
    pub(crate) fn of(path: &str, headers: &HeaderMap) -> Self {
        let media = headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
        if media.starts_with(CONTENT_TYPE_GRPC.as_bytes()) {
            Self::Grpc
        } else if path == "/oauth/token" {
            Self::OAuth
        } else if path == "/v2" || path.starts_with("/v2/") {
            Self::Inference
        } else if path.starts_with("/api/") || path == "/v1/traces" {
            Self::Mlflow
        } else {
            Self::Problem
        }
    }
}

/// A refusal or failure on its way out. Result of every handler.
#[derive(Debug)]
pub(crate) struct Fail {
    code: &'static str,
    detail: Cow<'static, str>,
    retry_after_seconds: Option<u64>,
    /// For the operator's log alone.
    private: Option<String>,
    allow: Option<String>,
    /// Who serves this instead, as long as nothing was done here.
    elsewhere: Option<Box<Peer>>,
    /// The connection cannot be used again.
    closes: bool,
}

/// Result of everything in this crate that serves a request.
pub(crate) type Result<T, E = Fail> = std::result::Result<T, E>;

impl Fail {
    pub(crate) fn new(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), retry_after_seconds: None, private: None, allow: None, elsewhere: None, closes: false }
    }

    /// The same, after which the connection closes.
    pub(crate) fn closing(self) -> Self {
        Self { closes: true, ..self }
    }

    /// The same with when to come again.
    pub(crate) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_seconds: Some(seconds), ..self }
    }

    /// The node that serves this.
    pub(crate) fn elsewhere(&self) -> Option<&Peer> {
        self.elsewhere.as_deref()
    }

    /// The same for who has begun already: it is not for another node to do it again.
    pub(crate) fn begun(self) -> Self {
        Self { elsewhere: None, ..self }
    }

    /// The method is not one of `allow`.
    pub(crate) fn method(allow: String) -> Self {
        Self { allow: Some(allow), ..Self::new("method_not_allowed", "this address does not take the method") }
    }

    /// A fault of ours, with what only the log may hold.
    pub(crate) fn internal(private: impl std::fmt::Display) -> Self {
        Self { private: Some(private.to_string()), ..Self::new("internal", "the service failed; nothing was done") }
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    /// Whether it refuses a tenant's request that has hardly begun: by rate, by concurrency, by the tenant's state, or because the model
    /// was stopped. Nothing but the answer was done.
    pub(crate) fn came_quickly(&self) -> bool {
        match self.code {
            "quota_exceeded" => self.retry_after_seconds.is_some(),
            code => matches!(code, "model_unstable" | "tenant_state"),
        }
    }

    /// What the client is told.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// Status and title of the code; a code that is not in the table is a fault of ours.
    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(entry(self.code).1).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// Logged once, here: the code and what the client does not see. The detail is for the client alone, because it may
    /// repeat a value or a name out of the request.
    pub(crate) fn log(&self) {
        // A model that was stopped is its tenant's trouble, told as often as it is asked.
        if self.status().is_server_error() && !self.came_quickly() {
            tracing::error!(code = self.code, private = self.private.as_deref(), "failed");
        } else {
            tracing::debug!(code = self.code, "refused");
        }
    }

    /// The answer in the form of its protocol.
    pub(crate) fn answer(&self, form: Form) -> Response<AnswerBody> {
        let status = self.status();
        let title = entry(self.code).2;
        let (status, media, body) = match form {
            Form::Grpc => return grpc::status::answer(self),
            Form::Problem => (
                status,
                "application/problem+json",
                json!({
                    "type": format!("urn:insula:error:{}", self.code),
                    "title": title,
                    "status": status.as_u16(),
                    "code": self.code,
                    "detail": self.detail,
                }),
            ),
            Form::Inference => (status, "application/json", json!({"error": self.detail, "code": self.code})),
            Form::OAuth => {
                let (status, error) = oauth(self.code, status);
                (status, "application/json", json!({"error": error, "error_description": self.detail.replace(['"', '\\'], "`")}))
            }
            Form::Mlflow => {
                let (status, code) = mlflow(self.code, status);
                (status, "application/json", json!({"error_code": code, "message": self.detail}))
            }
        };
        let mut answer = Response::new(AnswerBody::full(Bytes::from(body.to_string())));
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            let scheme = if form == Form::OAuth { "Basic realm=\"insula\"" } else { "Bearer realm=\"insula\"" };
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(Ok(allow)) = self.allow.as_deref().map(HeaderValue::from_str) {
            headers.insert(ALLOW, allow);
        }
        if self.closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

fn entry(code: &str) -> (&'static str, u16, &'static str) {
    CODES.iter().copied().find(|(known, ..)| *known == code).unwrap_or(("internal", 500, "the service failed"))
}

/// MLflow's own error codes, and the statuses its clients know them by.
fn mlflow(code: &str, status: StatusCode) -> (StatusCode, &'static str) {
    match code {
        "not_found" => (status, "RESOURCE_DOES_NOT_EXIST"),
        "route_unknown" | "method_not_allowed" => (status, "ENDPOINT_NOT_FOUND"),
        "conflict" => (StatusCode::BAD_REQUEST, "RESOURCE_ALREADY_EXISTS"),
        "mlflow_state" => (status, "INVALID_STATE"),
        "unauthenticated" => (status, "UNAUTHENTICATED"),
        "forbidden" | "credential_kind" | "tenant_state" | "gate_closed" => (StatusCode::FORBIDDEN, "PERMISSION_DENIED"),
        "quota_exceeded" => (status, "REQUEST_LIMIT_EXCEEDED"),
        "deadline_exceeded" => (status, "DEADLINE_EXCEEDED"),
        "integrity" => (status, "DATA_LOSS"),
        "unsupported" => (StatusCode::NOT_IMPLEMENTED, "NOT_IMPLEMENTED"),
        _ if status == StatusCode::SERVICE_UNAVAILABLE => (status, "TEMPORARILY_UNAVAILABLE"),
        _ if status.is_client_error() => (StatusCode::BAD_REQUEST, "INVALID_PARAMETER_VALUE"),
        _ => (status, "INTERNAL_ERROR"),
    }
}

/// OAuth has few words: a wrong client, a wrong request, or our trouble.
fn oauth(code: &str, status: StatusCode) -> (StatusCode, &'static str) {
    match code {
        "unauthenticated" => (StatusCode::UNAUTHORIZED, "invalid_client"),
        "grant_unsupported" => (StatusCode::BAD_REQUEST, "unsupported_grant_type"),
        _ if status.is_server_error() => (status, "temporarily_unavailable"),
        _ => (status, "invalid_request"),
    }
}

impl From<platform::tenancy::Error> for Fail {
    fn from(error: platform::tenancy::Error) -> Self {
        let retry_after_seconds = match &error {
            platform::tenancy::Error::Quota(exceeded) => exceeded.retry_after_seconds,
            platform::tenancy::Error::Unavailable(_) | platform::tenancy::Error::Elsewhere(_) => Some(1),
            _ => None,
        };
        let private = error.private().map(str::to_owned);
        let fail = Self { retry_after_seconds, private, ..Self::new(error.code(), error.to_string()) };
        match error {
            platform::tenancy::Error::Elsewhere(peer) => Self { elsewhere: Some(peer), ..fail },
            _ => fail,
        }
    }
}

impl From<platform::Error> for Fail {
    fn from(error: platform::Error) -> Self {
        match error {
            platform::Error::Kernel(error) => error.into(),
            error => {
                let private = error.private().map(str::to_owned);
                Self { retry_after_seconds: error.retry_after_seconds(), private, ..Self::new(error.code(), error.to_string()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_code_has_its_line_in_the_documents_and_every_line_its_code() {
        let text = include_str!("../../../docs/errors.md");
        let documented: BTreeMap<&str, u16> = text
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
                let code = cells.next()?.strip_suffix('`')?;
                let status = cells.next()?.parse().ok()?;
                assert!(cells.next().is_some_and(|what| what.len() > 5), "{code}: says what happened");
                assert!(cells.next().is_some_and(|remedy| remedy.len() > 10), "{code}: says what to do");
                Some((code, status))
            })
            .collect();
        let known: BTreeMap<&str, u16> = CODES.iter().map(|(code, status, _)| (*code, *status)).collect();
        assert_eq!(documented, known);
    }

    #[test]
    fn every_code_of_kernel_and_platform_has_a_status() {
        for code in platform::tenancy::Error::CODES.iter().chain(platform::Error::CODES) {
            assert_eq!(entry(code).0, *code);
        }
    }

    #[test]
    fn each_form_keeps_its_own() {
        let fail = Fail::from(platform::tenancy::Error::NotFound("dataset"));
        let answer = fail.answer(Form::Problem);
        assert_eq!((answer.status().as_u16(), answer.headers()[CONTENT_TYPE].to_str().unwrap()), (404, "application/problem+json"));
        let fail = Fail::from(platform::tenancy::Error::Unauthenticated);
        assert_eq!(fail.answer(Form::OAuth).headers()[WWW_AUTHENTICATE], "Basic realm=\"insula\"");
        assert_eq!(fail.answer(Form::Inference).headers()[WWW_AUTHENTICATE], "Bearer realm=\"insula\"");
        let of = |path| Form::of(path, &HeaderMap::new());
        assert_eq!(of("/v2/models/a/infer"), Form::Inference);
        assert_eq!(of("/v20"), Form::Problem);
        let grpc = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"))]);
        assert_eq!(Form::of("/v2/models/a/infer", &grpc), Form::Grpc);
        let answer = fail.answer(Form::Grpc);
        assert_eq!((answer.status().as_u16(), &answer.headers()["grpc-status"]), (200, &HeaderValue::from_static("16")));
        for (fail, status, code) in [
            (Fail::from(platform::tenancy::Error::NotFound("run")), 404, "RESOURCE_DOES_NOT_EXIST"),
            (Fail::from(platform::tenancy::Error::Conflict("taken".to_owned())), 400, "RESOURCE_ALREADY_EXISTS"),
            (Fail::new("too_large", "x"), 400, "INVALID_PARAMETER_VALUE"),
            (Fail::new("unavailable", "x"), 503, "TEMPORARILY_UNAVAILABLE"),
            (Fail::internal("x"), 500, "INTERNAL_ERROR"),
        ] {
            let answer = fail.answer(of("/api/2.0/mlflow/runs/get"));
            assert_eq!(answer.status().as_u16(), status);
            assert!(format!("{:?}", answer.into_body()).contains(code), "{code}");
        }
    }

    #[test]
    fn private_context_stays_in() {
        let fail = Fail::from(platform::tenancy::Error::internal("secret path"));
        let shown = format!("{:?}", fail.answer(Form::Problem).into_body());
        assert!(!shown.contains("secret"), "{shown}");
        assert!(shown.contains("internal"), "{shown}");
    }
}
