//! One entry: what it says, and how it is sealed.
//!
//! ```text
//! leaf data = commitment 32 | key number u32 | nonce 12 | AES-256-GCM(salt 16 | JSON) | tag 16
//! commitment = SHA-256("insula ledger entry v1" 0x00 | salt | JSON)
//! ```
//!
//! Who is given salt and JSON can check them against the leaf without any key; once the key is destroyed, only a hash of
//! unguessable bytes is left. The associated data names tenant, index, key and commitment, so that no sealed entry can stand in
//! another place. The nonce is 4 random bytes of this opening of the log and the index: an index is sealed twice only
//! after a crash or by two nodes, and then under other random bytes.

use std::collections::BTreeMap;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Most details of an entry.
const DETAILS_MAX: usize = 16;
const DETAIL_KEY_BYTES_MAX: usize = 64;
const DETAIL_VALUE_BYTES_MAX: usize = 256;
/// Longest JSON of an entry.
pub(super) const ENTRY_JSON_BYTES_MAX: usize = 4096;
pub(super) const SALT_BYTES: usize = 16;
pub(super) const COMMITMENT_BYTES: usize = 32;
const NUMBER_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
const OVERHEAD_BYTES: usize = COMMITMENT_BYTES + NUMBER_BYTES + NONCE_LEN + SALT_BYTES + TAG_BYTES;
/// Longest leaf data.
pub(super) const LEAF_BYTES_MAX: usize = OVERHEAD_BYTES + ENTRY_JSON_BYTES_MAX;
const COMMITMENT_LABEL: &[u8] = b"insula ledger entry v1\0";

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
    /// Digests and versions: at most 16, keys of 64 and values of 256 bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, String>,
    /// Generation of the rows this entry was committed with (durable acts).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

impl Entry {
    /// The one JSON of this entry; control characters are escaped by it.
    pub(super) fn to_json(&self) -> Result<Zeroizing<Vec<u8>>> {
        let fits = |(key, value): (&String, &String)| key.len() <= DETAIL_KEY_BYTES_MAX && value.len() <= DETAIL_VALUE_BYTES_MAX;
        if self.detail.len() > DETAILS_MAX || !self.detail.iter().all(fits) {
            return Err(Error::Invalid("a ledger entry holds at most 16 details of 64 and 256 bytes".into()));
        }
        let mut json = Zeroizing::new(Vec::with_capacity(512));
        serde_json::to_writer(&mut *json, self).map_err(Error::internal)?;
        if json.len() > ENTRY_JSON_BYTES_MAX {
            return Err(Error::Invalid(format!("the ledger entry has {} bytes: at most {ENTRY_JSON_BYTES_MAX}", json.len())));
        }
        Ok(json)
    }
}

/// Keys of one ledger.
#[derive(Clone)]
pub(crate) struct LedgerKeys {
    /// Content keys by number; the last one seals, all open.
    pub(crate) content: Vec<(u32, Zeroizing<[u8; 32]>)>,
    /// Ed25519 seed that signs checkpoints.
    pub(crate) signing_seed: Zeroizing<[u8; 32]>,
}

/// Salt and JSON of an opened entry.
pub(super) struct Opened {
    plain: Zeroizing<Vec<u8>>,
}

impl Opened {
    pub(super) fn salt(&self) -> &[u8] {
        self.plain.get(..SALT_BYTES).unwrap_or_default()
    }

    pub(super) fn json(&self) -> &[u8] {
        self.plain.get(SALT_BYTES..).unwrap_or_default()
    }

    pub(super) fn entry(&self) -> Result<Entry> {
        serde_json::from_slice(self.json()).map_err(|error| Error::integrity(format!("ledger entry: {error}")))
    }
}

/// Seals and opens the entries of one ledger.
pub(super) struct Sealer {
    tenant: [u8; 16],
    keys: Vec<(u32, LessSafeKey)>,
    /// Random for each opening of the log.
    nonce_prefix: [u8; 4],
}

impl Sealer {
    pub(super) fn new(tenant: [u8; 16], keys: &[(u32, Zeroizing<[u8; 32]>)]) -> Result<Self> {
        let mut sealer = Self { tenant, keys: Vec::with_capacity(keys.len()), nonce_prefix: [0; 4] };
        sealer.renew()?;
        keys.iter().try_for_each(|(number, key)| sealer.add(*number, key))?;
        if sealer.keys.is_empty() {
            return Err(Error::internal("a ledger needs a content key"));
        }
        Ok(sealer)
    }

    /// As if opened again: what was sealed before at some index may be sealed again there.
    pub(super) fn renew(&mut self) -> Result<()> {
        aws_lc_rs::rand::fill(&mut self.nonce_prefix).map_err(|_| Error::internal("no randomness"))
    }

    pub(super) fn knows(&self, number: u32) -> bool {
        self.keys.iter().any(|(known, _)| *known == number)
    }

    pub(super) fn add(&mut self, number: u32, key: &[u8; 32]) -> Result<()> {
        if self.knows(number) {
            return Err(Error::internal(format!("ledger key {number} is there already")));
        }
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| Error::internal("not a ledger key"))?;
        self.keys.push((number, LessSafeKey::new(key)));
        Ok(())
    }

    /// Leaf data of the entry at `index`.
    pub(super) fn seal(&self, index: u64, json: &[u8]) -> Result<Vec<u8>> {
        let (number, key) = self.keys.last().ok_or_else(|| Error::internal("no ledger key"))?;
        let mut salt = [0u8; SALT_BYTES];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| Error::internal("no randomness"))?;
        let commitment = commitment(&salt, json);
        let mut nonce = [0u8; NONCE_LEN];
        let index_bytes = index.to_be_bytes();
        nonce.iter_mut().zip(self.nonce_prefix.iter().chain(&index_bytes)).for_each(|(place, byte)| *place = *byte);
        let mut sealed = Vec::with_capacity(OVERHEAD_BYTES + json.len());
        sealed.extend_from_slice(&salt);
        sealed.extend_from_slice(json);
        let aad = Aad::from(self.aad(index, *number, &commitment));
        let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed);
        let tag = tag.map_err(|_| Error::internal("cannot seal a ledger entry"))?;
        let mut leaf = Vec::with_capacity(OVERHEAD_BYTES + json.len());
        for part in [&commitment[..], &number.to_be_bytes(), &nonce, &sealed, tag.as_ref()] {
            leaf.extend_from_slice(part);
        }
        Ok(leaf)
    }

    /// None if the key is not there any more.
    ///
    /// # Errors
    /// `Integrity`: not what was sealed for this index.
    pub(super) fn open(&self, index: u64, leaf: &[u8]) -> Result<Option<Opened>> {
        let damaged = || Error::integrity(format!("ledger entry {index} does not open"));
        if leaf.len() > LEAF_BYTES_MAX || leaf.len() < OVERHEAD_BYTES {
            return Err(damaged());
        }
        let (stored, rest) = leaf.split_first_chunk::<COMMITMENT_BYTES>().ok_or_else(damaged)?;
        let (number, rest) = rest.split_first_chunk::<NUMBER_BYTES>().ok_or_else(damaged)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let number = u32::from_be_bytes(*number);
        let Some((_, key)) = self.keys.iter().find(|(known, _)| *known == number) else { return Ok(None) };
        let mut plain = Zeroizing::new(sealed.to_vec());
        let aad = Aad::from(self.aad(index, number, stored));
        let length = key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut plain).map_err(|_| damaged())?.len();
        plain.truncate(length);
        let opened = Opened { plain };
        if commitment(opened.salt(), opened.json()) != *stored {
            return Err(damaged());
        }
        Ok(Some(opened))
    }

    fn aad(&self, index: u64, number: u32, commitment: &[u8; COMMITMENT_BYTES]) -> Vec<u8> {
        [&b"insula ledger v1\0"[..], &self.tenant, &index.to_be_bytes(), &number.to_be_bytes(), commitment].concat()
    }
}

/// Number of the key that a leaf is sealed under.
pub(super) fn key_number(leaf: &[u8]) -> Option<u32> {
    let number = leaf.get(COMMITMENT_BYTES..)?.first_chunk::<NUMBER_BYTES>()?;
    Some(u32::from_be_bytes(*number))
}

/// What a leaf reveals about its entry to those who have salt and JSON, and to nobody else.
pub(super) fn commitment(salt: &[u8], json: &[u8]) -> [u8; COMMITMENT_BYTES] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(COMMITMENT_LABEL);
    context.update(salt);
    context.update(json);
    let mut bytes = [0; COMMITMENT_BYTES];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}
