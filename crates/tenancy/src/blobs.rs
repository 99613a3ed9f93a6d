//! A tenant's sealed objects: written once, read in pieces, in parallel.
//!
//! Every object has a random key of its own, wrapped under the tenant's key in the row that knows the object. From it and the
//! object's id come the encryption key and a 32-byte *commitment*, which lies in the row and is compared before anything is
//! decrypted (a wrong key cannot be made to decrypt to something else). What is stored is a run of chunks of 64 KiB, each sealed
//! with AES-256-GCM; nonce and associated data name tenant, object, format, chunk number and whether it is the last one. So a
//! chunk that is changed, moved, dropped or taken from another object or tenant does not open.
//! The pattern is C2SP chunked-encryption.
//!
//! The stored bytes lie in [`Objects`]. They are there before their row is; without a row they were left by a crash, and are swept away.

mod bucket;
mod check;
mod copy;
mod objects;
mod provision;
mod verify;
mod wire;

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use aws_lc_rs::digest;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::freeze::Freeze;
use crate::keyring::Keyring;
use crate::name::{TenantId, hex, unhex};
use crate::rows::db::blocking;
use crate::seal::{self, Key, TAG_BYTES, same};
pub(crate) use check::check_s3;
pub(crate) use objects::Objects;
use objects::{Draft, Sink, Source};
pub(crate) use provision::S3;
pub(crate) use verify::{IsolationProbe, ProbeOutcome};

/// Plaintext bytes of every chunk but the last.
const CHUNK_BYTES: usize = 64 * 1024;
const SEALED_CHUNK_BYTES: usize = CHUNK_BYTES + TAG_BYTES;
/// Goes into every chunk's associated data.
const FORMAT: u8 = 1;
/// Plaintext a writer holds before it goes to work.
const WAITING_BYTES_MAX: usize = 256 * 1024;
/// Plaintext one [`BlobReader::read_at`] gives.
pub(crate) const READ_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Plaintext of one item of [`BlobReader::stream`].
const STREAM_BYTES: usize = 512 * 1024;
/// Chunks that are asked for at once from a server: 4 MiB.
const FETCH_CHUNKS: usize = 64;
/// Such requests of one read side by side.
const FETCHES_MAX: usize = 4;

/// 128 random bits that name one immutable object of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlobId(pub(crate) [u8; 16]);

impl TryFrom<String> for BlobId {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        unhex(&text).map(Self).ok_or_else(|| Error::Invalid("an object id has 32 hex digits".into()))
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

/// What a tenant's rows know about an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlobRow {
    pub(crate) key_version: u32,
    pub(crate) wrapped_key: Vec<u8>,
    pub(crate) commitment: [u8; 32],
    pub(crate) bytes: u64,
    pub(crate) sha256: [u8; 32],
}

/// Writes one object. Dropped before [`BlobWriter::finish`], nothing is left of it.
pub(crate) struct BlobWriter {
    /// `None` while a piece is being sealed; stays so if that failed or nobody waited for it.
    sealer: Option<Sealer>,
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    bytes: u64,
    key: Key,
    commitment: [u8; 32],
    tenant: TenantId,
    draft: Draft,
}

impl BlobWriter {
    /// Begins an object in the tenant's place.
    pub(crate) fn create(objects: &Objects, tenant: TenantId) -> Result<Self> {
        Self::begin(objects, tenant, BlobId(seal::random()?), Key::random()?)
    }

    fn begin(objects: &Objects, tenant: TenantId, id: BlobId, key: Key) -> Result<Self> {
        let (draft, sink) = objects.begin(id)?;
        let (chunks, commitment) = Chunks::new(&key, tenant, id)?;
        let (buffer, digest) = (Zeroizing::new(Vec::new()), digest::Context::new(&digest::SHA256));
        Ok(Self {
            sealer: Some(Sealer { sink, chunks, next: 0, buffer, digest }),
            waiting: Vec::new(),
            waiting_bytes: 0,
            bytes: 0,
            key,
            commitment,
            tenant,
            draft,
        })
    }

    /// Appends. Holds at most 256 KiB and the piece itself in memory; on its way to a bucket also four parts of 8 MiB.
    ///
    /// # Errors
    /// [`Error::Internal`] when the disk fails, [`Error::Unavailable`] when the object store is out of reach; the object is lost then.
    pub(crate) async fn write(&mut self, data: Bytes) -> Result<()> {
        self.bytes += data.len() as u64;
        self.waiting_bytes += data.len();
        self.waiting.push(data);
        if self.waiting_bytes < WAITING_BYTES_MAX && self.waiting.len() < WAITING_BYTES_MAX / 1024 {
            return Ok(());
        }
        let (mut sealer, waiting) = self.take()?;
        let sealer = blocking(move || {
            waiting.iter().try_for_each(|piece| sealer.push(piece))?;
            Ok(sealer)
        });
        let mut sealer = sealer.await?;
        sealer.sink.ship().await?;
        self.sealer = Some(sealer);
        Ok(())
    }

    /// Plaintext bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// As [`BlobWriter::write`].
    pub(crate) async fn finish(mut self) -> Result<SealedBlob> {
        let (mut sealer, waiting) = self.take()?;
        let sha256 = blocking(move || {
            waiting.iter().try_for_each(|piece| sealer.push(piece))?;
            sealer.finish()
        });
        let (sha256, sink) = sha256.await?;
        sink.finish().await?;
        let Self { tenant, bytes, key, commitment, draft, .. } = self;
        Ok(SealedBlob { tenant, bytes, sha256, key, commitment, draft })
    }

    fn take(&mut self) -> Result<(Sealer, Vec<Bytes>)> {
        self.waiting_bytes = 0;
        let sealer = self.sealer.take().ok_or_else(|| Error::internal("an object's writing was broken off"))?;
        Ok((sealer, std::mem::take(&mut self.waiting)))
    }
}

/// A written, durable object which no record knows yet. Dropped, nothing is left of it; `Tx::attach` keeps it.
pub struct SealedBlob {
    tenant: TenantId,
    bytes: u64,
    sha256: [u8; 32],
    key: Key,
    commitment: [u8; 32],
    draft: Draft,
}

impl SealedBlob {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> BlobId {
        self.draft.id()
    }

    /// Plaintext length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// SHA-256 of the plaintext.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    pub(crate) fn commitment(&self) -> [u8; 32] {
        self.commitment
    }

    /// Where it was written.
    pub(crate) fn objects(&self) -> &Objects {
        self.draft.objects()
    }

    /// Reads it back before any record knows it.
    pub(crate) async fn open(&self) -> Result<BlobReader> {
        let (chunks, _) = Chunks::new(&self.key, self.tenant, self.id())?;
        let source = Arc::new(self.draft.open(sealed_bytes(self.bytes)).await?);
        Ok(BlobReader(Arc::new(Opened { source, chunks, bytes: self.bytes, sha256: self.sha256, freeze: Arc::default() })))
    }

    /// From now on the rows decide whether it stays.
    pub(crate) fn keep(self) {
        self.draft.keep();
    }
}

/// Reads one object; cheap to clone, safe to use in parallel.
#[derive(Clone)]
pub struct BlobReader(Arc<Opened>);

struct Opened {
    source: Arc<Source>,
    chunks: Chunks,
    bytes: u64,
    sha256: [u8; 32],
    freeze: Arc<Freeze>,
}

impl BlobReader {
    /// Opens the object's key, compares commitment and length.
    pub(crate) async fn open(objects: &Objects, id: BlobId, row: &BlobRow, keys: &Keyring, freeze: Arc<Freeze>) -> Result<Self> {
        let key = keys.unwrap_object(row.key_version, id.0, &row.wrapped_key)?;
        let (chunks, commitment) = Chunks::new(&key, keys.tenant(), id)?;
        if !same(&commitment, &row.commitment) {
            return Err(Error::integrity(format!("object {id}: the key is not the one it was sealed with")));
        }
        let source = Arc::new(objects.open(id, sealed_bytes(row.bytes)).await?);
        Ok(Self(Arc::new(Opened { source, chunks, bytes: row.bytes, sha256: row.sha256, freeze })))
    }

    /// Plaintext length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// SHA-256 of the plaintext.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.0.sha256
    }

    /// `len` plaintext bytes from `offset`; fewer only at the end.
    ///
    /// # Errors
    /// [`Error::Invalid`] above 64 MiB at once; [`Error::Integrity`] when the file is not what was written; [`Error::TenantState`] or
    /// [`Error::Unavailable`] when the tenant was closed in the meantime.
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        if len > READ_BYTES_MAX {
            return Err(Error::Invalid(format!("read at most {READ_BYTES_MAX} bytes at once")));
        }
        self.0.freeze.check()?;
        let (offset, end) = (offset.min(self.bytes()), self.bytes().min(offset.saturating_add(len as u64)));
        if offset == end {
            return Ok(Bytes::new());
        }
        let opened = Arc::clone(&self.0);
        match &*self.0.source {
            Source::File(_) => blocking(move || opened.read(offset, end)).await,
            Source::Remote(_) => opened.fetch(offset, end).await,
        }
    }

    /// All of it, in pieces of 512 KiB.
    pub fn stream(&self) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        futures_util::stream::try_unfold((self.clone(), 0), |(reader, offset)| async move {
            if offset >= reader.bytes() {
                return Ok(None);
            }
            let piece = reader.read_at(offset, STREAM_BYTES).await?;
            let next = offset + piece.len() as u64;
            Ok(Some((piece, (reader, next))))
        })
    }
}

impl Opened {
    /// From the file, chunk by chunk.
    fn read(&self, offset: u64, end: u64) -> Result<Bytes> {
        let Source::File(file) = &*self.source else { return Err(Error::internal("an object without a file")) };
        let mut out = Vec::with_capacity(usize::try_from(end - offset).map_err(Error::internal)?);
        let mut sealed = Zeroizing::new(vec![0u8; SEALED_CHUNK_BYTES]);
        for number in chunk_of(offset)..=chunk_of(end - 1) {
            sealed.resize(self.sealed_len(number)?, 0);
            file.read_exact_at(&mut sealed, number * SEALED_CHUNK_BYTES as u64).map_err(|_| self.chunks.refused(number))?;
            self.unseal(number, offset, end, &mut sealed, &mut out)?;
        }
        Ok(out.into())
    }

    /// From the server, some chunks at once and some of these side by side.
    async fn fetch(self: Arc<Self>, offset: u64, end: u64) -> Result<Bytes> {
        let (first, last) = (chunk_of(offset), chunk_of(end - 1));
        let starts = (first..=last).step_by(FETCH_CHUNKS);
        let fetches = futures_util::stream::iter(starts).map(|start| {
            let (opened, stop) = (Arc::clone(&self), last.min(start + FETCH_CHUNKS as u64 - 1));
            async move {
                let begin = start * SEALED_CHUNK_BYTES as u64;
                let bytes = (stop - start) * SEALED_CHUNK_BYTES as u64 + opened.sealed_len(stop)? as u64;
                let sealed = opened.source.read(begin, bytes).await?;
                blocking(move || opened.unseal_all(start, offset, end, &sealed)).await
            }
        });
        let mut out = Vec::with_capacity(usize::try_from(end - offset).map_err(Error::internal)?);
        let mut fetches = fetches.buffered(FETCHES_MAX);
        while let Some(plain) = fetches.next().await {
            out.extend_from_slice(&plain?);
        }
        Ok(out.into())
    }

    /// The wanted part of these chunks.
    fn unseal_all(&self, first: u64, offset: u64, end: u64, sealed: &[u8]) -> Result<Vec<u8>> {
        let (mut out, mut buffer) = (Vec::with_capacity(sealed.len()), Zeroizing::new(Vec::with_capacity(SEALED_CHUNK_BYTES)));
        for (number, chunk) in (first..).zip(sealed.chunks(SEALED_CHUNK_BYTES)) {
            buffer.clear();
            buffer.extend_from_slice(chunk);
            self.unseal(number, offset, end, &mut buffer, &mut out)?;
        }
        Ok(out)
    }

    /// Opens a chunk in place and appends what lies between offset and end.
    fn unseal(&self, number: u64, offset: u64, end: u64, sealed: &mut [u8], out: &mut Vec<u8>) -> Result<()> {
        let start = number * CHUNK_BYTES as u64;
        let stop = self.bytes.min(start + CHUNK_BYTES as u64);
        let within = |at: u64| usize::try_from(at.clamp(start, stop) - start).map_err(Error::internal);
        let plain = self.chunks.open(number, stop == self.bytes, sealed)?;
        out.extend_from_slice(plain.get(within(offset)?..within(end)?).ok_or_else(|| self.chunks.refused(number))?);
        Ok(())
    }

    /// Stored length of a chunk.
    fn sealed_len(&self, number: u64) -> Result<usize> {
        let plain = self.bytes.saturating_sub(number * CHUNK_BYTES as u64).min(CHUNK_BYTES as u64);
        Ok(usize::try_from(plain).map_err(Error::internal)? + TAG_BYTES)
    }
}

/// Number of the chunk with this plaintext byte.
fn chunk_of(at: u64) -> u64 {
    at / CHUNK_BYTES as u64
}

/// Seals an object chunk by chunk.
struct Sealer {
    sink: Sink,
    chunks: Chunks,
    next: u64,
    /// Plaintext not sealed yet: one chunk at most, since only the end shows which chunk is the last.
    buffer: Zeroizing<Vec<u8>>,
    digest: digest::Context,
}

impl Sealer {
    fn push(&mut self, mut data: &[u8]) -> Result<()> {
        self.digest.update(data);
        let room = SEALED_CHUNK_BYTES.saturating_sub(self.buffer.len());
        self.buffer.reserve_exact(room);
        while !data.is_empty() {
            if self.buffer.len() == CHUNK_BYTES {
                self.chunk(false)?;
            }
            let (now, later) = data.split_at(data.len().min(CHUNK_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            data = later;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<([u8; 32], Sink)> {
        self.chunk(true)?;
        self.sink.flush()?;
        Ok((self.digest.finish().as_ref().try_into().map_err(Error::internal)?, self.sink))
    }

    fn chunk(&mut self, last: bool) -> Result<()> {
        self.chunks.seal(self.next, last, &mut self.buffer)?;
        self.sink.write(&self.buffer)?;
        self.buffer.clear();
        self.next += 1;
        Ok(())
    }
}

/// The cipher of one object, bound to its place.
struct Chunks {
    cipher: LessSafeKey,
    tenant: TenantId,
    id: BlobId,
}

impl Chunks {
    /// The cipher and the commitment.
    fn new(key: &Key, tenant: TenantId, id: BlobId) -> Result<(Self, [u8; 32])> {
        let place = [tenant.0, id.0].concat();
        let cipher = key.derive("object encryption", &place).cipher()?;
        Ok((Self { cipher, tenant, id }, *key.derive("object commitment", &place).bytes()))
    }

    /// Plaintext becomes ciphertext and tag, in place.
    fn seal(&self, number: u64, last: bool, buffer: &mut Vec<u8>) -> Result<()> {
        let (nonce, aad) = self.place(number, last);
        let tag = self.cipher.seal_in_place_separate_tag(nonce, Aad::from(aad), buffer).map_err(|_| Error::internal("sealing failed"))?;
        buffer.extend_from_slice(tag.as_ref());
        Ok(())
    }

    fn open<'a>(&self, number: u64, last: bool, sealed: &'a mut [u8]) -> Result<&'a [u8]> {
        let (nonce, aad) = self.place(number, last);
        self.cipher.open_in_place(nonce, Aad::from(aad), sealed).map(|plain| &*plain).map_err(|_| self.refused(number))
    }

    /// Nonce: 0 (3) | chunk (8) | last (1). The key is used for this object alone, so the counter never repeats.
    fn place(&self, number: u64, last: bool) -> (Nonce, Vec<u8>) {
        let mut nonce = [0u8; NONCE_LEN];
        for (to, from) in nonce.iter_mut().skip(3).zip(number.to_be_bytes().into_iter().chain([u8::from(last)])) {
            *to = from;
        }
        let aad = [&self.tenant.0[..], &self.id.0, &[FORMAT], &number.to_be_bytes(), &[u8::from(last)]].concat();
        (Nonce::assume_unique_for_key(nonce), aad)
    }

    fn refused(&self, number: u64) -> Error {
        Error::integrity(format!("object {}: chunk {number} is not what was written", self.id))
    }
}

/// Stored length of an object.
pub(crate) fn sealed_bytes(plain: u64) -> u64 {
    plain.saturating_add(plain.div_ceil(CHUNK_BYTES as u64).max(1).saturating_mul(TAG_BYTES as u64))
}

#[cfg(test)]
pub(crate) mod tests;
