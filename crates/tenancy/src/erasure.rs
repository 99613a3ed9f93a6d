//! Erasure of a tenant: a machine whose states survive a crash between any two.
//!
//! ```text
//! requested → frozen → stopped → shredded → blobs_gone → rows_gone → backups_noted → certified
//! ```
//!
//! | state | what is true from then on |
//! |---|---|
//! | requested | ordered, by whom and when; the tenant takes no requests |
//! | frozen | no credential opens it, nothing that still runs can commit |
//! | stopped | no cell of it lives; its ledger has its last entry and its last signed checkpoint |
//! | shredded | its keys are gone: the root key has a new epoch, the survivors are re-wrapped under it, the old epoch is destroyed, so that an old copy of everything does not open either |
//! | blobs_gone, rows_gone | its bytes are gone too; the name is free; the tree of its ledger stays, its entries cannot be read |
//! | backups_noted | from which epoch on backups can still be read is written down |
//! | certified | a signed certificate exists, provable in the service's ledger |
//!
//! Each step is idempotent: it is done again when the service died before the next state was written.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tlog::SigningKey;

use crate::clock::now_micros;
use crate::control::{ErasureRow, TenantState};
use crate::error::{Error, Result};
use crate::freeze::Why;
use crate::kernel::Kernel;
use crate::keyring::Keyring;
use crate::ledger::{Entry, Outcome};
use crate::name::TenantId;
use crate::place::Placement;
use crate::quota::IsolationClass;
use crate::tenant::{IslandToken, RequestId};

/// What a certificate's signature is for; it cannot pass for anything else.
const PURPOSE: &str = "insula erasure certificate v1";
/// Largest certificate that is read, in bytes.
const CERTIFICATE_BYTES_MAX: usize = 64 * 1024;

/// States of the machine, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErasureState {
    /// Ordered.
    Requested,
    /// Takes nothing in, commits nothing.
    Frozen,
    /// Nothing of it runs.
    Stopped,
    /// Its keys are gone.
    Shredded,
    /// Its objects are gone.
    BlobsGone,
    /// Its rows are gone, its name is free.
    RowsGone,
    /// What backups can still read is written down.
    BackupsNoted,
    /// Signed and provable.
    Certified,
}

impl ErasureState {
    /// All states in order.
    pub const ALL: [Self; 8] = [
        Self::Requested,
        Self::Frozen,
        Self::Stopped,
        Self::Shredded,
        Self::BlobsGone,
        Self::RowsGone,
        Self::BackupsNoted,
        Self::Certified,
    ];

    /// The word as stored and shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Frozen => "frozen",
            Self::Stopped => "stopped",
            Self::Shredded => "shredded",
            Self::BlobsGone => "blobs_gone",
            Self::RowsGone => "rows_gone",
            Self::BackupsNoted => "backups_noted",
            Self::Certified => "certified",
        }
    }
}

impl FromStr for ErasureState {
    type Err = Error;
    fn from_str(word: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|state| state.name() == word).ok_or_else(|| Error::integrity("an erasure of no state"))
    }
}

impl fmt::Display for ErasureState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Stops what runs for a tenant outside the kernel: its cells, its jobs, its caches.
pub trait Compute: Send + Sync {
    /// Returns when nothing of this island lives.
    fn stop(&self, island: IslandToken) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// The island may run again: its home came back to this node after it was stopped for another one.
    fn enter(&self, _island: IslandToken) {}

    /// Whether cells of this class can run here; if not, why, and what to do about it, in the operator's words.
    fn isolates(&self, isolation: IsolationClass) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        let here = isolation == IsolationClass::Jail;
        Box::pin(async move { if here { Ok(()) } else { Err("nothing runs for tenants here".to_owned()) } })
    }
}

/// An erasure as shown. Times in Unix microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct ErasureInfo {
    /// Opaque; not the tenant's name.
    pub id: String,
    /// How far it is.
    pub state: ErasureState,
    /// When it was ordered.
    pub requested_at: i64,
    /// `operator`, or `member`: no name, since this outlives the tenant.
    pub requested_by: String,
    /// When it last moved.
    pub updated_at: i64,
    /// When certified: the certificate file's text.
    pub certificate: Option<String>,
}

/// What the machine remembers between its steps.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Detail {
    name: String,
    ledger_vkey: String,
    ledger_checkpoint: String,
    epoch_destroyed_before: u64,
    shredded_at: i64,
    backups: String,
}

/// What a certificate says. Times in Unix microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErasureStatement {
    /// Id of the service.
    pub service: String,
    /// Opaque id of the tenant.
    pub tenant: String,
    /// SHA-256 of service id, tenant id and name: whoever knows the name can check it; it does not reveal the name.
    pub name_digest: String,
    /// When it was ordered, and by whom.
    pub requested_at: i64,
    /// `operator`, or `member`.
    pub requested_by: String,
    /// When the keys were destroyed.
    pub shredded_at: i64,
    /// Root key epochs below this one are destroyed: no copy of the data from before opens.
    pub epoch_destroyed_before: u64,
    /// When the certificate was signed.
    pub certified_at: i64,
    /// Verifies the tenant's last checkpoint.
    pub ledger_vkey: String,
    /// The tenant's last signed checkpoint: the log stays valid, its entries cannot be read.
    pub ledger_checkpoint: String,
    /// What holds for backups.
    pub backups: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Certificate {
    /// The signed text, exactly.
    statement: String,
    /// Ed25519, base64.
    signature: String,
    /// Verifying key (vkey); compare it with the pinned one.
    vkey: String,
    /// Entry of the service's ledger whose resource is the digest of the statement.
    ledger_index: u64,
}

/// Orders it. Ordering twice is one erasure.
pub(crate) async fn request(kernel: &Kernel, tenant: TenantId, by: &str) -> Result<ErasureInfo> {
    if kernel.0.control.erasure_of(tenant).await?.is_none() {
        let row = kernel.0.control.tenant_by_id(tenant).await?.ok_or(Error::NotFound("tenant"))?;
        // From here on no other node serves it.
        let _home = kernel.seize(tenant).await?;
        let detail = Detail { name: row.name.to_string(), ..Detail::default() };
        let now = now_micros();
        match put(kernel, tenant, None, ErasureState::Requested, now, by, &detail).await {
            // Ordered twice at once.
            Err(Error::Conflict(_)) => {}
            result => result?,
        }
        kernel.0.control.tenant_set_state(tenant, TenantState::Erasing).await?;
        kernel.island_freeze(tenant).await?;
    }
    info(kernel, &tenant.hex()).await
}

async fn put(
    kernel: &Kernel,
    tenant: TenantId,
    from: Option<ErasureState>,
    state: ErasureState,
    requested_at: i64,
    by: &str,
    detail: &Detail,
) -> Result<()> {
    let row = ErasureRow {
        tenant,
        state: state.name().to_owned(),
        requested_at,
        requested_by: by.to_owned(),
        updated_at: now_micros(),
        detail: serde_json::to_string(detail).map_err(Error::internal)?,
    };
    kernel.0.control.erasure_put(from.map(ErasureState::name), &row).await
}

/// How far it is.
pub(crate) async fn info(kernel: &Kernel, id: &str) -> Result<ErasureInfo> {
    let tenant = TenantId::parse(id).ok_or(Error::NotFound("erasure"))?;
    let row = kernel.0.control.erasure_of(tenant).await?.ok_or(Error::NotFound("erasure"))?;
    Ok(ErasureInfo {
        id: id.to_owned(),
        state: row.state.parse()?,
        requested_at: row.requested_at,
        requested_by: row.requested_by,
        updated_at: row.updated_at,
        certificate: kernel.0.control.certificate_of(tenant).await?,
    })
}

impl Kernel {
    /// Moves the oldest unfinished erasure that can be moved by one state. Returns whether there was one. Of several nodes only the
    /// leader does.
    ///
    /// # Errors
    /// What the step ran into; it is done again at the next call.
    pub async fn erasure_step(&self, compute: &dyn Compute) -> Result<bool> {
        if !self.0.leads() {
            return Ok(false);
        }
        let _one = self.0.erasing.lock().await;
        let mut stuck = None;
        for row in self.0.control.erasures().await? {
            let state: ErasureState = row.state.parse()?;
            if state == ErasureState::Certified {
                continue;
            }
            let mut detail: Detail = serde_json::from_str(&row.detail).map_err(Error::integrity)?;
            let next = match step(self, row.tenant, state, &row, &mut detail, compute).await {
                Ok(next) => next,
                Err(error) => {
                    // One that cannot go on does not hold up the others.
                    tracing::error!(erasure = %row.tenant.hex(), %error, context = error.private(), "an erasure could not be moved");
                    stuck = stuck.or(Some(error));
                    continue;
                }
            };
            if next == ErasureState::Certified {
                // The certificate holds what is needed of these; the name must not stay.
                detail =
                    Detail { epoch_destroyed_before: detail.epoch_destroyed_before, shredded_at: detail.shredded_at, ..Detail::default() };
            }
            put(self, row.tenant, Some(state), next, row.requested_at, &row.requested_by, &detail).await?;
            tracing::info!(erasure = %row.tenant.hex(), state = next.name(), "erasure moved");
            return Ok(true);
        }
        stuck.map_or(Ok(false), Err)
    }
}

async fn step(
    kernel: &Kernel,
    tenant: TenantId,
    state: ErasureState,
    row: &ErasureRow,
    detail: &mut Detail,
    compute: &dyn Compute,
) -> Result<ErasureState> {
    let control = &kernel.0.control;
    // Whoever served it has closed it and stopped its cells, or is dead.
    let home = if state < ErasureState::RowsGone { kernel.seize(tenant).await? } else { None };
    Ok(match state {
        ErasureState::Requested => {
            control.tenant_set_state(tenant, TenantState::Erasing).await?;
            kernel.credentials_forget(|credential| credential.tenant == Some(tenant));
            kernel.island_drop(tenant, Why::Stopped).await?;
            ErasureState::Frozen
        }
        ErasureState::Frozen => {
            compute.stop(IslandToken::new(tenant)).await;
            control.tickets_destroy(tenant).await?;
            match last_words(kernel, tenant, row, detail).await {
                // Damage must not keep anybody from being erased; the certificate then shows no checkpoint.
                Err(Error::Integrity(context)) => {
                    tracing::error!(erasure = %tenant.hex(), context, "an erased tenant's log has no last word")
                }
                result => result?,
            }
            ErasureState::Stopped
        }
        ErasureState::Stopped => {
            shred(kernel, tenant, detail).await?;
            ErasureState::Shredded
        }
        ErasureState::Shredded => {
            for placement in placements(kernel, tenant).await? {
                kernel.objects_place_destroy(tenant, &placement.objects).await?;
            }
            ErasureState::BlobsGone
        }
        ErasureState::BlobsGone => {
            for file in ["rows.db", "rows.db-wal", "rows.db-shm", "rows.db-journal"] {
                remove_file(&kernel.tenant_dir(tenant).join(file))?;
            }
            for placement in placements(kernel, tenant).await? {
                kernel.rows_place_destroy(tenant, &placement).await?;
            }
            control.credentials_destroy(tenant).await?;
            kernel.credentials_forget(|credential| credential.tenant == Some(tenant));
            control.tenant_set_state(tenant, TenantState::Erased).await?;
            kernel.meter_forget(tenant); // else it would write more hours of use
            control.usage_destroy(tenant).await?;
            if let Some(home) = &home {
                kernel.bury(home).await?;
            }
            ErasureState::RowsGone
        }
        ErasureState::RowsGone => {
            detail.backups = format!(
                "copies of the data from before root key epoch {} do not open, neither this tenant's nor any other's: take a new backup",
                detail.epoch_destroyed_before
            );
            ErasureState::BackupsNoted
        }
        ErasureState::BackupsNoted | ErasureState::Certified => {
            certify(kernel, tenant, row, detail).await?;
            ErasureState::Certified
        }
    })
}

/// Where it lives, where it lived if it moved and the move was not finished, and where it was about to live.
async fn placements(kernel: &Kernel, tenant: TenantId) -> Result<Vec<Placement>> {
    let Some(row) = kernel.0.control.tenant_by_id(tenant).await? else { return Ok(Vec::new()) };
    let now = Placement::parse(&row.placement)?;
    let others: Vec<Placement> = [&now.previous, &now.next].into_iter().flatten().map(|place| Placement::clone(place)).collect();
    Ok(std::iter::once(now).chain(others).collect())
}

/// The tenant's ledger gets its last entry and its last checkpoint, while its keys still exist.
async fn last_words(kernel: &Kernel, tenant: TenantId, row: &ErasureRow, detail: &mut Detail) -> Result<()> {
    let keyring = Keyring::load(&kernel.0.root, tenant, &kernel.0.control.keys_of(tenant).await?)?;
    let _guard = kernel.opening(tenant).lock_owned().await;
    let placement = placements(kernel, tenant).await?.into_iter().next().unwrap_or_default();
    let place = kernel.rows_place(tenant, &placement, None).await?;
    let ledger = kernel.ledger_open(&kernel.tenant_dir(tenant), &keyring, place.is_shared())?;
    let last = Entry {
        time: now_micros(),
        request: format!("erasure-{}", tenant.hex()),
        actor: row.requested_by.clone(),
        via: "erasure".to_owned(),
        act: "TenantErase".to_owned(),
        resource: "tenant:".to_owned(),
        outcome: Outcome::Allowed,
        reason: "the keys of this log are destroyed after this entry".to_owned(),
        detail: Default::default(),
        generation: None,
    };
    detail.ledger_checkpoint = place.ledger_append(&ledger, &last).await?;
    detail.ledger_vkey = ledger.vkey();
    ledger.finish();
    Ok(())
}

/// Crypto-shredding: a new root epoch for the survivors, no key for this one.
async fn shred(kernel: &Kernel, tenant: TenantId, detail: &mut Detail) -> Result<()> {
    let _alone = kernel.0.epoch_gate.write().await;
    let (root, control) = (&kernel.0.root, &kernel.0.control);
    if root.has_older_epoch() {
        // Somebody died in the middle of this. Finish that first, so that attempts do not pile up epochs.
        let epoch = root.epoch();
        control.rewrap_all(root, epoch).await?;
        root.destroy_epochs_before(epoch)?;
    }
    control.keys_destroy(tenant).await?;
    let epoch = root.begin_epoch()?;
    control.rewrap_all(root, epoch).await?;
    root.destroy_epochs_before(epoch)?;
    detail.epoch_destroyed_before = epoch;
    detail.shredded_at = now_micros();
    Ok(())
}

async fn certify(kernel: &Kernel, tenant: TenantId, row: &ErasureRow, detail: &Detail) -> Result<()> {
    if kernel.0.control.certificate_of(tenant).await?.is_some() {
        return Ok(());
    }
    let service = crate::name::hex(&kernel.0.root.service_id());
    let statement = ErasureStatement {
        name_digest: name_digest(&service, &tenant.hex(), &detail.name),
        service,
        tenant: tenant.hex(),
        requested_at: row.requested_at,
        requested_by: row.requested_by.clone(),
        shredded_at: detail.shredded_at,
        epoch_destroyed_before: detail.epoch_destroyed_before,
        certified_at: now_micros(),
        ledger_vkey: detail.ledger_vkey.clone(),
        ledger_checkpoint: detail.ledger_checkpoint.clone(),
        backups: detail.backups.clone(),
    };
    let statement = serde_json::to_string_pretty(&statement).map_err(Error::internal)?;
    let digest = tlog::leaf_hash(statement.as_bytes()).to_string();
    let resource = format!("certificate:{digest}");
    let ledger_index =
        kernel.0.record("service", "erasure", &RequestId::fresh(), "TenantErased", &resource, Outcome::Allowed, "certified").await?;
    let key = service_key(kernel)?;
    let signature = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, key.sign(PURPOSE, statement.as_bytes()));
    let certificate = Certificate { statement, signature, vkey: key.verifying_key().to_string(), ledger_index };
    let text = serde_json::to_string_pretty(&certificate).map_err(Error::internal)?;
    kernel.0.control.certificate_put(tenant, &text).await
}

/// The key of the service's own ledger, under the ledger's origin.
pub(crate) fn service_key(kernel: &Kernel) -> Result<SigningKey> {
    let seed = kernel.0.root.control_key().derive("service ledger signing", &[]);
    SigningKey::from_seed(&kernel.origin("service"), seed.bytes()).map_err(Error::internal)
}

/// SHA-256 over service, tenant and name, base64.
#[must_use]
pub fn name_digest(service: &str, tenant: &str, name: &str) -> String {
    tlog::leaf_hash(format!("{service}\n{tenant}\n{name}").as_bytes()).to_string()
}

/// Checks a certificate's text offline against the pinned service key (vkey).
///
/// # Errors
/// [`Error::Invalid`] when it is no certificate, [`Error::Integrity`] when key or signature do not match.
pub fn verify_certificate(text: &str, vkey: &str) -> Result<ErasureStatement> {
    if text.len() > CERTIFICATE_BYTES_MAX {
        return Err(Error::Invalid("this is too long for a certificate".to_owned()));
    }
    let invalid = |what: &str| Error::Invalid(format!("this is no erasure certificate: {what}"));
    let certificate: Certificate = serde_json::from_str(text).map_err(|error| invalid(&error.to_string()))?;
    let pinned: tlog::VerifyingKey = vkey.trim().parse().map_err(|_| Error::Invalid("the pinned key is not a vkey".to_owned()))?;
    if certificate.vkey != pinned.to_string() {
        return Err(Error::integrity("it was signed by another key than the pinned one"));
    }
    let signature = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &certificate.signature);
    let signature: [u8; 64] = signature.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| invalid("signature"))?;
    pinned
        .verify(PURPOSE, certificate.statement.as_bytes(), &signature)
        .map_err(|_| Error::integrity("the signature does not match the statement"))?;
    serde_json::from_str(&certificate.statement).map_err(|error| invalid(&error.to_string()))
}

pub(crate) fn remove_folder(path: &std::path::Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn remove_file(path: &std::path::Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
