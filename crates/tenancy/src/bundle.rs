//! Take-out: everything of a tenant in one file, sealed under a key that the tenant holds, to be brought to life by another service.
//!
//! ```text
//! header     one line of JSON: format, service and its key, tenant, time, which key it is sealed under, the wrapped bundle key
//! chunks     length u32, AES-256-GCM; bound to the header, to their number and to the end
//! statement  one line of JSON: SHA-256 of everything before, signed with the service's ledger key
//! ```
//! Inside the chunks lie items, each a line of JSON behind its length, and its data in pieces ([`Item`]). Records, counters and the list
//! of objects are of one moment, in which writers wait; objects never change, so they are written before and after.
//! The ledger goes along as the export that verifies offline. It cannot go on elsewhere, since another service signs there: the new
//! tenant's ledger begins with an entry that names the old one, and the old one stays with the tenant as an object.
//!
//! An import reads all of it twice: first to verify everything, before anything is made; then into a tenant that becomes known only
//! with its last step. Jobs that wait or run begin anew there. API keys are not taken out. Of the limits one goes along: the isolation class that
//! the tenant was promised, which holds where it comes to, or it does not come.

mod export;
mod format;
mod import;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::act::LedgerRead;
use crate::blobs::{BlobId, BlobReader};
use crate::error::Result;
use crate::permit::Permit;
use crate::quota::IsolationClass;
use crate::rows::Record;

pub use export::{Export, ExportInfo};
#[cfg(test)]
pub(crate) use import::{died, finished};
pub(crate) use import::{importing, sweep, sweep_dead};

/// Ledgers of former services that a tenant can have: each move by take-out adds one.
const FORMER_LEDGERS_MAX: u32 = 1000;

/// What lies in a bundle, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "item", rename_all = "snake_case", deny_unknown_fields)]
enum Item {
    /// First. Times in Unix microseconds. Without a class, as they were written before there were two: the first one.
    Manifest {
        tenant: String,
        tenant_created_at: i64,
        exported_at: i64,
        #[serde(default, skip_serializing_if = "IsolationClass::is_default")]
        isolation: IsolationClass,
    },
    /// Data: the plain bytes.
    Object { id: BlobId, bytes: u64, sha256: String },
    /// Data: 16 bytes for each object that the records know; others were deleted while the bundle was written.
    Known,
    /// Data: the record's JSON.
    Record { kind: String, key: String, fields: Vec<(String, String)> },
    /// No data.
    Counter { name: String, value: i64 },
    /// No data. A job that waits or runs, and who wants it done.
    Job { kind: String, id: String, principal: String },
    /// Data: the export of the ledger.
    Ledger { origin: String, vkey: String },
    /// Last: how many there were.
    End { records: u64, counters: u64, objects: u64, bytes: u64 },
}

/// The ledger that a tenant had at a service it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FormerLedger {
    /// Names the log: pin it to verify.
    pub origin: String,
    /// Verifies its checkpoints: pin it.
    pub vkey: String,
    /// Entries.
    pub size: u64,
    /// Root of its tree, base64.
    pub root: String,
    /// When it was taken over, Unix microseconds.
    pub imported_at: i64,
    /// The export, verifiable offline.
    pub export: BlobId,
}

impl Record for FormerLedger {
    const KIND: &'static str = "former_ledger";
    fn key(&self) -> String {
        self.origin.clone()
    }
}

impl Permit<LedgerRead> {
    /// Ledgers of services where the tenant lived before, by origin.
    ///
    /// # Errors
    /// [`Error::Internal`](crate::Error::Internal) when the store fails.
    pub async fn former_ledgers(&self) -> Result<Vec<FormerLedger>> {
        self.rows().list(None, FORMER_LEDGERS_MAX, None).await?.whole()
    }

    /// The export of one of them.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound).
    pub async fn former_ledger(&self, origin: &str) -> Result<BlobReader> {
        let former: FormerLedger = self.rows().require(origin).await?;
        self.blobs().open(former.export).await
    }
}
