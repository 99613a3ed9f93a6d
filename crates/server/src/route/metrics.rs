//! `/metrics`: one address, two views by credential.

use platform::tenancy::act::MetricsRead;
use platform::tenancy::{Operator, Permit};

use super::GET;
use crate::api::{Api, Ask, Reply};
use crate::error::Result;
use crate::openapi::Doc;
use crate::traces::Tracer;

const MEDIA: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn register(api: &mut Api) {
    let doc =
        Doc::new("metrics", "Prometheus metrics: the tenant's own, or the operator's").answers_raw("text/plain", "Prometheus text format");
    api.either_route(GET, "/metrics", doc, tenant, operator);
}

async fn tenant(permit: &Permit<MetricsRead>, ask: Ask) -> Result<Reply> {
    let service = &ask.service;
    let answers = service.platform.version_answers(permit);
    Ok(Reply::bytes(MEDIA, service.metrics.tenant_text(permit.island(), &permit.quota_use(), &answers).into()))
}

async fn operator(operator: &Operator, ask: Ask) -> Result<Reply> {
    let service = &ask.service;
    let mut text = service.metrics.operator_text(&service.platform.stats(), &operator.observe().await?, service.kernel.islands_open());
    text.extend(service.tracer.as_ref().map(Tracer::text));
    Ok(Reply::bytes(MEDIA, text.into()))
}
