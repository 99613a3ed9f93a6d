//! The life of one cell: read a request, do it, answer, until the service closes the socket.
//!
//! Whatever a request does, the answer is a frame: errors are [`FromCell::Fail`], a panic is caught and becomes one too, with its
//! place in the source and without its text. What cannot be caught (a signal, an abort, a filter violation) ends the
//! cell, and with it only its tenant's requests.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use jail::memory::Mapped;
use wire::{BLOCK_BYTES_MAX, Fail, FailCode, FromCell, Load, ToCell};

use crate::engine::{Engine, Model, SLOTS_MAX};
use crate::link::{Link, LinkError, Pull, Request};
use crate::{admit, data, predict, train};

/// Largest model file in bytes.
pub const MODEL_BYTES_MAX: u64 = 2 << 30;

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
pub fn serve(engine: &Engine, socket: OwnedFd) -> Result<(), LinkError> {
    let link = RefCell::new(Link::new(socket));
    let mut cell = Models { engine, models: BTreeMap::new(), out: Vec::new() };
    loop {
        // Bound first: the borrow must end before the request is served.
        let request = link.borrow_mut().next()?;
        let Some(request) = request else { return Ok(()) };
        let id = request.id;
        let answer = guarded(|| cell.serve(&link, request)).unwrap_or_else(FromCell::Fail);
        link.borrow_mut().answer(id, &answer)?;
    }
}

/// What `work` gives; a panic is a failure of the cell, and its place is all that is said of it.
fn guarded(work: impl FnOnce() -> Result<FromCell, Fail>) -> Result<FromCell, Fail> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let place = PANICKED_AT.with(Cell::take).unwrap_or_default();
        Err(Fail::new(FailCode::Internal, format!("internal error at {place}")))
    })
}

/// The models of one cell.
struct Models<'e> {
    engine: &'e Engine,
    models: BTreeMap<u32, Model>,
    /// The last answer's buffer.
    out: Vec<u8>,
}

impl Models<'_> {
    fn serve(&mut self, link: &RefCell<Link>, request: Request) -> Result<FromCell, Fail> {
        let id = request.id;
        match request.message {
            ToCell::Infer { slot, body } => self.infer(slot, |model, out| model.infer(&body, None, out)),
            ToCell::InferBinary { slot, json_bytes, body } => self.infer(slot, |model, out| model.infer(&body, Some(json_bytes), out)),
            ToCell::InferGrpc { slot, body } => self.infer(slot, |model, out| model.infer_grpc(&body, out).map(|()| None)),
            ToCell::Score { slot, body } => self.infer(slot, |model, out| model.score(&body, out).map(|()| None)),
            ToCell::Ping => Ok(FromCell::Ready),
            ToCell::Load { slot, load } => self.load(slot, &load, request.file),
            ToCell::Unload { slot } => match self.models.remove(&slot) {
                Some(_) => Ok(FromCell::Ready),
                None => Err(no_model(slot)),
            },
            ToCell::Admit(load) => admit::admit(self.engine, &map(&load, request.file)?, &load).map(FromCell::Model),
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
                let (mut model, _) = Model::load(self.engine, &map(&spec.load, request.file)?, &spec.load)?;
                let (mut source, mut events) = (Pull::new(link, id, spec.source_bytes), Pull::new(link, id, 0));
                let mut give = |piece: Bytes| {
                    let sent = link.borrow_mut().answer(id, &FromCell::Output(piece));
                    sent.map_err(|error| Fail::new(FailCode::Internal, error.to_string()))
                };
                predict::predict(&mut source, &mut model, &spec, &mut events, &mut give).map(FromCell::Predicted)
            }
            ToCell::Block(_) => Err(Fail::new(FailCode::Internal, "a block that nobody asked for")),
        }
    }

    fn infer(&mut self, slot: u32, ask: impl FnOnce(&mut Model, &mut Vec<u8>) -> Result<Option<u32>, Fail>) -> Result<FromCell, Fail> {
        let model = self.models.get_mut(&slot).ok_or_else(|| no_model(slot))?;
        // What a failed answer left must not lead the next one.
        self.out.clear();
        let json_bytes = ask(model, &mut self.out)?;
        let body = Bytes::from(std::mem::take(&mut self.out));
        Ok(match json_bytes {
            None => FromCell::Inferred(body),
            Some(json_bytes) => FromCell::InferredBinary { json_bytes, body },
        })
    }

    fn load(&mut self, slot: u32, load: &Load, file: Option<OwnedFd>) -> Result<FromCell, Fail> {
        if slot >= SLOTS_MAX {
            return Err(Fail::new(FailCode::TooLarge, format!("slot {slot} is over the {SLOTS_MAX} slots of a cell")));
        }
        if self.models.contains_key(&slot) {
            return Err(Fail::new(FailCode::Internal, format!("slot {slot} holds a model already")));
        }
        let (model, info) = Model::load(self.engine, &map(load, file)?, load)?;
        self.models.insert(slot, model);
        Ok(FromCell::Model(info))
    }
}

fn no_model(slot: u32) -> Fail {
    Fail::new(FailCode::NoModel, format!("slot {slot} holds no model"))
}

/// The model's bytes. The service sealed them and says how long they are; a cell has no call to ask the kernel.
fn map(load: &Load, file: Option<OwnedFd>) -> Result<Mapped, Fail> {
    let file = file.ok_or_else(|| Fail::new(FailCode::Internal, "a model without its memory file"))?;
    if load.bytes > MODEL_BYTES_MAX {
        return Err(Fail::new(FailCode::TooLarge, format!("a model may have at most {} MiB", MODEL_BYTES_MAX >> 20)));
    }
    Mapped::received(file.as_fd(), load.bytes)
        .map_err(|error| Fail::new(FailCode::TooLarge, format!("the model cannot be mapped: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_answer() {
        quiet_panics();
        let fail = guarded(|| panic!("tenant content")).unwrap_err();
        assert!(
            fail.code == FailCode::Internal && fail.message.contains("serve.rs:") && !fail.message.contains("tenant"),
            "{}",
            fail.message
        );
    }
}
