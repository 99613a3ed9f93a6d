//! The ledger: a tenant's own append-only log of every act, allowed or refused.
//!
//! Each [`Entry`] is sealed under the tenant's key ([`entry`]) and becomes a leaf of a Merkle tree (crate `tlog`). Its signed
//! checkpoints, tiles and proofs are public forms (C2SP), so that outside tools can follow the log without being able to
//! read it; an export opens the entries for an auditor and can be verified without any service ([`verify_export`]). When
//! the content keys are destroyed, the tree stays valid and says nothing any more.
//!
//! ```text
//! append → handed to the operating system    a crash of the service loses nothing
//! sync → on disk                             a crash of the machine loses nothing
//! checkpoint → on disk, signed               nobody can change it unseen
//! ```
//!
//! After one failed write every append is refused until the log is opened again, because what reached the file is not
//! known. Opening checks the last checkpoint against the files, then takes each later entry that opens under its key and
//! index, and cuts what is torn behind them. Damage before the checkpoint is `Integrity`: at once where opening looks (the
//! right edge), and when it is read elsewhere; [`Ledger::check`] reads everything.
//!
//! A log whose tenant lives in PostgreSQL must outlive its node. It is *shipped* there ([`shipping`]), from where another node
//! brings its own copy up to date ([`catch_up`]); [`shared`] has the tables. Such a log shows a checkpoint only over what was shipped: no other node can
//! then come to sign another log of the same size.
//!
//! What is deliberately missing: deleting, and a clock: the keeper calls [`Ledger::sync`] and [`Ledger::checkpoint`].

mod catch_up;
mod entry;
mod export;
mod files;
mod receipt;
mod shared;
mod shipping;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tlog::tile::TILE_WIDTH;
use tlog::{Bundle, Checkpoint, ConsistencyProof, Frontier, Hash, InclusionProof, Note, SigningKey, Tile, TileHashes, leaf_hash};
use zeroize::Zeroizing;

pub(crate) use entry::LedgerKeys;
pub use entry::{Entry, Outcome};
pub use export::{Report, verify_export};
pub use receipt::{Receipt, ReceiptReport, ReceiptStatement, verify_receipt};
pub(crate) use shared::SharedCopy;
pub(crate) use shipping::Mark;

use crate::error::{Error, Result};
use entry::{Opened, Sealer};
use files::{Files, Records, Rows, Tiles, read_partial};
use shipping::{Shipped, Shipping};

/// Entries that one call of [`Ledger::search`] reads at most; the page says where to go on.
const SEARCH_ENTRIES_MAX: u64 = 65_536;
/// Entries that one call of [`Ledger::entries`] returns at most.
const ENTRIES_MAX: u64 = 10_000;
const WIDTH: u64 = TILE_WIDTH as u64;
/// Line in the checkpoint with the greatest generation in the log, so that opening need not look for it.
const GENERATION: &str = "generation ";
const UNWRITABLE: Error = Error::Unavailable("the audit log cannot be written");

/// Indexes and leaf data, in order.
type Leaves = Vec<(u64, Vec<u8>)>;

/// An entry as read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Numbered {
    /// Place in the log, from 0.
    pub index: u64,
    /// The entry; none if its key was destroyed.
    pub entry: Option<Entry>,
}

/// What to look for. Fields that are not set match everything.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Exact.
    pub actor: Option<String>,
    /// Exact.
    pub act: Option<String>,
    /// Exact.
    pub outcome: Option<Outcome>,
    /// Exact, or everything of a kind as in `dataset:*`.
    pub resource: Option<String>,
    /// Unix microseconds, inclusive.
    pub since: Option<i64>,
    /// Unix microseconds, exclusive.
    pub until: Option<i64>,
    /// Somewhere in the entry's JSON, whatever the case.
    pub text: Option<String>,
    /// Where to begin: newest first below this index, oldest first at this index. [`Found::next`] of the page before.
    pub from: Option<u64>,
    /// Oldest first.
    pub oldest_first: bool,
}

/// One page of a search.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Found {
    /// The hits, in order.
    pub entries: Vec<Numbered>,
    /// `from` of the next page; none at the end.
    pub next: Option<u64>,
}

/// One log, shared by all threads of its tenant.
pub(crate) struct Ledger {
    origin: String,
    signing: SigningKey,
    files: Files,
    /// Apart from the rest, so that readers do not hold up appends.
    sealer: RwLock<Sealer>,
    inner: Mutex<Inner>,
    /// One checkpoint at a time; appends go on meanwhile.
    checkpointing: Mutex<()>,
    /// One shipment at a time. Shared, because catching up ends what it began when whoever waits for it is gone.
    shipping: Arc<tokio::sync::Mutex<()>>,
}

struct Inner {
    frontier: Frontier,
    rows: Rows,
    /// Where each bundle begins; the last one is the one that grows.
    offsets: Vec<u64>,
    end: u64,
    generation: Option<u64>,
    /// How much is known to be on disk.
    synced_size: u64,
    signed: Signed,
    failed: bool,
    /// None of a log that lives here only.
    shipping: Option<Shipping>,
}

#[derive(Clone)]
struct Signed {
    size: u64,
    note: String,
}

/// The log at one moment: all that signing it takes.
struct Moment {
    size: u64,
    /// In bytes of the file.
    end: u64,
    root: Hash,
    rows: Rows,
    generation: Option<u64>,
}

impl Ledger {
    /// Opens the log in `dir`, or begins one there, and recovers from a crash. `origin` names it in checkpoints, as in
    /// `insula/<service id>/<tenant id>`.
    ///
    /// # Errors
    /// `Integrity`: what was signed is not there any more, or not by this key.
    pub(crate) fn open(dir: &Path, keys: LedgerKeys, tenant: [u8; 16], origin: &str) -> Result<Self> {
        let signing = SigningKey::from_seed(origin, &keys.signing_seed).map_err(Error::internal)?;
        let files = Files::open(dir)?;
        let sealer = Sealer::new(tenant, &keys.content)?;
        let signed = match files.read_checkpoint()? {
            Some(note) => note,
            None if files.log_bytes()? == 0 => {
                let note = Checkpoint::new(origin, 0, Hash::EMPTY_TREE).sign(&signing).map_err(Error::internal)?.to_string();
                files.write_checkpoint(&note)?;
                note.into_bytes()
            }
            None => return Err(Error::integrity("the ledger's checkpoint is missing")),
        };
        let inner = Inner::load(&files, &sealer, &signed, &signing, origin)?;
        let (sealer, inner) = (RwLock::new(sealer), Mutex::new(inner));
        Ok(Self { origin: origin.into(), signing, files, sealer, inner, checkpointing: Mutex::new(()), shipping: Arc::default() })
    }

    /// Appends; handed to the operating system when this returns. The index of the entry.
    ///
    /// # Errors
    /// `Invalid`: an entry over its limits; nothing happened. `Unavailable`: a write failed, now or before: open the log again;
    /// or too much waits for being shipped, which passes.
    pub(crate) fn append(&self, entry: &Entry) -> Result<u64> {
        self.append_leaf(entry).map(|(index, _)| index)
    }

    /// As [`Ledger::append`], with the leaf.
    fn append_leaf(&self, entry: &Entry) -> Result<(u64, Vec<u8>)> {
        // An entry with a generation was committed with its change: it is safe in the rows, whatever becomes of this node.
        if entry.generation.is_none() && self.inner.lock().overdue() {
            return Err(UNWRITABLE);
        }
        self.append_overdue(entry)
    }

    /// As [`Ledger::append_leaf`], whatever waits for being shipped.
    fn append_overdue(&self, entry: &Entry) -> Result<(u64, Vec<u8>)> {
        let json = entry.to_json()?;
        let mut inner = self.inner.lock();
        if inner.failed {
            return Err(UNWRITABLE);
        }
        let index = inner.frontier.size();
        let leaf = self.sealer.read().seal(index, &json)?;
        inner.failed = true; // unless all of what follows is done
        let written = inner.write(&self.files, &leaf, entry.generation);
        match written {
            Ok(()) => {
                inner.failed = false;
                Ok((index, leaf))
            }
            Err(error) => {
                tracing::error!(origin = self.origin, private = error.private(), "the ledger cannot be written");
                Err(UNWRITABLE)
            }
        }
    }

    /// Whether there was a failed write: every append is refused until the log is opened again.
    pub(crate) fn failed(&self) -> bool {
        self.inner.lock().failed
    }

    /// Everything appended before is on disk when this returns. Costs nothing if it is already.
    pub(crate) fn sync(&self) -> Result<()> {
        let size = {
            let inner = self.inner.lock();
            if inner.failed {
                return Err(UNWRITABLE);
            }
            if inner.synced_size == inner.frontier.size() {
                return Ok(());
            }
            inner.frontier.size()
        };
        let synced = self.files.sync_log();
        let mut inner = self.inner.lock();
        // After a failed sync the system may have dropped the pages: nothing that was not synced before can be relied on.
        inner.failed |= synced.is_err();
        synced?;
        inner.synced_size = inner.synced_size.max(size);
        Ok(())
    }

    /// Signs the present size, with all of it on disk, and returns the note. Costs nothing if nothing was appended since. Of a
    /// log that is shipped, the note that was shipped last.
    pub(crate) fn checkpoint(&self) -> Result<String> {
        let _one = self.checkpointing.lock();
        let (old, shipped, moment) = {
            let inner = self.inner.lock();
            let alone = inner.shipping.is_none() && inner.signed.size != inner.frontier.size();
            (inner.signed.clone(), inner.shipping.as_ref().and_then(Shipping::last), alone.then(|| inner.moment()))
        };
        let next = match (shipped.filter(|shipped| shipped.moment.size != old.size), moment) {
            (Some(shipped), _) => shipped,
            (None, Some(moment)) => Arc::new(self.sign(moment)?),
            (None, None) => return Ok(old.note),
        };
        self.sync()?;
        self.keep(old.size, &next)?;
        let note = next.note.clone();
        self.inner.lock().signed = Signed { size: next.moment.size, note: note.clone() };
        Ok(note)
    }

    /// The note over a moment.
    fn sign(&self, moment: Moment) -> Result<Shipped> {
        let mut checkpoint = Checkpoint::new(&self.origin, moment.size, moment.root);
        checkpoint.extensions.extend(moment.generation.map(|generation| format!("{GENERATION}{generation}")));
        let note = checkpoint.sign(&self.signing).map_err(Error::internal)?.to_string();
        Ok(Shipped { moment, note })
    }

    /// Puts everything that a checkpoint needs on disk, and then the checkpoint; `old` is the size of the one before.
    fn keep(&self, old: u64, next: &Shipped) -> Result<()> {
        let Moment { size, rows, .. } = &next.moment;
        let (first, last) = ((old / WIDTH + 1) as usize, (size / WIDTH + 1) as usize);
        let offsets = self.inner.lock().offsets.get(first..last).unwrap_or_default().to_vec();
        // The last tile of level 0 is in entries.log already; those above would take many reads to compute.
        let tiles = || Tile::between(old, *size).filter(|tile| tile.is_full() || tile.level() > 0);
        for tile in tiles().filter(|tile| !tile.is_full()) {
            let row = rows.get(usize::from(tile.level())).map(Vec::as_slice).unwrap_or_default();
            self.files.write_tile(tile, row)?;
        }
        self.files.sync_tiles(tiles())?;
        self.files.write_index(old / WIDTH + 1, &offsets)?;
        self.files.write_checkpoint(&next.note)?;
        let kept: Vec<Tile> = Tile::right_edge(*size).collect();
        Tile::right_edge(old).filter(|tile| tile.level() > 0 && !kept.contains(tile)).for_each(|tile| self.files.remove_tile(tile));
        Ok(())
    }

    /// Whether something was appended since the last checkpoint.
    pub(crate) fn dirty(&self) -> bool {
        let inner = self.inner.lock();
        inner.signed.size != inner.frontier.size()
    }

    /// Entries in the log.
    pub(crate) fn size(&self) -> u64 {
        self.inner.lock().frontier.size()
    }

    /// Root of the tree over all entries.
    #[cfg(test)]
    pub(crate) fn root(&self) -> [u8; 32] {
        self.inner.lock().frontier.root().0
    }

    /// Greatest generation in the log: what waits above it was committed and not yet appended.
    pub(crate) fn last_generation(&self) -> Option<u64> {
        self.inner.lock().generation
    }

    /// Adds those content keys, given in order, that are not there yet; later entries are sealed under the last one.
    pub(crate) fn take_up_keys(&self, keys: &[(u32, Zeroizing<[u8; 32]>)]) -> Result<()> {
        let mut sealer = self.sealer.write();
        for (number, key) in keys {
            if !sealer.knows(*number) {
                sealer.add(*number, key)?;
            }
        }
        Ok(())
    }

    /// Takes no entry any more, for good: its last word is spoken.
    pub(crate) fn finish(&self) {
        self.inner.lock().failed = true;
    }

    /// One entry.
    pub(crate) fn entry(&self, index: u64) -> Result<Numbered> {
        let end = index.checked_add(1).ok_or(Error::NotFound("ledger entry"))?;
        self.entries(index..end)?.pop().ok_or(Error::NotFound("ledger entry"))
    }

    /// Entries in order, at most `ENTRIES_MAX` of them; fewer at the end of the log.
    pub(crate) fn entries(&self, range: Range<u64>) -> Result<Vec<Numbered>> {
        let end = range.end.min(self.size()).min(range.start.saturating_add(ENTRIES_MAX));
        let mut entries = Vec::new();
        for bundle in range.start / WIDTH..end.div_ceil(WIDTH) {
            for (index, leaf) in self.bundle(bundle)?.into_iter().filter(|(index, _)| (range.start..end).contains(index)) {
                let entry = self.opened(index, &leaf)?.map(|opened| opened.entry()).transpose()?;
                entries.push(Numbered { index, entry });
            }
        }
        Ok(entries)
    }

    /// One page of at most `limit` hits. Reads at most `SEARCH_ENTRIES_MAX` entries, so a page may have none and still a next.
    pub(crate) fn search(&self, filter: &Filter, limit: usize) -> Result<Found> {
        let size = self.size();
        let text = filter.text.as_ref().map(|text| text.to_lowercase());
        let mut found = Found::default();
        let mut place = if filter.oldest_first { filter.from.unwrap_or(0) } else { filter.from.unwrap_or(size).min(size) };
        let mut read = 0;
        let mut loaded: Option<(u64, Leaves)> = None;
        loop {
            let index = if filter.oldest_first { Some(place).filter(|place| *place < size) } else { place.checked_sub(1) };
            let Some(index) = index else { return Ok(found) };
            if found.entries.len() >= limit || read >= SEARCH_ENTRIES_MAX {
                found.next = Some(place);
                return Ok(found);
            }
            let bundle = match loaded.take() {
                Some((number, bundle)) if number == index / WIDTH => bundle,
                _ => self.bundle(index / WIDTH)?,
            };
            if let Some((_, leaf)) = bundle.get((index % WIDTH) as usize)
                && let Some(opened) = self.opened(index, leaf)?
                && let Some(entry) = filter.hit(&opened, text.as_deref())?
            {
                found.entries.push(Numbered { index, entry: Some(entry) });
            }
            loaded = Some((index / WIDTH, bundle));
            read += 1;
            place = if filter.oldest_first { index + 1 } else { index };
        }
    }

    /// Reads every entry that is signed and compares with what was signed.
    ///
    /// # Errors
    /// `Integrity`.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<tlog::TreeHead> {
        let signed = self.inner.lock().signed.clone();
        let checkpoint = verified(signed.note.as_bytes(), &self.signing, &self.origin)?;
        let mut frontier = Frontier::new();
        self.signed_leaves(signed.size, |index, leaf| {
            self.opened(index, leaf)?;
            frontier.append(leaf_hash(leaf), |_, _, _| {}).map(|_| ()).map_err(Error::internal)
        })?;
        if frontier.root() != checkpoint.head.root {
            return Err(Error::integrity("the ledger's entries are not those that were signed"));
        }
        Ok(checkpoint.head)
    }

    /// What lies at a C2SP path of the last checkpoint: `checkpoint`, `tile/0/x001/234`, `tile/1/000.p/5`, `tile/entries/000`.
    ///
    /// # Errors
    /// `NotFound`: no such path, or beyond the checkpoint.
    pub(crate) fn tile(&self, path: &str) -> Result<Vec<u8>> {
        let missing = || Error::NotFound("tile");
        let signed = self.inner.lock().signed.clone();
        if path == "checkpoint" {
            return Ok(signed.note.into_bytes());
        }
        if let Ok(bundle) = path.parse::<Bundle>() {
            let there = Bundle::in_tree(bundle.index(), signed.size).filter(|there| there.width() >= bundle.width());
            there.ok_or_else(missing)?;
            let mut bytes = Vec::new();
            for (_, leaf) in self.bundle(bundle.index())?.into_iter().take(bundle.width().into()) {
                tlog::push_entry(&mut bytes, &leaf).map_err(Error::internal)?;
            }
            return Ok(bytes);
        }
        let tile: Tile = path.parse().map_err(|_| missing())?;
        let there = Tile::in_tree(tile.level(), tile.index(), signed.size).filter(|there| there.width() >= tile.width());
        there.ok_or_else(missing)?;
        let mut bytes = tlog::TileReader::read(&self.tiles(), tile).map_err(|error| Error::integrity(format!("`{tile}`: {error}")))?;
        bytes.truncate(tile.bytes());
        Ok(bytes)
    }

    /// Audit path of an entry in the tree of the first `size` entries (RFC 9162).
    pub(crate) fn prove_inclusion(&self, index: u64, size: u64) -> Result<InclusionProof> {
        if index >= size || size > self.size() {
            return Err(Error::Invalid(format!("there is no entry `{index}` among the first `{size}`")));
        }
        let tiles = self.tiles();
        TileHashes::new(size, &tiles).and_then(|hashes| InclusionProof::build(index, size, &hashes)).map_err(Error::integrity)
    }

    /// Proof that the tree of the first `from` entries begins the tree of the first `to`.
    pub(crate) fn prove_consistency(&self, from: u64, to: u64) -> Result<ConsistencyProof> {
        if from > to || to > self.size() {
            return Err(Error::Invalid(format!("there are no trees of `{from}` and `{to}` entries, one the beginning of the other")));
        }
        let tiles = self.tiles();
        TileHashes::new(to, &tiles).and_then(|hashes| ConsistencyProof::build(from, to, &hashes)).map_err(Error::integrity)
    }

    /// Proof of one entry that travels alone, with a fresh checkpoint (C2SP tlog-proof). Verified against the leaf data.
    #[cfg(test)]
    pub(crate) fn prove_entry(&self, index: u64) -> Result<String> {
        let note = self.checkpoint()?;
        let checkpoint = verified(note.as_bytes(), &self.signing, &self.origin)?;
        let inclusion = self.prove_inclusion(index, checkpoint.head.size)?;
        Ok(tlog::LogProof { inclusion, checkpoint: Note::parse(note.as_bytes()).map_err(Error::internal)? }.to_string())
    }

    /// Public key for verifiers, in the form of C2SP signed-note.
    pub(crate) fn vkey(&self) -> String {
        self.signing.verifying_key().to_string()
    }

    /// Calls with each leaf below `size` in order.
    fn signed_leaves(&self, size: u64, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        for bundle in 0..size.div_ceil(WIDTH) {
            self.bundle(bundle)?.iter().filter(|(index, _)| *index < size).try_for_each(|(index, leaf)| each(*index, leaf))?;
        }
        Ok(())
    }

    /// Indexes and leaf data of a bundle as it is now.
    fn bundle(&self, number: u64) -> Result<Leaves> {
        let (start, end, size) = {
            let inner = self.inner.lock();
            (inner.offset(number)?, inner.offset(number + 1).unwrap_or(inner.end), inner.frontier.size())
        };
        let Some(bundle) = Bundle::in_tree(number, size) else { return Ok(Vec::new()) };
        let bytes = self.files.read_log(start, end)?;
        let leaves = bundle.entries(&bytes).map_err(Error::integrity)?;
        Ok((number * WIDTH..).zip(leaves.into_iter().map(<[u8]>::to_vec)).collect())
    }

    fn opened(&self, index: u64, leaf: &[u8]) -> Result<Option<Opened>> {
        self.sealer.read().open(index, leaf)
    }

    fn tiles(&self) -> Tiles<'_> {
        let inner = self.inner.lock();
        Tiles { files: &self.files, size: inner.frontier.size(), rows: inner.rows.clone() }
    }
}

impl Inner {
    /// The state at the checkpoint, compared with it; then every later entry that is whole and opens.
    fn load(files: &Files, sealer: &Sealer, note: &[u8], signing: &SigningKey, origin: &str) -> Result<Self> {
        let (mut inner, mut records) = Self::at_checkpoint(files, note, signing, origin)?;
        inner.recover(files, sealer, &mut records)?;
        Ok(inner)
    }

    /// The state at the checkpoint, compared with it, and the records behind it.
    fn at_checkpoint(files: &Files, note: &[u8], signing: &SigningKey, origin: &str) -> Result<(Self, Records)> {
        let checkpoint = verified(note, signing, origin)?;
        let size = checkpoint.head.size;
        let offsets = files.offsets(size / WIDTH)?;
        let mut records = files.records(offsets.last().copied().unwrap_or(0))?;
        let mut rows = Rows::default();
        for tile in Tile::right_edge(size).filter(|tile| tile.level() > 0) {
            if let Some(row) = rows.get_mut(usize::from(tile.level())) {
                *row = read_partial(files, tile)?;
            }
        }
        let missing = || Error::integrity("the ledger's entries end before what was signed");
        for _ in 0..size % WIDTH {
            let leaf = records.next_record()?.ok_or_else(missing)?;
            rows.first_mut().into_iter().for_each(|row| row.push(leaf_hash(&leaf)));
        }
        let frontier = Frontier::from_tiles(size, &Tiles { files, size, rows: rows.clone() }).map_err(Error::integrity)?;
        if frontier.root() != checkpoint.head.root {
            return Err(Error::integrity("the ledger's entries are not those that were signed"));
        }
        let signed = Signed { size, note: String::from_utf8(note.to_vec()).map_err(Error::integrity)? };
        let (end, generation) = (records.offset, generation(&checkpoint));
        let inner = Self { frontier, rows, offsets, end, generation, synced_size: size, signed, failed: false, shipping: None };
        Ok((inner, records))
    }

    fn moment(&self) -> Moment {
        let (size, root) = (self.frontier.size(), self.frontier.root());
        Moment { size, end: self.end, root, rows: self.rows.clone(), generation: self.generation }
    }

    /// Where a bundle begins.
    fn offset(&self, bundle: u64) -> Result<u64> {
        let place = usize::try_from(bundle).map_err(Error::internal)?;
        self.offsets.get(place).copied().ok_or(Error::NotFound("ledger entry"))
    }

    fn recover(&mut self, files: &Files, sealer: &Sealer, records: &mut Records) -> Result<()> {
        while let Some(leaf) = records.next_record()? {
            let generation = match sealer.open(self.frontier.size(), &leaf) {
                Ok(Some(opened)) => opened.entry()?.generation,
                // Cutting what only lacks its key would lose acknowledged entries. Zeros are what a file system leaves after a crash.
                Ok(None) if entry::key_number(&leaf) != Some(0) => {
                    return Err(Error::integrity(format!("the key of ledger entry {} is missing", self.frontier.size())));
                }
                _ => break,
            };
            self.count(files, &leaf, generation)?;
        }
        let torn = files.log_bytes()?.saturating_sub(self.end);
        if torn > 0 {
            tracing::warn!(bytes = torn, entries = self.frontier.size(), "cut the torn end of a ledger");
            files.cut_log(self.end)?;
        }
        Ok(())
    }

    fn write(&mut self, files: &Files, leaf: &[u8], generation: Option<u64>) -> Result<()> {
        let mut record = Vec::with_capacity(2 + leaf.len());
        tlog::push_entry(&mut record, leaf).map_err(Error::internal)?;
        files.write_log(&record, self.end)?;
        self.shipping.iter_mut().for_each(Shipping::waits);
        self.count(files, leaf, generation)
    }

    /// Takes an entry that is in the log into the tree.
    fn count(&mut self, files: &Files, leaf: &[u8], generation: Option<u64>) -> Result<()> {
        let rows = &mut self.rows;
        let appended = self.frontier.append(leaf_hash(leaf), |level, _, hash| {
            if level.is_multiple_of(8)
                && let Some(row) = rows.get_mut(usize::from(level / 8))
            {
                row.push(hash);
            }
        });
        let size = appended.map_err(Error::internal)? + 1;
        self.end += 2 + leaf.len() as u64;
        self.generation = self.generation.max(generation);
        if size.is_multiple_of(WIDTH) {
            self.offsets.push(self.end);
        }
        for (level, row) in (0u8..).zip(self.rows.iter_mut()).filter(|(_, row)| row.len() as u64 == WIDTH) {
            if let Some(tile) = Tile::in_tree(level, (size >> (8 * level)) / WIDTH - 1, size) {
                files.write_tile(tile, row)?;
            }
            row.clear();
        }
        Ok(())
    }
}

impl Filter {
    /// The entry, if it is one that is looked for.
    fn hit(&self, opened: &Opened, text: Option<&str>) -> Result<Option<Entry>> {
        if text.is_some_and(|text| !String::from_utf8_lossy(opened.json()).to_lowercase().contains(text)) {
            return Ok(None);
        }
        let entry = opened.entry()?;
        let same = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
        let resource = self.resource.as_ref().is_none_or(|wanted| match wanted.strip_suffix('*') {
            Some(kind) if kind.ends_with(':') => entry.resource.starts_with(kind),
            _ => *wanted == entry.resource,
        });
        let hit = same(&self.actor, &entry.actor)
            && same(&self.act, &entry.act)
            && self.outcome.is_none_or(|wanted| wanted == entry.outcome)
            && resource
            && self.since.is_none_or(|since| entry.time >= since)
            && self.until.is_none_or(|until| entry.time < until);
        Ok(hit.then_some(entry))
    }
}

/// Greatest generation in the log that a checkpoint is of.
fn generation(checkpoint: &Checkpoint) -> Option<u64> {
    checkpoint.extensions.iter().find_map(|line| line.strip_prefix(GENERATION)?.parse().ok())
}

/// A checkpoint of this log by this key.
fn verified(note: &[u8], signing: &SigningKey, origin: &str) -> Result<Checkpoint> {
    let bad = |error: tlog::Error| Error::integrity(format!("the ledger's checkpoint: {error}"));
    let note = Note::parse(note).map_err(bad)?;
    note.verify([signing.verifying_key()]).map_err(bad)?;
    let checkpoint: Checkpoint = note.text().parse().map_err(bad)?;
    if checkpoint.origin != origin {
        return Err(Error::integrity(format!("the ledger's checkpoint is one of `{}`", checkpoint.origin)));
    }
    Ok(checkpoint)
}
