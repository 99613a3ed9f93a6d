//! The auditor's side: is this export the whole log, and does it continue the one I saw last time?
//!
//! A [`Verifier`] trusts three things that it was given beforehand: the log's origin, its key, and the tree head that it
//! remembered. All else is taken as an attacker's. It can be handed a whole export, entry by entry in constant memory
//! ([`Verifier::export`]); a checkpoint with a proof that it continues the remembered one ([`Verifier::extension`]); or one
//! entry with its proof ([`Verifier::inclusion`]). Each returns the [`Checkpoint`] to remember, or a [`Refusal`].
//!
//! What it cannot see alone: that others are shown the same log. For that, demand witnesses ([`Verifier::witnessed_by`]).

use std::collections::BTreeSet;

use thiserror::Error as ThisError;

use crate::note::VerifyingKey;
use crate::{Checkpoint, ConsistencyProof, Error, Frontier, Hash, InclusionProof, LogProof, Note, TreeHead, leaf_hash};

/// Why a log or an entry is not accepted.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Refusal {
    /// The checkpoint is for another log.
    #[error("wrong origin: expected a checkpoint of `{expected}`, found one of `{found}`")]
    WrongOrigin {
        /// The pinned origin.
        expected: String,
        /// The checkpoint's.
        found: String,
    },
    /// The pinned key did not sign.
    #[error("wrong key: the checkpoint is not signed by the pinned key `{expected}`")]
    WrongKey {
        /// The pinned key's text.
        expected: String,
    },
    /// Fewer known witnesses signed than demanded.
    #[error("too few witnesses: {found} known ones signed, {needed} are needed")]
    TooFewWitnesses {
        /// Witnesses that signed.
        found: usize,
        /// Witnesses demanded.
        needed: usize,
    },
    /// The log is shorter than it was.
    #[error("shrunk log: it had {remembered} entries, now it has {found}")]
    Shrunk {
        /// The remembered size.
        remembered: u64,
        /// The checkpoint's.
        found: u64,
    },
    /// The log does not begin with the remembered one.
    #[error("forked log: its first {size} entries are not those seen before")]
    Forked {
        /// The remembered size.
        size: u64,
    },
    /// An entry does not have the hash that the export gives for it.
    #[error("leaf {index} differs: the entry does not have its leaf hash")]
    LeafDiffers {
        /// The index of the leaf, from 0.
        index: u64,
    },
    /// The export ends before the log does.
    #[error("truncated export: the checkpoint has {expected} entries, the export {found}")]
    Truncated {
        /// The checkpoint's size.
        expected: u64,
        /// Leaves in the export.
        found: u64,
    },
    /// The export goes on after the log's end.
    #[error("surplus in the export: the checkpoint has {expected} entries, the export more")]
    Surplus {
        /// The checkpoint's size.
        expected: u64,
    },
    /// The entries do not have the signed root.
    #[error("root differs: the entries are not those that the checkpoint signs")]
    RootDiffers,
    /// The note, checkpoint or proof itself is bad.
    #[error(transparent)]
    Bad(#[from] Error),
}

/// What is known of a log beforehand.
#[derive(Clone, Debug)]
pub struct Verifier {
    origin: String,
    key: VerifyingKey,
    remembered: Option<TreeHead>,
    witnesses: Vec<VerifyingKey>,
    quorum: usize,
}

impl Verifier {
    /// Pins a log's origin and key.
    pub fn new(origin: &str, key: VerifyingKey) -> Self {
        Verifier { origin: origin.to_owned(), key, remembered: None, witnesses: Vec::new(), quorum: 0 }
    }

    /// Demands that the log continues `head`, the one seen last.
    pub fn remembering(self, head: TreeHead) -> Self {
        Verifier { remembered: Some(head), ..self }
    }

    /// Demands that at least `quorum` of `witnesses` have signed too. A key given twice counts once.
    pub fn witnessed_by(self, witnesses: Vec<VerifyingKey>, quorum: usize) -> Self {
        Verifier { witnesses, quorum, ..self }
    }

    /// Starts on a whole export: hand it each leaf in order, then call [`Export::finish`].
    ///
    /// # Errors
    /// The checkpoint is not one of this log, or shorter than the remembered one.
    pub fn export(&self, note: &[u8]) -> Result<Export, Refusal> {
        let checkpoint = self.checkpoint(note)?;
        let export = Export { checkpoint, remembered: self.remembered, frontier: Frontier::new(), without_entry: 0 };
        export.check_remembered()?;
        Ok(export)
    }

    /// Verifies a whole export in memory: a checkpoint, every entry, and the leaf hash that the log gives for each.
    ///
    /// # Errors
    /// As [`Verifier::export`], [`Export::leaf`] and [`Export::finish`].
    pub fn export_all<E: AsRef<[u8]>>(&self, note: &[u8], entries: &[E], hashes: &[Hash]) -> Result<Verified, Refusal> {
        let mut export = self.export(note)?;
        if entries.len() != hashes.len() {
            let found = entries.len().min(hashes.len()) as u64;
            return Err(Refusal::Truncated { expected: export.checkpoint.head.size, found });
        }
        for (entry, hash) in entries.iter().zip(hashes) {
            export.leaf(entry.as_ref(), Some(*hash))?;
        }
        export.finish()
    }

    /// Verifies that a checkpoint continues the remembered one (without one: that it is the log's).
    ///
    /// # Errors
    /// The checkpoint is not one of this log, is shorter, or the proof does not lead from the remembered head to it.
    pub fn extension(&self, note: &[u8], proof: &ConsistencyProof) -> Result<Checkpoint, Refusal> {
        let checkpoint = self.checkpoint(note)?;
        let Some(old) = self.remembered else { return Ok(checkpoint) };
        let new = checkpoint.head;
        if proof.old_size != old.size {
            return Err(Error::malformed("consistency proof", format!("begins at {}, not at {}", proof.old_size, old.size)).into());
        }
        proof.verify(old.root, new.size, new.root).map_err(|_| Refusal::Forked { size: old.size })?;
        Ok(checkpoint)
    }

    /// Verifies that `entry` is in the log at the proof's index. Says nothing of the rest of the log, so the returned
    /// checkpoint is one to remember only after [`Verifier::extension`].
    ///
    /// # Errors
    /// The checkpoint is not one of this log, or the proof does not lead to it ([`Refusal::LeafDiffers`]).
    pub fn inclusion(&self, note: &[u8], entry: &[u8], proof: &InclusionProof) -> Result<Checkpoint, Refusal> {
        self.included(Note::parse(note)?, entry, proof)
    }

    /// As [`Verifier::inclusion`], with everything in one file.
    ///
    /// # Errors
    /// As [`Verifier::inclusion`].
    pub fn log_proof(&self, proof: &LogProof, entry: &[u8]) -> Result<Checkpoint, Refusal> {
        self.included(proof.checkpoint.clone(), entry, &proof.inclusion)
    }

    fn included(&self, note: Note, entry: &[u8], proof: &InclusionProof) -> Result<Checkpoint, Refusal> {
        // A proof made before the last audit is still good, so size is not held against it here.
        let checkpoint = self.signed(&note)?;
        let head = checkpoint.head;
        proof.verify(leaf_hash(entry), head.size, head.root).map_err(|_| Refusal::LeafDiffers { index: proof.index })?;
        Ok(checkpoint)
    }

    /// The checkpoint in `note`, if it is this log's and not behind or beside what is remembered.
    fn checkpoint(&self, note: &[u8]) -> Result<Checkpoint, Refusal> {
        let checkpoint = self.signed(&Note::parse(note)?)?;
        let found = checkpoint.head;
        match self.remembered {
            Some(old) if found.size < old.size => Err(Refusal::Shrunk { remembered: old.size, found: found.size }),
            Some(old) if found.size == old.size && found.root != old.root => Err(Refusal::Forked { size: old.size }),
            _ => Ok(checkpoint),
        }
    }

    /// The checkpoint in `note`, if the pinned key and enough witnesses signed it for the pinned origin.
    fn signed(&self, note: &Note) -> Result<Checkpoint, Refusal> {
        let signers = match note.verify(std::iter::once(&self.key).chain(&self.witnesses)) {
            Err(Error::NotSigned) => Vec::new(),
            signers => signers?,
        };
        if !signers.iter().any(|signer| *signer.key == self.key) {
            return Err(Refusal::WrongKey { expected: self.key.to_string() });
        }
        let checkpoint: Checkpoint = note.text().parse()?;
        if checkpoint.origin != self.origin {
            return Err(Refusal::WrongOrigin { expected: self.origin.clone(), found: checkpoint.origin });
        }
        // Counted by key bytes: one witness under two names, or the log as its own witness, proves nothing more.
        let witnesses = signers.iter().map(|signer| signer.key.public_bytes()).filter(|key| *key != self.key.public_bytes());
        let found = witnesses.collect::<BTreeSet<_>>().len();
        if found < self.quorum {
            return Err(Refusal::TooFewWitnesses { found, needed: self.quorum });
        }
        Ok(checkpoint)
    }
}

/// An export under verification; see [`Verifier::export`]. It keeps only the tree's right edge.
#[derive(Debug)]
#[must_use = "nothing is verified before `finish`"]
pub struct Export {
    checkpoint: Checkpoint,
    remembered: Option<TreeHead>,
    frontier: Frontier,
    without_entry: u64,
}

impl Export {
    /// The checkpoint, its signature verified: how many leaves must follow.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Takes the next entry. `hash` is its leaf hash as the export gives it, which tells *which* entry was changed; without
    /// it a changed entry still shows, at the end, as a root that differs.
    ///
    /// # Errors
    /// The entry does not have that hash; the log had ended; the leaves so far are not those remembered.
    pub fn leaf(&mut self, entry: &[u8], hash: Option<Hash>) -> Result<(), Refusal> {
        let computed = leaf_hash(entry);
        if hash.is_some_and(|hash| hash != computed) {
            return Err(Refusal::LeafDiffers { index: self.frontier.size() });
        }
        self.push(computed)
    }

    /// Takes the next leaf of which only the hash is left, its entry having been deleted for good.
    ///
    /// # Errors
    /// As [`Export::leaf`].
    pub fn leaf_without_entry(&mut self, hash: Hash) -> Result<(), Refusal> {
        self.without_entry += 1;
        self.push(hash)
    }

    /// Verifies that the leaves are all and exactly those that the checkpoint signs.
    ///
    /// # Errors
    /// Leaves are missing, or the root differs.
    pub fn finish(self) -> Result<Verified, Refusal> {
        let (expected, found) = (self.checkpoint.head.size, self.frontier.size());
        if found != expected {
            return Err(Refusal::Truncated { expected, found });
        }
        if self.frontier.root() != self.checkpoint.head.root {
            return Err(Refusal::RootDiffers);
        }
        Ok(Verified { checkpoint: self.checkpoint, without_entry: self.without_entry })
    }

    fn push(&mut self, leaf: Hash) -> Result<(), Refusal> {
        let expected = self.checkpoint.head.size;
        if self.frontier.size() >= expected {
            return Err(Refusal::Surplus { expected });
        }
        self.frontier.append(leaf, |_, _, _| {})?;
        self.check_remembered()
    }

    fn check_remembered(&self) -> Result<(), Refusal> {
        match self.remembered {
            Some(old) if old.size == self.frontier.size() && old.root != self.frontier.root() => Err(Refusal::Forked { size: old.size }),
            _ => Ok(()),
        }
    }
}

/// A log of which every leaf was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The checkpoint; remember its head.
    pub checkpoint: Checkpoint,
    /// Leaves of which only the hash was there.
    pub without_entry: u64,
}
