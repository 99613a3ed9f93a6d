//! A release build of the service in a folder, what its processes use, and shortcuts to its API.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Programs;
use super::client::{Ask, Attack, Attacking, Client};
use crate::Result;
use crate::run::visibly;

/// Time for a stop.
const STOP_MAX: Duration = Duration::from_secs(120);
/// Length of a tick of the CPU counters in `/proc`.
const TICK_SECONDS: f64 = 0.01;
const KIB_PER_MIB: f64 = 1024.0;

/// A running service, and a client that talks to it.
pub(super) struct Service {
    child: Child,
    pub(super) client: Client,
    url: String,
    ca: PathBuf,
    bootstrap: Option<PathBuf>,
    log: PathBuf,
}

/// Memory in MiB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// The service's own process, proportional set size.
    pub(super) gateway: f64,
    /// It, the fork server and all cells.
    pub(super) all: f64,
}

/// What must not grow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holds {
    /// Resident memory of the service's own process.
    pub(super) gateway_mib: f64,
    /// The same of the fork server.
    pub(super) zygote_mib: f64,
    pub(super) descriptors: usize,
    pub(super) threads: usize,
    pub(super) processes: usize,
}

impl Service {
    /// Starts it on the data of `name` in `folder`, the first time on none. `settings` are more lines of its section `[cells]`, and
    /// more sections.
    pub(super) fn start(programs: &Programs, folder: &Path, name: &str, settings: &str) -> Result<Self> {
        let failed = |error: std::io::Error| format!("cannot start the service: {error}");
        let (config, log) = (folder.join(format!("{name}.toml")), folder.join(format!("{name}.log")));
        let cells = format!("program = {:?}\nengine_library = {:?}\nfloor = \"development\"\n{settings}\n", programs.cell, programs.engine);
        // It may hold passwords of stores.
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&config).map_err(failed)?;
        write!(file, "[cells]\n{cells}").map_err(failed)?;
        if settings.contains("[stores.postgres]") {
            visibly(Command::new(&programs.insula).args(["--quiet", "migrate", "--config"]).arg(&config).env("HOME", folder))?;
        }
        let mut command = Command::new(&programs.insula);
        command.args(["--json", "serve", "--listen", "127.0.0.1:0", "--config"]).arg(&config);
        command.arg("--data").arg(folder.join(name).join("data")).arg("--keystore").arg(folder.join(name).join("keystore"));
        let temporary = folder.join(name).join("tmp");
        fs::create_dir_all(&temporary).map_err(failed)?;
        command.env("HOME", folder).env("TMPDIR", temporary).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.stderr(File::options().create(true).append(true).open(&log).map_err(failed)?).spawn().map_err(failed)?;
        let mut line = String::new();
        let read = child.stdout.take().map(|output| BufReader::new(output).read_line(&mut line));
        let facts: Value = match read {
            Some(Ok(_)) => serde_json::from_str(&line).unwrap_or_default(),
            _ => Value::Null,
        };
        let text = |key: &str| facts.get(key).and_then(Value::as_str);
        let Some((url, ca)) = text("url").zip(text("cacert")) else {
            let _ = child.kill().and_then(|()| child.wait().map(|_| ()));
            return Err(format!("the service did not start: {}", fs::read_to_string(&log).unwrap_or_default()));
        };
        let client = Client::start(&programs.client, url, Path::new(ca))?;
        let (url, ca) = (url.to_owned(), PathBuf::from(ca));
        Ok(Self { child, client, url, ca, bootstrap: text("bootstrap_secret").map(PathBuf::from), log })
    }

    /// Stops it and waits until it is gone.
    pub(super) fn stop(mut self) -> Result<()> {
        self.terminate()
    }

    fn terminate(&mut self) -> Result<()> {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return Ok(());
        }
        let _asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let deadline = Instant::now() + STOP_MAX;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _killed = self.child.kill().and_then(|()| self.child.wait());
        Err(format!("the service did not stop by itself; its log is {}", self.log.display()))
    }

    /// The first operator key.
    pub(super) fn bootstrap(&mut self) -> Result<String> {
        let file = self.bootstrap.clone().ok_or("the service made no one-time secret")?;
        let secret = fs::read_to_string(&file).map_err(|error| format!("cannot read the one-time secret: {error}"))?;
        let body = json!({"secret": secret.trim()}).to_string();
        let issued = self.client.json(Ask::send("POST", "/v1/bootstrap", "", body))?;
        text(&issued, "/secret")
    }

    /// A tenant that no rate holds back; its administrator's key.
    pub(super) fn tenant_create(&mut self, operator: &str, name: &str) -> Result<String> {
        self.tenant_limited(operator, name, &json!({}))
    }

    /// The same with some limits of its own.
    pub(super) fn tenant_limited(&mut self, operator: &str, name: &str, limits: &Value) -> Result<String> {
        let mut body: Value = serde_json::from_str(&tenant_body(name)).unwrap_or_default();
        if let Some((all, own)) = body.get_mut("limits").and_then(Value::as_object_mut).zip(limits.as_object()) {
            all.extend(own.clone());
        }
        let made = self.client.json(Ask::send("POST", "/v1/tenants", operator, body.to_string()))?;
        text(&made, "/admin_key/secret")
    }

    /// Attacks it with one request, again and again.
    pub(super) fn attack(&self, programs: &Programs, ask: &Ask, how: Attacking, seconds: f64) -> Result<Attack> {
        Attack::start(&programs.client, (&self.url, &self.ca), ask, how, seconds)
    }

    /// Its processes and what they hold.
    pub(super) fn holds(&self) -> Holds {
        let all = family(self.child.id());
        let entries = |path: String| fs::read_dir(path).map_or(0, |all| all.count());
        Holds {
            gateway_mib: field(&format!("/proc/{}/status", self.child.id()), "VmRSS:") / KIB_PER_MIB,
            zygote_mib: all
                .iter()
                .filter(|stat| stat.parent == self.child.id())
                .map(|stat| field(&format!("/proc/{}/status", stat.pid), "VmRSS:"))
                .sum::<f64>()
                / KIB_PER_MIB,
            descriptors: entries(format!("/proc/{}/fd", self.child.id())),
            threads: entries(format!("/proc/{}/task", self.child.id())),
            processes: all.len(),
        }
    }

    /// The service's own process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its cells' processes.
    pub(super) fn cells(&self) -> Vec<u32> {
        let all = family(self.child.id());
        let zygotes: BTreeSet<u32> = all.iter().filter(|stat| stat.parent == self.child.id()).map(|stat| stat.pid).collect();
        all.iter().filter(|stat| zygotes.contains(&stat.parent)).map(|stat| stat.pid).collect()
    }

    /// Tells the `insula` program where the service is and who asks.
    pub(super) fn as_environment(&self, command: &mut Command, token: &str) {
        command.env("INSULA_URL", &self.url).env("INSULA_CACERT", &self.ca).env("INSULA_TOKEN", token);
    }

    /// Tells MLflow's client the same.
    pub(super) fn as_mlflow_environment(&self, command: &mut Command, token: &str) {
        command.env("MLFLOW_TRACKING_URI", &self.url).env("MLFLOW_TRACKING_SERVER_CERT_PATH", &self.ca).env("MLFLOW_TRACKING_TOKEN", token);
    }

    /// CPU of its processes of that name up to now, in seconds.
    pub(super) fn cpu_seconds(&self, name: &str) -> f64 {
        self.cpu_by_process().get(name).copied().unwrap_or_default()
    }

    /// CPU of all its processes up to now in seconds, by the name of the program.
    pub(super) fn cpu_by_process(&self) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for stat in family(self.child.id()) {
            *sums.entry(stat.name).or_default() += stat.ticks as f64 * TICK_SECONDS;
        }
        sums
    }

    /// Memory now.
    pub(super) fn memory(&self) -> Memory {
        let pss = |pid: u32| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:");
        let all = family(self.child.id()).iter().map(|stat| pss(stat.pid)).sum::<f64>();
        Memory { gateway: pss(self.child.id()) / KIB_PER_MIB, all: all / KIB_PER_MIB }
    }

    /// From now on [`Service::memory_peak`] means the time since now.
    pub(super) fn memory_peak_reset(&self) {
        // Where that is not allowed the peak is that of the whole life.
        let _ = fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5");
    }

    /// Largest resident memory of the service's own process in MiB, shared libraries included.
    pub(super) fn memory_peak(&self) -> f64 {
        field(&format!("/proc/{}/status", self.child.id()), "VmHWM:") / KIB_PER_MIB
    }

    /// A value of the operator's metrics.
    pub(super) fn metric(&mut self, operator: &str, name: &str) -> Result<f64> {
        let metrics = self.client.one(Ask::get("/metrics", operator))?;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')));
        line.and_then(|value| value.parse().ok()).ok_or_else(|| format!("the metrics have no `{name}`"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            println!("{error}");
        }
    }
}

/// The request for a tenant whose limits are never in the way.
pub(super) fn tenant_body(name: &str) -> String {
    let limits = json!({
        "requests_per_second": 1_000_000, "requests_burst": 1_000_000, "concurrency_max": 1000, "storage_bytes": 100_u64 << 30,
    });
    json!({"name": name, "admin": "ada", "limits": limits}).to_string()
}

/// A text in an answer.
pub(super) fn text(value: &Value, pointer: &str) -> Result<String> {
    value.pointer(pointer).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| format!("the answer has no text at {pointer}: {value}"))
}

/// One line of `/proc/*/stat`.
struct Stat {
    pid: u32,
    parent: u32,
    name: String,
    ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        let (front, rest) = text.rsplit_once(')')?;
        let (pid, name) = front.split_once(" (")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
        let parent = u32::try_from(number(1)?).ok()?;
        Some(Self { pid: pid.parse().ok()?, parent, name: name.to_owned(), ticks: number(11)? + number(12)? })
    }
}

/// A process and all its descendants.
fn family(pid: u32) -> Vec<Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<Stat> = entries.filter_map(|entry| Stat::parse(&fs::read_to_string(entry.path().join("stat")).ok()?)).collect();
    let mut known = BTreeSet::from([pid]);
    loop {
        let before = known.len();
        known.extend(all.iter().filter(|stat| known.contains(&stat.parent)).map(|stat| stat.pid).collect::<Vec<_>>());
        if known.len() == before {
            return all.into_iter().filter(|stat| known.contains(&stat.pid)).collect();
        }
    }
}

/// The ids of a process and all its descendants.
pub(super) fn below(pid: u32) -> Vec<u32> {
    family(pid).iter().map(|stat| stat.pid).collect()
}

/// CPU of a process and all its descendants up to now, in seconds.
pub(super) fn cpu_below(pid: u32) -> f64 {
    family(pid).iter().map(|stat| stat.ticks as f64 * TICK_SECONDS).sum()
}

/// A number of KiB in a file of `/proc`.
fn field(file: &str, name: &str) -> f64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc() {
        let line = "77 (a (b) c) S 5 77 77 0 -1 4194304 100 0 0 0 30 12 0 0 20 0 1 0 100 0 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.pid, stat.parent, stat.name.as_str(), stat.ticks), (77, 5, "a (b) c", 42));
        assert!(Stat::parse("nonsense").is_none());
    }

    #[test]
    fn a_process_is_in_its_own_family() {
        assert!(family(std::process::id()).iter().any(|stat| stat.pid == std::process::id()));
    }
}
