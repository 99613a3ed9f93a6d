//! Looking for traces. In order of time, which is what clients ask for by default, a search reads the slots newest first and stops when the
//! page is full; its token says where. In any other order it reads all traces of the experiments, up to a bound, and sorts.

use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tenancy::Permit;
use tenancy::act::{Act, ResourceKind, TraceRead};

use super::assessment::Assessment;
use super::span::Seen;
use super::{METADATA_RUN, READ_ITEMS, Slot, TAG_NAME, TAG_PROMPTS, Trace};
use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::tracking::check::name_hash;
use crate::tracking::filter::{self, Attribute, Clause, Entity, Grammar, ID_LIST, NUMBER, Op, Order, Rule, ValueKind};

/// Traces in one answer at most.
const PAGE_MAX: u32 = 500;
/// Traces in one answer when nothing is asked for.
const PAGE_DEFAULT: u32 = 100;
/// Experiments of one search.
const EXPERIMENTS_MAX: usize = 1000;
/// Traces looked at for one page: the rest of a long search is in the pages after it.
const LOOKED_AT_MAX: usize = 20_000;
/// Traces that can be brought into another order than that of time.
const SORTED_MAX: usize = 100_000;
/// Memory of the traces of one answer, in bytes; what does not fit is on the next page.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Memory of the traces that are brought into another order, in bytes.
const SORTED_BYTES_MAX: usize = 128 << 20;
/// Longest time that one search may look.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(20);
/// Spans that are looked through where they were read, in bytes: more of them get a thread that nobody else waits for.
const INLINE_BYTES_MAX: u64 = 64 << 10;
/// Traces read at once.
const LOOK_ITEMS: usize = 64;
/// Slots that are chosen from when traces are deleted.
const OLDER_MAX: usize = 100_000;

/// Which traces are asked for.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TraceSearch {
    /// Their experiments.
    pub experiment_ids: Vec<String>,
    /// In MLflow's language.
    pub filter: String,
    /// In MLflow's language.
    pub order_by: Vec<String>,
    /// Most in one answer.
    #[serde(skip)]
    pub limit: Option<u32>,
    /// Where the answer before ended.
    #[serde(skip)]
    pub page_token: Option<String>,
}

const PATTERN: Rule = Rule { ops: &[Op::Like, Op::Ilike, Op::Rlike], value: ValueKind::Text };
const TEXT: Rule = Rule { ops: &[Op::Eq, Op::Ne, Op::Like, Op::Ilike, Op::Rlike], value: ValueKind::Text };
const TEXT_LIST: Rule = Rule { ops: &[Op::Eq, Op::Ne, Op::Like, Op::Ilike, Op::Rlike, Op::In, Op::NotIn], value: ValueKind::Text };
const TEXT_NULL: Rule = Rule { ops: &[Op::Eq, Op::Ne, Op::Like, Op::Ilike, Op::Rlike, Op::IsNull, Op::IsNotNull], value: ValueKind::Text };
const SAID: Rule = Rule {
    ops: &[Op::Eq, Op::Ne, Op::Gt, Op::Ge, Op::Lt, Op::Le, Op::Like, Op::Ilike, Op::Rlike, Op::IsNull, Op::IsNotNull],
    value: ValueKind::Any,
};

const GRAMMAR: Grammar = Grammar {
    prefixes: &[
        ("attribute", Entity::Attribute),
        ("attributes", Entity::Attribute),
        ("trace", Entity::Attribute),
        ("tag", Entity::Tag),
        ("tags", Entity::Tag),
        ("metadata", Entity::Metadata),
        ("request_metadata", Entity::Metadata),
        ("span", Entity::Span),
        ("feedback", Entity::Feedback),
        ("expectation", Entity::Expectation),
    ],
    attributes: &[
        Attribute { names: &["request_id", "trace_id"], rule: &ID_LIST },
        Attribute { names: &["timestamp_ms", "timestamp"], rule: &NUMBER },
        Attribute { names: &["execution_time_ms", "execution_time"], rule: &NUMBER },
        Attribute { names: &["end_time_ms", "end_time"], rule: &NUMBER },
        Attribute { names: &["status"], rule: &TEXT_LIST },
        Attribute { names: &["client_request_id"], rule: &TEXT_LIST },
        Attribute { names: &["name"], rule: &TEXT_LIST },
        Attribute { names: &["run_id"], rule: &ID_LIST },
        Attribute { names: &["prompt"], rule: &TEXT },
        Attribute { names: &["text"], rule: &PATTERN },
    ],
    entities: &[
        (Entity::Tag, &TEXT_NULL, &[]),
        (Entity::Metadata, &TEXT_NULL, &[]),
        (Entity::Span, &TEXT_LIST, &[]),
        (Entity::Feedback, &SAID, &[]),
        (Entity::Expectation, &SAID, &[]),
    ],
    order_attributes: &["experiment_id", "timestamp_ms", "execution_time_ms", "end_time_ms", "status", "request_id", "name", "run_id"],
    order_entities: &[],
};

/// Where an answer ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    /// After the trace that began then.
    After(i64, String),
    /// After so many, in another order than that of time.
    Skip(usize),
}

#[derive(Serialize, Deserialize)]
struct Token {
    query: String,
    place: Place,
}

impl Platform {
    /// Traces that pass a filter, newest first unless asked otherwise, without their spans; and the token for more.
    ///
    /// # Errors
    /// A filter, an order or a token that cannot be read; too many traces for another order than that of time.
    pub async fn trace_search(&self, permit: &Permit<TraceRead>, search: &TraceSearch) -> Result<(Vec<Trace>, Option<String>)> {
        let clauses = filter::parse(&GRAMMAR, &search.filter)?;
        clauses.iter().try_for_each(span_key_checked)?;
        let order = filter::order(&GRAMMAR, &search.order_by)?;
        let limit = match search.limit {
            None => PAGE_DEFAULT as usize,
            Some(limit) if (1..=PAGE_MAX).contains(&limit) => limit as usize,
            Some(limit) => {
                return Err(Error::invalid(format!(
                    "Invalid value {limit} for parameter 'max_results' supplied: It must be a positive integer and at most {PAGE_MAX}."
                )));
            }
        };
        if search.experiment_ids.len() > EXPERIMENTS_MAX {
            return Err(Error::invalid(format!("a search is in at most {EXPERIMENTS_MAX} experiments")));
        }
        let query = name_hash(&serde_json::to_string(search).map_err(tenancy::Error::internal)?);
        let place =
            search.page_token.as_deref().filter(|token| !token.is_empty()).map(|token| opened(permit, token, &query)).transpose()?;
        let seen: BTreeSet<&String> = search.experiment_ids.iter().collect();
        let experiments =
            seen.into_iter().filter(|id| is_experiment_id(id) && permit.may(ResourceKind::Experiment, id)).map(String::as_str);
        let query_of = Query::new(clauses);
        let (found, place) = match (by_time(&order), place) {
            (true, Some(Place::Skip(_))) | (false, Some(Place::After(..))) => return Err(wrong_token()),
            (true, place) => self.newest(permit, Feed::new(permit, experiments, place.as_ref()), &query_of, limit).await?,
            (false, place) => {
                let skip = if let Some(Place::Skip(skip)) = place { skip } else { 0 };
                let _turn = self.tracking().search_turn(permit).await?;
                let found = self.sorted(permit, Feed::new(permit, experiments, None), &query_of, &order).await?;
                let all = found.len();
                let mut bytes = 0;
                let found: Vec<Trace> = found
                    .into_iter()
                    .skip(skip)
                    .take(limit)
                    .take_while(|trace| {
                        let first = bytes == 0;
                        bytes += trace.held_bytes();
                        first || bytes <= ANSWER_BYTES_MAX
                    })
                    .collect();
                let end = skip.saturating_add(found.len());
                (found, (all > end).then_some(Place::Skip(end)))
            }
        };
        let token = place.map(|place| {
            let token = serde_json::to_vec(&Token { query, place }).map_err(tenancy::Error::internal)?;
            permit.token_seal(&token)
        });
        Ok((found, token.transpose()?))
    }

    /// One page in order of time.
    async fn newest(
        &self,
        permit: &Permit<TraceRead>,
        mut feed: Feed<'_, TraceRead>,
        query: &Query,
        limit: usize,
    ) -> Result<(Vec<Trace>, Option<Place>)> {
        let (mut found, mut looked_at, mut bytes) = (Vec::<Trace>::new(), 0, 0);
        loop {
            let slots = feed.next(LOOK_ITEMS).await?;
            if slots.is_empty() {
                return Ok((found, None));
            }
            looked_at += slots.len();
            let mut ids: VecDeque<String> = slots.iter().map(|slot| slot.trace_id.clone()).collect();
            while !ids.is_empty() {
                for trace in next_traces(permit, &mut ids).await? {
                    if !self.passes(permit, &trace, query).await? {
                        continue;
                    }
                    bytes += trace.held_bytes();
                    if found.len() == limit || (bytes > ANSWER_BYTES_MAX && !found.is_empty()) {
                        let place = found.last().map(|last| Place::After(last.request_ms, last.id.clone()));
                        return Ok((found, place));
                    }
                    found.push(trace);
                }
            }
            if looked_at >= LOOKED_AT_MAX {
                return Ok((found, slots.last().map(|slot| Place::After(slot.request_ms, slot.trace_id.clone()))));
            }
        }
    }

    /// All that pass, in another order.
    async fn sorted(
        &self,
        permit: &Permit<TraceRead>,
        mut feed: Feed<'_, TraceRead>,
        query: &Query,
        order: &[Order],
    ) -> Result<Vec<Trace>> {
        let (mut found, mut bytes) = (Vec::new(), 0);
        loop {
            let mut ids: VecDeque<String> = feed.next(LOOK_ITEMS).await?.into_iter().map(|slot| slot.trace_id).collect();
            if ids.is_empty() {
                break;
            }
            while !ids.is_empty() {
                for mut trace in next_traces(permit, &mut ids).await? {
                    if self.passes(permit, &trace, query).await? {
                        bytes += trace.held_bytes();
                        if found.len() == SORTED_MAX || bytes > SORTED_BYTES_MAX {
                            return Err(Error::invalid(format!(
                                "more than {SORTED_MAX} traces, or {SORTED_BYTES_MAX} bytes of them, would have to be sorted: order by \
                                 `timestamp_ms DESC`, or narrow the filter"
                            )));
                        }
                        trace.assessments.shrink_to_fit();
                        found.push(trace);
                    }
                }
            }
        }
        found.sort_by(|a, b| {
            let ordering = order.iter().map(|order| compared(a, b, order)).find(|ordering| ordering.is_ne());
            ordering.unwrap_or_else(|| b.request_ms.cmp(&a.request_ms).then_with(|| a.id.cmp(&b.id)))
        });
        Ok(found)
    }

    /// Whether a trace passes. Its spans are read only when the rest of it does.
    async fn passes(&self, permit: &Permit<TraceRead>, trace: &Trace, query: &Query) -> Result<bool> {
        query.in_time()?;
        let own = if query.is_costly {
            let (trace, clauses) = (trace.clone(), Arc::clone(&query.own));
            aside(move || clauses.iter().all(|clause| holds(&trace, clause))).await?
        } else {
            query.own.iter().all(|clause| holds(trace, clause))
        };
        if !own || query.spans.is_empty() {
            return Ok(own);
        }
        let (clauses, spans) = (Arc::clone(&query.spans), self.trace_spans(permit, trace, true).await?.unwrap_or_default());
        let until = query.until;
        let look = move || {
            // A clause may turn every span into a text.
            let found = |clause: &Clause| spans.iter().take_while(|_| Instant::now() <= until).any(|span| span_holds(span, clause));
            clauses.iter().all(found)
        };
        let found = if query.is_costly || trace.span_bytes > INLINE_BYTES_MAX { aside(look).await? } else { look() };
        query.in_time().map(|()| found)
    }
}

/// Those of the first ids that are there, as many as a page holds; their ids are taken.
async fn next_traces(permit: &Permit<TraceRead>, ids: &mut VecDeque<String>) -> Result<Vec<Trace>> {
    let got = permit.rows().get_page::<Trace>(ids.make_contiguous()).await?;
    ids.drain(..got.records.len().min(ids.len()));
    Ok(got.records.into_iter().flatten().collect())
}

/// On a thread that nobody else waits for.
async fn aside(work: impl FnOnce() -> bool + Send + 'static) -> Result<bool> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(tenancy::Error::internal)?)
}

/// A filter, taken apart: what looks at a trace's record, and what looks at its spans.
struct Query {
    own: Arc<[Clause]>,
    spans: Arc<[Clause]>,
    is_costly: bool,
    until: Instant,
}

impl Query {
    fn new(clauses: Vec<Clause>) -> Self {
        let about_spans = |clause: &Clause| clause.entity == Entity::Span || (clause.entity == Entity::Attribute && clause.key == "text");
        let is_costly = clauses.iter().any(Clause::is_costly);
        let (spans, own): (Vec<_>, Vec<_>) = clauses.into_iter().partition(about_spans);
        Self { own: own.into(), spans: spans.into(), is_costly, until: Instant::now() + SEARCH_TIME_MAX }
    }

    fn in_time(&self) -> Result<()> {
        if Instant::now() > self.until { Err(Error::DeadlineExceeded { seconds: SEARCH_TIME_MAX.as_secs() }) } else { Ok(()) }
    }
}

fn opened(permit: &Permit<TraceRead>, token: &str, query: &str) -> Result<Place> {
    let token: Token = serde_json::from_slice(&permit.token_open(token)?).map_err(|_| wrong_token())?;
    if token.query == query { Ok(token.place) } else { Err(wrong_token()) }
}

fn wrong_token() -> Error {
    Error::invalid("Invalid page token: it belongs to another query")
}

/// Whether the order is that of the slots.
fn by_time(order: &[Order]) -> bool {
    let newest = |order: &Order| order.key == "timestamp_ms" && !order.ascending;
    match order {
        [] => true,
        [first] => newest(first),
        [first, second] => newest(first) && second.key == "request_id" && second.ascending,
        _ => false,
    }
}

/// Whether it is the whole of an experiment's id: it begins the keys of slots, and half a key would show what another id hides.
fn is_experiment_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit())
}

/// The fields of spans that can be asked for.
fn span_key_checked(clause: &Clause) -> Result<()> {
    let known = ["name", "type", "status", "content"].contains(&clause.key.as_str());
    if clause.entity != Entity::Span || known || clause.key.strip_prefix("attributes.").is_some_and(|key| !key.is_empty()) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "Invalid span attribute '{}'. Supported attributes: name, status, type, attributes.<attribute_name>.",
        crate::tracking::check::truncated(clause.key.clone(), 100)
    )))
}

fn holds(trace: &Trace, clause: &Clause) -> bool {
    let test = &clause.test;
    match (clause.entity, clause.key.as_str()) {
        (Entity::Tag, key) => test.text(trace.tags.get(key).map(String::as_str)),
        (Entity::Metadata, key) => test.text(trace.metadata.get(key).map(String::as_str)),
        (Entity::Feedback | Entity::Expectation, _) => said(trace, clause),
        (_, "request_id") => test.text(Some(&trace.id)),
        (_, "timestamp_ms") => test.integer(Some(trace.request_ms)),
        (_, "execution_time_ms") => test.integer(trace.duration_ms),
        (_, "end_time_ms") => test.integer(trace.ended_ms()),
        (_, "status") => test.text(Some(trace.state.word())),
        (_, "client_request_id") => test.text(trace.client_request_id.as_deref()),
        (_, "name") => test.text(trace.tags.get(TAG_NAME).map(String::as_str)),
        (_, "run_id") => {
            let own = trace.metadata.get(METADATA_RUN);
            own.into_iter().chain(&trace.runs).any(|run| test.text(Some(run)))
        }
        (_, "prompt") => trace.prompts().iter().any(|prompt| test.text(Some(prompt))),
        _ => false,
    }
}

/// Whether anything that was said under the name passes.
fn said(trace: &Trace, clause: &Clause) -> bool {
    let kind = |verdict: &super::Verdict| match clause.entity {
        Entity::Feedback => matches!(verdict, super::Verdict::Feedback(_)),
        _ => matches!(verdict, super::Verdict::Expectation(_)),
    };
    let mut values = trace.assessments.iter().filter(|one| one.name == clause.key && kind(&one.verdict)).map(|one| one.verdict.value());
    match &clause.test {
        filter::Test::Present(present) => values.next().is_some() == *present,
        test @ filter::Test::Number(..) => values.any(|value| test.real(value.and_then(|value| value.as_f64()))),
        test => values.any(|value| {
            let value = value.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            test.text(value.as_deref())
        }),
    }
}

fn span_holds(span: &Value, clause: &Clause) -> bool {
    match clause.key.as_str() {
        "content" | "text" => clause.test.text(Some(&span.to_string())),
        key => clause.test.text(Seen(span).field(key).as_deref()),
    }
}

fn compared(a: &Trace, b: &Trace, order: &Order) -> Ordering {
    // What is absent comes last, whichever way.
    fn absent_last<T: Ord>(a: Option<T>, b: Option<T>, ascending: bool) -> Ordering {
        match (a, b) {
            (Some(a), Some(b)) if ascending => a.cmp(&b),
            (Some(a), Some(b)) => b.cmp(&a),
            (a, b) => b.is_some().cmp(&a.is_some()),
        }
    }
    let up = order.ascending;
    match order.key.as_str() {
        "experiment_id" => absent_last(a.experiment_id.parse::<u64>().ok(), b.experiment_id.parse::<u64>().ok(), up),
        "timestamp_ms" => absent_last(Some(a.request_ms), Some(b.request_ms), up),
        "execution_time_ms" => absent_last(a.duration_ms, b.duration_ms, up),
        "end_time_ms" => absent_last(a.ended_ms(), b.ended_ms(), up),
        "status" => absent_last(Some(a.state.word()), Some(b.state.word()), up),
        "name" => absent_last(a.tags.get(TAG_NAME), b.tags.get(TAG_NAME), up),
        "run_id" => absent_last(a.metadata.get(METADATA_RUN), b.metadata.get(METADATA_RUN), up),
        _ => absent_last(Some(&a.id), Some(&b.id), up),
    }
}

impl Trace {
    /// About what it takes in memory.
    fn held_bytes(&self) -> usize {
        let labels = self.metadata.iter().chain(&self.tags).map(|(key, value)| key.len() + value.len() + 100).sum::<usize>();
        let previews = [&self.request_preview, &self.response_preview].into_iter().flatten().map(String::len).sum::<usize>();
        let said = self.assessments.iter().map(Assessment::held_bytes).sum::<usize>();
        500 + labels + previews + said
    }

    fn ended_ms(&self) -> Option<i64> {
        Some(self.request_ms.saturating_add(self.duration_ms?))
    }

    /// Linked prompts as `name/version`.
    fn prompts(&self) -> Vec<String> {
        let listed = self.tags.get(TAG_PROMPTS).and_then(|text| serde_json::from_str::<Vec<Value>>(text).ok()).unwrap_or_default();
        let name = |prompt: &Value| Some(format!("{}/{}", prompt.get("name")?.as_str()?, prompt.get("version")?.as_str()?));
        listed.iter().filter_map(name).collect()
    }
}

/// The slots of some experiments, newest first.
struct Feed<'p, A: Act> {
    permit: &'p Permit<A>,
    lanes: Vec<Lane>,
}

/// The slots of one experiment.
struct Lane {
    prefix: String,
    after: Option<String>,
    slots: VecDeque<Slot>,
    ended: bool,
}

impl<'p, A: Act> Feed<'p, A> {
    fn new<'a>(permit: &'p Permit<A>, experiments: impl Iterator<Item = &'a str>, place: Option<&Place>) -> Self {
        let lane = |id: &str| {
            let after = match place {
                Some(Place::After(request_ms, trace_id)) => Some(Slot::key_of(id, *request_ms, trace_id)),
                _ => None,
            };
            Lane { prefix: format!("{id}/"), after, slots: VecDeque::new(), ended: false }
        };
        Self { permit, lanes: experiments.map(lane).collect() }
    }

    /// At most so many more; none at the end.
    async fn next(&mut self, limit: usize) -> Result<Vec<Slot>> {
        let mut found = Vec::with_capacity(limit);
        while found.len() < limit {
            for lane in self.lanes.iter_mut().filter(|lane| lane.slots.is_empty() && !lane.ended) {
                lane.fill(self.permit).await?;
            }
            let first = |slot: &Slot| (std::cmp::Reverse(slot.request_ms), slot.trace_id.clone());
            let lane = self.lanes.iter_mut().filter(|lane| !lane.slots.is_empty()).min_by_key(|lane| lane.slots.front().map(first));
            match lane.and_then(|lane| lane.slots.pop_front()) {
                Some(slot) => found.push(slot),
                None => break,
            }
        }
        Ok(found)
    }
}

impl Lane {
    async fn fill<A: Act>(&mut self, permit: &Permit<A>) -> Result<()> {
        let page = permit.rows().list::<Slot>(self.after.as_deref(), READ_ITEMS, Some(&self.prefix)).await?;
        self.ended = page.next.is_none();
        self.after = page.next;
        self.slots.extend(page.records);
        Ok(())
    }
}

/// The traces of an experiment that began at a time or before; the oldest of them when not all are wanted.
pub(super) async fn older<A: Act>(permit: &Permit<A>, experiment_id: &str, request_ms: i64, most: Option<usize>) -> Result<Vec<String>> {
    let place = request_ms.checked_add(1).map(|after| Place::After(after, char::MAX.to_string()));
    let mut feed = Feed::new(permit, [experiment_id].into_iter(), place.as_ref());
    let mut ids = VecDeque::new();
    loop {
        let slots = feed.next(LOOK_ITEMS).await?;
        if slots.is_empty() {
            return Ok(ids.into());
        }
        for slot in slots {
            ids.push_back(slot.trace_id);
            if ids.len() > most.unwrap_or(OLDER_MAX).min(OLDER_MAX) {
                ids.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::tracking::trace::{TraceState, Verdict};

    fn trace() -> Trace {
        let assessment = |name: &str, verdict| Assessment {
            id: name.to_owned(),
            name: name.to_owned(),
            span_id: None,
            source: json!({}),
            created_ms: 0,
            updated_ms: 0,
            verdict,
            rationale: None,
            metadata: BTreeMap::new(),
            overrides: None,
            valid: true,
        };
        Trace {
            id: "tr-1".to_owned(),
            experiment_id: "3".to_owned(),
            request_ms: 1000,
            duration_ms: Some(50),
            state: TraceState::Ok,
            tags: BTreeMap::from([
                (TAG_NAME.to_owned(), "predict".to_owned()),
                ("team".to_owned(), "core".to_owned()),
                (TAG_PROMPTS.to_owned(), r#"[{"name": "p", "version": "2"}]"#.to_owned()),
            ]),
            metadata: BTreeMap::from([(METADATA_RUN.to_owned(), "r1".to_owned())]),
            runs: BTreeSet::from(["r2".to_owned()]),
            assessments: vec![
                assessment("good", Verdict::Feedback(json!({"value": true}))),
                assessment("score", Verdict::Feedback(json!({"value": 0.7}))),
                assessment("answer", Verdict::Expectation(json!({"value": "42"}))),
            ],
            ..Trace::default()
        }
    }

    #[test]
    fn filters() {
        let table = [
            ("trace.status = 'OK'", true),
            ("status != 'OK'", false),
            ("timestamp_ms >= 1000 AND timestamp < 1001", true),
            ("execution_time > 49 AND end_time_ms = 1050", true),
            ("name LIKE 'pre%'", true),
            ("name IN ('a', 'predict')", true),
            ("tags.team = 'core' AND tag.other IS NULL", true),
            ("tags.team = 'other'", false),
            ("run_id = 'r1'", true),
            ("run_id = 'r2'", true),
            ("attribute.run_id IN ('r3')", false),
            ("prompt = 'p/2'", true),
            ("prompt = 'p/1'", false),
            ("request_metadata.`mlflow.sourceRun` = 'r1'", true),
            ("feedback.good = 'true'", true),
            ("feedback.good = 'false'", false),
            ("feedback.score > 0.5 AND feedback.score <= 0.7", true),
            ("feedback.score > 0.9", false),
            ("feedback.none IS NULL AND feedback.good IS NOT NULL", true),
            ("expectation.answer = '42'", true),
            ("feedback.answer = '42'", false),
            ("name RLIKE '^pre.*t$' AND tags.team RLIKE 'or'", true),
            ("name RLIKE '^PRE'", false),
            ("metadata.`mlflow.sourceRun` RLIKE '^r[0-9]$'", true),
            ("expectation.answer RLIKE '4|5'", true),
            ("tags.absent RLIKE ''", false),
        ];
        for (text, expected) in table {
            let clauses = filter::parse(&GRAMMAR, text).unwrap();
            assert_eq!(clauses.iter().all(|clause| holds(&trace(), clause)), expected, "{text}");
        }
    }

    #[test]
    fn spans() {
        let span = json!({"name": "step", "attributes": [{"key": "a.b", "value": {"string_value": "x y"}}]});
        let table = [
            ("span.name = 'step'", true),
            ("span.name IN ('a', 'step')", true),
            ("span.status = 'UNSET'", true),
            ("span.attributes.a.b LIKE '%x%'", true),
            ("span.attributes.a = 'x'", false),
            ("span.content ILIKE '%X Y%'", true),
            ("trace.text LIKE '%nothing%'", false),
            ("span.name RLIKE 'st.p' AND span.attributes.a.b RLIKE '^x\\s'", true),
            ("span.content RLIKE 'a\\.b'", true),
        ];
        for (text, expected) in table {
            let clauses = filter::parse(&GRAMMAR, text).unwrap();
            assert!(clauses.iter().all(|clause| span_key_checked(clause).is_ok()), "{text}");
            assert_eq!(clauses.iter().all(|clause| span_holds(&span, clause)), expected, "{text}");
        }
        let clauses = filter::parse(&GRAMMAR, "span.other = 'x'").unwrap();
        assert!(clauses.iter().any(|clause| span_key_checked(clause).is_err()));
    }

    #[test]
    fn half_a_key_is_no_experiment() {
        for (id, good) in [("0", true), ("17", true), ("", false), ("1/7fff", false), ("1/", false), ("a", false)] {
            assert_eq!(is_experiment_id(id), good, "{id}");
        }
    }

    #[test]
    fn orders() {
        let table: [(&[&str], bool); 5] = [
            (&[], true),
            (&["timestamp_ms DESC"], true),
            (&["timestamp DESC", "request_id ASC"], true),
            (&["timestamp_ms ASC"], false),
            (&["name"], false),
        ];
        for (texts, expected) in table {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(by_time(&filter::order(&GRAMMAR, &texts).unwrap()), expected, "{texts:?}");
        }
        let other = Trace { duration_ms: None, ..trace() };
        let order = |text: &str| filter::order(&GRAMMAR, &[text.to_owned()]).unwrap().remove(0);
        assert_eq!(compared(&trace(), &other, &order("execution_time ASC")), Ordering::Less);
        assert_eq!(compared(&trace(), &other, &order("execution_time DESC")), Ordering::Less);
    }
}
