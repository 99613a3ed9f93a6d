//! Brings a server up to date: roles, schemas, tables, rights; in every place where tenants' rows lie.
//!
//! Steps are plain SQL files, replayed in order, each at most once in each place, in one transaction with the note that it was done. The
//! notes lie in `insula_control.migration`, also in a tenant's own database. A step never changes once it was released: its hash is noted.
//!
//! Nothing here needs a superuser. The role of `owner_url` owns the database and may create roles (`CREATEROLE`) and, for tenants with a
//! database of their own, databases (`CREATEDB`). It serves nobody.

use std::str::FromStr;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, query, query_as, query_scalar, raw_sql};

use super::ident::{Ident, Own, built, scram};
use super::server::version_checked;
use super::{CONTROL_SCHEMA, POOLED_SCHEMA, Roles, options};
use crate::error::{Error, Result};
use crate::name::{TenantId, hex};
use crate::place::{PostgresConfig, Tier};

/// Steps of a schema in order: name, SQL text. Never changed once released, only added to.
pub(crate) type Steps = &'static [(&'static str, &'static str)];

/// Of tenants' rows.
pub(crate) const ROWS: Steps = &[("rows/0001", include_str!("../../../migrations/rows/postgres/0001.sql"))];
/// Of the service's own rows.
pub(crate) const CONTROL: Steps = &[
    ("control/0001", include_str!("../../../migrations/control/postgres/0001.sql")),
    ("control/0002", include_str!("../../../migrations/control/postgres/0002.sql")),
];

pub(super) const ROLE_EXISTS: &str = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)";
/// Held while a place is changed. A number of ours among the advisory locks of a database.
const LOCK: i64 = 0x696e_7375_6c61_0001;
/// How long a change waits for another, or for those who use a table.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(120);

/// Schemas of single tenants.
pub(super) const OWN_SCHEMAS: &str = "SELECT nspname::text FROM pg_namespace WHERE nspname ~ '^t_[0-9a-f]{32}$' ORDER BY 1";
/// Databases of single tenants on the server, if they belong to whom this one belongs to.
const OWN_DATABASES: &str = "SELECT datname::text FROM pg_database WHERE datname ~ '^d_[0-9a-f]{32}$'
    AND datdba = (SELECT datdba FROM pg_database WHERE datname = current_database()) ORDER BY 1";

const NOTES: &str = "CREATE TABLE IF NOT EXISTS insula_control.migration (
    place      text COLLATE \"C\" NOT NULL,
    name       text COLLATE \"C\" NOT NULL,
    sha256     text COLLATE \"C\" NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (place, name)
)";

/// Does all that is left to do on a server; says what it did.
///
/// # Errors
/// [`Error::Invalid`] with the remedy, if something of the configuration or the server stands in the way.
pub(super) async fn migrate(config: &PostgresConfig) -> Result<Vec<String>> {
    let owner = owner(config)?;
    let roles = Roles::of(config)?;
    let mut connection = connect(&owner).await?;
    let mut done = Vec::new();
    let mut change = Change::begin(&mut connection).await?;
    version_checked(&mut change.transaction).await?;
    owner_checked(&mut change.transaction, &roles).await?;
    change.roles(config, &roles, &mut done).await?;
    change.schemas(&[CONTROL_SCHEMA, POOLED_SCHEMA]).await?;
    change.steps(CONTROL_SCHEMA, CONTROL_SCHEMA, CONTROL, &mut done).await?;
    change.steps(POOLED_SCHEMA, POOLED_SCHEMA, ROWS, &mut done).await?;
    change.run("SET LOCAL search_path = pg_catalog, pg_temp".to_owned()).await?;
    change.grant(CONTROL_SCHEMA, &roles.control).await?;
    change.run(format!("REVOKE INSERT, UPDATE, DELETE ON insula_control.migration FROM {}", roles.control)).await?;
    change.grant(POOLED_SCHEMA, &roles.rows).await?;
    change.close_database("TEMPORARY", &[&roles.rows, &roles.control]).await?;
    let (schemas, databases) = (change.names(OWN_SCHEMAS).await?, change.names(OWN_DATABASES).await?);
    change.commit().await?;
    tenants(&mut connection, &owner, schemas, databases, &mut done).await?;
    connection.close().await?;
    Ok(done)
}

/// The owner's options.
pub(super) fn owner(config: &PostgresConfig) -> Result<PgConnectOptions> {
    let missing = "this needs the role that owns the tables: set `owner_url` of PostgreSQL";
    let url = config.owner_url.as_ref().ok_or_else(|| Error::Invalid(missing.to_owned()))?;
    options(url, "owner_url")
}

/// A connection for one piece of work.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection> {
    options.connect().await.map_err(|error| super::not_connected(error, "owner_url"))
}

/// A change of one database, in one transaction, one at a time.
pub(super) struct Change<'c> {
    transaction: sqlx::Transaction<'c, sqlx::Postgres>,
}

impl<'c> Change<'c> {
    /// Waits for any other change of this database.
    pub(super) async fn begin(connection: &'c mut PgConnection) -> Result<Self> {
        let mut transaction = connection.begin().await?;
        let wait = format!("SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = 0", LOCK_WAIT_MAX.as_millis());
        raw_sql(built(wait)).execute(&mut *transaction).await?;
        query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).persistent(false).execute(&mut *transaction).await?;
        Ok(Self { transaction })
    }

    /// Runs a statement.
    pub(super) async fn run(&mut self, sql: String) -> Result<()> {
        raw_sql(built(sql)).execute(&mut *self.transaction).await.map(drop).map_err(not_allowed)
    }

    /// The names that a query finds.
    async fn names(&mut self, select: &'static str) -> Result<Vec<String>> {
        Ok(query_scalar(select).persistent(false).fetch_all(&mut *self.transaction).await?)
    }

    /// Whether something with a name exists.
    pub(super) async fn exists(&mut self, select: &'static str, name: &str) -> Result<bool> {
        Ok(query_scalar(select).bind(name).persistent(false).fetch_one(&mut *self.transaction).await?)
    }

    /// Everything, or nothing.
    pub(super) async fn commit(self) -> Result<()> {
        Ok(self.transaction.commit().await?)
    }

    /// Makes a role that may log in, or gives it this password.
    pub(super) async fn login(&mut self, role: &Ident, password: &str, what: &str) -> Result<()> {
        let verifier = scram(password, what)?;
        let verb = if self.exists(ROLE_EXISTS, role.as_str()).await? { "ALTER" } else { "CREATE" };
        let rights = "LOGIN NOINHERIT NOCREATEDB NOCREATEROLE";
        self.run(format!("{verb} ROLE {role} {rights} PASSWORD '{verifier}'")).await
    }

    /// The roles of the two URLs, with the passwords that stand there. A role that is there keeps its password.
    async fn roles(&mut self, config: &PostgresConfig, roles: &Roles, done: &mut Vec<String>) -> Result<()> {
        for (role, url, what) in [(&roles.rows, &config.rows_url, "rows_url"), (&roles.control, &config.control_url, "control_url")] {
            if !self.exists(ROLE_EXISTS, role.as_str()).await? {
                self.login(role, &password_of(url.expose())?, what).await?;
                done.push(format!("role {}", role.as_str()));
            }
        }
        Ok(())
    }

    /// Makes schemas, and the table of notes, which is in every database.
    pub(super) async fn schemas(&mut self, names: &[&str]) -> Result<()> {
        for name in names {
            if !self.exists("SELECT to_regnamespace(quote_ident($1)) IS NOT NULL", name).await? {
                self.run(format!("CREATE SCHEMA \"{name}\"")).await?;
            }
        }
        if !self.exists("SELECT to_regclass($1) IS NOT NULL", "insula_control.migration").await? {
            self.run(NOTES.to_owned()).await?;
        }
        Ok(())
    }

    /// Replays the steps that a place does not have yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a step was changed after it was applied, or one was applied that we do not know.
    pub(super) async fn steps(&mut self, place: &str, schema: &str, steps: Steps, done: &mut Vec<String>) -> Result<()> {
        let select = "SELECT name, sha256 FROM insula_control.migration WHERE place = $1 ORDER BY name";
        let applied: Vec<(String, String)> = query_as(select).bind(place).persistent(false).fetch_all(&mut *self.transaction).await?;
        known(place, steps, &applied)?;
        for (name, sql) in steps.get(applied.len()..).unwrap_or_default().iter().copied() {
            self.run(format!("SET LOCAL search_path = \"{schema}\", pg_temp")).await?;
            raw_sql(sql).execute(&mut *self.transaction).await.map_err(not_allowed)?;
            let note = "INSERT INTO insula_control.migration (place, name, sha256) VALUES ($1, $2, $3)";
            query(note).bind(place).bind(name).bind(sha256(sql)).persistent(false).execute(&mut *self.transaction).await?;
            done.push(format!("{place}: {name}"));
        }
        Ok(())
    }

    /// Lets a role use the tables of a schema, and nothing else of it.
    pub(super) async fn grant(&mut self, schema: &str, role: &Ident) -> Result<()> {
        self.run(format!("GRANT USAGE ON SCHEMA \"{schema}\" TO {role}")).await?;
        self.run(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA \"{schema}\" TO {role}")).await
    }

    /// Takes a right on this database from everybody who has it for no reason; lets some in.
    pub(super) async fn close_database(&mut self, right: &str, roles: &[&Ident]) -> Result<()> {
        let select = "SELECT quote_ident(current_database())";
        let name: String = query_scalar(select).persistent(false).fetch_one(&mut *self.transaction).await?;
        self.run(format!("REVOKE {right} ON DATABASE {name} FROM PUBLIC")).await?;
        for role in roles {
            self.run(format!("GRANT CONNECT ON DATABASE {name} TO {role}")).await?;
        }
        if self.exists("SELECT to_regnamespace($1) IS NOT NULL", "public").await? {
            self.run("REVOKE ALL ON SCHEMA public FROM PUBLIC".to_owned()).await?;
        }
        Ok(())
    }

    /// A tenant's tables, empty, and the right to use them.
    pub(super) async fn tables(&mut self, own: &Own, done: &mut Vec<String>) -> Result<()> {
        self.schemas(&[CONTROL_SCHEMA, own.schema.as_str()]).await?;
        self.steps(own.role.as_str(), own.schema.as_str(), ROWS, done).await?;
        self.grant(own.schema.as_str(), &own.role).await?;
        if own.database.is_some() {
            // In the common database it is the control role that reads which steps were applied.
            self.run(format!("GRANT USAGE ON SCHEMA {CONTROL_SCHEMA} TO {}", own.role)).await?;
            self.run(format!("GRANT SELECT ON {CONTROL_SCHEMA}.migration TO {}", own.role)).await?;
        }
        Ok(())
    }

    /// The rows without which nothing is read; left alone if they are there.
    pub(super) async fn state(&mut self, schema: &Ident, tenant: TenantId) -> Result<()> {
        self.run(format!("SET LOCAL search_path = {schema}, pg_temp; SET LOCAL insula.tenant = '{}'", tenant.hex())).await?;
        query(super::STATE).persistent(false).execute(&mut *self.transaction).await?;
        Ok(())
    }
}

/// Refuses what was not applied by the steps we know. `applied` is (name, hash).
pub(super) fn known(place: &str, steps: Steps, applied: &[(String, String)]) -> Result<()> {
    for (at, (name, hash)) in applied.iter().enumerate() {
        match steps.get(at) {
            Some((ours, sql)) if ours == name && sha256(sql) == *hash => {}
            Some((ours, _)) if ours == name => {
                let text =
                    format!("`{place}`: the migration `{name}` was changed after it was applied; run the released version of the service");
                return Err(Error::Invalid(text));
            }
            _ => {
                let text = format!("`{place}`: the migration `{name}` is of a newer version of the service; run that version");
                return Err(Error::Invalid(text));
            }
        }
    }
    Ok(())
}

/// Refuses an owner that serves, or cannot own.
async fn owner_checked(connection: &mut PgConnection, roles: &Roles) -> Result<()> {
    let select = "SELECT current_user::text, pg_has_role(datdba, 'USAGE') AND has_database_privilege(datname, 'CREATE'),
        rolsuper OR rolcreaterole FROM pg_database, pg_roles WHERE datname = current_database() AND rolname = current_user";
    let (name, owns, creates): (String, bool, bool) = query_as(select).persistent(false).fetch_one(connection).await?;
    if name == roles.rows.as_str() || name == roles.control.as_str() {
        return Err(Error::Invalid(format!("owner_url: the role `{name}` also serves; it must be a third one")));
    }
    let refuse = |remedy: &str| Err(Error::Invalid(format!("owner_url: the role `{name}` {remedy}")));
    if !owns {
        return refuse("does not own the database: ALTER DATABASE … OWNER TO it");
    }
    if !creates {
        return refuse("may not create roles: ALTER ROLE … CREATEROLE");
    }
    Ok(())
}

/// Brings tenants' own schemas and databases up to date.
async fn tenants(
    connection: &mut PgConnection,
    owner: &PgConnectOptions,
    schemas: Vec<String>,
    databases: Vec<String>,
    done: &mut Vec<String>,
) -> Result<()> {
    for own in schemas.iter().filter_map(|name| own_of(name, Tier::Schema)) {
        let mut change = Change::begin(connection).await?;
        change.tables(&own, done).await?;
        change.commit().await?;
    }
    for own in databases.iter().filter_map(|name| own_of(name, Tier::Database)) {
        let mut there = connect(&owner.clone().database(own.role.as_str())).await?;
        let mut change = Change::begin(&mut there).await?;
        change.tables(&own, done).await?;
        change.commit().await?;
        there.close().await?;
    }
    Ok(())
}

fn own_of(name: &str, tier: Tier) -> Option<Own> {
    Own::of(TenantId::parse(name.get(2..)?)?, tier)
}

/// The password that stands in a URL.
fn password_of(url: &str) -> Result<zeroize::Zeroizing<String>> {
    let authority = url.split_once("://").and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    let encoded = user.split_once(':').map_or("", |(_, password)| password);
    let mut plain = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' { hex_pair(bytes.next(), bytes.next()) } else { Some(byte) };
        plain.push(byte.ok_or_else(|| Error::Invalid("a URL of PostgreSQL has a `%` that no two hex digits follow".to_owned()))?);
    }
    String::from_utf8(plain).map(Into::into).map_err(|_| Error::Invalid("a password of PostgreSQL is not UTF-8".to_owned()))
}

fn hex_pair(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// What the server refuses the owner.
fn not_allowed(error: sqlx::Error) -> Error {
    const INSUFFICIENT_PRIVILEGE: &str = "42501";
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    let Some(inner) = error.as_database_error() else { return error.into() };
    match inner.code().as_deref() {
        Some(INSUFFICIENT_PRIVILEGE) => Error::Invalid(format!(
            "owner_url: the server refused a change: {}; the role must own the database and have CREATEROLE and CREATEDB",
            inner.message()
        )),
        Some(LOCK_NOT_AVAILABLE) => Error::Unavailable("the tables are in use for too long; try again"),
        _ => error.into(),
    }
}

fn sha256(text: &str) -> String {
    hex(digest(&SHA256, text.as_bytes()).as_ref())
}

/// Parses a URL's options, for [`options`].
pub(super) fn parsed(url: &str, what: &str) -> Result<PgConnectOptions> {
    PgConnectOptions::from_str(url)
        .map_err(|_| Error::Invalid(format!("{what}: this is no URL of PostgreSQL (`postgres://role:password@host:port/database`)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_read_from_its_url() {
        let check = |url: &str, expected: &str| assert_eq!(password_of(url).unwrap().as_str(), expected, "{url}");
        check("postgres://role:secret@host:5432/db", "secret");
        check("postgres://role:a%40b%2Fc@host/db", "a@b/c");
        check("postgres://role@host/db", "");
        check("postgres:///db", "");
        assert!(password_of("postgres://role:a%4@host/db").is_err());
    }

    #[test]
    fn a_changed_or_unknown_step_is_refused() {
        let steps: Steps = &[("rows/0001", "SELECT 1"), ("rows/0002", "SELECT 2")];
        let note = |name: &str, sql: &str| (name.to_owned(), sha256(sql));
        known("insula", steps, &[]).unwrap();
        known("insula", steps, &[note("rows/0001", "SELECT 1")]).unwrap();
        let message = |applied: &[(String, String)]| known("insula", steps, applied).unwrap_err().to_string();
        assert!(message(&[note("rows/0001", "SELECT 3")]).contains("was changed after it was applied"));
        let newer = [note("rows/0001", "SELECT 1"), note("rows/0002", "SELECT 2"), note("rows/0003", "SELECT 3")];
        assert!(message(&newer).contains("newer version"));
    }
}
