//! The service's own rows: tenants, their wrapped keys, credentials, tickets, erasures. No tenant content, and no way to it:
//! keys lie here wrapped under the root key, which is kept outside the data folder.
//!
//! They lie in an encrypted file, or on a PostgreSQL server in the schema `insula_control`, where several nodes may write them at once: each
//! transaction locks the generation first, so there is one writer at a time, and what it read under the lock holds until it commits. No
//! method trusts a lock of this process.
//!
//! Whoever can write the data folder or the server's tables can put old bytes back. Three things stand against that: the
//! generation (and a file's hash) is anchored in the keystore; every row that grants, revokes or erases carries a MAC over itself and
//! the generation it was written in; and the sum of these MACs lies beside the generation, so that a single row or page put back does not
//! add up. The sum is checked at open, unless the hash of the closed file said already that nothing moved.

mod protected;
mod usage;

use std::collections::hash_map::{Entry, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::anchor::{AnchorSlot, Anchors};
use crate::error::{Error, Result};
use crate::keyring::{DataKeyRow, KeyRows, TenantKeyRow, rewrap};
use crate::ledger::SharedCopy;
use crate::name::{Name, TenantId};
use crate::place::Placement;
use crate::root::RootStore;
use crate::rows::db::{Closing, Db, PostgresDb, as_i64};
use crate::rows::postgres::PgRows;
use crate::rows::sql::{Row, Sql};
use crate::rows::sqlite::{Expect, Migrations, SqliteDb};
use crate::seal::Key;
use protected::{ControlTxn, Verifier};
pub(crate) use usage::{USAGE_BATCH, USAGE_PAGE, UsageAdded, UsageRow};

const MIGRATIONS: Migrations = &[
    include_str!("../migrations/control/sqlite/0001.sql"),
    include_str!("../migrations/control/sqlite/0002.sql"),
    include_str!("../migrations/control/sqlite/0003.sql"),
];
/// Tenants a page holds.
const PAGE_MAX: u32 = 1000;
/// Credentials whose last use waits to be written.
const TOUCHED_MAX: usize = 100_000;
/// Revoked ones that stay to be listed, of one tenant.
const REVOKED_KEPT_MAX: u32 = 100;
/// Last uses written in one transaction.
const TOUCHED_BATCH: usize = 500;
/// Stands for the service itself among the anchors.
const SERVICE: TenantId = TenantId([0; 16]);

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

impl TenantState {
    const ALL: [Self; 4] = [Self::Active, Self::Suspended, Self::Erasing, Self::Erased];

    /// Name in control rows and for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Erasing => "erasing",
            Self::Erased => "erased",
        }
    }

    /// From [`TenantState::name`].
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// A tenant. Times in Unix microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl CredentialKind {
    /// Name in control rows.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Operator => "operator",
        }
    }

    /// From [`CredentialKind::name`].
    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::Member, Self::Operator].into_iter().find(|kind| kind.name() == name)
    }
}

/// A credential. Times in Unix microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Kind of the tickets that clear away what a tenant deleted long ago. Their `created_at` is when they are due.
pub(crate) const SWEEP: &str = "sweep";

/// Work that waits for a tenant; no content. Times in Unix microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Where the service's own rows lie.
pub(crate) enum ControlStore<'a> {
    /// In this file.
    File(&'a Path),
    /// On a PostgreSQL server.
    Postgres(PgRows),
}

/// The control database, open.
pub(crate) struct Control {
    db: Db,
    verifier: Verifier,
    touched: Mutex<HashMap<String, i64>>,
}

impl Control {
    /// Opens the rows; makes the file if it never was. A server's tables were made by its owner.
    ///
    /// # Errors
    /// [`Error::Integrity`] if the file does not decrypt, the rows were rolled back, or a protected one was changed or put back.
    pub(crate) async fn open(store: ControlStore<'_>, root: &RootStore, anchors: &Arc<Anchors>) -> Result<Self> {
        let anchor = anchors.slot(0, SERVICE)?;
        let before = anchor.now();
        let (db, unmoved) = match store {
            ControlStore::File(path) => {
                let expect = if path.exists() || before.generation > 0 { Expect::Present } else { Expect::Absent };
                let key = root.control_key().derive("control.db", &[]);
                (Db::Sqlite(SqliteDb::open(path, &key, anchor, MIGRATIONS, expect).await?), before.clean.is_some())
            }
            ControlStore::Postgres(rows) => (Db::Postgres(PostgresDb::open(rows, anchor, None).await?), false),
        };
        let control = Self { db, verifier: Verifier::new(root.control_key()), touched: Mutex::default() };
        if !unmoved {
            control.verifier.verify_all(control.db.read().await?.sql()?).await?;
        }
        Ok(control)
    }

    /// Writes what waits and closes cleanly. Everything asked later is refused.
    pub(crate) async fn close(&self) -> Result<()> {
        self.flush().await?;
        self.db.close(Closing::Clean).await
    }

    /// Where the shared copy of the service's own ledger is; none of a service on one node.
    pub(crate) fn shared_copy(&self) -> Option<SharedCopy<'_>> {
        self.db.place().map(SharedCopy::Place)
    }

    async fn begin(&self) -> Result<ControlTxn<'_>> {
        ControlTxn::begin(&self.db, &self.verifier).await
    }

    // Tenants.

    /// A new tenant with its keys and first credential, in one transaction. `slot` and `epoch_generation` of the row are set
    /// here; the row is returned with them.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the name is taken.
    pub(crate) async fn tenant_insert(&self, row: &TenantRow, keys: &KeyRows, first: Option<&CredentialRow>) -> Result<TenantRow> {
        self.tenant_added(self.begin().await?, row, keys, first).await
    }

    /// The same of a tenant that was imported: the note of its import goes with it. `fence` as for [`Control::tenant_place`].
    ///
    /// # Errors
    /// As [`Control::tenant_insert`], and [`Error::Conflict`] when the note is gone: somebody swept what the import had made.
    pub(crate) async fn tenant_import(
        &self,
        row: &TenantRow,
        keys: &KeyRows,
        first: &CredentialRow,
        note: &str,
        fence: Option<u64>,
    ) -> Result<TenantRow> {
        let mut tx = self.begin().await?;
        tx.at_home(row.id, fence).await?;
        if tx.execute("DELETE FROM meta WHERE name = $1", &[(&meta_name(note)).into()]).await? == 0 {
            return Err(Error::Conflict("the import took so long that it was taken for dead: begin it again".to_owned()));
        }
        self.tenant_added(tx, row, keys, Some(first)).await
    }

    async fn tenant_added(
        &self,
        mut tx: ControlTxn<'_>,
        row: &TenantRow,
        keys: &KeyRows,
        first: Option<&CredentialRow>,
    ) -> Result<TenantRow> {
        let next = "UPDATE state SET value = value + 1 WHERE name = 'slot_next' RETURNING value";
        let slot = tx.sql()?.one(next, &[]).await?.number(0)?.saturating_sub(1);
        let row = TenantRow { slot, epoch_generation: 1, ..row.clone() };
        if !tx.tenant_add(&row).await? {
            return Err(Error::Conflict(format!("a tenant named `{}` exists already", row.name)));
        }
        tx.keys_write(row.id, keys).await?;
        if let Some(first) = first {
            self.credential_added(&mut tx, first).await?;
        }
        tx.commit().await?;
        Ok(row)
    }

    /// By name; never an erased one.
    pub(crate) async fn tenant_by_name(&self, name: &Name) -> Result<Option<TenantRow>> {
        let mut reading = self.db.read().await?;
        let sql = "SELECT * FROM tenant WHERE name = $1 AND state <> 'erased'";
        let row = reading.sql()?.optional(sql, &[name.as_str().into()]).await?;
        row.map(|row| self.verifier.read(&row)).transpose()
    }

    /// By id.
    pub(crate) async fn tenant_by_id(&self, id: TenantId) -> Result<Option<TenantRow>> {
        let mut reading = self.db.read().await?;
        let row = reading.sql()?.optional("SELECT * FROM tenant WHERE id = $1", &[(&id.0).into()]).await?;
        row.map(|row| self.verifier.read(&row)).transpose()
    }

    /// At most `limit` (and 1,000) tenants after the name `after`, ordered by name; without erased ones.
    pub(crate) async fn tenants_page(&self, after: Option<&Name>, limit: u32) -> Result<Vec<TenantRow>> {
        let mut reading = self.db.read().await?;
        let sql = "SELECT * FROM tenant WHERE state <> 'erased' AND name > $1 ORDER BY name LIMIT $2";
        let rows = reading.sql()?.all(sql, &[after.map_or("", Name::as_str).into(), limit.min(PAGE_MAX).into()]).await?;
        rows.iter().map(|row| self.verifier.read(row)).collect()
    }

    /// How many, without erased ones.
    #[cfg(test)]
    pub(crate) async fn tenants_count(&self) -> Result<u64> {
        let mut reading = self.db.read().await?;
        reading.sql()?.one("SELECT count(*) FROM tenant WHERE state <> 'erased'", &[]).await?.number(0)
    }

    /// Sets the state. An erased tenant's name goes with it.
    ///
    /// # Errors
    /// [`Error::Conflict`]: what is being erased takes no requests again.
    pub(crate) async fn tenant_set_state(&self, id: TenantId, state: TenantState) -> Result<()> {
        self.tenant_change(id, |row| {
            let leaving = matches!(row.state, TenantState::Erasing | TenantState::Erased);
            if state != row.state && (row.state == TenantState::Erased || leaving && state != TenantState::Erased) {
                return Err(Error::Conflict("the tenant is being erased".to_owned()));
            }
            row.state = state;
            row.epoch_generation += 1;
            if state == TenantState::Erased {
                row.name = format!("erased-{}", id.hex()).parse()?;
            }
            Ok(())
        })
        .await
    }

    /// Sets limits (JSON).
    pub(crate) async fn tenant_set_limits(&self, id: TenantId, limits: &str) -> Result<()> {
        self.tenant_change(id, |row| {
            limits.clone_into(&mut row.limits);
            row.epoch_generation += 1;
            Ok(())
        })
        .await
    }

    /// Changes where the tenant lives, seen and changed in one transaction. With several nodes only as long as `fence` is the number of
    /// the tenant's lease: what a node copied is worth nothing once another one may have written.
    ///
    /// # Errors
    /// [`Error::Conflict`] when another node took the tenant over.
    pub(crate) async fn tenant_place(
        &self,
        id: TenantId,
        fence: Option<u64>,
        change: impl FnOnce(&mut Placement) -> Result<()>,
    ) -> Result<()> {
        let changed = |row: &mut TenantRow| {
            let mut placement = Placement::parse(&row.placement)?;
            change(&mut placement)?;
            row.placement = placement.to_json()?;
            row.epoch_generation += 1;
            Ok(())
        };
        self.tenant_change_under(id, fence, changed).await
    }

    async fn tenant_change(&self, id: TenantId, change: impl FnOnce(&mut TenantRow) -> Result<()>) -> Result<()> {
        self.tenant_change_under(id, None, change).await
    }

    async fn tenant_change_under(&self, id: TenantId, fence: Option<u64>, change: impl FnOnce(&mut TenantRow) -> Result<()>) -> Result<()> {
        let mut tx = self.begin().await?;
        tx.at_home(id, fence).await?;
        let (old, mac) = tx.tenant(id).await?;
        let mut new = old;
        change(&mut new)?;
        tx.tenant_replace(mac, &new).await?;
        tx.commit().await
    }

    // Keys.

    /// A tenant's stored keys.
    pub(crate) async fn keys_of(&self, tenant: TenantId) -> Result<KeyRows> {
        let mut reading = self.db.read().await?;
        self.keys_read(reading.sql()?, tenant).await
    }

    async fn keys_read(&self, mut sql: Sql<'_>, tenant: TenantId) -> Result<KeyRows> {
        let versions = sql.all("SELECT * FROM tenant_key WHERE tenant = $1 ORDER BY version", &[(&tenant.0).into()]).await?;
        let data = sql.all("SELECT * FROM data_key WHERE tenant = $1 ORDER BY purpose, n", &[(&tenant.0).into()]).await?;
        let versions = versions.iter().map(|row| Ok(self.verifier.read::<Owned<TenantKeyRow>>(row)?.row));
        let data = data.iter().map(|row| Ok(self.verifier.read::<Owned<DataKeyRow>>(row)?.row));
        Ok(KeyRows { tenant: versions.collect::<Result<_>>()?, data: data.collect::<Result<_>>()? })
    }

    /// Replaces all of a tenant's stored keys, as they were seen before; raises its `epoch_generation`. `fence` as for
    /// [`Control::tenant_place`].
    ///
    /// # Errors
    /// [`Error::Conflict`] when they are others by now, or the tenant is being erased: a key written then would lose what another one
    /// wrapped, or bring back what was destroyed.
    pub(crate) async fn keys_replace(&self, tenant: TenantId, fence: Option<u64>, before: &KeyRows, keys: &KeyRows) -> Result<()> {
        let mut tx = self.begin().await?;
        tx.at_home(tenant, fence).await?;
        let (mut row, mac) = tx.tenant(tenant).await?;
        let leaving = matches!(row.state, TenantState::Erasing | TenantState::Erased);
        if leaving || !self.keys_read(tx.sql()?, tenant).await?.is_same(before) {
            return Err(Error::Conflict("the tenant's keys were changed meanwhile: try again".to_owned()));
        }
        row.epoch_generation += 1;
        tx.tenant_replace(mac, &row).await?;
        tx.keys_delete(tenant).await?;
        tx.keys_write(tenant, keys).await?;
        tx.commit().await
    }

    /// Destroys a tenant's stored keys; whether there were any.
    pub(crate) async fn keys_destroy(&self, tenant: TenantId) -> Result<bool> {
        let mut tx = self.begin().await?;
        let gone = tx.keys_delete(tenant).await?;
        tx.commit().await?;
        Ok(gone > 0)
    }

    /// Re-wraps every tenant key that is not under `epoch` yet, in one transaction; returns how many. From then on a key under
    /// an older epoch is not stored: another node may still have the old root in memory when that epoch is destroyed.
    pub(crate) async fn rewrap_all(&self, root: &RootStore, epoch: u64) -> Result<u64> {
        let kek = |epoch| root.epoch_key(epoch).ok_or_else(|| Error::integrity(format!("key epoch {epoch} was destroyed")));
        let new = kek(epoch)?;
        let mut old: HashMap<u64, Key> = HashMap::new();
        let mut tx = self.begin().await?;
        tx.epoch_begin(epoch).await?;
        let sql = "SELECT * FROM tenant_key WHERE epoch <> $1 AND state <> 'retired'";
        let rows = tx.sql()?.all(sql, &[as_i64(epoch)?.into()]).await?;
        let mut rewrapped = 0;
        for row in &rows {
            let (mut key, mac) = self.verifier.read_with_mac::<Owned<TenantKeyRow>>(row)?;
            let from = match old.entry(key.row.epoch) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(kek(key.row.epoch)?),
            };
            key.row.wrapped = rewrap(from, &new, key.tenant, &key.row, epoch)?;
            key.row.epoch = epoch;
            tx.tenant_key_rewrapped(mac, &key).await?;
            rewrapped += 1;
        }
        tx.commit().await?;
        Ok(rewrapped)
    }

    // Credentials.

    /// By id.
    pub(crate) async fn credential_by_id(&self, id: &str) -> Result<Option<CredentialRow>> {
        let mut reading = self.db.read().await?;
        let row = reading.sql()?.optional("SELECT * FROM credential WHERE id = $1", &[id.into()]).await?;
        row.map(|row| self.verifier.read(&row)).transpose()
    }

    /// All of a tenant's, newest first; `None` for the operator's.
    pub(crate) async fn credentials_of(&self, tenant: Option<TenantId>) -> Result<Vec<CredentialRow>> {
        let mut reading = self.db.read().await?;
        let rows = match tenant {
            Some(tenant) => {
                let sql = "SELECT * FROM credential WHERE tenant = $1 ORDER BY created_at DESC, id";
                reading.sql()?.all(sql, &[(&tenant.0).into()]).await?
            }
            None => reading.sql()?.all("SELECT * FROM credential WHERE tenant IS NULL ORDER BY created_at DESC, id", &[]).await?,
        };
        rows.iter().map(|row| self.verifier.read(row)).collect()
    }

    /// Adds one.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the id is taken.
    pub(crate) async fn credential_insert(&self, row: &CredentialRow) -> Result<()> {
        let mut tx = self.begin().await?;
        self.credential_added(&mut tx, row).await?;
        tx.commit().await
    }

    /// Adds a credential and spends a one-time secret for it, together or not at all; whether the secret was still there.
    pub(crate) async fn credential_insert_spending(&self, secret: &str, row: &CredentialRow) -> Result<bool> {
        let mut tx = self.begin().await?;
        if tx.execute("DELETE FROM meta WHERE name = $1", &[(&meta_name(secret)).into()]).await? == 0 {
            return Ok(false);
        }
        self.credential_added(&mut tx, row).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn credential_added(&self, tx: &mut ControlTxn<'_>, row: &CredentialRow) -> Result<()> {
        if tx.credential_add(row).await? { Ok(()) } else { Err(Error::Conflict("the credential exists already".to_owned())) }
    }

    /// How many of a tenant's are not revoked.
    pub(crate) async fn credentials_alive(&self, tenant: TenantId) -> Result<u64> {
        let mut reading = self.db.read().await?;
        let sql = "SELECT count(*) FROM credential WHERE tenant = $1 AND revoked_at IS NULL";
        reading.sql()?.one(sql, &[(&tenant.0).into()]).await?.number(0)
    }

    /// Where the service's own generation and ledger are anchored.
    pub(crate) fn anchor(&self) -> &AnchorSlot {
        self.db.anchor()
    }

    /// Revokes one of this tenant's (`None`: of the operator's); whether it was there and not revoked yet.
    pub(crate) async fn credential_revoke(&self, tenant: Option<TenantId>, id: &str, now: i64) -> Result<bool> {
        let mut tx = self.begin().await?;
        let sql = "SELECT * FROM credential WHERE id = $1 AND tenant IS NOT DISTINCT FROM $2 AND revoked_at IS NULL";
        let tenant = tenant.as_ref().map(|tenant| tenant.0.as_slice());
        let rows = tx.sql()?.all(sql, &[id.into(), tenant.into()]).await?;
        Ok(self.revoke(tx, tenant, &rows, now).await? > 0)
    }

    /// Revokes all of a principal's; how many.
    pub(crate) async fn credentials_revoke_of(&self, tenant: TenantId, principal: &str, now: i64) -> Result<u64> {
        let mut tx = self.begin().await?;
        let sql = "SELECT * FROM credential WHERE tenant = $1 AND principal = $2 AND revoked_at IS NULL";
        let rows = tx.sql()?.all(sql, &[(&tenant.0).into(), principal.into()]).await?;
        self.revoke(tx, Some(&tenant.0), &rows, now).await
    }

    /// Those that were revoked long ago go: the tenant's ledger knows of them, and they open nothing either way.
    async fn revoke(&self, mut tx: ControlTxn<'_>, tenant: Option<&[u8]>, rows: &[Row], now: i64) -> Result<u64> {
        for row in rows {
            let (mut credential, mac) = self.verifier.read_with_mac::<CredentialRow>(row)?;
            credential.revoked_at = Some(now);
            tx.credential_revoked(mac, &credential).await?;
        }
        if !rows.is_empty() {
            let old = "DELETE FROM credential WHERE tenant IS NOT DISTINCT FROM $1 AND revoked_at IS NOT NULL AND id NOT IN
                 (SELECT id FROM credential WHERE tenant IS NOT DISTINCT FROM $1 AND revoked_at IS NOT NULL
                  ORDER BY revoked_at DESC, id LIMIT $2) RETURNING *";
            let gone = tx.sql()?.all(old, &[tenant.into(), REVOKED_KEPT_MAX.into()]).await?;
            tx.forget(gone)?;
            tx.commit().await?;
        }
        Ok(rows.len() as u64)
    }

    /// Removes all of a tenant's (erasure); how many.
    pub(crate) async fn credentials_destroy(&self, tenant: TenantId) -> Result<u64> {
        let mut tx = self.begin().await?;
        let gone = tx.sql()?.all("DELETE FROM credential WHERE tenant = $1 RETURNING *", &[(&tenant.0).into()]).await?;
        let gone = tx.forget(gone)?;
        tx.commit().await?;
        Ok(gone)
    }

    /// Notes a use in memory; [`Control::flush`] stores it.
    pub(crate) fn credential_touch(&self, id: &str, now: i64) {
        let mut touched = self.touched.lock();
        if let Some(last) = touched.get_mut(id) {
            *last = now.max(*last);
        } else if touched.len() < TOUCHED_MAX {
            touched.insert(id.to_owned(), now);
        }
    }

    /// Stores noted uses. Call it each few seconds; close does it too.
    pub(crate) async fn flush(&self) -> Result<()> {
        let touched: Vec<(String, i64)> = std::mem::take(&mut *self.touched.lock()).into_iter().collect();
        for batch in touched.chunks(TOUCHED_BATCH) {
            let mut tx = self.begin().await?;
            for (id, at) in batch {
                let update = "UPDATE credential SET last_used_at = $2 WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $2)";
                tx.execute(update, &[id.into(), (*at).into()]).await?;
            }
            tx.commit().await?;
        }
        Ok(())
    }

    // Tickets.

    /// Adds a ticket.
    pub(crate) async fn ticket_insert(&self, row: &TicketRow) -> Result<()> {
        let mut tx = self.begin().await?;
        let params = [
            (&row.id).into(),
            (&row.tenant.0).into(),
            (&row.kind).into(),
            (&row.principal).into(),
            row.created_at.into(),
            row.claimed_by.as_deref().into(),
            row.attempts.into(),
        ];
        let sql = "INSERT INTO ticket (id, tenant, kind, principal, created_at, claimed_by, attempts) VALUES ($1, $2, $3, $4, $5, $6, $7)";
        tx.execute(sql, &params).await?;
        tx.commit().await
    }

    /// Adds a tenant's sweep, or sees to it that the one there is is due no later. Whoever has it does not have it any more: what is
    /// deleted now may be what it has not seen.
    pub(crate) async fn sweep_put(&self, row: &TicketRow) -> Result<()> {
        let mut tx = self.begin().await?;
        let sql = "UPDATE ticket SET created_at = CASE WHEN created_at < $2 THEN created_at ELSE $2 END, claimed_by = NULL WHERE id = $1";
        if tx.execute(sql, &[(&row.id).into(), row.created_at.into()]).await? == 0 {
            let sql = "INSERT INTO ticket (id, tenant, kind, principal, created_at, attempts) VALUES ($1, $2, $3, $4, $5, 0)
                 ON CONFLICT DO NOTHING";
            let params = [(&row.id).into(), (&row.tenant.0).into(), (&row.kind).into(), (&row.principal).into(), row.created_at.into()];
            tx.execute(sql, &params).await?;
        }
        tx.commit().await
    }

    /// Gives a sweep back that this node claimed, to be due at another time, unless another has it by now or it was put anew.
    pub(crate) async fn sweep_postpone(&self, id: &str, by: &str, due: i64) -> Result<()> {
        let mut tx = self.begin().await?;
        let sql = "UPDATE ticket SET claimed_by = NULL, created_at = $3 WHERE id = $1 AND claimed_by = $2";
        tx.execute(sql, &[id.into(), by.into(), due.into()]).await?;
        tx.commit().await
    }

    /// Sweeps that are due and that nobody has, the longest due first.
    pub(crate) async fn sweeps_due(&self, now: i64, limit: u32) -> Result<Vec<TicketRow>> {
        let mut reading = self.db.read().await?;
        let sql = "SELECT * FROM ticket WHERE claimed_by IS NULL AND kind = $1 AND created_at <= $2 ORDER BY created_at, id LIMIT $3";
        reading.sql()?.all(sql, &[SWEEP.into(), now.into(), limit.into()]).await?.iter().map(ticket).collect()
    }

    /// Claims a ticket nobody has, and counts the attempt; `None` if it is gone or somebody has it.
    pub(crate) async fn ticket_claim(&self, id: &str, by: &str) -> Result<Option<TicketRow>> {
        let mut tx = self.begin().await?;
        let sql = "UPDATE ticket SET claimed_by = $2, attempts = attempts + 1 WHERE id = $1 AND claimed_by IS NULL RETURNING *";
        let row = tx.sql()?.optional(sql, &[id.into(), by.into()]).await?;
        let Some(row) = row else { return Ok(None) };
        tx.commit().await?;
        ticket(&row).map(Some)
    }

    /// Gives a ticket back that this node claimed, unless another has it by now.
    pub(crate) async fn ticket_release(&self, id: &str, by: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        tx.execute("UPDATE ticket SET claimed_by = NULL WHERE id = $1 AND claimed_by = $2", &[id.into(), by.into()]).await?;
        tx.commit().await
    }

    /// Gives back what this node had claimed, or with `None` what anybody had: at start, when no such claimer can be alive; how many.
    pub(crate) async fn tickets_release_of(&self, node: Option<&str>) -> Result<u64> {
        let mut tx = self.begin().await?;
        let sql = "UPDATE ticket SET claimed_by = NULL WHERE claimed_by = coalesce($1, claimed_by)";
        let released = tx.execute(sql, &[node.into()]).await?;
        tx.commit().await?;
        Ok(released)
    }

    /// Gives back what nodes had claimed that did not say for `silent` that they live; how many. One process alone has no such.
    #[cfg_attr(not(test), allow(dead_code, reason = "the shared stores are being built"))]
    pub(crate) async fn tickets_release_dead(&self, silent: Duration) -> Result<u64> {
        let mut tx = self.begin().await?;
        if let Sql::Sqlite(_) = tx.sql()? {
            return Ok(0);
        }
        let sql = "UPDATE ticket SET claimed_by = NULL WHERE claimed_by IS NOT NULL AND NOT EXISTS
             (SELECT 1 FROM node WHERE node.name = ticket.claimed_by AND node.seen_at > clock_timestamp() - $1 * interval '1 millisecond')";
        let silent = i64::try_from(silent.as_millis()).map_err(Error::internal)?;
        let released = tx.execute(sql, &[silent.into()]).await?;
        if released > 0 {
            tx.commit().await?;
        }
        Ok(released)
    }

    /// Removes a ticket that this node claimed, unless another has it by now; whether it was there.
    pub(crate) async fn ticket_delete(&self, id: &str, by: &str) -> Result<bool> {
        let mut tx = self.begin().await?;
        let gone = tx.execute("DELETE FROM ticket WHERE id = $1 AND claimed_by = $2", &[id.into(), by.into()]).await?;
        tx.commit().await?;
        Ok(gone > 0)
    }

    /// The oldest ticket of a job nobody has of each tenant, oldest first: however many one tenant queues, it does not hide another's.
    pub(crate) async fn tickets_waiting(&self, limit: u32) -> Result<Vec<TicketRow>> {
        let mut reading = self.db.read().await?;
        let sql = "SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY created_at, id) AS place FROM ticket
             WHERE claimed_by IS NULL AND kind <> $2) AS waiting WHERE place = 1 ORDER BY created_at, id LIMIT $1";
        reading.sql()?.all(sql, &[limit.into(), SWEEP.into()]).await?.iter().map(ticket).collect()
    }

    /// A tenant's tickets by id, whoever has them.
    pub(crate) async fn tickets_of(&self, tenant: TenantId) -> Result<Vec<TicketRow>> {
        let mut reading = self.db.read().await?;
        let sql = "SELECT * FROM ticket WHERE tenant = $1 ORDER BY id";
        reading.sql()?.all(sql, &[(&tenant.0).into()]).await?.iter().map(ticket).collect()
    }

    /// Removes a tenant's tickets; how many.
    pub(crate) async fn tickets_destroy(&self, tenant: TenantId) -> Result<u64> {
        let mut tx = self.begin().await?;
        let gone = tx.execute("DELETE FROM ticket WHERE tenant = $1", &[(&tenant.0).into()]).await?;
        tx.commit().await?;
        Ok(gone)
    }

    // Erasure.

    /// Moves a tenant's erasure on from the state `from`; `None`: there is none yet.
    ///
    /// # Errors
    /// [`Error::Conflict`] if somebody else moved it meanwhile.
    pub(crate) async fn erasure_put(&self, from: Option<&str>, row: &ErasureRow) -> Result<()> {
        let mut tx = self.begin().await?;
        let old = tx.erasure(row.tenant).await?;
        if old.as_ref().map(|(old, _)| old.state.as_str()) != from {
            return Err(Error::Conflict("the erasure was moved on by somebody else".to_owned()));
        }
        tx.erasure_write(old.map(|(_, mac)| mac), row).await?;
        tx.commit().await
    }

    /// A tenant's erasure.
    pub(crate) async fn erasure_of(&self, tenant: TenantId) -> Result<Option<ErasureRow>> {
        let mut reading = self.db.read().await?;
        let row = reading.sql()?.optional("SELECT * FROM erasure WHERE tenant = $1", &[(&tenant.0).into()]).await?;
        row.map(|row| self.verifier.read(&row)).transpose()
    }

    /// All erasures, oldest first.
    pub(crate) async fn erasures(&self) -> Result<Vec<ErasureRow>> {
        let mut reading = self.db.read().await?;
        let rows = reading.sql()?.all("SELECT * FROM erasure ORDER BY requested_at, tenant", &[]).await?;
        rows.iter().map(|row| self.verifier.read(row)).collect()
    }

    /// Stores a certificate (JSON). One that is there stays as it is.
    pub(crate) async fn certificate_put(&self, tenant: TenantId, json: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        let sql = "INSERT INTO certificate (tenant, json) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        tx.execute(sql, &[(&tenant.0).into(), json.into()]).await?;
        tx.commit().await
    }

    /// A stored certificate.
    pub(crate) async fn certificate_of(&self, tenant: TenantId) -> Result<Option<String>> {
        let mut reading = self.db.read().await?;
        let row = reading.sql()?.optional("SELECT json FROM certificate WHERE tenant = $1", &[(&tenant.0).into()]).await?;
        row.map(|row| row.text(0)).transpose()
    }

    // Small values of the service's own.

    /// A small value.
    pub(crate) async fn meta(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let mut reading = self.db.read().await?;
        let row = reading.sql()?.optional("SELECT value FROM meta WHERE name = $1", &[(&meta_name(key)).into()]).await?;
        row.map(|row| row.bytes(0)).transpose()
    }

    /// Small values whose names begin so: (rest of the name, value).
    pub(crate) async fn metas(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mut reading = self.db.read().await?;
        let prefix = meta_name(prefix);
        let pattern = format!("{prefix}%");
        let rows = reading.sql()?.all("SELECT name, value FROM meta WHERE name LIKE $1 ORDER BY name", &[(&pattern).into()]).await?;
        let rest = |name: String| name.strip_prefix(&prefix).unwrap_or_default().to_owned();
        rows.iter().map(|row| Ok((rest(row.text(0)?), row.bytes(1)?))).collect()
    }

    /// Forgets a small value.
    pub(crate) async fn meta_delete(&self, key: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        tx.execute("DELETE FROM meta WHERE name = $1", &[(&meta_name(key)).into()]).await?;
        tx.commit().await
    }

    /// Sets it.
    pub(crate) async fn meta_set(&self, key: &str, value: &[u8]) -> Result<()> {
        let mut tx = self.begin().await?;
        let name = meta_name(key);
        let params = [(&name).into(), value.into()];
        if tx.execute("UPDATE meta SET value = $2 WHERE name = $1", &params).await? == 0 {
            tx.execute("INSERT INTO meta (name, value) VALUES ($1, $2)", &params).await?;
        }
        tx.commit().await
    }
}

/// A stored row together with the tenant it belongs to.
pub(crate) struct Owned<R> {
    tenant: TenantId,
    row: R,
}

fn meta_name(key: &str) -> String {
    format!("meta/{key}")
}

fn ticket(row: &Row) -> Result<TicketRow> {
    Ok(TicketRow {
        id: row.text("id")?,
        tenant: protected::id(row, "tenant")?,
        kind: row.text("kind")?,
        principal: row.text("principal")?,
        created_at: row.int("created_at")?,
        claimed_by: row.opt_text("claimed_by")?,
        attempts: protected::small(row, "attempts")?,
    })
}

#[cfg(test)]
mod tests;
