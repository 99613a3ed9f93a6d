//! The export: the whole log in one file that can be checked without the service.
//!
//! One JSON object a line. The first names the log and has its checkpoint; then a line for each entry with its leaf data,
//! and, unless its key was destroyed, salt and entry. The verifier is given origin and key beforehand (pinned), never
//! from the file. It rebuilds the tree from the leaves, compares with the checkpoint, and each entry with the commitment in
//! its leaf. Each line must be written exactly as we write it, so that no byte of the file is left unchecked.

use std::io::{BufRead, Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tlog::{TreeHead, Verifier};

use super::entry::{COMMITMENT_BYTES, Entry, LEAF_BYTES_MAX, SALT_BYTES, commitment};
use super::{Ledger, verified};
use crate::error::{Error, Result};

const FORMAT: &str = "insula-ledger-1";
/// Longest line: leaf data in base 64, and the entry's JSON beside it.
const LINE_BYTES_MAX: u64 = 4 * LEAF_BYTES_MAX as u64;
/// Longest first line.
const HEADER_BYTES_MAX: u64 = 256 << 10;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    origin: String,
    vkey: String,
    checkpoint: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    index: u64,
    leaf: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    salt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<Entry>,
}

/// What an export was found to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Origin in the checkpoint.
    pub origin: String,
    /// Entries. Remember it together with the root for the next time.
    pub size: u64,
    /// Root of the tree, base64.
    pub root: String,
    /// Entries whose content was there and is what the leaf committed to.
    pub opened: u64,
    /// Entries of which only the leaf is left.
    pub shredded: u64,
}

impl Ledger {
    /// Writes the log up to a fresh checkpoint. The number of entries.
    ///
    /// # Errors
    /// `Integrity` if the entries are not those that were signed; what was written until then is of no use.
    pub(crate) fn export(&self, to: &mut dyn Write) -> Result<u64> {
        let note = self.checkpoint()?;
        let head = verified(note.as_bytes(), &self.signing, &self.origin)?.head;
        let header = Header { format: FORMAT.into(), origin: self.origin.clone(), vkey: self.vkey(), checkpoint: note };
        write_line(to, &header)?;
        let mut frontier = tlog::Frontier::new();
        self.signed_leaves(head.size, |index, leaf| {
            frontier.append(tlog::leaf_hash(leaf), |_, _, _| {}).map_err(Error::internal)?;
            let opened = self.opened(index, leaf)?;
            let salt = opened.as_ref().map(|opened| STANDARD.encode(opened.salt()));
            let entry = opened.map(|opened| opened.entry()).transpose()?;
            write_line(to, &Line { index, leaf: STANDARD.encode(leaf), salt, entry })
        })?;
        if frontier.root() != head.root {
            return Err(Error::integrity("the ledger's entries are not those that were signed"));
        }
        to.flush()?;
        Ok(head.size)
    }
}

/// Checks an export without any service: form, signature, every leaf, every entry, the root, and that the log continues
/// what was remembered (size, root in base64) from the last time. In constant memory.
///
/// # Errors
/// `Invalid` with what is wrong, in words for the auditor; or a read error.
pub fn verify_export(from: &mut dyn BufRead, origin: &str, vkey: &str, remembered: Option<(u64, &str)>) -> Result<Report> {
    verify_each(from, origin, vkey, remembered, &mut |_, _, _| {})
}

/// Is told a line's index, leaf data and entry.
type Seen<'a> = dyn FnMut(u64, &[u8], Option<&Entry>) + 'a;

/// As [`verify_export`]; `seen` is called with each line's index, leaf data and entry. What it saw counts only if the whole verifies.
pub(super) fn verify_each(
    from: &mut dyn BufRead,
    origin: &str,
    vkey: &str,
    remembered: Option<(u64, &str)>,
    seen: &mut Seen<'_>,
) -> Result<Report> {
    let wrong = |why: &dyn std::fmt::Display| Error::Invalid(format!("the export does not verify: {why}"));
    let key = vkey.parse().map_err(|error| Error::Invalid(format!("the pinned key is not a key: {error}")))?;
    let mut verifier = Verifier::new(origin, key);
    if let Some((size, root)) = remembered {
        let root = root.parse().map_err(|error| Error::Invalid(format!("the remembered root is not a root: {error}")))?;
        verifier = verifier.remembering(TreeHead { size, root });
    }
    let header: Header = read_line(from, HEADER_BYTES_MAX, "line 1")?.ok_or_else(|| wrong(&"it is empty"))?;
    if header.format != FORMAT || header.origin != origin || header.vkey != vkey {
        return Err(wrong(&"format, origin or key are not those that were pinned"));
    }
    let mut export = verifier.export(header.checkpoint.as_bytes()).map_err(|refusal| wrong(&refusal))?;
    let (mut opened, mut shredded) = (0, 0);
    loop {
        let index = opened + shredded;
        let Some(line) = read_line::<Line>(from, LINE_BYTES_MAX, &format!("entry {index}"))? else { break };
        let leaf = STANDARD.decode(&line.leaf).map_err(|_| wrong(&format_args!("entry {index} has no leaf")))?;
        if line.index != index {
            return Err(wrong(&format_args!("entry {} stands where {index} should", line.index)));
        }
        export.leaf(&leaf, None).map_err(|refusal| wrong(&refusal))?;
        match (&line.salt, &line.entry) {
            (Some(salt), Some(entry)) if committed(&leaf, salt, entry) => opened += 1,
            (None, None) => shredded += 1,
            _ => return Err(wrong(&format_args!("entry {index} is not what its leaf committed to"))),
        }
        seen(index, &leaf, line.entry.as_ref());
    }
    let head = export.finish().map_err(|refusal| wrong(&refusal))?.checkpoint.head;
    Ok(Report { origin: origin.into(), size: head.size, root: head.root.to_string(), opened, shredded })
}

fn committed(leaf: &[u8], salt: &str, entry: &Entry) -> bool {
    let Ok(salt) = STANDARD.decode(salt) else { return false };
    let Ok(json) = entry.to_json() else { return false };
    salt.len() == SALT_BYTES && leaf.get(..COMMITMENT_BYTES) == Some(&commitment(&salt, &json)[..])
}

fn write_line(to: &mut dyn Write, line: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec(line).map_err(Error::internal)?;
    bytes.push(b'\n');
    Ok(to.write_all(&bytes)?)
}

/// A line exactly as [`write_line`] writes it; none at the end.
fn read_line<T: Serialize + for<'a> Deserialize<'a>>(from: &mut dyn BufRead, bytes_max: u64, what: &str) -> Result<Option<T>> {
    let wrong = |why: &str| Error::Invalid(format!("the export does not verify: {what} {why}"));
    let mut bytes = Vec::new();
    from.take(bytes_max).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let line: T = serde_json::from_slice(&bytes).map_err(|error| wrong(&format!("is malformed: {error}")))?;
    let mut again = Vec::with_capacity(bytes.len());
    write_line(&mut again, &line)?;
    if again != bytes {
        return Err(wrong("is not written as an export is"));
    }
    Ok(Some(line))
}
