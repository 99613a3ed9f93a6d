//! What a server and a role on it must be before anything is served from there.

use sqlx::postgres::PgConnection;
use sqlx::query_as;

use crate::error::{Error, Result};

/// Newest minor version with a security fix that we know, by major version. A server below is refused, and so is an older major version.
/// A newer major version is taken as it is. Source: <https://www.postgresql.org/support/security/>.
const MINOR_MIN: [(i32, i32); 4] = [(15, 18), (16, 14), (17, 10), (18, 4)];
/// How `server_version_num` counts.
const MAJOR: i32 = 10_000;

/// Refuses a server with known holes.
pub(super) async fn version_checked(connection: &mut PgConnection) -> Result<()> {
    let select = "SELECT current_setting('server_version_num')::int4, current_setting('server_version')";
    let (number, name): (i32, String) = query_as(select).persistent(false).fetch_one(connection).await?;
    version_of(number, &name)
}

fn version_of(number: i32, name: &str) -> Result<()> {
    let (major, minor) = (number / MAJOR, number % MAJOR);
    let oldest = MINOR_MIN.first().map_or(i32::MAX, |(oldest, _)| *oldest);
    if major < oldest {
        return Err(Error::Invalid(format!("PostgreSQL {name} is too old: use {oldest} or newer")));
    }
    match MINOR_MIN.iter().find(|(known, _)| *known == major) {
        Some((_, wanted)) if minor < *wanted => {
            Err(Error::Invalid(format!("PostgreSQL {name} has known security holes: update the server to {major}.{wanted} or newer")))
        }
        _ => Ok(()),
    }
}

/// Refuses a server that forgets what it said is on disk.
pub(super) async fn durable_checked(connection: &mut PgConnection) -> Result<()> {
    let select = "SELECT current_setting('fsync'), current_setting('full_page_writes')";
    let (fsync, pages): (String, String) = query_as(select).persistent(false).fetch_one(connection).await?;
    durable(&fsync, &pages)
}

fn durable(fsync: &str, full_page_writes: &str) -> Result<()> {
    if [fsync, full_page_writes] == ["on", "on"] {
        return Ok(());
    }
    Err(Error::Invalid(
        "the server forgets what it acknowledged when its machine fails: set `fsync` and `full_page_writes` to `on`".to_owned(),
    ))
}

/// Refuses a role that could see or do more than it is for. `what` says where it comes from.
pub(super) async fn role_checked(connection: &mut PgConnection, what: &str) -> Result<()> {
    let (role, faults): (String, Vec<String>) = query_as(ROLE_FAULTS).persistent(false).fetch_one(connection).await?;
    if faults.is_empty() {
        return Ok(());
    }
    Err(Error::Invalid(format!("{what}: the role `{role}` cannot serve tenants: {}", faults.join("; "))))
}

/// Each fault with its remedy.
const ROLE_FAULTS: &str = "
    SELECT role.rolname::text, array_remove(ARRAY[
        CASE WHEN rolsuper THEN 'it is a superuser (ALTER ROLE … NOSUPERUSER)' END,
        CASE WHEN rolbypassrls THEN 'it bypasses row-level security (ALTER ROLE … NOBYPASSRLS)' END,
        CASE WHEN rolcreaterole THEN 'it may create roles (ALTER ROLE … NOCREATEROLE)' END,
        CASE WHEN rolcreatedb THEN 'it may create databases (ALTER ROLE … NOCREATEDB)' END,
        CASE WHEN current_setting('synchronous_commit') = 'off'
            THEN 'what it commits is not on disk (ALTER ROLE … RESET synchronous_commit, or set it to on in the server''s configuration)' END,
        CASE WHEN rolreplication THEN 'it may replicate (ALTER ROLE … NOREPLICATION)' END,
        (SELECT 'it is a member of ' || string_agg(quote_ident(other.rolname), ', ') || ' (REVOKE … FROM it)'
            FROM pg_auth_members JOIN pg_roles other ON other.oid = roleid WHERE member = role.oid),
        (SELECT 'it owns ' || string_agg(relation.oid::regclass::text, ', ') || ' (ALTER … OWNER TO the role of owner_url)'
            FROM pg_class relation WHERE relowner = role.oid AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')),
        (SELECT 'it owns the schema ' || string_agg(quote_ident(nspname), ', ') || ' (ALTER SCHEMA … OWNER TO the role of owner_url)'
            FROM pg_namespace WHERE nspowner = role.oid AND nspname !~ '^pg_(toast_)?temp_'),
        (SELECT 'it owns the function ' || string_agg(routine.oid::regprocedure::text, ', ') || ' (DROP it)'
            FROM pg_proc routine WHERE proowner = role.oid),
        (SELECT 'it owns the database ' || string_agg(quote_ident(datname), ', ') || ' (ALTER DATABASE … OWNER TO the role of owner_url)'
            FROM pg_database WHERE datdba = role.oid)
    ], NULL)
    FROM pg_roles role WHERE rolname = current_user";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_forgets_is_refused() {
        durable("on", "on").unwrap();
        for (fsync, pages) in [("off", "on"), ("on", "off")] {
            assert!(matches!(durable(fsync, pages), Err(Error::Invalid(_))));
        }
    }

    #[test]
    fn a_server_with_known_holes_is_refused() {
        let check = |number| version_of(number, "x");
        for refused in [90_624, 140_099, 150_017, 160_013, 170_009, 180_003] {
            assert!(matches!(check(refused), Err(Error::Invalid(_))), "{refused}");
        }
        for taken in [150_018, 150_099, 160_014, 170_010, 180_004, 190_000] {
            check(taken).unwrap();
        }
    }
}
