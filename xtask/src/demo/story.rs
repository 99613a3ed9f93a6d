//! What the demo plays, step by step. A step says in one sentence what was seen, or why that was not good enough.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Programs;
use super::service::{Answer, Ended, Service, curl, insula, write_private};
use super::shared::Shared;
use crate::run::{command, quietly};
use crate::{Result, root};

/// A step: its name for people, and what it does.
pub(super) type Step = (&'static str, fn(&mut Story<'_>) -> Result<String>);

/// The whole story. On shared stores with what only they can do, told before everything is copied.
pub(super) fn steps(shared: bool) -> Vec<Step> {
    let mut steps = STEPS.to_vec();
    if shared {
        let before = steps.iter().position(|(_, act)| std::ptr::fn_addr_eq(*act, copied as fn(&mut Story<'_>) -> Result<String>));
        let before = before.unwrap_or(steps.len());
        steps.splice(before..before, SHARED_STEPS.iter().copied());
    }
    steps
}

/// What only shared stores can do.
const SHARED_STEPS: &[Step] = &[("own credentials are tried elsewhere", credentials_tried), ("one tenant moves house", moved)];

const STEPS: &[Step] = &[
    ("a service starts", service_starts),
    ("two tenants are created", tenants_created),
    ("each uploads its data", data_uploaded),
    ("each trains a model", models_trained),
    ("each deploys it", models_deployed),
    ("each gets predictions", predictions),
    ("one asks for the other's things", isolation),
    ("one asks too much", quota),
    ("the audit log is verified offline", ledger),
    ("everything is copied", copied),
    ("one tenant is erased", erased),
    ("its certificate is verified offline", certificate),
    ("a new tenant takes the old name", reborn),
    ("the old copy is opened", copy_opened),
];

/// The least accuracy on held-out rows that counts as learned.
const ACCURACY_MIN: f64 = 0.9;
/// Rows of the shipped data that are asked for again.
const ASKED_ROWS: usize = 20;
/// Requests that are sent to use up a rate of a few.
const REQUESTS_TOO_MANY: usize = 12;
/// A tenant that has asked too much is served again within this time.
const RATE_BACK_WITHIN: Duration = Duration::from_secs(10);
/// Headers that differ from answer to answer whatever is asked: the request's id, the time, what is left of the rate.
const HEADERS_OF_THE_MOMENT: [&str; 3] = ["x-request-id", "date", "ratelimit"];
/// Exit status of `insula` for a credential that is not valid, and for a verification that failed.
const UNAUTHENTICATED: i32 = 3;
const VERIFICATION_FAILED: i32 = 10;

/// One tenant of the story.
struct Part {
    tenant: &'static str,
    admin: &'static str,
    file: &'static str,
    data: &'static str,
    target: &'static str,
    model: &'static str,
}

const PARTS: [Part; 2] = [
    Part { tenant: "clinic", admin: "ada", file: "examples/breast-cancer.csv", data: "biopsies", target: "diagnosis", model: "screening" },
    Part { tenant: "zoo", admin: "gerald", file: "examples/penguins.csv", data: "penguins", target: "species", model: "keeper" },
];

/// Where the story stands.
pub(super) struct Story<'p> {
    programs: &'p Programs,
    folder: PathBuf,
    service: Option<Service>,
    /// Where its stores are, when they are not in the data folder.
    stores: Option<Shared>,
    keys: BTreeMap<&'static str, String>,
    trainings: BTreeMap<&'static str, Value>,
    erasure: Value,
    service_key: String,
}

impl<'p> Story<'p> {
    pub(super) fn new(programs: &'p Programs, folder: &Path, stores: Option<Shared>) -> Self {
        Self {
            programs,
            folder: folder.to_owned(),
            service: None,
            stores,
            keys: BTreeMap::new(),
            trainings: BTreeMap::new(),
            erasure: Value::Null,
            service_key: String::new(),
        }
    }

    fn service(&self) -> Result<&Service> {
        self.service.as_ref().ok_or_else(|| "the service does not run".to_owned())
    }

    fn start(&mut self, name: &str) -> Result<()> {
        self.service = Some(self.started(name, "data", "keystore")?);
        Ok(())
    }

    /// A service over these folders, and over the stores that run.
    fn started(&self, name: &str, data: &str, keystore: &str) -> Result<Service> {
        let stores = self.stores.as_ref().map_or(Ok(String::new()), Shared::settings)?;
        Service::start(self.programs, &self.folder, name, &self.path(data), &self.path(keystore), &stores)
    }

    /// The stores of this name instead of those that run.
    fn stores_over(&mut self, name: &str) -> Result<()> {
        self.stores.as_mut().map_or(Ok(()), |stores| stores.over(name))
    }

    /// Stops everything.
    pub(super) fn end(&mut self) -> Result<()> {
        self.stop()?;
        self.stores.as_mut().map_or(Ok(()), Shared::stop)
    }

    fn stop(&mut self) -> Result<()> {
        self.service.take().map_or(Ok(()), Service::stop)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn key(&self, who: &str) -> Result<&str> {
        self.keys.get(who).map(String::as_str).ok_or_else(|| format!("`{who}` has no key"))
    }

    fn try_as(&self, who: &str, arguments: &[&str]) -> Result<Ended> {
        insula(self.programs, &self.folder, Some(self.service()?), Some(self.key(who)?), arguments)
    }

    /// Runs a command that must work, and reads what it printed.
    fn run_as(&self, who: &str, arguments: &[&str]) -> Result<Value> {
        good(self.try_as(who, arguments)?, arguments)
    }

    fn http(&self, who: &str, method: &str, path: &str, body: Option<&str>) -> Result<Answer> {
        curl(self.service()?, self.key(who)?, method, path, body)
    }

    fn run_alone(&self, arguments: &[&str]) -> Result<Ended> {
        insula(self.programs, &self.folder, None, None, arguments)
    }
}

fn good(ended: Ended, arguments: &[&str]) -> Result<Value> {
    if ended.status != 0 {
        let told: Value = serde_json::from_str(ended.error.lines().last().unwrap_or_default()).unwrap_or(Value::Null);
        let why = told.get("error").and_then(Value::as_str).map_or(ended.error.trim().to_owned(), str::to_owned);
        return Err(format!("`insula {}` ended with {}: {why}", arguments.join(" "), ended.status));
    }
    if ended.output.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&ended.output).map_err(|error| format!("`insula {}` printed no JSON: {error}", arguments.join(" ")))
}

fn text<'v>(value: &'v Value, pointer: &str) -> Result<&'v str> {
    value.pointer(pointer).and_then(Value::as_str).ok_or_else(|| format!("the answer has no text at {pointer}: {value}"))
}

fn number(value: &Value, pointer: &str) -> Result<u64> {
    value.pointer(pointer).and_then(Value::as_u64).ok_or_else(|| format!("the answer has no number at {pointer}: {value}"))
}

fn shown(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| format!("`{}` is no text", path.display()))
}

fn service_starts(story: &mut Story<'_>) -> Result<String> {
    if let Some(stores) = &story.stores {
        let config = story.path("stores.toml");
        write_private(&config, &stores.settings()?).map_err(|error| format!("cannot write a file: {error}"))?;
        let arguments = ["migrate", "--config", shown(&config)?];
        good(story.run_alone(&arguments)?, &arguments)?;
    }
    story.start("first")?;
    let service = story.service()?;
    let secret = service.bootstrap.clone().ok_or("the first start made no one-time secret")?;
    let arguments = ["login", "--print", "--bootstrap", shown(&secret)?];
    let issued = good(insula(story.programs, &story.folder, Some(service), None, &arguments)?, &arguments)?;
    let seen = format!("TLS on {}; the root key lies outside the data; the one-time secret became an operator key", service.url);
    story.keys.insert("operator", text(&issued, "/secret")?.to_owned());
    let again = insula(story.programs, &story.folder, Some(story.service()?), None, &arguments)?;
    if again.status == 0 {
        return Err("the one-time secret worked twice".to_owned());
    }
    Ok(seen)
}

fn tenants_created(story: &mut Story<'_>) -> Result<String> {
    for part in &PARTS {
        let created = story.run_as("operator", &["tenant", "create", part.tenant, "--admin", part.admin])?;
        story.keys.insert(part.tenant, text(&created, "/admin_key/secret")?.to_owned());
        let who = story.run_as(part.tenant, &["whoami"])?;
        if text(&who, "/tenant")? != part.tenant || text(&who, "/principal")? != part.admin {
            return Err(format!("the key of `{}` belongs to {who}", part.tenant));
        }
    }
    Ok("clinic with its administrator ada, zoo with gerald; each key opens its own tenant".to_owned())
}

fn data_uploaded(story: &mut Story<'_>) -> Result<String> {
    let mut seen = Vec::new();
    for part in &PARTS {
        let file = root().join(part.file);
        let version = story.run_as(part.tenant, &["data", "put", part.data, shown(&file)?])?;
        let back = story.path(&format!("{}.csv", part.data));
        story.run_as(part.tenant, &["data", "get", part.data, shown(&back)?])?;
        if fs::read(&back).ok() != fs::read(&file).ok() {
            return Err(format!("`{}` came back with other bytes", part.data));
        }
        let columns = version.get("columns").and_then(Value::as_array).map_or(0, Vec::len);
        seen.push(format!("{}: {} rows, {columns} columns", part.data, number(&version, "/rows")?));
    }
    Ok(format!("{}; both read back byte for byte", seen.join("; ")))
}

fn models_trained(story: &mut Story<'_>) -> Result<String> {
    let mut seen = Vec::new();
    for part in &PARTS {
        let arguments = [
            "train",
            "start",
            "--dataset",
            part.data,
            "--target",
            part.target,
            "--task",
            "classification",
            "--name",
            part.model,
            "--watch",
        ];
        let run = story.run_as(part.tenant, &arguments)?;
        let accuracy = run.pointer("/metrics/accuracy").and_then(Value::as_f64).ok_or("the run has no accuracy")?;
        if accuracy < ACCURACY_MIN {
            return Err(format!("`{}` is right on {accuracy:.3} of the held-out rows, less than {ACCURACY_MIN}", part.model));
        }
        seen.push(format!("{}: accuracy {accuracy:.3} on {} held-out rows", part.model, number(&run, "/rows_test")?));
        story.trainings.insert(part.tenant, run);
    }
    Ok(seen.join("; "))
}

fn models_deployed(story: &mut Story<'_>) -> Result<String> {
    for part in &PARTS {
        let version = number(story.trainings.get(part.tenant).unwrap_or(&Value::Null), "/model_version")?.to_string();
        story.run_as(part.tenant, &["model", "alias", part.model, "champion", &version])?;
        let deployed = story.run_as(part.tenant, &["deploy", "put", part.model, "--model", part.model, "--alias", "champion"])?;
        if number(&deployed, "/serving_version")?.to_string() != version {
            return Err(format!("the deployment serves another version: {deployed}"));
        }
    }
    Ok("version 1 of each is registered, has the alias champion, and answers under its name".to_owned())
}

fn predictions(story: &mut Story<'_>) -> Result<String> {
    let mut seen = Vec::new();
    for part in &PARTS {
        let (table, truth) = sample(&root().join(part.file), part.target)?;
        let file = story.path(&format!("{}-new.csv", part.data));
        fs::write(&file, table).map_err(|error| format!("cannot write a file: {error}"))?;
        let answer = story.run_as(part.tenant, &["predict", part.model, "--data", shown(&file)?])?;
        let outputs = answer.get("outputs").and_then(Value::as_array).cloned().unwrap_or_default();
        let labels =
            outputs.iter().find(|output| output.get("name").and_then(Value::as_str) == Some("label")).and_then(|output| output.get("data"));
        let labels = labels.and_then(Value::as_array).ok_or_else(|| format!("the answer has no labels: {answer}"))?;
        let right = labels.iter().zip(&truth).filter(|(label, truth)| label.as_str() == Some(truth)).count();
        if labels.len() != truth.len() || (right as f64) < ACCURACY_MIN * truth.len() as f64 {
            return Err(format!("`{}` is right on {right} of {} rows", part.model, truth.len()));
        }
        seen.push(format!("{}: {right} of {} rows right", part.model, truth.len()));
    }
    Ok(format!("{}; each model runs in its tenant's own sandbox", seen.join("; ")))
}

/// Some complete rows without the target, and their targets.
fn sample(file: &Path, target: &str) -> Result<(String, Vec<String>)> {
    let all = fs::read_to_string(file).map_err(|error| format!("cannot read `{}`: {error}", file.display()))?;
    let mut lines = all.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().unwrap_or_default();
    let place = header.iter().position(|name| *name == target).ok_or_else(|| format!("there is no column `{target}`"))?;
    let rows: Vec<Vec<&str>> =
        lines.filter(|row| row.len() == header.len() && row.iter().all(|cell| !cell.is_empty() && *cell != "NA")).collect();
    let apart = |row: &[&str]| -> String {
        let kept = row.iter().enumerate().filter(|(at, _)| *at != place).map(|(_, cell)| *cell);
        kept.collect::<Vec<_>>().join(",") + "\n"
    };
    let chosen: Vec<&Vec<&str>> = rows.iter().step_by((rows.len() / ASKED_ROWS).max(1)).take(ASKED_ROWS).collect();
    let table = std::iter::once(&header).chain(chosen.iter().copied()).map(|row| apart(row)).collect();
    Ok((table, chosen.iter().filter_map(|row| row.get(place)).map(|truth| (*truth).to_owned()).collect()))
}

/// One request in two worlds: about a thing of the other tenant, and about a thing that nobody has.
struct Ask<'a> {
    method: &'static str,
    /// With `{}` for the name.
    path: &'static str,
    /// Name in the path, and body.
    foreign: (&'a str, Option<String>),
    absent: (&'a str, Option<String>),
}

/// Everything that one tenant can say about a thing of the other, said again about a thing that does not exist.
fn isolation(story: &mut Story<'_>) -> Result<String> {
    let run = story.trainings.get("clinic").cloned().unwrap_or_default();
    let (training, run) = (text(&run, "/training")?.to_owned(), text(&run, "/id")?.to_owned());
    let other_id = |id: &str| id.chars().map(|c| if c == '0' { '1' } else { '0' }).collect::<String>();
    let infer = json!({"inputs": [{"name": "input", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}).to_string();
    let deploy = |model: &str| json!({"model": model, "version": 1}).to_string();
    let train = |data: &str| json!({"name": "stolen", "dataset": data, "target": "diagnosis", "task": "classification"}).to_string();
    let (no_training, no_run) = (other_id(&training), other_id(&run));
    let named = |method, path, foreign, absent| Ask { method, path, foreign: (foreign, None), absent: (absent, None) };
    let told = |method, path, foreign, absent| Ask { method, path, foreign: ("", Some(foreign)), absent: ("", Some(absent)) };
    let asks = [
        named("GET", "/v1/datasets/{}", "biopsies", "nothing"),
        named("GET", "/v1/datasets/{}/versions/1", "biopsies", "nothing"),
        named("GET", "/v1/datasets/{}/versions/1/content", "biopsies", "nothing"),
        named("GET", "/v1/datasets/{}/versions/1/preview", "biopsies", "nothing"),
        named("DELETE", "/v1/datasets/{}", "biopsies", "nothing"),
        named("GET", "/v1/trainings/{}", &training, &no_training),
        named("GET", "/v1/trainings/{}/logs", &training, &no_training),
        named("POST", "/v1/trainings/{}/cancel", &training, &no_training),
        told("POST", "/v1/trainings", train("biopsies"), train("nothing")),
        named("GET", "/v1/runs/{}", &run, &no_run),
        named("GET", "/v1/models/{}", "screening", "nothing"),
        named("GET", "/v1/models/{}/versions/1/content", "screening", "nothing"),
        named("DELETE", "/v1/models/{}", "screening", "nothing"),
        told("PUT", "/v1/deployments/mine", deploy("screening"), deploy("nothing")),
        named("GET", "/v1/deployments/{}", "screening", "nothing"),
        named("DELETE", "/v1/deployments/{}", "screening", "nothing"),
        named("GET", "/v2/models/{}", "screening", "nothing"),
        Ask {
            foreign: ("screening", Some(infer.clone())),
            absent: ("nothing", Some(infer)),
            ..named("POST", "/v2/models/{}/infer", "", "")
        },
    ];
    for Ask { method, path, foreign, absent } in &asks {
        let ask = |(name, body): &(&str, Option<String>)| story.http("zoo", method, &path.replace("{}", name), body.as_deref());
        same(&format!("{method} {path}"), &ask(foreign)?, &ask(absent)?)?;
    }
    let own = story.http("clinic", "GET", "/v1/datasets/biopsies", None)?.status;
    if own != 200 {
        return Err(format!("clinic itself gets {own} for its own data set"));
    }
    Ok(format!("{} ways to ask for clinic's things: each time 404, byte for byte the answer for what does not exist", asks.len()))
}

/// A foreign thing must look like no thing.
fn same(what: &str, foreign: &Answer, absent: &Answer) -> Result<()> {
    let lasting = |answer: &Answer| -> Vec<(String, String)> {
        let value = |name: &str, value: &str| if HEADERS_OF_THE_MOMENT.contains(&name) { String::new() } else { value.to_owned() };
        answer.headers.iter().map(|(name, text)| (name.clone(), value(name, text))).collect()
    };
    if foreign.status != 404 || absent.status != 404 {
        return Err(format!("{what}: {} for a foreign thing, {} for none; both must be 404", foreign.status, absent.status));
    }
    if foreign.body != absent.body {
        let text = |answer: &Answer| String::from_utf8_lossy(&answer.body).into_owned();
        return Err(format!("{what}: the bodies differ: `{}` and `{}`", text(foreign), text(absent)));
    }
    if lasting(foreign) != lasting(absent) {
        return Err(format!("{what}: the headers differ: {:?} and {:?}", foreign.headers, absent.headers));
    }
    Ok(())
}

fn quota(story: &mut Story<'_>) -> Result<String> {
    let before = story.run_as("operator", &["tenant", "show", "zoo"])?;
    let (rate, burst) = (number(&before, "/limits/requests_per_second")?, number(&before, "/limits/requests_burst")?);
    story.run_as("operator", &["tenant", "limits", "zoo", "requests_per_second=1", "requests_burst=3"])?;
    let mut refused = Vec::new();
    for _ in 0..REQUESTS_TOO_MANY {
        let answer = story.http("zoo", "GET", "/v1/datasets", None)?;
        match answer.status {
            200 => {}
            429 => refused.push(answer),
            other => return Err(format!("a request over the limit got {other}")),
        }
    }
    let first = refused.first().ok_or_else(|| format!("{REQUESTS_TOO_MANY} requests at once went through a limit of 3"))?;
    let header = |name: &str| first.header(name).ok_or_else(|| format!("the 429 has no `{name}` header: {:?}", first.headers));
    let headers = format!("RateLimit {}, Retry-After {}", header("ratelimit")?, header("retry-after")?);
    header("ratelimit-policy")?;
    let neighbour = story.http("clinic", "GET", "/v1/datasets", None)?.status;
    if neighbour != 200 {
        return Err(format!("the neighbour got {neighbour}"));
    }
    let (rate, burst) = (format!("requests_per_second={rate}"), format!("requests_burst={burst}"));
    story.run_as("operator", &["tenant", "limits", "zoo", &rate, &burst])?;
    let deadline = Instant::now() + RATE_BACK_WITHIN;
    while story.http("zoo", "GET", "/v1/datasets", None)?.status != 200 {
        if Instant::now() > deadline {
            return Err(format!("zoo is still refused {} s later, with its old limits", RATE_BACK_WITHIN.as_secs()));
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(format!("{} of {REQUESTS_TOO_MANY} requests got 429 ({headers}); clinic noticed nothing", refused.len()))
}

fn ledger(story: &mut Story<'_>) -> Result<String> {
    let mut entries = 0;
    for part in &PARTS {
        let key = text(&story.run_as(part.tenant, &["audit", "key"])?, "/vkey")?.to_owned();
        let file = story.path(&format!("{}.ledger", part.tenant));
        story.run_as(part.tenant, &["audit", "export", shown(&file)?])?;
        let arguments = ["audit", "verify", shown(&file)?, "--key", &key];
        let report = good(story.run_alone(&arguments)?, &arguments)?;
        entries += number(&report, "/size")?;
        let flipped = flipped(&file)?;
        let ended = story.run_alone(&["audit", "verify", shown(&flipped)?, "--key", &key])?;
        if ended.status != VERIFICATION_FAILED {
            return Err(format!(
                "a log with one flipped bit ended with {} instead of {VERIFICATION_FAILED}: {}",
                ended.status,
                ended.error.trim()
            ));
        }
    }
    Ok(format!("{entries} entries of both tenants verify with the pinned keys and no service; one flipped bit is refused"))
}

/// The roles and keys of one tenant, tried on everything that is not its own.
fn credentials_tried(story: &mut Story<'_>) -> Result<String> {
    let mut seen = Vec::new();
    for part in &PARTS {
        let found = story.run_as("operator", &["tenant", "verify-isolation", part.tenant])?;
        let count = |refused: bool| {
            let probes = found.get("probes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            probes.iter().filter(|probe| probe.get("refused").and_then(Value::as_bool) == Some(refused)).count()
        };
        let (refused, own) = (count(true), count(false));
        if found.get("holds").and_then(Value::as_bool) != Some(true) || refused == 0 || own == 0 {
            return Err(format!("not every probe ended as it must: {found}"));
        }
        seen.push(format!("{}: {refused} attempts on what is not its own refused, {own} on its own succeed", part.tenant));
    }
    Ok(seen.join("; "))
}

/// To a schema of its own and for good, while it goes on serving with the same keys and names.
fn moved(story: &mut Story<'_>) -> Result<String> {
    let before = story.run_as("zoo", &["data", "list"])?;
    let info = story.run_as("operator", &["tenant", "move", "zoo", "--storage", "schema", "--wait"])?;
    if story.run_as("zoo", &["data", "list"])? != before {
        return Err("zoo's data sets are others than before the move".to_owned());
    }
    let file = story.path("penguins-new.csv");
    story.run_as("zoo", &["predict", "keeper", "--data", shown(&file)?])?;
    story.run_as("operator", &["tenant", "move", "zoo", "--finish"])?;
    let pause =
        info.pointer("/pause_milliseconds").and_then(Value::as_f64).ok_or_else(|| format!("the move does not say how long: {info}"))?;
    Ok(format!(
        "zoo: {} records from pooled tables to a schema and role of its own, writes paused for {pause:.0} ms",
        number(&info, "/records")?
    ))
}

/// A copy with one bit of its middle turned over.
fn flipped(file: &Path) -> Result<PathBuf> {
    let failed = |error: std::io::Error| format!("cannot copy `{}`: {error}", file.display());
    let mut bytes = fs::read(file).map_err(failed)?;
    let middle = bytes.len() / 2;
    // Not in a line's end, which carries nothing.
    let place = (middle..bytes.len()).find(|at| bytes.get(*at).is_some_and(u8::is_ascii_alphanumeric)).ok_or("the file is too short")?;
    if let Some(byte) = bytes.get_mut(place) {
        *byte ^= 1;
    }
    let copy = file.with_extension("flipped");
    fs::write(&copy, bytes).map_err(failed)?;
    Ok(copy)
}

/// The copy is good: with the keys of its time it opens. Without this the last step would prove nothing.
fn copied(story: &mut Story<'_>) -> Result<String> {
    story.stop()?;
    let copies = [
        ("data", "copy"),
        ("data", "copy-again"),
        ("data", "copy-control"),
        ("keystore", "keystore-control"),
        ("keystore/anchors", "anchors-then"),
    ];
    for (from, to) in copies {
        quietly(command("cp", &["-a"]).arg(story.path(from)).arg(story.path(to)))?;
    }
    if let Some(stores) = &mut story.stores {
        stores.stop()?;
        ["servers-copy", "servers-copy-again", "servers-copy-control"].iter().try_for_each(|to| stores.copy(to))?;
    }
    story.stores_over("servers-copy-control")?;
    let control = story.started("control", "copy-control", "keystore-control")?;
    let answer = curl(&control, story.key("clinic")?, "GET", "/v1/datasets/biopsies/versions/1/content", None)?;
    if answer.status != 200 || Some(&answer.body) != fs::read(root().join(PARTS[0].file)).ok().as_ref() {
        return Err(format!("the copy does not open with the keys of its time ({})", answer.status));
    }
    control.stop()?;
    story.stores_over("servers")?;
    story.start("second")?;
    let whole = if story.stores.is_some() { "the data folder, the PostgreSQL server and the S3 server" } else { "the whole data folder" };
    Ok(format!("a copy of {whole} opens with the keys of its time, and clinic reads its data in it"))
}

fn erased(story: &mut Story<'_>) -> Result<String> {
    let service_key = story.run_as("operator", &["audit", "key", "--service"])?;
    story.service_key = text(&service_key, "/vkey")?.to_owned();
    story.erasure = story.run_as("operator", &["tenant", "erase", "clinic", "--confirm", "clinic", "--wait"])?;
    let ended = story.try_as("clinic", &["data", "list"])?;
    if ended.status != UNAUTHENTICATED {
        return Err(format!("clinic's key ended with {} instead of {UNAUTHENTICATED}: {}", ended.status, ended.error.trim()));
    }
    let zoo = story.run_as("zoo", &["data", "list"])?;
    if zoo.as_array().map_or(0, Vec::len) != 1 {
        return Err(format!("zoo has lost its data: {zoo}"));
    }
    Ok(format!("clinic is `{}`; its key is refused; zoo still has everything", text(&story.erasure, "/state")?))
}

fn certificate(story: &mut Story<'_>) -> Result<String> {
    let file = story.path("clinic.certificate");
    fs::write(&file, text(&story.erasure, "/certificate")?).map_err(|error| format!("cannot write a file: {error}"))?;
    let key = story.service_key.clone();
    let arguments = ["audit", "verify-certificate", shown(&file)?, "--key", &key];
    let statement = good(story.run_alone(&arguments)?, &arguments)?;
    let flipped = flipped(&file)?;
    let ended = story.run_alone(&["audit", "verify-certificate", shown(&flipped)?, "--key", &key])?;
    if ended.status != VERIFICATION_FAILED {
        return Err(format!("a certificate with one flipped bit ended with {}: {}", ended.status, ended.error.trim()));
    }
    let epoch = number(&statement, "/epoch_destroyed_before")?;
    Ok(format!("signed by the service's pinned key: root keys before epoch {epoch} are destroyed; one flipped bit is refused"))
}

fn reborn(story: &mut Story<'_>) -> Result<String> {
    let created = story.run_as("operator", &["tenant", "create", "clinic", "--admin", "ada"])?;
    story.keys.insert("clinic again", text(&created, "/admin_key/secret")?.to_owned());
    for arguments in [["data", "list"], ["model", "list"], ["train", "list"], ["deploy", "list"]] {
        let found = story.run_as("clinic again", &arguments)?;
        if found.as_array().is_none_or(|found| !found.is_empty()) {
            return Err(format!("`insula {}` shows {found}", arguments.join(" ")));
        }
    }
    let ended = story.try_as("clinic", &["data", "list"])?;
    if ended.status != UNAUTHENTICATED {
        return Err(format!("the erased tenant's key ended with {}", ended.status));
    }
    Ok("it sees no data set, model, training or deployment, and the old key does not open it".to_owned())
}

/// Two walls. The first sees that the data is older than it was; who holds today's keystore can take that wall away. The second is
/// that the keys of an erased tenant exist nowhere any more.
fn copy_opened(story: &mut Story<'_>) -> Result<String> {
    story.stop()?;
    for keystore in ["keystore-now", "keystore-forged"] {
        quietly(command("cp", &["-a"]).arg(story.path("keystore")).arg(story.path(keystore)))?;
    }
    let first = match read_from(story, "old", "copy", "keystore-now")? {
        Reading::Refused(_) => "with today's keys the copy is refused as out of date",
        Reading::Answered(200) => return Err("the erased tenant's data was read from the copy".to_owned()),
        Reading::Answered(_) => "with today's keys the erased tenant cannot be read in the copy",
    };
    fs::copy(story.path("anchors-then"), story.path("keystore-forged/anchors"))
        .map_err(|error| format!("cannot copy the anchors: {error}"))?;
    let second = match read_from(story, "forged", "copy-again", "keystore-forged")? {
        Reading::Answered(200) => return Err("the erased tenant's data was read from the copy once its age was hidden".to_owned()),
        Reading::Answered(status) => format!("with its age hidden the erased tenant's data still cannot be decrypted ({status})"),
        Reading::Refused(why) => format!("with its age hidden it is still refused: {why}"),
    };
    Ok(format!("{first}; {second}"))
}

/// What came of an attempt to read the erased tenant's data.
enum Reading {
    /// The service did not start.
    Refused(String),
    /// It answered with this status.
    Answered(u16),
}

fn read_from(story: &mut Story<'_>, name: &str, data: &str, keystore: &str) -> Result<Reading> {
    story.stores_over(&format!("servers-{data}"))?;
    let service = match story.started(name, data, keystore) {
        Err(why) => return Ok(Reading::Refused(brief(&why))),
        Ok(service) => service,
    };
    let answer = curl(&service, story.key("clinic")?, "GET", "/v1/datasets/biopsies/versions/1/content", None)?;
    service.stop()?;
    Ok(Reading::Answered(answer.status))
}

/// The message in a line of JSON, or the line.
fn brief(why: &str) -> String {
    let json = why.find('{').and_then(|at| why.get(at..)).and_then(|text| text.split("; {").next());
    let value: Option<Value> = json.and_then(|text| serde_json::from_str(text).ok());
    value.and_then(|value| value.get("error").and_then(Value::as_str).map(str::to_owned)).unwrap_or_else(|| why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, id: &str, body: &str) -> Answer {
        let headers = vec![("x-request-id".to_owned(), id.to_owned()), ("content-type".to_owned(), "application/json".to_owned())];
        Answer { status, headers, body: body.as_bytes().to_vec() }
    }

    #[test]
    fn only_the_request_may_differ() {
        assert!(same("x", &answer(404, "1", "{}"), &answer(404, "2", "{}")).is_ok());
        assert!(same("x", &answer(403, "1", "{}"), &answer(403, "2", "{}")).is_err());
        assert!(same("x", &answer(404, "1", "{a}"), &answer(404, "2", "{}")).is_err());
        let mut more = answer(404, "2", "{}");
        more.headers.push(("x-more".to_owned(), String::new()));
        assert!(same("x", &answer(404, "1", "{}"), &more).is_err());
    }

    #[test]
    fn a_sample_has_no_target_and_no_gap() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.csv");
        fs::write(&file, "a,y,b\n1,p,2\n,q,3\n4,q,5\n").unwrap();
        assert_eq!(sample(&file, "y").unwrap(), ("a,b\n1,2\n4,5\n".to_owned(), vec!["p".to_owned(), "q".to_owned()]));
        assert!(sample(&file, "z").is_err());
    }

    #[test]
    fn one_bit_is_flipped() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, "abcd").unwrap();
        assert_eq!(fs::read(flipped(&file).unwrap()).unwrap(), b"abbd");
    }
}
