//! The kernel, opened: where credentials become callers, callers become tenants, and everything reaches the disk.

mod buckets;
mod credentials;
mod home;
pub(crate) mod places;
mod queue;
mod shipper;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard};
use zeroize::Zeroizing;

use home::{Home, Service};

use crate::anchor::Anchors;
use crate::bundle;
use crate::clock::{now_micros, now_seconds};
use crate::cluster::{Cluster, Hold, Pool as LeasePool};
use crate::control::{Control, ControlStore, CredentialKind, CredentialRow, TenantRow, TenantState, TicketRow};
use crate::credential::{self, CredentialId, Scope};
use crate::erasure::Compute;
use crate::error::{Error, Result};
use crate::freeze::Why;
use crate::island::Island;
use crate::keyring::Keyring;
use crate::ledger::{Entry, Ledger, LedgerKeys, Outcome};
use crate::manage::IssuedKey;
use crate::member::Member;
use crate::moving::{self, Moves};
use crate::name::{Name, TenantId, hex};
use crate::operator::Operator;
use crate::place::Placement;
use crate::place::StoresConfig;
use crate::policy::{Policy, Role};
use crate::quota::{Limits, Meter};
use crate::root::{Created, RootStore};
use crate::rotation;
use crate::rows::Store;
use crate::rows::db::TAKEN_OVER;
use crate::seal::Key;
use crate::tenant::{Caller, Lease, RequestId, Tenant};
use crate::token::{Grant, TOKEN_LIFE_SECONDS_MAX, Tokens};
use crate::usage::Usage;
use places::Stores;

/// Entries reach the disk within this time.
const SYNC_EVERY: Duration = Duration::from_millis(100);
/// A checkpoint is signed this many syncs apart while entries arrive.
const CHECKPOINT_EVERY_SYNCS: u32 = 10;
/// Refused credentials are counted into one entry this many syncs apart.
const REFUSALS_EVERY_SYNCS: u32 = 100;
/// Hours of use are written every so many syncs; a multiple of [`CHECKPOINT_EVERY_SYNCS`].
const USAGE_EVERY_SYNCS: u32 = 600;
/// Credentials held in memory.
const CREDENTIALS_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// How long a request waits for somebody else who opens or closes its tenant.
pub(crate) const OPENING_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a request waits until the tenants are closed that went for its own.
const EVICTION_WAIT_MAX: Duration = Duration::from_secs(1);
/// Tickets looked at for one claim.
const TICKETS_SEEN_MAX: u32 = 1000;
/// Life of the first keys, in days.
pub(crate) const FIRST_KEY_DAYS: i64 = 365;
/// File of the one-time secret, in the keystore.
const BOOTSTRAP_FILE: &str = "bootstrap.secret";
const BOOTSTRAP_META: &str = "bootstrap_mac";

/// Where the kernel lives and what it starts from.
#[derive(Debug, Clone)]
pub struct KernelConfig {
    /// Tenants' bytes, sealed.
    pub data_dir: PathBuf,
    /// Root key and anchors; outside the data.
    pub keystore_dir: PathBuf,
    /// Public base URL: issuer and audience of access tokens.
    pub issuer: String,
    /// Open tenants held at once.
    pub stores_open_max: usize,
    /// Limits of a new tenant.
    pub limits: Limits,
    /// Where rows and objects can lie beside the data folder, and which of several nodes this is.
    pub stores: StoresConfig,
}

/// What the first start made, to be told to the operator.
#[derive(Debug, Clone, Default)]
pub struct FirstStart {
    /// The root key was made in this folder.
    pub root_key_created: Option<PathBuf>,
    /// The operator's one-time secret waits in this file.
    pub bootstrap_secret: Option<PathBuf>,
}

/// What a request presents.
#[derive(Clone, Copy)]
pub enum Presented<'a> {
    /// The text after `Bearer `: an API key or an access token.
    Bearer(&'a str),
}

/// Who a credential belongs to.
pub enum Identity {
    /// A member of a tenant.
    Tenant(Caller),
    /// The operator of the service.
    Operator(Operator),
}

/// A fresh access token.
pub struct AccessToken {
    /// JWT (RFC 9068).
    pub token: String,
    /// Life in seconds.
    pub expires_in_seconds: u64,
    /// What it is narrowed to.
    pub scope: String,
}

/// Counters of one tenant for the operator; no content.
#[derive(Debug, Clone)]
pub struct TenantUsage {
    /// The tenant's name.
    pub name: String,
    /// Since the service started.
    pub usage: Usage,
}

/// The kernel. Cheap to clone.
#[derive(Clone)]
pub struct Kernel(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: KernelConfig,
    pub(crate) root: RootStore,
    pub(crate) anchors: Arc<Anchors>,
    pub(crate) control: Control,
    pub(crate) stores: Stores,
    policy: Arc<Policy>,
    tokens: Tokens,
    pub(crate) credential_key: Zeroizing<[u8; 32]>,
    pub(crate) service: Service,
    /// With several nodes.
    pub(crate) home: Option<Home>,
    /// What runs for tenants outside of the kernel.
    compute: Mutex<Option<Arc<dyn Compute>>>,
    islands: Mutex<LruCache<TenantId, Arc<Island>>>,
    /// One for each tenant that somebody opens, makes or drops just now: none waits for another one.
    opening: Mutex<HashMap<TenantId, Weak<AsyncMutex<()>>>>,
    /// Logs that somebody still holds, also of islands that are closed: there is never a second one on the same files.
    ledgers: Mutex<HashMap<TenantId, Weak<Ledger>>>,
    /// One creation of a tenant at a time.
    pub(crate) creating: AsyncMutex<()>,
    pub(crate) meters: Mutex<HashMap<TenantId, (Name, Arc<Meter>)>>,
    /// One at a time writes hours of use.
    pub(crate) usage_flushing: tokio::sync::Mutex<()>,
    /// Hours before this one were forgotten, in seconds since 1970.
    pub(crate) usage_pruned: AtomicI64,
    credentials: Mutex<LruCache<CredentialId, Arc<Credential>>>,
    /// How often credentials were forgotten: what was read before must not be remembered after.
    forgotten: AtomicU64,
    /// Credentials refused since the service's ledger last told.
    refused: AtomicU64,
    claiming: AsyncMutex<()>,
    tickets: Arc<Notify>,
    running: Mutex<HashMap<TenantId, u64>>,
    flusher: Mutex<Option<tokio::task::JoinHandle<()>>>,
    flusher_stop: Arc<Notify>,
    pub(crate) erasing: tokio::sync::Mutex<()>,
    pub(crate) moves: Moves,
    /// One import of a tenant at a time.
    pub(crate) importing: AsyncMutex<()>,
    /// Held shared while a key is wrapped under the present root epoch and stored; alone while an epoch is destroyed.
    pub(crate) epoch_gate: tokio::sync::RwLock<()>,
}

/// A credential as held in memory.
struct Credential {
    row: CredentialRow,
    scope: Arc<Scope>,
}

impl Kernel {
    /// Opens, or on the first start makes, everything in the two folders. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Invalid`] with a remedy for unsafe folders, [`Error::Integrity`] when stored data is not what was stored,
    /// [`Error::Unavailable`] when another service uses the folders.
    // Long because it says in one place what is opened, in which order.
    pub async fn open(config: KernelConfig) -> Result<(Self, FirstStart)> {
        let (root, created) = RootStore::open_or_create(&config.keystore_dir)?;
        let several = config.stores.node.is_some();
        let anchors = if several { Anchors::open_shared(&root)? } else { Anchors::open(&root)? };
        private_folder(&config.data_dir)?;
        private_folder(&config.data_dir.join("tenants"))?;
        let folder = if several { Some(home::folder_taken(&config.data_dir)?) } else { None };
        let stores = Stores::connect(&config.stores, &root).await?;
        let file = config.data_dir.join("control.db");
        let control = if several { ControlStore::Postgres(stores.postgres()?.control()) } else { ControlStore::File(&file) };
        let control = Control::open(control, &root, &anchors).await?;
        let mut first = FirstStart::default();
        if created == Created::Yes {
            first.root_key_created = Some(config.keystore_dir.clone());
        }
        let key = root.control_key();
        let credential_key = Zeroizing::new(*key.derive("credentials", &[]).bytes());
        let token_seed = Zeroizing::new(*key.derive("tokens", &[]).bytes());
        let home = match (&config.stores.node, &config.stores.postgres) {
            (Some(node), Some(postgres)) => {
                let cluster = Cluster::join(LeasePool::new(postgres)?, node.clone(), root.control_key()).await?;
                Some(Home::new(cluster, folder))
            }
            _ => None,
        };
        let inner = Inner {
            policy: Arc::new(Policy::platform()?),
            tokens: Tokens::new(&config.issuer, &config.issuer, &token_seed, None)?,
            credential_key,
            service: Service::default(),
            home,
            compute: Mutex::default(),
            islands: Mutex::new(LruCache::unbounded()),
            opening: Mutex::default(),
            ledgers: Mutex::default(),
            creating: AsyncMutex::new(()),
            meters: Mutex::default(),
            usage_flushing: tokio::sync::Mutex::default(),
            usage_pruned: AtomicI64::new(0),
            credentials: Mutex::new(LruCache::new(CREDENTIALS_MAX)),
            forgotten: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            claiming: AsyncMutex::new(()),
            tickets: Arc::new(Notify::new()),
            running: Mutex::default(),
            flusher: Mutex::default(),
            flusher_stop: Arc::new(Notify::new()),
            erasing: tokio::sync::Mutex::new(()),
            moves: Moves::default(),
            importing: AsyncMutex::new(()),
            epoch_gate: tokio::sync::RwLock::new(()),
            config,
            root,
            anchors,
            control,
            stores,
        };
        let kernel = Self(Arc::new(inner));
        match kernel.lead().await {
            // The leader does what is the service's.
            Ok(()) | Err(Error::Elsewhere(_)) => {}
            Err(error) => return Err(error),
        }
        kernel.keep();
        first.bootstrap_secret = kernel.bootstrap_secret().await?;
        if kernel.0.home.is_none()
            && let Err(error) = bundle::sweep(&kernel).await
        {
            tracing::warn!(context = error.private(), "what an import left that died could not be removed yet");
        }
        let stop = Arc::clone(&kernel.0.flusher_stop);
        *kernel.0.flusher.lock() = Some(tokio::spawn(flusher(Arc::downgrade(&kernel.0), stop)));
        Ok((kernel, first))
    }

    /// Flushes, anchors and closes every store. Nothing may be asked afterwards.
    ///
    /// # Errors
    /// The first thing that could not be written.
    pub async fn close(&self) -> Result<()> {
        // First the flusher, so that nothing holds the stores, and with them the folders' locks, any longer than this call.
        self.0.flusher_stop.notify_one();
        let flusher = self.0.flusher.lock().take();
        if let Some(flusher) = flusher {
            let _ = flusher.await;
        }
        let islands: Vec<_> = {
            let mut open = self.0.islands.lock();
            std::iter::from_fn(|| open.pop_lru()).map(|(_, island)| island).collect()
        };
        let mut result = Ok(());
        for island in islands {
            result = result.and(match island.close().await {
                // Its new home has everything that was acknowledged.
                Err(Error::Unavailable(reason)) if reason == TAKEN_OVER => Ok(()),
                closed => closed,
            });
        }
        result = result.and(self.0.usage_flush().await);
        result = result.and(self.0.refusals_told().await);
        result = result.and(self.0.service_checkpoint().await);
        result = result.and(self.leave().await);
        result.and(self.0.control.close().await).and(self.0.anchors.sync())
    }

    /// Public base URL, issuer of tokens.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.0.config.issuer
    }

    /// Public keys of access tokens, a JWK set (RFC 7517).
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        self.0.tokens.jwks()
    }

    /// Opens the caller's tenant.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] when the member is gone, [`Error::TenantState`] when it takes no requests.
    pub async fn open_tenant(&self, caller: Caller) -> Result<Tenant> {
        let island = self.island(caller.tenant).await?;
        let member = island.member(&caller.principal).ok_or(Error::Unauthenticated)?;
        let Caller { via, scope, request, .. } = caller;
        Ok(Tenant { kernel: self.clone(), island, member, via, scope, request, admitted: false })
    }

    /// Opens the tenant of a claimed ticket in the name of who queued the job; the policy is asked again by `allow`.
    ///
    /// # Errors
    /// As [`Kernel::open_tenant`].
    pub async fn resume(&self, lease: &Lease) -> Result<Tenant> {
        let island = self.island(lease.tenant).await?;
        let member = island.member(&lease.principal).ok_or(Error::Unauthenticated)?;
        let request = RequestId::fresh();
        let scope = Arc::new(Scope::all());
        Ok(Tenant { kernel: self.clone(), island, member, via: format!("lease {}", lease.id()), scope, request, admitted: true })
    }

    /// What each tenant used since the start, for the operator; no content.
    #[must_use]
    pub(crate) fn observe(&self) -> Vec<TenantUsage> {
        self.0.meters.lock().values().map(|(name, meter)| TenantUsage { name: name.to_string(), usage: meter.usage() }).collect()
    }

    /// Open tenants now, for the operator.
    #[must_use]
    pub fn islands_open(&self) -> usize {
        self.0.islands.lock().len()
    }

    /// The lock under which a tenant is opened, made, dropped.
    pub(crate) fn opening(&self, id: TenantId) -> Arc<AsyncMutex<()>> {
        let mut opening = self.0.opening.lock();
        if let Some(lock) = opening.get(&id).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        opening.retain(|_, lock| lock.strong_count() > 0);
        opening.insert(id, Arc::downgrade(&lock));
        lock
    }

    /// The tenant, opened; refuses one that takes no requests.
    pub(crate) async fn island(&self, id: TenantId) -> Result<Arc<Island>> {
        if let Some(island) = self.island_held(id) {
            return Ok(island);
        }
        let guard = tokio::time::timeout(OPENING_WAIT_MAX, self.opening(id).lock_owned()).await;
        let guard = guard.map_err(|_| Error::Unavailable("the tenant is being opened or closed: try again"))?;
        if let Some(island) = self.island_held(id) {
            return Ok(island);
        }
        let mut row = self.tenant_active(id).await?;
        let hold = self.home(id).await?;
        if let Some(hold) = &hold {
            // What was read before belonged to the home before.
            row = self.tenant_active(id).await?;
            hold.taken_up(row.epoch_generation);
        }
        let island = Arc::new(self.island_open(&row, hold).await?);
        let evicted = self.island_keep(&island);
        drop(guard);
        moving::forget_later(self, id, &Placement::parse(&row.placement)?);
        if island.store.keyring()?.has_old_version() {
            let (kernel, island) = (self.clone(), Arc::clone(&island));
            tokio::spawn(async move {
                if let Err(error) = rotation::resume(&kernel, &island).await {
                    tracing::error!(context = error.private(), "a rotation could not be resumed");
                }
            });
        }
        evicted.close(self).await;
        Ok(island)
    }

    /// The island, if it is open and this node is its home.
    fn island_held(&self, id: TenantId) -> Option<Arc<Island>> {
        self.0.islands.lock().get(&id).filter(|island| island.at_home()).map(Arc::clone)
    }

    /// The tenant's row, if it takes requests.
    async fn tenant_active(&self, id: TenantId) -> Result<TenantRow> {
        let row = self.0.control.tenant_by_id(id).await?.ok_or(Error::Unauthenticated)?;
        match row.state {
            TenantState::Active => Ok(row),
            TenantState::Suspended => Err(Error::TenantState("suspended")),
            TenantState::Erasing => Err(Error::TenantState("being erased")),
            TenantState::Erased => Err(Error::Unauthenticated),
        }
    }

    /// Holds the island; returns those that must go for it. One that is in use stays, so the bound can be passed for a while.
    fn island_keep(&self, island: &Arc<Island>) -> Evicted {
        let mut open = self.0.islands.lock();
        let mut evicted = Evicted(Vec::new());
        let surplus = (open.len() + 1).saturating_sub(self.0.config.stores_open_max.max(1));
        let idle: Vec<_> =
            open.iter().rev().filter(|(_, held)| Arc::strong_count(held) == 1).map(|(id, _)| *id).take(surplus * 2).collect();
        for id in idle {
            // The lock is taken before it leaves the map: nobody opens it a second time while it closes.
            let Ok(guard) = self.opening(id).try_lock_owned() else { continue };
            if evicted.0.len() < surplus {
                evicted.0.extend(open.pop(&id).map(|island| (guard, island)));
            }
        }
        open.put(island.id, Arc::clone(island));
        evicted
    }

    /// Whether this is the island that everybody uses.
    pub(crate) fn holds(&self, island: &Arc<Island>) -> bool {
        self.0.islands.lock().peek(&island.id).is_some_and(|held| Arc::ptr_eq(held, island))
    }

    /// Nothing more is written where this island is: the next request opens it anew. Under its opening lock.
    pub(crate) fn island_abandon(&self, island: &Arc<Island>) {
        island.freeze(Why::Reopening);
        self.0.islands.lock().pop(&island.id);
        // Neither shipped nor signed: nobody knows whose turn that is.
        if let Err(error) = island.ledger.sync() {
            tracing::error!(context = error.private(), "an abandoned tenant's ledger could not be put on disk");
        }
        if let Ok(anchor) = island.store.anchor() {
            anchor.release();
        }
    }

    /// From now on the island, if it is open, allows and commits nothing.
    pub(crate) async fn island_freeze(&self, id: TenantId) -> Result<()> {
        // Who is opening it may have seen the state of before.
        let _guard = self.opening(id).lock_owned().await;
        if let Some(island) = self.0.islands.lock().peek(&id) {
            island.freeze(Why::Stopped);
        }
        Ok(())
    }

    /// Takes the island out of memory, closed. Whoever holds it can commit nothing more, and is told why.
    pub(crate) async fn island_drop(&self, id: TenantId, why: Why) -> Result<()> {
        let _guard = self.opening(id).lock_owned().await;
        let held = self.0.islands.lock().pop(&id);
        if let Some(island) = held {
            island.freeze(why);
            island.close().await?;
        }
        Ok(())
    }

    /// The same, of an island whose outbox must be replayed; not of one that was opened in its place.
    async fn island_mend(self, island: Arc<Island>) {
        let _guard = self.opening(island.id).lock_owned().await;
        if !self.holds(&island) {
            return;
        }
        self.0.islands.lock().pop(&island.id);
        island.freeze(Why::Reopening);
        if let Err(error) = island.close().await {
            tracing::warn!(tenant = %island.id.hex(), %error, context = error.private(), "a torn tenant could not be closed cleanly");
        }
    }

    async fn island_open(&self, row: &TenantRow, hold: Option<Arc<Hold>>) -> Result<Island> {
        let dir = self.tenant_dir(row.id);
        let keyring = Keyring::load(&self.0.root, row.id, &self.0.control.keys_of(row.id).await?)?;
        let fence = hold.as_ref().map(|hold| hold.fence());
        let placement = Placement::parse(&row.placement)?;
        let place = self.rows_place(row.id, &placement, fence).await?;
        let ledger = self.ledger_open(&dir, &keyring, place.is_shared())?;
        let anchor = self.0.anchors.slot(row.slot, row.id)?;
        let store = Store::open_at(&dir, place, self.bucket(row.id, &placement)?, Arc::new(keyring), anchor).await?;
        let meter = self.meter(row)?;
        let keys_alive = self.0.control.credentials_alive(row.id).await?;
        Ok(Island::new(row.id, row.name.clone(), store, ledger, keys_alive, meter, Arc::clone(&self.0.policy)).await?.held_by(hold))
    }

    /// The tenant's log: the one that somebody still holds, or opened. Under its opening lock. One that is shared may be behind.
    pub(crate) fn ledger_open(&self, dir: &Path, keyring: &Keyring, shared: bool) -> Result<Arc<Ledger>> {
        let (id, keys) = (keyring.tenant(), ledger_keys(keyring));
        let held = self.0.ledgers.lock().get(&id).and_then(Weak::upgrade).filter(|ledger| !ledger.failed());
        if let Some(ledger) = held {
            ledger.take_up_keys(&keys.content)?;
            return Ok(ledger);
        }
        let (dir, origin) = (dir.join("ledger"), self.origin(&id.hex()));
        let ledger = if shared { Ledger::open_copy(&dir, &keys, id.0, &origin) } else { Ledger::open(&dir, keys, id.0, &origin) };
        let ledger = Arc::new(ledger?);
        let mut held = self.0.ledgers.lock();
        held.retain(|_, ledger| ledger.strong_count() > 0);
        held.insert(id, Arc::downgrade(&ledger));
        Ok(ledger)
    }

    pub(crate) fn origin(&self, whose: &str) -> String {
        origin(&self.0.root, whose)
    }

    pub(crate) fn tenant_dir(&self, id: TenantId) -> PathBuf {
        self.0.config.data_dir.join("tenants").join(id.hex())
    }

    pub(crate) fn meter(&self, row: &TenantRow) -> Result<Arc<Meter>> {
        let limits: Limits = serde_json::from_str(&row.limits).map_err(Error::integrity)?;
        let mut meters = self.0.meters.lock();
        let (_, meter) = meters.entry(row.id).or_insert_with(|| (row.name.clone(), Meter::new(limits)));
        meter.set_limits(limits);
        Ok(Arc::clone(meter))
    }

    pub(crate) fn meter_forget(&self, id: TenantId) {
        self.0.meters.lock().remove(&id);
    }

    /// The first member of a new tenant: an island that is made, filled and held.
    pub(crate) async fn island_create(&self, row: &TenantRow, keyring: Keyring, admin: &Name, hold: Option<Arc<Hold>>) -> Result<()> {
        let dir = self.tenant_dir(row.id);
        let placement = Placement::parse(&row.placement)?;
        self.rows_place_make(row.id, &placement).await?;
        let place = self.rows_place(row.id, &placement, hold.as_ref().map(|hold| hold.fence())).await?;
        let anchor = self.0.anchors.slot(row.slot, row.id)?;
        let keyring = Arc::new(keyring);
        let shared = place.is_shared();
        let store = Store::create_at(&dir, place, self.bucket(row.id, &placement)?, Arc::clone(&keyring), anchor).await?;
        let ledger = self.ledger_open(&dir, &keyring, shared)?;
        let mut tx = store.tx().await?;
        tx.insert(&Member {
            name: admin.clone(),
            roles: vec![Role::Admin],
            description: "first administrator".to_owned(),
            grants: Default::default(),
        })
        .await?;
        tx.usage_add("members", 1).await?;
        tx.commit_with(None).await?;
        let meter = self.meter(row)?;
        let island = Island::new(row.id, row.name.clone(), store, ledger, 1, meter, Arc::clone(&self.0.policy)).await?;
        let island = Arc::new(island.held_by(hold));
        self.island_keep(&island).close(self).await;
        Ok(())
    }
}

impl Inner {
    /// An entry of the service's own ledger; on disk when this returns, and shipped if the service is shared.
    pub(crate) async fn record(
        &self,
        actor: &str,
        via: &str,
        request: &RequestId,
        act: &str,
        resource: &str,
        outcome: Outcome,
        reason: &str,
    ) -> Result<u64> {
        self.written(&service_entry(actor, via, request, act, resource, outcome, reason)).await
    }

    /// The same on any node: one that does not lead hands the entry to the one that does, and it is as safe as the database.
    pub(crate) async fn record_anywhere(
        &self,
        actor: &str,
        via: &str,
        request: &RequestId,
        act: &str,
        resource: &str,
        outcome: Outcome,
        reason: &str,
    ) -> Result<()> {
        self.handed_in(&service_entry(actor, via, request, act, resource, outcome, reason)).await
    }

    async fn handed_in(&self, entry: &Entry) -> Result<()> {
        match &self.home {
            Some(home) if !self.leads() => {
                let entry = serde_json::to_vec(entry).map_err(Error::internal)?;
                let taken = home.cluster.outbox_put(&entry).await?;
                if taken { Ok(()) } else { Err(Error::Unavailable("too much waits for the service's audit log: try again")) }
            }
            _ => self.written(entry).await.map(drop),
        }
    }

    async fn written(&self, entry: &Entry) -> Result<u64> {
        let index = self.service()?.append(entry)?;
        self.service_synced().await?;
        Ok(index)
    }

    /// What the service's ledger has is safe, whatever becomes of this node.
    pub(crate) async fn service_synced(&self) -> Result<()> {
        let ledger = self.service()?;
        let size = match self.control.shared_copy() {
            Some(copy) => copy.ship(&ledger).await.inspect_err(|error| self.step_down_if_taken_over(error))?,
            None => {
                let size = ledger.size();
                ledger.sync()?;
                size
            }
        };
        self.control.anchor().ledger_size(size)
    }

    async fn service_checkpoint(&self) -> Result<()> {
        // Only the leader has one.
        let Ok(ledger) = self.service() else { return Ok(()) };
        if self.control.shared_copy().is_some() {
            self.service_synced().await?;
        }
        ledger.checkpoint().map(drop)
    }

    /// How many credentials were refused since it last told; nothing if none.
    async fn refusals_told(&self) -> Result<()> {
        let refused = self.refused.swap(0, Ordering::Relaxed);
        if refused == 0 {
            return Ok(());
        }
        let reason = format!("{refused} credentials since the last such entry");
        let entry = service_entry("unknown", "-", &RequestId::fresh(), "Authenticate", "service:", Outcome::Refused, &reason);
        let told = self.handed_in(&entry).await;
        if told.is_err() {
            // They count with the next ones.
            self.refused.fetch_add(refused, Ordering::Relaxed);
        }
        told
    }
}

/// Islands on their way out of memory, each under its opening lock.
struct Evicted(Vec<(OwnedMutexGuard<()>, Arc<Island>)>);

impl Evicted {
    /// Also when whoever waits for it is gone. What goes wrong is the business of the evicted, not of who came in its place.
    async fn close(self, kernel: &Kernel) {
        if self.0.is_empty() {
            return;
        }
        let kernel = kernel.clone();
        let closing = unbroken(async move {
            for (_guard, island) in self.0 {
                let _ = island.hold().is_some_and(|hold| hold.begin_leaving());
                if let Err(error) = island.close().await {
                    tracing::error!(context = error.private(), "an evicted tenant could not be closed cleanly");
                }
                if let Some(hold) = island.hold() {
                    kernel.let_go(hold).await;
                }
            }
            Ok(())
        });
        // Who came in their place does not wait for a store that hangs.
        let _ = tokio::time::timeout(EVICTION_WAIT_MAX, closing).await;
    }
}

/// Goes on to its end when whoever waits for it is gone: for what must not stop in the middle.
pub(crate) async fn unbroken<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.map_err(Error::internal)?
}

fn service_entry(actor: &str, via: &str, request: &RequestId, act: &str, resource: &str, outcome: Outcome, reason: &str) -> Entry {
    let (request, reason) = (request.to_string(), reason.to_owned());
    let (actor, via, act, resource) = (actor.to_owned(), via.to_owned(), act.to_owned(), resource.to_owned());
    Entry { time: now_micros(), request, actor, via, act, resource, outcome, reason, detail: Default::default(), generation: None }
}

fn origin(root: &RootStore, whose: &str) -> String {
    format!("insula/{}/{whose}", hex(&root.service_id()))
}

fn ledger_keys(keyring: &Keyring) -> LedgerKeys {
    let content = keyring.ledger_keys().into_iter().map(|(number, key)| (number, (*key.bytes()).into())).collect();
    LedgerKeys { content, signing_seed: (*keyring.ledger_seed().bytes()).into() }
}

fn service_ledger(data_dir: &Path, root: &RootStore, shared: bool) -> Result<Ledger> {
    let key = |label: &str| -> Key { root.control_key().derive(label, &[]) };
    let content = vec![(1, (*key("service ledger content").bytes()).into())];
    let keys = LedgerKeys { content, signing_seed: (*key("service ledger signing").bytes()).into() };
    private_folder(&data_dir.join("service"))?;
    let (dir, origin) = (data_dir.join("service").join("ledger"), origin(root, "service"));
    if shared { Ledger::open_copy(&dir, &keys, [0; 16], &origin) } else { Ledger::open(&dir, keys, [0; 16], &origin) }
}

fn private_folder(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if !dir.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    Ok(())
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.write_all(b"\n")?;
    Ok(file.sync_all()?)
}

/// Puts what was handed to the operating system on disk, tenant by tenant, until the kernel is gone. What is shared has its own.
async fn flusher(kernel: Weak<Inner>, stop: Arc<Notify>) {
    let shipper = shipper::Shipper::start(&kernel);
    let mut round = 0u32;
    loop {
        tokio::select! {
            () = tokio::time::sleep(SYNC_EVERY) => {}
            () = stop.notified() => return shipper.stop().await,
        }
        let Some(inner) = kernel.upgrade() else { return };
        round = round.wrapping_add(1);
        let checkpoint = round.is_multiple_of(CHECKPOINT_EVERY_SYNCS);
        let islands: Vec<_> = inner
            .islands
            .lock()
            .iter()
            .map(|(_, island)| Arc::clone(island))
            .filter(|island| island.torn() || (island.ledger.dirty() && !island.is_shared()))
            .collect();
        let flushed = tokio::task::spawn_blocking(move || {
            for island in islands.iter().filter(|island| !island.is_shared()) {
                if let Err(error) = island.flush_here(checkpoint) {
                    tracing::error!(error = error.private().unwrap_or_default(), "a ledger could not be synced");
                }
            }
            islands
        })
        .await;
        for island in flushed.unwrap_or_default() {
            if island.torn() {
                // It refuses every act until it is opened again: drop it, and the next request does that. Nobody else waits for it.
                tokio::spawn(Kernel(Arc::clone(&inner)).island_mend(island));
            }
        }
        if round.is_multiple_of(REFUSALS_EVERY_SYNCS)
            && let Err(error) = inner.refusals_told().await
        {
            tracing::error!(context = error.private(), "refused credentials could not be written down");
        }
        if checkpoint {
            if inner.control.shared_copy().is_none() {
                let _ = inner.service_checkpoint().await;
            }
            inner.usage_tick();
            if round.is_multiple_of(USAGE_EVERY_SYNCS)
                && let Err(error) = inner.usage_flush().await
            {
                tracing::warn!(context = error.private(), "hours of use could not be written; they are kept and written later");
            }
            let _ = inner.control.flush().await;
            let _ = inner.anchors.sync();
        }
    }
}
