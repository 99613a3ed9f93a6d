//! Pools of tenants with a role of their own: one each, opened when asked for, a bounded number at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::ident::Own;
use super::{ACQUIRE_WAIT_MAX, pool};
use crate::error::{Error, Result};

/// How long a connection of one tenant lies idle before it is closed.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How long the end of a pool waits for those who use it.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(2);
/// How often somebody without a place looks for a pool that has become idle.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The pools. When all places are taken, the one that was used longest ago and is idle now makes room.
pub(super) struct Dedicated {
    open: Mutex<Open>,
    places: Arc<Semaphore>,
    connections_each_max: u32,
}

#[derive(Default)]
struct Open {
    pools: HashMap<Own, Entry>,
    /// Counts uses.
    clock: u64,
}

struct Entry {
    pool: PgPool,
    used: u64,
    place: OwnedSemaphorePermit,
}

impl Dedicated {
    /// At most `connections_max` connections, `connections_each_max` of them for one tenant.
    pub(super) fn new(connections_max: u32, connections_each_max: u32) -> Self {
        let connections_each_max = connections_each_max.max(1);
        let places = usize::try_from((connections_max / connections_each_max).max(1)).unwrap_or(1);
        Self { open: Mutex::default(), places: Arc::new(Semaphore::new(places)), connections_each_max }
    }

    /// The pool, opened with `options` if it is not open. It may be closed at any moment: then ask again.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if all places stay in use.
    pub(super) async fn pool(&self, own: &Own, options: &PgConnectOptions) -> Result<PgPool> {
        if let Some(pool) = self.known(own) {
            return Ok(pool);
        }
        let place = timeout(ACQUIRE_WAIT_MAX, self.place())
            .await
            .map_err(|_| Error::Unavailable("too many tenants with a schema or database of their own are busy; try again"))??;
        let mut open = self.open.lock();
        open.clock += 1;
        let used = open.clock;
        // Somebody else may have opened it meanwhile; the place is then given back.
        let opened = || Entry { pool: pool(options.clone(), self.connections_each_max, IDLE_MAX), used, place };
        Ok(open.pools.entry(own.clone()).or_insert_with(opened).pool.clone())
    }

    /// Closes a tenant's pool; waits a little for those who use it. Their connections are closed when they let go.
    pub(super) async fn forget(&self, own: &Own) {
        let entry = self.open.lock().pools.remove(own);
        if let Some(entry) = entry {
            let _ = timeout(CLOSE_WAIT_MAX, entry.pool.close()).await;
        }
    }

    fn known(&self, own: &Own) -> Option<PgPool> {
        let mut open = self.open.lock();
        open.clock += 1;
        let now = open.clock;
        let entry = open.pools.get_mut(own)?;
        entry.used = now;
        Some(entry.pool.clone())
    }

    /// A place that is free, or that an idle pool leaves.
    async fn place(&self) -> Result<OwnedSemaphorePermit> {
        loop {
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                return Ok(place);
            }
            self.make_room();
            if let Ok(place) = timeout(LOOK_AGAIN, Arc::clone(&self.places).acquire_owned()).await {
                return place.map_err(Error::internal);
            }
        }
    }

    /// Closes the pool that is idle the longest, if one is. Its place is free when its connections are closed.
    fn make_room(&self) {
        let mut open = self.open.lock();
        let idle =
            open.pools.iter().filter(|(_, entry)| usize::try_from(entry.pool.size()).is_ok_and(|size| size == entry.pool.num_idle()));
        let Some(oldest) = idle.min_by_key(|(_, entry)| entry.used).map(|(own, _)| own.clone()) else { return };
        if let Some(Entry { pool, place, .. }) = open.pools.remove(&oldest) {
            tokio::spawn(async move {
                pool.close().await;
                drop(place);
            });
        }
    }
}
