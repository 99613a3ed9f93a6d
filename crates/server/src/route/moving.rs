//! The operator moves tenants between stores, takes them out and brings them in, and has their isolation tried. What is moved stays sealed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderName, StatusCode};
use platform::tenancy::{Finding, MoveInfo, Operator, Tier};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use utoipa::ToSchema;

use super::operator::{CreatedTenantAnswer, named};
use super::{GET, POST, rfc3339};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;

/// Carries the key of a bundle: base64 of 32 bytes. Never logged, never stored.
const BUNDLE_KEY: HeaderName = HeaderName::from_static("insula-bundle-key");
/// Bytes of that key.
const KEY_BYTES: usize = 32;
/// Media type of a bundle.
const BUNDLE: &str = "application/vnd.insula.bundle";
/// Largest bundle that is taken in, in bytes.
const BUNDLE_BYTES_MAX: u64 = 1 << 40;
/// Bytes between who makes a bundle and who sends it.
const PIPE_BYTES: usize = 256 << 10;
/// Size of a sent piece in bytes.
const PIECE_BYTES: usize = 64 << 10;

pub(super) fn register(api: &mut Api) {
    api.operator_route(
        POST,
        "/v1/tenants/{name}/move",
        Doc::new("tenant_move", "Order a move to another storage tier; the tenant works on")
            .takes::<MoveRequest>()
            .answers::<Move>()
            .status(202),
        start,
    );
    api.operator_route(GET, "/v1/tenants/{name}/move", Doc::new("tenant_move_get", "How far the last move is").answers::<Move>(), show);
    api.operator_route(
        POST,
        "/v1/tenants/{name}/move/finish",
        Doc::new("tenant_move_finish", "Destroy the place where the tenant lived before its last move").answers::<Move>(),
        finish,
    );
    api.operator_route(
        POST,
        "/v1/tenants/{name}/move/rollback",
        Doc::new("tenant_move_rollback", "Order the way back to the place before, with everything written since")
            .answers::<Move>()
            .status(202),
        rollback,
    );
    api.operator_route(
        POST,
        "/v1/tenants/{name}/export",
        Doc::new(
            "tenant_export",
            "The whole tenant as one sealed, signed bundle, under the key in `Insula-Bundle-Key` (base64 of 32 bytes)",
        )
        .answers_stream(BUNDLE, "an Insula bundle"),
        export,
    );
    api.operator_route(
        POST,
        "/v1/tenants/{name}/import",
        Doc::new("tenant_import", "Bring a bundle to life as a new tenant, with the key in `Insula-Bundle-Key`")
            .takes_stream(BUNDLE, "an Insula bundle")
            .answers::<CreatedTenantAnswer>()
            .status(201),
        import,
    );
    api.operator_route(
        POST,
        "/v1/tenants/{name}/isolation",
        Doc::new("tenant_isolation", "Try with the tenant's own credentials to reach what belongs to others").answers::<Isolation>(),
        isolation,
    );
}

/// Where a tenant is to go.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MoveRequest {
    /// `embedded`, `pooled`, `schema` or `database`.
    #[schema(value_type = String)]
    storage: Tier,
}

/// A move.
#[derive(Serialize, ToSchema)]
struct Move {
    /// `settled`, `copying`, `moved` (the place before is kept) or `failed`.
    state: &'static str,
    from: &'static str,
    to: &'static str,
    /// Of the last pass over the tenant.
    records: u64,
    objects: u64,
    bytes: u64,
    /// Passes so far, the proof included.
    passes: u32,
    /// How long writers waited, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_milliseconds: Option<f64>,
    /// Over the whole content, the same at both places.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    /// Absent when it never moved.
    #[schema(format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[schema(format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    updated_at: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<MoveInfo> for Move {
    fn from(info: MoveInfo) -> Self {
        let time = |micros: i64| (micros > 0).then(|| rfc3339(micros));
        Self {
            state: info.state.name(),
            from: info.from.name(),
            to: info.to.name(),
            records: info.records,
            objects: info.objects,
            bytes: info.bytes,
            passes: info.passes,
            pause_milliseconds: info.pause_micros.map(|micros| std::time::Duration::from_micros(micros).as_secs_f64() * 1e3),
            sha256: info.sha256,
            started_at: time(info.started_at),
            updated_at: time(info.updated_at),
            error: info.error,
        }
    }
}

/// What the attempts brought.
#[derive(Serialize, ToSchema)]
struct Isolation {
    /// Whether every probe ended as it must.
    holds: bool,
    /// Other tenants that were tried.
    others_tried: usize,
    /// Of so many that have rows or objects on a server; 0 when this tenant has neither.
    others: usize,
    probes: Vec<Probe>,
}

/// One attempt.
#[derive(Serialize, ToSchema)]
struct Probe {
    /// What was tried.
    probe: String,
    /// On what.
    target: String,
    /// Whether it was refused.
    refused: bool,
    /// Whether it must be refused; false for the tenant's own.
    must_refuse: bool,
    /// What the server said.
    detail: String,
}

impl From<Finding> for Probe {
    fn from(finding: Finding) -> Self {
        let Finding { probe, target, refused, expected, detail } = finding;
        Self { probe, target, refused, must_refuse: expected, detail }
    }
}

async fn start(operator: &Operator, ask: Ask) -> Result<Reply> {
    let name = named(&ask)?;
    let MoveRequest { storage } = ask.json().await?;
    Ok(Reply::json(&Move::from(operator.tenant_move(&name, storage).await?))?.status(StatusCode::ACCEPTED))
}

async fn show(operator: &Operator, ask: Ask) -> Result<Reply> {
    Reply::json(&Move::from(operator.move_info(&named(&ask)?).await?))
}

async fn finish(operator: &Operator, ask: Ask) -> Result<Reply> {
    let name = named(&ask)?;
    ask.no_body().await?;
    Reply::json(&Move::from(operator.move_finish(&name).await?))
}

async fn rollback(operator: &Operator, ask: Ask) -> Result<Reply> {
    let name = named(&ask)?;
    ask.no_body().await?;
    Ok(Reply::json(&Move::from(operator.move_rollback(&name).await?))?.status(StatusCode::ACCEPTED))
}

async fn isolation(operator: &Operator, ask: Ask) -> Result<Reply> {
    let name = named(&ask)?;
    ask.no_body().await?;
    let tried = operator.verify_isolation(&name).await?;
    let (holds, others_tried, others) = (tried.holds(), tried.others_tried, tried.others);
    Reply::json(&Isolation { holds, others_tried, others, probes: tried.findings.into_iter().map(Probe::from).collect() })
}

async fn export(operator: &Operator, ask: Ask) -> Result<Reply> {
    let (name, key) = (named(&ask)?, bundle_key(&ask)?);
    ask.no_body().await?;
    let export = operator.export(&name, key).await?;
    let (mut writing, reading) = duplex(PIPE_BYTES);
    let making = tokio::spawn(async move {
        export.write(&mut writing).await?;
        Ok(writing.shutdown().await?)
    });
    Ok(Reply::stream(BUNDLE, None, pieces(reading, making).boxed()))
}

/// What comes out of the pipe; at its end, whether whoever made it came to the end as well.
fn pieces(reading: DuplexStream, making: JoinHandle<platform::tenancy::Result<()>>) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    stream::unfold(Some((reading, making)), |state| async move {
        let (mut reading, making) = state?;
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        match reading.read_buf(&mut piece).await {
            Ok(0) => match making.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some((Err(error.into()), None)),
                Err(error) => Some((Err(Fail::internal(error)), None)),
            },
            Ok(_) => Some((Ok(piece.freeze()), Some((reading, making)))),
            Err(error) => Some((Err(Fail::internal(error)), None)),
        }
    })
}

async fn import(operator: &Operator, ask: Ask) -> Result<Reply> {
    let (name, key) = (named(&ask)?, bundle_key(&ask)?);
    let mut body = std::pin::pin!(ask.body.stream(BUNDLE_BYTES_MAX));
    let (mut writing, mut reading) = duplex(PIPE_BYTES);
    let bringing = async move {
        while let Some(Ok(piece)) = body.next().await {
            // Whoever reads has seen enough; what it thinks of it is the answer.
            if writing.write_all(&piece).await.is_err() {
                break;
            }
        }
    };
    let importing = async {
        let imported = operator.import(&name, &mut reading, key).await;
        drop(reading);
        imported
    };
    let ((), created) = tokio::join!(bringing, importing);
    let created = created?;
    let location = format!("/v1/tenants/{}", created.tenant.name);
    Ok(Reply::json(&CreatedTenantAnswer::new(created))?.created(&location))
}

/// The key of the bundle that the request brings.
fn bundle_key(ask: &Ask) -> Result<[u8; KEY_BYTES]> {
    let given = ask.headers.get(&BUNDLE_KEY).and_then(|value| STANDARD.decode(value.as_bytes()).ok());
    let key = given.and_then(|bytes| bytes.try_into().ok());
    key.ok_or_else(|| Fail::new("invalid", "give the bundle's key in the header `Insula-Bundle-Key`: base64 of 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bundle_that_breaks_off_does_not_end_well() {
        for (fails, expected) in [(false, 1), (true, 2)] {
            let (mut writing, reading) = duplex(PIPE_BYTES);
            let making = tokio::spawn(async move {
                writing.write_all(b"half").await?;
                if fails { Err(platform::tenancy::Error::Unavailable("gone")) } else { Ok(()) }
            });
            let got: Vec<_> = pieces(reading, making).collect().await;
            assert_eq!((got.len(), got.last().unwrap().is_err()), (expected, fails), "{got:?}");
        }
    }
}
