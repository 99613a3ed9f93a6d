//! Requests for one model that wait together, answered by one run: dynamic batching, inside one deployment of one tenant.
//!
//! ```text
//! questions ─ read one by one ─► groups of equal shapes ─ rows behind rows ─► one run ─► each its own rows of the outputs
//!                 │ unreadable: its own failure, nobody else's          │ it fails: each is run for itself
//! ```
//!
//! Rows are joined along the first dimension. Who is joined: requests whose tensors have the same shapes but for that dimension, whatever
//! protocol they came in and whichever outputs they want, up to the deployment's `max_size` rows. A model is joined at all only if it leaves the
//! first dimension of every input and output open, and no longer once a run gave another number of rows than went in.
//!
//! A run of many rows may choose other loops inside the engine than a run of one, so the last bits of an answer can depend on its company
//! (trees and encoders do not; matrix products can). Whoever needs the same bits every time does not batch.
//!
//! What is deliberately missing: padding of unequal shapes, which would change what a model computes.

use std::time::{Duration, Instant};

use wire::{Fail, FailCode, Inferred, Run};

use crate::engine::{Model, failed, lend};
use crate::oip::{Port, Signature};
use crate::output::{Outputs, Rows};
use crate::question::{Question, Understood};
use crate::tensor::{self, Tensor};

/// Whether requests can be joined by their first dimension: every input and output leaves it open.
#[must_use]
pub fn joinable(signature: &Signature) -> bool {
    let open = |port: &Port| port.shape.first() == Some(&-1);
    signature.inputs.iter().all(open) && signature.outputs.iter().all(open) && !signature.inputs.is_empty()
}

/// Requests that go through the model in one run.
#[derive(Default)]
struct Group<'q> {
    members: Vec<Member<'q>>,
    /// Rows of all of them.
    rows: usize,
}

struct Member<'q> {
    /// Place among the questions.
    at: usize,
    understood: Understood<'q>,
    /// None when its inputs do not agree on a number of rows.
    rows: Option<usize>,
}

impl Group<'_> {
    /// Whether one more with these tensors fits behind those that are joined already.
    fn takes(&self, joined: &[Tensor], more: &[Tensor], rows_max: usize) -> bool {
        let Some(first) = self.members.first() else { return true };
        let (Some(_), Some(rows)) = (first.rows, rows(more)) else { return false };
        let fits = |(joined, more): (&Tensor, &Tensor)| {
            let (Some((have, inner)), Some((_, other))) = (joined.shape().split_first(), more.shape().split_first()) else { return false };
            let all: Vec<i64> =
                i64::try_from(rows).map(|rows| have.saturating_add(rows)).into_iter().chain(inner.iter().copied()).collect();
            inner == other && tensor::elements(&all).is_ok()
        };
        self.rows + rows <= rows_max && joined.iter().zip(more).all(fits)
    }
}

/// Rows of a request: the first dimension of all its inputs.
fn rows(buffers: &[Tensor]) -> Option<usize> {
    let mut firsts = buffers.iter().map(|buffer| buffer.shape().first());
    let rows = *firsts.next()??;
    let rows = usize::try_from(rows).ok().filter(|rows| *rows > 0);
    rows.filter(|_| buffers.iter().all(|buffer| buffer.shape().first() == buffers.first().and_then(|first| first.shape().first())))
}

impl Model {
    /// Answers all of these, in their order, with as few runs as there can be.
    pub fn infer_together(&mut self, questions: &[Question]) -> Vec<Result<Inferred, Fail>> {
        let mut answers: Vec<Option<Result<Inferred, Fail>>> = questions.iter().map(|_| None).collect();
        let mut answered = |at: usize, answer| {
            if let Some(place) = answers.get_mut(at) {
                *place = Some(answer);
            }
        };
        let (mut group, mut again) = (Group::default(), Vec::new());
        for (at, question) in questions.iter().enumerate() {
            let understood = match question.read(&self.signature, &mut self.buffers) {
                Ok(understood) => understood,
                Err(fail) => {
                    self.buffers.iter_mut().for_each(Tensor::trim);
                    answered(at, Err(fail));
                    continue;
                }
            };
            if !self.joins || !group.takes(&self.joined, &self.buffers, self.rows_max) {
                again.extend(self.run_group(std::mem::take(&mut group), &mut answered));
            }
            let rows = rows(&self.buffers);
            match group.members.is_empty() {
                // The first is not copied: mostly it stays alone.
                true => std::mem::swap(&mut self.joined, &mut self.buffers),
                false => self.joined.iter_mut().zip(&self.buffers).for_each(|(joined, more)| joined.append(more)),
            }
            self.buffers.iter_mut().for_each(Tensor::trim);
            group.rows += rows.unwrap_or(1);
            group.members.push(Member { at, understood, rows });
        }
        again.extend(self.run_group(group, &mut answered));
        // Only now: the buffers held what came behind them.
        for at in again {
            let alone = questions.get(at).and_then(|question| self.infer_together(std::slice::from_ref(question)).pop());
            alone.into_iter().for_each(|answer| answered(at, answer));
        }
        let lost = || Err(Fail::new(FailCode::Internal, "a request was left unanswered"));
        answers.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect()
    }

    /// Runs what is joined and leaves its buffers empty. Those that are to be asked once more, each alone, by their places.
    fn run_group(&mut self, group: Group<'_>, answered: &mut impl FnMut(usize, Result<Inferred, Fail>)) -> Vec<usize> {
        let given = self.run_joined(&group);
        self.joined.iter_mut().for_each(Tensor::trim);
        match (given, group.members.as_slice()) {
            (Ok(given), members) => members.iter().zip(given).for_each(|(member, answer)| answered(member.at, answer)),
            (Err(fail), [alone]) => answered(alone.at, Err(fail)),
            // One of them is at fault, or their company: nobody fails for another.
            (Err(_), members) => return members.iter().map(|member| member.at).collect(),
        }
        Vec::new()
    }

    fn run_joined(&mut self, group: &Group<'_>) -> Result<Vec<Result<Inferred, Fail>>, Fail> {
        if group.members.is_empty() {
            return Ok(Vec::new());
        }
        let begun = Instant::now();
        let values = lend(&self.joined)?;
        let outputs = self.session.run(values.as_slice()).map_err(|error| failed(&error))?;
        let took = begun.elapsed();
        let (outputs, alone) = (Outputs::of(&outputs), group.members.len() == 1);
        if !alone && !outputs.have_rows(&self.signature.outputs, group.rows)? {
            self.joins = false;
            return Err(Fail::new(FailCode::ModelFailed, "the model does not give a row for each row"));
        }
        let mut first = 0;
        let answer = |member: &Member<'_>| {
            let count = member.rows.unwrap_or(1);
            let own = (!alone).then_some(Rows { first, count, of: group.rows });
            let run = run(count, if first == 0 { (group.rows, took) } else { (0, Duration::ZERO) });
            first += count;
            let answer = member.understood.answer(&self.signature, &outputs, own)?;
            Ok(Inferred { run: Some(run), ..answer })
        };
        Ok(group.members.iter().map(answer).collect())
    }
}

fn run(rows: usize, (batch, took): (usize, Duration)) -> Run {
    let number = |number| u32::try_from(number).unwrap_or(u32::MAX);
    Run { rows: number(rows), batch: number(batch), nanos: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) }
}
