//! Data sets.

use futures_util::StreamExt;
use http::{Method, StatusCode};
use platform::tenancy::Permit;
use platform::tenancy::act::{DatasetDelete, DatasetRead, DatasetWrite};
use platform::wire::Format;
use platform::{Dataset, DatasetPreview, DatasetVersion, PREVIEW_ROWS_MAX, PreviewRequest};

use super::{DELETE, GET, PUT};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;

pub(super) fn register(api: &mut Api) {
    api.tenant_route(GET, "/v1/datasets", Doc::new("dataset_list", "Data sets by name").pages::<Dataset>(), list);
    api.tenant_route(GET, "/v1/datasets/{name}", Doc::new("dataset_get", "One data set").answers::<Dataset>(), get);
    api.tenant_route(PUT, "/v1/datasets/{name}", upload_doc("dataset_upload"), upload);
    api.tenant_route(DELETE, "/v1/datasets/{name}", Doc::new("dataset_delete", "Delete a data set with all versions").status(204), delete);
    api.tenant_route(
        GET,
        "/v1/datasets/{name}/versions",
        Doc::new("dataset_version_list", "Versions of a data set").pages::<DatasetVersion>(),
        versions,
    );
    api.tenant_route(Method::POST, "/v1/datasets/{name}/versions", upload_doc("dataset_version_upload"), upload);
    api.tenant_route(
        GET,
        "/v1/datasets/{name}/versions/{version}",
        Doc::new("dataset_version_get", "One version with schema and statistics; `latest` is the newest").answers::<DatasetVersion>(),
        version,
    );
    api.tenant_route(
        GET,
        "/v1/datasets/{name}/versions/{version}/preview",
        Doc::new("dataset_preview", "Some rows of a version")
            .query("offset", "integer", "rows to skip")
            .query("rows", "integer", "rows to show, 1 to 1000; 20 when absent")
            .answers::<DatasetPreview>(),
        preview,
    );
    api.tenant_route(
        GET,
        "/v1/datasets/{name}/versions/{version}/content",
        Doc::new("dataset_read", "The bytes as they were uploaded").answers_stream("application/octet-stream", "the file"),
        content,
    );
}

fn upload_doc(operation: &'static str) -> Doc {
    Doc::new(operation, "Upload a new version: CSV, Parquet, NDJSON or Arrow IPC, of any size")
        .query("format", "string", "csv, ndjson, parquet or arrow; told from content when absent")
        .takes_stream("application/octet-stream", "the file")
        .answers::<DatasetVersion>()
        .status(201)
}

async fn list(permit: &Permit<DatasetRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.dataset_list(permit, &ask.page()?).await?)
}

async fn get(permit: &Permit<DatasetRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.dataset_get(permit).await?)
}

async fn upload(permit: &Permit<DatasetWrite>, ask: Ask) -> Result<Reply> {
    let format = format(&ask)?;
    let service = ask.service.clone();
    let stream = ask.body.stream(service.upload_bytes_max);
    let version = service.platform.dataset_upload(permit, format, stream).await?;
    let location = format!("/v1/datasets/{}/versions/{}", version.dataset, version.version);
    Ok(Reply::json(&version)?.created(&location))
}

/// The format that the query or the content type names; the cell looks at the bytes in any case.
fn format(ask: &Ask) -> Result<Option<Format>> {
    match ask.query("format")?.as_deref() {
        Some("csv") => return Ok(Some(Format::Csv)),
        Some("ndjson") => return Ok(Some(Format::Ndjson)),
        Some("parquet") => return Ok(Some(Format::Parquet)),
        Some("arrow") => return Ok(Some(Format::Arrow)),
        Some(_) => return Err(Fail::new("query_invalid", "`format` is csv, ndjson, parquet or arrow")),
        None => {}
    }
    Ok(match ask.media_type().as_deref() {
        Some("text/csv") => Some(Format::Csv),
        Some("application/x-ndjson" | "application/jsonl") => Some(Format::Ndjson),
        Some("application/vnd.apache.parquet") => Some(Format::Parquet),
        Some("application/vnd.apache.arrow.file" | "application/vnd.apache.arrow.stream") => Some(Format::Arrow),
        _ => None,
    })
}

async fn delete(permit: &Permit<DatasetDelete>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    ask.no_body().await?;
    service.platform.dataset_delete(permit).await?;
    Ok(Reply::empty())
}

async fn versions(permit: &Permit<DatasetRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.dataset_versions(permit, &ask.page()?).await?)
}

/// The version that the path names; none is the newest.
fn wanted(ask: &Ask) -> Result<Option<u64>> {
    if ask.parameter("version") == "latest" { Ok(None) } else { ask.number("version", "dataset version").map(Some) }
}

async fn version(permit: &Permit<DatasetRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.dataset_version(permit, wanted(&ask)?).await?)
}

async fn preview(permit: &Permit<DatasetRead>, ask: Ask) -> Result<Reply> {
    let rows = ask.query_as("rows", "a number")?;
    if rows.is_some_and(|rows| !(1..=PREVIEW_ROWS_MAX).contains(&rows)) {
        return Err(Fail::new("query_invalid", format!("`rows` is 1 to {PREVIEW_ROWS_MAX}")));
    }
    let request = PreviewRequest { version: wanted(&ask)?, offset: ask.query_as("offset", "a number")?, rows };
    Reply::json(&ask.service.platform.dataset_preview(permit, &request).await?)
}

async fn content(permit: &Permit<DatasetRead>, ask: Ask) -> Result<Reply> {
    let (version, stream) = ask.service.platform.dataset_read(permit, wanted(&ask)?).await?;
    Ok(Reply::stream("application/octet-stream", Some(version.bytes), stream.map(|piece| piece.map_err(Fail::internal)).boxed())
        .status(StatusCode::OK)
        .header(http::header::ETAG, &format!("\"{}\"", version.sha256)))
}
