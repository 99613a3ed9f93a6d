//! What anybody may ask, credential or not: a closed list. The endpoint walk exempts exactly these.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::api::{Ask, Reply, form_pairs};
use crate::error::{Fail, Result};
use crate::grpc;
use crate::openapi::Doc;
use crate::route::inference::{SERVER_EXTENSIONS, SERVER_NAME};
use crate::route::people::IssuedKeyAnswer;

/// A public address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Public {
    Health,
    Ready,
    Token,
    Discovery,
    Keys,
    Document,
    Bootstrap,
    InferenceServer,
    InferenceLive,
    InferenceReady,
    GrpcServerLive,
    GrpcServerReady,
    GrpcServerMetadata,
    MlflowHealth,
    MlflowVersion,
    MlflowServerInfo,
}

impl Public {
    /// All of them.
    pub(crate) const ALL: [Self; 16] = [
        Self::Health,
        Self::Ready,
        Self::Token,
        Self::Discovery,
        Self::Keys,
        Self::Document,
        Self::Bootstrap,
        Self::InferenceServer,
        Self::InferenceLive,
        Self::InferenceReady,
        Self::GrpcServerLive,
        Self::GrpcServerReady,
        Self::GrpcServerMetadata,
        Self::MlflowHealth,
        Self::MlflowVersion,
        Self::MlflowServerInfo,
    ];

    /// Where it is and what it is.
    pub(crate) fn describe(self) -> (Method, &'static str, Doc) {
        let get = |path, doc| (Method::GET, path, doc);
        match self {
            Self::Health => get("/healthz", Doc::new("health", "The process answers").answers::<Health>()),
            Self::Ready => get("/readyz", Doc::new("ready", "The service takes work; 503 while it stops").answers::<Health>()),
            Self::Token => (
                Method::POST,
                "/oauth/token",
                Doc::new("token", "Exchange an API key for a short-lived access token (RFC 6749, client credentials)")
                    .takes_raw("application/x-www-form-urlencoded", "grant_type=client_credentials, client_id, client_secret, scope")
                    .answers::<TokenAnswer>(),
            ),
            Self::Discovery => get(
                "/.well-known/oauth-authorization-server",
                Doc::new("oauth_metadata", "OAuth metadata (RFC 8414)").answers_raw("application/json", "RFC 8414"),
            ),
            Self::Keys => get(
                "/.well-known/jwks.json",
                Doc::new("jwks", "Keys that verify access tokens").answers_raw("application/json", "RFC 7517"),
            ),
            Self::Document => get("/openapi.json", Doc::new("openapi", "This document").answers_raw("application/json", "OpenAPI 3.1")),
            Self::Bootstrap => (
                Method::POST,
                "/v1/bootstrap",
                Doc::new("bootstrap", "Turn the one-time secret of the first start into an operator key")
                    .takes::<BootstrapRequest>()
                    .answers::<IssuedKeyAnswer>(),
            ),
            Self::InferenceServer => {
                get("/v2", Doc::new("inference_server", "Server metadata (Open Inference Protocol)").answers::<ServerMetadata>())
            }
            Self::InferenceLive => {
                get("/v2/health/live", Doc::new("inference_live", "Liveness (Open Inference Protocol)").answers::<Live>())
            }
            Self::InferenceReady => {
                get("/v2/health/ready", Doc::new("inference_ready", "Readiness (Open Inference Protocol)").answers::<Ready>())
            }
            Self::GrpcServerLive => (Method::POST, grpc::SERVER_LIVE, Doc::new("grpc_server_live", "Liveness")),
            Self::GrpcServerReady => (Method::POST, grpc::SERVER_READY, Doc::new("grpc_server_ready", "Readiness")),
            Self::GrpcServerMetadata => (Method::POST, grpc::SERVER_METADATA, Doc::new("grpc_server_metadata", "Server metadata")),
            Self::MlflowHealth => {
                get("/health", Doc::new("mlflow_health", "The process answers, for MLflow's clients").answers_raw("text/plain", "OK"))
            }
            Self::MlflowVersion => get(
                "/version",
                Doc::new("mlflow_version", "The version of MLflow's REST API that is spoken").answers_raw("text/plain", "as in `3.18.0`"),
            ),
            Self::MlflowServerInfo => get(
                "/api/3.0/mlflow/server-info",
                Doc::new("mlflow_server_info", "What MLflow's clients may use of its REST API").answers_raw("application/json", "flags"),
            ),
        }
    }

    /// Answers it.
    pub(crate) async fn answer(self, ask: Ask) -> Result<Reply> {
        if matches!(self, Self::GrpcServerLive | Self::GrpcServerReady | Self::GrpcServerMetadata) {
            grpc::framing::content_type(&ask.headers)?;
        }
        match self {
            Self::Health => Reply::json(&Health { status: "ok" }),
            Self::Ready => readiness(&ask, &Health { status: "ready" }, &Health { status: "stopping" }),
            Self::Token => token(ask).await,
            Self::Discovery => Reply::json(&discovery(ask.service.kernel.issuer())),
            Self::Keys => Reply::json(&ask.service.kernel.jwks()),
            Self::Document => Ok(Reply::bytes("application/json", ask.service.openapi.clone())),
            Self::Bootstrap => bootstrap(ask).await,
            Self::InferenceServer => {
                let extensions = SERVER_EXTENSIONS.to_vec();
                Reply::json(&ServerMetadata { name: SERVER_NAME, version: env!("CARGO_PKG_VERSION"), extensions })
            }
            Self::InferenceLive => Reply::json(&Live { live: true }),
            Self::InferenceReady => readiness(&ask, &Ready { ready: true }, &Ready { ready: false }),
            Self::GrpcServerLive => Ok(grpc::server_live()),
            Self::GrpcServerReady => Ok(grpc::server_ready(ask.service.is_ready())),
            Self::GrpcServerMetadata => Ok(grpc::server_metadata()),
            Self::MlflowHealth => Ok(Reply::bytes("text/plain", "OK".into())),
            Self::MlflowVersion => Ok(Reply::bytes("text/plain", MLFLOW_VERSION.into())),
            Self::MlflowServerInfo => Reply::json(&mlflow_server_info()),
        }
    }
}

/// The version of MLflow whose REST API is spoken.
const MLFLOW_VERSION: &str = "3.18.0";

/// What MLflow's clients adapt to. The same for everybody: it is read before anybody says who they are.
fn mlflow_server_info() -> serde_json::Value {
    json!({
        "store_type": "SqlStore",
        "workspaces_enabled": true,
        "trace_archival_enabled": false,
        "multipart_uploads_enabled": false,
        "multipart_downloads_enabled": false,
        "artifact_serving_enabled": true,
        "presigned_upload_run_id_supported": false,
        "presigned_upload_model_id_supported": false,
        "model_artifact_presigned_downloads_supported": false,
        "features_enabled": {"gateway": false, "scheduled_issue_detection": false},
        "tracking_auth": "",
        "artifacts_presigned_only": false,
    })
}

fn readiness<T: Serialize>(ask: &Ask, yes: &T, no: &T) -> Result<Reply> {
    if ask.service.is_ready() { Reply::json(yes) } else { Ok(Reply::json(no)?.status(StatusCode::SERVICE_UNAVAILABLE)) }
}

/// State of the process.
#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`, `ready` or `stopping`.
    status: &'static str,
}

/// Open Inference Protocol, server metadata.
#[derive(Serialize, ToSchema)]
pub(crate) struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: Vec<&'static str>,
}

/// Open Inference Protocol, liveness.
#[derive(Serialize, ToSchema)]
pub(crate) struct Live {
    live: bool,
}

/// Open Inference Protocol, readiness.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ready {
    ready: bool,
}

/// The one-time secret.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootstrapRequest {
    /// Text of the file that the first start named.
    secret: String,
}

async fn bootstrap(ask: Ask) -> Result<Reply> {
    let (service, request) = (ask.service.clone(), ask.request.clone());
    let BootstrapRequest { secret } = ask.json().await?;
    let issued = service.kernel.bootstrap(secret.trim(), &request).await?;
    Ok(Reply::json(&IssuedKeyAnswer::new(&issued))?.status(StatusCode::CREATED))
}

/// An access token (RFC 6749, 5.1).
#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub(crate) struct TokenAnswer {
    access_token: String,
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
    scope: String,
}

async fn token(ask: Ask) -> Result<Reply> {
    if ask.media_type().as_deref() != Some("application/x-www-form-urlencoded") {
        return Err(Fail::new("media_type_unsupported", "send a form with `Content-Type: application/x-www-form-urlencoded`"));
    }
    let (service, basic) = (ask.service.clone(), basic(&ask)?);
    let form = form_pairs(&ask.bytes_json().await?, "invalid")?;
    let field = |name: &str| {
        let mut values = form.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(Fail::new("invalid", format!("`{name}` is there twice"))),
            (value, None) => Ok(value),
        }
    };
    match field("grant_type")? {
        Some("client_credentials") => {}
        Some(_) => return Err(Fail::new("grant_unsupported", "the grant type is `client_credentials`")),
        None => return Err(Fail::new("invalid", "`grant_type` is missing")),
    }
    let scope = field("scope")?;
    let (id, secret) = match (&basic, field("client_id")?, field("client_secret")?) {
        (Some((id, secret)), None, None) => (id.as_str(), secret.as_str()),
        (Some((id, secret)), Some(same), None) if same == id => (id.as_str(), secret.as_str()),
        (Some(_), ..) => return Err(Fail::new("invalid", "give the client either in the header or in the form")),
        (None, Some(id), Some(secret)) => (id, secret),
        (None, ..) => return Err(platform::tenancy::Error::Unauthenticated.into()),
    };
    let token = service.kernel.token_exchange(id, secret, scope).await?;
    Reply::json(&TokenAnswer { access_token: token.token, token_type: "Bearer", expires_in: token.expires_in_seconds, scope: token.scope })
}

/// Id and secret of HTTP Basic, percent-decoded as RFC 6749 (2.3.1) has it.
fn basic(ask: &Ask) -> Result<Option<(String, String)>> {
    let Some(header) = ask.headers.get(AUTHORIZATION) else { return Ok(None) };
    let wrong = || Fail::from(platform::tenancy::Error::Unauthenticated);
    let (scheme, text) = header.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(wrong)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(wrong());
    }
    let bytes = STANDARD.decode(text.trim()).map_err(|_| wrong())?;
    let (id, secret) = std::str::from_utf8(&bytes).ok().and_then(|text| text.split_once(':')).ok_or_else(wrong)?;
    let decoded =
        |text: &str| crate::guard::percent_decoded(text.as_bytes(), true).and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(wrong);
    Ok(Some((decoded(id)?, decoded(secret)?)))
}

fn discovery(issuer: &str) -> serde_json::Value {
    json!({
        "issuer": issuer,
        "token_endpoint": format!("{issuer}/oauth/token"),
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": [],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    })
}
