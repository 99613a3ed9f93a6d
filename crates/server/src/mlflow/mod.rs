//! MLflow's REST API: what the stock client asks for, in its own forms. Workspaces are tenants, and one is always in one's own.
//!
//! A request names what it is about in its body or query, so addresses are registered with the name of that field
//! ([`Api::mlflow_route`]); everything else is as on any other address: credential, policy, quota, ledger.

mod artifacts;
mod experiments;
mod invocations;
mod logged_models;
pub(crate) mod otlp;
mod permissions;
mod registry;
pub(crate) mod traces;
mod tracking;
pub(crate) mod webhooks;
pub(crate) mod wire;

use http::header::HeaderName;

use crate::api::Api;

/// Names the workspace.
pub(crate) const WORKSPACE: HeaderName = HeaderName::from_static("x-mlflow-workspace");

/// Registers everything.
pub(crate) fn register(api: &mut Api) {
    experiments::register(api);
    permissions::register(api);
    artifacts::register(api);
    logged_models::register(api);
    registry::register(api);
    invocations::register(api);
    tracking::register(api);
    traces::register(api);
    webhooks::register(api);
}
