//! One training, from its ticket to its end. The steps, and that each of them may be the last before a crash, are in the module above.

use std::time::Duration;

use tenancy::act::{Act, DatasetRead, ModelWrite, TrainingRun};
use tenancy::{IsolationClass, Lease, Permit, StoredUpload, Tenant};
use wire::{FromCell, ToCell, Trained};

use super::scheduler::{Live, Scheduler};
use super::{Failure, LIST_ITEMS_MAX, LogChunk, Run, Training, TrainingState};
use crate::cells::{Event, Owner, Source, broken, line};
use crate::dataset::{StoredVersion, hex, stored_version};
use crate::error::{CellFailure, Error, Result};
use crate::model::{Lineage, MadeVersion, Origin, TrainingLineage, version_insert};
use crate::page::Timestamp;
use crate::platform::Platform;
use crate::stats::bump;

/// Pause before a job that could not be run now is tried again.
pub(crate) const POSTPONE: Duration = Duration::from_secs(2);
/// Claims of a ticket whose row is not there yet, before it is taken for abandoned.
pub(crate) const ROWLESS_CLAIMS_MAX: u32 = 10;
/// Pause before a ticket's row is looked for again: the request that made it is still committing.
pub(crate) const ROWLESS_PAUSE: Duration = Duration::from_millis(500);
/// Claims of one ticket in all, whatever happens to it.
const CLAIMS_MAX: u32 = 1000;
/// Most metrics of a run.
const METRICS_MAX: usize = 64;
/// Longest name of a metric in bytes.
const METRIC_NAME_BYTES_MAX: usize = 64;
/// Most classes of a run.
const CLASSES_MAX: usize = 10_000;
/// Lines of a log stored in one record: of the longest, escaped, still less than a record may hold.
const LOG_CHUNK_LINES: usize = 100;

/// The points between the steps of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobStep {
    /// The ticket is claimed; nothing else has happened.
    Claimed,
    /// The row says running.
    Started,
    /// The bytes of the model, or of the table of answers, are sealed, attached to nothing.
    Trained,
    /// The model was admitted, or the table inspected.
    Admitted,
    /// The result is committed; the ticket is still there.
    Registered,
}

impl JobStep {
    /// All points, in order.
    pub const ALL: [Self; 5] = [Self::Claimed, Self::Started, Self::Trained, Self::Admitted, Self::Registered];
}

/// What becomes of the ticket.
pub(crate) enum Verdict {
    /// The job has come to its end, or never will.
    Release,
    /// Later again.
    Postpone(Duration),
    /// At the next start again: this node is stopping.
    Requeue,
    /// Nothing: as if the service had died here.
    Vanish,
}

/// Why a job did not come to a result.
pub(crate) enum Stop {
    /// It failed for good.
    Failed(Error),
    /// It could not be run now.
    Later,
    /// It was cancelled.
    Cancelled,
    /// This node is stopping.
    Closing,
    /// The configuration wants a crash here.
    Crash,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match &error {
            Error::CellFailed(CellFailure::Stopped) => Self::Closing,
            Error::CellFailed(CellFailure::NotStarted(_) | CellFailure::NoIsolation { .. }) | Error::Overloaded(_) => Self::Later,
            Error::Kernel(tenancy::Error::Unavailable(_) | tenancy::Error::TenantState(_)) => Self::Later,
            _ => Self::Failed(error),
        }
    }
}

impl From<tenancy::Error> for Stop {
    fn from(error: tenancy::Error) -> Self {
        Error::from(error).into()
    }
}

/// What a finished training is made of.
struct Product {
    dataset: StoredVersion,
    trained: Trained,
    sealed: StoredUpload,
    info: wire::ModelInfo,
}

/// Runs the job behind a ticket.
pub(super) async fn run(platform: &Platform, scheduler: &Scheduler, lease: &Lease) -> Verdict {
    if scheduler.stops_at(JobStep::Claimed) {
        return Verdict::Vanish;
    }
    let (tenant, permit) = match resumed::<TrainingRun>(platform, lease, super::TICKET_KIND).await {
        Ok(resumed) => resumed,
        Err(verdict) => return verdict,
    };
    match attempt(platform, scheduler, lease, &tenant, &permit).await {
        Ok(verdict) => {
            // Its entry was written with its first commit, or is written now.
            let _ = permit.finish();
            verdict
        }
        Err(error) => {
            tracing::warn!(private = error.private(), code = error.code(), "a training could not be recorded");
            let _ = permit.failed(error.code());
            Verdict::Postpone(POSTPONE)
        }
    }
}

/// The tenant behind a ticket and its leave to run the job. The policy is asked again: who queued it may have lost the right since.
pub(crate) async fn resumed<A: Act>(platform: &Platform, lease: &Lease, kind: &str) -> Result<(Tenant, Permit<A>), Verdict> {
    if lease.kind() != kind || lease.attempts() > CLAIMS_MAX {
        return Err(Verdict::Release);
    }
    let tenant = match platform.kernel().resume(lease).await {
        Ok(tenant) => tenant,
        Err(tenancy::Error::Unauthenticated) => return Err(Verdict::Release),
        Err(_) => return Err(Verdict::Postpone(POSTPONE)),
    };
    match tenant.allow::<A>(lease.id()) {
        Ok(permit) => Ok((tenant, permit)),
        Err(tenancy::Error::Forbidden { .. } | tenancy::Error::NotFound(_)) => Err(Verdict::Release),
        Err(_) => Err(Verdict::Postpone(POSTPONE)),
    }
}

/// One attempt. An error is one of the rows: the job's own failures are recorded in its row.
async fn attempt(
    platform: &Platform,
    scheduler: &Scheduler,
    lease: &Lease,
    tenant: &Tenant,
    permit: &Permit<TrainingRun>,
) -> Result<Verdict> {
    let Some(mut training) = permit.rows().get::<Training>(lease.id()).await? else {
        let young = lease.attempts() <= ROWLESS_CLAIMS_MAX;
        return Ok(if young { Verdict::Postpone(ROWLESS_PAUSE) } else { Verdict::Release });
    };
    if training.state.is_final() {
        return Ok(Verdict::Release);
    }
    let live = scheduler.begin(permit, &training.id);
    let attempts_max = platform.config().training_attempts_max;
    if training.attempts >= attempts_max {
        let error = Error::conflict(format!("given up after {attempts_max} attempts"));
        return fail(platform, permit, training, &live, &error).await;
    }
    training.attempts += 1;
    // Taken once, so that the class in the entry is that of every cell of this attempt.
    let owner = platform.owner(permit);
    if !start(permit, &owner, &mut training).await? {
        return Ok(Verdict::Release);
    }
    platform.counters().job_begun(training.attempts, training.created_at);
    if scheduler.stops_at(JobStep::Started) {
        return Ok(Verdict::Vanish);
    }
    let begun = std::time::Instant::now();
    let product = tokio::select! {
        product = produce(platform, scheduler, tenant, (permit, &owner), &training, &live) => product,
        () = live.cancelled() => Err(Stop::Cancelled),
    };
    permit.meter().count_job(begun.elapsed());
    let stop = match product {
        Ok(product) => match register(platform, permit, &training, product, &live).await {
            Ok(Some(made)) => {
                bump(&platform.counters().trainings_succeeded);
                if let Some(told) = &platform.config().registrations {
                    told.trained(platform, permit, &made).await;
                }
                return Ok(if scheduler.stops_at(JobStep::Registered) { Verdict::Vanish } else { Verdict::Release });
            }
            Ok(None) => Stop::Cancelled,
            Err(error) => error.into(),
        },
        Err(stop) => stop,
    };
    match stop {
        Stop::Failed(error) => fail(platform, permit, training, &live, &error).await,
        Stop::Cancelled => {
            bump(&platform.counters().trainings_cancelled);
            Ok(Verdict::Release)
        }
        Stop::Later => {
            requeue(permit, &training).await?;
            Ok(Verdict::Postpone(POSTPONE))
        }
        Stop::Closing => {
            // Not the job's fault: the attempt does not count. Fails when the tenant is being erased, and then nothing is to be kept.
            let _ = requeue(permit, &training).await;
            Ok(Verdict::Requeue)
        }
        Stop::Crash => Ok(Verdict::Vanish),
    }
}

/// The row says running; `false` when it was cancelled meanwhile.
async fn start(permit: &Permit<TrainingRun>, owner: &Owner, training: &mut Training) -> Result<bool> {
    training.state = TrainingState::Running;
    training.started_at = Some(Timestamp::now());
    permit.detail("dataset", &training.dataset);
    permit.detail("model", &training.name);
    permit.detail("attempt", training.attempts);
    permit.detail(IsolationClass::DETAIL, owner.limits.isolation.name());
    let mut tx = permit.tx().await?;
    if tx.get::<Training>(&training.id).await?.is_none_or(|now| now.state.is_final()) {
        return Ok(false);
    }
    tx.put(training).await?;
    tx.commit().await?;
    Ok(true)
}

/// The row says queued again, and the attempt did not happen.
async fn requeue(permit: &Permit<TrainingRun>, training: &Training) -> Result<()> {
    let mut tx = permit.tx().await?;
    let Some(mut now) = tx.get::<Training>(&training.id).await?.filter(|now| !now.state.is_final()) else { return Ok(()) };
    now.state = TrainingState::Queued;
    now.attempts = training.attempts.saturating_sub(1);
    tx.put(&now).await?;
    tx.commit().await?;
    Ok(())
}

/// The row says why it failed.
async fn fail(platform: &Platform, permit: &Permit<TrainingRun>, mut training: Training, live: &Live, error: &Error) -> Result<Verdict> {
    if let Some(private) = error.private() {
        tracing::error!(private, code = error.code(), "a training failed");
    }
    training.state = TrainingState::Failed;
    training.error = Some(Failure { code: error.code().to_owned(), message: error.to_string() });
    training.finished_at = Some(Timestamp::now());
    let mut tx = permit.tx().await?;
    if tx.get::<Training>(&training.id).await?.is_none_or(|now| now.state.is_final()) {
        return Ok(Verdict::Release);
    }
    tx.put(&training).await?;
    store_lines(&mut tx, &training, live).await?;
    tx.commit().await?;
    bump(&platform.counters().trainings_failed);
    Ok(Verdict::Release)
}

/// Trains and admits. Makes nothing that anybody can see.
async fn produce(
    platform: &Platform,
    scheduler: &Scheduler,
    tenant: &Tenant,
    (permit, owner): (&Permit<TrainingRun>, &Owner),
    training: &Training,
    live: &Live,
) -> Result<Product, Stop> {
    // What the job reads and writes is asked for by name, as if its owner did it by hand.
    let reading = tenant.allow::<DatasetRead>(training.dataset.as_str())?;
    reading.detail("training", &training.id);
    let dataset = stored_version(&reading, Some(training.dataset_version)).await?;
    let reader = reading.blobs().open(dataset.blob).await?;
    let _ = reading.finish()?;
    let writing = tenant.allow::<ModelWrite>(training.name.as_str())?;
    writing.detail("training", &training.id);
    let _ = writing.finish()?;
    let (trained, sealed) = train(platform, (permit, owner), training, &dataset, Source::blob(reader), live).await?;
    if scheduler.stops_at(JobStep::Trained) {
        return Err(Stop::Crash);
    }
    let source = Source::blob(sealed.open().await?);
    let info = platform.cells().admit(owner, training.name.as_str(), source).await?;
    if scheduler.stops_at(JobStep::Admitted) {
        return Err(Stop::Crash);
    }
    Ok(Product { dataset, trained, sealed, info })
}

/// The cell trains; its model is sealed while it comes.
async fn train(
    platform: &Platform,
    (permit, owner): (&Permit<TrainingRun>, &Owner),
    training: &Training,
    dataset: &StoredVersion,
    source: Source,
    live: &Live,
) -> Result<(Trained, StoredUpload), Stop> {
    let recipe = &training.recipe;
    let request = ToCell::Train(wire::Train {
        source_bytes: source.bytes(),
        format: dataset.version.format,
        target: recipe.target.clone(),
        exclude: recipe.exclude.clone(),
        task: recipe.task,
        algorithm: recipe.algorithm,
        parameters: recipe.parameters.clone(),
        split: wire::Split { test_share: recipe.test_share, seed: recipe.seed },
    });
    let time = platform.config().training_timeout.min(Duration::from_secs(permit.limits().job_seconds.max(1)));
    let mut upload = permit.blob_create().await?;
    let mut job = platform.cells().job(owner, &request, None, Some(source), time).await?;
    let trained = loop {
        match job.next().await? {
            Event::Output(piece) => upload.write(piece).await?,
            Event::Progress(progress) => live.progress(progress),
            Event::Log(text) => live.log(text),
            Event::Done(FromCell::Trained(trained)) => break trained,
            Event::Done(_) => return Err(broken("another result").into()),
        }
    };
    drop(job);
    let within = trained.metrics.len() <= METRICS_MAX
        && trained.classes.len() <= CLASSES_MAX
        && trained.features.len() <= platform.config().columns_max as usize
        && trained.parameters.len() <= LIST_ITEMS_MAX;
    if !within || trained.model_bytes != upload.bytes() || trained.model_bytes == 0 {
        return Err(broken("a result that does not fit its model").into());
    }
    Ok((trained, upload.finish().await?))
}

/// The one transaction that makes run, version and end of the job; `None` when it was cancelled meanwhile.
async fn register(
    platform: &Platform,
    permit: &Permit<TrainingRun>,
    training: &Training,
    product: Product,
    live: &Live,
) -> Result<Option<MadeVersion>> {
    let Product { dataset, trained, sealed, info } = product;
    let finished_at = Timestamp::now();
    let run_id = super::fresh_id(finished_at);
    let _touched = platform.tracking().touch(permit, &run_id);
    let mut tx = permit.tx().await?;
    let now = tx.get::<Training>(&training.id).await?;
    if now.is_none_or(|now| now.state != TrainingState::Running || now.attempts != training.attempts) {
        return Ok(None);
    }
    let recipe = super::Recipe { parameters: trained.parameters, ..training.recipe.clone() };
    let lineage = Lineage::Training(TrainingLineage {
        training: training.id.clone(),
        dataset: training.dataset.clone(),
        dataset_version: training.dataset_version,
        dataset_sha256: dataset.version.sha256.clone(),
        recipe: recipe.clone(),
    });
    let origin = Origin { run_id: Some(run_id.clone()), ..Origin::new(lineage, &training.created_by) };
    let (stored, new_model) = version_insert(&mut tx, training.name.clone().into(), Some((&sealed, info)), origin).await?;
    let model_sha256 = hex(&sealed.sha256());
    tx.attach(sealed).await?;
    let run = Run {
        id: run_id.clone(),
        training: training.id.clone(),
        dataset: training.dataset.clone(),
        dataset_version: training.dataset_version,
        dataset_sha256: dataset.version.sha256,
        recipe,
        metrics: trained.metrics.into_iter().map(|metric| (line(&metric.name, METRIC_NAME_BYTES_MAX), metric.value)).collect(),
        features: trained.features,
        classes: trained.classes,
        rows_train: trained.rows_train,
        rows_test: trained.rows_test,
        fit_ms: trained.fit_ms,
        model: training.name.clone(),
        model_version: stored.version.version,
        model_sha256,
        started_at: training.started_at.unwrap_or(finished_at),
        finished_at,
        created_by: training.created_by.clone(),
    };
    tx.insert(&run).await?;
    crate::tracking::training::record(&mut tx, &run).await?;
    let done = Training {
        state: TrainingState::Succeeded,
        run_id: Some(run_id),
        model_version: Some(stored.version.version),
        finished_at: Some(finished_at),
        ..training.clone()
    };
    tx.put(&done).await?;
    store_lines(&mut tx, training, live).await?;
    tx.commit().await?;
    Ok(Some(MadeVersion { version: stored.version, new_model }))
}

/// The log becomes part of the tenant's records when the job ends.
async fn store_lines(tx: &mut tenancy::Tx<'_>, training: &Training, live: &Live) -> Result<()> {
    for lines in live.lines().chunks(LOG_CHUNK_LINES) {
        tx.put(&LogChunk { training: training.id.clone(), attempt: training.attempts, lines: lines.to_vec() }).await?;
    }
    Ok(())
}
