//! Metrics: many points under one name, of which the latest is looked at all the time and the others seldom.
//!
//! ```text
//! run_item  {run}/m/{hash}            the name, its latest point, and the tail: at most 64 points
//! metric_block  {run}/{hash}/{number} 64 points each, never touched again
//! ```
//! Logging a point reads and writes one small record, however long the history is. MLflow shows a history by time, step and value and
//! knows a point that was logged twice only once. Points mostly come in that order already: as long as they do, pages are cut straight
//! out of the blocks; else the history is sorted when it is read, up to [`SORTED_POINTS_MAX`] points, and beyond shown as it came.

use std::cmp::Ordering;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tenancy::{Record, Rows};

use super::check::{KEY_CHARS_MAX, entity_name, length, name_hash};
use super::item::RECORD_BYTES;
use crate::error::{Error, Result};

/// Points of a block, and most of a tail.
pub(crate) const BLOCK_POINTS: usize = 64;
/// Longest history that is sorted when it did not come in order, in points.
pub(crate) const SORTED_POINTS_MAX: u64 = 1_000_000;
/// Most points of one answer.
pub const HISTORY_POINTS_MAX: u32 = 50_000;
/// Blocks read at once.
const READ_BLOCKS: u32 = 256;

/// One value of a metric.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// Any float, NaN and the infinities included.
    pub value: f64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Counted by the client.
    pub step: i64,
}

/// A point to be logged.
#[derive(Debug, Clone)]
pub struct MetricPoint {
    /// Name of the metric.
    pub key: String,
    /// The point.
    pub point: Point,
    /// The logged model that it says something about, and the data set it was measured on.
    pub model: Option<ModelLink>,
}

/// What a point says something about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelLink {
    /// Id of a logged model.
    pub model_id: String,
    /// Name of the data set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_name: Option<String>,
    /// Its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_digest: Option<String>,
}

impl Point {
    /// MLflow's order of what is latest: by step, time, value. NaN counts as 0.
    pub(crate) fn newer(&self, other: &Self) -> bool {
        let place = |point: &Self| (point.step, point.timestamp);
        place(self).cmp(&place(other)).then(compared(zero_for_nan(self.value), zero_for_nan(other.value))).is_gt()
    }

    /// MLflow's order of a history.
    fn in_history(&self, other: &Self) -> Ordering {
        (self.timestamp, self.step).cmp(&(other.timestamp, other.step)).then(compared(self.value, other.value))
    }

    /// MLflow's order of a chart.
    fn in_chart(&self, other: &Self) -> Ordering {
        (self.step, self.timestamp).cmp(&(other.step, other.timestamp)).then(compared(self.value, other.value))
    }

    fn same(&self, other: &Self) -> bool {
        self.in_history(other).is_eq()
    }
}

fn zero_for_nan(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value }
}

/// As numbers; all NaN are alike and last, and so are both zeros.
fn compared(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

impl PartialEq for Point {
    fn eq(&self, other: &Self) -> bool {
        self.same(other)
    }
}

/// `[value, timestamp, step]`; a value that JSON has no number for is the word that MLflow's clients use.
impl Serialize for Point {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (Real(self.value), self.timestamp, self.step).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (Real(value), timestamp, step) = Deserialize::deserialize(from)?;
        Ok(Self { value, timestamp, step })
    }
}

/// A float in JSON: a number, `"NaN"`, `"Infinity"` or `"-Infinity"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Real(pub f64);

impl Serialize for Real {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            value if value.is_finite() => to.serialize_f64(value),
            value if value.is_nan() => to.serialize_str("NaN"),
            value if value > 0.0 => to.serialize_str("Infinity"),
            _ => to.serialize_str("-Infinity"),
        }
    }
}

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Real;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, `NaN`, `Infinity` or `-Infinity`")
            }
            fn visit_f64<E>(self, value: f64) -> Result<Real, E> {
                Ok(Real(value))
            }
            #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
            fn visit_i64<E>(self, value: i64) -> Result<Real, E> {
                Ok(Real(value as f64))
            }
            #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
            fn visit_u64<E>(self, value: u64) -> Result<Real, E> {
                Ok(Real(value as f64))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Real, E> {
                // Rust reads all words that Python and protobuf write: `NaN`, `Infinity`, `inf`, `-inf`, and numbers.
                text.parse().map(Real).map_err(|_| E::custom(format!("`{}` is not a number", text.chars().take(40).collect::<String>())))
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// A metric of a run as its item holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Metric {
    #[serde(rename = "n")]
    pub(crate) name: String,
    #[serde(rename = "l")]
    pub(crate) latest: Point,
    /// Blocks that are full and written.
    #[serde(rename = "b")]
    blocks: u64,
    /// Whether all points came in the order of a history, none twice.
    #[serde(rename = "o")]
    ordered: bool,
    /// The newest points; never empty.
    #[serde(rename = "t")]
    tail: Vec<Point>,
}

/// The same without its tail, for who only looks at the latest point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MetricHead {
    #[serde(rename = "n")]
    pub(crate) name: String,
    #[serde(rename = "l")]
    pub(crate) latest: Point,
}

/// Older points of a metric.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MetricBlock {
    run: String,
    hash: String,
    number: u64,
    points: Vec<Point>,
}

impl Record for MetricBlock {
    const KIND: &'static str = "metric_block";
    fn key(&self) -> String {
        block_key(&self.run, &self.hash, self.number)
    }
}

fn block_key(run: &str, hash: &str, number: u64) -> String {
    format!("{run}/{hash}/{number:010}")
}

impl Metric {
    /// A metric with its first point.
    pub(crate) fn new(name: String, point: Point) -> Self {
        Self { name, latest: point, blocks: 0, ordered: true, tail: vec![point] }
    }

    /// Adds a point, unless it is among the newest already; a full tail goes into a block of `run`.
    pub(crate) fn push(&mut self, run: &str, point: Point, blocks: &mut Vec<MetricBlock>) {
        if self.tail.iter().any(|known| known.same(&point)) {
            return;
        }
        self.wait(point);
        if self.tail.len() > BLOCK_POINTS {
            let newest = self.tail.split_off(BLOCK_POINTS);
            let points = std::mem::replace(&mut self.tail, newest);
            blocks.push(MetricBlock { run: run.to_owned(), hash: name_hash(&self.name), number: self.blocks, points });
            self.blocks += 1;
        }
    }

    /// Adds a point for those who read, without cutting blocks.
    pub(crate) fn wait(&mut self, point: Point) {
        self.ordered &= self.tail.last().is_none_or(|last| last.in_history(&point).is_lt());
        if point.newer(&self.latest) {
            self.latest = point;
        }
        self.tail.push(point);
    }

    /// Points in all, those counted twice that came twice.
    pub(crate) fn points(&self) -> u64 {
        self.blocks * BLOCK_POINTS as u64 + self.tail.len() as u64
    }

    /// The history from its `skip`th point on, at most `limit` points, and whether there are more.
    pub(crate) async fn history(&self, rows: &Rows<'_>, run: &str, skip: u64, limit: usize) -> Result<(Vec<Point>, bool)> {
        if !self.ordered && self.points() <= SORTED_POINTS_MAX {
            let mut points = self.blocks_from(rows, run, 0, usize::MAX).await?;
            points.sort_by(Point::in_history);
            points.dedup_by(|a, b| a.same(b));
            let skip = usize::try_from(skip).unwrap_or(usize::MAX);
            let more = points.len() > skip.saturating_add(limit);
            return Ok((points.into_iter().skip(skip).take(limit).collect(), more));
        }
        // The tail is longer than a block where points wait.
        let block = (skip / BLOCK_POINTS as u64).min(self.blocks);
        let within = usize::try_from(skip - block * BLOCK_POINTS as u64).unwrap_or(usize::MAX);
        let mut points = self.blocks_from(rows, run, block, limit.saturating_add(within)).await?;
        points.drain(..within.min(points.len()));
        points.truncate(limit);
        let more = skip.saturating_add(points.len() as u64) < self.points();
        Ok((points, more))
    }

    /// At most `limit` points spread evenly over the history between two steps, by step, the first and the last among them.
    pub(crate) async fn sampled(&self, rows: &Rows<'_>, run: &str, steps: Option<(i64, i64)>, limit: usize) -> Result<Vec<Point>> {
        let mut points = Vec::new();
        let mut block = 0;
        // Of a history that is too long to be sorted every n-th block is enough for a chart.
        let stride = (self.points() / SORTED_POINTS_MAX + 1).max(1);
        while stride > 1 && block < self.blocks {
            points.extend(
                rows.get::<MetricBlock>(&block_key(run, &name_hash(&self.name), block))
                    .await?
                    .map(|block| block.points)
                    .unwrap_or_default(),
            );
            block += stride;
        }
        match stride {
            1 => points = self.blocks_from(rows, run, 0, usize::MAX).await?,
            _ => points.extend(&self.tail),
        }
        points.retain(|point| steps.is_none_or(|(first, last)| (first..=last).contains(&point.step)));
        points.sort_by(Point::in_chart);
        points.dedup_by(|a, b| a.same(b));
        Ok(spread(&points, limit))
    }

    /// Points from the beginning of a block on, at least `limit` if there are, as they came.
    async fn blocks_from(&self, rows: &Rows<'_>, run: &str, mut block: u64, limit: usize) -> Result<Vec<Point>> {
        let prefix = format!("{run}/{}/", name_hash(&self.name));
        let mut points = Vec::new();
        while block < self.blocks && points.len() < limit {
            let after = block.checked_sub(1).map(|before| block_key(run, &name_hash(&self.name), before));
            let wanted = limit.saturating_sub(points.len()).div_ceil(BLOCK_POINTS);
            let page = rows
                .list::<MetricBlock>(after.as_deref(), u32::try_from(wanted).unwrap_or(READ_BLOCKS).min(READ_BLOCKS), Some(&prefix))
                .await?;
            // What was logged since the item was read is not part of this history.
            points
                .extend(page.records.iter().take_while(|found| found.number < self.blocks).flat_map(|found| found.points.iter().copied()));
            if page.records.is_empty() {
                return Err(tenancy::Error::integrity("a block of a metric is not there").into());
            }
            block += page.records.len() as u64;
        }
        if points.len() < limit {
            points.extend(&self.tail);
        }
        Ok(points)
    }
}

/// One of each of `limit` parts, and the last.
fn spread(points: &[Point], limit: usize) -> Vec<Point> {
    if points.len() <= limit {
        return points.to_vec();
    }
    let mut chosen: Vec<Point> = (0..limit).filter_map(|at| points.get(at * points.len() / limit).copied()).collect();
    if let (Some(end), Some(last)) = (chosen.last_mut(), points.last()) {
        *end = *last;
    }
    chosen
}

/// What a client may log.
///
/// # Errors
/// In MLflow's words.
pub(crate) fn checked(metric: &MetricPoint, path: &str) -> Result<()> {
    let path = |field: &str| if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
    entity_name(&path("name"), &metric.key)?;
    if metric.point.timestamp < 0 {
        return Err(Error::invalid(format!(
            "Invalid value {} for parameter '{}' supplied: metric '{}' (value={}). Timestamp must be a nonnegative long (64-bit integer) ",
            metric.point.timestamp,
            path("timestamp"),
            metric.key,
            metric.point.value
        )));
    }
    length("Metric name", KEY_CHARS_MAX, &metric.key)
}

/// A metric that says something about a logged model, kept beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ModelMetric {
    /// Name of the metric.
    pub(crate) key: String,
    pub(crate) point: Point,
    pub(crate) link: ModelLink,
    pub(crate) run_id: String,
    pub(crate) experiment_id: String,
}

impl ModelMetric {
    /// What it counts of the tenant's stored bytes.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let ModelLink { model_id, dataset_name, dataset_digest } = &self.link;
        let optional = [dataset_name, dataset_digest].into_iter().flatten().map(String::len).sum::<usize>();
        RECORD_BYTES + (self.key.len() + model_id.len() + optional) as u64
    }
}

impl Record for ModelMetric {
    const KIND: &'static str = "model_metric";
    const KEY_KEPT: bool = false;
    /// `{model}/{digest}`: what is logged twice is there once.
    fn key(&self) -> String {
        let Point { value, timestamp, step } = self.point;
        let what = format!(
            "{}\0{}\0{}\0{timestamp}\0{step}\0{:?}\0{:?}",
            self.run_id,
            self.key,
            value.to_bits(),
            self.link.dataset_name,
            self.link.dataset_digest
        );
        format!("{}/{}", self.link.model_id, name_hash(&what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(value: f64, timestamp: i64, step: i64) -> Point {
        Point { value, timestamp, step }
    }

    #[test]
    fn all_floats_survive_json() {
        for value in [0.0, -0.0, 1.5, f64::MIN_POSITIVE, f64::MAX, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.1 + 0.2] {
            let text = serde_json::to_string(&point(value, i64::MAX, i64::MIN)).unwrap();
            let back: Point = serde_json::from_str(&text).unwrap();
            assert_eq!((back.value.to_bits(), back.timestamp, back.step), (value.to_bits(), i64::MAX, i64::MIN), "{text}");
        }
        for (text, value) in
            [("3", 3.0), ("\"1e3\"", 1000.0), ("\"inf\"", f64::INFINITY), ("-7", -7.0), ("18446744073709551615", 1.8446744073709552e19)]
        {
            assert_eq!(serde_json::from_str::<Real>(text).unwrap().0, value, "{text}");
        }
        for bad in ["null", "true", "\"x\"", "\"\"", "[1]"] {
            assert!(serde_json::from_str::<Real>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_latest_point_is_by_step_then_time_then_value() {
        let latest = |points: &[Point]| {
            let mut metric = Metric::new("m".to_owned(), points[0]);
            points[1..].iter().for_each(|point| metric.push("r", *point, &mut Vec::new()));
            metric.latest
        };
        assert_eq!(latest(&[point(1.0, 5, 5), point(2.0, 9, 4)]), point(1.0, 5, 5));
        assert_eq!(latest(&[point(1.0, 5, 5), point(2.0, 6, 5)]), point(2.0, 6, 5));
        assert_eq!(latest(&[point(1.0, 5, 5), point(0.5, 5, 5)]), point(1.0, 5, 5));
        assert!(latest(&[point(-1.0, 5, 5), point(f64::NAN, 5, 5)]).value.is_nan(), "NaN counts as 0");
        assert_eq!(latest(&[point(1.0, 5, 5), point(f64::NAN, 5, 5)]), point(1.0, 5, 5));
    }

    #[test]
    fn blocks_fill_and_nothing_is_lost() {
        let mut metric = Metric::new("m".to_owned(), point(0.0, 0, 0));
        let mut blocks = Vec::new();
        for at in 1..1000 {
            metric.push("r", point(f64::from(at), i64::from(at), 0), &mut blocks);
            metric.push("r", point(f64::from(at), i64::from(at), 0), &mut blocks);
        }
        assert_eq!((metric.points(), metric.ordered), (1000, true), "what came twice is there once");
        assert!(!metric.tail.is_empty() && metric.tail.len() <= BLOCK_POINTS);
        let all: Vec<f64> = blocks.iter().flat_map(|block| &block.points).chain(&metric.tail).map(|point| point.value).collect();
        assert_eq!(all, (0..1000).map(f64::from).collect::<Vec<_>>());
        assert!(blocks.iter().enumerate().all(|(at, block)| block.number == at as u64 && block.points.len() == BLOCK_POINTS));
        metric.push("r", point(0.0, 0, 0), &mut blocks);
        assert!(!metric.ordered, "an old one again: the history has to be sorted");
    }

    #[test]
    fn samples_keep_both_ends() {
        let points: Vec<_> = (0..1000).map(|at| point(f64::from(at), 0, i64::from(at))).collect();
        for limit in [1, 2, 3, 7, 320, 999] {
            let chosen = spread(&points, limit);
            assert_eq!((chosen.len(), chosen.last()), (limit, points.last()));
            assert!(limit == 1 || chosen.first() == points.first());
        }
        assert_eq!(spread(&points, 5000).len(), 1000);
    }
}
