//! The operator: owns tenants as entries in a list, their limits and their end; has no path to their content.
//!
//! Each method leaves one entry in the service's own ledger before it acts, and a second one should it fail. Tenants are named there by their opaque id, so that nothing of an
//! erased tenant's name stays behind.

use crate::clock::now_micros;
use crate::control::{ErasureRow, TenantRow, TenantState};
use crate::credential::{CredentialId, Scope};
use crate::erasure::{self, ErasureInfo, remove_folder};
use crate::error::{Error, Result};
use crate::freeze::Why;
use crate::kernel::{FIRST_KEY_DAYS, Kernel, OPENING_WAIT_MAX, TenantUsage};
use crate::keyring::Keyring;
use crate::ledger::Outcome;
use crate::manage::{IssuedKey, KeyInfo, LedgerView, TenantInfo, expiry_fits};
use crate::name::{Name, TenantId};
use crate::permit::Closed;
use crate::place::{Placement, Tier};
use crate::quota::Limits;
use crate::rows::db::blocking;
use crate::tenant::RequestId;

/// Everything an operator can ask, for the role matrix and the documents.
pub const OPERATOR_ACTS: &[&str] = &[
    "OperatorBootstrap",
    "TenantCreate",
    "TenantList",
    "TenantDescribe",
    "TenantSuspend",
    "TenantResume",
    "TenantLimits",
    "TenantErasure",
    "ErasureRead",
    "TenantMove",
    "TenantMoveRead",
    "TenantMoveFinish",
    "TenantMoveRollback",
    "TenantExport",
    "TenantImport",
    "IsolationVerify",
    "OperatorKeyIssue",
    "OperatorKeyRevoke",
    "OperatorKeyList",
    "ServiceLedgerRead",
    "ServiceMetricsRead",
    "NeighboursRead",
    "UsageExport",
];

/// The operator, verified. Has no way to a [`Tenant`](crate::Tenant).
pub struct Operator {
    pub(crate) kernel: Kernel,
    pub(crate) via: String,
    pub(crate) request: RequestId,
}

/// A tenant to be made.
#[derive(Debug, Clone)]
pub struct TenantSpec {
    /// Unique among tenants that are not erased.
    pub name: Name,
    /// Name of its first administrator.
    pub admin: Name,
    /// What it may use; the service's defaults when absent.
    pub limits: Option<Limits>,
    /// Where its rows go; the service's default when absent.
    pub tier: Option<Tier>,
}

/// A tenant right after it was made.
pub struct CreatedTenant {
    /// As listed.
    pub tenant: TenantInfo,
    /// Its first administrator's key.
    pub admin_key: IssuedKey,
}

impl Operator {
    pub(crate) fn new(kernel: Kernel, via: String, request: RequestId) -> Self {
        Self { kernel, via, request }
    }

    pub(crate) fn request(&self) -> &RequestId {
        &self.request
    }

    pub(crate) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Id of the credential.
    #[must_use]
    pub fn via(&self) -> &str {
        &self.via
    }

    /// Makes a tenant with its keys, its store and its first administrator.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the name is taken, [`Error::Invalid`] for limits that make no sense.
    pub async fn tenant_create(&self, spec: TenantSpec) -> Result<CreatedTenant> {
        let id = TenantId::random()?;
        self.acted("TenantCreate", &resource(id), self.create(id, spec)).await
    }

    async fn create(&self, id: TenantId, spec: TenantSpec) -> Result<CreatedTenant> {
        let limits = spec.limits.unwrap_or(self.kernel.0.config.limits);
        limits.validate()?;
        self.kernel.isolates(limits.isolation).await?;
        let tier = spec.tier.unwrap_or(self.kernel.0.stores.config.tier);
        self.kernel.0.stores.takes(tier)?;
        let _one = self.kernel.0.creating.lock().await;
        self.sweep_half_made(&spec.name).await?;
        // Whoever suspends or erases it meanwhile waits here until it is there to be dropped.
        let _opening = self.kernel.opening(id).lock_owned().await;
        let _shared = self.kernel.0.epoch_gate.read().await;
        let (keyring, keys) = Keyring::create(&self.kernel.0.root, id, now_micros())?;
        let rows = self.kernel.placement_new(id, tier)?;
        let placement = Placement { objects: self.kernel.objects_place_new(id, &spec.name, tier).await?, ..rows };
        let row = TenantRow {
            id,
            name: spec.name,
            state: TenantState::Active,
            created_at: now_micros(),
            slot: 0,
            limits: serde_json::to_string(&limits).map_err(Error::internal)?,
            placement: placement.to_json()?,
            epoch_generation: 0,
        };
        let expires_at = now_micros().saturating_add(FIRST_KEY_DAYS * 86_400_000_000);
        let admin = spec.admin;
        let (admin_key, credential) =
            self.kernel.key_made(Some(id), admin.as_str(), "operator", "first administrator", Scope::all(), Some(expires_at))?;
        let hold = self.kernel.home(id).await?;
        let inserted = self.kernel.0.control.tenant_insert(&row, &keys, Some(&credential)).await;
        if let Err(Error::Conflict(_)) = &inserted {
            // Nobody will ever ask for this bucket.
            self.kernel.objects_place_destroy(id, &placement.objects).await?;
        }
        let row = inserted?;
        if let Some(hold) = &hold {
            hold.taken_up(row.epoch_generation);
        }
        self.kernel.island_create(&row, keyring, &admin, hold).await?;
        Ok(CreatedTenant { tenant: info(&row)?, admin_key })
    }

    /// A creation that died half-way leaves a tenant without its first member: nobody was told of it, so the name is free. Only
    /// what provably never came into being is swept; a folder that is merely missing is not.
    async fn sweep_half_made(&self, name: &Name) -> Result<()> {
        let kernel = &self.kernel;
        let Some(row) = kernel.0.control.tenant_by_name(name).await? else { return Ok(()) };
        let (dir, placement) = (kernel.tenant_dir(row.id), Placement::parse(&row.placement)?);
        let half_made = row.state == TenantState::Active
            && match kernel.island(row.id).await {
                Ok(island) => island.members().is_empty(),
                // Alive on another node.
                Err(Error::Elsewhere(_)) => false,
                // Whatever went wrong says nothing about what is there.
                Err(_) => kernel.0.anchors.untouched(row.slot, row.id)? && kernel.rows_place_empty(row.id, &placement).await?,
            };
        if !half_made {
            return Err(Error::Conflict(format!("the name `{name}` is taken")));
        }
        let control = &kernel.0.control;
        control.tenant_set_state(row.id, TenantState::Erasing).await?;
        kernel.island_drop(row.id, Why::Stopped).await?;
        control.keys_destroy(row.id).await?;
        control.credentials_destroy(row.id).await?;
        kernel.rows_place_destroy(row.id, &placement).await?;
        kernel.objects_place_destroy(row.id, &placement.objects).await?;
        control.tenant_set_state(row.id, TenantState::Erased).await?;
        kernel.meter_forget(row.id);
        blocking(move || remove_folder(&dir)).await
    }

    /// Tenants by name.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn tenants(&self, after: Option<&Name>, limit: u32) -> Result<Vec<TenantInfo>> {
        self.log("TenantList", "tenant:", Outcome::Allowed).await?;
        self.kernel.0.control.tenants_page(after, limit).await?.iter().map(info).collect()
    }

    /// One tenant.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn tenant(&self, name: &Name) -> Result<TenantInfo> {
        info(&self.named("TenantDescribe", name).await?)
    }

    /// Refuses its requests from the next one on; keeps everything. What runs is frozen: it can commit nothing more.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`] when it is being erased.
    pub async fn suspend(&self, name: &Name) -> Result<TenantInfo> {
        let row = self.named("TenantSuspend", name).await?;
        let id = row.id;
        self.failing("TenantSuspend", &resource(id), self.turn(row, TenantState::Suspended)).await
    }

    /// Takes requests again.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`] when it is being erased.
    pub async fn resume(&self, name: &Name) -> Result<TenantInfo> {
        let row = self.named("TenantResume", name).await?;
        let id = row.id;
        self.failing("TenantResume", &resource(id), self.turn(row, TenantState::Active)).await
    }

    async fn turn(&self, mut row: TenantRow, state: TenantState) -> Result<TenantInfo> {
        // From here on no other node serves it, so that it holds at once.
        let _home = if state == TenantState::Suspended { self.kernel.seize(row.id).await? } else { None };
        self.kernel.0.control.tenant_set_state(row.id, state).await?;
        if state == TenantState::Suspended {
            self.kernel.island_drop(row.id, Why::Stopped).await?;
        }
        row.state = state;
        info(&row)
    }

    /// Sets what the tenant may use; takes effect on the next request.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`] for limits that make no sense.
    pub async fn limits_put(&self, name: &Name, limits: Limits) -> Result<TenantInfo> {
        let row = self.named("TenantLimits", name).await?;
        let id = row.id;
        self.failing("TenantLimits", &resource(id), self.limits_set(row, limits)).await
    }

    async fn limits_set(&self, mut row: TenantRow, limits: Limits) -> Result<TenantInfo> {
        limits.validate()?;
        self.kernel.isolates(limits.isolation).await?;
        row.limits = serde_json::to_string(&limits).map_err(Error::internal)?;
        // Who is just opening the tenant has read the limits from before, and would set them again.
        let opening = tokio::time::timeout(OPENING_WAIT_MAX, self.kernel.opening(row.id).lock_owned()).await;
        let _opening = opening.map_err(|_| Error::Unavailable("the tenant is being opened or closed: try again"))?;
        self.kernel.0.control.tenant_set_limits(row.id, &row.limits).await?;
        self.kernel.meter(&row)?;
        info(&row)
    }

    /// Orders the erasure of a tenant; the machine does it step by step.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn erase(&self, name: &Name) -> Result<ErasureInfo> {
        let row = self.named("TenantErasure", name).await?;
        self.failing("TenantErasure", &resource(row.id), erasure::request(&self.kernel, row.id, "operator")).await
    }

    /// How far an erasure is, and its certificate when it is done. `id` is [`ErasureInfo::id`].
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn erasure(&self, id: &str) -> Result<ErasureInfo> {
        self.log("ErasureRead", "erasure:", Outcome::Allowed).await?;
        erasure::info(&self.kernel, id).await
    }

    /// All erasures, oldest first.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn erasures(&self) -> Result<Vec<ErasureInfo>> {
        self.log("ErasureRead", "erasure:", Outcome::Allowed).await?;
        let rows: Vec<ErasureRow> = self.kernel.0.control.erasures().await?;
        let mut all = Vec::with_capacity(rows.len());
        for row in &rows {
            all.push(erasure::info(&self.kernel, &row.tenant.hex()).await?);
        }
        Ok(all)
    }

    /// Makes another operator key.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an expiry in the past or beyond two years,     /// [`Error::Internal`] when the control store fails.
    pub async fn key_issue(&self, name: &Name, expires_at: i64) -> Result<IssuedKey> {
        let (issued, row) = self.kernel.key_made(None, "operator", &self.via, name.as_str(), Scope::all(), Some(expires_at))?;
        let made = async {
            expiry_fits(expires_at)?;
            self.kernel.0.control.credential_insert(&row).await
        };
        self.acted("OperatorKeyIssue", &format!("key:{}", row.id), made).await?;
        Ok(issued)
    }

    /// Revokes an operator key; takes effect on the next request.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn key_revoke(&self, id: &str) -> Result<()> {
        // Only a well-formed id stands in the log.
        let resource = format!("key:{}", CredentialId::parse(id).as_ref().map_or("", CredentialId::as_str));
        self.acted("OperatorKeyRevoke", &resource, async {
            if self.kernel.key_revoke(None, id.to_owned()).await? { Ok(()) } else { Err(Error::NotFound("key")) }
        })
        .await
    }

    /// Operator keys.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn keys(&self) -> Result<Vec<KeyInfo>> {
        self.log("OperatorKeyList", "key:", Outcome::Allowed).await?;
        self.kernel.0.control.credentials_of(None).await?.iter().map(KeyInfo::from_row).collect()
    }

    /// The service's own audit log.
    ///
    /// # Errors
    /// [`Error::Internal`] when it cannot be written.
    pub async fn ledger(&self) -> Result<LedgerView> {
        self.log("ServiceLedgerRead", "ledger:", Outcome::Allowed).await?;
        Ok(LedgerView::service(self.kernel.0.service()?))
    }

    /// Counters by tenant; no content.
    ///
    /// # Errors
    /// [`Error::Internal`] when the ledger cannot be written.
    pub async fn observe(&self) -> Result<Vec<TenantUsage>> {
        let (kernel, act) = (&self.kernel.0, "ServiceMetricsRead");
        kernel.record_anywhere("operator", &self.via, &self.request, act, "service:", Outcome::Allowed, "operator").await?;
        Ok(self.kernel.observe())
    }

    /// Every operator method has written its entry: the proof an answer needs.
    pub fn finish(self) -> Closed {
        Closed::new()
    }

    /// Writes down what is about to be done, does it, and writes it down again should it fail: nothing is done without a trace,
    /// and nothing that failed looks done.
    pub(crate) async fn acted<T>(&self, act: &str, resource: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.log(act, resource, Outcome::Allowed).await?;
        self.failing(act, resource, work).await
    }

    /// The second half of [`Operator::acted`].
    pub(crate) async fn failing<T>(&self, act: &str, resource: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let result = work.await;
        if let Err(error) = &result {
            self.kernel.0.record("operator", &self.via, &self.request, act, resource, Outcome::Failed, error.code()).await?;
        }
        result
    }

    pub(crate) async fn named(&self, act: &str, name: &Name) -> Result<TenantRow> {
        match self.kernel.0.control.tenant_by_name(name).await? {
            Some(row) if row.state != TenantState::Erased => {
                self.log(act, &resource(row.id), Outcome::Allowed).await?;
                Ok(row)
            }
            _ => {
                self.log(act, "tenant:", Outcome::Failed).await?;
                Err(Error::NotFound("tenant"))
            }
        }
    }

    async fn log(&self, act: &str, resource: &str, outcome: Outcome) -> Result<()> {
        let reason = if outcome == Outcome::Failed { "not_found" } else { "operator" };
        self.kernel.0.record("operator", &self.via, &self.request, act, resource, outcome, reason).await.map(|_| ())
    }
}

pub(crate) fn resource(id: TenantId) -> String {
    format!("tenant:{}", id.hex())
}

pub(crate) fn info(row: &TenantRow) -> Result<TenantInfo> {
    let state = match row.state {
        TenantState::Active => "active",
        TenantState::Suspended => "suspended",
        TenantState::Erasing => "erasing",
        TenantState::Erased => "erased",
    };
    Ok(TenantInfo {
        name: row.name.to_string(),
        state: state.to_owned(),
        created_at: row.created_at,
        limits: serde_json::from_str(&row.limits).map_err(Error::integrity)?,
        storage: Placement::parse(&row.placement)?.rows.tier(),
    })
}
