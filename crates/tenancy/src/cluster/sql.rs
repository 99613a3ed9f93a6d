//! The statements of the leases: one each, so that no transaction is held open, and each names its schema, so that it works behind a
//! pooler.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgPool, PgPoolOptions, PgRow};
use sqlx::{Postgres, Row, query};

use super::{LEASE, OUTBOX_MAX, OUTBOX_PAGE, WANTED_GRACE};
use crate::error::{Error, Result};
use crate::name::TenantId;
use crate::place::{NodeConfig, PostgresConfig};
use crate::rows::postgres::{options, release_bounded};
use crate::rows::sql::{Asked, Prepared};

const CONNECTIONS_MAX: u32 = 4;
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(2);
/// Statements here are small, and nothing waits for another for long.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Prepared statements that a connection keeps: more than there are.
const STATEMENTS_MAX: usize = 64;

/// A node and its MAC, as stored.
pub(super) type NodeRow = (NodeConfig, Vec<u8>);

/// Who is home to a tenant.
pub(super) enum Found {
    /// Nobody, or this node in an earlier life.
    Free,
    /// Another node.
    Node(NodeRow),
    /// A node without a row.
    Unknown,
}

/// A lease as renewed.
pub(super) struct Lease {
    /// Another node waits for it.
    pub(super) wanted: bool,
    /// `epoch_generation` of the tenant's row; none for the service.
    pub(super) generation: Option<u64>,
}

/// Connections of the control role, for the leases alone: no renewal waits for other work.
pub(crate) struct Pool {
    pool: PgPool,
    prepared: Prepared,
}

impl Pool {
    /// Connects when first asked.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a URL that is none.
    pub(crate) fn new(config: &PostgresConfig) -> Result<Self> {
        let (prepared, statements) = if config.prepared_statements { (Prepared::Kept, STATEMENTS_MAX) } else { (Prepared::Once, 0) };
        let options = options(&config.control_url, "control_url")?.statement_cache_capacity(statements);
        let pool = release_bounded(PgPoolOptions::new().max_connections(CONNECTIONS_MAX).acquire_timeout(CONNECT_WAIT_MAX));
        Ok(Self { pool: pool.connect_lazy_with(options), prepared })
    }

    fn query<'q>(&self, sql: &'static str) -> sqlx::query::Query<'q, Postgres, PgArguments> {
        query(sql).persistent(self.prepared == Prepared::Kept)
    }

    /// Writes a node down; false if one of this name lives at another address.
    pub(super) async fn register(&self, node: &NodeConfig, mac: &[u8]) -> Result<bool> {
        let registering = self.query(
            "INSERT INTO insula_control.node AS n (name, url, certificate_sha256, seen_at, mac) VALUES ($1, $2, $3, clock_timestamp(), $4)
             ON CONFLICT (name) DO UPDATE SET url = $2, certificate_sha256 = $3, seen_at = clock_timestamp(), mac = $4
             WHERE n.url = $2 OR n.seen_at IS NULL OR n.seen_at < clock_timestamp() - $5::interval",
        );
        let registering = registering.bind(&node.name).bind(&node.url).bind(&node.certificate_sha256).bind(mac).bind(LEASE);
        Ok(registering.execute(&self.pool).answered(ANSWER_MAX).await?.rows_affected() == 1)
    }

    pub(super) async fn node(&self, name: &str) -> Result<Option<NodeRow>> {
        let row = self.query("SELECT name, url, certificate_sha256, mac FROM insula_control.node WHERE name = $1").bind(name);
        row.fetch_optional(&self.pool).answered(ANSWER_MAX).await?.map(|row| node(&row)).transpose()
    }

    /// Who is home: whose lease has not run out, or for whom it was just let go of.
    pub(super) async fn home(&self, tenant: TenantId, me: &str) -> Result<Found> {
        let row = self.query(
            "SELECT h.holder, n.name, n.url, n.certificate_sha256, n.mac FROM (
                 SELECT CASE WHEN expires_at > clock_timestamp() THEN node
                             WHEN expires_at > clock_timestamp() - $2::interval THEN wanted_by END AS holder
                 FROM insula_control.lease WHERE tenant = $1) AS h
             LEFT JOIN insula_control.node AS n ON n.name = h.holder",
        );
        let row = row.bind(tenant.0.as_slice()).bind(WANTED_GRACE).fetch_optional(&self.pool).answered(ANSWER_MAX).await?;
        let Some(row) = row else { return Ok(Found::Free) };
        let holder: Option<String> = row.try_get("holder")?;
        let name: Option<String> = row.try_get("name")?;
        Ok(match (holder, name) {
            (None, _) => Found::Free,
            (Some(holder), _) if holder == me => Found::Free,
            (Some(_), None) => Found::Unknown,
            (Some(_), Some(_)) => Found::Node(node(&row)?),
        })
    }

    /// Takes a lease that is free, run out, or this node's from an earlier life; the new fence, unless somebody was faster.
    pub(super) async fn take(&self, tenant: TenantId, me: &str) -> Result<Option<u64>> {
        let taking = self.query(
            "INSERT INTO insula_control.lease AS l (tenant, node, fence, expires_at) VALUES ($1, $2, 1, clock_timestamp() + $3::interval)
             ON CONFLICT (tenant) DO UPDATE SET node = $2, fence = l.fence + 1, expires_at = clock_timestamp() + $3::interval, wanted_by = NULL
             WHERE l.node = $2 OR (l.expires_at <= clock_timestamp()
                 AND (l.wanted_by IS NULL OR l.wanted_by = $2 OR l.expires_at <= clock_timestamp() - $4::interval))
             RETURNING fence",
        );
        let row = taking
            .bind(tenant.0.as_slice())
            .bind(me)
            .bind(LEASE)
            .bind(WANTED_GRACE)
            .fetch_optional(&self.pool)
            .answered(ANSWER_MAX)
            .await?;
        row.map(|row| u64::try_from(row.try_get::<i64, _>("fence")?).map_err(Error::integrity)).transpose()
    }

    pub(super) async fn want(&self, tenant: TenantId, me: &str) -> Result<()> {
        let wanting =
            self.query("UPDATE insula_control.lease SET wanted_by = $2 WHERE tenant = $1 AND node <> $2 AND wanted_by IS DISTINCT FROM $2");
        wanting.bind(tenant.0.as_slice()).bind(me).execute(&self.pool).answered(ANSWER_MAX).await?;
        Ok(())
    }

    /// Renews these (tenant, fence), and that the node lives. What does not come back is lost; none if the node's row is gone.
    pub(super) async fn renew(&self, me: &str, leases: &[(TenantId, u64)]) -> Result<Option<HashMap<TenantId, Lease>>> {
        let tenants: Vec<Vec<u8>> = leases.iter().map(|(tenant, _)| tenant.0.to_vec()).collect();
        let fences: Vec<i64> = leases.iter().map(|(_, fence)| i64::try_from(*fence).unwrap_or(i64::MAX)).collect();
        let renewing = self.query(
            "WITH due AS (SELECT * FROM unnest($2::bytea[], $3::bigint[]) AS d (tenant, fence)),
                  here AS (UPDATE insula_control.node SET seen_at = clock_timestamp() WHERE name = $1 RETURNING name),
                  renewed AS (UPDATE insula_control.lease AS l SET expires_at = clock_timestamp() + $4::interval
                      FROM due WHERE l.tenant = due.tenant AND l.fence = due.fence AND l.node = $1
                      RETURNING l.tenant, l.wanted_by IS NOT NULL AND l.wanted_by <> $1 AS wanted)
             SELECT r.tenant, r.wanted, t.epoch_generation
             FROM here LEFT JOIN renewed AS r ON true LEFT JOIN insula_control.tenant AS t ON t.id = r.tenant",
        );
        let rows = renewing.bind(me).bind(tenants).bind(fences).bind(LEASE).fetch_all(&self.pool).answered(ANSWER_MAX).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let Some(tenant) = row.try_get::<Option<Vec<u8>>, _>("tenant")? else { continue };
            let generation: Option<i64> = row.try_get("epoch_generation")?;
            let generation = generation.map(|number| u64::try_from(number).unwrap_or_default());
            found.insert(tenant_id(tenant)?, Lease { wanted: row.try_get("wanted")?, generation });
        }
        Ok(Some(found))
    }

    pub(super) async fn release(&self, tenant: TenantId, me: &str, fence: u64) -> Result<()> {
        let releasing = self.query(
            "UPDATE insula_control.lease SET node = NULL, expires_at = clock_timestamp() WHERE tenant = $1 AND node = $2 AND fence = $3",
        );
        let fence = i64::try_from(fence).map_err(Error::internal)?;
        releasing.bind(tenant.0.as_slice()).bind(me).bind(fence).execute(&self.pool).answered(ANSWER_MAX).await?;
        Ok(())
    }

    pub(super) async fn bury(&self, tenant: TenantId, me: &str, fence: u64) -> Result<()> {
        let burying = self.query("DELETE FROM insula_control.lease WHERE tenant = $1 AND node = $2 AND fence = $3");
        let fence = i64::try_from(fence).map_err(Error::internal)?;
        burying.bind(tenant.0.as_slice()).bind(me).bind(fence).execute(&self.pool).answered(ANSWER_MAX).await?;
        Ok(())
    }

    /// Gives up everything of this node's, also of an earlier life, and says that it does not live.
    pub(super) async fn leave(&self, me: &str) -> Result<()> {
        let leaving = self.query(
            "WITH gone AS (UPDATE insula_control.node SET seen_at = '-infinity' WHERE name = $1)
             UPDATE insula_control.lease SET node = NULL, expires_at = clock_timestamp() WHERE node = $1",
        );
        leaving.bind(me).execute(&self.pool).answered(ANSWER_MAX).await?;
        Ok(())
    }

    pub(super) async fn elsewhere(&self, tenants: &[TenantId], me: &str) -> Result<Vec<TenantId>> {
        let asked: Vec<Vec<u8>> = tenants.iter().map(|tenant| tenant.0.to_vec()).collect();
        let rows = self.query(
            "SELECT tenant FROM insula_control.lease WHERE tenant = ANY($1::bytea[]) AND node <> $2 AND expires_at > clock_timestamp()",
        );
        let rows = rows.bind(asked).bind(me).fetch_all(&self.pool).answered(ANSWER_MAX).await?;
        rows.iter().map(|row| tenant_id(row.try_get("tenant")?)).collect()
    }

    /// Frees tickets that nodes had claimed which do not live any more; how many.
    pub(super) async fn tickets_free(&self) -> Result<u64> {
        let freeing = self.query(
            "UPDATE insula_control.ticket AS t SET claimed_by = NULL WHERE claimed_by IS NOT NULL AND NOT EXISTS
             (SELECT FROM insula_control.node AS n WHERE n.name = t.claimed_by AND n.seen_at > clock_timestamp() - $1::interval)",
        );
        Ok(freeing.bind(LEASE).execute(&self.pool).answered(ANSWER_MAX).await?.rows_affected())
    }

    pub(super) async fn outbox_put(&self, entry: &[u8]) -> Result<bool> {
        let putting = self.query(
            "INSERT INTO insula_control.service_outbox (entry)
             SELECT $1 WHERE (SELECT count(*) FROM insula_control.service_outbox) < $2",
        );
        Ok(putting.bind(entry).bind(OUTBOX_MAX).execute(&self.pool).answered(ANSWER_MAX).await?.rows_affected() == 1)
    }

    pub(super) async fn outbox(&self) -> Result<Vec<(i64, Vec<u8>)>> {
        let rows = self.query("SELECT id, entry FROM insula_control.service_outbox ORDER BY id LIMIT $1").bind(OUTBOX_PAGE);
        rows.fetch_all(&self.pool).answered(ANSWER_MAX).await?.iter().map(|row| Ok((row.try_get("id")?, row.try_get("entry")?))).collect()
    }

    pub(super) async fn outbox_done(&self, ids: &[i64]) -> Result<()> {
        let done = self.query("DELETE FROM insula_control.service_outbox WHERE id = ANY($1::bigint[])");
        done.bind(ids).execute(&self.pool).answered(ANSWER_MAX).await?;
        Ok(())
    }
}

fn tenant_id(bytes: Vec<u8>) -> Result<TenantId> {
    bytes.try_into().map(TenantId).map_err(|_| Error::integrity("a lease of no tenant"))
}

fn node(row: &PgRow) -> Result<NodeRow> {
    let node = NodeConfig { name: row.try_get("name")?, url: row.try_get("url")?, certificate_sha256: row.try_get("certificate_sha256")? };
    Ok((node, row.try_get("mac")?))
}
