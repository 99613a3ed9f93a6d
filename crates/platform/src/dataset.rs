//! Data sets: uploaded in versions, checked row by row in a cell, kept sealed, read back byte for byte.
//!
//! An upload is written to a sealed blob while it arrives, whatever its size, in bounded memory. Then a cell pulls it, piece by
//! piece, and reports format, schema and statistics, or the first bad row with line and column. Only after that one transaction
//! makes the version; before it nothing can be seen, and a blob without a version is unlinked. The service itself never parses
//! a byte of it.
//!
//! Which data set an operation is about is what its permit was given for: there is no second name that could differ.

use std::io;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tenancy::act::{DatasetDelete, DatasetRead, DatasetWrite};
use tenancy::{BlobId, Name, Permit, Record, Tx};
use utoipa::ToSchema;
use wire::{ColumnKind, Format};

use crate::cells::{Source, blob_stream};
use crate::error::{Error, Result};
use crate::page::{Page, PageRequest, Timestamp};
use crate::platform::Platform;
use crate::prediction::PredictionLineage;

/// Rows of one preview at most.
pub const PREVIEW_ROWS_MAX: u32 = 1000;

/// A data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dataset {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Number of the newest version.
    pub latest_version: u64,
    /// When the first version was uploaded.
    pub created_at: Timestamp,
    /// When the newest version was uploaded.
    pub updated_at: Timestamp,
}

/// One immutable version of a data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DatasetVersion {
    /// Name of the data set.
    #[schema(value_type = String)]
    pub dataset: Name,
    /// 1, 2, 3, …
    pub version: u64,
    /// `csv`, `ndjson`, `parquet` or `arrow`, as found in the content.
    #[schema(value_type = String)]
    pub format: Format,
    /// Length in bytes, as uploaded.
    pub bytes: u64,
    /// SHA-256 of the uploaded bytes, lower-case hex.
    pub sha256: String,
    /// Rows, a header not counted.
    pub rows: u64,
    /// Columns in file order.
    pub columns: Vec<Column>,
    /// What it was made of; absent when somebody uploaded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<PredictionLineage>,
    /// When it was uploaded or made.
    pub created_at: Timestamp,
    /// Who uploaded it, or had it made.
    pub created_by: String,
}

/// One column with statistics over all rows. Numeric figures are absent where they make no sense.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Column {
    /// Name as in the file.
    pub name: String,
    /// `integer`, `number`, `boolean`, `text`, `time`, `empty` or `other`.
    #[schema(value_type = String)]
    pub kind: ColumnKind,
    /// Rows without a value.
    pub missing: u64,
    /// Distinct values; exact up to 1,000, then absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct: Option<u64>,
    /// Smallest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Arithmetic mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    /// Sample standard deviation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_deviation: Option<f64>,
    /// Most frequent texts with their counts, at most ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<ValueCount>,
}

/// A text and how often it occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ValueCount {
    /// The text.
    pub value: String,
    /// Rows.
    pub count: u64,
}

/// Which rows to show.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviewRequest {
    /// Version; the newest when absent.
    pub version: Option<u64>,
    /// First row; 0 when absent.
    pub offset: Option<u64>,
    /// Number of rows, 1 to 1,000; 20 when absent.
    pub rows: Option<u32>,
}

/// A few rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DatasetPreview {
    /// The version shown.
    pub version: u64,
    /// Column names.
    pub columns: Vec<String>,
    /// A value a column, in order; missing is null.
    #[schema(value_type = Vec<Vec<Object>>)]
    pub rows: Vec<Vec<serde_json::Value>>,
}

/// What the rows hold of a version: its description and where its bytes are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StoredVersion {
    pub(crate) version: DatasetVersion,
    pub(crate) blob: BlobId,
}

impl Record for Dataset {
    const KIND: &'static str = "dataset";
    fn key(&self) -> String {
        self.name.to_string()
    }
}

impl Record for StoredVersion {
    const KIND: &'static str = "dataset_version";
    fn key(&self) -> String {
        version_key(self.version.dataset.as_str(), self.version.version)
    }
}

/// Orders as the numbers do.
pub(crate) fn version_key(name: &str, version: u64) -> String {
    format!("{name}/{version:010}")
}

impl Platform {
    /// Data sets by name.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn dataset_list(&self, permit: &Permit<DatasetRead>, page: &PageRequest) -> Result<Page<Dataset>> {
        let items = permit.rows().list::<Dataset>(page.after.as_deref(), page.limit(), None).await?;
        Ok(Page::of(items, Record::key))
    }

    /// One data set.
    ///
    /// # Errors
    /// Not found.
    pub async fn dataset_get(&self, permit: &Permit<DatasetRead>) -> Result<Dataset> {
        permit.rows().get::<Dataset>(permit.resource()).await?.ok_or(Error::not_found("dataset"))
    }

    /// Versions of a data set, oldest first.
    ///
    /// # Errors
    /// Not found.
    pub async fn dataset_versions(&self, permit: &Permit<DatasetRead>, page: &PageRequest) -> Result<Page<DatasetVersion>> {
        self.dataset_get(permit).await?;
        let prefix = format!("{}/", permit.resource());
        let after = page.after.as_deref().map(|after| version_after(permit.resource(), after)).transpose()?;
        let items = permit.rows().list::<StoredVersion>(after.as_deref(), page.limit(), Some(&prefix)).await?;
        Ok(Page::of(items, |stored| stored.version.version.to_string()).map(|stored| stored.version))
    }

    /// One version, the newest when `version` is `None`.
    ///
    /// # Errors
    /// Not found.
    pub async fn dataset_version(&self, permit: &Permit<DatasetRead>, version: Option<u64>) -> Result<DatasetVersion> {
        Ok(stored_version(permit, version).await?.version)
    }

    /// Stores a stream as the next version. `format` demands one; `None` tells it from the content.
    ///
    /// # Errors
    /// [`Error::Input`] with the place of the first bad row, too large, broken off, quota; nothing is stored then.
    pub async fn dataset_upload(
        &self,
        permit: &Permit<DatasetWrite>,
        format: Option<Format>,
        stream: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<DatasetVersion> {
        let name: Name = permit.resource().parse()?;
        let sealed = self.receive(permit, stream, "upload", self.config().upload_bytes_max).await?;
        if sealed.bytes() == 0 {
            return Err(Error::invalid("the data set is empty"));
        }
        let inspect = wire::Inspect {
            source_bytes: sealed.bytes(),
            format,
            rows_max: self.config().rows_max,
            columns_max: self.config().columns_max,
        };
        let source = Source::blob(sealed.open().await?);
        let inspection = self.cells().inspect(&self.owner(permit), inspect, source).await?;
        let mut tx = permit.tx().await?;
        let version = version_insert(&mut tx, name, sealed, inspection, None).await?;
        tx.commit().await?;
        Ok(version)
    }

    /// A few rows, read in a cell.
    ///
    /// # Errors
    /// Not found, and what a cell can fail with.
    pub async fn dataset_preview(&self, permit: &Permit<DatasetRead>, request: &PreviewRequest) -> Result<DatasetPreview> {
        let stored = stored_version(permit, request.version).await?;
        let preview = wire::Preview {
            source_bytes: stored.version.bytes,
            format: stored.version.format,
            offset: request.offset.unwrap_or(0),
            rows: request.rows.unwrap_or(20).clamp(1, PREVIEW_ROWS_MAX),
        };
        let source = Source::blob(permit.blobs().open(stored.blob).await?);
        let rows = self.cells().preview(&self.owner(permit), preview, source).await?;
        Ok(DatasetPreview { version: stored.version.version, columns: rows.columns, rows: rows.rows })
    }

    /// The uploaded bytes, and what they are.
    ///
    /// # Errors
    /// Not found, or stored bytes that fail their integrity check; the latter also as the last item of the stream.
    pub async fn dataset_read(
        &self,
        permit: &Permit<DatasetRead>,
        version: Option<u64>,
    ) -> Result<(DatasetVersion, impl Stream<Item = io::Result<Bytes>> + Send + use<>)> {
        let stored = stored_version(permit, version).await?;
        permit.detail("sha256", stored.version.sha256.clone());
        let reader = permit.blobs().open(stored.blob).await?;
        Ok((stored.version, blob_stream(reader)))
    }

    /// Removes a data set with all versions. Runs and models keep the digest of what they were trained on.
    ///
    /// # Errors
    /// Not found.
    pub async fn dataset_delete(&self, permit: &Permit<DatasetDelete>) -> Result<()> {
        let name = permit.resource();
        let mut tx = permit.tx().await?;
        if !tx.delete::<Dataset>(name).await? {
            return Err(Error::not_found("dataset"));
        }
        let prefix = format!("{name}/");
        loop {
            let versions = tx.list::<StoredVersion>(None, DELETE_BATCH, Some(&prefix)).await?;
            for stored in versions.records {
                tx.delete::<StoredVersion>(&stored.key()).await?;
                tx.detach(stored.blob).await?;
            }
            if versions.next.is_none() {
                break;
            }
        }
        tx.commit().await?;
        Ok(())
    }
}

/// Makes the next version of a data set, out of what a cell said of its bytes.
pub(crate) async fn version_insert(
    tx: &mut Tx<'_>,
    name: Name,
    sealed: tenancy::StoredUpload,
    inspection: wire::Inspection,
    lineage: Option<PredictionLineage>,
) -> Result<DatasetVersion> {
    let now = Timestamp::now();
    let before = tx.get::<Dataset>(name.as_str()).await?;
    let number = before.as_ref().map_or(0, |dataset| dataset.latest_version) + 1;
    let version = DatasetVersion {
        dataset: name.clone(),
        version: number,
        format: inspection.format,
        bytes: sealed.bytes(),
        sha256: hex(&sealed.sha256()),
        rows: inspection.rows,
        columns: inspection.columns.into_iter().map(Column::from).collect(),
        lineage,
        created_at: now,
        created_by: tx.principal().to_owned(),
    };
    tx.detail("sha256", version.sha256.clone());
    tx.detail("dataset_version", number);
    let stored = StoredVersion { version, blob: sealed.id() };
    let created_at = before.map_or(now, |dataset| dataset.created_at);
    tx.put(&Dataset { name, latest_version: number, created_at, updated_at: now }).await?;
    tx.insert(&stored).await?;
    tx.attach(sealed).await?;
    Ok(stored.version)
}

/// Versions deleted in one step of a transaction.
const DELETE_BATCH: u32 = 200;

impl From<wire::ColumnSummary> for Column {
    fn from(summary: wire::ColumnSummary) -> Self {
        let statistics = summary.statistics;
        Self {
            name: summary.name,
            kind: summary.kind,
            missing: statistics.missing,
            distinct: statistics.distinct,
            min: statistics.min,
            max: statistics.max,
            mean: statistics.mean,
            standard_deviation: statistics.standard_deviation,
            top: statistics.top.into_iter().map(|(value, count)| ValueCount { value, count }).collect(),
        }
    }
}

/// The version that is meant: a number, or the newest.
pub(crate) async fn stored_version(permit: &Permit<DatasetRead>, version: Option<u64>) -> Result<StoredVersion> {
    let rows = permit.rows();
    let dataset = rows.get::<Dataset>(permit.resource()).await?.ok_or(Error::not_found("dataset"))?;
    let key = version_key(dataset.name.as_str(), version.unwrap_or(dataset.latest_version));
    rows.get::<StoredVersion>(&key).await?.ok_or(Error::not_found("dataset version"))
}

/// The list key behind a page's `next`, which is the bare number.
pub(crate) fn version_after(name: &str, after: &str) -> Result<String> {
    let number: u64 = after.parse().map_err(|_| Error::invalid("`after` is not a version number"))?;
    Ok(version_key(name, number))
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

impl Platform {
    /// Seals a stream while it arrives, up to `bytes_max`. Dropping the future unlinks what was written.
    pub(crate) async fn receive<A: tenancy::act::Act<Mode = tenancy::act::Writes>>(
        &self,
        permit: &Permit<A>,
        stream: impl Stream<Item = io::Result<Bytes>> + Send,
        what: &'static str,
        bytes_max: u64,
    ) -> Result<tenancy::StoredUpload> {
        let mut writer = permit.blob_create().await?;
        let mut stream = std::pin::pin!(stream);
        let mut bytes = 0u64;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|_| Error::UploadInterrupted)?;
            bytes = bytes.saturating_add(piece.len() as u64);
            if bytes > bytes_max {
                return Err(Error::TooLarge { what, bytes_max });
            }
            writer.write(piece).await?;
        }
        Ok(writer.finish().await?)
    }
}
