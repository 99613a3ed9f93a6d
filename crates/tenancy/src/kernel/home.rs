//! Several nodes: the kernel's part. Nothing is opened here whose home is elsewhere; what the lease says is done to what is open.
//!
//! | the lease | what happens |
//! |---|---|
//! | gained | credentials remembered from an earlier time are forgotten, then the tenant may be opened |
//! | wanted by another node | the tenant's last entries are shipped, it is closed, its cells are stopped, then it is let go of |
//! | lost | frozen at once, nothing more is written, its cells are stopped |
//! | its tenant changed | the row is read again: limits are taken up, a tenant that takes no requests is closed |
//! | used by nobody | let go of |
//!
//! The service's own ledger is open where the leader is: the home of tenant zero. Other nodes hand it what they count.

#[cfg(test)]
mod tests;

use super::*;
use crate::cluster::{Cluster, Hold, RENEW_EVERY, SERVICE};
use crate::erasure::Compute;
use crate::quota::IsolationClass;
use crate::rows::db::TAKEN_OVER;
use crate::tenant::IslandToken;

/// Time between tries while the database cannot be reached.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// Locked by the node whose data folder it is.
const NODE_LOCK: &str = "node.lock";
const NOT_LEADING: Error = Error::Unavailable("this node does not lead the service now: try again");

/// The node among others; what of the kernel exists only where there are several.
pub(crate) struct Home {
    pub(crate) cluster: Cluster,
    keeper: Mutex<Option<tokio::task::JoinHandle<()>>>,
    keeper_stop: Arc<Notify>,
    /// One round of the leader's duties at a time.
    duties: Arc<AsyncMutex<()>>,
    _folder: Option<std::fs::File>,
}

impl Home {
    pub(super) fn new(cluster: Cluster, folder: Option<std::fs::File>) -> Self {
        Self { cluster, keeper: Mutex::default(), keeper_stop: Arc::default(), duties: Arc::default(), _folder: folder }
    }
}

/// Takes the data folder for this node alone, until what is returned is dropped: the keystore is no witness where nodes share it.
pub(super) fn folder_taken(data_dir: &Path) -> Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let lock = data_dir.join(NODE_LOCK);
    let folder = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(lock)?;
    folder.try_lock().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => Error::Unavailable("another node uses this data folder"),
        std::fs::TryLockError::Error(error) => error.into(),
    })?;
    Ok(folder)
}

/// The service's own ledger, where it is open.
#[derive(Default)]
pub(crate) struct Service {
    leading: Mutex<Option<Leading>>,
    taking: AsyncMutex<()>,
}

struct Leading {
    ledger: Arc<Ledger>,
    /// None where there is one node.
    hold: Option<Arc<Hold>>,
}

impl Inner {
    /// The service's own ledger.
    ///
    /// # Errors
    /// [`Error::Unavailable`] on a node that does not lead.
    pub(crate) fn service(&self) -> Result<Arc<Ledger>> {
        let leading = self.service.leading.lock();
        let Leading { ledger, hold } = leading.as_ref().ok_or(NOT_LEADING)?;
        hold.as_ref().map_or(Ok(()), |hold| hold.check())?;
        Ok(Arc::clone(ledger))
    }

    /// Another node ships the service's ledger: this one must come to what is there before it leads again.
    pub(super) fn step_down_if_taken_over(&self, error: &Error) {
        if matches!(error, Error::Unavailable(reason) if *reason == TAKEN_OVER)
            && let Some(old) = self.service.leading.lock().take()
        {
            old.ledger.finish();
        }
    }

    /// Whether this node, for all it knows, is the one that acts for the service.
    pub(crate) fn leads(&self) -> bool {
        self.service().is_ok()
    }

    /// Whether what is remembered of this tenant's (`None`: the operator's) credentials holds: revocations happen at home.
    pub(super) fn remembers(&self, tenant: Option<TenantId>) -> bool {
        self.home.as_ref().is_none_or(|home| home.cluster.holding(tenant.unwrap_or(SERVICE)).is_some())
    }

    fn compute(&self) -> Option<Arc<dyn Compute>> {
        self.compute.lock().clone()
    }
}

impl Kernel {
    /// What runs for tenants outside of the kernel: to be stopped when a tenant's home moves to another node, and asked what it can run.
    pub fn compute_attach(&self, compute: Arc<dyn Compute>) {
        *self.0.compute.lock() = Some(compute);
    }

    /// Refuses limits that this node cannot hold: a tenant that is promised a class of isolation gets no other one.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the reason and its remedy.
    pub(crate) async fn isolates(&self, isolation: IsolationClass) -> Result<()> {
        let can = match self.0.compute() {
            Some(compute) => compute.isolates(isolation).await,
            None if isolation == IsolationClass::Jail => Ok(()),
            None => Err("nothing runs for tenants here".to_owned()),
        };
        can.map_err(|reason| Error::Invalid(format!("`isolation` cannot be `{}` on this node: {reason}", isolation.name())))
    }

    /// This node is home to the tenant, or becomes it. None where there is one node.
    ///
    /// # Errors
    /// [`Error::Elsewhere`] when another node is.
    pub(crate) async fn home(&self, id: TenantId) -> Result<Option<Arc<Hold>>> {
        let Some(home) = &self.0.home else { return Ok(None) };
        home.cluster.acquire(id, || self.gained(id)).await.map(Some)
    }

    /// This node becomes home to the tenant, whoever is now: for what must hold at once.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the node that serves it does not let go in time.
    pub(crate) async fn seize(&self, id: TenantId) -> Result<Option<Arc<Hold>>> {
        let Some(home) = &self.0.home else { return Ok(None) };
        home.cluster.want(id, || self.gained(id)).await.map(Some)
    }

    fn gained(&self, id: TenantId) {
        self.credentials_forget(|row| row.tenant.unwrap_or(SERVICE) == id);
        if let Some(compute) = self.0.compute() {
            compute.enter(IslandToken::new(id));
        }
    }

    /// This node leads, or becomes the leader.
    ///
    /// # Errors
    /// [`Error::Elsewhere`] when another node does.
    pub(crate) async fn lead(&self) -> Result<()> {
        if self.0.leads() {
            return Ok(());
        }
        let _one = self.0.service.taking.lock().await;
        if self.0.leads() {
            return Ok(());
        }
        let hold = self.home(SERVICE).await?;
        if let Some(old) = self.0.service.leading.lock().take() {
            old.ledger.finish();
        }
        let ledger = self.service_ledger().await?;
        self.bootstrap_settle().await?;
        if hold.is_some() {
            tracing::info!("this node leads the service");
        }
        self.buckets_sweep_later();
        *self.0.service.leading.lock() = Some(Leading { ledger, hold });
        Ok(())
    }

    async fn service_ledger(&self) -> Result<Arc<Ledger>> {
        let copy = self.0.control.shared_copy();
        let ledger = Arc::new(service_ledger(&self.0.config.data_dir, &self.0.root, copy.is_some())?);
        let size = match copy {
            Some(copy) => {
                copy.catch_up(&ledger).await?;
                copy.ship(&ledger).await?
            }
            None => ledger.size(),
        };
        let anchored = self.0.control.anchor().refreshed()?.ledger_size;
        if size < anchored {
            return Err(Error::integrity(format!("the service's ledger has {size} entries, {anchored} were anchored: it was rolled back")));
        }
        Ok(ledger)
    }

    /// Begins to renew. The first round may find a service without a leader.
    pub(super) fn keep(&self) {
        if let Some(home) = &self.0.home {
            let keeper = tokio::spawn(keeper(Arc::downgrade(&self.0), Arc::clone(&home.keeper_stop)));
            *home.keeper.lock() = Some(keeper);
        }
    }

    /// Everything is closed: other nodes take over at once.
    pub(super) async fn leave(&self) -> Result<()> {
        let Some(home) = &self.0.home else { return Ok(()) };
        home.keeper_stop.notify_one();
        let keeper = home.keeper.lock().take();
        if let Some(keeper) = keeper {
            let _ = keeper.await;
        }
        if let Some(old) = self.0.service.leading.lock().take() {
            old.ledger.finish();
        }
        home.cluster.leave().await
    }

    /// Lets go of a tenant that is closed here.
    pub(crate) async fn let_go(&self, hold: &Arc<Hold>) {
        let Some(home) = &self.0.home else { return };
        if let Some(compute) = self.0.compute() {
            compute.stop(IslandToken::new(hold.tenant())).await;
        }
        if let Err(error) = home.cluster.release(hold).await {
            // It runs out by itself.
            tracing::warn!(%error, context = error.private(), "a lease could not be given back");
        }
    }

    /// The tenant is erased: nobody will be home to it.
    pub(crate) async fn bury(&self, hold: &Arc<Hold>) -> Result<()> {
        match &self.0.home {
            Some(home) => home.cluster.bury(hold).await,
            None => Ok(()),
        }
    }

    /// Closes the tenant and lets go of it, for whoever waits.
    async fn hand_over(self, hold: Arc<Hold>) {
        if hold.tenant() == SERVICE || !hold.begin_leaving() {
            return;
        }
        if let Err(error) = self.island_drop(hold.tenant(), Why::Reopening).await {
            tracing::error!(%error, context = error.private(), "a tenant could not be closed cleanly for another node");
        }
        self.let_go(&hold).await;
    }

    /// It may be open elsewhere already: nothing is written any more, nothing is closed properly.
    async fn abandon(self, hold: Arc<Hold>) {
        let id = hold.tenant();
        tracing::warn!(tenant = %id.hex(), "this node lost its lease");
        if id == SERVICE {
            if let Some(old) = self.0.service.leading.lock().take() {
                old.ledger.finish();
            }
            return self.forget(&hold);
        }
        let lost = {
            let mut open = self.0.islands.lock();
            let is_lost = open.peek(&id).is_some_and(|island| island.is_held_by(&hold));
            if is_lost { open.pop(&id) } else { None }
        };
        if let Some(island) = lost {
            island.abandon();
        }
        if let Some(compute) = self.0.compute() {
            compute.stop(IslandToken::new(id)).await;
        }
        self.forget(&hold);
    }

    fn forget(&self, hold: &Arc<Hold>) {
        if let Some(home) = &self.0.home {
            home.cluster.forget(hold);
        }
    }

    /// The tenant's row was changed by another node.
    async fn take_up(self, hold: Arc<Hold>) {
        let taken = async {
            let Some(row) = self.0.control.tenant_by_id(hold.tenant()).await? else { return Ok(()) };
            if row.state == TenantState::Active {
                self.meter(&row)?;
                hold.taken_up(row.epoch_generation);
            } else {
                self.clone().hand_over(Arc::clone(&hold)).await;
            }
            Ok(())
        };
        let taken: Result<()> = taken.await;
        if let Err(error) = taken {
            tracing::warn!(%error, context = error.private(), "a tenant's changed row could not be read");
        }
    }

    /// Renews once; how long to wait for the next time.
    async fn round(&self, home: &Home) -> Duration {
        let renewed = match home.cluster.renew().await {
            Ok(renewed) => renewed,
            Err(error) => {
                tracing::warn!(%error, context = error.private(), "the leases could not be renewed");
                let left = home.cluster.left();
                if left.is_zero() {
                    self.each(home.cluster.expired(), Self::abandon);
                    return RETRY_EVERY;
                }
                return RETRY_EVERY.min(left);
            }
        };
        self.each(renewed.lost, Self::abandon);
        self.each(renewed.wanted, Self::hand_over);
        self.each(renewed.changed, Self::take_up);
        self.each(renewed.idle, Self::idle);
        self.0.root.refresh();
        if let Ok(one) = Arc::clone(&home.duties).try_lock_owned() {
            let kernel = self.clone();
            tokio::spawn(async move {
                kernel.duties().await;
                drop(one);
            });
        }
        RENEW_EVERY
    }

    async fn idle(self, hold: Arc<Hold>) {
        self.let_go(&hold).await;
    }

    /// Aside, so that no renewal waits for it.
    fn each<F: Future<Output = ()> + Send + 'static>(&self, holds: Vec<Arc<Hold>>, act: impl Fn(Self, Arc<Hold>) -> F) {
        for hold in holds {
            tokio::spawn(act(self.clone(), hold));
        }
    }

    /// What the leader does for all, and what makes a leader where there is none.
    async fn duties(&self) {
        let result = match self.lead().await {
            Ok(()) => self.leader_duties().await,
            Err(Error::Elsewhere(_)) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::error!(%error, context = error.private(), "the service could not be led");
        }
    }

    async fn leader_duties(&self) -> Result<()> {
        let Some(home) = &self.0.home else { return Ok(()) };
        if let Err(error) = bundle::sweep_dead(self).await {
            // The next round tries again; the other duties do not wait for it.
            tracing::warn!(%error, context = error.private(), "what an import left that died could not be removed yet");
        }
        if home.cluster.tickets_free().await? > 0 {
            self.0.tickets.notify_one();
        }
        let mut done = Vec::new();
        for (id, entry) in home.cluster.outbox().await? {
            match entry.map(|entry| serde_json::from_slice::<Entry>(&entry)) {
                Some(Ok(entry)) => self.0.service()?.append(&entry).map(drop)?,
                _ => tracing::error!(id, "an entry for the service's ledger is not one that a node wrote"),
            }
            done.push(id);
        }
        if !done.is_empty() {
            self.0.service_synced().await?;
            home.cluster.outbox_done(&done).await?;
        }
        Ok(())
    }
}

/// Renews until the kernel is gone.
async fn keeper(kernel: Weak<Inner>, stop: Arc<Notify>) {
    loop {
        let wait = {
            let Some(inner) = kernel.upgrade() else { return };
            let kernel = Kernel(Arc::clone(&inner));
            let Some(home) = &inner.home else { return };
            kernel.round(home).await
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.notified() => return,
        }
    }
}
