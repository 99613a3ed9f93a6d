//! The registry, in MLflow's words: registered models, integer versions, aliases that move, tags, source run and lineage.
//!
//! A version is immutable. Its ONNX bytes enter only through admission: a cell loads them, checks format, budgets and external data,
//! and reports the signature. The SHA-256 of what was admitted is bound to the version and compared again before each load.
//! A version that was logged with MLflow and holds no ONNX is kept as it is: nothing of ours ever loads a pickle.
//!
//! | part | what |
//! |---|---|
//! | `name` | names of registered models |
//! | `register` | versions made from what was logged with MLflow, copies, renaming, search |
//! | `promote` | aliases and stages, their history, and the gate before them |

mod name;
pub(crate) mod promote;
mod register;

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use tenancy::act::{ModelDelete, ModelRead, ModelWrite};
use tenancy::{BlobId, Permit, Record, Resource, Tx};
use utoipa::ToSchema;

pub use name::{MODEL_NAME_BYTES_MAX, ModelName};
pub use promote::{
    ALIASES_MAX, AliasChange, AliasRequest, Approval, Gate, GateRequest, HistoryEntry, Stage, StageChange, StageRequest, Threshold,
};
pub use register::{ModelSearch, ModelVersionSource};

use crate::cells::{Source, blob_stream};
use crate::dataset::{hex, version_after, version_key};
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::page::{Page, PageRequest, Timestamp};
use crate::platform::Platform;

/// Most tags of a model or a version.
pub const TAGS_MAX: usize = 256;
/// Longest tag key in bytes.
pub const TAG_KEY_BYTES_MAX: usize = 250;
/// Longest description in bytes.
pub const TEXT_BYTES_MAX: usize = 5000;
/// Longest tag value in bytes: MLflow keeps the texts of prompts in tags.
pub const TAG_VALUE_BYTES_MAX: usize = 100_000;
/// All tags of a model or version together, keys and values, in bytes.
const TAGS_BYTES_MAX: usize = 512 << 10;

/// A registered model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Model {
    /// Its name.
    #[schema(value_type = String)]
    pub name: ModelName,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Key and value texts.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Version number each alias points at.
    #[serde(default)]
    pub aliases: BTreeMap<String, u64>,
    /// The newest version in each stage.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, u64>)]
    pub stages: BTreeMap<Stage, u64>,
    /// Number of the newest version; 0 before the first.
    pub latest_version: u64,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// What registers or describes a model.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelRequest {
    /// For people; unchanged when absent.
    pub description: Option<String>,
    /// Replace all tags; unchanged when absent.
    pub tags: Option<BTreeMap<String, String>>,
}

/// One immutable version of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelVersion {
    /// Name of the registered model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// 1, 2, 3, …
    pub version: u64,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Key and value texts.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Aliases that point here now.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Its stage, in MLflow's words.
    #[serde(default)]
    #[schema(value_type = String)]
    pub stage: Stage,
    /// Its ONNX file; absent when it holds none, and then it cannot be deployed.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub onnx: Option<Onnx>,
    /// Why it holds no ONNX that can be deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_deployable: Option<String>,
    /// The run that produced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// What MLflow knows of where it was logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logged: Option<Logged>,
    /// Where it comes from.
    pub lineage: Lineage,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When it last changed; absent when it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
    /// Who registered it.
    pub created_by: String,
}

/// The ONNX file of a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Onnx {
    /// Length of the ONNX file in bytes.
    pub bytes: u64,
    /// SHA-256 of the ONNX file, lower-case hex.
    pub sha256: String,
    /// Inputs in graph order.
    pub inputs: Vec<Tensor>,
    /// Outputs in graph order.
    pub outputs: Vec<Tensor>,
    /// Operator sets as `domain:version`.
    pub opsets: Vec<String>,
    /// Nodes of the graph, subgraphs counted.
    pub nodes: u32,
    /// Who wrote the file, as it says.
    pub producer: String,
    /// Whether admission could run it on zeros.
    pub smoke_run: bool,
}

/// Where a version was logged with MLflow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Logged {
    /// Its source, as it was given.
    pub source: String,
    /// Where its files are.
    pub artifact_uri: String,
    /// The logged model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// A link to its run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_link: Option<String>,
}

/// One input or output, in the terms of the Open Inference Protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tensor {
    /// Name in the graph.
    pub name: String,
    /// `FP32`, `INT64`, `BYTES`, …
    pub datatype: String,
    /// Dimensions; -1 where the model leaves one open.
    pub shape: Vec<i64>,
}

/// Where a version comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "source")]
pub enum Lineage {
    /// Somebody uploaded it.
    Upload,
    /// It was logged with MLflow.
    Logged,
    /// A training made it.
    Training(TrainingLineage),
}

/// Everything that is needed to make the same bytes again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrainingLineage {
    /// The training job.
    pub training: String,
    /// Data set.
    #[schema(value_type = String)]
    pub dataset: tenancy::Name,
    /// Its version.
    pub dataset_version: u64,
    /// SHA-256 of its bytes.
    pub dataset_sha256: String,
    /// What was asked for, defaults filled in.
    pub recipe: crate::training::Recipe,
}

/// A tag's value.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TagRequest {
    /// Text.
    pub value: String,
}

/// A version as the rows hold it. Its aliases live in [`Model`] alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StoredModelVersion {
    pub(crate) version: ModelVersion,
    #[serde(default)]
    pub(crate) blob: Option<BlobId>,
    #[serde(default)]
    pub(crate) resident_bytes: u64,
}

/// What a cell needs of a version in order to load it.
pub(crate) struct Loadable {
    pub(crate) number: u64,
    pub(crate) onnx: Onnx,
    pub(crate) blob: BlobId,
    pub(crate) resident_bytes: u64,
}

impl StoredModelVersion {
    /// What can be loaded.
    ///
    /// # Errors
    /// [`Error::NotDeployable`] for a version without ONNX: it says what to do.
    pub(crate) fn loadable(self) -> Result<Loadable> {
        let Self { version, blob, resident_bytes } = self;
        match (version.onnx, blob) {
            (Some(onnx), Some(blob)) => Ok(Loadable { number: version.version, onnx, blob, resident_bytes }),
            _ => Err(Error::NotDeployable {
                model: version.model.to_string(),
                version: version.version,
                reason: version.not_deployable.unwrap_or_else(|| NO_ONNX.to_owned()),
            }),
        }
    }
}

/// Why most versions cannot be deployed.
pub(crate) const NO_ONNX: &str = "it holds no ONNX file";

impl Record for Model {
    const KIND: &'static str = "model";
    fn key(&self) -> String {
        self.name.to_string()
    }
}

impl Record for StoredModelVersion {
    const KIND: &'static str = "model_version";
    fn key(&self) -> String {
        version_key(self.version.model.as_str(), self.version.version)
    }
}

/// A version that was made.
#[derive(Debug, Clone)]
pub struct MadeVersion {
    /// The version.
    pub version: ModelVersion,
    /// Whether its model was made with it.
    pub new_model: bool,
}

impl Platform {
    /// Registered models by name.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn model_list(&self, permit: &Permit<ModelRead>, page: &PageRequest) -> Result<Page<Model>> {
        let items = permit.rows().list::<Model>(page.after.as_deref(), page.limit(), None).await?;
        Ok(Page::of(items, Record::key))
    }

    /// One registered model.
    ///
    /// # Errors
    /// Not found.
    pub async fn model_get(&self, permit: &Permit<ModelRead>) -> Result<Model> {
        permit.rows().get::<Model>(permit.resource()).await?.ok_or(Error::not_found("model"))
    }

    /// Registers a model without versions, or changes description and tags of one; and whether it is new.
    ///
    /// # Errors
    /// Texts over their bounds.
    pub async fn model_put(&self, permit: &Permit<ModelWrite>, request: ModelRequest) -> Result<(Model, bool)> {
        let mut tx = permit.tx().await?;
        let (mut model, is_new) = model_or_new(&mut tx, permit.resource().parse()?).await?;
        if let Some(description) = request.description {
            text_checked("description", &description)?;
            model.description = description;
        }
        if let Some(tags) = request.tags {
            tags_checked(&tags)?;
            model.tags = tags;
        }
        model.updated_at = Timestamp::now();
        tx.put(&model).await?;
        tx.commit().await?;
        Ok((model, is_new))
    }

    /// Removes a model with all versions and aliases.
    ///
    /// # Errors
    /// Not found; a conflict while a deployment uses it.
    pub async fn model_delete(&self, permit: &Permit<ModelDelete>) -> Result<()> {
        let name = permit.resource();
        let mut tx = permit.tx().await?;
        if !tx.delete::<Model>(name).await? {
            return Err(Error::not_found("model"));
        }
        if let Some(user) = tx.find::<Deployment>("model", name, None, 1).await?.records.first() {
            return Err(Error::conflict(format!("`{name}` is used by the deployment `{}`; delete that first", user.name)));
        }
        let prefix = format!("{name}/");
        loop {
            let versions = tx.list::<StoredModelVersion>(None, DELETE_BATCH, Some(&prefix)).await?;
            for stored in versions.records {
                version_remove(&mut tx, &stored).await?;
            }
            if versions.next.is_none() {
                break;
            }
        }
        promote::forget(&mut tx, name).await?;
        tx.refund(Resource::Models, 1).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Stores an ONNX file as the next version, after admission in a cell. Registers the model when it is new.
    ///
    /// # Errors
    /// [`Error::Input`] with `model_refused` and the reason; too large, broken off, quota. Nothing is stored then.
    pub async fn model_version_upload(
        &self,
        permit: &Permit<ModelWrite>,
        stream: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<MadeVersion> {
        let name: ModelName = permit.resource().parse()?;
        let sealed = self.receive(permit, stream, "model", self.config().model_bytes_max).await?;
        if sealed.bytes() == 0 {
            return Err(Error::invalid("the model is empty"));
        }
        let info = self.cells().admit(&self.owner(permit), name.as_str(), Source::blob(sealed.open().await?)).await?;
        let mut tx = permit.tx().await?;
        let origin = Origin::new(Lineage::Upload, permit.principal());
        let (stored, new_model) = version_insert(&mut tx, name, Some((&sealed, info)), origin).await?;
        permit.detail("sha256", hex(&sealed.sha256()));
        tx.attach(sealed).await?;
        permit.detail("model_version", stored.version.version.to_string());
        tx.commit().await?;
        Ok(MadeVersion { version: stored.version, new_model })
    }

    /// Versions of a model, oldest first.
    ///
    /// # Errors
    /// Not found.
    pub async fn model_versions(&self, permit: &Permit<ModelRead>, page: &PageRequest) -> Result<Page<ModelVersion>> {
        let model = self.model_get(permit).await?;
        let prefix = format!("{}/", permit.resource());
        let after = page.after.as_deref().map(|after| version_after(permit.resource(), after)).transpose()?;
        let items = permit.rows().list::<StoredModelVersion>(after.as_deref(), page.limit(), Some(&prefix)).await?;
        let page = Page::of(items, |stored| stored.version.version.to_string());
        Ok(page.map(|stored| with_aliases(stored.version, &model)))
    }

    /// One version.
    ///
    /// # Errors
    /// Not found.
    pub async fn model_version_get(&self, permit: &Permit<ModelRead>, version: u64) -> Result<ModelVersion> {
        let model = self.model_get(permit).await?;
        Ok(with_aliases(model_version(permit, version).await?.version, &model))
    }

    /// The ONNX file, and what it is.
    ///
    /// # Errors
    /// Not found, or stored bytes that fail their integrity check; the latter also as the last item of the stream.
    pub async fn model_version_download(
        &self,
        permit: &Permit<ModelRead>,
        version: u64,
    ) -> Result<(Onnx, impl Stream<Item = io::Result<Bytes>> + Send + use<>)> {
        let Loadable { onnx, blob, .. } = model_version(permit, version).await?.loadable()?;
        permit.detail("sha256", &onnx.sha256);
        let reader = permit.blobs().open(blob).await?;
        Ok((onnx, blob_stream(reader)))
    }

    /// Sets a tag of the model, or of one version.
    ///
    /// # Errors
    /// Not found; texts over their bounds.
    pub async fn tag_set(&self, permit: &Permit<ModelWrite>, version: Option<u64>, key: &str, request: &TagRequest) -> Result<()> {
        self.tags_change(permit, version, |tags| {
            tags.insert(key.to_owned(), request.value.clone());
            tags_checked(tags)
        })
        .await
    }

    /// Removes a tag of the model, or of one version.
    ///
    /// # Errors
    /// Not found.
    pub async fn tag_delete(&self, permit: &Permit<ModelWrite>, version: Option<u64>, key: &str) -> Result<()> {
        self.tags_change(permit, version, |tags| tags.remove(key).map(|_| ()).ok_or(Error::not_found("tag"))).await
    }

    async fn tags_change(
        &self,
        permit: &Permit<ModelWrite>,
        version: Option<u64>,
        change: impl FnOnce(&mut BTreeMap<String, String>) -> Result<()>,
    ) -> Result<()> {
        let mut tx = permit.tx().await?;
        let mut model = tx.get::<Model>(permit.resource()).await?.ok_or(Error::not_found("model"))?;
        match version {
            None => change(&mut model.tags)?,
            Some(version) => {
                let key = version_key(model.name.as_str(), version);
                let mut stored = tx.get::<StoredModelVersion>(&key).await?.ok_or(Error::not_found("model version"))?;
                change(&mut stored.version.tags)?;
                stored.version.updated_at = Some(Timestamp::now());
                tx.put(&stored).await?;
            }
        }
        model.updated_at = Timestamp::now();
        tx.put(&model).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Rows deleted in one step of a transaction.
const DELETE_BATCH: u32 = 200;

/// Largest number that a version can bring along. Those given here can go beyond, so that nobody can use them up.
const NUMBER_KEPT_MAX: u64 = 1 << 31;

/// Who and what made a version.
pub(crate) struct Origin<'a> {
    /// The number it had where it comes from.
    pub(crate) version: Option<u64>,
    pub(crate) run_id: Option<String>,
    pub(crate) lineage: Lineage,
    pub(crate) created_by: &'a str,
    pub(crate) description: String,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) logged: Option<Logged>,
    pub(crate) not_deployable: Option<String>,
}

impl<'a> Origin<'a> {
    /// Nothing but where it comes from and who brought it.
    pub(crate) fn new(lineage: Lineage, created_by: &'a str) -> Self {
        let (description, tags) = (String::new(), BTreeMap::new());
        Self { version: None, run_id: None, lineage, created_by, description, tags, logged: None, not_deployable: None }
    }
}

/// Adds the next version of `name` to the transaction, with its ONNX file if it has one; the blob is attached by the caller. And whether
/// the model is new.
pub(crate) async fn version_insert(
    tx: &mut Tx<'_>,
    name: ModelName,
    file: Option<(&tenancy::StoredUpload, wire::ModelInfo)>,
    origin: Origin<'_>,
) -> Result<(StoredModelVersion, bool)> {
    let (mut model, is_new) = model_or_new(tx, name).await?;
    let now = Timestamp::now();
    number_checked(&model, origin.version)?;
    model.latest_version = origin.version.unwrap_or(model.latest_version + 1);
    model.updated_at = now;
    model.stages.insert(Stage::None, model.latest_version);
    let (mut blob, mut resident_bytes, mut onnx) = (None, 0, None);
    if let Some((sealed, info)) = file {
        (blob, resident_bytes) = (Some(sealed.id()), info.resident_bytes);
        onnx = Some(Onnx::new(sealed, info));
    }
    let version = ModelVersion {
        model: model.name.clone(),
        version: model.latest_version,
        description: origin.description,
        tags: origin.tags,
        aliases: vec![],
        stage: Stage::None,
        onnx,
        not_deployable: origin.not_deployable,
        run_id: origin.run_id,
        logged: origin.logged,
        lineage: origin.lineage,
        created_at: now,
        updated_at: None,
        created_by: origin.created_by.to_owned(),
    };
    let stored = StoredModelVersion { version, blob, resident_bytes };
    tx.put(&model).await?;
    tx.insert(&stored).await?;
    Ok((stored, is_new))
}

/// A number is given once, also that of a version that was deleted: so one that is brought along is above all of them.
fn number_checked(model: &Model, number: Option<u64>) -> Result<()> {
    match number {
        Some(number) if number <= model.latest_version => {
            Err(Error::conflict(format!("Model Version (name={}, version={number}) already exists, or did.", model.name)))
        }
        Some(number) if number > NUMBER_KEPT_MAX => {
            Err(Error::invalid(format!("a version's number is at most {NUMBER_KEPT_MAX}, not {number}")))
        }
        _ => Ok(()),
    }
}

impl Onnx {
    fn new(sealed: &tenancy::StoredUpload, info: wire::ModelInfo) -> Self {
        Self {
            bytes: sealed.bytes(),
            sha256: hex(&sealed.sha256()),
            inputs: info.inputs.into_iter().map(Tensor::from).collect(),
            outputs: info.outputs.into_iter().map(Tensor::from).collect(),
            opsets: info.opsets,
            nodes: info.nodes,
            producer: info.producer,
            smoke_run: info.smoke_run,
        }
    }
}

/// Removes a version and its ONNX file; the model's record is the caller's.
async fn version_remove(tx: &mut Tx<'_>, stored: &StoredModelVersion) -> Result<()> {
    tx.delete::<StoredModelVersion>(&stored.key()).await?;
    if let Some(blob) = stored.blob {
        tx.detach(blob).await?;
    }
    Ok(())
}

/// One stored version of the model the permit is about.
pub(crate) async fn model_version(permit: &Permit<ModelRead>, version: u64) -> Result<StoredModelVersion> {
    let key = version_key(permit.resource(), version);
    permit.rows().get::<StoredModelVersion>(&key).await?.ok_or(Error::not_found("model version"))
}

/// The model of this name, and whether it is new.
async fn model_or_new(tx: &mut Tx<'_>, name: ModelName) -> Result<(Model, bool)> {
    if let Some(model) = tx.get::<Model>(name.as_str()).await? {
        return Ok((model, false));
    }
    // It exists in this transaction from here on: every caller puts it.
    tx.charge(Resource::Models, 1).await?;
    let now = Timestamp::now();
    let model = Model {
        name,
        description: String::new(),
        tags: BTreeMap::new(),
        aliases: BTreeMap::new(),
        stages: BTreeMap::new(),
        latest_version: 0,
        created_at: now,
        updated_at: now,
    };
    Ok((model, true))
}

fn with_aliases(mut version: ModelVersion, model: &Model) -> ModelVersion {
    version.aliases = model.aliases.iter().filter(|(_, number)| **number == version.version).map(|(alias, _)| alias.clone()).collect();
    version
}

fn text_checked(what: &str, text: &str) -> Result<()> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Error::invalid(format!("the {what} is longer than {TEXT_BYTES_MAX} bytes")));
    }
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
        return Err(Error::invalid(format!("the {what} has control characters")));
    }
    Ok(())
}

fn tags_checked(tags: &BTreeMap<String, String>) -> Result<()> {
    if tags.len() > TAGS_MAX {
        return Err(Error::invalid(format!("there are more than {TAGS_MAX} tags")));
    }
    for (key, value) in tags {
        if key.is_empty() || key.len() > TAG_KEY_BYTES_MAX || key.chars().any(char::is_control) {
            return Err(Error::invalid(format!("a tag's key has 1 to {TAG_KEY_BYTES_MAX} bytes and no control characters")));
        }
        if value.len() > TAG_VALUE_BYTES_MAX || value.contains('\0') {
            return Err(Error::invalid(format!("a tag's value has at most {TAG_VALUE_BYTES_MAX} bytes and no NUL")));
        }
    }
    if tags.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > TAGS_BYTES_MAX {
        return Err(Error::invalid(format!("all tags together have more than {TAGS_BYTES_MAX} bytes")));
    }
    Ok(())
}

impl From<wire::TensorInfo> for Tensor {
    fn from(info: wire::TensorInfo) -> Self {
        Self { name: info.name, datatype: info.datatype, shape: info.shape }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_bounded() {
        let tags = |key: &str, value: String| BTreeMap::from([(key.to_owned(), value)]);
        assert!(tags_checked(&tags("k", "v".repeat(TAG_VALUE_BYTES_MAX))).is_ok());
        assert!(tags_checked(&tags("k", "v".repeat(TAG_VALUE_BYTES_MAX + 1))).is_err());
        assert!(tags_checked(&tags("", String::new())).is_err());
        assert!(tags_checked(&tags("a\nb", String::new())).is_err());
    }
}
