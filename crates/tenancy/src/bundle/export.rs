//! Writing a bundle.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, pin_mut};
use serde::Serialize;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;

use super::Item;
use super::format::{PIECE_BYTES_MAX, Writer};
use crate::blobs::{BlobId, BlobReader, BlobRow};
use crate::clock::now_micros;
use crate::control::TicketRow;
use crate::erasure::service_key;
use crate::error::{Error, Result};
use crate::island::Island;
use crate::kernel::Kernel;
use crate::ledger::{Entry, Ledger, Outcome};
use crate::name::{Name, hex};
use crate::operator::{Operator, resource};
use crate::rows::contents::Item as Content;
use crate::seal::{self, Key};

/// Rounds over the objects while the tenant works.
const ROUNDS_MAX: u32 = 8;
/// So few objects may be left for the time after the pause.
const OBJECTS_LEFT_FEW: usize = 64;
/// Longest sealed page of the spool.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// Pieces of the ledger that wait for the writer.
const LEDGER_PIECES_MAX: usize = 16;

/// A take-out that was allowed and written down; [`Export::write`] does it.
pub struct Export {
    kernel: Kernel,
    island: Arc<Island>,
    tenant_created_at: i64,
    key: Key,
}

/// What was taken out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportInfo {
    /// Records.
    pub records: u64,
    /// Objects.
    pub objects: u64,
    /// Of the objects, in bytes.
    pub bytes: u64,
    /// SHA-256 (hex) that the service signed: of everything but the last line.
    pub sha256: String,
}

impl Operator {
    /// Begins the take-out of a tenant into one file, sealed under `key`, which the tenant holds. The tenant's own ledger says that it was
    /// taken out. Requests go on; writers wait for a moment.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TenantState`] when it takes no requests.
    pub async fn export(&self, name: &Name, key: [u8; 32]) -> Result<Export> {
        let key = Key::new(key);
        let row = self.named("TenantExport", name).await?;
        self.failing("TenantExport", &resource(row.id), async {
            let kernel = self.kernel().clone();
            kernel.seize(row.id).await?;
            let island = kernel.island(row.id).await?;
            let entry = Entry {
                time: now_micros(),
                request: self.request().to_string(),
                actor: "operator".to_owned(),
                via: self.via().to_owned(),
                act: "TenantExport".to_owned(),
                resource: "tenant:".to_owned(),
                outcome: Outcome::Allowed,
                reason: "operator".to_owned(),
                detail: Default::default(),
                generation: None,
            };
            island.ledger.append(&entry)?;
            island.flush(false).await?;
            Ok(Export { kernel, island, tenant_created_at: row.created_at, key })
        })
        .await
    }
}

impl Export {
    /// Writes the bundle. What was written is of no use before this returns.
    ///
    /// # Errors
    /// [`Error::Conflict`] when an object was deleted while it was read: begin again. [`Error::Internal`] when the target fails.
    pub async fn write(self, to: &mut (impl AsyncWrite + Unpin + Send)) -> Result<ExportInfo> {
        let Self { kernel, island, tenant_created_at, key } = self;
        let signing = service_key(&kernel)?;
        let (service, vkey) = (hex(&kernel.0.root.service_id()), signing.verifying_key().to_string());
        let (name, now) = (island.name.as_str(), now_micros());
        let mut writer = Writer::begin(to, &key, &service, &vkey, name, now).await?;
        drop(key);
        let isolation = island.meter.limits().isolation;
        writer.item(&Item::Manifest { tenant: name.to_owned(), tenant_created_at, exported_at: now, isolation }).await?;
        writer.end().await?;
        let mut written = HashSet::new();
        for _ in 0..ROUNDS_MAX {
            let new: Vec<_> = island.store.object_rows().await?.into_iter().filter(|(id, _)| !written.contains(id)).collect();
            for (id, row) in &new {
                match island.store.rows().blob(*id).await {
                    Ok(reader) => object(&mut writer, *id, row, reader).await?,
                    // Deleted since it was listed.
                    Err(Error::NotFound(_)) => continue,
                    Err(error) => return Err(error),
                }
                written.insert(*id);
            }
            if new.len() <= OBJECTS_LEFT_FEW {
                break;
            }
        }
        let moment = Moment::take(&kernel, &island, &written).await?;
        for (id, row, reader) in moment.left {
            object(&mut writer, id, &row, reader).await?;
        }
        let known: Vec<u8> = moment.known.keys().flat_map(|id| id.0).collect();
        writer.item(&Item::Known).await?;
        writer.data(&known).await?;
        writer.end().await?;
        let (mut records, mut spool) = (0, moment.spool);
        while let Some(page) = spool.page()? {
            records += rows(&mut writer, page).await?;
        }
        for TicketRow { id, kind, principal, .. } in moment.jobs {
            let id = id.split_once('/').map_or_else(|| id.clone(), |(_, id)| id.to_owned());
            writer.item(&Item::Job { kind, id, principal }).await?;
            writer.end().await?;
        }
        ledger(&mut writer, &island.ledger, &kernel.origin(&island.id.hex())).await?;
        let (objects, bytes) = (moment.known.len() as u64, moment.known.values().sum());
        writer.item(&Item::End { records, counters: spool.counters, objects, bytes }).await?;
        writer.end().await?;
        let sha256 = hex(&writer.finish(&signing).await?);
        Ok(ExportInfo { records, objects, bytes, sha256 })
    }
}

/// What is of one moment.
struct Moment {
    /// Records and counters.
    spool: Spool,
    /// All objects and their bytes.
    known: HashMap<BlobId, u64>,
    /// Those that are not in the bundle yet, open: they can be read even if they are deleted now.
    left: Vec<(BlobId, BlobRow, BlobReader)>,
    /// By id. A ticket is written before its row, so there is one for each row of the same moment.
    jobs: Vec<TicketRow>,
}

impl Moment {
    async fn take(kernel: &Kernel, island: &Island, written: &HashSet<BlobId>) -> Result<Self> {
        let mut spool = Spool::new(kernel)?;
        let (mut known, mut left) = (HashMap::new(), Vec::new());
        let _paused = island.store.pause().await?;
        island.thawed()?;
        let mut walk = island.store.walk();
        while let Some(item) = walk.next().await? {
            match item {
                Content::Object { id, row } => {
                    known.insert(id, row.bytes);
                    if !written.contains(&id) {
                        let reader = island.store.rows().blob(id).await?;
                        left.push((id, row, reader));
                    }
                }
                row => spool.put(row)?,
            }
        }
        let jobs = kernel.0.control.tickets_of(island.id).await?;
        spool.turn()?;
        Ok(Self { spool, known, left, jobs })
    }
}

async fn object<W: AsyncWrite + Unpin + Send>(writer: &mut Writer<'_, W>, id: BlobId, row: &BlobRow, reader: BlobReader) -> Result<()> {
    writer.item(&Item::Object { id, bytes: row.bytes, sha256: hex(&row.sha256) }).await?;
    let pieces = reader.stream();
    pin_mut!(pieces);
    while let Some(piece) = pieces.next().await {
        let gone = |error| {
            tracing::warn!(?error, "an object could not be taken out");
            Error::Conflict("an object could not be read, perhaps because it was deleted meanwhile: begin again".to_owned())
        };
        writer.data(&piece.map_err(gone)?).await?;
    }
    writer.end().await
}

/// How many records they were.
async fn rows<W: AsyncWrite + Unpin + Send>(writer: &mut Writer<'_, W>, page: Vec<Content>) -> Result<u64> {
    let mut records = 0;
    for row in page {
        match row {
            Content::Record { kind, key, content } => {
                writer.item(&Item::Record { kind, key, fields: content.fields }).await?;
                writer.data(&content.value).await?;
                records += 1;
            }
            Content::Counter { name, value } => writer.item(&Item::Counter { name, value }).await?,
            Content::Object { .. } => return Err(Error::internal("an object in the spool")),
        }
        writer.end().await?;
    }
    Ok(records)
}

/// The export of the log, as it is written by another thread.
async fn ledger<W: AsyncWrite + Unpin + Send>(writer: &mut Writer<'_, W>, ledger: &Arc<Ledger>, origin: &str) -> Result<()> {
    writer.item(&Item::Ledger { origin: origin.to_owned(), vkey: ledger.vkey() }).await?;
    let (send, mut receive) = mpsc::channel::<Bytes>(LEDGER_PIECES_MAX);
    let ledger = Arc::clone(ledger);
    let exported = tokio::task::spawn_blocking(move || {
        let mut to = BufWriter::with_capacity(PIECE_BYTES_MAX, Pieces(send));
        ledger.export(&mut to)?;
        Ok::<_, Error>(to.flush()?)
    });
    while let Some(piece) = receive.recv().await {
        writer.data(&piece).await?;
    }
    exported.await.map_err(Error::internal)??;
    writer.end().await
}

struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Bytes::copy_from_slice(bytes)).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Rows of one moment, in a file that has no name, under a key that nobody keeps: whoever is slow to take them does not hold up writers.
struct Spool {
    file: Io,
    key: Key,
    page: Vec<Content>,
    bytes: usize,
    pages: u64,
    read: u64,
    counters: u64,
}

enum Io {
    Writing(BufWriter<File>),
    Reading(BufReader<File>),
    Broken,
}

impl Spool {
    fn new(kernel: &Kernel) -> Result<Self> {
        let file = super::import::nameless(kernel)?;
        let (key, page) = (Key::random()?, Vec::new());
        Ok(Self { file: Io::Writing(BufWriter::new(file)), key, page, bytes: 0, pages: 0, read: 0, counters: 0 })
    }

    fn put(&mut self, row: Content) -> Result<()> {
        self.counters += u64::from(matches!(row, Content::Counter { .. }));
        self.bytes += row.bytes();
        self.page.push(row);
        if self.bytes >= PAGE_BYTES_MAX / 4 || self.page.len() >= 500 { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let plain = serde_json::to_vec(&std::mem::take(&mut self.page)).map_err(Error::internal)?;
        self.bytes = 0;
        let sealed = seal::seal(&self.key, &self.pages.to_be_bytes(), &plain)?;
        let Io::Writing(file) = &mut self.file else { return Err(Error::internal("a spool that is read already")) };
        file.write_all(&(sealed.len() as u64).to_be_bytes())?;
        file.write_all(&sealed)?;
        self.pages += 1;
        Ok(())
    }

    /// From writing to reading.
    fn turn(&mut self) -> Result<()> {
        self.write()?;
        let Io::Writing(file) = std::mem::replace(&mut self.file, Io::Broken) else { return Err(Error::internal("a spool turned twice")) };
        let mut file = file.into_inner().map_err(|error| Error::from(error.into_error()))?;
        file.rewind()?;
        self.file = Io::Reading(BufReader::new(file));
        Ok(())
    }

    fn page(&mut self) -> Result<Option<Vec<Content>>> {
        if self.read == self.pages {
            return Ok(None);
        }
        let Io::Reading(file) = &mut self.file else { return Err(Error::internal("a spool that is still written")) };
        let mut length = [0u8; 8];
        file.read_exact(&mut length)?;
        let mut sealed = vec![0u8; usize::try_from(u64::from_be_bytes(length)).map_err(Error::internal)?];
        file.read_exact(&mut sealed)?;
        let plain = seal::open(&self.key, &self.read.to_be_bytes(), &sealed)?;
        self.read += 1;
        serde_json::from_slice(&plain).map(Some).map_err(Error::internal)
    }
}
