//! A tenant's sealed objects.
use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::name::{hex, unhex};

const LATER: &str = "being written";

/// 128 random bits that name one immutable object of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlobId(pub(crate) [u8; 16]);

impl TryFrom<String> for BlobId {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        unhex(&text).map(Self).ok_or_else(|| Error::Invalid("not a blob id".into()))
    }
}
impl From<BlobId> for String {
    fn from(id: BlobId) -> Self {
        hex(&id.0)
    }
}
impl std::fmt::Display for BlobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Writes one object. Dropped before [`BlobWriter::finish`], nothing is left of it.
pub struct BlobWriter {}

impl BlobWriter {
    /// Appends.
    pub async fn write(&mut self, _data: Bytes) -> Result<()> {
        Err(Error::Unavailable(LATER))
    }
    /// Plaintext bytes so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        0
    }
    /// Makes it durable.
    pub async fn finish(self) -> Result<SealedBlob> {
        Err(Error::Unavailable(LATER))
    }
}

/// A written, durable object which no record knows yet. Dropped, nothing is left of it; [`crate::rows::Tx::attach`] keeps it.
pub struct SealedBlob {}

impl SealedBlob {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> BlobId {
        BlobId([0; 16])
    }
    /// Plaintext length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        0
    }
    /// SHA-256 of the plaintext.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        [0; 32]
    }
}

/// Reads one object; cheap to clone, safe to use in parallel.
#[derive(Clone)]
pub struct BlobReader {}

impl BlobReader {
    /// Plaintext length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        0
    }
    /// SHA-256 of the plaintext.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        [0; 32]
    }
    /// At most `len` bytes from `offset`; shorter only at the end.
    pub async fn read_at(&self, _offset: u64, _len: usize) -> Result<Bytes> {
        Err(Error::Unavailable(LATER))
    }
    /// All of it, in pieces.
    pub fn stream(&self) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        futures_util::stream::empty()
    }
}
