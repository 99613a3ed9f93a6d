//! Search over runs, in memory: all runs of a tenant with their latest metrics, parameters and tags, ready to be filtered and ordered.
//!
//! ```text
//! first search  ── reads all runs and items once ──► Index
//! a writer      ── touch: marks its run after its commit ──► dirty
//! each search   ── reads the dirty runs again ──► filters, orders, cuts a page
//! ```
//! A run is marked once its commit is acknowledged, or was given up, and before its client hears of it: whoever searches after an answer finds
//! the mark.
//! An index is dropped when the tenant leaves this node, when it is the one that was not used for longest and memory is short, and when
//! so much changed that reading everything again is cheaper. What is deliberately missing: an order kept up to date. A search looks at
//! every run of its experiments, which for a hundred thousand of them takes milliseconds.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering as Atomic};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use tenancy::act::{Act, ResourceKind, RunRead};
use tenancy::{IslandToken, Permit, Rows};
use tokio::sync::Semaphore;

use super::experiment::{self, Experiment};
use super::filter::{self, Attribute, Clause, Entity, Grammar, NUMBER, Order, TEXT, TEXT_LIST, TEXT_NULL};
use super::hits::SEARCHES_MAX;
use super::item::{DatasetInput, ModelInput, ModelOutput, Part, RunItem, Text, heads, heads_as};
use super::journal::merged;
use super::lifecycle::{Lifecycle, ViewType};
use super::metric::{MetricHead, Point};
use super::run::{RUN_ID_BYTES_MAX, RunView, TrackedRun};
use super::token::PageToken;
use crate::error::{Error, Result};
use crate::platform::Platform;

/// Most runs in one answer.
pub const RUNS_PAGE_MAX: u32 = 50_000;
/// Runs in one answer when nothing is asked for.
pub const RUNS_PAGE_DEFAULT: u32 = 1000;
/// Data sets in one answer, and experiments that they are asked of, at most: MLflow's.
const DATASETS_MAX: usize = 1000;
const DATASET_EXPERIMENTS_MAX: usize = 20;
/// The tag of an input that says what it was used for.
const CONTEXT_TAG: &str = "mlflow.data.context";
/// Most experiments of one search.
const EXPERIMENTS_MAX: usize = 10_000;
/// Memory of one tenant's index, in bytes.
const INDEX_BYTES_MAX: usize = 512 << 20;
/// Memory of all indexes of this node, in bytes.
const INDEXES_BYTES_MAX: usize = 1 << 30;
/// Runs that are read one by one; when more changed, everything is read again.
const DIRTY_RUNS_MAX: usize = 20_000;
/// Records read at once.
const READ_ITEMS: u32 = 1000;
/// Runs, for each comparison, for which a search is not worth another thread.
const INLINE_RUNS_MAX: usize = 2000;
/// Memory of the runs of one answer, in bytes; what does not fit is on the next page.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Longest time that one search may compute.
pub(super) const SEARCH_TIME_MAX: Duration = Duration::from_secs(10);
/// Runs, for each comparison, between two looks at the clock.
const CLOCK_EVERY: usize = 1024;

/// Which runs are asked for.
#[derive(Debug, Clone, Default)]
pub struct RunSearch {
    /// In these experiments.
    pub experiment_ids: Vec<String>,
    /// In MLflow's language.
    pub filter: String,
    /// In MLflow's language.
    pub order_by: Vec<String>,
    /// Deleted ones or not.
    pub view: ViewType,
    /// Most in one answer.
    pub limit: Option<u32>,
    /// Where the answer before ended.
    pub page_token: Option<String>,
}

/// A data set that runs of an experiment used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DatasetSummary {
    /// The experiment.
    pub experiment_id: String,
    /// Its name.
    pub name: String,
    /// Says which bytes.
    pub digest: String,
    /// What for, as in `training`.
    pub context: Option<String>,
}

const GRAMMAR: Grammar = Grammar {
    prefixes: &[
        ("metric", Entity::Metric),
        ("metrics", Entity::Metric),
        ("parameter", Entity::Param),
        ("parameters", Entity::Param),
        ("param", Entity::Param),
        ("params", Entity::Param),
        ("tag", Entity::Tag),
        ("tags", Entity::Tag),
        ("attribute", Entity::Attribute),
        ("attributes", Entity::Attribute),
        ("attr", Entity::Attribute),
        ("run", Entity::Attribute),
        ("dataset", Entity::Dataset),
        ("datasets", Entity::Dataset),
    ],
    attributes: &[
        Attribute { names: &["run_id"], rule: &TEXT_LIST },
        Attribute { names: &["run_name", "run name", "Run name", "Run Name"], rule: &TEXT },
        Attribute { names: &["user_id"], rule: &TEXT },
        Attribute { names: &["status"], rule: &TEXT },
        Attribute { names: &["artifact_uri"], rule: &TEXT },
        Attribute { names: &["start_time", "created", "Created"], rule: &NUMBER },
        Attribute { names: &["end_time"], rule: &NUMBER },
    ],
    entities: &[
        (Entity::Metric, &NUMBER, &[]),
        (Entity::Param, &TEXT_NULL, &[]),
        (Entity::Tag, &TEXT_NULL, &[]),
        (Entity::Dataset, &TEXT_LIST, &["name", "digest", "context"]),
    ],
    order_attributes: &["run_id", "run_name", "user_id", "status", "artifact_uri", "start_time", "end_time"],
    order_entities: &[Entity::Metric, Entity::Param, Entity::Tag],
};

/// The indexes of this node.
pub(crate) struct Tracking {
    slots: Mutex<LruCache<IslandToken, Arc<Slot>>>,
}

/// One tenant's index, and what changed since it was read.
struct Slot {
    searches: Arc<Semaphore>,
    index: Arc<tokio::sync::Mutex<Index>>,
    dirty: Mutex<HashSet<String>>,
    bytes: AtomicUsize,
}

impl Default for Tracking {
    fn default() -> Self {
        Self { slots: Mutex::new(LruCache::unbounded()) }
    }
}

impl Tracking {
    /// A run is about to be changed: it is marked when the guard is dropped. Keep it beyond the commit.
    pub(crate) fn touch<A: Act>(self: &Arc<Self>, permit: &Permit<A>, run: &str) -> Touch {
        Touch { tracking: Arc::clone(self), island: permit.island(), run: run.to_owned() }
    }

    /// Turns of the tenant's searches over anything but runs.
    pub(super) fn searches(&self, island: IslandToken) -> Arc<Semaphore> {
        Arc::clone(&self.slot(island).searches)
    }

    /// The tenant's rows are no longer here, or come back: what is remembered of them does not count.
    pub(crate) fn forget(&self, island: IslandToken) {
        self.slots.lock().pop(&island);
    }

    fn slot(&self, island: IslandToken) -> Arc<Slot> {
        Arc::clone(self.slots.lock().get_or_insert(island, || {
            Arc::new(Slot {
                searches: Arc::new(Semaphore::new(SEARCHES_MAX)),
                index: Arc::default(),
                dirty: Mutex::default(),
                bytes: AtomicUsize::new(0),
            })
        }))
    }

    /// Drops what was not used for longest while there is too much; never the last one.
    fn trim(&self) {
        let mut slots = self.slots.lock();
        let mut bytes: usize = slots.iter().map(|(_, slot)| slot.bytes.load(Atomic::Relaxed)).sum();
        while bytes > INDEXES_BYTES_MAX && slots.len() > 1 {
            let Some((_, gone)) = slots.pop_lru() else { return };
            bytes -= gone.bytes.load(Atomic::Relaxed);
        }
    }
}

/// Marks a run as changed when it is dropped.
#[must_use = "the run is marked when this is dropped, which has to be after the commit"]
pub(crate) struct Touch {
    tracking: Arc<Tracking>,
    island: IslandToken,
    run: String,
}

impl Drop for Touch {
    fn drop(&mut self) {
        if self.run.len() > RUN_ID_BYTES_MAX {
            return; // there is no such run
        }
        let Some(slot) = self.tracking.slots.lock().peek(&self.island).map(Arc::clone) else { return };
        let mut dirty = slot.dirty.lock();
        if dirty.len() <= DIRTY_RUNS_MAX && !dirty.contains(&self.run) {
            dirty.insert(self.run.clone());
        }
    }
}

/// Runs that are being read again; those that were not are marked again.
struct Reload<'a> {
    slot: &'a Slot,
    runs: Vec<String>,
}

impl Drop for Reload<'_> {
    fn drop(&mut self) {
        self.slot.dirty.lock().extend(self.runs.drain(..));
    }
}

impl Platform {
    /// Runs that pass a filter, newest first unless asked otherwise, and the token for more.
    ///
    /// # Errors
    /// A filter, an order or a token that cannot be read; more runs than this node can hold.
    pub async fn tracking_search(&self, permit: &Permit<RunRead>, search: &RunSearch) -> Result<(Vec<RunView>, Option<String>)> {
        let clauses = filter::parse(&GRAMMAR, &search.filter)?;
        let mut order = filter::order(&GRAMMAR, &search.order_by)?;
        if order.iter().all(|order| order.entity != Entity::Attribute || order.key != "start_time") {
            order.push(Order { entity: Entity::Attribute, key: "start_time".to_owned(), ascending: false });
        }
        let limit = experiment::page_limit(search.limit, RUNS_PAGE_DEFAULT, RUNS_PAGE_MAX)?;
        let shape = PageToken::shape(&(&search.experiment_ids, &search.filter, &search.order_by, format!("{:?}", search.view)));
        let skip = PageToken::open(permit, search.page_token.as_deref(), "runs", &shape)?;
        let experiments = experiments(permit, &search.experiment_ids).await?;
        let index = self.index(permit).await?;
        let query = Query { experiments, view: search.view, clauses, order, skip, limit, until: Instant::now() + SEARCH_TIME_MAX };
        let found = if query.is_quick(index.entries.len()) {
            index.search(&query)?
        } else {
            let searched = tokio::task::spawn_blocking(move || index.search(&query)).await;
            searched.map_err(tenancy::Error::internal)??
        };
        let Found { mut runs, cut, more } = found;
        let (mut more, mut bytes) = (more, 0);
        for at in cut {
            if bytes > ANSWER_BYTES_MAX {
                runs.truncate(at);
                more = true;
                break;
            }
            if let Some(view) = runs.get_mut(at) {
                let items = match heads(&mut permit.rows().snapshot().await?, &view.run.id).await {
                    // What does not fit into an answer is shown as it is held.
                    Err(Error::TooLarge { .. }) => continue,
                    items => items?.into_iter(),
                };
                let datasets = items.filter(|part| matches!(part, Part::Dataset(_))).inspect(|part| bytes += part.held_bytes());
                view.datasets = datasets.filter_map(|part| if let Part::Dataset(input) = part { Some(input) } else { None }).collect();
            }
        }
        let next = more.then(|| PageToken::seal(permit, "runs", &shape, skip + runs.len())).transpose()?;
        Ok((runs, next))
    }

    /// The data sets that runs of these experiments used, each once for what it was used for; at most [`DATASETS_MAX`].
    ///
    /// # Errors
    /// No experiment, or too many; more runs than this node can hold.
    pub async fn tracking_datasets(&self, permit: &Permit<RunRead>, ids: &[String]) -> Result<Vec<DatasetSummary>> {
        if ids.is_empty() {
            return Err(Error::invalid("SearchDatasets request must specify at least one experiment_id."));
        }
        if ids.len() > DATASET_EXPERIMENTS_MAX {
            return Err(Error::invalid(format!(
                "SearchDatasets request cannot specify more than {DATASET_EXPERIMENTS_MAX} experiment_ids. Received {} experiment_ids.",
                ids.len()
            )));
        }
        let seen: Vec<String> = experiments(permit, ids).await?.into_iter().map(|(id, _)| id).collect();
        let index = self.index(permit).await?;
        tokio::task::spawn_blocking(move || index.datasets(&seen)).await.map_err(|error| tenancy::Error::internal(error).into())
    }

    /// The tenant's index, with everything that was acknowledged.
    async fn index(&self, permit: &Permit<RunRead>) -> Result<tokio::sync::OwnedMutexGuard<Index>> {
        let slot = self.tracking().slot(permit.island());
        let mut index = Arc::clone(&slot.index).lock_owned().await;
        let ready = index.refresh(&permit.rows(), &slot).await;
        slot.bytes.store(index.bytes, Atomic::Relaxed);
        self.tracking().trim();
        ready?;
        Ok(index)
    }
}

/// The lifecycles of the experiments that are asked for and may be seen.
async fn experiments(permit: &Permit<RunRead>, ids: &[String]) -> Result<Vec<(String, Lifecycle)>> {
    let mut ids: Vec<String> = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() > EXPERIMENTS_MAX {
        return Err(Error::invalid(format!("a search is over at most {EXPERIMENTS_MAX} experiments")));
    }
    ids.retain(|id| permit.may(ResourceKind::Experiment, id));
    let (rows, mut ids, mut found) = (permit.rows(), ids.as_slice(), Vec::with_capacity(ids.len()));
    while !ids.is_empty() {
        let got = rows.get_page::<Experiment>(ids).await?;
        let (these, others) = ids.split_at_checked(got.records.len()).unwrap_or((ids, &[]));
        let lifecycle = |(id, stored): (&String, _)| experiment::one(stored, id).ok().map(|found| (id.clone(), found.lifecycle));
        found.extend(these.iter().zip(got.records).filter_map(lifecycle));
        ids = others;
    }
    Ok(found)
}

/// A search, read and checked.
struct Query {
    experiments: Vec<(String, Lifecycle)>,
    view: ViewType,
    clauses: Vec<Clause>,
    order: Vec<Order>,
    skip: usize,
    limit: usize,
    until: Instant,
}

impl Query {
    /// Whether it is not worth another thread.
    fn is_quick(&self, runs: usize) -> bool {
        runs * (1 + self.clauses.len()) <= INLINE_RUNS_MAX && !self.clauses.iter().any(Clause::is_costly)
    }

    /// Runs between two looks at the clock.
    fn clock_every(&self) -> usize {
        if self.clauses.iter().any(Clause::is_costly) { 1 } else { (CLOCK_EVERY / (1 + self.clauses.len())).max(1) }
    }
}

/// What it found.
struct Found {
    runs: Vec<RunView>,
    /// Places of runs whose data sets have to be read from the rows.
    cut: Vec<usize>,
    more: bool,
}

/// One tenant's runs.
#[derive(Default)]
struct Index {
    entries: Vec<Entry>,
    places: HashMap<String, usize>,
    names: Names,
    loading: Loading,
    bytes: usize,
    /// Of the parts of the run that is being read.
    waiting_bytes: usize,
}

/// How far the first reading is: it goes on where it was when who began it went away.
#[derive(Default)]
enum Loading {
    #[default]
    Runs,
    Items {
        after: Option<String>,
        run: String,
        parts: Vec<Part<MetricHead>>,
        bytes: usize,
    },
    Done,
}

/// Names of experiments, metrics, parameters and tags, as small numbers.
#[derive(Default)]
struct Names {
    numbers: HashMap<Arc<str>, u32>,
    names: Vec<Arc<str>>,
}

/// A run in memory.
struct Entry {
    run: TrackedRun,
    experiment: u32,
    items: Box<[Item]>,
    inputs: Option<Box<Inputs>>,
    bytes: usize,
}

/// A metric, parameter or tag: items are in the order of kind and name.
struct Item {
    place: (Kind, u32),
    value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Metric,
    Param,
    Tag,
}

enum Value {
    Point(Point),
    Text(Box<str>),
}

/// What only few runs have.
#[derive(Default)]
struct Inputs {
    datasets: Vec<DatasetInput>,
    /// Whether texts of the data sets are missing.
    cut: bool,
    model_inputs: Vec<ModelInput>,
    model_outputs: Vec<ModelOutput>,
}

impl Names {
    fn number(&mut self, name: &str, bytes: &mut usize) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let (name, number): (Arc<str>, _) = (name.into(), u32::try_from(self.names.len()).unwrap_or(u32::MAX));
        *bytes += name.len() + 100;
        self.names.push(Arc::clone(&name));
        self.numbers.insert(name, number);
        number
    }

    fn name(&self, number: u32) -> String {
        self.names.get(number as usize).map(|name| name.to_string()).unwrap_or_default()
    }
}

impl Index {
    /// Everything is read, and what changed is read again.
    async fn refresh(&mut self, rows: &Rows<'_>, slot: &Slot) -> Result<()> {
        if slot.dirty.lock().len() > DIRTY_RUNS_MAX {
            slot.dirty.lock().clear();
            *self = Self::default();
        }
        while !matches!(self.loading, Loading::Done) {
            self.load(rows).await?;
            self.fits()?;
        }
        let mut reload = Reload { slot, runs: slot.dirty.lock().drain().collect() };
        while let Some(id) = reload.runs.last() {
            let mut rows = rows.snapshot().await?;
            let run = rows.get::<TrackedRun>(id).await?;
            let items = if run.is_some() { heads_as(&mut rows, id, Part::held, INDEX_BYTES_MAX).await? } else { Vec::new() };
            let id = id.clone();
            match run {
                Some(run) => self.put(run, items),
                None => self.remove(&id),
            }
            reload.runs.pop();
            self.fits()?;
        }
        Ok(())
    }

    fn fits(&mut self) -> Result<()> {
        if self.bytes + self.waiting_bytes > INDEX_BYTES_MAX {
            *self = Self::default();
            return Err(tenancy::Error::Unavailable("the tenant has more runs than can be searched").into());
        }
        Ok(())
    }

    /// Reads the next page.
    async fn load(&mut self, rows: &Rows<'_>) -> Result<()> {
        match &mut self.loading {
            Loading::Done => {}
            Loading::Runs => {
                // They lie in the order of their ids, as they are listed.
                let after = self.entries.last().map(|entry| entry.run.id.clone());
                let page = rows.list::<TrackedRun>(after.as_deref(), READ_ITEMS, None).await?;
                if page.next.is_none() {
                    self.loading = Loading::Items { after: None, run: String::new(), parts: Vec::new(), bytes: 0 };
                }
                page.records.into_iter().for_each(|run| self.put(run, Vec::new()));
            }
            Loading::Items { after, run, parts, bytes } => {
                let page = rows.list::<RunItem<MetricHead>>(after.as_deref(), READ_ITEMS, None).await?;
                let last = page.next.is_none();
                *after = page.next;
                let mut whole = Vec::new();
                for item in page.records {
                    if item.run != *run {
                        whole.push((std::mem::replace(run, item.run), std::mem::take(parts)));
                        *bytes = 0;
                    }
                    let part = item.part.held();
                    *bytes += part.held_bytes();
                    parts.push(part);
                }
                self.waiting_bytes = *bytes;
                if last {
                    whole.push((std::mem::take(run), std::mem::take(parts)));
                    (self.loading, self.waiting_bytes) = (Loading::Done, 0);
                }
                for (run, parts) in whole {
                    if let Some(known) = self.places.get(&run).and_then(|at| self.entries.get(*at)) {
                        self.put(known.run.clone(), merged(parts));
                    }
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, run: TrackedRun, parts: Vec<Part<MetricHead>>) {
        let entry = Entry::new(run, parts, &mut self.names, &mut self.bytes);
        self.bytes += entry.bytes;
        match self.places.get(&entry.run.id).and_then(|at| self.entries.get_mut(*at)) {
            Some(old) => {
                self.bytes -= old.bytes;
                *old = entry;
            }
            None => {
                self.places.insert(entry.run.id.clone(), self.entries.len());
                self.entries.push(entry);
            }
        }
    }

    fn remove(&mut self, id: &str) {
        let Some(at) = self.places.remove(id) else { return };
        if at >= self.entries.len() {
            return;
        }
        self.bytes -= self.entries.swap_remove(at).bytes;
        if let Some(moved) = self.entries.get(at) {
            self.places.insert(moved.run.id.clone(), at);
        }
    }

    fn datasets(&self, experiments: &[String]) -> Vec<DatasetSummary> {
        let wanted: HashSet<u32> = experiments.iter().filter_map(|id| self.names.numbers.get(id.as_str()).copied()).collect();
        let mut found = BTreeSet::new();
        for entry in self.entries.iter().filter(|entry| wanted.contains(&entry.experiment)) {
            for input in entry.inputs.iter().flat_map(|inputs| &inputs.datasets) {
                let context = input.tags.iter().find(|tag| tag.key == CONTEXT_TAG).map(|tag| tag.value.clone());
                let (name, digest) = (input.dataset.name.clone(), input.dataset.digest.clone());
                found.insert(DatasetSummary { experiment_id: entry.run.experiment_id.clone(), name, digest, context });
            }
            if found.len() >= DATASETS_MAX {
                break;
            }
        }
        found.into_iter().take(DATASETS_MAX).collect()
    }

    fn search(&self, query: &Query) -> Result<Found> {
        let mut lifecycles: Vec<Option<Lifecycle>> = vec![None; self.names.names.len()];
        for (id, lifecycle) in &query.experiments {
            if let Some(slot) = self.names.numbers.get(id.as_str()).and_then(|at| lifecycles.get_mut(*at as usize)) {
                *slot = Some(*lifecycle);
            }
        }
        let clauses: Vec<_> = query.clauses.iter().map(|clause| (Field::new(clause.entity, &clause.key, &self.names), clause)).collect();
        let order: Vec<_> = query.order.iter().map(|order| (Field::new(order.entity, &order.key, &self.names), order.ascending)).collect();
        let first = order.first().map(|(field, _)| *field);
        let mut found: Vec<(SortKey<'_>, &Entry)> = Vec::new();
        let clock_every = query.clock_every();
        for (at, entry) in self.entries.iter().enumerate() {
            if at % clock_every == 0 && Instant::now() > query.until {
                return Err(Error::DeadlineExceeded { seconds: SEARCH_TIME_MAX.as_secs() });
            }
            let Some(lifecycle) = lifecycles.get(entry.experiment as usize).copied().flatten() else { continue };
            if query.view.shows(entry.run.lifecycle.within(lifecycle)) && clauses.iter().all(|(field, clause)| entry.passes(*field, clause))
            {
                found.push((first.map_or(SortKey::None, |field| entry.sort_key(field)), entry));
            }
        }
        let compare = |a: &(SortKey<'_>, &Entry), b: &(SortKey<'_>, &Entry)| {
            let first = order.first().map_or(Ordering::Equal, |(_, ascending)| a.0.compared(&b.0, *ascending));
            let others = || {
                let mut others =
                    order.iter().skip(1).map(|(field, ascending)| a.1.sort_key(*field).compared(&b.1.sort_key(*field), *ascending));
                others.find(|ordering| ordering.is_ne()).unwrap_or_else(|| a.1.run.id.cmp(&b.1.run.id))
            };
            first.then_with(others)
        };
        let end = query.skip.saturating_add(query.limit);
        let more = found.len() > end;
        if more {
            found.select_nth_unstable_by(end, compare);
            found.truncate(end);
        }
        found.sort_unstable_by(compare);
        let mut page: Vec<_> = found.into_iter().skip(query.skip).map(|(_, entry)| entry).collect();
        let mut bytes = 0;
        let fits = page.iter().take_while(|entry| {
            let first = bytes == 0;
            bytes += entry.bytes;
            first || bytes <= ANSWER_BYTES_MAX
        });
        let fits = fits.count();
        let more = more || fits < page.len();
        page.truncate(fits);
        let cut =
            page.iter().enumerate().filter(|(_, entry)| entry.inputs.as_ref().is_some_and(|inputs| inputs.cut)).map(|(at, _)| at).collect();
        let lifecycle = |entry: &Entry| lifecycles.get(entry.experiment as usize).copied().flatten().unwrap_or_default();
        Ok(Found { runs: page.into_iter().map(|entry| entry.view(&self.names, lifecycle(entry))).collect(), cut, more })
    }
}

impl Entry {
    fn new(run: TrackedRun, parts: Vec<Part<MetricHead>>, names: &mut Names, names_bytes: &mut usize) -> Self {
        let experiment = names.number(&run.experiment_id, names_bytes);
        let mut inputs = Inputs::default();
        let mut items = Vec::with_capacity(parts.len());
        let mut bytes = 600 + run.name.len() + run.user.len() + run.artifact_uri.len();
        let mut item = |kind, name: &str, value| items.push(Item { place: (kind, names.number(name, names_bytes)), value });
        for part in parts.into_iter().map(Part::held) {
            match part {
                Part::Metric(metric) => item(Kind::Metric, &metric.name, Value::Point(metric.latest)),
                Part::Param(Text { key, value }) => {
                    bytes += value.len();
                    item(Kind::Param, &key, Value::Text(value.into()));
                }
                Part::Tag(Text { key, value }) => {
                    bytes += value.len();
                    item(Kind::Tag, &key, Value::Text(value.into()));
                }
                Part::Dataset(input) => bytes += inputs.dataset(input),
                Part::ModelInput(input) => inputs.model_inputs.push(input),
                Part::ModelOutput(output) => inputs.model_outputs.push(output),
                Part::Journal(_) => {}
            }
        }
        items.sort_unstable_by_key(|item| item.place);
        bytes += items.len() * size_of::<Item>() + (inputs.model_inputs.len() + inputs.model_outputs.len()) * 100;
        let some = !inputs.datasets.is_empty() || !inputs.model_inputs.is_empty() || !inputs.model_outputs.is_empty();
        Self { experiment, run, items: items.into(), inputs: some.then(|| Box::new(inputs)), bytes }
    }

    fn item(&self, kind: Kind, name: Option<u32>) -> Option<&Value> {
        let place = (kind, name?);
        self.items.binary_search_by_key(&place, |item| item.place).ok().and_then(|at| self.items.get(at)).map(|item| &item.value)
    }

    fn text(&self, kind: Kind, name: Option<u32>) -> Option<&str> {
        match self.item(kind, name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn point(&self, name: Option<u32>) -> Option<f64> {
        match self.item(Kind::Metric, name) {
            Some(Value::Point(point)) => Some(point.value),
            _ => None,
        }
    }

    fn passes(&self, field: Field, clause: &Clause) -> bool {
        let (run, test) = (&self.run, &clause.test);
        match field {
            Field::Metric(name) => test.real(self.point(name)),
            Field::Text(kind, name) => test.text(self.text(kind, name)),
            Field::Start => test.integer(Some(run.start_ms)),
            Field::End => test.integer(run.end_ms),
            Field::Id => test.text(Some(&run.id)),
            Field::Name => test.text(Some(&run.name)),
            Field::User => test.text(Some(&run.user)),
            Field::Status => test.text(Some(run.status.word())),
            Field::Artifacts => test.text(Some(&run.artifact_uri)),
            Field::Dataset => {
                let datasets = self.inputs.as_ref().map(|inputs| inputs.datasets.as_slice()).unwrap_or_default();
                datasets.iter().any(|input| match clause.key.as_str() {
                    "name" => test.text(Some(&input.dataset.name)),
                    "digest" => test.text(Some(&input.dataset.digest)),
                    _ => input.tags.iter().any(|tag| tag.key == CONTEXT_TAG && test.text(Some(&tag.value))),
                })
            }
        }
    }

    fn sort_key(&self, field: Field) -> SortKey<'_> {
        let run = &self.run;
        match field {
            Field::Metric(name) => match self.point(name) {
                Some(value) if value.is_nan() => SortKey::NaN,
                Some(value) => SortKey::Real(value),
                None => SortKey::None,
            },
            Field::Text(kind, name) => self.text(kind, name).map_or(SortKey::None, SortKey::Text),
            Field::Start => SortKey::Integer(run.start_ms),
            Field::End => run.end_ms.map_or(SortKey::None, SortKey::Integer),
            Field::Id => SortKey::Text(&run.id),
            Field::Name => SortKey::Text(&run.name),
            Field::User => SortKey::Text(&run.user),
            Field::Status => SortKey::Text(run.status.word()),
            Field::Artifacts => SortKey::Text(&run.artifact_uri),
            Field::Dataset => SortKey::None,
        }
    }

    fn view(&self, names: &Names, experiment: Lifecycle) -> RunView {
        let run = TrackedRun { lifecycle: self.run.lifecycle.within(experiment), ..self.run.clone() };
        let parts = self.items.iter().map(|item| match (item.place.0, &item.value) {
            (_, Value::Point(latest)) => Part::Metric(MetricHead { name: names.name(item.place.1), latest: *latest }),
            (Kind::Param, Value::Text(text)) => Part::Param(Text { key: names.name(item.place.1), value: text.to_string() }),
            (_, Value::Text(text)) => Part::Tag(Text { key: names.name(item.place.1), value: text.to_string() }),
        });
        let view = RunView::new(run, parts);
        match &self.inputs {
            None => view,
            Some(inputs) => RunView {
                datasets: inputs.datasets.clone(),
                model_inputs: inputs.model_inputs.clone(),
                model_outputs: inputs.model_outputs.clone(),
                ..view
            },
        }
    }
}

impl Inputs {
    /// Adds a data set as it is [held](Part::held); its bytes.
    fn dataset(&mut self, input: DatasetInput) -> usize {
        let dataset = &input.dataset;
        self.cut |= input.cut;
        let texts = [Some(&dataset.name), Some(&dataset.digest), Some(&dataset.source), dataset.schema.as_ref(), dataset.profile.as_ref()];
        let bytes: usize = texts.into_iter().flatten().map(String::len).sum();
        let tags: usize = input.tags.iter().map(|tag| tag.key.len() + tag.value.len() + 48).sum();
        self.datasets.push(input);
        bytes + tags + 200
    }
}

/// What a clause or an order looks at, with names as numbers; a name that no run has is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Metric(Option<u32>),
    Text(Kind, Option<u32>),
    Dataset,
    Id,
    Name,
    User,
    Status,
    Artifacts,
    Start,
    End,
}

impl Field {
    fn new(entity: Entity, key: &str, names: &Names) -> Self {
        let name = || names.numbers.get(key).copied();
        match (entity, key) {
            (Entity::Metric, _) => Self::Metric(name()),
            (Entity::Param, _) => Self::Text(Kind::Param, name()),
            (Entity::Dataset, _) => Self::Dataset,
            (Entity::Attribute, "run_id") => Self::Id,
            (Entity::Attribute, "run_name") => Self::Name,
            (Entity::Attribute, "user_id") => Self::User,
            (Entity::Attribute, "status") => Self::Status,
            (Entity::Attribute, "artifact_uri") => Self::Artifacts,
            (Entity::Attribute, "start_time") => Self::Start,
            (Entity::Attribute, "end_time") => Self::End,
            _ => Self::Text(Kind::Tag, name()),
        }
    }
}

/// What runs are ordered by. NaN, and then what is absent, come last in both directions.
#[derive(Debug, Clone, Copy, PartialEq)]
enum SortKey<'a> {
    Integer(i64),
    Real(f64),
    Text(&'a str),
    NaN,
    None,
}

impl SortKey<'_> {
    fn compared(&self, other: &Self, ascending: bool) -> Ordering {
        let ordering = match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Real(a), Self::Real(b)) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            _ => return self.rank().cmp(&other.rank()),
        };
        if ascending { ordering } else { ordering.reverse() }
    }

    fn rank(self) -> u8 {
        match self {
            Self::Integer(_) | Self::Real(_) | Self::Text(_) => 0,
            Self::NaN => 1,
            Self::None => 2,
        }
    }
}

#[cfg(test)]
mod tests;
