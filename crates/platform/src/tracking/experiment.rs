//! Experiments: names under which runs are kept. Experiment `0`, `Default`, is there in every tenant without having been made.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tenancy::act::{Act, ExperimentDelete, ExperimentRead, ExperimentWrite, ResourceKind};
use tenancy::{Permit, Record, Tx};

use super::check::{entity_name, length, name_hash, quoted};
use super::filter::{self, Attribute, Clause, Entity, Grammar, ID_LIST, NUMBER, Order, TEXT, TEXT_NULL};
use super::hits::Hits;
use super::item::Balance;
use super::lifecycle::{Deleted, Lifecycle, RETENTION_DAYS_DEFAULT, RETENTION_DAYS_MAX, Retention, Trash, ViewType};
use super::token::PageToken;
use crate::error::{Error, Result};
use crate::page::Timestamp;
use crate::platform::Platform;

/// Where runs go for which nobody named an experiment.
pub(crate) const DEFAULT_ID: &str = "0";
const DEFAULT_NAME: &str = "Default";
/// Most experiments in one answer.
pub const EXPERIMENTS_PAGE_MAX: u32 = 50_000;
/// Experiments in one answer when nothing is asked for.
pub const EXPERIMENTS_PAGE_DEFAULT: u32 = 1000;
const NAME_CHARS_MAX: usize = 500;
const LOCATION_CHARS_MAX: usize = 2048;
const TAG_VALUE_CHARS_MAX: usize = 20_000;
/// All tags of an experiment together, keys and values, in bytes.
const TAGS_BYTES_MAX: u64 = 512 * 1024;
/// What an experiment counts of the tenant's stored bytes beside its tags.
const EXPERIMENT_BYTES: u64 = 1024;
/// Records that one search looks at, at most.
const SEARCHED_MAX: usize = 200_000;
/// Records read at once.
const READ_ITEMS: u32 = 1000;

/// A group of runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experiment {
    /// A decimal number.
    pub id: String,
    /// Unique among the tenant's, the deleted ones included.
    pub name: String,
    /// Where its runs keep their artifacts.
    pub artifact_location: String,
    /// Whether it is deleted.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it last changed, in milliseconds since 1970.
    pub updated_ms: i64,
    /// Key and value texts.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// The id behind a name.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ExperimentName {
    name: String,
    id: String,
}

/// What makes an experiment.
#[derive(Debug, Clone, Default)]
pub struct ExperimentRequest {
    /// Its name.
    pub name: String,
    /// Where its runs keep their artifacts; the service's own place when absent.
    pub artifact_location: Option<String>,
    /// Key and value texts.
    pub tags: Vec<(String, String)>,
}

/// Which experiments are asked for.
#[derive(Debug, Clone, Default)]
pub struct ExperimentSearch {
    /// In MLflow's language.
    pub filter: String,
    /// In MLflow's language.
    pub order_by: Vec<String>,
    /// Deleted ones or not.
    pub view: ViewType,
    /// Most in one answer.
    pub limit: Option<u32>,
    /// Where the answer before ended.
    pub page_token: Option<String>,
}

impl Record for Experiment {
    const KIND: &'static str = "experiment";
    fn key(&self) -> String {
        self.id.clone()
    }
}

impl Record for ExperimentName {
    const KIND: &'static str = "experiment_name";
    fn key(&self) -> String {
        name_hash(&self.name)
    }
}

const GRAMMAR: Grammar = Grammar {
    prefixes: &[("attribute", Entity::Attribute), ("attributes", Entity::Attribute), ("tag", Entity::Tag), ("tags", Entity::Tag)],
    attributes: &[
        Attribute { names: &["name"], rule: &TEXT },
        Attribute { names: &["experiment_id"], rule: &ID_LIST },
        Attribute { names: &["creation_time"], rule: &NUMBER },
        Attribute { names: &["last_update_time"], rule: &NUMBER },
    ],
    entities: &[(Entity::Tag, &TEXT_NULL, &[])],
    order_attributes: &["name", "experiment_id", "creation_time", "last_update_time"],
    order_entities: &[],
};

impl Experiment {
    fn new(id: String, request: ExperimentRequest) -> Self {
        let now = Timestamp::now();
        Self {
            artifact_location: request.artifact_location.unwrap_or_else(|| format!("mlflow-artifacts:/{id}")),
            id,
            name: request.name,
            lifecycle: Lifecycle::now(false, &[]),
            created_ms: now.millis(),
            updated_ms: now.millis(),
            tags: request.tags.into_iter().collect(),
        }
    }

    fn default_one() -> Self {
        Self {
            id: DEFAULT_ID.to_owned(),
            name: DEFAULT_NAME.to_owned(),
            artifact_location: format!("mlflow-artifacts:/{DEFAULT_ID}"),
            lifecycle: Lifecycle::default(),
            created_ms: 0,
            updated_ms: 0,
            tags: BTreeMap::new(),
        }
    }

    /// # Errors
    /// MLflow's words for what takes no more writes.
    pub(crate) fn active(&self) -> Result<()> {
        if self.lifecycle.deleted {
            return Err(Error::invalid(format!("The experiment {} must be in the 'active' state. Current state is deleted.", self.id)));
        }
        Ok(())
    }

    fn passes(&self, clause: &Clause) -> bool {
        let test = &clause.test;
        match (clause.entity, clause.key.as_str()) {
            (Entity::Tag, key) => test.text(self.tags.get(key).map(String::as_str)),
            (_, "name") => test.text(Some(&self.name)),
            (_, "experiment_id") => test.text(Some(&self.id)),
            (_, "creation_time") => test.integer(Some(self.created_ms)),
            (_, "last_update_time") => test.integer(Some(self.updated_ms)),
            _ => false,
        }
    }

    fn tag_bytes(&self) -> u64 {
        self.tags.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}

/// What experiments are ordered by.
struct Brief {
    id: String,
    name: String,
    created_ms: i64,
    updated_ms: i64,
}

impl Brief {
    fn of(experiment: &Experiment) -> Self {
        let Experiment { id, name, created_ms, updated_ms, .. } = experiment;
        Self { id: id.clone(), name: name.clone(), created_ms: *created_ms, updated_ms: *updated_ms }
    }

    fn compared(&self, other: &Self, order: &Order) -> Ordering {
        let ordering = match order.key.as_str() {
            "name" => self.name.cmp(&other.name),
            "experiment_id" => number(&self.id).cmp(&number(&other.id)),
            "creation_time" => self.created_ms.cmp(&other.created_ms),
            _ => self.updated_ms.cmp(&other.updated_ms),
        };
        if order.ascending { ordering } else { ordering.reverse() }
    }
}

fn number(id: &str) -> u64 {
    id.parse().unwrap_or_default()
}

impl Platform {
    /// Makes an experiment. Its id.
    ///
    /// # Errors
    /// A conflict when the name is taken, also by a deleted one; names, tags or the location over their bounds.
    pub async fn experiment_create(&self, permit: &Permit<ExperimentWrite>, request: ExperimentRequest) -> Result<String> {
        name_checked(&request.name)?;
        if let Some(location) = &request.artifact_location {
            location_checked(location)?;
        }
        for (key, value) in &request.tags {
            tag_checked(key, value)?;
        }
        let mut tx = permit.tx().await?;
        let experiment = create(&mut tx, request).await?;
        permit.detail("experiment", &experiment.id);
        tx.commit().await?;
        Ok(experiment.id)
    }

    /// The experiment that the permit is about.
    ///
    /// # Errors
    /// Not found.
    pub async fn experiment_get(&self, permit: &Permit<ExperimentRead>) -> Result<Experiment> {
        id_checked(permit.resource())?;
        one(permit.rows().get(permit.resource()).await?, permit.resource())
    }

    /// The experiment of this name.
    ///
    /// # Errors
    /// Not found.
    pub async fn experiment_by_name(&self, permit: &Permit<ExperimentRead>, name: &str) -> Result<Experiment> {
        let rows = permit.rows();
        let experiment = match rows.get::<ExperimentName>(&name_hash(name)).await? {
            Some(found) => rows.get::<Experiment>(&found.id).await?.ok_or(Error::not_found("experiment"))?,
            None if name == DEFAULT_NAME => one(rows.get(DEFAULT_ID).await?, DEFAULT_ID)?,
            None => return Err(Error::not_found("experiment")),
        };
        if experiment.name != name {
            return Err(Error::not_found("experiment"));
        }
        permit.within(ResourceKind::Experiment, &experiment.id)?;
        Ok(experiment)
    }

    /// Experiments that pass a filter, newest first unless asked otherwise, and the token for more.
    ///
    /// # Errors
    /// A filter, an order or a token that cannot be read.
    pub async fn experiment_search(
        &self,
        permit: &Permit<ExperimentRead>,
        search: &ExperimentSearch,
    ) -> Result<(Vec<Experiment>, Option<String>)> {
        let clauses = filter::parse(&GRAMMAR, &search.filter)?;
        let order = order(&search.order_by)?;
        let limit = page_limit(search.limit, EXPERIMENTS_PAGE_DEFAULT, EXPERIMENTS_PAGE_MAX)?;
        let shape = PageToken::shape(&(&search.filter, &search.order_by, format!("{:?}", search.view)));
        let skip = PageToken::open(permit, search.page_token.as_deref(), "experiments", &shape)?;
        let _turn = self.tracking().search_turn(permit).await?;
        let wanted = |experiment: &Experiment| {
            search.view.shows(experiment.lifecycle)
                && clauses.iter().all(|clause| experiment.passes(clause))
                && permit.may(ResourceKind::Experiment, &experiment.id)
        };
        let mut found = all(permit, wanted).await?;
        found.sort(|a, b| order.iter().map(|order| a.compared(b, order)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal));
        let (page, next) = found.page(&permit.rows(), skip, limit, |brief| brief.id.clone()).await?;
        let next = next.map(|skip| PageToken::seal(permit, "experiments", &shape, skip)).transpose()?;
        Ok((page.into_iter().map(|(_, experiment)| experiment).collect(), next))
    }

    /// Gives an experiment another name.
    ///
    /// # Errors
    /// Not found; a conflict when the name is taken; not one that is deleted.
    pub async fn experiment_rename(&self, permit: &Permit<ExperimentWrite>, name: &str) -> Result<()> {
        name_checked(name)?;
        let mut tx = permit.tx().await?;
        let mut experiment = require(&mut tx, permit.resource()).await?;
        if experiment.lifecycle.deleted {
            return Err(Error::State("Cannot rename a non-active experiment."));
        }
        if experiment.name != name {
            let (old, id) = (std::mem::replace(&mut experiment.name, name.to_owned()), experiment.id.clone());
            name_free(&mut tx, name).await?;
            tx.delete::<ExperimentName>(&name_hash(&old)).await?;
            tx.insert(&ExperimentName { name: name.to_owned(), id }).await?;
        }
        experiment.updated_ms = Timestamp::now().millis();
        tx.put(&experiment).await?;
        Ok(tx.commit().await?)
    }

    /// Deletes an experiment with its runs; it can be restored until the tenant's retention time has passed.
    ///
    /// # Errors
    /// Not found, also when it is deleted already.
    pub async fn experiment_delete(&self, permit: &Permit<ExperimentDelete>) -> Result<()> {
        let mut tx = permit.tx().await?;
        let mut experiment = require(&mut tx, permit.resource()).await?;
        if experiment.lifecycle.deleted {
            return Err(Error::not_found("experiment"));
        }
        experiment.lifecycle = Lifecycle::now(true, &[experiment.lifecycle]);
        experiment.updated_ms = Timestamp::now().millis();
        tx.put(&experiment).await?;
        Trash { at: experiment.lifecycle.at, what: Deleted::Experiment(experiment.id) }.put(permit, &mut tx).await?;
        Ok(tx.commit().await?)
    }

    /// Restores a deleted experiment with all its runs.
    ///
    /// # Errors
    /// Not found, also when it is not deleted.
    pub async fn experiment_restore(&self, permit: &Permit<ExperimentDelete>) -> Result<()> {
        let mut tx = permit.tx().await?;
        let mut experiment = require(&mut tx, permit.resource()).await?;
        if !experiment.lifecycle.deleted {
            return Err(Error::not_found("experiment"));
        }
        experiment.lifecycle = Lifecycle::now(false, &[experiment.lifecycle]);
        experiment.updated_ms = Timestamp::now().millis();
        tx.put(&experiment).await?;
        Ok(tx.commit().await?)
    }

    /// Sets a tag of an experiment.
    ///
    /// # Errors
    /// Not found; deleted; texts over their bounds.
    pub async fn experiment_tag_set(&self, permit: &Permit<ExperimentWrite>, key: String, value: String) -> Result<()> {
        tag_checked(&key, &value)?;
        let mut tx = permit.tx().await?;
        let mut experiment = require(&mut tx, permit.resource()).await?;
        experiment.active()?;
        let removed = experiment.tag_bytes();
        experiment.tags.insert(key, value);
        let added = experiment.tag_bytes();
        if added > TAGS_BYTES_MAX {
            return Err(Error::invalid(format!("the tags of an experiment may have {TAGS_BYTES_MAX} bytes together")));
        }
        tx.put(&experiment).await?;
        Balance { added, removed }.settle(&mut tx).await?;
        Ok(tx.commit().await?)
    }

    /// Removes a tag of an experiment.
    ///
    /// # Errors
    /// Not found, the experiment or the tag; deleted.
    pub async fn experiment_tag_delete(&self, permit: &Permit<ExperimentWrite>, key: &str) -> Result<()> {
        let mut tx = permit.tx().await?;
        let mut experiment = require(&mut tx, permit.resource()).await?;
        experiment.active()?;
        let removed = experiment.tag_bytes();
        experiment.tags.remove(key).ok_or(Error::not_found("tag"))?;
        tx.put(&experiment).await?;
        Balance { added: experiment.tag_bytes(), removed }.settle(&mut tx).await?;
        Ok(tx.commit().await?)
    }

    /// Days for which what was deleted can be restored.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn tracking_retention(&self, permit: &Permit<ExperimentRead>) -> Result<u32> {
        Ok(permit.rows().get::<Retention>(Retention::KEY).await?.map_or(RETENTION_DAYS_DEFAULT, |set| set.days))
    }

    /// Sets for how many days what is deleted can be restored; 0 is not at all.
    ///
    /// # Errors
    /// More than [`RETENTION_DAYS_MAX`].
    pub async fn tracking_retention_set<A: Act<Mode = tenancy::act::Writes>>(&self, permit: &Permit<A>, days: u32) -> Result<()> {
        if days > RETENTION_DAYS_MAX {
            return Err(Error::invalid(format!("`retention_days` is at most {RETENTION_DAYS_MAX}")));
        }
        permit.detail("retention_days", days);
        // What was deleted before may be due now, or only later than before: that is found out when it is looked at.
        permit.sweep_at(Timestamp::now().micros()).await?;
        let mut tx = permit.tx().await?;
        tx.put(&Retention { days }).await?;
        Ok(tx.commit().await?)
    }
}

/// Makes an experiment as part of a transaction.
pub(crate) async fn create(tx: &mut Tx<'_>, request: ExperimentRequest) -> Result<Experiment> {
    name_free(tx, &request.name).await?;
    let id = tx.usage_add("experiment_last", 1).await?.to_string();
    let experiment = Experiment::new(id, request);
    tx.insert(&ExperimentName { name: experiment.name.clone(), id: experiment.id.clone() }).await?;
    tx.insert(&experiment).await?;
    Balance { added: EXPERIMENT_BYTES + experiment.tag_bytes(), removed: 0 }.settle(tx).await?;
    Ok(experiment)
}

/// The experiment of this name, made if there is none. A deleted one is as good as another.
pub(crate) async fn named_or_new(tx: &mut Tx<'_>, name: &str) -> Result<Experiment> {
    if let Some(found) = tx.get::<ExperimentName>(&name_hash(name)).await? {
        return require(tx, &found.id).await;
    }
    create(tx, ExperimentRequest { name: name.to_owned(), ..ExperimentRequest::default() }).await
}

/// One experiment, inside a transaction.
pub(crate) async fn require(tx: &mut Tx<'_>, id: &str) -> Result<Experiment> {
    id_checked(id)?;
    one(tx.get(id).await?, id)
}

/// Removes an experiment's own records.
pub(crate) async fn remove(tx: &mut Tx<'_>, experiment: &Experiment) -> Result<()> {
    tx.delete::<ExperimentName>(&name_hash(&experiment.name)).await?;
    tx.delete::<Experiment>(&experiment.id).await?;
    Balance { added: 0, removed: EXPERIMENT_BYTES + experiment.tag_bytes() }.settle(tx).await
}

/// What is stored, or the one that is there without being stored.
pub(crate) fn one(stored: Option<Experiment>, id: &str) -> Result<Experiment> {
    match stored {
        None if id == DEFAULT_ID => Ok(Experiment::default_one()),
        stored => stored.ok_or(Error::not_found("experiment")),
    }
}

async fn name_free(tx: &mut Tx<'_>, name: &str) -> Result<()> {
    let taken = match name {
        DEFAULT_NAME => tx.get::<Experiment>(DEFAULT_ID).await?.is_none_or(|experiment| experiment.name == DEFAULT_NAME),
        _ => false,
    };
    if taken || tx.get::<ExperimentName>(&name_hash(name)).await?.is_some() {
        return Err(Error::conflict(format!("Experiment(name={}) already exists.", quoted(name))));
    }
    Ok(())
}

/// All experiments that are wanted, the default one included.
async fn all(permit: &Permit<ExperimentRead>, wanted: impl Fn(&Experiment) -> bool) -> Result<Hits<Brief, Experiment>> {
    let brief = |experiment: &Experiment| wanted(experiment).then(|| Brief::of(experiment));
    let (mut found, mut after, mut default_seen) = (Hits::new(), None::<String>, false);
    loop {
        let page = permit.rows().list::<Experiment>(after.as_deref(), READ_ITEMS, None).await?;
        default_seen |= page.records.iter().any(|experiment| experiment.id == DEFAULT_ID);
        after = found.add(page, brief);
        if found.len() > SEARCHED_MAX {
            return Err(Error::invalid(format!("there are more than {SEARCHED_MAX} experiments")));
        }
        if after.is_none() {
            break;
        }
    }
    let default = Experiment::default_one();
    if !default_seen && let Some(brief) = brief(&default) {
        found.push(brief, default);
    }
    Ok(found)
}

fn order(texts: &[String]) -> Result<Vec<Order>> {
    let key = |key: &str, ascending| Order { entity: Entity::Attribute, key: key.to_owned(), ascending };
    let mut order = match texts {
        [] => vec![key("creation_time", false), key("experiment_id", true)],
        texts => filter::order(&GRAMMAR, texts)?,
    };
    if order.iter().all(|order| order.key != "experiment_id") {
        order.push(key("experiment_id", false));
    }
    Ok(order)
}

/// A page's size.
pub(crate) fn page_limit(asked: Option<u32>, default: u32, most: u32) -> Result<usize> {
    match asked {
        None => Ok(default as usize),
        Some(limit) if (1..=most).contains(&limit) => Ok(limit as usize),
        Some(limit) => Err(Error::invalid(format!(
            "Invalid value {limit} for parameter 'max_results' supplied: It must be a positive integer and at most {most}."
        ))),
    }
}

fn id_checked(id: &str) -> Result<()> {
    if id.is_empty() {
        return Err(Error::invalid("Missing value for required parameter 'experiment_id'."));
    }
    if !id.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::invalid(format!("Invalid experiment ID {}. Experiment ID must be a valid integer.", quoted(id))));
    }
    Ok(())
}

fn name_checked(name: &str) -> Result<()> {
    if name.trim().is_empty() || name.chars().any(char::is_control) {
        return Err(Error::invalid(format!("Invalid experiment name: {}", quoted(name))));
    }
    length("name", NAME_CHARS_MAX, name)
}

fn location_checked(location: &str) -> Result<()> {
    length("artifact_location", LOCATION_CHARS_MAX, location)?;
    if location.chars().any(char::is_control) || location.split(['/', '\\']).any(|part| part == "..") || location.contains(['?', '#']) {
        return Err(Error::invalid(format!("Invalid value {} for parameter 'artifact_location' supplied.", quoted(location))));
    }
    Ok(())
}

fn tag_checked(key: &str, value: &str) -> Result<()> {
    entity_name("key", key)?;
    length("key", super::check::KEY_CHARS_MAX, key)?;
    length("value", TAG_VALUE_CHARS_MAX, value)
}
