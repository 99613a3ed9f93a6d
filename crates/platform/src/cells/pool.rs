//! Serving: one cell an island, several of its models in slots, and the way of a prediction through them.
//!
//! A prediction looks its deployment up in a cache that the tenant's epoch makes stale, finds the model's slot, and goes into the cell's socket
//! behind those before it. What is missing is made on the way, once, however many wait: a cell, a loaded model. What breaks, breaks for this
//! island alone: the cell is replaced by the next request, and a model that breaks cells again and again is left alone for a while.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tenancy::act::Predict;
use tenancy::{BlobId, Permit};
use wire::{Fail, FailCode, FromCell, ToCell};

use super::link::{Answer, Link, Lost};
use super::process::{Owner, Process};
use super::socket::End;
use super::turn::{Gate, Seat, Turn};
use super::{Cells, Source, Waiting, job};
use crate::dataset::hex;
use crate::deployment::serving_for;
use crate::error::{CellFailure, Error, Result};
use crate::predict::{Asked, Protocol};
use crate::stats::bump;

/// Deployments of one tenant whose meaning is remembered.
const RESOLVED_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Models of one tenant whose crashes are remembered.
const BREAKERS_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// Crashes in a row after which a model is left alone.
const CRASHES_MAX: u32 = 3;
/// How long at first; doubles with each further crash.
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// Share of a tenant's memory that loaded models may take: the rest is for running them.
const MODELS_MEMORY_SHARE_PERCENT: u64 = 60;
/// What a model that was never loaded is expected to take: this many times its file.
const RESIDENT_PER_BYTE: u64 = 3;
/// Times one prediction is begun: at most one retry after a cell died before it was its turn, and one after its model was put out.
const TRIES_MAX: u32 = 3;

/// One tenant's serving side on this node.
pub(super) struct Island {
    resolved: Mutex<LruCache<Box<str>, Arc<Resolved>>>,
    serving: Mutex<Option<Arc<Serving>>>,
    starting: tokio::sync::Mutex<()>,
    /// Its place at the door.
    seat: Arc<Seat>,
    /// Predictions that are under way, wherever they are.
    present: AtomicUsize,
    breakers: Mutex<LruCache<SlotKey, Breaker>>,
    any_breaker: AtomicBool,
    used: Mutex<Instant>,
}

/// What a deployment means at one epoch.
struct Resolved {
    epoch: u64,
    key: SlotKey,
    version: String,
    sha256: String,
    bytes: u64,
    resident_bytes: u64,
}

/// A model as it is loaded: its bytes, under the names its answers carry.
#[derive(Clone, PartialEq, Eq, Hash)]
struct SlotKey {
    deployment: Arc<str>,
    version: u64,
    blob: BlobId,
}

struct Breaker {
    crashes: u32,
    closed_until: Instant,
}

/// A serving cell.
pub(super) struct Serving {
    link: Link,
    process: Process,
    slots: Mutex<Slots>,
    loading: tokio::sync::Mutex<Option<LoadFailure>>,
    users: AtomicUsize,
    used: Mutex<Instant>,
}

/// What is loaded. Every message that names a slot is sent under this lock, so that the cell sees them in the order in which slots changed hands.
struct Slots {
    loaded: LruCache<SlotKey, Slot>,
}

#[derive(Clone, Copy)]
struct Slot {
    number: u32,
    resident_bytes: u64,
}

/// A load that failed, for those who waited for it.
struct LoadFailure {
    key: SlotKey,
    at: Instant,
    fail: Fail,
}

impl Serving {
    /// Ends the conversation and waits until the process is gone.
    pub(super) async fn stop(&self) {
        self.link.end(End::Stopped);
        self.process.stop().await;
    }

    /// Asks a loaded model; `None` when it is not loaded any more.
    fn infer(&self, key: &SlotKey, asked: &Asked) -> Option<tokio::sync::oneshot::Receiver<Answer>> {
        let mut slots = self.slots.lock();
        let (slot, body) = (slots.loaded.get(key)?.number, asked.body.clone());
        let request = match asked.protocol {
            Protocol::Inference => ToCell::Infer { slot, body },
            Protocol::Scoring => ToCell::Score { slot, body },
        };
        Some(self.link.ask_noted(&request, None, asked.manner.legs.clone()))
    }

    /// Forgets a model, in the cell too.
    fn unload(&self, key: &SlotKey) {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.loaded.pop(key) {
            drop(self.link.ask(&ToCell::Unload { slot: slot.number }, None));
        }
    }
}

/// Somebody uses a serving cell: it is not idle.
struct InUse(Arc<Serving>);

impl Drop for InUse {
    fn drop(&mut self) {
        *self.0.used.lock() = Instant::now();
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How one try of a prediction went wrong.
enum Miss {
    /// Asking again is safe and makes sense.
    Again,
    /// It does not.
    Final(Error),
}

impl From<Error> for Miss {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl Island {
    pub(super) fn new(gate: &Arc<Gate>) -> Self {
        Self {
            resolved: Mutex::new(LruCache::new(RESOLVED_MAX)),
            serving: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            seat: Arc::new(Seat::new(gate)),
            present: AtomicUsize::new(0),
            breakers: Mutex::new(LruCache::new(BREAKERS_MAX)),
            any_breaker: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
        }
    }

    /// Whether its cell could answer at once.
    fn is_warm(&self, key: &SlotKey) -> bool {
        self.serving.lock().as_ref().is_some_and(|cell| cell.link.ended().is_none() && cell.slots.lock().loaded.contains(key))
    }

    /// How long its cell has been idle; `None` without one, or while it works.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        let serving = self.serving.lock();
        let cell = serving.as_ref().filter(|cell| cell.users.load(Ordering::Acquire) == 0)?;
        Some(cell.used.lock().elapsed())
    }

    /// Takes the cell away when it has been idle for `at_least`.
    pub(super) fn take_if_idle(&self, at_least: Duration) -> Option<Arc<Serving>> {
        let mut serving = self.serving.lock();
        let idle = |cell: &&mut Arc<Serving>| cell.users.load(Ordering::Acquire) == 0 && cell.used.lock().elapsed() >= at_least;
        serving.as_mut().filter(idle)?;
        serving.take()
    }

    /// Takes the cell away, whatever it does.
    pub(super) fn take(&self) -> Option<Arc<Serving>> {
        self.resolved.lock().clear();
        self.serving.lock().take()
    }

    /// Ends a cell whose oldest request takes too long, even if nobody waits for it any more.
    pub(super) fn end_if_stuck(&self, infer_timeout: Duration, load_timeout: Duration) {
        let cell = self.serving.lock().clone();
        if let Some(cell) = cell {
            // A load is longer than a prediction; whoever waits for a prediction watches its shorter time itself.
            if cell.link.stuck_for().is_some_and(|stuck| stuck > infer_timeout.max(load_timeout)) {
                cell.link.end(End::Deadline);
            }
        }
    }

    /// Takes the cell away when it has died, and counts that.
    pub(super) fn bury(&self) {
        let mut serving = self.serving.lock();
        let Some(end) = serving.as_ref().and_then(|cell| cell.link.ended()) else { return };
        if let Some(cell) = serving.take() {
            tokio::spawn(async move { cell.process.failure(&end).await });
        }
    }

    /// Charges the cell's CPU time; returns its memory in bytes.
    pub(super) fn bill(&self) -> u64 {
        let cell = self.serving.lock().clone();
        cell.map_or(0, |cell| cell.process.bill())
    }

    pub(super) fn is_serving(&self) -> bool {
        self.serving.lock().is_some()
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.serving.lock().as_ref().map(|cell| cell.process.pid())
    }

    /// Whether nothing of it is worth keeping.
    pub(super) fn is_forgettable(&self, idle_timeout: Duration) -> bool {
        !self.is_serving() && self.used.lock().elapsed() > idle_timeout.max(BACK_OFF_MAX)
    }

    /// Refuses a model that is left alone.
    fn breaker_check(&self, key: &SlotKey) -> Result<()> {
        if !self.any_breaker.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut breakers = self.breakers.lock();
        let Some(breaker) = breakers.get(key) else { return Ok(()) };
        let left = breaker.closed_until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let retry_after_seconds = left.as_secs() + 1;
        Err(Error::ModelUnstable { model: key.deployment.to_string(), failures: breaker.crashes, retry_after_seconds })
    }

    fn breaker_crashed(&self, key: &SlotKey) {
        let mut breakers = self.breakers.lock();
        let breaker = breakers.get_or_insert_mut(key.clone(), || Breaker { crashes: 0, closed_until: Instant::now() });
        breaker.crashes = breaker.crashes.saturating_add(1);
        if let Some(over) = breaker.crashes.checked_sub(CRASHES_MAX) {
            let back_off = BACK_OFF_MIN.saturating_mul(1 << over.min(10)).min(BACK_OFF_MAX);
            breaker.closed_until = Instant::now() + back_off;
        }
        self.any_breaker.store(true, Ordering::Release);
    }

    fn breaker_worked(&self, key: &SlotKey) {
        if self.any_breaker.load(Ordering::Acquire) {
            let mut breakers = self.breakers.lock();
            breakers.pop(key);
            self.any_breaker.store(!breakers.is_empty(), Ordering::Release);
        }
    }

    /// What the deployment means now: from the cache while the tenant's epoch is the same, else from the rows.
    async fn resolve(&self, permit: &Permit<Predict>, version: Option<&str>) -> Result<Arc<Resolved>> {
        let epoch = permit.epoch();
        let known = self.resolved.lock().get(permit.resource()).cloned();
        let resolved = match known {
            Some(known) if known.epoch == epoch => known,
            known => match serving_for(permit).await {
                Ok(stored) => {
                    let deployment = known.as_ref().map_or_else(|| permit.resource().into(), |known| Arc::clone(&known.key.deployment));
                    let resolved = Arc::new(Resolved {
                        epoch,
                        key: SlotKey { deployment, version: stored.number, blob: stored.blob },
                        version: stored.number.to_string(),
                        sha256: stored.onnx.sha256,
                        bytes: stored.onnx.bytes,
                        resident_bytes: stored.resident_bytes,
                    });
                    self.forget(known.filter(|known| known.key != resolved.key));
                    self.resolved.lock().put(permit.resource().into(), Arc::clone(&resolved));
                    resolved
                }
                Err(error) => {
                    self.resolved.lock().pop(permit.resource());
                    self.forget(known);
                    return Err(error);
                }
            },
        };
        if version.is_some_and(|version| version != resolved.version) {
            return Err(Error::not_found("deployment version"));
        }
        Ok(resolved)
    }

    /// A model that no longer answers leaves the cell.
    fn forget(&self, known: Option<Arc<Resolved>>) {
        let cell = self.serving.lock().clone();
        if let (Some(known), Some(cell)) = (known, cell) {
            cell.unload(&known.key);
        }
    }

    /// The island's cell, if it lives.
    fn living(&self) -> Option<InUse> {
        let mut serving = self.serving.lock();
        let cell = serving.as_ref()?;
        if cell.link.ended().is_some() {
            *serving = None;
            return None;
        }
        cell.users.fetch_add(1, Ordering::AcqRel);
        Some(InUse(Arc::clone(cell)))
    }
}

impl Cells {
    /// One prediction.
    pub(crate) async fn predict(&self, permit: &Permit<Predict>, owner: &Owner, version: Option<&str>, asked: Asked) -> Result<Bytes> {
        if asked.body.len() > wire::BODY_BYTES_MAX as usize {
            return Err(Error::TooLarge { what: "request", bytes_max: wire::BODY_BYTES_MAX.into() });
        }
        let island = self.island(owner.island);
        *island.used.lock() = Instant::now();
        let present_max = self.config().infer_queue_max.saturating_add(self.config().infer_in_flight_max);
        let overloaded = || {
            bump(&self.counters().overloaded);
            Error::Overloaded("predictions of this tenant")
        };
        let _present = Waiting::enter(&island.present, present_max).ok_or_else(overloaded)?;
        let turn = island.seat.turn(owner, &asked.manner).await;
        let mut turn = turn.map_err(|error| if matches!(error, Error::Overloaded(_)) { overloaded() } else { error })?;
        let mut tries = 1;
        loop {
            match self.predict_once(&island, permit, owner, version, &asked, &mut turn).await {
                Ok(answer) => return Ok(answer),
                Err(Miss::Again) if tries < TRIES_MAX => tries += 1,
                Err(Miss::Again) => return Err(Error::CellFailed(CellFailure::Died("it was not this request's fault".to_owned()))),
                Err(Miss::Final(error)) => return Err(error),
            }
        }
    }

    async fn predict_once(
        &self,
        island: &Island,
        permit: &Permit<Predict>,
        owner: &Owner,
        version: Option<&str>,
        asked: &Asked,
        turn: &mut Turn<'_>,
    ) -> Result<Bytes, Miss> {
        let resolved = island.resolve(permit, version).await?;
        island.breaker_check(&resolved.key)?;
        if !island.is_warm(&resolved.key) {
            // To start a cell and to load a model has queues of its own; a core is not held for it.
            turn.pause();
        }
        let begun = Instant::now();
        let (cell, fresh_cell) = self.serving_cell(island, owner).await?;
        let fresh_slot = self.loaded(island, &cell.0, permit, &resolved).await?;
        if fresh_cell || fresh_slot {
            let waited = begun.elapsed();
            self.counters().cold_start(waited);
            owner.meter.count_cold_start(waited);
            asked.manner.note("cold start", Some(begun));
        }
        turn.resume().await?;
        let timeout = self.config().infer_timeout;
        let patience = turn.left(timeout)?;
        let answer = cell.0.infer(&resolved.key, asked).ok_or(Miss::Again)?;
        let (mut in_cell, sent) = (turn.in_cell(answer), asked.manner.now());
        let answer = tokio::time::timeout(patience, in_cell.answered()).await;
        asked.manner.note("cell", sent);
        let answer = match answer {
            Ok(answer) => answer.unwrap_or(Err(Lost { begun: true, end: End::Stopped })),
            Err(_) if patience < timeout => return Err(Miss::Final(Error::DeadlinePassed)),
            Err(_) => {
                if cell.0.link.stuck_for().is_some_and(|stuck| stuck >= timeout) {
                    cell.0.link.end(End::Deadline);
                    cell.0.process.failure(&End::Deadline).await;
                    island.breaker_crashed(&resolved.key);
                }
                return Err(Miss::Final(Error::DeadlineExceeded { seconds: timeout.as_secs() }));
            }
        };
        match answer {
            Ok(FromCell::Inferred(body)) => {
                island.breaker_worked(&resolved.key);
                permit.detail("model_sha256", &resolved.sha256);
                permit.detail("model_version", &resolved.version);
                Ok(body)
            }
            Ok(FromCell::Fail(fail)) if fail.code == FailCode::NoModel => {
                // Put out between look-up and request; the next try loads it again.
                cell.0.slots.lock().loaded.pop(&resolved.key);
                Err(Miss::Again)
            }
            Ok(FromCell::Fail(fail)) if fail.code == FailCode::Internal => {
                Err(Miss::Final(Error::CellFailed(CellFailure::Died(job::clean(fail).message))))
            }
            Ok(FromCell::Fail(fail)) => Err(Miss::Final(Error::Input(job::clean(fail)))),
            Ok(_) => {
                let end = End::Protocol("an answer of another kind".to_owned());
                cell.0.link.end(end.clone());
                Err(self.lost(island, &cell.0, &resolved.key, Lost { begun: true, end }).await)
            }
            Err(lost) => Err(self.lost(island, &cell.0, &resolved.key, lost).await),
        }
    }

    /// What a lost request means: to be asked again if it was surely not begun, else an error that says how the cell ended.
    async fn lost(&self, island: &Island, cell: &Serving, key: &SlotKey, lost: Lost) -> Miss {
        if !lost.begun {
            return Miss::Again;
        }
        let failure = cell.process.failure(&lost.end).await;
        if failure != CellFailure::Stopped {
            island.breaker_crashed(key);
        }
        Miss::Final(match lost.end {
            End::Deadline => Error::DeadlineExceeded { seconds: self.config().infer_timeout.as_secs() },
            _ => Error::CellFailed(failure),
        })
    }

    /// The island's serving cell; started if there is none, by one of those who need it.
    async fn serving_cell(&self, island: &Island, owner: &Owner) -> Result<(InUse, bool)> {
        if let Some(cell) = island.living() {
            cell.0.process.adjust(owner);
            return Ok((cell, false));
        }
        let _starting = island.starting.lock().await;
        if let Some(cell) = island.living() {
            return Ok((cell, true));
        }
        let (process, stream) = self.cell(owner).await?;
        let slots_max = NonZeroUsize::new(self.config().models_per_cell_max).unwrap_or(NonZeroUsize::MIN);
        let serving = Arc::new(Serving {
            link: Link::new(stream, self.config().answer_bytes_max),
            process,
            slots: Mutex::new(Slots { loaded: LruCache::new(slots_max) }),
            loading: tokio::sync::Mutex::default(),
            users: AtomicUsize::new(1),
            used: Mutex::new(Instant::now()),
        });
        *island.serving.lock() = Some(Arc::clone(&serving));
        Ok((InUse(serving), true))
    }

    /// Sees to it that a model is loaded, by one of those who need it; `true` when that took time.
    async fn loaded(&self, island: &Island, cell: &Serving, permit: &Permit<Predict>, resolved: &Resolved) -> Result<bool, Miss> {
        if cell.slots.lock().loaded.contains(&resolved.key) {
            return Ok(false);
        }
        let arrived = Instant::now();
        let mut last_failure = cell.loading.lock().await;
        if cell.slots.lock().loaded.contains(&resolved.key) {
            return Ok(true);
        }
        if let Some(failure) = last_failure.as_ref().filter(|failure| failure.key == resolved.key && failure.at >= arrived) {
            return Err(Miss::Final(Error::Input(failure.fail.clone())));
        }
        let reader = permit.blobs().open(resolved.key.blob).await.map_err(Error::from)?;
        if hex(&reader.sha256()) != resolved.sha256 || reader.bytes() != resolved.bytes {
            return Err(Error::from(tenancy::Error::integrity("a model is not the one that was admitted")).into());
        }
        let file = self.memory_file(&Source::blob(reader)).await?;
        self.make_room(cell, resolved);
        let load = self.load_of(&resolved.key.deployment, &resolved.version, resolved.bytes);
        let slot = Loading::new(cell);
        let answer = cell.link.ask(&ToCell::Load { slot: slot.number, load }, Some(file));
        let timeout = self.config().load_timeout;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(Ok(FromCell::Model(info)))) => {
                bump(&self.counters().models_loaded);
                slot.done(&resolved.key, info.resident_bytes);
                Ok(true)
            }
            Ok(Ok(Ok(FromCell::Fail(fail)))) => {
                let fail = job::clean(fail);
                *last_failure = Some(LoadFailure { key: resolved.key.clone(), at: Instant::now(), fail: fail.clone() });
                Err(Miss::Final(Error::Input(fail)))
            }
            Ok(Ok(Ok(_))) => {
                let end = End::Protocol("an answer of another kind".to_owned());
                cell.link.end(end.clone());
                Err(self.lost(island, cell, &resolved.key, Lost { begun: true, end }).await)
            }
            Ok(Ok(Err(lost))) => Err(self.lost(island, cell, &resolved.key, lost).await),
            Ok(Err(_)) => Err(Miss::Final(Error::CellFailed(CellFailure::Stopped))),
            Err(_) => {
                cell.link.end(End::Deadline);
                cell.process.failure(&End::Deadline).await;
                island.breaker_crashed(&resolved.key);
                Err(Miss::Final(Error::DeadlineExceeded { seconds: timeout.as_secs() }))
            }
        }
    }

    /// Puts out models, least recently used first, until the next one fits into count and budget.
    fn make_room(&self, cell: &Serving, resolved: &Resolved) {
        let expected = if resolved.resident_bytes > 0 { resolved.resident_bytes } else { resolved.bytes.saturating_mul(RESIDENT_PER_BYTE) };
        let budget = cell.process.memory_bytes_max() / 100 * MODELS_MEMORY_SHARE_PERCENT;
        let mut slots = cell.slots.lock();
        loop {
            let taken = slots.loaded.iter().fold(0u64, |sum, (_, slot)| sum.saturating_add(slot.resident_bytes));
            let fits = slots.loaded.len() < slots.loaded.cap().get() && taken.saturating_add(expected) <= budget;
            if fits {
                return;
            }
            let Some((_, slot)) = slots.loaded.pop_lru() else { return };
            bump(&self.counters().models_evicted);
            // Requests for it that are under way were sent before and come first.
            drop(cell.link.ask(&ToCell::Unload { slot: slot.number }, None));
        }
    }
}

/// A slot that is being filled, one at a time in a cell. If whoever fills it leaves, the cell forgets it.
struct Loading<'a> {
    cell: &'a Serving,
    number: u32,
    done: bool,
}

impl<'a> Loading<'a> {
    fn new(cell: &'a Serving) -> Self {
        let slots = cell.slots.lock();
        let number = (1..u32::MAX).find(|number| slots.loaded.iter().all(|(_, slot)| slot.number != *number)).unwrap_or(0);
        drop(slots);
        Self { cell, number, done: false }
    }

    fn done(mut self, key: &SlotKey, resident_bytes: u64) {
        self.done = true;
        self.cell.slots.lock().loaded.put(key.clone(), Slot { number: self.number, resident_bytes });
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        if !self.done {
            drop(self.cell.link.ask(&ToCell::Unload { slot: self.number }, None));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SlotKey {
        SlotKey { deployment: "d".into(), version: 1, blob: BlobId::try_from("00".repeat(16)).unwrap() }
    }

    #[test]
    fn a_model_that_keeps_crashing_is_left_alone_until_it_works() {
        let config = crate::config::PlatformConfig::new("cell".into(), "engine".into(), jail::Floor::Development);
        let island = Island::new(&Gate::new(&config));
        for _ in 1..CRASHES_MAX {
            island.breaker_crashed(&key());
            assert!(island.breaker_check(&key()).is_ok());
        }
        island.breaker_crashed(&key());
        let error = island.breaker_check(&key()).unwrap_err();
        assert!(matches!(error, Error::ModelUnstable { failures: CRASHES_MAX, retry_after_seconds: 1..=2, .. }), "{error}");
        island.breaker_worked(&key());
        assert!(island.breaker_check(&key()).is_ok());
    }
}
