//! Reading a bundle: all of it for verification, then all of it again for the new tenant.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::format::{Data, Reader, refused};
use super::{FormerLedger, Item};
use crate::anchor::Anchor;
use crate::blobs::{BlobId, BlobWriter, SealedBlob};
use crate::clock::now_micros;
use crate::control::{TenantRow, TenantState};
use crate::credential::Scope;
use crate::erasure::remove_folder;
use crate::error::{Error, Result};
use crate::kernel::{FIRST_KEY_DAYS, Kernel, unbroken};
use crate::keyring::Keyring;
use crate::ledger::{Entry, Outcome, Report, verify_export};
use crate::member::Member;
use crate::name::{Name, TenantId, hex, unhex};
use crate::operator::{CreatedTenant, Operator, info, resource};
use crate::place::Placement;
use crate::policy::Role;
use crate::quota::{IsolationClass, Limits};
use crate::rows::contents::Item as Content;
use crate::rows::db::blocking;
use crate::rows::{Record, Store, content_fits};
use crate::seal::{self, Key};

/// Where an import that is under way is noted, each by the tenant to be, so that one that dies is swept.
const IMPORTING: &str = "importing/";
/// Ids of objects in one bundle.
const KNOWN_BYTES_MAX: usize = 16 << 20;
const VALUE_BYTES_MAX: usize = 1 << 20;
/// Objects in one bundle, with those that were deleted while it was written.
const OBJECTS_MAX: usize = KNOWN_BYTES_MAX / 16;
/// Jobs that wait or run in one bundle.
const JOBS_MAX: u64 = 10_000;
/// Rows written in one transaction, and their bytes.
const BATCH_ITEMS_MAX: usize = 200;
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Pieces read ahead.
const PIECES_MAX: usize = 16;
const COPY_BYTES: usize = 256 * 1024;

impl Operator {
    /// Brings a tenant to life from a bundle, under `name`, with new keys. Its first administrator gets the only API key. Limits are the
    /// service's own, but for the isolation class: of the two that was promised, the stronger one.
    ///
    /// # Errors
    /// [`Error::Invalid`] when any byte is not as it was written, the key is another one, or cells of its class cannot run here: nothing is
    /// left then.
    /// [`Error::Conflict`] when the name is taken, or another import is under way.
    pub async fn import(&self, name: &Name, from: &mut (impl AsyncRead + Unpin + Send), key: [u8; 32]) -> Result<CreatedTenant> {
        let (id, key) = (TenantId::random()?, Key::new(key));
        self.acted("TenantImport", &resource(id), async {
            let file = spooled(self.kernel(), from).await?;
            let (kernel, name) = (self.kernel().clone(), name.clone());
            let via = (self.via().to_owned(), self.request().to_string());
            // Whoever asked may go: what was begun is finished or swept.
            unbroken(async move { import(&kernel, id, name, file, key, via).await }).await
        })
        .await
    }
}

/// A file without a name in the data folder.
pub(super) fn nameless(kernel: &Kernel) -> Result<File> {
    let path = kernel.0.config.data_dir.join(format!("spool-{}", hex(&seal::random::<16>()?)));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// The bundle, as it is: it is read twice.
async fn spooled(kernel: &Kernel, from: &mut (impl AsyncRead + Unpin + Send)) -> Result<File> {
    let mut file = tokio::fs::File::from_std(nameless(kernel)?);
    let mut piece = vec![0u8; COPY_BYTES];
    loop {
        let read = from.read(&mut piece).await?;
        let Some(bytes) = piece.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        file.write_all(bytes).await?;
    }
    file.flush().await?;
    Ok(file.into_std().await)
}

async fn import(kernel: &Kernel, id: TenantId, name: Name, file: File, key: Key, via: (String, String)) -> Result<CreatedTenant> {
    let read = file.try_clone()?;
    let check = key.clone();
    let verified = blocking(move || verify(read, &check)).await?;
    let limits = verified.limits(&kernel.0.config.limits);
    within(&verified.counted, &limits)?;
    kernel.isolates(limits.isolation).await?;
    let _one = kernel.0.importing.try_lock().map_err(|_| Error::Conflict("another import is under way: wait for it".to_owned()))?;
    sweep(kernel).await?;
    if kernel.0.control.tenant_by_name(&name).await?.is_some() {
        return Err(Error::Conflict(format!("a tenant named `{name}` exists already")));
    }
    // First of all: who finds the note sees that its maker lives.
    let _hold = kernel.home(id).await?;
    let tier = kernel.0.stores.config.tier;
    let rows = kernel.placement_new(id, tier)?;
    let placement = Placement { objects: kernel.objects_place_new(id, &name, tier).await?, ..rows };
    noted(kernel, id, &placement).await?;
    let made = make(kernel, id, name, file, &key, &placement, &verified, via).await;
    if made.is_err() {
        swept(kernel, id, &placement).await?;
    }
    made
}

fn note(id: TenantId) -> String {
    format!("{IMPORTING}{}", id.hex())
}

async fn noted(kernel: &Kernel, id: TenantId, placement: &Placement) -> Result<()> {
    kernel.0.control.meta_set(&note(id), placement.to_json()?.as_bytes()).await
}

/// What imports have made that are under way, or died.
pub(crate) async fn importing(kernel: &Kernel) -> Result<Vec<(TenantId, Placement)>> {
    let notes = kernel.0.control.metas(IMPORTING).await?;
    let read = |(id, placement): (String, Vec<u8>)| {
        let id = TenantId::parse(&id).ok_or_else(|| Error::integrity("an import of no tenant"))?;
        Ok((id, Placement::parse(&String::from_utf8(placement).map_err(Error::integrity)?)?))
    };
    notes.into_iter().map(read).collect()
}

/// Removes what imports left that did not come to their end. Under the lock of imports, or at start. With several nodes, one that another
/// node is at is left alone: that node is home to the tenant to be. From here on this node is, and the import can no longer succeed.
pub(crate) async fn sweep(kernel: &Kernel) -> Result<()> {
    for (id, placement) in importing(kernel).await? {
        let hold = match kernel.home(id).await {
            Err(Error::Elsewhere(_)) => continue,
            hold => hold?,
        };
        swept(kernel, id, &placement).await?;
        if let Some(hold) = &hold {
            kernel.bury(hold).await?;
        }
    }
    Ok(())
}

/// Removes what one import made, unless it came to its end. The note goes last.
async fn swept(kernel: &Kernel, id: TenantId, placement: &Placement) -> Result<()> {
    if kernel.0.control.tenant_by_id(id).await?.is_none() {
        kernel.rows_place_destroy(id, placement).await?;
        kernel.objects_place_destroy(id, &placement.objects).await?;
        kernel.0.control.tickets_destroy(id).await?;
        let dir = kernel.tenant_dir(id);
        blocking(move || remove_folder(&dir)).await?;
    }
    kernel.0.control.meta_delete(&note(id)).await
}

/// The same for the leader among several nodes, now and then; not while an import is under way here.
pub(crate) async fn sweep_dead(kernel: &Kernel) -> Result<()> {
    let Ok(_one) = kernel.0.importing.try_lock() else { return Ok(()) };
    sweep(kernel).await
}

/// As if an import had died now, with what it had made in `placement`.
#[cfg(test)]
pub(crate) async fn died(kernel: &Kernel, id: TenantId, placement: Placement) {
    noted(kernel, id, &placement).await.unwrap();
}

/// As if an import came to its end now.
#[cfg(test)]
pub(crate) async fn finished(kernel: &Kernel, id: TenantId) -> Result<()> {
    let (keyring, keys) = Keyring::create(&kernel.0.root, id, now_micros())?;
    drop(keyring);
    let row = TenantRow {
        id,
        name: "late".parse()?,
        state: TenantState::Active,
        created_at: 1,
        slot: 0,
        limits: "{}".to_owned(),
        placement: "{}".to_owned(),
        epoch_generation: 0,
    };
    let (_, first) = kernel.key_made(Some(id), "ada", "operator", "x", Scope::all(), None)?;
    kernel.0.control.tenant_import(&row, &keys, &first, &note(id), None).await.map(drop)
}

/// What the first reading found.
pub(super) struct Verified {
    admin: Name,
    counted: Counted,
    isolation: IsolationClass,
    known: BTreeSet<BlobId>,
    tenant: String,
    service: String,
    ledger: Report,
    ledger_vkey: String,
}

/// Reads everything and checks everything.
pub(super) fn verify(mut file: File, key: &Key) -> Result<Verified> {
    file.rewind()?;
    let mut reader = Reader::begin(BufReader::new(file), key)?;
    let Item::Manifest { tenant, isolation, .. } = reader.item()? else { return Err(refused("it begins with no manifest")) };
    reader.whole(0)?;
    if tenant != reader.header.tenant {
        return Err(refused("the manifest is of another tenant"));
    }
    let mut found = Found::default();
    let (mut admin, mut ledger) = (None, None);
    loop {
        match reader.item()? {
            Item::Object { id, bytes, sha256 } => object_checked(&mut reader, &mut found, id, bytes, &sha256)?,
            Item::Known => known(&mut reader, &mut found)?,
            Item::Record { kind, key, fields } => {
                let value = reader.whole(VALUE_BYTES_MAX)?;
                record_checked(&mut found, &kind, &key, &fields, &value)?;
                if kind == Member::KIND {
                    let member: Member = serde_json::from_slice(&value).map_err(|_| refused("a member is malformed"))?;
                    if member.key() != key {
                        return Err(refused("a member is under the name of another one"));
                    }
                    found.members += 1;
                    admin = admin.or(member.is(Role::Admin).then_some(member.name));
                }
            }
            Item::Counter { name, value } => {
                reader.whole(0)?;
                let counter = u64::try_from(value).ok().filter(|_| name.starts_with("usage/") && found.follows((1, &name, "")));
                found.counter(&name, counter.ok_or_else(|| refused("a counter is malformed"))?);
            }
            Item::Job { kind, id, principal } => {
                reader.whole(0)?;
                let known: Result<Name> = principal.parse();
                found.jobs += 1;
                if found.jobs > JOBS_MAX || !content_fits(&kind, &id, &[]) || known.is_err() || !found.follows((2, &id, "")) {
                    return Err(refused("a job is malformed"));
                }
            }
            Item::Ledger { origin, vkey } => {
                let mut data = BufReader::new(Data::new(&mut reader));
                let report = verify_export(&mut data, &origin, &vkey, None)?;
                if ledger.replace((report, vkey)).is_some() {
                    return Err(refused("it has two ledgers"));
                }
            }
            Item::End { records, counters, objects, bytes } => {
                reader.whole(0)?;
                let known: u64 = found.known.iter().flatten().filter_map(|id| found.objects.get(id)).sum();
                let count = found.known.as_ref().map_or(0, BTreeSet::len) as u64;
                if (records, counters, objects, bytes) != (found.records, found.counters, count, known) {
                    return Err(refused("it does not have as much as it says"));
                }
                // The new tenant is held to its limits by these.
                let Counted { objects, storage_bytes, members } = found.counted;
                if (objects, members) != (count, found.members) || storage_bytes < known {
                    return Err(refused("its counters are not those of what it has"));
                }
                break;
            }
            Item::Manifest { .. } => return Err(refused("it has two manifests")),
        }
    }
    let service = reader.header.service.clone();
    reader.finish()?;
    let (ledger, ledger_vkey) = ledger.ok_or_else(|| refused("it has no ledger"))?;
    let known = found.known.ok_or_else(|| refused("it has no list of objects"))?;
    let admin = admin.ok_or_else(|| refused("no member of it is an administrator"))?;
    let counted = found.counted;
    Ok(Verified { admin, counted, isolation, known, tenant, service, ledger, ledger_vkey })
}

impl Verified {
    /// What the new tenant may use from its first moment on.
    fn limits(&self, service: &Limits) -> Limits {
        let isolation = if service.isolation.is_default() { self.isolation } else { service.isolation };
        Limits { isolation, ..*service }
    }
}

#[derive(Default)]
struct Found {
    objects: HashMap<BlobId, u64>,
    known: Option<BTreeSet<BlobId>>,
    records: u64,
    members: u64,
    counters: u64,
    counted: Counted,
    jobs: u64,
    last: Option<(u8, String, String)>,
}

/// What the tenant has by its own counters.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    objects: u64,
    storage_bytes: u64,
    members: u64,
}

/// The new tenant has the service's limits from its first moment on.
fn within(counted: &Counted, limits: &Limits) -> Result<()> {
    let Counted { objects, storage_bytes, members } = *counted;
    // The former ledger is one object more.
    let used = [
        ("objects", objects.saturating_add(1), limits.objects),
        ("storage_bytes", storage_bytes, limits.storage_bytes),
        ("members", members, limits.members),
    ];
    match used.into_iter().find(|(_, used, limit)| used > limit) {
        None => Ok(()),
        Some((name, used, limit)) => Err(Error::Invalid(format!(
            "the tenant comes with {used} `{name}`, more than the {limit} that a new one may have here: raise the service's limits first"
        ))),
    }
}

impl Found {
    fn counter(&mut self, name: &str, value: u64) {
        self.counters += 1;
        match name {
            "usage/objects" => self.counted.objects = value,
            "usage/storage_bytes" => self.counted.storage_bytes = value,
            "usage/members" => self.counted.members = value,
            _ => {}
        }
    }

    /// Rows come in order, each once.
    fn follows(&mut self, place: (u8, &str, &str)) -> bool {
        let place = (place.0, place.1.to_owned(), place.2.to_owned());
        let follows = self.known.is_some() && self.last.as_ref().is_none_or(|last| *last < place);
        self.last = Some(place);
        follows
    }
}

fn object_checked<R: BufRead>(reader: &mut Reader<R>, found: &mut Found, id: BlobId, bytes: u64, sha256: &str) -> Result<()> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut length = 0;
    while let Some(piece) = reader.data()? {
        context.update(&piece);
        length += piece.len() as u64;
    }
    if length != bytes || unhex::<32>(sha256).is_none_or(|wanted| context.finish().as_ref() != wanted) {
        return Err(refused(&format!("object {id} is not what was written")));
    }
    if found.known.is_some() || found.objects.len() >= OBJECTS_MAX || found.objects.insert(id, bytes).is_some() {
        return Err(refused(&format!("object {id} is out of place")));
    }
    Ok(())
}

fn known<R: BufRead>(reader: &mut Reader<R>, found: &mut Found) -> Result<()> {
    let ids = reader.whole(KNOWN_BYTES_MAX)?;
    let (ids, rest) = ids.as_chunks::<16>();
    let known: BTreeSet<BlobId> = ids.iter().copied().map(BlobId).collect();
    let there = rest.is_empty() && known.len() == ids.len() && known.iter().all(|id| found.objects.contains_key(id));
    if !there || found.known.replace(known).is_some() {
        return Err(refused("its list of objects is malformed"));
    }
    Ok(())
}

fn record_checked(found: &mut Found, kind: &str, key: &str, fields: &[(String, String)], value: &[u8]) -> Result<()> {
    let json = serde_json::from_slice::<serde::de::IgnoredAny>(value).is_ok();
    if !json || !content_fits(kind, key, fields) || !found.follows((0, kind, key)) {
        return Err(refused("a record is malformed"));
    }
    found.records += 1;
    Ok(())
}

async fn make(
    kernel: &Kernel,
    id: TenantId,
    name: Name,
    file: File,
    key: &Key,
    placement: &Placement,
    verified: &Verified,
    via: (String, String),
) -> Result<CreatedTenant> {
    let dir = kernel.tenant_dir(id);
    kernel.rows_place_make(id, placement).await?;
    let hold = kernel.home(id).await?;
    let place = kernel.rows_place(id, placement, hold.as_ref().map(|hold| hold.fence())).await?;
    let (keyring, _) = Keyring::create(&kernel.0.root, id, now_micros())?;
    let keyring = Arc::new(keyring);
    let anchor = kernel.0.anchors.detached(id, Anchor::default());
    let store = Store::create_at(&dir, place.clone(), kernel.bucket(id, placement)?, Arc::clone(&keyring), anchor).await?;
    let filled = fill(&store, id, file, key, verified).await;
    // Closed in any case, so that its place can be swept.
    let closed = store.close().await;
    let mut left = store.anchor()?.now();
    drop(store);
    let jobs = filled?;
    closed?;
    for (kind, job, principal) in jobs {
        // Nobody claims it before the tenant is known.
        kernel.ticket_add(id, &kind, &job, &principal).await?;
    }
    let ledger = kernel.ledger_open(&dir, &keyring, place.is_shared())?;
    place.ledger_append(&ledger, &entry(verified, via)).await?;
    left.ledger_size = ledger.size();
    drop(ledger);
    let row = TenantRow {
        id,
        name,
        state: TenantState::Active,
        created_at: now_micros(),
        slot: 0,
        limits: serde_json::to_string(&verified.limits(&kernel.0.config.limits)).map_err(Error::internal)?,
        placement: placement.to_json()?,
        epoch_generation: 0,
    };
    let expires_at = now_micros().saturating_add(FIRST_KEY_DAYS * 86_400_000_000);
    let (admin_key, credential) =
        kernel.key_made(Some(id), verified.admin.as_str(), "operator", "first administrator", Scope::all(), Some(expires_at))?;
    let _shared = kernel.0.epoch_gate.read().await;
    // The root key may have a new epoch since.
    let keys = keyring.stored_anew(&kernel.0.root, now_micros())?;
    let fence = hold.as_ref().map(|hold| hold.fence());
    let row = kernel.0.control.tenant_import(&row, &keys, &credential, &note(id), fence).await?;
    if let Some(hold) = &hold {
        hold.taken_up(row.epoch_generation);
    }
    if let Err(error) = kernel.0.anchors.put(row.slot, id, &left) {
        // It is there. The first opening anchors it.
        tracing::error!(%error, context = error.private(), "an imported tenant could not be anchored yet");
    }
    Ok(CreatedTenant { tenant: info(&row)?, admin_key })
}

/// The first entry of the new ledger names the old one.
fn entry(verified: &Verified, (via, request): (String, String)) -> Entry {
    let cut = |text: &str| text.get(..text.floor_char_boundary(256)).unwrap_or_default().to_owned();
    let detail = [
        ("former_tenant", cut(&verified.tenant)),
        ("former_service", cut(&verified.service)),
        ("former_ledger", cut(&verified.ledger.origin)),
        ("former_ledger_vkey", cut(&verified.ledger_vkey)),
        ("former_ledger_size", verified.ledger.size.to_string()),
        ("former_ledger_root", cut(&verified.ledger.root)),
    ];
    Entry {
        time: now_micros(),
        request,
        actor: "operator".to_owned(),
        via,
        act: "TenantImport".to_owned(),
        resource: "tenant:".to_owned(),
        outcome: Outcome::Allowed,
        reason: "operator".to_owned(),
        detail: detail.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        generation: None,
    }
}

/// What the second reading sends.
enum Part {
    Item(Item),
    Data(Bytes),
    Whole,
}

/// The second reading, by another thread.
fn parts(mut file: File, key: Key) -> mpsc::Receiver<Result<Part>> {
    let (send, receive) = mpsc::channel(PIECES_MAX);
    tokio::task::spawn_blocking(move || {
        let mut read = || -> Result<()> {
            file.rewind()?;
            let mut reader = Reader::begin(BufReader::new((&file).take(u64::MAX)), &key)?;
            let gone = || Error::internal("nobody takes the bundle's parts");
            loop {
                let item = reader.item()?;
                let last = matches!(item, Item::End { .. });
                send.blocking_send(Ok(Part::Item(item))).map_err(|_| gone())?;
                while let Some(piece) = reader.data()? {
                    send.blocking_send(Ok(Part::Data(piece.into()))).map_err(|_| gone())?;
                }
                send.blocking_send(Ok(Part::Whole)).map_err(|_| gone())?;
                if last {
                    return reader.finish();
                }
            }
        };
        if let Err(error) = read() {
            let _ = send.blocking_send(Err(error));
        }
    });
    receive
}

/// Kind, id and principal.
type Job = (String, String, String);

/// Writes all of it into the new tenant's store; the jobs are for when it can be known.
async fn fill(store: &Store, id: TenantId, file: File, key: &Key, verified: &Verified) -> Result<Vec<Job>> {
    let mut parts = parts(file, key.clone());
    let mut filling = Filling { store, id, sealed: Vec::new(), rows: Vec::new(), bytes: 0, jobs: Vec::new(), ledger: None };
    while let Some(part) = parts.recv().await {
        let Part::Item(item) = part? else { return Err(refused("an item is out of place")) };
        let last = matches!(item, Item::End { .. });
        filling.take(item, &mut parts, verified).await?;
        if last {
            // Whether the end verifies again is the last that the other thread tells.
            if let Some(part) = parts.recv().await {
                part?;
            }
            return filling.finish(verified).await;
        }
    }
    Err(refused("it ends too early"))
}

struct Filling<'s> {
    store: &'s Store,
    id: TenantId,
    sealed: Vec<SealedBlob>,
    rows: Vec<Content>,
    bytes: usize,
    jobs: Vec<Job>,
    ledger: Option<SealedBlob>,
}

impl Filling<'_> {
    async fn take(&mut self, item: Item, parts: &mut mpsc::Receiver<Result<Part>>, verified: &Verified) -> Result<()> {
        match item {
            Item::Object { id, .. } => {
                let writer = BlobWriter::create_as(self.store.objects(), self.id, id)?;
                let sealed = stored(writer, parts).await?;
                // One that no row knows is gone when it is dropped.
                if verified.known.contains(&id) {
                    self.sealed.push(sealed);
                }
            }
            Item::Ledger { .. } => self.ledger = Some(stored(self.store.blob_writer()?, parts).await?),
            Item::Record { kind, key, fields } => {
                let value = whole(parts).await?;
                self.bytes += value.len();
                self.rows.push(Content::record(kind, key, value, fields));
            }
            Item::Counter { name, value } => {
                whole(parts).await?;
                self.rows.push(Content::Counter { name, value });
            }
            Item::Job { kind, id, principal } => {
                whole(parts).await?;
                self.jobs.push((kind, id, principal));
            }
            Item::Manifest { .. } | Item::Known | Item::End { .. } => drop(whole(parts).await?),
        }
        if self.rows.len() >= BATCH_ITEMS_MAX || self.bytes >= BATCH_BYTES_MAX {
            self.write().await?;
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<()> {
        self.bytes = 0;
        self.store.take_in(std::mem::take(&mut self.rows)).await
    }

    /// Objects become known to the rows; the former ledger is one more, with a record.
    async fn finish(mut self, verified: &Verified) -> Result<Vec<Job>> {
        self.write().await?;
        while !self.sealed.is_empty() {
            let mut tx = self.store.tx().await?;
            for sealed in self.sealed.drain(..self.sealed.len().min(BATCH_ITEMS_MAX)) {
                tx.attach(sealed).await?;
            }
            tx.commit_with(None).await?;
        }
        let ledger = self.ledger.ok_or_else(|| refused("it has no ledger"))?;
        let former = FormerLedger {
            origin: verified.ledger.origin.clone(),
            vkey: verified.ledger_vkey.clone(),
            size: verified.ledger.size,
            root: verified.ledger.root.clone(),
            imported_at: now_micros(),
            export: ledger.id(),
        };
        let mut tx = self.store.tx().await?;
        tx.usage_add("storage_bytes", i64::try_from(ledger.bytes()).map_err(Error::internal)?).await?;
        tx.usage_add("objects", 1).await?;
        tx.attach(ledger).await?;
        tx.put(&former).await?;
        tx.commit_with(None).await?;
        Ok(self.jobs)
    }
}

async fn stored(mut writer: BlobWriter, parts: &mut mpsc::Receiver<Result<Part>>) -> Result<SealedBlob> {
    while let Some(piece) = data(parts).await? {
        writer.write(piece).await?;
    }
    writer.finish().await
}

async fn whole(parts: &mut mpsc::Receiver<Result<Part>>) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    while let Some(piece) = data(parts).await? {
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

async fn data(parts: &mut mpsc::Receiver<Result<Part>>) -> Result<Option<Bytes>> {
    match parts.recv().await.ok_or_else(|| refused("it ends too early"))?? {
        Part::Data(piece) => Ok(Some(piece)),
        Part::Whole => Ok(None),
        Part::Item(_) => Err(refused("an item is out of place")),
    }
}
