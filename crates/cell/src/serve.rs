//! The life of one cell: read a request, do it, answer, until the service closes the socket.
//!
//! Whatever a request does, the answer is a frame: errors are [`FromCell::Fail`], a panic is caught and becomes one too, with its
//! place in the source and without its text. What cannot be caught (a signal, an abort, a filter violation) ends the
//! cell, and with it only its tenant's requests.
//!
//! Where a deployment asks for it, requests for one model that wait together are run together (`batch`). How long others are waited for: as
//! long as its window says, but only while fewer are here than asked a moment ago, and nobody else waits. So a client that asks alone is not kept
//! waiting, but for once after its company has left.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jail::memory::Mapped;
use wire::{BLOCK_BYTES_MAX, Batching, Fail, FailCode, FromCell, Load, ToCell};

use crate::engine::{Engine, Model, SLOTS_MAX};
use crate::link::{Attached, Link, LinkError, Pull, Request};
use crate::question::Question;
use crate::{admit, data, predict, train};

/// Largest model file in bytes.
pub const MODEL_BYTES_MAX: u64 = 2 << 30;
/// Shortest and longest sleep between two looks for company.
const LOOK_MIN: Duration = Duration::from_micros(50);
/// See [`LOOK_MIN`].
const LOOK_MAX: Duration = Duration::from_millis(1);
/// Looks for company in one window, between these bounds.
const LOOKS_PER_WINDOW: u32 = 4;

thread_local! {
    /// Where the last panic was.
    static PANICKED_AT: Cell<Option<String>> = const { Cell::new(None) };
}

/// Keeps panics quiet: a jailed process that writes to its standard error is killed for it.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
        PANICKED_AT.with(|last| last.set(place));
    }));
}

/// Serves until the socket closes.
///
/// # Errors
/// [`LinkError`] when the conversation broke.
pub fn serve(engine: &Engine, link: Link) -> Result<(), LinkError> {
    let link = RefCell::new(link);
    let mut cell = Models { engine, models: BTreeMap::new() };
    loop {
        // Bound first: the borrow must end before the request is served.
        let request = link.borrow_mut().next()?;
        let Some(request) = request else { return Ok(()) };
        let answers = match cell.batching_of(&request.message) {
            None => {
                let id = request.id;
                vec![(id, guarded(|| cell.serve(&link, request)).unwrap_or_else(FromCell::Fail))]
            }
            Some((slot, batching)) => {
                let requests = cell.gather(&mut link.borrow_mut(), request, slot, batching)?;
                cell.infer_together(slot, &requests)
            }
        };
        let mut link = link.borrow_mut();
        if cell.batches() {
            link.note()?;
        }
        link.settle(answers)?;
    }
}

/// What `work` gives; a panic is a failure of the cell, and its place is all that is said of it.
fn guarded<T>(work: impl FnOnce() -> Result<T, Fail>) -> Result<T, Fail> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let place = PANICKED_AT.with(Cell::take).unwrap_or_default();
        Err(Fail::new(FailCode::Internal, format!("internal error at {place}")))
    })
}

/// The models of one cell.
struct Models<'e> {
    engine: &'e Engine,
    models: BTreeMap<u32, Loaded>,
}

/// A model in its slot.
struct Loaded {
    model: Model,
    batching: Option<Batching>,
    /// Requests that were last answered together.
    company: usize,
}

impl Models<'_> {
    fn serve(&mut self, link: &RefCell<Link>, request: Request) -> Result<FromCell, Fail> {
        let id = request.id;
        match request.message {
            ToCell::Infer { .. } | ToCell::InferBinary { .. } | ToCell::InferGrpc { .. } | ToCell::Score { .. } => {
                let (slot, question) = Question::of(&request.message).ok_or_else(|| Fail::new(FailCode::Internal, "no question"))?;
                let loaded = self.models.get_mut(&slot).ok_or_else(|| no_model(slot))?;
                loaded.model.infer(&question).map(FromCell::Inferred)
            }
            ToCell::Ping => Ok(FromCell::Ready),
            ToCell::Load { slot, load } => self.load(slot, &load, request.model),
            ToCell::Unload { slot } => match self.models.remove(&slot) {
                Some(_) => Ok(FromCell::Ready),
                None => Err(no_model(slot)),
            },
            ToCell::Admit(load) => admit::admit(self.engine, &map(&load, request.model)?, &load).map(FromCell::Model),
            ToCell::Inspect(spec) => data::inspect(&mut Pull::new(link, id, spec.source_bytes), &spec).map(FromCell::Inspected),
            ToCell::Preview(spec) => data::preview(&mut Pull::new(link, id, spec.source_bytes), &spec).map(FromCell::Previewed),
            ToCell::Train(spec) => {
                let (mut source, mut events) = (Pull::new(link, id, spec.source_bytes), Pull::new(link, id, 0));
                let (trained, model) = train::train(&mut source, &spec, &mut events)?;
                let model = Bytes::from(model);
                for start in (0..model.len()).step_by(BLOCK_BYTES_MAX as usize) {
                    let end = model.len().min(start + BLOCK_BYTES_MAX as usize);
                    link.borrow_mut()
                        .answer(id, &FromCell::Output(model.slice(start..end)))
                        .map_err(|error| Fail::new(FailCode::Internal, error.to_string()))?;
                }
                Ok(FromCell::Trained(trained))
            }
            ToCell::Predict(spec) => {
                let (mut model, _) = Model::load(self.engine, &map(&spec.load, request.model)?, &spec.load)?;
                let (mut source, mut events) = (Pull::new(link, id, spec.source_bytes), Pull::new(link, id, 0));
                let mut give = |piece: Bytes| {
                    let sent = link.borrow_mut().answer(id, &FromCell::Output(piece));
                    sent.map_err(|error| Fail::new(FailCode::Internal, error.to_string()))
                };
                predict::predict(&mut source, &mut model, &spec, &mut events, &mut give).map(FromCell::Predicted)
            }
            ToCell::Block(_) | ToCell::Piece(_) => Err(Fail::new(FailCode::Internal, "a block that nobody asked for")),
        }
    }

    /// Whether any model here is asked by several at once.
    fn batches(&self) -> bool {
        self.models.values().any(|loaded| loaded.batching.is_some())
    }

    /// How predictions like this one are joined, if they are.
    fn batching_of(&self, message: &ToCell) -> Option<(u32, Batching)> {
        let slot = message.asks()?;
        let loaded = self.models.get(&slot)?;
        Some((slot, loaded.batching?))
    }

    /// A prediction and its company.
    fn gather(&mut self, link: &mut Link, first: Request, slot: u32, batching: Batching) -> Result<Vec<Request>, LinkError> {
        let mut requests = vec![first];
        let Some(loaded) = self.models.get_mut(&slot).filter(|loaded| loaded.model.joins()) else { return Ok(requests) };
        let most = batching.max_size as usize;
        link.behind(slot, most, &mut requests)?;
        // Whoever was answered a moment ago may ask again, besides those who waited at that moment.
        let expected = loaded.company + if link.was_idle() { 0 } else { requests.len() };
        let window = Duration::from_micros(batching.window_us.into());
        let (until, look) = (Instant::now() + window, (window / LOOKS_PER_WINDOW).clamp(LOOK_MIN, LOOK_MAX));
        while requests.len() < expected.min(most) && !link.others_wait() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // The one way to sleep that a cell has: waiting for a lock that nobody holds.
            std::thread::park_timeout(left.min(look));
            link.behind(slot, most, &mut requests)?;
        }
        loaded.company = requests.len();
        Ok(requests)
    }

    fn infer_together(&mut self, slot: u32, requests: &[Request]) -> Vec<(u64, FromCell)> {
        let questions: Vec<Question> =
            requests.iter().filter_map(|request| Question::of(&request.message)).map(|(_, asked)| asked).collect();
        let Some(loaded) = self.models.get_mut(&slot) else { return Vec::new() };
        let model = &mut loaded.model;
        let answers = guarded(|| Ok(model.infer_together(&questions)));
        // A panic: whose it was shows when each is asked alone.
        let answers = answers.unwrap_or_else(|_| questions.iter().map(|question| guarded(|| model.infer(question))).collect());
        let answers = answers.into_iter().map(|answer| answer.map_or_else(FromCell::Fail, FromCell::Inferred));
        requests.iter().map(|request| request.id).zip(answers).collect()
    }

    fn load(&mut self, slot: u32, load: &Load, attached: Option<Attached>) -> Result<FromCell, Fail> {
        if slot >= SLOTS_MAX {
            return Err(Fail::new(FailCode::TooLarge, format!("slot {slot} is over the {SLOTS_MAX} slots of a cell")));
        }
        if self.models.contains_key(&slot) {
            return Err(Fail::new(FailCode::Internal, format!("slot {slot} holds a model already")));
        }
        let (model, info) = Model::load(self.engine, &map(load, attached)?, load)?;
        self.models.insert(slot, Loaded { model, batching: load.batching, company: 0 });
        Ok(FromCell::Model(info))
    }
}

fn no_model(slot: u32) -> Fail {
    Fail::new(FailCode::NoModel, format!("slot {slot} holds no model"))
}

/// A model's bytes, wherever they lie.
enum Weights {
    Mapped(Mapped),
    Held(Vec<u8>),
}

impl Deref for Weights {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => mapped,
            Self::Held(bytes) => bytes,
        }
    }
}

/// The model's bytes. The service sealed them and says how long they are; a cell has no call to ask the kernel.
fn map(load: &Load, attached: Option<Attached>) -> Result<Weights, Fail> {
    if load.bytes > MODEL_BYTES_MAX {
        return Err(Fail::new(FailCode::TooLarge, format!("a model may have at most {} MiB", MODEL_BYTES_MAX >> 20)));
    }
    match attached {
        None => Err(Fail::new(FailCode::Internal, "a model without its memory file")),
        Some(Attached::Bytes(bytes)) if bytes.len() as u64 == load.bytes => Ok(Weights::Held(bytes)),
        Some(Attached::Bytes(_)) => Err(Fail::new(FailCode::Internal, "a model of another length than announced")),
        Some(Attached::File(file)) => Mapped::received(file.as_fd(), load.bytes)
            .map(Weights::Mapped)
            .map_err(|error| Fail::new(FailCode::TooLarge, format!("the model cannot be mapped: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_answer() {
        quiet_panics();
        let fail = guarded::<()>(|| panic!("tenant content")).unwrap_err();
        assert!(
            fail.code == FailCode::Internal && fail.message.contains("serve.rs:") && !fail.message.contains("tenant"),
            "{}",
            fail.message
        );
    }
}
