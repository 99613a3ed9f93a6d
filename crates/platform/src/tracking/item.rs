//! What a run consists of beside its own record: one small record for each parameter, tag, metric, input and output.
//!
//! ```text
//! run_item  {run}/p/{hash of the name}   a parameter: never changes
//!           {run}/t/…                    a tag
//!           {run}/m/…                    a metric with its newest points
//!           {run}/d/…                    a data set that went in
//!           {run}/i/…  {run}/o/…         logged models that went in and came out
//!           {run}/j/{number}             points that wait to be sorted to their metrics
//! ```
//! So logging one thing touches one of them, and a whole run is read with one listing.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tenancy::{Record, Resource, Snapshot, Tx};

use super::check::name_hash;
use super::journal::{Journal, merged};
use super::metric::{Metric, MetricBlock, MetricHead};
use crate::error::{Error, Result};

/// Records read at once.
const READ_ITEMS: u32 = 1000;
/// Schema, profile and source of a data set that are kept in memory, in bytes; longer ones are read when they are shown.
const DATASET_HELD_BYTES_MAX: usize = 2048;
/// Texts of one run that are read at once, in bytes.
const RUN_BYTES_MAX: usize = 32 << 20;
/// What a record counts of the tenant's stored bytes beside its texts.
pub(crate) const RECORD_BYTES: u64 = 256;
/// What a metric, and each block of its points, counts of the tenant's stored bytes: about what a full one takes.
pub(crate) const METRIC_BYTES: u64 = 4096;

/// A part of a run. `M` is [`Metric`], or [`MetricHead`] for who does not need the points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunItem<M> {
    #[serde(rename = "r")]
    pub(crate) run: String,
    #[serde(rename = "v")]
    pub(crate) part: Part<M>,
}

/// What a part is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Part<M> {
    /// A parameter.
    #[serde(rename = "p")]
    Param(Text),
    /// A tag.
    #[serde(rename = "t")]
    Tag(Text),
    /// A metric.
    #[serde(rename = "m")]
    Metric(M),
    /// A data set that the run used.
    #[serde(rename = "d")]
    Dataset(DatasetInput),
    /// A logged model that the run used.
    #[serde(rename = "i")]
    ModelInput(ModelInput),
    /// A logged model that the run made.
    #[serde(rename = "o")]
    ModelOutput(ModelOutput),
    /// Points of several metrics.
    #[serde(rename = "j")]
    Journal(Journal),
}

/// A key with a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Its name.
    #[serde(rename = "k")]
    pub key: String,
    /// Its value.
    #[serde(rename = "v")]
    pub value: String,
}

/// A data set that a run used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetInput {
    /// Which one.
    pub dataset: DatasetInfo,
    /// What for, as tags.
    #[serde(default)]
    pub tags: Vec<Text>,
    /// Its longest texts are missing: it is as it is kept in memory.
    #[serde(skip)]
    pub cut: bool,
}

/// A data set in MLflow's terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// Its name.
    pub name: String,
    /// Says which bytes.
    pub digest: String,
    /// Kind of its source.
    pub source_type: String,
    /// Where it came from.
    pub source: String,
    /// Its schema, as the client wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Its profile, as the client wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

/// A logged model that a run used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInput {
    /// Its id.
    pub model_id: String,
}

/// A logged model that a run made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelOutput {
    /// Its id.
    pub model_id: String,
    /// At which step.
    pub step: i64,
}

/// Before the keys of a run's waiting points.
pub(crate) fn journal_prefix(run: &str) -> String {
    format!("{run}/j/")
}

/// What has a name.
pub(crate) trait Named {
    fn name(&self) -> &str;
}

impl Named for Metric {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for MetricHead {
    fn name(&self) -> &str {
        &self.name
    }
}

/// Key of the metric of this name.
pub(crate) fn metric_key(run: &str, name: &str) -> String {
    format!("{run}/m/{}", name_hash(name))
}

/// Key of the parameter of this name.
pub(crate) fn param_key(run: &str, name: &str) -> String {
    format!("{run}/p/{}", name_hash(name))
}

/// Key of the tag of this name.
pub(crate) fn tag_key(run: &str, name: &str) -> String {
    format!("{run}/t/{}", name_hash(name))
}

impl<M: Named + Serialize + DeserializeOwned + Send + Sync> Record for RunItem<M> {
    const KIND: &'static str = "run_item";
    fn key(&self) -> String {
        let run = &self.run;
        match &self.part {
            Part::Param(text) => param_key(run, &text.key),
            Part::Tag(text) => tag_key(run, &text.key),
            Part::Metric(metric) => metric_key(run, metric.name()),
            Part::Dataset(input) => format!("{run}/d/{}", name_hash(&format!("{}\0{}", input.dataset.name, input.dataset.digest))),
            Part::ModelInput(input) => format!("{run}/i/{}", name_hash(&input.model_id)),
            Part::ModelOutput(output) => format!("{run}/o/{}", name_hash(&output.model_id)),
            Part::Journal(journal) => format!("{}{:04}", journal_prefix(run), journal.number),
        }
    }
}

impl RunItem<Metric> {
    pub(crate) fn new(run: &str, part: Part<Metric>) -> Self {
        Self { run: run.to_owned(), part }
    }
}

impl<M> Part<M> {
    /// What it counts of the tenant's stored bytes.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let text = |text: &Text| text.key.len() + text.value.len();
        let texts = match self {
            Self::Metric(_) => return METRIC_BYTES,
            Self::Param(param) => text(param),
            Self::Tag(tag) => text(tag),
            Self::Dataset(DatasetInput { dataset, tags, .. }) => {
                let more = [&dataset.schema, &dataset.profile].into_iter().flatten().map(String::len).sum::<usize>();
                let own = dataset.name.len() + dataset.digest.len() + dataset.source_type.len() + dataset.source.len();
                own + more + tags.iter().map(text).sum::<usize>()
            }
            Self::Journal(journal) => journal.points.iter().map(|(name, point)| name.len() + size_of_val(point)).sum(),
            Self::ModelInput(_) | Self::ModelOutput(_) => 0,
        };
        RECORD_BYTES + texts as u64
    }
}

impl Part<MetricHead> {
    /// As it is kept in memory: of a data set without its longest texts.
    pub(crate) fn held(mut self) -> Self {
        if let Self::Dataset(DatasetInput { dataset, cut, .. }) = &mut self {
            let texts = [Some(&dataset.source), dataset.schema.as_ref(), dataset.profile.as_ref()];
            if texts.into_iter().flatten().map(String::len).sum::<usize>() > DATASET_HELD_BYTES_MAX {
                (dataset.schema, dataset.profile, dataset.source, *cut) = (None, None, String::new(), true);
            }
        }
        self
    }

    /// About what it takes in memory.
    pub(crate) fn held_bytes(&self) -> usize {
        match self {
            Self::Metric(head) => size_of::<Self>() + head.name.len(),
            other => usize::try_from(other.stored_bytes()).unwrap_or(usize::MAX),
        }
    }
}

/// What a change adds to the tenant's stored bytes, and takes from them.
#[derive(Debug, Default)]
pub(crate) struct Balance {
    pub(crate) added: u64,
    pub(crate) removed: u64,
}

impl Balance {
    /// Counts it as part of the transaction.
    ///
    /// # Errors
    /// The kernel's quota error when the tenant has no bytes left.
    pub(crate) async fn settle(self, tx: &mut Tx<'_>) -> Result<()> {
        match (self.added.saturating_sub(self.removed), self.removed.saturating_sub(self.added)) {
            (0, 0) => Ok(()),
            (0, removed) => Ok(tx.refund(Resource::StorageBytes, removed).await?),
            (added, _) => Ok(tx.charge(Resource::StorageBytes, added).await?),
        }
    }

    /// Puts parts of a run; `replaced` are those of the same keys that were there.
    pub(crate) async fn put<'a>(
        &mut self,
        tx: &mut Tx<'_>,
        items: &[RunItem<Metric>],
        replaced: impl IntoIterator<Item = &'a RunItem<Metric>>,
    ) -> Result<()> {
        self.added += items.iter().map(|item| item.part.stored_bytes()).sum::<u64>();
        self.removed += replaced.into_iter().map(|item| item.part.stored_bytes()).sum::<u64>();
        match items {
            [] => Ok(()),
            [one] => Ok(tx.put(one).await?),
            all => Ok(tx.put_all(all).await?),
        }
    }
}

/// All parts of a run, without the points of its metrics.
///
/// # Errors
/// More of them than an answer holds.
pub(crate) async fn heads(rows: &mut Snapshot<'_>, run: &str) -> Result<Vec<Part<MetricHead>>> {
    heads_as(rows, run, |part| part, RUN_BYTES_MAX).await
}

/// The same, of each what is kept of it; at most so many bytes.
pub(crate) async fn heads_as(
    rows: &mut Snapshot<'_>,
    run: &str,
    kept: impl Fn(Part<MetricHead>) -> Part<MetricHead>,
    bytes_max: usize,
) -> Result<Vec<Part<MetricHead>>> {
    let (prefix, mut after, mut parts, mut bytes) = (format!("{run}/"), None::<String>, Vec::new(), 0);
    loop {
        let page = rows.list::<RunItem<MetricHead>>(after.as_deref(), READ_ITEMS, Some(&prefix)).await?;
        parts.extend(page.records.into_iter().map(|item| kept(item.part)).inspect(|part| bytes += part.held_bytes()));
        if bytes > bytes_max {
            return Err(Error::TooLarge { what: "run", bytes_max: bytes_max as u64 });
        }
        after = page.next;
        if after.is_none() {
            return Ok(merged(parts));
        }
    }
}

/// Removes parts of a run and blocks of its metrics, at most `most` of them, and gives their bytes back. How many were.
pub(crate) async fn remove(tx: &mut Tx<'_>, run: &str, most: u32) -> Result<u32> {
    let (prefix, mut balance, mut removed) = (format!("{run}/"), Balance::default(), 0);
    while removed < most {
        let items = tx.list::<RunItem<MetricHead>>(None, most - removed, Some(&prefix)).await?;
        tx.delete_all::<RunItem<Metric>>(&items.records.iter().map(Record::key).collect::<Vec<_>>()).await?;
        balance.removed += items.records.iter().map(|item| item.part.stored_bytes()).sum::<u64>();
        removed += u32::try_from(items.records.len()).unwrap_or(most);
        if items.next.is_none() {
            break;
        }
    }
    while removed < most {
        let blocks = tx.list::<MetricBlock>(None, most - removed, Some(&prefix)).await?;
        tx.delete_all::<MetricBlock>(&blocks.records.iter().map(Record::key).collect::<Vec<_>>()).await?;
        balance.removed += METRIC_BYTES * blocks.records.len() as u64;
        removed += u32::try_from(blocks.records.len()).unwrap_or(most);
        if blocks.next.is_none() {
            break;
        }
    }
    balance.settle(tx).await?;
    Ok(removed)
}
