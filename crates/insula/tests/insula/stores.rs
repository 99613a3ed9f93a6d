//! Shared stores from the administrator's side, on a real PostgreSQL.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::world::{Service, insula, programs};

/// An empty database with an owner that may make roles.
pub(crate) struct Database {
    admin: String,
    psql: PathBuf,
    /// Unique, also in the names of the roles.
    name: String,
}

impl Database {
    /// None, with a printed reason, where no server is and nobody demands one.
    pub(crate) fn make() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (Ok(admin), Ok(programs)) = (std::env::var("INSULA_PG_URL"), std::env::var("INSULA_PG_BIN")) else {
            assert!(std::env::var_os("INSULA_REQUIRE").is_none(), "INSULA_PG_URL and INSULA_PG_BIN are demanded");
            println!("SKIPPED: needs a PostgreSQL in INSULA_PG_URL and its programs in INSULA_PG_BIN");
            return None;
        };
        let name = format!("cli_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let database = Self { admin, psql: Path::new(&programs).join("psql"), name };
        database.sql(&database.admin, &format!("CREATE ROLE owner_{} LOGIN PASSWORD 'o' CREATEROLE CREATEDB", database.name));
        database.sql(&database.admin, &format!("CREATE DATABASE {0} OWNER owner_{0}", database.name));
        Some(database)
    }

    /// The URL of `owner`, `rows` or `control`.
    pub(crate) fn url(&self, role: &str) -> String {
        let (_, host) = self.admin.rsplit_once('@').unwrap();
        let (host, _) = host.split_once('/').unwrap();
        format!("postgres://{role}_{0}:{1}@{host}/{0}", self.name, &role[..1])
    }

    /// `[stores.postgres]` with its secrets in files in `dir`.
    pub(crate) fn config(&self, dir: &Path) -> String {
        let mut text = "[stores.postgres]\n".to_owned();
        for role in ["rows", "control", "owner"] {
            let file = dir.join(format!("{role}.url"));
            fs::write(&file, self.url(role)).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            text += &format!("{role}_url_file = {file:?}\n");
        }
        text
    }

    /// Runs SQL as the server's administrator, in this database.
    pub(crate) fn plant(&self, sql: &str) {
        let (server, _) = self.admin.rsplit_once('/').unwrap();
        self.sql(&format!("{server}/{}", self.name), sql);
    }

    fn sql(&self, url: &str, sql: &str) {
        let run = Command::new(&self.psql).args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, url]).output().unwrap();
        assert!(run.status.success(), "{sql}: {}", String::from_utf8_lossy(&run.stderr));
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let name = &self.name;
        let each = [
            format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
            format!("DROP ROLE IF EXISTS rows_{name}, control_{name}, owner_{name}"),
        ];
        for sql in each {
            let _ = Command::new(&self.psql).args(["-X", "-q", "-c", &sql, &self.admin]).output();
        }
    }
}

#[test]
fn a_database_is_migrated_once_and_checked() {
    let (Some((cell, engine)), Some(database)) = (programs(), Database::make()) else { return };
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("config.toml");
    let cells = format!("[cells]\nprogram = {cell:?}\nengine_library = {engine:?}\nfloor = 'development'\n");
    fs::write(&config, format!("{}{cells}", database.config(home.path()))).unwrap();
    let config = config.to_str().unwrap();
    let run = |arguments: &[&str]| insula(home.path(), &[], &[arguments, &["--config", config]].concat());

    let before = run(&["check"]);
    assert_eq!(before.status, 1, "{}", before.output);
    assert!(before.output.contains("unsafe  PostgreSQL") && before.output.contains("insula migrate"), "{}", before.output);

    let applied = run(&["migrate", "--json"]).json();
    assert!(applied["applied"].as_array().unwrap().len() > 1, "{applied}");
    assert_eq!(run(&["migrate", "--json"]).json()["applied"].as_array().unwrap().len(), 0, "the second time nothing is left to do");
    let again = run(&["migrate"]);
    assert!(again.status == 0 && again.error.contains("up to date"), "{}", again.error);

    let after = run(&["check"]);
    assert_eq!(after.status, 0, "{}{}", after.output, after.error);
    assert!(after.output.contains("ok      PostgreSQL answers"), "{}", after.output);
    for secret in [database.url("rows"), database.url("control"), database.url("owner")] {
        assert!(!after.output.contains(&secret) && !after.error.contains(&secret), "a secret is printed");
    }

    database.plant(&format!("ALTER ROLE rows_{} BYPASSRLS", database.name));
    let faulty = run(&["check"]);
    assert_eq!(faulty.status, 1);
    assert!(faulty.output.contains("bypasses row-level security") && faulty.output.contains("NOBYPASSRLS"), "{}", faulty.output);
    run(&["serve", "--listen", "127.0.0.1:0"]).failed(1, "bypasses row-level security");
}

/// The S3 server of the tests.
struct S3 {
    endpoint: String,
    key: String,
    secret: String,
}

impl S3 {
    /// None, with a printed reason, where no server is and nobody demands one.
    fn given() -> Option<Self> {
        let of = |name: &str| std::env::var(name).ok();
        let all = (of("INSULA_S3_ENDPOINT"), of("INSULA_S3_ADMIN_KEY"), of("INSULA_S3_ADMIN_SECRET"));
        if let (Some(endpoint), Some(key), Some(secret)) = all {
            return Some(Self { endpoint, key, secret });
        }
        assert!(std::env::var_os("INSULA_REQUIRE").is_none(), "INSULA_S3_ENDPOINT, _ADMIN_KEY and _ADMIN_SECRET are demanded");
        println!("SKIPPED: needs an S3 server in INSULA_S3_ENDPOINT with its INSULA_S3_ADMIN_KEY and INSULA_S3_ADMIN_SECRET");
        None
    }

    /// `[stores.s3]`, with a secret of that name in `dir`.
    fn config(&self, dir: &Path, secret: &str) -> String {
        let file = dir.join("s3.secret");
        fs::write(&file, secret).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        format!(
            "[stores.s3]\nendpoint = {:?}\naccess_key_id = {:?}\nsecret_access_key_file = {file:?}\ncredentials = 'iam'\nbucket_prefix = 'cli'\n",
            self.endpoint, self.key
        )
    }

    /// Lets the user of this name do everything with every bucket.
    fn open_everything(&self, user: &str) {
        let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:GetObject","s3:PutObject","s3:DeleteObject","s3:List*"],"Resource":["arn:aws:s3:::*"]}]}"#;
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "--aws-sigv4", "aws:amz:us-east-1:iam", "--user", &format!("{}:{}", self.key, self.secret)]);
        for field in ["Action=PutUserPolicy", "Version=2010-05-08", "PolicyName=hole", &format!("UserName={user}")] {
            curl.args(["--data-urlencode", field]);
        }
        let run = curl.args(["--data-urlencode", &format!("PolicyDocument={policy}"), &self.endpoint]).output().unwrap();
        assert!(run.status.success(), "{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    }
}

#[test]
fn an_s3_server_is_checked_before_a_start() {
    let (Some((cell, engine)), Some(database), Some(s3)) = (programs(), Database::make(), S3::given()) else { return };
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("config.toml");
    let cells = format!("[cells]\nprogram = {cell:?}\nengine_library = {engine:?}\nfloor = 'development'\n");
    let run = |s3: String, arguments: &[&str]| {
        fs::write(&config, format!("{}{s3}{cells}", database.config(home.path()))).unwrap();
        insula(home.path(), &[], &[arguments, &["--config", config.to_str().unwrap()]].concat())
    };
    run(String::new(), &["migrate", "--json"]).json();
    let good = run(s3.config(home.path(), &s3.secret), &["check"]);
    assert_eq!(good.status, 0, "{}{}", good.output, good.error);
    assert!(good.output.contains("ok      S3 answers") && good.output.contains("ok      S3 has an API for users"), "{}", good.output);
    assert!(!good.output.contains(&s3.secret), "a secret is printed");
    let wrong = run(s3.config(home.path(), "wrong"), &["check"]);
    assert_eq!(wrong.status, 1);
    assert!(wrong.output.contains("unsafe  S3") && wrong.output.contains("check `access_key_id`"), "{}", wrong.output);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nowhere = S3 { endpoint: format!("http://127.0.0.1:{port}"), key: s3.key.clone(), secret: s3.secret.clone() };
    let away = run(nowhere.config(home.path(), &s3.secret), &["check"]);
    assert_eq!(away.status, 1);
    assert!(away.output.contains("unsafe  S3: no answer") && away.output.contains("start the server"), "{}", away.output);
}

#[test]
fn an_owner_that_may_not_is_told_what_to_do() {
    let Some(database) = Database::make() else { return };
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("config.toml");
    fs::write(&config, database.config(home.path())).unwrap();
    let run = || insula(home.path(), &[], &["migrate", "--config", config.to_str().unwrap()]);
    database.plant(&format!("ALTER ROLE owner_{} NOCREATEROLE", database.name));
    run().failed(1, "CREATEROLE");
    fs::remove_file(home.path().join("owner.url")).unwrap();
    run().failed(2, "owner.url");
    let text = fs::read_to_string(&config).unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("owner_url")).collect();
    fs::write(&config, without.join("\n")).unwrap();
    run().failed(1, "owner_url");
}

/// A service whose tenants' rows lie in this tier from the beginning, and their objects on S3.
pub(crate) fn started(tier: &str, more: &str) -> Option<(Database, Service)> {
    let (database, s3) = (Database::make()?, S3::given()?);
    let service = service(&database, |home| format!("{}[stores]\ntier = '{tier}'\n{more}", s3.config(home, &s3.secret)))?;
    service.tenant("sample", &[]);
    assert_eq!(service.run("operator", &["tenant", "show", "sample"]).json()["storage"], tier);
    Some((database, service))
}

/// A service on this database, migrated.
fn service(database: &Database, more: impl FnOnce(&Path) -> String) -> Option<Service> {
    Service::start_with(|home| {
        let text = format!("{}{}", database.config(home), more(home));
        let config = home.join("migrate.toml");
        fs::write(&config, &text).unwrap();
        insula(home, &[], &["migrate", "--json", "--config", config.to_str().unwrap()]).json();
        text
    })
}

#[test]
fn a_tenant_moves_through_all_tiers_and_back() {
    let Some(database) = Database::make() else { return };
    let Some(service) = service(&database, |_| String::new()) else { return };
    service.tenant("clinic", &[]);
    let file = service.file("rows.csv", "a,y\n1,p\n2,q\n");
    service.run("clinic", &["data", "put", "rows", &file]).json();
    let shown = || service.run("operator", &["tenant", "show", "clinic"]).json();
    let rows = || service.run("clinic", &["data", "show", "rows"]).json();
    let before = rows();
    assert_eq!(shown()["storage"], "embedded");
    service.run("operator", &["tenant", "move", "clinic", "--storage", "embedded"]).failed(7, "");
    for tier in ["pooled", "schema", "database", "embedded"] {
        let moved = service.run("operator", &["tenant", "move", "clinic", "--storage", tier, "--wait"]).json();
        assert_eq!((moved["state"].as_str(), moved["to"].as_str()), (Some("moved"), Some(tier)), "{moved}");
        assert_eq!((shown()["storage"].as_str(), rows()), (Some(tier), before.clone()));
        assert_eq!(service.run("operator", &["tenant", "move", "clinic", "--status"]).json()["state"], "moved");
        let finished = service.run("operator", &["tenant", "move", "clinic", "--finish"]).json();
        assert_eq!(finished["state"], "settled", "{finished}");
    }
    service.run("operator", &["tenant", "move", "clinic", "--storage", "pooled", "--wait"]).json();
    service.run("clinic", &["data", "put", "more", &file]).json();
    let back = service.run("operator", &["tenant", "move", "clinic", "--rollback", "--wait"]).json();
    assert_eq!(shown()["storage"], "embedded", "{back}");
    assert_eq!(service.run("clinic", &["data", "list"]).json().as_array().unwrap().len(), 2, "what was written since is not lost");
    service.run("operator", &["tenant", "move", "nobody", "--status"]).failed(4, "");

    service.tenant("zoo", &["--storage", "schema"]);
    assert_eq!(service.run("operator", &["tenant", "show", "zoo"]).json()["storage"], "schema");
}

#[test]
fn isolation_is_tried_and_a_hole_is_told() {
    let Some(database) = Database::make() else { return };
    let Some(service) = service(&database, |_| String::new()) else { return };
    for (name, tier) in
        [("ant", "pooled"), ("bee", "pooled"), ("cat", "schema"), ("dog", "schema"), ("eel", "database"), ("fox", "embedded")]
    {
        service.tenant(name, &["--storage", tier]);
    }
    for name in ["ant", "cat", "eel", "fox"] {
        let tried = service.run("operator", &["tenant", "verify-isolation", name]).json();
        assert!(tried["holds"] == true && tried["probes"].as_array().is_some_and(|probes| !probes.is_empty()), "{tried}");
    }
    let roles = "DO $$ DECLARE name text; BEGIN FOR name IN SELECT nspname FROM pg_namespace WHERE nspname ~ '^t_[0-9a-f]{32}$' LOOP";
    database.plant(&format!("{roles} EXECUTE format('ALTER ROLE %I SUPERUSER', name); END LOOP; END $$"));
    let holed = service.run("operator", &["tenant", "verify-isolation", "cat"]);
    assert_eq!(holed.status, 1, "{}", holed.output);
    assert!(holed.error.contains("did not end as they must"), "{}", holed.error);
}

#[test]
fn buckets_are_tried_with_each_tenants_own_access_key() {
    let (Some(database), Some(s3)) = (Database::make(), S3::given()) else { return };
    let Some(service) = service(&database, |home| s3.config(home, &s3.secret)) else { return };
    let tenants = ["ant", "bee", "cat"];
    for name in tenants {
        service.tenant(name, &["--storage", "pooled"]);
    }
    let tried = service.run("operator", &["tenant", "verify-isolation", "ant"]).json();
    assert!(tried["holds"] == true && tried["others_tried"] == 2 && tried["others"] == 2, "{tried}");
    let probes = tried["probes"].as_array().unwrap();
    let buckets = |must: bool| -> Vec<&str> {
        let those = probes.iter().filter(|probe| probe["must_refuse"] == must);
        those.filter_map(|probe| probe["target"].as_str()?.strip_prefix("bucket ")).collect()
    };
    assert_eq!((buckets(true).len(), buckets(false).len()), (14, 6), "{tried}");
    s3.open_everything(buckets(false)[0]);
    let holed = service.run("operator", &["tenant", "verify-isolation", "ant"]);
    assert_eq!(holed.status, 1, "{}", holed.output);
    assert!(
        holed.error.contains("did not end as they must") && holed.output.contains("\"holds\": false"),
        "{}{}",
        holed.output,
        holed.error
    );
    for name in tenants {
        service.run("operator", &["tenant", "erase", name, "--confirm", name, "--wait"]).json();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_taken_out_and_brought_in_elsewhere() {
    let Some(database) = Database::make() else { return };
    let (Some(from), Some(to)) = (service(&database, |_| String::new()), Service::start()) else { return };
    from.tenant("clinic", &["--storage", "pooled"]);
    let file = from.file("rows.csv", "a,y\n1,p\n2,q\n");
    from.run("clinic", &["data", "put", "rows", &file]).json();
    let (bundle, key) = (from.path("clinic.bundle"), from.path("clinic.key"));
    let export =
        |more: &[&str]| from.run("operator", &[&["tenant", "export", "clinic", "--out", &bundle, "--key-file", &key], more].concat());
    export(&[]).json_or_nothing();
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    export(&[]).failed(2, "--force");
    let made = fs::read_to_string(&key).unwrap();
    export(&["--force"]).json_or_nothing();
    assert_eq!(fs::read_to_string(&key).unwrap(), made, "a key that is there is used again");

    let import = |name: &str, bundle: &str, key: &str| {
        to.run("operator", &["tenant", "import", name, "--from", bundle, "--key-file", key, "--save", name])
    };
    let mut bytes = fs::read(&bundle).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let changed = to.file("changed", &bytes);
    assert_ne!(import("clinic", &changed, &key).status, 0, "a changed byte is refused");
    let cut = to.file("cut", &fs::read(&bundle).unwrap()[..middle]);
    assert_ne!(import("clinic", &cut, &key).status, 0, "half a bundle is refused");
    let other = to.file("other.key", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    assert_ne!(import("clinic", &bundle, &other).status, 0, "another key is refused");
    import("clinic", &bundle, &to.path("absent.key")).failed(6, "no key");
    to.run("operator", &["tenant", "show", "clinic"]).failed(4, "");

    import("clinic", &bundle, &key).json();
    let (before, after) = (from.run("clinic", &["data", "show", "rows"]).json(), to.run("clinic", &["data", "show", "rows"]).json());
    assert_eq!(after, before);
    import("clinic", &bundle, &key).failed(7, "clinic");

    let (auditor, file) = (to.key_of("clinic"), to.path("former.ledger"));
    let former = to.get("/v1/ledger/former", &auditor).await.expect(200).json()["items"][0].clone();
    let origin = former["origin"].as_str().unwrap().replace('/', "%2F");
    fs::write(&file, to.get(&format!("/v1/ledger/former/export?origin={origin}"), &auditor).await.expect(200).body).unwrap();
    let report = to.run("clinic", &["audit", "verify", &file, "--key", former["vkey"].as_str().unwrap()]).json();
    assert_eq!(report["size"], former["size"], "the log of the service it came from still verifies");
    to.get("/v1/ledger/former/export?origin=another", &auditor).await.expect(404);
}
