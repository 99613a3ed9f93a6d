//! The tenant itself, its members, API keys, encryption keys, limits.

use http::StatusCode;
use platform::tenancy::act::{KeyRead, KeyWrite, KeyringRead, KeyringRotate, MemberRead, MemberWrite, QuotaRead, TenantErase, TenantRead};
use platform::tenancy::{ErasureInfo, IssuedKey, KeyInfo, KeySpec, KeyringVersion, Limits, Member, Name, Permit, QuotaUse, Role, Scope};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

use super::{DELETE, GET, Listed, POST, PUT, micros, rfc3339};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;

/// Life of a key when none is given, in days.
const KEY_DAYS_DEFAULT: i64 = 90;

pub(super) fn register(api: &mut Api) {
    api.tenant_route(GET, "/v1/whoami", Doc::new("whoami", "Who the credential is, and in which tenant").answers::<WhoAmI>(), whoami);
    api.tenant_route(GET, "/v1/tenant", Doc::new("tenant_self", "The caller's tenant").answers::<TenantSelf>(), tenant_self);
    api.tenant_route(
        DELETE,
        "/v1/tenant",
        Doc::new("tenant_erase", "Erase the caller's tenant for good")
            .query("confirm", "string", "the tenant's name, typed once more")
            .answers::<Erasure>()
            .status(202),
        tenant_erase,
    );
    api.tenant_route(GET, "/v1/members", Doc::new("member_list", "Members by name").pages::<MemberAnswer>(), member_list);
    api.tenant_route(GET, "/v1/members/{name}", Doc::new("member_get", "One member").answers::<MemberAnswer>(), member_get);
    api.tenant_route(
        PUT,
        "/v1/members/{name}",
        Doc::new("member_put", "Add a member or change its roles").takes::<MemberRequest>().answers::<MemberAnswer>(),
        member_put,
    );
    api.tenant_route(
        DELETE,
        "/v1/members/{name}",
        Doc::new("member_delete", "Remove a member and revoke its keys").status(204),
        member_delete,
    );
    api.tenant_route(GET, "/v1/keys", Doc::new("key_list", "API keys by id, revoked ones too").pages::<Key>(), key_list);
    api.tenant_route(
        POST,
        "/v1/keys",
        Doc::new("key_issue", "Issue an API key; its secret is shown once").takes::<KeyRequest>().answers::<IssuedKeyAnswer>().status(201),
        key_issue,
    );
    api.tenant_route(DELETE, "/v1/keys/{id}", Doc::new("key_revoke", "Revoke an API key").status(204), key_revoke);
    api.tenant_route(
        GET,
        "/v1/keyring",
        Doc::new("keyring_get", "Versions of the tenant's encryption key").pages::<KeyVersion>(),
        keyring_get,
    );
    api.tenant_route(
        POST,
        "/v1/keyring/rotate",
        Doc::new("keyring_rotate", "Rotate the tenant's encryption key").answers::<Rotated>(),
        keyring_rotate,
    );
    api.tenant_route(GET, "/v1/quota", Doc::new("quota_get", "Limits and what is used of them").answers::<Quota>(), quota_get);
}

/// Who asks.
#[derive(Serialize, ToSchema)]
struct WhoAmI {
    tenant: String,
    principal: String,
    roles: Vec<&'static str>,
    /// Public id of the credential.
    credential: String,
}

async fn whoami(permit: &Permit<TenantRead>, _ask: Ask) -> Result<Reply> {
    Reply::json(&WhoAmI {
        tenant: permit.tenant_name().to_string(),
        principal: permit.principal().to_owned(),
        roles: permit.roles().iter().map(|role| role.name()).collect(),
        credential: permit.via().to_owned(),
    })
}

/// A tenant as its members see it.
#[derive(Serialize, ToSchema)]
struct TenantSelf {
    name: String,
    limits: LimitsDto,
}

async fn tenant_self(permit: &Permit<TenantRead>, _ask: Ask) -> Result<Reply> {
    Reply::json(&TenantSelf { name: permit.tenant_name().to_string(), limits: permit.limits().into() })
}

/// An erasure and how far it is.
#[derive(Serialize, ToSchema)]
pub(crate) struct Erasure {
    /// Opaque; not the tenant's name.
    id: String,
    /// `requested`, `frozen`, `stopped`, `shredded`, `blobs_gone`, `rows_gone`, `backups_noted`, `certified`.
    state: &'static str,
    #[schema(format = DateTime)]
    requested_at: String,
    requested_by: String,
    #[schema(format = DateTime)]
    updated_at: String,
    /// Text of the signed certificate, once certified.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
}

impl From<ErasureInfo> for Erasure {
    fn from(info: ErasureInfo) -> Self {
        Self {
            id: info.id,
            state: info.state.name(),
            requested_at: rfc3339(info.requested_at),
            requested_by: info.requested_by,
            updated_at: rfc3339(info.updated_at),
            certificate: info.certificate,
        }
    }
}

impl Erasure {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

async fn tenant_erase(permit: &Permit<TenantErase>, ask: Ask) -> Result<Reply> {
    let confirm = ask.query("confirm")?.ok_or_else(|| Fail::new("query_invalid", "give `confirm` with the tenant's name"))?;
    let service = ask.service.clone();
    ask.no_body().await?;
    let erasure = permit.erase(&confirm).await?;
    service.platform.erasure_wake();
    Ok(Reply::json(&Erasure::from(erasure))?.status(StatusCode::ACCEPTED))
}

/// A member.
#[derive(Serialize, ToSchema)]
#[schema(as = Member)]
struct MemberAnswer {
    name: String,
    /// `admin`, `data_scientist`, `viewer`, `auditor`, `invoker`.
    roles: Vec<&'static str>,
    description: String,
}

impl From<Member> for MemberAnswer {
    fn from(member: Member) -> Self {
        let roles = member.roles.iter().map(|role| role.name()).collect();
        Self { name: member.name.to_string(), roles, description: member.description }
    }
}

/// Roles of a member.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MemberRequest {
    #[schema(value_type = Vec<String>)]
    roles: Vec<Role>,
    /// For people; at most 256 bytes.
    #[serde(default)]
    description: String,
}

async fn member_list(permit: &Permit<MemberRead>, ask: Ask) -> Result<Reply> {
    let page = ask.page()?;
    let limit = page.limit() as usize;
    let members = permit.members(page.after.as_deref(), limit + 1).into_iter().map(MemberAnswer::from).collect();
    Reply::json(&Listed::cut(members, limit, |member: &MemberAnswer| member.name.clone()))
}

async fn member_get(permit: &Permit<MemberRead>, _ask: Ask) -> Result<Reply> {
    Reply::json(&MemberAnswer::from(permit.member(permit.resource())?))
}

async fn member_put(permit: &Permit<MemberWrite>, ask: Ask) -> Result<Reply> {
    let name: Name = permit.resource().parse()?;
    let MemberRequest { roles, description } = ask.json().await?;
    Reply::json(&MemberAnswer::from(permit.member_put(Member { name, roles, description, grants: Default::default() }).await?))
}

async fn member_delete(permit: &Permit<MemberWrite>, ask: Ask) -> Result<Reply> {
    ask.no_body().await?;
    permit.member_remove(&permit.resource().parse()?).await?;
    Ok(Reply::empty())
}

/// What a key is narrowed to.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Scope)]
struct ScopeDto {
    /// Names of acts, or `*`.
    acts: Vec<String>,
    /// `*`, `kind:*` or `kind:name`.
    resources: Vec<String>,
}

/// An API key, without its secret.
#[derive(Serialize, ToSchema)]
pub(crate) struct Key {
    /// Public id; also the OAuth client id.
    id: String,
    name: String,
    /// Member it acts as.
    member: String,
    #[schema(value_type = ScopeDto)]
    scope: Scope,
    #[schema(format = DateTime)]
    created_at: String,
    created_by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    revoked_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    last_used_at: Option<String>,
}

impl Key {
    pub(crate) fn new(info: &KeyInfo) -> Self {
        Self {
            id: info.id.clone(),
            name: info.name.clone(),
            member: info.member.clone(),
            scope: info.scope.clone(),
            created_at: rfc3339(info.created_at),
            created_by: info.created_by.clone(),
            expires_at: info.expires_at.map(rfc3339),
            revoked_at: info.revoked_at.map(rfc3339),
            last_used_at: info.last_used_at.map(rfc3339),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

/// A key right after it was made: the only time its secret is shown.
#[derive(Serialize, ToSchema)]
#[schema(as = IssuedKey)]
pub(crate) struct IssuedKeyAnswer {
    /// The key itself; also the OAuth client secret.
    secret: String,
    key: Key,
}

impl IssuedKeyAnswer {
    pub(crate) fn new(issued: &IssuedKey) -> Self {
        Self { secret: issued.secret().to_owned(), key: Key::new(&issued.info) }
    }
}

/// A key to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct KeyRequest {
    #[schema(value_type = String)]
    name: Name,
    /// Member it acts as.
    #[schema(value_type = String)]
    member: Name,
    /// What it is narrowed to; everything the member may do when absent.
    #[schema(value_type = Option<ScopeDto>)]
    scope: Option<Scope>,
    /// When it ends, RFC 3339; 90 days from now when absent, at most 730 days.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

async fn key_list(permit: &Permit<KeyRead>, ask: Ask) -> Result<Reply> {
    let page = ask.page()?;
    let limit = page.limit() as usize;
    let keys = permit.keys(page.after.as_deref(), limit + 1).await?.iter().map(Key::new).collect();
    Reply::json(&Listed::cut(keys, limit, |key: &Key| key.id.clone()))
}

async fn key_issue(permit: &Permit<KeyWrite>, ask: Ask) -> Result<Reply> {
    let request: KeyRequest = ask.json().await?;
    let spec = KeySpec {
        name: request.name,
        member: request.member,
        scope: request.scope.unwrap_or_else(Scope::all),
        expires_at: expiry(request.expires_at.as_deref())?,
    };
    Ok(Reply::json(&IssuedKeyAnswer::new(&permit.key_issue(spec).await?))?.status(StatusCode::CREATED))
}

/// When a key ends, in Unix microseconds.
pub(crate) fn expiry(text: Option<&str>) -> Result<i64> {
    match text {
        Some(text) => micros(text).ok_or_else(|| Fail::new("invalid", "`expires_at` is not a time as in 2027-01-31T12:00:00Z")),
        None => {
            let end = time::OffsetDateTime::now_utc() + time::Duration::days(KEY_DAYS_DEFAULT);
            Ok(i64::try_from(end.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX))
        }
    }
}

async fn key_revoke(permit: &Permit<KeyWrite>, ask: Ask) -> Result<Reply> {
    ask.no_body().await?;
    permit.key_revoke(permit.resource()).await?;
    Ok(Reply::empty())
}

/// A version of the tenant's encryption key.
#[derive(Serialize, ToSchema)]
struct KeyVersion {
    version: u32,
    /// `active`, `old` or `retired`.
    state: &'static str,
    #[schema(format = DateTime)]
    created_at: String,
}

impl From<KeyringVersion> for KeyVersion {
    fn from(version: KeyringVersion) -> Self {
        Self { version: version.version, state: version.state, created_at: rfc3339(version.created_at) }
    }
}

async fn keyring_get(permit: &Permit<KeyringRead>, ask: Ask) -> Result<Reply> {
    let page = ask.page()?;
    let limit = page.limit() as usize;
    let after: u32 = match page.after.as_deref() {
        Some(after) => after.parse().map_err(|_| Fail::new("query_invalid", "`after` is a version"))?,
        None => 0,
    };
    let versions = permit.keyring_versions().await?.into_iter().filter(|version| version.version > after);
    let versions = versions.take(limit + 1).map(KeyVersion::from).collect();
    Reply::json(&Listed::cut(versions, limit, |version: &KeyVersion| version.version.to_string()))
}

/// The new version.
#[derive(Serialize, ToSchema)]
struct Rotated {
    version: u32,
}

async fn keyring_rotate(permit: &Permit<KeyringRotate>, ask: Ask) -> Result<Reply> {
    ask.no_body().await?;
    Reply::json(&Rotated { version: permit.keyring_rotate().await? })
}

/// What a tenant may use.
#[derive(Serialize, ToSchema)]
#[schema(as = Limits)]
pub(crate) struct LimitsDto {
    /// Requests a second, sustained.
    requests_per_second: u32,
    /// Requests at once after a rest.
    requests_burst: u32,
    /// Requests in flight.
    concurrency_max: u32,
    /// Share of the node among tenants that want it at the same time.
    weight: u32,
    /// CPU of the tenant's sandboxes, in per cent of one core.
    cpu_percent: u32,
    /// Memory of the tenant's sandboxes, in bytes.
    memory_bytes: u64,
    /// Stored bytes.
    storage_bytes: u64,
    objects: u64,
    models: u64,
    deployments: u64,
    members: u64,
    keys: u64,
    jobs_running: u64,
    jobs_queued: u64,
    /// Longest training, in seconds.
    job_seconds: u64,
    /// What stands between the tenant's sandboxes and the kernel that all share: `jail`, or `gvisor` on nodes that have it.
    isolation: &'static str,
}

impl From<Limits> for LimitsDto {
    fn from(limits: Limits) -> Self {
        Self {
            requests_per_second: limits.requests_per_second,
            requests_burst: limits.requests_burst,
            concurrency_max: limits.concurrency_max,
            weight: limits.weight,
            cpu_percent: limits.cpu_percent,
            memory_bytes: limits.memory_bytes,
            storage_bytes: limits.storage_bytes,
            objects: limits.objects,
            models: limits.models,
            deployments: limits.deployments,
            members: limits.members,
            keys: limits.keys,
            jobs_running: limits.jobs_running,
            jobs_queued: limits.jobs_queued,
            job_seconds: limits.job_seconds,
            isolation: limits.isolation.name(),
        }
    }
}

/// Limits and use.
#[derive(Serialize, ToSchema)]
struct Quota {
    limits: LimitsDto,
    /// Stored things by name of their limit.
    #[schema(value_type = BTreeMap<String, u64>)]
    used: BTreeMap<&'static str, u64>,
}

async fn quota_get(permit: &Permit<QuotaRead>, _ask: Ask) -> Result<Reply> {
    let QuotaUse { limits, used, .. } = permit.quota_use();
    Reply::json(&Quota { limits: limits.into(), used })
}
