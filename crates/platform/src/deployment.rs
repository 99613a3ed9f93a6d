//! Deployments: a name under which a model version answers predictions. A deployment is desired state and nothing else: it names a model and a
//! version, or an alias that is looked up anew after each change. Cells follow when a prediction asks for them.
//!
//! ```text
//!            put with a canary            promote
//! stable ───────────────────► canary ───────────────► stable (the canary's version)
//!    ▲                          │ │                         │
//!    └──── taken out by rule ───┘ └──── rollback ◄──────────┘   back to the desired state before, once
//! ```
//! Nobody drains anything by hand: a prediction decides where it goes when it begins, and a cell works in order, so that what was sent to a
//! version is answered by it before the version is put out.

use serde::{Deserialize, Serialize};
use tenancy::act::{DeploymentRead, DeploymentRollback, DeploymentWrite, Predict};
use tenancy::{Name, Permit, Record, Resource, Rows, Tx};
use utoipa::ToSchema;

use crate::dataset::version_key;
use crate::error::{Error, Result};
use crate::model::{Loadable, Model, ModelName, Onnx, StoredModelVersion, Tensor};
use crate::page::{Page, PageRequest, Timestamp};
use crate::platform::Platform;
use crate::rollout::{Broken, RollbackRules};

/// Most rows that requests are joined to.
pub(crate) const BATCH_ROWS_MAX: u32 = 128;
/// Longest wait for requests to join, in microseconds.
pub(crate) const BATCH_WINDOW_MICROS_MAX: u32 = 100_000;

/// What an Open Inference Protocol client is told the model runs on.
pub const OIP_PLATFORM: &str = "onnxruntime_onnx";

/// A deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Deployment {
    /// Its name: `model_name` of the Open Inference Protocol.
    #[schema(value_type = String)]
    pub name: Name,
    /// The registered model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// The fixed version; absent when an alias decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The alias that decides; absent when a version is fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Another version that gets a share of the requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// A version that gets a copy of the requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// When the canary is taken out without anybody's doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_on: Option<RollbackRules>,
    /// How requests that wait together are answered together; absent when each is answered for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<Batching>,
    /// The version that answers now; absent when the alias points nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving_version: Option<u64>,
    /// The canary's version now; absent without a canary, and when its alias points nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_version: Option<u64>,
    /// What became of the last canary or change; absent when nothing special did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// What a rollback returns to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<DeploymentRequest>,
    /// What versions of it did, as far as the home node of the tenant remembers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<VersionAnswers>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Who changed it last; for a canary that broke its rules, who gave it the rules.
    pub updated_by: String,
}

/// Desired state: a model, and a version or an alias.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeploymentRequest {
    /// The registered model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// A fixed version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Or an alias of the model, followed when it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Another version of the model that gets a share of the requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// A version of the model that gets a copy of the requests; what it answers is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// When the canary is taken out without anybody's doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_on: Option<RollbackRules>,
    /// Answer requests that wait together by one run of the model; each for itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<Batching>,
}

/// Requests to one version of one deployment that wait together are answered by one run of the model. Never across deployments or tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// Most rows of one run, 2 to 128.
    pub max_size: u32,
    /// Longest wait for others, in microseconds up to 100000, while others are likely to come. 0: what waits already is taken together.
    #[serde(default)]
    pub window_us: u32,
}

impl From<Batching> for wire::Batching {
    fn from(Batching { max_size, window_us }: Batching) -> Self {
        Self { max_size, window_us }
    }
}

/// A version that gets a share of the requests: by request id, so that the same one goes the same way again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// A fixed version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Or an alias of the model, followed when it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Its share of the requests, 0 to 100.
    pub weight_percent: u32,
}

/// A version that gets a copy of the requests while there is room for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Shadow {
    /// The version.
    pub version: u64,
}

/// Where a rollout stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rollout {
    /// How it went.
    pub state: RolloutState,
    /// The version that it is about, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when.
    pub at: Timestamp,
}

/// How a rollout went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// A canary gets its share.
    Canary,
    /// The canary became what answers.
    Promoted,
    /// Somebody returned to the state before.
    RolledBack,
    /// The canary broke its rules and was taken out.
    TakenOut,
}

/// What one version of a deployment did since the tenant's home node last began to count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionAnswers {
    /// The deployment.
    pub deployment: String,
    /// The version.
    pub version: u64,
    /// Answers given.
    pub answered: u64,
    /// Requests that the model failed.
    pub failed: u64,
    /// Copies that it answered as a shadow.
    pub shadow_answered: u64,
    /// Copies that it failed as a shadow.
    pub shadow_failed: u64,
    /// Copies that it did not get, because there was no room.
    pub shadow_dropped: u64,
    /// Runs of the model behind the answers, counted where requests may be answered together.
    pub runs: u64,
    /// Rows of these runs.
    pub rows: u64,
}

/// Model metadata of the Open Inference Protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OipMetadata {
    /// The deployment's name.
    pub name: String,
    /// Versions that answer.
    pub versions: Vec<String>,
    /// Always [`OIP_PLATFORM`].
    pub platform: String,
    /// Inputs.
    pub inputs: Vec<Tensor>,
    /// Outputs.
    pub outputs: Vec<Tensor>,
    /// How requests are joined: told by the configuration, of which the metadata knows nothing.
    #[serde(skip)]
    pub batching: Option<Batching>,
}

impl Record for Deployment {
    const KIND: &'static str = "deployment";
    fn key(&self) -> String {
        self.name.to_string()
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("model", self.model.to_string())]
    }
}

impl DeploymentRequest {
    fn check(&self) -> Result<()> {
        if self.version.is_some() == self.alias.is_some() {
            return Err(Error::invalid("give either `version` or `alias`"));
        }
        if let Some(canary) = &self.canary {
            if canary.version.is_some() == canary.alias.is_some() {
                return Err(Error::invalid("give either `canary.version` or `canary.alias`"));
            }
            if canary.weight_percent > 100 {
                return Err(Error::invalid("`canary.weight_percent` is 0 to 100"));
            }
        }
        if let Some(Batching { max_size, window_us }) = self.batching {
            if !(2..=BATCH_ROWS_MAX).contains(&max_size) {
                return Err(Error::invalid(format!("`batching.max_size` is 2 to {BATCH_ROWS_MAX}")));
            }
            if window_us > BATCH_WINDOW_MICROS_MAX {
                return Err(Error::invalid(format!("`batching.window_us` is 0 to {BATCH_WINDOW_MICROS_MAX}")));
            }
        }
        match &self.rollback_on {
            Some(_) if self.canary.is_none() => Err(Error::invalid("`rollback_on` is about a canary, and there is none")),
            Some(rules) => rules.check(),
            None => Ok(()),
        }
    }

    /// The same without a canary.
    fn stable(&self) -> Self {
        Self { canary: None, rollback_on: None, ..self.clone() }
    }
}

/// The states of a rollout: what each change makes of a deployment.
impl Deployment {
    fn new(name: Name, desired: DeploymentRequest, by: &str, now: Timestamp) -> Self {
        let DeploymentRequest { model, version, alias, canary, shadow, rollback_on, batching } = desired;
        let canary_state = Rollout { state: RolloutState::Canary, version: None, reason: None, at: now };
        Self {
            name,
            model,
            version,
            alias,
            rollout: canary.is_some().then_some(canary_state),
            canary,
            shadow,
            rollback_on,
            batching,
            serving_version: None,
            canary_version: None,
            previous: None,
            answers: Vec::new(),
            created_at: now,
            updated_at: now,
            updated_by: by.to_owned(),
        }
    }

    fn desired(&self) -> DeploymentRequest {
        DeploymentRequest {
            model: self.model.clone(),
            version: self.version,
            alias: self.alias.clone(),
            canary: self.canary.clone(),
            shadow: self.shadow,
            rollback_on: self.rollback_on.clone(),
            batching: self.batching,
        }
    }

    /// Becomes what somebody wants, and remembers what it was.
    fn changed(self, desired: DeploymentRequest, by: &str, now: Timestamp) -> Self {
        let before = self.desired();
        // Saying the same again does not lose the way back.
        let previous = if before == desired { self.previous } else { Some(before) };
        Self { created_at: self.created_at, previous, ..Self::new(self.name, desired, by, now) }
    }

    /// The canary becomes what answers. The way back leads to what answered before, without the canary.
    fn promoted(self, version: Option<u64>, by: &str, now: Timestamp) -> Result<Self> {
        let Some(canary) = &self.canary else { return Err(Error::conflict("the deployment has no canary")) };
        let before = self.desired().stable();
        let desired = DeploymentRequest { version: canary.version, alias: canary.alias.clone(), ..before.clone() };
        let rollout = Rollout { state: RolloutState::Promoted, version, reason: None, at: now };
        let (created_at, new) = (self.created_at, Self::new(self.name, desired, by, now));
        Ok(Self { created_at, previous: Some(before), rollout: Some(rollout), ..new })
    }

    /// Becomes again what it was. There is one way back: asked twice, nothing happens the second time.
    fn rolled_back(self, by: &str, now: Timestamp) -> Result<Self> {
        let canary_gone = self.canary.is_some().then(|| self.desired().stable());
        let desired = self.previous.or(canary_gone).ok_or_else(|| Error::conflict("there is no state before this one to return to"))?;
        let rollout = Rollout { state: RolloutState::RolledBack, version: None, reason: None, at: now };
        Ok(Self { created_at: self.created_at, rollout: Some(rollout), ..Self::new(self.name, desired, by, now) })
    }

    /// Loses the canary that broke its rules; `None` when it has become something else in the meantime.
    fn taken_out(self, broken: &Broken, by: &str, now: Timestamp) -> Option<Self> {
        if self.updated_at != broken.since || self.canary.is_none() {
            return None;
        }
        let desired = self.desired().stable();
        let previous = self.previous.filter(|previous| *previous != desired);
        let version = Some(broken.version).filter(|version| *version > 0);
        let rollout = Rollout { state: RolloutState::TakenOut, version, reason: Some(broken.reason.clone()), at: now };
        Some(Self { created_at: self.created_at, previous, rollout: Some(rollout), ..Self::new(self.name, desired, by, now) })
    }

    /// Whether it needs this version of its model.
    pub(crate) fn uses(&self, model: &Model, version: u64) -> bool {
        let points = |alias: &Option<String>| alias.as_ref().and_then(|alias| model.aliases.get(alias)) == Some(&version);
        let canary = self.canary.as_ref().is_some_and(|canary| canary.version == Some(version) || points(&canary.alias));
        self.version == Some(version) || points(&self.alias) || canary || self.shadow.is_some_and(|shadow| shadow.version == version)
    }

    /// Follows its model to another name.
    pub(crate) fn renamed(self, model: &ModelName) -> Self {
        let previous = self.previous.map(|previous| match previous.model == self.model {
            true => DeploymentRequest { model: model.clone(), ..previous },
            false => previous,
        });
        Self { model: model.clone(), previous, ..self }
    }
}

impl Platform {
    /// Makes or changes a deployment. What it names must exist.
    ///
    /// # Errors
    /// Not found; both or neither of version and alias; [`Error::NotDeployable`]; a canary or shadow that takes other inputs.
    pub async fn deployment_put(&self, permit: &Permit<DeploymentWrite>, request: DeploymentRequest) -> Result<Deployment> {
        let name: Name = permit.resource().parse()?;
        request.check()?;
        let (mut tx, now) = (permit.tx().await?, Timestamp::now());
        let deployment = match tx.get::<Deployment>(name.as_str()).await? {
            Some(before) => before.changed(request, permit.principal(), now),
            None => {
                tx.charge(Resource::Deployments, 1).await?;
                Deployment::new(name, request, permit.principal(), now)
            }
        };
        commit(tx, deployment).await
    }

    /// Makes the canary what answers.
    ///
    /// # Errors
    /// Not found; a conflict without a canary.
    pub async fn deployment_promote(&self, permit: &Permit<DeploymentWrite>) -> Result<Deployment> {
        let mut tx = permit.tx().await?;
        let before = tx.get::<Deployment>(permit.resource()).await?.ok_or(Error::not_found("deployment"))?;
        let canary = Meaning::of(&mut tx, &before.desired()).await?.canary;
        let promoted = before.promoted(canary.map(|canary| canary.number), permit.principal(), Timestamp::now())?;
        commit(tx, promoted).await
    }

    /// Returns to the desired state before the present one.
    ///
    /// # Errors
    /// Not found; a conflict when there is none.
    pub async fn deployment_rollback(&self, permit: &Permit<DeploymentRollback>) -> Result<Deployment> {
        let mut tx = permit.tx().await?;
        let before = tx.get::<Deployment>(permit.resource()).await?.ok_or(Error::not_found("deployment"))?;
        let back = before.rolled_back(permit.principal(), Timestamp::now())?;
        commit(tx, back).await
    }

    /// Takes a canary out that broke its rules. The permit is its author's, and is spent here: nobody waits for the outcome.
    pub(crate) async fn canary_take_out(&self, permit: Permit<DeploymentRollback>, broken: Broken) {
        permit.detail("canary_version", broken.version);
        permit.detail("broken_rule", &broken.reason);
        let working = async {
            let mut tx = permit.tx().await?;
            let before = tx.get::<Deployment>(permit.resource()).await?.ok_or(Error::not_found("deployment"))?;
            let changed = || Error::conflict("the deployment has changed since");
            let without = before.taken_out(&broken, permit.principal(), Timestamp::now()).ok_or_else(changed)?;
            tx.put(&without).await?;
            Ok::<_, Error>(tx.commit().await?)
        };
        let done = working.await;
        let closed = match done {
            Ok(()) => permit.finish(),
            Err(error) => {
                tracing::warn!(private = error.private(), code = error.code(), "a canary that broke its rules is held out in memory only");
                permit.failed(error.code())
            }
        };
        if let Err(error) = closed {
            tracing::error!(private = error.private(), "the entry of a canary's end: {error}");
        }
    }

    /// Deployments by name.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn deployment_list(&self, permit: &Permit<DeploymentRead>, page: &PageRequest) -> Result<Page<Deployment>> {
        let rows = permit.rows();
        let mut items = rows.list::<Deployment>(page.after.as_deref(), page.limit(), None).await?;
        for deployment in &mut items.records {
            look_up(&rows, deployment).await?;
        }
        Ok(Page::of(items, Record::key))
    }

    /// One deployment, with what its versions did lately.
    ///
    /// # Errors
    /// Not found.
    pub async fn deployment_get(&self, permit: &Permit<DeploymentRead>) -> Result<Deployment> {
        let rows = permit.rows();
        let mut deployment = rows.get::<Deployment>(permit.resource()).await?.ok_or(Error::not_found("deployment"))?;
        look_up(&rows, &mut deployment).await?;
        deployment.answers = self.version_answers(permit);
        deployment.answers.retain(|of| of.deployment == permit.resource());
        Ok(deployment)
    }

    /// Removes a deployment; the model stays.
    ///
    /// # Errors
    /// Not found.
    pub async fn deployment_delete(&self, permit: &Permit<DeploymentWrite>) -> Result<()> {
        let mut tx = permit.tx().await?;
        if !tx.delete::<Deployment>(permit.resource()).await? {
            return Err(Error::not_found("deployment"));
        }
        tx.refund(Resource::Deployments, 1).await?;
        tx.commit().await?;
        Ok(())
    }

    /// What the Open Inference Protocol says of a model. `version`, when given, must be one that answers.
    ///
    /// # Errors
    /// Not found.
    pub async fn deployment_metadata(&self, permit: &Permit<DeploymentRead>, version: Option<&str>) -> Result<OipMetadata> {
        let Serving { deployment, stable, canary, .. } = serving(&permit.rows(), permit.resource()).await?;
        let answering: Vec<Loadable> = [Some(stable), canary.and_then(Result::ok)].into_iter().flatten().collect();
        let mut versions: Vec<String> = answering.iter().map(|of| of.number.to_string()).collect();
        versions.dedup();
        let meant = answering.into_iter().find(|of| version.is_none_or(|version| version == of.number.to_string()));
        let onnx = meant.ok_or(Error::not_found("deployment version"))?.onnx;
        let (name, platform) = (permit.resource().to_owned(), OIP_PLATFORM.to_owned());
        Ok(OipMetadata { name, versions, platform, inputs: onnx.inputs, outputs: onnx.outputs, batching: deployment.batching })
    }

    /// Whether a prediction would find a model. Starts no cell: cells start on demand.
    ///
    /// # Errors
    /// Not found.
    pub async fn deployment_ready(&self, permit: &Permit<DeploymentRead>, version: Option<&str>) -> Result<()> {
        self.deployment_metadata(permit, version).await.map(drop)
    }
}

/// The versions that a desired state means now.
struct Meaning {
    stable: Loadable,
    canary: Option<Loadable>,
}

impl Meaning {
    /// All that is named exists, can be deployed, and takes the same inputs.
    async fn of(tx: &mut Tx<'_>, desired: &DeploymentRequest) -> Result<Self> {
        let model = tx.get::<Model>(desired.model.as_str()).await?.ok_or(Error::not_found("model"))?;
        let stable = loadable(tx, &model, desired.version, desired.alias.as_deref()).await?;
        if desired.batching.is_some() {
            joins(&stable.onnx).map_err(Error::invalid)?;
        }
        let mut canary = None;
        if let Some(wanted) = &desired.canary {
            let found = loadable(tx, &model, wanted.version, wanted.alias.as_deref()).await?;
            takes_the_same("canary", &stable, &found).map_err(Error::invalid)?;
            canary = Some(found);
        }
        if let Some(shadow) = desired.shadow {
            let shadow = loadable(tx, &model, Some(shadow.version), None).await?;
            takes_the_same("shadow", &stable, &shadow).map_err(Error::invalid)?;
        }
        Ok(Self { stable, canary })
    }
}

async fn loadable(tx: &mut Tx<'_>, model: &Model, version: Option<u64>, alias: Option<&str>) -> Result<Loadable> {
    let number = numbered(model, version, alias).ok_or(Error::not_found("alias"))?;
    let stored = tx.get::<StoredModelVersion>(&version_key(model.name.as_str(), number)).await?;
    stored.ok_or(Error::not_found("model version"))?.loadable()
}

fn numbered(model: &Model, version: Option<u64>, alias: Option<&str>) -> Option<u64> {
    version.or_else(|| model.aliases.get(alias?).copied())
}

/// Requests that the stable version takes must make sense to who gets a share, or a copy, of them.
fn takes_the_same(who: &str, stable: &Loadable, other: &Loadable) -> Result<(), String> {
    let dimension = |a: &i64, b: &i64| a == b || *a < 0 || *b < 0;
    let shape =
        |a: &[i64], b: &[i64]| a.is_empty() || b.is_empty() || (a.len() == b.len() && a.iter().zip(b).all(|(a, b)| dimension(a, b)));
    let alike = |a: &Tensor, b: &Tensor| a.name == b.name && a.datatype == b.datatype && shape(&a.shape, &b.shape);
    let takes = |of: &Onnx, input: &Tensor| of.inputs.iter().any(|own| alike(own, input));
    if stable.onnx.inputs.len() == other.onnx.inputs.len() && stable.onnx.inputs.iter().all(|input| takes(&other.onnx, input)) {
        return Ok(());
    }
    Err(format!("the {who}, version {}, takes other inputs than version {}", other.number, stable.number))
}

/// Requests are joined by their first dimension, so a model must leave that open everywhere.
fn joins(onnx: &Onnx) -> Result<(), String> {
    let fixed = |tensor: &&Tensor| tensor.shape.first() != Some(&-1);
    let refused = |what: &str, tensor: &Tensor| {
        let (name, shape) = (&tensor.name, &tensor.shape);
        format!("requests cannot be batched: {what} `{name}` has the shape {shape:?}, whose first dimension is not open (-1)")
    };
    let input = onnx.inputs.iter().find(fixed).map(|tensor| refused("input", tensor));
    input.or_else(|| onnx.outputs.iter().find(fixed).map(|tensor| refused("output", tensor))).map_or(Ok(()), Err)
}

/// Stores a deployment whose versions are as they must be.
async fn commit(mut tx: Tx<'_>, mut deployment: Deployment) -> Result<Deployment> {
    let Meaning { stable, canary } = Meaning::of(&mut tx, &deployment.desired()).await?;
    tx.put(&deployment).await?;
    tx.detail("model", deployment.model.to_string());
    tx.detail("model_version", stable.number.to_string());
    tx.detail("sha256", stable.onnx.sha256);
    if let (Some(canary), Some(wanted)) = (&canary, &deployment.canary) {
        tx.detail("canary_version", canary.number);
        tx.detail("canary_percent", wanted.weight_percent);
    }
    if let Some(shadow) = deployment.shadow {
        tx.detail("shadow_version", shadow.version);
    }
    if let Some(batching) = deployment.batching {
        tx.detail("batch_size", batching.max_size);
        tx.detail("batch_window_us", batching.window_us);
    }
    tx.commit().await?;
    deployment.serving_version = Some(stable.number);
    deployment.canary_version = canary.map(|canary| canary.number);
    Ok(deployment)
}

/// Fills in the versions that a deployment means now.
async fn look_up(rows: &Rows<'_>, deployment: &mut Deployment) -> Result<()> {
    let model = rows.get::<Model>(deployment.model.as_str()).await?;
    let meant = |version: Option<u64>, alias: Option<&str>| version.or_else(|| numbered(model.as_ref()?, None, alias));
    deployment.serving_version = meant(deployment.version, deployment.alias.as_deref());
    let canary = deployment.canary.as_ref();
    deployment.canary_version = canary.and_then(|canary| meant(canary.version, canary.alias.as_deref()));
    Ok(())
}

/// What a deployment means to predictions.
pub(crate) struct Serving {
    pub(crate) deployment: Deployment,
    pub(crate) stable: Loadable,
    /// The canary, or why it cannot answer.
    pub(crate) canary: Option<Result<Loadable, String>>,
    pub(crate) shadow: Option<Loadable>,
}

/// Who answers for a deployment. Its alias may have moved since it was made, to a version that holds no ONNX.
pub(crate) async fn serving(rows: &Rows<'_>, name: &str) -> Result<Serving> {
    let deployment = rows.get::<Deployment>(name).await?.ok_or(Error::not_found("deployment"))?;
    let model = rows.get::<Model>(deployment.model.as_str()).await?.ok_or(Error::not_found("model"))?;
    let stable = found(rows, &model, deployment.version, deployment.alias.as_deref()).await?;
    let canary = match &deployment.canary {
        None => None,
        Some(canary) => Some(match found(rows, &model, canary.version, canary.alias.as_deref()).await {
            Ok(found) => takes_the_same("canary", &stable, &found).map(|()| found),
            Err(error @ (Error::NotDeployable { .. } | Error::Kernel(tenancy::Error::NotFound(_)))) => Err(format!("the canary: {error}")),
            Err(error) => return Err(error),
        }),
    };
    let shadow = match deployment.shadow {
        Some(shadow) => found(rows, &model, Some(shadow.version), None).await.ok(),
        None => None,
    };
    Ok(Serving { deployment, stable, canary, shadow })
}

async fn found(rows: &Rows<'_>, model: &Model, version: Option<u64>, alias: Option<&str>) -> Result<Loadable> {
    let number = numbered(model, version, alias).ok_or(Error::not_found("model version"))?;
    let stored = rows.get::<StoredModelVersion>(&version_key(model.name.as_str(), number)).await?;
    stored.ok_or(Error::not_found("model version"))?.loadable()
}

/// As [`serving`], for a prediction.
pub(crate) async fn serving_for(permit: &Permit<Predict>) -> Result<Serving> {
    serving(&permit.rows(), permit.resource()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(json: serde_json::Value) -> DeploymentRequest {
        serde_json::from_value(json).unwrap()
    }

    fn deployed(json: serde_json::Value) -> Deployment {
        Deployment::new("d".parse().unwrap(), wanted(json), "ada", Timestamp::now())
    }

    fn one() -> serde_json::Value {
        serde_json::json!({"model": "m", "version": 1})
    }

    fn with_canary(weight: u32) -> serde_json::Value {
        let rules = serde_json::json!({"error_rate": 0.1});
        serde_json::json!({
            "model": "m", "version": 1, "canary": {"version": 2, "weight_percent": weight}, "shadow": {"version": 3}, "rollback_on": rules,
        })
    }

    fn broken(of: &Deployment) -> Broken {
        Broken { since: of.updated_at, version: 2, author: "ada".to_owned(), reason: "slow".to_owned() }
    }

    fn state(of: &Deployment) -> Option<RolloutState> {
        of.rollout.as_ref().map(|rollout| rollout.state)
    }

    #[test]
    fn a_change_remembers_what_was_and_a_rollback_returns_to_it_once() {
        let now = Timestamp::now;
        let changed = deployed(one()).changed(wanted(with_canary(10)), "ada", now());
        assert_eq!((changed.previous.clone(), state(&changed)), (Some(wanted(one())), Some(RolloutState::Canary)));
        let again = changed.changed(wanted(with_canary(10)), "ada", now());
        assert_eq!(again.previous, Some(wanted(one())), "the same again keeps the way back");
        let back = again.rolled_back("bob", now()).unwrap();
        assert_eq!((back.desired(), back.previous.clone(), state(&back)), (wanted(one()), None, Some(RolloutState::RolledBack)));
        assert_eq!(back.updated_by, "bob");
        assert_eq!(back.rolled_back("bob", now()).unwrap_err().code(), "conflict");
        let born = deployed(with_canary(10)).rolled_back("bob", now()).unwrap();
        assert_eq!((born.canary.clone(), born.shadow), (None, Some(Shadow { version: 3 })), "without a state before, the canary goes");
    }

    #[test]
    fn a_promotion_leads_back_to_what_answered_before() {
        let promoted = deployed(with_canary(10)).promoted(Some(2), "ada", Timestamp::now()).unwrap();
        assert_eq!((promoted.version, promoted.canary.clone(), promoted.rollback_on.clone()), (Some(2), None, None));
        assert_eq!(promoted.shadow, Some(Shadow { version: 3 }));
        let back = promoted.rolled_back("ada", Timestamp::now()).unwrap();
        assert_eq!((back.version, back.canary), (Some(1), None));
        assert_eq!(deployed(one()).promoted(None, "ada", Timestamp::now()).unwrap_err().code(), "conflict");
        let by_alias = serde_json::json!({"model": "m", "version": 1, "canary": {"alias": "next", "weight_percent": 1}});
        let promoted = deployed(by_alias).promoted(Some(2), "ada", Timestamp::now()).unwrap();
        assert_eq!((promoted.version, promoted.alias.as_deref()), (None, Some("next")));
    }

    #[test]
    fn a_broken_canary_goes_and_only_the_one_that_is_meant() {
        let canary = deployed(one()).changed(wanted(with_canary(10)), "ada", Timestamp::now());
        let out = canary.clone().taken_out(&broken(&canary), "ada", Timestamp::now()).unwrap();
        assert_eq!((out.version, out.canary.clone(), out.rollback_on.clone()), (Some(1), None, None));
        let rollout = out.rollout.clone().unwrap();
        assert_eq!((rollout.state, rollout.version, rollout.reason.as_deref()), (RolloutState::TakenOut, Some(2), Some("slow")));
        assert_eq!(out.previous, Some(wanted(one())), "the shadow is new, so there is a way back from it");
        // Whoever changed it meanwhile wins.
        std::thread::sleep(std::time::Duration::from_millis(1));
        let newer = canary.clone().changed(wanted(with_canary(50)), "ada", Timestamp::now());
        assert_eq!(newer.taken_out(&broken(&canary), "ada", Timestamp::now()), None);
        assert_eq!(out.clone().taken_out(&broken(&out), "ada", Timestamp::now()), None, "there is no canary any more");
    }

    #[test]
    fn requests_are_checked() {
        let with = |key: &str, value: serde_json::Value| {
            let mut json = with_canary(10);
            json[key] = value;
            serde_json::from_value::<DeploymentRequest>(json).map_err(|error| error.to_string())?.check().map_err(|error| error.to_string())
        };
        assert_eq!(with("canary", serde_json::json!({"version": 2, "weight_percent": 100})), Ok(()));
        for (key, value, says) in [
            ("alias", serde_json::json!("champion"), "either `version` or `alias`"),
            ("canary", serde_json::json!({"version": 2, "weight_percent": 101}), "0 to 100"),
            ("canary", serde_json::json!({"weight_percent": 10}), "`canary.version` or `canary.alias`"),
            ("canary", serde_json::json!({"version": 2, "weight": 10}), "unknown field `weight`"),
            ("canary", serde_json::Value::Null, "there is none"),
            ("rollback_on", serde_json::json!({}), "neither `error_rate` nor `p99_ms`"),
            ("shadow", serde_json::json!({"alias": "x"}), "unknown field `alias`"),
        ] {
            let said = with(key, value).unwrap_err();
            assert!(said.contains(says), "{key}: {said}");
        }
    }

    #[test]
    fn a_canary_takes_what_the_stable_version_takes() {
        let of = |number, inputs: &[(&str, &str, &[i64])]| {
            let inputs = inputs.iter().map(|(name, datatype, shape)| Tensor {
                name: (*name).to_owned(),
                datatype: (*datatype).to_owned(),
                shape: shape.to_vec(),
            });
            let onnx = Onnx {
                bytes: 1,
                sha256: String::new(),
                inputs: inputs.collect(),
                outputs: vec![],
                opsets: vec![],
                nodes: 1,
                producer: String::new(),
                smoke_run: true,
            };
            Loadable { number, onnx, blob: tenancy::BlobId::try_from("00".repeat(16)).unwrap(), resident_bytes: 0 }
        };
        let stable = of(1, &[("x", "FP32", &[-1, 30]), ("y", "INT64", &[1])]);
        assert!(takes_the_same("canary", &stable, &of(2, &[("y", "INT64", &[-1]), ("x", "FP32", &[1, 30])])).is_ok());
        for other in [
            of(2, &[("x", "FP32", &[-1, 30])]),
            of(2, &[("x", "FP32", &[-1, 31]), ("y", "INT64", &[1])]),
            of(2, &[("x", "FP64", &[-1, 30]), ("y", "INT64", &[1])]),
            of(2, &[("z", "FP32", &[-1, 30]), ("y", "INT64", &[1])]),
        ] {
            let said = takes_the_same("canary", &stable, &other).unwrap_err();
            assert_eq!(said, "the canary, version 2, takes other inputs than version 1");
        }
    }
}
