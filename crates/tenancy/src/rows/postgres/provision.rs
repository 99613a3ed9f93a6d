//! Makes and destroys what a tenant has on the server. Each can be cut off anywhere and be done again.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, query, raw_sql};

use super::ident::{Ident, Own, built};
use super::migrate::{Change, ROLE_EXISTS, connect, owner};
use crate::error::{Error, Result};
use crate::name::TenantId;
use crate::place::PostgresConfig;

/// How often, and after which pause, a database is tried to be dropped that somebody is connected to whom the owner cannot cut off.
const DROP_TRIES: u32 = 10;
const DROP_PAUSE: Duration = Duration::from_millis(500);

/// Every table of a tenant, the one with the generation last.
const EMPTY: [&str; 7] = [
    "DELETE FROM record WHERE tenant = current_setting('insula.tenant')::uuid",
    "DELETE FROM field WHERE tenant = current_setting('insula.tenant')::uuid",
    "DELETE FROM blob WHERE tenant = current_setting('insula.tenant')::uuid",
    "DELETE FROM outbox WHERE tenant = current_setting('insula.tenant')::uuid",
    "DELETE FROM ledger_segment WHERE tenant = current_setting('insula.tenant')::uuid",
    "DELETE FROM ledger_note WHERE tenant = current_setting('insula.tenant')::uuid",
    "DELETE FROM state WHERE tenant = current_setting('insula.tenant')::uuid",
];

/// A role, a schema or database, tables, rights, and the first rows.
pub(super) async fn provision(config: &PostgresConfig, tenant: TenantId, own: &Own, password: &str) -> Result<()> {
    let owner = owner(config)?;
    let mut connection = connect(&owner).await?;
    let mut done = Vec::new();
    let mut change = Change::begin(&mut connection).await?;
    change.login(&own.role, password, "a tenant's own role").await?;
    if let Some(database) = &own.database {
        change.commit().await?;
        database_made(&mut connection, database).await?;
        let mut there = connect(&owner.database(database.as_str())).await?;
        let mut change = Change::begin(&mut there).await?;
        change.tables(own, &mut done).await?;
        change.close_database("ALL", &[&own.role]).await?;
        change.state(&own.schema, tenant).await?;
        change.commit().await?;
        there.close().await?;
    } else {
        change.tables(own, &mut done).await?;
        change.state(&own.schema, tenant).await?;
        change.commit().await?;
    }
    Ok(connection.close().await?)
}

/// Whether [`provision`] came to its end.
pub(super) async fn made(config: &PostgresConfig, own: &Own) -> Result<bool> {
    let owner = owner(config)?;
    let mut connection = connect(&owner).await?;
    let mut change = Change::begin(&mut connection).await?;
    let mut made = change.exists(ROLE_EXISTS, own.role.as_str()).await?;
    if let Some(database) = &own.database {
        made = made && change.exists("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", database.as_str()).await?;
    }
    change.commit().await?;
    connection.close().await?;
    if let Some(database) = own.database.as_ref().filter(|_| made) {
        let mut there = connect(&owner.database(database.as_str())).await?;
        let mut change = Change::begin(&mut there).await?;
        made = change.exists("SELECT to_regclass($1 || '.state') IS NOT NULL", own.schema.as_str()).await?;
        change.commit().await?;
        there.close().await?;
    }
    Ok(made)
}

/// The reverse. Whoever is connected as the tenant's role is cut off.
pub(super) async fn destroy(config: &PostgresConfig, own: &Own) -> Result<()> {
    let owner = owner(config)?;
    let mut connection = connect(&owner).await?;
    let role = &own.role;
    let mut change = Change::begin(&mut connection).await?;
    let there = change.exists(ROLE_EXISTS, role.as_str()).await?;
    if there {
        // Nobody comes in any more, and the owner may end who is in.
        change.run(format!("ALTER ROLE {role} NOLOGIN; GRANT {role} TO CURRENT_USER")).await?;
    }
    change.commit().await?;
    let mut change = Change::begin(&mut connection).await?;
    change.exists("SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity WHERE usename = $1", role.as_str()).await?;
    change.commit().await?;
    if let Some(database) = &own.database {
        database_gone(&mut connection, &owner, own, database).await?;
    }
    let mut change = Change::begin(&mut connection).await?;
    if own.database.is_none() {
        change.run(format!("DROP SCHEMA IF EXISTS {} CASCADE", own.schema)).await?;
        change.forget(role).await?;
    }
    if there {
        change.run(format!("DROP OWNED BY {role}; DROP ROLE {role}")).await?;
    }
    change.commit().await?;
    Ok(connection.close().await?)
}

/// Drops a database. Its tables go first: should a pooler or a monitor of the operator hold the database, it holds an empty one.
async fn database_gone(connection: &mut PgConnection, owner: &PgConnectOptions, own: &Own, database: &Ident) -> Result<()> {
    let mut change = Change::begin(connection).await?;
    let there = change.exists("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", database.as_str()).await?;
    change.commit().await?;
    if !there {
        return Ok(());
    }
    let mut inside = connect(&owner.clone().database(database.as_str())).await?;
    let mut change = Change::begin(&mut inside).await?;
    change.run(format!("DROP SCHEMA IF EXISTS {} CASCADE", own.schema)).await?;
    change.commit().await?;
    inside.close().await?;
    for _ in 0..DROP_TRIES {
        let drop = format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)");
        match raw_sql(built(drop)).execute(&mut *connection).await {
            Ok(_) => return Ok(()),
            // 42501: the other one is a superuser, or of a role the owner has nothing to do with. 55006: he came back.
            Err(sqlx::Error::Database(inner)) if matches!(inner.code().as_deref(), Some("42501" | "55006")) => {
                tracing::warn!(error = inner.message(), "a tenant's database, empty by now, cannot be dropped while others use it");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(DROP_PAUSE).await;
    }
    Err(Error::Unavailable("the tenant's tables are gone, but somebody is connected to its empty database; end that and try again"))
}

/// Deletes all rows of the tenant whose transaction this is. The condition says it once more: should row-level security ever be off, this
/// must not delete everybody's.
pub(super) async fn empty(transaction: &mut PgConnection) -> Result<()> {
    raw_sql("SET LOCAL statement_timeout = 0").execute(&mut *transaction).await?;
    for delete in EMPTY {
        query(delete).persistent(false).execute(&mut *transaction).await?;
    }
    Ok(())
}

impl Change<'_> {
    /// Takes back the notes of a place that is gone.
    async fn forget(&mut self, place: &Ident) -> Result<()> {
        self.run(format!("DELETE FROM insula_control.migration WHERE place = '{}'", place.as_str())).await
    }
}

/// From the empty template: nothing that somebody left in the other one comes with it.
async fn database_made(connection: &mut PgConnection, database: &Ident) -> Result<()> {
    let create = format!("CREATE DATABASE {database} TEMPLATE template0 ENCODING 'UTF8'");
    match raw_sql(built(create)).execute(connection).await {
        Ok(_) => Ok(()),
        // 42P04: it is there already.
        Err(sqlx::Error::Database(inner)) if inner.code().as_deref() == Some("42P04") => Ok(()),
        Err(sqlx::Error::Database(inner)) if inner.code().as_deref() == Some("42501") => {
            Err(Error::Invalid(format!("owner_url: {}: ALTER ROLE … CREATEDB", inner.message())))
        }
        Err(error) => Err(error.into()),
    }
}
