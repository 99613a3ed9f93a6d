//! A tenant's structured records, in its own encrypted file.
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::anchor::AnchorSlot;
use crate::blobs::{BlobId, BlobReader, BlobWriter, SealedBlob};
use crate::error::{Error, Result};
use crate::keyring::Keyring;

const LATER: &str = "being written";

/// A kind of record: stored as JSON under a key, found by its fields.
pub trait Record: Serialize + DeserializeOwned + Send + Sync {
    /// Name of the kind: one word, never changed.
    const KIND: &'static str;
    /// Unique among the kind; listings are ordered by it, as bytes.
    fn key(&self) -> String;
    /// Secondary look-ups: (field, value), for [`Rows::find`].
    fn fields(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// One tenant's open rows and blobs.
pub(crate) struct Store {}

impl Store {
    /// Makes `dir` (which must not exist) with an empty `rows.db` and `blobs/`.
    pub(crate) async fn create(_dir: &Path, _keys: Arc<Keyring>, _anchor: AnchorSlot) -> Result<Self> {
        Err(Error::Unavailable(LATER))
    }
    /// Opens what [`Store::create`] made; checks it against its anchor.
    pub(crate) async fn open(_dir: &Path, _keys: Arc<Keyring>, _anchor: AnchorSlot) -> Result<Self> {
        Err(Error::Unavailable(LATER))
    }
    /// Checkpoints, closes and leaves the hash of the file in the anchor. Everything asked later is refused.
    pub(crate) async fn close(&self) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// Reads.
    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows { store: self }
    }
    /// Begins a transaction.
    pub(crate) async fn tx(&self) -> Result<Tx<'_>> {
        Err(Error::Unavailable(LATER))
    }
    /// Begins a blob.
    pub(crate) fn blob_writer(&self) -> Result<BlobWriter> {
        Err(Error::Unavailable(LATER))
    }
    /// The anchor, for the ledger's size.
    pub(crate) fn anchor(&self) -> Result<&AnchorSlot> {
        Err(Error::Unavailable(LATER))
    }
    /// Generation of the last commit.
    pub(crate) fn generation(&self) -> u64 {
        0
    }
    /// The keys in use.
    pub(crate) fn keyring(&self) -> Result<Arc<Keyring>> {
        Err(Error::Unavailable(LATER))
    }
    /// After a rotation.
    pub(crate) fn keyring_replace(&self, _keys: Arc<Keyring>) {}
    /// Re-wraps at most `limit` object keys under the active version; returns how many are left.
    pub(crate) async fn blobs_rewrap(&self, _limit: u32) -> Result<u64> {
        Err(Error::Unavailable(LATER))
    }
    /// Committed entries the ledger may not have yet: (generation, entry), oldest first.
    pub(crate) async fn outbox_pending(&self, _limit: u32) -> Result<Vec<(u64, Vec<u8>)>> {
        Err(Error::Unavailable(LATER))
    }
    /// Forgets entries up to and with `generation`, once the ledger has them durably. Not anchored.
    pub(crate) async fn outbox_prune(&self, _up_to_generation: u64) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
}

/// Reads of one tenant's records.
pub struct Rows<'p> {
    store: &'p Store,
}

impl Rows<'_> {
    /// The record with this key.
    pub async fn get<R: Record>(&self, _key: &str) -> Result<Option<R>> {
        Err(Error::Unavailable(LATER))
    }
    /// As `get`, [`Error::NotFound`] if absent.
    pub async fn require<R: Record>(&self, _key: &str) -> Result<R> {
        Err(Error::Unavailable(LATER))
    }
    /// Ordered by key, after `after`.
    pub async fn list<R: Record>(&self, _after: Option<&str>, _limit: u32, _prefix: Option<&str>) -> Result<Vec<R>> {
        Err(Error::Unavailable(LATER))
    }
    /// Records whose field has this value, ordered by key.
    pub async fn find<R: Record>(&self, _field: &'static str, _value: &str, _after: Option<&str>, _limit: u32) -> Result<Vec<R>> {
        Err(Error::Unavailable(LATER))
    }
    /// How many.
    pub async fn count<R: Record>(&self) -> Result<u64> {
        Err(Error::Unavailable(LATER))
    }
    /// A durable counter.
    pub async fn usage(&self, _name: &str) -> Result<i64> {
        Err(Error::Unavailable(LATER))
    }
    /// Opens a blob.
    pub async fn blob(&self, _id: BlobId) -> Result<BlobReader> {
        let _ = self.store;
        Err(Error::Unavailable(LATER))
    }
}

/// One transaction on one tenant's records. Dropped without commit, nothing of it has happened.
pub struct Tx<'p> {
    store: &'p Store,
}

impl Tx<'_> {
    /// As [`Rows::get`].
    pub async fn get<R: Record>(&mut self, _key: &str) -> Result<Option<R>> {
        Err(Error::Unavailable(LATER))
    }
    /// As [`Rows::require`].
    pub async fn require<R: Record>(&mut self, _key: &str) -> Result<R> {
        Err(Error::Unavailable(LATER))
    }
    /// As [`Rows::list`].
    pub async fn list<R: Record>(&mut self, _after: Option<&str>, _limit: u32, _prefix: Option<&str>) -> Result<Vec<R>> {
        Err(Error::Unavailable(LATER))
    }
    /// As [`Rows::find`].
    pub async fn find<R: Record>(&mut self, _field: &'static str, _value: &str, _after: Option<&str>, _limit: u32) -> Result<Vec<R>> {
        Err(Error::Unavailable(LATER))
    }
    /// As [`Rows::count`].
    pub async fn count<R: Record>(&mut self) -> Result<u64> {
        Err(Error::Unavailable(LATER))
    }
    /// Adds a record; [`Error::Conflict`] if the key is taken.
    pub async fn insert<R: Record>(&mut self, _record: &R) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// Adds or replaces a record.
    pub async fn put<R: Record>(&mut self, _record: &R) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// Removes a record; whether it was there.
    pub async fn delete<R: Record>(&mut self, _key: &str) -> Result<bool> {
        Err(Error::Unavailable(LATER))
    }
    /// Takes a written blob over; it exists from the commit on.
    pub async fn attach(&mut self, _blob: SealedBlob) -> Result<BlobId> {
        Err(Error::Unavailable(LATER))
    }
    /// Removes a blob: its key now, its file after the commit. Returns its size in bytes, or `None` if it was not there.
    pub async fn detach(&mut self, _id: BlobId) -> Result<Option<u64>> {
        Err(Error::Unavailable(LATER))
    }
    /// A durable counter.
    pub async fn usage(&mut self, _name: &str) -> Result<i64> {
        Err(Error::Unavailable(LATER))
    }
    /// Adds to a durable counter; returns the new value. Below zero is refused.
    pub async fn usage_add(&mut self, _name: &str, _delta: i64) -> Result<i64> {
        Err(Error::Unavailable(LATER))
    }
    /// The generation this transaction will have once committed: nobody else can take it meanwhile.
    pub(crate) fn generation(&self) -> u64 {
        let _ = self.store;
        0
    }
    /// Commits, with a ledger entry in the same transaction. Durable on return.
    pub(crate) async fn commit_with(self, _entry: Option<Vec<u8>>) -> Result<u64> {
        Err(Error::Unavailable(LATER))
    }
}
