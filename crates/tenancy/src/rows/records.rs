//! The statements on a tenant's file. Each takes the connection; whoever calls decides about the transaction.

use sqlx::sqlite::SqliteConnection;
use sqlx::{query, query_as, query_scalar};

use super::Record;
use super::db::as_i64;
use crate::blobs::{BlobId, BlobRow};
use crate::error::{Error, Result};
use crate::keyring::Keyring;

/// Records a listing returns at once.
const LIST_MAX: u32 = 1000;
const KEY_BYTES_MAX: usize = 512;
const VALUE_BYTES_MAX: usize = 1024 * 1024;
const FIELDS_MAX: usize = 16;
/// Sorts after every key.
const KEY_END: char = char::MAX;

pub(super) async fn get<R: Record>(db: &mut SqliteConnection, key: &str) -> Result<Option<R>> {
    let value: Option<Vec<u8>> =
        query_scalar("SELECT value FROM record WHERE kind = $1 AND key = $2").bind(R::KIND).bind(key).fetch_optional(db).await?;
    value.map(|value| decode(&value)).transpose()
}

pub(super) async fn list<R: Record>(db: &mut SqliteConnection, after: Option<&str>, limit: u32, prefix: Option<&str>) -> Result<Vec<R>> {
    let prefix = prefix.unwrap_or_default();
    let values: Vec<Vec<u8>> =
        query_scalar("SELECT value FROM record WHERE kind = $1 AND key > $2 AND key >= $3 AND key < $4 ORDER BY key LIMIT $5")
            .bind(R::KIND)
            .bind(after.unwrap_or_default())
            .bind(prefix)
            .bind(format!("{prefix}{KEY_END}"))
            .bind(limit.min(LIST_MAX))
            .fetch_all(db)
            .await?;
    values.iter().map(|value| decode(value)).collect()
}

pub(super) async fn find<R: Record>(
    db: &mut SqliteConnection,
    field: &'static str,
    value: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<R>> {
    let values: Vec<Vec<u8>> = query_scalar(
        "SELECT record.value FROM field CROSS JOIN record ON record.kind = field.kind AND record.key = field.key
         WHERE field.kind = $1 AND field.field = $2 AND field.value = $3 AND field.key > $4 ORDER BY field.key LIMIT $5",
    )
    .bind(R::KIND)
    .bind(field)
    .bind(value)
    .bind(after.unwrap_or_default())
    .bind(limit.min(LIST_MAX))
    .fetch_all(db)
    .await?;
    values.iter().map(|value| decode(value)).collect()
}

pub(super) async fn count<R: Record>(db: &mut SqliteConnection) -> Result<u64> {
    let count: i64 = query_scalar("SELECT count(*) FROM record WHERE kind = $1").bind(R::KIND).fetch_one(db).await?;
    u64::try_from(count).map_err(Error::internal)
}

pub(super) async fn insert<R: Record>(db: &mut SqliteConnection, record: &R) -> Result<()> {
    let encoded = Encoded::new(record)?;
    let added = query("INSERT INTO record (kind, key, value) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
        .bind(R::KIND)
        .bind(&encoded.key)
        .bind(&encoded.value)
        .execute(&mut *db)
        .await?
        .rows_affected();
    if added == 0 {
        return Err(Error::Conflict(format!("the {} `{}` exists already", R::KIND, encoded.key)));
    }
    fields_insert::<R>(db, &encoded).await
}

pub(super) async fn put<R: Record>(db: &mut SqliteConnection, record: &R) -> Result<()> {
    let encoded = Encoded::new(record)?;
    query("INSERT INTO record (kind, key, value) VALUES ($1, $2, $3) ON CONFLICT DO UPDATE SET value = excluded.value")
        .bind(R::KIND)
        .bind(&encoded.key)
        .bind(&encoded.value)
        .execute(&mut *db)
        .await?;
    fields_delete::<R>(db, &encoded.key).await?;
    fields_insert::<R>(db, &encoded).await
}

pub(super) async fn delete<R: Record>(db: &mut SqliteConnection, key: &str) -> Result<bool> {
    let gone = query("DELETE FROM record WHERE kind = $1 AND key = $2").bind(R::KIND).bind(key).execute(&mut *db).await?.rows_affected();
    if gone > 0 {
        fields_delete::<R>(db, key).await?;
    }
    Ok(gone > 0)
}

pub(super) async fn usage(db: &mut SqliteConnection, name: &str) -> Result<i64> {
    let value: Option<i64> = query_scalar("SELECT value FROM state WHERE name = $1").bind(usage_name(name)).fetch_optional(db).await?;
    Ok(value.unwrap_or(0))
}

pub(super) async fn usage_add(db: &mut SqliteConnection, name: &str, delta: i64) -> Result<i64> {
    let value = usage(db, name).await?.checked_add(delta).filter(|value| *value >= 0);
    let value = value.ok_or_else(|| Error::internal(format!("the counter `{name}` would leave its range by {delta}")))?;
    query("INSERT INTO state (name, value) VALUES ($1, $2) ON CONFLICT DO UPDATE SET value = excluded.value")
        .bind(usage_name(name))
        .bind(value)
        .execute(db)
        .await?;
    Ok(value)
}

pub(super) async fn blob_row(db: &mut SqliteConnection, id: BlobId) -> Result<Option<BlobRow>> {
    type Columns = (u32, Vec<u8>, Vec<u8>, i64, Vec<u8>);
    let row: Option<Columns> = query_as("SELECT key_version, wrapped_key, commitment, bytes, sha256 FROM blob WHERE id = $1")
        .bind(id.0.as_slice())
        .fetch_optional(db)
        .await?;
    let Some((key_version, wrapped_key, commitment, bytes, sha256)) = row else { return Ok(None) };
    let damaged = || Error::integrity("an object's row is malformed");
    Ok(Some(BlobRow {
        key_version,
        wrapped_key,
        commitment: commitment.try_into().map_err(|_| damaged())?,
        bytes: u64::try_from(bytes).map_err(|_| damaged())?,
        sha256: sha256.try_into().map_err(|_| damaged())?,
    }))
}

pub(super) async fn blob_insert(db: &mut SqliteConnection, id: BlobId, row: &BlobRow) -> Result<()> {
    query("INSERT INTO blob (id, key_version, wrapped_key, commitment, bytes, sha256) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(id.0.as_slice())
        .bind(row.key_version)
        .bind(&row.wrapped_key)
        .bind(row.commitment.as_slice())
        .bind(as_i64(row.bytes)?)
        .bind(row.sha256.as_slice())
        .execute(db)
        .await?;
    Ok(())
}

pub(super) async fn blob_delete(db: &mut SqliteConnection, id: BlobId) -> Result<Option<u64>> {
    let bytes: Option<i64> =
        query_scalar("DELETE FROM blob WHERE id = $1 RETURNING bytes").bind(id.0.as_slice()).fetch_optional(db).await?;
    bytes.map(|bytes| u64::try_from(bytes).map_err(Error::internal)).transpose()
}

/// (re-wrapped now, left under older versions).
pub(super) async fn blobs_rewrap(db: &mut SqliteConnection, keys: &Keyring, limit: u32) -> Result<(u64, u64)> {
    let rows: Vec<(Vec<u8>, u32, Vec<u8>)> = query_as("SELECT id, key_version, wrapped_key FROM blob WHERE key_version <> $1 LIMIT $2")
        .bind(keys.version())
        .bind(limit)
        .fetch_all(&mut *db)
        .await?;
    let mut changed = 0;
    for (id, version, wrapped) in rows {
        let id: [u8; 16] = id.try_into().map_err(|_| Error::integrity("an object's id is malformed"))?;
        let key = keys.unwrap_object(version, id, &wrapped)?;
        let (version, wrapped) = keys.wrap_object(&key, id)?;
        query("UPDATE blob SET key_version = $2, wrapped_key = $3 WHERE id = $1")
            .bind(id.as_slice())
            .bind(version)
            .bind(wrapped)
            .execute(&mut *db)
            .await?;
        changed += 1;
    }
    let left: i64 = query_scalar("SELECT count(*) FROM blob WHERE key_version <> $1").bind(keys.version()).fetch_one(db).await?;
    Ok((changed, u64::try_from(left).map_err(Error::internal)?))
}

pub(super) async fn outbox_insert(db: &mut SqliteConnection, generation: u64, entry: &[u8]) -> Result<()> {
    query("INSERT INTO outbox (generation, entry) VALUES ($1, $2)").bind(as_i64(generation)?).bind(entry).execute(db).await?;
    Ok(())
}

pub(super) async fn outbox_pending(db: &mut SqliteConnection, limit: u32) -> Result<Vec<(u64, Vec<u8>)>> {
    let rows: Vec<(i64, Vec<u8>)> =
        query_as("SELECT generation, entry FROM outbox ORDER BY generation LIMIT $1").bind(limit).fetch_all(db).await?;
    rows.into_iter().map(|(generation, entry)| Ok((u64::try_from(generation).map_err(Error::internal)?, entry))).collect()
}

pub(super) async fn outbox_prune(db: &mut SqliteConnection, up_to_generation: u64) -> Result<u64> {
    let up_to = i64::try_from(up_to_generation).unwrap_or(i64::MAX);
    Ok(query("DELETE FROM outbox WHERE generation <= $1").bind(up_to).execute(db).await?.rows_affected())
}

/// A record as it is stored.
struct Encoded {
    key: String,
    value: Vec<u8>,
    fields: Vec<(&'static str, String)>,
}

impl Encoded {
    fn new<R: Record>(record: &R) -> Result<Self> {
        let (key, fields) = (record.key(), record.fields());
        let value = serde_json::to_vec(record).map_err(Error::internal)?;
        let fits = |text: &str| text.len() <= KEY_BYTES_MAX && !text.contains(KEY_END);
        if key.is_empty() || !fits(&key) {
            return Err(Error::Invalid(format!("the key of a {} has 1 to {KEY_BYTES_MAX} bytes", R::KIND)));
        }
        if value.len() > VALUE_BYTES_MAX || fields.len() > FIELDS_MAX || !fields.iter().all(|(_, value)| fits(value)) {
            return Err(Error::Invalid(format!("the {} `{key}` is too large to be stored", R::KIND)));
        }
        Ok(Self { key, value, fields })
    }
}

async fn fields_insert<R: Record>(db: &mut SqliteConnection, encoded: &Encoded) -> Result<()> {
    for (field, value) in &encoded.fields {
        query("INSERT INTO field (kind, field, value, key) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING")
            .bind(R::KIND)
            .bind(*field)
            .bind(value)
            .bind(&encoded.key)
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

async fn fields_delete<R: Record>(db: &mut SqliteConnection, key: &str) -> Result<()> {
    query("DELETE FROM field WHERE kind = $1 AND key = $2").bind(R::KIND).bind(key).execute(db).await?;
    Ok(())
}

fn decode<R: Record>(value: &[u8]) -> Result<R> {
    serde_json::from_slice(value).map_err(|error| Error::internal(format!("a stored {} does not parse: {error}", R::KIND)))
}

fn usage_name(name: &str) -> String {
    format!("usage/{name}")
}
