//! MLflow's scoring protocol on every deployment: `POST …/invocations` with `dataframe_split`, `dataframe_records`, `inputs` or
//! `instances`, answered by `{"predictions": …}`. Under `/v2` beside the Open Inference Protocol, and under `/v1` beside the deployment;
//! the same in both places, each with its own form of errors. The body is never parsed here: that is done in the tenant's cell.

use http::Method;
use platform::tenancy::Permit;
use platform::tenancy::act::Predict;
use platform::{Protocol, Question};

use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::manner::manner;
use crate::openapi::Doc;

pub(super) fn register(api: &mut Api) {
    let doc = |operation| {
        Doc::new(operation, "Predict (MLflow's scoring protocol)")
            .takes_raw("application/json", "`dataframe_split`, `dataframe_records`, `inputs` or `instances`")
            .answers_raw("application/json", "`predictions`")
    };
    api.tenant_route(Method::POST, "/v2/models/{name}/invocations", doc("invocations"), invocations);
    api.tenant_route(Method::POST, "/v1/deployments/{name}/invocations", doc("deployment_invocations"), invocations);
}

async fn invocations(permit: &Permit<Predict>, ask: Ask) -> Result<Reply> {
    if ask.media_type().is_some_and(|media| media != "application/json") {
        return Err(Fail::new("media_type_unsupported", "send JSON with `Content-Type: application/json`; CSV is not supported"));
    }
    let (service, manner) = (ask.service.clone(), manner(&ask)?);
    let body = ask.body.whole(service.limits.predict_bytes_max).await?;
    let question = Question { protocol: Protocol::Scoring, body, manner };
    let answer = service.platform.predict(permit, None, question).await?;
    Ok(Reply::bytes("application/json", answer.body))
}
