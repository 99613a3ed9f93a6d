//! What is found of logged models, and what of many measurements counts.

use super::*;

fn model() -> LoggedModel {
    let metric = |value, step, dataset: Option<&str>| LoggedMetric {
        name: "accuracy".to_owned(),
        value: Real(value),
        timestamp_ms: 1,
        step,
        run_id: "r".to_owned(),
        dataset_name: dataset.map(str::to_owned),
        dataset_digest: None,
    };
    LoggedModel {
        id: "m-1".to_owned(),
        experiment_id: "0".to_owned(),
        name: "elastic".to_owned(),
        created_ms: 5,
        updated_ms: 6,
        model_type: None,
        status: LoggedModelStatus::Ready,
        source_run_id: Some("r".to_owned()),
        params: BTreeMap::from([("alpha".to_owned(), "0.5".to_owned())]),
        tags: BTreeMap::new(),
        metrics: vec![metric(0.5, 1, None), metric(0.9, 2, Some("test")), metric(f64::NAN, 1, Some("odd"))],
        deleted_ms: None,
        created_by: "ada".to_owned(),
    }
}

#[test]
fn filters() {
    let table = [
        ("", true),
        ("name = 'elastic' AND status = 'READY'", true),
        ("status IN ('PENDING', 'FAILED')", false),
        ("metrics.accuracy > 0.8", true),
        ("metrics.accuracy > 0.95", false),
        ("params.alpha = '0.5'", true),
        ("params.beta = '0.5'", false),
        ("creation_time >= 5", true),
        ("source_run_id = 'r'", true),
    ];
    for (text, expected) in table {
        let clauses = filter::parse(&GRAMMAR, text).unwrap();
        let (measured, plain): (Vec<Clause>, Vec<Clause>) = clauses.into_iter().partition(|clause| clause.entity == Entity::Metric);
        assert_eq!(matches(&model(), &plain) && measures(&model(), &measured, &[]), expected, "{text}");
    }
    let on = |name: &str| vec![DatasetWanted { dataset_name: name.to_owned(), dataset_digest: None }];
    assert!(measures(&model(), &[], &on("test")) && !measures(&model(), &[], &on("train")));
}

#[test]
fn of_many_points_the_newest_count() {
    let mut model = LoggedModel { metrics: Vec::new(), ..model() };
    let points = |steps: std::ops::Range<i64>| {
        let point = |step: i64| ModelMetric {
            key: if step % 2 == 0 { "even" } else { "odd" }.to_owned(),
            // As they lie in the store: in the order of a hash.
            point: crate::tracking::Point { value: step as f64, timestamp: 1, step: step * 7919 % 5000 },
            link: crate::tracking::metric::ModelLink { model_id: "m-1".to_owned(), dataset_name: None, dataset_digest: None },
            run_id: "r".to_owned(),
            experiment_id: "0".to_owned(),
        };
        steps.map(point).collect::<Vec<_>>()
    };
    model.measured(points(0..900));
    assert_eq!(model.metrics.len(), 900, "all are shown");
    for part in [900..2000, 2000..3000, 3000..5000] {
        model.measured(points(part));
    }
    assert!(model.metrics.len() <= METRICS_MAX);
    let newest = |odd: i64| (0..5000).filter(|step| step % 2 == odd).max_by_key(|step| step * 7919 % 5000).unwrap() as f64;
    assert_eq!((model.metric("even", &[]), model.metric("odd", &[])), (Some(newest(0)), Some(newest(1))));
}

#[test]
fn parameters_are_written_once() {
    let mut model = model();
    assert!(model.params_add(vec![("alpha".to_owned(), "0.5".to_owned())]).is_ok());
    assert!(model.params_add(vec![("alpha".to_owned(), "0.6".to_owned())]).is_err());
    assert_eq!(LoggedModelStatus::parse("LOGGED_MODEL_UPLOAD_FAILED"), Some(LoggedModelStatus::Failed));
    assert_eq!(LoggedModelStatus::parse("LOGGED_MODEL_READY"), Some(LoggedModelStatus::Ready));
}
