//! What is counted, in the Prometheus text format. Two views: the operator's, which has no tenant content and at most
//! [`TENANT_LABELS_MAX`] tenants by name, and each tenant's own, which has nothing of anybody else.
//!
//! Counters are kept per address of the router, so their number is fixed; a tenant's are kept under its opaque
//! [`IslandToken`]: a tenant that comes later under the same name starts from nothing.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use lru::LruCache;
use parking_lot::Mutex;
use platform::tenancy::{IslandToken, QuotaUse, TenantUsage};
use platform::{BATCH_BOUNDS_ROWS, Batches, COLD_START_BOUNDS_MS, PlatformStats, Times, VersionAnswers};

use crate::service::status_class;

/// Tenants whose own counters are kept; the least recently active go first and start again from nothing.
const TENANTS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Tenants by name in the operator's view, the busiest ones.
const TENANT_LABELS_MAX: usize = 200;
/// Upper bounds of the latency histogram in microseconds.
const BOUNDS_MICROS: [u64; 13] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000, 30_000_000];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// One answered request.
pub(crate) struct Seen {
    /// Place among the routes; none when nothing was routed.
    pub(crate) operation: Option<usize>,
    pub(crate) status: StatusCode,
    pub(crate) took: Duration,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

/// All counters of this process.
pub(crate) struct Metrics {
    operations: Arc<[&'static str]>,
    all: Series,
    tenants: Mutex<LruCache<IslandToken, Arc<Series>>>,
    connections_opened: AtomicU64,
    connections_closed: AtomicU64,
    connections_refused: AtomicU64,
    cut: [(&'static str, AtomicU64); 5],
    panics: AtomicU64,
    forwarded: AtomicU64,
    refusals_delayed: AtomicU64,
}

impl Metrics {
    /// `operations`: names of the routes, in their order.
    pub(crate) fn new(operations: Vec<&'static str>) -> Self {
        let operations: Arc<[&'static str]> = operations.into();
        Self {
            all: Series::new(operations.len()),
            operations,
            tenants: Mutex::new(LruCache::new(TENANTS_MAX)),
            connections_opened: AtomicU64::new(0),
            connections_closed: AtomicU64::new(0),
            connections_refused: AtomicU64::new(0),
            cut: ["handshake", "first byte", "header", "idle", "write"].map(|why| (why, AtomicU64::new(0))),
            panics: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            refusals_delayed: AtomicU64::new(0),
        }
    }

    pub(crate) fn forwarded(&self) {
        bump(&self.forwarded, 1);
    }

    pub(crate) fn refusal_delayed(&self) {
        bump(&self.refusals_delayed, 1);
    }

    pub(crate) fn connection_opened(&self) {
        bump(&self.connections_opened, 1);
    }

    pub(crate) fn connection_closed(&self) {
        bump(&self.connections_closed, 1);
    }

    pub(crate) fn connection_refused(&self) {
        bump(&self.connections_refused, 1);
    }

    pub(crate) fn connection_cut(&self, why: &str) {
        if let Some((_, counter)) = self.cut.iter().find(|(known, _)| *known == why) {
            bump(counter, 1);
        }
    }

    pub(crate) fn panicked(&self) {
        bump(&self.panics, 1);
    }

    /// Counts an answer, for everybody and for the tenant.
    pub(crate) fn answered(&self, seen: &Seen, island: Option<IslandToken>) {
        self.all.count(seen);
        if let Some(island) = island {
            self.tenant(island).count(seen);
        }
    }

    fn tenant(&self, island: IslandToken) -> Arc<Series> {
        self.tenants.lock().get_or_insert(island, || Arc::new(Series::new(self.operations.len()))).clone()
    }

    /// The operator's view.
    pub(crate) fn operator_text(&self, stats: &PlatformStats, tenants: &[TenantUsage], islands_open: usize) -> String {
        let mut text = Text::default();
        let opened = get(&self.connections_opened);
        text.one("insula_connections_opened_total", "counter", "connections accepted", opened);
        text.one("insula_connections", "gauge", "connections open", opened.saturating_sub(get(&self.connections_closed)));
        text.one("insula_connections_refused_total", "counter", "connections refused by a cap", get(&self.connections_refused));
        text.head("insula_connections_cut_total", "counter", "connections cut by a deadline");
        for (why, counter) in &self.cut {
            text.line("insula_connections_cut_total", &[("deadline", why)], get(counter));
        }
        text.one("insula_panics_total", "counter", "handlers that panicked", get(&self.panics));
        text.one("insula_forwarded_total", "counter", "requests sent on to the tenant's home node", get(&self.forwarded));
        text.one("insula_refusals_delayed_total", "counter", "refusals that waited for their turn", get(&self.refusals_delayed));
        text.one("insula_tenants_open", "gauge", "tenants held open", islands_open as u64);
        self.all.write(&self.operations, &mut text);
        platform_text(stats, &mut text);
        tenants_text(tenants, &mut text);
        text.0
    }

    /// A tenant's own view.
    pub(crate) fn tenant_text(&self, island: IslandToken, quota: &QuotaUse, answers: &[VersionAnswers]) -> String {
        let mut text = Text::default();
        self.tenant(island).write(&self.operations, &mut text);
        let usage = &quota.usage;
        text.one("insula_predictions_total", "counter", "predictions admitted", usage.predictions);
        text.one("insula_refused_total", "counter", "requests refused by rate or concurrency", usage.refused);
        text.one("insula_received_bytes_total", "counter", "bytes received", usage.bytes_in);
        text.one("insula_sent_bytes_total", "counter", "bytes sent", usage.bytes_out);
        text.head("insula_cell_cpu_seconds_total", "counter", "CPU of the tenant's sandboxes, training included");
        text.line("insula_cell_cpu_seconds_total", &[], Seconds(usage.cpu_micros));
        text.one("insula_cold_starts_total", "counter", "predictions that waited for a sandbox or a model", usage.cold_starts);
        text.head("insula_cold_start_seconds_total", "counter", "time those predictions waited");
        text.line("insula_cold_start_seconds_total", &[], Seconds(usage.cold_start_micros));
        text.head("insula_queue_seconds_total", "counter", "time that predictions waited for their turn");
        text.line("insula_queue_seconds_total", &[], Seconds(usage.queue_micros));
        text.one("insula_cells_failed_total", "counter", "sandboxes that ended badly and were replaced", usage.cells_failed);
        text.one("insula_cells_evicted_total", "counter", "sandboxes stopped after idling, or to make room", usage.cells_evicted);
        text.head("insula_training_seconds_total", "counter", "time that jobs ran: trainings, and predictions for whole data sets");
        text.line("insula_training_seconds_total", &[], Seconds(usage.training_micros));
        text.head("insula_quota_limit", "gauge", "limits of stored things");
        for name in quota.used.keys() {
            if let Some(limit) =
                platform::tenancy::Resource::ALL.iter().find(|what| what.name() == *name).map(|what| quota.limits.of(*what))
            {
                text.line("insula_quota_limit", &[("limit", name)], limit);
            }
        }
        text.head("insula_quota_used", "gauge", "stored things");
        for (name, used) in &quota.used {
            text.line("insula_quota_used", &[("limit", name)], used);
        }
        answers_text(answers, &mut text);
        text.0
    }
}

/// What versions did, in the tenant's own view alone: the platform remembers a bounded number of them.
fn answers_text(answers: &[VersionAnswers], text: &mut Text) {
    text.head("insula_deployment_answers_total", "counter", "answers of the versions of a deployment");
    for of in answers {
        let version = of.version.to_string();
        for (outcome, count) in [
            ("answered", of.answered),
            ("failed", of.failed),
            ("shadow_answered", of.shadow_answered),
            ("shadow_failed", of.shadow_failed),
            ("shadow_dropped", of.shadow_dropped),
        ] {
            if count > 0 {
                let labels = [("deployment", of.deployment.as_str()), ("version", version.as_str()), ("outcome", outcome)];
                text.line("insula_deployment_answers_total", &labels, count);
            }
        }
    }
    type Pick = fn(&VersionAnswers) -> u64;
    let columns: [(&str, &str, Pick); 2] = [
        ("insula_deployment_runs_total", "runs of models whose requests may be answered together", |of| of.runs),
        ("insula_deployment_run_rows_total", "rows of these runs", |of| of.rows),
    ];
    for (name, about, pick) in columns {
        text.head(name, "counter", about);
        for of in answers.iter().filter(|of| of.runs > 0) {
            text.line(name, &[("deployment", &of.deployment), ("version", &of.version.to_string())], pick(of));
        }
    }
}

fn platform_text(stats: &PlatformStats, text: &mut Text) {
    text.head("insula_cells", "gauge", "sandboxes alive");
    text.line("insula_cells", &[("kind", "blank"), ("class", "jail")], stats.cells_blank);
    for (kind, cells) in [("serving", stats.cells_serving), ("working", stats.cells_working)] {
        for (class, count) in cells.each() {
            text.line("insula_cells", &[("kind", kind), ("class", class)], count);
        }
    }
    text.one("insula_cells_memory_bytes", "gauge", "memory of all sandboxes", stats.cells_memory_bytes);
    text.head("insula_cells_started_total", "counter", "sandboxes started");
    for (class, count) in stats.cells_started.each() {
        text.line("insula_cells_started_total", &[("class", class)], count);
    }
    text.head("insula_cells_ended_total", "counter", "sandboxes that did not end well");
    for (why, count) in [("failed", stats.cells_failed), ("out_of_memory", stats.cells_out_of_memory), ("hostile", stats.cells_hostile)] {
        text.line("insula_cells_ended_total", &[("why", why)], count);
    }
    text.head("insula_cells_evicted_total", "counter", "serving sandboxes stopped after idling, or to make room");
    text.line("insula_cells_evicted_total", &[("why", "idle")], stats.cells_evicted_idle);
    text.line("insula_cells_evicted_total", &[("why", "room")], stats.cells_evicted_room);
    text.one("insula_zygotes_replaced_total", "counter", "fork servers replaced after a death or many forks", stats.zygotes_replaced);
    text.one("insula_models_loaded_total", "counter", "models loaded", stats.models_loaded);
    text.one("insula_models_evicted_total", "counter", "models evicted", stats.models_evicted);
    text.one("insula_overloaded_total", "counter", "work refused because too much was waiting", stats.overloaded);
    times_text("insula_cold_start_seconds", "wait of a prediction for its sandbox and model", &stats.cold_start_times, text);
    times_text("insula_queue_seconds", "wait of a prediction for its turn, loading not counted", &stats.queued, text);
    times_text("insula_job_queue_seconds", "wait of a job from being queued to being begun", &stats.jobs_queued, text);
    batches_text(&stats.batches, text);
    text.head("insula_trainings", "gauge", "training jobs");
    text.line("insula_trainings", &[("state", "waiting")], stats.trainings_waiting);
    text.line("insula_trainings", &[("state", "running")], stats.trainings_running);
    text.head("insula_trainings_ended_total", "counter", "training jobs that ended");
    for (state, count) in
        [("succeeded", stats.trainings_succeeded), ("failed", stats.trainings_failed), ("cancelled", stats.trainings_cancelled)]
    {
        text.line("insula_trainings_ended_total", &[("state", state)], count);
    }
    text.head("insula_prediction_jobs_ended_total", "counter", "jobs of predictions for whole data sets that ended");
    for (state, count) in
        [("succeeded", stats.predictions_succeeded), ("failed", stats.predictions_failed), ("cancelled", stats.predictions_cancelled)]
    {
        text.line("insula_prediction_jobs_ended_total", &[("state", state)], count);
    }
}

fn times_text(name: &str, about: &str, times: &Times, text: &mut Text) {
    text.head(name, "histogram", about);
    let (bucket, mut sum) = (format!("{name}_bucket"), 0);
    for (bound, count) in COLD_START_BOUNDS_MS.iter().zip(&times.buckets) {
        sum += count;
        text.line(&bucket, &[("le", &Seconds(bound * 1000).to_string())], sum);
    }
    let count: u64 = times.buckets.iter().sum();
    text.line(&bucket, &[("le", "+Inf")], count);
    text.line(&format!("{name}_sum"), &[], Seconds(times.micros));
    text.line(&format!("{name}_count"), &[], count);
}

fn batches_text(batches: &Batches, text: &mut Text) {
    text.head("insula_batch_rows", "histogram", "rows of the runs of models whose requests may be answered together");
    let mut sum = 0;
    for (bound, count) in BATCH_BOUNDS_ROWS.iter().zip(&batches.buckets) {
        sum += count;
        text.line("insula_batch_rows_bucket", &[("le", &bound.to_string())], sum);
    }
    let count: u64 = batches.buckets.iter().sum();
    text.line("insula_batch_rows_bucket", &[("le", "+Inf")], count);
    text.line("insula_batch_rows_sum", &[], batches.rows);
    text.line("insula_batch_rows_count", &[], count);
}

fn tenants_text(tenants: &[TenantUsage], text: &mut Text) {
    let mut busiest: Vec<&TenantUsage> = tenants.iter().collect();
    busiest.sort_by_key(|tenant| std::cmp::Reverse(tenant.usage.requests.saturating_add(tenant.usage.predictions)));
    busiest.truncate(TENANT_LABELS_MAX);
    type Pick = fn(&TenantUsage) -> u64;
    let columns: [(&str, &str, Pick); 8] = [
        ("insula_tenant_requests_total", "requests admitted", |tenant| tenant.usage.requests),
        ("insula_tenant_predictions_total", "predictions admitted", |tenant| tenant.usage.predictions),
        ("insula_tenant_refused_total", "requests refused by rate or concurrency", |tenant| tenant.usage.refused),
        ("insula_tenant_cold_starts_total", "predictions that waited for a sandbox or a model", |tenant| tenant.usage.cold_starts),
        ("insula_tenant_cells_failed_total", "sandboxes that ended badly and were replaced", |tenant| tenant.usage.cells_failed),
        ("insula_tenant_cells_evicted_total", "sandboxes stopped after idling, or to make room", |tenant| tenant.usage.cells_evicted),
        ("insula_tenant_received_bytes_total", "bytes received", |tenant| tenant.usage.bytes_in),
        ("insula_tenant_sent_bytes_total", "bytes sent", |tenant| tenant.usage.bytes_out),
    ];
    for (name, about, pick) in columns {
        text.head(name, "counter", about);
        for tenant in &busiest {
            text.line(name, &[("tenant", &tenant.name)], pick(tenant));
        }
    }
    let columns: [(&str, &str, Pick); 2] = [
        ("insula_tenant_cell_cpu_seconds_total", "CPU of the tenant's sandboxes", |tenant| tenant.usage.cpu_micros),
        ("insula_tenant_queue_seconds_total", "time that predictions waited for their turn", |tenant| tenant.usage.queue_micros),
    ];
    for (name, about, pick) in columns {
        text.head(name, "counter", about);
        for tenant in &busiest {
            text.line(name, &[("tenant", &tenant.name)], Seconds(pick(tenant)));
        }
    }
}

/// Counters per route; the last place is for what was never routed.
struct Series(Vec<OnceLock<Box<Counters>>>);

#[derive(Default)]
struct Counters {
    classes: [AtomicU64; 5],
    buckets: [AtomicU64; BOUNDS_MICROS.len() + 1],
    micros: AtomicU64,
}

impl Series {
    fn new(operations: usize) -> Self {
        // Most tenants use few of them, and all are remembered for a while: what was never asked for takes no more than its place.
        Self((0..=operations).map(|_| OnceLock::new()).collect())
    }

    fn count(&self, seen: &Seen) {
        let Some(counters) = seen.operation.map_or(self.0.last(), |at| self.0.get(at)) else { return };
        let counters = counters.get_or_init(Box::default);
        let micros = u64::try_from(seen.took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS_MICROS.len());
        if let (Some(class), Some(bucket)) = (counters.classes.get(status_class(seen.status)), counters.buckets.get(bucket)) {
            bump(class, 1);
            bump(bucket, 1);
        }
        bump(&counters.micros, micros);
    }

    fn write(&self, operations: &[&'static str], text: &mut Text) {
        let all = self.0.iter().map(OnceLock::get);
        let names =
            || operations.iter().copied().chain(["unrouted"]).zip(all.clone()).filter_map(|(name, counters)| Some((name, counters?)));
        text.head("insula_requests_total", "counter", "requests answered");
        for (name, counters) in names() {
            for (class, counter) in CLASSES.iter().zip(&counters.classes).filter(|(_, counter)| get(counter) > 0) {
                text.line("insula_requests_total", &[("operation", name), ("status", class)], get(counter));
            }
        }
        text.head("insula_request_seconds", "histogram", "time from the header of a request to the header of its answer");
        for (name, counters) in names() {
            let mut sum = 0;
            for (bound, count) in BOUNDS_MICROS.iter().zip(&counters.buckets) {
                sum += get(count);
                text.line("insula_request_seconds_bucket", &[("operation", name), ("le", &Seconds(*bound).to_string())], sum);
            }
            let count: u64 = counters.buckets.iter().map(get).sum();
            text.line("insula_request_seconds_bucket", &[("operation", name), ("le", "+Inf")], count);
            text.line("insula_request_seconds_sum", &[("operation", name)], Seconds(get(&counters.micros)));
            text.line("insula_request_seconds_count", &[("operation", name)], count);
        }
    }
}

fn bump(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Microseconds, shown as seconds.
struct Seconds(u64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        if micros == 0 {
            return write!(f, "{whole}");
        }
        f.write_str(format!("{whole}.{micros:06}").trim_end_matches('0'))
    }
}

/// The exposition format. Writing into a `String` cannot fail.
#[derive(Default)]
struct Text(String);

impl Text {
    fn one(&mut self, name: &str, kind: &str, about: &str, value: u64) {
        self.head(name, kind, about);
        self.line(name, &[], value);
    }

    fn head(&mut self, name: &str, kind: &str, about: &str) {
        let _ = writeln!(self.0, "# HELP {name} {about}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{open}{label}=\"{escaped}\"");
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

#[cfg(test)]
mod tests {
    use platform::ByClass;

    use super::*;

    #[test]
    fn the_text_reads_as_prometheus_does() {
        let metrics = Metrics::new(vec!["dataset_list", "predict"]);
        let seen = |operation, status, micros| Seen {
            operation,
            status: StatusCode::from_u16(status).unwrap(),
            took: Duration::from_micros(micros),
            received: 0,
            sent: 0,
        };
        metrics.answered(&seen(Some(1), 200, 700), None);
        metrics.answered(&seen(Some(1), 200, 70_000_000), None);
        metrics.answered(&seen(None, 404, 3), None);
        let text = metrics.operator_text(&PlatformStats::default(), &[], 3);
        for line in [
            "insula_requests_total{operation=\"predict\",status=\"2xx\"} 2",
            "insula_requests_total{operation=\"unrouted\",status=\"4xx\"} 1",
            "insula_request_seconds_bucket{operation=\"predict\",le=\"0.0005\"} 0",
            "insula_request_seconds_bucket{operation=\"predict\",le=\"0.001\"} 1",
            "insula_request_seconds_bucket{operation=\"predict\",le=\"30\"} 1",
            "insula_request_seconds_bucket{operation=\"predict\",le=\"+Inf\"} 2",
            "insula_request_seconds_sum{operation=\"predict\"} 70.0007",
            "insula_tenants_open 3",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
        assert!(!text.contains("dataset_list"), "what was never asked is not listed");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(!name.is_empty() && value.parse::<f64>().is_ok(), "{line}");
        }
    }

    #[test]
    fn answers_are_counted_by_version_and_waits_by_bound() {
        let mut text = Text::default();
        let of = VersionAnswers {
            deployment: "gate".to_owned(),
            version: 2,
            answered: 7,
            failed: 1,
            shadow_answered: 0,
            shadow_failed: 0,
            shadow_dropped: 3,
            runs: 4,
            rows: 9,
        };
        answers_text(&[of], &mut text);
        let stats = PlatformStats {
            cells_blank: 5,
            cells_serving: ByClass { jail: 3, gvisor: 2 },
            cells_started: ByClass { jail: 30, gvisor: 20 },
            ..PlatformStats::default()
        };
        let stats = PlatformStats { cells_evicted_room: 4, zygotes_replaced: 1, ..stats };
        let mut queued = Times { micros: 2_500_000, ..Times::default() };
        (queued.buckets[1], queued.buckets[12]) = (5, 1);
        let mut batches = Batches { rows: 9, ..Batches::default() };
        (batches.buckets[0], batches.buckets[3]) = (1, 1);
        platform_text(&PlatformStats { queued, batches, ..stats }, &mut text);
        for line in [
            "insula_deployment_answers_total{deployment=\"gate\",version=\"2\",outcome=\"answered\"} 7",
            "insula_deployment_answers_total{deployment=\"gate\",version=\"2\",outcome=\"shadow_dropped\"} 3",
            "insula_deployment_runs_total{deployment=\"gate\",version=\"2\"} 4",
            "insula_deployment_run_rows_total{deployment=\"gate\",version=\"2\"} 9",
            "insula_batch_rows_bucket{le=\"4\"} 1",
            "insula_batch_rows_bucket{le=\"8\"} 2",
            "insula_batch_rows_sum 9",
            "insula_batch_rows_count 2",
            "insula_cells_evicted_total{why=\"room\"} 4",
            "insula_cells{kind=\"blank\",class=\"jail\"} 5",
            "insula_cells{kind=\"serving\",class=\"jail\"} 3",
            "insula_cells{kind=\"serving\",class=\"gvisor\"} 2",
            "insula_cells{kind=\"working\",class=\"gvisor\"} 0",
            "insula_cells_started_total{class=\"jail\"} 30",
            "insula_cells_started_total{class=\"gvisor\"} 20",
            "insula_zygotes_replaced_total 1",
            "insula_queue_seconds_bucket{le=\"0.001\"} 0",
            "insula_queue_seconds_bucket{le=\"0.002\"} 5",
            "insula_queue_seconds_bucket{le=\"+Inf\"} 6",
            "insula_queue_seconds_sum 2.5",
            "insula_job_queue_seconds_count 0",
        ] {
            assert!(text.0.lines().any(|known| known == line), "{line}\n{}", text.0);
        }
        assert!(!text.0.contains("shadow_answered"), "what never happened is not listed");
    }

    #[test]
    fn labels_are_escaped() {
        let mut text = Text::default();
        text.line("a", &[("b", "x\"\\\n")], 1);
        assert_eq!(text.0, "a{b=\"x\\\"\\\\\\n\"} 1\n");
    }
}
