//! The two hashes of a Merkle tree: of a leaf and of a node (RFC 6962, section 2.1).
//!
//! A leaf is prefixed with 0x00 and a node with 0x01, so that no entry can pass for an inner node.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{self, SHA256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::Error;

/// Bytes of a hash.
pub const HASH_BYTES: usize = 32;
/// Entries below this many bytes are hashed in one call from the stack, without an allocation.
const STACK_BYTES: usize = 1024;

/// A SHA-256 hash of a leaf, a node or a whole tree. Its text is standard base64, 44 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; HASH_BYTES]);

impl Hash {
    /// The root of the tree without leaves: SHA-256 of nothing.
    pub const EMPTY_TREE: Hash = Hash([
        0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b,
        0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
    ]);

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; HASH_BYTES] {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl FromStr for Hash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = || Error::malformed("hash", "not the base64 of 32 bytes");
        let bytes = STANDARD.decode(text).map_err(|_| malformed())?;
        Ok(Hash(bytes.try_into().map_err(|_| malformed())?))
    }
}

/// The hash of an entry as it stands in the tree.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    let mut buffer = [0; STACK_BYTES];
    if let Some(message) = buffer.get_mut(..=entry.len()) {
        // The first byte stays 0x00: the prefix of a leaf.
        if let Some(body) = message.get_mut(1..) {
            body.copy_from_slice(entry);
        }
        return Hash(sha256(message));
    }
    let mut context = digest::Context::new(&SHA256);
    context.update(&[0]);
    context.update(entry);
    Hash(to_array(&context.finish()))
}

/// The hash of the node over `left` and `right`.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut message = [1; 1 + 2 * HASH_BYTES];
    let (_, children) = message.split_at_mut(1);
    let (first, second) = children.split_at_mut(HASH_BYTES);
    first.copy_from_slice(&left.0);
    second.copy_from_slice(&right.0);
    Hash(sha256(&message))
}

pub(crate) fn sha256(message: &[u8]) -> [u8; HASH_BYTES] {
    to_array(&digest::digest(&SHA256, message))
}

fn to_array(digest: &digest::Digest) -> [u8; HASH_BYTES] {
    let mut bytes = [0; HASH_BYTES];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        // RFC 6962 test vectors as published with Certificate Transparency.
        let hex = |h: Hash| h.0.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(leaf_hash(b"")), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        assert_eq!(hex(leaf_hash(b"L123456")), "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56");
        assert_eq!(Hash(sha256(b"")), Hash::EMPTY_TREE);
    }

    #[test]
    fn leaf_of_any_length_agrees_with_the_other_implementation() {
        for bytes in [0, 1, 1022, 1023, 1024, 1025, 70_000] {
            let entry = vec![7; bytes];
            assert_eq!(leaf_hash(&entry).0, tlog_tiles::tlog::record_hash(&entry).0, "{bytes} bytes");
        }
    }

    #[test]
    fn text() {
        let hash = leaf_hash(b"x");
        assert_eq!(hash.to_string().parse::<Hash>().unwrap(), hash);
        for bad in ["", "AAAA", " ", &hash.to_string()[1..], &format!("{hash}\n"), &hash.to_string().replace('=', "")] {
            assert!(bad.parse::<Hash>().is_err(), "{bad:?}");
        }
    }
}
