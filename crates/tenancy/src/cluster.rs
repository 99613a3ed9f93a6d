//! Several nodes on one PostgreSQL: which of them is home to which tenant.
//!
//! A tenant has one home at a time. Its lease is a row: the node, a *fence* that grows with every change of home, and an expiry by the
//! database's clock. All that a node holds is renewed by one statement. Who finds a lease free or expired takes it with the next fence;
//! who finds another node's tells its caller where to ask. The service itself is the tenant with id zero: its home is the leader.
//!
//! ```text
//! node a   acquire → fence 7 ── renew ── renew ── … paused …                  a commit with fence 7 is refused by the rows
//! node b                                   acquire: theirs … expired → fence 8 ── opens, writes 8 into the tenant's rows
//! ```
//!
//! Two things keep two nodes from serving one tenant. A node counts its leases as lost a margin before the database does, by a clock
//! that runs while it sleeps, and answers nothing from then on ([`Hold::alive`]): that needs clocks that run equally fast. And whoever
//! writes compares its fence with the one in the tenant's rows, in the same transaction: that needs nothing.
//!
//! Deliberately missing: election, quorum, gossip. PostgreSQL is the only judge; without it nobody is home anywhere.

mod sql;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Mutex as AsyncMutex;

use crate::error::{Error, Result};
use crate::name::TenantId;
use crate::place::{NodeConfig, Peer};
use crate::seal::{self, Key};
use sql::Found;
pub(crate) use sql::Pool;

/// A lease that is not renewed is free after this time.
pub(crate) const LEASE: Duration = Duration::from_secs(10);
/// Time between renewals.
pub(crate) const RENEW_EVERY: Duration = Duration::from_secs(2);
/// A node counts its leases as lost this long before they are.
const MARGIN: Duration = Duration::from_secs(1);
/// Longest wait for one renewal.
const RENEW_WAIT_MAX: Duration = Duration::from_secs(2);
/// A lease that was given up for a node that wants it waits this long for that node.
const WANTED_GRACE: Duration = Duration::from_secs(2);
/// Longest wait for a wanted tenant: its home lets go within a renewal, or is dead and its lease runs out.
const WANT_WAIT_MAX: Duration = Duration::from_secs(15);
const WANT_LOOK_EVERY: Duration = Duration::from_millis(100);
/// Races lost before [`Cluster::acquire`] gives up.
const TRIES_MAX: u32 = 4;
/// Longest wait for what is being closed here.
const LEAVING_WAIT_MAX: Duration = Duration::from_secs(5);
const LEAVING_LOOK_EVERY: Duration = Duration::from_millis(20);
/// Locks that keep one node from taking one tenant twice at once.
const TAKING_LOCKS: usize = 64;
/// Entries that wait for the leader; more are not kept.
const OUTBOX_MAX: i64 = 10_000;
/// Entries the leader takes over at once.
const OUTBOX_PAGE: i64 = 100;
/// The tenant whose home is the leader.
pub(crate) const SERVICE: TenantId = TenantId([0; 16]);

/// This node among the others.
pub(crate) struct Cluster {
    pool: Pool,
    node: NodeConfig,
    node_key: Key,
    outbox_key: Key,
    pulse: Arc<Pulse>,
    held: Mutex<HashMap<TenantId, Arc<Hold>>>,
    taking: Vec<AsyncMutex<()>>,
}

/// Until when this node may take itself for the home of what it holds.
#[derive(Default)]
struct Pulse(AtomicU64);

impl Pulse {
    /// A renewal that began then succeeded: every lease in it, and every lease taken later, lasts at least that long.
    fn renewed(&self, began_nanos: u64) {
        self.0.fetch_max(began_nanos.saturating_add(nanos(LEASE - MARGIN)), Ordering::AcqRel);
    }

    fn left(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Acquire).saturating_sub(now_nanos()))
    }
}

/// A tenant whose home is here.
pub(crate) struct Hold {
    tenant: TenantId,
    fence: u64,
    pulse: Arc<Pulse>,
    lost: AtomicBool,
    /// It is being closed: nobody begins anything by it.
    leaving: AtomicBool,
    /// Generation of the tenant's row that was taken up here.
    generation: AtomicU64,
}

impl Hold {
    /// Whose.
    pub(crate) fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Greater than that of every home before.
    pub(crate) fn fence(&self) -> u64 {
        self.fence
    }

    /// Whether the home is certainly still here.
    pub(crate) fn alive(&self) -> bool {
        !self.lost.load(Ordering::Acquire) && !self.pulse.left().is_zero()
    }

    /// Refuses when the home may be elsewhere.
    pub(crate) fn check(&self) -> Result<()> {
        if self.alive() {
            Ok(())
        } else {
            Err(Error::Unavailable("this node lost touch with the database, and another may serve the tenant: try again"))
        }
    }

    /// Nobody begins anything by it from now on; whether this is the first to say so.
    pub(crate) fn begin_leaving(&self) -> bool {
        !self.leaving.swap(true, Ordering::AcqRel)
    }

    /// Whether it is being closed, or was lost.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    fn lose(&self) -> bool {
        self.leaving.store(true, Ordering::Release);
        !self.lost.swap(true, Ordering::AcqRel)
    }

    /// The tenant's row as of this generation is in force here.
    pub(crate) fn taken_up(&self, generation: u64) {
        self.generation.fetch_max(generation, Ordering::AcqRel);
    }
}

/// What a renewal found. What is lost or idle stays in the way of a new lease until [`Cluster::forget`] or [`Cluster::release`].
#[derive(Default)]
pub(crate) struct Renewed {
    /// Homes that are here no more.
    pub(crate) lost: Vec<Arc<Hold>>,
    /// Homes that another node waits for.
    pub(crate) wanted: Vec<Arc<Hold>>,
    /// Homes whose tenant's row was changed since it was taken up.
    pub(crate) changed: Vec<Arc<Hold>>,
    /// Homes nobody uses.
    pub(crate) idle: Vec<Arc<Hold>>,
}

impl Cluster {
    /// Joins: writes this node down and reads it back.
    ///
    /// # Errors
    /// [`Error::Invalid`] when another node of this name lives elsewhere, [`Error::Unavailable`] without PostgreSQL.
    pub(crate) async fn join(pool: Pool, node: NodeConfig, control: &Key) -> Result<Self> {
        let cluster = Self {
            pool,
            node,
            node_key: control.derive("node", &[]),
            outbox_key: control.derive("service outbox", &[]),
            pulse: Arc::default(),
            held: Mutex::default(),
            taking: (0..TAKING_LOCKS).map(|_| AsyncMutex::default()).collect(),
        };
        let node = &cluster.node;
        if !cluster.pool.register(node, &cluster.mac(node)).await? {
            return Err(Error::Invalid(format!(
                "another node named `{}` lives at another address: give each node a name of its own",
                node.name
            )));
        }
        let stored = cluster.pool.node(&node.name).await?.ok_or_else(|| Error::integrity("the node's row is gone"))?;
        cluster.verified(stored)?;
        cluster.renew().await?;
        Ok(cluster)
    }

    /// This node.
    pub(crate) fn node(&self) -> &NodeConfig {
        &self.node
    }

    /// The tenant's home, if it is here.
    pub(crate) fn holding(&self, tenant: TenantId) -> Option<Arc<Hold>> {
        self.held.lock().get(&tenant).filter(|hold| hold.alive() && !hold.is_leaving()).map(Arc::clone)
    }

    /// Becomes home to the tenant, or stays it. `gained` runs before anybody can see that this node is home now.
    ///
    /// # Errors
    /// [`Error::Elsewhere`] when another node is home.
    pub(crate) async fn acquire(&self, tenant: TenantId, gained: impl Fn()) -> Result<Arc<Hold>> {
        if let Some(hold) = self.holding(tenant) {
            return Ok(hold);
        }
        let lock = tenant.0.last().copied().map_or(0, usize::from) % TAKING_LOCKS;
        let _one = self.taking.get(lock).ok_or_else(|| Error::internal("no lock"))?.lock().await;
        self.left_alone(tenant).await?;
        for _ in 0..TRIES_MAX {
            if let Some(hold) = self.holding(tenant) {
                return Ok(hold);
            }
            if self.pulse.left().is_zero() {
                return Err(Error::Unavailable("this node lost touch with the database: try again"));
            }
            match self.pool.home(tenant, &self.node.name).await? {
                Found::Node(row) => return Err(Error::Elsewhere(Box::new(self.verified(row)?))),
                Found::Unknown => return Err(Error::integrity("a lease of an unknown node")),
                Found::Free => {}
            }
            if let Some(fence) = self.pool.take(tenant, &self.node.name).await? {
                gained();
                let hold = Arc::new(Hold {
                    tenant,
                    fence,
                    pulse: Arc::clone(&self.pulse),
                    lost: AtomicBool::default(),
                    leaving: AtomicBool::default(),
                    generation: AtomicU64::default(),
                });
                self.held.lock().insert(tenant, Arc::clone(&hold));
                return Ok(hold);
            }
        }
        Err(Error::Unavailable("the tenant is changing its node: try again"))
    }

    /// Whether what this node has of the tenant is being closed.
    pub(crate) fn is_leaving(&self, tenant: TenantId) -> bool {
        self.held.lock().get(&tenant).is_some_and(|hold| hold.is_leaving())
    }

    /// Waits until what this node had of the tenant is closed.
    async fn left_alone(&self, tenant: TenantId) -> Result<()> {
        let began = now_nanos();
        while self.is_leaving(tenant) {
            if now_nanos().saturating_sub(began) > nanos(LEAVING_WAIT_MAX) {
                return Err(Error::Unavailable("the tenant is changing its node: try again"));
            }
            tokio::time::sleep(LEAVING_LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Becomes home to the tenant, asking whoever is home now to let go.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it is not let go of.
    pub(crate) async fn want(&self, tenant: TenantId, gained: impl Fn()) -> Result<Arc<Hold>> {
        let began = now_nanos();
        loop {
            match self.acquire(tenant, &gained).await {
                Err(Error::Elsewhere(_)) => {}
                result => return result,
            }
            if now_nanos().saturating_sub(began) > nanos(WANT_WAIT_MAX) {
                return Err(Error::Unavailable("the node that serves the tenant does not let go of it: try again, or stop that node"));
            }
            self.pool.want(tenant, &self.node.name).await?;
            tokio::time::sleep(WANT_LOOK_EVERY).await;
        }
    }

    /// Lets go: others may be home at once. What still holds it is dead from now on.
    pub(crate) async fn release(&self, hold: &Arc<Hold>) -> Result<()> {
        self.forget(hold);
        self.pool.release(hold.tenant, &self.node.name, hold.fence).await
    }

    /// The tenant is gone for good.
    pub(crate) async fn bury(&self, hold: &Arc<Hold>) -> Result<()> {
        self.forget(hold);
        self.pool.bury(hold.tenant, &self.node.name, hold.fence).await
    }

    /// It is not home here any more, whatever the database says.
    pub(crate) fn forget(&self, hold: &Arc<Hold>) {
        hold.lose();
        let mut held = self.held.lock();
        if held.get(&hold.tenant).is_some_and(|known| Arc::ptr_eq(known, hold)) {
            held.remove(&hold.tenant);
        }
    }

    /// Renews everything held, in one statement, and says what it found. After an error everything may be lost: ask
    /// [`Cluster::expired`].
    pub(crate) async fn renew(&self) -> Result<Renewed> {
        let began = now_nanos();
        let not_lost = |hold: &&Arc<Hold>| !hold.lost.load(Ordering::Acquire);
        let holds: Vec<_> = self.held.lock().values().filter(not_lost).map(Arc::clone).collect();
        let leases: Vec<_> = holds.iter().map(|hold| (hold.tenant, hold.fence)).collect();
        let renewing = self.pool.renew(&self.node.name, &leases);
        // When it is over, somebody must be there to say so.
        let left = self.pulse.left();
        let wait = if left.is_zero() { RENEW_WAIT_MAX } else { left.min(RENEW_WAIT_MAX) };
        let rows = tokio::time::timeout(wait, renewing).await;
        let rows = rows.map_err(|_| Error::Unavailable("the database does not answer; try again"))??;
        let Some(rows) = rows else { return Err(Error::integrity("the node's row is gone")) };
        let mut renewed = Renewed::default();
        for hold in &holds {
            let Some(row) = rows.get(&hold.tenant) else {
                if hold.lose() {
                    renewed.lost.push(Arc::clone(hold));
                }
                continue;
            };
            if hold.is_leaving() {
                continue;
            }
            if row.wanted {
                renewed.wanted.push(Arc::clone(hold));
            } else if row.generation.is_some_and(|generation| generation > hold.generation.load(Ordering::Acquire)) {
                renewed.changed.push(Arc::clone(hold));
            }
        }
        self.pulse.renewed(began);
        drop(holds);
        let held = self.held.lock();
        // Whoever serves by one holds it.
        let unused = held.values().filter(|hold| Arc::strong_count(hold) == 1 && hold.begin_leaving());
        renewed.idle = unused.map(Arc::clone).collect();
        Ok(renewed)
    }

    /// How long this node may still take itself for home without a renewal.
    pub(crate) fn left(&self) -> Duration {
        self.pulse.left()
    }

    /// Everything that is held, as lost: no renewal came in time.
    pub(crate) fn expired(&self) -> Vec<Arc<Hold>> {
        self.held.lock().values().filter(|hold| hold.lose()).map(Arc::clone).collect()
    }

    /// Which of these tenants have their home on another node.
    pub(crate) async fn elsewhere(&self, tenants: &[TenantId]) -> Result<Vec<TenantId>> {
        self.pool.elsewhere(tenants, &self.node.name).await
    }

    /// Frees tickets that nodes had claimed which do not live any more; how many.
    pub(crate) async fn tickets_free(&self) -> Result<u64> {
        self.pool.tickets_free().await
    }

    /// Leaves: everything held is free at once, and nobody waits for this node.
    pub(crate) async fn leave(&self) -> Result<()> {
        self.expired();
        self.held.lock().clear();
        self.pool.leave(&self.node.name).await
    }

    /// An entry for the service's ledger, which the leader will write; whether it was taken: beyond 10,000 that wait, none is.
    pub(crate) async fn outbox_put(&self, entry: &[u8]) -> Result<bool> {
        self.pool.outbox_put(&seal::seal(&self.outbox_key, b"entry", entry)?).await
    }

    /// Entries of other nodes, oldest first, by number. None in place of one that no node wrote.
    pub(crate) async fn outbox(&self) -> Result<Vec<(i64, Option<Vec<u8>>)>> {
        let rows = self.pool.outbox().await?;
        let opened = |sealed: &[u8]| seal::open(&self.outbox_key, b"entry", sealed).ok().map(|entry| entry.to_vec());
        Ok(rows.into_iter().map(|(id, sealed)| (id, opened(&sealed))).collect())
    }

    /// The ledger has these. By number, not up to one: a lower number can appear after a higher one.
    pub(crate) async fn outbox_done(&self, ids: &[i64]) -> Result<()> {
        self.pool.outbox_done(ids).await
    }

    /// The node, unless its row was changed.
    fn verified(&self, (node, mac): (NodeConfig, Vec<u8>)) -> Result<Peer> {
        if seal::same(&self.mac(&node), &mac) {
            return Ok(node);
        }
        Err(Error::integrity(format!("the row of node `{}` was changed; restart that node", node.name)))
    }

    fn mac(&self, node: &NodeConfig) -> [u8; 32] {
        seal::mac(&self.node_key, &[node.name.as_bytes(), node.url.as_bytes(), node.certificate_sha256.as_bytes()])
    }
}

/// Nanoseconds of a clock that never goes back and does not stop while the machine sleeps.
fn now_nanos() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or_default())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
