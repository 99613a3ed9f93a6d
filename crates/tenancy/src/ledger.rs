//! The ledger: being filled in.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::Result;

/// How an act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Allowed,
    /// Not done: policy, scope, quota or state.
    Refused,
    /// Allowed, and failed.
    Failed,
}

/// One act. Names, digests and versions; never content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Unix microseconds.
    pub time: i64,
    /// Request id.
    pub request: String,
    /// Principal.
    pub actor: String,
    /// Key id, token or lease the actor came with.
    pub via: String,
    /// Name of the act.
    pub act: String,
    /// As in `dataset:iris`.
    pub resource: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Policy ids, or the error's code.
    pub reason: String,
    /// Digests and versions: at most 16, keys 64 and values 256 bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, String>,
    /// Generation of the rows this entry was committed with (durable acts).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// Keys of one ledger.
pub(crate) struct LedgerKeys {
    /// Content keys by number; the last one seals, all open.
    pub(crate) content: Vec<(u32, Zeroizing<[u8; 32]>)>,
    /// Ed25519 seed that signs checkpoints.
    pub(crate) signing_seed: Zeroizing<[u8; 32]>,
}

/// An entry as read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Numbered {
    /// Place in the log, from 0.
    pub index: u64,
    /// The entry; none if its key was shredded.
    pub entry: Option<Entry>,
}

/// What to look for. Empty fields match everything.
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
    /// Somewhere in the entry, case-insensitive.
    pub text: Option<String>,
    /// Newest first from below this index, or oldest first from this index.
    pub from: Option<u64>,
    /// Oldest first.
    pub oldest_first: bool,
}

/// One page of a search.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The hits, in order.
    pub entries: Vec<Numbered>,
    /// `from` of the next page; none at the end.
    pub next: Option<u64>,
}

/// One append-only log.
pub(crate) struct Ledger;

impl Ledger {
    /// Opens or creates the log in `dir` (made if missing). Recovers a torn tail.
    pub(crate) fn open(_dir: &Path, _keys: LedgerKeys, _tenant: [u8; 16], _origin: &str) -> Result<Self> {
        todo!()
    }
    /// Handed to the operating system when this returns. The index of the entry.
    pub(crate) fn append(&self, _entry: &Entry) -> Result<u64> {
        todo!()
    }
    /// On disk when this returns.
    pub(crate) fn sync(&self) -> Result<()> {
        todo!()
    }
    /// Signs and stores the present size (syncs first); returns the note. Cheap if nothing was appended since.
    pub(crate) fn checkpoint(&self) -> Result<String> {
        todo!()
    }
    /// Entries appended since the last checkpoint.
    pub(crate) fn dirty(&self) -> bool {
        todo!()
    }
    pub(crate) fn size(&self) -> u64 {
        todo!()
    }
    pub(crate) fn root(&self) -> [u8; 32] {
        todo!()
    }
    /// Greatest generation in the log: the outbox above it is replayed by the caller.
    pub(crate) fn last_generation(&self) -> Option<u64> {
        todo!()
    }
    pub(crate) fn entry(&self, _index: u64) -> Result<Numbered> {
        todo!()
    }
    pub(crate) fn entries(&self, _range: std::ops::Range<u64>) -> Result<Vec<Numbered>> {
        todo!()
    }
    /// Reads at most `SEARCH_ENTRIES_MAX` entries a call.
    pub(crate) fn search(&self, _filter: &Filter, _limit: usize) -> Result<Found> {
        todo!()
    }
    /// Adds a content key; later entries are sealed with it.
    pub(crate) fn add_content_key(&self, _number: u32, _key: Zeroizing<[u8; 32]>) {
        todo!()
    }
    /// The whole log up to a fresh checkpoint as one `.insula-ledger` file.
    pub(crate) fn export(&self, _to: &mut dyn Write) -> Result<u64> {
        todo!()
    }
    /// C2SP path (`checkpoint`, `tile/0/x001/234.p/5`, `tile/entries/000`) to bytes, up to the last checkpoint.
    pub(crate) fn tile(&self, _path: &str) -> Result<Vec<u8>> {
        todo!()
    }
    /// Audit path of an entry in the tree of `size` entries (RFC 6962).
    pub(crate) fn prove_inclusion(&self, _index: u64, _size: u64) -> Result<Vec<[u8; 32]>> {
        todo!()
    }
    /// Proof that the tree of `from` entries is a prefix of the tree of `to` entries.
    pub(crate) fn prove_consistency(&self, _from: u64, _to: u64) -> Result<Vec<[u8; 32]>> {
        todo!()
    }
    /// Public key for verifiers, C2SP form.
    pub(crate) fn vkey(&self) -> String {
        todo!()
    }
}

/// What an export was found to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Origin in the checkpoint.
    pub origin: String,
    /// Entries.
    pub size: u64,
    /// Root of the tree, base64.
    pub root: String,
    /// Entries whose content was readable and matched its leaf.
    pub opened: u64,
    /// Entries that are shredded: only their leaf is left.
    pub shredded: u64,
}

/// Checks an export without any service: signature, every leaf, the root, and that a remembered (size, root base64) is a prefix.
///
/// # Errors
/// `Integrity` with what is wrong, or a read error.
pub fn verify_export(_from: &mut dyn BufRead, _origin: &str, _vkey: &str, _remembered: Option<(u64, &str)>) -> Result<Report> {
    todo!()
}
