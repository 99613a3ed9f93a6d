//! Writes that share a commit.
//!
//! A commit costs a wait for the disk (or the way to a server), whatever is in it. So small writes of one tenant that come at the same
//! time go into one transaction: whoever comes while a commit is on its way joins the next one. Each write stands between two
//! savepoints: one that fails is taken back alone. Each act keeps its own entry and generation. Nobody is told before all of it is
//! durable.
//!
//! ```text
//! permit.write(|tx| …) ─► queue of the island ─► one task: begin · (savepoint · work · release)* · commit ─► answers
//! ```
//! The task belongs to nobody's request: a request that is cut takes only its own answer with it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::act::{Act, Writes};
use crate::error::{Error, Result};
use crate::island::Island;
use crate::permit::{Part, Permit, PermitInner, Tx, commit_all};

/// Writes in one commit.
const JOINED_MAX: usize = 64;
/// Why a write was not done with the others.
const BROKEN_OFF: &str = "the commit that this was part of was broken off; look whether it happened, or try again";

/// What a write does, once it is its turn.
pub type Working<'t, T> = Pin<Box<dyn Future<Output = T> + Send + 't>>;

/// Writes of one tenant that wait for their commit.
#[derive(Default)]
pub(crate) struct Queue(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    writes: VecDeque<Box<dyn Write>>,
    /// Whether somebody works on them.
    worked: bool,
}

/// One write on its way.
trait Write: Send {
    /// Whose it is.
    fn permit(&self) -> Arc<PermitInner>;
    /// Nobody waits for it any more.
    fn is_forgotten(&self) -> bool;
    /// Does it; whether it may stay in the transaction.
    fn work<'t>(&'t mut self, tx: &'t mut Tx<'_>) -> Working<'t, bool>;
    /// Tells how it ended: as its work did, unless the commit failed.
    fn tell(self: Box<Self>, commit: Result<()>);
}

struct Pending<T, E, F> {
    permit: Arc<PermitInner>,
    work: Option<F>,
    result: Option<Result<T, E>>,
    answer: oneshot::Sender<Result<T, E>>,
}

impl<T, E, F> Write for Pending<T, E, F>
where
    T: Send + 'static,
    E: From<Error> + Send + 'static,
    F: for<'t> FnOnce(&'t mut Tx<'_>) -> Working<'t, Result<T, E>> + Send + 'static,
{
    fn permit(&self) -> Arc<PermitInner> {
        Arc::clone(&self.permit)
    }

    fn is_forgotten(&self) -> bool {
        self.answer.is_closed()
    }

    fn work<'t>(&'t mut self, tx: &'t mut Tx<'_>) -> Working<'t, bool> {
        let work = self.work.take();
        let result = &mut self.result;
        Box::pin(async move {
            if let Some(work) = work {
                *result = Some(work(tx).await);
            }
            matches!(result, Some(Ok(_)))
        })
    }

    fn tell(self: Box<Self>, commit: Result<()>) {
        let Self { result, answer, .. } = *self;
        let told = match (result, commit) {
            (Some(Err(error)), _) => Err(error),
            (_, Err(error)) => Err(error.into()),
            (Some(done), Ok(())) => done,
            (None, Ok(())) => Err(Error::Unavailable(BROKEN_OFF).into()),
        };
        let _ = answer.send(told);
    }
}

impl<A: Act<Mode = Writes>> Permit<A> {
    /// A small write that may share its commit with others of the tenant. Durable on return, together with the act's entry; an error
    /// of `work` takes back what it did, and nothing else.
    ///
    /// For work that is short and reads and writes rows alone: everybody in the commit waits for it.
    ///
    /// # Errors
    /// Those of `work`, and of [`Tx::commit`].
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx<'_>) -> Working<'t, Result<T, E>> + Send + 'static,
    {
        let (answer, told) = oneshot::channel();
        let pending = Pending { permit: Arc::clone(&self.inner), work: Some(work), result: None, answer };
        let island = &self.inner.island;
        if island.joint.push(Box::new(pending)) {
            tokio::spawn(Worker::of(island).run());
        }
        told.await.unwrap_or_else(|_| Err(Error::Unavailable(BROKEN_OFF).into()))
    }
}

impl Queue {
    /// Whether somebody has to begin to work.
    fn push(&self, write: Box<dyn Write>) -> bool {
        let mut waiting = self.0.lock();
        waiting.writes.push_back(write);
        !std::mem::replace(&mut waiting.worked, true)
    }

    /// The next ones; none when the work is done.
    fn take(&self) -> Option<Vec<Box<dyn Write>>> {
        let mut waiting = self.0.lock();
        let many = waiting.writes.len().min(JOINED_MAX);
        waiting.worked = many > 0;
        waiting.worked.then(|| waiting.writes.drain(..many).filter(|write| !write.is_forgotten()).collect())
    }

    /// Whether somebody waits for whoever works next. Nobody works any more if not.
    fn is_waiting(&self) -> bool {
        let mut waiting = self.0.lock();
        waiting.worked = !waiting.writes.is_empty();
        waiting.worked
    }

    /// Nobody works on them any more: those who wait are told so by losing their place.
    fn abandon(&self) {
        let left = std::mem::take(&mut *self.0.lock());
        drop(left);
    }
}

/// Works on a queue until it is empty.
struct Worker {
    island: Arc<Island>,
    began: bool,
    done: bool,
}

impl Worker {
    fn of(island: &Arc<Island>) -> Self {
        Self { island: Arc::clone(island), began: false, done: false }
    }

    async fn run(mut self) {
        self.began = true;
        while let Some(mut writes) = self.island.joint.take() {
            let permits: Vec<Arc<PermitInner>> = writes.iter().map(|write| write.permit()).collect();
            let commit = together(&self.island, &mut writes, &permits).await;
            for write in writes {
                write.tell(commit.as_ref().map_err(again).copied());
            }
        }
        self.done = true;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // Some work panicked, and others have queued meanwhile. One that never began is dropped because the runtime ends.
        let panicked = self.began && std::thread::panicking();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if panicked && self.island.joint.is_waiting() => drop(runtime.spawn(Self::of(&self.island).run())),
            _ => self.island.joint.abandon(),
        }
    }
}

/// One commit.
async fn together(island: &Island, writes: &mut [Box<dyn Write>], permits: &[Arc<PermitInner>]) -> Result<()> {
    let Some(first) = permits.first() else { return Ok(()) };
    island.thawed()?;
    let mut tx = Tx::new(island.store.tx().await?, first);
    let alone = permits.len() == 1;
    let mut parts: Vec<Part<'_>> = Vec::with_capacity(permits.len());
    for (write, permit) in writes.iter_mut().zip(permits) {
        tx.turn_to(permit);
        // One alone, whose work fails, takes all of it back by not being committed.
        if !alone {
            tx.savepoint();
        }
        let stays = write.work(&mut tx).await;
        let part = tx.part();
        if stays {
            tx.keep().await?;
            parts.push(part);
        } else {
            tx.take_back().await?;
        }
    }
    if parts.is_empty() { Ok(()) } else { commit_all(island, tx.into_rows(), parts).await }
}

/// The failure of a commit, for each who was in it.
fn again(error: &Error) -> Error {
    match error {
        Error::Unavailable(reason) => Error::Unavailable(reason),
        Error::TenantState(reason) => Error::TenantState(reason),
        error => {
            tracing::error!(%error, context = error.private(), "a commit of several writes failed");
            Error::internal("the commit of several writes failed")
        }
    }
}
