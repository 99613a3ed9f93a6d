//! Rows under a MAC, and the running sum of their MACs.
//!
//! The sum (exclusive or) of MACs is a set hash: it can be kept up to date by each write alone, and whoever cannot compute the
//! MACs cannot find another set of rows with the same sum.

use super::{CredentialKind, CredentialRow, ErasureRow, Owned, TenantRow, TenantState};
use crate::error::{Error, Result};
use crate::keyring::{DataKeyRow, KeyRows, KeyState, Purpose, TenantKeyRow};
use crate::name::TenantId;
use crate::rows::db::{Db, Txn, as_i64};
use crate::rows::sql::{Param, Row, Sql};
use crate::seal::{Key, mac, same};

/// HMAC-SHA256 of a row.
pub(super) type Mac = [u8; 32];

/// A row whose every field that matters is under its MAC.
pub(super) trait Protected: Sized {
    const TABLE: &'static str;
    /// All fields, each as bytes; the order is part of the format.
    fn parts(&self) -> Vec<Vec<u8>>;
    fn from_row(row: &Row) -> Result<Self>;
}

/// Checks rows against their MACs.
pub(super) struct Verifier(Key);

impl Verifier {
    pub(super) fn new(control: &Key) -> Self {
        Self(control.derive("control rows", &[]))
    }

    /// The row, if its MAC holds.
    pub(super) fn read<P: Protected>(&self, row: &Row) -> Result<P> {
        Ok(self.read_with_mac(row)?.0)
    }

    /// The row and its MAC, if it holds.
    pub(super) fn read_with_mac<P: Protected>(&self, row: &Row) -> Result<(P, Mac)> {
        let parsed = P::from_row(row)?;
        let stored = row.bytes("mac")?;
        let expected = self.mac(&parsed, row.int("seq")?);
        if !same(&expected, &stored) {
            return Err(Error::integrity(format!(
                "a row of `{}` in the control database was changed; restore it from your backup",
                P::TABLE
            )));
        }
        Ok((parsed, expected))
    }

    /// Reads every protected row and compares the sum.
    pub(super) async fn verify_all(&self, mut sql: Sql<'_>) -> Result<()> {
        let mut sum = stored_sum(&mut sql).await?;
        self.take_off::<TenantRow>(&mut sum, sql.all("SELECT * FROM tenant", &[]).await?)?;
        self.take_off::<Owned<TenantKeyRow>>(&mut sum, sql.all("SELECT * FROM tenant_key", &[]).await?)?;
        self.take_off::<Owned<DataKeyRow>>(&mut sum, sql.all("SELECT * FROM data_key", &[]).await?)?;
        self.take_off::<CredentialRow>(&mut sum, sql.all("SELECT * FROM credential", &[]).await?)?;
        self.take_off::<ErasureRow>(&mut sum, sql.all("SELECT * FROM erasure", &[]).await?)?;
        if sum == Mac::default() {
            return Ok(());
        }
        Err(Error::integrity("the rows of the control database do not add up: some were removed or put back; restore the newest copy"))
    }

    fn take_off<P: Protected>(&self, sum: &mut Mac, rows: Vec<Row>) -> Result<()> {
        for row in &rows {
            add(sum, &self.read_with_mac::<P>(row)?.1);
        }
        Ok(())
    }

    /// The MAC of a row written in generation `seq`.
    pub(super) fn mac<P: Protected>(&self, row: &P, seq: i64) -> Mac {
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
    sum_stored: Mac,
    seq: i64,
}

impl<'a> ControlTxn<'a> {
    pub(super) async fn begin(db: &'a Db, verifier: &'a Verifier) -> Result<Self> {
        let mut txn = db.begin().await?;
        let seq = as_i64(txn.generation())?;
        // Read after the generation is locked: no other node changes it before this transaction ends.
        let sum = stored_sum(&mut txn.sql()?).await?;
        Ok(Self { txn, verifier, sum, sum_stored: sum, seq })
    }

    /// The connection.
    pub(super) fn sql(&mut self) -> Result<Sql<'_>> {
        self.txn.sql()
    }

    /// Runs a statement on a table without MACs; how many rows it changed.
    pub(super) async fn execute(&mut self, sql: &'static str, params: &[Param<'_>]) -> Result<u64> {
        self.sql()?.execute(sql, params).await
    }

    pub(super) async fn commit(mut self) -> Result<()> {
        let sum = self.sum;
        if sum != self.sum_stored {
            there(self.execute("UPDATE meta SET value = $1 WHERE name = 'digest'", &[(&sum).into()]).await?)?;
        }
        self.txn.commit().await.map(drop)
    }

    /// Refuses unless the tenant's lease still has this number. From here on nobody takes it before this transaction ends.
    pub(super) async fn at_home(&mut self, tenant: TenantId, fence: Option<u64>) -> Result<()> {
        let Some(fence) = fence else { return Ok(()) };
        let select = "SELECT 1 FROM lease WHERE tenant = $1 AND fence = $2 AND node IS NOT NULL FOR SHARE";
        match self.sql()?.optional(select, &[(&tenant.0).into(), as_i64(fence)?.into()]).await? {
            Some(_) => Ok(()),
            None => Err(Error::Conflict("another node took the tenant over meanwhile: try again".to_owned())),
        }
    }

    pub(super) async fn tenant(&mut self, id: TenantId) -> Result<(TenantRow, Mac)> {
        let row = self.sql()?.optional("SELECT * FROM tenant WHERE id = $1", &[(&id.0).into()]).await?;
        self.verifier.read_with_mac(&row.ok_or(Error::NotFound("tenant"))?)
    }

    /// Adds the row; whether its name was free.
    pub(super) async fn tenant_add(&mut self, row: &TenantRow) -> Result<bool> {
        let (seq, mac) = self.count(None, row);
        let params = [
            (&row.id.0).into(),
            row.name.as_str().into(),
            row.state.name().into(),
            row.created_at.into(),
            as_i64(row.slot)?.into(),
            (&row.limits).into(),
            (&row.placement).into(),
            as_i64(row.epoch_generation)?.into(),
            seq.into(),
            (&mac).into(),
        ];
        let added = self.execute(
            "INSERT INTO tenant (id, name, state, created_at, slot, limits, placement, epoch_generation, seq, mac)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
            &params,
        );
        Ok(added.await? > 0)
    }

    /// Replaces the row that has this MAC.
    pub(super) async fn tenant_replace(&mut self, old: Mac, row: &TenantRow) -> Result<()> {
        let (seq, mac) = self.count(Some(old), row);
        let params = [
            (&row.id.0).into(),
            row.name.as_str().into(),
            row.state.name().into(),
            (&row.limits).into(),
            (&row.placement).into(),
            as_i64(row.epoch_generation)?.into(),
            seq.into(),
            (&mac).into(),
        ];
        let replaced = self.execute(
            "UPDATE tenant SET name = $2, state = $3, limits = $4, placement = $5, epoch_generation = $6, seq = $7, mac = $8 WHERE id = $1",
            &params,
        );
        there(replaced.await?)
    }

    /// Adds the row; whether its id was free.
    pub(super) async fn credential_add(&mut self, row: &CredentialRow) -> Result<bool> {
        let (seq, mac) = self.count(None, row);
        let params = [
            (&row.id).into(),
            row.kind.name().into(),
            row.tenant.as_ref().map(|tenant| tenant.0.as_slice()).into(),
            (&row.principal).into(),
            (&row.secret_mac).into(),
            (&row.scopes).into(),
            row.expires_at.into(),
            row.created_at.into(),
            (&row.created_by).into(),
            row.revoked_at.into(),
            row.last_used_at.into(),
            (&row.name).into(),
            seq.into(),
            (&mac).into(),
        ];
        let added = self.execute(
            "INSERT INTO credential (id, kind, tenant, principal, secret_mac, scopes, expires_at, created_at, created_by,
             revoked_at, last_used_at, name, seq, mac) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
             ON CONFLICT DO NOTHING",
            &params,
        );
        Ok(added.await? > 0)
    }

    /// Revokes the credential that has this MAC.
    pub(super) async fn credential_revoked(&mut self, old: Mac, row: &CredentialRow) -> Result<()> {
        let (seq, mac) = self.count(Some(old), row);
        let params = [(&row.id).into(), row.revoked_at.into(), seq.into(), (&mac).into()];
        there(self.execute("UPDATE credential SET revoked_at = $2, seq = $3, mac = $4 WHERE id = $1", &params).await?)
    }

    /// From now on the newest epoch of the root key; refuses an older one than that.
    pub(super) async fn epoch_begin(&mut self, epoch: u64) -> Result<()> {
        self.epoch_is_newest(epoch).await?;
        there(self.execute("UPDATE state SET value = $1 WHERE name = 'epoch'", &[as_i64(epoch)?.into()]).await?)
    }

    async fn epoch_is_newest(&mut self, epoch: u64) -> Result<()> {
        let newest = self.sql()?.one("SELECT value FROM state WHERE name = 'epoch'", &[]).await?.number(0)?;
        if epoch >= newest { Ok(()) } else { Err(Error::Unavailable("the root key has changed; try again")) }
    }

    /// Adds keys; refuses one that is wrapped under an epoch about to be destroyed, or destroyed.
    pub(super) async fn keys_write(&mut self, tenant: TenantId, keys: &KeyRows) -> Result<()> {
        if let Some(oldest) = keys.tenant.iter().filter(|row| row.state != KeyState::Retired).map(|row| row.epoch).min() {
            self.epoch_is_newest(oldest).await?;
        }
        for row in &keys.tenant {
            let (seq, mac) = self.count(None, &Owned { tenant, row: row.clone() });
            let params = [
                (&tenant.0).into(),
                row.version.into(),
                as_i64(row.epoch)?.into(),
                (&row.wrapped).into(),
                row.state.name().into(),
                row.created_at.into(),
                seq.into(),
                (&mac).into(),
            ];
            self.execute(
                "INSERT INTO tenant_key (tenant, version, epoch, wrapped, state, created_at, seq, mac)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                &params,
            )
            .await?;
        }
        for row in &keys.data {
            let (seq, mac) = self.count(None, &Owned { tenant, row: row.clone() });
            let params = [
                (&tenant.0).into(),
                row.purpose.name().into(),
                row.n.into(),
                row.version.into(),
                (&row.wrapped).into(),
                seq.into(),
                (&mac).into(),
            ];
            self.execute(
                "INSERT INTO data_key (tenant, purpose, n, version, wrapped, seq, mac) VALUES ($1, $2, $3, $4, $5, $6, $7)",
                &params,
            )
            .await?;
        }
        Ok(())
    }

    /// How many data keys there were.
    pub(super) async fn keys_delete(&mut self, tenant: TenantId) -> Result<u64> {
        let versions = self.sql()?.all("DELETE FROM tenant_key WHERE tenant = $1 RETURNING *", &[(&tenant.0).into()]).await?;
        let data = self.sql()?.all("DELETE FROM data_key WHERE tenant = $1 RETURNING *", &[(&tenant.0).into()]).await?;
        self.verifier.take_off::<Owned<TenantKeyRow>>(&mut self.sum, versions)?;
        let gone = data.len() as u64;
        self.verifier.take_off::<Owned<DataKeyRow>>(&mut self.sum, data)?;
        Ok(gone)
    }

    pub(super) async fn tenant_key_rewrapped(&mut self, old: Mac, key: &Owned<TenantKeyRow>) -> Result<()> {
        let (seq, mac) = self.count(Some(old), key);
        let params = [
            (&key.tenant.0).into(),
            key.row.version.into(),
            as_i64(key.row.epoch)?.into(),
            (&key.row.wrapped).into(),
            seq.into(),
            (&mac).into(),
        ];
        let rewrapped = self
            .execute("UPDATE tenant_key SET epoch = $3, wrapped = $4, seq = $5, mac = $6 WHERE tenant = $1 AND version = $2", &params)
            .await?;
        there(rewrapped)
    }

    /// A tenant's erasure and its MAC.
    pub(super) async fn erasure(&mut self, tenant: TenantId) -> Result<Option<(ErasureRow, Mac)>> {
        let row = self.sql()?.optional("SELECT * FROM erasure WHERE tenant = $1", &[(&tenant.0).into()]).await?;
        row.map(|row| self.verifier.read_with_mac(&row)).transpose()
    }

    /// Adds the row, or replaces the one that has this MAC.
    pub(super) async fn erasure_write(&mut self, old: Option<Mac>, row: &ErasureRow) -> Result<()> {
        let (seq, mac) = self.count(old, row);
        let params = [
            (&row.tenant.0).into(),
            (&row.state).into(),
            row.requested_at.into(),
            (&row.requested_by).into(),
            row.updated_at.into(),
            (&row.detail).into(),
            seq.into(),
            (&mac).into(),
        ];
        let written = match old {
            None => {
                "INSERT INTO erasure (tenant, state, requested_at, requested_by, updated_at, detail, seq, mac)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
            }
            Some(_) => {
                "UPDATE erasure SET state = $2, requested_at = $3, requested_by = $4, updated_at = $5, detail = $6, seq = $7,
                        mac = $8 WHERE tenant = $1"
            }
        };
        there(self.execute(written, &params).await?)
    }

    /// Takes deleted credentials off the sum; how many.
    pub(super) fn forget(&mut self, credentials: Vec<Row>) -> Result<u64> {
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

async fn stored_sum(sql: &mut Sql<'_>) -> Result<Mac> {
    let sum = sql.one("SELECT value FROM meta WHERE name = 'digest'", &[]).await?.bytes(0)?;
    sum.try_into().map_err(|_| Error::integrity("the sum of the control rows is malformed"))
}

/// A row that was read under the lock is still there.
fn there(changed: u64) -> Result<()> {
    if changed == 1 { Ok(()) } else { Err(Error::integrity("a control row went away while it was changed")) }
}

/// Adding twice is taking off.
pub(super) fn add(sum: &mut Mac, mac: &Mac) {
    for (byte, other) in sum.iter_mut().zip(mac) {
        *byte ^= other;
    }
}

/// A 16-byte id in a column.
pub(super) fn id(row: &Row, column: &'static str) -> Result<TenantId> {
    bytes(row, column).map(TenantId)
}

fn bytes<const N: usize>(row: &Row, column: &'static str) -> Result<[u8; N]> {
    row.bytes(column)?.try_into().map_err(|_| malformed(column))
}

fn number(row: &Row, column: &'static str) -> Result<u64> {
    u64::try_from(row.int(column)?).map_err(|_| malformed(column))
}

pub(super) fn small(row: &Row, column: &'static str) -> Result<u32> {
    u32::try_from(row.int(column)?).map_err(|_| malformed(column))
}

fn word<T>(row: &Row, column: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
    parse(&row.text(column)?).ok_or_else(|| malformed(column))
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

    fn from_row(row: &Row) -> Result<Self> {
        Ok(Self {
            id: id(row, "id")?,
            name: word(row, "name", |name| name.parse().ok())?,
            state: word(row, "state", TenantState::parse)?,
            created_at: row.int("created_at")?,
            slot: number(row, "slot")?,
            limits: row.text("limits")?,
            placement: row.text("placement")?,
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

    fn from_row(row: &Row) -> Result<Self> {
        let tenant = row.opt_bytes("tenant")?.map(|tenant| tenant.try_into().map(TenantId).map_err(|_| malformed("tenant"))).transpose()?;
        Ok(Self {
            id: row.text("id")?,
            kind: word(row, "kind", CredentialKind::parse)?,
            tenant,
            principal: row.text("principal")?,
            secret_mac: bytes(row, "secret_mac")?,
            scopes: row.text("scopes")?,
            expires_at: row.opt_int("expires_at")?,
            created_at: row.int("created_at")?,
            created_by: row.text("created_by")?,
            revoked_at: row.opt_int("revoked_at")?,
            last_used_at: row.opt_int("last_used_at")?,
            name: row.text("name")?,
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

    fn from_row(row: &Row) -> Result<Self> {
        let key = TenantKeyRow {
            version: small(row, "version")?,
            epoch: number(row, "epoch")?,
            wrapped: row.bytes("wrapped")?,
            state: word(row, "state", KeyState::parse)?,
            created_at: row.int("created_at")?,
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

    fn from_row(row: &Row) -> Result<Self> {
        let key = DataKeyRow {
            purpose: word(row, "purpose", Purpose::parse)?,
            n: small(row, "n")?,
            version: small(row, "version")?,
            wrapped: row.bytes("wrapped")?,
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

    fn from_row(row: &Row) -> Result<Self> {
        Ok(Self {
            tenant: id(row, "tenant")?,
            state: row.text("state")?,
            requested_at: row.int("requested_at")?,
            requested_by: row.text("requested_by")?,
            updated_at: row.int("updated_at")?,
            detail: row.text("detail")?,
        })
    }
}
