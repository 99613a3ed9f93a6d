//! The root of all keys: one small file in the keystore folder, outside the data folder, so that a copy of the data alone is
//! worth nothing.
//!
//! It holds the service's id, the control key and the *epochs*. Every tenant key is wrapped under the key of one epoch.
//! Erasing a tenant for good means: begin a new epoch, re-wrap the survivors, destroy the old epochs. After that even a full
//! old copy of the data folder, wrapped keys included, does not open for the erased tenant.
//!
//! The file is replaced atomically (temporary file, fsync, rename, fsync of the folder); a crash at any point leaves the old or
//! the new one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Result};
use crate::name::{hex, unhex};
use crate::seal::{self, Key};

const FILE: &str = "root.key";
const FILE_TEMPORARY: &str = "root.key.new";
const FILE_LOCK: &str = "root.lock";
const FORMAT: u32 = 1;
/// Epochs that may exist at once; each erasure leaves one behind only while survivors are re-wrapped.
const EPOCHS_MAX: usize = 64;
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Whether [`RootStore::open_or_create`] made a new root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    /// A new root key was made: this is a new service.
    Yes,
    /// The root key was there.
    No,
}

/// The keystore folder, opened.
pub(crate) struct RootStore {
    dir: PathBuf,
    service_id: [u8; 16],
    control_key: Key,
    epochs: RwLock<BTreeMap<u64, Key>>,
}

impl RootStore {
    /// Opens the keystore in `dir`, or makes one with fresh keys.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the remedy if others may read the folder or file, or somebody else owns them;
    /// [`Error::Integrity`] if the file does not parse.
    pub(crate) fn open_or_create(dir: &Path) -> Result<(Self, Created)> {
        if !dir.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        private_to_us(dir, 0o700)?;
        // Of two services that start at once for the first time, one makes the root and the other finds it.
        let alone = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join(FILE_LOCK))?;
        alone.lock()?;
        let path = dir.join(FILE);
        // A crash before the rename leaves a temporary file which was never the truth.
        wipe(&dir.join(FILE_TEMPORARY))?;
        if path.exists() {
            private_to_us(&path, 0o600)?;
            return Ok((Self::read(dir, &path)?, Created::No));
        }
        let store = Self {
            dir: dir.to_owned(),
            service_id: seal::random()?,
            control_key: Key::random()?,
            epochs: RwLock::new(BTreeMap::from([(1, Key::random()?)])),
        };
        store.write(&store.epochs.read())?;
        Ok((store, Created::Yes))
    }

    /// The keystore folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Random name of this service: part of the ledgers' origin.
    pub(crate) fn service_id(&self) -> [u8; 16] {
        self.service_id
    }

    /// Key of everything that belongs to the service itself; derive, do not use directly.
    pub(crate) fn control_key(&self) -> &Key {
        &self.control_key
    }

    /// The newest epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.epochs.read().last_key_value().map_or(0, |(epoch, _)| *epoch)
    }

    /// Whether an older epoch was not destroyed yet.
    pub(crate) fn has_older_epoch(&self) -> bool {
        self.epochs.read().len() > 1
    }

    /// Key of an epoch that still exists.
    pub(crate) fn epoch_key(&self, epoch: u64) -> Option<Key> {
        self.epochs.read().get(&epoch).cloned()
    }

    /// Adds an epoch and returns its number; durable on return.
    pub(crate) fn begin_epoch(&self) -> Result<u64> {
        let mut epochs = self.epochs.write();
        if epochs.len() >= EPOCHS_MAX {
            return Err(Error::Unavailable("too many unfinished key epochs"));
        }
        let next = epochs.last_key_value().map_or(1, |(epoch, _)| epoch + 1);
        let mut with = epochs.clone();
        with.insert(next, Key::random()?);
        self.write(&with)?;
        *epochs = with;
        Ok(next)
    }

    /// Destroys all epochs before `epoch`; durable on return. What is wrapped under them never opens again.
    pub(crate) fn destroy_epochs_before(&self, epoch: u64) -> Result<()> {
        let mut epochs = self.epochs.write();
        if !epochs.contains_key(&epoch) {
            return Err(Error::internal(format!("epoch {epoch} does not exist")));
        }
        let mut left = epochs.clone();
        left.retain(|number, _| *number >= epoch);
        self.write(&left)?;
        *epochs = left;
        Ok(())
    }

    fn read(dir: &Path, path: &Path) -> Result<Self> {
        let mut text = Zeroizing::new(Vec::new());
        File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        let damaged = |why: &str| Error::integrity(format!("{}: {why}; restore this file from your copy of the keystore", path.display()));
        let raw: RawRoot = serde_json::from_slice(&text).map_err(|_| damaged("not a root key file"))?;
        if raw.version != FORMAT {
            return Err(damaged("written by another version"));
        }
        let mut epochs = BTreeMap::new();
        for entry in &raw.epochs {
            epochs.insert(entry.epoch, Key::from_hex(&entry.key).ok_or_else(|| damaged("an epoch key is not 64 hex digits"))?);
        }
        if epochs.is_empty() {
            return Err(damaged("no epoch"));
        }
        Ok(Self {
            dir: dir.to_owned(),
            service_id: unhex(&raw.service_id).ok_or_else(|| damaged("the service id is not 32 hex digits"))?,
            control_key: Key::from_hex(&raw.control_key).ok_or_else(|| damaged("the control key is not 64 hex digits"))?,
            epochs: RwLock::new(epochs),
        })
    }

    /// Replaces the file atomically, then overwrites the bytes of the old one as far as the file system lets us.
    fn write(&self, epochs: &BTreeMap<u64, Key>) -> Result<()> {
        let raw = RawRoot {
            version: FORMAT,
            service_id: hex(&self.service_id),
            control_key: String::clone(&self.control_key.hex()),
            epochs: epochs.iter().map(|(epoch, key)| RawEpoch { epoch: *epoch, key: String::clone(&key.hex()) }).collect(),
        };
        let text = Zeroizing::new(serde_json::to_vec_pretty(&raw).map_err(Error::internal)?);
        let path = self.dir.join(FILE);
        let temporary = self.dir.join(FILE_TEMPORARY);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        let old = OpenOptions::new().write(true).open(&path).ok();
        fs::rename(&temporary, &path)?;
        File::open(&self.dir)?.sync_all()?;
        if let Some(old) = old {
            overwrite(&old)?;
        }
        Ok(())
    }
}

/// As in the file; wiped when dropped.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoot {
    version: u32,
    service_id: String,
    control_key: String,
    epochs: Vec<RawEpoch>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEpoch {
    epoch: u64,
    key: String,
}

impl Drop for RawRoot {
    fn drop(&mut self) {
        self.control_key.zeroize();
        for entry in &mut self.epochs {
            entry.key.zeroize();
        }
    }
}

/// Refuses a folder or file that others may enter, or that is not ours.
fn private_to_us(path: &Path, mode: u32) -> Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.file_type().is_symlink() {
        return Err(Error::Invalid(format!("`{}` is a symbolic link; give the real path of the keystore", path.display())));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::Invalid(format!("`{}` belongs to another user; run `chown` or choose another keystore", path.display())));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(Error::Invalid(format!(
            "`{0}` is open to others (mode {1:o}); run `chmod {mode:o} {0}`",
            path.display(),
            meta.mode() & 0o777
        )));
    }
    Ok(())
}

/// Overwrites and removes a file that may hold keys, if it is there.
fn wipe(path: &Path) -> Result<()> {
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => {
            overwrite(&file)?;
            Ok(fs::remove_file(path)?)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn overwrite(mut file: &File) -> Result<()> {
    let length = usize::try_from(file.metadata()?.len().min(FILE_BYTES_MAX)).unwrap_or(0);
    file.write_all(&vec![0u8; length])?;
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn fresh() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let keystore = dir.path().join("keystore");
        (dir, keystore)
    }

    #[test]
    fn root_survives_reopening() {
        let (_dir, keystore) = fresh();
        let (first, created) = RootStore::open_or_create(&keystore).unwrap();
        assert_eq!(created, Created::Yes);
        let (again, created) = RootStore::open_or_create(&keystore).unwrap();
        assert_eq!(created, Created::No);
        assert_eq!(first.service_id(), again.service_id());
        assert_eq!(first.control_key().bytes(), again.control_key().bytes());
        assert_eq!(first.epoch_key(1).unwrap().bytes(), again.epoch_key(1).unwrap().bytes());
        let mode = |name: &str| fs::metadata(keystore.join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode(""), mode(FILE)), (0o700, 0o600));
    }

    #[test]
    fn destroyed_epochs_are_gone_from_memory_and_disk() {
        let (_dir, keystore) = fresh();
        let (root, _) = RootStore::open_or_create(&keystore).unwrap();
        let old = root.epoch_key(1).unwrap().hex();
        let inode = File::open(keystore.join(FILE)).unwrap();
        assert_eq!(root.begin_epoch().unwrap(), 2);
        assert!(root.epoch_key(1).is_some(), "both live while survivors are re-wrapped");
        assert!(root.destroy_epochs_before(3).is_err(), "never destroy the newest");
        root.destroy_epochs_before(2).unwrap();
        assert!(root.epoch_key(1).is_none());
        assert_eq!(root.epoch(), 2);
        let again = RootStore::open_or_create(&keystore).unwrap().0;
        assert!(again.epoch_key(1).is_none() && again.epoch_key(2).is_some());
        assert!(!fs::read_to_string(keystore.join(FILE)).unwrap().contains(old.as_str()));
        let mut bytes = Vec::new();
        (&inode).read_to_end(&mut bytes).unwrap();
        assert!(!bytes.is_empty() && bytes.iter().all(|byte| *byte == 0), "the replaced file's bytes are overwritten");
    }

    #[test]
    fn crash_between_temporary_file_and_rename_leaves_the_old_root() {
        let (_dir, keystore) = fresh();
        let (root, _) = RootStore::open_or_create(&keystore).unwrap();
        fs::write(keystore.join(FILE_TEMPORARY), b"{\"version\": 1, half a fi").unwrap();
        let again = RootStore::open_or_create(&keystore).unwrap().0;
        assert_eq!(root.service_id(), again.service_id());
        assert!(!keystore.join(FILE_TEMPORARY).exists(), "left-over is wiped");
    }

    #[test]
    fn loose_permissions_and_links_are_refused_with_a_remedy() {
        let (dir, keystore) = fresh();
        drop(RootStore::open_or_create(&keystore).unwrap());
        let refusal = |path: &Path| match RootStore::open_or_create(path) {
            Err(Error::Invalid(message)) => message,
            other => panic!("not refused: {:?}", other.map(|(_, created)| created)),
        };
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        chmod(&keystore, 0o750);
        assert!(refusal(&keystore).contains("chmod 700"));
        chmod(&keystore, 0o700);
        chmod(&keystore.join(FILE), 0o640);
        assert!(refusal(&keystore).contains("chmod 600"));
        chmod(&keystore.join(FILE), 0o600);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&keystore, &link).unwrap();
        assert!(refusal(&link).contains("symbolic link"));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(keystore.join(FILE), Some(65534), None).unwrap();
            assert!(refusal(&keystore).contains("another user"));
        }
    }

    #[test]
    fn damaged_root_is_refused() {
        let (_dir, keystore) = fresh();
        drop(RootStore::open_or_create(&keystore).unwrap());
        let text = fs::read_to_string(keystore.join(FILE)).unwrap();
        for bad in [text[..text.len() / 2].to_owned(), text.replace("\"version\": 1", "\"version\": 9"), String::new(), "{}".into()] {
            fs::write(keystore.join(FILE), bad).unwrap();
            assert!(matches!(RootStore::open_or_create(&keystore), Err(Error::Integrity(_))));
        }
    }
}
