//! Deployments: a name under which a model version answers predictions. A deployment is desired state and nothing else: it names a model and a
//! version, or an alias that is looked up anew after each change. Cells follow when a prediction asks for them.

use serde::{Deserialize, Serialize};
use tenancy::act::{DeploymentRead, DeploymentWrite, Predict};
use tenancy::{Name, Permit, Record, Resource, Rows};
use utoipa::ToSchema;

use crate::dataset::version_key;
use crate::error::{Error, Result};
use crate::model::{Loadable, Model, ModelName, StoredModelVersion, Tensor};
use crate::page::{Page, PageRequest, Timestamp};
use crate::platform::Platform;

/// What an Open Inference Protocol client is told the model runs on.
pub const OIP_PLATFORM: &str = "onnxruntime_onnx";

/// A deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
    /// The version that answers now; absent when the alias points nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving_version: Option<u64>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Who changed it last.
    pub updated_by: String,
}

/// Desired state: a model, and a version or an alias.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeploymentRequest {
    /// The registered model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// A fixed version.
    pub version: Option<u64>,
    /// Or an alias of the model, followed when it moves.
    pub alias: Option<String>,
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

impl Platform {
    /// Makes or changes a deployment. What it names must exist.
    ///
    /// # Errors
    /// Not found; both or neither of version and alias; [`Error::NotDeployable`].
    pub async fn deployment_put(&self, permit: &Permit<DeploymentWrite>, request: DeploymentRequest) -> Result<Deployment> {
        let name: Name = permit.resource().parse()?;
        if request.version.is_some() == request.alias.is_some() {
            return Err(Error::invalid("give either `version` or `alias`"));
        }
        let mut tx = permit.tx().await?;
        let model = tx.get::<Model>(request.model.as_str()).await?.ok_or(Error::not_found("model"))?;
        let serving = match &request.alias {
            Some(alias) => *model.aliases.get(alias).ok_or(Error::not_found("alias"))?,
            None => request.version.unwrap_or_default(),
        };
        let stored = tx.get::<StoredModelVersion>(&version_key(model.name.as_str(), serving)).await?;
        let loadable = stored.ok_or(Error::not_found("model version"))?.loadable()?;
        let now = Timestamp::now();
        let before = tx.get::<Deployment>(name.as_str()).await?;
        if before.is_none() {
            tx.charge(Resource::Deployments, 1).await?;
        }
        let mut deployment = Deployment {
            name,
            model: request.model,
            version: request.version,
            alias: request.alias,
            serving_version: None,
            created_at: before.map_or(now, |deployment| deployment.created_at),
            updated_at: now,
            updated_by: permit.principal().to_owned(),
        };
        tx.put(&deployment).await?;
        permit.detail("model", deployment.model.to_string());
        permit.detail("model_version", serving.to_string());
        permit.detail("sha256", loadable.onnx.sha256);
        tx.commit().await?;
        deployment.serving_version = Some(serving);
        Ok(deployment)
    }

    /// Deployments by name.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn deployment_list(&self, permit: &Permit<DeploymentRead>, page: &PageRequest) -> Result<Page<Deployment>> {
        let rows = permit.rows();
        let mut items = rows.list::<Deployment>(page.after.as_deref(), page.limit() + 1, None).await?;
        for deployment in &mut items {
            deployment.serving_version = serving_version(&rows, deployment).await?;
        }
        Ok(Page::cut(items, page.limit(), Record::key))
    }

    /// One deployment.
    ///
    /// # Errors
    /// Not found.
    pub async fn deployment_get(&self, permit: &Permit<DeploymentRead>) -> Result<Deployment> {
        let rows = permit.rows();
        let mut deployment = rows.get::<Deployment>(permit.resource()).await?.ok_or(Error::not_found("deployment"))?;
        deployment.serving_version = serving_version(&rows, &deployment).await?;
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

    /// What the Open Inference Protocol says of a model. `version`, when given, must be the one that answers.
    ///
    /// # Errors
    /// Not found.
    pub async fn deployment_metadata(&self, permit: &Permit<DeploymentRead>, version: Option<&str>) -> Result<OipMetadata> {
        let stored = serving(&permit.rows(), permit.resource(), version).await?;
        Ok(OipMetadata {
            name: permit.resource().to_owned(),
            versions: vec![stored.number.to_string()],
            platform: OIP_PLATFORM.to_owned(),
            inputs: stored.onnx.inputs,
            outputs: stored.onnx.outputs,
        })
    }

    /// Whether a prediction would find a model. Starts no cell: cells start on demand.
    ///
    /// # Errors
    /// Not found.
    pub async fn deployment_ready(&self, permit: &Permit<DeploymentRead>, version: Option<&str>) -> Result<()> {
        serving(&permit.rows(), permit.resource(), version).await?;
        Ok(())
    }
}

/// The version that a deployment means now.
async fn serving_version(rows: &Rows<'_>, deployment: &Deployment) -> Result<Option<u64>> {
    let Some(alias) = &deployment.alias else { return Ok(deployment.version) };
    Ok(rows.get::<Model>(deployment.model.as_str()).await?.and_then(|model| model.aliases.get(alias).copied()))
}

/// The stored version that answers for a deployment.
pub(crate) async fn serving(rows: &Rows<'_>, name: &str, version: Option<&str>) -> Result<Loadable> {
    let deployment = rows.get::<Deployment>(name).await?.ok_or(Error::not_found("deployment"))?;
    let number = serving_version(rows, &deployment).await?.ok_or(Error::not_found("model version"))?;
    if version.is_some_and(|version| version != number.to_string()) {
        return Err(Error::not_found("deployment version"));
    }
    let key = version_key(deployment.model.as_str(), number);
    // An alias may have moved to a version that holds no ONNX.
    rows.get::<StoredModelVersion>(&key).await?.ok_or(Error::not_found("model version"))?.loadable()
}

/// As [`serving`], for a prediction.
pub(crate) async fn serving_for(permit: &Permit<Predict>) -> Result<Loadable> {
    serving(&permit.rows(), permit.resource(), None).await
}
