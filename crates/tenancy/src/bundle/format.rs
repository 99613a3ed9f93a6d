//! The file: header, sealed chunks, signed statement; and the items inside.

use std::io::{BufRead, Read};

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tlog::{SigningKey, VerifyingKey};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use super::Item;
use crate::error::{Error, Result};
use crate::name::hex;
use crate::seal::{self, Key, TAG_BYTES};

const FORMAT: &str = "insula-bundle-1";
/// What the signature is for; it cannot pass for anything else.
const PURPOSE: &str = "insula bundle v1";
/// Plaintext bytes of every chunk but the last.
const CHUNK_BYTES: usize = 64 * 1024;
/// In a chunk's length: it is the last one.
const LAST: u32 = 1 << 31;
/// Longest header or statement.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// Longest item, without its data.
const ITEM_BYTES_MAX: usize = 64 * 1024;
/// Longest piece of an item's data.
pub(super) const PIECE_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    format: String,
    pub(super) service: String,
    pub(super) vkey: String,
    pub(super) tenant: String,
    pub(super) created_at: i64,
    key_id: String,
    wrapped_key: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    format: String,
    /// Of everything before this line, hex.
    sha256: String,
    bytes: u64,
    vkey: String,
    /// Ed25519 over the lines above, base64.
    signature: String,
}

impl Statement {
    fn signed_text(&self) -> String {
        format!("{}\n{}\n{}\n{}\n", self.format, self.sha256, self.bytes, self.vkey)
    }
}

/// The cipher of one bundle, bound to its header.
struct Chunks {
    cipher: LessSafeKey,
    header: [u8; 32],
}

impl Chunks {
    fn new(bundle: &Key, header: &[u8]) -> Result<Self> {
        let header = sha256(header)?;
        Ok(Self { cipher: bundle.derive("bundle chunks", &header).cipher()?, header })
    }

    /// Nonce: 0 (3) | chunk (8) | last (1). The key is used for this bundle alone, so the counter never repeats.
    fn place(&self, number: u64, last: bool) -> (Nonce, Vec<u8>) {
        let mut nonce = [0u8; NONCE_LEN];
        for (to, from) in nonce.iter_mut().skip(3).zip(number.to_be_bytes().into_iter().chain([u8::from(last)])) {
            *to = from;
        }
        (Nonce::assume_unique_for_key(nonce), [&self.header[..], &number.to_be_bytes(), &[u8::from(last)]].concat())
    }
}

fn key_id(key: &Key) -> String {
    hex(key.derive("bundle key id", &[]).bytes().get(..8).unwrap_or_default())
}

fn wrapping(key: &Key) -> Key {
    key.derive("bundle wrapping", &[])
}

/// Writes a bundle.
pub(super) struct Writer<'w, W> {
    to: &'w mut W,
    chunks: Chunks,
    number: u64,
    buffer: Zeroizing<Vec<u8>>,
    digest: digest::Context,
    bytes: u64,
    vkey: String,
}

impl<'w, W: AsyncWrite + Unpin + Send> Writer<'w, W> {
    /// Begins with the header. `service` and `vkey` of the service that signs.
    pub(super) async fn begin(to: &'w mut W, key: &Key, service: &str, vkey: &str, tenant: &str, now: i64) -> Result<Self> {
        let bundle = Key::random()?;
        let header = Header {
            format: FORMAT.to_owned(),
            service: service.to_owned(),
            vkey: vkey.to_owned(),
            tenant: tenant.to_owned(),
            created_at: now,
            key_id: key_id(key),
            wrapped_key: STANDARD.encode(seal::wrap(&wrapping(key), FORMAT.as_bytes(), &bundle)?),
        };
        let line = line(&header)?;
        let chunks = Chunks::new(&bundle, &line)?;
        let mut writer = Self {
            to,
            chunks,
            number: 0,
            buffer: Zeroizing::new(Vec::with_capacity(CHUNK_BYTES + TAG_BYTES)),
            digest: digest::Context::new(&digest::SHA256),
            bytes: 0,
            vkey: vkey.to_owned(),
        };
        writer.out(&line).await?;
        Ok(writer)
    }

    /// Begins an item; its data follows, then [`Writer::end`].
    pub(super) async fn item(&mut self, item: &Item) -> Result<()> {
        let json = serde_json::to_vec(item).map_err(Error::internal)?;
        if json.len() > ITEM_BYTES_MAX {
            return Err(Error::internal("an item that is too long for a bundle"));
        }
        self.plain(&length(json.len())?).await?;
        self.plain(&json).await
    }

    /// Data of the item.
    pub(super) async fn data(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE_BYTES_MAX) {
            self.plain(&length(piece.len())?).await?;
            self.plain(piece).await?;
        }
        Ok(())
    }

    /// The item is whole.
    pub(super) async fn end(&mut self) -> Result<()> {
        self.plain(&length(0)?).await
    }

    /// The last chunk and the statement. SHA-256 of everything before the statement.
    pub(super) async fn finish(mut self, signing: &SigningKey) -> Result<[u8; 32]> {
        self.chunk(true).await?;
        let hash: [u8; 32] = self.digest.clone().finish().as_ref().try_into().map_err(Error::internal)?;
        let mut statement = Statement {
            format: FORMAT.to_owned(),
            sha256: hex(&hash),
            bytes: self.bytes,
            vkey: self.vkey.clone(),
            signature: String::new(),
        };
        statement.signature = STANDARD.encode(signing.sign(PURPOSE, statement.signed_text().as_bytes()));
        self.out(&line(&statement)?).await?;
        self.to.flush().await?;
        Ok(hash)
    }

    async fn plain(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.buffer.len() == CHUNK_BYTES {
                self.chunk(false).await?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    async fn chunk(&mut self, last: bool) -> Result<()> {
        let (nonce, aad) = self.chunks.place(self.number, last);
        let cipher = &self.chunks.cipher;
        let tag = cipher.seal_in_place_separate_tag(nonce, Aad::from(aad), &mut self.buffer);
        let tag = tag.map_err(|_| Error::internal("sealing failed"))?;
        self.buffer.extend_from_slice(tag.as_ref());
        let length = u32::try_from(self.buffer.len()).map_err(Error::internal)? | if last { LAST } else { 0 };
        let sealed = std::mem::take(&mut *self.buffer);
        self.out(&length.to_be_bytes()).await?;
        self.out(&sealed).await?;
        *self.buffer = sealed;
        self.buffer.clear();
        self.number += 1;
        Ok(())
    }

    async fn out(&mut self, bytes: &[u8]) -> Result<()> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(self.to.write_all(bytes).await?)
    }
}

/// Reads a bundle, chunk by chunk; nothing of a chunk comes out before it has opened.
pub(super) struct Reader<R> {
    from: R,
    pub(super) header: Header,
    chunks: Chunks,
    number: u64,
    chunk: Zeroizing<Vec<u8>>,
    at: usize,
    last: bool,
    digest: digest::Context,
    bytes: u64,
}

/// The one answer to everything that is not as it was written; `what` is for people and names no content.
pub(super) fn refused(what: &str) -> Error {
    Error::Invalid(format!("the bundle does not verify: {what}"))
}

impl<R: BufRead> Reader<R> {
    /// Reads the header and opens the bundle's key.
    ///
    /// # Errors
    /// [`Error::Invalid`]: no bundle, or another key's.
    pub(super) fn begin(mut from: R, key: &Key) -> Result<Self> {
        let mut bytes = Vec::new();
        (&mut from).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes)?;
        let header: Header = parsed(&bytes, "the header")?;
        if header.format != FORMAT {
            return Err(refused("it has another format"));
        }
        if header.key_id != key_id(key) {
            return Err(Error::Invalid(format!("the bundle is sealed under another key: its key id is `{}`", shown(&header.key_id))));
        }
        let wrapped = STANDARD.decode(&header.wrapped_key).map_err(|_| refused("the header"))?;
        let bundle = seal::unwrap(&wrapping(key), FORMAT.as_bytes(), &wrapped).map_err(|_| refused("its key does not open"))?;
        let mut digest = digest::Context::new(&digest::SHA256);
        digest.update(&bytes);
        let chunks = Chunks::new(&bundle, &bytes)?;
        let (chunk, length) = (Zeroizing::new(Vec::new()), bytes.len() as u64);
        Ok(Self { from, header, chunks, number: 0, chunk, at: 0, last: false, digest, bytes: length })
    }

    /// The next item; the data of the one before must have been read to its end.
    pub(super) fn item(&mut self) -> Result<Item> {
        let mut length = [0u8; 4];
        self.exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length == 0 || length > ITEM_BYTES_MAX {
            return Err(refused("an item is malformed"));
        }
        let mut json = vec![0u8; length];
        self.exact(&mut json)?;
        serde_json::from_slice(&json).map_err(|_| refused("an item is malformed"))
    }

    /// The next piece of the item's data; none at its end.
    pub(super) fn data(&mut self) -> Result<Option<Vec<u8>>> {
        let mut length = [0u8; 4];
        self.exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > PIECE_BYTES_MAX {
            return Err(refused("an item's data is malformed"));
        }
        if length == 0 {
            return Ok(None);
        }
        let mut piece = vec![0u8; length];
        self.exact(&mut piece)?;
        Ok(Some(piece))
    }

    /// All data of the item, at most `max` bytes.
    pub(super) fn whole(&mut self, max: usize) -> Result<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(piece) = self.data()? {
            if whole.len() + piece.len() > max {
                return Err(refused("an item's data is too long"));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    /// Nothing more inside; the statement, signed over all of it; and nothing behind it.
    pub(super) fn finish(mut self) -> Result<()> {
        while self.at == self.chunk.len() && !self.last {
            self.turn()?;
        }
        if self.at != self.chunk.len() {
            return Err(refused("something follows its end"));
        }
        let hash: [u8; 32] = self.digest.clone().finish().as_ref().try_into().map_err(Error::internal)?;
        let mut bytes = Vec::new();
        (&mut self.from).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes)?;
        let statement: Statement = parsed(&bytes, "the statement")?;
        let same = statement.format == FORMAT && statement.sha256 == hex(&hash) && statement.bytes == self.bytes;
        if !same || statement.vkey != self.header.vkey {
            return Err(refused("the statement is about another one"));
        }
        let key: VerifyingKey = statement.vkey.parse().map_err(|_| refused("the service's key"))?;
        let signature = STANDARD.decode(&statement.signature).map_err(|_| refused("the signature"))?;
        key.verify(PURPOSE, statement.signed_text().as_bytes(), &signature).map_err(|_| refused("the signature"))?;
        if !self.from.fill_buf()?.is_empty() {
            return Err(refused("something follows its end"));
        }
        Ok(())
    }

    fn exact(&mut self, mut to: &mut [u8]) -> Result<()> {
        while !to.is_empty() {
            if self.at == self.chunk.len() {
                if self.last {
                    return Err(refused("it ends too early"));
                }
                self.turn()?;
                continue;
            }
            let rest = self.chunk.get(self.at..).unwrap_or_default();
            let now = rest.len().min(to.len());
            let (head, tail) = to.split_at_mut(now);
            head.copy_from_slice(rest.get(..now).unwrap_or_default());
            self.at += now;
            to = tail;
        }
        Ok(())
    }

    /// Opens the next chunk.
    fn turn(&mut self) -> Result<()> {
        let cut = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => refused("it was cut"),
            _ => error.into(),
        };
        let mut length = [0u8; 4];
        self.from.read_exact(&mut length).map_err(cut)?;
        self.digest.update(&length);
        let word = u32::from_be_bytes(length);
        self.last = word & LAST != 0;
        let bytes = (word & !LAST) as usize;
        let whole = bytes == CHUNK_BYTES + TAG_BYTES;
        if !whole && (!self.last || !(TAG_BYTES..=CHUNK_BYTES + TAG_BYTES).contains(&bytes)) {
            return Err(refused(&format!("chunk {} is not what was written", self.number)));
        }
        let mut sealed = Zeroizing::new(vec![0u8; bytes]);
        self.from.read_exact(&mut sealed).map_err(cut)?;
        self.digest.update(&sealed);
        let (nonce, aad) = self.chunks.place(self.number, self.last);
        let opened = self.chunks.cipher.open_in_place(nonce, Aad::from(aad), &mut sealed);
        let plain = opened.map_err(|_| refused(&format!("chunk {} is not what was written", self.number)))?.len();
        sealed.truncate(plain);
        self.bytes += 4 + bytes as u64;
        (self.chunk, self.at) = (sealed, 0);
        self.number += 1;
        Ok(())
    }
}

/// Reads the data of one item as a stream.
pub(super) struct Data<'r, R> {
    reader: &'r mut Reader<R>,
    piece: std::io::Cursor<Vec<u8>>,
    ended: bool,
}

impl<'r, R: BufRead> Data<'r, R> {
    pub(super) fn new(reader: &'r mut Reader<R>) -> Self {
        Self { reader, piece: std::io::Cursor::default(), ended: false }
    }
}

impl<R: BufRead> Read for Data<'_, R> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let read = self.piece.read(to)?;
            if read > 0 || self.ended || to.is_empty() {
                return Ok(read);
            }
            match self.reader.data().map_err(std::io::Error::other)? {
                Some(piece) => self.piece = std::io::Cursor::new(piece),
                None => self.ended = true,
            }
        }
    }
}

pub(super) fn sha256(bytes: &[u8]) -> Result<[u8; 32]> {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().map_err(Error::internal)
}

fn length(bytes: usize) -> Result<[u8; 4]> {
    Ok(u32::try_from(bytes).map_err(Error::internal)?.to_be_bytes())
}

fn line(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value).map_err(Error::internal)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A line exactly as [`line`] writes it: no byte of it is left unchecked.
fn parsed<T: Serialize + for<'a> Deserialize<'a>>(bytes: &[u8], what: &str) -> Result<T> {
    let value: T = serde_json::from_slice(bytes).map_err(|_| refused(&format!("{what} is malformed")))?;
    if line(&value)? != bytes {
        return Err(refused(&format!("{what} is malformed")));
    }
    Ok(value)
}

/// Words of a file that is not verified yet.
fn shown(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).take(32).collect()
}
