//! Tenants' rows on a PostgreSQL server, in three tiers; and the service's own rows there.
//!
//! | tier | tables | role | set when a transaction begins |
//! |---|---|---|---|
//! | pooled | schema `insula`, shared | one for all, owns nothing | search path, tenant |
//! | schema | schema `t_<id>` | `t_<id>` | the same |
//! | database | schema `insula` of database `d_<id>` | `d_<id>` | the same |
//! | control | schema `insula_control` | one, owns nothing | search path; no tenant |
//!
//! Statements name no schema and no tenant. [`PgRows::begin`] says both in the very message that begins the transaction, and only for this
//! transaction, so that nothing of it is left on the connection afterwards, however it ends. Without a tenant every statement on tenants'
//! tables is an error. Row-level security is forced on all of them in all tiers.
//!
//! What this cannot do: whoever runs SQL of his own as the pooled role can set the tenant himself. No text of a user becomes SQL here
//! ([`crate::rows::sql`] takes constants), and values are sealed under the tenant's key, so such a reader finds sealed bytes. On the two
//! higher tiers the server's own rights end at the tenant.
//!
//! Behind a pooler in transaction mode (PgBouncer) all holds: no state of a session is used, and the only startup parameters sent are those
//! that PgBouncer tracks by itself (`client_encoding`, `DateStyle`, `TimeZone`, `application_name`). Prepared statements must be off
//! below PgBouncer 1.21.

mod catalogue;
mod dedicated;
mod ident;
mod migrate;
pub(crate) mod probe;
mod provision;
mod server;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashSet;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Transaction, query_scalar};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::sql::{ANSWER_MAX, Asked, Prepared};
use crate::error::{Error, Result};
use crate::name::TenantId;
use crate::place::{PostgresConfig, Secret, Tier};
use dedicated::{Dedicated, Turn};
use ident::{Ident, Own, built};

/// Where pooled tenants' tables lie, and a tenant's in a database of its own.
const POOLED_SCHEMA: &str = "insula";
/// Where the service's own tables lie.
const CONTROL_SCHEMA: &str = "insula_control";
/// How long anybody waits for a connection, or for a transaction to begin.
const ACQUIRE_WAIT_MAX: Duration = Duration::from_secs(5);
/// A connection that lay idle for longer is tried before it is used.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// How long a connection that is given back may take to end what was begun on it.
const RELEASE_WAIT_MAX: Duration = Duration::from_secs(5);
const IDLE_MAX: Duration = Duration::from_secs(600);
const LIFETIME_MAX: Duration = Duration::from_secs(1800);
/// Connections for the service's own rows.
const CONTROL_CONNECTIONS_MAX: u32 = 8;
/// Of the connections for pooled tenants one of them has this part for its readers, and at least so many.
const READERS_PART: u32 = 4;
const READERS_MIN: usize = 2;
/// Prepared statements that a connection keeps: more than there are.
const STATEMENTS_MAX: usize = 256;
/// The server ends a statement after this.
const STATEMENT_MAX: Duration = Duration::from_secs(30);
/// The server ends a wait for a lock after this.
const LOCK_MAX: Duration = Duration::from_secs(10);
/// The server ends a transaction in which nothing happens for this long.
const IDLE_IN_TRANSACTION_MAX: Duration = Duration::from_secs(60);
/// The rows that every place has from the start.
const STATE: &str = "INSERT INTO state (name, value) VALUES ('generation', 0), ('fence', 0) ON CONFLICT DO NOTHING";

/// A server, as the service uses it.
pub(crate) struct Postgres {
    config: PostgresConfig,
    roles: Roles,
    pooled: PgPool,
    control: PgPool,
    dedicated: Arc<Dedicated>,
    /// What tenants with roles of their own connect with, but for name, password and database.
    template: PgConnectOptions,
    prepared: Prepared,
    /// Databases of single tenants whose catalogue was checked since the start.
    checked: Mutex<HashSet<TenantId>>,
}

/// The two roles of a service.
struct Roles {
    rows: Ident,
    control: Ident,
}

impl Roles {
    fn of(config: &PostgresConfig) -> Result<Self> {
        let name = |url, what| Ident::parse(options(url, what)?.get_username(), what);
        let roles = Self { rows: name(&config.rows_url, "rows_url")?, control: name(&config.control_url, "control_url")? };
        if roles.rows == roles.control {
            let text = "rows_url and control_url name the same role: tenants' rows and the service's own need one each";
            return Err(Error::Invalid(text.to_owned()));
        }
        Ok(roles)
    }
}

impl Postgres {
    /// Connects, and refuses a server, a role or a catalogue that does not keep tenants apart.
    ///
    /// # Errors
    /// [`Error::Invalid`] with each fault and its remedy; [`Error::Unavailable`] if the server does not answer.
    pub(crate) async fn connect(config: &PostgresConfig) -> Result<Arc<Self>> {
        let roles = Roles::of(config)?;
        let prepared = if config.prepared_statements { Prepared::Kept } else { Prepared::Once };
        let with = |url: &Secret, what| -> Result<PgConnectOptions> {
            let capacity = if config.prepared_statements { STATEMENTS_MAX } else { 0 };
            Ok(options(url, what)?.statement_cache_capacity(capacity))
        };
        let (rows, control) = (with(&config.rows_url, "rows_url")?, with(&config.control_url, "control_url")?);
        let databases = (checked(&rows, "rows_url").await?, checked(&control, "control_url").await?);
        if databases.0 != databases.1 {
            let text = format!("rows_url names the database `{}` and control_url `{}`: it must be the same", databases.0, databases.1);
            return Err(Error::Invalid(text));
        }
        let postgres = Self {
            pooled: pool(rows.clone(), config.connections_pooled_max, IDLE_MAX),
            control: pool(control, CONTROL_CONNECTIONS_MAX, IDLE_MAX),
            dedicated: Arc::new(Dedicated::new(config.connections_dedicated_max, config.connections_tenant_max)),
            template: rows,
            config: config.clone(),
            roles,
            prepared,
            checked: Mutex::default(),
        };
        let mut transaction = postgres.control().begin().await?;
        catalogue::check(&mut transaction, &postgres.roles).await?;
        transaction.commit().answered(ANSWER_MAX).await?;
        Ok(Arc::new(postgres))
    }

    /// Brings the server up to date with the owner's role; says what was done. Nothing, if nothing is left to do.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the remedy.
    pub(crate) async fn migrate(config: &PostgresConfig) -> Result<Vec<String>> {
        migrate::migrate(config).await
    }

    /// Makes a place for a tenant's rows, empty. What a crash left half-made is completed; what is there already stays.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it takes the owner's role and `owner_url` is not set.
    pub(crate) async fn provision(&self, tenant: TenantId, tier: Tier, password: &str) -> Result<()> {
        match Own::of(tenant, tier) {
            Some(own) => {
                provision::provision(&self.config, tenant, &own, password).await?;
                // A pool from before would use the password from before.
                self.dedicated.forget(&own).await;
                Ok(())
            }
            None => {
                let mut transaction = self.rows(tenant, tier, None).await?.begin().await?;
                sqlx::query(STATE).persistent(false).execute(&mut *transaction).await?;
                transaction.commit().answered(ANSWER_MAX).await
            }
        }
    }

    /// Destroys a tenant's place with all that lies in it. Done before, it does nothing.
    ///
    /// # Errors
    /// As [`Postgres::provision`].
    pub(crate) async fn destroy(&self, tenant: TenantId, tier: Tier) -> Result<()> {
        match Own::of(tenant, tier) {
            Some(own) => {
                self.dedicated.forget(&own).await;
                self.checked.lock().remove(&tenant);
                provision::destroy(&self.config, &own).await
            }
            None => {
                let mut transaction = self.rows(tenant, tier, None).await?.begin().await?;
                provision::empty(&mut transaction).await?;
                transaction.commit().answered(ANSWER_MAX).await
            }
        }
    }

    /// Whether a tenant's place was never made, or nothing was ever committed there.
    ///
    /// # Errors
    /// When the server does not tell.
    pub(crate) async fn is_empty(&self, tenant: TenantId, tier: Tier, password: Option<&str>) -> Result<bool> {
        if let Some(own) = Own::of(tenant, tier)
            && !provision::made(&self.config, &own).await?
        {
            return Ok(true);
        }
        let mut transaction = self.rows(tenant, tier, password).await?.begin().await?;
        let select = query_scalar("SELECT value FROM state WHERE name = 'generation'").persistent(false);
        let generation: Option<i64> = select.fetch_optional(&mut *transaction).await?;
        Ok(generation.is_none_or(|generation| generation == 0))
    }

    /// A tenant's rows. `password` is that of the tenant's own role, where it has one.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the tenant's own database does not keep to the rules.
    pub(crate) async fn rows(&self, tenant: TenantId, tier: Tier, password: Option<&str>) -> Result<PgRows> {
        let begin = begin_text(Own::of(tenant, tier).as_ref().map_or(POOLED_SCHEMA, |own| own.schema.as_str()), Some(tenant));
        let Some(own) = Own::of(tenant, tier) else {
            if tier != Tier::Pooled {
                return Err(Error::internal("embedded rows do not lie on a server"));
            }
            let readers_max = usize::try_from(self.config.connections_pooled_max / READERS_PART).unwrap_or(usize::MAX).max(READERS_MIN);
            return Ok(PgRows { source: Source::Shared(self.pooled.clone()), readers_max, begin, prepared: self.prepared });
        };
        let password = password.ok_or_else(|| Error::internal("a tenant's own role without its password"))?;
        let mut options = self.template.clone().username(own.role.as_str()).password(password);
        if let Some(database) = &own.database {
            options = options.database(database.as_str());
            if !self.checked.lock().contains(&tenant) {
                catalogue::check_own(&options, &own).await?;
                self.checked.lock().insert(tenant);
            }
        }
        let readers_max = Semaphore::MAX_PERMITS;
        Ok(PgRows {
            source: Source::Own(Arc::clone(&self.dedicated), Arc::new((own, options))),
            readers_max,
            begin,
            prepared: self.prepared,
        })
    }

    /// The service's own rows.
    pub(crate) fn control(&self) -> PgRows {
        let (source, begin) = (Source::Shared(self.control.clone()), begin_text(CONTROL_SCHEMA, None));
        PgRows { source, readers_max: Semaphore::MAX_PERMITS, begin, prepared: self.prepared }
    }
}

/// A handle on one place: a tenant's tables, or the control tables.
#[derive(Clone)]
pub(crate) struct PgRows {
    source: Source,
    readers_max: usize,
    begin: Arc<str>,
    prepared: Prepared,
}

#[derive(Clone)]
enum Source {
    Shared(PgPool),
    Own(Arc<Dedicated>, Arc<(Own, PgConnectOptions)>),
}

/// A transaction, with its turn where tenants wait for each other.
pub(crate) struct PgTxn {
    // Ends before the turn does.
    transaction: Transaction<'static, sqlx::Postgres>,
    _turn: Option<Turn>,
}

impl PgTxn {
    /// Makes it durable.
    ///
    /// # Errors
    /// The server's.
    pub(crate) async fn commit(self) -> sqlx::Result<()> {
        self.transaction.commit().await
    }
}

impl Deref for PgTxn {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        &self.transaction
    }
}

impl DerefMut for PgTxn {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }
}

impl PgRows {
    /// Begins a transaction in the place, and in no other. Dropped without a commit, it is rolled back.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the server does not answer or all connections stay in use.
    pub(crate) async fn begin(&self) -> Result<PgTxn> {
        let mut tries = 0;
        loop {
            let (pool, turn) = match &self.source {
                Source::Shared(pool) => (pool.clone(), None),
                Source::Own(pools, own) => {
                    let turn = pools.turn(&own.0, &own.1).await?;
                    (turn.pool().clone(), Some(turn))
                }
            };
            tries += 1;
            match self.begin_on(&pool).await {
                // A server that was restarted leaves dead connections: they are passed over, all of them if need be.
                Err(Error::Unavailable(DEAD)) if tries <= pool.options().get_max_connections() => {}
                result => return result.map(|transaction| PgTxn { transaction, _turn: turn }),
            }
        }
    }

    /// The same place, for reading alone: all statements of a transaction see one moment.
    pub(crate) fn reading(&self) -> Self {
        let begin = format!("{}; SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY", self.begin);
        Self { begin: begin.into(), ..self.clone() }
    }

    /// How many may read here at once.
    pub(crate) fn readers_max(&self) -> usize {
        self.readers_max
    }

    /// Whether statements stay prepared.
    pub(crate) fn prepared(&self) -> Prepared {
        self.prepared
    }

    async fn begin_on(&self, pool: &PgPool) -> Result<Transaction<'static, sqlx::Postgres>> {
        let connection = pool.acquire().await.map_err(unavailable)?;
        let sql = sqlx::SqlSafeStr::into_sql_str(built(Arc::clone(&self.begin)));
        // A task of its own: if the caller goes away between the message and the answer, somebody must still see that the transaction
        // began, or nobody would end it.
        let began = tokio::spawn(Transaction::begin(connection, Some(sql)));
        let began = timeout(ACQUIRE_WAIT_MAX, began).await.map_err(|_| Error::Unavailable("the database does not answer; try again"))?;
        began.map_err(Error::internal)?.map_err(unavailable)
    }
}

/// Why another connection is worth a try.
const DEAD: &str = "the connection to the database broke; try again";

fn unavailable(error: sqlx::Error) -> Error {
    match error {
        sqlx::Error::PoolTimedOut => Error::Unavailable("all connections to the database are in use, or it does not answer; try again"),
        sqlx::Error::Io(_) | sqlx::Error::PoolClosed => Error::Unavailable(DEAD),
        // 57P01 and 57P02: the server said that it stops, and this was the first to hear it.
        sqlx::Error::Database(inner) if inner.code().is_some_and(|code| code == "57P01" || code == "57P02") => Error::Unavailable(DEAD),
        error => error.into(),
    }
}

/// One message: begins the transaction, and sets where and whose it is for as long as it lasts; and that what it commits is on disk then,
/// whatever somebody set for the role or the database.
fn begin_text(schema: &str, tenant: Option<TenantId>) -> Arc<str> {
    let tenant = tenant.map_or_else(String::new, |tenant| format!("; SET LOCAL insula.tenant = '{}'", tenant.hex()));
    let (statement, lock, idle) = (STATEMENT_MAX.as_millis(), LOCK_MAX.as_millis(), IDLE_IN_TRANSACTION_MAX.as_millis());
    format!(
        "BEGIN; SET LOCAL search_path = \"{schema}\", pg_temp; SET LOCAL synchronous_commit = on; SET LOCAL statement_timeout = {statement}; SET LOCAL lock_timeout = {lock}; \
         SET LOCAL idle_in_transaction_session_timeout = {idle}{tenant}"
    )
    .into()
}

/// Options of a URL of the configuration.
pub(crate) fn options(url: &Secret, what: &str) -> Result<PgConnectOptions> {
    let options = migrate::parsed(url.expose(), what)?;
    // No float is read here, and PgBouncer does not know the parameter. Statements in a log are noise.
    Ok(options.application_name("insula").extra_float_digits(None).disable_statement_logging())
}

/// A connection on which nothing comes any more is closed instead of given back: else the pool would count it for ever as in use.
pub(crate) fn release_bounded(options: PgPoolOptions) -> PgPoolOptions {
    options.after_release(|connection, _| {
        Box::pin(async move {
            // This also ends what was left open on it.
            let ended = timeout(RELEASE_WAIT_MAX, connection.ping()).await;
            ended.map_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()), |ended| ended.map(|()| true))
        })
    })
}

fn pool(options: PgConnectOptions, connections_max: u32, idle_max: Duration) -> PgPool {
    release_bounded(PgPoolOptions::new())
        .max_connections(connections_max.max(1))
        .acquire_timeout(ACQUIRE_WAIT_MAX)
        .idle_timeout(idle_max)
        .max_lifetime(LIFETIME_MAX)
        .test_before_acquire(false)
        .before_acquire(|connection, metadata| {
            Box::pin(async move {
                if metadata.idle_for > STALE_AFTER {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options)
}

/// Connects once to see that server and role will do; returns the name of the database.
async fn checked(options: &PgConnectOptions, what: &str) -> Result<String> {
    let mut connection = match timeout(ACQUIRE_WAIT_MAX, options.connect()).await {
        Ok(connected) => connected.map_err(|error| not_connected(error, what))?,
        Err(_) => return Err(Error::Unavailable("the database does not answer; try again")),
    };
    let mut transaction = connection.begin().await?;
    server::version_checked(&mut transaction).await?;
    server::durable_checked(&mut transaction).await?;
    server::role_checked(&mut transaction, what).await?;
    let select = query_scalar("SELECT current_database()::text").persistent(false);
    let database = select.fetch_one(&mut *transaction).await?;
    transaction.commit().answered(ANSWER_MAX).await?;
    connection.close().await?;
    Ok(database)
}

/// Why there is no connection, in the operator's words. `what` names the URL.
fn not_connected(error: sqlx::Error, what: &str) -> Error {
    match &error {
        // 28: authorization; 3D000: no such database; 42501: no CONNECT.
        sqlx::Error::Database(inner) if inner.code().is_some_and(|code| code.starts_with("28") || code == "3D000" || code == "42501") => {
            Error::Invalid(format!(
                "{what}: the server refuses the connection: {}; is the URL right, and did `insula migrate` run?",
                inner.message()
            ))
        }
        sqlx::Error::Tls(inner) => {
            Error::Invalid(format!("{what}: no TLS connection: {inner}; see `sslmode` and `sslrootcert` of the URL"))
        }
        // A certificate that does not verify.
        sqlx::Error::Io(inner) if inner.kind() == std::io::ErrorKind::InvalidData => {
            Error::Invalid(format!("{what}: no TLS connection: {inner}; see `sslmode` and `sslrootcert` of the URL"))
        }
        sqlx::Error::Configuration(inner) => Error::Invalid(format!("{what}: {inner}")),
        _ => error.into(),
    }
}
