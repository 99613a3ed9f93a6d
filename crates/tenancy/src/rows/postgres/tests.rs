//! On a real server: `INSULA_PG_URL` names a superuser of it, who only prepares. All that is tested runs with the service's own roles.

mod attacks;
mod bleed;
mod catalogue;
mod silence;

use super::*;
use crate::name::hex;
use crate::seal::random;

use sqlx::postgres::PgConnection;
use sqlx::raw_sql;

/// A database of its own with an owner and two service roles that are no superusers, dropped at the end.
pub(crate) struct Scratch {
    superuser: PgConnectOptions,
    pub(crate) name: String,
    pub(crate) config: PostgresConfig,
}

/// `None`, loudly, if there is no server to test on; a failure if there must be.
pub(crate) async fn scratch() -> Option<Scratch> {
    let Ok(url) = std::env::var("INSULA_PG_URL") else {
        assert!(std::env::var("INSULA_REQUIRE").is_err(), "INSULA_PG_URL is not set");
        println!("SKIPPED: INSULA_PG_URL is not set, nothing on PostgreSQL is tested");
        return None;
    };
    Some(Scratch::new(&url).await)
}

impl Scratch {
    async fn new(url: &str) -> Self {
        let superuser: PgConnectOptions = url.parse().unwrap();
        let name = format!("test_{}", hex(&random::<8>().unwrap()));
        let password = hex(&random::<16>().unwrap());
        let mut connection = superuser.connect().await.unwrap();
        for sql in [
            format!("CREATE ROLE {name}_owner LOGIN CREATEROLE CREATEDB PASSWORD '{password}'"),
            format!("CREATE DATABASE {name} OWNER {name}_owner TEMPLATE template0"),
        ] {
            raw_sql(built(sql)).execute(&mut connection).await.unwrap();
        }
        connection.close().await.unwrap();
        let (_, server) = url.rsplit_once('@').unwrap();
        let (server, _) = server.split_once('/').unwrap();
        let of = |role: &str| Secret::new(format!("postgres://{name}_{role}:{password}@{server}/{name}"));
        let config = PostgresConfig {
            rows_url: of("rows"),
            control_url: of("control"),
            owner_url: Some(of("owner")),
            prepared_statements: true,
            connections_pooled_max: 4,
            connections_tenant_max: 2,
            connections_dedicated_max: 8,
        };
        Self { superuser, name, config }
    }

    /// The same through PgBouncer in transaction mode, if there is one. The owner goes past it.
    pub(crate) fn pooled(&self) -> Option<PostgresConfig> {
        let Ok(url) = std::env::var("INSULA_PGBOUNCER_URL") else {
            assert!(std::env::var("INSULA_REQUIRE").is_err(), "INSULA_PGBOUNCER_URL is not set");
            println!("SKIPPED: INSULA_PGBOUNCER_URL is not set, nothing behind PgBouncer is tested");
            return None;
        };
        let bouncer: PgConnectOptions = url.parse().unwrap();
        let through = |url: &Secret| {
            let server = format!("@{}:{}/", self.superuser.get_host(), self.superuser.get_port());
            Secret::new(url.expose().replace(&server, &format!("@{}:{}/", bouncer.get_host(), bouncer.get_port())))
        };
        let (rows_url, control_url) = (through(&self.config.rows_url), through(&self.config.control_url));
        assert_ne!(rows_url, self.config.rows_url);
        Some(PostgresConfig { rows_url, control_url, prepared_statements: false, ..self.config.clone() })
    }

    /// With all tables, and open.
    pub(crate) async fn open(&self) -> Arc<Postgres> {
        Postgres::migrate(&self.config).await.unwrap();
        Postgres::connect(&self.config).await.unwrap()
    }

    /// Runs SQL in the database as a superuser.
    pub(crate) async fn plant(&self, sql: &str) {
        let mut connection = self.superuser.clone().database(&self.name).connect().await.unwrap();
        raw_sql(built(sql)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    /// A superuser's connection with this done in a transaction that stays open.
    pub(crate) async fn held(&self, sql: &str) -> PgConnection {
        let mut connection = self.superuser.clone().database(&self.name).connect().await.unwrap();
        raw_sql(built(format!("BEGIN; {sql}"))).execute(&mut connection).await.unwrap();
        connection
    }

    /// What one number is, to a superuser.
    pub(crate) async fn ask(&self, sql: &str) -> i64 {
        let mut connection = self.superuser.clone().database(&self.name).connect().await.unwrap();
        sqlx::query_scalar(built(sql.to_owned())).fetch_one(&mut connection).await.unwrap()
    }

    /// A connection of the role in a URL, with no transaction of ours around it.
    pub(crate) async fn raw(&self, url: &Secret) -> PgConnection {
        options(url, "url").unwrap().connect().await.unwrap()
    }

    /// Drops the database with everything that belongs to it. Left out by a test that fails: then somebody can look.
    pub(crate) async fn drop(self) {
        let mut connection = self.superuser.connect().await.unwrap();
        let name = &self.name;
        let own = format!("SELECT datname::text FROM pg_database WHERE datdba = '{name}_owner'::regrole ORDER BY datname <> '{name}'");
        let databases: Vec<String> = sqlx::query_scalar(built(own)).fetch_all(&mut connection).await.unwrap();
        let grants = format!(
            "SELECT role.rolname::text FROM pg_auth_members JOIN pg_roles role ON role.oid = roleid WHERE member = '{name}_owner'::regrole"
        );
        let members: Vec<String> = sqlx::query_scalar(built(grants)).fetch_all(&mut connection).await.unwrap();
        for database in databases {
            raw_sql(built(format!("DROP DATABASE {database} WITH (FORCE)"))).execute(&mut connection).await.unwrap();
        }
        for role in members.into_iter().chain(["rows", "control", "owner"].map(|role| format!("{name}_{role}"))) {
            raw_sql(built(format!("DROP ROLE IF EXISTS {role}"))).execute(&mut connection).await.unwrap();
        }
    }
}

pub(crate) fn tenant() -> TenantId {
    TenantId::random().unwrap()
}

pub(crate) fn password() -> String {
    hex(&random::<16>().unwrap())
}

/// The message of a refusal.
fn refusal<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("not refused"),
        Err(error) => error.private().map_or_else(|| error.to_string(), str::to_owned),
    }
}

async fn count(rows: &PgRows) -> i64 {
    let mut transaction = rows.begin().await.unwrap();
    let select = sqlx::query_scalar("SELECT count(*) FROM record").persistent(rows.prepared() == Prepared::Kept);
    select.fetch_one(&mut *transaction).await.unwrap()
}

async fn put(rows: &PgRows, key: &str) {
    let mut transaction = rows.begin().await.unwrap();
    let insert = sqlx::query("INSERT INTO record (kind, key, value) VALUES ('k', $1, 'v')").bind(key);
    let insert = insert.persistent(rows.prepared() == Prepared::Kept);
    insert.execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn a_server_is_migrated_once_also_by_two_at_a_time() {
    let Some(scratch) = scratch().await else { return };
    assert!(refusal(Postgres::connect(&scratch.config).await).contains("insula migrate"), "nothing is there yet");
    let (one, two) = tokio::join!(Postgres::migrate(&scratch.config), Postgres::migrate(&scratch.config));
    let (one, two) = (one.unwrap(), two.unwrap());
    let (all, none) = if one.is_empty() { (two, one) } else { (one, two) };
    assert!(all.contains(&"insula: rows/0001".to_owned()) && all.iter().any(|line| line.starts_with("role ")), "{all:?}");
    assert_eq!(none, Vec::<String>::new());
    Postgres::connect(&scratch.config).await.unwrap();
    scratch.plant("UPDATE insula_control.migration SET sha256 = repeat('0', 64) WHERE name = 'rows/0001'").await;
    assert!(refusal(Postgres::migrate(&scratch.config).await).contains("was changed after it was applied"));
    assert!(refusal(Postgres::connect(&scratch.config).await).contains("was changed after it was applied"));
    scratch.plant("DELETE FROM insula_control.migration WHERE name = 'rows/0001'").await;
    assert!(refusal(Postgres::connect(&scratch.config).await).contains("older version"));
    scratch.drop().await;
}

#[tokio::test]
async fn what_is_committed_is_on_disk_whatever_was_set_for_the_role() {
    let Some(scratch) = scratch().await else { return };
    let postgres = scratch.open().await;
    for role in ["rows", "control"] {
        scratch.plant(&format!("ALTER ROLE {}_{role} SET synchronous_commit = off", scratch.name)).await;
    }
    for rows in [postgres.rows(tenant(), Tier::Pooled, None).await.unwrap(), postgres.control()] {
        let mut transaction = rows.begin().await.unwrap();
        let shown: String = query_scalar("SHOW synchronous_commit").persistent(false).fetch_one(&mut *transaction).await.unwrap();
        assert_eq!(shown, "on");
    }
    // Leases are single statements: there the role must be right.
    let refused = refusal(Postgres::connect(&scratch.config).await);
    assert!(refused.contains("RESET synchronous_commit"), "{refused}");
    drop(postgres);
    scratch.drop().await;
}

#[tokio::test]
async fn a_role_that_could_do_more_does_not_serve() {
    let Some(scratch) = scratch().await else { return };
    Postgres::migrate(&scratch.config).await.unwrap();
    let name = &scratch.name;
    for (role, fault, remedy, message) in [
        ("rows", "SUPERUSER", "NOSUPERUSER", "superuser"),
        ("rows", "BYPASSRLS", "NOBYPASSRLS", "bypasses row-level security"),
        ("control", "CREATEROLE", "NOCREATEROLE", "may create roles"),
        ("control", "CREATEDB", "NOCREATEDB", "may create databases"),
        ("rows", "REPLICATION", "NOREPLICATION", "may replicate"),
    ] {
        scratch.plant(&format!("ALTER ROLE {name}_{role} {fault}")).await;
        let refused = refusal(Postgres::connect(&scratch.config).await);
        assert!(refused.contains(message) && refused.contains(remedy) && refused.contains(&format!("{role}_url")), "{refused}");
        scratch.plant(&format!("ALTER ROLE {name}_{role} {remedy}")).await;
    }
    for (fault, remedy, message) in [
        (
            format!("GRANT pg_read_all_data TO {name}_rows"),
            format!("REVOKE pg_read_all_data FROM {name}_rows"),
            "member of pg_read_all_data",
        ),
        (
            format!("ALTER TABLE insula.record OWNER TO {name}_rows"),
            format!("ALTER TABLE insula.record OWNER TO {name}_owner"),
            "it owns insula.record",
        ),
        (
            format!("ALTER SCHEMA insula OWNER TO {name}_control"),
            format!("ALTER SCHEMA insula OWNER TO {name}_owner"),
            "it owns the schema insula",
        ),
    ] {
        scratch.plant(&fault).await;
        let refused = refusal(Postgres::connect(&scratch.config).await);
        assert!(refused.contains(message), "{refused}");
        scratch.plant(&remedy).await;
    }
    let owner = PostgresConfig { rows_url: scratch.config.owner_url.clone().unwrap(), ..scratch.config.clone() };
    assert!(refusal(Postgres::connect(&owner).await).contains("it owns"), "the owner does not serve");
    assert!(refusal(Postgres::migrate(&owner).await).contains("must be a third one"));
    let same = PostgresConfig { control_url: scratch.config.rows_url.clone(), ..scratch.config.clone() };
    assert!(refusal(Postgres::connect(&same).await).contains("the same role"));
    let wrong = Secret::new(scratch.config.rows_url.expose().replace("_rows:", "_rows:x"));
    let wrong = PostgresConfig { rows_url: wrong, ..scratch.config.clone() };
    let refused = refusal(Postgres::connect(&wrong).await);
    assert!(refused.contains("rows_url") && refused.contains("password authentication failed"), "{refused}");
    scratch.drop().await;
}

#[tokio::test]
async fn every_tier_has_a_life() {
    let Some(scratch) = scratch().await else { return };
    let postgres = scratch.open().await;
    lives(&scratch, &postgres).await;
    if let Some(config) = scratch.pooled() {
        lives(&scratch, &Postgres::connect(&config).await.unwrap()).await;
    }
    scratch.drop().await;
}

async fn lives(scratch: &Scratch, postgres: &Postgres) {
    for tier in [Tier::Pooled, Tier::Schema, Tier::Database] {
        let (tenant, other, password) = (tenant(), tenant(), password());
        postgres.provision(tenant, tier, &password).await.unwrap();
        postgres.provision(other, tier, &password).await.unwrap();
        let rows = postgres.rows(tenant, tier, Some(&password)).await.unwrap();
        let others = postgres.rows(other, tier, Some(&password)).await.unwrap();
        put(&rows, "a").await;
        assert_eq!((count(&rows).await, count(&others).await), (1, 0), "{tier}");
        put(&others, "a").await;
        postgres.provision(tenant, tier, &password).await.unwrap();
        assert_eq!(count(&rows).await, 1, "{tier}: made again, it is still there");
        assert!(Postgres::migrate(&scratch.config).await.unwrap().is_empty(), "{tier}: nothing is left to do");
        Postgres::connect(&scratch.config).await.unwrap();
        let fence: i64 = {
            let mut transaction = rows.begin().await.unwrap();
            sqlx::query_scalar("SELECT sum(value)::int8 FROM state").persistent(false).fetch_one(&mut *transaction).await.unwrap()
        };
        assert_eq!(fence, 0, "{tier}: generation and fence");

        // Somebody is still in.
        let _in = rows.begin().await.unwrap();
        if tier == Tier::Pooled {
            drop(_in);
        }
        let destroyed = tokio::time::timeout(Duration::from_secs(90), destroy(scratch, postgres, tenant, tier)).await;
        destroyed.expect("it does not wait for ever");
        postgres.destroy(tenant, tier).await.unwrap();
        assert_eq!(count(&others).await, 1, "{tier}: the other one is untouched");
        if tier == Tier::Pooled {
            assert_eq!(count(&rows).await, 0);
        } else {
            rows.begin().await.map(drop).expect_err("no role, no way in");
        }
        destroy(scratch, postgres, other, tier).await;
    }
}

/// A pooler that asks for passwords as a superuser does so in the tenant's own database, and stays connected for a while.
async fn destroy(scratch: &Scratch, postgres: &Postgres, tenant: TenantId, tier: Tier) {
    let behind = postgres.prepared == Prepared::Once;
    while let Err(error) = postgres.destroy(tenant, tier).await {
        assert!(behind && tier == Tier::Database && matches!(error, Error::Unavailable(_)), "{error}: {:?}", error.private());
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname";
        scratch.plant(&format!("{end} = 'd_{}'", tenant.hex())).await;
    }
}

#[tokio::test]
async fn without_an_owner_only_shared_tables_take_tenants() {
    let Some(scratch) = scratch().await else { return };
    scratch.open().await;
    let config = PostgresConfig { owner_url: None, ..scratch.config.clone() };
    let postgres = Postgres::connect(&config).await.unwrap();
    postgres.provision(tenant(), Tier::Pooled, "").await.unwrap();
    for tier in [Tier::Schema, Tier::Database] {
        assert!(refusal(postgres.provision(tenant(), tier, &password()).await).contains("set `owner_url`"));
    }
    assert!(refusal(Postgres::migrate(&config).await).contains("set `owner_url`"));
    scratch.drop().await;
}

#[tokio::test]
async fn connections_of_single_tenants_are_bounded_together() {
    let Some(scratch) = scratch().await else { return };
    scratch.open().await;
    let config = PostgresConfig { connections_tenant_max: 1, connections_dedicated_max: 2, ..scratch.config.clone() };
    let postgres = Postgres::connect(&config).await.unwrap();
    let mut all = Vec::new();
    for _ in 0..6 {
        let (tenant, password) = (tenant(), password());
        postgres.provision(tenant, Tier::Schema, &password).await.unwrap();
        all.push((tenant, postgres.rows(tenant, Tier::Schema, Some(&password)).await.unwrap()));
    }
    let names: Vec<String> = all.iter().map(|(tenant, _)| format!("t_{}", tenant.hex())).collect();
    let work = futures_util::future::join_all(all.iter().map(|(tenant, rows)| async move {
        for n in 0..5 {
            put(rows, &format!("{}/{n}", tenant.hex())).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(count(rows).await, 5);
    }));
    let mut watcher = scratch.raw(&config.control_url).await;
    let watch = async {
        let mut most = 0i64;
        loop {
            let open = "SELECT count(*) FROM pg_stat_activity WHERE usename::text = ANY ($1)";
            most = most.max(sqlx::query_scalar(open).bind(&names).fetch_one(&mut watcher).await.unwrap());
            if most > 2 {
                return most;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        _ = work => {}
        most = watch => panic!("{most} connections, 2 are allowed"),
    }

    // All places in use: a clear answer, and a place again when one is left.
    let held = [all[0].1.begin().await.unwrap(), all[1].1.begin().await.unwrap()];
    assert!(refusal(all[2].1.begin().await).contains("too many tenants with a schema or database of their own"));
    drop(held);
    assert_eq!(count(&all[2].1).await, 5);
    for (tenant, _) in all {
        postgres.destroy(tenant, Tier::Schema).await.unwrap();
    }
    scratch.drop().await;
}

#[tokio::test]
async fn a_broken_connection_is_replaced() {
    let Some(scratch) = scratch().await else { return };
    let postgres = scratch.open().await;
    let tenant = tenant();
    postgres.provision(tenant, Tier::Pooled, "").await.unwrap();
    let rows = postgres.rows(tenant, Tier::Pooled, None).await.unwrap();
    for round in 0..3 {
        let all = futures_util::future::join_all((0..4).map(|_| rows.begin())).await;
        assert!(all.iter().all(|begun| begun.is_ok()), "round {round}");
        drop(all);
        let role = postgres.roles.rows.as_str();
        scratch.plant(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")).await;
    }
    put(&rows, "after").await;
    assert_eq!(count(&rows).await, 1);

    // All in use: a clear answer.
    let _all = futures_util::future::join_all((0..4).map(|_| rows.begin())).await;
    assert!(refusal(rows.begin().await).contains("all connections to the database are in use"));
    drop(_all);
    scratch.drop().await;
}
