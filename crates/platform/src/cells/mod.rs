//! All cells of this node: blank ones kept ready, one serving cell an active tenant (more while it is busy and may use more than one core),
//! and one cell a job.
//!
//! ```text
//! zygote ─fork─► blank ──┬─ adopt(tenant) ─► serving: slots of models, until idle, evicted, or dead
//!                        └─ adopt(tenant) ─► job: one inspection, preview, admission or training, then dead
//! ```
//!
//! A cell has one tenant from adoption to death. How many there are is bounded by places: a cell holds one from its fork on. When none is
//! left, the serving cell that has been idle for longest goes; when none is idle, the request is refused.

mod classes;
mod fair;
mod job;
mod link;
mod pool;
mod process;
mod socket;
mod turn;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use jail::memory::SealedFile;
use parking_lot::Mutex;
use tenancy::{BlobReader, IslandToken, IsolationClass};
use tokio::net::UnixStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use wire::{FailCode, FromCell, Load, ModelInfo, ToCell};

pub use classes::start_gvisor;
pub use fair::Priority;
pub(crate) use job::{Event, JobError, JobLink, Source, line};
pub(crate) use process::{Owner, Process};
use socket::End;
pub use turn::{Leg, Legs, Manner};

use crate::config::PlatformConfig;
use crate::deployment::VersionAnswers;
use crate::error::{CellFailure, Error, Result};
use crate::stats::{Counters, PlatformStats, bump};
use classes::Classes;
use pool::{Island, Lane};
use process::{Blank, blank_limits};
use turn::Gate;

/// Time between a cell leaving the pool and the fork of its successor: longer than most cold starts from the pool take.
const REFILL_AFTER: Duration = Duration::from_millis(20);
/// How long a request waits for a place that an evicted cell gives free.
const PLACE_WAIT: Duration = Duration::from_secs(2);
/// Inspections, previews and admissions that wait for their turn, on the whole node.
const SHORT_JOBS_WAITING_MAX: usize = 256;
/// Models decrypted into memory files at once.
const MODELS_OPENING_MAX: usize = 4;
/// Bytes copied at once from a sealed object.
const COPY_BYTES: usize = 1 << 20;
/// Such pieces of one object at once: one is opened while another is copied.
const COPIES_AHEAD: usize = 2;
/// A cell beside the first of its tenant goes after idling for this long: the first one then has the whole memory again.
const REPLICA_IDLE_MAX: Duration = Duration::from_secs(30);
/// Time for which a stopped island gets no new cell: longer than any permit that was given out before.
const STOPPED_FOR: Duration = Duration::from_secs(300);

/// The cells of this node.
#[derive(Clone)]
pub(crate) struct Cells(Arc<Inner>);

struct Inner {
    config: PlatformConfig,
    classes: Arc<Classes>,
    counters: Arc<Counters>,
    places: Arc<Semaphore>,
    gate: Arc<Gate>,
    blank: Mutex<VecDeque<Blank>>,
    refill: Notify,
    islands: Mutex<HashMap<(IslandToken, Lane), Arc<Island>>>,
    stopped: Mutex<HashMap<IslandToken, tokio::time::Instant>>,
    working: Mutex<Vec<(IslandToken, Weak<Process>)>>,
    short_jobs: Semaphore,
    short_jobs_waiting: AtomicUsize,
    models_opening: Semaphore,
    closed: AtomicBool,
}

impl Cells {
    /// Starts the zygote. Blocks while the engine loads.
    pub(crate) fn start(config: PlatformConfig, counters: Arc<Counters>) -> Result<Self, jail::JailError> {
        let classes = Arc::new(Classes::start(&config)?);
        Ok(Self(Arc::new(Inner {
            places: Arc::new(Semaphore::new(config.cells_max)),
            gate: Gate::new(&config, Arc::clone(&counters)),
            short_jobs: Semaphore::new(config.jobs_running_max),
            classes,
            counters,
            blank: Mutex::default(),
            refill: Notify::new(),
            islands: Mutex::default(),
            stopped: Mutex::default(),
            working: Mutex::default(),
            short_jobs_waiting: AtomicUsize::new(0),
            models_opening: Semaphore::new(MODELS_OPENING_MAX),
            closed: AtomicBool::new(false),
            config,
        })))
    }

    /// What the jail really enforces.
    pub(crate) fn report(&self) -> &jail::Report {
        self.0.classes.jail().report()
    }

    /// What holds for cells under gVisor, if they have been needed.
    pub(crate) fn gvisor_report(&self) -> Option<jail::Report> {
        self.0.classes.gvisor_report()
    }

    /// Whether cells of this class can run here; if not, why, and what to do about it.
    pub(crate) async fn isolates(&self, isolation: IsolationClass) -> Result<(), String> {
        if isolation == IsolationClass::Jail {
            return Ok(());
        }
        let classes = Arc::clone(&self.0.classes);
        let started = tokio::task::spawn_blocking(move || classes.gvisor().map(drop)).await;
        started.map_err(|error| error.to_string())?
    }

    pub(crate) fn config(&self) -> &PlatformConfig {
        &self.0.config
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }

    /// Whether a cell of this tenant may start at all.
    fn starts_for(&self, owner: &Owner) -> Result<()> {
        match self.0.closed.load(Ordering::Acquire) || self.is_stopped(owner.island) {
            true => Err(Error::CellFailed(CellFailure::Stopped)),
            false => Ok(()),
        }
    }

    /// A cell for this tenant: a blank one if there is, else a fresh fork. Blank ones are jailed; a tenant of another class gets a fresh one.
    pub(crate) async fn cell(&self, owner: &Owner) -> Result<(Process, UnixStream)> {
        self.starts_for(owner)?;
        let isolation = owner.limits.isolation;
        let blank = || if isolation == IsolationClass::Jail { self.0.blank.lock().pop_front() } else { None };
        while let Some(blank) = blank() {
            self.0.refill.notify_one();
            // One that died in the pool is passed over.
            if let Ok(adopted) = blank.adopt(owner, Arc::clone(&self.0.counters)) {
                return Ok(adopted);
            }
        }
        let fresh = self.fork(self.place().await?, isolation, owner.limits()).await?;
        fresh.adopt(owner, Arc::clone(&self.0.counters)).map_err(Error::CellFailed)
    }

    /// A cell for which nobody has to make room: a place that is free, and no blank cell that is kept for others.
    pub(crate) async fn spare_cell(&self, owner: &Owner) -> Result<(Process, UnixStream)> {
        self.starts_for(owner)?;
        let place = Arc::clone(&self.0.places).try_acquire_owned();
        let place = place.map_err(|_| Error::Overloaded("all places for sandboxes are taken"))?;
        self.fork(place, owner.limits.isolation, owner.limits())
            .await?
            .adopt(owner, Arc::clone(&self.0.counters))
            .map_err(Error::CellFailed)
    }

    async fn fork(&self, place: OwnedSemaphorePermit, isolation: IsolationClass, limits: jail::Limits) -> Result<Blank> {
        let classes = Arc::clone(&self.0.classes);
        let forked = tokio::task::spawn_blocking(move || classes.spawn(isolation, &limits)).await;
        let forked = forked.unwrap_or_else(|error| Err(CellFailure::NotStarted(error.to_string())));
        let cell = forked.map_err(Error::CellFailed)?;
        bump(match isolation {
            IsolationClass::Jail => &self.0.counters.started_jail,
            IsolationClass::Gvisor => &self.0.counters.started_gvisor,
        });
        Ok(Blank::new(cell, isolation, place))
    }

    /// A place among all cells, if need be that of the serving cell that has been idle for longest.
    async fn place(&self) -> Result<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.0.places).try_acquire_owned() {
            return Ok(place);
        }
        let full = || Error::Overloaded("all places for sandboxes are taken");
        if !self.evict_idle() {
            bump(&self.0.counters.overloaded);
            return Err(full());
        }
        let place = tokio::time::timeout(PLACE_WAIT, Arc::clone(&self.0.places).acquire_owned()).await;
        place.ok().and_then(Result::ok).ok_or_else(full)
    }

    /// Stops a shadow's cell, whatever it does, else the serving cell that has been idle for longest; `false` when there is neither.
    fn evict_idle(&self) -> bool {
        let shadow = {
            let islands = self.0.islands.lock();
            islands.values().find(|island| island.lane == Lane::Shadow && island.is_serving()).cloned()
        };
        if let Some(cell) = shadow.and_then(|shadow| shadow.take()) {
            cell.evicted(&self.0.counters.evicted_room);
            return true;
        }
        let mut idle: Vec<_> = {
            let islands = self.0.islands.lock();
            islands.values().filter_map(|island| Some((island.idle_for()?, Arc::clone(island)))).collect()
        };
        idle.sort_by_key(|(idle_for, island)| (island.lane == Lane::Live, std::cmp::Reverse(*idle_for)));
        for (_, island) in idle {
            if let Some(cell) = island.take_if_idle(Duration::ZERO) {
                cell.evicted(&self.0.counters.evicted_room);
                return true;
            }
        }
        false
    }

    fn lane(&self, token: IslandToken, lane: Lane) -> Arc<Island> {
        Arc::clone(self.0.islands.lock().entry((token, lane)).or_insert_with(|| Arc::new(Island::new(&self.0.gate, lane))))
    }

    fn is_stopped(&self, token: IslandToken) -> bool {
        let mut stopped = self.0.stopped.lock();
        if stopped.is_empty() {
            return false;
        }
        stopped.retain(|_, at| at.elapsed() < STOPPED_FOR);
        stopped.contains_key(&token)
    }

    /// An island that was stopped for another node is served here again.
    pub(crate) fn enter_island(&self, token: IslandToken) {
        self.0.stopped.lock().remove(&token);
    }

    /// Kills every cell of an island, drops all that is remembered of it, and lets no new one start.
    pub(crate) async fn stop_island(&self, token: IslandToken) {
        self.0.stopped.lock().insert(token, tokio::time::Instant::now());
        let islands: Vec<_> = {
            let mut islands = self.0.islands.lock();
            let lanes: Vec<_> = islands.keys().filter(|(owner, _)| *owner == token).copied().collect();
            lanes.into_iter().filter_map(|lane| islands.remove(&lane)).collect()
        };
        for island in islands {
            if let Some(cell) = island.take() {
                cell.stop().await;
            }
        }
        let working: Vec<_> = {
            let working = self.0.working.lock();
            working.iter().filter(|(owner, _)| *owner == token).filter_map(|(_, process)| process.upgrade()).collect()
        };
        for process in working {
            process.stop().await;
        }
    }

    /// Keeps blank cells ready until the platform stops.
    pub(crate) async fn refill_forever(self) {
        while !self.0.closed.load(Ordering::Acquire) {
            while self.0.blank.lock().len() < self.0.config.pool_blank {
                let Ok(place) = Arc::clone(&self.0.places).try_acquire_owned() else { break };
                match self.fork(place, IsolationClass::Jail, blank_limits()).await {
                    Ok(blank) => self.0.blank.lock().push_back(blank),
                    Err(error) => {
                        tracing::warn!(private = error.private(), "a blank cell could not be started");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        break;
                    }
                }
                if self.0.closed.load(Ordering::Acquire) {
                    break;
                }
            }
            self.0.refill.notified().await;
            // Whoever took the cell is about to load a model: a fork at the same moment costs that first answer more than it gains the next.
            tokio::time::sleep(REFILL_AFTER).await;
        }
        self.0.blank.lock().clear();
    }

    /// Bills, measures, and stops what is idle, stuck, or too much; until the platform stops.
    pub(crate) async fn sweep_forever(self) {
        let every = (self.0.config.idle_timeout / 4).clamp(Duration::from_millis(20), Duration::from_secs(1));
        while !self.0.closed.load(Ordering::Acquire) {
            tokio::time::sleep(every).await;
            self.sweep();
        }
    }

    fn sweep(&self) {
        let islands: Vec<_> = self.0.islands.lock().iter().map(|(token, island)| (*token, Arc::clone(island))).collect();
        let mut memory_bytes = 0u64;
        for (_, island) in &islands {
            island.end_if_stuck(self.0.config.infer_timeout, self.0.config.load_timeout);
            island.bury();
            let idle_timeout = match island.lane {
                Lane::Replica(_) => self.0.config.idle_timeout.min(REPLICA_IDLE_MAX),
                Lane::Live | Lane::Shadow => self.0.config.idle_timeout,
            };
            if let Some(cell) = island.take_if_idle(idle_timeout) {
                cell.evicted(&self.0.counters.evicted_idle);
            }
            memory_bytes = memory_bytes.saturating_add(island.bill());
        }
        {
            let mut working = self.0.working.lock();
            working.retain(|(_, process)| process.strong_count() > 0);
            let bills = working.iter().filter_map(|(_, process)| process.upgrade()).map(|process| process.bill());
            memory_bytes = bills.fold(memory_bytes, u64::saturating_add);
        }
        self.0.counters.memory_bytes.store(memory_bytes, Ordering::Relaxed);
        if memory_bytes > self.0.config.cells_memory_bytes_max {
            self.evict_idle();
        }
        drop(islands);
        let mut islands = self.0.islands.lock();
        islands.retain(|_, island| Arc::strong_count(island) > 1 || !island.is_forgettable(self.0.config.idle_timeout));
    }

    /// Stops every cell. Nothing starts afterwards.
    pub(crate) async fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.refill.notify_one();
        let islands: Vec<_> = self.0.islands.lock().drain().map(|(_, island)| island).collect();
        for island in islands {
            if let Some(cell) = island.take() {
                cell.stop().await;
            }
        }
        let working: Vec<_> = self.0.working.lock().drain(..).filter_map(|(_, process)| process.upgrade()).collect();
        for process in working {
            process.stop().await;
        }
        self.0.blank.lock().clear();
    }

    /// Live numbers.
    pub(crate) fn stats(&self) -> PlatformStats {
        let blank = self.0.blank.lock().len() as u64;
        let serving = self.0.islands.lock().values().filter_map(|island| island.isolation()).collect();
        let working = self.0.working.lock().iter().filter_map(|(_, process)| Some(process.upgrade()?.isolation())).collect();
        PlatformStats {
            cells_live: (self.0.config.cells_max - self.0.places.available_permits()) as u64,
            cells_blank: blank,
            cells_serving: serving,
            cells_working: working,
            zygotes_replaced: self.0.classes.zygotes_replaced(),
            ..self.0.counters.snapshot()
        }
    }

    /// Process ids of a tenant's cells at work, for tests that kill them.
    pub(crate) fn working_pids(&self, token: IslandToken) -> Vec<u32> {
        let working = self.0.working.lock();
        working.iter().filter(|(owner, _)| *owner == token).filter_map(|(_, process)| Some(process.upgrade()?.pid())).collect()
    }

    /// Memory that a tenant's cells may have together, those for shadows and jobs left out, in bytes; for tests that hold it to its limit.
    pub(crate) fn memory_given(&self, token: IslandToken) -> u64 {
        let islands = self.0.islands.lock();
        islands.iter().filter(|((owner, lane), _)| *owner == token && *lane != Lane::Shadow).map(|(_, island)| island.memory_given()).sum()
    }

    /// Process id of a tenant's serving cell, for tests that kill it.
    pub(crate) fn serving_pid(&self, token: IslandToken) -> Option<u32> {
        self.0.islands.lock().get(&(token, Lane::Live)).and_then(|island| island.pid())
    }

    /// What the versions of a tenant's deployments did.
    pub(crate) fn version_answers(&self, token: IslandToken) -> Vec<VersionAnswers> {
        let island = self.0.islands.lock().get(&(token, Lane::Live)).cloned();
        island.map(|island| island.answers()).unwrap_or_default()
    }
}

/// A cell at work on one job. Dropping it kills it.
pub(crate) struct Job {
    link: JobLink,
    process: Arc<Process>,
    time: Duration,
}

impl Job {
    /// The next event.
    pub(crate) async fn next(&mut self) -> Result<Event> {
        match self.link.next().await {
            Ok(event) => Ok(event),
            Err(JobError::Platform(error)) => Err(error),
            Err(JobError::Fail(fail)) if matches!(fail.code, FailCode::Internal | FailCode::NoModel) => {
                Err(Error::CellFailed(CellFailure::Died(fail.message)))
            }
            Err(JobError::Fail(fail)) => Err(Error::Input(fail)),
            Err(JobError::End(End::Deadline)) => Err(Error::DeadlineExceeded { seconds: self.time.as_secs() }),
            Err(JobError::End(end)) => {
                let failure = self.process.failure(&end).await;
                Err(Error::CellFailed(failure))
            }
        }
    }

    /// The result of a job that has nothing else to say.
    async fn done(mut self) -> Result<FromCell> {
        match self.next().await? {
            Event::Done(result) => Ok(result),
            _ => Err(Error::CellFailed(CellFailure::Protocol("an event that nobody asked for".to_owned()))),
        }
    }
}

impl Cells {
    /// Starts a job in a cell of its own.
    pub(crate) async fn job(
        &self,
        owner: &Owner,
        request: &ToCell,
        attach: Option<SealedFile>,
        source: Option<Source>,
        time: Duration,
    ) -> Result<Job> {
        let (process, stream) = self.cell(owner).await?;
        let process = Arc::new(process);
        self.0.working.lock().push((owner.island, Arc::downgrade(&process)));
        let output_bytes_max = match request {
            ToCell::Predict(_) => self.0.config.upload_bytes_max,
            _ => self.0.config.model_bytes_max,
        };
        let link = JobLink::begin((stream, process.attach()), request, attach, source, time, output_bytes_max);
        match link {
            Ok(link) => Ok(Job { link, process, time }),
            Err(JobError::Fail(fail)) => Err(Error::Input(fail)),
            Err(_) => Err(Error::CellFailed(CellFailure::Died("it could not be asked".to_owned()))),
        }
    }

    /// A turn for a short job: bounded running, bounded waiting.
    async fn short_turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>> {
        let _waiting = Waiting::enter(&self.0.short_jobs_waiting, SHORT_JOBS_WAITING_MAX).ok_or_else(|| {
            bump(&self.0.counters.overloaded);
            Error::Overloaded("inspections and admissions")
        })?;
        self.0.short_jobs.acquire().await.map_err(|_| Error::CellFailed(CellFailure::Stopped))
    }

    /// Reads a data set from end to end.
    pub(crate) async fn inspect(&self, owner: &Owner, inspect: wire::Inspect, source: Source) -> Result<wire::Inspection> {
        let _turn = self.short_turn().await?;
        let columns_max = inspect.columns_max as usize;
        let job = self.job(owner, &ToCell::Inspect(inspect), None, Some(source), self.0.config.inspect_timeout).await?;
        match job.done().await? {
            FromCell::Inspected(found) if found.columns.len() <= columns_max => Ok(found),
            _ => Err(broken("an inspection with too many columns")),
        }
    }

    /// Reads some rows of a data set.
    pub(crate) async fn preview(&self, owner: &Owner, preview: wire::Preview, source: Source) -> Result<wire::Rows> {
        let _turn = self.short_turn().await?;
        let rows_max = preview.rows as usize;
        let job = self.job(owner, &ToCell::Preview(preview), None, Some(source), self.0.config.inspect_timeout).await?;
        match job.done().await? {
            FromCell::Previewed(rows) if rows.rows.len() <= rows_max => Ok(rows),
            _ => Err(broken("a preview with too many rows")),
        }
    }

    /// Checks a model as an upload.
    pub(crate) async fn admit(&self, owner: &Owner, name: &str, source: Source) -> Result<ModelInfo> {
        let _turn = self.short_turn().await?;
        let load = self.load_of(name, "1", source.bytes());
        let file = self.memory_file(&source).await?;
        let job = self.job(owner, &ToCell::Admit(load), Some(file), None, self.0.config.inspect_timeout).await?;
        match job.done().await? {
            FromCell::Model(info) => Ok(model_checked(info)),
            _ => Err(broken("something else than a model")),
        }
    }

    /// Starts to ask a model about every row of a source.
    pub(crate) async fn predict_all(
        &self,
        owner: &Owner,
        predict: wire::Predict,
        model: &Source,
        source: Source,
        time: Duration,
    ) -> Result<Job> {
        let file = self.memory_file(model).await?;
        self.job(owner, &ToCell::Predict(predict), Some(file), Some(source), time).await
    }

    pub(crate) fn load_of(&self, name: &str, version: &str, bytes: u64) -> Load {
        Load { bytes, name: name.to_owned(), version: version.to_owned(), nodes_max: self.0.config.model_nodes_max, batching: None }
    }

    /// A sealed object, opened into a sealed memory file.
    async fn memory_file(&self, source: &Source) -> Result<SealedFile> {
        let _turn = self.0.models_opening.acquire().await.map_err(|_| Error::CellFailed(CellFailure::Stopped))?;
        let memory = |error: io::Error| Error::CellFailed(CellFailure::NotStarted(format!("memory file: {error}")));
        let mut writer = SealedFile::writer(source.bytes()).map_err(memory)?;
        // The next piece is opened while this one is copied.
        let pieces = futures_util::stream::iter((0..source.bytes()).step_by(COPY_BYTES)).map(|offset| {
            let source = source.clone();
            async move { source.read_at(offset, COPY_BYTES).await }
        });
        let (mut pieces, mut copied) = (pieces.buffered(COPIES_AHEAD), 0);
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            io::Write::write_all(&mut writer, &piece).map_err(memory)?;
            copied += piece.len() as u64;
        }
        if copied != source.bytes() {
            return Err(tenancy::Error::integrity("a sealed object ended early").into());
        }
        writer.seal().map_err(memory)
    }
}

pub(crate) fn broken(what: &str) -> Error {
    Error::CellFailed(CellFailure::Protocol(what.to_owned()))
}

/// Most inputs, outputs or operator sets of a model that are kept.
const MODEL_LIST_MAX: usize = 1024;
/// Longest text of a model's description in bytes, and most dimensions of a tensor.
const MODEL_TEXT_BYTES_MAX: usize = 512;
const DIMENSIONS_MAX: usize = 64;

/// A cell's word on a model, cut to what rows and answers may hold.
fn model_checked(mut info: ModelInfo) -> ModelInfo {
    let text = |text: &mut String| *text = line(text, MODEL_TEXT_BYTES_MAX);
    for tensors in [&mut info.inputs, &mut info.outputs] {
        tensors.truncate(MODEL_LIST_MAX);
        for tensor in tensors {
            text(&mut tensor.name);
            text(&mut tensor.datatype);
            tensor.shape.truncate(DIMENSIONS_MAX);
        }
    }
    info.opsets.truncate(MODEL_LIST_MAX);
    info.opsets.iter_mut().for_each(text);
    text(&mut info.producer);
    info
}

/// One of a bounded number of waiters.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, max: usize) -> Option<Self> {
        let entered = count.fetch_add(1, Ordering::AcqRel) < max;
        let waiting = Self(count);
        entered.then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The plaintext of a sealed object in pieces; a failed check is the last item.
pub(crate) fn blob_stream(reader: BlobReader) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures_util::stream::try_unfold((reader, 0u64), |(reader, offset)| async move {
        if offset >= reader.bytes() {
            return Ok(None);
        }
        let piece = reader.read_at(offset, COPY_BYTES).await.map_err(io::Error::other)?;
        if piece.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let next = offset + piece.len() as u64;
        Ok(Some((piece, (reader, next))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_bounded() {
        let count = AtomicUsize::new(0);
        let first = Waiting::enter(&count, 1);
        assert!(first.is_some() && Waiting::enter(&count, 1).is_none());
        drop(first);
        assert!(Waiting::enter(&count, 1).is_some());
    }

    #[test]
    fn a_models_texts_are_cut() {
        let tensor = wire::TensorInfo { name: "x\n".repeat(1000), datatype: "FP32".into(), shape: vec![1; 1000] };
        let info = ModelInfo {
            inputs: vec![tensor; 2000],
            outputs: vec![],
            opsets: vec![],
            nodes: 1,
            producer: "p".repeat(9999),
            resident_bytes: 1,
            smoke_run: true,
        };
        let info = model_checked(info);
        assert_eq!((info.inputs.len(), info.inputs[0].name.len(), info.inputs[0].shape.len()), (1024, 512, 64));
        assert_eq!(info.producer.len(), 512);
    }
}
