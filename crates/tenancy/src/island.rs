//! One tenant, opened: its keys, its store, its ledger, its meter, and what was already decided about it.
//!
//! Nothing outside the kernel sees this type. [`Tenant`](crate::Tenant) is a handle on it without a data method, and a
//! [`Permit`](crate::Permit) is the only way from the handle to the data.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use crate::act::ResourceKind;
use crate::clock::now_micros;
use crate::cluster::Hold;
use crate::error::{Error, Result};
use crate::freeze::Why;
use crate::joint::Queue;
use crate::ledger::{Entry, Ledger, Mark, SharedCopy};
use crate::member::Member;
use crate::name::{Name, TenantId};
use crate::policy::{Decision, Grant, Policy, Question};
use crate::quota::{Meter, Resource};
use crate::rows::db::{TAKEN_OVER, blocking};
use crate::rows::{Home, Store};

/// Decisions remembered per tenant.
const DECISIONS_MAX: NonZeroUsize = NonZeroUsize::new(2048).expect("not zero");
/// Entries for refusals by rate or concurrency in one second.
const FLOOD_ENTRIES_PER_SECOND_MAX: u32 = 10;
/// Generations that the outbox holds longer than it must: forgetting them one by one would cost each commit a statement.
const PRUNED_AT_ONCE: u64 = 64;
/// Members a tenant can have at most, whatever its limits say: they are held in memory while the tenant is open.
pub(crate) const MEMBERS_MAX: usize = 10_000;

/// Durable counters and the limits they stand for.
pub(crate) const COUNTERS: [(&str, Resource); 6] = [
    ("storage_bytes", Resource::StorageBytes),
    ("objects", Resource::Objects),
    ("models", Resource::Models),
    ("deployments", Resource::Deployments),
    ("members", Resource::Members),
    ("keys", Resource::Keys),
];

/// Name of the durable counter of a resource; none for what lives in memory only, and for keys, which the control rows count.
pub(crate) fn counter(what: Resource) -> Option<&'static str> {
    COUNTERS.iter().find(|(_, resource)| *resource == what && what != Resource::Keys).map(|(name, _)| *name)
}

/// A member as it is from a commit on; none if it is removed.
pub(crate) type MemberChange = (Name, Option<Member>);

/// An opened tenant.
pub(crate) struct Island {
    pub(crate) id: TenantId,
    pub(crate) name: Name,
    pub(crate) store: Store,
    /// Shared with whoever still holds an older handle on this tenant: two logs on one file would overwrite each other.
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) policy: Arc<Policy>,
    members: RwLock<Arc<HashMap<String, Arc<Member>>>>,
    decisions: Mutex<LruCache<DecisionKey, Arc<Decision>>>,
    epoch: AtomicU64,
    torn: AtomicBool,
    flood: Mutex<Flood>,
    commits: tokio::sync::Mutex<()>,
    /// A commit whose outcome nobody saw: its generation, and the entries it leaves if it did not happen.
    unsettled: Mutex<Option<(u64, Vec<Entry>)>>,
    /// With several nodes: what makes this one the tenant's home.
    hold: Option<Arc<Hold>>,
    /// Writes that are to share a commit.
    pub(crate) joint: Queue,
    /// One rotation at a time.
    pub(crate) rotating: tokio::sync::Mutex<()>,
    /// Greatest outbox generation that is safe in the ledger (on disk, or shipped), and that was appended to it.
    synced_generation: AtomicU64,
    appended_generation: AtomicU64,
    /// One flush at a time.
    flushing: tokio::sync::Mutex<()>,
    /// The log says once that nothing can be shipped, and once that it can again.
    unshippable: AtomicBool,
    /// Greatest generation that the outbox was told to forget.
    pruned_generation: AtomicU64,
}

#[derive(PartialEq, Eq, Hash)]
struct DecisionKey {
    member: String,
    /// One bit a role: what was decided about other roles, even a moment ago, is another decision.
    roles: u8,
    act: &'static str,
    resource: String,
    grant: Option<Grant>,
}

/// Refusals by rate or concurrency in one second.
#[derive(Default)]
struct Flood {
    second: i64,
    told: u32,
    withheld: u64,
}

impl Island {
    /// Whether a refusal by rate gets an entry of its own, and how many before it got none: a flood must not fill the disk.
    pub(crate) fn flood(&self, now_micros: i64) -> Option<u64> {
        let mut flood = self.flood.lock();
        let second = now_micros.div_euclid(1_000_000);
        if flood.second != second {
            (flood.second, flood.told) = (second, 0);
        }
        if flood.told >= FLOOD_ENTRIES_PER_SECOND_MAX {
            flood.withheld = flood.withheld.saturating_add(1);
            return None;
        }
        flood.told += 1;
        Some(std::mem::take(&mut flood.withheld))
    }

    /// Puts the parts together, replays the outbox into the ledger, reads members and counters.
    pub(crate) async fn new(
        id: TenantId,
        name: Name,
        store: Store,
        ledger: Arc<Ledger>,
        keys_alive: u64,
        meter: Arc<Meter>,
        policy: Arc<Policy>,
    ) -> Result<Self> {
        let island = Self {
            id,
            name,
            store,
            ledger,
            meter,
            policy,
            members: RwLock::default(),
            decisions: Mutex::new(LruCache::new(DECISIONS_MAX)),
            epoch: AtomicU64::new(u64::try_from(now_micros()).unwrap_or_default()),
            torn: AtomicBool::new(false),
            flood: Mutex::default(),
            commits: tokio::sync::Mutex::new(()),
            unsettled: Mutex::default(),
            hold: None,
            joint: Queue::default(),
            rotating: tokio::sync::Mutex::new(()),
            synced_generation: AtomicU64::new(0),
            appended_generation: AtomicU64::new(0),
            flushing: tokio::sync::Mutex::new(()),
            unshippable: AtomicBool::new(false),
            pruned_generation: AtomicU64::new(0),
        };
        match island.shared_copy() {
            Some(copy) => copy.catch_up(&island.ledger).await?,
            None => island.ledger.unshared(),
        }
        island.replay().await?;
        island.members_load().await?;
        let rows = island.store.rows();
        island.meter.seed(Resource::Keys, keys_alive);
        for (name, what) in COUNTERS.into_iter().filter(|(_, what)| counter(*what).is_some()) {
            island.meter.seed(what, u64::try_from(rows.usage(name).await?).unwrap_or_default());
        }
        Ok(island)
    }

    /// Served only as long as this node is home.
    pub(crate) fn held_by(mut self, hold: Option<Arc<Hold>>) -> Self {
        self.hold = hold;
        self
    }

    /// Whether this is what makes it served.
    pub(crate) fn is_held_by(&self, hold: &Arc<Hold>) -> bool {
        self.hold.as_ref().is_some_and(|held| Arc::ptr_eq(held, hold))
    }

    /// What makes this node the home.
    pub(crate) fn hold(&self) -> Option<&Arc<Hold>> {
        self.hold.as_ref()
    }

    /// Whether this node is certainly still home, and stays it for now.
    pub(crate) fn at_home(&self) -> bool {
        self.hold.as_ref().is_none_or(|hold| hold.alive() && !hold.is_leaving())
    }

    /// What was committed but had not reached the ledger when the service died reaches it now, in order.
    async fn replay(&self) -> Result<()> {
        let anchored = self.store.anchor()?.now().ledger_size;
        let size = self.ledger.mark().map_or_else(|| self.ledger.size(), |mark| mark.size);
        if size < anchored {
            return Err(Error::integrity(format!("the ledger has {size} entries, {anchored} were anchored: it was rolled back")));
        }
        let known = self.ledger.last_generation();
        let mut last = known.unwrap_or_default();
        for (generation, bytes) in self.store.outbox_pending(u32::MAX).await? {
            if known.is_none_or(|known| generation > known) {
                let mut entry: Entry = serde_json::from_slice(&bytes).map_err(Error::integrity)?;
                entry.generation = Some(generation);
                self.ledger.append(&entry)?;
                last = last.max(generation);
            }
        }
        match self.shared_copy() {
            Some(copy) => self.store.anchor()?.ledger_size(copy.ship(&self.ledger).await?)?,
            None => self.ledger.sync()?,
        }
        self.appended_generation.store(last, Ordering::Release);
        self.synced_generation.store(last, Ordering::Release);
        Ok(())
    }

    /// The member of this name as of the last committed change.
    pub(crate) fn member(&self, name: &str) -> Option<Arc<Member>> {
        self.members.read().get(name).cloned()
    }

    /// Reads the members, at opening.
    async fn members_load(&self) -> Result<()> {
        let rows = self.store.rows();
        let mut members = HashMap::new();
        let mut after: Option<String> = None;
        while members.len() < MEMBERS_MAX {
            let page = rows.list::<Member>(after.as_deref(), 500, None).await?;
            members.extend(page.records.into_iter().map(|member| (member.name.to_string(), Arc::new(member))));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        *self.members.write() = Arc::new(members);
        Ok(())
    }

    /// Takes a committed change over. No reading, no waiting: a request that is cut cannot leave old roles in force.
    fn members_change(&self, changes: Vec<MemberChange>) {
        if changes.is_empty() {
            return;
        }
        let mut members = self.members.write();
        let members = Arc::make_mut(&mut members);
        for (name, member) in changes {
            match member {
                Some(member) => members.insert(name.to_string(), Arc::new(member)),
                None => members.remove(name.as_str()),
            };
        }
    }

    /// All members, as of the last committed change.
    pub(crate) fn members(&self) -> Arc<HashMap<String, Arc<Member>>> {
        Arc::clone(&self.members.read())
    }

    /// What the policy says about a member with these roles and this grant on the resource, remembered.
    pub(crate) fn decide(
        &self,
        member: &Member,
        act: &'static str,
        kind: ResourceKind,
        resource: &str,
        grant: Option<Grant>,
    ) -> Arc<Decision> {
        let roles = member.roles.iter().fold(0, |bits, role| bits | 1 << (*role as u8));
        let key = DecisionKey { member: member.name.to_string(), roles, act, resource: resource.to_owned(), grant };
        if let Some(known) = self.decisions.lock().get(&key) {
            return Arc::clone(known);
        }
        let decision = Arc::new(self.policy.decide(&Question {
            tenant: self.id,
            principal: member.name.as_str(),
            roles: &member.roles,
            act,
            resource_kind: kind,
            resource_name: resource,
            resource_tenant: self.id,
            grant,
        }));
        self.decisions.lock().put(key, Arc::clone(&decision));
        decision
    }

    /// Changes with every committed write: caches outside compare it.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Begins the last step of a transaction. One at a time, so that entries join the ledger in the order of their generations.
    ///
    /// `failed` are the entries of the acts should the commit be broken off and turn out not to have happened.
    ///
    /// # Errors
    /// When the island was frozen while waiting.
    pub(crate) async fn committing(&self, generation: u64, failed: Vec<Entry>) -> Result<Committing<'_>> {
        let one = self.commits.lock().await;
        self.thawed()?;
        Ok(Committing { island: self, _one: one, open: true, broken_off: Some((generation, failed)) })
    }

    /// Finds out what became of a commit that was broken off. Nothing was committed since: the island is frozen.
    async fn settle(&self) -> Result<()> {
        let Some((generation, failed)) = self.unsettled.lock().take() else { return Ok(()) };
        let happened = self.store.outbox_settled().await?.iter().any(|(pending, _)| *pending == generation);
        // If it happened, its entry waits in the outbox for the next opening.
        if happened { Ok(()) } else { failed.iter().try_for_each(|entry| self.ledger.append(entry).map(drop)) }
    }

    /// Whether a commit was broken off between the store and the ledger: the outbox must be replayed by opening the island again.
    pub(crate) fn torn(&self) -> bool {
        self.torn.load(Ordering::Acquire) || self.ledger.failed()
    }

    /// No commit and no new permit from here on.
    pub(crate) fn freeze(&self, why: Why) {
        self.store.freeze().set(why);
    }

    pub(crate) fn frozen(&self) -> bool {
        self.store.freeze().is_set()
    }

    /// Refuses when frozen, and when another node may be home.
    pub(crate) fn thawed(&self) -> Result<()> {
        self.hold.as_ref().map_or(Ok(()), |hold| hold.check())?;
        self.store.freeze().check()
    }

    /// Another node may have it open: nothing is closed properly, nothing can be written any more.
    pub(crate) fn abandon(&self) {
        self.freeze(Why::Reopening);
        self.ledger.finish();
        if let Ok(anchor) = self.store.anchor() {
            anchor.release();
        }
    }

    /// Where the ledger's shared copy is; none of a tenant that lives on this node alone.
    fn shared_copy(&self) -> Option<SharedCopy<'_>> {
        self.store.ledger_copy()
    }

    /// Whether the tenant can be opened by another node should this one be lost.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared_copy().is_some()
    }

    /// Makes everything in the ledger safe: on disk, or where the tenant is shared in its copy; signs a checkpoint too when asked.
    pub(crate) async fn flush(&self, checkpoint: bool) -> Result<()> {
        let _one = self.flushing.lock().await;
        if !self.ledger.dirty() {
            return Ok(());
        }
        let ledger = Arc::clone(&self.ledger);
        let (appended, size) = (self.appended_generation.load(Ordering::Acquire), ledger.size());
        let Some(copy) = self.shared_copy() else {
            blocking(move || flush_files(&ledger, checkpoint)).await?;
            return self.safe(appended, size);
        };
        let size = copy.ship(&self.ledger).await.inspect_err(|error| self.not_shipped(error))?;
        if self.unshippable.swap(false, Ordering::AcqRel) {
            tracing::info!(tenant = %self.id.hex(), "the ledger is shipped again");
        }
        self.safe(appended, size)?;
        if checkpoint {
            blocking(move || ledger.checkpoint()).await?;
        }
        Ok(())
    }

    /// As [`Island::flush`], of a tenant that is not shared. Blocking.
    pub(crate) fn flush_here(&self, checkpoint: bool) -> Result<()> {
        let Ok(_one) = self.flushing.try_lock() else { return Ok(()) };
        if !self.ledger.dirty() || self.is_shared() {
            return Ok(());
        }
        let (appended, size) = (self.appended_generation.load(Ordering::Acquire), self.ledger.size());
        flush_files(&self.ledger, checkpoint)?;
        self.safe(appended, size)
    }

    /// A flush that is on its way already is enough.
    pub(crate) async fn flush_unless_flushing(&self, checkpoint: bool) -> Result<()> {
        if self.flushing.try_lock().is_err() { Ok(()) } else { self.flush(checkpoint).await }
    }

    /// The last part of a move of the ledger: what is there goes where `home` is, which has come as far as `filled`; nobody ships or
    /// signs more until the move is done, or given up.
    pub(crate) async fn ledger_moving(&self, home: &Home, filled: Option<Mark>) -> Result<LedgerMoving<'_>> {
        let one = self.flushing.lock().await;
        let mut moving = LedgerMoving { ledger: &self.ledger, _one: one, stays: self.ledger.mark(), to: None };
        if let (Some(copy), Some(filled)) = (home.ledger_copy(), filled) {
            self.ledger.share(filled.clone());
            moving.to = Some(copy.fill(&self.ledger, Some(filled)).await?);
        } else {
            let ledger = Arc::clone(&self.ledger);
            blocking(move || ledger.sync()).await?;
        }
        Ok(moving)
    }

    /// Everything up to here survives.
    fn safe(&self, generation: u64, size: u64) -> Result<()> {
        self.synced_generation.fetch_max(generation, Ordering::AcqRel);
        self.store.anchor()?.ledger_size(size)
    }

    fn not_shipped(&self, error: &Error) {
        if matches!(error, Error::Unavailable(reason) if *reason == TAKEN_OVER) {
            // What was not shipped stays in the files, and comes late when this node is home again.
            self.freeze(Why::Reopening);
            self.torn.store(true, Ordering::Release);
        }
        if !self.unshippable.swap(true, Ordering::AcqRel) {
            let context = error.private().unwrap_or_default();
            tracing::warn!(tenant = %self.id.hex(), %error, context, "the ledger cannot be shipped; it is tried again");
        }
    }

    /// Generation up to which the ledger has everything safe: the outbox may forget it.
    pub(crate) fn prunable(&self) -> u64 {
        self.synced_generation.load(Ordering::Acquire)
    }

    /// The same, when it is worth a statement of a commit.
    pub(crate) fn worth_pruning(&self) -> Option<u64> {
        let pruned = self.pruned_generation.load(Ordering::Acquire);
        Some(self.prunable()).filter(|prunable| *prunable >= pruned.saturating_add(PRUNED_AT_ONCE))
    }

    /// The outbox has forgotten everything up to there.
    pub(crate) fn pruned(&self, generation: u64) {
        self.pruned_generation.fetch_max(generation, Ordering::AcqRel);
    }

    /// Everything safe and anchored; the island may be dropped.
    pub(crate) async fn close(&self) -> Result<()> {
        if let Err(error) = self.settle().await {
            tracing::error!(context = error.private(), "an act that was broken off has no entry");
        }
        let flushed = self.flush(true).await;
        if self.is_shared() && flushed.is_err() {
            // What was not shipped waits in the files for the next time, and what was committed in the outbox, too.
            return self.store.close().await.and(flushed);
        }
        flushed?;
        self.store.outbox_prune(self.prunable()).await?;
        self.store.close().await
    }
}

fn flush_files(ledger: &Ledger, checkpoint: bool) -> Result<()> {
    if checkpoint { ledger.checkpoint().map(drop) } else { ledger.sync() }
}

/// A ledger between two places. Dropped, it stays where it was.
pub(crate) struct LedgerMoving<'i> {
    ledger: &'i Ledger,
    _one: tokio::sync::MutexGuard<'i, ()>,
    /// How far the copy has come where it is when this is dropped; none of a log that is on this node alone.
    stays: Option<Mark>,
    /// How far it has come at the new place.
    to: Option<Mark>,
}

impl LedgerMoving<'_> {
    /// It is at the new place.
    pub(crate) fn moved(mut self) {
        self.stays = self.to.take();
    }
}

impl Drop for LedgerMoving<'_> {
    fn drop(&mut self) {
        match self.stays.take() {
            Some(mark) => self.ledger.share(mark),
            None => self.ledger.unshared(),
        }
    }
}

/// A commit on its way from the store into the ledger. Broken off in between (its request was cut, the disk failed), it freezes
/// the island: closing it settles what became of the commit, and opening it again replays the outbox in order.
pub(crate) struct Committing<'i> {
    island: &'i Island,
    _one: tokio::sync::MutexGuard<'i, ()>,
    open: bool,
    broken_off: Option<(u64, Vec<Entry>)>,
}

impl Committing<'_> {
    /// The store has it: caches are stale, and the entries join the ledger, the first one under this generation.
    pub(crate) fn done(mut self, first: u64, entries: Vec<Entry>, members: Vec<MemberChange>) -> Result<()> {
        self.island.members_change(members);
        self.island.epoch.fetch_add(1, Ordering::AcqRel);
        for (generation, mut entry) in (first..).zip(entries) {
            entry.generation = Some(generation);
            self.island.ledger.append(&entry)?;
            self.island.appended_generation.fetch_max(generation, Ordering::AcqRel);
        }
        self.open = false;
        Ok(())
    }
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        if self.open {
            *self.island.unsettled.lock() = self.broken_off.take();
            self.island.freeze(Why::Reopening);
            self.island.torn.store(true, Ordering::Release);
        }
    }
}
