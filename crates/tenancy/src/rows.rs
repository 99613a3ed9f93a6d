//! A tenant's structured records: in its own encrypted file, or in its own place on a PostgreSQL server.
//!
//! The kernel does not know what a data set or a model is. A [`Record`] is JSON under a kind and a key, with a few fields to
//! find it by. [`Rows`] reads; [`Tx`] reads and writes, and what it commits is durable together with its ledger entry: the
//! entry lies in the *outbox* of the same file until the ledger has it, so that neither can exist without the other.
//!
//! ```text
//! let mut tx = store.tx().await?;
//! tx.insert(&dataset).await?;             // Conflict if the key is taken
//! tx.attach(sealed_blob).await?;          // the object exists from the commit on
//! tx.usage_add("objects", 1).await?;
//! let generation = tx.commit_with(Some(entry)).await?;
//! ```
//! One transaction at a time; in its own file a tenant has one connection. Whoever holds a [`Tx`] holds all of the tenant's rows:
//! be short, and do not ask [`Rows`] inside.

mod codec;
pub(crate) mod contents;
pub(crate) mod db;
mod page;
pub(crate) mod postgres;
mod records;
pub(crate) mod sql;
pub(crate) mod sqlite;
mod staged;

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::anchor::AnchorSlot;
use crate::blobs::{BlobId, BlobReader, BlobRow, BlobWriter, Objects, SealedBlob};
use crate::error::{Error, Result};
use crate::freeze::Freeze;
use crate::keyring::Keyring;
use crate::ledger::{Entry, Ledger, SharedCopy};
use codec::{Codec, Content};
use db::{CLOSED, Closing, Db, LOCK_WAIT_MAX, PostgresDb, Reading, Txn};
pub use page::{Got, Listed, PAGE_BYTES_MAX};
use parking_lot::RwLock;
use postgres::PgRows;
pub(crate) use records::content_fits;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sql::Sql;
use sqlite::{Expect, Migrations, SqliteDb};
use staged::Staged;
use tokio::sync::{RwLockReadGuard, RwLockWriteGuard};

const ROWS: &str = "rows.db";
/// All that a tenant's own file consists of.
pub(crate) const ROWS_FILES: [&str; 4] = ["rows.db", "rows.db-wal", "rows.db-shm", "rows.db-journal"];
const BLOBS: &str = "blobs";
const MIGRATIONS: Migrations = &[include_str!("../migrations/rows/sqlite/0001.sql")];

/// A kind of record: stored as JSON under a key, found by its fields.
pub trait Record: Serialize + DeserializeOwned + Send + Sync {
    /// Name of the kind: one word, never changed.
    const KIND: &'static str;
    /// Unique among the kind; listings are ordered by it, as bytes. 1 to 512 bytes.
    fn key(&self) -> String;
    /// Whether [`Record::key`] says the same of the record as it is read again. It does not where it is made of floats: what JSON keeps of
    /// one may differ in its last bit.
    const KEY_KEPT: bool = true;
    /// Secondary look-ups: (field, value), for [`Rows::find`]. At most 16, of at most 512 bytes each.
    fn fields(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// Where a tenant's rows are.
#[derive(Clone)]
pub(crate) enum Place {
    /// `rows.db` in its folder.
    File,
    /// On a PostgreSQL server; with several nodes under the lease of this number.
    Postgres(PgRows, Option<u64>),
}

/// Whether a copy of a tenant's own file opens with this key.
pub(crate) async fn file_opens(path: &Path, key: &crate::seal::Key, anchor: AnchorSlot) -> Result<()> {
    SqliteDb::open(path, key, anchor, MIGRATIONS, Expect::Present).await?.close(Closing::Clean).await
}

impl Place {
    /// Whether it outlives this node, for another one to open.
    pub(crate) fn is_shared(&self) -> bool {
        self.ledger_copy().is_some()
    }

    /// Where the shared copy of its ledger is.
    pub(crate) fn ledger_copy(&self) -> Option<SharedCopy<'_>> {
        match self {
            Self::File => None,
            Self::Postgres(rows, _) => Some(SharedCopy::Place(rows)),
        }
    }

    /// Appends to the ledger of a tenant that nobody has open, and signs. The checkpoint.
    pub(crate) async fn ledger_append(&self, ledger: &Arc<Ledger>, entry: &Entry) -> Result<String> {
        let copy = self.ledger_copy();
        if let Some(copy) = copy {
            copy.catch_up(ledger).await?;
        }
        ledger.append(entry)?;
        if let Some(copy) = copy {
            copy.ship(ledger).await?;
        }
        ledger.checkpoint()
    }
}

/// One tenant's open rows and blobs.
pub(crate) struct Store {
    home: Home,
    keys: RwLock<Arc<Keyring>>,
    /// Also a download that is on its way ends with it.
    freeze: Arc<Freeze>,
    /// Commits with objects whose outcome was not seen: files may lie around that no row knows.
    unseen: AtomicU64,
    /// Held by each writer, and alone by who moves the rows to another place.
    gate: tokio::sync::RwLock<()>,
}

/// Where rows and objects are. Once they moved, where they moved to.
pub(crate) struct Home {
    db: Db,
    codec: Codec,
    objects: Objects,
    next: OnceLock<Box<Home>>,
}

impl Home {
    fn new(db: Db, codec: Codec, objects: Objects) -> Self {
        Self { db, codec, objects, next: OnceLock::new() }
    }

    /// Where the shared copy of the ledger is.
    pub(crate) fn ledger_copy(&self) -> Option<SharedCopy<'_>> {
        Some(&self.db).filter(|db| db.is_shared()).map(SharedCopy::Rows)
    }
}

impl Store {
    /// As [`Store::create_at`], with the objects in the folder.
    #[cfg(test)]
    pub(crate) async fn create(dir: &Path, place: Place, keys: Arc<Keyring>, anchor: AnchorSlot) -> Result<Self> {
        Self::create_at(dir, place, None, keys, anchor).await
    }

    /// Makes `dir` (which must not exist) with an empty `rows.db` and `blobs/`; a bucket, and a place on a server, were made before.
    pub(crate) async fn create_at(
        dir: &Path,
        place: Place,
        bucket: Option<Objects>,
        keys: Arc<Keyring>,
        anchor: AnchorSlot,
    ) -> Result<Self> {
        DirBuilder::new().mode(0o700).create(dir)?;
        let objects = match bucket {
            Some(bucket) => bucket,
            None => Objects::create_folder(&dir.join(BLOBS))?,
        };
        let (db, codec) = match place {
            Place::File => {
                let db = SqliteDb::open(&dir.join(ROWS), keys.rows_key(), anchor, MIGRATIONS, Expect::Absent).await?;
                (Db::Sqlite(db), Codec::Plain)
            }
            Place::Postgres(rows, fence) => (Db::Postgres(PostgresDb::open(rows, anchor, fence).await?), Codec::sealed(&keys)),
        };
        File::open(dir)?.sync_all()?;
        Ok(Self::new(objects, keys, db, codec))
    }

    /// As [`Store::open_at`], with the objects in the folder.
    #[cfg(test)]
    pub(crate) async fn open(dir: &Path, place: Place, keys: Arc<Keyring>, anchor: AnchorSlot) -> Result<Self> {
        Self::open_at(dir, place, None, keys, anchor).await
    }

    /// Opens what [`Store::create_at`] made.
    ///
    /// # Errors
    /// [`Error::Integrity`] if the rows do not decrypt, are older than their anchor, or were changed while they were closed.
    pub(crate) async fn open_at(dir: &Path, place: Place, bucket: Option<Objects>, keys: Arc<Keyring>, anchor: AnchorSlot) -> Result<Self> {
        let (clean, db, codec) = match place {
            Place::File => {
                let clean = anchor.now().clean.is_some();
                let db = SqliteDb::open(&dir.join(ROWS), keys.rows_key(), anchor, MIGRATIONS, Expect::Present).await?;
                (clean, Db::Sqlite(db), Codec::Plain)
            }
            Place::Postgres(rows, fence) => {
                let db = PostgresDb::open(rows, anchor, fence).await?;
                // This node may see the tenant for the first time.
                DirBuilder::new().recursive(true).mode(0o700).create(if bucket.is_some() { dir.to_owned() } else { dir.join(BLOBS) })?;
                (db.was_clean(), Db::Postgres(db), Codec::sealed(&keys))
            }
        };
        let objects = bucket.unwrap_or_else(|| Objects::folder(&dir.join(BLOBS)));
        let store = Self::new(objects, keys, db, codec);
        if !clean {
            match store.sweep().await {
                // Rows can be served without. It is swept when the store closes.
                Err(Error::Unavailable(_)) => store.unseen.store(1, Ordering::Release),
                swept => swept?,
            }
        }
        Ok(store)
    }

    fn new(objects: Objects, keys: Arc<Keyring>, db: Db, codec: Codec) -> Self {
        Self {
            home: Home::new(db, codec, objects),
            keys: RwLock::new(keys),
            freeze: Arc::default(),
            unseen: AtomicU64::new(0),
            gate: tokio::sync::RwLock::new(()),
        }
    }

    /// Where rows and objects are now.
    fn home(&self) -> &Home {
        let mut home = &self.home;
        while let Some(next) = home.next.get() {
            home = next;
        }
        home
    }

    async fn reading(&self) -> Result<(Reading<'_>, &Home)> {
        loop {
            let home = self.home();
            match home.db.read().await {
                // They moved while we waited.
                Err(Error::Unavailable(reason)) if reason == CLOSED && !std::ptr::eq(home, self.home()) => {}
                reading => return Ok((reading?, home)),
            }
        }
    }

    /// Lets a writer in; not while the rows move.
    async fn writing(&self) -> Result<RwLockReadGuard<'_, ()>> {
        tokio::time::timeout(LOCK_WAIT_MAX, self.gate.read()).await.map_err(|_| Error::Unavailable("the tenant's rows are busy"))
    }

    /// Waits for the writers there are, and holds up all others.
    pub(crate) async fn pause(&self) -> Result<RwLockWriteGuard<'_, ()>> {
        tokio::time::timeout(LOCK_WAIT_MAX, self.gate.write()).await.map_err(|_| Error::Unavailable("the tenant's rows are busy"))
    }

    /// Checkpoints, closes and leaves the hash of the file in the anchor. Everything asked later is refused.
    pub(crate) async fn close(&self) -> Result<()> {
        let litters = self.unseen.swap(0, Ordering::AcqRel) > 0 || self.home().objects.littered();
        let swept = if litters { self.sweep().await } else { Ok(()) };
        if let Err(Error::Unavailable(reason)) = &swept {
            tracing::warn!(reason, "objects that no row knows are removed when the tenant is next opened");
            return self.home().db.close(Closing::Litter).await;
        }
        swept?;
        self.home().db.close(Closing::Clean).await
    }

    /// Reads.
    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows { store: self }
    }

    /// Begins a transaction; waits for the one before it.
    pub(crate) async fn tx(&self) -> Result<Tx<'_>> {
        let gate = self.writing().await?;
        let home = self.home();
        let txn = home.db.begin().await?;
        Ok(Tx {
            store: self,
            home,
            txn,
            staged: Staged::default(),
            entries: Vec::new(),
            part: None,
            attached: Vec::new(),
            detached: Vec::new(),
            _gate: gate,
        })
    }

    /// Begins a blob.
    pub(crate) fn blob_writer(&self) -> Result<BlobWriter> {
        BlobWriter::create(&self.home().objects, self.keys.read().tenant())
    }

    /// Whether anything is given or taken, also by open objects.
    pub(crate) fn freeze(&self) -> &Freeze {
        &self.freeze
    }

    /// Where the shared copy of the ledger is; none of a tenant that lives on this node alone.
    pub(crate) fn ledger_copy(&self) -> Option<SharedCopy<'_>> {
        self.home().ledger_copy()
    }

    /// The anchor, for the ledger's size.
    pub(crate) fn anchor(&self) -> Result<&AnchorSlot> {
        Ok(self.home().db.anchor())
    }

    /// The keys in use.
    pub(crate) fn keyring(&self) -> Result<Arc<Keyring>> {
        Ok(Arc::clone(&self.keys.read()))
    }

    /// After a rotation.
    pub(crate) fn keyring_replace(&self, keys: Arc<Keyring>) {
        *self.keys.write() = keys;
    }

    /// Re-wraps at most `limit` object keys under the active version; returns how many are left under older ones.
    pub(crate) async fn blobs_rewrap(&self, limit: u32) -> Result<u64> {
        let _gate = self.writing().await?;
        let mut txn = self.home().db.begin().await?;
        let keys = self.keyring()?;
        let result = records::blobs_rewrap(txn.enter()?, &keys, limit).await;
        let (changed, left) = txn.leave(result)?;
        if changed > 0 {
            txn.commit().await?;
        }
        Ok(left)
    }

    /// Committed entries the ledger may not have yet: (generation, entry), oldest first.
    pub(crate) async fn outbox_pending(&self, limit: u32) -> Result<Vec<(u64, Vec<u8>)>> {
        let (mut reading, home) = self.reading().await?;
        records::outbox_pending(reading.sql()?, &home.codec, limit).await
    }

    /// As [`Store::outbox_pending`], all of them, once every commit that is still on its way to a server has come to its end.
    pub(crate) async fn outbox_settled(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        let home = self.home();
        let mut txn = home.db.begin().await?;
        records::outbox_pending(txn.sql()?, &home.codec, u32::MAX).await
    }

    /// Forgets entries up to and with `generation`, once the ledger has them durably.
    pub(crate) async fn outbox_prune(&self, up_to_generation: u64) -> Result<()> {
        let _gate = self.writing().await?;
        let mut txn = self.home().db.begin().await?;
        let result = records::outbox_prune(txn.enter()?, up_to_generation).await;
        if txn.leave(result)? > 0 {
            txn.commit().await?;
        }
        Ok(())
    }

    /// Removes objects that no row knows: left-overs of a crash, or of a commit whose outcome nobody saw. That one may still be on its way
    /// to a server, with its objects: whoever holds the rows waited for it, and nobody commits another one meanwhile.
    async fn sweep(&self) -> Result<()> {
        let home = self.home();
        let mut txn = home.db.begin().await?;
        let known: HashSet<BlobId> = records::blob_ids(txn.sql()?).await?.into_iter().collect();
        home.objects.sweep(known).await?;
        drop(txn);
        Ok(())
    }
}

/// Reads of one tenant's records.
pub struct Rows<'p> {
    store: &'p Store,
}

/// One moment of one tenant's records. Whoever holds it has the only connection to a tenant's own file: be short, and do not ask [`Rows`]
/// meanwhile.
pub struct Snapshot<'p> {
    reading: Reading<'p>,
    home: &'p Home,
}

impl Snapshot<'_> {
    /// As [`Rows::get`].
    pub async fn get<R: Record>(&mut self, key: &str) -> Result<Option<R>> {
        records::get(self.reading.sql()?, &self.home.codec, key).await
    }

    /// As [`Rows::list`].
    pub async fn list<R: Record>(&mut self, after: Option<&str>, limit: u32, prefix: Option<&str>) -> Result<Listed<R>> {
        records::list(self.reading.sql()?, &self.home.codec, after, limit, prefix).await
    }
}

impl<'p> Rows<'p> {
    /// This moment, for several reads that belong together: on a server they share the way there.
    ///
    /// # Errors
    /// [`Error::Internal`] when the store fails, [`Error::Unavailable`] when it is busy for too long; so for all methods here.
    pub async fn snapshot(&self) -> Result<Snapshot<'p>> {
        let (reading, home) = self.store.reading().await?;
        Ok(Snapshot { reading, home })
    }

    /// The record with this key.
    pub async fn get<R: Record>(&self, key: &str) -> Result<Option<R>> {
        self.snapshot().await?.get(key).await
    }

    /// The records with these keys (each given once), in their order, in few statements.
    pub async fn get_all<R: Record>(&self, keys: &[String]) -> Result<Vec<Option<R>>> {
        let (mut reading, home) = self.store.reading().await?;
        records::get_all(reading.sql()?, &home.codec, keys).await
    }

    /// The records with the first of these keys, in their order: as many as a page holds, see [`Rows::list`].
    pub async fn get_page<R: Record>(&self, keys: &[String]) -> Result<Got<R>> {
        let (mut reading, home) = self.store.reading().await?;
        records::get_page(reading.sql()?, &home.codec, keys).await
    }

    /// As [`Rows::get`].
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is absent.
    pub async fn require<R: Record>(&self, key: &str) -> Result<R> {
        self.get(key).await?.ok_or(Error::NotFound(R::KIND))
    }

    /// At most `limit` (and 1,000, and 4 MiB of) records after the key `after`, ordered by key; only those whose key begins with `prefix`.
    pub async fn list<R: Record>(&self, after: Option<&str>, limit: u32, prefix: Option<&str>) -> Result<Listed<R>> {
        self.snapshot().await?.list(after, limit, prefix).await
    }

    /// As [`Rows::list`], of the records whose field has this value.
    pub async fn find<R: Record>(&self, field: &'static str, value: &str, after: Option<&str>, limit: u32) -> Result<Listed<R>> {
        let (mut reading, home) = self.store.reading().await?;
        records::find(reading.sql()?, &home.codec, field, value, after, limit).await
    }

    /// How many records have a field of this value.
    pub async fn count_found<R: Record>(&self, field: &'static str, value: &str) -> Result<u64> {
        let (mut reading, home) = self.store.reading().await?;
        records::count_found::<R>(reading.sql()?, &home.codec, field, value).await
    }

    /// How many records of the kind there are.
    pub async fn count<R: Record>(&self) -> Result<u64> {
        let (mut reading, _) = self.store.reading().await?;
        records::count::<R>(reading.sql()?).await
    }

    /// A durable counter; 0 if it never was added to.
    pub async fn usage(&self, name: &str) -> Result<i64> {
        let (mut reading, _) = self.store.reading().await?;
        records::usage(reading.sql()?, name).await
    }

    /// Opens a blob.
    ///
    /// # Errors
    /// [`Error::NotFound`] if no row knows it; [`Error::Integrity`] if its file is gone, cut or not the one that was written.
    pub async fn blob(&self, id: BlobId) -> Result<BlobReader> {
        let (mut reading, home) = self.store.reading().await?;
        let row = records::blob_row(reading.sql()?, id).await?.ok_or(Error::NotFound("object"))?;
        drop(reading);
        let keys = self.store.keyring()?;
        BlobReader::open(&home.objects, id, &row, &keys, Arc::clone(&self.store.freeze)).await
    }
}

/// One transaction on one tenant's records. Dropped without commit, nothing of it has happened.
///
/// An operation whose future is dropped half-way breaks the transaction: it can then only be dropped.
pub struct Tx<'p> {
    store: &'p Store,
    home: &'p Home,
    txn: Txn<'p>,
    /// What it knows, and what the database is still to be told.
    staged: Staged,
    /// Ledger entries with their generations, to be told with the last one.
    entries: Vec<(u64, Vec<u8>)>,
    part: Option<Savepoint>,
    attached: Vec<SealedBlob>,
    detached: Vec<BlobId>,
    _gate: RwLockReadGuard<'p, ()>,
}

/// Where a part of a transaction began that may have to be taken back alone.
struct Savepoint {
    attached: usize,
    detached: usize,
    /// Whether the database knows of it: it is told before the first change of the part that it hears of.
    told: bool,
}

impl Tx<'_> {
    /// As [`Rows::get`].
    pub async fn get<R: Record>(&mut self, key: &str) -> Result<Option<R>> {
        if let Some(json) = self.staged.json(R::KIND, key) {
            return json.map(|json| records::parsed(key, json)).transpose();
        }
        let result = records::json(self.txn.enter()?, &self.home.codec, R::KIND, key).await;
        let json = self.txn.leave(result)?;
        self.learn(key, json)
    }

    /// As [`Rows::get_all`].
    pub async fn get_all<R: Record>(&mut self, keys: &[String]) -> Result<Vec<Option<R>>> {
        let (mut records, mut unknown) = (Vec::with_capacity(keys.len()), Vec::new());
        for (at, key) in keys.iter().enumerate() {
            match self.staged.json(R::KIND, key) {
                Some(json) => records.push(json.map(|json| records::parsed(key, json)).transpose()?),
                None => {
                    unknown.push((at, key.clone()));
                    records.push(None);
                }
            }
        }
        let (places, unknown): (Vec<usize>, Vec<String>) = unknown.into_iter().unzip();
        let result = records::jsons(self.txn.enter()?, &self.home.codec, R::KIND, &unknown).await;
        let found = self.txn.leave(result)?;
        for (at, key) in places.into_iter().zip(&unknown) {
            let record = self.learn(key, found.get(key).cloned())?;
            if let Some(place) = records.get_mut(at) {
                *place = record;
            }
        }
        Ok(records)
    }

    /// As [`Rows::get_page`].
    pub async fn get_page<R: Record>(&mut self, keys: &[String]) -> Result<Got<R>> {
        self.flush().await?;
        let result = records::get_page(self.txn.enter()?, &self.home.codec, keys).await;
        self.txn.leave(result)
    }

    /// As [`Rows::require`].
    pub async fn require<R: Record>(&mut self, key: &str) -> Result<R> {
        self.get(key).await?.ok_or(Error::NotFound(R::KIND))
    }

    /// As [`Rows::list`].
    pub async fn list<R: Record>(&mut self, after: Option<&str>, limit: u32, prefix: Option<&str>) -> Result<Listed<R>> {
        self.flush().await?;
        let result = records::list(self.txn.enter()?, &self.home.codec, after, limit, prefix).await;
        self.txn.leave(result)
    }

    /// As [`Rows::find`].
    pub async fn find<R: Record>(&mut self, field: &'static str, value: &str, after: Option<&str>, limit: u32) -> Result<Listed<R>> {
        self.flush().await?;
        let result = records::find(self.txn.enter()?, &self.home.codec, field, value, after, limit).await;
        self.txn.leave(result)
    }

    /// As [`Rows::count`].
    pub async fn count<R: Record>(&mut self) -> Result<u64> {
        self.flush().await?;
        let result = records::count::<R>(self.txn.enter()?).await;
        self.txn.leave(result)
    }

    /// How many records of the kind have keys that begin with `prefix`.
    pub async fn count_under<R: Record>(&mut self, prefix: &str) -> Result<u64> {
        self.flush().await?;
        let result = records::count_under::<R>(self.txn.enter()?, prefix).await;
        self.txn.leave(result)
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the key is taken; the transaction may go on.
    pub async fn insert<R: Record>(&mut self, record: &R) -> Result<()> {
        let (key, content) = records::encode(record)?;
        let known = self.staged.json(R::KIND, &key).map(|json| json.is_some());
        if known == Some(false) {
            return self.stage(R::KIND, key, content).await;
        }
        if known.is_none() {
            let home = self.home;
            let result = records::content_insert(self.changing().await?, &home.codec, R::KIND, &key, &content).await;
            if self.txn.leave(result)? {
                self.staged.learn(R::KIND, &key, Some(content));
                return Ok(());
            }
        }
        Err(Error::Conflict(format!("the {} `{key}` exists already", R::KIND)))
    }

    /// Adds or replaces a record.
    pub async fn put<R: Record>(&mut self, record: &R) -> Result<()> {
        let (key, content) = records::encode(record)?;
        self.stage(R::KIND, key, content).await
    }

    async fn stage(&mut self, kind: &'static str, key: String, content: Content) -> Result<()> {
        self.txn.whole()?;
        self.staged.put(kind, key, content);
        if self.staged.is_full() { self.flush().await } else { Ok(()) }
    }

    /// Adds or replaces records of one kind, in few statements; of two with the same key the later one stays.
    pub async fn put_all<R: Record>(&mut self, records: &[R]) -> Result<()> {
        for record in records {
            self.put(record).await?;
        }
        Ok(())
    }

    /// Removes a record; whether it was there.
    pub async fn delete<R: Record>(&mut self, key: &str) -> Result<bool> {
        let result = records::content_delete(self.changing().await?, R::KIND, key).await;
        let was_there = self.txn.leave(result)?;
        self.staged.learn(R::KIND, key, None);
        Ok(was_there)
    }

    /// Removes records of one kind, in few statements; what is not there is no error.
    pub async fn delete_all<R: Record>(&mut self, keys: &[String]) -> Result<()> {
        let result = records::delete_all(self.changing().await?, R::KIND, keys).await;
        self.txn.leave(result)?;
        keys.iter().for_each(|key| self.staged.learn(R::KIND, key, None));
        Ok(())
    }

    fn learn<R: Record>(&mut self, key: &str, json: Option<Vec<u8>>) -> Result<Option<R>> {
        let record = json.as_deref().map(|json| records::parsed::<R>(key, json)).transpose()?;
        let fields = record.as_ref().map(|record| records::sorted(record.fields())).unwrap_or_default();
        self.staged.learn(R::KIND, key, json.map(|value| Content { value, fields }));
        Ok(record)
    }

    /// The database, which is asked about more than one record: it has to know them all.
    async fn flush(&mut self) -> Result<()> {
        if self.staged.is_due() {
            self.changing().await?;
            self.txn.leave(Ok(()))?;
        }
        Ok(())
    }

    /// The database, for a change: it knows what came before.
    async fn changing(&mut self) -> Result<Sql<'_>> {
        if let Some(part) = self.part.as_mut().filter(|part| !part.told) {
            let result = self.txn.enter()?.execute("SAVEPOINT part", &[]).await.map(drop);
            self.txn.leave(result)?;
            part.told = true;
        }
        if self.staged.is_due() {
            let result = self.staged.flush(self.txn.enter()?, &self.home.codec).await;
            self.txn.leave(result)?;
        }
        self.txn.enter()
    }

    /// Takes a written blob over; it exists from the commit on.
    pub async fn attach(&mut self, blob: SealedBlob) -> Result<BlobId> {
        if !blob.objects().same_place(&self.home.objects) {
            // The tenant moved while it was written.
            blob.objects().carry(blob.id(), blob.bytes(), &self.home.objects).await?;
        }
        let keys = self.store.keyring()?;
        let (key_version, wrapped_key) = keys.wrap_object(blob.key(), blob.id().0)?;
        let row = BlobRow { key_version, wrapped_key, commitment: blob.commitment(), bytes: blob.bytes(), sha256: blob.sha256() };
        let result = records::blob_insert(self.changing().await?, blob.id(), &row).await;
        self.txn.leave(result)?;
        let id = blob.id();
        self.attached.push(blob);
        Ok(id)
    }

    /// Removes a blob: its key now, its bytes after the commit. Returns its size in bytes, or `None` if it was not there.
    pub async fn detach(&mut self, id: BlobId) -> Result<Option<u64>> {
        let result = records::blob_delete(self.changing().await?, id).await;
        let bytes = self.txn.leave(result)?;
        if bytes.is_some() {
            self.detached.push(id);
        }
        Ok(bytes)
    }

    /// As [`Rows::usage`].
    pub async fn usage(&mut self, name: &str) -> Result<i64> {
        if let Some(value) = self.staged.counter(name) {
            return Ok(value);
        }
        let result = records::usage(self.txn.enter()?, name).await;
        let value = self.txn.leave(result)?;
        self.staged.learn_counter(name, value);
        Ok(value)
    }

    /// Adds to a durable counter; returns the new value.
    ///
    /// # Errors
    /// [`Error::Internal`] if it would fall below zero: somebody gave back more than was taken.
    pub async fn usage_add(&mut self, name: &str, delta: i64) -> Result<i64> {
        if let Some(value) = self.staged.counter(name) {
            self.txn.enter()?;
            let value = self.txn.leave(records::usage_sum(name, value, delta))?;
            self.staged.put_counter(name, value);
            return Ok(value);
        }
        let result = records::usage_add(self.changing().await?, name, delta).await;
        let value = self.txn.leave(result)?;
        self.staged.learn_counter(name, value);
        Ok(value)
    }

    /// The generation this transaction will have once committed: nobody else can take it meanwhile.
    pub(crate) fn generation(&self) -> u64 {
        self.txn.generation()
    }

    /// Forgets entries the ledger has durably, as part of this transaction.
    pub(crate) async fn outbox_prune(&mut self, up_to_generation: u64) -> Result<()> {
        let result = records::outbox_prune(self.changing().await?, up_to_generation).await;
        self.txn.leave(result).map(|_| ())
    }

    /// Puts a ledger entry into the outbox under the transaction's generation, which rises by one: further entries follow.
    pub(crate) fn outbox_add(&mut self, entry: Vec<u8>) {
        let generation = self.generation();
        self.entries.push((generation, entry));
        self.txn.raise(generation.saturating_add(1));
    }

    /// Something that may have to be taken back alone begins.
    pub(crate) fn savepoint(&mut self) {
        self.staged.mark();
        self.part = Some(Savepoint { attached: self.attached.len(), detached: self.detached.len(), told: false });
    }

    /// What was done since the savepoint stays.
    pub(crate) async fn keep(&mut self) -> Result<()> {
        self.txn.whole()?;
        self.staged.keep();
        if self.part.take().is_some_and(|part| part.told) { self.release().await } else { Ok(()) }
    }

    /// What was done since the savepoint has not happened.
    pub(crate) async fn take_back(&mut self) -> Result<()> {
        // What broke it off would be found by the commit, when others rely on it.
        self.txn.whole()?;
        self.staged.take_back();
        let Some(part) = self.part.take() else { return Ok(()) };
        self.attached.truncate(part.attached);
        self.detached.truncate(part.detached);
        if !part.told {
            return Ok(());
        }
        let result = self.txn.enter()?.execute("ROLLBACK TO SAVEPOINT part", &[]).await.map(drop);
        self.txn.leave(result)?;
        self.release().await
    }

    async fn release(&mut self) -> Result<()> {
        let result = self.txn.enter()?.execute("RELEASE SAVEPOINT part", &[]).await.map(drop);
        self.txn.leave(result)
    }

    /// Tells the database all that it does not know yet. A failure is one of this transaction alone, as long as nobody waits for its commit.
    pub(crate) async fn write_out(&mut self) -> Result<()> {
        self.flush().await?;
        let entries = std::mem::take(&mut self.entries);
        let result = records::outbox_insert(self.txn.enter()?, &self.home.codec, &entries).await;
        self.txn.leave(result)
    }

    /// Commits, with a ledger entry in the same transaction. Durable on return; returns the new generation.
    pub(crate) async fn commit_with(mut self, entry: Option<Vec<u8>>) -> Result<u64> {
        self.write_out().await?;
        let entry = entry.map(|entry| self.home.codec.entry(self.generation(), &entry)).transpose()?;
        let objects = !self.attached.is_empty() || !self.detached.is_empty();
        if objects {
            // From here on the rows decide which files are right. If nobody sees the outcome, a sweep asks them.
            self.store.unseen.fetch_add(1, Ordering::AcqRel);
            self.attached.drain(..).for_each(SealedBlob::keep);
        }
        let generation = self.txn.commit_with(entry).await?;
        self.home.objects.remove(&self.detached);
        if objects {
            self.store.unseen.fetch_sub(1, Ordering::AcqRel);
        }
        Ok(generation)
    }
}

#[cfg(test)]
pub(crate) mod tests;
