//! Anchors: what must not go back in time.
//!
//! An encrypted database file authenticates its pages, but an *old* page or an old copy of the whole file is still authentic.
//! So the newest generation of every store is written down outside the data folder, in the keystore, one record a tenant.
//! A store whose generation lies behind its anchor was rolled back. A store that was closed cleanly also leaves the hash of
//! its file, which catches a single page put back.
//!
//! Several nodes share the file without waiting for each other: a tenant is open on one of them at a time, and a record is one write.
//! What a node that lost a tenant still writes can only be lower, and is never taken for more than it is.
//!
//! Records are written after every commit without waiting for the disk, and synced each second and at close: after a power cut
//! the anchor may be up to a second older than the store, never newer, so an honest crash never looks like an attack.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::name::TenantId;
use crate::root::RootStore;
use crate::seal::{Key, mac, same};

const FILE: &str = "anchors";
/// Divides a disk sector, so that no record is ever torn.
const RECORD_BYTES: usize = 128;
const BODY_BYTES: usize = RECORD_BYTES - MAC_BYTES;
const MAC_BYTES: usize = 32;
const FLAG_CLEAN: u64 = 1;
/// Slots that may exist; 128 bytes each.
const SLOTS_MAX: u64 = 16 * 1024 * 1024;

/// What is known about a store from outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Anchor {
    /// Generation of the newest commit that was anchored.
    pub(crate) generation: u64,
    /// Entries of the tenant's ledger that were anchored.
    pub(crate) ledger_size: u64,
    /// SHA-256 of the database file, if it was closed cleanly and not opened for writing since.
    pub(crate) clean: Option<[u8; 32]>,
}

/// Whose keystore it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// One service alone.
    Alone,
    /// The nodes of one service.
    Nodes,
}

/// The file of anchors. Locked while open: for one service, or for its nodes against a service that takes itself for alone.
pub(crate) struct Anchors {
    file: File,
    sharing: Sharing,
    key: Key,
    unsynced: AtomicBool,
    open_slots: Mutex<HashMap<u64, TenantId>>,
}

impl Anchors {
    /// Opens or makes the file in the keystore, for one service.
    pub(crate) fn open(root: &RootStore) -> Result<Arc<Self>> {
        Self::open_for(root, Sharing::Alone)
    }

    /// Opens or makes the file in the keystore, for one of several nodes.
    pub(crate) fn open_shared(root: &RootStore) -> Result<Arc<Self>> {
        Self::open_for(root, Sharing::Nodes)
    }

    fn open_for(root: &RootStore, sharing: Sharing) -> Result<Arc<Self>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(root.dir().join(FILE))?;
        let locked = match sharing {
            Sharing::Alone => file.try_lock(),
            Sharing::Nodes => file.try_lock_shared(),
        };
        locked.map_err(|error| match error {
            TryLockError::WouldBlock => Error::Unavailable("another service uses this keystore"),
            TryLockError::Error(error) => error.into(),
        })?;
        Ok(Arc::new(Self {
            file,
            sharing,
            key: root.control_key().derive("anchors", &[]),
            unsynced: AtomicBool::new(false),
            open_slots: Mutex::new(HashMap::new()),
        }))
    }

    /// The anchor of one store. `id` is all zero for the service's own control database, which has slot 0.
    ///
    /// # Errors
    /// [`Error::Integrity`] if the record is not what was written for this slot and id.
    pub(crate) fn slot(self: &Arc<Self>, slot: u64, id: TenantId) -> Result<AnchorSlot> {
        let now = self.read(slot, id)?;
        if self.open_slots.lock().insert(slot, id).is_some() {
            return Err(Error::internal(format!("anchor {slot} is open already")));
        }
        Ok(AnchorSlot {
            anchors: Arc::clone(self),
            slot: AtomicU64::new(slot),
            id,
            now: Mutex::new(now),
            released: AtomicBool::new(false),
            detached: AtomicBool::new(false),
        })
    }

    /// For a store that is not the tenant's yet, or no longer: it was left as `now` says, and what becomes of it is written nowhere.
    pub(crate) fn detached(self: &Arc<Self>, id: TenantId, now: Anchor) -> AnchorSlot {
        AnchorSlot {
            anchors: Arc::clone(self),
            slot: AtomicU64::new(0),
            id,
            now: Mutex::new(now),
            released: AtomicBool::new(false),
            detached: AtomicBool::new(true),
        }
    }

    /// Anchors a store that nobody has opened in its slot yet.
    pub(crate) fn put(self: &Arc<Self>, slot: u64, id: TenantId, anchor: &Anchor) -> Result<()> {
        let slot = self.slot(slot, id)?;
        let put = slot.change(|now| *now = *anchor);
        slot.release();
        put
    }

    /// Whether the store of this slot never committed anything.
    pub(crate) fn untouched(&self, slot: u64, id: TenantId) -> Result<bool> {
        Ok(self.read(slot, id)?.generation == 0)
    }

    /// Makes everything written so far durable. Call each second and at shutdown.
    pub(crate) fn sync(&self) -> Result<()> {
        if self.unsynced.swap(false, Ordering::AcqRel) {
            self.file.sync_data().inspect_err(|_| self.unsynced.store(true, Ordering::Release))?;
        }
        Ok(())
    }

    fn read(&self, slot: u64, id: TenantId) -> Result<Anchor> {
        let mut record = [0u8; RECORD_BYTES];
        let offset = offset(slot)?;
        if offset >= self.file.metadata()?.len() {
            return Ok(Anchor::default());
        }
        self.file.read_exact_at(&mut record, offset)?;
        if record == [0u8; RECORD_BYTES] {
            return Ok(Anchor::default());
        }
        let (body, mac) = record.split_at(BODY_BYTES);
        if !same(&self.mac(slot, body), mac) {
            return Err(Error::integrity(format!("anchor {slot} was changed; restore the file `{FILE}` of the keystore")));
        }
        let mut fields = Fields(body);
        if fields.take::<16>() != Some(id.0) {
            return Err(Error::integrity(format!("anchor {slot} belongs to another tenant")));
        }
        let mut number = || fields.take::<8>().map(u64::from_be_bytes).unwrap_or_default();
        let (flags, generation, ledger_size) = (number(), number(), number());
        let hash = fields.take::<32>().filter(|_| flags & FLAG_CLEAN != 0);
        Ok(Anchor { generation, ledger_size, clean: hash })
    }

    fn write(&self, slot: u64, id: TenantId, anchor: &Anchor) -> Result<()> {
        let flags = if anchor.clean.is_some() { FLAG_CLEAN } else { 0 };
        let mut record = Vec::with_capacity(RECORD_BYTES);
        record.extend_from_slice(&id.0);
        for number in [flags, anchor.generation, anchor.ledger_size] {
            record.extend_from_slice(&number.to_be_bytes());
        }
        record.extend_from_slice(&anchor.clean.unwrap_or_default());
        record.resize(BODY_BYTES, 0);
        let mac = self.mac(slot, &record);
        record.extend_from_slice(&mac);
        self.file.write_all_at(&record, offset(slot)?)?;
        self.unsynced.store(true, Ordering::Release);
        Ok(())
    }

    fn mac(&self, slot: u64, body: &[u8]) -> [u8; 32] {
        mac(&self.key, &[&slot.to_be_bytes(), body])
    }
}

fn offset(slot: u64) -> Result<u64> {
    if slot >= SLOTS_MAX {
        return Err(Error::Unavailable("no more room for tenants in the keystore"));
    }
    Ok(slot * RECORD_BYTES as u64)
}

/// Cuts fixed fields off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

/// The anchor of one open store. Generation and ledger size only grow.
pub(crate) struct AnchorSlot {
    anchors: Arc<Anchors>,
    slot: AtomicU64,
    id: TenantId,
    now: Mutex<Anchor>,
    released: AtomicBool,
    /// In memory only.
    detached: AtomicBool,
}

impl AnchorSlot {
    /// What is anchored now.
    pub(crate) fn now(&self) -> Anchor {
        *self.now.lock()
    }

    /// What is anchored, also by other nodes.
    pub(crate) fn refreshed(&self) -> Result<Anchor> {
        self.change(|_| {})?;
        Ok(self.now())
    }

    /// Says, durably, that the file is about to change. Called before the first write after opening; free afterwards.
    pub(crate) fn unclean(&self) -> Result<()> {
        if self.now.lock().clean.is_none() {
            return Ok(());
        }
        self.change(|anchor| anchor.clean = None)?;
        Ok(self.anchors.file.sync_data()?)
    }

    /// Anchors a committed generation.
    pub(crate) fn generation(&self, generation: u64) -> Result<()> {
        self.change(|anchor| {
            anchor.clean = None;
            anchor.generation = anchor.generation.max(generation);
        })
    }

    /// Anchors the size of the tenant's ledger.
    pub(crate) fn ledger_size(&self, size: u64) -> Result<()> {
        self.change(|anchor| anchor.ledger_size = anchor.ledger_size.max(size))
    }

    /// The file is closed and has this SHA-256; durable on return.
    pub(crate) fn clean(&self, generation: u64, hash: [u8; 32]) -> Result<()> {
        self.change(|anchor| {
            anchor.generation = anchor.generation.max(generation);
            anchor.clean = Some(hash);
        })?;
        Ok(self.anchors.file.sync_data()?)
    }

    /// The store is closed: it may be opened again, and changes nothing here any more.
    pub(crate) fn release(&self) {
        let _now = self.now.lock();
        if !self.released.swap(true, Ordering::AcqRel) && !self.detached.load(Ordering::Acquire) {
            self.anchors.open_slots.lock().remove(&self.slot.load(Ordering::Acquire));
        }
    }

    /// The tenant moved to the store of `to`, which was detached: from here on that one is anchored, and this one is detached.
    pub(crate) fn hand_over(&self, to: &Self) -> Result<()> {
        let (mine, mut theirs) = (self.now.lock(), to.now.lock());
        let gone = self.released.load(Ordering::Acquire) || self.detached.load(Ordering::Acquire);
        if gone || !to.detached.load(Ordering::Acquire) || to.released.load(Ordering::Acquire) || self.id != to.id {
            return Err(Error::internal("an anchor is handed over that nobody holds"));
        }
        let next = Anchor {
            generation: mine.generation.max(theirs.generation),
            ledger_size: mine.ledger_size.max(theirs.ledger_size),
            clean: None,
        };
        let slot = self.slot.load(Ordering::Acquire);
        self.anchors.write(slot, self.id, &next)?;
        *theirs = next;
        to.slot.store(slot, Ordering::Release);
        to.detached.store(false, Ordering::Release);
        self.detached.store(true, Ordering::Release);
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut Anchor)) -> Result<()> {
        let mut now = self.now.lock();
        if self.released.load(Ordering::Acquire) {
            return Err(Error::Unavailable("the store is closed"));
        }
        if self.anchors.sharing == Sharing::Nodes && !self.detached.load(Ordering::Acquire) {
            // Others may have written since. Never lower what they wrote.
            let theirs = self.anchors.read(self.slot.load(Ordering::Acquire), self.id)?;
            now.generation = now.generation.max(theirs.generation);
            now.ledger_size = now.ledger_size.max(theirs.ledger_size);
        }
        let mut next = *now;
        change(&mut next);
        if next != *now {
            if !self.detached.load(Ordering::Acquire) {
                self.anchors.write(self.slot.load(Ordering::Acquire), self.id, &next)?;
            }
            *now = next;
        }
        Ok(())
    }
}

impl Drop for AnchorSlot {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TenantId = TenantId([3; 16]);

    fn keystore() -> (tempfile::TempDir, RootStore) {
        let dir = tempfile::tempdir().unwrap();
        let root = RootStore::open_or_create(&dir.path().join("keystore")).unwrap().0;
        (dir, root)
    }

    #[test]
    fn anchors_survive_and_only_grow() {
        let (_dir, root) = keystore();
        let anchors = Anchors::open(&root).unwrap();
        let slot = anchors.slot(7, ID).unwrap();
        assert_eq!(slot.now(), Anchor::default());
        slot.generation(5).unwrap();
        slot.generation(4).unwrap();
        slot.ledger_size(9).unwrap();
        assert!(anchors.slot(7, ID).is_err(), "one store, one slot");
        slot.clean(5, [1; 32]).unwrap();
        slot.release();
        assert!(slot.generation(9).is_err(), "closed");
        let reopened = anchors.slot(7, ID).unwrap();
        drop(slot);
        assert!(anchors.slot(7, ID).is_err(), "the old handle's end does not free the new one's slot");
        drop(reopened);
        drop(anchors);
        let anchors = Anchors::open(&root).unwrap();
        let slot = anchors.slot(7, ID).unwrap();
        assert_eq!(slot.now(), Anchor { generation: 5, ledger_size: 9, clean: Some([1; 32]) });
        slot.unclean().unwrap();
        assert_eq!(slot.now().clean, None);
        assert_eq!(anchors.slot(6, ID).unwrap().now(), Anchor::default(), "hole");
    }

    #[test]
    fn changed_moved_and_foreign_records_are_refused() {
        let (_dir, root) = keystore();
        let anchors = Anchors::open(&root).unwrap();
        anchors.slot(1, ID).unwrap().generation(5).unwrap();
        let path = root.dir().join(FILE);
        let good = std::fs::read(&path).unwrap();
        for at in RECORD_BYTES..2 * RECORD_BYTES {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(anchors.slot(1, ID), Err(Error::Integrity(_))), "byte {at}");
        }
        std::fs::write(&path, &good).unwrap();
        assert!(anchors.slot(1, TenantId([4; 16])).is_err(), "other tenant");
        let moved = [&good[RECORD_BYTES..], &good[RECORD_BYTES..]].concat();
        std::fs::write(&path, moved).unwrap();
        assert!(anchors.slot(0, ID).is_err(), "moved to another slot");
    }

    #[test]
    fn an_anchor_goes_over_to_where_its_store_moved() {
        let (_dir, root) = keystore();
        let anchors = Anchors::open(&root).unwrap();
        let (old, new) = (anchors.slot(2, ID).unwrap(), anchors.detached(ID, Anchor::default()));
        old.clean(5, [1; 32]).unwrap();
        old.ledger_size(3).unwrap();
        new.generation(9).unwrap();
        old.hand_over(&new).unwrap();
        assert_eq!(new.now(), Anchor { generation: 9, ledger_size: 3, clean: None });
        assert!(old.hand_over(&new).is_err(), "once");
        old.generation(20).unwrap();
        drop(old);
        assert!(anchors.slot(2, ID).is_err(), "the end of the old one frees nothing");
        new.generation(10).unwrap();
        drop(new);
        assert_eq!(anchors.slot(2, ID).unwrap().now(), Anchor { generation: 10, ledger_size: 3, clean: None });
        drop(anchors.detached(ID, Anchor::default()));
    }

    #[test]
    fn one_service_a_keystore() {
        let (_dir, root) = keystore();
        let first = Anchors::open(&root).unwrap();
        assert!(matches!(Anchors::open(&root), Err(Error::Unavailable(_))));
        assert!(Anchors::open_shared(&root).is_err(), "nodes do not join a service that is alone");
        drop(first);
        assert!(Anchors::open(&root).is_ok());
    }

    #[test]
    fn nodes_share_a_file_and_never_lower_each_other() {
        let (_dir, root) = keystore();
        let (one, two) = (Anchors::open_shared(&root).unwrap(), Anchors::open_shared(&root).unwrap());
        assert!(Anchors::open(&root).is_err(), "nobody alone beside them");
        let old = one.slot(3, ID).unwrap();
        old.generation(5).unwrap();
        old.ledger_size(7).unwrap();
        let new = two.slot(3, ID).unwrap();
        assert_eq!(new.now(), Anchor { generation: 5, ledger_size: 7, clean: None }, "as the other left it");
        new.generation(9).unwrap();
        old.ledger_size(8).unwrap();
        assert_eq!(new.refreshed().unwrap().ledger_size, 8);
        drop(old);
        drop(new);
        assert_eq!(one.slot(3, ID).unwrap().now(), Anchor { generation: 9, ledger_size: 8, clean: None }, "late words change nothing");
    }
}
