//! Catching up: a local log comes to what its shared copy has.
//!
//! ```text
//! local is behind, or absent   what is missing is fetched, verified against the copy's note, and appended
//! local is ahead               what was never shipped stays, and is shipped with the next shipment
//! both went on                 this node was lost before it shipped, another one was home in between: the copy wins, and
//!                              what only this node has is appended again behind it, with the detail `late`
//! ```
//!
//! Nothing local is touched before all that was fetched has been verified: the note is of this log, by its key, and over exactly
//! the entries there are. What was signed locally is compared, not fetched again; a copy without it was rolled back.
//!
//! Lost entries with a generation are not appended again: they were committed with a change, and wait in the outbox for whoever
//! opens the tenant, until they are shipped.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use tlog::{Entries, Frontier, leaf_hash};

use super::entry::Entry;
use super::files::{Files, Records};
use super::shipping::{Mark, SEGMENT_ENTRIES, Segment, Shipped, Shipping};
use super::{Inner, Ledger, LedgerKeys, UNWRITABLE, generation, verified};
use crate::error::{Error, Result};

/// Bytes written to the log at once.
const BATCH_BYTES: usize = 1 << 20;
const INDEX_BYTES: usize = 8;
/// Detail of an entry that was appended again.
const LATE: &str = "late";

/// A log on its way to what its shared copy has.
pub(crate) struct CatchUp {
    ledger: Arc<Ledger>,
    /// Over what of the copy is known.
    frontier: Frontier,
    /// The local entries behind it.
    local: Records,
    /// Where the last segment ended.
    segment_end: Option<u64>,
    /// From the first entry on that is not here.
    fetched: Option<Fetched>,
}

struct Fetched {
    first: u64,
    /// Where the first entry belongs in the local file.
    offset: u64,
    file: BufWriter<File>,
}

impl Ledger {
    /// As [`Ledger::open`], for a log that has a shared copy: local files that are damaged are put aside, and the copy makes
    /// them good.
    pub(crate) fn open_copy(dir: &Path, keys: &LedgerKeys, tenant: [u8; 16], origin: &str) -> Result<Self> {
        match Self::open(dir, keys.clone(), tenant, origin) {
            Err(Error::Integrity(context)) => {
                tracing::error!(origin, context, "a node's copy of a ledger is damaged; it is put aside and fetched anew");
                Files::put_aside(dir)?;
                Self::open(dir, keys.clone(), tenant, origin)
            }
            opened => opened,
        }
    }
}

impl CatchUp {
    /// Begins. Others may append meanwhile.
    pub(crate) fn begin(ledger: Arc<Ledger>) -> Result<Self> {
        let note = ledger.inner.lock().signed.note.clone();
        let (at, local) = Inner::at_checkpoint(&ledger.files, note.as_bytes(), &ledger.signing, &ledger.origin)?;
        Ok(Self { ledger, frontier: at.frontier, local, segment_end: None, fetched: None })
    }

    /// The first entry wanted: segments from the one on that has it, or else the last one, are to be taken.
    pub(crate) fn wanted(&self) -> u64 {
        self.segment_end.unwrap_or(self.frontier.size())
    }

    /// Takes the next segment.
    ///
    /// # Errors
    /// `Integrity` if it does not follow.
    pub(crate) fn take(&mut self, segment: &Segment) -> Result<()> {
        let known = self.frontier.size();
        let follows = self.segment_end.map_or(segment.first <= known, |end| segment.first == end);
        if !follows || segment.entries == 0 || segment.entries > SEGMENT_ENTRIES {
            return Err(bad(format_args!("entries {} to {} do not follow", segment.first, segment.end())));
        }
        let mut index = segment.first;
        for leaf in Entries::new(&segment.leaves) {
            let leaf = leaf.map_err(bad)?;
            if index >= known {
                self.frontier.append(leaf_hash(leaf), |_, _, _| {}).map_err(bad)?;
                self.compare(index, leaf)?;
            }
            index += 1;
        }
        if index != segment.end() {
            return Err(bad(format_args!("entries {} to {} are not as many", segment.first, segment.end())));
        }
        self.segment_end = Some(index);
        Ok(())
    }

    /// Passes over what is here too; keeps what is not.
    fn compare(&mut self, index: u64, leaf: &[u8]) -> Result<()> {
        if self.fetched.is_none() {
            let offset = self.local.offset;
            if self.local.next_record()?.is_some_and(|local| local == leaf) {
                return Ok(());
            }
            self.fetched = Some(Fetched { first: index, offset, file: self.ledger.files.fetch()? });
        }
        if let Some(fetched) = &mut self.fetched {
            let mut record = Vec::with_capacity(2 + leaf.len());
            tlog::push_entry(&mut record, leaf).map_err(Error::internal)?;
            fetched.file.write_all(&record)?;
        }
        Ok(())
    }

    /// All segments were taken, and this is the note over them; none of a copy that does not exist yet. The log has everything
    /// of the copy on return, and what it has beyond it is to be shipped.
    ///
    /// # Errors
    /// `Integrity` if the note is not over what was taken; then nothing has changed.
    pub(crate) fn finish(mut self, note: Option<&str>) -> Result<()> {
        let size = self.frontier.size();
        if self.segment_end.unwrap_or(0) != size {
            return Err(bad("it ends before what was signed here"));
        }
        let checkpoint = note.map(|note| verified(note.as_bytes(), &self.ledger.signing, &self.ledger.origin)).transpose()?;
        let head = checkpoint.as_ref().map(|checkpoint| checkpoint.head);
        if head.map_or(size > 0, |head| head.size != size || head.root != self.frontier.root()) {
            return Err(bad("its note is not over its entries"));
        }
        if let Some(fetched) = &mut self.fetched {
            fetched.file.flush()?;
        }
        let ledger = Arc::clone(&self.ledger);
        self.take_over(note, checkpoint.as_ref().and_then(generation))?;
        ledger.files.remove_fetched();
        ledger.checkpoint()?;
        ledger.append_late()
    }

    /// The log becomes what was verified.
    fn take_over(self, note: Option<&str>, known: Option<u64>) -> Result<()> {
        let (ledger, size) = (&self.ledger, self.frontier.size());
        let _one = ledger.checkpointing.lock();
        let mut inner = ledger.inner.lock();
        if inner.failed {
            return Err(UNWRITABLE);
        }
        inner.failed = true; // unless all of what follows is done
        if let Some(fetched) = &self.fetched {
            ledger.adopt(&mut inner, fetched)?;
        }
        let end = if self.fetched.is_some() { inner.end } else { self.local.offset };
        inner.generation = inner.generation.max(known);
        let ahead = inner.frontier.size() > size;
        let note = note.map(str::to_owned);
        let last = note.clone().filter(|_| !ahead).map(|note| Arc::new(Shipped { moment: inner.moment(), note }));
        inner.shipping = Some(Shipping::new(Mark { size, end, note }, last, ahead));
        inner.failed = false;
        Ok(())
    }
}

impl Ledger {
    /// Goes on as the copy did. What went on here instead is put with what is late.
    fn adopt(&self, inner: &mut Inner, fetched: &Fetched) -> Result<()> {
        if inner.frontier.size() > fetched.first {
            let lost = inner.frontier.size() - fetched.first;
            tracing::warn!(origin = self.origin, entries = lost, "another node went on with this ledger; what only this one has is late");
            self.files.add_late(fetched.first, self.files.records(fetched.offset)?)?;
            self.files.cut_log(fetched.offset)?;
            let mut sealer = self.sealer.write();
            sealer.renew()?;
            let note = inner.signed.note.clone();
            *inner = Inner { failed: true, ..Inner::load(&self.files, &sealer, note.as_bytes(), &self.signing, &self.origin)? };
        }
        if inner.frontier.size() != fetched.first || inner.end != fetched.offset {
            return Err(Error::internal("the ledger was cut at another place than where its copy goes on"));
        }
        let mut records = self.files.fetched()?;
        let mut batch = Vec::with_capacity(BATCH_BYTES);
        loop {
            let leaf = records.next_record()?;
            if let Some(leaf) = &leaf {
                tlog::push_entry(&mut batch, leaf).map_err(Error::internal)?;
            }
            if batch.len() >= BATCH_BYTES || leaf.is_none() {
                self.files.write_log(&batch, inner.end)?;
                Entries::new(&batch).try_for_each(|leaf| inner.count(&self.files, leaf.map_err(Error::internal)?, None))?;
                batch.clear();
            }
            if leaf.is_none() {
                return Ok(());
            }
        }
    }

    /// Appends what is late, once.
    fn append_late(&self) -> Result<()> {
        let Some(mut late) = self.files.late()? else { return Ok(()) };
        // Some of them may be there already, if this was cut short before.
        let mut known = HashSet::new();
        let (mut at, end) = (self.mark().map_or(0, |mark| mark.size), self.size());
        while at < end {
            let page = self.entries(at..end)?;
            at += page.len() as u64;
            for entry in page.into_iter().filter_map(|read| read.entry) {
                known.insert(leaf_hash(&entry.to_json()?).0);
            }
        }
        while let Some(record) = late.next_record()? {
            let Some((index, leaf)) = record.split_first_chunk::<INDEX_BYTES>() else { continue };
            let Some(opened) = self.opened(u64::from_be_bytes(*index), leaf)? else {
                return Err(Error::integrity("the key of a late ledger entry is missing"));
            };
            let entry = late_again(opened.entry()?);
            if entry.generation.is_none() && known.insert(leaf_hash(&entry.to_json()?).0) {
                self.append_overdue(&entry)?;
            }
        }
        self.sync()?;
        self.files.remove_late()
    }
}

/// The entry with the detail, if it is not full.
fn late_again(entry: Entry) -> Entry {
    let mut marked = entry.clone();
    marked.detail.insert(LATE.to_owned(), "true".to_owned());
    if marked.to_json().is_ok() { marked } else { entry }
}

fn bad(why: impl std::fmt::Display) -> Error {
    Error::integrity(format!("the ledger's shared copy: {why}"))
}
