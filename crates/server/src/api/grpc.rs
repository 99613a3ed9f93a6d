//! Methods of gRPC as addresses: the same door as every other. A call of one message has one permit; a stream has one for each of its
//! messages, with the credential looked at again, so that whoever was locked out in the meantime gets no further answer.
//!
//! ```text
//! unary    credential → Tenant → start of the message → allow::<A>(its name) → rest of it → handler → finish → message, trailers
//! stream   credential → Tenant → head of the answer; then for each message: the same again → message … trailers
//! ```

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::{Method, StatusCode};
use http_body::Frame;
use platform::Manner;
use platform::tenancy::act::Act;
use platform::tenancy::{Digested, Permit, Tenant};
use tokio::time::{timeout, timeout_at};

use super::{Access, Answer, Api, Ask, Handle, Mode, Outcome, RECEIPT, Run, answered, closed, identify, mark, open, signs};
use crate::body::AnswerBody;
use crate::error::{Fail, Result};
use crate::grpc::framing::{self, Incoming};
use crate::grpc::heading::Heading;
use crate::grpc::{message, status};
use crate::manner::Wish;
use crate::openapi::Doc;
use crate::refusal::Asker;
use crate::service::Service;
use crate::traces::{Begun, Ended};

/// One message as a handler sees it.
pub(crate) struct Call {
    pub(crate) service: Arc<Service>,
    pub(crate) heading: Heading,
    pub(crate) message: Digested,
    pub(crate) manner: Manner,
}

impl Api {
    /// Registers a method of one message: `A` is what it does, on the resource that the message names in its first field, or on none.
    pub(crate) fn grpc_route<A, H>(&mut self, path: &'static str, doc: Doc, named: bool, handler: H)
    where
        A: Act,
        H: for<'p> Handle<'p, Permit<A>, Call, Bytes> + Clone + 'static,
    {
        let run: Run = Box::new(move |ask| {
            let handler = handler.clone();
            Box::pin(async move {
                match enter(&ask).await {
                    Ok(tenant) => unary::<A, H>(&handler, ask, &tenant, named).await,
                    Err(fail) => Err(fail).into(),
                }
            })
        });
        self.add(Method::POST, path, Access::Tenant { act: A::NAME, writes: <A::Mode as Mode>::WRITES }, doc, run);
    }

    /// Registers a method of many messages, each of which is asked for and answered in its order.
    pub(crate) fn grpc_stream_route<A, H>(&mut self, path: &'static str, doc: Doc, handler: H)
    where
        A: Act,
        H: for<'p> Handle<'p, Permit<A>, Call, Bytes> + Clone + 'static,
    {
        let run: Run = Box::new(move |ask| {
            let handler = handler.clone();
            Box::pin(async move {
                match enter(&ask).await {
                    Ok(tenant) => streaming::<A, H>(handler, ask, &tenant),
                    Err(fail) => Err(fail).into(),
                }
            })
        });
        self.add(Method::POST, path, Access::Tenant { act: A::NAME, writes: <A::Mode as Mode>::WRITES }, doc.streaming(), run);
    }
}

async fn enter(ask: &Ask) -> Result<Tenant> {
    open(ask, identify(ask).await?).await
}

async fn unary<A: Act, H: for<'p> Handle<'p, Permit<A>, Call, Bytes>>(handler: &H, mut ask: Ask, tenant: &Tenant, named: bool) -> Outcome {
    let limits = ask.service.limits.clone();
    let mut incoming = Incoming::new(ask.body.take(), limits.predict_bytes_max);
    let wanted = framing::time_limit(&ask.headers);
    let until = wanted.as_ref().ok().copied().flatten().map(|wanted| Instant::now() + wanted);
    let (wish, receipt) = (Wish::of(&ask.headers), signs::<A>(&ask.headers));
    let receipted = matches!(receipt, Ok(true));
    let limit = wanted.as_ref().ok().copied().flatten().map_or(limits.request_timeout, |wanted| wanted.min(limits.request_timeout));
    let deadline = tokio::time::Instant::now() + limit;
    let begun = async {
        framing::content_type(&ask.headers)?;
        wanted?;
        receipt?;
        let manner = wish?.manner(until, ask.trace.as_deref());
        if !incoming.begin().await? {
            return Err(Fail::new("invalid", "the request has no message"));
        }
        let heading = if named { incoming.heading().await? } else { Heading::default() };
        Ok((heading, manner))
    };
    let begun = timeout_at(deadline, begun).await.unwrap_or_else(|_| Err(late(limit)));
    let name = begun.as_ref().map_or("", |(heading, _)| heading.name.as_str()).to_owned();
    let answer = match tenant.allow::<A>(&name) {
        Err(error) => Err(error.into()),
        Ok(permit) => {
            let work = async {
                let (heading, manner) = begun?;
                let message = incoming.message().await?;
                handler.call(&permit, Call { service: ask.service.clone(), heading, message, manner }).await
            };
            let result = timeout_at(deadline, work).await.unwrap_or_else(|_| Err(late(limit)));
            answered(permit, result.map(framing::reply), receipted)
        }
    };
    Outcome { answer, tenant: Some(mark(tenant, ask.trace.is_some())) }
}

fn late(limit: Duration) -> Fail {
    Fail::new("deadline_exceeded", format!("no result within {} ms; the work was stopped", limit.as_millis()))
}

/// The head of the answer; what comes of the messages is asked when the client takes it.
fn streaming<A: Act, H>(handler: H, mut ask: Ask, tenant: &Tenant) -> Outcome
where
    H: for<'p> Handle<'p, Permit<A>, Call, Bytes> + 'static,
{
    let traced = ask.trace.is_some();
    let (limit, wish) = match asked_of(&ask) {
        Ok(asked) => asked,
        Err(fail) => {
            let refused = tenant.allow::<A>("").map_err(Fail::from).and_then(|permit| closed::<A, Answer>(permit, Err(fail)));
            return Outcome { answer: refused.map(|(answer, _)| answer), tenant: Some(mark(tenant, traced)) };
        }
    };
    let incoming = Incoming::new(ask.body.take().patient(), ask.service.limits.predict_bytes_max);
    let deadline = limit.map(|limit| (Instant::now() + limit, limit));
    let messages = Messages { handler, ask, incoming, deadline, wish, act: PhantomData::<fn() -> A> };
    let frames = stream::unfold(Some(messages), |messages| async move {
        let mut messages = messages?;
        Some(match messages.next_in_time().await {
            Ok(Some(frames)) => (frames, Some(messages)),
            Ok(None) => (vec![Frame::trailers(status::trailers(None))], None),
            Err(fail) => {
                fail.log();
                (vec![Frame::trailers(status::trailers(Some(&fail)))], None)
            }
        })
    });
    let frames = frames.flat_map(|frames| stream::iter(frames.into_iter().map(Ok::<_, Fail>))).boxed();
    // Nothing of the tenant is in the head: each message that follows has a proof of its own.
    Outcome { answer: Ok(Answer(framing::headed(AnswerBody::stream_frames(frames, None)))), tenant: Some(mark(tenant, traced)) }
}

/// How long a stream may take, and how its messages are to be treated.
fn asked_of(ask: &Ask) -> Result<(Option<Duration>, Wish)> {
    framing::content_type(&ask.headers)?;
    if ask.headers.contains_key(RECEIPT) {
        return Err(Fail::new(
            "invalid",
            "`Insula-Receipt` stands with single predictions; those of a stream have theirs in the audit log",
        ));
    }
    Ok((framing::time_limit(&ask.headers)?, Wish::of(&ask.headers)?))
}

/// The messages of a stream.
struct Messages<A, H> {
    handler: H,
    ask: Ask,
    incoming: Incoming,
    deadline: Option<(Instant, Duration)>,
    wish: Wish,
    act: PhantomData<fn() -> A>,
}

impl<A: Act, H: for<'p> Handle<'p, Permit<A>, Call, Bytes>> Messages<A, H> {
    async fn next_in_time(&mut self) -> Result<Option<Vec<Frame<Bytes>>>> {
        match self.deadline {
            None => self.next().await,
            Some((at, limit)) => timeout_at(at.into(), self.next()).await.unwrap_or_else(|_| Err(late(limit))),
        }
    }

    /// What the next message is answered with. An error is the end of the stream; of a single message it is an answer as well.
    async fn next(&mut self) -> Result<Option<Vec<Frame<Bytes>>>> {
        if !self.incoming.begin().await? {
            return Ok(None);
        }
        // Its sender may be silent between two messages, and not within one.
        let limit = self.ask.service.limits.request_timeout;
        let message = timeout(limit, self.incoming.message()).await.unwrap_or_else(|_| Err(late(limit)))?;
        let received = message.bytes().len();
        let trace = self.ask.trace.as_ref().and_then(|stream| stream.message());
        let manner = self.wish.manner(self.deadline.map(|(at, _)| at), trace.as_ref());
        let tenant = enter(&self.ask).await.map_err(Fail::begun)?;
        let heading = Heading::read(message.bytes());
        let id = heading.as_ref().ok().and_then(|heading| heading.id.clone());
        let name = heading.as_ref().map_or("", |heading| heading.name.as_str()).to_owned();
        let answered = match tenant.allow::<A>(&name) {
            Err(error) => Err(error.into()),
            Ok(permit) => {
                let work = async {
                    let call = Call { service: self.ask.service.clone(), heading: heading?, message, manner };
                    self.handler.call(&permit, call).await
                };
                let result = timeout(limit, work).await.unwrap_or_else(|_| Err(late(limit)));
                closed(permit, result)
            }
        };
        let status = answered.as_ref().map_or_else(|fail: &Fail| fail.status(), |_| StatusCode::OK);
        let frames = match answered {
            Ok((answer, _proof)) => framing::frames(&message::stream_head(answer.len()), answer),
            Err(fail) => {
                fail.log();
                self.ask.service.keep_pace(Asker::Tenant(tenant.island()), &fail).await;
                framing::frames(&[], message::stream_error(fail.detail(), id.as_deref()).into())
            }
        };
        let sent: usize = frames.iter().filter_map(Frame::data_ref).map(Bytes::len).sum();
        tenant.meter().count_bytes(received as u64, sent as u64);
        self.traced(&tenant, trace.as_ref(), status, (received as u64, sent as u64));
        Ok(Some(frames))
    }

    fn traced(&self, tenant: &Tenant, trace: Option<&Begun>, status: StatusCode, (received, sent): (u64, u64)) {
        let (Some(tracer), Some(begun)) = (&self.ask.service.tracer, trace) else { return };
        let (tenant, island, request, status) = (tenant.name().as_str(), tenant.island(), self.ask.request.as_str(), status.as_u16());
        tracer.end(begun, &Ended { operation: "message", tenant, island, request, status, received, sent });
    }
}
