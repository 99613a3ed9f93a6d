//! A tenant's whole logical content, in order: what it is in itself, wherever and however it is stored.
//!
//! Two places are compared by walking through both at once. What differs is written to the second one. As long as the tenant works, a
//! pass leaves what changed behind its back to the next one; a pass without writers that finds no difference proves, by two digests
//! over everything, that both places hold the same.
//!
//! ```text
//! records by (kind, key) → counters by name → objects' rows by id
//! ```
//! Generation, outbox and ledger are no content: they follow at the end ([`Store::conclude`]).

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::path::Path;

use aws_lc_rs::digest;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::codec::{Codec, Content};
use super::db::{Closing, Db, PostgresDb};
use super::sqlite::{Expect, SqliteDb};
use super::{Home, MIGRATIONS, Place, ROWS, Store, records};
use crate::anchor::{Anchor, AnchorSlot};
use crate::blobs::{BlobId, BlobRow, Objects};
use crate::error::{Error, Result};
use crate::keyring::Keyring;

/// Items read at once: records have up to a mebibyte.
const PAGE_ITEMS: u32 = 100;
/// Differences written in one transaction, and their bytes.
const BATCH_ITEMS_MAX: usize = 200;
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Objects on their way side by side.
const OBJECTS_AT_ONCE_MAX: usize = 8;

/// One thing of a tenant's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Item {
    /// A record.
    Record { kind: String, key: String, content: Content },
    /// A durable counter.
    Counter { name: String, value: i64 },
    /// What the rows know about an object.
    Object { id: BlobId, row: BlobRow },
}

impl Item {
    /// A record.
    pub(crate) fn record(kind: String, key: String, value: Vec<u8>, mut fields: Vec<(String, String)>) -> Self {
        fields.sort_unstable();
        Self::Record { kind, key, content: Content { value, fields } }
    }

    /// Its place in the order.
    fn place(&self) -> (u8, &[u8], &[u8]) {
        match self {
            Self::Record { kind, key, .. } => (0, kind.as_bytes(), key.as_bytes()),
            Self::Counter { name, .. } => (1, name.as_bytes(), &[]),
            Self::Object { id, .. } => (2, &id.0, &[]),
        }
    }

    /// About how much it is.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Record { content, .. } => content.value.len(),
            Self::Counter { .. } | Self::Object { .. } => 64,
        }
    }

    /// Adds all of it, each part behind its length.
    fn digest(&self, to: &mut digest::Context) {
        let mut part = |bytes: &[u8]| {
            to.update(&(bytes.len() as u64).to_be_bytes());
            to.update(bytes);
        };
        match self {
            Self::Record { kind, key, content } => {
                [b"record", kind.as_bytes(), key.as_bytes(), &content.value].into_iter().for_each(&mut part);
                part(&(content.fields.len() as u64).to_be_bytes());
                content.fields.iter().flat_map(|(field, value)| [field.as_bytes(), value.as_bytes()]).for_each(part);
            }
            Self::Counter { name, value } => [b"counter", name.as_bytes(), &value.to_be_bytes()].into_iter().for_each(part),
            Self::Object { id, row } => {
                let (version, bytes) = (row.key_version.to_be_bytes(), row.bytes.to_be_bytes());
                [b"object", &id.0[..], &version, &row.wrapped_key, &row.commitment, &bytes, &row.sha256].into_iter().for_each(part);
            }
        }
    }
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amount {
    pub(crate) records: u64,
    pub(crate) counters: u64,
    pub(crate) objects: u64,
    /// Of the objects, before sealing.
    pub(crate) bytes: u64,
}

impl Amount {
    fn add(&mut self, item: &Item) {
        match item {
            Item::Record { .. } => self.records += 1,
            Item::Counter { .. } => self.counters += 1,
            Item::Object { row, .. } => {
                self.objects += 1;
                self.bytes += row.bytes;
            }
        }
    }
}

/// What one pass over both places found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pass {
    /// In the first place.
    pub(crate) amount: Amount,
    /// What was written to the second place, or removed there.
    pub(crate) differences: u64,
    /// SHA-256 over everything in order: of the first place, and of the second as it was before.
    pub(crate) sha256: ([u8; 32], [u8; 32]),
}

impl Pass {
    /// Both places held the same.
    pub(crate) fn equal(&self) -> bool {
        self.differences == 0 && self.sha256.0 == self.sha256.1
    }
}

enum Change {
    Put(Item),
    Remove(Item),
}

impl Change {
    fn object_removed(&self) -> Option<BlobId> {
        match self {
            Self::Remove(Item::Object { id, .. }) => Some(*id),
            _ => None,
        }
    }
}

impl Home {
    /// A place to move to. Nothing of it is anchored or swept before [`Store::moved`].
    pub(crate) async fn target(dir: &Path, place: Place, objects: Objects, keys: &Keyring, anchor: AnchorSlot) -> Result<Self> {
        Ok(match place {
            Place::File => {
                let path = dir.join(ROWS);
                let expect = if path.exists() { Expect::Present } else { Expect::Absent };
                let db = SqliteDb::open(&path, keys.rows_key(), anchor, MIGRATIONS, expect).await?;
                Self::new(Db::Sqlite(db), Codec::Plain, objects)
            }
            Place::Postgres(rows, fence) => {
                Self::new(Db::Postgres(PostgresDb::open(rows, anchor, fence).await?), Codec::sealed(keys), objects)
            }
        })
    }

    /// Lets go; returns how it was left.
    pub(crate) async fn leave(&self) -> Result<Anchor> {
        self.db.close(Closing::Clean).await?;
        Ok(self.db.anchor().now())
    }

    async fn apply(&self, changes: Vec<Change>) -> Result<()> {
        let mut txn = self.db.begin().await?;
        for change in changes {
            let sql = txn.enter()?;
            let result = match change {
                Change::Put(Item::Record { kind, key, content }) => {
                    records::put_due(sql, &self.codec, &kind, &[records::Due { key, content: content.into(), stored_fields: None }]).await
                }
                Change::Remove(Item::Record { kind, key, .. }) => records::content_delete(sql, &kind, &key).await.map(drop),
                Change::Put(Item::Counter { name, value }) => records::counter_set(sql, &name, value).await,
                Change::Remove(Item::Counter { name, .. }) => records::counter_delete(sql, &name).await,
                Change::Put(Item::Object { id, row }) => records::blob_put(sql, id, &row).await,
                Change::Remove(Item::Object { id, .. }) => records::blob_delete(sql, id).await.map(drop),
            };
            txn.leave(result)?;
        }
        txn.commit().await.map(drop)
    }
}

impl Store {
    /// Where rows and objects are now, to be walked through.
    pub(crate) fn walk(&self) -> Walk<'_> {
        Walk::new(self.home())
    }

    /// What the rows know about all objects.
    pub(crate) async fn object_rows(&self) -> Result<Vec<(BlobId, BlobRow)>> {
        let mut rows: Vec<(BlobId, BlobRow)> = Vec::new();
        loop {
            let (mut reading, _) = self.reading().await?;
            let page = records::blob_rows(reading.sql()?, rows.last().map(|(id, _)| *id), PAGE_ITEMS).await?;
            if page.is_empty() {
                return Ok(rows);
            }
            rows.extend(page);
        }
    }

    /// Puts rows into a store that is not the tenant's yet.
    pub(crate) async fn take_in(&self, items: Vec<Item>) -> Result<()> {
        if items.is_empty() { Ok(()) } else { self.home().apply(items.into_iter().map(Change::Put).collect()).await }
    }

    /// Where its objects lie now.
    pub(crate) fn objects(&self) -> &Objects {
        &self.home().objects
    }

    /// Compares with `target` and writes there what differs.
    pub(crate) async fn pass(&self, target: &Home) -> Result<Pass> {
        let (mut from, mut to) = (self.walk(), Walk::new(target));
        let mut pass = Passing { digests: (sha256(), sha256()), amount: Amount::default(), differences: 0, changes: Vec::new(), bytes: 0 };
        let (mut here, mut there) = (from.next().await?, to.next().await?);
        loop {
            let order = match (&here, &there) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(here), Some(there)) => here.place().cmp(&there.place()),
            };
            let ours = if order == Ordering::Greater { None } else { here.take() };
            let theirs = if order == Ordering::Less { None } else { there.take() };
            if order != Ordering::Greater {
                here = from.next().await?;
            }
            if order != Ordering::Less {
                there = to.next().await?;
            }
            pass.take(ours, theirs);
            if pass.full() {
                pass.write(from.home, target).await?;
            }
        }
        pass.write(from.home, target).await?;
        let sha256 = (finished(pass.digests.0)?, finished(pass.digests.1)?);
        Ok(Pass { amount: pass.amount, differences: pass.differences, sha256 })
    }

    /// The target takes over what is no content: entries on their way to the ledger, and a generation not below this one's.
    /// Without writers.
    pub(crate) async fn conclude(&self, target: &Home) -> Result<u64> {
        let waiting = self.outbox_pending(u32::MAX).await?;
        let mut txn = target.db.begin().await?;
        let result = records::outbox_prune(txn.enter()?, u64::MAX).await;
        txn.leave(result)?;
        let result = records::outbox_insert(txn.enter()?, &target.codec, &waiting).await;
        txn.leave(result)?;
        txn.raise(self.home().db.generation());
        txn.commit().await
    }

    /// The last moment before the cut-over: this process may still write here, and an anchor of the file as it is does not bind the target.
    pub(crate) async fn parting(&self) -> Result<u64> {
        let home = self.home();
        drop(home.db.begin().await?);
        home.db.anchor().unclean()?;
        Ok(home.db.generation())
    }

    /// From now on rows and objects are in `target`. Returns the place they were in, which is to be left.
    pub(crate) fn moved(&self, target: Home) -> Result<&Home> {
        let home = self.home();
        home.db.anchor().hand_over(target.db.anchor())?;
        home.next.set(Box::new(target)).map_err(|_| Error::internal("the rows moved twice at once"))?;
        Ok(home)
    }
}

struct Passing {
    digests: (digest::Context, digest::Context),
    amount: Amount,
    differences: u64,
    changes: Vec<Change>,
    bytes: usize,
}

impl Passing {
    fn take(&mut self, ours: Option<Item>, theirs: Option<Item>) {
        if let Some(theirs) = &theirs {
            theirs.digest(&mut self.digests.1);
        }
        if let Some(ours) = &ours {
            ours.digest(&mut self.digests.0);
            self.amount.add(ours);
        }
        let change = match (ours, theirs) {
            (Some(ours), theirs) if theirs.as_ref() != Some(&ours) => Change::Put(ours),
            (None, Some(theirs)) => Change::Remove(theirs),
            _ => return,
        };
        if let Change::Put(item) = &change {
            self.bytes += item.bytes();
        }
        self.differences += 1;
        self.changes.push(change);
    }

    fn full(&self) -> bool {
        self.changes.len() >= BATCH_ITEMS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    async fn write(&mut self, from: &Home, target: &Home) -> Result<()> {
        let changes = std::mem::take(&mut self.changes);
        self.bytes = 0;
        let carrying: Vec<_> = changes.into_iter().map(|change| carried(from, target, change).boxed()).collect();
        let arrived =
            stream::iter(carrying).buffered(OBJECTS_AT_ONCE_MAX).try_filter_map(async |change| Ok(change)).try_collect::<Vec<_>>();
        let arrived = arrived.await?;
        if arrived.is_empty() {
            return Ok(());
        }
        // An earlier pass carried the bytes of what has been deleted since.
        let gone: Vec<_> = arrived.iter().filter_map(Change::object_removed).collect();
        target.apply(arrived).await?;
        if !from.objects.same_place(&target.objects) {
            target.objects.remove(&gone);
        }
        Ok(())
    }
}

/// Brings the bytes of an object before its row. None if it was deleted meanwhile.
async fn carried(from: &Home, target: &Home, change: Change) -> Result<Option<Change>> {
    let Change::Put(Item::Object { id, row }) = &change else { return Ok(Some(change)) };
    if from.objects.same_place(&target.objects) {
        return Ok(Some(change));
    }
    match from.objects.carry(*id, row.bytes, &target.objects).await {
        Err(_) if records::blob_row(from.db.read().await?.sql()?, *id).await?.is_none() => Ok(None),
        copied => copied.map(|()| Some(change)),
    }
}

/// Goes through all content in order, page by page. Each page is read by itself.
pub(crate) struct Walk<'h> {
    home: &'h Home,
    stage: Stage,
    page: VecDeque<Item>,
}

enum Stage {
    Records(String, String),
    Counters,
    Objects(Option<BlobId>),
    Done,
}

impl<'h> Walk<'h> {
    fn new(home: &'h Home) -> Self {
        Self { home, stage: Stage::Records(String::new(), String::new()), page: VecDeque::new() }
    }

    /// The next item; none at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Item>> {
        while self.page.is_empty() {
            if matches!(self.stage, Stage::Done) {
                return Ok(None);
            }
            self.turn().await?;
        }
        Ok(self.page.pop_front())
    }

    async fn turn(&mut self) -> Result<()> {
        let mut reading = self.home.db.read().await?;
        let sql = reading.sql()?;
        self.stage = match &self.stage {
            Stage::Records(kind, key) => {
                let page = records::contents(sql, &self.home.codec, (kind, key), PAGE_ITEMS).await?;
                let last = page.last().map(|(kind, key, _)| (kind.clone(), key.clone()));
                self.page.extend(page.into_iter().map(|(kind, key, content)| Item::Record { kind, key, content }));
                last.map_or(Stage::Counters, |(kind, key)| Stage::Records(kind, key))
            }
            Stage::Counters => {
                let all = records::counters(sql).await?;
                self.page.extend(all.into_iter().map(|(name, value)| Item::Counter { name, value }));
                Stage::Objects(None)
            }
            Stage::Objects(after) => {
                let page = records::blob_rows(sql, *after, PAGE_ITEMS).await?;
                let last = page.last().map(|(id, _)| *id);
                self.page.extend(page.into_iter().map(|(id, row)| Item::Object { id, row }));
                last.map_or(Stage::Done, |id| Stage::Objects(Some(id)))
            }
            Stage::Done => Stage::Done,
        };
        Ok(())
    }
}

fn sha256() -> digest::Context {
    digest::Context::new(&digest::SHA256)
}

fn finished(context: digest::Context) -> Result<[u8; 32]> {
    context.finish().as_ref().try_into().map_err(Error::internal)
}
