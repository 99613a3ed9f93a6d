//! The audit log: search, entries, checkpoints, proofs, tiles, export. Everything here reads files, so it runs where
//! blocking is allowed.

use std::collections::BTreeMap;
use std::io::{self, Write};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use platform::tenancy::act::LedgerRead;
use platform::tenancy::{Entry, Filter, LedgerView, Numbered, Outcome, Permit};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::{GET, micros, rfc3339};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;

/// Pieces of an export that wait for the client.
const EXPORT_PIECES_MAX: usize = 8;
/// Size of such a piece in bytes.
const EXPORT_PIECE_BYTES: usize = 64 << 10;

pub(super) fn register(api: &mut Api) {
    api.tenant_route(GET, "/v1/ledger", search_doc("ledger_search", "Search the tenant's audit log"), search);
    api.tenant_route(
        GET,
        "/v1/ledger/entries/{index}",
        Doc::new("ledger_entry", "One entry of the audit log").answers::<LedgerEntry>(),
        entry,
    );
    api.tenant_route(
        GET,
        "/v1/ledger/checkpoint",
        Doc::new("ledger_checkpoint", "Signed checkpoint of the audit log").answers_raw("text/plain", "C2SP tlog-checkpoint"),
        checkpoint,
    );
    api.tenant_route(
        GET,
        "/v1/ledger/key",
        Doc::new("ledger_key", "Origin and key that verify checkpoints; pin them").answers::<LedgerKey>(),
        key,
    );
    api.tenant_route(
        GET,
        "/v1/ledger/export",
        Doc::new("ledger_export", "The audit log as one file that verifies offline")
            .answers_stream("application/x-ndjson", "one JSON object a line"),
        export,
    );
    register_former(api);
    api.tenant_route(
        GET,
        "/v1/ledger/receipts/{index}",
        Doc::new("ledger_receipt", "Signed receipt of a prediction, with the proof that its entry is in the log")
            .answers::<ReceiptAnswer>(),
        receipt,
    );
    api.tenant_route(
        GET,
        "/v1/ledger/proofs/inclusion",
        Doc::new("ledger_inclusion", "Proof that an entry is in the log (RFC 6962)")
            .query("index", "integer", "number of the entry")
            .query("size", "integer", "size of the tree; all of it when absent")
            .answers::<Proof>(),
        inclusion,
    );
    api.tenant_route(
        GET,
        "/v1/ledger/proofs/consistency",
        Doc::new("ledger_consistency", "Proof that the log only grew (RFC 6962)")
            .query("from", "integer", "earlier size")
            .query("to", "integer", "later size; all of it when absent")
            .answers::<Proof>(),
        consistency,
    );
    api.tenant_route(
        GET,
        "/v1/ledger/tiles/{path...}",
        Doc::new(
            "ledger_tile",
            "Tiles and entry bundles (C2SP tlog-tiles), as in tile/0/000, tile/0/000.p/5, tile/entries/000.p/5 and checkpoint",
        )
        .answers_raw("application/octet-stream", "C2SP tlog-tiles"),
        tile,
    );
}

/// What a tenant that was brought here brought along.
fn register_former(api: &mut Api) {
    api.tenant_route(
        GET,
        "/v1/ledger/former",
        Doc::new("former_ledger_list", "Audit logs of services where the tenant lived before it was brought here")
            .answers::<FormerLedgers>(),
        former,
    );
    api.tenant_route(
        GET,
        "/v1/ledger/former/export",
        Doc::new("former_ledger_export", "One of them as a file that verifies offline")
            .query("origin", "string", "which one: its `origin`")
            .answers_stream("application/x-ndjson", "one JSON object a line"),
        former_export,
    );
}

/// The document of a search, the tenant's or the service's.
pub(super) fn search_doc(operation: &'static str, summary: &'static str) -> Doc {
    Doc::new(operation, summary)
        .query("actor", "string", "exact")
        .query("act", "string", "exact")
        .query("outcome", "string", "allowed, refused or failed")
        .query("resource", "string", "exact, or all of a kind as in dataset:*")
        .query("since", "string", "RFC 3339, inclusive")
        .query("until", "string", "RFC 3339, exclusive")
        .query("text", "string", "somewhere in the entry")
        .query("order", "string", "newest (default) or oldest")
        .pages::<LedgerEntry>()
}

/// One entry.
#[derive(Serialize, ToSchema)]
pub(super) struct LedgerEntry {
    /// Place in the log, from 0.
    index: u64,
    /// Absent when the entry's key was destroyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<EntryAnswer>,
}

/// What happened.
#[derive(Serialize, ToSchema)]
#[schema(as = Entry)]
struct EntryAnswer {
    #[schema(format = DateTime)]
    time: String,
    request: String,
    actor: String,
    /// Credential id, or the lease of a job.
    via: String,
    act: String,
    /// As in `dataset:iris`.
    resource: String,
    /// `allowed`, `refused` or `failed`.
    outcome: &'static str,
    reason: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    detail: BTreeMap<String, String>,
}

impl From<Numbered> for LedgerEntry {
    fn from(numbered: Numbered) -> Self {
        Self { index: numbered.index, entry: numbered.entry.map(EntryAnswer::from) }
    }
}

impl From<Entry> for EntryAnswer {
    fn from(entry: Entry) -> Self {
        Self {
            time: rfc3339(entry.time),
            request: entry.request,
            actor: entry.actor,
            via: entry.via,
            act: entry.act,
            resource: entry.resource,
            outcome: match entry.outcome {
                Outcome::Allowed => "allowed",
                Outcome::Refused => "refused",
                Outcome::Failed => "failed",
            },
            reason: entry.reason,
            detail: entry.detail,
        }
    }
}

/// What a request looks for, and how many of it.
pub(super) fn filter(ask: &Ask) -> Result<(Filter, usize)> {
    let invalid = |what: &'static str| Fail::new("query_invalid", what);
    let page = ask.page()?;
    let at = |name| {
        ask.query(name)?
            .map(|text| micros(&text).ok_or_else(|| invalid("`since` and `until` are times as in 2027-01-31T12:00:00Z")))
            .transpose()
    };
    let outcome = match ask.query("outcome")?.as_deref() {
        None => None,
        Some("allowed") => Some(Outcome::Allowed),
        Some("refused") => Some(Outcome::Refused),
        Some("failed") => Some(Outcome::Failed),
        Some(_) => return Err(invalid("`outcome` is allowed, refused or failed")),
    };
    let oldest_first = match ask.query("order")?.as_deref() {
        None | Some("newest") => false,
        Some("oldest") => true,
        Some(_) => return Err(invalid("`order` is newest or oldest")),
    };
    let from = page.after.as_deref().map(|after| after.parse().map_err(|_| invalid("`after` is `next` of the page before"))).transpose()?;
    let filter = Filter {
        actor: ask.query("actor")?,
        act: ask.query("act")?,
        outcome,
        resource: ask.query("resource")?,
        since: at("since")?,
        until: at("until")?,
        text: ask.query("text")?,
        from,
        oldest_first,
    };
    Ok((filter, page.limit() as usize))
}

/// A page of entries.
#[derive(Serialize)]
struct Entries {
    items: Vec<LedgerEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Runs what reads files.
async fn reading<T: Send + 'static>(read: impl FnOnce() -> platform::tenancy::Result<T> + Send + 'static) -> Result<T> {
    Ok(spawn_blocking(read).await.map_err(Fail::internal)??)
}

pub(super) async fn searched(view: LedgerView, filter: Filter, limit: usize) -> Result<Reply> {
    let found = reading(move || view.search(&filter, limit)).await?;
    let items = found.entries.into_iter().map(LedgerEntry::from).collect();
    Reply::json(&Entries { items, next: found.next.map(|next| next.to_string()) })
}

async fn search(permit: &Permit<LedgerRead>, ask: Ask) -> Result<Reply> {
    let (filter, limit) = filter(&ask)?;
    searched(permit.ledger(), filter, limit).await
}

async fn entry(permit: &Permit<LedgerRead>, ask: Ask) -> Result<Reply> {
    let (view, index) = (permit.ledger(), ask.number("index", "ledger entry")?);
    Reply::json(&LedgerEntry::from(reading(move || view.entry(index)).await?))
}

/// A receipt that verifies offline.
#[derive(ToSchema)]
#[schema(as = Receipt)]
#[expect(dead_code, reason = "says in the document how the kernel's answer looks")]
struct ReceiptAnswer {
    /// The signed statement (C2SP signed-note): digests of model, input and output, and the leaf that says the same in the log.
    receipt: String,
    /// The way from that leaf to a signed checkpoint (C2SP tlog-proof).
    proof: String,
}

async fn receipt(permit: &Permit<LedgerRead>, ask: Ask) -> Result<Reply> {
    let (view, index) = (permit.ledger(), ask.number("index", "receipt")?);
    view.fresh().await?;
    Reply::json(&reading(move || view.receipt(index)).await?)
}

pub(super) async fn checkpoint_of(view: LedgerView) -> Result<Reply> {
    view.fresh().await?;
    let note = reading(move || view.checkpoint()).await?;
    Ok(Reply::bytes("text/plain; charset=utf-8", note.into()))
}

async fn checkpoint(permit: &Permit<LedgerRead>, _ask: Ask) -> Result<Reply> {
    checkpoint_of(permit.ledger()).await
}

/// What an auditor pins.
#[derive(Serialize, ToSchema)]
pub(super) struct LedgerKey {
    /// First line of every checkpoint.
    origin: String,
    /// C2SP signed-note verifier key.
    vkey: String,
}

pub(super) async fn key_of(view: LedgerView) -> Result<Reply> {
    let (note, vkey) = reading(move || Ok((view.checkpoint()?, view.vkey()))).await?;
    let origin = note.lines().next().unwrap_or_default().to_owned();
    Reply::json(&LedgerKey { origin, vkey })
}

async fn key(permit: &Permit<LedgerRead>, _ask: Ask) -> Result<Reply> {
    key_of(permit.ledger()).await
}

/// A proof, of one entry or of growth.
#[derive(Serialize, ToSchema)]
struct Proof {
    /// Number of the entry, or the earlier size.
    from: u64,
    /// Size of the tree that the proof ends in.
    size: u64,
    /// Hashes, base64.
    hashes: Vec<String>,
}

impl Proof {
    fn new(from: u64, size: u64, hashes: &[impl ToString]) -> Self {
        Self { from, size, hashes: hashes.iter().map(ToString::to_string).collect() }
    }
}

fn needed(ask: &Ask, name: &'static str) -> Result<u64> {
    ask.query_as(name, "a number")?.ok_or_else(|| Fail::new("query_invalid", format!("give `{name}`")))
}

async fn inclusion(permit: &Permit<LedgerRead>, ask: Ask) -> Result<Reply> {
    let (view, index, size) = (permit.ledger(), needed(&ask, "index")?, ask.query_as("size", "a number")?);
    let size = size.unwrap_or_else(|| view.size());
    let proof = reading(move || view.prove_inclusion(index, size)).await?;
    Reply::json(&Proof::new(index, size, &proof.hashes))
}

async fn consistency(permit: &Permit<LedgerRead>, ask: Ask) -> Result<Reply> {
    let (view, from, to) = (permit.ledger(), needed(&ask, "from")?, ask.query_as("to", "a number")?);
    let to = to.unwrap_or_else(|| view.size());
    let proof = reading(move || view.prove_consistency(from, to)).await?;
    Reply::json(&Proof::new(from, to, &proof.hashes))
}

async fn tile(permit: &Permit<LedgerRead>, ask: Ask) -> Result<Reply> {
    let (view, path) = (permit.ledger(), ask.parameter("path").to_owned());
    let tile = reading(move || view.tile(&path)).await?;
    Ok(Reply::bytes("application/octet-stream", tile.into()))
}

async fn export(permit: &Permit<LedgerRead>, _ask: Ask) -> Result<Reply> {
    exported(permit.ledger()).await
}

/// An audit log from before the tenant was brought here.
#[derive(Serialize, ToSchema)]
struct FormerLedger {
    /// Names the log: pin it to verify.
    origin: String,
    /// C2SP signed-note verifier key: pin it to verify.
    vkey: String,
    /// Entries.
    size: u64,
    /// Root of its tree, base64.
    root: String,
    /// When it was brought here, RFC 3339.
    imported_at: String,
}

/// All of them.
#[derive(Serialize, ToSchema)]
struct FormerLedgers {
    items: Vec<FormerLedger>,
}

async fn former(permit: &Permit<LedgerRead>, _ask: Ask) -> Result<Reply> {
    let known = permit.former_ledgers().await?.into_iter();
    let items = known.map(|log| FormerLedger {
        imported_at: rfc3339(log.imported_at),
        origin: log.origin,
        vkey: log.vkey,
        size: log.size,
        root: log.root,
    });
    Reply::json(&FormerLedgers { items: items.collect() })
}

async fn former_export(permit: &Permit<LedgerRead>, ask: Ask) -> Result<Reply> {
    let origin = ask.query("origin")?.ok_or_else(|| Fail::new("query_invalid", "give `origin`"))?;
    let export = permit.former_ledger(&origin).await?;
    let pieces = export.stream().map(|piece| piece.map_err(Fail::from)).boxed();
    Ok(Reply::stream("application/x-ndjson", Some(export.bytes()), pieces))
}

/// The whole log, written by a thread that waits for the client.
pub(super) async fn exported(view: LedgerView) -> Result<Reply> {
    view.fresh().await?;
    let (sender, receiver) = mpsc::channel(EXPORT_PIECES_MAX);
    spawn_blocking(move || {
        let mut pieces = Pieces { sender: sender.clone(), piece: Vec::with_capacity(EXPORT_PIECE_BYTES) };
        if let Err(error) = view.export(&mut pieces) {
            // When the client has left nobody reads this either.
            let _ = sender.blocking_send(Err(error.into()));
        }
    });
    let pieces = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    Ok(Reply::stream("application/x-ndjson", None, pieces.boxed()))
}

struct Pieces {
    sender: mpsc::Sender<Result<Bytes>>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= EXPORT_PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(EXPORT_PIECE_BYTES));
        self.sender.blocking_send(Ok(piece.into())).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}
