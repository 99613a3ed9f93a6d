//! Promotion: aliases and stages, who moved them when, and the gate that a version may have to pass before.
//!
//! ```text
//! gate of `fraud`: alias `champion` or stage `Production` takes metric `auc` ≥ 0.9, and an approval by somebody else than the author
//! ada registers version 3 · ada sets `champion` → refused: metric `auc` is 0.87, below 0.9; nobody but its author approved it
//! ```
//! An alias or a stage that the gate names moves through here alone, whichever protocol asks, so there is no way around. Whoever moves one
//! and is not the version's author approves it by doing so. Taking an alias away needs no gate: that is how one steps back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tenancy::act::{ModelGate, ModelRead, ModelWrite};
use tenancy::{Permit, Record, Tx};
use utoipa::ToSchema;

use super::{Model, ModelName, ModelVersion, StoredModelVersion, model_version, with_aliases};
use crate::dataset::{version_after, version_key};
use crate::error::{Error, Result};
use crate::page::{Page, PageRequest, Timestamp};
use crate::platform::Platform;
use crate::tracking;
use crate::tracking::check::KEY_CHARS_MAX;

/// Most aliases of a model.
pub const ALIASES_MAX: usize = 64;
/// Longest alias in bytes.
const ALIAS_BYTES_MAX: usize = 255;
/// Most thresholds of a gate, and most aliases it names.
const GATE_ITEMS_MAX: usize = 32;
/// Most approvals of one version.
const APPROVALS_MAX: u32 = 100;
/// Records looked up or deleted in one step.
const BATCH: u32 = 200;

/// MLflow's stages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Stage {
    /// Where every version begins.
    #[default]
    None,
    /// Being tried.
    Staging,
    /// In use.
    Production,
    /// Done with.
    Archived,
}

impl Stage {
    /// All stages.
    pub const ALL: [Self; 4] = [Self::None, Self::Staging, Self::Production, Self::Archived];

    /// As MLflow writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Staging => "Staging",
            Self::Production => "Production",
            Self::Archived => "Archived",
        }
    }

    /// From its name, upper and lower case alike.
    ///
    /// # Errors
    /// Any other text.
    pub fn parse(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|stage| stage.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(32).collect();
            Error::invalid(format!("Invalid Model Version stage: {shown}. Value must be one of None, Staging, Production, Archived."))
        })
    }

    fn active(self) -> bool {
        matches!(self, Self::Staging | Self::Production)
    }
}

/// One move of an alias.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AliasChange {
    /// Name of the registered model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// Counts the changes of the model's aliases and stages: 1, 2, 3, …
    pub sequence: u64,
    /// The alias.
    pub alias: String,
    /// Version before; absent when it was new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// Version after; absent when it was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: String,
}

/// One move of a version from stage to stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageChange {
    /// Name of the registered model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// Counts the changes of the model's aliases and stages: 1, 2, 3, …
    pub sequence: u64,
    /// The version.
    pub version: u64,
    /// Stage before.
    #[schema(value_type = String)]
    pub from: Stage,
    /// Stage after.
    #[schema(value_type = String)]
    pub to: Stage,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: String,
}

/// One line of a model's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum HistoryEntry {
    /// An alias moved.
    Alias(AliasChange),
    /// A version changed its stage.
    Stage(StageChange),
}

impl HistoryEntry {
    fn sequence(&self) -> u64 {
        match self {
            Self::Alias(change) => change.sequence,
            Self::Stage(change) => change.sequence,
        }
    }
}

/// Where an alias shall point.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AliasRequest {
    /// Version number.
    pub version: u64,
}

/// Where a version shall go.
#[derive(Debug, Clone, Copy)]
pub struct StageRequest {
    /// The version.
    pub version: u64,
    /// The stage.
    pub stage: Stage,
    /// Those that are in that stage now are archived.
    pub archive_others: bool,
}

/// What a version must pass before an alias or a stage is its.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Gate {
    /// Name of the registered model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// Aliases behind the gate.
    pub aliases: Vec<String>,
    /// Stages behind the gate.
    #[schema(value_type = Vec<String>)]
    pub stages: Vec<Stage>,
    /// What the version's run must have measured.
    pub thresholds: Vec<Threshold>,
    /// Whether somebody else than the version's author must have approved it.
    pub approval: bool,
    /// When it was set.
    pub set_at: Timestamp,
    /// Who set it.
    pub set_by: String,
}

/// What the gate of a model shall be. Without aliases and stages there is none.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GateRequest {
    /// Aliases behind the gate.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Stages behind the gate, in MLflow's words.
    #[serde(default)]
    pub stages: Vec<String>,
    /// What the version's run must have measured.
    #[serde(default)]
    pub thresholds: Vec<Threshold>,
    /// Whether somebody else than the version's author must approve.
    #[serde(default)]
    pub approval: bool,
}

/// A bound on a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// Name of the metric.
    pub metric: String,
    /// Smallest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// Largest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
}

/// Somebody stands for a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Approval {
    /// Name of the registered model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// The version.
    pub version: u64,
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// Number of changes so far.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct AliasSequence {
    model: ModelName,
    last: u64,
}

impl Record for AliasChange {
    const KIND: &'static str = "alias_change";
    fn key(&self) -> String {
        version_key(self.model.as_str(), self.sequence)
    }
}

impl Record for StageChange {
    const KIND: &'static str = "stage_change";
    fn key(&self) -> String {
        version_key(self.model.as_str(), self.sequence)
    }
}

impl Record for AliasSequence {
    const KIND: &'static str = "alias_sequence";
    fn key(&self) -> String {
        self.model.to_string()
    }
}

impl Record for Gate {
    const KIND: &'static str = "model_gate";
    fn key(&self) -> String {
        self.model.to_string()
    }
}

impl Record for Approval {
    const KIND: &'static str = "model_approval";
    fn key(&self) -> String {
        format!("{}/{}", version_key(self.model.as_str(), self.version), self.by)
    }
}

/// What a version is to become.
enum Target<'a> {
    Alias(&'a str),
    Stage(Stage),
}

impl Platform {
    /// Points an alias at a version; the history keeps who, when, from and to.
    ///
    /// # Errors
    /// Not found; an alias that reads like a version; too many aliases; [`Error::GateClosed`].
    pub async fn alias_set(&self, permit: &Permit<ModelWrite>, alias: &str, request: &AliasRequest) -> Result<Model> {
        alias_checked(alias)?;
        let mut tx = permit.tx().await?;
        let mut model = stored_model(&mut tx, permit.resource()).await?;
        let stored = stored_version(&mut tx, &model.name, request.version).await?;
        gate_check(&mut tx, &stored.version, &Target::Alias(alias), permit.principal()).await?;
        let from = model.aliases.insert(alias.to_owned(), request.version);
        if model.aliases.len() > ALIASES_MAX {
            return Err(Error::invalid(format!("a model has at most {ALIASES_MAX} aliases")));
        }
        alias_record(&mut tx, &mut model, alias, from, Some(request.version), permit.principal()).await?;
        permit.detail("alias", alias);
        permit.detail("model_version", request.version);
        tx.commit().await?;
        Ok(model)
    }

    /// Removes an alias; its history stays.
    ///
    /// # Errors
    /// Not found.
    pub async fn alias_delete(&self, permit: &Permit<ModelWrite>, alias: &str) -> Result<Model> {
        let mut tx = permit.tx().await?;
        let mut model = stored_model(&mut tx, permit.resource()).await?;
        let from = model.aliases.remove(alias).ok_or(Error::not_found("alias"))?;
        alias_record(&mut tx, &mut model, alias, Some(from), None, permit.principal()).await?;
        permit.detail("alias", alias);
        tx.commit().await?;
        Ok(model)
    }

    /// Moves of the model's aliases, oldest first; `page.after` is a sequence number.
    ///
    /// # Errors
    /// Not found.
    pub async fn alias_history(&self, permit: &Permit<ModelRead>, page: &PageRequest) -> Result<Page<AliasChange>> {
        self.model_get(permit).await?;
        let (after, prefix) = history_range(permit, page)?;
        let items = permit.rows().list::<AliasChange>(after.as_deref(), page.limit(), Some(&prefix)).await?;
        Ok(Page::of(items, |change| change.sequence.to_string()))
    }

    /// Moves of the model's aliases and of its versions' stages, oldest first; `page.after` is a sequence number.
    ///
    /// # Errors
    /// Not found.
    pub async fn model_history(&self, permit: &Permit<ModelRead>, page: &PageRequest) -> Result<Page<HistoryEntry>> {
        self.model_get(permit).await?;
        let (after, prefix) = history_range(permit, page)?;
        let rows = permit.rows();
        let aliases = rows.list::<AliasChange>(after.as_deref(), page.limit(), Some(&prefix)).await?;
        let stages = rows.list::<StageChange>(after.as_deref(), page.limit(), Some(&prefix)).await?;
        // Of one kind only up to where the page of the other one ends: what follows there may come first.
        let end = |next: Option<&str>, last: Option<u64>| next.and(last).unwrap_or(u64::MAX);
        let end = end(aliases.next.as_deref(), aliases.records.last().map(|change| change.sequence))
            .min(end(stages.next.as_deref(), stages.records.last().map(|change| change.sequence)));
        let aliases = aliases.records.into_iter().map(HistoryEntry::Alias);
        let mut items: Vec<_> = aliases.chain(stages.records.into_iter().map(HistoryEntry::Stage)).collect();
        items.retain(|entry| entry.sequence() <= end);
        items.sort_by_key(HistoryEntry::sequence);
        let more = end < u64::MAX || items.len() > page.limit() as usize;
        items.truncate(page.limit() as usize);
        let next = items.last().filter(|_| more).map(|entry| entry.sequence().to_string());
        Ok(Page { items, next })
    }

    /// Moves a version to another stage.
    ///
    /// # Errors
    /// Not found; others archived for a stage that is not an active one; [`Error::GateClosed`].
    pub async fn stage_set(&self, permit: &Permit<ModelWrite>, request: StageRequest) -> Result<ModelVersion> {
        if request.archive_others && !request.stage.active() {
            return Err(Error::invalid(format!(
                "Model version transition cannot archive existing model versions because '{}' is not an Active stage. Valid stages are Staging, Production",
                request.stage.name()
            )));
        }
        let mut tx = permit.tx().await?;
        let mut model = stored_model(&mut tx, permit.resource()).await?;
        let mut stored = stored_version(&mut tx, &model.name, request.version).await?;
        gate_check(&mut tx, &stored.version, &Target::Stage(request.stage), permit.principal()).await?;
        if request.archive_others {
            let wanted = |version: &ModelVersion| version.stage == request.stage && version.version != request.version;
            for other in versions_where(&mut tx, &model.name, wanted).await? {
                let mut other = stored_version(&mut tx, &model.name, other).await?;
                stage_move(&mut tx, &mut other, Stage::Archived, permit.principal()).await?;
            }
        }
        stage_move(&mut tx, &mut stored, request.stage, permit.principal()).await?;
        stages_count(&mut tx, &mut model).await?;
        model.updated_at = Timestamp::now();
        tx.put(&model).await?;
        permit.detail("stage", request.stage.name());
        permit.detail("model_version", request.version);
        tx.commit().await?;
        Ok(with_aliases(stored.version, &model))
    }

    /// The gate of a model.
    ///
    /// # Errors
    /// Not found, also when it has none.
    pub async fn gate_get(&self, permit: &Permit<ModelRead>) -> Result<Gate> {
        self.model_get(permit).await?;
        permit.rows().get::<Gate>(permit.resource()).await?.ok_or(Error::not_found("gate"))
    }

    /// Sets the gate of a model. What is behind it already stays.
    ///
    /// # Errors
    /// Not found; a gate that names nothing or asks for nothing.
    pub async fn gate_set(&self, permit: &Permit<ModelGate>, request: GateRequest) -> Result<Gate> {
        let mut tx = permit.tx().await?;
        let model = stored_model(&mut tx, permit.resource()).await?;
        let gate = gate_checked(model.name, request, permit.principal())?;
        tx.put(&gate).await?;
        tx.commit().await?;
        Ok(gate)
    }

    /// Removes the gate of a model.
    ///
    /// # Errors
    /// Not found.
    pub async fn gate_delete(&self, permit: &Permit<ModelGate>) -> Result<()> {
        let mut tx = permit.tx().await?;
        if !tx.delete::<Gate>(permit.resource()).await? {
            return Err(Error::not_found("gate"));
        }
        tx.commit().await?;
        Ok(())
    }

    /// The caller stands for a version. Its author cannot.
    ///
    /// # Errors
    /// Not found; the author's own version.
    pub async fn approve(&self, permit: &Permit<ModelWrite>, version: u64) -> Result<Approval> {
        let mut tx = permit.tx().await?;
        let model = stored_model(&mut tx, permit.resource()).await?;
        let stored = stored_version(&mut tx, &model.name, version).await?;
        if stored.version.created_by == permit.principal() {
            return Err(Error::invalid("a version is approved by somebody else than its author"));
        }
        let approval = Approval { model: model.name, version, by: permit.principal().to_owned(), at: Timestamp::now() };
        let prefix = format!("{}/", stored.key());
        if tx.count_under::<Approval>(&prefix).await? >= APPROVALS_MAX.into() {
            return Err(Error::invalid(format!("a version has at most {APPROVALS_MAX} approvals")));
        }
        tx.put(&approval).await?;
        permit.detail("model_version", version);
        tx.commit().await?;
        Ok(approval)
    }

    /// The caller stands for a version no longer.
    ///
    /// # Errors
    /// Not found.
    pub async fn approval_withdraw(&self, permit: &Permit<ModelWrite>, version: u64) -> Result<()> {
        let mut tx = permit.tx().await?;
        let key = format!("{}/{}", version_key(permit.resource(), version), permit.principal());
        if !tx.delete::<Approval>(&key).await? {
            return Err(Error::not_found("approval"));
        }
        tx.commit().await?;
        Ok(())
    }

    /// Who stands for a version.
    ///
    /// # Errors
    /// Not found.
    pub async fn approvals(&self, permit: &Permit<ModelRead>, version: u64) -> Result<Vec<Approval>> {
        let stored = model_version(permit, version).await?;
        Ok(permit.rows().list::<Approval>(None, APPROVALS_MAX, Some(&format!("{}/", stored.key()))).await?.whole()?)
    }
}

/// Where a page of the history begins, and what its keys begin with.
fn history_range(permit: &Permit<ModelRead>, page: &PageRequest) -> Result<(Option<String>, String)> {
    let after = page.after.as_deref().map(|after| version_after(permit.resource(), after)).transpose()?;
    Ok((after, format!("{}/", permit.resource())))
}

pub(super) async fn stored_model(tx: &mut Tx<'_>, name: &str) -> Result<Model> {
    tx.get::<Model>(name).await?.ok_or(Error::not_found("model"))
}

pub(super) async fn stored_version(tx: &mut Tx<'_>, model: &ModelName, version: u64) -> Result<StoredModelVersion> {
    tx.get::<StoredModelVersion>(&version_key(model.as_str(), version)).await?.ok_or(Error::not_found("model version"))
}

/// Numbers of the versions of a model that are wanted, oldest first.
pub(super) async fn versions_where(tx: &mut Tx<'_>, model: &ModelName, mut wanted: impl FnMut(&ModelVersion) -> bool) -> Result<Vec<u64>> {
    let (prefix, mut after, mut found) = (format!("{model}/"), None::<String>, Vec::new());
    loop {
        let page = tx.list::<StoredModelVersion>(after.as_deref(), BATCH, Some(&prefix)).await?;
        found.extend(page.records.iter().filter(|stored| wanted(&stored.version)).map(|stored| stored.version.version));
        after = page.next;
        if after.is_none() {
            return Ok(found);
        }
    }
}

/// Finds the newest version in each stage anew.
pub(super) async fn stages_count(tx: &mut Tx<'_>, model: &mut Model) -> Result<()> {
    let mut stages = BTreeMap::new();
    let noted = |version: &ModelVersion| stages.insert(version.stage, version.version).is_none();
    versions_where(tx, &model.name, noted).await?;
    model.stages = stages;
    Ok(())
}

async fn stage_move(tx: &mut Tx<'_>, stored: &mut StoredModelVersion, to: Stage, by: &str) -> Result<()> {
    let (version, at) = (&mut stored.version, Timestamp::now());
    let sequence = sequence_next(tx, &version.model).await?;
    let from = std::mem::replace(&mut version.stage, to);
    version.updated_at = Some(at);
    tx.insert(&StageChange { model: version.model.clone(), sequence, version: version.version, from, to, at, by: by.to_owned() }).await?;
    Ok(tx.put(stored).await?)
}

pub(super) async fn alias_record(
    tx: &mut Tx<'_>,
    model: &mut Model,
    alias: &str,
    from: Option<u64>,
    to: Option<u64>,
    by: &str,
) -> Result<()> {
    let (at, sequence) = (Timestamp::now(), sequence_next(tx, &model.name).await?);
    model.updated_at = at;
    tx.insert(&AliasChange { model: model.name.clone(), sequence, alias: alias.to_owned(), from, to, at, by: by.to_owned() }).await?;
    Ok(tx.put(model).await?)
}

async fn sequence_next(tx: &mut Tx<'_>, model: &ModelName) -> Result<u64> {
    let last = tx.get::<AliasSequence>(model.as_str()).await?.map_or(0, |sequence| sequence.last) + 1;
    tx.put(&AliasSequence { model: model.clone(), last }).await?;
    Ok(last)
}

/// Forgets history, gate and approvals of a model that is deleted.
pub(super) async fn forget(tx: &mut Tx<'_>, model: &str) -> Result<()> {
    drain(tx, model, |_: AliasChange| None).await?;
    drain(tx, model, |_: StageChange| None).await?;
    drain(tx, model, |_: Approval| None).await?;
    tx.delete::<AliasSequence>(model).await?;
    tx.delete::<Gate>(model).await?;
    Ok(())
}

/// History, gate and approvals follow a model to its new name.
pub(super) async fn renamed(tx: &mut Tx<'_>, old: &str, new: &ModelName) -> Result<()> {
    drain(tx, old, |change| Some(AliasChange { model: new.clone(), ..change })).await?;
    drain(tx, old, |change| Some(StageChange { model: new.clone(), ..change })).await?;
    drain(tx, old, |approval| Some(Approval { model: new.clone(), ..approval })).await?;
    if let Some(sequence) = tx.get::<AliasSequence>(old).await? {
        tx.delete::<AliasSequence>(old).await?;
        tx.put(&AliasSequence { model: new.clone(), ..sequence }).await?;
    }
    if let Some(gate) = tx.get::<Gate>(old).await? {
        tx.delete::<Gate>(old).await?;
        tx.put(&Gate { model: new.clone(), ..gate }).await?;
    }
    Ok(())
}

/// Takes all records of a kind that belong to a model out, and puts what becomes of each in another place.
async fn drain<R: Record>(tx: &mut Tx<'_>, model: &str, becomes: impl Fn(R) -> Option<R>) -> Result<()> {
    let prefix = format!("{model}/");
    loop {
        let page = tx.list::<R>(None, BATCH, Some(&prefix)).await?;
        for record in page.records {
            tx.delete::<R>(&record.key()).await?;
            if let Some(moved) = becomes(record) {
                tx.insert(&moved).await?;
            }
        }
        if page.next.is_none() {
            return Ok(());
        }
    }
}

/// Whether a version may become what it shall.
async fn gate_check(tx: &mut Tx<'_>, version: &ModelVersion, target: &Target<'_>, principal: &str) -> Result<()> {
    let Some(gate) = tx.get::<Gate>(version.model.as_str()).await? else { return Ok(()) };
    let (behind, named) = match target {
        Target::Alias(alias) => (gate.aliases.iter().any(|name| name == alias), format!("the alias `{alias}`")),
        Target::Stage(stage) => (gate.stages.contains(stage), format!("the stage `{}`", stage.name())),
    };
    if !behind {
        return Ok(());
    }
    let mut missing = Vec::new();
    for threshold in &gate.thresholds {
        let value = measured(tx, version, &threshold.metric).await?;
        missing.extend(threshold.missing(value));
    }
    if gate.approval && principal == version.created_by {
        let prefix = format!("{}/", version_key(version.model.as_str(), version.version));
        let approvals = tx.list::<Approval>(None, APPROVALS_MAX, Some(&prefix)).await?.whole()?;
        if !approvals.iter().any(|approval| approval.by != version.created_by) {
            missing.push("nobody but its author approved it".to_owned());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::GateClosed { model: version.model.to_string(), version: version.version, target: named, missing: missing.join("; ") })
}

impl Threshold {
    /// What is missing, in words.
    fn missing(&self, value: Option<f64>) -> Option<String> {
        let Some(value) = value else { return Some(format!("its run has no metric `{}`", self.metric)) };
        let is = format!("metric `{}` is {value}", self.metric);
        // Not-a-number is neither at least nor at most anything: it passes nothing.
        match (self.at_least, self.at_most) {
            (Some(least), _) if value.is_nan() || value < least => Some(format!("{is}, below {least}")),
            (_, Some(most)) if value.is_nan() || value > most => Some(format!("{is}, above {most}")),
            _ => None,
        }
    }
}

/// The newest value of a metric: of the version's logged model, else of its run.
async fn measured(tx: &mut Tx<'_>, version: &ModelVersion, metric: &str) -> Result<Option<f64>> {
    if let Some(id) = version.logged.as_ref().and_then(|logged| logged.model_id.as_deref())
        && let Some(value) = tracking::logged_model::measured(tx, id, metric).await?
    {
        return Ok(Some(value));
    }
    match &version.run_id {
        Some(run) => tracking::run_metric(tx, run, metric).await,
        None => Ok(None),
    }
}

fn gate_checked(model: ModelName, request: GateRequest, by: &str) -> Result<Gate> {
    let stages = request.stages.iter().map(|stage| Stage::parse(stage)).collect::<Result<Vec<_>>>()?;
    for alias in &request.aliases {
        alias_checked(alias)?;
    }
    if request.aliases.is_empty() && stages.is_empty() {
        return Err(Error::invalid("a gate names the aliases or stages behind it"));
    }
    if request.thresholds.is_empty() && !request.approval {
        return Err(Error::invalid("a gate asks for something: give `thresholds`, or `approval`"));
    }
    if request.aliases.len() > GATE_ITEMS_MAX || stages.len() > GATE_ITEMS_MAX || request.thresholds.len() > GATE_ITEMS_MAX {
        return Err(Error::invalid(format!("a gate has at most {GATE_ITEMS_MAX} aliases, stages and thresholds each")));
    }
    for threshold in &request.thresholds {
        if threshold.metric.is_empty() || threshold.metric.chars().count() > KEY_CHARS_MAX {
            return Err(Error::invalid(format!("a threshold names a metric of 1 to {KEY_CHARS_MAX} characters")));
        }
        if threshold.at_least.is_none() && threshold.at_most.is_none() {
            return Err(Error::invalid(format!("the threshold on `{}` has neither `at_least` nor `at_most`", threshold.metric)));
        }
    }
    let (aliases, thresholds, approval) = (request.aliases, request.thresholds, request.approval);
    Ok(Gate { model, aliases, stages, thresholds, approval, set_at: Timestamp::now(), set_by: by.to_owned() })
}

/// An alias is a word that never reads like a version (`7`, `v7`) or MLflow's reserved `latest`.
fn alias_checked(alias: &str) -> Result<()> {
    let refuse = |why: &str| {
        let shown: String = alias.chars().filter(|c| !c.is_control()).take(64).collect();
        Err(Error::invalid(format!("`{shown}` cannot be an alias: {why}")))
    };
    let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    if alias.is_empty() || alias.len() > ALIAS_BYTES_MAX || alias.starts_with('.') || !alias.chars().all(word) {
        return refuse("use 1 to 255 letters, digits, `_`, `-` and `.`, not a `.` first");
    }
    let digits = alias.strip_prefix(['v', 'V']).unwrap_or(alias);
    if alias.eq_ignore_ascii_case("latest") || (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())) {
        return refuse("it would be mistaken for a version");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_do_not_read_like_versions() {
        for (alias, good) in [
            ("champion", true),
            ("v7", false),
            ("7", false),
            ("Latest", false),
            ("v7b", true),
            ("v", true),
            ("", false),
            ("_a", true),
            (".a", false),
            ("a/b", false),
        ] {
            assert_eq!(alias_checked(alias).is_ok(), good, "{alias}");
        }
    }

    #[test]
    fn stages_are_mlflows() {
        assert_eq!(Stage::parse("production").unwrap(), Stage::Production);
        assert!(Stage::parse("prod").unwrap_err().to_string().starts_with("Invalid Model Version stage: prod. Value must be one of"));
        let map = BTreeMap::from([(Stage::None, 3u64), (Stage::Staging, 2)]);
        let json = serde_json::to_string(&map).unwrap();
        assert_eq!(serde_json::from_str::<BTreeMap<Stage, u64>>(&json).unwrap(), map, "{json}");
    }

    #[test]
    fn thresholds_say_what_is_missing() {
        let bound = |at_least, at_most| Threshold { metric: "auc".to_owned(), at_least, at_most };
        assert_eq!(bound(Some(0.9), None).missing(Some(0.9)), None);
        assert_eq!(bound(Some(0.9), None).missing(Some(0.87)).unwrap(), "metric `auc` is 0.87, below 0.9");
        assert_eq!(bound(None, Some(0.1)).missing(Some(0.2)).unwrap(), "metric `auc` is 0.2, above 0.1");
        assert_eq!(bound(Some(0.9), None).missing(None).unwrap(), "its run has no metric `auc`");
        assert!(bound(Some(0.9), Some(1.0)).missing(Some(f64::NAN)).is_some(), "not-a-number passes nothing");
    }

    #[test]
    fn a_gate_asks_for_something_of_something() {
        let gate = |json: serde_json::Value| gate_checked("m".parse().unwrap(), serde_json::from_value(json).unwrap(), "ada");
        let threshold = serde_json::json!([{"metric": "auc", "at_least": 0.9}]);
        assert!(gate(serde_json::json!({"stages": ["production"], "thresholds": threshold})).is_ok());
        assert!(gate(serde_json::json!({"aliases": ["champion"], "approval": true})).is_ok());
        for bad in [
            serde_json::json!({"approval": true}),
            serde_json::json!({"aliases": ["champion"]}),
            serde_json::json!({"aliases": ["v7"], "approval": true}),
            serde_json::json!({"stages": ["prod"], "approval": true}),
            serde_json::json!({"aliases": ["champion"], "thresholds": [{"metric": "auc"}]}),
        ] {
            assert!(gate(bad.clone()).is_err(), "{bad}");
        }
    }
}
