//! The one way to register an address, and what happens between a request and its answer.
//!
//! ```text
//! tenant route     credential → Caller → Tenant → allow::<A>(resource) → handler(&Permit<A>, Ask) → finish → Closed → Answer
//! MLflow route     the same; the resource is named by a field of the request, which is read before
//! gRPC route       the same; see [`grpc`]
//! operator route   credential → Operator → handler(&Operator, Ask) → Answer
//! public route     a closed list: [`Public`]
//! ```
//!
//! A handler of a tenant route cannot run without a [`Permit`] of its act and never makes an answer itself: it returns a
//! [`Reply`], and [`Answer::closed`] turns that into an answer only with the [`Closed`] that proves the ledger entry. There
//! is no other registration, so an address without a decision cannot exist; [`Api::routes`] lists all of them for the
//! endpoint walk and the OpenAPI document.

pub(crate) mod grpc;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::header::{AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use http::{Method, StatusCode};
use platform::PageRequest;
use platform::tenancy::act::{Act, Mode, QuotaClass, ResourceKind};
use platform::tenancy::{Closed, Identity, IslandToken, MeterHandle, Operator, Permit, Presented, RateLimitState, RequestId, Tenant};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::body::{AnswerBody, RequestBody};
use crate::bulk::Payer;
use crate::error::{Fail, Result};
use crate::forward::Forwarded;
use crate::guard::percent_decoded;
use crate::mlflow;
use crate::openapi::Doc;
use crate::public::Public;
use crate::route::inference;
use crate::service::Service;
use crate::traces::Begun;

/// Asks for a signed receipt with the answer of a prediction (`sign`), and carries it: the note in base64.
pub(crate) const RECEIPT: HeaderName = HeaderName::from_static("insula-receipt");

/// Who may call an address, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A member of a tenant who is allowed the act.
    Tenant {
        /// Name of the act.
        act: &'static str,
        /// Whether the act may change anything.
        writes: bool,
    },
    /// The operator.
    Operator,
    /// Either, each with its own view.
    Either {
        /// Name of the act for members.
        act: &'static str,
    },
    /// Anybody.
    Public,
}

/// One registered address.
#[derive(Debug, Clone)]
pub struct RouteInfo {
    /// Method.
    pub method: Method,
    /// Path with `{name}` for parameters, `{path...}` for a rest.
    pub path: &'static str,
    /// Name of the operation, unique.
    pub operation: &'static str,
    /// Who may call it.
    pub access: Access,
    /// On MLflow addresses, the field of the request that names what it is about; may be empty.
    pub field: Option<&'static str>,
}

/// A registered address with its handler and its document.
pub(crate) struct Route {
    pub(crate) info: RouteInfo,
    pub(crate) doc: Doc,
    pub(crate) query_names: Arc<[&'static str]>,
    run: Run,
}

type Run = Box<dyn Fn(Ask) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync>;

impl Route {
    pub(crate) async fn run(&self, ask: Ask) -> Outcome {
        (self.run)(ask).await
    }
}

/// What came of a request, and what the tenant's headers and counters need.
pub(crate) struct Outcome {
    pub(crate) answer: Result<Answer>,
    pub(crate) tenant: Option<TenantMark>,
}

impl From<Result<Answer>> for Outcome {
    fn from(answer: Result<Answer>) -> Self {
        Self { answer, tenant: None }
    }
}

/// What is remembered of the tenant after its permit is spent; holds no authority.
pub(crate) struct TenantMark {
    pub(crate) rate: RateLimitState,
    pub(crate) island: IslandToken,
    pub(crate) meter: MeterHandle,
    /// The tenant's name, if the request may become a trace.
    pub(crate) traced: Option<String>,
}

/// All addresses.
#[derive(Default)]
pub(crate) struct Api {
    routes: Vec<Route>,
    tree: Node,
}

impl Api {
    /// Registers a public address; its method, path and document are fixed in [`Public`].
    pub(crate) fn public_route(&mut self, which: Public) {
        let (method, path, doc) = which.describe();
        let run: Run = Box::new(move |ask| Box::pin(async move { public_answer(which, ask).await.into() }));
        self.add(method, path, Access::Public, doc, run);
    }

    /// Registers an address of the operator.
    pub(crate) fn operator_route<H>(&mut self, method: Method, path: &'static str, doc: Doc, handler: H)
    where
        H: for<'o> Handle<'o, Operator> + Clone + 'static,
    {
        let run: Run = Box::new(move |ask| {
            let handler = handler.clone();
            Box::pin(async move {
                match identify(&ask).await {
                    Ok(Identity::Operator(who)) => operator_answer(&handler, ask, who).await,
                    Ok(Identity::Tenant(_)) => Err(Fail::new("credential_kind", "this address is for the operator's credential")),
                    Err(fail) => Err(fail),
                }
                .into()
            })
        });
        self.add(method, path, Access::Operator, doc, run);
    }

    /// Registers an address of tenants: `A` is what it does, on the resource that the path's first parameter names.
    pub(crate) fn tenant_route<A, H>(&mut self, method: Method, path: &'static str, doc: Doc, handler: H)
    where
        A: Act,
        H: for<'p> Handle<'p, Permit<A>> + Clone + 'static,
    {
        let run: Run = Box::new(move |ask| {
            let handler = handler.clone();
            Box::pin(async move {
                match identify(&ask).await {
                    Ok(identity) => tenant_answer::<A, H>(&handler, ask, identity).await,
                    Err(fail) => Err(fail).into(),
                }
            })
        });
        self.add(method, path, Access::Tenant { act: A::NAME, writes: <A::Mode as Mode>::WRITES }, doc, run);
    }

    /// Registers an address of the MLflow protocol: `A` is what it does, on the resource that a field of the request names; an empty
    /// `field` for collections. The handler asks for the request with [`Ask::fields`].
    pub(crate) fn mlflow_route<A, H>(&mut self, method: Method, path: &'static str, doc: Doc, field: &'static str, handler: H)
    where
        A: Act,
        H: for<'p> Handle<'p, Permit<A>> + Clone + 'static,
    {
        let run: Run = Box::new(move |mut ask| {
            let handler = handler.clone();
            Box::pin(async move {
                match identify(&ask).await {
                    Ok(identity) => {
                        ask.given = Some(given(&mut ask, field).await);
                        tenant_answer::<A, H>(&handler, ask, identity).await
                    }
                    Err(fail) => Err(fail).into(),
                }
            })
        });
        self.add(method, path, Access::Tenant { act: A::NAME, writes: <A::Mode as Mode>::WRITES }, doc, run);
        if let Some(route) = self.routes.last_mut() {
            route.info.field = Some(field);
        }
    }

    /// Registers an address that shows members and the operator each their own. What the operator sees is this node's.
    pub(crate) fn either_route<A, H, O>(&mut self, method: Method, path: &'static str, doc: Doc, member: H, operator: O)
    where
        A: Act,
        H: for<'p> Handle<'p, Permit<A>> + Clone + 'static,
        O: for<'o> Handle<'o, Operator> + Clone + 'static,
    {
        let run: Run = Box::new(move |ask| {
            let (member, operator) = (member.clone(), operator.clone());
            Box::pin(async move {
                match identify_here(&ask).await {
                    Ok(Identity::Operator(who)) => operator_answer(&operator, ask, who).await.into(),
                    Ok(identity) => tenant_answer::<A, H>(&member, ask, identity).await,
                    Err(fail) => Err(fail).into(),
                }
            })
        });
        self.add(method, path, Access::Either { act: A::NAME }, doc, run);
    }

    fn add(&mut self, method: Method, path: &'static str, access: Access, doc: Doc, run: Run) {
        self.tree.insert(path, method.clone(), self.routes.len());
        let query_names = doc.query_names().into();
        self.routes.push(Route { info: RouteInfo { method, path, operation: doc.operation, access, field: None }, doc, query_names, run });
    }

    /// Every registered address.
    pub(crate) fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The address for a method and decoded segments, with its place in [`Api::routes`].
    pub(crate) fn find(&self, method: &Method, segments: &[String]) -> Result<(usize, &Route)> {
        let methods = self.tree.find(segments).ok_or_else(|| unknown(segments))?;
        let found = methods.iter().find(|(known, _)| known == method).and_then(|(_, at)| Some((*at, self.routes.get(*at)?)));
        found.ok_or_else(|| Fail::method(methods.iter().map(|(known, _)| known.as_str()).collect::<Vec<_>>().join(", ")))
    }
}

/// Why there is no such address.
fn unknown(segments: &[String]) -> Fail {
    inference::unsupported(segments).unwrap_or_else(|| Fail::new("route_unknown", "there is no such address"))
}

/// One segment of the addresses.
#[derive(Default)]
struct Node {
    fixed: BTreeMap<&'static str, Node>,
    parameter: Option<Box<Node>>,
    rest: Option<Box<Node>>,
    methods: Vec<(Method, usize)>,
}

impl Node {
    fn insert(&mut self, path: &'static str, method: Method, at: usize) {
        let mut node = self;
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            node = match parameter(segment) {
                None => node.fixed.entry(segment).or_default(),
                Some((_, false)) => node.parameter.get_or_insert_default(),
                Some((_, true)) => node.rest.get_or_insert_default(),
            };
        }
        node.methods.push((method, at));
    }

    fn find(&self, segments: &[String]) -> Option<&[(Method, usize)]> {
        let Some((first, others)) = segments.split_first() else {
            return (!self.methods.is_empty()).then_some(&self.methods);
        };
        let fixed = self.fixed.get(first.as_str()).and_then(|node| node.find(others));
        let named = || self.parameter.as_ref().and_then(|node| node.find(others));
        let rest = || self.rest.as_ref().map(|node| node.methods.as_slice());
        fixed.or_else(named).or_else(rest)
    }
}

/// Name of a parameter segment, and whether it takes the rest of the path.
fn parameter(segment: &'static str) -> Option<(&'static str, bool)> {
    let name = segment.strip_prefix('{')?.strip_suffix('}')?;
    Some(name.strip_suffix("...").map_or((name, false), |name| (name, true)))
}

/// Values of the parameters of `path`.
pub(crate) fn parameters(path: &'static str, segments: &[String]) -> Vec<(&'static str, String)> {
    let mut values = Vec::new();
    for (at, segment) in path.split('/').filter(|segment| !segment.is_empty()).enumerate() {
        match parameter(segment) {
            None => {}
            Some((name, false)) => values.extend(segments.get(at).map(|value| (name, value.clone()))),
            Some((name, true)) => values.push((name, segments.get(at..).unwrap_or_default().join("/"))),
        }
    }
    values
}

/// A handler: a plain `async fn(&Permit<A>, Ask) -> Result<Reply>`, or the same with `&Operator`, or with a message of gRPC.
pub(crate) trait Handle<'p, P: 'p, I = Ask, O = Reply>: Send + Sync {
    /// What it returns.
    type Working: Future<Output = Result<O>> + Send + 'p;
    /// Calls it.
    fn call(&self, proof: &'p P, asked: I) -> Self::Working;
}

impl<'p, P: 'p, I, O, F, W> Handle<'p, P, I, O> for F
where
    F: Fn(&'p P, I) -> W + Send + Sync,
    W: Future<Output = Result<O>> + Send + 'p,
{
    type Working = W;
    fn call(&self, proof: &'p P, asked: I) -> W {
        self(proof, asked)
    }
}

/// Runs a handler within the deadline of its address. A fault inside the body wins over what the handler made of it.
async fn handled<P, H: for<'p> Handle<'p, P>>(handler: &H, proof: &P, mut ask: Ask) -> Result<Reply> {
    let mark = ask.body.mark();
    let (limit, streams) = (ask.service.limits.request_timeout, ask.streams);
    let result = async {
        match &mut ask.given {
            None => ask.query_known()?,
            Some(Err(fail)) => return Err(std::mem::replace(fail, Fail::internal("taken"))),
            Some(Ok(_)) => {}
        }
        handler.call(proof, ask).await
    };
    let result = match streams {
        true => result.await,
        false => match timeout(limit, result).await {
            Ok(result) => result,
            Err(_) => Err(Fail::new("deadline_exceeded", format!("no result within {} s; the work was stopped", limit.as_secs()))),
        },
    };
    result.map_err(|fail| mark.take_fault().unwrap_or(fail))
}

async fn public_answer(which: Public, ask: Ask) -> Result<Answer> {
    let limit = ask.service.limits.request_timeout;
    let answering = async {
        ask.query_known()?;
        which.answer(ask).await
    };
    match timeout(limit, answering).await {
        Ok(result) => result.map(Answer),
        Err(_) => Err(Fail::new("deadline_exceeded", "no result in time; the work was stopped")),
    }
}

async fn operator_answer<H: for<'o> Handle<'o, Operator>>(handler: &H, ask: Ask, operator: Operator) -> Result<Answer> {
    let reply = handled(handler, &operator, ask).await.map_err(Fail::begun)?;
    Ok(Answer::closed(reply, operator.finish()))
}

async fn tenant_answer<A: Act, H: for<'p> Handle<'p, Permit<A>>>(handler: &H, ask: Ask, identity: Identity) -> Outcome {
    let tenant = match open(&ask, identity).await {
        Ok(tenant) => tenant,
        Err(fail) => return Err(fail).into(),
    };
    let traced = ask.trace.is_some();
    let answer = match tenant.allow::<A>(resource::<A>(&ask)) {
        Err(error) => Err(error.into()),
        Ok(permit) => match signs::<A>(&ask.headers) {
            Ok(signs) => {
                let result = handled(handler, &permit, ask).await;
                answered(permit, result, signs)
            }
            Err(fail) => answered(permit, Err(fail), false),
        },
    };
    Outcome { answer, tenant: Some(mark(&tenant, traced)) }
}

/// The tenant that somebody belongs to.
async fn open(ask: &Ask, identity: Identity) -> Result<Tenant> {
    let caller = match identity {
        Identity::Tenant(caller) => caller,
        Identity::Operator(_) => {
            return Err(Fail::new("credential_kind", "an operator's credential belongs to no tenant; use a member's"));
        }
    };
    let tenant = ask.service.kernel.open_tenant(caller).await?;
    workspace(ask, tenant.name().as_str())?;
    let span = tracing::Span::current();
    span.record("tenant", tenant.name().as_str()).record("principal", tenant.principal());
    Ok(tenant)
}

/// Spends a permit on what came of it.
fn closed<A: Act, T>(permit: Permit<A>, result: Result<T>) -> Result<(T, Closed)> {
    match result {
        Ok(done) => permit.finish().map(|proof| (done, proof)).map_err(|error| Fail::from(error).begun()),
        Err(fail) => match permit.failed(fail.code()) {
            Ok(_written) => Err(fail.begun()),
            Err(error) => Err(Fail::from(error).begun()),
        },
    }
}

/// As [`closed`], with the answer: and with a signed receipt, where it is wanted.
fn answered<A: Act>(permit: Permit<A>, result: Result<Reply>, signs: bool) -> Result<Answer> {
    match result {
        Ok(reply) if signs => match permit.finish_receipted() {
            Ok((proof, receipt)) => Ok(Answer::closed(reply.header(RECEIPT, &BASE64.encode(receipt)), proof)),
            Err(error) => Err(Fail::from(error).begun()),
        },
        result => closed(permit, result).map(|(reply, proof)| Answer::closed(reply, proof)),
    }
}

/// Whether a receipt is wanted. It belongs to one prediction, so it stands with no other act.
fn signs<A: Act>(headers: &HeaderMap) -> Result<bool> {
    match headers.get(RECEIPT) {
        None => Ok(false),
        Some(value) if value == "sign" && A::QUOTA == QuotaClass::Prediction => Ok(true),
        Some(_) => Err(Fail::new("invalid", "`Insula-Receipt` takes `sign`, and stands with predictions only")),
    }
}

fn mark(tenant: &Tenant, traced: bool) -> TenantMark {
    let traced = traced.then(|| tenant.name().to_string());
    TenantMark { rate: tenant.rate_state(), island: tenant.island(), meter: tenant.meter(), traced }
}

/// What the act is about: the field that names it, or the path's first parameter; nothing for the tenant itself, its ledger, and
/// collections. A path of artifacts begins with its experiment.
fn resource<A: Act>(ask: &Ask) -> &str {
    let named = match (&ask.given, A::RESOURCE) {
        (Some(Ok(given)), _) => given.resource.as_str(),
        (Some(Err(_)), _) | (None, ResourceKind::Tenant | ResourceKind::Ledger) => "",
        (None, _) => ask.parameters.first().map_or("", |(_, value)| value.as_str()),
    };
    match A::RESOURCE {
        ResourceKind::Experiment => named.trim_start_matches('/').split('/').next().unwrap_or_default(),
        _ => named,
    }
}

/// The request of an MLflow address, and what it is about.
async fn given(ask: &mut Ask, field: &'static str) -> Result<Given> {
    let mut fields = mlflow::wire::Fields::of(ask).await?;
    for (name, value) in &ask.parameters {
        fields.put((*name).to_owned(), value)?;
    }
    let resource = match fields.value(field) {
        Some(Value::String(name)) => name,
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    Ok(Given { fields, resource })
}

/// MLflow's workspaces are tenants: one can only be in the credential's own.
fn workspace(ask: &Ask, tenant: &str) -> Result<()> {
    match ask.headers.get(mlflow::WORKSPACE).map(HeaderValue::to_str) {
        None => Ok(()),
        Some(Ok(name)) if name == tenant => Ok(()),
        Some(_) => Err(Fail::new("not_found", "there is no such workspace: the credential belongs to another tenant")),
    }
}

async fn identify(ask: &Ask) -> Result<Identity> {
    Ok(answering(ask, ask.service.kernel.authenticate(bearer(ask)?, &ask.request).await?))
}

/// Also of an operator whose service is led by another node.
async fn identify_here(ask: &Ask) -> Result<Identity> {
    Ok(answering(ask, ask.service.kernel.authenticate_here(bearer(ask)?, &ask.request).await?))
}

/// From here on it is known who answers for the body.
fn answering(ask: &Ask, identity: Identity) -> Identity {
    ask.body.belongs_to(match &identity {
        Identity::Tenant(caller) => Payer::Tenant(caller.island()),
        Identity::Operator(_) => Payer::Operators,
    });
    identity
}

fn bearer(ask: &Ask) -> Result<Presented<'_>> {
    let bearer = ask.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
    });
    bearer.map(Presented::Bearer).ok_or_else(|| platform::tenancy::Error::Unauthenticated.into())
}

/// A request as a handler sees it.
pub(crate) struct Ask {
    pub(crate) service: Arc<Service>,
    pub(crate) method: Method,
    pub(crate) request: RequestId,
    pub(crate) headers: HeaderMap,
    pub(crate) parameters: Vec<(&'static str, String)>,
    /// Known query parameters of the address.
    pub(crate) query_names: Arc<[&'static str]>,
    pub(crate) query_text: Option<String>,
    pub(crate) body: RequestBody,
    pub(crate) streams: bool,
    /// On MLflow addresses, the request, which was read to know what it is about.
    pub(crate) given: Option<Result<Given>>,
    /// If the request may become a trace.
    pub(crate) trace: Option<Arc<Begun>>,
}

/// A request of the MLflow protocol.
pub(crate) struct Given {
    fields: mlflow::wire::Fields,
    resource: String,
}

impl Ask {
    /// A parameter of the path.
    pub(crate) fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value.as_str())
    }

    /// A parameter of the path as a number; what is no number names nothing.
    pub(crate) fn number(&self, name: &str, what: &'static str) -> Result<u64> {
        parsed(self.parameter(name)).ok_or_else(|| platform::tenancy::Error::NotFound(what).into())
    }

    /// The request of an MLflow address.
    pub(crate) fn fields<T: DeserializeOwned>(&mut self) -> Result<T> {
        let given = self.given.take().unwrap_or_else(|| Err(Fail::internal("an address without fields")))?;
        given.fields.read()
    }

    /// Refuses query parameters that the address does not have, or that are there twice.
    fn query_known(&self) -> Result<()> {
        let mut seen = Vec::new();
        for (name, _) in self.query_pairs()? {
            let refuse = |what: &str| Err(Fail::new("query_invalid", format!("the query parameter `{name}` {what}")));
            if !self.query_names.contains(&name.as_str()) {
                return match self.query_names.len() {
                    0 => refuse("is not known: there are none here"),
                    _ => refuse(&format!("is not known: there are {}", self.query_names.join(", "))),
                };
            }
            if seen.contains(&name) {
                return refuse("is there twice");
            }
            seen.push(name);
        }
        Ok(())
    }

    pub(crate) fn query_pairs(&self) -> Result<Vec<(String, String)>> {
        self.query_text.as_deref().map_or(Ok(Vec::new()), |text| form_pairs(text.as_bytes(), "query_invalid"))
    }

    /// A query parameter as text.
    pub(crate) fn query(&self, name: &str) -> Result<Option<String>> {
        Ok(self.query_pairs()?.into_iter().find(|(known, _)| known == name).map(|(_, value)| value))
    }

    /// A query parameter of another type.
    pub(crate) fn query_as<T: std::str::FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>> {
        let Some(text) = self.query(name)? else { return Ok(None) };
        let wrong = |_| Fail::new("query_invalid", format!("the query parameter `{name}` is not {expected}"));
        text.parse().map(Some).map_err(wrong)
    }

    /// `after` and `limit`.
    pub(crate) fn page(&self) -> Result<PageRequest> {
        let limit = self.query_as::<u32>("limit", "a number")?;
        if limit.is_some_and(|limit| !(1..=platform::PAGE_ITEMS_MAX).contains(&limit)) {
            return Err(Fail::new("query_invalid", format!("`limit` is 1 to {}", platform::PAGE_ITEMS_MAX)));
        }
        Ok(PageRequest { after: self.query("after")?, limit })
    }

    /// Media type of the body, without parameters, lower case.
    pub(crate) fn media_type(&self) -> Option<String> {
        let text = self.headers.get(CONTENT_TYPE)?.to_str().ok()?;
        Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
    }

    /// The body as JSON; unknown fields are refused by the types.
    pub(crate) async fn json<T: DeserializeOwned>(self) -> Result<T> {
        if self.media_type().as_deref() != Some("application/json") {
            return Err(Fail::new("media_type_unsupported", "send JSON with `Content-Type: application/json`"));
        }
        let bytes = self.bytes_json().await?;
        serde_json::from_slice(&bytes).map_err(|error| Fail::new("json_invalid", error.to_string()))
    }

    /// As [`Ask::bytes_json`], leaving the rest of the request.
    pub(crate) async fn bytes_taken(&mut self) -> Result<Bytes> {
        let most = self.service.limits.json_bytes_max;
        self.body.take().small(most).await
    }

    /// The body of a small request.
    pub(crate) async fn bytes_json(self) -> Result<Bytes> {
        let most = self.service.limits.json_bytes_max;
        self.body.small(most).await
    }

    /// Refuses a body where none belongs.
    pub(crate) async fn no_body(self) -> Result<()> {
        match self.body.whole(0).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Fail::new("invalid", "this address takes no body").closing()),
        }
    }
}

fn parsed<T: std::str::FromStr>(text: &str) -> Option<T> {
    // `+7` and `007` would be second names of one thing.
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// Pairs of `application/x-www-form-urlencoded` text.
pub(crate) fn form_pairs(text: &[u8], code: &'static str) -> Result<Vec<(String, String)>> {
    /// Most pairs: MLflow's clients ask for the histories of 100 runs at once.
    const PAIRS_MAX: usize = 128;
    let decode = |raw: &[u8]| {
        let text = percent_decoded(raw, true).and_then(|bytes| String::from_utf8(bytes).ok());
        text.filter(|text| !text.chars().any(char::is_control)).ok_or_else(|| Fail::new(code, "a name or value is not clean UTF-8"))
    };
    let mut pairs = Vec::new();
    for pair in text.split(|b| *b == b'&').filter(|pair| !pair.is_empty()) {
        if pairs.len() == PAIRS_MAX {
            return Err(Fail::new(code, format!("there are more than {PAIRS_MAX} parameters")));
        }
        let mut halves = pair.splitn(2, |b| *b == b'=');
        pairs.push((decode(halves.next().unwrap_or_default())?, decode(halves.next().unwrap_or_default())?));
    }
    Ok(pairs)
}

/// What a handler gives back.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: AnswerBody,
}

impl Reply {
    /// 200 with JSON.
    pub(crate) fn json(value: &impl Serialize) -> Result<Self> {
        let bytes = serde_json::to_vec(value).map_err(Fail::internal)?;
        Ok(Self::bytes("application/json", bytes.into()))
    }

    /// 200 with bytes of a media type.
    pub(crate) fn bytes(media: &'static str, bytes: Bytes) -> Self {
        let headers = vec![(CONTENT_TYPE, HeaderValue::from_static(media))];
        Self { status: StatusCode::OK, headers, body: AnswerBody::full(bytes) }
    }

    /// 204.
    pub(crate) fn empty() -> Self {
        Self { status: StatusCode::NO_CONTENT, headers: Vec::new(), body: AnswerBody::full(Bytes::new()) }
    }

    /// 200 with a stream of a media type, as a file to be saved.
    pub(crate) fn stream(media: &'static str, length: Option<u64>, pieces: BoxStream<'static, Result<Bytes>>) -> Self {
        let headers = vec![(CONTENT_TYPE, HeaderValue::from_static(media)), (CONTENT_DISPOSITION, HeaderValue::from_static("attachment"))];
        Self { status: StatusCode::OK, headers, body: AnswerBody::stream(pieces, length) }
    }

    /// The same with another status.
    pub(crate) fn status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// The same with a header.
    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    /// 201 with where it is.
    pub(crate) fn created(self, location: &str) -> Self {
        self.status(StatusCode::CREATED).header(LOCATION, location)
    }
}

/// A reply that may leave: on tenant routes only with the proof that the act is in the ledger.
pub(crate) struct Answer(Reply);

impl Answer {
    fn closed(reply: Reply, _proof: Closed) -> Self {
        Self(reply)
    }

    /// What the tenant's home node answered: the act is in the ledger there.
    pub(crate) fn forwarded(answer: Forwarded) -> Self {
        Self(answer.into_reply())
    }

    pub(crate) fn into_reply(self) -> Reply {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(path: &str) -> Vec<String> {
        path.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn fixed_wins_over_parameter_and_rest_takes_all() {
        let mut tree = Node::default();
        for (at, path) in ["/v1/a", "/v1/a/{name}", "/v1/a/{name}/b", "/v1/a/fixed", "/v1/t/{path...}"].into_iter().enumerate() {
            tree.insert(path, Method::GET, at);
        }
        let find = |path: &str| tree.find(&split(path)).and_then(|methods| methods.first()).map(|(_, at)| *at);
        let table = [
            ("/v1/a", Some(0)),
            ("/v1/a/x", Some(1)),
            ("/v1/a/x/b", Some(2)),
            ("/v1/a/fixed", Some(3)),
            ("/v1/a/fixed/b", Some(2)),
            ("/v1/t/0/x001/067", Some(4)),
            ("/v1/t", None),
            ("/v1", None),
            ("/v1/a/x/c", None),
        ];
        for (path, expected) in table {
            assert_eq!(find(path), expected, "{path}");
        }
        assert_eq!(parameters("/v1/t/{path...}", &split("/v1/t/0/x001/067")), [("path", "0/x001/067".to_owned())]);
        assert_eq!(parameters("/v1/a/{name}/v/{version}", &split("/v1/a/x/v/7")), [("name", "x".to_owned()), ("version", "7".to_owned())]);
    }

    #[test]
    fn numbers_have_one_spelling() {
        for (text, expected) in [("7", Some(7)), ("0", Some(0)), ("07", None), ("+7", None), ("", None), ("7a", None), ("-1", None)] {
            assert_eq!(parsed::<u64>(text), expected, "{text}");
        }
        assert_eq!(parsed::<u64>("99999999999999999999"), None);
    }

    #[test]
    fn forms() {
        let pairs = form_pairs(b"a=1&b=x+y%26&c", "invalid").unwrap();
        assert_eq!(pairs, [("a", "1"), ("b", "x y&"), ("c", "")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        for bad in [&b"a=%0a"[..], b"a=%f", b"a=%ff"] {
            assert!(form_pairs(bad, "invalid").is_err());
        }
        assert!(form_pairs("a=1&".repeat(128).as_bytes(), "invalid").is_ok());
        assert!(form_pairs("a=1&".repeat(129).as_bytes(), "invalid").is_err());
    }
}
