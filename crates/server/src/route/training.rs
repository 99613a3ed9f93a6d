//! Training jobs and the runs they leave.

use http::StatusCode;
use platform::tenancy::Permit;
use platform::tenancy::act::{RunRead, TrainingCancel, TrainingCreate, TrainingRead};
use platform::{Run, Training, TrainingLogs, TrainingRequest};

use super::{GET, POST};
use crate::api::{Api, Ask, Reply};
use crate::error::Result;
use crate::openapi::Doc;

pub(super) fn register(api: &mut Api) {
    api.tenant_route(
        POST,
        "/v1/trainings",
        Doc::new("training_create", "Queue a training job").takes::<TrainingRequest>().answers::<Training>().status(202),
        create,
    );
    api.tenant_route(GET, "/v1/trainings", Doc::new("training_list", "Training jobs").pages::<Training>(), list);
    api.tenant_route(GET, "/v1/trainings/{id}", Doc::new("training_get", "One training job with its progress").answers::<Training>(), get);
    api.tenant_route(
        GET,
        "/v1/trainings/{id}/logs",
        Doc::new("training_logs", "Log lines of a training job")
            .query("after", "integer", "number of the last line seen")
            .answers::<TrainingLogs>(),
        logs,
    );
    api.tenant_route(POST, "/v1/trainings/{id}/cancel", Doc::new("training_cancel", "Cancel a training job").answers::<Training>(), cancel);
    api.tenant_route(
        GET,
        "/v1/runs",
        Doc::new("run_list", "Runs, with parameters and metrics").query("model", "string", "of this model only").pages::<Run>(),
        runs,
    );
    api.tenant_route(GET, "/v1/runs/{id}", Doc::new("run_get", "One run").answers::<Run>(), run);
}

async fn create(permit: &Permit<TrainingCreate>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    let request: TrainingRequest = ask.json().await?;
    let training = service.platform.training_create(permit, request).await?;
    let location = format!("/v1/trainings/{}", training.id);
    Ok(Reply::json(&training)?.created(&location).status(StatusCode::ACCEPTED))
}

async fn list(permit: &Permit<TrainingRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.training_list(permit, &ask.page()?).await?)
}

async fn get(permit: &Permit<TrainingRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.training_get(permit).await?)
}

async fn logs(permit: &Permit<TrainingRead>, ask: Ask) -> Result<Reply> {
    let after = ask.query_as("after", "a number")?.unwrap_or(0);
    Reply::json(&ask.service.platform.training_logs(permit, after).await?)
}

async fn cancel(permit: &Permit<TrainingCancel>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    ask.no_body().await?;
    Reply::json(&service.platform.training_cancel(permit).await?)
}

async fn runs(permit: &Permit<RunRead>, ask: Ask) -> Result<Reply> {
    let model = ask.query("model")?;
    Reply::json(&ask.service.platform.run_list(permit, model.as_deref(), &ask.page()?).await?)
}

async fn run(permit: &Permit<RunRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.run_get(permit).await?)
}
