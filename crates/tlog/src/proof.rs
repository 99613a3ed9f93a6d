//! Proofs: that an entry is in the log, and that one log is the beginning of another (RFC 9162, sections 2.1.3 and 2.1.4).
//!
//! Both are a list of at most fifty hashes from which the verifier computes the root, or the two roots, and compares. The
//! text of a proof is a line with its number, then one hash a line; [`LogProof`] is the C2SP tlog-proof that travels
//! alone, with its checkpoint inside.

use std::fmt;
use std::str::FromStr;

use crate::hash::{Hash, node_hash};
use crate::note::NOTE_BYTES_MAX;
use crate::tree::{HashReader, check_size};
use crate::{Error, Note, decimal};

/// The most hashes that a proof may have.
pub const PROOF_HASHES_MAX: usize = 64;

/// Proof that the leaf at `index` is in a tree; from its sibling up to the child of the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InclusionProof {
    /// The index of the leaf, from 0.
    pub index: u64,
    /// The siblings on the way to the root.
    pub hashes: Vec<Hash>,
}

impl InclusionProof {
    /// Builds the proof for leaf `index` in the log's first `size` leaves.
    ///
    /// # Errors
    /// `index` is not below `size`, or a node cannot be read.
    pub fn build(index: u64, size: u64, nodes: &dyn HashReader) -> Result<Self, Error> {
        check_size(size)?;
        if index >= size {
            return Err(Error::NoNode { level: 0, index, size });
        }
        let mut hashes = Vec::new();
        let (mut from, mut to) = (0, size);
        while to - from > 1 {
            let middle = from + split(to - from);
            if index < middle {
                hashes.push(range_root(middle, to, nodes)?);
                to = middle;
            } else {
                hashes.push(range_root(from, middle, nodes)?);
                from = middle;
            }
        }
        hashes.reverse();
        Ok(InclusionProof { index, hashes })
    }

    /// Checks that the tree of `size` leaves with root `root` has `leaf` at the proof's index.
    ///
    /// # Errors
    /// [`Error::ProofDiffers`] if it does not follow.
    pub fn verify(&self, leaf: Hash, size: u64, root: Hash) -> Result<(), Error> {
        if self.index >= size {
            return Err(Error::ProofDiffers);
        }
        let (mut node, mut last, mut hash) = (self.index, size - 1, leaf);
        for sibling in &self.hashes {
            if last == 0 {
                return Err(Error::ProofDiffers);
            }
            if node & 1 == 1 || node == last {
                hash = node_hash(sibling, &hash);
                // A node at the right edge without a sibling stands for its parent too.
                let lonely = node.trailing_zeros();
                (node, last) = (node >> lonely, last >> lonely);
            } else {
                hash = node_hash(&hash, sibling);
            }
            (node, last) = (node >> 1, last >> 1);
        }
        if last == 0 && hash == root { Ok(()) } else { Err(Error::ProofDiffers) }
    }
}

impl fmt::Display for InclusionProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_proof(f, "index", self.index, &self.hashes)
    }
}

impl FromStr for InclusionProof {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse_proof("inclusion proof", "index ", text).map(|(index, hashes)| InclusionProof { index, hashes })
    }
}

/// Proof that a tree begins with the tree of the first `old_size` leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsistencyProof {
    /// The number of leaves of the older tree.
    pub old_size: u64,
    /// The nodes from which both roots can be computed.
    pub hashes: Vec<Hash>,
}

impl ConsistencyProof {
    /// Builds the proof from the log's first `old_size` leaves to its first `new_size`.
    ///
    /// # Errors
    /// `old_size` is above `new_size`, or a node cannot be read.
    pub fn build(old_size: u64, new_size: u64, nodes: &dyn HashReader) -> Result<Self, Error> {
        check_size(new_size)?;
        if old_size > new_size {
            return Err(Error::NoNode { level: 0, index: old_size, size: new_size });
        }
        let mut hashes = Vec::new();
        let (mut from, mut to) = (0, new_size);
        while old_size != 0 && to != old_size {
            let middle = from + split(to - from);
            if old_size <= middle {
                hashes.push(range_root(middle, to, nodes)?);
                to = middle;
            } else {
                hashes.push(range_root(from, middle, nodes)?);
                from = middle;
            }
        }
        // From 0 on, the last subtree is the old tree itself, whose root the verifier has.
        if from != 0 {
            hashes.push(range_root(from, to, nodes)?);
        }
        hashes.reverse();
        Ok(ConsistencyProof { old_size, hashes })
    }

    /// Checks that the tree of `new_size` leaves with `new_root` begins with the proof's older tree, whose root is `old_root`.
    ///
    /// # Errors
    /// [`Error::ProofDiffers`] if it does not follow.
    pub fn verify(&self, old_root: Hash, new_size: u64, new_root: Hash) -> Result<(), Error> {
        if self.follows(old_root, new_size, new_root) { Ok(()) } else { Err(Error::ProofDiffers) }
    }

    fn follows(&self, old_root: Hash, new_size: u64, new_root: Hash) -> bool {
        let old_size = self.old_size;
        if old_size == 0 {
            return self.hashes.is_empty() && old_root == Hash::EMPTY_TREE;
        }
        if old_size >= new_size {
            return old_size == new_size && self.hashes.is_empty() && old_root == new_root;
        }
        let mut rest = self.hashes.iter();
        let start = if old_size.is_power_of_two() { Some(&old_root) } else { rest.next() };
        let Some(start) = start else { return false };
        let skip = (old_size - 1).trailing_ones();
        let (mut node, mut last) = ((old_size - 1) >> skip, (new_size - 1) >> skip);
        let (mut old, mut new) = (*start, *start);
        for sibling in rest {
            if last == 0 {
                return false;
            }
            if node & 1 == 1 || node == last {
                old = node_hash(sibling, &old);
                new = node_hash(sibling, &new);
                let lonely = node.trailing_zeros();
                (node, last) = (node >> lonely, last >> lonely);
            } else {
                new = node_hash(&new, sibling);
            }
            (node, last) = (node >> 1, last >> 1);
        }
        last == 0 && old == old_root && new == new_root
    }
}

impl fmt::Display for ConsistencyProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_proof(f, "old", self.old_size, &self.hashes)
    }
}

impl FromStr for ConsistencyProof {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse_proof("consistency proof", "old ", text).map(|(old_size, hashes)| ConsistencyProof { old_size, hashes })
    }
}

/// An inclusion proof with the checkpoint that it leads to: C2SP tlog-proof, kept in files that end in `.tlog-proof`.
/// Check it with [`crate::Verifier::log_proof`].
#[derive(Clone, Debug)]
pub struct LogProof {
    /// The proof within the checkpoint's tree.
    pub inclusion: InclusionProof,
    /// The checkpoint, not yet verified.
    pub checkpoint: Note,
}

const LOG_PROOF_BYTES_MAX: usize = 2 * NOTE_BYTES_MAX;
const LOG_PROOF_HEADER: &str = "c2sp.org/tlog-proof@v1\n";

impl fmt::Display for LogProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LOG_PROOF_HEADER}{}\n{}", self.inclusion, self.checkpoint)
    }
}

impl FromStr for LogProof {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.len() > LOG_PROOF_BYTES_MAX {
            return Err(Error::TooLarge { what: "log proof", unit: "bytes", max: LOG_PROOF_BYTES_MAX as u64 });
        }
        let body =
            text.strip_prefix(LOG_PROOF_HEADER).ok_or_else(|| Error::malformed("log proof", "first line is not the format's name"))?;
        // Opaque data for other applications; not authenticated, so nothing here looks at it.
        let body = match body.strip_prefix("extra ") {
            Some(rest) => rest.split_once('\n').map_or("", |(_, after)| after),
            None => body,
        };
        let (proof, note) = body.split_once("\n\n").ok_or_else(|| Error::malformed("log proof", "no checkpoint after an empty line"))?;
        Ok(LogProof { inclusion: format!("{proof}\n").parse()?, checkpoint: Note::parse(note.as_bytes())? })
    }
}

/// The largest power of two below `count`, where RFC 9162 splits a tree. `count` is at least 2.
fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// The root of the leaves `from..to`, a subtree at which [`split`] arrives.
fn range_root(mut from: u64, to: u64, nodes: &dyn HashReader) -> Result<Hash, Error> {
    let mut subtrees = Vec::new();
    while from < to {
        let height = (to - from).ilog2();
        subtrees.push(nodes.hash(height as u8, from >> height)?);
        from += 1 << height;
    }
    Ok(subtrees.into_iter().rev().reduce(|right, left| node_hash(&left, &right)).unwrap_or(Hash::EMPTY_TREE))
}

fn write_proof(f: &mut fmt::Formatter<'_>, word: &str, number: u64, hashes: &[Hash]) -> fmt::Result {
    writeln!(f, "{word} {number}")?;
    hashes.iter().try_for_each(|hash| writeln!(f, "{hash}"))
}

fn parse_proof(what: &'static str, word: &str, text: &str) -> Result<(u64, Vec<Hash>), Error> {
    let text = text.strip_suffix('\n').ok_or_else(|| Error::malformed(what, "no newline at the end"))?;
    let mut lines = text.split('\n');
    let number = lines.next().and_then(|line| line.strip_prefix(word)).and_then(decimal);
    let number = number.ok_or_else(|| Error::malformed(what, format!("first line is not `{word}` and a number")))?;
    let hashes = lines.take(PROOF_HASHES_MAX + 1).map(str::parse).collect::<Result<Vec<_>, _>>()?;
    if hashes.len() > PROOF_HASHES_MAX {
        return Err(Error::TooLarge { what, unit: "hashes", max: PROOF_HASHES_MAX as u64 });
    }
    Ok((number, hashes))
}
