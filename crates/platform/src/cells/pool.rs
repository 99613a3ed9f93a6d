//! Serving: one cell an island, several of its models in slots, and the way of a prediction through them.
//!
//! A prediction looks its deployment up in a cache that the tenant's epoch makes stale, finds the model's slot, and goes into the cell's socket
//! behind those before it. What is missing is made on the way, once, however many wait: a cell, a loaded model. What breaks, breaks for this
//! island alone: the cell is replaced by the next request, and a model that breaks cells again and again is left alone for a while.
//!
//! Where a deployment joins requests, the one that kills a cell is not known: any that was joined may be at fault. So nobody is told so, all are
//! asked again, and the next cell joins nothing: there the one at fault is found as ever ([`UNJOINED_FOR`]).
//!
//! What shadows do happens in a lane of its own: another cell, which starts only where nobody has to make room for it, takes few copies at
//! a time, and is the first to go.

mod breakers;
mod replicas;
mod routes;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use tenancy::act::Predict;
use tenancy::{BlobId, BlobReader, IsolationClass, Permit};
use tokio::sync::Semaphore;
use wire::{Batching, Fail, FailCode, FromCell, Inferred, Load, ToCell};

use super::link::{Answer, Link, Lost};
use super::process::{Owner, Process};
use super::socket::End;
use super::turn::{Gate, Seat, Way};
use super::{Cells, Source, Waiting, job};
use crate::dataset::hex;
use crate::error::{CellFailure, Error, Result};
use crate::predict::{Protocol, Question};
use crate::rollout::{self, Broken};
use crate::stats::bump;
use breakers::{BACK_OFF_MAX, Breakers};
use replicas::Granted;
use routes::{Counted, Resolved, Routes};

/// Deployments of one tenant whose meaning is remembered.
const RESOLVED_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// By how much the remembered time of a request fades with each: an eighth.
const TAKES_FADE: u64 = 8;
/// For how long a request is taken to lie in a cell that none has come from yet, in nanoseconds: so long that a crowd is worth another cell.
const TAKES_AT_FIRST: u64 = 1_000_000;
/// Cells whose requests take no longer have short turns on a core.
const SHORT_MAX: Duration = Duration::from_millis(1);
/// Share of a tenant's memory that loaded models may take: the rest is for running them.
const MODELS_MEMORY_SHARE_PERCENT: u64 = 60;
/// What a model that was never loaded is expected to take: this many times its file.
const RESIDENT_PER_BYTE: u64 = 3;
/// Times one prediction is begun: at most one retry after a cell died before it was its turn, one after it died over joined requests, and
/// one after its model was put out.
const TRIES_MAX: u32 = 4;
/// After a cell that joined requests has died, models of its tenant that are loaded within this time join none.
const UNJOINED_FOR: Duration = Duration::from_secs(60);
/// Copies of one tenant that its shadows work on or hold; others are dropped.
const SHADOW_IN_FLIGHT_MAX: usize = 2;
/// Versions of one tenant's deployments whose answers are counted.
const COUNTED_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// What a cell of a tenant is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// Somebody waits for its answers.
    Live,
    /// As `Live`, beside it: the n-th more, from 1 on.
    Replica(u32),
    /// Nobody does.
    Shadow,
}

/// Name of a deployment, and number of a version.
type DeployedVersion = (Arc<str>, u64);

/// One tenant's serving side on this node, in one lane.
pub(super) struct Island {
    pub(super) lane: Lane,
    resolved: Mutex<LruCache<Box<str>, Arc<Routes>>>,
    counted: Mutex<LruCache<DeployedVersion, Arc<Counted>>>,
    serving: Mutex<Option<Arc<Serving>>>,
    starting: tokio::sync::Mutex<()>,
    /// Its place at the door.
    seat: Arc<Seat>,
    /// Predictions of the tenant that are under way, in whatever lane.
    present: AtomicUsize,
    /// Those in this lane.
    here: AtomicUsize,
    /// Copies for a shadow that are under way.
    copies: Arc<Semaphore>,
    /// What its cell may have of the tenant's memory, in bytes; 0 without one.
    memory_bytes: AtomicU64,
    /// It gets no more requests: its cell is to go.
    leaves: AtomicBool,
    breakers: Breakers,
    /// How long a request lies in its cell with nothing before it, in nanoseconds; fades.
    takes: AtomicU64,
    unjoined_until: Mutex<Option<Instant>>,
    used: Mutex<Instant>,
}

/// A model as it is loaded: its bytes, under the names its answers carry.
#[derive(Clone, PartialEq, Eq, Hash)]
struct SlotKey {
    deployment: Arc<str>,
    version: u64,
    blob: BlobId,
    batching: Option<Batching>,
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

/// What is loaded. Every message that names a slot is prepared under this lock, so that the cell sees them in the order in which slots changed hands.
struct Slots {
    loaded: LruCache<SlotKey, Slot>,
}

#[derive(Clone, Copy)]
struct Slot {
    number: u32,
    resident_bytes: u64,
    /// Its requests are joined.
    joined: bool,
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

    /// Stops it without waiting, and counts why.
    pub(super) fn evicted(&self, why: &AtomicU64) {
        bump(why);
        self.process.evicted();
        self.link.end(End::Stopped);
    }

    /// Asks a loaded model; `None` when it is not loaded any more.
    fn infer(&self, key: &SlotKey, asked: &Question) -> Option<tokio::sync::oneshot::Receiver<Answer>> {
        let mut slots = self.slots.lock();
        let (slot, body) = (slots.loaded.get(key)?.number, asked.body.bytes().clone());
        let request = match asked.protocol {
            Protocol::Inference => ToCell::Infer { slot, body },
            Protocol::InferenceBinary { json_bytes } => ToCell::InferBinary { slot, json_bytes, body },
            Protocol::InferenceGrpc => ToCell::InferGrpc { slot, body },
            Protocol::Scoring => ToCell::Score { slot, body },
        };
        let answer = self.link.prepare(&request, None);
        // A cell that is woken may have this core at once, and others want the lock meanwhile.
        drop(slots);
        self.link.send();
        Some(answer)
    }

    fn has_loaded(&self, key: &SlotKey) -> bool {
        self.slots.lock().loaded.contains(key)
    }

    /// Whether requests to a loaded model are joined.
    fn joins(&self, key: &SlotKey) -> bool {
        self.slots.lock().loaded.peek(key).is_some_and(|slot| slot.joined)
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

/// Somebody is in a lane, waiting or worked on.
struct Here<'a>(&'a Island);

impl<'a> Here<'a> {
    fn at(island: &'a Island) -> Self {
        island.here.fetch_add(1, Ordering::AcqRel);
        Self(island)
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.0.here.fetch_sub(1, Ordering::AcqRel);
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
    pub(super) fn new(gate: &Arc<Gate>, lane: Lane) -> Self {
        let seat = match lane {
            Lane::Live | Lane::Replica(_) => Seat::new(gate),
            Lane::Shadow => Seat::spare(gate),
        };
        Self {
            lane,
            resolved: Mutex::new(LruCache::new(RESOLVED_MAX)),
            counted: Mutex::new(LruCache::new(COUNTED_MAX)),
            serving: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            seat: Arc::new(seat),
            present: AtomicUsize::new(0),
            here: AtomicUsize::new(0),
            copies: Arc::new(Semaphore::new(SHADOW_IN_FLIGHT_MAX)),
            memory_bytes: AtomicU64::new(0),
            leaves: AtomicBool::new(false),
            breakers: Breakers::default(),
            takes: AtomicU64::new(TAKES_AT_FIRST),
            unjoined_until: Mutex::default(),
            used: Mutex::new(Instant::now()),
        }
    }

    /// A request was in its cell for so long, with nothing before it; returns for how long they are there by now.
    fn took(&self, time: Duration) -> Duration {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // One that is lost to another thread at the same moment is made up for by the next.
        let before = self.takes.load(Ordering::Relaxed);
        let now = before - before / TAKES_FADE + nanos / TAKES_FADE;
        self.takes.store(now, Ordering::Relaxed);
        Duration::from_nanos(now)
    }

    /// Whether its cell could answer at once.
    fn is_warm(&self, key: &SlotKey) -> bool {
        self.serving.lock().as_ref().is_some_and(|cell| cell.link.ended().is_none() && cell.has_loaded(key))
    }

    /// How many requests to this model its cell works on at once.
    fn joins(&self, key: &SlotKey) -> usize {
        let serving = self.serving.lock();
        let joined = serving.as_ref().is_some_and(|cell| cell.joins(key));
        key.batching.filter(|_| joined).map_or(1, |batching| batching.max_size as usize)
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
        self.gone(&mut serving)
    }

    /// Takes the cell away, and its memory is free.
    fn gone(&self, serving: &mut Option<Arc<Serving>>) -> Option<Arc<Serving>> {
        self.memory_bytes.store(0, Ordering::Release);
        serving.take()
    }

    /// Takes the cell away, whatever it does.
    pub(super) fn take(&self) -> Option<Arc<Serving>> {
        self.resolved.lock().clear();
        self.gone(&mut self.serving.lock())
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
        if let Some(cell) = self.gone(&mut serving) {
            self.remember(&cell);
            tokio::spawn(async move { cell.process.failure(&end).await });
        }
    }

    /// Charges the cell's CPU time; returns its memory in bytes.
    pub(super) fn bill(&self) -> u64 {
        let cell = self.serving.lock().clone();
        cell.map_or(0, |cell| cell.process.bill())
    }

    fn has_loaded(&self, key: &SlotKey) -> bool {
        self.serving.lock().as_ref().is_some_and(|cell| cell.has_loaded(key))
    }

    pub(super) fn is_serving(&self) -> bool {
        self.serving.lock().is_some()
    }

    /// The class of its cell.
    pub(super) fn isolation(&self) -> Option<IsolationClass> {
        self.serving.lock().as_ref().map(|cell| cell.process.isolation())
    }

    /// What its process may have, in bytes.
    pub(super) fn memory_given(&self) -> u64 {
        self.serving.lock().as_ref().map_or(0, |cell| cell.process.memory_bytes_max())
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.serving.lock().as_ref().map(|cell| cell.process.pid())
    }

    /// Whether nothing of it is worth keeping.
    pub(super) fn is_forgettable(&self, idle_timeout: Duration) -> bool {
        !self.is_serving() && self.used.lock().elapsed() > idle_timeout.max(BACK_OFF_MAX)
    }

    /// What a dead cell teaches, before another one starts: if it joined requests, who was at fault is found by joining none.
    fn remember(&self, dead: &Serving) {
        if dead.slots.lock().loaded.iter().any(|(_, slot)| slot.joined) {
            *self.unjoined_until.lock() = Some(Instant::now() + UNJOINED_FOR);
        }
    }

    /// How requests for a model that is loaded now are joined.
    fn joining(&self, key: &SlotKey) -> Option<Batching> {
        key.batching.filter(|_| self.unjoined_until.lock().is_none_or(|until| until < Instant::now()))
    }

    /// The island's cell, if it lives and is of the class that its tenant must have now. One of another class ends with what it works on.
    fn living(&self, isolation: IsolationClass) -> Option<InUse> {
        let mut serving = self.serving.lock();
        let cell = serving.as_ref()?;
        if cell.link.ended().is_some() {
            self.remember(cell);
            self.gone(&mut serving);
            return None;
        }
        if cell.process.isolation() != isolation {
            cell.process.evicted();
            self.gone(&mut serving);
            return None;
        }
        cell.users.fetch_add(1, Ordering::AcqRel);
        Some(InUse(Arc::clone(cell)))
    }
}

impl Cells {
    /// One prediction. `broken` is set when a canary turned out to have broken its rules.
    pub(crate) async fn predict(
        &self,
        permit: &Permit<Predict>,
        owner: &Owner,
        version: Option<&str>,
        asked: Question,
        broken: &mut Option<Broken>,
    ) -> Result<Inferred> {
        if asked.body.bytes().len() > wire::BODY_BYTES_MAX as usize {
            return Err(Error::TooLarge { what: "request", bytes_max: wire::BODY_BYTES_MAX.into() });
        }
        let island = self.lane(owner.island, Lane::Live);
        *island.used.lock() = Instant::now();
        let present_max = self.config().infer_queue_max.saturating_add(self.config().infer_in_flight_max);
        let _present = Waiting::enter(&island.present, present_max).ok_or_else(|| {
            bump(&self.counters().overloaded);
            Error::Overloaded("predictions of this tenant")
        })?;
        let (mut way, mut tries) = (Way::default(), 1);
        let answer = loop {
            match self.predict_once(&island, permit, owner, (version, &asked), &mut way, broken).await {
                Ok(answer) => break Ok(answer),
                Err(Miss::Again) if tries < TRIES_MAX => tries += 1,
                Err(Miss::Again) => break Err(Error::CellFailed(CellFailure::Died("it was not this request's fault".to_owned()))),
                Err(Miss::Final(error)) => break Err(error),
            }
        };
        if let Some(isolation) = way.isolation {
            permit.detail(IsolationClass::DETAIL, isolation.name());
        }
        owner.meter.count_queued(way.waited);
        if way.sent.is_some() {
            self.counters().queued.add(way.waited);
        }
        answer
    }

    async fn predict_once(
        &self,
        island: &Arc<Island>,
        permit: &Permit<Predict>,
        owner: &Owner,
        (version, asked): (Option<&str>, &Question),
        way: &mut Way,
        broken: &mut Option<Broken>,
    ) -> Result<Inferred, Miss> {
        let routes = island.resolve(permit).await?;
        let (resolved, watch) = routes.pick(version, permit.request().as_str())?;
        let open = || async move { Ok(permit.blobs().open(resolved.key.blob).await?) };
        let answer = match self.spread(island, owner, resolved).await? {
            None => self.answer(island, owner, resolved, asked, open(), way).await,
            Some((lane, share)) => match self.answer(&lane, &share, resolved, asked, open(), way).await {
                // Nobody else has to make room for a replica.
                Err(Miss::Final(Error::Overloaded(_))) if lane.lane != Lane::Live => {
                    self.answer(island, &share, resolved, asked, open(), way).await
                }
                answer => answer,
            },
        };
        let answer = match answer {
            Err(Miss::Again) => return Err(Miss::Again),
            Err(Miss::Final(error)) => Err(error),
            Ok(body) => Ok(body),
        };
        if let Some(failed) = rollout::blame(&answer) {
            bump(if failed { &resolved.counted.failed } else { &resolved.counted.answered });
            if let Some(run) = answer.as_ref().ok().and_then(|inferred| inferred.run) {
                resolved.counted.ran(run);
                self.counters().batches.add(run);
            }
            watch.inspect(|watch| watch.add(failed, way.sent.map_or(Duration::ZERO, |sent| sent.elapsed())));
        }
        *broken = routes.untold();
        if let Some(shadow) = &routes.shadow {
            Box::pin(self.shadow(permit, owner, shadow, asked)).await;
        }
        permit.detail("model_sha256", &resolved.sha256);
        permit.detail("model_version", &resolved.version);
        Ok(answer?)
    }

    /// Hands a copy to the shadow if there is room for it. What it answers, and whether, is counted and nothing else.
    async fn shadow(&self, permit: &Permit<Predict>, owner: &Owner, resolved: &Arc<Resolved>, asked: &Question) {
        let island = self.lane(owner.island, Lane::Shadow);
        let Ok(room) = Arc::clone(&island.copies).try_acquire_owned() else {
            return bump(&resolved.counted.shadow_dropped);
        };
        // The permit ends with the request, so what it alone can open is opened now.
        let reader = match island.has_loaded(&resolved.key) {
            true => None,
            false => permit.blobs().open(resolved.key.blob).await.ok(),
        };
        permit.detail("shadow_version", &resolved.version);
        let (cells, owner, resolved) = (self.clone(), owner.shadow(), Arc::clone(resolved));
        let asked = Question { manner: asked.manner.of_a_copy(), ..asked.clone() };
        tokio::spawn(async move {
            let open = async { reader.ok_or(Error::Overloaded("a shadow's model was put out")) };
            let answer = cells.answer(&island, &owner, &resolved, &asked, open, &mut Way::default()).await;
            let counted = &resolved.counted;
            bump(match &answer {
                Ok(_) => &counted.shadow_answered,
                Err(Miss::Again | Miss::Final(Error::Overloaded(_) | Error::DeadlinePassed | Error::CellFailed(CellFailure::Stopped))) => {
                    &counted.shadow_dropped
                }
                Err(Miss::Final(_)) => &counted.shadow_failed,
            });
            drop(room);
        });
    }

    /// One model's answer, from the island's cell. `open` is asked for its bytes when it is not loaded.
    async fn answer(
        &self,
        island: &Island,
        owner: &Owner,
        resolved: &Resolved,
        asked: &Question,
        open: impl Future<Output = Result<BlobReader>> + Send,
        way: &mut Way,
    ) -> Result<Inferred, Miss> {
        island.breakers.check(&resolved.key)?;
        let _here = Here::at(island);
        let joined = island.joins(&resolved.key);
        let mut turn = island.seat.turn(owner, &asked.manner, joined);
        // To start a cell and to load a model has queues of its own: a core is neither waited for nor held for it, and what cannot be
        // started has not been at the door.
        if island.is_warm(&resolved.key) {
            turn.come(way).await?;
            if !island.is_warm(&resolved.key) {
                turn.pause();
            }
        }
        let cell = self.ready(island, owner, resolved, asked, open).await?;
        way.isolation = Some(cell.0.process.isolation());
        turn.come(way).await?;
        let timeout = self.config().infer_timeout;
        let patience = asked.manner.left(timeout)?;
        let sent = *way.sent.insert(Instant::now());
        let mut in_cell = turn.in_cell(cell.0.infer(&resolved.key, asked).ok_or(Miss::Again)?);
        let answer = tokio::time::timeout(patience, in_cell.answered()).await;
        asked.manner.note("cell", sent);
        let answer = match answer {
            Ok(Some(Ok((message, begun)))) => {
                way.waited += begun.saturating_duration_since(sent);
                cell.0.process.take_turns(island.took(begun.elapsed()) < SHORT_MAX);
                asked.manner.note("engine", begun);
                Ok(message)
            }
            Ok(Some(Err(lost))) => Err(lost),
            Ok(None) => Err(Lost { begun: true, end: End::Stopped }),
            Err(_) if patience < timeout => return Err(Miss::Final(Error::DeadlinePassed)),
            Err(_) => {
                if cell.0.link.stuck_for().is_some_and(|stuck| stuck >= timeout) {
                    cell.0.link.end(End::Deadline);
                    cell.0.process.failure(&End::Deadline).await;
                    island.breakers.crashed(&resolved.key);
                }
                return Err(Miss::Final(Error::DeadlineExceeded { seconds: timeout.as_secs() }));
            }
        };
        self.understood(island, &cell.0, &resolved.key, answer).await
    }

    /// What a cell's word means.
    async fn understood(&self, island: &Island, cell: &Serving, key: &SlotKey, answer: Result<FromCell, Lost>) -> Result<Inferred, Miss> {
        match answer {
            Ok(FromCell::Inferred(inferred)) => {
                island.breakers.worked(key);
                Ok(inferred)
            }
            Ok(FromCell::Fail(fail)) if fail.code == FailCode::NoModel => {
                // Put out between look-up and request; the next try loads it again.
                cell.slots.lock().loaded.pop(key);
                Err(Miss::Again)
            }
            Ok(FromCell::Fail(fail)) if fail.code == FailCode::Internal => {
                Err(Miss::Final(Error::CellFailed(CellFailure::Died(job::clean(fail).message))))
            }
            Ok(FromCell::Fail(fail)) => Err(Miss::Final(Error::Input(job::clean(fail)))),
            Ok(_) => {
                let end = End::Protocol("an answer of another kind".to_owned());
                cell.link.end(end.clone());
                Err(self.lost(island, cell, key, Lost { begun: true, end }).await)
            }
            Err(lost) => Err(self.lost(island, cell, key, lost).await),
        }
    }

    /// The island's cell, with the model loaded in it. What is missing is made: a cold start.
    async fn ready(
        &self,
        island: &Island,
        owner: &Owner,
        resolved: &Resolved,
        asked: &Question,
        open: impl Future<Output = Result<BlobReader>> + Send,
    ) -> Result<InUse, Miss> {
        if let Some(cell) = island.living(owner.limits.isolation)
            && cell.0.has_loaded(&resolved.key)
        {
            self.adjust(island, &cell.0, owner);
            return Ok(cell);
        }
        // Long, and seldom: boxed, it does not make every prediction's future as long.
        Box::pin(async {
            let begun = Instant::now();
            let (cell, fresh_cell) = self.serving_cell(island, owner).await?;
            let fresh_slot = self.loaded(island, &cell.0, open, resolved).await?;
            if (fresh_cell || fresh_slot) && island.lane != Lane::Shadow {
                let waited = begun.elapsed();
                self.counters().cold_starts.add(waited);
                owner.meter.count_cold_start(waited);
                asked.manner.note("cold start", begun);
            }
            Ok(cell)
        })
        .await
    }

    /// What a lost request means: to be asked again if it was surely not begun, else an error that says how the cell ended.
    async fn lost(&self, island: &Island, cell: &Serving, key: &SlotKey, lost: Lost) -> Miss {
        if !lost.begun {
            return Miss::Again;
        }
        let failure = cell.process.failure(&lost.end).await;
        if failure != CellFailure::Stopped {
            island.breakers.crashed(key);
        }
        if cell.joins(key) && matches!(failure, CellFailure::Died(_) | CellFailure::OutOfMemory { .. }) && lost.end != End::Deadline {
            return Miss::Again;
        }
        Miss::Final(match lost.end {
            End::Deadline => Error::DeadlineExceeded { seconds: self.config().infer_timeout.as_secs() },
            _ => Error::CellFailed(failure),
        })
    }

    /// The island's serving cell; started if there is none, by one of those who need it.
    async fn serving_cell(&self, island: &Island, owner: &Owner) -> Result<(InUse, bool)> {
        if let Some(cell) = island.living(owner.limits.isolation) {
            self.adjust(island, &cell.0, owner);
            return Ok((cell, false));
        }
        let _starting = island.starting.lock().await;
        if let Some(cell) = island.living(owner.limits.isolation) {
            return Ok((cell, true));
        }
        let granted = Granted::to(self, island, owner);
        let (process, stream) = match island.lane {
            Lane::Live => self.cell(&granted.owner).await?,
            Lane::Replica(_) if granted.owner.limits.memory_bytes < owner.limits.memory_bytes => {
                return Err(Error::Overloaded("the memory of this tenant's cells"));
            }
            Lane::Replica(_) | Lane::Shadow => self.spare_cell(&granted.owner).await?,
        };
        let slots_max = NonZeroUsize::new(self.config().models_per_cell_max).unwrap_or(NonZeroUsize::MIN);
        let serving = Arc::new(Serving {
            link: Link::new(stream, process.attach(), self.config().answer_bytes_max),
            process,
            slots: Mutex::new(Slots { loaded: LruCache::new(slots_max) }),
            loading: tokio::sync::Mutex::default(),
            users: AtomicUsize::new(1),
            used: Mutex::new(Instant::now()),
        });
        *island.serving.lock() = Some(Arc::clone(&serving));
        granted.kept();
        Ok((InUse(serving), true))
    }

    /// Sees to it that a model is loaded, by one of those who need it; `true` when that took time.
    async fn loaded(
        &self,
        island: &Island,
        cell: &Serving,
        open: impl Future<Output = Result<BlobReader>> + Send,
        resolved: &Resolved,
    ) -> Result<bool, Miss> {
        if cell.has_loaded(&resolved.key) {
            return Ok(false);
        }
        let arrived = Instant::now();
        let mut last_failure = cell.loading.lock().await;
        if cell.has_loaded(&resolved.key) {
            return Ok(true);
        }
        if let Some(failure) = last_failure.as_ref().filter(|failure| failure.key == resolved.key && failure.at >= arrived) {
            return Err(Miss::Final(Error::Input(failure.fail.clone())));
        }
        let reader = open.await?;
        if hex(&reader.sha256()) != resolved.sha256 || reader.bytes() != resolved.bytes {
            return Err(Error::from(tenancy::Error::integrity("a model is not the one that was admitted")).into());
        }
        let file = self.memory_file(&Source::blob(reader)).await?;
        self.make_room(cell, resolved);
        let batching = island.joining(&resolved.key);
        let load = Load { batching, ..self.load_of(&resolved.key.deployment, &resolved.version, resolved.bytes) };
        let slot = Loading::new(cell);
        let answer = cell.link.ask(&ToCell::Load { slot: slot.number, load }, Some(file));
        let timeout = self.config().load_timeout;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(Ok((FromCell::Model(info), _)))) => {
                bump(&self.counters().models_loaded);
                slot.done(&resolved.key, info.resident_bytes, batching.is_some());
                Ok(true)
            }
            Ok(Ok(Ok((FromCell::Fail(fail), _)))) => {
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
                island.breakers.crashed(&resolved.key);
                Err(Miss::Final(Error::DeadlineExceeded { seconds: timeout.as_secs() }))
            }
        }
    }

    /// Puts out models, least recently used first, until the next one fits into count and budget.
    fn make_room(&self, cell: &Serving, resolved: &Resolved) {
        let expected = resolved.expected_bytes();
        let budget = models_budget(cell.process.memory_bytes_max());
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

/// What loaded models may take of a cell's memory, in bytes.
fn models_budget(memory_bytes: u64) -> u64 {
    memory_bytes / 100 * MODELS_MEMORY_SHARE_PERCENT
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

    fn done(mut self, key: &SlotKey, resident_bytes: u64, joined: bool) {
        self.done = true;
        self.cell.slots.lock().loaded.put(key.clone(), Slot { number: self.number, resident_bytes, joined });
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        if !self.done {
            drop(self.cell.link.ask(&ToCell::Unload { slot: self.number }, None));
        }
    }
}
