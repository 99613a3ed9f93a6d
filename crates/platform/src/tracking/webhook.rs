//! Webhooks: where a tenant wants to be told about its registry. Here is only what is kept; what is sent goes out through the server's one
//! way out. A secret is written and never shown.

use std::pin::Pin;

use serde::{Deserialize, Serialize};
use tenancy::act::{Act, TrainingRun, WebhookRead, WebhookWrite};
use tenancy::{Permit, Record};

use super::run::random_id;
use super::token::PageToken;
use crate::error::{Error, Result};
use crate::model::{MadeVersion, Model};
use crate::page::Timestamp;
use crate::platform::Platform;

/// Webhooks of a tenant at most.
const WEBHOOKS_MAX: usize = 64;
const NAME_CHARS_MAX: usize = 62;
const DESCRIPTION_CHARS_MAX: usize = 1000;
const URL_BYTES_MAX: usize = 2048;
const SECRET_BYTES_MAX: usize = 1024;
/// Marks a registered model as a prompt.
const PROMPT_TAG: &str = "mlflow.prompt.is_prompt";

/// What can happen: entity and action, as the protocol names them.
pub const WEBHOOK_EVENTS: [(&str, &str); 14] = [
    ("REGISTERED_MODEL", "CREATED"),
    ("MODEL_VERSION", "CREATED"),
    ("MODEL_VERSION_TAG", "SET"),
    ("MODEL_VERSION_TAG", "DELETED"),
    ("MODEL_VERSION_ALIAS", "CREATED"),
    ("MODEL_VERSION_ALIAS", "DELETED"),
    ("PROMPT", "CREATED"),
    ("PROMPT_VERSION", "CREATED"),
    ("PROMPT_TAG", "SET"),
    ("PROMPT_TAG", "DELETED"),
    ("PROMPT_VERSION_TAG", "SET"),
    ("PROMPT_VERSION_TAG", "DELETED"),
    ("PROMPT_ALIAS", "CREATED"),
    ("PROMPT_ALIAS", "DELETED"),
];

/// What of the registry something happens to. A prompt is a registered model with a tag that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// A model or prompt.
    Model,
    /// Its tag.
    ModelTag,
    /// One version.
    Version,
    /// Its tag.
    VersionTag,
    /// An alias.
    Alias,
}

impl Registered {
    fn entity(self, prompt: bool) -> Option<&'static str> {
        Some(match (self, prompt) {
            (Self::Model, false) => "REGISTERED_MODEL",
            (Self::Version, false) => "MODEL_VERSION",
            (Self::VersionTag, false) => "MODEL_VERSION_TAG",
            (Self::Alias, false) => "MODEL_VERSION_ALIAS",
            // The protocol has no such event.
            (Self::ModelTag, false) => return None,
            (Self::Model, true) => "PROMPT",
            (Self::ModelTag, true) => "PROMPT_TAG",
            (Self::Version, true) => "PROMPT_VERSION",
            (Self::VersionTag, true) => "PROMPT_VERSION_TAG",
            (Self::Alias, true) => "PROMPT_ALIAS",
        })
    }
}

/// Something that happens to a registered model or prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookEvent {
    /// As in `MODEL_VERSION`.
    pub entity: String,
    /// As in `CREATED`.
    pub action: String,
}

/// A place to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// 32 hex digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// Where to.
    pub url: String,
    /// What about.
    pub events: Vec<WebhookEvent>,
    /// Whether it is told at all.
    pub active: bool,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it last changed, in milliseconds since 1970.
    pub updated_ms: i64,
}

/// What a webhook becomes; what is absent stays.
#[derive(Debug, Clone, Default)]
pub struct WebhookRequest {
    /// For people.
    pub name: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// Where to.
    pub url: Option<String>,
    /// What about.
    pub events: Option<Vec<WebhookEvent>>,
    /// What messages are signed with.
    pub secret: Option<WebhookSecret>,
    /// Whether it is told at all.
    pub active: Option<bool>,
}

/// What messages are signed with; never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WebhookSecret(String);

impl WebhookSecret {
    /// Takes it over.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// For the signature.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl std::fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebhookSecret(…)")
    }
}

/// Where one message goes.
#[derive(Debug, Clone)]
pub struct WebhookTarget {
    /// Where to.
    pub url: String,
    /// What it is signed with.
    pub secret: Option<WebhookSecret>,
}

#[derive(Clone, Serialize, Deserialize)]
struct StoredWebhook {
    webhook: Webhook,
    secret: Option<WebhookSecret>,
}

impl Record for StoredWebhook {
    const KIND: &'static str = "webhook";
    fn key(&self) -> String {
        self.webhook.id.clone()
    }
}

impl StoredWebhook {
    fn change(&mut self, request: WebhookRequest) -> Result<()> {
        let webhook = &mut self.webhook;
        webhook.name = request.name.unwrap_or(std::mem::take(&mut webhook.name));
        webhook.description = request.description.or(webhook.description.take());
        webhook.url = request.url.unwrap_or(std::mem::take(&mut webhook.url));
        webhook.events = request.events.unwrap_or(std::mem::take(&mut webhook.events));
        webhook.active = request.active.unwrap_or(webhook.active);
        // An empty secret takes it away.
        self.secret = request.secret.or(self.secret.take()).filter(|secret| !secret.0.is_empty());
        webhook.updated_ms = Timestamp::now().millis();
        self.checked()
    }

    fn checked(&self) -> Result<()> {
        let webhook = &self.webhook;
        let plain = |c: char| c.is_ascii_alphanumeric();
        let within = webhook.name.chars().all(|c| plain(c) || matches!(c, '.' | '_' | '-'));
        if !within || !webhook.name.starts_with(plain) || !webhook.name.ends_with(plain) || webhook.name.len() > NAME_CHARS_MAX {
            return Err(Error::invalid(
                "Webhook name is invalid. It must start and end with a letter or digit, be less than 63 characters long, and contain only letters, digits, dots (.), underscores (_), and hyphens (-).",
            ));
        }
        if webhook.events.is_empty() {
            return Err(Error::invalid("Webhook events must be a non-empty list of WebhookEvent objects."));
        }
        for event in &webhook.events {
            if !WEBHOOK_EVENTS.contains(&(event.entity.as_str(), event.action.as_str())) {
                return Err(Error::invalid("Invalid action for the entity of a webhook's event: see the list in docs/mlflow.md"));
            }
        }
        if webhook.events.len() > WEBHOOK_EVENTS.len() {
            return Err(Error::invalid("a webhook names each event once"));
        }
        if webhook.url.len() > URL_BYTES_MAX {
            return Err(Error::invalid(format!("Invalid webhook URL: it is longer than {URL_BYTES_MAX} bytes")));
        }
        if webhook.description.as_ref().is_some_and(|text| text.chars().count() > DESCRIPTION_CHARS_MAX) {
            return Err(Error::invalid(format!("a webhook's description has at most {DESCRIPTION_CHARS_MAX} characters")));
        }
        if self.secret.as_ref().is_some_and(|secret| secret.0.len() > SECRET_BYTES_MAX) {
            return Err(Error::invalid(format!("a webhook's secret has at most {SECRET_BYTES_MAX} bytes")));
        }
        Ok(())
    }

    fn target(self) -> WebhookTarget {
        WebhookTarget { url: self.webhook.url, secret: self.secret }
    }
}

/// Is told what trainings have registered: no request waits for them whose handler could tell it.
pub trait Registrations: Send + Sync {
    /// A training has made a version.
    fn trained<'a>(
        &'a self,
        platform: &'a Platform,
        permit: &'a Permit<TrainingRun>,
        made: &'a MadeVersion,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
}

impl Platform {
    /// Makes a webhook. Whether its URL may be reached was asked before.
    ///
    /// # Errors
    /// Names, events or texts over their bounds; too many webhooks.
    pub async fn webhook_create(&self, permit: &Permit<WebhookWrite>, request: WebhookRequest) -> Result<Webhook> {
        let now = Timestamp::now().millis();
        let (id, url, name) = (random_id()?, String::new(), String::new());
        let webhook = Webhook { id, name, description: None, url, events: Vec::new(), active: true, created_ms: now, updated_ms: now };
        let mut stored = StoredWebhook { webhook, secret: None };
        stored.change(request)?;
        let mut tx = permit.tx().await?;
        if tx.count::<StoredWebhook>().await? >= WEBHOOKS_MAX as u64 {
            return Err(Error::invalid(format!("a tenant has at most {WEBHOOKS_MAX} webhooks: delete one first")));
        }
        tx.insert(&stored).await?;
        permit.detail("webhook", &stored.webhook.id);
        tx.commit().await?;
        Ok(stored.webhook)
    }

    /// The webhook that the permit is about.
    ///
    /// # Errors
    /// Not found.
    pub async fn webhook_get(&self, permit: &Permit<WebhookRead>) -> Result<Webhook> {
        let stored = permit.rows().get::<StoredWebhook>(permit.resource()).await?.ok_or(Error::not_found("webhook"))?;
        Ok(stored.webhook)
    }

    /// Webhooks, newest first, and the token for more.
    ///
    /// # Errors
    /// A token that cannot be read.
    pub async fn webhook_list(
        &self,
        permit: &Permit<WebhookRead>,
        limit: usize,
        token: Option<&str>,
    ) -> Result<(Vec<Webhook>, Option<String>)> {
        let skip = PageToken::open(permit, token, "webhooks", "")?;
        let mut all: Vec<Webhook> = all(permit).await?.into_iter().map(|stored| stored.webhook).collect();
        all.sort_by(|a, b| b.created_ms.cmp(&a.created_ms).then_with(|| a.id.cmp(&b.id)));
        let next = (all.len() > skip.saturating_add(limit)).then(|| PageToken::seal(permit, "webhooks", "", skip + limit)).transpose()?;
        Ok((all.into_iter().skip(skip).take(limit).collect(), next))
    }

    /// Changes a webhook.
    ///
    /// # Errors
    /// Not found; over its bounds.
    pub async fn webhook_update(&self, permit: &Permit<WebhookWrite>, request: WebhookRequest) -> Result<Webhook> {
        let mut tx = permit.tx().await?;
        let mut stored = tx.get::<StoredWebhook>(permit.resource()).await?.ok_or(Error::not_found("webhook"))?;
        stored.change(request)?;
        tx.put(&stored).await?;
        tx.commit().await?;
        Ok(stored.webhook)
    }

    /// Removes a webhook with its secret.
    ///
    /// # Errors
    /// Not found.
    pub async fn webhook_delete(&self, permit: &Permit<WebhookWrite>) -> Result<()> {
        let mut tx = permit.tx().await?;
        if !tx.delete::<StoredWebhook>(permit.resource()).await? {
            return Err(Error::not_found("webhook"));
        }
        tx.commit().await?;
        Ok(())
    }

    /// The webhook that the permit is about, and where its messages go.
    ///
    /// # Errors
    /// Not found.
    pub async fn webhook_target(&self, permit: &Permit<WebhookWrite>) -> Result<(Webhook, WebhookTarget)> {
        let stored = permit.rows().get::<StoredWebhook>(permit.resource()).await?.ok_or(Error::not_found("webhook"))?;
        Ok((stored.webhook.clone(), stored.target()))
    }

    /// Who wants to be told about what an act has done to a registered model, and what the protocol calls it. None when nobody does.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn webhook_targets<A: Act>(
        &self,
        permit: &Permit<A>,
        model: &str,
        what: Registered,
        action: &str,
    ) -> Result<Option<(&'static str, Vec<WebhookTarget>)>> {
        let mut all = all(permit).await?;
        all.retain(|stored| stored.webhook.active);
        if all.is_empty() {
            return Ok(None);
        }
        let model = permit.rows().get::<Model>(model).await?;
        let prompt = model.is_some_and(|model| model.tags.get(PROMPT_TAG).is_some_and(|value| value == "true"));
        let Some(entity) = what.entity(prompt) else { return Ok(None) };
        all.retain(|stored| stored.webhook.events.iter().any(|event| event.entity == entity && event.action == action));
        let targets: Vec<_> = all.into_iter().map(StoredWebhook::target).collect();
        Ok(Some((entity, targets)).filter(|(_, targets)| !targets.is_empty()))
    }
}

async fn all<A: Act>(permit: &Permit<A>) -> Result<Vec<StoredWebhook>> {
    Ok(permit.rows().list::<StoredWebhook>(None, u32::try_from(WEBHOOKS_MAX).unwrap_or(u32::MAX), None).await?.whole()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> StoredWebhook {
        let events = vec![WebhookEvent { entity: "MODEL_VERSION".to_owned(), action: "CREATED".to_owned() }];
        let (id, name, url) = ("1".to_owned(), "hook".to_owned(), "https://example.org/".to_owned());
        let webhook = Webhook { id, name, description: None, url, events, active: true, created_ms: 0, updated_ms: 0 };
        StoredWebhook { webhook, secret: Some(WebhookSecret::new("s3cret".to_owned())) }
    }

    #[test]
    fn names_and_events_are_checked() {
        for (name, good) in [("hook", true), ("a.b_c-d1", true), ("", false), ("-a", false), ("a.", false), ("a b", false), ("ü", false)] {
            let changed = stored().change(WebhookRequest { name: Some(name.to_owned()), ..WebhookRequest::default() });
            assert_eq!(changed.is_ok(), good, "{name}");
        }
        let event = |entity: &str, action: &str| vec![WebhookEvent { entity: entity.to_owned(), action: action.to_owned() }];
        for (events, good) in [(event("PROMPT", "CREATED"), true), (event("PROMPT", "EXCEEDED"), false), (vec![], false)] {
            assert_eq!(stored().change(WebhookRequest { events: Some(events), ..WebhookRequest::default() }).is_ok(), good);
        }
    }

    #[test]
    fn what_happens_has_a_name_in_the_protocol() {
        for what in [Registered::Model, Registered::ModelTag, Registered::Version, Registered::VersionTag, Registered::Alias] {
            for prompt in [false, true] {
                let known = what.entity(prompt).is_none_or(|entity| WEBHOOK_EVENTS.iter().any(|(known, _)| *known == entity));
                assert!(known, "{what:?} {prompt}");
            }
        }
    }

    #[test]
    fn a_secret_stays_unless_it_is_changed_and_is_never_printed() {
        let mut stored = stored();
        stored.change(WebhookRequest { active: Some(false), ..WebhookRequest::default() }).unwrap();
        assert_eq!(stored.secret.as_ref().map(WebhookSecret::bytes), Some(&b"s3cret"[..]));
        assert!(!format!("{:?}", stored.secret).contains("s3cret"));
        stored.change(WebhookRequest { secret: Some(WebhookSecret::new(String::new())), ..WebhookRequest::default() }).unwrap();
        assert_eq!(stored.secret, None);
    }
}
