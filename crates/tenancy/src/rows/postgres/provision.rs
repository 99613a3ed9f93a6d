//! Makes and destroys what a tenant has on the server. Each can be cut off anywhere and be done again.

use sqlx::postgres::PgConnection;
use sqlx::{Connection, query, query_scalar, raw_sql};

use super::ident::{Ident, Own, built};
use super::migrate::{Change, connect, owner};
use crate::error::{Error, Result};
use crate::name::TenantId;
use crate::place::PostgresConfig;

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
        change.close_database("ALL").await?;
        change.run(format!("GRANT CONNECT ON DATABASE {database} TO {}", own.role)).await?;
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

/// The reverse. Whoever is connected as the tenant's role is cut off.
pub(super) async fn destroy(config: &PostgresConfig, own: &Own) -> Result<()> {
    let owner = owner(config)?;
    let mut connection = connect(&owner).await?;
    let role = &own.role;
    let there = exists(&mut connection, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role).await?;
    if there {
        // Nobody comes in any more, and the owner may end who is in.
        let mut change = Change::begin(&mut connection).await?;
        change.run(format!("ALTER ROLE {role} NOLOGIN; GRANT {role} TO CURRENT_USER")).await?;
        change.commit().await?;
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1";
        query_scalar::<_, i64>(end).bind(role.as_str()).fetch_one(&mut connection).await?;
    }
    if let Some(database) = &own.database {
        raw_sql(built(format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)"))).execute(&mut connection).await?;
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
    if exists(connection, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", database).await? {
        return Ok(());
    }
    let create = format!("CREATE DATABASE {database} TEMPLATE template0 ENCODING 'UTF8'");
    match raw_sql(built(create)).execute(connection).await {
        Ok(_) => Ok(()),
        // 42P04: somebody was quicker.
        Err(sqlx::Error::Database(inner)) if inner.code().as_deref() == Some("42P04") => Ok(()),
        Err(sqlx::Error::Database(inner)) if inner.code().as_deref() == Some("42501") => {
            Err(Error::Invalid(format!("owner_url: {}: ALTER ROLE … CREATEDB", inner.message())))
        }
        Err(error) => Err(error.into()),
    }
}

async fn exists(connection: &mut PgConnection, select: &'static str, name: &Ident) -> Result<bool> {
    Ok(query_scalar(select).bind(name.as_str()).fetch_one(connection).await?)
}
