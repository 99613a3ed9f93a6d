//! What a tenant's role can reach, really tried: for who wants to see the isolation hold.

use sqlx::{Row, query};

use super::ident::{Own, built};
use super::{CONTROL_SCHEMA, POOLED_SCHEMA, PgRows};
use crate::error::{Error, Result};
use crate::name::TenantId;
use crate::place::Tier;

/// Rows that are not the tenant's that is set.
const SEEN: &str = "SELECT count(*) FROM record WHERE tenant <> current_setting('insula.tenant')::uuid";

/// An attempt and what must come of it.
pub(crate) struct Probe {
    pub(crate) act: &'static str,
    pub(crate) target: String,
    /// Whether it must be refused.
    pub(crate) expected: bool,
    /// Run before, in the same transaction.
    before: Option<String>,
    sql: String,
    /// Refused if it gives this number.
    empty: bool,
}

/// How it ended.
pub(crate) struct Attempt {
    pub(crate) refused: bool,
    pub(crate) detail: String,
}

impl Probe {
    fn new(act: &'static str, target: impl Into<String>, sql: String) -> Self {
        Self { act, target: target.into(), expected: true, before: None, sql, empty: false }
    }

    fn after(self, before: String) -> Self {
        Self { before: Some(before), ..self }
    }

    fn empty(self) -> Self {
        Self { empty: true, ..self }
    }

    fn own(self) -> Self {
        Self { expected: false, ..self }
    }

    /// All attempts of a tenant of this tier on `others`.
    pub(crate) fn all(tier: Tier, others: &[(TenantId, Tier)]) -> Vec<Self> {
        let control = format!("{CONTROL_SCHEMA}.tenant");
        let mut probes = vec![
            Self::new("read", "its own rows", "SELECT count(*) FROM record".to_owned()).own(),
            Self::new("read", control.clone(), format!("SELECT count(*) FROM {control}")),
            Self::new("read a file of the server", "pg_read_file", "SELECT length(pg_read_file('PG_VERSION'))".to_owned()),
            Self::new("read passwords", "pg_authid", "SELECT count(*) FROM pg_authid".to_owned()),
            Self::new("read without a tenant", "rows", "SELECT count(*) FROM record".to_owned())
                .after("SET LOCAL insula.tenant = ''".to_owned()),
            Self::new("see other tenants' rows", "rows", SEEN.to_owned()).empty(),
        ];
        let databases = "SELECT count(*) FROM pg_database WHERE datname <> current_database() AND datname ~ '^d_[0-9a-f]{32}$' \
                         AND has_database_privilege(datname, 'CONNECT')";
        probes.push(Self::new("connect", "databases of other tenants", databases.to_owned()).empty());
        for (other, place) in others {
            let own = Own::of(*other, *place);
            let (schema, role) = own.as_ref().map_or((POOLED_SCHEMA, ""), |own| (own.schema.as_str(), own.role.as_str()));
            match place {
                Tier::Embedded => {}
                Tier::Pooled => {
                    let sql = format!("SELECT count(*) FROM {schema}.record");
                    let before = format!("SET LOCAL insula.tenant = '{}'", other.hex());
                    let probe = Self::new("read as another tenant", format!("pooled tenant {}", other.hex()), sql).after(before);
                    match tier {
                        // The one role of all pooled tenants: the server cannot tell them apart. Their values are sealed.
                        Tier::Pooled => probes.push(probe.own()),
                        // In its own database this schema is its own.
                        Tier::Database => probes.push(probe.empty()),
                        Tier::Embedded | Tier::Schema => probes.push(probe),
                    }
                }
                Tier::Schema => {
                    probes.push(Self::new("read", format!("schema {schema}"), format!("SELECT count(*) FROM \"{schema}\".record")));
                    probes.push(Self::new("become", format!("role {role}"), format!("SET LOCAL ROLE \"{role}\"")));
                }
                Tier::Database => probes.push(Self::new("become", format!("role {role}"), format!("SET LOCAL ROLE \"{role}\""))),
            }
        }
        probes
    }

    /// Tries it, in a transaction that is rolled back.
    pub(crate) async fn attempt(&self, rows: &PgRows) -> Result<Attempt> {
        let mut transaction = rows.begin().await?;
        if let Some(before) = &self.before {
            query(built(before.as_str())).persistent(false).execute(&mut *transaction).await?;
        }
        match query(built(self.sql.as_str())).persistent(false).fetch_optional(&mut *transaction).await {
            Ok(row) => {
                let count = row.and_then(|row| row.try_get::<i64, _>(0).ok());
                let detail = count.map_or_else(|| "done".to_owned(), |count| format!("{count} rows"));
                Ok(Attempt { refused: self.empty && count == Some(0), detail })
            }
            Err(sqlx::Error::Database(error)) => {
                let code = error.code().unwrap_or_default().into_owned();
                // Not allowed, not there, or no tenant; anything else proves nothing.
                let refused = ["42501", "42P01", "3F000", "22023", "22P02"].contains(&code.as_str());
                Ok(Attempt { refused, detail: format!("{code}: {}", error.message()) })
            }
            Err(error) => Err(Error::from(error)),
        }
    }
}
