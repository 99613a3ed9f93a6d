//! PostgreSQL: pools, tiers, and what must hold there.

use sqlx::postgres::PgPool;
use sqlx::{Postgres, Transaction};

use super::sql::Prepared;
use crate::error::Result;

/// A handle on one place: a tenant's tables, or the control tables.
#[derive(Clone)]
pub(crate) struct PgRows {
    pool: PgPool,
    prepared: Prepared,
}

impl PgRows {
    /// Begins a transaction in the place, and in no other.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Postgres>> {
        Ok(self.pool.begin().await?)
    }

    /// Whether statements stay prepared.
    pub(crate) fn prepared(&self) -> Prepared {
        self.prepared
    }
}
