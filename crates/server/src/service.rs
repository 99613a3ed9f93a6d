//! A request from its head to its answer: guard, route, handler, headers. Whatever happens in between, a panic included,
//! there is an answer, a log line and a count.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{
    CACHE_CONTROL, CONNECTION, EXPECT, HeaderName, HeaderValue, STRICT_TRANSPORT_SECURITY, TRAILER, TRANSFER_ENCODING,
    X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use platform::Platform;
use platform::tenancy::{Kernel, Peer, RequestId};
use tokio::time::sleep;
use tracing::Instrument;

use crate::api::{Answer, Api, Ask, Outcome, TenantMark, parameters};
use crate::body::{AnswerBody, RequestBody};
use crate::bulk::Bulk;
use crate::config::RequestLimits;
use crate::egress::Egress;
use crate::error::{Fail, Form, Result};
use crate::forward::{Asked, Forwarder};
use crate::guard;
use crate::metrics::{Metrics, Seen};
use crate::mlflow;
use crate::mlflow::webhooks::Teller;
use crate::refusal::{Asker, Refusals};
use crate::traces::{Begun, Ended, TRACERESPONSE, Tracer};
use crate::watch::Work;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Everything a request needs.
pub(crate) struct Service {
    pub(crate) kernel: Kernel,
    pub(crate) platform: Platform,
    pub(crate) api: Api,
    pub(crate) metrics: Arc<Metrics>,
    /// To other nodes, when there are several.
    pub(crate) forwarder: Option<Forwarder>,
    /// To where tenants want to be told.
    pub(crate) egress: Arc<Egress>,
    /// When the service's own work is traced.
    pub(crate) tracer: Option<Tracer>,
    pub(crate) limits: Arc<RequestLimits>,
    /// Large bodies take turns.
    pub(crate) bulk: Arc<Bulk>,
    /// Those who are refused too often wait for it.
    pub(crate) refusals: Refusals,
    /// The OpenAPI document.
    pub(crate) openapi: Bytes,
    /// Largest upload of a data set, and of a model, in bytes.
    pub(crate) upload_bytes_max: u64,
    pub(crate) model_bytes_max: u64,
    /// Whether new work is welcome.
    pub(crate) ready: AtomicBool,
}

impl Service {
    /// Who tells webhooks.
    pub(crate) fn teller(&self) -> Teller<'_> {
        Teller { platform: &self.platform, egress: &self.egress }
    }

    /// Whether the service takes work: false while it stops.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Answers one request. `work` keeps it in flight until the last byte of the answer has left.
    pub(crate) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: std::net::SocketAddr,
        work: Work,
    ) -> Response<AnswerBody> {
        let started = Instant::now();
        let (parts, incoming) = request.into_parts();
        let begun = self.tracer.as_ref().and_then(|tracer| tracer.begin(&parts.headers)).map(Arc::new);
        let id = request_id(&parts);
        let form = Form::of(parts.uri.path(), &parts.headers);
        // The end of a chunked body is not followed in the watch, so nothing may come after it.
        let close = work.is_http1() && parts.headers.contains_key(TRANSFER_ENCODING);
        let span = tracing::info_span!(
            "request",
            id = %id,
            %peer,
            operation = tracing::field::Empty,
            tenant = tracing::field::Empty,
            principal = tracing::field::Empty
        );
        let mut operation = None;
        let handling =
            self.handle(parts, incoming, &id, (form, work.is_ambiguous()), begun.clone(), &mut operation).instrument(span.clone());
        let (outcome, received) = AssertUnwindSafe(handling).catch_unwind().await.unwrap_or_else(|_| {
            self.metrics.panicked();
            (Outcome { answer: Err(Fail::internal("a handler panicked")), tenant: None }, 0)
        });
        if let Err(fail) = &outcome.answer {
            self.keep_pace(Asker::of(outcome.tenant.as_ref().map(|tenant| tenant.island), peer), fail).await;
        }
        let _entered = span.entered();
        // What gRPC calls a failure is a success of HTTP.
        let failed = outcome.answer.as_ref().err().map(Fail::status);
        let mut response = finish(outcome.answer, form);
        if form == Form::Grpc && work.is_http1() {
            // Only another node asks so; what is not announced does not leave as a trailer.
            response.headers_mut().insert(TRAILER, HeaderValue::from_static("grpc-status, grpc-message, grpc-accept-encoding"));
        }
        headers(response.headers_mut(), &id, outcome.tenant.as_ref(), close);
        let status = failed.unwrap_or_else(|| response.status());
        let seen = Seen { operation, status, took: started.elapsed(), received, sent: response.body().length() };
        if let Some(tenant) = &outcome.tenant {
            tenant.meter.count_bytes(seen.received, seen.sent);
        }
        if let (Some(tracer), Some(begun), Some(tenant)) = (&self.tracer, &begun, &outcome.tenant) {
            let ended = Ended {
                operation: operation.and_then(|at| self.api.routes().get(at)).map_or("unrouted", |route| route.info.operation),
                tenant: tenant.traced.as_deref().unwrap_or_default(),
                island: tenant.island,
                request: id.as_str(),
                status: seen.status.as_u16(),
                received: seen.received,
                sent: seen.sent,
            };
            if let Some(value) = tracer.end(begun, &ended) {
                response.headers_mut().insert(TRACERESPONSE, value);
            }
        }
        self.metrics.answered(&seen, outcome.tenant.as_ref().map(|tenant| tenant.island));
        log(&seen);
        response.body_mut().hold(work);
        response
    }

    /// Waits until this refusal may be said.
    pub(crate) async fn keep_pace(&self, asker: Asker, fail: &Fail) {
        if let Some(wait) = self.refusals.wait(asker, fail) {
            self.metrics.refusal_delayed();
            sleep(wait).await;
        }
    }

    async fn handle(
        self: &Arc<Self>,
        parts: Parts,
        incoming: Incoming,
        id: &RequestId,
        (form, ambiguous): (Form, bool),
        trace: Option<Arc<Begun>>,
        operation: &mut Option<usize>,
    ) -> (Outcome, u64) {
        let body = RequestBody::new(incoming, self.limits.clone(), self.bulk.clone());
        let mark = body.mark();
        let waits = parts.headers.contains_key(EXPECT);
        let asked = self.forwarder.as_ref().map(|_| Asked::of(&parts, id));
        let mut streams = false;
        let mut outcome = match self.ask(parts, body, id, ambiguous, trace) {
            Ok((at, ask)) => {
                streams = ask.streams;
                *operation = Some(at);
                match self.api.routes().get(at) {
                    Some(route) => {
                        tracing::Span::current().record("operation", route.info.operation);
                        route.run(ask).await
                    }
                    None => Err(Fail::internal("a route without a place")).into(),
                }
            }
            Err(fail) => Err(fail).into(),
        };
        if let (Some(forwarder), Some(asked), Some(peer)) = (&self.forwarder, asked, elsewhere(&outcome)) {
            self.metrics.forwarded();
            outcome = forwarder.forward(&peer, asked, &mark, &self.limits, streams).await.map(Answer::forwarded).into();
        }
        // A conversation ends only when both have said all: its refusal cannot wait for that.
        let refused = outcome.answer.as_ref().err().filter(|_| form != Form::Grpc);
        if refused.is_some_and(|fail| !matches!(fail.code(), "body_timeout" | "upload_interrupted" | "request_ambiguous")) {
            mark.let_come(waits).await;
        }
        (outcome, mark.read())
    }

    /// What is asked, once the guard let it through.
    fn ask(
        self: &Arc<Self>,
        parts: Parts,
        body: RequestBody,
        id: &RequestId,
        ambiguous: bool,
        trace: Option<Arc<Begun>>,
    ) -> Result<(usize, Ask)> {
        guard::headers(&parts.headers, ambiguous, parts.uri.path() == mlflow::traces::EXPORT_PATH)?;
        let segments = guard::segments(&parts.method, &parts.uri)?;
        let (at, route) = self.api.find(&parts.method, &segments)?;
        let ask = Ask {
            service: self.clone(),
            method: parts.method.clone(),
            request: id.clone(),
            headers: parts.headers,
            parameters: parameters(route.info.path, &segments),
            query_names: route.query_names.clone(),
            query_text: parts.uri.query().map(str::to_owned),
            body,
            streams: route.doc.streams,
            given: None,
            trace,
        };
        Ok((at, ask))
    }
}

/// The node that the request is for.
fn elsewhere(outcome: &Outcome) -> Option<Peer> {
    outcome.answer.as_ref().err().and_then(Fail::elsewhere).cloned()
}

/// The caller's request id if it is one, else a fresh one.
fn request_id(parts: &Parts) -> RequestId {
    let given = parts.headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    given.and_then(RequestId::parse).unwrap_or_else(RequestId::fresh)
}

fn finish(answer: Result<Answer>, form: Form) -> Response<AnswerBody> {
    match answer {
        Ok(answer) => {
            let reply = answer.into_reply();
            let mut response = Response::new(reply.body);
            *response.status_mut() = reply.status;
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response.headers_mut().extend(reply.headers);
            response
        }
        Err(fail) => {
            fail.log();
            fail.answer(form)
        }
    }
}

fn headers(headers: &mut http::HeaderMap, id: &RequestId, tenant: Option<&TenantMark>, close: bool) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(tenant) = tenant {
        for (name, value) in [(RATE_LIMIT_POLICY, tenant.rate.policy_header()), (RATE_LIMIT, tenant.rate.header())] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
    }
    if close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// One line a request; no path, because paths hold names.
fn log(seen: &Seen) {
    let micros = u64::try_from(seen.took.as_micros()).unwrap_or(u64::MAX);
    if seen.status.is_server_error() {
        tracing::warn!(status = seen.status.as_u16(), micros, received = seen.received, sent = seen.sent, "answered");
    } else {
        tracing::debug!(status = seen.status.as_u16(), micros, received = seen.received, sent = seen.sent, "answered");
    }
}

/// Place of a status among the five classes, from 0 for 1xx.
pub(crate) fn status_class(status: StatusCode) -> usize {
    usize::from(status.as_u16() / 100).clamp(1, 5) - 1
}
