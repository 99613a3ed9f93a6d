//! A Merkle log: append, checkpoint, prove, verify.
//!
//! Entries are leaves of a tree of hashes (RFC 6962, RFC 9162). Its root stands for all of them in order; the log signs size
//! and root as a *checkpoint*. Whoever holds an old checkpoint can demand proof that an entry is in the log, that a newer
//! checkpoint continues it, or check a whole export. Nothing can then be changed, dropped or inserted unseen.
//!
//! The forms are public standards, so that other people's tools read them: tiles and paths of C2SP tlog-tiles ([`tile`]),
//! signed notes ([`note`]), tlog-checkpoint, tlog-cosignature and tlog-proof.
//!
//! Pure by intent: no files, no network, no clock, no tenants, no threads. The log's keeper brings the store
//! ([`TileReader`]); the auditor links this crate alone and uses [`Verifier`].
//!
//! # The log's side
//! ```
//! use tlog::{Checkpoint, InclusionProof, LogProof, MemoryTree, SigningKey, leaf_hash};
//!
//! let key = SigningKey::from_seed("example.org/log", &[7; 32])?; // use 32 secret random bytes
//! let entries = ["alice read", "bob wrote", "carol was refused"];
//! let mut tree = MemoryTree::new(); // a store of files keeps a `Frontier` and writes tiles instead
//! for entry in entries {
//!     tree.append(leaf_hash(entry.as_bytes()))?;
//! }
//! let checkpoint = Checkpoint::new("example.org/log", tree.size(), tree.root()).sign(&key)?;
//! let inclusion = InclusionProof::build(1, tree.size(), &tree)?;
//! let proof = LogProof { inclusion, checkpoint: checkpoint.clone() }.to_string();
//! # let pinned = key.verifying_key().to_string();
//!
//! // The auditor's side, with the key's text pinned beforehand.
//! use tlog::{ConsistencyProof, Refusal, Verifier};
//!
//! let verifier = Verifier::new("example.org/log", pinned.parse()?);
//! let seen = verifier.log_proof(&proof.parse()?, b"bob wrote")?;
//! assert!(matches!(verifier.log_proof(&proof.parse()?, b"bob read"), Err(Refusal::LeafDiffers { index: 1 })));
//!
//! // Later the log has grown; it must continue what was seen.
//! tree.append(leaf_hash(b"dave left"))?;
//! let grown = Checkpoint::new("example.org/log", tree.size(), tree.root()).sign(&key)?.to_string();
//! let proof = ConsistencyProof::build(seen.head.size, tree.size(), &tree)?;
//! let verifier = verifier.remembering(seen.head);
//! assert_eq!(verifier.extension(grown.as_bytes(), &proof)?.head.size, 4);
//!
//! // Or every entry is read again.
//! let mut export = verifier.export(grown.as_bytes())?;
//! for entry in entries.into_iter().chain(["dave left"]) {
//!     export.leaf(entry.as_bytes(), None)?;
//! }
//! assert_eq!(export.finish()?.checkpoint.head.size, 4);
//!
//! // The old checkpoint is now behind.
//! let verifier = verifier.remembering(tlog::TreeHead { size: 4, root: tree.root() });
//! assert!(matches!(verifier.export(checkpoint.to_string().as_bytes()), Err(Refusal::Shrunk { remembered: 4, found: 3 })));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checkpoint;
mod hash;
pub mod note;
mod proof;
pub mod tile;
mod tree;
mod verifier;

pub use checkpoint::{Checkpoint, TreeHead};
pub use hash::{HASH_BYTES, Hash, leaf_hash, node_hash};
pub use note::{KeyKind, Note, Signer, SigningKey, VerifyingKey};
pub use proof::{ConsistencyProof, InclusionProof, LogProof, PROOF_HASHES_MAX};
pub use tile::{Bundle, ENTRY_BYTES_MAX, Entries, Tile, TileHashes, TileReader, push_entry};
pub use tree::{Frontier, HashReader, LEAVES_MAX, MemoryTree};
pub use verifier::{Export, Refusal, Verified, Verifier};

/// What a store says when it cannot read.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong in building, reading and proving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Text or bytes not in their standard's form.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A limit of this crate.
    #[error("{what} too large: at most {max} {unit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// In what the limit counts.
        unit: &'static str,
        /// The limit.
        max: u64,
    },
    /// A leaf or node that a log of this size does not have.
    #[error("no node {index} at level {level} in a log of {size} entries")]
    NoNode {
        /// The level, 0 for leaves.
        level: u8,
        /// The index in the level.
        index: u64,
        /// The log's size.
        size: u64,
    },
    /// The store could not read a tile.
    #[error("cannot read a tile of the log: {0}")]
    Store(#[source] StoreError),
    /// A known key's signature is wrong.
    #[error("bad signature by `{name}`")]
    BadSignature {
        /// The key's name.
        name: String,
    },
    /// No known key signed.
    #[error("not signed by any known key")]
    NotSigned,
    /// The proof does not lead to the root.
    #[error("proof differs: it does not lead to the root")]
    ProofDiffers,
}

impl Error {
    fn malformed(what: &'static str, why: impl Into<String>) -> Self {
        Error::Malformed { what, why: why.into() }
    }
}

/// A number as the standards write it: ASCII digits, no sign, no leading zero.
fn decimal(text: &str) -> Option<u64> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| canonical)
}
