//! Prediction receipts: the service's signed word on one prediction, to be kept by whoever asked for it.
//!
//! A receipt is a note (C2SP signed-note) by the key that signs the log's checkpoints. It says which model answered, in digests
//! and never in content, and *names the leaf* that says the same in the log. So it is worth something in three steps:
//!
//! ```text
//! the note alone                the holder of the log's key said so, and cannot deny it
//! + proof up to a checkpoint    the leaf it names is in the log that everybody is shown
//! + an export of the log        the leaf says what the receipt says, word for word
//! ```
//!
//! No checkpoint covers an entry at the moment of its answer, so the proof comes later ([`Ledger::receipt`]). It can be had for
//! every prediction in the log, whether a receipt was asked for at the time or not: the signature is Ed25519, which gives the same
//! bytes for the same words.
//!
//! A receipt cannot be taken for a checkpoint, although the same key signs both: the second line of a checkpoint is a number.

use std::fmt;
use std::io::BufRead;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tlog::{Checkpoint, Hash, LogProof, Note, SigningKey, VerifyingKey, leaf_hash};

use super::entry::Entry;
use super::export::verify_each;
use super::{Ledger, Outcome, verified};
use crate::act::{Act, Predict};
use crate::error::{Error, Result};
use crate::quota::IsolationClass;

const TITLE: &str = "insula prediction receipt v1";
/// Longest file that is taken for a receipt, in bytes.
const RECEIPT_BYTES_MAX: usize = 256 << 10;

/// What a receipt says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReceiptStatement {
    /// Origin of the log: service and tenant, both opaque.
    pub log: String,
    /// Place of the entry in the log.
    pub entry: u64,
    /// Hash of the leaf there, base64.
    pub leaf: String,
    /// When it was answered, RFC 3339.
    pub time: String,
    /// Request id.
    pub request: String,
    /// Name of the deployment.
    pub deployment: String,
    /// SHA-256 of the model's file, hex.
    pub model: String,
    /// Version of the model.
    pub version: String,
    /// Which policy allowed it: the first half of a SHA-256, hex.
    pub policy: String,
    /// SHA-256 of the request's body, hex.
    pub input: String,
    /// SHA-256 of the answer's body, hex.
    pub output: String,
    /// Isolation class of the cell that answered. `None`: the entry is from before this was told.
    pub isolation: Option<String>,
}

impl ReceiptStatement {
    /// What the log says by this entry.
    ///
    /// # Errors
    /// `NotFound` when it is not a prediction that was answered.
    pub(super) fn of(log: &str, index: u64, leaf: Hash, entry: &Entry) -> Result<Self> {
        let none = || Error::NotFound("receipt");
        let word = |key: &str| entry.detail.get(key).cloned().ok_or_else(none);
        let deployment = entry.resource.strip_prefix("deployment:").filter(|_| entry.act == Predict::NAME).ok_or_else(none)?;
        if entry.outcome != Outcome::Allowed {
            return Err(none());
        }
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(entry.time) * 1000).map_err(Error::internal)?;
        Ok(Self {
            log: log.to_owned(),
            entry: index,
            leaf: leaf.to_string(),
            time: time.format(&Rfc3339).map_err(Error::internal)?,
            request: entry.request.clone(),
            deployment: deployment.to_owned(),
            model: word("model_sha256")?,
            version: word("model_version")?,
            policy: word("policy")?,
            input: word("input_sha256")?,
            output: word("output_sha256")?,
            isolation: entry.detail.get(IsolationClass::DETAIL).cloned(),
        })
    }

    fn sign(&self, key: &SigningKey) -> Result<String> {
        let text = self.to_string();
        // Written text that reads back otherwise would put words in the signer's mouth.
        if text.parse::<Self>()? != *self {
            return Err(Error::internal("a receipt would have a line break in a name"));
        }
        let mut note = Note::new(&text).map_err(Error::internal)?;
        note.sign(key).map_err(Error::internal)?;
        Ok(note.to_string())
    }
}

impl fmt::Display for ReceiptStatement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{TITLE}\nlog {}\nentry {}\nleaf {}\ntime {}", self.log, self.entry, self.leaf, self.time)?;
        writeln!(f, "request {}\ndeployment {}\nmodel {}\nversion {}", self.request, self.deployment, self.model, self.version)?;
        writeln!(f, "policy {}\ninput {}\noutput {}", self.policy, self.input, self.output)?;
        self.isolation.iter().try_for_each(|isolation| writeln!(f, "isolation {isolation}"))
    }
}

impl FromStr for ReceiptStatement {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(TITLE) {
            return Err(wrong(&format_args!("the first line is not `{TITLE}`")));
        }
        let mut word = |name: &str| {
            let value = lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.map(str::to_owned).ok_or_else(|| wrong(&format_args!("there is no line `{name} …` where it belongs")))
        };
        let statement = Self {
            log: word("log")?,
            entry: word("entry")?.parse().map_err(|_| wrong(&"the entry is not a number"))?,
            leaf: word("leaf")?,
            time: word("time")?,
            request: word("request")?,
            deployment: word("deployment")?,
            model: word("model")?,
            version: word("version")?,
            policy: word("policy")?,
            input: word("input")?,
            output: word("output")?,
            isolation: lines.next().and_then(|line| line.strip_prefix("isolation ")).map(str::to_owned),
        };
        // One spelling: nothing else behind the last line, no second form of a number.
        if statement.to_string() == text { Ok(statement) } else { Err(wrong(&"it is not written as a receipt is")) }
    }
}

/// A receipt with its way into the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The signed note.
    pub receipt: String,
    /// Proof that the leaf is in the log (C2SP tlog-proof), with the checkpoint it leads to.
    pub proof: String,
}

/// What a receipt was found to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReceiptReport {
    /// What it says; the signature was right.
    pub statement: ReceiptStatement,
    /// Size of the log that the proof leads into; none without a proof.
    pub proven_size: Option<u64>,
    /// Size of the export that has the same leaf in the same place; none without an export.
    pub export_size: Option<u64>,
    /// Whether the export's entry was readable and said the same; false once its key was destroyed.
    pub entry_compared: bool,
}

impl Ledger {
    /// As [`Ledger::append`], for a prediction: with the receipt.
    ///
    /// # Errors
    /// `NotFound`: the entry is not one of a prediction; nothing happened. Otherwise as [`Ledger::append`].
    pub(crate) fn append_receipted(&self, entry: &Entry) -> Result<String> {
        let mut statement = ReceiptStatement::of(&self.origin, 0, Hash::EMPTY_TREE, entry)?;
        let (index, leaf) = self.append_leaf(entry)?;
        (statement.entry, statement.leaf) = (index, leaf_hash(&leaf).to_string());
        statement.sign(&self.signing)
    }

    /// The receipt of a prediction in the log, proven up to the present checkpoint.
    ///
    /// # Errors
    /// `NotFound`: no such entry, not a prediction, or unreadable since its key was destroyed.
    pub(crate) fn receipt(&self, index: u64) -> Result<Receipt> {
        let none = || Error::NotFound("receipt");
        if index >= self.size() {
            return Err(none());
        }
        let leaf = self.bundle(index / super::WIDTH)?.into_iter().find(|(at, _)| *at == index).ok_or_else(none)?.1;
        let entry = self.opened(index, &leaf)?.ok_or_else(none)?.entry()?;
        let receipt = ReceiptStatement::of(&self.origin, index, leaf_hash(&leaf), &entry)?.sign(&self.signing)?;
        let note = self.checkpoint()?;
        let size = verified(note.as_bytes(), &self.signing, &self.origin)?.head.size;
        if index >= size {
            return Err(Error::Unavailable("the entry is not under a checkpoint yet"));
        }
        let (inclusion, checkpoint) = (self.prove_inclusion(index, size)?, Note::parse(note.as_bytes()).map_err(Error::internal)?);
        Ok(Receipt { receipt, proof: LogProof { inclusion, checkpoint }.to_string() })
    }
}

fn wrong(why: &dyn fmt::Display) -> Error {
    Error::Invalid(format!("the receipt does not verify: {why}"))
}

/// The note and, where there is one, the proof: as the service's answer (JSON), as the note's text, or as the header has it (base64).
fn parts(bytes: &[u8]) -> Result<(String, Option<String>)> {
    if bytes.len() > RECEIPT_BYTES_MAX {
        return Err(wrong(&"it is too long for a receipt"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| wrong(&"it is not text"))?;
    if text.starts_with(TITLE) {
        return Ok((text.to_owned(), None));
    }
    let text = text.strip_suffix('\n').unwrap_or(text);
    if text.starts_with('{') {
        let receipt: Receipt = serde_json::from_str(text).map_err(|error| wrong(&error))?;
        let again = serde_json::to_string(&receipt).map_err(Error::internal)?;
        return if again == text { Ok((receipt.receipt, Some(receipt.proof))) } else { Err(wrong(&"it is not written as a receipt is")) };
    }
    let note = STANDARD.decode(text).ok().and_then(|note| String::from_utf8(note).ok());
    Ok((note.ok_or_else(|| wrong(&"it is neither a note, nor JSON, nor base64"))?, None))
}

/// Checks a receipt without any service: signature and form; the way into the log where the proof is there; and, against an export of
/// the log, that the leaf is there and says the same. The key is pinned beforehand, never taken from the file; the log's origin is the key's name.
///
/// # Errors
/// `Invalid` with what is wrong, in words for the auditor; or a read error.
pub fn verify_receipt(bytes: &[u8], vkey: &str, export: Option<&mut dyn BufRead>) -> Result<ReceiptReport> {
    let key: VerifyingKey = vkey.parse().map_err(|error| Error::Invalid(format!("the pinned key is not a key: {error}")))?;
    let (note, proof) = parts(bytes)?;
    let note = Note::parse(note.as_bytes()).map_err(|error| wrong(&error))?;
    note.verify([&key]).map_err(|error| wrong(&error))?;
    let statement: ReceiptStatement = note.text().parse()?;
    if statement.log != key.name() {
        return Err(wrong(&format_args!("it is about the log `{}`, not that of the pinned key", statement.log)));
    }
    let leaf: Hash = statement.leaf.parse().map_err(|error| wrong(&error))?;
    let proven_size = proof.map(|proof| proven(&proof, &key, statement.entry, leaf)).transpose()?;
    let mut report = ReceiptReport { statement, proven_size, export_size: None, entry_compared: false };
    if let Some(export) = export {
        let mut found = None;
        let whole = verify_each(export, key.name(), vkey, None, &mut |index, bytes, entry| {
            if index == report.statement.entry {
                found = Some((leaf_hash(bytes), entry.cloned()));
            }
        })?;
        let (there, entry) = found.ok_or_else(|| wrong(&"the export ends before the entry that it names"))?;
        let same = |entry: &Entry| {
            ReceiptStatement::of(key.name(), report.statement.entry, there, entry).is_ok_and(|said| said == report.statement)
        };
        if there != leaf || !entry.as_ref().is_none_or(same) {
            return Err(wrong(&"the log says something else in that place"));
        }
        (report.export_size, report.entry_compared) = (Some(whole.size), entry.is_some());
    }
    Ok(report)
}

/// Size of the log that the proof leads into.
fn proven(text: &str, key: &VerifyingKey, index: u64, leaf: Hash) -> Result<u64> {
    let proof: LogProof = text.parse().map_err(|error| wrong(&error))?;
    if proof.to_string() != text || proof.inclusion.index != index {
        return Err(wrong(&"the proof is not one of this entry"));
    }
    proof.checkpoint.verify([key]).map_err(|error| wrong(&format_args!("the proof's checkpoint: {error}")))?;
    let checkpoint: Checkpoint = proof.checkpoint.text().parse().map_err(|error| wrong(&error))?;
    if checkpoint.origin != key.name() {
        return Err(wrong(&"the proof's checkpoint is one of another log"));
    }
    let head = checkpoint.head;
    proof.inclusion.verify(leaf, head.size, head.root).map_err(|error| wrong(&error))?;
    Ok(head.size)
}
