//! The operator: tenants, their limits, their end, operator keys, the service's own ledger. No path to tenant content.

use http::StatusCode;
use platform::tenancy::{CreatedTenant, Limits, Name, Operator, TenantInfo, TenantSpec, Tier};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::people::{Erasure, IssuedKeyAnswer, Key, LimitsDto, expiry};
use super::{DELETE, GET, Listed, POST, PUT, ledger, rfc3339};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;

// Long because it is the list of the operator's addresses.
pub(super) fn register(api: &mut Api) {
    api.operator_route(
        POST,
        "/v1/tenants",
        Doc::new("tenant_create", "Create a tenant with its first administrator")
            .takes::<TenantRequest>()
            .answers::<CreatedTenantAnswer>()
            .status(201),
        tenant_create,
    );
    api.operator_route(GET, "/v1/tenants", Doc::new("tenant_list", "Tenants by name").pages::<TenantAnswer>(), tenant_list);
    api.operator_route(GET, "/v1/tenants/{name}", Doc::new("tenant_get", "One tenant").answers::<TenantAnswer>(), tenant_get);
    api.operator_route(
        DELETE,
        "/v1/tenants/{name}",
        Doc::new("tenant_delete", "Erase a tenant for good").answers::<Erasure>().status(202),
        tenant_delete,
    );
    api.operator_route(
        POST,
        "/v1/tenants/{name}/suspend",
        Doc::new("tenant_suspend", "Refuse its requests, keep everything").answers::<TenantAnswer>(),
        tenant_suspend,
    );
    api.operator_route(
        POST,
        "/v1/tenants/{name}/resume",
        Doc::new("tenant_resume", "Take its requests again").answers::<TenantAnswer>(),
        tenant_resume,
    );
    api.operator_route(
        PUT,
        "/v1/tenants/{name}/limits",
        Doc::new("tenant_limits_put", "Set what the tenant may use; a field left out takes the default")
            .takes::<LimitsRequest>()
            .answers::<TenantAnswer>(),
        tenant_limits_put,
    );
    api.operator_route(GET, "/v1/erasures", Doc::new("erasure_list", "Erasures, oldest first").pages::<Erasure>(), erasure_list);
    api.operator_route(
        GET,
        "/v1/erasures/{id}",
        Doc::new("erasure_get", "How far an erasure is, and its certificate").answers::<Erasure>(),
        erasure_get,
    );
    api.operator_route(GET, "/v1/service/keys", Doc::new("operator_key_list", "Operator keys").pages::<Key>(), key_list);
    api.operator_route(
        POST,
        "/v1/service/keys",
        Doc::new("operator_key_issue", "Issue another operator key; its secret is shown once")
            .takes::<OperatorKeyRequest>()
            .answers::<IssuedKeyAnswer>()
            .status(201),
        key_issue,
    );
    api.operator_route(DELETE, "/v1/service/keys/{id}", Doc::new("operator_key_revoke", "Revoke an operator key").status(204), key_revoke);
    api.operator_route(
        GET,
        "/v1/service/ledger",
        ledger::search_doc("service_ledger_search", "Search the service's own audit log"),
        ledger_search,
    );
    api.operator_route(
        GET,
        "/v1/service/ledger/checkpoint",
        Doc::new("service_ledger_checkpoint", "Signed checkpoint of the service's audit log")
            .answers_raw("text/plain", "C2SP tlog-checkpoint"),
        ledger_checkpoint,
    );
    api.operator_route(
        GET,
        "/v1/service/ledger/key",
        Doc::new("service_ledger_key", "Key that verifies checkpoints and erasure certificates").answers::<ledger::LedgerKey>(),
        ledger_key,
    );
    api.operator_route(
        GET,
        "/v1/service/ledger/export",
        Doc::new("service_ledger_export", "The service's audit log as one file that verifies offline")
            .answers_stream("application/x-ndjson", "one JSON object a line"),
        ledger_export,
    );
}

/// A tenant to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TenantRequest {
    #[schema(value_type = String)]
    name: Name,
    /// Name of its first administrator; `admin` when absent.
    #[schema(value_type = Option<String>)]
    admin: Option<Name>,
    /// What it may use; the service's defaults when absent.
    #[schema(value_type = Option<LimitsDto>)]
    limits: Option<Limits>,
    /// Where its rows lie: `embedded`, `pooled`, `schema` or `database`; the service's default when absent.
    #[schema(value_type = Option<String>)]
    storage: Option<Tier>,
}

/// A tenant as the operator sees it.
#[derive(Serialize, ToSchema)]
#[schema(as = Tenant)]
struct TenantAnswer {
    name: String,
    /// `active`, `suspended` or `erasing`.
    state: String,
    #[schema(format = DateTime)]
    created_at: String,
    limits: LimitsDto,
    /// `embedded`, `pooled`, `schema` or `database`.
    storage: &'static str,
}

impl From<TenantInfo> for TenantAnswer {
    fn from(info: TenantInfo) -> Self {
        let storage = info.storage.name();
        Self { name: info.name, state: info.state, created_at: rfc3339(info.created_at), limits: info.limits.into(), storage }
    }
}

/// A tenant right after it was made.
#[derive(Serialize, ToSchema)]
#[schema(as = CreatedTenant)]
pub(super) struct CreatedTenantAnswer {
    tenant: TenantAnswer,
    admin_key: IssuedKeyAnswer,
}

impl CreatedTenantAnswer {
    pub(super) fn new(created: CreatedTenant) -> Self {
        let admin_key = IssuedKeyAnswer::new(&created.admin_key);
        Self { tenant: created.tenant.into(), admin_key }
    }
}

async fn tenant_create(operator: &Operator, ask: Ask) -> Result<Reply> {
    let request: TenantRequest = ask.json().await?;
    let admin = match request.admin {
        Some(admin) => admin,
        None => "admin".parse()?,
    };
    let created = operator.tenant_create(TenantSpec { name: request.name, admin, limits: request.limits, tier: request.storage }).await?;
    let location = format!("/v1/tenants/{}", created.tenant.name);
    Ok(Reply::json(&CreatedTenantAnswer::new(created))?.created(&location))
}

async fn tenant_list(operator: &Operator, ask: Ask) -> Result<Reply> {
    let page = ask.page()?;
    let after: Option<Name> = page.after.as_deref().map(str::parse).transpose()?;
    let tenants = operator.tenants(after.as_ref(), page.limit() + 1).await?.into_iter().map(TenantAnswer::from).collect();
    Reply::json(&Listed::cut(tenants, page.limit() as usize, |tenant: &TenantAnswer| tenant.name.clone()))
}

/// The tenant that the path names; what is no name names nobody.
pub(super) fn named(ask: &Ask) -> Result<Name> {
    ask.parameter("name").parse().map_err(|_| platform::tenancy::Error::NotFound("tenant").into())
}

async fn tenant_get(operator: &Operator, ask: Ask) -> Result<Reply> {
    Reply::json(&TenantAnswer::from(operator.tenant(&named(&ask)?).await?))
}

async fn tenant_delete(operator: &Operator, ask: Ask) -> Result<Reply> {
    let (name, service) = (named(&ask)?, ask.service.clone());
    ask.no_body().await?;
    let erasure = operator.erase(&name).await?;
    service.platform.erasure_wake();
    Ok(Reply::json(&Erasure::from(erasure))?.status(StatusCode::ACCEPTED))
}

async fn tenant_suspend(operator: &Operator, ask: Ask) -> Result<Reply> {
    let name = named(&ask)?;
    ask.no_body().await?;
    Reply::json(&TenantAnswer::from(operator.suspend(&name).await?))
}

async fn tenant_resume(operator: &Operator, ask: Ask) -> Result<Reply> {
    let name = named(&ask)?;
    ask.no_body().await?;
    Reply::json(&TenantAnswer::from(operator.resume(&name).await?))
}

/// Limits to be set.
#[derive(Deserialize)]
#[serde(transparent)]
struct LimitsRequest(Limits);

impl utoipa::PartialSchema for LimitsRequest {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        LimitsDto::schema()
    }
}

impl ToSchema for LimitsRequest {
    fn name() -> std::borrow::Cow<'static, str> {
        LimitsDto::name()
    }
}

async fn tenant_limits_put(operator: &Operator, ask: Ask) -> Result<Reply> {
    let name = named(&ask)?;
    let LimitsRequest(limits) = ask.json().await?;
    Reply::json(&TenantAnswer::from(operator.limits_put(&name, limits).await?))
}

async fn erasure_list(operator: &Operator, ask: Ask) -> Result<Reply> {
    let page = ask.page()?;
    let erasures = operator.erasures().await?;
    let from = match page.after.as_deref() {
        None => 0,
        Some(after) => erasures.iter().position(|erasure| erasure.id == after).map_or(erasures.len(), |at| at + 1),
    };
    let limit = page.limit() as usize;
    let erasures = erasures.into_iter().skip(from).take(limit + 1).map(Erasure::from).collect();
    Reply::json(&Listed::cut(erasures, limit, |erasure: &Erasure| erasure.id().to_owned()))
}

async fn erasure_get(operator: &Operator, ask: Ask) -> Result<Reply> {
    Reply::json(&Erasure::from(operator.erasure(ask.parameter("id")).await?))
}

async fn key_list(operator: &Operator, ask: Ask) -> Result<Reply> {
    let page = ask.page()?;
    let mut keys: Vec<Key> = operator.keys().await?.iter().map(Key::new).collect();
    keys.sort_by(|a, b| a.id().cmp(b.id()));
    keys.retain(|key| page.after.as_deref().is_none_or(|after| key.id() > after));
    Reply::json(&Listed::cut(keys, page.limit() as usize, |key: &Key| key.id().to_owned()))
}

/// An operator key to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct OperatorKeyRequest {
    #[schema(value_type = String)]
    name: Name,
    /// When it ends, RFC 3339; 90 days from now when absent.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

async fn key_issue(operator: &Operator, ask: Ask) -> Result<Reply> {
    let request: OperatorKeyRequest = ask.json().await?;
    let ends = expiry(request.expires_at.as_deref())?;
    if ends <= expiry(Some(&rfc3339_now()))? {
        return Err(Fail::new("invalid", "`expires_at` is in the past"));
    }
    Ok(Reply::json(&IssuedKeyAnswer::new(&operator.key_issue(&request.name, ends).await?))?.status(StatusCode::CREATED))
}

fn rfc3339_now() -> String {
    time::OffsetDateTime::now_utc().format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

async fn key_revoke(operator: &Operator, ask: Ask) -> Result<Reply> {
    let id = ask.parameter("id").to_owned();
    ask.no_body().await?;
    operator.key_revoke(&id).await?;
    Ok(Reply::empty())
}

async fn ledger_search(operator: &Operator, ask: Ask) -> Result<Reply> {
    let (filter, limit) = ledger::filter(&ask)?;
    ledger::searched(operator.ledger().await?, filter, limit).await
}

async fn ledger_checkpoint(operator: &Operator, _ask: Ask) -> Result<Reply> {
    ledger::checkpoint_of(operator.ledger().await?).await
}

async fn ledger_key(operator: &Operator, _ask: Ask) -> Result<Reply> {
    ledger::key_of(operator.ledger().await?).await
}

async fn ledger_export(operator: &Operator, _ask: Ask) -> Result<Reply> {
    ledger::exported(operator.ledger().await?).await
}
