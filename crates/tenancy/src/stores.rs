//! The shared stores, looked at before a start.

use crate::blobs::check_s3;
use crate::error::Error;
use crate::place::{PostgresConfig, StoresConfig};
use crate::rows::postgres::Postgres;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreFinding {
    /// Whether the service may start with it.
    pub ok: bool,
    /// What was found.
    pub what: String,
    /// What to do when it is not right.
    pub remedy: Option<String>,
}

impl StoreFinding {
    pub(crate) fn good(what: impl Into<String>) -> Self {
        Self { ok: true, what: what.into(), remedy: None }
    }

    pub(crate) fn bad(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { ok: false, what: what.into(), remedy: Some(remedy.into()) }
    }
}

/// Looks at everything that a start would refuse, and at what a tenant's objects need; changes nothing. Nothing is found where no
/// shared store is configured.
pub async fn check_stores(config: &StoresConfig) -> Vec<StoreFinding> {
    let mut findings = Vec::new();
    if let Some(postgres) = &config.postgres {
        findings.push(check_postgres(postgres).await);
    }
    if let Some(s3) = &config.s3 {
        findings.extend(check_s3(s3).await);
    }
    findings
}

/// Version, roles and catalogue.
async fn check_postgres(config: &PostgresConfig) -> StoreFinding {
    match Postgres::connect(config).await {
        Ok(_) => StoreFinding::good("PostgreSQL answers, and its version, roles and tables keep tenants apart"),
        Err(Error::Invalid(text)) => StoreFinding::bad(
            format!("PostgreSQL: {text}"),
            "do what is named above; `insula migrate` makes roles, tables and rights as they must be",
        ),
        Err(Error::Unavailable(text)) => {
            StoreFinding::bad(format!("PostgreSQL: {text}"), "start the server, and check host, port, role and password of the URLs")
        }
        Err(error) => StoreFinding::bad(
            format!("PostgreSQL: {error}: {}", error.private().unwrap_or_default()),
            "look into the log of the database server; `insula migrate` makes what is missing",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_configured_is_nothing_found() {
        assert_eq!(check_stores(&StoresConfig::default()).await, []);
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_a_finding_with_a_remedy() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = |role: &str| crate::place::Secret::new(format!("postgres://{role}:p@127.0.0.1:{port}/x"));
        let postgres = PostgresConfig {
            rows_url: url("rows"),
            control_url: url("control"),
            owner_url: Some(url("owner")),
            prepared_statements: true,
            connections_pooled_max: 1,
            connections_tenant_max: 1,
            connections_dedicated_max: 1,
        };
        let config = StoresConfig { postgres: Some(postgres), ..StoresConfig::default() };
        let found = check_stores(&config).await;
        assert!(matches!(found.as_slice(), [one] if !one.ok && one.remedy.is_some()), "{found:?}");
    }
}
