//! A tenant's keys.
//!
//! ```text
//! root key, epoch e ── wraps ──► tenant key, version v ── wraps ──► data keys: rows, blobs, ledger content 1..n, ledger signing
//!                                        └────────────── wraps ──► one random key an object (stored with the object)
//! ```
//! All keys are random; nothing is derived from a tenant's name or id. Rotation makes a new tenant key version and re-wraps:
//! data keys at once, object keys in the background, while old versions stay readable until they are retired. Destroying the
//! rows of this module (and the epoch they are wrapped under) is erasure.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::name::TenantId;
use crate::root::RootStore;
use crate::seal::{self, Key};

/// Versions of a tenant key that may be readable at once.
const VERSIONS_MAX: usize = 16;

/// What a data key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Purpose {
    /// Raw key of the tenant's `rows.db`.
    Rows,
    /// Content of ledger entries. The only purpose with several numbers: a new one with each rotation.
    Ledger,
    /// Seed of the ledger's signing key.
    LedgerSign,
}

impl Purpose {
    const ALL: [Self; 3] = [Self::Rows, Self::Ledger, Self::LedgerSign];

    /// Name in control rows and in associated data.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Ledger => "ledger",
            Self::LedgerSign => "ledger-sign",
        }
    }

    /// From [`Purpose::name`].
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.name() == name)
    }
}

/// What a tenant key version may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyState {
    /// Wraps and unwraps; exactly one.
    Active,
    /// Only unwraps, until everything is re-wrapped.
    Old,
    /// Gone; the row stays as history, without the key.
    Retired,
}

impl KeyState {
    const ALL: [Self; 3] = [Self::Active, Self::Old, Self::Retired];

    /// Name in control rows and for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Old => "old",
            Self::Retired => "retired",
        }
    }

    /// From [`KeyState::name`].
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// A tenant key version as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TenantKeyRow {
    pub(crate) version: u32,
    /// Epoch of the root key it is wrapped under.
    pub(crate) epoch: u64,
    /// Empty when retired.
    pub(crate) wrapped: Vec<u8>,
    pub(crate) state: KeyState,
    /// Unix microseconds.
    pub(crate) created_at: i64,
}

/// A data key as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataKeyRow {
    pub(crate) purpose: Purpose,
    pub(crate) n: u32,
    /// Tenant key version it is wrapped under.
    pub(crate) version: u32,
    pub(crate) wrapped: Vec<u8>,
}

/// All stored keys of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct KeyRows {
    pub(crate) tenant: Vec<TenantKeyRow>,
    pub(crate) data: Vec<DataKeyRow>,
}

impl KeyRows {
    /// Whether these are the same keys, in whatever order.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let sorted = |keys: &Self| {
            let mut keys = keys.clone();
            keys.tenant.sort_by_key(|row| row.version);
            keys.data.sort_by_key(|row| (row.purpose, row.n));
            keys
        };
        sorted(self) == sorted(other)
    }
}

/// A tenant's keys, opened.
pub(crate) struct Keyring {
    tenant: TenantId,
    active: u32,
    versions: BTreeMap<u32, Key>,
    data: BTreeMap<(Purpose, u32), Key>,
    rows: Key,
    ledger_sign: Key,
}

impl Keyring {
    /// Fresh keys for a new tenant and the rows to store. `now` in Unix microseconds.
    pub(crate) fn create(root: &RootStore, tenant: TenantId, now: i64) -> Result<(Self, KeyRows)> {
        let key = Key::random()?;
        let rows = KeyRows {
            tenant: vec![wrapped_version(root, tenant, 1, &key, now)?],
            data: [Purpose::Rows, Purpose::Ledger, Purpose::LedgerSign]
                .into_iter()
                .map(|purpose| wrapped_data(tenant, &key, 1, purpose, 1, &Key::random()?))
                .collect::<Result<_>>()?,
        };
        Ok((Self::load(root, tenant, &rows)?, rows))
    }

    /// The rows to store of keys that were made just now, under the root key of now.
    pub(crate) fn stored_anew(&self, root: &RootStore, now: i64) -> Result<KeyRows> {
        let key = self.kek(self.active)?;
        Ok(KeyRows {
            tenant: vec![wrapped_version(root, self.tenant, self.active, key, now)?],
            data: self
                .data
                .iter()
                .map(|((purpose, n), data)| wrapped_data(self.tenant, key, self.active, *purpose, *n, data))
                .collect::<Result<_>>()?,
        })
    }

    /// Opens stored keys.
    ///
    /// # Errors
    /// [`Error::Integrity`] if a key does not open, was moved here from another tenant, or its epoch was destroyed.
    pub(crate) fn load(root: &RootStore, tenant: TenantId, rows: &KeyRows) -> Result<Self> {
        let mut versions = BTreeMap::new();
        let mut active = None;
        for row in rows.tenant.iter().filter(|row| row.state != KeyState::Retired) {
            let epoch = root.epoch_key(row.epoch).ok_or_else(|| Error::integrity(format!("key epoch {} was destroyed", row.epoch)))?;
            versions.insert(row.version, seal::unwrap(&epoch, &version_context(tenant, row.version, row.epoch), &row.wrapped)?);
            if row.state == KeyState::Active && active.replace(row.version).is_some() {
                return Err(Error::integrity("two active tenant keys"));
            }
        }
        let mut data = BTreeMap::new();
        for row in &rows.data {
            let kek = versions.get(&row.version).ok_or_else(|| Error::integrity("a data key of an unknown version"))?;
            let context = data_context(tenant, row.purpose, row.n, row.version);
            data.insert((row.purpose, row.n), seal::unwrap(kek, &context, &row.wrapped)?);
        }
        let single = |purpose| data.get(&(purpose, 1)).cloned().ok_or_else(|| Error::integrity("a data key is missing"));
        let (rows, ledger_sign) = (single(Purpose::Rows)?, single(Purpose::LedgerSign)?);
        single(Purpose::Ledger)?;
        Ok(Self { tenant, active: active.ok_or_else(|| Error::integrity("no active tenant key"))?, versions, data, rows, ledger_sign })
    }

    /// Whose keys.
    pub(crate) fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The version that wraps.
    pub(crate) fn version(&self) -> u32 {
        self.active
    }

    /// Whether a rotation is not finished.
    pub(crate) fn has_old_version(&self) -> bool {
        self.versions.len() > 1
    }

    /// Raw key of `rows.db`.
    pub(crate) fn rows_key(&self) -> &Key {
        &self.rows
    }

    /// Content keys of the ledger by number, oldest first; the last one seals.
    pub(crate) fn ledger_keys(&self) -> Vec<(u32, Key)> {
        let of = |(&(purpose, n), key): (&(Purpose, u32), &Key)| (purpose == Purpose::Ledger).then(|| (n, key.clone()));
        self.data.iter().filter_map(of).collect()
    }

    /// Seed of the ledger's signing key.
    pub(crate) fn ledger_seed(&self) -> &Key {
        &self.ledger_sign
    }

    /// Wraps an object's key under the active version: (version, wrapped).
    pub(crate) fn wrap_object(&self, key: &Key, object: [u8; 16]) -> Result<(u32, Vec<u8>)> {
        let kek = self.kek(self.active)?;
        Ok((self.active, seal::wrap(kek, &object_context(self.tenant, object, self.active), key)?))
    }

    /// Opens an object's key.
    pub(crate) fn unwrap_object(&self, version: u32, object: [u8; 16], wrapped: &[u8]) -> Result<Key> {
        seal::unwrap(self.kek(version)?, &object_context(self.tenant, object, version), wrapped)
    }

    /// Rotation: a new active version, all data keys re-wrapped under it, one more ledger content key. The old version stays
    /// readable. Returns the new keyring and the rows that replace the stored ones.
    pub(crate) fn next_version(&self, root: &RootStore, rows: &KeyRows, now: i64) -> Result<(Self, KeyRows)> {
        if self.versions.len() >= VERSIONS_MAX {
            return Err(Error::Unavailable("too many key versions are still in use"));
        }
        let version = rows.tenant.iter().map(|row| row.version).max().unwrap_or(0) + 1;
        let key = Key::random()?;
        let mut next = KeyRows { tenant: rows.tenant.clone(), data: Vec::with_capacity(self.data.len() + 1) };
        for row in next.tenant.iter_mut().filter(|row| row.state == KeyState::Active) {
            row.state = KeyState::Old;
        }
        next.tenant.push(wrapped_version(root, self.tenant, version, &key, now)?);
        for ((purpose, n), data) in &self.data {
            next.data.push(wrapped_data(self.tenant, &key, version, *purpose, *n, data)?);
        }
        let ledger = self.ledger_keys().last().map_or(0, |(n, _)| *n) + 1;
        next.data.push(wrapped_data(self.tenant, &key, version, Purpose::Ledger, ledger, &Key::random()?)?);
        Ok((Self::load(root, self.tenant, &next)?, next))
    }

    /// Retires an old version, once nothing is wrapped under it any more.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it is active (also if only this keyring in memory still thinks so), unknown, or a data key still needs it.
    pub(crate) fn retire(&self, root: &RootStore, rows: &KeyRows, version: u32) -> Result<(Self, KeyRows)> {
        let mut next = rows.clone();
        let row = next.tenant.iter_mut().find(|row| row.version == version && row.state == KeyState::Old && version != self.active);
        let Some(row) = row.filter(|_| rows.data.iter().all(|data| data.version != version)) else {
            return Err(Error::Conflict(format!("key version {version} is not an old one that nothing needs")));
        };
        row.state = KeyState::Retired;
        row.wrapped.clear();
        Ok((Self::load(root, self.tenant, &next)?, next))
    }

    fn kek(&self, version: u32) -> Result<&Key> {
        self.versions.get(&version).ok_or_else(|| Error::integrity(format!("key version {version} is retired or unknown")))
    }
}

/// Re-wraps one tenant key from its epoch to another.
pub(crate) fn rewrap(old: &Key, new: &Key, tenant: TenantId, row: &TenantKeyRow, epoch: u64) -> Result<Vec<u8>> {
    let key = seal::unwrap(old, &version_context(tenant, row.version, row.epoch), &row.wrapped)?;
    seal::wrap(new, &version_context(tenant, row.version, epoch), &key)
}

fn wrapped_version(root: &RootStore, tenant: TenantId, version: u32, key: &Key, now: i64) -> Result<TenantKeyRow> {
    let epoch = root.epoch();
    let kek = root.epoch_key(epoch).ok_or_else(|| Error::internal("no key epoch"))?;
    let wrapped = seal::wrap(&kek, &version_context(tenant, version, epoch), key)?;
    Ok(TenantKeyRow { version, epoch, wrapped, state: KeyState::Active, created_at: now })
}

fn wrapped_data(tenant: TenantId, kek: &Key, version: u32, purpose: Purpose, n: u32, key: &Key) -> Result<DataKeyRow> {
    Ok(DataKeyRow { purpose, n, version, wrapped: seal::wrap(kek, &data_context(tenant, purpose, n, version), key)? })
}

fn version_context(tenant: TenantId, version: u32, epoch: u64) -> Vec<u8> {
    [b"tenant-key".as_slice(), &tenant.0, &version.to_be_bytes(), &epoch.to_be_bytes()].concat()
}

fn data_context(tenant: TenantId, purpose: Purpose, n: u32, version: u32) -> Vec<u8> {
    [b"data-key".as_slice(), &tenant.0, &n.to_be_bytes(), &version.to_be_bytes(), purpose.name().as_bytes()].concat()
}

fn object_context(tenant: TenantId, object: [u8; 16], version: u32) -> Vec<u8> {
    [b"object-key".as_slice(), &tenant.0, &object, &version.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantId = TenantId([5; 16]);

    fn fresh() -> (tempfile::TempDir, RootStore, Keyring, KeyRows) {
        let dir = tempfile::tempdir().unwrap();
        let root = RootStore::open_or_create(&dir.path().join("keystore")).unwrap().0;
        let (keyring, rows) = Keyring::create(&root, TENANT, 0).unwrap();
        (dir, root, keyring, rows)
    }

    #[test]
    fn stored_keys_open_again_and_are_all_different() {
        let (_dir, root, keyring, rows) = fresh();
        let again = Keyring::load(&root, TENANT, &rows).unwrap();
        assert_eq!(again.rows_key().bytes(), keyring.rows_key().bytes());
        assert_eq!(again.ledger_seed().bytes(), keyring.ledger_seed().bytes());
        assert_ne!(keyring.rows_key().bytes(), keyring.ledger_seed().bytes());
        assert_ne!(keyring.rows_key().bytes(), Keyring::create(&root, TENANT, 0).unwrap().0.rows_key().bytes());
    }

    #[test]
    fn keys_open_only_in_their_place() {
        let (_dir, root, _, rows) = fresh();
        let refused = |tenant, rows: &KeyRows| matches!(Keyring::load(&root, tenant, rows), Err(Error::Integrity(_)));
        assert!(refused(TenantId([6; 16]), &rows), "another tenant");
        type Change = (&'static str, fn(&mut KeyRows));
        let changes: [Change; 8] = [
            ("purposes swapped", |rows| {
                let wrapped = rows.data[0].wrapped.clone();
                rows.data[0].wrapped = std::mem::replace(&mut rows.data[1].wrapped, wrapped);
            }),
            ("number", |rows| rows.data[1].n = 2),
            ("data key version", |rows| rows.data[0].version = 2),
            ("version", |rows| rows.tenant[0].version = 2),
            ("epoch", |rows| rows.tenant[0].epoch = 2),
            ("a bit", |rows| rows.tenant[0].wrapped[20] ^= 1),
            ("no active version", |rows| rows.tenant[0].state = KeyState::Old),
            ("key missing", |rows| drop(rows.data.remove(0))),
        ];
        for (what, change) in changes {
            let mut changed = rows.clone();
            change(&mut changed);
            assert!(refused(TENANT, &changed), "{what}");
        }
    }

    #[test]
    fn rotation_rewraps_and_adds_a_ledger_key() {
        let (_dir, root, first, rows) = fresh();
        let (second, rows) = first.next_version(&root, &rows, 7).unwrap();
        assert_eq!((first.version(), second.version()), (1, 2));
        assert_eq!(first.rows_key().bytes(), second.rows_key().bytes(), "data keys stay, their wrapping changes");
        assert!(rows.data.iter().all(|row| row.version == 2));
        let numbers = |keyring: &Keyring| keyring.ledger_keys().iter().map(|(n, _)| *n).collect::<Vec<_>>();
        assert_eq!((numbers(&first), numbers(&second)), (vec![1], vec![1, 2]));
        let states: Vec<KeyState> = rows.tenant.iter().map(|row| row.state).collect();
        assert_eq!(states, [KeyState::Old, KeyState::Active]);
        let object = second.wrap_object(first.rows_key(), [1; 16]).unwrap();
        assert_eq!(object.0, 2);
        assert!(first.unwrap_object(object.0, [1; 16], &object.1).is_err());
        assert!(second.unwrap_object(object.0, [2; 16], &object.1).is_err(), "another object");
    }

    #[test]
    fn versions_in_use_are_bounded() {
        let (_dir, root, mut keyring, mut rows) = fresh();
        for _ in 1..VERSIONS_MAX {
            (keyring, rows) = keyring.next_version(&root, &rows, 0).unwrap();
        }
        assert!(matches!(keyring.next_version(&root, &rows, 0), Err(Error::Unavailable(_))));
        (keyring, rows) = keyring.retire(&root, &rows, 1).unwrap();
        keyring.next_version(&root, &rows, 0).unwrap();
    }

    #[test]
    fn destroying_the_epoch_destroys_what_was_not_rewrapped() {
        let (_dir, root, keyring, erased) = fresh();
        let mut survivor = erased.clone();
        let epoch = root.begin_epoch().unwrap();
        let (old, new) = (root.epoch_key(1).unwrap(), root.epoch_key(epoch).unwrap());
        survivor.tenant[0].wrapped = rewrap(&old, &new, TENANT, &survivor.tenant[0], epoch).unwrap();
        survivor.tenant[0].epoch = epoch;
        root.destroy_epochs_before(epoch).unwrap();
        assert_eq!(Keyring::load(&root, TENANT, &survivor).unwrap().rows_key().bytes(), keyring.rows_key().bytes());
        assert!(Keyring::load(&root, TENANT, &erased).is_err(), "an old copy of the stored keys is worth nothing");
    }
}
