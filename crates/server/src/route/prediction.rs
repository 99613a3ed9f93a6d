//! Jobs that ask a deployment about every row of a data set.

use http::StatusCode;
use platform::tenancy::Permit;
use platform::tenancy::act::{PredictionCancel, PredictionCreate, PredictionRead};
use platform::{Prediction, PredictionRequest};

use super::{GET, POST};
use crate::api::{Api, Ask, Reply};
use crate::error::Result;
use crate::openapi::Doc;

pub(super) fn register(api: &mut Api) {
    let create_doc = Doc::new("prediction_create", "Queue a job that asks a deployment about every row of a data set");
    let create_doc = create_doc.takes::<PredictionRequest>().answers::<Prediction>().status(202);
    api.tenant_route(POST, "/v1/predictions", create_doc, create);
    api.tenant_route(GET, "/v1/predictions", Doc::new("prediction_list", "Jobs of predictions").pages::<Prediction>(), list);
    let get_doc = Doc::new("prediction_get", "One job of predictions with its progress").answers::<Prediction>();
    api.tenant_route(GET, "/v1/predictions/{id}", get_doc, get);
    let cancel_doc = Doc::new("prediction_cancel", "Cancel a job of predictions").answers::<Prediction>();
    api.tenant_route(POST, "/v1/predictions/{id}/cancel", cancel_doc, cancel);
}

async fn create(permit: &Permit<PredictionCreate>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    let request: PredictionRequest = ask.json().await?;
    let prediction = service.platform.prediction_create(permit, request).await?;
    let location = format!("/v1/predictions/{}", prediction.id);
    Ok(Reply::json(&prediction)?.created(&location).status(StatusCode::ACCEPTED))
}

async fn list(permit: &Permit<PredictionRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.prediction_list(permit, &ask.page()?).await?)
}

async fn get(permit: &Permit<PredictionRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.prediction_get(permit).await?)
}

async fn cancel(permit: &Permit<PredictionCancel>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    ask.no_body().await?;
    Reply::json(&service.platform.prediction_cancel(permit).await?)
}
