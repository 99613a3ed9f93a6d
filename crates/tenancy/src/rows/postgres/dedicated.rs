//! Pools of tenants with a role of their own: one each, opened when asked for, a bounded number at a time.
//!
//! Whoever wants to use one takes a [`Turn`] and holds it for as long as its transaction lasts. When all places are taken, who asks waits in
//! line, first come, first served, until somebody lets go of a pool that nobody else uses: that one is closed and makes room. Somebody
//! whose tenant's pool is in use joins in, but not for ever: once the first in line has waited for [`JOIN_MAX`], everybody waits in line.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::ident::Own;
use super::pool;
use crate::error::{Error, Result};

/// How long a connection of one tenant lies idle before it is closed.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How long the end of a pool waits for those who use it.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long somebody waits in line.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a pool is shared with those who come later while others wait.
const JOIN_MAX: Duration = Duration::from_millis(500);

/// The pools.
pub(super) struct Dedicated {
    state: Mutex<State>,
    places_max: usize,
    connections_each_max: u32,
}

#[derive(Default)]
struct State {
    pools: HashMap<Own, Entry>,
    line: VecDeque<Waiting>,
    /// Places of open pools, and of those that are being closed.
    taken: usize,
    closing: usize,
    /// Counts uses and entries.
    clock: u64,
}

struct Entry {
    number: u64,
    pool: PgPool,
    used: u64,
    users: usize,
}

struct Waiting {
    own: Own,
    options: PgConnectOptions,
    since: Instant,
    tell: oneshot::Sender<Turn>,
}

/// The use of a tenant's pool, which stays open until it is dropped.
pub(super) struct Turn {
    dedicated: Arc<Dedicated>,
    own: Own,
    number: u64,
    pool: PgPool,
}

impl Turn {
    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let left = {
            let mut state = self.dedicated.state.lock();
            let entry = state.pools.get_mut(&self.own).filter(|entry| entry.number == self.number);
            let unused = entry.is_some_and(|entry| {
                entry.users = entry.users.saturating_sub(1);
                entry.users == 0
            });
            unused && !state.line.is_empty()
        };
        if left {
            self.dedicated.serve();
        }
    }
}

impl Dedicated {
    /// At most `connections_max` connections, `connections_each_max` of them for one tenant.
    pub(super) fn new(connections_max: u32, connections_each_max: u32) -> Self {
        let connections_each_max = connections_each_max.max(1);
        let places_max = usize::try_from((connections_max / connections_each_max).max(1)).unwrap_or(1);
        Self { state: Mutex::default(), places_max, connections_each_max }
    }

    /// The use of the tenant's pool, opened with `options` if it is not open.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if its turn does not come in time.
    pub(super) async fn turn(self: &Arc<Self>, own: &Own, options: &PgConnectOptions) -> Result<Turn> {
        let told = {
            let mut state = self.state.lock();
            if let Some(turn) = self.joined(&mut state, own) {
                return Ok(turn);
            }
            let (tell, told) = oneshot::channel();
            state.line.push_back(Waiting { own: own.clone(), options: options.clone(), since: Instant::now(), tell });
            told
        };
        self.serve();
        let busy = || Error::Unavailable("too many tenants with a schema or database of their own are busy; try again");
        timeout(TURN_WAIT_MAX, told).await.ok().and_then(|told| told.ok()).ok_or_else(busy)
    }

    /// Closes a tenant's pool; waits a little for those who use it. Their connections are closed when they let go.
    pub(super) async fn forget(self: &Arc<Self>, own: &Own) {
        let entry = self.state.lock().pools.remove(own);
        if let Some(entry) = entry {
            let _ = timeout(CLOSE_WAIT_MAX, entry.pool.close()).await;
            self.state.lock().taken -= 1;
            self.serve();
        }
    }

    /// A turn without waiting, where the pool is open and nobody has waited for long.
    fn joined(self: &Arc<Self>, state: &mut State, own: &Own) -> Option<Turn> {
        let waits = state.line.iter().find(|waiting| !waiting.tell.is_closed()).map(|waiting| waiting.since.elapsed());
        let entry = state.pools.get(own)?;
        let may = waits.is_none_or(|waits| entry.users > 0 && waits < JOIN_MAX);
        may.then(|| self.used(state, own)).flatten()
    }

    /// Counts one more use of an open pool.
    fn used(self: &Arc<Self>, state: &mut State, own: &Own) -> Option<Turn> {
        state.clock += 1;
        let now = state.clock;
        let entry = state.pools.get_mut(own)?;
        entry.used = now;
        entry.users += 1;
        Some(Turn { dedicated: Arc::clone(self), own: own.clone(), number: entry.number, pool: entry.pool.clone() })
    }

    /// Lets in those who are first in line, as long as there are places.
    fn serve(self: &Arc<Self>) {
        let mut let_in = Vec::new();
        {
            let mut state = self.state.lock();
            let state = &mut *state;
            while let Some(first) = state.line.front() {
                let gone = first.tell.is_closed();
                if !gone && !state.pools.contains_key(&first.own) {
                    if state.taken >= self.places_max {
                        self.make_room(state);
                        break;
                    }
                    state.taken += 1;
                    state.clock += 1;
                    let pool = pool(first.options.clone(), self.connections_each_max, IDLE_MAX);
                    state.pools.insert(first.own.clone(), Entry { number: state.clock, pool, used: state.clock, users: 0 });
                }
                let Some(Waiting { own, tell, .. }) = state.line.pop_front() else { break };
                if !gone && let Some(turn) = self.used(state, &own) {
                    let_in.push((tell, turn));
                }
            }
        }
        // Who is gone by now gives its turn back, and that takes the lock.
        for (tell, turn) in let_in {
            let _ = tell.send(turn);
        }
    }

    /// Closes pools that nobody uses, the one that was used longest ago first, for as many as wait. Their places are free when their
    /// connections are closed.
    fn make_room(self: &Arc<Self>, state: &mut State) {
        while state.closing < state.line.len() {
            let unused = state.pools.iter().filter(|(_, entry)| entry.users == 0);
            let Some(oldest) = unused.min_by_key(|(_, entry)| entry.used).map(|(own, _)| own.clone()) else { return };
            let (Some(entry), Ok(runtime)) = (state.pools.remove(&oldest), tokio::runtime::Handle::try_current()) else { return };
            state.closing += 1;
            let dedicated = Arc::clone(self);
            runtime.spawn(async move {
                entry.pool.close().await;
                {
                    let mut state = dedicated.state.lock();
                    state.taken -= 1;
                    state.closing -= 1;
                }
                dedicated.serve();
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;
    use crate::name::TenantId;
    use crate::place::Tier;

    fn own(number: u8) -> Own {
        Own::of(TenantId([number; 16]), Tier::Schema).unwrap()
    }

    /// Pools connect when somebody needs a connection, and here nobody does.
    async fn turn(dedicated: &Arc<Dedicated>, number: u8) -> Turn {
        let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(1);
        dedicated.turn(&own(number), &options).await.unwrap()
    }

    /// Comes, waits in line, and holds its turn as long as it is told to.
    async fn comes(dedicated: &Arc<Dedicated>, number: u8, came: &Arc<Mutex<Vec<u8>>>) -> JoinHandle<Turn> {
        let before = dedicated.state.lock().line.len();
        let (line, came) = (Arc::clone(dedicated), Arc::clone(came));
        let task = tokio::spawn(async move {
            let turn = turn(&line, number).await;
            came.lock().push(number);
            turn
        });
        while dedicated.state.lock().line.len() == before {
            tokio::task::yield_now().await;
        }
        task
    }

    #[tokio::test]
    async fn first_come_first_served() {
        let (dedicated, came) = (Arc::new(Dedicated::new(2, 2)), Arc::default());
        let held = turn(&dedicated, 0).await;
        let mut waiting = Vec::new();
        for number in 1..=5 {
            waiting.push(comes(&dedicated, number, &came).await);
        }
        // Who goes away does not hold up the others.
        waiting.remove(2).abort();
        drop(held);
        for task in waiting {
            drop(task.await.unwrap());
        }
        assert_eq!(*came.lock(), [1, 2, 4, 5]);
        assert_eq!(dedicated.state.lock().taken, 1);
    }

    #[tokio::test]
    async fn who_comes_to_an_open_pool_joins_but_not_for_ever() {
        let (dedicated, came) = (Arc::new(Dedicated::new(1, 1)), Arc::default());
        let held = turn(&dedicated, 0).await;
        let other = comes(&dedicated, 1, &came).await;
        drop(turn(&dedicated, 0).await);
        dedicated.state.lock().line[0].since -= JOIN_MAX;
        let late = comes(&dedicated, 0, &came).await;
        drop(held);
        drop(other.await.unwrap());
        drop(late.await.unwrap());
        assert_eq!(*came.lock(), [1, 0]);
    }

    #[tokio::test]
    async fn a_pool_that_is_forgotten_leaves_its_place() {
        let (dedicated, came) = (Arc::new(Dedicated::new(1, 1)), Arc::default());
        let held = turn(&dedicated, 0).await;
        let other = comes(&dedicated, 1, &came).await;
        dedicated.forget(&own(0)).await;
        let turn = other.await.unwrap();
        // What is given back late is not counted against the new one.
        drop(held);
        assert_eq!(dedicated.state.lock().pools[&own(1)].users, 1);
        drop(turn);
    }
}
