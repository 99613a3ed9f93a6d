//! Webhooks: keeping them, trying one out, and telling about what happened in the registry. Messages are signed as MLflow signs them, which
//! is close to Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Method};
use platform::tenancy::Permit;
use platform::tenancy::act::{Act, ModelWrite, TrainingRun, WebhookRead, WebhookWrite};
use platform::{
    MadeVersion, Model, ModelVersion, Platform, Registered, Registrations, Webhook, WebhookEvent, WebhookRequest, WebhookSecret,
    WebhookTarget,
};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::wire::{self, Int};
use crate::api::{Api, Ask, Reply};
use crate::egress::{Egress, EgressError, Message};
use crate::error::{Fail, Result};
use crate::openapi::Doc;
use crate::service::Service;

const SIGNATURE: HeaderName = HeaderName::from_static("x-mlflow-signature");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-mlflow-timestamp");
const DELIVERY: HeaderName = HeaderName::from_static("x-mlflow-delivery-id");
/// The tag in which clients keep the text of a prompt's version.
const PROMPT_TEXT: &str = "mlflow.prompt.text";
/// Webhooks in one answer.
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1000;

pub(crate) fn register(api: &mut Api) {
    let all = "/api/2.0/mlflow/webhooks";
    let one = "/api/2.0/mlflow/webhooks/{webhook_id}";
    api.mlflow_route(Method::POST, all, Doc::new("mlflow_webhook_create", "Make a webhook"), "", create);
    api.mlflow_route(Method::GET, all, Doc::new("mlflow_webhook_list", "Webhooks"), "", list);
    api.tenant_route(Method::GET, one, Doc::new("mlflow_webhook_get", "A webhook, without its secret"), get);
    api.tenant_route(Method::PATCH, one, Doc::new("mlflow_webhook_update", "Change a webhook"), update);
    api.tenant_route(Method::DELETE, one, Doc::new("mlflow_webhook_delete", "Remove a webhook"), delete);
    let test = "/api/2.0/mlflow/webhooks/{webhook_id}/test";
    api.tenant_route(Method::POST, test, Doc::new("mlflow_webhook_test", "Send an example to a webhook"), try_out);
}

/// Who tells webhooks: what they are, and the way out to them.
#[derive(Clone, Copy)]
pub(crate) struct Teller<'a> {
    pub(crate) platform: &'a Platform,
    pub(crate) egress: &'a Arc<Egress>,
}

/// Tells webhooks what trainings register.
pub(crate) struct Trainings(pub(crate) Arc<Egress>);

impl Registrations for Trainings {
    fn trained<'a>(
        &'a self,
        platform: &'a Platform,
        permit: &'a Permit<TrainingRun>,
        made: &'a MadeVersion,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(uploaded(permit, Teller { platform, egress: &self.0 }, made))
    }
}

/// Tells the tenant's webhooks, in the background, what an act has done to a registered model. A failure here is not the act's, which is
/// done. `data` has what the event says beside the model's name.
async fn tell<A: Act>(permit: &Permit<A>, teller: Teller<'_>, model: &str, what: Registered, action: &str, mut data: Value) {
    let (entity, targets) = match teller.platform.webhook_targets(permit, model, what, action).await {
        Ok(None) => return,
        Ok(Some(found)) => found,
        Err(error) => return tracing::warn!(code = error.code(), "webhooks could not be read"),
    };
    if let Some(data) = data.as_object_mut() {
        data.insert("name".to_owned(), model.into());
    }
    for target in targets {
        let message = message(permit, &target, entity, action, &data);
        if !message.is_ok_and(|message| teller.egress.queue(permit.island(), message)) {
            tracing::warn!("a webhook's message was dropped: too many are waiting");
        }
    }
}

/// A model, or a prompt, was registered.
pub(crate) async fn model_made(permit: &Permit<ModelWrite>, service: &Service, model: &Model) {
    let data = json!({"tags": shown_tags(&model.tags), "description": model.description});
    tell(permit, service.teller(), model.name.as_str(), Registered::Model, "CREATED", data).await;
}

/// A version came in as a file or out of a training, perhaps with a new model.
pub(crate) async fn uploaded<A: Act>(permit: &Permit<A>, teller: Teller<'_>, made: &MadeVersion) {
    let MadeVersion { version, new_model } = made;
    if *new_model {
        tell(permit, teller, version.model.as_str(), Registered::Model, "CREATED", json!({"tags": {}, "description": ""})).await;
    }
    version_made(permit, teller, version, &format!("models:/{}/{}", version.model, version.version)).await;
}

/// A version was made.
pub(crate) async fn version_made<A: Act>(permit: &Permit<A>, teller: Teller<'_>, version: &ModelVersion, source: &str) {
    let mut data = json!({
        "version": version.version.to_string(),
        "source": source,
        "run_id": version.run_id,
        "tags": shown_tags(&version.tags),
        "description": version.description,
    });
    if let (Some(data), Some(template)) = (data.as_object_mut(), version.tags.get(PROMPT_TEXT)) {
        data.insert("template".to_owned(), template.as_str().into());
    }
    tell(permit, teller, version.model.as_str(), Registered::Version, "CREATED", data).await;
}

/// A tag of the model, or of one version, was set, or removed when it has no value any more.
pub(crate) async fn tag_changed(permit: &Permit<ModelWrite>, service: &Service, version: Option<u64>, key: &str, value: Option<&str>) {
    let what = if version.is_some() { Registered::VersionTag } else { Registered::ModelTag };
    let mut data = json!({"key": key});
    put(&mut data, "version", version.map(|version| version.to_string()));
    put(&mut data, "value", value);
    tell(permit, service.teller(), permit.resource(), what, if value.is_some() { "SET" } else { "DELETED" }, data).await;
}

/// An alias was pointed at a version, or removed.
pub(crate) async fn alias_changed(permit: &Permit<ModelWrite>, service: &Service, alias: &str, version: Option<u64>) {
    let mut data = json!({"alias": alias});
    put(&mut data, "version", version.map(|version| version.to_string()));
    let action = if version.is_some() { "CREATED" } else { "DELETED" };
    tell(permit, service.teller(), permit.resource(), Registered::Alias, action, data).await;
}

/// Tags without those by which clients mark prompts.
fn shown_tags(tags: &BTreeMap<String, String>) -> BTreeMap<&String, &String> {
    tags.iter().filter(|(key, _)| !key.starts_with("mlflow.prompt.")).collect()
}

fn put(data: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let (Some(data), Some(value)) = (data.as_object_mut(), value) {
        data.insert(key.to_owned(), value.into());
    }
}

async fn create(permit: &Permit<WebhookWrite>, mut ask: Ask) -> Result<Reply> {
    let form: Form = ask.fields()?;
    if form.name.is_none() || form.url.is_none() || form.events.is_none() {
        return Err(Fail::new("invalid", "Missing value for required parameter: a webhook has `name`, `url` and `events`"));
    }
    let webhook = ask.service.platform.webhook_create(permit, form.request(&ask.service)?).await?;
    Reply::json(&json!({"webhook": shown(&webhook)}))
}

async fn list(permit: &Permit<WebhookRead>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Request {
        max_results: Option<Int>,
        page_token: Option<String>,
    }
    let request: Request = ask.fields()?;
    let limit = match request.max_results {
        None => PAGE_DEFAULT,
        Some(most) => usize::try_from(most.0).ok().filter(|most| (1..=PAGE_MAX).contains(most)).ok_or_else(|| {
            Fail::new("invalid", format!("Invalid value {} for parameter 'max_results' supplied: give 1 to {PAGE_MAX}", most.0))
        })?,
    };
    let (webhooks, token) = ask.service.platform.webhook_list(permit, limit, request.page_token.as_deref()).await?;
    let mut answer = json!({"webhooks": webhooks.iter().map(shown).collect::<Vec<_>>()});
    if let (Some(answer), Some(token)) = (answer.as_object_mut(), token) {
        answer.insert("next_page_token".to_owned(), token.into());
    }
    Reply::json(&answer)
}

async fn get(permit: &Permit<WebhookRead>, ask: Ask) -> Result<Reply> {
    let webhook = ask.service.platform.webhook_get(permit).await?;
    Reply::json(&json!({"webhook": shown(&webhook)}))
}

async fn update(permit: &Permit<WebhookWrite>, mut ask: Ask) -> Result<Reply> {
    let form: Form = wire::Fields::of(&mut ask).await?.read()?;
    let webhook = ask.service.platform.webhook_update(permit, form.request(&ask.service)?).await?;
    Reply::json(&json!({"webhook": shown(&webhook)}))
}

async fn delete(permit: &Permit<WebhookWrite>, ask: Ask) -> Result<Reply> {
    ask.service.platform.webhook_delete(permit).await?;
    Reply::json(&json!({}))
}

/// Sends an example at once, and says what came of it.
async fn try_out(permit: &Permit<WebhookWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Request {
        event: Option<WebhookEvent>,
    }
    let request: Request = wire::Fields::of(&mut ask).await?.read()?;
    let (webhook, target) = ask.service.platform.webhook_target(permit).await?;
    let event = request.event.or_else(|| webhook.events.first().cloned());
    let event = event.ok_or_else(|| Fail::new("invalid", "name the event to try"))?;
    if !platform::WEBHOOK_EVENTS.contains(&(event.entity.as_str(), event.action.as_str())) {
        return Err(Fail::new("invalid", "there is no such event"));
    }
    let message = message(permit, &target, &event.entity, &event.action, &example(&event.entity, &event.action))?;
    let result = match ask.service.egress.post(&message).await {
        Ok(answered) => json!({"success": answered.status < 400, "response_status": answered.status, "response_body": answered.body}),
        Err(error) => json!({"success": false, "error_message": format!("Failed to test webhook: {error}")}),
    };
    Reply::json(&json!({"result": result}))
}

/// A webhook as it comes; in a change, what is absent stays.
#[derive(Deserialize)]
struct Form {
    name: Option<String>,
    description: Option<String>,
    url: Option<String>,
    events: Option<Vec<WebhookEvent>>,
    secret: Option<String>,
    status: Option<String>,
}

impl Form {
    fn request(self, service: &Service) -> Result<WebhookRequest> {
        let url = self.url.filter(|url| !url.is_empty());
        if let Some(url) = &url {
            service.egress.checked(url).map_err(|error| match error {
                EgressError::Refused(why) => Fail::new("invalid", why),
                EgressError::Failed(why) => Fail::new("unavailable", why),
            })?;
        }
        let active = match self.status.as_deref() {
            None | Some("") => None,
            Some("ACTIVE") => Some(true),
            Some("DISABLED") => Some(false),
            Some(_) => return Err(Fail::new("invalid", "a webhook's `status` is `ACTIVE` or `DISABLED`")),
        };
        Ok(WebhookRequest {
            name: self.name.filter(|name| !name.is_empty()),
            description: self.description,
            url,
            events: self.events.filter(|events| !events.is_empty()),
            secret: self.secret.map(WebhookSecret::new),
            active,
        })
    }
}

/// A webhook as it goes: without its secret, which the platform does not even give.
fn shown(webhook: &Webhook) -> Value {
    json!({
        "webhook_id": webhook.id,
        "name": webhook.name,
        "description": webhook.description.as_deref().unwrap_or_default(),
        "url": webhook.url,
        "events": webhook.events,
        "status": if webhook.active { "ACTIVE" } else { "DISABLED" },
        "creation_timestamp": webhook.created_ms,
        "last_updated_timestamp": webhook.updated_ms,
    })
}

/// A signed message.
fn message<A: Act>(permit: &Permit<A>, target: &WebhookTarget, entity: &str, action: &str, data: &Value) -> Result<Message> {
    let now = OffsetDateTime::now_utc();
    let body = json!({
        "entity": entity.to_ascii_lowercase(),
        "action": action.to_ascii_lowercase(),
        "timestamp": now.format(&Rfc3339).map_err(Fail::internal)?,
        "data": data,
        "workspace": permit.tenant_name().as_str(),
    });
    let body = serde_json::to_string(&body).map_err(Fail::internal)?;
    let (id, timestamp) = (delivery_id()?, now.unix_timestamp().to_string());
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut put = |name, value: &str| HeaderValue::from_str(value).map(|value| drop(headers.insert(name, value))).map_err(Fail::internal);
    put(DELIVERY, &id)?;
    put(TIMESTAMP, &timestamp)?;
    if let Some(secret) = &target.secret {
        put(SIGNATURE, &signature(secret.bytes(), &id, &timestamp, &body))?;
    }
    Ok(Message { url: target.url.clone(), headers, body: body.into() })
}

fn signature(secret: &[u8], id: &str, timestamp: &str, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", BASE64.encode(tag))
}

/// A random UUID (RFC 9562, version 4).
fn delivery_id() -> Result<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(Fail::internal)?;
    let number = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62;
    let hex = format!("{number:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    Ok(format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)))
}

/// What a message about such an event looks like.
fn example(entity: &str, action: &str) -> Value {
    let name = if entity.starts_with("PROMPT") { "example_prompt" } else { "example_model" };
    let mut data = json!({"name": name});
    let mut put = |key: &str, value: Value| {
        if let Some(data) = data.as_object_mut() {
            data.insert(key.to_owned(), value);
        }
    };
    if entity.contains("VERSION") || (entity == "PROMPT_ALIAS" && action == "CREATED") {
        put("version", "1".into());
    }
    match (entity, action) {
        ("MODEL_VERSION_ALIAS" | "PROMPT_ALIAS", _) => put("alias", "example_alias".into()),
        ("MODEL_VERSION_TAG" | "PROMPT_TAG" | "PROMPT_VERSION_TAG", _) => put("key", "example_key".into()),
        _ => {
            put("tags", json!({"example_key": "example_value"}));
            put("description", "An example".into());
        }
    }
    match (entity, action) {
        (_, "SET") => put("value", "example_value".into()),
        ("MODEL_VERSION", _) => {
            put("source", "models:/123".into());
            put("run_id", "abcd1234abcd5678".into());
        }
        ("PROMPT_VERSION", _) => put("template", "Hello {{name}}!".into()),
        _ => {}
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_mlflows() {
        // Computed with Python's `hmac` as in MLflow's documentation of webhook verification.
        let expected = "v1,kvUkqhGTXPWafMDm/FgZbFBiKwZyIWnzIrW2O9JBOOw=";
        assert_eq!(signature(b"my-secret", "d1", "1700000000", r#"{"a": 1}"#), expected);
    }

    #[test]
    fn deliveries_have_ids_of_their_own() {
        let (one, other) = (delivery_id().unwrap(), delivery_id().unwrap());
        assert_ne!(one, other);
        let parts: Vec<usize> = one.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(one.as_bytes()[14], b'4', "{one}");
        assert!(b"89ab".contains(&one.as_bytes()[19]), "{one}");
    }

    #[test]
    fn examples_say_what_events_do() {
        assert_eq!(
            example("MODEL_VERSION_TAG", "SET"),
            json!({"name": "example_model", "version": "1", "key": "example_key", "value": "example_value"})
        );
        assert_eq!(example("PROMPT_ALIAS", "DELETED"), json!({"name": "example_prompt", "alias": "example_alias"}));
        assert_eq!(example("MODEL_VERSION", "CREATED")["source"], "models:/123");
    }
}
