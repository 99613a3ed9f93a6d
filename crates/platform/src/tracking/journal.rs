//! Points that were logged many at once, kept together until there are enough of them to be sorted to their metrics.
//!
//! ```text
//! run_item  {run}/j/{number}   all points of one request, as they came
//! ```
//! A training that logs a hundred metrics a step would write a hundred records a step. So such a request writes one; the
//! [`JOURNAL_RECORDS_MAX`]th puts what all of them hold to its metrics, in the order in which it came, and the journal is empty again. Who
//! reads a run sees the points of both. The first request of its kind is sorted at once: new metrics are counted against the tenant's
//! bytes when they are made. While a run's journal holds something, everything that is logged goes through it: the order
//! stays.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tenancy::{Record, Rows, Tx};

use super::item::{Balance, METRIC_BYTES, Part, RunItem, journal_prefix, metric_key};
use super::metric::{Metric, MetricHead, MetricPoint, Point};
use super::run::TrackedRun;
use crate::error::Result;

/// Requests whose points wait at most.
const JOURNAL_RECORDS_MAX: u32 = 16;
/// Metrics of one request from which on it is worth it.
const METRICS_MIN: usize = 16;
/// Points of one request up to which it is: whoever reads a run reads all that wait.
const POINTS_MAX: usize = 256;

/// Points of one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Journal {
    /// Which request it was since the journal was empty.
    #[serde(rename = "n")]
    pub(crate) number: u64,
    /// By the names of their metrics, as they came.
    #[serde(rename = "p")]
    pub(crate) points: Vec<(String, Point)>,
}

/// Puts points to a run, at once or by way of its journal.
pub(crate) async fn put(tx: &mut Tx<'_>, run: &mut TrackedRun, points: &[MetricPoint], balance: &mut Balance) -> Result<()> {
    if points.is_empty() {
        return Ok(());
    }
    let fresh = points.iter().map(|point| (point.key.as_str(), point.point));
    let together = fresh.clone().map(|(name, _)| name).collect::<BTreeSet<_>>().len() >= METRICS_MIN;
    let Some(waiting) = run.journal else {
        if together {
            run.journal = Some(0);
            tx.put(run).await?;
        }
        return sort(tx, &run.id, fresh, balance).await;
    };
    if (waiting > 0 || together) && points.len() <= POINTS_MAX && waiting + 1 < JOURNAL_RECORDS_MAX.into() {
        let points = fresh.map(|(name, point)| (name.to_owned(), point)).collect();
        let journal = RunItem::new(&run.id, Part::Journal(Journal { number: waiting, points }));
        balance.added += journal.part.stored_bytes();
        run.journal = Some(waiting + 1);
        tx.put(&journal).await?;
        return Ok(tx.put(run).await?);
    }
    if waiting == 0 {
        return sort(tx, &run.id, fresh, balance).await;
    }
    let journals = read(tx.list(None, JOURNAL_RECORDS_MAX, Some(&journal_prefix(&run.id))).await?.whole()?);
    let waiting = journals.iter().flat_map(|(_, journal)| &journal.points).map(|(name, point)| (name.as_str(), *point));
    sort(tx, &run.id, waiting.chain(fresh), balance).await?;
    let (keys, journals): (Vec<_>, Vec<_>) = journals.into_iter().unzip();
    balance.removed += journals.into_iter().map(|journal| Part::<Metric>::Journal(journal).stored_bytes()).sum::<u64>();
    tx.delete_all::<RunItem<Metric>>(&keys).await?;
    run.journal = Some(0);
    Ok(tx.put(run).await?)
}

/// A metric of a run with its newest points, those that wait among them.
pub(crate) async fn metric(rows: &Rows<'_>, run: &TrackedRun, name: &str) -> Result<Option<Metric>> {
    // In this order: what is sorted to its metric in between is seen twice, which does no harm, and never missed.
    let waits = run.journal.is_some();
    let journals =
        if waits { read(rows.list(None, JOURNAL_RECORDS_MAX, Some(&journal_prefix(&run.id))).await?.whole()?) } else { Vec::new() };
    let mut metric = sorted(rows.get(&metric_key(&run.id, name)).await?);
    for (_, point) in journals.iter().flat_map(|(_, journal)| &journal.points).filter(|(named, _)| named == name) {
        match &mut metric {
            Some(metric) => metric.wait(*point),
            None => metric = Some(Metric::new(name.to_owned(), *point)),
        }
    }
    Ok(metric)
}

/// The latest point of a metric of a run.
pub(crate) async fn latest(tx: &mut Tx<'_>, run: &str, name: &str) -> Result<Option<Point>> {
    let journals = read(tx.list(None, JOURNAL_RECORDS_MAX, Some(&journal_prefix(run))).await?.whole()?);
    let head = match tx.get::<RunItem<MetricHead>>(&metric_key(run, name)).await? {
        Some(RunItem { part: Part::Metric(head), .. }) => Some(head.latest),
        _ => None,
    };
    let waiting = journals.iter().flat_map(|(_, journal)| &journal.points).filter(|(named, _)| named == name).map(|(_, point)| *point);
    Ok(head.into_iter().chain(waiting).reduce(|latest, point| if point.newer(&latest) { point } else { latest }))
}

/// The parts of a run, with what its journal holds sorted to its metrics.
pub(crate) fn merged(mut parts: Vec<Part<MetricHead>>) -> Vec<Part<MetricHead>> {
    let mut waiting: BTreeMap<String, Point> = BTreeMap::new();
    for (name, point) in parts
        .iter_mut()
        .filter_map(|part| if let Part::Journal(journal) = part { Some(journal) } else { None })
        .flat_map(|journal| std::mem::take(&mut journal.points))
    {
        let latest = waiting.entry(name).or_insert(point);
        if point.newer(latest) {
            *latest = point;
        }
    }
    parts.retain(|part| !matches!(part, Part::Journal(_)));
    for part in &mut parts {
        if let Part::Metric(head) = part
            && let Some(point) = waiting.remove(&head.name)
            && point.newer(&head.latest)
        {
            head.latest = point;
        }
    }
    parts.extend(waiting.into_iter().map(|(name, latest)| Part::Metric(MetricHead { name, latest })));
    parts
}

/// Puts points to their metrics.
async fn sort<'a>(tx: &mut Tx<'_>, run: &str, points: impl Iterator<Item = (&'a str, Point)>, balance: &mut Balance) -> Result<()> {
    let mut by_name: BTreeMap<&str, Vec<Point>> = BTreeMap::new();
    for (name, point) in points {
        by_name.entry(name).or_default().push(point);
    }
    let keys: Vec<_> = by_name.keys().map(|name| metric_key(run, name)).collect();
    let known = match keys.as_slice() {
        [one] => vec![tx.get(one).await?],
        all => tx.get_all(all).await?,
    };
    let (mut items, mut blocks) = (Vec::with_capacity(known.len()), Vec::new());
    for ((name, points), known) in by_name.into_iter().zip(known.into_iter().map(sorted)) {
        let mut points = points.into_iter();
        let metric = known.or_else(|| {
            balance.added += METRIC_BYTES;
            points.next().map(|first| Metric::new(name.to_owned(), first))
        });
        let Some(mut metric) = metric else { continue };
        points.for_each(|point| metric.push(run, point, &mut blocks));
        items.push(RunItem::new(run, Part::Metric(metric)));
    }
    match items.as_slice() {
        [one] => tx.put(one).await?,
        all => tx.put_all(all).await?,
    }
    if !blocks.is_empty() {
        balance.added += METRIC_BYTES * blocks.len() as u64;
        tx.put_all(&blocks).await?;
    }
    Ok(())
}

fn sorted(item: Option<RunItem<Metric>>) -> Option<Metric> {
    match item?.part {
        Part::Metric(metric) => Some(metric),
        _ => None,
    }
}

fn read(items: Vec<RunItem<MetricHead>>) -> Vec<(String, Journal)> {
    let journal = |item: RunItem<MetricHead>| {
        let key = item.key();
        if let Part::Journal(journal) = item.part { Some((key, journal)) } else { None }
    };
    items.into_iter().filter_map(journal).collect()
}

#[cfg(test)]
mod tests {
    use super::super::check::KEY_CHARS_MAX;
    use super::*;

    #[test]
    fn what_waits_fits_on_a_page() {
        let point = Point { value: f64::MIN_POSITIVE.next_up(), timestamp: i64::MAX, step: i64::MIN };
        let longest = (char::MAX.to_string().repeat(KEY_CHARS_MAX), point);
        let journal = Journal { number: u64::MAX, points: vec![longest; POINTS_MAX] };
        let item = RunItem::new(&"r".repeat(64), Part::Journal(journal));
        // The last of them is never written, and each is sealed.
        let bytes = (serde_json::to_vec(&item).unwrap().len() + 1024) * (JOURNAL_RECORDS_MAX as usize - 1);
        assert!(bytes <= tenancy::PAGE_BYTES_MAX, "{bytes} bytes");
    }
}
