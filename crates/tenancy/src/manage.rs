//! What a tenant manages of itself: members, API keys, encryption keys, its ledger, its limits. Each method hangs on the permit
//! of its act, and on no other.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::act::{
    KeyRead, KeyWrite, KeyringRead, KeyringRotate, LedgerRead, MemberRead, MemberWrite, MetricsRead, PermissionRead, PermissionWrite,
    QuotaRead, ResourceKind, TenantErase,
};
use crate::clock::now_micros;
use crate::control::CredentialRow;
use crate::credential::Scope;
use crate::erasure::{self, ErasureInfo};
use crate::error::{Error, Result};
use crate::island::{COUNTERS, Island, MEMBERS_MAX};
use crate::keyring::KeyState;
use crate::ledger::{Filter, Found, Ledger, Numbered, Receipt};
use crate::member::{DESCRIPTION_BYTES_MAX, GRANTS_MAX, Member, ROLE, grant_key};
use crate::name::Name;
use crate::permit::{Permit, Tx};
use crate::place::Tier;
use crate::policy::{Grant, Role};
use crate::quota::{Limits, RateLimitState, Resource};
use crate::rotation;
use crate::usage::Usage;

/// Longest life of a key, in days.
pub const KEY_DAYS_MAX: i64 = 730;

/// A key right after it was made: the only time its text is to be had.
pub struct IssuedKey {
    secret: Zeroizing<String>,
    /// What is kept of it.
    pub info: KeyInfo,
}

impl IssuedKey {
    pub(crate) fn new(secret: Zeroizing<String>, row: &CredentialRow, scope: Scope) -> Self {
        Self { secret, info: KeyInfo::new(row, scope) }
    }

    /// The text to hand to its owner, once.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }
}

/// A key as listed. Times in Unix microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// Public id; also the OAuth client id.
    pub id: String,
    /// Given name.
    pub name: String,
    /// Member it acts as.
    pub member: String,
    /// What it is narrowed to.
    pub scope: Scope,
    /// When it was made.
    pub created_at: i64,
    /// Who made it.
    pub created_by: String,
    /// When it ends.
    pub expires_at: Option<i64>,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
    /// When it was last used, to within some seconds.
    pub last_used_at: Option<i64>,
}

impl KeyInfo {
    fn new(row: &CredentialRow, scope: Scope) -> Self {
        Self {
            id: row.id.clone(),
            name: row.name.clone(),
            member: row.principal.clone(),
            scope,
            created_at: row.created_at,
            created_by: row.created_by.clone(),
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
            last_used_at: row.last_used_at,
        }
    }

    pub(crate) fn from_row(row: &CredentialRow) -> Result<Self> {
        Ok(Self::new(row, serde_json::from_str(&row.scopes).map_err(Error::integrity)?))
    }
}

/// Refuses what has ended already, and what lives longer than [`KEY_DAYS_MAX`].
pub(crate) fn expiry_fits(expires_at: i64) -> Result<()> {
    let now = now_micros();
    if expires_at > now && expires_at <= now.saturating_add(KEY_DAYS_MAX * 86_400_000_000) {
        return Ok(());
    }
    Err(Error::Invalid(format!("the expiry must be in the future and within {KEY_DAYS_MAX} days")))
}

/// A key to be made.
#[derive(Debug, Clone)]
pub struct KeySpec {
    /// Given name.
    pub name: Name,
    /// Member it acts as.
    pub member: Name,
    /// What it is narrowed to.
    pub scope: Scope,
    /// When it ends, Unix microseconds.
    pub expires_at: i64,
}

impl Permit<MemberRead> {
    /// Members by name.
    #[must_use]
    pub fn members(&self, after: Option<&str>, limit: usize) -> Vec<Member> {
        let held = self.inner.island.members();
        let mut members: Vec<_> = held.values().filter(|member| after.is_none_or(|after| member.name.as_str() > after)).collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        members.into_iter().take(limit).map(|member| Member::clone(member)).collect()
    }

    /// One member.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn member(&self, name: &str) -> Result<Member> {
        self.inner.island.member(name).map(|member| Member::clone(&member)).ok_or(Error::NotFound("member"))
    }
}

impl Permit<MemberWrite> {
    /// Adds a member or changes its roles; takes effect on the next request.
    ///
    /// # Errors
    /// [`Error::Invalid`] without a role, [`Error::Conflict`] when no administrator would be left, [`Error::Quota`].
    pub async fn member_put(&self, mut member: Member) -> Result<Member> {
        member.roles.sort_unstable();
        member.roles.dedup();
        if member.roles.is_empty() {
            return Err(Error::Invalid("give the member at least one role".to_owned()));
        }
        if member.description.len() > DESCRIPTION_BYTES_MAX || member.description.chars().any(char::is_control) {
            return Err(Error::Invalid(format!("a description has at most {DESCRIPTION_BYTES_MAX} bytes and no control characters")));
        }
        self.about(&member.name)?;
        let island = &self.inner.island;
        let mut tx = self.tx().await?;
        let known = tx.get::<Member>(member.name.as_str()).await?;
        if known.is_none() {
            if island.members().len() >= MEMBERS_MAX {
                return Err(Error::Conflict(format!("a tenant has at most {MEMBERS_MAX} members")));
            }
            tx.charge(Resource::Members, 1).await?;
        }
        if let Some(known) = &known {
            member.grants.clone_from(&known.grants);
        }
        if known.is_some_and(|known| known.is(Role::Admin)) && !member.is(Role::Admin) {
            admin_left(&mut tx, &member.name).await?;
        }
        tx.member_set(&member.name, Some(member.clone())).await?;
        tx.commit().await?;
        Ok(member)
    }

    /// Removes a member and revokes its keys.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`] when no administrator would be left.
    pub async fn member_remove(&self, name: &Name) -> Result<()> {
        self.about(name)?;
        let mut tx = self.tx().await?;
        let member: Member = tx.get(name.as_str()).await?.ok_or(Error::NotFound("member"))?;
        if member.is(Role::Admin) {
            admin_left(&mut tx, name).await?;
        }
        tx.member_set(name, None).await?;
        tx.refund(Resource::Members, 1).await?;
        // First the keys: should the service die in between, a member without keys is harmless, a key without member too. The
        // transaction is held meanwhile, so that no key is issued to who is going.
        let revoked = self.inner.kernel.member_keys_revoke(self.inner.island.id, name.to_string()).await?;
        tx.refund(Resource::Keys, revoked).await?;
        tx.commit().await
    }

    /// What was allowed for one member is not done to another.
    fn about(&self, name: &Name) -> Result<()> {
        let asked = self.resource();
        if asked.is_empty() || asked == name.as_str() { Ok(()) } else { Err(Error::Forbidden { act: self.inner.act }) }
    }
}

impl Permit<PermissionRead> {
    /// Who was granted what on this one thing, by member.
    #[must_use]
    pub fn grants_on(&self, kind: ResourceKind, name: &str) -> Vec<(Name, Grant)> {
        let held = self.inner.island.members();
        let mut grants: Vec<_> = held.values().filter_map(|member| Some((member.name.clone(), member.grant(kind, name)?))).collect();
        grants.sort();
        grants
    }

    /// What a member was granted on it.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown member.
    pub fn granted_to(&self, member: &str, kind: ResourceKind, name: &str) -> Result<Option<Grant>> {
        granted_to(&self.inner.island, member, kind, name)
    }
}

impl Permit<PermissionWrite> {
    /// As [`Permit<PermissionRead>::granted_to`].
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown member.
    pub fn granted_to(&self, member: &str, kind: ResourceKind, name: &str) -> Result<Option<Grant>> {
        granted_to(&self.inner.island, member, kind, name)
    }

    /// Grants a member something on one experiment or registered model, or takes the grant back; in force on the next request.
    /// Returns what was granted before.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown member; [`Error::Conflict`] when it has too many grants.
    pub async fn grant_set(&self, member: &str, kind: ResourceKind, name: &str, grant: Option<Grant>) -> Result<Option<Grant>> {
        let mut tx = self.tx().await?;
        let mut member: Member = tx.get(member).await?.ok_or(Error::NotFound("member"))?;
        let key = grant_key(kind, name);
        let before = match grant {
            Some(grant) => member.grants.insert(key, grant),
            None => member.grants.remove(&key),
        };
        if member.grants.len() > GRANTS_MAX {
            return Err(Error::Conflict(format!("a member has at most {GRANTS_MAX} grants: give it a role")));
        }
        self.detail("member", &member.name);
        self.detail("on", format!("{}:{name}", kind.word()));
        self.detail("grant", grant.map_or("withdrawn", Grant::name));
        let name = member.name.clone();
        tx.member_set(&name, Some(member)).await?;
        tx.commit().await?;
        Ok(before)
    }
}

fn granted_to(island: &Island, member: &str, kind: ResourceKind, name: &str) -> Result<Option<Grant>> {
    Ok(island.member(member).ok_or(Error::NotFound("member"))?.grant(kind, name))
}

/// Asked inside the transaction: of two administrators that remove each other at once, one stays.
async fn admin_left(tx: &mut Tx<'_>, without: &Name) -> Result<()> {
    let admins: Vec<Member> = tx.find(ROLE, Role::Admin.name(), None, 2).await?.records;
    let left = admins.iter().any(|member| member.name != *without);
    if left { Ok(()) } else { Err(Error::Conflict("the tenant would have no administrator left: name another first".to_owned())) }
}

impl Permit<KeyRead> {
    /// API keys by id, with the hundred that were revoked last; never their secrets.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn keys(&self, after: Option<&str>, limit: usize) -> Result<Vec<KeyInfo>> {
        let kernel = &self.inner.kernel;
        kernel.0.control.flush().await?;
        let mut rows = kernel.0.control.credentials_of(Some(self.inner.island.id)).await?;
        rows.sort_by(|a, b| a.id.cmp(&b.id));
        rows.iter().filter(|row| after.is_none_or(|after| row.id.as_str() > after)).take(limit).map(KeyInfo::from_row).collect()
    }
}

impl Permit<KeyWrite> {
    /// Makes a key for a member. The key can do what the member may do and the scope covers.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown member, [`Error::Invalid`] for an expiry in the past or beyond two years or for a scope
    /// wider than that of the credential that asks, [`Error::Quota`].
    pub async fn key_issue(&self, spec: KeySpec) -> Result<IssuedKey> {
        let island = &self.inner.island;
        expiry_fits(spec.expires_at)?;
        if !self.inner.scope.covers(&spec.scope) {
            return Err(Error::Invalid("the scope is wider than that of the credential that issues the key".to_owned()));
        }
        let kernel = &self.inner.kernel;
        let KeySpec { name, member, scope, expires_at } = spec;
        let (issued, row) = kernel.key_made(Some(island.id), member.as_str(), self.principal(), name.as_str(), scope, Some(expires_at))?;
        self.detail("key", &row.id);
        self.detail("member", member.as_str());
        let mut tx = self.tx().await?;
        tx.require::<Member>(member.as_str()).await?;
        tx.charge(Resource::Keys, 1).await?;
        // First the key, which nobody knows yet, then the entry that says so. Should the service die in between, a key is
        // listed that never leaves this function.
        kernel.0.control.credential_insert(&row).await?;
        if let Err(error) = tx.commit().await {
            kernel.key_revoke(Some(island.id), row.id).await?;
            return Err(error);
        }
        Ok(issued)
    }

    /// Revokes a key; takes effect on the next request.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none that is not revoked.
    pub async fn key_revoke(&self, id: &str) -> Result<()> {
        let (kernel, island) = (&self.inner.kernel, &self.inner.island);
        let mut tx = self.tx().await?;
        if !kernel.key_revoke(Some(island.id), id.to_owned()).await? {
            return Err(Error::NotFound("key"));
        }
        tx.refund(Resource::Keys, 1).await?;
        tx.commit().await
    }
}

/// A version of the tenant's encryption key. Time in Unix microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyringVersion {
    /// From 1.
    pub version: u32,
    /// `active`, `old` (reads until everything is re-wrapped) or `retired` (destroyed).
    pub state: &'static str,
    /// When it was made.
    pub created_at: i64,
}

impl Permit<KeyringRead> {
    /// All versions, oldest first.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn keyring_versions(&self) -> Result<Vec<KeyringVersion>> {
        let rows = self.inner.kernel.0.control.keys_of(self.inner.island.id).await?;
        Ok(rows
            .tenant
            .iter()
            .map(|row| KeyringVersion { version: row.version, state: KeyState::name(row.state), created_at: row.created_at })
            .collect())
    }
}

impl Permit<KeyringRotate> {
    /// Makes a new version, re-wraps everything under it, retires the old one. Reads and writes go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Internal`] when a store fails; then the next rotation or start resumes it.
    pub async fn keyring_rotate(&self) -> Result<u32> {
        let version = rotation::rotate(&self.inner.kernel, &self.inner.island).await?;
        self.detail("version", version);
        let tx = self.tx().await?;
        tx.commit().await?;
        Ok(version)
    }
}

/// What is used of what is allowed.
#[derive(Debug, Clone, Serialize)]
pub struct QuotaUse {
    /// The limits.
    pub limits: Limits,
    /// Stored things by name of their limit.
    pub used: BTreeMap<&'static str, u64>,
    /// Counters since the service started.
    pub usage: Usage,
}

fn quota_use(island: &Island) -> QuotaUse {
    let meter = &island.meter;
    QuotaUse {
        limits: meter.limits(),
        used: COUNTERS.iter().map(|(name, what)| (*name, meter.used(*what))).collect(),
        usage: meter.usage(),
    }
}

impl Permit<QuotaRead> {
    /// Limits and use.
    #[must_use]
    pub fn quota_use(&self) -> QuotaUse {
        quota_use(&self.inner.island)
    }

    /// For the `RateLimit` headers.
    #[must_use]
    pub fn rate_state(&self) -> RateLimitState {
        self.inner.island.meter.rate_state()
    }
}

impl Permit<MetricsRead> {
    /// Limits and use, for the tenant's metrics.
    #[must_use]
    pub fn quota_use(&self) -> QuotaUse {
        quota_use(&self.inner.island)
    }
}

impl Permit<TenantErase> {
    /// Orders the erasure of the tenant, for good. `confirm` is its name, typed once more.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name does not match.
    pub async fn erase(&self, confirm: &str) -> Result<ErasureInfo> {
        if confirm != self.inner.island.name.as_str() {
            return Err(Error::Invalid("the confirmation is not the tenant's name".to_owned()));
        }
        self.tx().await?.commit().await?;
        erasure::request(&self.inner.kernel, self.inner.island.id, "member").await
    }
}

impl Permit<LedgerRead> {
    /// The tenant's audit log.
    #[must_use]
    pub fn ledger(&self) -> LedgerView {
        LedgerView(Log::Tenant(Arc::clone(&self.inner.island)))
    }
}

enum Log {
    Tenant(Arc<Island>),
    Service(Arc<Ledger>),
}

/// Reading side of one audit log. Its methods read files: call them where blocking is allowed.
pub struct LedgerView(Log);

impl LedgerView {
    pub(crate) fn service(ledger: Arc<Ledger>) -> Self {
        Self(Log::Service(ledger))
    }

    fn log(&self) -> &Ledger {
        match &self.0 {
            Log::Tenant(island) => &island.ledger,
            Log::Service(ledger) => ledger,
        }
    }

    /// A shared log's entries are shipped before they are signed: brings that about for all there are. To be awaited before
    /// [`LedgerView::checkpoint`] and [`LedgerView::export`], which otherwise end up to a tenth of a second ago.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the copy cannot be reached.
    pub async fn fresh(&self) -> Result<()> {
        match &self.0 {
            Log::Tenant(island) if island.is_shared() => island.flush(false).await,
            // The service's own ships each entry when it is written.
            Log::Tenant(_) | Log::Service(_) => Ok(()),
        }
    }

    /// Entries that match, a page of them.
    ///
    /// # Errors
    /// [`Error::Integrity`] when the log is damaged.
    pub fn search(&self, filter: &Filter, limit: usize) -> Result<Found> {
        self.log().search(filter, limit)
    }

    /// One entry.
    ///
    /// # Errors
    /// [`Error::NotFound`] past the end.
    pub fn entry(&self, index: u64) -> Result<Numbered> {
        self.log().entry(index)
    }

    /// The receipt of a prediction, proven up to a checkpoint.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the entry is not a prediction that was answered, or not there.
    pub fn receipt(&self, index: u64) -> Result<Receipt> {
        self.log().receipt(index)
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.log().size()
    }

    /// A signed checkpoint over everything so far (C2SP tlog-checkpoint).
    ///
    /// # Errors
    /// [`Error::Internal`] when the disk fails.
    pub fn checkpoint(&self) -> Result<String> {
        self.log().checkpoint()
    }

    /// The key that verifies checkpoints (C2SP signed-note vkey). Pin it.
    #[must_use]
    pub fn vkey(&self) -> String {
        self.log().vkey()
    }

    /// The whole log as one file that verifies offline. Returns the number of entries.
    ///
    /// # Errors
    /// [`Error::Integrity`] when the log is damaged, [`Error::Internal`] when the target fails.
    pub fn export(&self, to: &mut dyn Write) -> Result<u64> {
        self.log().export(to)
    }

    /// A tile, entry bundle or the checkpoint by its C2SP tlog-tiles path.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub fn tile(&self, path: &str) -> Result<Vec<u8>> {
        self.log().tile(path)
    }

    /// Inclusion proof (RFC 6962).
    ///
    /// # Errors
    /// [`Error::Invalid`] outside the log.
    pub fn prove_inclusion(&self, index: u64, size: u64) -> Result<tlog::InclusionProof> {
        self.log().prove_inclusion(index, size)
    }

    /// Consistency proof (RFC 6962).
    ///
    /// # Errors
    /// [`Error::Invalid`] outside the log.
    pub fn prove_consistency(&self, from: u64, to: u64) -> Result<tlog::ConsistencyProof> {
        self.log().prove_consistency(from, to)
    }
}

/// A tenant's limits as the operator or the tenant sees them, with its state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantInfo {
    /// Given name.
    pub name: String,
    /// `active`, `suspended`, `erasing`.
    pub state: String,
    /// Unix microseconds.
    pub created_at: i64,
    /// What it may use.
    pub limits: Limits,
    /// Where its rows are.
    pub storage: Tier,
}
