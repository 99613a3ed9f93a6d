//! The door to the cells: [`Fair`] among threads. A turn is had before anything is done for a prediction, and given back by drop.
//!
//! While tenants with work are fewer than cores, a turn costs a short lock when it is taken and one when it is given back; nobody is woken and
//! no timer is set. Whoever waits can leave: its place is free at once, and no cell ever sees its request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tenancy::IsolationClass;
use tokio::sync::oneshot;

use super::fair::{Entry, Fair, FlowId, Priority, Rules};
use super::process::Owner;
use crate::config::PlatformConfig;
use crate::error::{CellFailure, Error, Result};
use crate::stats::{Counters, bump};

/// How far a tenant may get ahead before another one is let in: some requests of a small model, so that cells are not changed for each.
const QUANTUM: Duration = Duration::from_millis(1);
/// For how long the requests that lie in a cell keep it busy: many times what a round trip to it takes, so that it never idles.
const AHEAD: Duration = Duration::from_millis(2);
/// For how long one request keeps its core from others: longer ones are the kernel's business, which can take them off it.
const SLICE: Duration = Duration::from_millis(1);
/// How often whoever waits looks, at last, whether somebody has had a core for too long.
const LOOK_EVERY_MAX: Duration = Duration::from_millis(20);
/// How far somebody from rest may be ahead and still go first.
const LEAD: Duration = Duration::from_millis(50);
/// How much of a share that one cell cannot use is remembered.
const LAG: Duration = Duration::from_millis(100);

/// Legs of one prediction that are noted.
const LEGS_MAX: usize = 16;

/// How a prediction is to be treated, beside what it asks.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// Among those of the same tenant.
    pub priority: Priority,
    /// When its answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Where its way is noted, if somebody traces it.
    pub legs: Option<Arc<Legs>>,
}

/// A part of a prediction's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// `queue`, `cold start`, `cell`, and in it `engine`.
    pub name: &'static str,
    /// When it began.
    pub begun: Instant,
    /// When it ended.
    pub ended: Instant,
}

/// The way of a prediction, as far as it got.
#[derive(Debug, Default)]
pub struct Legs(Mutex<Vec<Leg>>);

impl Legs {
    /// What was noted; it is gone afterwards.
    #[must_use]
    pub fn take(&self) -> Vec<Leg> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Manner {
    /// As it is for a copy that nobody waits for, and whose way nobody asks about.
    pub(super) fn of_a_copy(&self) -> Self {
        Self { legs: None, ..self.clone() }
    }

    /// Notes a part of the way that ends now.
    pub(super) fn note(&self, name: &'static str, begun: Instant) {
        let Some(Legs(noted)) = self.legs.as_deref() else { return };
        let mut noted = noted.lock();
        if noted.len() < LEGS_MAX {
            noted.push(Leg { name, begun, ended: Instant::now() });
        }
    }

    /// What is left of `most`.
    ///
    /// # Errors
    /// `DeadlinePassed` when nothing is.
    pub(super) fn left(&self, most: Duration) -> Result<Duration> {
        let Some(deadline) = self.deadline else { return Ok(most) };
        match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(Error::DeadlinePassed),
            left => Ok(left.min(most)),
        }
    }
}

/// The door of a node.
pub(super) struct Gate {
    fair: Mutex<Fair<oneshot::Sender<()>>>,
    since: Instant,
    counters: Arc<Counters>,
}

impl Gate {
    pub(super) fn new(config: &PlatformConfig, counters: Arc<Counters>) -> Arc<Self> {
        let rules = Rules {
            cores: config.cores,
            queue_max: config.infer_queue_max,
            in_flight_max: config.infer_in_flight_max,
            quantum: QUANTUM,
            ahead: AHEAD,
            slice: SLICE,
            lead: LEAD,
            lag: LAG,
        };
        Arc::new(Self { fair: Mutex::new(Fair::new(rules)), since: Instant::now(), counters })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn leave(&self, id: Option<FlowId>) {
        match id {
            Some(id) => tell(self.fair.lock().leave(id, self.now())),
            None => self.fair.lock().spare_done(),
        }
    }

    /// Whether a core is free that nobody waits for.
    pub(super) fn has_spare(&self) -> bool {
        self.fair.lock().has_spare()
    }

    fn poke(&self) {
        tell(self.fair.lock().poke(self.now()));
    }
}

/// Whoever has left in the meantime gives its turn back itself.
fn tell(told: Vec<oneshot::Sender<()>>) {
    for sender in told {
        let _ = sender.send(());
    }
}

/// One tenant's place at the door.
pub(super) struct Seat {
    gate: Arc<Gate>,
    /// None for work that nobody waits for.
    id: Option<FlowId>,
}

impl Seat {
    pub(super) fn new(gate: &Arc<Gate>) -> Self {
        Self { gate: Arc::clone(gate), id: Some(gate.fair.lock().join()) }
    }

    /// For work that nobody waits for: it goes where a core is free, and never waits itself.
    pub(super) fn spare(gate: &Arc<Gate>) -> Self {
        Self { gate: Arc::clone(gate), id: None }
    }

    /// A prediction's turn, which has not come yet. `joined` is how many like it the cell can work on at once.
    pub(super) fn turn<'a>(self: &'a Arc<Self>, owner: &'a Owner, manner: &'a Manner, joined: usize) -> Turn<'a> {
        Turn { seat: self, owner, manner, joined, held: None }
    }

    async fn enter(self: &Arc<Self>, owner: &Owner, manner: &Manner, joined: usize) -> Result<Held> {
        let held = || Held(Arc::clone(self));
        manner.left(Duration::MAX)?;
        let Some(id) = self.id else {
            return if self.gate.fair.lock().spare() { Ok(held()) } else { Err(Error::Overloaded("no core is free")) };
        };
        let mut receiver = None;
        let entry = {
            let mut fair = self.gate.fair.lock();
            fair.joins(id, joined);
            fair.enter(id, owner.portion(), manner.priority, self.gate.now(), || {
                let (sender, told) = oneshot::channel();
                receiver = Some(told);
                sender
            })
        };
        let ticket = match entry {
            Entry::Go => return Ok(held()),
            Entry::Full => {
                bump(&self.gate.counters.overloaded);
                return Err(Error::Overloaded("predictions of this tenant"));
            }
            Entry::Wait(ticket) => ticket,
        };
        let mut waiting = Waiting { gate: &self.gate, id, ticket, told: false };
        let Some(mut told) = receiver else { return Err(Error::CellFailed(CellFailure::Stopped)) };
        let mut look_after = SLICE;
        let told = loop {
            // Whoever has its core for too long by now is not waited for.
            self.gate.poke();
            if let Ok(told) = tokio::time::timeout(manner.left(look_after)?, &mut told).await {
                break told;
            }
            look_after = (look_after * 2).min(LOOK_EVERY_MAX);
        };
        waiting.told = told.is_ok();
        told.map(|()| held()).map_err(|_| Error::CellFailed(CellFailure::Stopped))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.id.inspect(|id| self.gate.fair.lock().part(*id));
    }
}

/// Somebody at the door. Dropped before the turn has come, the place is free.
struct Waiting<'a> {
    gate: &'a Gate,
    id: FlowId,
    ticket: u64,
    told: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let waited = self.gate.fair.lock().give_up(self.id, self.ticket);
        if !waited {
            // The turn had come, and nobody was there to take it.
            self.gate.leave(Some(self.id));
        }
    }
}

/// A place inside; given back when dropped.
pub(super) struct Held(Arc<Seat>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.gate.leave(self.0.id);
    }
}

/// A prediction's turn.
pub(super) struct Turn<'a> {
    seat: &'a Arc<Seat>,
    owner: &'a Owner,
    manner: &'a Manner,
    joined: usize,
    held: Option<Held>,
}

/// How a prediction fares, over all its turns.
#[derive(Default)]
pub(super) struct Way {
    /// How long it waited: at the door, and in its cell behind others.
    pub(super) waited: Duration,
    /// When its cell was asked.
    pub(super) sent: Option<Instant>,
    /// The class of that cell, or of the one that was to be asked.
    pub(super) isolation: Option<IsolationClass>,
}

impl Turn<'_> {
    /// Gives the turn back for a while: what comes now waits for other things than a core.
    pub(super) fn pause(&mut self) {
        self.held = None;
    }

    /// Waits for it; nothing happens to who has one.
    ///
    /// # Errors
    /// `Overloaded` when too many of this tenant wait, `DeadlinePassed` when it takes too long.
    pub(super) async fn come(&mut self, way: &mut Way) -> Result<()> {
        if self.held.is_none() {
            let begun = Instant::now();
            let entered = self.seat.enter(self.owner, self.manner, self.joined).await;
            way.waited += begun.elapsed();
            self.manner.note("queue", begun);
            self.held = Some(entered?);
        }
        Ok(())
    }

    /// Hands the turn to what is in the cell from now on.
    pub(super) fn in_cell<T: Send + 'static>(&mut self, answer: oneshot::Receiver<T>) -> InCell<T> {
        InCell { answer: Some(answer), held: self.held.take() }
    }
}

/// A request in a cell. If whoever asked leaves, the cell still works on it: so it keeps its turn until the cell has answered, and nobody gets
/// more of a core by leaving early.
pub(super) struct InCell<T: Send + 'static> {
    answer: Option<oneshot::Receiver<T>>,
    held: Option<Held>,
}

impl<T: Send + 'static> InCell<T> {
    /// The answer; none when it is lost.
    pub(super) async fn answered(&mut self) -> Option<T> {
        let answer = match &mut self.answer {
            Some(answer) => answer.await.ok(),
            None => None,
        };
        (self.answer, self.held) = (None, None);
        answer
    }
}

impl<T: Send + 'static> Drop for InCell<T> {
    fn drop(&mut self) {
        if let (Some(answer), Some(held), Ok(runtime)) = (self.answer.take(), self.held.take(), tokio::runtime::Handle::try_current()) {
            // Ends with the cell's answer or its death: a cell that does neither is stopped.
            runtime.spawn(async move {
                let _ = answer.await;
                drop(held);
            });
        }
    }
}
