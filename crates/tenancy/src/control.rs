//! The service's own rows: tenants, their wrapped keys, credentials, tickets, erasures. No tenant content.
use std::path::Path;

use crate::anchor::Anchors;
use crate::error::{Error, Result};
use crate::keyring::KeyRows;
use crate::name::{Name, TenantId};
use crate::root::RootStore;
use std::sync::Arc;

const LATER: &str = "being written";

/// Whether a tenant takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TenantState {
    /// Takes requests.
    Active,
    /// Refuses requests, keeps everything.
    Suspended,
    /// On its way out.
    Erasing,
    /// Gone; its name is free again.
    Erased,
}

/// A tenant. Times in Unix microseconds.
#[derive(Debug, Clone)]
pub(crate) struct TenantRow {
    pub(crate) id: TenantId,
    pub(crate) name: Name,
    pub(crate) state: TenantState,
    pub(crate) created_at: i64,
    /// Place among the anchors.
    pub(crate) slot: u64,
    /// JSON.
    pub(crate) limits: String,
    /// JSON.
    pub(crate) placement: String,
    /// Counts changes of state and keys: whoever cached an open tenant compares it.
    pub(crate) epoch_generation: u64,
}

/// What a credential opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CredentialKind {
    /// A member of one tenant.
    Member,
    /// The operator of the service.
    Operator,
}

/// A credential. Times in Unix microseconds.
#[derive(Debug, Clone)]
pub(crate) struct CredentialRow {
    pub(crate) id: String,
    pub(crate) kind: CredentialKind,
    /// `None` for the operator.
    pub(crate) tenant: Option<TenantId>,
    pub(crate) principal: String,
    pub(crate) secret_mac: [u8; 32],
    /// JSON.
    pub(crate) scopes: String,
    pub(crate) expires_at: Option<i64>,
    pub(crate) created_at: i64,
    pub(crate) created_by: String,
    pub(crate) revoked_at: Option<i64>,
    pub(crate) last_used_at: Option<i64>,
    pub(crate) name: String,
}

/// Work that waits for a tenant; no content. Times in Unix microseconds.
#[derive(Debug, Clone)]
pub(crate) struct TicketRow {
    pub(crate) id: String,
    pub(crate) tenant: TenantId,
    pub(crate) kind: String,
    pub(crate) principal: String,
    pub(crate) created_at: i64,
    pub(crate) claimed_by: Option<String>,
    pub(crate) attempts: u32,
}

/// An erasure under way or done. Times in Unix microseconds.
#[derive(Debug, Clone)]
pub(crate) struct ErasureRow {
    pub(crate) tenant: TenantId,
    /// A word of the erasure machine.
    pub(crate) state: String,
    pub(crate) requested_at: i64,
    pub(crate) requested_by: String,
    pub(crate) updated_at: i64,
    /// JSON of the machine's own.
    pub(crate) detail: String,
}

/// The control database, open.
pub(crate) struct Control {}

impl Control {
    /// Opens or makes `control.db`.
    pub(crate) async fn open(_path: &Path, _root: &RootStore, _anchors: &Arc<Anchors>) -> Result<Self> {
        Err(Error::Unavailable(LATER))
    }
    /// Closes cleanly.
    pub(crate) async fn close(&self) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }

    /// A new tenant with its keys and first credential, in one transaction. `row.slot` and `row.epoch_generation` are set here.
    pub(crate) async fn tenant_insert(&self, _row: &TenantRow, _keys: &KeyRows, _first: Option<&CredentialRow>) -> Result<TenantRow> {
        Err(Error::Unavailable(LATER))
    }
    /// By name; never an erased one.
    pub(crate) async fn tenant_by_name(&self, _name: &Name) -> Result<Option<TenantRow>> {
        Err(Error::Unavailable(LATER))
    }
    /// By id.
    pub(crate) async fn tenant_by_id(&self, _id: TenantId) -> Result<Option<TenantRow>> {
        Err(Error::Unavailable(LATER))
    }
    /// Ordered by name; without erased ones.
    pub(crate) async fn tenants_page(&self, _after: Option<&Name>, _limit: u32) -> Result<Vec<TenantRow>> {
        Err(Error::Unavailable(LATER))
    }
    /// Sets the state.
    pub(crate) async fn tenant_set_state(&self, _id: TenantId, _state: TenantState) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// Sets limits (JSON).
    pub(crate) async fn tenant_set_limits(&self, _id: TenantId, _limits: &str) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// Sets placement (JSON).
    pub(crate) async fn tenant_set_placement(&self, _id: TenantId, _placement: &str) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// How many, without erased ones.
    pub(crate) async fn tenants_count(&self) -> Result<u64> {
        Err(Error::Unavailable(LATER))
    }

    /// A tenant's stored keys.
    pub(crate) async fn keys_of(&self, _tenant: TenantId) -> Result<KeyRows> {
        Err(Error::Unavailable(LATER))
    }
    /// Replaces all of a tenant's stored keys; bumps its `epoch_generation`.
    pub(crate) async fn keys_replace(&self, _tenant: TenantId, _keys: &KeyRows) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// Destroys a tenant's stored keys.
    pub(crate) async fn keys_destroy(&self, _tenant: TenantId) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// Re-wraps every tenant key that is not under `epoch` yet, in one transaction; returns how many.
    pub(crate) async fn rewrap_all(&self, _root: &RootStore, _epoch: u64) -> Result<u64> {
        Err(Error::Unavailable(LATER))
    }

    /// By id.
    pub(crate) async fn credential_by_id(&self, _id: &str) -> Result<Option<CredentialRow>> {
        Err(Error::Unavailable(LATER))
    }
    /// All of a tenant's, newest first; `None` for the operator's.
    pub(crate) async fn credentials_of(&self, _tenant: Option<TenantId>) -> Result<Vec<CredentialRow>> {
        Err(Error::Unavailable(LATER))
    }
    /// Adds one; [`Error::Conflict`] if the id is taken.
    pub(crate) async fn credential_insert(&self, _row: &CredentialRow) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// Revokes one of this tenant's (or of the operator's); whether it was there and live.
    pub(crate) async fn credential_revoke(&self, _tenant: Option<TenantId>, _id: &str, _now: i64) -> Result<bool> {
        Err(Error::Unavailable(LATER))
    }
    /// Revokes all of a principal's; how many.
    pub(crate) async fn credentials_revoke_of(&self, _tenant: TenantId, _principal: &str, _now: i64) -> Result<u64> {
        Err(Error::Unavailable(LATER))
    }
    /// Removes all of a tenant's (erasure).
    pub(crate) async fn credentials_destroy(&self, _tenant: TenantId) -> Result<u64> {
        Err(Error::Unavailable(LATER))
    }
    /// Notes a use in memory; stored by [`Control::flush`].
    pub(crate) fn credential_touch(&self, _id: &str, _now: i64) {}
    /// Stores noted uses. Call each few seconds; close does it too.
    pub(crate) async fn flush(&self) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }

    /// Adds a ticket.
    pub(crate) async fn ticket_insert(&self, _row: &TicketRow) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// Claims a ticket nobody has; counts the attempt.
    pub(crate) async fn ticket_claim(&self, _id: &str, _by: &str) -> Result<Option<TicketRow>> {
        Err(Error::Unavailable(LATER))
    }
    /// Gives a claimed ticket back.
    pub(crate) async fn ticket_release(&self, _id: &str) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// Gives all claimed tickets back: at start, when no claimer can be alive.
    pub(crate) async fn tickets_release_all(&self) -> Result<u64> {
        Err(Error::Unavailable(LATER))
    }
    /// Removes a ticket; whether it was there.
    pub(crate) async fn ticket_delete(&self, _id: &str) -> Result<bool> {
        Err(Error::Unavailable(LATER))
    }
    /// Tickets nobody has, oldest first.
    pub(crate) async fn tickets_waiting(&self, _limit: u32) -> Result<Vec<TicketRow>> {
        Err(Error::Unavailable(LATER))
    }
    /// Removes a tenant's tickets.
    pub(crate) async fn tickets_destroy(&self, _tenant: TenantId) -> Result<u64> {
        Err(Error::Unavailable(LATER))
    }

    /// Adds or replaces a tenant's erasure.
    pub(crate) async fn erasure_put(&self, _row: &ErasureRow) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// A tenant's erasure.
    pub(crate) async fn erasure_of(&self, _tenant: TenantId) -> Result<Option<ErasureRow>> {
        Err(Error::Unavailable(LATER))
    }
    /// All erasures, oldest first.
    pub(crate) async fn erasures(&self) -> Result<Vec<ErasureRow>> {
        Err(Error::Unavailable(LATER))
    }
    /// Stores a certificate (JSON).
    pub(crate) async fn certificate_put(&self, _tenant: TenantId, _json: &str) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// A stored certificate.
    pub(crate) async fn certificate_of(&self, _tenant: TenantId) -> Result<Option<String>> {
        Err(Error::Unavailable(LATER))
    }

    /// A small value of the service's own.
    pub(crate) async fn meta(&self, _key: &str) -> Result<Option<Vec<u8>>> {
        Err(Error::Unavailable(LATER))
    }
    /// Sets it.
    pub(crate) async fn meta_set(&self, _key: &str, _value: &[u8]) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// Removes it; returns whether it was there (one-time secrets).
    pub(crate) async fn meta_take(&self, _key: &str) -> Result<Option<Vec<u8>>> {
        Err(Error::Unavailable(LATER))
    }
}
