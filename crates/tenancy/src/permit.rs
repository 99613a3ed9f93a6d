//! The one door to a tenant's data.
//!
//! [`Tenant::allow`](crate::Tenant::allow) answers a question with a [`Permit`]: policy said yes, the scope covers it, a quota slot is
//! held, and the ledger can take the entry. The permit opens rows and blobs of that one tenant, and a transaction if the
//! act [`Writes`]. It is spent by [`Permit::finish`], which writes the act's entry and returns the [`Closed`] that an answer needs.
//!
//! A writing act's entry is part of its first transaction, so that the change and its record are durable together or not at
//! all. A reading act's entry is handed to the operating system before the answer leaves. A permit that is dropped, because
//! a request was cut or a task panicked, still leaves its entry: `failed`, `abandoned`.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::act::{Act, ActInfo, DeploymentRollback, Predict, ResourceKind, Writes, act_by_name};
use crate::blobs::{self, BlobId, BlobReader};
use crate::clock::now_micros;
use crate::credential::Scope;
use crate::error::{Error, Result};
use crate::island::{Island, MemberChange, counter};
use crate::kernel::Kernel;
use crate::ledger::{Entry, Outcome};
use crate::member::Member;
use crate::name::Name;
use crate::policy::Role;
use crate::quota::{Limits, Meter, Reservation, Resource, Slot};
use crate::rows::{self, Rows};
use crate::seal::{self, Key};
use crate::tenant::{IslandToken, RequestId, Scoped, Tenant};

/// Most details of one entry, and their length in bytes: each, and all of them as JSON, so that an entry always fits into the ledger.
const DETAILS_MAX: usize = 16;
const DETAIL_BYTES_MAX: usize = 256;
const DETAILS_JSON_BYTES_MAX: usize = 2048;

/// Longest sealed token in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// The proof that one act of one principal of one tenant was allowed.
pub struct Permit<A: Act> {
    pub(crate) inner: Arc<PermitInner>,
    act: PhantomData<fn() -> A>,
}

pub(crate) struct PermitInner {
    pub(crate) kernel: Kernel,
    pub(crate) island: Arc<Island>,
    pub(crate) member: Arc<Member>,
    pub(crate) via: String,
    pub(crate) scope: Arc<Scope>,
    pub(crate) request: RequestId,
    pub(crate) act: &'static str,
    pub(crate) kind: ResourceKind,
    pub(crate) resource: String,
    pub(crate) reason: String,
    pub(crate) detail: Mutex<BTreeMap<String, String>>,
    pub(crate) written: AtomicBool,
    pub(crate) _slot: Option<Slot>,
}

/// Proof that an act's entry is written: an answer cannot be made without one.
#[must_use]
#[derive(Debug)]
pub struct Closed(());

impl Closed {
    pub(crate) fn new() -> Self {
        Self(())
    }
}

impl<A: Act> Permit<A> {
    pub(crate) fn new(inner: PermitInner) -> Self {
        Self { inner: Arc::new(inner), act: PhantomData }
    }

    /// The tenant's records.
    #[must_use]
    pub fn rows(&self) -> Rows<'_> {
        self.inner.island.store.rows()
    }

    /// The tenant's sealed objects.
    #[must_use]
    pub fn blobs(&self) -> Blobs<'_> {
        Blobs { island: &self.inner.island }
    }

    /// What the act is about, as it was asked.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.inner.resource
    }

    /// Who acts.
    #[must_use]
    pub fn principal(&self) -> &str {
        self.inner.member.name.as_str()
    }

    /// The principal's roles.
    #[must_use]
    pub fn roles(&self) -> &[Role] {
        &self.inner.member.roles
    }

    /// The credential the principal came with.
    #[must_use]
    pub fn via(&self) -> &str {
        &self.inner.via
    }

    /// The request this belongs to.
    #[must_use]
    pub fn request(&self) -> &RequestId {
        &self.inner.request
    }

    /// What the tenant may use.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.island.meter.limits()
    }

    /// The tenant's own name, for its own eyes.
    #[must_use]
    pub fn tenant_name(&self) -> &Name {
        &self.inner.island.name
    }

    /// Adds a digest, version or name to the entry; never content. Cut to 256 bytes; more than 16, or than 2 KiB of them, are ignored.
    pub fn detail(&self, key: &'static str, value: impl fmt::Display) {
        self.inner.add_detail(key, &value);
    }

    /// The only key that caches, pools and queues accept: it cannot be mixed up between tenants.
    #[must_use]
    pub fn scoped<K>(&self, key: K) -> Scoped<K> {
        Scoped::new(self.inner.island.id, key)
    }

    /// Groups what belongs to one tenant (its cells) without naming it.
    #[must_use]
    pub fn island(&self) -> IslandToken {
        IslandToken::new(self.inner.island.id)
    }

    /// Changes with every committed write of the tenant: a cache entry of another epoch is stale.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner.island.epoch()
    }

    /// Counts usage; holds no authority.
    #[must_use]
    pub fn meter(&self) -> MeterHandle {
        MeterHandle(Arc::clone(&self.inner.island.meter))
    }

    /// Reserves what lives in memory only (running jobs); given back when dropped.
    ///
    /// # Errors
    /// [`Error::Quota`] when the limit is reached.
    pub fn hold(&self, what: Resource) -> Result<Held> {
        Ok(Held { _reservation: self.inner.island.meter.reserve(what, 1).map_err(Error::Quota)? })
    }

    /// Asks again, for the experiment (or registered model) that the resource turned out to belong to: a grant there may say otherwise
    /// than the roles. To be called as soon as it is known.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the caller may not even see what is in there, [`Error::Forbidden`] when it may see but not do this.
    pub fn within(&self, kind: ResourceKind, name: &str) -> Result<()> {
        self.inner.within(kind, name)
    }

    /// Whether the act may be done in this experiment (or registered model): for lists, which leave out what may not be seen.
    #[must_use]
    pub fn may(&self, kind: ResourceKind, name: &str) -> bool {
        self.inner.granted(A::NAME, A::RESOURCE, kind, name)
    }

    /// Seals a page token or the like: it tells its holder nothing and opens for this tenant alone.
    ///
    /// # Errors
    /// [`Error::Internal`] without randomness.
    pub fn token_seal(&self, content: &[u8]) -> Result<String> {
        Ok(BASE64.encode(seal::seal(&self.inner.token_key()?, b"token", content)?))
    }

    /// What [`Permit::token_seal`] sealed.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else.
    pub fn token_open(&self, token: &str) -> Result<Vec<u8>> {
        let key = self.inner.token_key()?;
        let sealed = BASE64.decode(token).ok().filter(|sealed| sealed.len() <= TOKEN_BYTES_MAX);
        let opened = sealed.and_then(|sealed| seal::open(&key, b"token", &sealed).ok());
        opened.map(|plain| plain.to_vec()).ok_or_else(|| Error::Invalid("the page token is not one of this service".to_owned()))
    }

    /// The act is done: writes its entry unless its transaction did.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the ledger cannot take it; then nothing may be answered.
    pub fn finish(self) -> Result<Closed> {
        self.inner.close(Outcome::Allowed, None)?;
        Ok(Closed(()))
    }

    /// As [`Permit::finish`], of a prediction, with the signed receipt of it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the ledger cannot take it, [`Error::NotFound`] when it was no prediction.
    pub fn finish_receipted(self) -> Result<(Closed, String)> {
        let receipt = self.inner.close_receipted()?;
        Ok((Closed(()), receipt))
    }

    /// The policy that decides here, in 16 hex digits: another one after any change of a rule.
    #[must_use]
    pub fn policy(&self) -> &str {
        self.inner.island.policy.version()
    }

    /// The act failed; `code` is the stable code of the error.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the ledger cannot take it.
    pub fn failed(self, code: &str) -> Result<Closed> {
        self.inner.close(Outcome::Failed, Some(code))?;
        Ok(Closed(()))
    }
}

impl Permit<Predict> {
    /// The way back that `author` ordered when it gave the deployment its rules: asked anew in that member's name, for the same deployment
    /// and this one act, with an entry of its own. Takes no request's place: whoever predicts does not wait for it.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] when there is no such member any more; as [`Tenant::allow`].
    pub fn rollback_ordered(&self, author: &str) -> Result<Permit<DeploymentRollback>> {
        let inner = &self.inner;
        let tenant = Tenant {
            kernel: inner.kernel.clone(),
            island: Arc::clone(&inner.island),
            member: inner.island.member(author).ok_or(Error::Unauthenticated)?,
            via: format!("rule of {}", inner.resource),
            scope: Arc::new(Scope::all()),
            request: RequestId::fresh(),
            admitted: true,
        };
        let permit = tenant.allow::<DeploymentRollback>(&inner.resource)?;
        permit.detail("after_request", &inner.request);
        Ok(permit)
    }
}

impl<A: Act<Mode = Writes>> Permit<A> {
    /// A transaction on the tenant's rows. Waits for the one before it.
    ///
    /// # Errors
    /// [`Error::TenantState`] when the tenant was suspended in the meantime; [`Error::Unavailable`] when it is being opened again, or the
    /// store is busy for too long.
    pub async fn tx(&self) -> Result<Tx<'_>> {
        self.inner.tx().await
    }

    /// A new sealed object. It becomes part of the tenant by [`Tx::attach`]; dropped before that, it is gone.
    ///
    /// # Errors
    /// [`Error::Quota`] when the tenant has no object left.
    pub async fn blob_create(&self) -> Result<Upload> {
        let island = &self.inner.island;
        island.thawed()?;
        let bytes = island.meter.reserve(Resource::StorageBytes, 0).map_err(Error::Quota)?;
        let objects = island.meter.reserve(Resource::Objects, 1).map_err(Error::Quota)?;
        let writer = island.store.blob_writer()?;
        Ok(Upload { writer, bytes, objects })
    }

    /// Puts a content-free ticket into the queue: kind and id of a job whose row is committed *afterwards*. A ticket without a row is dropped.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn enqueue(&self, kind: &str, id: &str) -> Result<()> {
        self.inner.kernel.ticket_add(self.inner.island.id, kind, id, self.principal()).await
    }

    /// Sees to it that the tenant is swept ([`Kernel::claim_sweep`](crate::Kernel::claim_sweep)) at `due` (Unix microseconds) or before.
    /// What is to be swept is committed *afterwards*.
    ///
    /// # Errors
    /// [`Error::Internal`] when the control store fails.
    pub async fn sweep_at(&self, due: i64) -> Result<()> {
        self.inner.kernel.sweep_add(self.inner.island.id, self.principal(), due).await
    }
}

impl PermitInner {
    pub(crate) async fn tx(&self) -> Result<Tx<'_>> {
        self.island.thawed()?;
        let inner = self.island.store.tx().await?;
        Ok(Tx::new(inner, self))
    }

    fn add_detail(&self, key: &'static str, value: &dyn fmt::Display) {
        let mut value = value.to_string();
        value.truncate(value.floor_char_boundary(DETAIL_BYTES_MAX));
        let mut detail = self.detail.lock();
        let json_bytes = |key: &str, value: &str| json_bytes_max(key) + json_bytes_max(value);
        let taken: usize = detail.iter().filter(|(known, _)| *known != key).map(|(key, value)| json_bytes(key, value)).sum();
        if (detail.len() < DETAILS_MAX || detail.contains_key(key)) && taken + json_bytes(key, &value) <= DETAILS_JSON_BYTES_MAX {
            detail.insert(key.to_owned(), value);
        }
    }

    /// What the policy says when the grant on `name` is looked at in place of one on the resource itself.
    fn granted(&self, act: &'static str, resource: ResourceKind, kind: ResourceKind, name: &str) -> bool {
        match self.member.grant(kind, name) {
            None => true,
            grant => self.island.decide(&self.member, act, resource, &self.resource, grant).allowed,
        }
    }

    fn within(&self, kind: ResourceKind, name: &str) -> Result<()> {
        if self.granted(self.act, self.kind, kind, name) {
            return Ok(());
        }
        let act = act_by_name(self.act).and_then(|act| act_by_name(act.seen_by));
        let seen = act.is_some_and(|see: &ActInfo| self.granted(see.name, see.resource, kind, name));
        Err(if seen { Error::Forbidden { act: self.act } } else { Error::NotFound(self.kind.word()) })
    }

    fn token_key(&self) -> Result<Key> {
        Ok(self.island.store.keyring()?.rows_key().derive("token", &self.island.id.0))
    }

    fn entry(&self, outcome: Outcome, reason: &str) -> Entry {
        Entry {
            time: now_micros(),
            request: self.request.to_string(),
            actor: self.member.name.to_string(),
            via: self.via.clone(),
            act: self.act.to_owned(),
            resource: format!("{}:{}", self.kind.word(), self.resource),
            outcome,
            reason: reason.to_owned(),
            detail: self.detail.lock().clone(),
            generation: None,
        }
    }

    fn close_receipted(&self) -> Result<String> {
        if self.written.swap(true, Ordering::AcqRel) {
            return Err(Error::NotFound("receipt"));
        }
        let receipt = self.island.ledger.append_receipted(&self.entry(Outcome::Allowed, &self.reason)).inspect_err(|error| {
            // Nothing was written: the entry of an act that failed still has to be.
            self.written.store(!matches!(error, Error::NotFound(_)), Ordering::Release);
        })?;
        if self.island.frozen() { self.island.ledger.sync().map(|()| receipt) } else { Ok(receipt) }
    }

    fn close(&self, outcome: Outcome, code: Option<&str>) -> Result<()> {
        if self.written.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let entry = self.entry(outcome, code.unwrap_or(&self.reason));
        self.island.ledger.append(&entry).map_err(|_| Error::Unavailable("the audit log cannot be written"))?;
        // Nobody flushes the log of an island that is on its way out.
        if self.island.frozen() { self.island.ledger.sync() } else { Ok(()) }
    }
}

impl Drop for PermitInner {
    fn drop(&mut self) {
        // Nobody is left to tell: a ledger that failed refuses every later act by itself.
        let _ = self.close(Outcome::Failed, Some("abandoned"));
    }
}

/// What a text takes as a string of JSON, in bytes; rather too many.
fn json_bytes_max(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    // Its quotes, and a comma or a colon.
    text.bytes().map(escaped).sum::<usize>() + 3
}

/// A transaction of one writing act. Reads see its own writes. Dropped without [`Tx::commit`], it never happened.
///
/// Do not ask [`Permit::rows`] while one is open: the tenant has one connection, and this holds it.
pub struct Tx<'p> {
    inner: rows::Tx<'p>,
    permit: &'p PermitInner,
    reserved: Vec<Reservation>,
    released: Vec<(Resource, u64)>,
    members: Vec<MemberChange>,
}

impl<'p> Deref for Tx<'p> {
    type Target = rows::Tx<'p>;
    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

impl DerefMut for Tx<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.inner
    }
}

impl<'p> Tx<'p> {
    pub(crate) fn new(inner: rows::Tx<'p>, permit: &'p PermitInner) -> Self {
        Self { inner, permit, reserved: Vec::new(), released: Vec::new(), members: Vec::new() }
    }

    /// From here on it is another permit's, in the same transaction.
    pub(crate) fn turn_to(&mut self, permit: &'p PermitInner) {
        self.permit = permit;
    }

    /// What the present permit did to limits and members.
    pub(crate) fn part(&mut self) -> Part<'p> {
        let (reserved, released, members) = (&mut self.reserved, &mut self.released, &mut self.members);
        Part {
            permit: self.permit,
            reserved: std::mem::take(reserved),
            released: std::mem::take(released),
            members: std::mem::take(members),
        }
    }

    pub(crate) fn into_rows(self) -> rows::Tx<'p> {
        self.inner
    }

    /// As [`Permit::detail`].
    pub fn detail(&self, key: &'static str, value: impl fmt::Display) {
        self.permit.add_detail(key, &value);
    }

    /// Who acts.
    #[must_use]
    pub fn principal(&self) -> &str {
        self.permit.member.name.as_str()
    }

    /// As [`Permit::within`], for what is only known inside the transaction.
    ///
    /// # Errors
    /// As [`Permit::within`].
    pub fn within(&self, kind: ResourceKind, name: &str) -> Result<()> {
        self.permit.within(kind, name)
    }

    /// Makes the object part of the tenant, counted.
    ///
    /// # Errors
    /// [`Error::Internal`] when the store fails.
    pub async fn attach(&mut self, object: StoredUpload) -> Result<BlobId> {
        let StoredUpload { sealed, bytes, objects } = object;
        let (id, length) = (sealed.id(), sealed.bytes());
        self.inner.attach(sealed).await?;
        self.inner.usage_add("storage_bytes", i64::try_from(length).unwrap_or(i64::MAX)).await?;
        self.inner.usage_add("objects", 1).await?;
        self.reserved.extend([bytes, objects]);
        Ok(id)
    }

    /// Deletes an object: its key now, its bytes right after the commit.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn detach(&mut self, id: BlobId) -> Result<()> {
        let length = self.inner.detach(id).await?.ok_or(Error::NotFound("object"))?;
        self.refund(Resource::StorageBytes, length).await?;
        self.refund(Resource::Objects, 1).await
    }

    /// Counts `n` more of a limited thing, durable with this transaction.
    ///
    /// # Errors
    /// [`Error::Quota`] when the limit is reached.
    pub async fn charge(&mut self, what: Resource, n: u64) -> Result<()> {
        let reservation = self.permit.island.meter.reserve(what, n).map_err(Error::Quota)?;
        if let Some(name) = counter(what) {
            self.inner.usage_add(name, i64::try_from(n).unwrap_or(i64::MAX)).await?;
        }
        self.reserved.push(reservation);
        Ok(())
    }

    /// Counts `n` fewer of a limited thing, durable with this transaction.
    ///
    /// # Errors
    /// [`Error::Internal`] when the store fails.
    pub async fn refund(&mut self, what: Resource, n: u64) -> Result<()> {
        if let Some(name) = counter(what) {
            self.inner.usage_add(name, i64::try_from(n).map_or(i64::MIN, |n| -n)).await?;
        }
        self.released.push((what, n));
        Ok(())
    }

    /// Changes a member: in force, for every later request, as soon as it is committed.
    pub(crate) async fn member_set(&mut self, name: &Name, member: Option<Member>) -> Result<()> {
        match &member {
            Some(member) => self.inner.put(member).await?,
            None => drop(self.inner.delete::<Member>(name.as_str()).await?),
        }
        self.members.push((name.clone(), member));
        Ok(())
    }

    /// Makes it durable, together with the act's entry if this is the permit's first commit.
    ///
    /// # Errors
    /// [`Error::TenantState`] when the tenant was frozen in the meantime, [`Error::Internal`] when the store fails: then nothing happened.
    pub async fn commit(mut self) -> Result<()> {
        let part = self.part();
        commit_all(&self.permit.island, self.inner, vec![part]).await
    }
}

/// What one permit did in a transaction, beside the rows.
pub(crate) struct Part<'p> {
    permit: &'p PermitInner,
    reserved: Vec<Reservation>,
    released: Vec<(Resource, u64)>,
    members: Vec<MemberChange>,
}

/// Makes a transaction of one or several permits durable, with the entry of each whose first commit it is.
pub(crate) async fn commit_all(island: &Island, mut rows: rows::Tx<'_>, parts: Vec<Part<'_>>) -> Result<()> {
    island.thawed()?;
    let firsts = || parts.iter().map(|part| part.permit).filter(|permit| !permit.written.load(Ordering::Acquire));
    let allowed: Vec<Entry> = firsts().map(|permit| permit.entry(Outcome::Allowed, &permit.reason)).collect();
    let failed: Vec<Entry> = firsts().map(|permit| permit.entry(Outcome::Failed, "abandoned")).collect();
    let mut bytes = allowed.iter().map(serde_json::to_vec).collect::<Result<Vec<_>, _>>().map_err(Error::internal)?;
    let last = bytes.pop();
    let pruned = island.worth_pruning();
    if let Some(generation) = pruned {
        rows.outbox_prune(generation).await?;
    }
    let first_generation = rows.generation();
    for entry in bytes {
        rows.outbox_add(entry);
    }
    rows.write_out().await?;
    let committing = island.committing(rows.generation(), failed).await?;
    // From here on the entries are the commit's business: whoever finds out whether it happened writes the ones or the others.
    parts.iter().for_each(|part| part.permit.written.store(true, Ordering::Release));
    rows.commit_with(last).await?;
    pruned.inspect(|generation| island.pruned(*generation));
    let mut members = Vec::new();
    for part in parts {
        part.reserved.into_iter().for_each(Reservation::commit);
        part.released.into_iter().for_each(|(what, n)| island.meter.release(what, n));
        members.extend(part.members);
    }
    committing.done(first_generation, allowed, members)
}

/// Reading side of a tenant's objects.
pub struct Blobs<'p> {
    island: &'p Island,
}

impl Blobs<'_> {
    /// Opens an object; its key is found and its commitment checked.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, [`Error::Integrity`] when it is not what was stored.
    pub async fn open(&self, id: BlobId) -> Result<BlobReader> {
        self.island.store.rows().blob(id).await
    }
}

/// An object being written; counts against the tenant's bytes as it grows.
pub struct Upload {
    writer: blobs::BlobWriter,
    bytes: Reservation,
    objects: Reservation,
}

impl Upload {
    /// Seals and stores the next piece.
    ///
    /// # Errors
    /// [`Error::Quota`] when the tenant's bytes are used up, [`Error::Internal`] when the disk fails.
    pub async fn write(&mut self, piece: Bytes) -> Result<()> {
        self.bytes.grow(piece.len() as u64).map_err(Error::Quota)?;
        self.writer.write(piece).await
    }

    /// Bytes so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.writer.bytes()
    }

    /// All is written and on disk.
    ///
    /// # Errors
    /// [`Error::Internal`] when the disk fails.
    pub async fn finish(self) -> Result<StoredUpload> {
        Ok(StoredUpload { sealed: self.writer.finish().await?, bytes: self.bytes, objects: self.objects })
    }
}

/// An object on disk that is not yet part of the tenant; dropped, it is deleted.
pub struct StoredUpload {
    sealed: blobs::SealedBlob,
    bytes: Reservation,
    objects: Reservation,
}

impl StoredUpload {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> BlobId {
        self.sealed.id()
    }

    /// Length of the plaintext in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sealed.bytes()
    }

    /// SHA-256 of the plaintext.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.sealed.sha256()
    }

    /// Reads it back before it is attached (to inspect it).
    ///
    /// # Errors
    /// [`Error::Integrity`] when it is not what was written.
    pub async fn open(&self) -> Result<BlobReader> {
        self.sealed.open().await
    }
}

/// A place held in memory, free when dropped.
pub struct Held {
    _reservation: Reservation,
}

/// Counts usage of one tenant; holds no authority.
#[derive(Clone)]
pub struct MeterHandle(pub(crate) Arc<Meter>);

impl MeterHandle {
    /// CPU that the tenant's cells used, in microseconds.
    pub fn count_cpu(&self, micros: u64) {
        self.0.count_cpu(micros);
    }

    /// Memory in bytes that a cell held for this long.
    pub fn count_held(&self, bytes: u64, held: std::time::Duration) {
        let micros = held.as_micros();
        let byte_seconds = u64::try_from(u128::from(bytes) * micros / 1_000_000).unwrap_or(u64::MAX);
        self.0.count_held(byte_seconds, u64::try_from(micros).unwrap_or(u64::MAX));
    }

    /// A prediction that waited this long for a cell or a model.
    pub fn count_cold_start(&self, waited: std::time::Duration) {
        self.0.count_cold_start(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
    }

    /// A prediction that waited this long for its turn.
    pub fn count_queued(&self, waited: std::time::Duration) {
        self.0.count_queued(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
    }

    /// A cell that ended badly.
    pub fn count_cell_failed(&self) {
        self.0.count_cell_failed();
    }

    /// A cell that was stopped to make room, or because it idled.
    pub fn count_cell_evicted(&self) {
        self.0.count_cell_evicted();
    }

    /// A job that ran this long: a training, or predictions for a whole data set.
    pub fn count_job(&self, ran: std::time::Duration) {
        self.0.count_job(u64::try_from(ran.as_micros()).unwrap_or(u64::MAX));
    }

    /// Bytes received and sent.
    pub fn count_bytes(&self, received: u64, sent: u64) {
        self.0.count_bytes(received, sent);
    }
}
