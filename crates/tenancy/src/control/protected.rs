//! Rows under a MAC, and the running sum of their MACs.
//!
//! The sum (exclusive or) of MACs is a set hash: it can be kept up to date by each write alone, and whoever cannot compute the
//! MACs cannot find another set of rows with the same sum.

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row, query, query_scalar};

use super::{CredentialKind, CredentialRow, ErasureRow, Owned, TenantRow, TenantState};
use crate::error::{Error, Result};
use crate::keyring::{DataKeyRow, KeyRows, KeyState, Purpose, TenantKeyRow};
use crate::name::TenantId;
use crate::rows::db::{Db, Txn, as_i64};
use crate::seal::{Key, mac, same};

/// HMAC-SHA256 of a row.
pub(super) type Mac = [u8; 32];

/// A row whose every field that matters is under its MAC.
pub(super) trait Protected: Sized {
    const TABLE: &'static str;
    /// All fields, each as bytes; the order is part of the format.
    fn parts(&self) -> Vec<Vec<u8>>;
    fn from_row(row: &SqliteRow) -> Result<Self>;
}

/// Checks rows against their MACs.
pub(super) struct Verifier(Key);

impl Verifier {
    pub(super) fn new(control: &Key) -> Self {
        Self(control.derive("control rows", &[]))
    }

    /// The row, if its MAC holds.
    pub(super) fn read<P: Protected>(&self, row: &SqliteRow) -> Result<P> {
        Ok(self.read_with_mac(row)?.0)
    }

    /// The row and its MAC, if it holds.
    pub(super) fn read_with_mac<P: Protected>(&self, row: &SqliteRow) -> Result<(P, Mac)> {
        let parsed = P::from_row(row)?;
        let stored: Vec<u8> = row.try_get("mac")?;
        let expected = self.mac(&parsed, row.try_get("seq")?);
        if !same(&expected, &stored) {
            return Err(Error::integrity(format!(
                "a row of `{}` in the control database was changed; restore it from your backup",
                P::TABLE
            )));
        }
        Ok((parsed, expected))
    }

    /// Reads every protected row and compares the sum.
    pub(super) async fn verify_all(&self, db: &mut SqliteConnection) -> Result<()> {
        let mut sum = stored_sum(db).await?;
        self.take_off::<TenantRow>(&mut sum, query("SELECT * FROM tenant").fetch_all(&mut *db).await?)?;
        self.take_off::<Owned<TenantKeyRow>>(&mut sum, query("SELECT * FROM tenant_key").fetch_all(&mut *db).await?)?;
        self.take_off::<Owned<DataKeyRow>>(&mut sum, query("SELECT * FROM data_key").fetch_all(&mut *db).await?)?;
        self.take_off::<CredentialRow>(&mut sum, query("SELECT * FROM credential").fetch_all(&mut *db).await?)?;
        self.take_off::<ErasureRow>(&mut sum, query("SELECT * FROM erasure").fetch_all(&mut *db).await?)?;
        if sum == Mac::default() {
            return Ok(());
        }
        Err(Error::integrity("the rows of the control database do not add up: some were removed or put back; restore the newest copy"))
    }

    fn take_off<P: Protected>(&self, sum: &mut Mac, rows: Vec<SqliteRow>) -> Result<()> {
        for row in &rows {
            add(sum, &self.read_with_mac::<P>(row)?.1);
        }
        Ok(())
    }

    fn mac<P: Protected>(&self, row: &P, seq: i64) -> Mac {
        let parts = row.parts();
        let (table, seq) = (P::TABLE.as_bytes(), seq.to_be_bytes());
        let all: Vec<&[u8]> = [table, &seq].into_iter().chain(parts.iter().map(Vec::as_slice)).collect();
        mac(&self.0, &all)
    }
}

/// A transaction that keeps the sum of the MACs.
pub(super) struct ControlTxn<'a> {
    txn: Txn<'a>,
    verifier: &'a Verifier,
    sum: Mac,
    seq: i64,
}

impl<'a> ControlTxn<'a> {
    pub(super) async fn begin(db: &'a Db, verifier: &'a Verifier) -> Result<Self> {
        let mut txn = db.begin().await?;
        let seq = as_i64(txn.generation())?;
        let sum = stored_sum(txn.connection()?).await?;
        Ok(Self { txn, verifier, sum, seq })
    }

    /// The connection, for tables without MACs.
    pub(super) fn db(&mut self) -> Result<&mut SqliteConnection> {
        self.txn.connection()
    }

    pub(super) async fn commit(mut self) -> Result<()> {
        query("UPDATE state SET value = $1 WHERE name = 'digest'").bind(self.sum.as_slice()).execute(self.txn.connection()?).await?;
        self.txn.commit().await.map(drop)
    }

    pub(super) async fn tenant(&mut self, id: TenantId) -> Result<(TenantRow, Mac)> {
        let row = query("SELECT * FROM tenant WHERE id = $1").bind(id.0.as_slice()).fetch_optional(self.db()?).await?;
        self.verifier.read_with_mac(&row.ok_or(Error::NotFound("tenant"))?)
    }

    /// Adds the row, or replaces the one with this MAC.
    pub(super) async fn tenant_write(&mut self, old: Option<Mac>, row: &TenantRow) -> Result<()> {
        let (seq, mac) = self.count(old, row);
        query(
            "INSERT INTO tenant (id, name, state, created_at, slot, limits, placement, epoch_generation, seq, mac)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id) DO UPDATE SET
             name = $2, state = $3, limits = $6, placement = $7, epoch_generation = $8, seq = $9, mac = $10",
        )
        .bind(row.id.0.as_slice())
        .bind(row.name.as_str())
        .bind(row.state.name())
        .bind(row.created_at)
        .bind(as_i64(row.slot)?)
        .bind(&row.limits)
        .bind(&row.placement)
        .bind(as_i64(row.epoch_generation)?)
        .bind(seq)
        .bind(mac.as_slice())
        .execute(self.db()?)
        .await?;
        Ok(())
    }

    pub(super) async fn credential_write(&mut self, old: Option<Mac>, row: &CredentialRow) -> Result<()> {
        let (seq, mac) = self.count(old, row);
        query(
            "INSERT INTO credential (id, kind, tenant, principal, secret_mac, scopes, expires_at, created_at, created_by,
             revoked_at, last_used_at, name, seq, mac) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
             ON CONFLICT (id) DO UPDATE SET revoked_at = $10, seq = $13, mac = $14",
        )
        .bind(&row.id)
        .bind(row.kind.name())
        .bind(row.tenant.map(|tenant| tenant.0.to_vec()))
        .bind(&row.principal)
        .bind(row.secret_mac.as_slice())
        .bind(&row.scopes)
        .bind(row.expires_at)
        .bind(row.created_at)
        .bind(&row.created_by)
        .bind(row.revoked_at)
        .bind(row.last_used_at)
        .bind(&row.name)
        .bind(seq)
        .bind(mac.as_slice())
        .execute(self.db()?)
        .await?;
        Ok(())
    }

    pub(super) async fn keys_write(&mut self, tenant: TenantId, keys: &KeyRows) -> Result<()> {
        for row in &keys.tenant {
            let (seq, mac) = self.count(None, &Owned { tenant, row: row.clone() });
            query(
                "INSERT INTO tenant_key (tenant, version, epoch, wrapped, state, created_at, seq, mac)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            )
            .bind(tenant.0.as_slice())
            .bind(row.version)
            .bind(as_i64(row.epoch)?)
            .bind(&row.wrapped)
            .bind(row.state.name())
            .bind(row.created_at)
            .bind(seq)
            .bind(mac.as_slice())
            .execute(self.db()?)
            .await?;
        }
        for row in &keys.data {
            let (seq, mac) = self.count(None, &Owned { tenant, row: row.clone() });
            query("INSERT INTO data_key (tenant, purpose, n, version, wrapped, seq, mac) VALUES ($1, $2, $3, $4, $5, $6, $7)")
                .bind(tenant.0.as_slice())
                .bind(row.purpose.name())
                .bind(row.n)
                .bind(row.version)
                .bind(&row.wrapped)
                .bind(seq)
                .bind(mac.as_slice())
                .execute(self.db()?)
                .await?;
        }
        Ok(())
    }

    /// How many rows there were.
    pub(super) async fn keys_delete(&mut self, tenant: TenantId) -> Result<u64> {
        let versions =
            query("DELETE FROM tenant_key WHERE tenant = $1 RETURNING *").bind(tenant.0.as_slice()).fetch_all(self.db()?).await?;
        let data = query("DELETE FROM data_key WHERE tenant = $1 RETURNING *").bind(tenant.0.as_slice()).fetch_all(self.db()?).await?;
        self.verifier.take_off::<Owned<TenantKeyRow>>(&mut self.sum, versions)?;
        let gone = data.len() as u64;
        self.verifier.take_off::<Owned<DataKeyRow>>(&mut self.sum, data)?;
        Ok(gone)
    }

    pub(super) async fn tenant_key_rewrapped(&mut self, old: Mac, key: &Owned<TenantKeyRow>) -> Result<()> {
        let (seq, mac) = self.count(Some(old), key);
        query("UPDATE tenant_key SET epoch = $3, wrapped = $4, seq = $5, mac = $6 WHERE tenant = $1 AND version = $2")
            .bind(key.tenant.0.as_slice())
            .bind(key.row.version)
            .bind(as_i64(key.row.epoch)?)
            .bind(&key.row.wrapped)
            .bind(seq)
            .bind(mac.as_slice())
            .execute(self.db()?)
            .await?;
        Ok(())
    }

    pub(super) async fn erasure_write(&mut self, row: &ErasureRow) -> Result<()> {
        let old = query("SELECT * FROM erasure WHERE tenant = $1").bind(row.tenant.0.as_slice()).fetch_optional(self.db()?).await?;
        let old = old.map(|old| self.verifier.read_with_mac::<ErasureRow>(&old)).transpose()?.map(|(_, mac)| mac);
        let (seq, mac) = self.count(old, row);
        query(
            "INSERT INTO erasure (tenant, state, requested_at, requested_by, updated_at, detail, seq, mac)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (tenant) DO UPDATE SET
             state = $2, requested_at = $3, requested_by = $4, updated_at = $5, detail = $6, seq = $7, mac = $8",
        )
        .bind(row.tenant.0.as_slice())
        .bind(&row.state)
        .bind(row.requested_at)
        .bind(&row.requested_by)
        .bind(row.updated_at)
        .bind(&row.detail)
        .bind(seq)
        .bind(mac.as_slice())
        .execute(self.db()?)
        .await?;
        Ok(())
    }

    /// Takes deleted credentials off the sum; how many.
    pub(super) fn forget(&mut self, credentials: Vec<SqliteRow>) -> Result<u64> {
        let gone = credentials.len() as u64;
        self.verifier.take_off::<CredentialRow>(&mut self.sum, credentials)?;
        Ok(gone)
    }

    /// `seq` and MAC of a row about to be written; the sum changes with it.
    fn count<P: Protected>(&mut self, old: Option<Mac>, new: &P) -> (i64, Mac) {
        let mac = self.verifier.mac(new, self.seq);
        add(&mut self.sum, &mac);
        if let Some(old) = old {
            add(&mut self.sum, &old);
        }
        (self.seq, mac)
    }
}

async fn stored_sum(db: &mut SqliteConnection) -> Result<Mac> {
    let sum: Vec<u8> = query_scalar("SELECT value FROM state WHERE name = 'digest'").fetch_one(db).await?;
    sum.try_into().map_err(|_| Error::integrity("the sum of the control rows is malformed"))
}

/// Adding twice is taking off.
fn add(sum: &mut Mac, mac: &Mac) {
    for (byte, other) in sum.iter_mut().zip(mac) {
        *byte ^= other;
    }
}

/// A 16-byte id in a column.
pub(super) fn id(row: &SqliteRow, column: &'static str) -> Result<TenantId> {
    bytes(row, column).map(TenantId)
}

fn bytes<const N: usize>(row: &SqliteRow, column: &'static str) -> Result<[u8; N]> {
    row.try_get::<Vec<u8>, _>(column)?.try_into().map_err(|_| malformed(column))
}

fn number(row: &SqliteRow, column: &'static str) -> Result<u64> {
    u64::try_from(row.try_get::<i64, _>(column)?).map_err(|_| malformed(column))
}

fn word<T>(row: &SqliteRow, column: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
    parse(row.try_get(column)?).ok_or_else(|| malformed(column))
}

fn malformed(column: &str) -> Error {
    Error::integrity(format!("`{column}` of a control row is malformed"))
}

/// Absent and zero differ.
fn optional(number: Option<i64>) -> Vec<u8> {
    number.map(|number| number.to_be_bytes().to_vec()).unwrap_or_default()
}

impl Protected for TenantRow {
    const TABLE: &'static str = "tenant";

    fn parts(&self) -> Vec<Vec<u8>> {
        vec![
            self.id.0.to_vec(),
            self.name.as_str().into(),
            self.state.name().into(),
            self.created_at.to_be_bytes().to_vec(),
            self.slot.to_be_bytes().to_vec(),
            self.limits.as_str().into(),
            self.placement.as_str().into(),
            self.epoch_generation.to_be_bytes().to_vec(),
        ]
    }

    fn from_row(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            id: id(row, "id")?,
            name: word(row, "name", |name| name.parse().ok())?,
            state: word(row, "state", TenantState::parse)?,
            created_at: row.try_get("created_at")?,
            slot: number(row, "slot")?,
            limits: row.try_get("limits")?,
            placement: row.try_get("placement")?,
            epoch_generation: number(row, "epoch_generation")?,
        })
    }
}

impl Protected for CredentialRow {
    const TABLE: &'static str = "credential";

    fn parts(&self) -> Vec<Vec<u8>> {
        vec![
            self.id.as_str().into(),
            self.kind.name().into(),
            self.tenant.map(|tenant| tenant.0.to_vec()).unwrap_or_default(),
            self.principal.as_str().into(),
            self.secret_mac.to_vec(),
            self.scopes.as_str().into(),
            optional(self.expires_at),
            self.created_at.to_be_bytes().to_vec(),
            self.created_by.as_str().into(),
            optional(self.revoked_at),
            self.name.as_str().into(),
        ]
    }

    fn from_row(row: &SqliteRow) -> Result<Self> {
        let tenant: Option<Vec<u8>> = row.try_get("tenant")?;
        let tenant = tenant.map(|tenant| tenant.try_into().map(TenantId).map_err(|_| malformed("tenant"))).transpose()?;
        Ok(Self {
            id: row.try_get("id")?,
            kind: word(row, "kind", CredentialKind::parse)?,
            tenant,
            principal: row.try_get("principal")?,
            secret_mac: bytes(row, "secret_mac")?,
            scopes: row.try_get("scopes")?,
            expires_at: row.try_get("expires_at")?,
            created_at: row.try_get("created_at")?,
            created_by: row.try_get("created_by")?,
            revoked_at: row.try_get("revoked_at")?,
            last_used_at: row.try_get("last_used_at")?,
            name: row.try_get("name")?,
        })
    }
}

impl Protected for Owned<TenantKeyRow> {
    const TABLE: &'static str = "tenant_key";

    fn parts(&self) -> Vec<Vec<u8>> {
        vec![
            self.tenant.0.to_vec(),
            self.row.version.to_be_bytes().to_vec(),
            self.row.epoch.to_be_bytes().to_vec(),
            self.row.wrapped.clone(),
            self.row.state.name().into(),
            self.row.created_at.to_be_bytes().to_vec(),
        ]
    }

    fn from_row(row: &SqliteRow) -> Result<Self> {
        let key = TenantKeyRow {
            version: row.try_get("version")?,
            epoch: number(row, "epoch")?,
            wrapped: row.try_get("wrapped")?,
            state: word(row, "state", KeyState::parse)?,
            created_at: row.try_get("created_at")?,
        };
        Ok(Self { tenant: id(row, "tenant")?, row: key })
    }
}

impl Protected for Owned<DataKeyRow> {
    const TABLE: &'static str = "data_key";

    fn parts(&self) -> Vec<Vec<u8>> {
        vec![
            self.tenant.0.to_vec(),
            self.row.purpose.name().into(),
            self.row.n.to_be_bytes().to_vec(),
            self.row.version.to_be_bytes().to_vec(),
            self.row.wrapped.clone(),
        ]
    }

    fn from_row(row: &SqliteRow) -> Result<Self> {
        let key = DataKeyRow {
            purpose: word(row, "purpose", Purpose::parse)?,
            n: row.try_get("n")?,
            version: row.try_get("version")?,
            wrapped: row.try_get("wrapped")?,
        };
        Ok(Self { tenant: id(row, "tenant")?, row: key })
    }
}

impl Protected for ErasureRow {
    const TABLE: &'static str = "erasure";

    fn parts(&self) -> Vec<Vec<u8>> {
        vec![
            self.tenant.0.to_vec(),
            self.state.as_str().into(),
            self.requested_at.to_be_bytes().to_vec(),
            self.requested_by.as_str().into(),
            self.updated_at.to_be_bytes().to_vec(),
            self.detail.as_str().into(),
        ]
    }

    fn from_row(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            tenant: id(row, "tenant")?,
            state: row.try_get("state")?,
            requested_at: row.try_get("requested_at")?,
            requested_by: row.try_get("requested_by")?,
            updated_at: row.try_get("updated_at")?,
            detail: row.try_get("detail")?,
        })
    }
}
