//! PostgreSQL and S3 of a test's own, to be killed and started again over the same data.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::world::until;

/// Ports below those that the system hands out by itself, so that nobody takes them while a server is away.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// PostgreSQL, then eight for S3, then three nodes.
const PORT_COUNT: u16 = 12;
const S3_KEY: &str = "INSULAADMIN";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    S3,
}

/// Both servers. Dropping them ends them and removes their data.
pub(crate) struct Stores {
    dir: TempDir,
    port: u16,
    password: String,
    running: [Option<Child>; 2],
}

/// What the test command gives: the folder of scripts, PostgreSQL's programs, the S3 server's program. None, with a printed reason,
/// where it is missing and nobody demands it.
fn given() -> Option<(PathBuf, PathBuf, PathBuf)> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let all = (|| Some((of("INSULA_SERVERS")?, of("INSULA_PG_BIN")?, of("INSULA_S3_BIN")?)))();
    if all.is_none() {
        let what = "INSULA_SERVERS, INSULA_PG_BIN and INSULA_S3_BIN";
        assert!(std::env::var_os("INSULA_REQUIRE").is_none(), "{what} are demanded");
        println!("SKIPPED: needs {what}; `cargo xtask test` gives them");
    }
    all
}

impl Stores {
    /// Starts them; the database and its owner are made as the guide says.
    pub(crate) fn start() -> Option<Self> {
        given()?;
        let mut random = [0; 18];
        File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
        let password = random[2..].iter().map(|byte| format!("{byte:02x}")).collect();
        let (rows, start) = ((PORTS.end - PORTS.start) / PORT_COUNT, u16::from_le_bytes([random[0], random[1]]));
        let is_free = |first: &u16| (*first..first + PORT_COUNT).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
        let mut firsts = (0..rows).map(|turn| PORTS.start + (start.wrapping_add(turn) % rows) * PORT_COUNT);
        let mut stores = Self { dir: tempfile::tempdir().unwrap(), port: firsts.find(is_free).unwrap(), password, running: [None, None] };
        stores.launch(Kind::S3);
        stores.launch(Kind::Postgres);
        stores.wait(Kind::Postgres);
        stores.sql("postgres", &format!("CREATE ROLE insula_owner LOGIN PASSWORD '{}' CREATEROLE CREATEDB", stores.password));
        stores.sql("postgres", "CREATE DATABASE insula OWNER insula_owner");
        stores.wait(Kind::S3);
        Some(stores)
    }

    /// A port that is ours and free.
    pub(crate) fn node_port(&self, node: u16) -> u16 {
        self.port + 9 + node
    }

    /// The stores' part of a configuration.
    pub(crate) fn settings(&self) -> String {
        let url = |role: &str| format!("postgres://{role}:{}@127.0.0.1:{}/insula", self.password, self.port);
        format!(
            "[stores]\ntier = 'pooled'\n[stores.postgres]\nrows_url = '{}'\ncontrol_url = '{}'\nowner_url = '{}'\n\
             [stores.s3]\nendpoint = 'http://127.0.0.1:{}'\naccess_key_id = '{S3_KEY}'\nsecret_access_key = '{}'\ncredentials = 'iam'\n",
            url("insula_rows"),
            url("insula_control"),
            url("insula_owner"),
            self.port + 1,
            self.password
        )
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, kind: Kind) {
        if let Some(mut child) = self.running[kind as usize].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it over what it has, and waits until it does its work.
    pub(crate) fn restart(&mut self, kind: Kind) {
        self.launch(kind);
        self.wait(kind);
    }

    fn launch(&mut self, kind: Kind) {
        let Some((scripts, postgres, s3)) = given() else { return };
        let (script, name, port) = match kind {
            Kind::Postgres => ("postgres.sh", "postgres", self.port),
            Kind::S3 => ("s3.sh", "s3", self.port + 1),
        };
        let log = File::options().create(true).append(true).open(self.log(kind)).unwrap();
        let mut command = Command::new("sh");
        command.arg(scripts.join(script)).arg(self.dir.path().join(name)).arg(port.to_string());
        command.env("INSULA_PG_BIN", postgres).env("PGPASSWORD", &self.password);
        command.env("INSULA_S3_BIN", s3).env("AWS_ACCESS_KEY_ID", S3_KEY).env("AWS_SECRET_ACCESS_KEY", &self.password);
        command.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.running[kind as usize] = Some(command.spawn().unwrap());
    }

    /// What the server itself wrote down.
    pub(crate) fn log(&self, kind: Kind) -> PathBuf {
        self.dir.path().join(format!("{kind:?}.log"))
    }

    fn wait(&mut self, kind: Kind) {
        until(&format!("{kind:?} works"), || {
            let over = self.running[kind as usize].as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
            if over {
                // Its predecessor may still be letting go of its files.
                std::thread::sleep(std::time::Duration::from_millis(500));
                self.launch(kind);
            }
            let works = match kind {
                Kind::Postgres => self.try_sql("postgres", "SELECT 1").is_ok(),
                Kind::S3 => self.s3_works(),
            };
            works.then_some(())
        });
    }

    /// Runs SQL as the superuser; fields are separated by `|`.
    #[track_caller]
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        self.try_sql(database, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The same; what PostgreSQL has against it is the error.
    pub(crate) fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let (_, programs, _) = given().ok_or("no programs")?;
        let mut psql = Command::new(programs.join("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", "--host=127.0.0.1"]);
        psql.args(["--username=postgres", &format!("--port={}", self.port), &format!("--dbname={database}"), &format!("--command={sql}")]);
        let ended = psql.env("PGPASSWORD", &self.password).env("PGCONNECT_TIMEOUT", "5").stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if ended.status.success() { Ok(text(&ended.stdout)) } else { Err(text(&ended.stderr)) }
    }

    /// Makes a bucket and puts an object: it listens long before it can do that.
    fn s3_works(&self) -> bool {
        let bucket = format!("http://127.0.0.1:{}/ready", self.port + 1);
        let put = |url: &str| {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--fail", "--max-time", "10", "--noproxy", "*", "--config", "-", "--request", "PUT"]);
            curl.args(["--aws-sigv4", "aws:amz:us-east-1:s3", url]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = curl.spawn().unwrap();
            writeln!(child.stdin.take().unwrap(), "user = \"{S3_KEY}:{}\"", self.password).unwrap();
            child.wait().unwrap().success()
        };
        put(&bucket);
        put(&format!("{bucket}/probe"))
    }
}

impl Drop for Stores {
    fn drop(&mut self) {
        for kind in [Kind::Postgres, Kind::S3] {
            if std::thread::panicking() {
                println!("{kind:?} said last: {}", tail(&self.log(kind), 5));
            }
            if let Some(child) = &mut self.running[kind as usize] {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        // Sockets of a killed S3 server have a fixed place.
        for (part, offset) in [("s3", 1), ("master", 3), ("volume", 5), ("filer", 7)] {
            let _ = fs::remove_file(format!("/tmp/seaweedfs-{part}-grpc-{}.sock", self.port + 1 + offset));
        }
    }
}

/// The last lines of a file.
pub(crate) fn tail(file: &Path, count: usize) -> String {
    let text = fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
