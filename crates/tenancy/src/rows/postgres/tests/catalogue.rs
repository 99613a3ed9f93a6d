//! Each fault that the catalogue check knows is planted, and the start is refused.

use super::*;

/// A fault, what the refusal says of it, and what takes it away. `{own}` is the schema and the role of a tenant.
struct Plant {
    fault: &'static str,
    message: &'static str,
    cure: &'static str,
}

const fn plant(fault: &'static str, message: &'static str, cure: &'static str) -> Plant {
    Plant { fault, message, cure }
}

const PLANTS: &[Plant] = &[
    plant(
        "CREATE TABLE insula.extra (tenant uuid NOT NULL DEFAULT current_setting('insula.tenant')::uuid PRIMARY KEY);
         ALTER TABLE insula.extra OWNER TO {owner}",
        "insula.extra has no forced row-level security; remedy: ALTER TABLE insula.extra ENABLE ROW LEVEL SECURITY, FORCE",
        "DROP TABLE insula.extra",
    ),
    plant("ALTER TABLE insula.blob DISABLE ROW LEVEL SECURITY", "insula.blob has no forced", "ALTER TABLE insula.blob ENABLE ROW LEVEL SECURITY"),
    plant("ALTER TABLE {own}.blob NO FORCE ROW LEVEL SECURITY", "{own}.blob has no forced", "ALTER TABLE {own}.blob FORCE ROW LEVEL SECURITY"),
    plant("CREATE POLICY open ON insula.state USING (true)", "insula.state has other policies", "DROP POLICY open ON insula.state"),
    plant(
        "ALTER POLICY tenant ON insula.state USING (tenant = nullif(current_setting('insula.tenant', true), '')::uuid)",
        "insula.state has other policies",
        "ALTER POLICY tenant ON insula.state USING (tenant = current_setting('insula.tenant')::uuid)",
    ),
    plant(
        "ALTER POLICY tenant ON insula.state WITH CHECK (true)",
        "insula.state has other policies",
        "ALTER POLICY tenant ON insula.state WITH CHECK (tenant = current_setting('insula.tenant')::uuid)",
    ),
    plant(
        "ALTER POLICY tenant ON insula.state TO {rows}",
        "insula.state has other policies",
        "ALTER POLICY tenant ON insula.state TO PUBLIC",
    ),
    plant(
        "ALTER TABLE insula.outbox ALTER tenant DROP DEFAULT",
        "insula.outbox has no column `tenant`",
        "ALTER TABLE insula.outbox ALTER tenant SET DEFAULT current_setting('insula.tenant')::uuid",
    ),
    plant(
        "ALTER TABLE insula.outbox ALTER tenant SET DEFAULT '00000000-0000-0000-0000-000000000000'",
        "insula.outbox has no column `tenant`",
        "ALTER TABLE insula.outbox ALTER tenant SET DEFAULT current_setting('insula.tenant')::uuid",
    ),
    plant(
        "ALTER TABLE insula.outbox ALTER entry SET DEFAULT 'x'",
        "insula.outbox has a default on the column `entry`",
        "ALTER TABLE insula.outbox ALTER entry DROP DEFAULT",
    ),
    plant(
        "ALTER TABLE insula.outbox ADD n bigint GENERATED ALWAYS AS IDENTITY",
        "insula.outbox has a default on the column `n`",
        "ALTER TABLE insula.outbox DROP n",
    ),
    plant(
        "ALTER TABLE insula.ledger_note ADD t text COLLATE \"POSIX\"",
        "insula.ledger_note has a column `t` that is not ordered as bytes",
        "ALTER TABLE insula.ledger_note DROP t",
    ),
    plant(
        "ALTER TABLE insula.ledger_note DROP CONSTRAINT ledger_note_pkey",
        "insula.ledger_note has no primary key",
        "ALTER TABLE insula.ledger_note ADD PRIMARY KEY (tenant)",
    ),
    plant("CREATE UNIQUE INDEX oracle ON insula.blob (id)", "has the key `insula.oracle` that does not start with `tenant`", "DROP INDEX insula.oracle"),
    plant("CREATE UNIQUE INDEX oracle ON insula.blob ((sha256 || id))", "has the key `insula.oracle`", "DROP INDEX insula.oracle"),
    plant(
        "ALTER TABLE {own}.field ADD CONSTRAINT oracle UNIQUE (key, tenant)",
        "has the key `{own}.oracle` that does not start with `tenant`",
        "ALTER TABLE {own}.field DROP CONSTRAINT oracle",
    ),
    plant(
        "ALTER TABLE insula.blob ADD CONSTRAINT oracle EXCLUDE (key_version WITH =)",
        "has the key `insula.oracle`",
        "ALTER TABLE insula.blob DROP CONSTRAINT oracle",
    ),
    plant(
        "CREATE EXTENSION btree_gist; ALTER TABLE insula.blob ADD CONSTRAINT oracle EXCLUDE USING gist (tenant WITH <>)",
        "has the exclusion constraint `oracle` that does not compare `tenant`",
        "DROP EXTENSION btree_gist CASCADE",
    ),
    plant(
        "CREATE UNIQUE INDEX oracle ON insula.blob (id);
         ALTER TABLE insula.outbox ADD CONSTRAINT reference FOREIGN KEY (entry) REFERENCES insula.blob (id)",
        "has the foreign key `reference` that does not start with `tenant` on both sides",
        "ALTER TABLE insula.outbox DROP CONSTRAINT reference; DROP INDEX insula.oracle",
    ),
    plant(
        "CREATE VIEW insula.peek AS SELECT * FROM insula.record; ALTER VIEW insula.peek OWNER TO {owner}",
        "insula.peek is a view that reads with its owner's rights",
        "DROP VIEW insula.peek",
    ),
    plant(
        "CREATE VIEW public.peek AS SELECT * FROM insula.record; CREATE VIEW public.further AS SELECT key FROM public.peek",
        "public.further is a view that reads with its owner's rights",
        "DROP VIEW public.further, public.peek",
    ),
    plant(
        "CREATE VIEW public.peek WITH (security_invoker = false) AS SELECT * FROM {own}.record",
        "public.peek is a view that reads with its owner's rights",
        "DROP VIEW public.peek",
    ),
    plant(
        "CREATE MATERIALIZED VIEW public.copy AS SELECT * FROM insula.record",
        "public.copy is a materialized view",
        "DROP MATERIALIZED VIEW public.copy",
    ),
    plant(
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE insula.far (a int) SERVER s;
         ALTER FOREIGN TABLE insula.far OWNER TO {owner}",
        "insula.far is a foreign table",
        "DROP FOREIGN DATA WRAPPER w CASCADE",
    ),
    plant("CREATE SEQUENCE insula.counter; ALTER SEQUENCE insula.counter OWNER TO {owner}", "insula.counter is a sequence", "DROP SEQUENCE insula.counter"),
    plant("CREATE TABLE public.part () INHERITS (insula.record)", "public.part is a partition or child of insula.record", "DROP TABLE public.part"),
    plant(
        "CREATE TABLE insula.whole (tenant uuid NOT NULL DEFAULT current_setting('insula.tenant')::uuid PRIMARY KEY) PARTITION BY HASH (tenant);
         CREATE TABLE insula.part PARTITION OF insula.whole FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        "insula.part is a partition or child of insula.whole",
        "DROP TABLE insula.whole",
    ),
    plant("ALTER TABLE insula.field SET UNLOGGED", "insula.field is not logged", "ALTER TABLE insula.field SET LOGGED"),
    plant("ALTER TABLE insula.field OWNER TO {super}", "insula.field belongs to", "ALTER TABLE insula.field OWNER TO {owner}"),
    plant("ALTER TABLE insula.field OWNER TO {own}", "insula.field belongs to `{own}`", "ALTER TABLE insula.field OWNER TO {owner}"),
    plant("ALTER SCHEMA {own} OWNER TO {own}", "schema {own} belongs to `{own}`, a role that serves", "ALTER SCHEMA {own} OWNER TO {owner}"),
    plant(
        "CREATE FUNCTION public.spy() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER spy BEFORE INSERT ON insula.record FOR EACH ROW EXECUTE FUNCTION public.spy()",
        "insula.record has the trigger `spy`",
        "DROP FUNCTION public.spy CASCADE",
    ),
    plant(
        "CREATE RULE spy AS ON DELETE TO insula_control.ticket DO INSTEAD NOTHING",
        "insula_control.ticket has the rule `spy`",
        "DROP RULE spy ON insula_control.ticket",
    ),
    plant(
        "CREATE FUNCTION insula.length(bytea) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "insula.length(bytea) is a function in a schema of ours",
        "DROP FUNCTION insula.length",
    ),
    plant(
        "CREATE FUNCTION public.all_keys() RETURNS SETOF text SECURITY DEFINER LANGUAGE sql AS 'SELECT key FROM insula.record'",
        "public.all_keys() is a function that runs with its owner's rights",
        "DROP FUNCTION public.all_keys",
    ),
    plant("GRANT SELECT ON insula.record TO PUBLIC", "insula.record grants SELECT to PUBLIC", "REVOKE SELECT ON insula.record FROM PUBLIC"),
    plant("GRANT SELECT ON insula.record TO {control}", "insula.record grants SELECT to {control}", "REVOKE SELECT ON insula.record FROM {control}"),
    plant("GRANT INSERT ON insula.record TO {own}", "insula.record grants INSERT to {own}", "REVOKE INSERT ON insula.record FROM {own}"),
    plant(
        "GRANT TRUNCATE, REFERENCES, TRIGGER ON insula.record TO {rows}",
        "insula.record grants TRUNCATE, REFERENCES, TRIGGER to {rows}",
        "REVOKE TRUNCATE, REFERENCES, TRIGGER ON insula.record FROM {rows}",
    ),
    plant(
        "GRANT SELECT ON insula.record TO {rows} WITH GRANT OPTION",
        "insula.record grants SELECT to {rows}",
        "REVOKE GRANT OPTION FOR SELECT ON insula.record FROM {rows}",
    ),
    plant(
        "GRANT SELECT (key) ON {own}.record TO {rows}",
        "{own}.record grants rights on its column `key`",
        "REVOKE SELECT (key) ON {own}.record FROM {rows}",
    ),
    plant(
        "GRANT SELECT ON insula_control.tenant_key TO {rows}",
        "insula_control.tenant_key grants SELECT to {rows}",
        "REVOKE SELECT ON insula_control.tenant_key FROM {rows}",
    ),
    plant(
        "GRANT UPDATE ON insula_control.migration TO {control}",
        "insula_control.migration grants UPDATE to {control}",
        "REVOKE UPDATE ON insula_control.migration FROM {control}",
    ),
    plant("GRANT USAGE ON SCHEMA {own} TO {rows}", "schema {own} grants USAGE to {rows}", "REVOKE USAGE ON SCHEMA {own} FROM {rows}"),
    plant("GRANT CREATE ON SCHEMA insula TO {rows}", "schema insula grants CREATE to {rows}", "REVOKE CREATE ON SCHEMA insula FROM {rows}"),
    plant("GRANT CREATE ON SCHEMA public TO PUBLIC", "schema public lets PUBLIC create", "REVOKE CREATE ON SCHEMA public FROM PUBLIC"),
    plant("GRANT TEMPORARY ON DATABASE {db} TO PUBLIC", "database {db} grants TEMPORARY to PUBLIC", "REVOKE TEMPORARY ON DATABASE {db} FROM PUBLIC"),
    plant("GRANT CREATE ON DATABASE {db} TO {rows}", "database {db} grants CREATE to {rows}", "REVOKE CREATE ON DATABASE {db} FROM {rows}"),
    plant(
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT SELECT ON TABLES TO PUBLIC",
        "the role {owner} will grant SELECT to PUBLIC",
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} REVOKE SELECT ON TABLES FROM PUBLIC",
    ),
    plant(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA insula GRANT ALL ON TABLES TO {control}",
        "schema insula will grant",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA insula REVOKE ALL ON TABLES FROM {control}",
    ),
    plant("CREATE PUBLICATION leak FOR TABLE insula.record", "publication leak publishes", "DROP PUBLICATION leak"),
    plant("CREATE PUBLICATION leak FOR TABLES IN SCHEMA {own}", "publication leak publishes", "DROP PUBLICATION leak"),
    plant("CREATE PUBLICATION leak FOR ALL TABLES", "publication leak publishes", "DROP PUBLICATION leak"),
    plant(
        "ALTER ROLE {rows} SET insula.tenant = '00000000-0000-0000-0000-000000000000'",
        "the role {rows} sets `insula.tenant`",
        "ALTER ROLE {rows} RESET insula.tenant",
    ),
    plant("ALTER DATABASE {db} SET session_replication_role = replica", "database {db} sets", "ALTER DATABASE {db} RESET session_replication_role"),
    plant("ALTER ROLE {own} BYPASSRLS", "the role {own} serves and has a right that goes beyond it", "ALTER ROLE {own} NOBYPASSRLS"),
    plant("GRANT {rows} TO {own}", "the role {own} serves and is a member of `{rows}`", "REVOKE {rows} FROM {own}"),
    plant(
        "CREATE ROLE {rows}_guest; GRANT {rows} TO {rows}_guest",
        "the role {rows} serves, and `{rows}_guest` is a member of it",
        "DROP ROLE {rows}_guest",
    ),
    plant(
        "CREATE FUNCTION public.peek(text) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true';
         ALTER TABLE insula.record ADD CONSTRAINT looks CHECK (public.peek(key))",
        "insula.record has the check `looks`",
        "ALTER TABLE insula.record DROP CONSTRAINT looks",
    ),
    plant(
        "CREATE INDEX looks ON insula.record (tenant, public.peek(key))",
        "has the index `insula.looks` on an expression or a condition",
        "DROP INDEX insula.looks",
    ),
    plant(
        "CREATE INDEX looks ON insula.record (tenant) WHERE public.peek(key)",
        "has the index `insula.looks` on an expression or a condition",
        "DROP INDEX insula.looks; DROP FUNCTION public.peek",
    ),
    plant(
        "CREATE ROLE {rows}_guest; CREATE FUNCTION public.lends() RETURNS SETOF text SECURITY DEFINER LANGUAGE sql AS 'SELECT key FROM insula.record';
         REVOKE EXECUTE ON FUNCTION public.lends FROM PUBLIC; GRANT EXECUTE ON FUNCTION public.lends TO {rows}_guest;
         ALTER FUNCTION public.lends OWNER TO {owner}",
        "and {rows}_guest may call it",
        "DROP FUNCTION public.lends; DROP ROLE {rows}_guest",
    ),
    plant("ALTER TABLE {own}.ledger_note RENAME TO elsewhere", "{own}.ledger_note is missing", "ALTER TABLE {own}.elsewhere RENAME TO ledger_note"),
];

#[tokio::test]
async fn each_planted_fault_stops_the_start() {
    let Some(scratch) = scratch().await else { return };
    let postgres = scratch.open().await;
    let tenant = tenant();
    postgres.provision(tenant, Tier::Schema, &password()).await.unwrap();
    let (db, own) = (scratch.name.as_str(), format!("t_{}", tenant.hex()));
    let named = |sql: &str| {
        let sql = sql.replace("{owner}", &format!("{db}_owner")).replace("{rows}", &format!("{db}_rows")).replace("{own}", &own);
        sql.replace("{control}", &format!("{db}_control")).replace("{super}", scratch.superuser.get_username()).replace("{db}", db)
    };
    for Plant { fault, message, cure } in PLANTS {
        scratch.plant(&named(fault)).await;
        let refused = refusal(Postgres::connect(&scratch.config).await);
        assert!(refused.contains(&named(message)), "{fault}\n{refused}");
        assert!(refused.contains("; remedy: "), "{refused}");
        scratch.plant(&named(cure)).await;
    }
    Postgres::connect(&scratch.config).await.unwrap();

    // All at once, not one after the other.
    scratch.plant("ALTER TABLE insula.blob DISABLE ROW LEVEL SECURITY; GRANT SELECT ON insula.field TO PUBLIC").await;
    let refused = refusal(Postgres::connect(&scratch.config).await);
    assert!(refused.contains("\n- insula.blob has no forced") && refused.contains("\n- insula.field grants SELECT to PUBLIC"), "{refused}");
    scratch.plant("ALTER TABLE insula.blob ENABLE ROW LEVEL SECURITY; REVOKE SELECT ON insula.field FROM PUBLIC").await;

    // A tenant's schema that an older version left.
    let place = format!("WHERE place = 't_{}'", tenant.hex());
    scratch.plant(&format!("CREATE TABLE public.kept AS SELECT * FROM insula_control.migration {place}")).await;
    scratch.plant(&format!("DELETE FROM insula_control.migration {place}")).await;
    assert!(refusal(Postgres::connect(&scratch.config).await).contains("are of an older version: run `insula migrate`"));
    scratch.plant("INSERT INTO insula_control.migration SELECT * FROM public.kept; DROP TABLE public.kept").await;
    postgres.destroy(tenant, Tier::Schema).await.unwrap();
    scratch.drop().await;
}

#[tokio::test]
async fn what_is_harmless_does_not_stop_the_start() {
    let Some(scratch) = scratch().await else { return };
    scratch.open().await;
    for harmless in [
        "CREATE VIEW public.polite WITH (security_invoker = true) AS SELECT key FROM insula.record",
        "CREATE VIEW public.foreigner AS SELECT relname FROM pg_class",
        "CREATE FUNCTION public.quiet() RETURNS int SECURITY DEFINER LANGUAGE sql AS 'SELECT 1'; REVOKE EXECUTE ON FUNCTION public.quiet FROM PUBLIC",
        "CREATE INDEX more ON insula.record (kind)",
        "CREATE UNIQUE INDEX fine ON insula.blob (tenant, sha256, id)",
    ] {
        scratch.plant(harmless).await;
        Postgres::connect(&scratch.config).await.unwrap();
    }
    scratch.drop().await;
}

#[tokio::test]
async fn a_tenants_own_database_is_checked_when_it_is_opened() {
    let Some(scratch) = scratch().await else { return };
    let postgres = scratch.open().await;
    let (tenant, password) = (tenant(), password());
    postgres.provision(tenant, Tier::Database, &password).await.unwrap();
    let own = scratch.superuser.clone().database(&format!("d_{}", tenant.hex()));
    for (fault, message, cure) in [
        (
            "ALTER TABLE insula.record NO FORCE ROW LEVEL SECURITY",
            "insula.record has no forced",
            "ALTER TABLE insula.record FORCE ROW LEVEL SECURITY",
        ),
        ("GRANT CONNECT ON DATABASE {own} TO {rows}", "grants CONNECT to", "REVOKE CONNECT ON DATABASE {own} FROM {rows}"),
        ("GRANT CONNECT ON DATABASE {own} TO PUBLIC", "grants CONNECT to PUBLIC", "REVOKE CONNECT ON DATABASE {own} FROM PUBLIC"),
        ("CREATE VIEW insula.peek AS SELECT * FROM insula.record", "insula.peek is a view", "DROP VIEW insula.peek"),
        ("UPDATE insula_control.migration SET sha256 = ''", "was changed after it was applied", "DELETE FROM insula_control.migration"),
    ] {
        let named = |sql: &str| sql.replace("{own}", &format!("d_{}", tenant.hex())).replace("{rows}", postgres.roles.rows.as_str());
        let mut connection = own.connect().await.unwrap();
        raw_sql(built(named(fault))).execute(&mut connection).await.unwrap();
        let fresh = Postgres::connect(&scratch.config).await.unwrap();
        let refused = refusal(fresh.rows(tenant, Tier::Database, Some(&password)).await);
        assert!(refused.contains(message), "{fault}\n{refused}");
        raw_sql(built(named(cure))).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
    let fresh = Postgres::connect(&scratch.config).await.unwrap();
    assert!(refusal(fresh.rows(tenant, Tier::Database, Some(&password)).await).contains("older version"), "the notes were deleted at last");
    assert!(refusal(Postgres::migrate(&scratch.config).await).contains("already exists"), "tables that nobody noted are not overwritten");
    postgres.destroy(tenant, Tier::Database).await.unwrap();
    scratch.drop().await;
}
