//! What the server's catalogue must say before anything is served from it.

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, query_as, query_scalar};

use super::ident::Own;
use super::migrate::{CONTROL, ROWS, known};
use super::server::role_checked;
use super::{CONTROL_SCHEMA, POOLED_SCHEMA, Roles, not_connected};
use crate::error::{Error, Result};

/// The common database, as the control role sees it.
pub(super) async fn check(connection: &mut PgConnection, _roles: &Roles) -> Result<()> {
    if !query_scalar::<_, bool>("SELECT to_regclass('insula_control.migration') IS NOT NULL").fetch_one(&mut *connection).await? {
        return Err(Error::Invalid("the database has no tables yet: run `insula migrate`".to_owned()));
    }
    for (place, steps) in [(CONTROL_SCHEMA, CONTROL), (POOLED_SCHEMA, ROWS)] {
        let select = "SELECT name, sha256 FROM insula_control.migration WHERE place = $1 ORDER BY name";
        let applied: Vec<(String, String)> = query_as(select).bind(place).fetch_all(&mut *connection).await?;
        known(place, steps, &applied)?;
        if applied.len() < steps.len() {
            return Err(Error::Invalid(format!("the schema `{place}` is of an older version: run `insula migrate`")));
        }
    }
    Ok(())
}

/// A tenant's own database, as the tenant's role sees it.
pub(super) async fn check_own(options: &PgConnectOptions, own: &Own) -> Result<()> {
    let what = own.role.as_str();
    let mut connection = options.connect().await.map_err(|error| not_connected(error, what))?;
    role_checked(&mut connection, what).await?;
    Ok(connection.close().await?)
}
