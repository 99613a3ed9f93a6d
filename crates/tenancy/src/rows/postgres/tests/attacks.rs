//! What somebody could do who runs SQL of his own with the service's credentials, and what he could not.
//!
//! No text of a user becomes SQL, so this is the second wall: it must hold when the first one has a hole.
//!
//! What stays open, and why it is bearable:
//! - As the pooled role he can set `insula.tenant` to any tenant whose id he knows, read its rows, and delete them. Values are sealed under
//!   the tenant's key; keys and kinds of records are not. Ids of tenants at work stand in `pg_stat_activity` of the role's own sessions.
//! - `pg_class.reltuples`, the sizes of tables and the planner's estimates (`EXPLAIN` with a condition on `tenant`) count everybody's rows.
//! - He can hold things up: lock tables, take advisory locks, end sessions of the same role, fill the disk with large objects. Deadlines
//!   of statements, locks and idle transactions are the server's, but he could reset them for his own transaction.
//! - He can change the role's own password and defaults (`ALTER ROLE` of oneself); defaults that matter are found at the next start.
//!
//! Whoever must exclude these takes the tier schema (the server's rights end at the tenant's tables) or database (statistics too).

use super::*;

/// PostgreSQL's code.
const INSUFFICIENT_PRIVILEGE: &str = "42501";
const TABLES: [&str; 7] = ["record", "field", "blob", "outbox", "state", "ledger_segment", "ledger_note"];

/// Runs SQL as it is; the number of rows it changed or returned.
async fn run(connection: &mut PgConnection, sql: &str) -> std::result::Result<u64, String> {
    use futures_util::TryStreamExt;
    let mut rows = 0;
    let mut stream = sqlx::Executor::fetch_many(connection, raw_sql(built(sql.to_owned())));
    loop {
        match stream.try_next().await {
            Ok(Some(sqlx::Either::Left(done))) => rows = rows.max(done.rows_affected()),
            Ok(Some(sqlx::Either::Right(_))) => {}
            Ok(None) => return Ok(rows),
            Err(error) => {
                return Err(error
                    .as_database_error()
                    .map_or_else(|| error.to_string(), |error| format!("{} {}", error.code().unwrap_or_default(), error.message())));
            }
        }
    }
}

async fn refused(connection: &mut PgConnection, sql: &str, message: &str) {
    let _ = run(connection, "ROLLBACK").await;
    match run(connection, sql).await {
        Ok(rows) => panic!("not refused, {rows} rows: {sql}"),
        Err(error) => assert!(error.contains(message), "{sql}\n{error}"),
    }
}

/// Runs it in a transaction of this tenant that is rolled back; how many rows.
async fn as_tenant(connection: &mut PgConnection, tenant: TenantId, sql: &str) -> std::result::Result<u64, String> {
    run(connection, "ROLLBACK").await.unwrap();
    run(connection, &format!("BEGIN; SET LOCAL search_path = insula, pg_temp; SET LOCAL insula.tenant = '{}'", tenant.hex()))
        .await
        .unwrap();
    let result = run(connection, sql).await;
    run(connection, "ROLLBACK").await.unwrap();
    result
}

/// Two pooled tenants with a row in each table.
async fn two(scratch: &Scratch, postgres: &Postgres) -> (TenantId, TenantId) {
    let (one, two) = (tenant(), tenant());
    for tenant in [one, two] {
        postgres.provision(tenant, Tier::Pooled, "").await.unwrap();
        let rows = postgres.rows(tenant, Tier::Pooled, None).await.unwrap();
        let mut transaction = rows.begin().await.unwrap();
        raw_sql(
            "INSERT INTO record (kind, key, value) VALUES ('k', 'a', 'secret');
             INSERT INTO field (kind, field, value, key) VALUES ('k', 'f', 'v', 'a');
             INSERT INTO blob VALUES (DEFAULT, 'id', 1, 'k', 'c', 1, 's');
             INSERT INTO outbox (generation, entry) VALUES (1, 'e');
             INSERT INTO ledger_segment (first, entries, leaves) VALUES (0, 1, 'l');
             INSERT INTO ledger_note (note) VALUES ('n')",
        )
        .execute(&mut *transaction)
        .await
        .unwrap();
        transaction.commit().await.unwrap();
    }
    scratch.plant("ANALYZE").await;
    (one, two)
}

#[tokio::test]
async fn without_a_tenant_every_statement_is_an_error() {
    let Some(scratch) = scratch().await else { return };
    let postgres = scratch.open().await;
    let (one, _) = two(&scratch, &postgres).await;
    let mut rows = scratch.raw(&scratch.config.rows_url).await;
    let statements = |table: &str| {
        let column = if table == "ledger_note" { "note" } else { "tenant" };
        [
            format!("SELECT * FROM insula.{table}"),
            format!("SELECT count(*) FROM insula.{table}"),
            format!("SELECT * FROM insula.{table} WHERE tenant = '{}'", one.hex()),
            format!("UPDATE insula.{table} SET {column} = {column}"),
            format!("DELETE FROM insula.{table}"),
            format!("INSERT INTO insula.{table} SELECT * FROM insula.{table}"),
            format!("COPY insula.{table} TO STDOUT"),
        ]
    };
    // Never set: unknown. Set before, by whatever means: empty. Set to nothing at all: empty too.
    for (before, message) in [
        ("SELECT 1".to_owned(), "unrecognized configuration parameter \"insula.tenant\""),
        (format!("BEGIN; SET LOCAL insula.tenant = '{}'; COMMIT", one.hex()), "invalid input syntax for type uuid: \"\""),
        (format!("SELECT set_config('insula.tenant', '{}', false); RESET insula.tenant", one.hex()), "invalid input syntax for type uuid"),
        (format!("SELECT set_config('insula.tenant', '{}', true)", one.hex()), "invalid input syntax for type uuid"),
        ("SET insula.tenant = ''".to_owned(), "invalid input syntax for type uuid"),
        ("RESET ALL".to_owned(), "invalid input syntax for type uuid"),
    ] {
        run(&mut rows, &before).await.unwrap();
        for statement in TABLES.iter().flat_map(|table| statements(table)) {
            refused(&mut rows, &statement, message).await;
        }
        let insert = "INSERT INTO insula.record (kind, key, value) VALUES ('k', 'x', 'v')";
        refused(&mut rows, insert, message).await;
    }
    scratch.drop().await;
}

#[tokio::test]
async fn one_tenant_finds_nothing_of_another() {
    let Some(scratch) = scratch().await else { return };
    let postgres = scratch.open().await;
    let (one, two) = two(&scratch, &postgres).await;
    let (mut rows, other) = (scratch.raw(&scratch.config.rows_url).await, two.hex());
    for table in TABLES {
        let own = if table == "state" { 2 } else { 1 };
        for (sql, expected) in [
            (format!("SELECT * FROM {table}"), own),
            (format!("SELECT * FROM {table} WHERE tenant = '{other}'"), 0),
            (format!("SELECT * FROM {table} WHERE tenant <> current_setting('insula.tenant')::uuid OR true"), own),
            (format!("DELETE FROM {table}"), own),
            (format!("DELETE FROM {table} WHERE tenant = '{other}'"), 0),
            (format!("UPDATE {table} SET tenant = tenant"), own),
            (format!("SELECT * FROM {table} FOR UPDATE"), own),
            (format!("TABLE {table} UNION ALL TABLE {table}"), own * 2),
        ] {
            assert_eq!(as_tenant(&mut rows, one, &sql).await, Ok(expected), "{sql}");
        }
        let moved = as_tenant(&mut rows, one, &format!("UPDATE {table} SET tenant = '{other}'")).await.unwrap_err();
        assert!(moved.contains("violates row-level security policy"), "{moved}");
    }
    for (sql, message) in [
        (format!("INSERT INTO record VALUES ('{other}', 'k', 'b', 'v')"), "violates row-level security policy"),
        (format!("INSERT INTO record VALUES ('{other}', 'k', 'a', 'v') ON CONFLICT DO NOTHING"), "violates row-level security policy"),
        (
            format!("INSERT INTO record VALUES ('{other}', 'k', 'a', 'v') ON CONFLICT (tenant, kind, key) DO UPDATE SET value = 'x'"),
            "violates row-level security policy",
        ),
        (
            format!(
                "MERGE INTO record USING (VALUES (1)) AS v ON tenant = '{other}' WHEN NOT MATCHED THEN INSERT VALUES ('{other}', 'k', 'z', 'v')"
            ),
            "violates row-level security policy",
        ),
        ("COPY record FROM STDIN".to_owned(), "COPY FROM not supported with row-level security"),
        ("SET LOCAL row_security = off; SELECT * FROM record".to_owned(), "query would be affected by row-level security policy"),
    ] {
        let refused = as_tenant(&mut rows, one, &sql).await.unwrap_err();
        assert!(refused.contains(message), "{sql}\n{refused}");
    }
    // The same key, which the other one has: no conflict tells of it.
    let same = as_tenant(&mut rows, one, "DELETE FROM record; INSERT INTO record (kind, key, value) VALUES ('k', 'a', 'v')").await;
    assert_eq!(same, Ok(1));
    // A cast that fails on a foreign row would tell of it: the policy is asked first.
    let cast = "DELETE FROM record; SELECT * FROM record WHERE convert_from(value, 'UTF8')::int = 0";
    assert_eq!(as_tenant(&mut rows, one, cast).await, Ok(1), "one was deleted, none found, no error");
    let copied = copied(&mut rows, one).await;
    assert_eq!(copied.lines().count(), 1);
    assert!(copied.replace('-', "").contains(&one.hex()) && !copied.replace('-', "").contains(&other), "{copied}");

    // The same question with the defence off: it would have been answered.
    scratch.plant("ALTER TABLE insula.record DISABLE ROW LEVEL SECURITY").await;
    assert_eq!(as_tenant(&mut rows, one, "SELECT * FROM record").await, Ok(2));
    scratch.drop().await;
}

async fn copied(connection: &mut PgConnection, tenant: TenantId) -> String {
    use futures_util::TryStreamExt;
    let begin = format!("BEGIN; SET LOCAL insula.tenant = '{}'", tenant.hex());
    run(connection, &begin).await.unwrap();
    let out = connection.copy_out_raw("COPY insula.record TO STDOUT").await.unwrap();
    let bytes: Vec<bytes::Bytes> = out.try_collect().await.unwrap();
    run(connection, "ROLLBACK").await.unwrap();
    String::from_utf8(bytes.concat()).unwrap()
}

#[tokio::test]
async fn the_roles_that_serve_can_change_nothing_about_the_walls() {
    let Some(scratch) = scratch().await else { return };
    let postgres = scratch.open().await;
    two(&scratch, &postgres).await;
    let (tenant, password) = (tenant(), password());
    postgres.provision(tenant, Tier::Schema, &password).await.unwrap();
    let db = &scratch.name;
    let own = migrate::parsed(scratch.config.rows_url.expose(), "x").unwrap().username(&format!("t_{}", tenant.hex())).password(&password);
    let mut all =
        [scratch.raw(&scratch.config.rows_url).await, scratch.raw(&scratch.config.control_url).await, own.connect().await.unwrap()];
    for sql in [
        format!("SET ROLE {db}_owner"),
        format!("SET SESSION AUTHORIZATION {db}_owner"),
        format!("ALTER ROLE {db}_rows BYPASSRLS"),
        format!("DROP ROLE {db}_owner"),
        format!("GRANT {db}_owner TO {db}_rows"),
        "CREATE ROLE mine".to_owned(),
        "CREATE DATABASE mine".to_owned(),
        "CREATE SCHEMA mine".to_owned(),
        "CREATE TABLE insula.mine (a int)".to_owned(),
        "CREATE TABLE public.mine (a int)".to_owned(),
        "CREATE TEMPORARY TABLE mine (a int)".to_owned(),
        "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'".to_owned(),
        "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'".to_owned(),
        "CREATE VIEW public.mine AS SELECT 1".to_owned(),
        "CREATE EXTENSION pg_trgm SCHEMA public".to_owned(),
        "CREATE PUBLICATION mine".to_owned(),
        "ALTER TABLE insula.record DISABLE ROW LEVEL SECURITY".to_owned(),
        "ALTER TABLE insula.record NO FORCE ROW LEVEL SECURITY".to_owned(),
        "DROP POLICY tenant ON insula.record".to_owned(),
        "CREATE POLICY mine ON insula.record USING (true)".to_owned(),
        "DROP TABLE insula.record".to_owned(),
        "TRUNCATE insula.record".to_owned(),
        "CREATE TRIGGER mine AFTER INSERT ON insula.record EXECUTE FUNCTION pg_catalog.tsvector_update_trigger()".to_owned(),
        "CREATE UNIQUE INDEX mine ON insula.record (key)".to_owned(),
        "SET session_replication_role = replica".to_owned(),
        "COPY (SELECT 1) TO PROGRAM 'true'".to_owned(),
        "COPY (SELECT 1) TO '/tmp/x'".to_owned(),
        "SELECT pg_read_file('postgresql.conf')".to_owned(),
        "SELECT lo_import('/etc/hostname')".to_owned(),
        "SELECT * FROM pg_authid".to_owned(),
        "SELECT * FROM pg_statistic".to_owned(),
    ] {
        for (connection, role) in all.iter_mut().zip(["rows", "control", "own"]) {
            let _ = run(connection, "ROLLBACK").await;
            match run(connection, &sql).await {
                Ok(_) => panic!("{role} may: {sql}"),
                Err(error) => assert!(error.starts_with(INSUFFICIENT_PRIVILEGE), "{role}: {sql}\n{error}"),
            }
        }
    }
    let [rows, control, own] = &mut all;
    refused(rows, "SELECT * FROM insula_control.tenant_key", "permission denied for schema insula_control").await;
    refused(own, "SELECT * FROM insula_control.tenant_key", "permission denied for schema insula_control").await;
    refused(control, "SELECT * FROM insula.record", "permission denied for schema insula").await;
    refused(control, "UPDATE insula_control.migration SET sha256 = ''", "permission denied for table migration").await;
    refused(control, "INSERT INTO insula_control.migration VALUES ('a', 'b', 'c')", "permission denied for table migration").await;
    postgres.destroy(tenant, Tier::Schema).await.unwrap();
    scratch.drop().await;
}

#[tokio::test]
async fn statistics_show_no_values_of_others() {
    let Some(scratch) = scratch().await else { return };
    let postgres = scratch.open().await;
    let (one, _) = two(&scratch, &postgres).await;
    let mut rows = scratch.raw(&scratch.config.rows_url).await;
    let seen = as_tenant(&mut rows, one, "SELECT * FROM pg_stats WHERE schemaname IN ('insula', 'insula_control')").await;
    assert_eq!(seen, Ok(0), "pg_stats hides tables under row-level security");
    let seen = as_tenant(&mut rows, one, "SELECT * FROM pg_stats_ext WHERE schemaname = 'insula'").await;
    assert_eq!(seen, Ok(0));
    let query = "SELECT * FROM pg_stat_activity WHERE usename <> current_user AND query NOT IN ('', '<insufficient privilege>')";
    assert_eq!(as_tenant(&mut rows, one, query).await, Ok(0), "statements of other roles");
    // Known and written down at the top: counts of everybody's rows. Should this fail one day, there is one leak less to write down.
    let counted = "SELECT FROM pg_class WHERE oid = 'insula.record'::regclass AND reltuples = 2";
    assert_eq!(as_tenant(&mut rows, one, counted).await, Ok(1));
    scratch.drop().await;
}

#[tokio::test]
async fn a_tenant_with_its_own_role_ends_at_its_own_tables() {
    let Some(scratch) = scratch().await else { return };
    let postgres = scratch.open().await;
    let (pooled, _) = two(&scratch, &postgres).await;
    let template = migrate::parsed(scratch.config.rows_url.expose(), "x").unwrap();
    let mut made = Vec::new();
    for tier in [Tier::Schema, Tier::Schema, Tier::Database, Tier::Database] {
        let (tenant, password) = (tenant(), password());
        postgres.provision(tenant, tier, &password).await.unwrap();
        put(&postgres.rows(tenant, tier, Some(&password)).await.unwrap(), "a").await;
        let own = Own::of(tenant, tier).unwrap();
        made.push((tenant, tier, own.clone(), template.clone().username(own.role.as_str()).password(&password)));
    }
    let [(one, _, _, schema), (_, _, other, _), (_, _, own, database), (_, _, elsewhere, _)] = made.as_slice() else { panic!() };

    let mut schema = schema.connect().await.unwrap();
    for sql in [format!("SELECT * FROM {}.record", other.schema), "SELECT * FROM insula.record".to_owned()] {
        for tenant in [*one, pooled] {
            // Even in the right tenant's name.
            run(&mut schema, &format!("SET insula.tenant = '{}'", tenant.hex())).await.unwrap();
            refused(&mut schema, &sql, "permission denied for schema").await;
        }
    }
    refused(&mut schema, &format!("SET ROLE {}", other.role), "permission denied to set role").await;
    let stats = run(&mut schema, "SELECT * FROM pg_stats WHERE schemaname NOT IN ('pg_catalog', 'information_schema')").await;
    assert_eq!(stats, Ok(0));

    let mut inside = database.clone().database(own.role.as_str()).connect().await.unwrap();
    run(&mut inside, "CREATE TEMPORARY TABLE mine (a int)").await.expect_err("nothing is made there either");
    run(&mut inside, "SELECT * FROM insula_control.migration").await.unwrap();
    refused(&mut inside, "DELETE FROM insula_control.migration", "permission denied for table migration").await;
    let away = database.clone().database(elsewhere.role.as_str()).connect().await.map(drop).unwrap_err().to_string();
    assert!(away.contains("permission denied for database"), "{away}");
    let pooled_role = template.clone().database(own.role.as_str()).connect().await.map(drop).unwrap_err().to_string();
    assert!(pooled_role.contains("permission denied for database"), "{pooled_role}");
    let mut common = database.connect().await.unwrap();
    refused(&mut common, "SELECT * FROM insula.record", "permission denied for schema insula").await;
    refused(&mut common, "SELECT * FROM insula_control.tenant", "permission denied for schema insula_control").await;
    for (tenant, tier, ..) in made {
        postgres.destroy(tenant, tier).await.unwrap();
    }
    scratch.drop().await;
}
