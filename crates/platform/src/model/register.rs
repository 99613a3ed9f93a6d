//! The registry as MLflow's client uses it: versions made from what was logged, copies, renaming, search.
//!
//! ```text
//! source models:/m-81…            the artifacts of a logged model
//!        runs:/0f3c…/model        a folder of a run's artifacts, also as mlflow-artifacts:/7/0f3c…/artifacts/model
//!        models:/iris/3           another version: a copy
//!        anything else            kept as it is; not ours to fetch
//! ```
//! If the source's folder holds an ONNX file, it is copied into an object of the version's own, admitted in a cell, and deployable at once.
//! A model that admission refuses, or that has no ONNX, is kept all the same, with the reason.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::Serialize;
use tenancy::act::{Act, ModelDelete, ModelRead, ModelWrite, ResourceKind, Writes};
use tenancy::{BlobReader, PAGE_BYTES_MAX, Permit, Record, Rows, StoredUpload};

use super::promote::{self, Stage, stages_count, stored_model, stored_version};
use super::{
    Lineage, Logged, Model, ModelName, ModelRequest, ModelVersion, NO_ONNX, Origin, StoredModelVersion, model_or_new, tags_checked,
    text_checked, version_insert, version_remove, with_aliases,
};
use crate::cells::{Source, blob_stream};
use crate::dataset::version_key;
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::page::Timestamp;
use crate::platform::Platform;
use crate::tracking::artifact::{self, Holder, Place};
use crate::tracking::filter::{self, Attribute, Clause, Entity, Grammar, ID_LIST, NUMBER, Order, Rule, TEXT, TEXT_LIST};
use crate::tracking::hits::Hits;
use crate::tracking::logged_model;
use crate::tracking::token::PageToken;

/// Longest source and link to a run, in bytes.
const SOURCE_BYTES_MAX: usize = 2000;
/// Records that one search looks at, at most.
const SEARCHED_MAX: usize = 200_000;
/// Records looked up in one step.
const BATCH: u32 = 1000;
/// Marks a prompt among the registered models.
const PROMPT_TAG: &str = "mlflow.prompt.is_prompt";

/// What a version is made from.
#[derive(Debug, Clone, Default)]
pub struct ModelVersionSource {
    /// The number it had where it comes from, above all that were given here; the next one when absent.
    pub version: Option<u64>,
    /// Where it was logged.
    pub source: String,
    /// The run that made it.
    pub run_id: Option<String>,
    /// A link to that run.
    pub run_link: Option<String>,
    /// The logged model.
    pub model_id: Option<String>,
    /// For people.
    pub description: String,
    /// Key and value texts.
    pub tags: BTreeMap<String, String>,
}

/// Which models, or versions, are asked for.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ModelSearch {
    /// In MLflow's language.
    pub filter: String,
    /// In MLflow's language.
    pub order_by: Vec<String>,
    /// Most in one answer.
    #[serde(skip)]
    pub limit: usize,
    /// Where the answer before ended.
    #[serde(skip)]
    pub page_token: Option<String>,
}

const PREFIXES: &[(&str, Entity)] =
    &[("attribute", Entity::Attribute), ("attributes", Entity::Attribute), ("tag", Entity::Tag), ("tags", Entity::Tag)];
const TAG: &[(Entity, &Rule, &[&str])] = &[(Entity::Tag, &TEXT, &[])];

const MODELS: Grammar = Grammar {
    prefixes: PREFIXES,
    attributes: &[
        Attribute { names: &["name"], rule: &TEXT_LIST },
        Attribute { names: &["creation_timestamp"], rule: &NUMBER },
        Attribute { names: &["last_updated_timestamp"], rule: &NUMBER },
    ],
    entities: TAG,
    order_attributes: &["name", "creation_timestamp", "last_updated_timestamp"],
    order_entities: &[],
};

const VERSIONS: Grammar = Grammar {
    prefixes: PREFIXES,
    attributes: &[
        Attribute { names: &["name"], rule: &TEXT_LIST },
        Attribute { names: &["version_number", "version"], rule: &NUMBER },
        Attribute { names: &["run_id"], rule: &ID_LIST },
        Attribute { names: &["source_path"], rule: &TEXT },
        Attribute { names: &["creation_timestamp"], rule: &NUMBER },
        Attribute { names: &["last_updated_timestamp"], rule: &NUMBER },
    ],
    entities: TAG,
    order_attributes: &["name", "version_number", "creation_timestamp", "last_updated_timestamp"],
    order_entities: &[],
};

/// A source, looked up.
struct Found {
    artifact_uri: String,
    run_id: Option<String>,
    model_id: Option<String>,
    onnx: Option<BlobReader>,
    /// Why there is no ONNX, when it is not simply absent.
    reason: Option<String>,
}

impl Platform {
    /// Registers a model that must be new.
    ///
    /// # Errors
    /// A conflict when it is there; texts over their bounds.
    pub async fn model_create(&self, permit: &Permit<ModelWrite>, request: ModelRequest) -> Result<Model> {
        let name: ModelName = permit.resource().parse()?;
        let mut tx = permit.tx().await?;
        if tx.get::<Model>(name.as_str()).await?.is_some() {
            return Err(Error::conflict(format!("Registered Model (name={name}) already exists.")));
        }
        let (mut model, _) = model_or_new(&mut tx, name).await?;
        model.description = request.description.unwrap_or_default();
        text_checked("description", &model.description)?;
        model.tags = request.tags.unwrap_or_default();
        tags_checked(&model.tags)?;
        tx.put(&model).await?;
        tx.commit().await?;
        Ok(model)
    }

    /// Changes the description of a model that must be there.
    ///
    /// # Errors
    /// Not found; a text over its bound.
    pub async fn model_describe(&self, permit: &Permit<ModelWrite>, description: String) -> Result<Model> {
        text_checked("description", &description)?;
        let mut tx = permit.tx().await?;
        let mut model = stored_model(&mut tx, permit.resource()).await?;
        (model.description, model.updated_at) = (description, Timestamp::now());
        tx.put(&model).await?;
        tx.commit().await?;
        Ok(model)
    }

    /// Gives a model, with its versions, history, gate and deployments, another name.
    ///
    /// # Errors
    /// Not found; a conflict when the new name is taken.
    pub async fn model_rename(&self, permit: &Permit<ModelWrite>, new: &str) -> Result<Model> {
        let (old, new) = (permit.resource(), new.parse::<ModelName>()?);
        permit.within(ResourceKind::Model, new.as_str())?;
        let mut tx = permit.tx().await?;
        let mut model = stored_model(&mut tx, old).await?;
        if tx.get::<Model>(new.as_str()).await?.is_some() {
            return Err(Error::conflict(format!("Registered Model (name={new}) already exists.")));
        }
        for version in promote::versions_where(&mut tx, &model.name, |_| true).await? {
            let mut stored = stored_version(&mut tx, &model.name, version).await?;
            tx.delete::<StoredModelVersion>(&stored.key()).await?;
            (stored.version.model, stored.version.updated_at) = (new.clone(), Some(Timestamp::now()));
            tx.insert(&stored).await?;
        }
        promote::renamed(&mut tx, old, &new).await?;
        loop {
            // Those that were renamed are not found again.
            let deployments = tx.find::<Deployment>("model", old, None, BATCH).await?;
            for deployment in deployments.records {
                tx.put(&deployment.renamed(&new)).await?;
            }
            if deployments.next.is_none() {
                break;
            }
        }
        tx.delete::<Model>(old).await?;
        (model.name, model.updated_at) = (new, Timestamp::now());
        tx.put(&model).await?;
        permit.detail("new_name", &model.name);
        tx.commit().await?;
        Ok(model)
    }

    /// Makes the next version of a model that must be there, out of what was logged.
    ///
    /// # Errors
    /// Not found, of the model or its source; a number that was given already; texts over their bounds; quota; what a cell can fail with.
    pub async fn model_version_register(&self, permit: &Permit<ModelWrite>, request: ModelVersionSource) -> Result<ModelVersion> {
        let name: ModelName = permit.resource().parse()?;
        text_checked("description", &request.description)?;
        tags_checked(&request.tags)?;
        let model = permit.rows().get::<Model>(name.as_str()).await?.ok_or(Error::not_found("model"))?;
        super::number_checked(&model, request.version)?;
        let prompt = is_prompt(&request.tags) || is_prompt(&model.tags);
        let Found { artifact_uri, run_id, model_id, onnx, mut reason } = match prompt {
            true => Found { artifact_uri: request.source.clone(), run_id: None, model_id: None, onnx: None, reason: None },
            false => self.source(permit, &request).await?,
        };
        let file = match onnx {
            None => None,
            Some(reader) => match self.cells().admit(&self.owner(permit), name.as_str(), Source::blob(reader.clone())).await {
                Ok(info) => Some((self.copied(permit, reader).await?, info)),
                Err(Error::Input(fail)) => {
                    reason = Some(format!("its ONNX file is refused: {}", fail.message));
                    None
                }
                Err(error) => return Err(error),
            },
        };
        let origin = Origin {
            run_id,
            lineage: Lineage::Logged,
            created_by: permit.principal(),
            version: request.version,
            description: request.description,
            tags: request.tags,
            not_deployable: file.is_none().then(|| reason.unwrap_or_else(|| NO_ONNX.to_owned())),
            logged: Some(Logged { source: request.source, artifact_uri, model_id: model_id.clone(), run_link: request.run_link }),
        };
        let mut tx = permit.tx().await?;
        stored_model(&mut tx, name.as_str()).await?;
        let (sealed, info) = file.unzip();
        let (stored, _) = version_insert(&mut tx, name, sealed.as_ref().zip(info), origin).await?;
        if let Some(id) = &model_id {
            logged_model::registered(&mut tx, id, stored.version.model.as_str(), stored.version.version).await?;
        }
        if let Some(sealed) = sealed {
            tx.attach(sealed).await?;
        }
        permit.detail("model_version", stored.version.version);
        permit.detail("sha256", stored.version.onnx.as_ref().map_or("", |onnx| &onnx.sha256));
        tx.commit().await?;
        Ok(stored.version)
    }

    /// Changes the description of a version.
    ///
    /// # Errors
    /// Not found; a text over its bound.
    pub async fn model_version_describe(&self, permit: &Permit<ModelWrite>, version: u64, description: String) -> Result<ModelVersion> {
        text_checked("description", &description)?;
        let mut tx = permit.tx().await?;
        let mut model = stored_model(&mut tx, permit.resource()).await?;
        let mut stored = stored_version(&mut tx, &model.name, version).await?;
        (stored.version.description, stored.version.updated_at) = (description, Some(Timestamp::now()));
        model.updated_at = Timestamp::now();
        tx.put(&stored).await?;
        tx.put(&model).await?;
        tx.commit().await?;
        Ok(with_aliases(stored.version, &model))
    }

    /// Removes a version with its ONNX file and its aliases. Its number is not given again.
    ///
    /// # Errors
    /// Not found; a conflict while a deployment uses it.
    pub async fn model_version_delete(&self, permit: &Permit<ModelDelete>, version: u64) -> Result<()> {
        let mut tx = permit.tx().await?;
        let mut model = stored_model(&mut tx, permit.resource()).await?;
        let stored = stored_version(&mut tx, &model.name, version).await?;
        let mut after = None;
        loop {
            let users = tx.find::<Deployment>("model", model.name.as_str(), after.as_deref(), BATCH).await?;
            if let Some(user) = users.records.iter().find(|user| user.uses(&model, version)) {
                return Err(Error::conflict(format!("the version is used by the deployment `{}`; delete that first", user.name)));
            }
            after = users.next;
            if after.is_none() {
                break;
            }
        }
        let aliases: Vec<String> = model.aliases.iter().filter(|(_, at)| **at == version).map(|(alias, _)| alias.clone()).collect();
        for alias in aliases {
            model.aliases.remove(&alias);
            promote::alias_record(&mut tx, &mut model, &alias, Some(version), None, permit.principal()).await?;
        }
        version_remove(&mut tx, &stored).await?;
        stages_count(&mut tx, &mut model).await?;
        model.updated_at = Timestamp::now();
        tx.put(&model).await?;
        permit.detail("model_version", version);
        tx.commit().await?;
        Ok(())
    }

    /// The newest version of each of these stages.
    ///
    /// # Errors
    /// Not found.
    pub async fn model_latest(&self, permit: &Permit<ModelRead>, stages: &[Stage]) -> Result<Vec<ModelVersion>> {
        let model = self.model_get(permit).await?;
        latest(&permit.rows(), &model, stages, &mut 0).await
    }

    /// The version an alias points at; `latest` is the newest.
    ///
    /// # Errors
    /// Not found.
    pub async fn model_version_by_alias(&self, permit: &Permit<ModelRead>, alias: &str) -> Result<ModelVersion> {
        let model = self.model_get(permit).await?;
        let number = match alias.eq_ignore_ascii_case("latest") {
            true => model.stages.values().max().copied(),
            false => model.aliases.get(alias).copied(),
        };
        let number = number.ok_or(Error::not_found("alias"))?;
        Ok(with_aliases(super::model_version(permit, number).await?.version, &model))
    }

    /// The models that a search finds, each with the newest version of each stage, and the token for those after them. Prompts are left
    /// out unless the filter speaks of them.
    ///
    /// # Errors
    /// A filter or key that does not parse, a token of another search.
    pub async fn model_search(
        &self,
        permit: &Permit<ModelRead>,
        search: &ModelSearch,
    ) -> Result<(Vec<(Model, Vec<ModelVersion>)>, Option<String>)> {
        let clauses = filter::parse(&MODELS, &search.filter)?;
        let order = filter::order(&MODELS, &search.order_by)?;
        let (rows, shape) = (permit.rows(), PageToken::shape(search));
        let skip = PageToken::open(permit, search.page_token.as_deref(), "models", &shape)?;
        let _turn = self.tracking().search_turn(permit).await?;
        let brief = |model: &Model| model_matches(model, &clauses).then(|| Brief::of(model));
        let mut found = all_models(permit, &rows, brief).await?;
        found.sort(|a, b| ordered(&order, |key| a.compared(key, b)).then_with(|| a.name.cmp(&b.name)));
        let (page, mut next) = found.page(&rows, skip, search.limit, |brief| brief.name.to_string()).await?;
        let (mut models, mut bytes, count) = (Vec::with_capacity(page.len()), 0, page.len());
        for (_, model) in page {
            if bytes > PAGE_BYTES_MAX {
                // What is left out here comes first on the next page.
                next = Some(next.unwrap_or(skip.saturating_add(count)).saturating_sub(count - models.len()));
                break;
            }
            let got = latest(&rows, &model, &Stage::ALL, &mut bytes).await?;
            models.push((model, got));
        }
        let token = next.map(|skip| PageToken::seal(permit, "models", &shape, skip)).transpose()?;
        Ok((models, token))
    }

    /// The versions that a search finds, of all models, and the token for those after them.
    ///
    /// # Errors
    /// As [`Platform::model_search`].
    pub async fn model_version_search(
        &self,
        permit: &Permit<ModelRead>,
        search: &ModelSearch,
    ) -> Result<(Vec<ModelVersion>, Option<String>)> {
        let clauses = filter::parse(&VERSIONS, &search.filter)?;
        let order = filter::order(&VERSIONS, &search.order_by)?;
        let (rows, shape) = (permit.rows(), PageToken::shape(search));
        let skip = PageToken::open(permit, search.page_token.as_deref(), "model_versions", &shape)?;
        let _turn = self.tracking().search_turn(permit).await?;
        // One name is what clients mostly ask for.
        let brief = |model: &Model| names_match(model, &clauses).then(|| Brief::of(model));
        let mut models = all_models(permit, &rows, brief).await?;
        let (mut found, mut looked_at) = (Hits::new(), 0);
        for model in models.keys() {
            let (prefix, mut after) = (format!("{}/", model.name), None::<String>);
            loop {
                let page = rows.list::<StoredModelVersion>(after.as_deref(), BATCH, Some(&prefix)).await?;
                looked_at += page.records.len();
                let brief = |stored: &StoredModelVersion| {
                    version_matches(&stored.version, &model.name, &clauses).then(|| Brief::of_version(&stored.version))
                };
                after = found.add(page, brief);
                if looked_at > SEARCHED_MAX {
                    return Err(Error::invalid(format!("there are more than {SEARCHED_MAX} versions: search by name")));
                }
                if after.is_none() {
                    break;
                }
            }
        }
        found.sort(|a, b| {
            let by = ordered(&order, |key| a.compared(key, b));
            by.then_with(|| a.name.cmp(&b.name)).then(b.version.cmp(&a.version))
        });
        let (page, next) = found.page(&rows, skip, search.limit, |brief| version_key(brief.name.as_str(), brief.version)).await?;
        let token = next.map(|skip| PageToken::seal(permit, "model_versions", &shape, skip)).transpose()?;
        let (mut versions, mut models) = (Vec::with_capacity(page.len()), BTreeMap::<ModelName, Model>::new());
        for (Brief { name, .. }, stored) in page {
            if !models.contains_key(&name)
                && let Some(model) = rows.get::<Model>(name.as_str()).await?
            {
                models.insert(name.clone(), Model { tags: BTreeMap::new(), ..model });
            }
            versions.extend(models.get(&name).map(|model| with_aliases(stored.version, model)));
        }
        Ok((versions, token))
    }

    /// Looks a source up.
    async fn source(&self, permit: &Permit<ModelWrite>, request: &ModelVersionSource) -> Result<Found> {
        let rows = permit.rows();
        let (source, wrong) = (request.source.as_str(), |why: &str| {
            let shown: String = request.source.chars().filter(|c| !c.is_control()).take(200).collect();
            Error::invalid(format!("Invalid model version source: '{shown}'. {why}"))
        });
        if source.is_empty()
            || source.len() > SOURCE_BYTES_MAX
            || request.run_link.as_ref().is_some_and(|link| link.len() > SOURCE_BYTES_MAX)
        {
            return Err(wrong("It, and a link to a run, have at most 2000 bytes."));
        }
        if let Some(rest) = source.strip_prefix("models:/") {
            return match rest.starts_with("m-") && !rest.contains(['/', '@']) {
                true => self.logged_source(permit, request, rest, "").await,
                false => self.copy_source(permit, request, rest).await,
            };
        }
        if let Some(rest) = source.strip_prefix("runs:/") {
            let (run, path) = rest.split_once('/').unwrap_or((rest, ""));
            let experiment = crate::tracking::run_experiment(&rows, run).await?.ok_or_else(|| wrong("There is no such run."))?;
            return self.run_source(permit, request, Place::below(artifact::run_root(&experiment, run), path)?).await;
        }
        if let Some(rest) = source.strip_prefix("mlflow-artifacts:/") {
            let place = Place::parse(rest)?;
            return match place.holder() {
                Holder::Model(id) => self.logged_source(permit, request, id, &place.path).await,
                Holder::Run(_) => self.run_source(permit, request, place).await,
                Holder::Trace(_) => Err(wrong("A trace is no model.")),
            };
        }
        match source.split_once(":/") {
            Some((scheme, rest)) if scheme != "file" && !scheme.is_empty() && !rest.contains("..") => Ok(Found {
                artifact_uri: source.to_owned(),
                run_id: request.run_id.clone(),
                model_id: request.model_id.clone(),
                onnx: None,
                reason: Some("its files are not kept here".to_owned()),
            }),
            _ => Err(wrong("To use a local path as a model version source is not possible: log the model first.")),
        }
    }

    /// A folder of a run's artifacts.
    async fn run_source(&self, permit: &Permit<ModelWrite>, request: &ModelVersionSource, place: Place) -> Result<Found> {
        permit.within(ResourceKind::Experiment, place.experiment())?;
        let Holder::Run(run) = place.holder() else { return Err(Error::not_found("run")) };
        if crate::tracking::run_experiment(&permit.rows(), run).await?.as_deref() != Some(place.experiment()) {
            return Err(Error::not_found("run"));
        }
        same_origin(request, "run_id", request.run_id.as_deref(), Some(run))?;
        let onnx = onnx_reader(permit, &place).await?;
        Ok(Found { artifact_uri: uri(&place), run_id: Some(run.to_owned()), model_id: request.model_id.clone(), onnx, reason: None })
    }

    /// A folder of a logged model's artifacts.
    async fn logged_source(&self, permit: &Permit<ModelWrite>, request: &ModelVersionSource, id: &str, path: &str) -> Result<Found> {
        let model = permit.rows().get::<logged_model::LoggedModel>(id).await?;
        let model = model.filter(|model| model.deleted_ms.is_none()).ok_or(Error::not_found("logged model"))?;
        permit.within(ResourceKind::Experiment, &model.experiment_id)?;
        same_origin(request, "model_id", request.model_id.as_deref(), Some(id))?;
        same_origin(request, "run_id", request.run_id.as_deref(), model.source_run_id.as_deref())?;
        let place = Place::below(model.root(), path)?;
        let onnx = onnx_reader(permit, &place).await?;
        Ok(Found { artifact_uri: uri(&place), run_id: model.source_run_id, model_id: Some(id.to_owned()), onnx, reason: None })
    }

    /// Another version: `name/3`, or `name@alias`.
    async fn copy_source(&self, permit: &Permit<ModelWrite>, request: &ModelVersionSource, rest: &str) -> Result<Found> {
        let rows = permit.rows();
        let (name, number, alias) = match (rest.rsplit_once('@'), rest.rsplit_once('/')) {
            (Some((name, alias)), _) => (name, None, Some(alias)),
            (None, Some((name, number))) => (name, number.parse::<u64>().ok(), None),
            (None, None) => (rest, None, None),
        };
        permit.within(ResourceKind::Model, name)?;
        let model = rows.get::<Model>(name).await?.ok_or(Error::not_found("model"))?;
        let number = number.or_else(|| model.aliases.get(alias?).copied()).ok_or(Error::not_found("model version"))?;
        let stored = rows.get::<StoredModelVersion>(&version_key(name, number)).await?.ok_or(Error::not_found("model version"))?;
        let onnx = match stored.blob {
            Some(blob) => Some(permit.blobs().open(blob).await?),
            None => None,
        };
        let version = stored.version;
        let model_id = version.logged.as_ref().and_then(|logged| logged.model_id.clone());
        same_origin(request, "run_id", request.run_id.as_deref(), version.run_id.as_deref())?;
        same_origin(request, "model_id", request.model_id.as_deref(), model_id.as_deref())?;
        let artifact_uri = version.logged.as_ref().map_or_else(|| request.source.clone(), |logged| logged.artifact_uri.clone());
        Ok(Found { artifact_uri, run_id: version.run_id, model_id, onnx, reason: version.not_deployable })
    }

    /// The same bytes as an object of its own.
    async fn copied<A: Act<Mode = Writes>>(&self, permit: &Permit<A>, reader: BlobReader) -> Result<StoredUpload> {
        self.receive(permit, blob_stream(reader), "model", self.config().model_bytes_max).await
    }
}

/// What the caller says of where a source comes from must be so, when it is said: a gate looks at the metrics of that run.
fn same_origin(request: &ModelVersionSource, field: &str, given: Option<&str>, found: Option<&str>) -> Result<()> {
    if given.is_none_or(|given| Some(given) == found) {
        return Ok(());
    }
    let shown: String = request.source.chars().filter(|c| !c.is_control()).take(200).collect();
    Err(Error::invalid(format!(
        "Invalid model version source: '{shown}'. The {field} request parameter must identify the resource that contains the source."
    )))
}

fn uri(place: &Place) -> String {
    let root = &place.root;
    if place.path.is_empty() { format!("mlflow-artifacts:/{root}") } else { format!("mlflow-artifacts:/{root}/{}", place.path) }
}

/// The ONNX file in a folder, opened.
async fn onnx_reader<A: Act>(permit: &Permit<A>, place: &Place) -> Result<Option<BlobReader>> {
    match artifact::onnx_in(&permit.rows(), place).await? {
        Some(file) => Ok(Some(permit.blobs().open(file.blob).await?)),
        None => Ok(None),
    }
}

/// The newest version of each of these stages: at most as many as there are stages, which a page holds. Counts their bytes.
async fn latest(rows: &Rows<'_>, model: &Model, stages: &[Stage], bytes: &mut usize) -> Result<Vec<ModelVersion>> {
    let wanted = model.stages.iter().filter(|(stage, _)| stages.contains(stage));
    let mut keys: Vec<String> = wanted.map(|(_, version)| version_key(model.name.as_str(), *version)).collect();
    // Registered before there were stages.
    if model.stages.is_empty() && model.latest_version > 0 && stages.contains(&Stage::None) {
        keys.push(version_key(model.name.as_str(), model.latest_version));
    }
    let found = rows.get_page::<StoredModelVersion>(&keys).await?;
    *bytes += found.bytes;
    Ok(found.records.into_iter().flatten().map(|stored| with_aliases(stored.version, model)).collect())
}

/// All models that the caller may see and that have a key here.
async fn all_models(permit: &Permit<ModelRead>, rows: &Rows<'_>, brief: impl Fn(&Model) -> Option<Brief>) -> Result<Hits<Brief, Model>> {
    let (mut found, mut after) = (Hits::new(), None::<String>);
    loop {
        let page = rows.list::<Model>(after.as_deref(), BATCH, None).await?;
        after = found.add(page, |model| brief(model).filter(|_| permit.may(ResourceKind::Model, model.name.as_str())));
        if found.len() > SEARCHED_MAX {
            return Err(Error::invalid(format!("there are more than {SEARCHED_MAX} models")));
        }
        if after.is_none() {
            return Ok(found);
        }
    }
}

fn is_prompt(tags: &BTreeMap<String, String>) -> bool {
    tags.get(PROMPT_TAG).is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// A tag that is not there passes nothing; only what is no prompt may leave that unsaid.
fn tag_matches(tags: &BTreeMap<String, String>, clause: &Clause) -> bool {
    match (tags.get(&clause.key), clause.key.as_str()) {
        (None, PROMPT_TAG) => clause.test.text(Some("false")),
        (value, _) => clause.test.text(value.map(String::as_str)),
    }
}

/// Prompts are shown to who asks for them.
fn prompts_wanted(tags: &BTreeMap<String, String>, clauses: &[Clause]) -> bool {
    !is_prompt(tags) || clauses.iter().any(|clause| clause.entity == Entity::Tag && clause.key == PROMPT_TAG)
}

fn model_matches(model: &Model, clauses: &[Clause]) -> bool {
    prompts_wanted(&model.tags, clauses)
        && clauses.iter().all(|clause| match (clause.entity, clause.key.as_str()) {
            (Entity::Tag, _) => tag_matches(&model.tags, clause),
            (_, "creation_timestamp") => clause.test.integer(Some(model.created_at.millis())),
            (_, "last_updated_timestamp") => clause.test.integer(Some(model.updated_at.millis())),
            _ => clause.test.text(Some(model.name.as_str())),
        })
}

fn names_match(model: &Model, clauses: &[Clause]) -> bool {
    let names = clauses.iter().filter(|clause| clause.entity == Entity::Attribute && clause.key == "name");
    prompts_wanted(&model.tags, clauses) && names.into_iter().all(|clause| clause.test.text(Some(model.name.as_str())))
}

fn version_matches(version: &ModelVersion, model: &ModelName, clauses: &[Clause]) -> bool {
    prompts_wanted(&version.tags, clauses)
        && clauses.iter().all(|clause| match (clause.entity, clause.key.as_str()) {
            (Entity::Tag, _) => tag_matches(&version.tags, clause),
            (_, "version_number") => clause.test.integer(i64::try_from(version.version).ok()),
            (_, "run_id") => clause.test.text(version.run_id.as_deref()),
            (_, "source_path") => clause.test.text(version.logged.as_ref().map(|logged| logged.source.as_str())),
            (_, "creation_timestamp") => clause.test.integer(Some(version.created_at.millis())),
            (_, "last_updated_timestamp") => clause.test.integer(Some(version.updated_at.unwrap_or(version.created_at).millis())),
            _ => clause.test.text(Some(model.as_str())),
        })
}

fn ordered(order: &[Order], compare: impl Fn(&str) -> Ordering) -> Ordering {
    let turned = |key: &Order| if key.ascending { compare(&key.key) } else { compare(&key.key).reverse() };
    order.iter().map(turned).find(|by| by.is_ne()).unwrap_or(Ordering::Equal)
}

/// What models and versions are ordered by.
struct Brief {
    name: ModelName,
    version: u64,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl Brief {
    fn of(model: &Model) -> Self {
        Self { name: model.name.clone(), version: 0, created_at: model.created_at, updated_at: model.updated_at }
    }

    fn of_version(version: &ModelVersion) -> Self {
        let updated_at = version.updated_at.unwrap_or(version.created_at);
        Self { name: version.model.clone(), version: version.version, created_at: version.created_at, updated_at }
    }

    fn compared(&self, key: &str, other: &Self) -> Ordering {
        match key {
            "version_number" => self.version.cmp(&other.version),
            "creation_timestamp" => self.created_at.cmp(&other.created_at),
            "last_updated_timestamp" => self.updated_at.cmp(&other.updated_at),
            _ => self.name.cmp(&other.name),
        }
    }
}
