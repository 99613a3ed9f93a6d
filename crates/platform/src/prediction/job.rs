//! One job, from its ticket to its end. The steps, and that each of them may be the last before a crash, are those of a training.

use std::time::Duration;

use tenancy::act::{DatasetRead, DatasetWrite, Predict, PredictionRun};
use tenancy::{IsolationClass, Lease, Permit, StoredUpload, Tenant};
use wire::{Format, FromCell};

use super::{Prediction, TICKET_KIND};
use crate::cells::{Event, Owner, Source, broken};
use crate::dataset::{StoredVersion, hex, stored_version, version_insert, version_key};
use crate::error::{Error, Result};
use crate::model::StoredModelVersion;
use crate::page::Timestamp;
use crate::platform::Platform;
use crate::stats::bump;
use crate::training::{
    Failure, JobStep, Live, POSTPONE, ROWLESS_CLAIMS_MAX, ROWLESS_PAUSE, Scheduler, Stop, TrainingState, Verdict, resumed,
};

/// What a finished job leaves.
struct Product {
    sealed: StoredUpload,
    inspection: wire::Inspection,
}

/// Runs the job behind a ticket.
pub(crate) async fn run(platform: &Platform, scheduler: &Scheduler, lease: &Lease) -> Verdict {
    if scheduler.stops_at(JobStep::Claimed) {
        return Verdict::Vanish;
    }
    let (tenant, permit) = match resumed::<PredictionRun>(platform, lease, TICKET_KIND).await {
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
            tracing::warn!(private = error.private(), code = error.code(), "a job of predictions could not be recorded");
            let _ = permit.failed(error.code());
            Verdict::Postpone(POSTPONE)
        }
    }
}

/// One attempt. An error is one of the rows: the job's own failures are recorded in its row.
async fn attempt(
    platform: &Platform,
    scheduler: &Scheduler,
    lease: &Lease,
    tenant: &Tenant,
    permit: &Permit<PredictionRun>,
) -> Result<Verdict> {
    let Some(mut job) = permit.rows().get::<Prediction>(lease.id()).await? else {
        let young = lease.attempts() <= ROWLESS_CLAIMS_MAX;
        return Ok(if young { Verdict::Postpone(ROWLESS_PAUSE) } else { Verdict::Release });
    };
    if job.state.is_final() {
        return Ok(Verdict::Release);
    }
    let live = scheduler.begin(permit, &job.id);
    let attempts_max = platform.config().training_attempts_max;
    if job.attempts >= attempts_max {
        let error = Error::conflict(format!("given up after {attempts_max} attempts"));
        return fail(platform, permit, job, &error).await;
    }
    job.attempts += 1;
    // Taken once, so that the class in the entries is that of every cell of this attempt.
    let owner = platform.owner(permit);
    if !start(permit, &owner, &mut job).await? {
        return Ok(Verdict::Release);
    }
    platform.counters().job_begun(job.attempts, job.created_at);
    if scheduler.stops_at(JobStep::Started) {
        return Ok(Verdict::Vanish);
    }
    let begun = std::time::Instant::now();
    let product = tokio::select! {
        product = produce(platform, scheduler, tenant, (permit, &owner), &job, &live) => product,
        () = live.cancelled() => Err(Stop::Cancelled),
    };
    permit.meter().count_job(begun.elapsed());
    let stop = match product {
        Ok(product) => match register(permit, &job, product).await {
            Ok(true) => {
                bump(&platform.counters().predictions_succeeded);
                return Ok(if scheduler.stops_at(JobStep::Registered) { Verdict::Vanish } else { Verdict::Release });
            }
            Ok(false) => Stop::Cancelled,
            Err(error) => error.into(),
        },
        Err(stop) => stop,
    };
    match stop {
        Stop::Failed(error) => fail(platform, permit, job, &error).await,
        Stop::Cancelled => {
            bump(&platform.counters().predictions_cancelled);
            Ok(Verdict::Release)
        }
        Stop::Later => {
            requeue(permit, &job).await?;
            Ok(Verdict::Postpone(POSTPONE))
        }
        Stop::Closing => {
            // Not the job's fault: the attempt does not count. Fails when the tenant is being erased, and then nothing is to be kept.
            let _ = requeue(permit, &job).await;
            Ok(Verdict::Requeue)
        }
        Stop::Crash => Ok(Verdict::Vanish),
    }
}

/// The row says running; `false` when it was cancelled meanwhile.
async fn start(permit: &Permit<PredictionRun>, owner: &Owner, job: &mut Prediction) -> Result<bool> {
    job.state = TrainingState::Running;
    job.started_at = Some(Timestamp::now());
    permit.detail("deployment", &job.deployment);
    permit.detail("dataset", &job.lineage.dataset);
    permit.detail("into", &job.into);
    permit.detail("attempt", job.attempts);
    permit.detail(IsolationClass::DETAIL, owner.limits.isolation.name());
    let mut tx = permit.tx().await?;
    if tx.get::<Prediction>(&job.id).await?.is_none_or(|now| now.state.is_final()) {
        return Ok(false);
    }
    tx.put(job).await?;
    tx.commit().await?;
    Ok(true)
}

/// The row says queued again, and the attempt did not happen.
async fn requeue(permit: &Permit<PredictionRun>, job: &Prediction) -> Result<()> {
    let mut tx = permit.tx().await?;
    let Some(mut now) = tx.get::<Prediction>(&job.id).await?.filter(|now| !now.state.is_final()) else { return Ok(()) };
    now.state = TrainingState::Queued;
    now.attempts = job.attempts.saturating_sub(1);
    tx.put(&now).await?;
    tx.commit().await?;
    Ok(())
}

/// The row says why it failed.
async fn fail(platform: &Platform, permit: &Permit<PredictionRun>, mut job: Prediction, error: &Error) -> Result<Verdict> {
    if let Some(private) = error.private() {
        tracing::error!(private, code = error.code(), "a job of predictions failed");
    }
    job.state = TrainingState::Failed;
    job.error = Some(Failure { code: error.code().to_owned(), message: error.to_string() });
    job.finished_at = Some(Timestamp::now());
    let mut tx = permit.tx().await?;
    if tx.get::<Prediction>(&job.id).await?.is_none_or(|now| now.state.is_final()) {
        return Ok(Verdict::Release);
    }
    tx.put(&job).await?;
    tx.commit().await?;
    bump(&platform.counters().predictions_failed);
    Ok(Verdict::Release)
}

/// Asks about every row and checks the table of answers. Makes nothing that anybody can see.
async fn produce(
    platform: &Platform,
    scheduler: &Scheduler,
    tenant: &Tenant,
    (permit, owner): (&Permit<PredictionRun>, &Owner),
    job: &Prediction,
    live: &Live,
) -> Result<Product, Stop> {
    // What the job reads, asks and writes is asked for by name, as if its owner did it by hand.
    let reading = tenant.allow::<DatasetRead>(job.lineage.dataset.as_str())?;
    reading.detail("prediction", &job.id);
    let dataset = stored_version(&reading, Some(job.lineage.dataset_version)).await?;
    let rows = Source::blob(reading.blobs().open(dataset.blob).await?);
    let _ = reading.finish()?;
    let model = model(tenant, owner, job).await?;
    let writing = tenant.allow::<DatasetWrite>(job.into.as_str())?;
    writing.detail("prediction", &job.id);
    let _ = writing.finish()?;
    let (sealed, answered) = ask(platform, (permit, owner), job, &dataset, model, rows, live).await?;
    if scheduler.stops_at(JobStep::Trained) {
        return Err(Stop::Crash);
    }
    let config = platform.config();
    let inspect = wire::Inspect {
        source_bytes: sealed.bytes(),
        format: Some(Format::Csv),
        rows_max: config.rows_max,
        columns_max: config.columns_max,
    };
    let source = Source::blob(sealed.open().await?);
    let inspection = platform.cells().inspect(owner, inspect, source).await?;
    if inspection.rows != answered {
        return Err(broken("a table with other rows than it said").into());
    }
    if scheduler.stops_at(JobStep::Admitted) {
        return Err(Stop::Crash);
    }
    Ok(Product { sealed, inspection })
}

/// The bytes of the model that was meant when the job was queued.
async fn model(tenant: &Tenant, owner: &Owner, job: &Prediction) -> Result<Source, Stop> {
    let lineage = &job.lineage;
    let asking = tenant.allow::<Predict>(job.deployment.as_str())?;
    asking.detail("prediction", &job.id);
    asking.detail("model_version", lineage.model_version);
    asking.detail("model_sha256", &lineage.model_sha256);
    asking.detail("input_sha256", &lineage.dataset_sha256);
    asking.detail(IsolationClass::DETAIL, owner.limits.isolation.name());
    let key = version_key(lineage.model.as_str(), lineage.model_version);
    let stored = asking.rows().get::<StoredModelVersion>(&key).await?.ok_or(Error::not_found("model version"))?.loadable()?;
    let reader = asking.blobs().open(stored.blob).await?;
    if hex(&reader.sha256()) != lineage.model_sha256 {
        return Err(Error::from(tenancy::Error::integrity("a model is not the one that was admitted")).into());
    }
    let _ = asking.finish()?;
    Ok(Source::blob(reader))
}

/// The cell answers; its table is sealed while it comes.
async fn ask(
    platform: &Platform,
    (permit, owner): (&Permit<PredictionRun>, &Owner),
    job: &Prediction,
    dataset: &StoredVersion,
    model: Source,
    source: Source,
    live: &Live,
) -> Result<(StoredUpload, u64), Stop> {
    let rows = dataset.version.rows;
    let time = platform.config().training_timeout.min(Duration::from_secs(permit.limits().job_seconds.max(1)));
    let predict = wire::Predict {
        source_bytes: source.bytes(),
        format: dataset.version.format,
        load: platform.cells().load_of(job.deployment.as_str(), &job.lineage.model_version.to_string(), model.bytes()),
        features: job.features.clone(),
        keep: job.keep.clone(),
        batch_rows: job.batch_rows,
    };
    let mut upload = permit.blob_create().await?;
    let mut cell = platform.cells().predict_all(owner, predict, &model, source, time).await?;
    let predicted = loop {
        match cell.next().await? {
            Event::Output(piece) => upload.write(piece).await?,
            Event::Progress(progress) => live.progress(wire::Progress { total: rows, ..progress }),
            Event::Log(_) => {}
            Event::Done(FromCell::Predicted(predicted)) => break predicted,
            Event::Done(_) => return Err(broken("another result").into()),
        }
    };
    drop(cell);
    if predicted.output_bytes != upload.bytes() || predicted.rows != rows {
        return Err(broken("a result that does not fit its rows").into());
    }
    Ok((upload.finish().await?, predicted.rows))
}

/// The one transaction that makes the version and the end of the job; `false` when it was cancelled meanwhile.
async fn register(permit: &Permit<PredictionRun>, job: &Prediction, product: Product) -> Result<bool> {
    let Product { sealed, inspection } = product;
    let mut tx = permit.tx().await?;
    let now = tx.get::<Prediction>(&job.id).await?;
    if now.is_none_or(|now| now.state != TrainingState::Running || now.attempts != job.attempts) {
        return Ok(false);
    }
    let version = version_insert(&mut tx, job.into.clone(), sealed, inspection, Some(job.lineage.clone())).await?;
    let done = Prediction {
        state: TrainingState::Succeeded,
        rows: Some(version.rows),
        into_version: Some(version.version),
        finished_at: Some(version.created_at),
        ..job.clone()
    };
    tx.put(&done).await?;
    tx.commit().await?;
    Ok(true)
}
