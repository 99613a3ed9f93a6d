//! What each place of a tenant's rows costs, for `cargo xtask bench`: one record read, one written with its ledger entry, both through
//! a permit; making and opening tenants; ten thousand of them in shared tables.
//!
//! `stores_cost EMPTY_DIR ROUNDS OPERATIONS MADE TENANTS` works on a real kernel in that folder and on the servers of `INSULA_PG_URL`
//! and `INSULA_PGBOUNCER_URL`, in databases of its own, and prints one JSON line: name → values, one a round. Beside it, in turns, it
//! does the same by hand on the same server: without tenants' keys, row-level security, permits, audit files. Two such references:
//!
//! | name | read | write |
//! |---|---|---|
//! | `plain` | one SELECT | BEGIN, UPDATE of the record, INSERT of its audit entry, COMMIT |
//! | `fenced` | BEGIN, SELECT, ROLLBACK | the same with a row that is locked first and counted up at the end, as the kernel must |
//!
//! Each round does all subjects one after the other, so that ratios hold on a busy machine.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, raw_sql};
use tenancy::act::{DatasetRead, DatasetWrite};
use tenancy::{
    Error, Identity, Kernel, KernelConfig, Limits, Operator, PostgresConfig, Presented, Record, RequestId, Secret, StoresConfig, Tenant,
    TenantSpec, Tier,
};

type Result<T, E = Box<dyn StdError + Send + Sync>> = std::result::Result<T, E>;

/// Name and password of everything made on the server, which is ours alone.
const NAME: &str = "bench";
const DATABASES: [&str; 4] = [
    "CREATE ROLE bench_owner LOGIN CREATEROLE CREATEDB PASSWORD 'bench'",
    "CREATE DATABASE bench OWNER bench_owner TEMPLATE template0",
    "CREATE ROLE bench_plain LOGIN PASSWORD 'bench'",
    "CREATE DATABASE bench_plain OWNER bench_plain TEMPLATE template0",
];
/// Clients at once, each with a tenant of its own.
const CLIENTS: usize = 8;
/// Records of a tenant that are read and written in turns.
const KEYS: usize = 100;
/// Characters of a record's text.
const TEXT_CHARS: usize = 200;
/// Bytes of a record and of an audit entry as the kernel stores them.
const VALUE_BYTES: usize = 280;
const ENTRY_BYTES: usize = 360;
/// Records that each of the many tenants is given.
const FILL: usize = 4;
/// The many tenants: the one that is looked at early and late.
const EARLY: usize = 10;
/// Operations of each client that are not measured, before the first that is.
const WARM: usize = 50;
/// Connections for pooled tenants, and for the references.
const CONNECTIONS: u32 = 16;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, rounds, operations, made, tenants] = arguments.as_slice() else {
        return Err("usage: stores_cost EMPTY_DIR ROUNDS OPERATIONS MADE TENANTS".into());
    };
    let bench = Bench {
        dir: PathBuf::from(dir),
        rounds: rounds.parse()?,
        operations: operations.parse()?,
        made: made.parse::<usize>()?.max(CLIENTS),
        tenants: tenants.parse::<usize>()?.max(2 * EARLY),
        server: std::env::var("INSULA_PG_URL")?,
        pooler: std::env::var("INSULA_PGBOUNCER_URL")?,
        figures: Figures::new(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let figures = runtime.block_on(bench.run())?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&figures)?)?;
    Ok(())
}

type Figures = BTreeMap<String, Vec<f64>>;

struct Bench {
    dir: PathBuf,
    rounds: usize,
    operations: usize,
    made: usize,
    tenants: usize,
    server: String,
    pooler: String,
    figures: Figures,
}

impl Bench {
    async fn run(mut self) -> Result<Figures> {
        self.databases().await?;
        let plain = Plain::make(&self.server).await?;
        let kernel = self.kernel(&self.server, true).await?;
        let secret = std::fs::read_to_string(self.dir.join("keystore/bootstrap.secret"))?;
        let key = kernel.bootstrap(secret.trim(), &RequestId::fresh()).await?;
        let operator = operator(&kernel, key.secret()).await?;
        let keys = self.create(&operator).await?;
        self.compare(&kernel, &keys, &plain).await?;
        self.many(&kernel, &operator, &plain).await?;
        drop(operator);
        kernel.close().await?;
        drop(kernel);

        let kernel = self.kernel(&self.server, true).await?;
        self.open(&kernel, &keys).await?;
        kernel.close().await?;
        drop(kernel);

        let kernel = self.kernel(&self.pooler, false).await?;
        let pooled = keys.get(&Tier::Pooled.to_string()).and_then(|keys| keys.first()).ok_or("no pooled tenant")?;
        let subjects = [("pgbouncer", vec![Client::Island(Arc::new(tenant(&kernel, pooled).await?))])];
        for _ in 0..self.rounds {
            self.in_turns("", &subjects, self.operations).await?;
        }
        drop(subjects);
        kernel.close().await?;
        Ok(self.figures)
    }

    /// A database with its roles for the kernel, and one for the references.
    async fn databases(&self) -> Result<()> {
        let mut connection = self.server.parse::<PgConnectOptions>()?.connect().await?;
        for sql in DATABASES {
            raw_sql(sql).execute(&mut connection).await?;
        }
        tenancy::migrate(&self.stores(&self.server, true)?).await?;
        Ok(())
    }

    /// The owner goes to the server itself.
    fn stores(&self, address: &str, prepared_statements: bool) -> Result<StoresConfig> {
        let url = |role: &str, address: &str| url_of(address, &format!("{NAME}_{role}")).map(Secret::new);
        let postgres = PostgresConfig {
            rows_url: url("rows", address)?,
            control_url: url("control", address)?,
            owner_url: Some(url("owner", &self.server)?),
            prepared_statements,
            connections_pooled_max: CONNECTIONS,
            connections_tenant_max: 2,
            connections_dedicated_max: 64,
        };
        Ok(StoresConfig { postgres: Some(postgres), ..StoresConfig::default() })
    }

    async fn kernel(&self, address: &str, prepared_statements: bool) -> Result<Kernel> {
        let config = KernelConfig {
            data_dir: self.dir.join("data"),
            keystore_dir: self.dir.join("keystore"),
            issuer: "https://localhost:8443".to_owned(),
            stores_open_max: 256,
            limits: Limits { requests_per_second: 1_000_000, requests_burst: 1_000_000, concurrency_max: 100_000, ..Limits::default() },
            stores: self.stores(address, prepared_statements)?,
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match Kernel::open(config.clone()).await {
                // The one before is just letting go of the folders.
                Err(Error::Unavailable(_)) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(20)).await,
                opened => return Ok(opened?.0),
            }
        }
    }

    /// Makes tenants of each tier in turns; returns their keys by tier.
    async fn create(&mut self, operator: &Operator) -> Result<BTreeMap<String, Vec<String>>> {
        let (mut keys, mut micros) = (BTreeMap::<String, Vec<String>>::new(), BTreeMap::<String, Vec<f64>>::new());
        for at in 0..self.made {
            for tier in Tier::ALL {
                let start = Instant::now();
                keys.entry(tier.to_string()).or_default().push(created(operator, &format!("{tier}-{at}"), tier).await?);
                micros.entry(tier.to_string()).or_default().push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        for (tier, micros) in micros {
            self.percentiles(&format!("{tier}.create"), &micros);
        }
        progress("tenants of each tier are made");
        Ok(keys)
    }

    /// Opens those tenants in a kernel that has just started.
    async fn open(&mut self, kernel: &Kernel, keys: &BTreeMap<String, Vec<String>>) -> Result<()> {
        let mut micros = BTreeMap::<&str, Vec<f64>>::new();
        for at in 0..self.made {
            for (tier, keys) in keys {
                let key = keys.get(at).ok_or("a tenant is missing")?;
                let start = Instant::now();
                drop(tenant(kernel, key).await?);
                micros.entry(tier).or_default().push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        for (tier, micros) in micros {
            self.percentiles(&format!("{tier}.open"), &micros);
        }
        Ok(())
    }

    /// Every tier beside the references.
    async fn compare(&mut self, kernel: &Kernel, keys: &BTreeMap<String, Vec<String>>, plain: &Plain) -> Result<()> {
        let mut subjects = vec![("plain", plain.clients(false)), ("fenced", plain.clients(true))];
        for tier in Tier::ALL {
            let mut clients = Vec::new();
            for key in keys.get(tier.name()).into_iter().flatten().take(CLIENTS) {
                clients.push(Client::Island(Arc::new(tenant(kernel, key).await?)));
            }
            subjects.push((tier.name(), clients));
        }
        for (_, clients) in &subjects {
            for client in clients {
                client.fill(KEYS).await?;
            }
            // Each connection plans a statement a few times before it keeps the plan.
            for operation in [Operation::Read, Operation::Write] {
                together(clients, operation, WARM).await?;
            }
        }
        for round in 0..self.rounds {
            self.in_turns("", &subjects, self.operations).await?;
            progress(&format!("round {} of {}", round + 1, self.rounds));
        }
        Ok(())
    }

    /// One round: every subject alone and with all its clients, reading and writing.
    async fn in_turns(&mut self, prefix: &str, subjects: &[(&str, Vec<Client>)], operations: usize) -> Result<()> {
        for (operation, word) in [(Operation::Read, "read"), (Operation::Write, "write")] {
            for (name, clients) in subjects {
                let alone = clients.get(..1).unwrap_or_default();
                for clients in [alone, clients.as_slice()].into_iter().take(clients.len()) {
                    let (micros, seconds) = together(clients, operation, operations / clients.len().max(1)).await?;
                    let name = format!("{prefix}{name}.{word}.{}", clients.len());
                    self.percentiles(&name, &micros);
                    self.add(format!("{name}.rate"), micros.len() as f64 / seconds);
                }
            }
        }
        Ok(())
    }

    /// Many tenants in shared tables: does one of them notice?
    async fn many(&mut self, kernel: &Kernel, operator: &Operator, plain: &Plain) -> Result<()> {
        let mut database = self.server.parse::<PgConnectOptions>()?.database(NAME).connect().await?;
        let mut on_server = async || -> Result<f64> {
            raw_sql("CHECKPOINT").execute(&mut database).await?;
            let size: (i64,) = sqlx::query_as("SELECT pg_database_size(current_database())").fetch_one(&mut database).await?;
            Ok(size.0 as f64)
        };
        self.add("many.memory_before".to_owned(), memory_mib()?);
        let (server_before, folder_before) = (on_server().await?, bytes_below(&self.dir)?);
        let (mut micros, mut early, mut last) = (Vec::new(), None, None);
        for at in 1..=self.tenants {
            let start = Instant::now();
            let key = created(operator, &format!("many-{at}"), Tier::Pooled).await?;
            micros.push(start.elapsed().as_secs_f64() * 1e6);
            let client = Client::Island(Arc::new(tenant(kernel, &key).await?));
            client.fill(FILL).await?;
            if at == EARLY {
                early = Some(client.clone());
                let subjects = [("plain", plain.first()), ("tenant_10", vec![client.clone()])];
                client.fill(KEYS).await?;
                for _ in 0..self.rounds {
                    self.in_turns("few.", &subjects, self.operations).await?;
                }
            }
            if at % 1000 == 0 {
                progress(&format!("{at} pooled tenants, the last thousand at {:.1} ms", middle(&micros, 1000) / 1e3));
            }
            last = Some(client);
        }
        self.percentiles("many.create", &micros);
        let part = self.tenants / 10;
        self.add("many.create.first".to_owned(), middle(micros.get(..part).unwrap_or_default(), part));
        self.add("many.create.last".to_owned(), middle(&micros, part));
        let (early, last) = early.zip(last).ok_or("too few tenants")?;
        last.fill(KEYS).await?;
        let subjects = [("plain", plain.first()), ("tenant_10", vec![early]), ("tenant_last", vec![last])];
        for _ in 0..self.rounds {
            self.in_turns("many.", &subjects, self.operations).await?;
        }
        let tenants = self.tenants as f64;
        self.add("many.server_bytes".to_owned(), (on_server().await? - server_before) / tenants);
        self.add("many.folder_bytes".to_owned(), (bytes_below(&self.dir)? - folder_before) / tenants);
        self.add("many.memory".to_owned(), memory_mib()?);
        self.add("many.tenants".to_owned(), tenants);
        Ok(())
    }

    fn percentiles(&mut self, name: &str, micros: &[f64]) {
        let mut sorted = micros.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        for (word, share) in [("p50", 0.5), ("p99", 0.99)] {
            let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
            self.add(format!("{name}.{word}"), sorted.get(at).copied().unwrap_or_default());
        }
    }

    fn add(&mut self, name: String, value: f64) {
        self.figures.entry(name).or_default().push(value);
    }
}

/// The median of the last `count`.
fn middle(values: &[f64], count: usize) -> f64 {
    let mut last: Vec<f64> = values.iter().rev().take(count).copied().collect();
    last.sort_unstable_by(f64::total_cmp);
    last.get(last.len() / 2).copied().unwrap_or_default()
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    name: String,
    text: String,
}

impl Record for Note {
    const KIND: &'static str = "note";
    fn key(&self) -> String {
        self.name.clone()
    }
}

fn name_of(at: usize) -> String {
    format!("note-{}", at % KEYS)
}

#[derive(Clone, Copy)]
enum Operation {
    Read,
    Write,
}

/// Who reads and writes.
#[derive(Clone)]
enum Client {
    Island(Arc<Tenant>),
    Plain { pool: PgPool, tenant: i64, fenced: bool },
}

impl Client {
    async fn does(&self, operation: Operation, at: usize) -> Result<()> {
        match (self, operation) {
            (Self::Island(tenant), Operation::Read) => {
                let permit = tenant.allow::<DatasetRead>(&name_of(at))?;
                let _note: Note = permit.rows().require(&name_of(at)).await?;
                let _closed = permit.finish()?;
            }
            (Self::Island(tenant), Operation::Write) => {
                let permit = tenant.allow::<DatasetWrite>(&name_of(at))?;
                let mut tx = permit.tx().await?;
                tx.put(&Note { name: name_of(at), text: "x".repeat(TEXT_CHARS) }).await?;
                tx.commit().await?;
                let _closed = permit.finish()?;
            }
            (Self::Plain { pool, tenant, fenced }, Operation::Read) => plain_read(pool, *tenant, *fenced, &name_of(at)).await?,
            (Self::Plain { pool, tenant, fenced }, Operation::Write) => plain_write(pool, *tenant, *fenced, &name_of(at)).await?,
        }
        Ok(())
    }

    /// Gives it records, in one transaction.
    async fn fill(&self, count: usize) -> Result<()> {
        let Self::Island(tenant) = self else { return Ok(()) };
        let permit = tenant.allow::<DatasetWrite>("fill")?;
        let mut tx = permit.tx().await?;
        for at in 0..count {
            tx.put(&Note { name: name_of(at), text: "x".repeat(TEXT_CHARS) }).await?;
        }
        tx.commit().await?;
        let _closed = permit.finish()?;
        Ok(())
    }
}

/// All clients at once, `count` operations each: microseconds of each operation, seconds of all.
async fn together(clients: &[Client], operation: Operation, count: usize) -> Result<(Vec<f64>, f64)> {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in clients {
        let client = client.clone();
        tasks.spawn(async move {
            let mut micros = Vec::with_capacity(count);
            for at in 0..count {
                let start = Instant::now();
                client.does(operation, at).await?;
                micros.push(start.elapsed().as_secs_f64() * 1e6);
            }
            Result::<_>::Ok(micros)
        });
    }
    let mut all = Vec::new();
    while let Some(micros) = tasks.join_next().await {
        all.extend(micros??);
    }
    Ok((all, start.elapsed().as_secs_f64()))
}

/// Tables without row-level security in a database of their own, for a role that owns them.
struct Plain(PgPool);

const PLAIN_TABLES: &str = "
    CREATE TABLE record (tenant bigint, kind text COLLATE \"C\", key text COLLATE \"C\", value bytea NOT NULL, PRIMARY KEY (tenant, kind, key));
    CREATE TABLE audit (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant bigint NOT NULL, entry bytea NOT NULL);
    CREATE TABLE state (tenant bigint, name text COLLATE \"C\", value bigint NOT NULL, PRIMARY KEY (tenant, name)) WITH (fillfactor = 50);
    INSERT INTO state SELECT tenant, name, 0 FROM generate_series(0, 15) AS tenant, unnest(ARRAY['generation', 'fence']) AS name;";

impl Plain {
    async fn make(server: &str) -> Result<Self> {
        let options = server.parse::<PgConnectOptions>()?.username("bench_plain").password(NAME).database("bench_plain");
        let options = options.disable_statement_logging();
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false).connect_with(options).await?;
        raw_sql(PLAIN_TABLES).execute(&pool).await?;
        let insert = "INSERT INTO record SELECT tenant, 'note', 'note-' || key, $1 FROM generate_series(0, 15) AS tenant, generate_series(0, $2) AS key";
        let last = i32::try_from(KEYS)? - 1;
        sqlx::query(insert).bind(vec![7u8; VALUE_BYTES]).bind(last).execute(&pool).await?;
        Ok(Self(pool))
    }

    fn clients(&self, fenced: bool) -> Vec<Client> {
        let from = if fenced { 8 } else { 0 };
        (from..from + CLIENTS as i64).map(|tenant| Client::Plain { pool: self.0.clone(), tenant, fenced }).collect()
    }

    fn first(&self) -> Vec<Client> {
        self.clients(false).into_iter().take(1).collect()
    }
}

async fn plain_read(pool: &PgPool, tenant: i64, fenced: bool, key: &str) -> Result<()> {
    let select = "SELECT value FROM record WHERE tenant = $1 AND kind = $2 AND key = $3";
    let select = sqlx::query_as::<_, (Vec<u8>,)>(select).bind(tenant).bind("note").bind(key);
    if fenced {
        let mut transaction = pool.begin().await?;
        let _value = select.fetch_one(&mut *transaction).await?;
    } else {
        let _value = select.fetch_one(pool).await?;
    }
    Ok(())
}

async fn plain_write(pool: &PgPool, tenant: i64, fenced: bool, key: &str) -> Result<()> {
    let mut transaction = pool.begin().await?;
    if fenced {
        let lock = "SELECT name, value FROM state WHERE tenant = $1 AND name IN ('generation', 'fence') ORDER BY name DESC FOR UPDATE";
        let _state = sqlx::query(lock).bind(tenant).fetch_all(&mut *transaction).await?;
    }
    let update = "UPDATE record SET value = $4 WHERE tenant = $1 AND kind = $2 AND key = $3";
    sqlx::query(update).bind(tenant).bind("note").bind(key).bind(vec![7u8; VALUE_BYTES]).execute(&mut *transaction).await?;
    let insert = "INSERT INTO audit (tenant, entry) VALUES ($1, $2)";
    sqlx::query(insert).bind(tenant).bind(vec![7u8; ENTRY_BYTES]).execute(&mut *transaction).await?;
    if fenced {
        let count = "UPDATE state SET value = value + 1 WHERE tenant = $1 AND name = 'generation'";
        sqlx::query(count).bind(tenant).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

async fn operator(kernel: &Kernel, key: &str) -> Result<Operator> {
    match kernel.authenticate(Presented::Bearer(key), &RequestId::fresh()).await? {
        Identity::Operator(operator) => Ok(operator),
        Identity::Tenant(_) => Err("not the operator's key".into()),
    }
}

async fn created(operator: &Operator, name: &str, tier: Tier) -> Result<String> {
    let spec = TenantSpec { name: name.parse()?, admin: "ada".parse()?, limits: None, tier: Some(tier) };
    Ok(operator.tenant_create(spec).await?.admin_key.secret().to_owned())
}

async fn tenant(kernel: &Kernel, credential: &str) -> Result<Tenant> {
    match kernel.authenticate(Presented::Bearer(credential), &RequestId::fresh()).await? {
        Identity::Tenant(caller) => Ok(kernel.open_tenant(caller).await?),
        Identity::Operator(_) => Err("not a tenant's key".into()),
    }
}

/// The same server, for a role on the kernel's database.
fn url_of(server: &str, role: &str) -> Result<String> {
    let mut url: url::Url = server.parse()?;
    url.set_username(role).and_then(|()| url.set_password(Some(NAME))).map_err(|()| "not a server's URL")?;
    url.set_path(NAME);
    Ok(url.to_string())
}

fn progress(text: &str) {
    // Nobody may be listening.
    let _ = writeln!(std::io::stderr(), "  {text}");
}

/// Of this process, shared pages by their share.
fn memory_mib() -> Result<f64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
    Ok(pss.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}

/// On disk, in whole blocks.
fn bytes_below(dir: &Path) -> Result<f64> {
    let mut bytes = 0.0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += 512.0 * metadata.blocks() as f64;
        if metadata.is_dir() {
            bytes += bytes_below(&entry.path())?;
        }
    }
    Ok(bytes)
}
