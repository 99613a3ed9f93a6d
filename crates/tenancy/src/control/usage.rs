//! Hours of use, by tenant and node: numbers for the tenant, the operator and the bill. Not protected by a MAC: they grant nothing.

use serde::{Deserialize, Serialize};

use super::{Control, protected};
use crate::error::{Error, Result};
use crate::name::TenantId;
use crate::rows::sql::{Param, Row};
use crate::usage::{Bucket, Usage};

/// Rows written in one transaction.
pub(crate) const USAGE_BATCH: usize = 500;
/// Rows of one page.
pub(crate) const USAGE_PAGE: u32 = 1_000;

/// An hour of a tenant on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UsageRow {
    pub(crate) tenant: TenantId,
    /// As it is now.
    pub(crate) name: String,
    /// When it begins, in seconds since 1970.
    pub(crate) hour: i64,
    pub(crate) node: String,
    pub(crate) usage: Usage,
}

/// What is added to such an hour.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UsageAdded {
    pub(crate) tenant: TenantId,
    pub(crate) hour: i64,
    pub(crate) usage: Usage,
    /// By which it is known: to the hour's last mark nothing is added.
    pub(crate) mark: u64,
}

/// As it lies there.
#[derive(Default, Serialize, Deserialize)]
struct Counts {
    #[serde(flatten)]
    usage: Usage,
    /// Of what was added last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<u64>,
}

impl Control {
    /// Adds what was used on this node, all of it or nothing; at most [`USAGE_BATCH`]. Of what may have been added before, nothing.
    pub(crate) async fn usage_add(&self, node: &str, used: &[UsageAdded]) -> Result<()> {
        let mut tx = self.begin().await?;
        for UsageAdded { tenant, hour, usage, mark } in used {
            let key: [Param<'_>; 3] = [(&tenant.0).into(), (*hour).into(), node.into()];
            let known = "SELECT counts FROM usage WHERE tenant = $1 AND hour = $2 AND node = $3";
            let known = tx.sql()?.optional(known, &key).await?;
            let mut counts = known.as_ref().map_or(Ok(Counts::default()), counts)?;
            if counts.mark == Some(*mark) {
                continue;
            }
            counts.usage.add(usage);
            counts.mark = Some(*mark);
            let json = serde_json::to_string(&counts).map_err(Error::internal)?;
            let [tenant, hour, node] = key;
            let params = [tenant, hour, node, (&json).into()];
            tx.execute(if known.is_some() { UPDATE } else { INSERT }, &params).await?;
        }
        tx.commit().await
    }

    /// A tenant's hours from `since` on, oldest first, all nodes together.
    pub(crate) async fn usage_of(&self, tenant: TenantId, since: i64) -> Result<Vec<Bucket>> {
        let mut reading = self.db.read().await?;
        let sql = "SELECT hour, counts FROM usage WHERE tenant = $1 AND hour >= $2 ORDER BY hour";
        let mut hours: Vec<Bucket> = Vec::new();
        for row in reading.sql()?.all(sql, &[(&tenant.0).into(), since.into()]).await? {
            let (at, usage) = (row.int("hour")?, counts(&row)?.usage);
            match hours.last_mut().filter(|last| last.at == at) {
                Some(last) => last.usage.add(&usage),
                None => hours.push(Bucket { at, usage }),
            }
        }
        Ok(hours)
    }

    /// A page of everybody's hours in `since..until`, behind `after`.
    pub(crate) async fn usage_page(&self, since: i64, until: i64, after: Option<&UsageRow>) -> Result<Vec<UsageRow>> {
        let (hour, tenant, node) = after.map_or((i64::MIN, [0; 16], ""), |row| (row.hour, row.tenant.0, row.node.as_str()));
        let mut reading = self.db.read().await?;
        let sql = "SELECT usage.tenant AS tenant, usage.hour AS hour, usage.node AS node, usage.counts AS counts, tenant.name AS name
             FROM usage JOIN tenant ON tenant.id = usage.tenant
             WHERE usage.hour >= $1 AND usage.hour < $2
               AND (usage.hour > $3 OR (usage.hour = $3 AND (usage.tenant > $4 OR (usage.tenant = $4 AND usage.node > $5))))
             ORDER BY usage.hour, usage.tenant, usage.node LIMIT $6";
        let params = [since.into(), until.into(), hour.into(), (&tenant).into(), node.into(), USAGE_PAGE.into()];
        let rows = reading.sql()?.all(sql, &params).await?;
        rows.iter()
            .map(|row| {
                Ok(UsageRow {
                    tenant: protected::id(row, "tenant")?,
                    name: row.text("name")?,
                    hour: row.int("hour")?,
                    node: row.text("node")?,
                    usage: counts(row)?.usage,
                })
            })
            .collect()
    }

    /// Forgets hours before `before`, and those of the erased.
    pub(crate) async fn usage_prune(&self, before: i64) -> Result<u64> {
        let mut tx = self.begin().await?;
        let sql = "DELETE FROM usage WHERE hour < $1 OR tenant IN (SELECT id FROM tenant WHERE state = 'erased')";
        let gone = tx.execute(sql, &[before.into()]).await?;
        if gone > 0 {
            tx.commit().await?;
        }
        Ok(gone)
    }

    /// Forgets a tenant's hours (erasure).
    pub(crate) async fn usage_destroy(&self, tenant: TenantId) -> Result<()> {
        let mut tx = self.begin().await?;
        tx.execute("DELETE FROM usage WHERE tenant = $1", &[(&tenant.0).into()]).await?;
        tx.commit().await
    }
}

const UPDATE: &str = "UPDATE usage SET counts = $4 WHERE tenant = $1 AND hour = $2 AND node = $3";
const INSERT: &str = "INSERT INTO usage (tenant, hour, node, counts) VALUES ($1, $2, $3, $4)";

fn counts(row: &Row) -> Result<Counts> {
    serde_json::from_str(&row.text("counts")?).map_err(Error::integrity)
}
