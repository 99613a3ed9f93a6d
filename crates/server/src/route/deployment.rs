//! Deployments: which version of a model answers under a name.

use platform::tenancy::Permit;
use platform::tenancy::act::{DeploymentRead, DeploymentRollback, DeploymentWrite};
use platform::{Deployment, DeploymentRequest};

use super::{DELETE, GET, POST, PUT};
use crate::api::{Api, Ask, Reply};
use crate::error::Result;
use crate::openapi::Doc;

pub(super) fn register(api: &mut Api) {
    api.tenant_route(GET, "/v1/deployments", Doc::new("deployment_list", "Deployments by name").pages::<Deployment>(), list);
    api.tenant_route(GET, "/v1/deployments/{name}", Doc::new("deployment_get", "One deployment").answers::<Deployment>(), get);
    api.tenant_route(
        PUT,
        "/v1/deployments/{name}",
        Doc::new("deployment_put", "Deploy a version or an alias of a model, with a canary and a shadow beside it if wanted")
            .takes::<DeploymentRequest>()
            .answers::<Deployment>(),
        put,
    );
    api.tenant_route(DELETE, "/v1/deployments/{name}", Doc::new("deployment_delete", "Remove a deployment").status(204), delete);
    let rollout = |operation, about| Doc::new(operation, about).answers::<Deployment>();
    let about = "Make the canary what answers";
    api.tenant_route(POST, "/v1/deployments/{name}/promote", rollout("deployment_promote", about), promote);
    let about = "Return to what was deployed before";
    api.tenant_route(POST, "/v1/deployments/{name}/rollback", rollout("deployment_rollback", about), rollback);
}

async fn list(permit: &Permit<DeploymentRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.deployment_list(permit, &ask.page()?).await?)
}

async fn get(permit: &Permit<DeploymentRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.deployment_get(permit).await?)
}

async fn put(permit: &Permit<DeploymentWrite>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    let request: DeploymentRequest = ask.json().await?;
    Reply::json(&service.platform.deployment_put(permit, request).await?)
}

async fn delete(permit: &Permit<DeploymentWrite>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    ask.no_body().await?;
    service.platform.deployment_delete(permit).await?;
    Ok(Reply::empty())
}

async fn promote(permit: &Permit<DeploymentWrite>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    ask.no_body().await?;
    Reply::json(&service.platform.deployment_promote(permit).await?)
}

async fn rollback(permit: &Permit<DeploymentRollback>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    ask.no_body().await?;
    Reply::json(&service.platform.deployment_rollback(permit).await?)
}
