//! What the kernel costs without HTTP, for `cargo xtask bench`: authentication, authorization, the ledger.
//!
//! `kernel_cost EMPTY_DIR COUNT` works on a real kernel in that folder, with real encryption and real files, and prints one JSON
//! line. Times are CPU of the whole process (every thread of it) for each operation, in microseconds, unless they say otherwise.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufReader, Write};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tenancy::act::{KeyWrite, LedgerRead, Predict};
use tenancy::{Identity, Kernel, KernelConfig, KeySpec, Limits, Operator, Presented, RequestId, Scope, Tenant, TenantSpec, verify_export};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;
type Figures = BTreeMap<&'static str, f64>;

/// Keys that are each used for the first time.
const KEYS: usize = 300;
/// Permits held at once.
const HELD_MAX: usize = 50_000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (dir, count) = arguments.next().zip(arguments.next()).ok_or("usage: kernel_cost EMPTY_DIR COUNT")?;
    let count: usize = count.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut figures = Figures::new();
    let keys = runtime.block_on(prepare(Path::new(&dir)))?;
    // Opened again: no credential, no tenant and no decision is in memory.
    runtime.block_on(identity(Path::new(&dir), &keys, count, &mut figures))?;
    runtime.block_on(ledger(Path::new(&dir), &keys, count, &mut figures))?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&figures)?)?;
    Ok(())
}

struct Keys {
    fresh: Vec<String>,
    first: String,
    second: String,
}

fn config(dir: &Path) -> KernelConfig {
    KernelConfig {
        data_dir: dir.join("data"),
        keystore_dir: dir.join("keystore"),
        issuer: "https://localhost:8443".to_owned(),
        stores_open_max: 8,
        limits: Limits { requests_per_second: 1_000_000, requests_burst: 1_000_000, concurrency_max: 100_000, ..Limits::default() },
        stores: Default::default(),
    }
}

async fn prepare(dir: &Path) -> Result<Keys> {
    let (kernel, _) = Kernel::open(config(dir)).await?;
    let secret = std::fs::read_to_string(dir.join("keystore/bootstrap.secret"))?;
    let key = kernel.bootstrap(secret.trim(), &RequestId::fresh()).await?;
    let operator = operator(&kernel, key.secret()).await?;
    let first = created(&operator, "first").await?;
    let second = created(&operator, "second").await?;
    let expires_at = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())? + 3_600_000_000;
    let mut fresh = Vec::new();
    for at in 0..KEYS {
        let permit = tenant(&kernel, &first).await?.allow::<KeyWrite>("")?;
        let spec = KeySpec { name: format!("k{at}").parse()?, member: "ada".parse()?, scope: Scope::all(), expires_at };
        fresh.push(permit.key_issue(spec).await?.secret().to_owned());
        let _closed = permit.finish()?;
    }
    kernel.close().await?;
    Ok(Keys { fresh, first, second })
}

async fn operator(kernel: &Kernel, key: &str) -> Result<Operator> {
    match kernel.authenticate(Presented::Bearer(key), &RequestId::fresh()).await? {
        Identity::Operator(operator) => Ok(operator),
        Identity::Tenant(_) => Err("not the operator's key".into()),
    }
}

async fn created(operator: &Operator, name: &str) -> Result<String> {
    let spec = TenantSpec { name: name.parse()?, admin: "ada".parse()?, limits: None, tier: None };
    Ok(operator.tenant_create(spec).await?.admin_key.secret().to_owned())
}

async fn tenant(kernel: &Kernel, credential: &str) -> Result<Tenant> {
    match kernel.authenticate(Presented::Bearer(credential), &RequestId::fresh()).await? {
        Identity::Tenant(caller) => Ok(kernel.open_tenant(caller).await?),
        Identity::Operator(_) => Err("not a tenant's key".into()),
    }
}

async fn identity(dir: &Path, keys: &Keys, count: usize, figures: &mut Figures) -> Result<()> {
    let (kernel, _) = Kernel::open(config(dir)).await?;
    // Opening a tenant is measured elsewhere: here only credentials and decisions are cold.
    drop(tenant(&kernel, &keys.first).await?);
    let clock = Clock::start()?;
    for key in &keys.fresh {
        drop(tenant(&kernel, key).await?);
    }
    figures.insert("authenticate_key_uncached", clock.cpu_micros(keys.fresh.len())?);
    let clock = Clock::start()?;
    for _ in 0..count {
        drop(tenant(&kernel, &keys.first).await?);
    }
    figures.insert("authenticate_key", clock.cpu_micros(count)?);
    let caller = match kernel.authenticate(Presented::Bearer(&keys.first), &RequestId::fresh()).await? {
        Identity::Tenant(caller) => caller,
        Identity::Operator(_) => return Err("not a tenant's key".into()),
    };
    let token = kernel.token_exchange(caller.via(), &keys.first, None).await?.token;
    let clock = Clock::start()?;
    for _ in 0..count {
        drop(tenant(&kernel, &token).await?);
    }
    figures.insert("authenticate_token", clock.cpu_micros(count)?);
    let one = tenant(&kernel, &keys.first).await?;
    let names: Vec<String> = (0..count.min(HELD_MAX)).map(|at| format!("model-{at}")).collect();
    let (uncached, _) = allow_and_finish(&one, &names)?;
    let (cached, append) = allow_and_finish(&one, &vec!["model".to_owned(); names.len()])?;
    figures.insert("authorize_uncached", uncached);
    figures.insert("authorize", cached);
    figures.insert("append", append);
    drop(one);
    kernel.close().await?;
    Ok(())
}

/// CPU of asking and of spending, in microseconds each. All permits are held in between, so that the clock is read only three times.
fn allow_and_finish(tenant: &Tenant, names: &[String]) -> Result<(f64, f64)> {
    let clock = Clock::start()?;
    let permits = names.iter().map(|name| tenant.allow::<Predict>(name)).collect::<Result<Vec<_>, _>>()?;
    let allowing = clock.cpu_micros(names.len())?;
    let clock = Clock::start()?;
    for permit in permits {
        let _closed = permit.finish()?;
    }
    Ok((allowing, clock.cpu_micros(names.len())?))
}

async fn ledger(dir: &Path, keys: &Keys, count: usize, figures: &mut Figures) -> Result<()> {
    let (kernel, _) = Kernel::open(config(dir)).await?;
    let (first, again, second) =
        (tenant(&kernel, &keys.first).await?, tenant(&kernel, &keys.first).await?, tenant(&kernel, &keys.second).await?);
    let spin = |tenant: &Tenant| -> Result<(), tenancy::Error> {
        for _ in 0..count {
            let _closed = tenant.allow::<Predict>("model")?.finish()?;
        }
        Ok(())
    };
    let alone = Instant::now();
    spin(&first)?;
    figures.insert("entries_per_second_1_thread", count as f64 / alone.elapsed().as_secs_f64());
    for (name, other) in [("entries_per_second_2_threads_1_tenant", &again), ("entries_per_second_2_threads_2_tenants", &second)] {
        let both = Instant::now();
        std::thread::scope(|scope| -> Result<()> {
            let thread = scope.spawn(|| spin(other));
            spin(&first)?;
            thread.join().map_err(|_| "a thread panicked")??;
            Ok(())
        })?;
        figures.insert(name, 2.0 * count as f64 / both.elapsed().as_secs_f64());
    }
    let permit = first.allow::<LedgerRead>("")?;
    let view = permit.ledger();
    let start = Instant::now();
    let _note = view.checkpoint()?;
    figures.insert("checkpoint_ms_right_after", start.elapsed().as_secs_f64() * 1e3);
    let mut export = Vec::new();
    let start = Instant::now();
    let entries = view.export(&mut export)?;
    figures.insert("export_entries_per_second", entries as f64 / start.elapsed().as_secs_f64());
    let head = export.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let head: serde_json::Value = serde_json::from_slice(head)?;
    let origin = head.get("origin").and_then(serde_json::Value::as_str).ok_or("the export has no origin")?;
    let start = Instant::now();
    let report = verify_export(&mut BufReader::new(export.as_slice()), origin, &view.vkey(), None)?;
    figures.insert("verify_entries_per_second", report.size as f64 / start.elapsed().as_secs_f64());
    figures.insert("ledger_entries", report.size as f64);
    figures.insert("export_bytes_per_entry", export.len() as f64 / report.size.max(1) as f64);
    let _closed = permit.finish()?;
    drop((first, again, second));
    kernel.close().await?;
    Ok(())
}

/// CPU of all threads since it was started.
struct Clock(f64);

impl Clock {
    fn start() -> Result<Self> {
        Ok(Self(process_cpu_seconds()?))
    }

    fn cpu_micros(&self, operations: usize) -> Result<f64> {
        Ok((process_cpu_seconds()? - self.0) * 1e6 / operations.max(1) as f64)
    }
}

fn process_cpu_seconds() -> Result<f64> {
    let mut sum = 0.0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        sum += schedstat(&thread?.path().join("schedstat"))?;
    }
    Ok(sum)
}

fn schedstat(path: &Path) -> Result<f64> {
    // A thread that has just ended takes its count with it.
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(0.0) };
    let nanos: f64 = text.split_whitespace().next().ok_or("schedstat is empty")?.parse()?;
    Ok(nanos / 1e9)
}
