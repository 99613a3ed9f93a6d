//! Artifacts through the proxy. Files stream both ways; what is large goes the same way as what is small, so the routes by which a client
//! would ask for parts or for addresses of a bucket answer that they are not supported, and the client falls back.

use futures_util::StreamExt;
use http::Method;
use http::header::{ETAG, HeaderName};
use platform::Artifact;
use platform::tenancy::Permit;
use platform::tenancy::act::{ArtifactDelete, ArtifactRead, ArtifactWrite, RunRead};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;

/// A file is what its bytes are, whatever its name says: no browser shall guess.
const NO_SNIFF: HeaderName = http::header::X_CONTENT_TYPE_OPTIONS;
/// Any bytes.
const MEDIA: &str = "application/octet-stream";

pub(super) fn register(api: &mut Api) {
    const PATH: &str = "/api/2.0/mlflow-artifacts/artifacts/{path...}";
    api.mlflow_route(
        Method::GET,
        "/api/2.0/mlflow-artifacts/artifacts",
        Doc::new("mlflow_artifact_folder", "What is in a folder of artifacts").query("path", "string", "experiment, run or model, folder"),
        "path",
        folder,
    );
    api.tenant_route(
        Method::GET,
        PATH,
        Doc::new("mlflow_artifact_download", "Download an artifact").answers_stream(MEDIA, "file"),
        download,
    );
    api.tenant_route(Method::PUT, PATH, Doc::new("mlflow_artifact_upload", "Upload an artifact").takes_stream(MEDIA, "file"), upload);
    api.tenant_route(Method::DELETE, PATH, Doc::new("mlflow_artifact_delete", "Delete an artifact, or a folder"), delete);
    api.mlflow_route(
        Method::GET,
        "/api/2.0/mlflow/artifacts/list",
        Doc::new("mlflow_artifact_list", "What is in a folder of a run's artifacts")
            .query("run_id", "string", "run")
            .query("path", "string", "folder"),
        "run_id",
        list,
    );
    let parts = |operation| Doc::new(operation, "Uploads in parts are not supported: clients send the file in one piece");
    api.tenant_route(Method::POST, "/api/2.0/mlflow-artifacts/mpu/create/{path...}", parts("mlflow_parts_create"), no_parts);
    api.tenant_route(Method::POST, "/api/2.0/mlflow-artifacts/mpu/complete/{path...}", parts("mlflow_parts_complete"), no_parts);
    api.tenant_route(Method::POST, "/api/2.0/mlflow-artifacts/mpu/abort/{path...}", parts("mlflow_parts_abort"), no_parts);
    api.tenant_route(
        Method::GET,
        "/api/2.0/mlflow-artifacts/presigned/{path...}",
        Doc::new("mlflow_artifact_presigned", "Addresses of a bucket are never given out: clients download through the service"),
        no_address,
    );
}

/// One entry of a folder.
#[derive(Serialize)]
pub(super) struct FileInfo {
    path: String,
    is_dir: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_size: Option<u64>,
}

impl FileInfo {
    /// With its whole path.
    pub(super) fn whole(artifact: Artifact) -> Self {
        Self { is_dir: artifact.is_dir(), file_size: artifact.file.map(|file| file.bytes), path: artifact.path }
    }

    /// With its name alone.
    fn named(artifact: &Artifact) -> Self {
        let file_size = artifact.file.as_ref().map(|file| file.bytes);
        Self { path: artifact.name().to_owned(), is_dir: artifact.is_dir(), file_size }
    }
}

#[derive(Deserialize)]
struct Folder {
    #[serde(default)]
    path: String,
}

async fn folder(permit: &Permit<ArtifactRead>, mut ask: Ask) -> Result<Reply> {
    let asked: Folder = ask.fields()?;
    let found = ask.service.platform.artifact_list(permit, &asked.path).await?;
    Reply::json(&json!({"files": found.iter().map(FileInfo::named).collect::<Vec<_>>()}))
}

async fn list(permit: &Permit<RunRead>, mut ask: Ask) -> Result<Reply> {
    let asked: Folder = ask.fields()?;
    let (root_uri, found) = ask.service.platform.run_artifacts(permit, &asked.path).await?;
    Reply::json(&json!({"root_uri": root_uri, "files": found.into_iter().map(FileInfo::whole).collect::<Vec<_>>()}))
}

async fn download(permit: &Permit<ArtifactRead>, ask: Ask) -> Result<Reply> {
    let (artifact, stream) = ask.service.platform.artifact_get(permit, ask.parameter("path")).await?;
    let file = artifact.file.as_ref().ok_or_else(|| Fail::internal("a folder was opened"))?;
    Ok(Reply::stream(MEDIA, Some(file.bytes), stream.map(|piece| piece.map_err(Fail::internal)).boxed())
        .header(ETAG, &format!("\"{}\"", file.sha256))
        .header(NO_SNIFF, "nosniff"))
}

async fn upload(permit: &Permit<ArtifactWrite>, ask: Ask) -> Result<Reply> {
    let (service, path) = (ask.service.clone(), ask.parameter("path").to_owned());
    let stream = ask.body.stream(service.upload_bytes_max);
    service.platform.artifact_put(permit, &path, stream).await?;
    Reply::json(&json!({}))
}

async fn delete(permit: &Permit<ArtifactDelete>, ask: Ask) -> Result<Reply> {
    ask.service.platform.artifact_delete(permit, ask.parameter("path")).await?;
    Reply::json(&json!({}))
}

async fn no_parts(_permit: &Permit<ArtifactWrite>, _ask: Ask) -> Result<Reply> {
    // The client looks at how this begins.
    Err(Fail::new("unsupported", "Multipart upload is not supported for the current artifact repository: send the file in one piece"))
}

async fn no_address(_permit: &Permit<ArtifactRead>, _ask: Ask) -> Result<Reply> {
    Err(Fail::new("unsupported", "Presigned downloads are not supported: download through the service"))
}
