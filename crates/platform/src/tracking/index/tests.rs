//! Filters and orders over an index, against a slow search that looks at everything by itself.

use super::*;
use crate::tracking::item::{DatasetInfo, Text};
use crate::tracking::run::RunStatus;

/// Numbers that look like chance and are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

fn run(id: u64, experiment: &str, start_ms: i64) -> TrackedRun {
    TrackedRun {
        id: format!("{id:032x}"),
        experiment_id: experiment.to_owned(),
        name: format!("run {id}"),
        user: "ada".to_owned(),
        status: if id.is_multiple_of(3) { RunStatus::Finished } else { RunStatus::Running },
        start_ms,
        end_ms: id.is_multiple_of(3).then_some(start_ms + 5),
        artifact_uri: String::new(),
        lifecycle: Lifecycle { deleted: false, at: 1 },
        journal: None,
    }
}

fn text(key: &str, value: &str) -> Text {
    Text { key: key.to_owned(), value: value.to_owned() }
}

fn metric(name: &str, value: f64) -> Part<MetricHead> {
    Part::Metric(MetricHead { name: name.to_owned(), latest: Point { value, timestamp: 1, step: 1 } })
}

fn param(key: &str, value: &str) -> Part<MetricHead> {
    Part::Param(text(key, value))
}

fn dataset(name: &str, schema: usize) -> Part<MetricHead> {
    let dataset = DatasetInfo {
        name: name.to_owned(),
        digest: "d".to_owned(),
        source_type: "local".to_owned(),
        source: "s".to_owned(),
        schema: Some("x".repeat(schema)),
        profile: None,
    };
    Part::Dataset(DatasetInput { dataset, tags: vec![text("mlflow.data.context", "train")], cut: false })
}

fn query(filter: &str, order: &[&str], skip: usize, limit: usize) -> Query {
    let order: Vec<String> = order.iter().map(|text| (*text).to_owned()).collect();
    let mut order = filter::order(&GRAMMAR, &order).unwrap();
    if order.iter().all(|order| order.key != "start_time") {
        order.push(Order { entity: Entity::Attribute, key: "start_time".to_owned(), ascending: false });
    }
    Query {
        experiments: vec![("1".to_owned(), Lifecycle::default()), ("2".to_owned(), Lifecycle::default())],
        view: ViewType::ActiveOnly,
        clauses: filter::parse(&GRAMMAR, filter).unwrap(),
        order,
        skip,
        limit,
        until: Instant::now() + Duration::from_secs(600),
    }
}

fn found(index: &Index, filter: &str, order: &[&str]) -> Vec<u64> {
    let found = index.search(&query(filter, order, 0, 1_000_000)).unwrap();
    found.runs.iter().map(|view| u64::from_str_radix(&view.run.id, 16).unwrap()).collect()
}

fn small() -> Index {
    let mut index = Index::default();
    index.put(run(1, "1", 10), vec![metric("m", 0.5), param("p", "a"), Part::Tag(text("t", "x"))]);
    index.put(run(2, "1", 20), vec![metric("m", f64::NAN), param("p", "b"), dataset("iris", 10)]);
    index.put(run(3, "2", 30), vec![metric("m", -1.0), metric("n", 1.0), Part::Tag(text("p", "tag, not parameter"))]);
    index.put(run(4, "3", 40), vec![metric("m", 9.0)]);
    index.put(run(5, "2", 30), vec![]);
    index
}

#[test]
fn clauses_look_at_what_they_name() {
    let index = small();
    for (filter, expected) in [
        ("", vec![3, 5, 2, 1]),
        ("metrics.m < 1", vec![3, 1]),
        ("metrics.m != 0.5", vec![3, 2]),
        ("metrics.nowhere < 1", vec![]),
        ("params.p IS NULL", vec![3, 5]),
        ("tags.p IS NOT NULL", vec![3]),
        ("params.nowhere IS NULL", vec![3, 5, 2, 1]),
        ("params.m = 'a'", vec![]),
        ("params.p LIKE '_' AND metrics.m = 0.5", vec![1]),
        ("dataset.name = 'iris'", vec![2]),
        ("dataset.context = 'train' AND dataset.digest != 'e'", vec![2]),
        ("dataset.name != 'other'", vec![2]),
        ("status = 'FINISHED'", vec![3]),
        ("end_time >= 0", vec![3]),
        ("run_name = 'run 5'", vec![5]),
        ("user_id ILIKE 'ADA'", vec![3, 5, 2, 1]),
        ("start_time > 10 AND start_time <= 20", vec![2]),
    ] {
        assert_eq!(found(&index, filter, &[]), expected, "{filter}");
    }
}

#[test]
fn nan_and_what_is_absent_come_last_both_ways() {
    let index = small();
    assert_eq!(found(&index, "", &["metrics.m"]), [3, 1, 2, 5]);
    assert_eq!(found(&index, "", &["metrics.m DESC"]), [1, 3, 2, 5]);
    assert_eq!(found(&index, "", &["params.p DESC"]), [2, 1, 3, 5]);
    assert_eq!(found(&index, "", &["end_time"]), [3, 5, 2, 1]);
    assert_eq!(found(&index, "", &["metrics.nowhere", "start_time ASC"]), [1, 2, 3, 5]);
    assert_eq!(found(&index, "", &["start_time DESC"]), [3, 5, 2, 1], "alike: by id");
}

#[test]
fn only_experiments_that_are_asked_for_and_their_lifecycles_count() {
    let mut index = small();
    let mut of_three = query("", &[], 0, 10);
    of_three.experiments = vec![("3".to_owned(), Lifecycle { deleted: true, at: 5 }), ("nowhere".to_owned(), Lifecycle::default())];
    assert!(index.search(&of_three).unwrap().runs.is_empty());
    of_three.view = ViewType::DeletedOnly;
    let shown = index.search(&of_three).unwrap().runs;
    assert_eq!((shown.len(), shown[0].run.lifecycle.stage()), (1, "deleted"));
    index.put(TrackedRun { lifecycle: Lifecycle { deleted: false, at: 6 }, ..run(4, "3", 40) }, Vec::new());
    assert!(index.search(&of_three).unwrap().runs.is_empty(), "restored after its experiment was deleted");
    // A name of a metric or tag is no experiment.
    of_three.experiments = vec![("m".to_owned(), Lifecycle::default())];
    of_three.view = ViewType::All;
    assert!(index.search(&of_three).unwrap().runs.is_empty());
}

#[test]
fn what_changes_takes_the_place_of_what_was() {
    let mut index = small();
    let bytes = index.bytes;
    index.put(run(1, "1", 10), vec![metric("m", 7.0)]);
    assert_eq!(found(&index, "metrics.m = 7", &[]), [1]);
    assert_eq!(found(&index, "params.p = 'a'", &[]), Vec::<u64>::new());
    index.remove(&run(1, "1", 10).id);
    index.remove(&run(1, "1", 10).id);
    index.put(run(5, "2", 99), vec![param("p", "moved")]);
    assert_eq!(found(&index, "", &[]), [5, 3, 2]);
    for id in 2..=5 {
        index.remove(&run(id, "", 0).id);
    }
    assert!(index.entries.is_empty() && index.places.is_empty());
    index.put(run(1, "1", 10), vec![metric("m", 0.5), param("p", "a"), Part::Tag(text("t", "x"))]);
    assert!(index.bytes < bytes, "the bytes of what is gone are given back");
}

#[test]
fn long_texts_of_data_sets_are_not_held() {
    let mut index = Index::default();
    index.put(run(1, "1", 1), vec![dataset("small", 100)]);
    index.put(run(2, "1", 2), vec![dataset("large", 100_000)]);
    assert!(index.bytes < 10_000);
    let found = index.search(&query("", &[], 0, 10)).unwrap();
    assert_eq!(found.cut, [0], "the newer one is read from the rows when it is shown");
    assert_eq!(found.runs[1].datasets[0].dataset.schema.as_ref().map(String::len), Some(100));
}

#[test]
fn a_data_set_that_came_from_nowhere_is_not_read_again() {
    let mut index = Index::default();
    let mut part = dataset("made up", 0);
    let Part::Dataset(input) = &mut part else { panic!("a data set") };
    (input.dataset.source, input.dataset.schema) = (String::new(), None);
    index.put(run(1, "1", 1), vec![part]);
    let found = index.search(&query("", &[], 0, 10)).unwrap();
    assert_eq!((found.runs.len(), found.cut), (1, vec![]), "all of it is in memory");
}

#[test]
fn a_view_holds_everything() {
    let index = small();
    let view = index.search(&query("run_name = 'run 1'", &[], 0, 10)).unwrap().runs.remove(0);
    assert_eq!(view.metrics, [("m".to_owned(), Point { value: 0.5, timestamp: 1, step: 1 })]);
    assert_eq!((view.params, view.tags), (vec![text("p", "a")], vec![text("t", "x")]));
}

/// Ten thousand runs by chance: every filter and order as a search that compares all of them by itself, and pages that join without gap.
#[test]
fn as_a_slow_search() {
    let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
    let mut index = Index::default();
    let mut all: Vec<(TrackedRun, Option<f64>, Option<String>)> = Vec::new();
    for id in 0..10_000 {
        let run = run(id, if chance.below(2) == 0 { "1" } else { "2" }, i64::try_from(chance.below(500)).unwrap());
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let value = match chance.below(5) {
            0 => None,
            1 => Some(f64::NAN),
            _ => Some(chance.below(50) as f64 / 10.0),
        };
        let word = (chance.below(3) > 0).then(|| format!("w{}", chance.below(40)));
        let parts = value.map(|value| metric("m", value)).into_iter().chain(word.as_deref().map(|word| param("p", word)));
        index.put(run.clone(), parts.collect());
        all.push((run, value, word));
    }
    for _ in 0..3000 {
        let at = usize::try_from(chance.below(all.len() as u64)).unwrap();
        let (gone, ..) = all.swap_remove(at);
        index.remove(&gone.id);
    }
    let number = |id: &str| u64::from_str_radix(id, 16).unwrap();
    let nothing_last = |value: Option<f64>| value.map_or(2, |value| u8::from(value.is_nan()));
    let mut expected: Vec<_> = all
        .iter()
        .filter(|(_, value, word)| value.is_some_and(|value| value < 3.0) && word.as_deref() != Some("w7") && word.is_some())
        .collect();
    expected.sort_by(|a, b| {
        let value = |run: &(TrackedRun, Option<f64>, Option<String>)| run.1.unwrap();
        value(b).total_cmp(&value(a)).then(a.2.cmp(&b.2)).then(b.0.start_ms.cmp(&a.0.start_ms)).then(a.0.id.cmp(&b.0.id))
    });
    let expected: Vec<u64> = expected.iter().map(|(run, ..)| number(&run.id)).collect();
    let (filter, order) = ("metrics.m < 3 AND params.p != 'w7'", ["metrics.m DESC", "params.p ASC"]);
    assert_eq!(found(&index, filter, &order), expected);
    let mut pages = Vec::new();
    for page in 0.. {
        let found = index.search(&query(filter, &order, page * 333, 333)).unwrap();
        pages.extend(found.runs.iter().map(|view| number(&view.run.id)));
        if !found.more {
            break;
        }
        assert_eq!(found.runs.len(), 333);
    }
    assert_eq!(pages, expected);
    let mut expected: Vec<_> = all.iter().collect();
    expected.sort_by(|a, b| {
        let (x, y) = (a.1, b.1);
        nothing_last(x)
            .cmp(&nothing_last(y))
            .then_with(|| if nothing_last(x) == 0 { x.unwrap().total_cmp(&y.unwrap()) } else { Ordering::Equal })
            .then(b.0.start_ms.cmp(&a.0.start_ms))
            .then(a.0.id.cmp(&b.0.id))
    });
    assert_eq!(found(&index, "", &["metrics.m"]), expected.iter().map(|(run, ..)| number(&run.id)).collect::<Vec<_>>());
}

#[test]
fn a_search_ends_when_its_time_is_up() {
    let index = small();
    let mut late = query("", &[], 0, 10);
    late.until = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    assert!(matches!(index.search(&late), Err(Error::DeadlineExceeded { .. })));
}

/// A figure for people, not a bound: `cargo nextest run --release -p platform --run-ignored only`.
#[test]
#[ignore = "measures"]
fn a_hundred_thousand_runs() {
    let mut chance = Chance(7);
    let mut index = Index::default();
    for id in 0..100_000 {
        let mut parts: Vec<_> = (0..8).map(|at| metric(&format!("m{at}"), chance.below(1000) as f64)).collect();
        parts.extend((0..8).map(|at| param(&format!("p{at}"), &format!("value {}", chance.below(100)))));
        parts.extend((0..4).map(|at| Part::Tag(text(&format!("t{at}"), &format!("tag {}", chance.below(10))))));
        index.put(run(id, "1", i64::try_from(chance.below(1 << 40)).unwrap()), parts);
    }
    println!("{} MB", index.bytes >> 20);
    for (filter, order) in [
        ("", vec![]),
        ("metrics.m3 > 900", vec![]),
        ("metrics.m3 > 500 AND params.p5 = 'value 7'", vec!["metrics.m1 DESC"]),
        ("tags.t1 LIKE '%g 3' AND metrics.m7 <= 10", vec!["params.p1"]),
        ("params.p2 ILIKE 'VALUE 5%'", vec!["metrics.m1 DESC", "params.p1"]),
    ] {
        let started = Instant::now();
        let found = index.search(&query(filter, &order, 0, 100)).unwrap();
        println!("{:?} for {filter:?} by {order:?}: {} runs", started.elapsed(), found.runs.len());
    }
}

/// Patterns whose cost multiplies with the text are looked at one run at a time, and not where others wait.
#[test]
fn a_costly_filter_is_cut_in_time() {
    let mut index = Index::default();
    for id in 1..200 {
        index.put(run(id, "1", 10), vec![Part::Tag(text("t", &"x".repeat(8000)))]);
    }
    let pattern = vec![format!("tags.t LIKE '%{}y%'", "_".repeat(200)); 40].join(" AND ");
    let cheap = query("tags.t LIKE '%x%'", &[], 0, 10);
    assert!(cheap.is_quick(200) && cheap.clock_every() > 1);
    let costly = query(&pattern, &[], 0, 10);
    assert!(!costly.is_quick(1) && costly.clock_every() == 1);
    let late = Query { until: Instant::now(), ..query(&pattern, &[], 0, 10) };
    std::thread::sleep(Duration::from_millis(1));
    assert_eq!(index.search(&late).map(|found| found.runs.len()).unwrap_err().code(), "deadline_exceeded");
    assert!(!query("tags.t = 'x'", &[], 0, 10).is_quick(INLINE_RUNS_MAX), "more runs than that, for each comparison");
}

#[test]
fn data_sets_are_summed_up() {
    let mut index = small();
    index.put(run(6, "1", 10), vec![dataset("iris", 10)]);
    index.put(run(7, "3", 10), vec![dataset("wine", 10)]);
    let found = index.datasets(&["1".to_owned(), "2".to_owned()]);
    assert_eq!(found.iter().map(|one| (one.experiment_id.as_str(), one.name.as_str())).collect::<Vec<_>>(), [("1", "iris")]);
}
