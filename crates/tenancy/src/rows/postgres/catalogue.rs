//! What the server's catalogue must say before anything is served from it.
//!
//! Row-level security ends at many edges: a table without it, an owner, a view, a function with its owner's rights, a partition asked by
//! its own name, a key that tells what others have, a right that somebody was given. The rules lie in `catalogue.sql`, one query of the
//! catalogue; the service does not start before it finds nothing. All faults are listed at once, each with what to do about it.
//!
//! The common database is checked at every start, with all schemas of tenants in it; a tenant's own database when it is opened for the
//! first time after a start.

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, query_as, query_scalar, raw_sql};

use super::ident::Own;
use super::migrate::{CONTROL, OWN_SCHEMAS, ROWS, Steps, known};
use super::{CONTROL_SCHEMA, POOLED_SCHEMA, Roles, not_connected};
use crate::error::{Error, Result};

/// See there.
const RULES: &str = include_str!("catalogue.sql");
/// Faults that are written out.
const FAULTS_MAX: usize = 50;

/// The common database, as the control role sees it.
///
/// # Errors
/// [`Error::Invalid`] with every fault and its remedy.
pub(super) async fn check(connection: &mut PgConnection, roles: &Roles) -> Result<()> {
    up_to_date(connection, &[(CONTROL_SCHEMA, CONTROL), (POOLED_SCHEMA, ROWS)]).await?;
    let schemas: Vec<String> = query_scalar(OWN_SCHEMAS).persistent(false).fetch_all(&mut *connection).await?;
    let schemas: Vec<(&str, Steps)> = schemas.iter().map(|schema| (schema.as_str(), ROWS)).collect();
    up_to_date(connection, &schemas).await?;
    refuse(connection, [roles.rows.as_str(), roles.control.as_str()], false).await
}

/// A tenant's own database, as the tenant's role sees it.
///
/// # Errors
/// As [`check`].
pub(super) async fn check_own(options: &PgConnectOptions, own: &Own) -> Result<()> {
    let role = own.role.as_str();
    let mut connection = options.connect().await.map_err(|error| not_connected(error, role))?;
    let mut transaction = connection.begin().await?;
    up_to_date(&mut transaction, &[(role, ROWS)]).await?;
    refuse(&mut transaction, [role, role], true).await?;
    transaction.commit().await?;
    Ok(connection.close().await?)
}

/// Refuses places whose steps are not exactly ours.
async fn up_to_date(connection: &mut PgConnection, places: &[(&str, Steps)]) -> Result<()> {
    let there = "SELECT to_regclass('insula_control.migration') IS NOT NULL";
    if !query_scalar::<_, bool>(there).persistent(false).fetch_one(&mut *connection).await? {
        return Err(Error::Invalid("the database has no tables yet: run `insula migrate`".to_owned()));
    }
    let names: Vec<&str> = places.iter().map(|(place, _)| *place).collect();
    let select = "SELECT place, name, sha256 FROM insula_control.migration WHERE place = ANY ($1) ORDER BY place, name";
    let notes: Vec<(String, String, String)> = query_as(select).bind(names).persistent(false).fetch_all(connection).await?;
    let mut applied = std::collections::HashMap::<String, Vec<(String, String)>>::new();
    for (place, name, hash) in notes {
        applied.entry(place).or_default().push((name, hash));
    }
    for (place, steps) in places {
        let applied = applied.remove(*place).unwrap_or_default();
        known(place, steps, &applied)?;
        if applied.len() < steps.len() {
            return Err(Error::Invalid(format!("the tables of `{place}` are of an older version: run `insula migrate`")));
        }
    }
    Ok(())
}

/// Refuses what breaks a rule. `roles` use `insula` and `insula_control`; `own` says that the database is one tenant's.
async fn refuse(connection: &mut PgConnection, roles: [&str; 2], own: bool) -> Result<()> {
    let [rows, control] = roles;
    // So that names are shown with their schemas.
    raw_sql("SET LOCAL search_path = pg_catalog, pg_temp").execute(&mut *connection).await?;
    let rules = query_as(RULES).bind(rows).bind(control).bind(own).persistent(false);
    let faults: Vec<(String, String, String)> = rules.fetch_all(connection).await?;
    if faults.is_empty() {
        return Ok(());
    }
    let listed = faults.iter().take(FAULTS_MAX).map(|(object, fault, remedy)| format!("\n- {object} {fault}; remedy: {remedy}"));
    let listed: String = listed.collect();
    let more = faults.len().saturating_sub(FAULTS_MAX);
    let more = if more > 0 { format!("\n- and {more} more") } else { String::new() };
    Err(Error::Invalid(format!("the database does not keep tenants apart, so nothing is served from it:{listed}{more}")))
}
