//! The statements on a tenant's rows. Each takes the connection; whoever calls decides about the transaction.
//!
//! No statement names a tenant: the place does (its file, its schema, or row-level security on shared tables).

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use super::Record;
use super::codec::{Codec, Content};
use super::db::as_i64;
use super::page::{Bounds, Got, Listed, PAGE_BYTES_MAX, value_bytes};
use super::sql::{Param, Row, Sql};
use crate::blobs::{BlobId, BlobRow};
use crate::error::{Error, Result};
use crate::keyring::Keyring;

/// Records in one statement.
const BATCH_RECORDS: usize = 32;
const KEY_BYTES_MAX: usize = 512;
const VALUE_BYTES_MAX: usize = 1024 * 1024;
const FIELDS_MAX: usize = 16;
/// Sorts after every key.
const KEY_END: char = char::MAX;

pub(super) async fn get<R: Record>(db: Sql<'_>, codec: &Codec, key: &str) -> Result<Option<R>> {
    json(db, codec, R::KIND, key).await?.map(|json| parsed(key, &json)).transpose()
}

/// The JSON of a record.
pub(super) async fn json(mut db: Sql<'_>, codec: &Codec, kind: &str, key: &str) -> Result<Option<Vec<u8>>> {
    if key.contains('\0') {
        return Ok(None); // no such key can be stored
    }
    let row = db.optional("SELECT value FROM record WHERE kind = $1 AND key = $2", &[kind.into(), key.into()]).await?;
    row.map(|row| codec.json(kind, key, row.bytes(0)?)).transpose()
}

/// The records with these keys, in their order.
pub(super) async fn get_all<R: Record>(db: Sql<'_>, codec: &Codec, keys: &[String]) -> Result<Vec<Option<R>>> {
    let found = jsons(db, codec, R::KIND, keys).await?;
    keys.iter().map(|key| found.get(key).map(|json| parsed(key, json)).transpose()).collect()
}

/// The JSON of the records with these keys.
pub(super) async fn jsons(mut db: Sql<'_>, codec: &Codec, kind: &str, keys: &[String]) -> Result<HashMap<String, Vec<u8>>> {
    let stored = values(&mut db, kind, keys).await?;
    let json = |(key, value): (String, Vec<u8>)| codec.json(kind, &key, value).map(|json| (key, json));
    stored.into_iter().map(json).collect()
}

/// The records with the first of these keys, as many as a page holds.
pub(super) async fn get_page<R: Record>(mut db: Sql<'_>, codec: &Codec, keys: &[String]) -> Result<Got<R>> {
    let keys = keys.get(..BATCH_RECORDS).unwrap_or(keys);
    let mut params = batch_params(R::KIND, keys);
    params.push(Bounds::new(u32::try_from(BATCH_RECORDS).map_err(Error::internal)?).along_bytes().into());
    let mut found = HashMap::with_capacity(keys.len());
    for row in db.all(&LISTS.keys, &params).await? {
        found.insert(row.text("key")?, (value_bytes(&row)?, row.opt_bytes("value")?));
    }
    let (mut bytes, mut read, mut apart) = (0, Vec::with_capacity(keys.len()), Vec::new());
    for key in keys {
        let value = found.remove(key);
        let value_bytes = value.as_ref().map_or(0, |(bytes, _)| *bytes);
        if !read.is_empty() && bytes + value_bytes > PAGE_BYTES_MAX {
            break;
        }
        bytes += value_bytes;
        if matches!(value, Some((_, None))) {
            apart.push(key.clone());
        }
        read.push((key, value.map(|(_, value)| value)));
    }
    let mut large = values(&mut db, R::KIND, &apart).await?;
    let record = |(key, value): (&String, Option<Option<Vec<u8>>>)| {
        let value = value.and_then(|value| value.or_else(|| large.remove(key)));
        value.map(|value| decode(codec, key, value)).transpose()
    };
    Ok(Got { records: read.into_iter().map(record).collect::<Result<_>>()?, bytes })
}

/// Values by their keys, as they are stored.
async fn values(db: &mut Sql<'_>, kind: &str, keys: &[String]) -> Result<HashMap<String, Vec<u8>>> {
    let mut values = HashMap::with_capacity(keys.len());
    for batch in keys.chunks(BATCH_RECORDS) {
        for row in db.all(&BATCHES.select, &batch_params(kind, batch)).await? {
            values.insert(row.text(0)?, row.bytes(1)?);
        }
    }
    Ok(values)
}

/// A record that the database is to be told of.
pub(super) struct Due {
    pub(super) key: String,
    pub(super) content: Arc<Content>,
    /// By what the database finds the one that it has under this key; none when nobody asked it.
    pub(super) stored_fields: Option<Vec<(String, String)>>,
}

/// Adds or replaces records of a kind, each key once.
pub(super) async fn put_due(mut db: Sql<'_>, codec: &Codec, kind: &str, due: &[Due]) -> Result<()> {
    for batch in batches(due) {
        let values: Vec<Vec<u8>> =
            batch.iter().map(|due| codec.value(kind, &due.key, Content::clone(&due.content))).collect::<Result<_>>()?;
        let mut params: Vec<Param<'_>> = vec![kind.into()];
        params.extend(batch.iter().zip(&values).flat_map(|(due, value)| [Param::from(&due.key), Param::from(value)]));
        let [on_sqlite, on_postgres] = &BATCHES.upsert;
        let upsert = statement(if matches!(db, Sql::Sqlite(_)) { on_sqlite } else { on_postgres }, batch.len())?;
        // Most records are found by their key alone: the answer saves them a statement.
        let had_fields = if batch.iter().all(|due| due.stored_fields.is_some()) {
            db.execute(&upsert.silent, &params).await?;
            false
        } else {
            let counts = db.all(&upsert.telling, &params).await?;
            counts.iter().map(|row| row.int(0)).collect::<Result<Vec<_>>>()?.into_iter().any(|fields| fields > 0)
        };
        for due in batch {
            let fields = &due.content.fields;
            let (had, same) = due.stored_fields.as_ref().map_or((had_fields, false), |stored| (!stored.is_empty(), stored == fields));
            if had && !same {
                fields_delete(&mut db, kind, &due.key).await?;
            }
            if !same {
                fields_insert(&mut db, codec, kind, &due.key, fields).await?;
            }
        }
    }
    Ok(())
}

/// Removes records; what is not there is no error.
pub(super) async fn delete_all(mut db: Sql<'_>, kind: &str, keys: &[String]) -> Result<()> {
    for batch in keys.chunks(BATCH_RECORDS) {
        batch_delete(&mut db, &batch_params(kind, batch)).await?;
    }
    Ok(())
}

/// The kind and the keys of a batch. The statements have one length: the last key fills them up. No key that is stored has a NUL.
fn batch_params<'a>(kind: &'a str, batch: &'a [String]) -> Vec<Param<'a>> {
    let key = |at: usize| batch.get(at).or(batch.last()).filter(|key| !key.contains('\0')).map(String::as_str).unwrap_or_default();
    std::iter::once(kind.into()).chain((0..BATCH_RECORDS).map(|at| Param::from(key(at)))).collect()
}

async fn batch_delete(db: &mut Sql<'_>, params: &[Param<'_>]) -> Result<()> {
    if db.execute(&BATCHES.delete, params).await? > 0 {
        db.execute(&BATCHES.delete_fields, params).await?;
    }
    Ok(())
}

/// In pieces of 32, 16, 8, 4, 2 and 1: a statement for each of these lengths is prepared once.
fn batches<T>(mut all: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let length = 1 << all.len().min(BATCH_RECORDS).checked_ilog2()?;
        let (batch, rest) = all.split_at_checked(length)?;
        all = rest;
        Some(batch)
    })
}

/// The statement for a piece of this length.
fn statement<T>(statements: &[T], length: usize) -> Result<&T> {
    let at = length.checked_ilog2().and_then(|power| statements.get(power as usize));
    at.ok_or_else(|| Error::internal("a batch without a statement"))
}

/// Statements on several records at once.
struct Batches {
    select: String,
    delete: String,
    delete_fields: String,
    /// For 1, 2, 4, … records; on SQLite and on PostgreSQL, which wants to be told which constraint it is about.
    upsert: [Vec<Upsert>; 2],
    /// Entries of the outbox, the same way.
    outbox: Vec<String>,
}

/// Adds or replaces records.
struct Upsert {
    silent: String,
    /// For each record: how many fields it is found by.
    telling: String,
}

static BATCHES: LazyLock<Batches> = LazyLock::new(|| {
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
    let keys = list(&mut (0..BATCH_RECORDS).map(|at| format!("${}", at + 2)));
    let lengths = || (0..=BATCH_RECORDS.ilog2()).map(|power| 1usize << power);
    let upsert = |records: usize, constraint: &str| {
        let values = list(&mut (0..records).map(|at| format!("($1, ${}, ${})", 2 * at + 2, 2 * at + 3)));
        let silent =
            format!("INSERT INTO record (kind, key, value) VALUES {values} ON CONFLICT {constraint} DO UPDATE SET value = excluded.value");
        let telling = format!("{silent} RETURNING (SELECT count(*) FROM field WHERE field.kind = record.kind AND field.key = record.key)");
        Upsert { silent, telling }
    };
    let entries = |entries: usize| {
        let values = list(&mut (0..entries).map(|at| format!("(${}, ${})", 2 * at + 1, 2 * at + 2)));
        format!("INSERT INTO outbox (generation, entry) VALUES {values}")
    };
    Batches {
        select: format!("SELECT key, value FROM record WHERE kind = $1 AND key IN ({keys})"),
        delete: format!("DELETE FROM record WHERE kind = $1 AND key IN ({keys})"),
        delete_fields: format!("DELETE FROM field WHERE kind = $1 AND key IN ({keys})"),
        upsert: ["", "ON CONSTRAINT record_pkey"].map(|constraint| lengths().map(|records| upsert(records, constraint)).collect()),
        outbox: lengths().map(entries).collect(),
    }
});

pub(super) async fn list<R: Record>(
    mut db: Sql<'_>,
    codec: &Codec,
    after: Option<&str>,
    limit: u32,
    prefix: Option<&str>,
) -> Result<Listed<R>> {
    let (after, prefix) = (after.unwrap_or_default(), prefix.unwrap_or_default());
    if after.contains('\0') || prefix.contains('\0') {
        return Err(Error::Invalid("a key has no NUL".to_owned()));
    }
    let (end, bounds) = (format!("{prefix}{KEY_END}"), Bounds::new(limit));
    // One lower bound: of two, SQLite looks one up and reads everything from there to the other.
    let (select, from) = match after >= prefix && !after.is_empty() {
        true => (&LISTS.after, after),
        false => (&LISTS.from, prefix),
    };
    let params = [R::KIND.into(), from.into(), (&end).into(), bounds.rows().into(), bounds.along_bytes().into()];
    let rows = db.all(select, &params).await?;
    page(db, codec, rows, bounds).await
}

pub(super) async fn find<R: Record>(
    mut db: Sql<'_>,
    codec: &Codec,
    field: &'static str,
    value: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<Listed<R>> {
    let (after, bounds) = (after.unwrap_or_default(), Bounds::new(limit));
    if after.contains('\0') || value.contains('\0') {
        return Ok(Listed { records: Vec::new(), next: None, bytes: 0 });
    }
    let value = codec.lookup(R::KIND, field, value);
    let params = [R::KIND.into(), field.into(), (&value).into(), after.into(), bounds.rows().into(), bounds.along_bytes().into()];
    let rows = db.all(&LISTS.found, &params).await?;
    page(db, codec, rows, bounds).await
}

/// Statements that list: the key, the size of the value, and the value itself unless it is large.
struct Lists {
    after: String,
    from: String,
    found: String,
    all: String,
    keys: String,
}

static LISTS: LazyLock<Lists> = LazyLock::new(|| {
    let columns = |along: &str| {
        format!(
            "record.key AS key, CAST(length(record.value) AS BIGINT) AS bytes, \
             CASE WHEN length(record.value) <= {along} THEN record.value END AS value"
        )
    };
    let list =
        |from: &str| format!("SELECT {} FROM record WHERE kind = $1 AND key {from} $2 AND key < $3 ORDER BY key LIMIT $4", columns("$5"));
    Lists {
        after: list(">"),
        from: list(">="),
        found: format!(
            "SELECT {} FROM field JOIN record ON record.kind = field.kind AND record.key = field.key
             WHERE field.kind = $1 AND field.field = $2 AND field.value = $3 AND field.key > $4 ORDER BY field.key LIMIT $5",
            columns("$6")
        ),
        all: format!("SELECT kind, {} FROM record WHERE (kind, key) > ($1, $2) ORDER BY kind, key LIMIT $3", columns("$4")),
        keys: {
            let keys: Vec<String> = (0..BATCH_RECORDS).map(|at| format!("${}", at + 2)).collect();
            let along = format!("${}", BATCH_RECORDS + 2);
            format!("SELECT {} FROM record WHERE kind = $1 AND key IN ({})", columns(&along), keys.join(", "))
        },
    }
});

/// The records of a page.
async fn page<R: Record>(mut db: Sql<'_>, codec: &Codec, mut rows: Vec<Row>, bounds: Bounds) -> Result<Listed<R>> {
    let (more, bytes) = bounds.cut(&mut rows)?;
    let mut read = Vec::with_capacity(rows.len());
    for row in rows {
        read.push((row.text("key")?, row.opt_bytes("value")?));
    }
    let apart: Vec<String> = read.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key.clone()).collect();
    let mut large = values(&mut db, R::KIND, &apart).await?;
    let next = if more { read.last().map(|(key, _)| key.clone()) } else { None };
    let mut records = Vec::with_capacity(read.len());
    for (key, value) in read {
        // Whoever lists sees one moment.
        let value = value.or_else(|| large.remove(&key)).ok_or_else(|| Error::integrity("a record that is listed is not there"))?;
        records.push(decode(codec, &key, value)?);
    }
    Ok(Listed { records, next, bytes })
}

/// How many records have a field of this value.
pub(super) async fn count_found<R: Record>(mut db: Sql<'_>, codec: &Codec, field: &'static str, value: &str) -> Result<u64> {
    if value.contains('\0') {
        return Ok(0);
    }
    let value = codec.lookup(R::KIND, field, value);
    let count = "SELECT count(*) FROM field WHERE kind = $1 AND field = $2 AND value = $3";
    db.one(count, &[R::KIND.into(), field.into(), (&value).into()]).await?.number(0)
}

pub(super) async fn count<R: Record>(mut db: Sql<'_>) -> Result<u64> {
    db.one("SELECT count(*) FROM record WHERE kind = $1", &[R::KIND.into()]).await?.number(0)
}

pub(super) async fn count_under<R: Record>(mut db: Sql<'_>, prefix: &str) -> Result<u64> {
    if prefix.contains('\0') {
        return Ok(0);
    }
    let end = format!("{prefix}{KEY_END}");
    let count = "SELECT count(*) FROM record WHERE kind = $1 AND key >= $2 AND key < $3";
    db.one(count, &[R::KIND.into(), prefix.into(), (&end).into()]).await?.number(0)
}

/// Adds a record unless its key is taken; whether it did.
pub(super) async fn content_insert(mut db: Sql<'_>, codec: &Codec, kind: &str, key: &str, content: &Content) -> Result<bool> {
    let value = codec.value(kind, key, content.clone())?;
    let insert = "INSERT INTO record (kind, key, value) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    if db.execute(insert, &[kind.into(), key.into(), (&value).into()]).await? == 0 {
        return Ok(false);
    }
    fields_insert(&mut db, codec, kind, key, &content.fields).await?;
    Ok(true)
}

/// Removes a record, whatever it is; whether it was there.
pub(super) async fn content_delete(mut db: Sql<'_>, kind: &str, key: &str) -> Result<bool> {
    if key.contains('\0') {
        return Ok(false);
    }
    let delete = "DELETE FROM record WHERE kind = $1 AND key = $2
         RETURNING (SELECT count(*) FROM field WHERE field.kind = $1 AND field.key = $2)";
    let gone = db.optional(delete, &[kind.into(), key.into()]).await?.map(|row| row.int(0)).transpose()?;
    if gone.is_some_and(|fields| fields > 0) {
        fields_delete(&mut db, kind, key).await?;
    }
    Ok(gone.is_some())
}

/// A page of records of all kinds in the order of (kind, key), after the given place, as they are moved from one store to another. None at
/// the end.
pub(super) async fn contents(mut db: Sql<'_>, codec: &Codec, after: (&str, &str), limit: u32) -> Result<Vec<(String, String, Content)>> {
    let bounds = Bounds::new(limit);
    let params = [after.0.into(), after.1.into(), bounds.rows().into(), bounds.along_bytes().into()];
    let mut rows = db.all(&LISTS.all, &params).await?;
    bounds.cut(&mut rows)?;
    let mut contents = Vec::with_capacity(rows.len());
    for row in rows {
        let (kind, key) = (row.text("kind")?, row.text("key")?);
        let value = match row.opt_bytes("value")? {
            Some(value) => value,
            None => db.one("SELECT value FROM record WHERE kind = $1 AND key = $2", &[(&kind).into(), (&key).into()]).await?.bytes(0)?,
        };
        let mut content = codec.content(&kind, &key, value)?;
        if !codec.holds_fields() {
            let select = "SELECT field, value FROM field WHERE kind = $1 AND key = $2 ORDER BY field, value";
            for row in db.all(select, &[(&kind).into(), (&key).into()]).await? {
                content.fields.push((row.text("field")?, row.text("value")?));
            }
        }
        content.fields.sort_unstable();
        contents.push((kind, key, content));
    }
    Ok(contents)
}

/// All durable counters, by name as stored, in order; the generation is not one.
pub(super) async fn counters(mut db: Sql<'_>) -> Result<Vec<(String, i64)>> {
    let rows = db.all("SELECT name, value FROM state WHERE name LIKE 'usage/%' ORDER BY name", &[]).await?;
    rows.iter().map(|row| Ok((row.text("name")?, row.int("value")?))).collect()
}

/// Sets a counter by its stored name.
pub(super) async fn counter_set(mut db: Sql<'_>, name: &str, value: i64) -> Result<()> {
    if db.execute("UPDATE state SET value = $2 WHERE name = $1", &[name.into(), value.into()]).await? == 0 {
        db.execute("INSERT INTO state (name, value) VALUES ($1, $2)", &[name.into(), value.into()]).await?;
    }
    Ok(())
}

/// Forgets a counter by its stored name.
pub(super) async fn counter_delete(mut db: Sql<'_>, name: &str) -> Result<()> {
    db.execute("DELETE FROM state WHERE name = $1 AND name LIKE 'usage/%'", &[name.into()]).await.map(drop)
}

pub(super) async fn usage(mut db: Sql<'_>, name: &str) -> Result<i64> {
    let row = db.optional("SELECT value FROM state WHERE name = $1", &[(&usage_name(name)).into()]).await?;
    row.map_or(Ok(0), |row| row.int(0))
}

pub(super) async fn usage_add(mut db: Sql<'_>, name: &str, delta: i64) -> Result<i64> {
    // In range on both sides: neither below zero, nor beyond what an integer holds.
    let update = "UPDATE state SET value = value + $2 WHERE name = $1 AND value BETWEEN $3 AND $4 RETURNING value";
    let (stored, least, most) = (usage_name(name), delta.min(0).saturating_neg(), i64::MAX - delta.max(0));
    if let Some(row) = db.optional(update, &[(&stored).into(), delta.into(), least.into(), most.into()]).await? {
        return row.int(0);
    }
    let value = usage_sum(name, usage(db.again(), name).await?, delta)?;
    counter_set(db, &stored, value).await?;
    Ok(value)
}

/// What a counter is after an addition: never below zero.
pub(super) fn usage_sum(name: &str, value: i64, delta: i64) -> Result<i64> {
    let sum = value.checked_add(delta).filter(|sum| *sum >= 0);
    sum.ok_or_else(|| Error::internal(format!("the counter `{name}` would leave its range by {delta}")))
}

/// Sets a counter.
pub(super) async fn usage_set(db: Sql<'_>, name: &str, value: i64) -> Result<()> {
    counter_set(db, &usage_name(name), value).await
}

pub(super) async fn blob_row(mut db: Sql<'_>, id: BlobId) -> Result<Option<BlobRow>> {
    let select = "SELECT key_version, wrapped_key, commitment, bytes, sha256 FROM blob WHERE id = $1";
    db.optional(select, &[(&id.0).into()]).await?.as_ref().map(blob).transpose()
}

/// A page of objects in the order of their ids.
pub(super) async fn blob_rows(mut db: Sql<'_>, after: Option<BlobId>, limit: u32) -> Result<Vec<(BlobId, BlobRow)>> {
    let after = after.map_or(Vec::new(), |id| id.0.to_vec());
    let select = "SELECT id, key_version, wrapped_key, commitment, bytes, sha256 FROM blob WHERE id > $1 ORDER BY id LIMIT $2";
    let rows = db.all(select, &[(&after).into(), limit.into()]).await?;
    rows.iter().map(|row| Ok((blob_id(row)?, blob(row)?))).collect()
}

/// Ids of all objects.
pub(super) async fn blob_ids(mut db: Sql<'_>) -> Result<Vec<BlobId>> {
    db.all("SELECT id FROM blob", &[]).await?.iter().map(blob_id).collect()
}

pub(super) async fn blob_insert(mut db: Sql<'_>, id: BlobId, row: &BlobRow) -> Result<()> {
    let insert = "INSERT INTO blob (id, key_version, wrapped_key, commitment, bytes, sha256) VALUES ($1, $2, $3, $4, $5, $6)";
    let (wrapped_key, bytes) = (&row.wrapped_key, as_i64(row.bytes)?);
    let params = [(&id.0).into(), row.key_version.into(), wrapped_key.into(), (&row.commitment).into(), bytes.into(), (&row.sha256).into()];
    db.execute(insert, &params).await.map(drop)
}

/// Adds or replaces what is known about an object.
pub(super) async fn blob_put(mut db: Sql<'_>, id: BlobId, row: &BlobRow) -> Result<()> {
    db.execute("DELETE FROM blob WHERE id = $1", &[(&id.0).into()]).await?;
    blob_insert(db, id, row).await
}

pub(super) async fn blob_delete(mut db: Sql<'_>, id: BlobId) -> Result<Option<u64>> {
    let row = db.optional("DELETE FROM blob WHERE id = $1 RETURNING bytes", &[(&id.0).into()]).await?;
    row.map(|row| row.number(0)).transpose()
}

/// (re-wrapped now, left under older versions).
pub(super) async fn blobs_rewrap(mut db: Sql<'_>, keys: &Keyring, limit: u32) -> Result<(u64, u64)> {
    let select = "SELECT id, key_version, wrapped_key FROM blob WHERE key_version <> $1 LIMIT $2";
    let rows = db.all(select, &[keys.version().into(), limit.into()]).await?;
    let mut changed = 0;
    for row in rows {
        let id = blob_id(&row)?.0;
        let version = u32::try_from(row.number("key_version")?).map_err(Error::integrity)?;
        let key = keys.unwrap_object(version, id, &row.bytes("wrapped_key")?)?;
        let (version, wrapped) = keys.wrap_object(&key, id)?;
        let update = "UPDATE blob SET key_version = $2, wrapped_key = $3 WHERE id = $1";
        db.execute(update, &[(&id).into(), version.into(), (&wrapped).into()]).await?;
        changed += 1;
    }
    let left = db.one("SELECT count(*) FROM blob WHERE key_version <> $1", &[keys.version().into()]).await?.number(0)?;
    Ok((changed, left))
}

/// Entries with their generations.
pub(super) async fn outbox_insert(mut db: Sql<'_>, codec: &Codec, entries: &[(u64, Vec<u8>)]) -> Result<()> {
    for batch in batches(entries) {
        let stored = batch.iter().map(|(generation, entry)| Ok((as_i64(*generation)?, codec.entry(*generation, entry)?)));
        let stored: Vec<(i64, Vec<u8>)> = stored.collect::<Result<_>>()?;
        let params: Vec<Param<'_>> = stored.iter().flat_map(|(generation, entry)| [Param::from(*generation), Param::from(entry)]).collect();
        db.execute(statement(&BATCHES.outbox, batch.len())?, &params).await?;
    }
    Ok(())
}

pub(super) async fn outbox_pending(mut db: Sql<'_>, codec: &Codec, limit: u32) -> Result<Vec<(u64, Vec<u8>)>> {
    let rows = db.all("SELECT generation, entry FROM outbox ORDER BY generation LIMIT $1", &[limit.into()]).await?;
    let opened = |row: &Row| {
        let generation = row.number("generation")?;
        Ok((generation, codec.entry_opened(generation, row.bytes("entry")?)?))
    };
    rows.iter().map(opened).collect()
}

pub(super) async fn outbox_prune(mut db: Sql<'_>, up_to_generation: u64) -> Result<u64> {
    let up_to = i64::try_from(up_to_generation).unwrap_or(i64::MAX);
    db.execute("DELETE FROM outbox WHERE generation <= $1", &[up_to.into()]).await
}

/// The key and what is stored of a record.
pub(super) fn encode<R: Record>(record: &R) -> Result<(String, Content)> {
    let (key, fields) = (record.key(), record.fields());
    let value = serde_json::to_vec(record).map_err(Error::internal)?;
    let fits = |text: &str| text.len() <= KEY_BYTES_MAX && !text.contains([KEY_END, '\0']);
    if key.is_empty() || !fits(&key) {
        return Err(Error::Invalid(format!("the key of a {} has 1 to {KEY_BYTES_MAX} bytes", R::KIND)));
    }
    if value.len() > VALUE_BYTES_MAX || fields.len() > FIELDS_MAX || !fields.iter().all(|(_, value)| fits(value)) {
        return Err(Error::Invalid(format!("the {} `{key}` is too large to be stored", R::KIND)));
    }
    Ok((key, Content { value, fields: sorted(fields) }))
}

/// What a record is found by.
pub(super) fn sorted(fields: Vec<(&'static str, String)>) -> Vec<(String, String)> {
    let mut fields: Vec<_> = fields.into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
    fields.sort_unstable();
    fields.dedup();
    fields
}

/// Whether a record that comes from elsewhere can be stored.
pub(crate) fn content_fits(kind: &str, key: &str, fields: &[(String, String)]) -> bool {
    let fits = |text: &str| text.len() <= KEY_BYTES_MAX && !text.contains([KEY_END, '\0']);
    let word = |text: &str| !text.is_empty() && fits(text);
    word(kind) && word(key) && fields.len() <= FIELDS_MAX && fields.iter().all(|(field, value)| word(field) && fits(value))
}

async fn fields_insert(db: &mut Sql<'_>, codec: &Codec, kind: &str, key: &str, fields: &[(String, String)]) -> Result<()> {
    for (field, value) in fields {
        let value = codec.lookup(kind, field, value);
        let insert = "INSERT INTO field (kind, field, value, key) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
        db.execute(insert, &[kind.into(), field.into(), (&value).into(), key.into()]).await?;
    }
    Ok(())
}

async fn fields_delete(db: &mut Sql<'_>, kind: &str, key: &str) -> Result<()> {
    db.execute("DELETE FROM field WHERE kind = $1 AND key = $2", &[kind.into(), key.into()]).await.map(drop)
}

fn decode<R: Record>(codec: &Codec, key: &str, stored: Vec<u8>) -> Result<R> {
    parsed(key, &codec.json(R::KIND, key, stored)?)
}

/// The record, which is the one of this key: whoever pages through records goes on after the key of the last one.
pub(super) fn parsed<R: Record>(key: &str, json: &[u8]) -> Result<R> {
    let record: R =
        serde_json::from_slice(json).map_err(|error| Error::internal(format!("a stored {} does not parse: {error}", R::KIND)))?;
    if R::KEY_KEPT && record.key() != key {
        return Err(Error::integrity(format!("a stored {} is under the key of another one", R::KIND)));
    }
    Ok(record)
}

fn blob_id(row: &Row) -> Result<BlobId> {
    let id: [u8; 16] = row.bytes("id")?.try_into().map_err(|_| Error::integrity("an object's id is malformed"))?;
    Ok(BlobId(id))
}

fn blob(row: &Row) -> Result<BlobRow> {
    let damaged = || Error::integrity("an object's row is malformed");
    Ok(BlobRow {
        key_version: u32::try_from(row.number("key_version")?).map_err(|_| damaged())?,
        wrapped_key: row.bytes("wrapped_key")?,
        commitment: row.bytes("commitment")?.try_into().map_err(|_| damaged())?,
        bytes: row.number("bytes")?,
        sha256: row.bytes("sha256")?.try_into().map_err(|_| damaged())?,
    })
}

fn usage_name(name: &str) -> String {
    format!("usage/{name}")
}
