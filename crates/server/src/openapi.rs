//! The OpenAPI 3.1 document, made from the registered routes and nothing else: an address that is not registered cannot be
//! in it, and one that is cannot be missing. Schemas come from the types that are really read and written.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::Method;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

use crate::api::{Access, Route};
use crate::grpc;

/// What the document says about one address, and which query parameters it knows.
pub(crate) struct Doc {
    pub(crate) operation: &'static str,
    summary: &'static str,
    query: Vec<(&'static str, &'static str, &'static str)>,
    body: Option<Content>,
    answer: Option<Content>,
    status: u16,
    pub(crate) streams: bool,
}

enum Content {
    Json(SchemaOf),
    Page(SchemaOf),
    Raw(&'static str, &'static str),
}

struct SchemaOf {
    name: fn() -> Cow<'static, str>,
    schema: fn() -> RefOr<Schema>,
    all: fn(&mut Vec<(String, RefOr<Schema>)>),
}

impl SchemaOf {
    fn of<T: ToSchema>() -> Self {
        Self { name: T::name, schema: T::schema, all: T::schemas }
    }
}

impl Doc {
    /// `operation` is unique; it also names the address in metrics and logs.
    pub(crate) fn new(operation: &'static str, summary: &'static str) -> Self {
        Self { operation, summary, query: Vec::new(), body: None, answer: None, status: 200, streams: false }
    }

    /// A query parameter of a JSON type.
    pub(crate) fn query(mut self, name: &'static str, kind: &'static str, about: &'static str) -> Self {
        self.query.push((name, kind, about));
        self
    }

    /// `after` and `limit`, and an answer of pages.
    pub(crate) fn pages<T: ToSchema>(self) -> Self {
        let paged = self.query("after", "string", "`next` of the page before").query("limit", "integer", "most items, 1 to 500");
        Self { answer: Some(Content::Page(SchemaOf::of::<T>())), ..paged }
    }

    /// A JSON body.
    pub(crate) fn takes<T: ToSchema>(self) -> Self {
        Self { body: Some(Content::Json(SchemaOf::of::<T>())), ..self }
    }

    /// A streamed body.
    pub(crate) fn takes_stream(self, media: &'static str, about: &'static str) -> Self {
        Self { body: Some(Content::Raw(media, about)), streams: true, ..self }
    }

    /// A body of another media type.
    pub(crate) fn takes_raw(self, media: &'static str, about: &'static str) -> Self {
        Self { body: Some(Content::Raw(media, about)), ..self }
    }

    /// A JSON answer.
    pub(crate) fn answers<T: ToSchema>(self) -> Self {
        Self { answer: Some(Content::Json(SchemaOf::of::<T>())), ..self }
    }

    /// An answer of another media type.
    pub(crate) fn answers_raw(self, media: &'static str, about: &'static str) -> Self {
        Self { answer: Some(Content::Raw(media, about)), ..self }
    }

    /// A streamed answer.
    pub(crate) fn answers_stream(self, media: &'static str, about: &'static str) -> Self {
        Self { answer: Some(Content::Raw(media, about)), streams: true, ..self }
    }

    /// The same as a conversation, without a deadline for the whole.
    pub(crate) fn streaming(self) -> Self {
        Self { streams: true, ..self }
    }

    /// Status of success when it is not 200.
    pub(crate) fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// Names of the query parameters.
    pub(crate) fn query_names(&self) -> Vec<&'static str> {
        self.query.iter().map(|(name, ..)| *name).collect()
    }
}

/// The document.
pub(crate) fn document(routes: &[Route]) -> Value {
    let mut schemas = Schemas::default();
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    // gRPC has its own description: the protocol's `.proto`.
    for route in routes.iter().filter(|route| !grpc::is_method(route.info.path)) {
        let path = route.info.path.replace("...}", "}");
        let method = method_word(&route.info.method);
        paths.entry(path).or_default().insert(method, operation(route, &mut schemas));
    }
    schemas.known.insert("Problem".to_owned(), problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Insula",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A shared machine-learning service in which every tenant is an island.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas.known,
            "securitySchemes": {
                "member": {"type": "http", "scheme": "bearer", "description": "an API key or access token of a tenant's member"},
                "operator": {"type": "http", "scheme": "bearer", "description": "an API key of the operator"},
            },
        },
    })
}

fn method_word(method: &Method) -> String {
    method.as_str().to_ascii_lowercase()
}

#[expect(clippy::indexing_slicing, reason = "assigning to a key of a JSON object inserts it")]
fn operation(route: &Route, schemas: &mut Schemas) -> Value {
    let (doc, info) = (&route.doc, &route.info);
    let mut parameters: Vec<Value> = info
        .path
        .split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({"name": name.trim_end_matches("..."), "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    parameters.extend(
        doc.query.iter().map(|(name, kind, about)| json!({"name": name, "in": "query", "description": about, "schema": {"type": kind}})),
    );
    let mut answer = json!({"description": "done"});
    if let Some(content) = &doc.answer {
        answer["content"] = schemas.content(content);
    }
    let mut operation = json!({
        "operationId": doc.operation,
        "summary": doc.summary,
        "tags": [tag(info.path)],
        "responses": {
            doc.status.to_string(): answer,
            "default": {
                "description": "refused or failed; the codes are in docs/errors.md",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    });
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
    if let Some(content) = &doc.body {
        operation["requestBody"] = json!({"required": true, "content": schemas.content(content)});
    }
    match info.access {
        Access::Tenant { act, .. } => {
            operation["security"] = json!([{"member": []}]);
            operation["x-insula-act"] = json!(act);
        }
        Access::Operator => operation["security"] = json!([{"operator": []}]),
        Access::Either { act } => {
            operation["security"] = json!([{"member": []}, {"operator": []}]);
            operation["x-insula-act"] = json!(act);
        }
        Access::Public => operation["security"] = json!([]),
    }
    operation
}

/// The first word of the path after the version.
fn tag(path: &str) -> &str {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    match segments.next() {
        Some("v1") => segments.next().unwrap_or("v1"),
        Some("v2") => "inference",
        _ => "service",
    }
}

fn problem() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457",
        "required": ["type", "title", "status", "code", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {"type": "string", "description": "stable; docs/errors.md has a line for each"},
            "detail": {"type": "string"},
        },
    })
}

/// Schemas by name, each once.
#[derive(Default)]
struct Schemas {
    known: BTreeMap<String, Value>,
}

impl Schemas {
    fn content(&mut self, content: &Content) -> Value {
        match content {
            Content::Json(schema) => json!({"application/json": {"schema": self.reference(schema)}}),
            Content::Page(schema) => {
                let items = self.reference(schema);
                json!({"application/json": {"schema": {
                    "type": "object",
                    "required": ["items"],
                    "properties": {
                        "items": {"type": "array", "items": items},
                        "next": {"type": "string", "description": "give it as `after`; absent on the last page"},
                    },
                }}})
            }
            Content::Raw(media, about) => json!({*media: {"schema": {"description": about}}}),
        }
    }

    fn reference(&mut self, schema: &SchemaOf) -> Value {
        let mut found = Vec::new();
        (schema.all)(&mut found);
        found.push(((schema.name)().into_owned(), (schema.schema)()));
        for (name, schema) in found {
            self.known.entry(name).or_insert_with(|| serde_json::to_value(schema).unwrap_or_default());
        }
        json!({"$ref": format!("#/components/schemas/{}", (schema.name)())})
    }
}
