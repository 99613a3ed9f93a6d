//! Digests of what goes in and comes out, for the ledger: enough to prove later which bytes they were.
//!
//! Hashing many MiB at once would keep a thread from everybody else for that long, so large bytes are hashed while they come, piece by piece.
//! A [`Digest`] is made of bytes and of nothing else, and [`Digested`] ties it to them: an entry cannot name other bytes than those.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

use crate::name::hex;

/// SHA-256 of bytes; shown in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of bytes that are all there; for few of them.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut digesting = Digesting::default();
        digesting.update(bytes);
        digesting.finish()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// A digest of bytes that come piece by piece.
#[derive(Clone)]
pub struct Digesting(Context);

impl Default for Digesting {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Digesting {
    /// The next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// Of all of them.
    #[must_use]
    pub fn finish(self) -> Digest {
        let mut digest = [0; 32];
        digest.iter_mut().zip(self.0.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Digest(digest)
    }
}

/// Bytes and their digest.
#[derive(Debug, Clone)]
pub struct Digested {
    bytes: Bytes,
    digest: Digest,
}

impl From<Bytes> for Digested {
    /// Of few bytes that are all there.
    fn from(bytes: Bytes) -> Self {
        Self { digest: Digest::of(&bytes), bytes }
    }
}

impl Digested {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Their digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// Bytes that are collected and hashed while they come.
#[derive(Default)]
pub struct Collecting {
    bytes: Vec<u8>,
    digesting: Digesting,
    beside: Option<Box<dyn Send + Sync>>,
}

impl Collecting {
    /// Makes room for more bytes.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve_exact(bytes);
    }

    /// The next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.digesting.update(piece);
        self.bytes.extend_from_slice(piece);
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Keeps something for as long as the bytes are in memory.
    pub fn keep(&mut self, beside: impl Send + Sync + 'static) {
        self.beside = Some(Box::new(beside));
    }

    /// All of them.
    #[must_use]
    pub fn finish(self) -> Digested {
        let bytes = match self.beside {
            None => self.bytes.into(),
            Some(beside) => Bytes::from_owner(Kept { bytes: self.bytes, _beside: beside }),
        };
        Digested { bytes, digest: self.digesting.finish() }
    }
}

struct Kept {
    bytes: Vec<u8>,
    _beside: Box<dyn Send + Sync>,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn pieces_and_the_whole_have_one_digest() {
        let mut collecting = Collecting::default();
        for piece in [&b"ab"[..], b"", b"c"] {
            collecting.push(piece);
        }
        let collected = collecting.finish();
        let whole = Digested::from(Bytes::from_static(b"abc"));
        assert_eq!((collected.bytes(), collected.digest()), (whole.bytes(), whole.digest()));
        // FIPS 180-2, B.1
        assert_eq!(whole.digest().to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn what_is_kept_beside_goes_with_the_last_of_the_bytes() {
        let beside = Arc::new(());
        let mut collecting = Collecting::default();
        collecting.push(b"abc");
        collecting.keep(Arc::clone(&beside));
        let collected = collecting.finish();
        let part = collected.bytes().slice(1..2);
        drop(collected);
        assert_eq!((Arc::strong_count(&beside), &part[..]), (2, &b"b"[..]));
        drop(part);
        assert_eq!(Arc::strong_count(&beside), 1);
    }
}
