//! The root of all keys: one small file in the keystore folder, outside the data folder, so that a copy of the data alone is
//! worth nothing.
//!
//! It holds the service's id, the control key and the *epochs*. Every tenant key is wrapped under the key of one epoch.
//! Erasing a tenant for good means: begin a new epoch, re-wrap the survivors, destroy the old epochs. After that even a full
//! old copy of the data folder, wrapped keys included, does not open for the erased tenant.
//!
//! The file is replaced atomically (temporary file, fsync, rename, fsync of the folder); a crash at any point leaves the old or
//! the new one.
//!
//! Several nodes may share the folder. Each change takes the lock of the folder and begins with the file as it is, and whoever
//! asks for an epoch looks first whether the file was replaced: what another node began is seen, what it destroyed is forgotten.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, RwLock};
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
/// How often reading begins again because the file was replaced meanwhile.
const READS_MAX: u32 = 16;

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
    /// The file the epochs were read from.
    seen: Mutex<Option<Seen>>,
}

/// Tells a file from the one that replaced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    inode: u64,
    modified: (i64, i64),
    bytes: u64,
}

impl Seen {
    fn of(meta: &fs::Metadata) -> Self {
        Self { inode: meta.ino(), modified: (meta.mtime(), meta.mtime_nsec()), bytes: meta.len() }
    }
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
        let _alone = lock(dir)?;
        let path = dir.join(FILE);
        // A crash before the rename leaves a temporary file which was never the truth.
        wipe(&dir.join(FILE_TEMPORARY))?;
        if path.exists() {
            private_to_us(&path, 0o600)?;
            let (root, seen) = read(&path)?;
            let (service_id, control_key) = (root.service_id, root.control_key);
            let (epochs, seen) = (RwLock::new(root.epochs), Mutex::new(Some(seen)));
            return Ok((Self { dir: dir.to_owned(), service_id, control_key, epochs, seen }, Created::No));
        }
        let store = Self {
            dir: dir.to_owned(),
            service_id: seal::random()?,
            control_key: Key::random()?,
            epochs: RwLock::default(),
            seen: Mutex::default(),
        };
        store.write(BTreeMap::from([(1, Key::random()?)]))?;
        Ok((store, Created::Yes))
    }

    /// Only one at a time, on whatever node, holds what is returned. Waits for it.
    pub(crate) fn alone(&self) -> Result<File> {
        lock(&self.dir)
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
        self.refresh();
        self.epochs.read().last_key_value().map_or(0, |(epoch, _)| *epoch)
    }

    /// Whether an older epoch was not destroyed yet.
    pub(crate) fn has_older_epoch(&self) -> bool {
        self.refresh();
        self.epochs.read().len() > 1
    }

    /// Key of an epoch that still exists.
    pub(crate) fn epoch_key(&self, epoch: u64) -> Option<Key> {
        self.refresh();
        let known = self.epochs.read().get(&epoch).cloned();
        known.or_else(|| {
            // A shared folder may tell late that a file was replaced; opening it asks again.
            self.reread().inspect_err(unreadable).ok()?;
            self.epochs.read().get(&epoch).cloned()
        })
    }

    /// Adds an epoch and returns its number; durable on return.
    pub(crate) fn begin_epoch(&self) -> Result<u64> {
        let _alone = self.alone()?;
        self.reread()?;
        let mut epochs = self.epochs.read().clone();
        if epochs.len() >= EPOCHS_MAX {
            return Err(Error::Unavailable("too many unfinished key epochs"));
        }
        let next = epochs.last_key_value().map_or(1, |(epoch, _)| epoch + 1);
        epochs.insert(next, Key::random()?);
        self.write(epochs)?;
        Ok(next)
    }

    /// Destroys all epochs before `epoch`; durable on return. What is wrapped under them never opens again.
    pub(crate) fn destroy_epochs_before(&self, epoch: u64) -> Result<()> {
        let _alone = self.alone()?;
        self.reread()?;
        let mut epochs = self.epochs.read().clone();
        if !epochs.contains_key(&epoch) {
            return Err(Error::internal(format!("epoch {epoch} does not exist")));
        }
        epochs.retain(|number, _| *number >= epoch);
        self.write(epochs)
    }

    /// Takes up what another node changed. What this node knows stays in force should the file not be readable just now: a key
    /// wrapped under an epoch that is gone is refused where it is stored.
    pub(crate) fn refresh(&self) {
        let changed = match fs::metadata(self.dir.join(FILE)) {
            Ok(meta) => *self.seen.lock() != Some(Seen::of(&meta)),
            Err(_) => true,
        };
        if changed {
            let _ = self.reread().inspect_err(unreadable);
        }
    }

    fn reread(&self) -> Result<()> {
        // Held over the reading, so that of two who read, the later file wins.
        let mut seen = self.seen.lock();
        let (root, file) = read(&self.dir.join(FILE))?;
        if root.service_id != self.service_id || !seal::same(root.control_key.bytes(), self.control_key.bytes()) {
            return Err(Error::integrity("the root key was replaced by another service's"));
        }
        *self.epochs.write() = root.epochs;
        *seen = Some(file);
        Ok(())
    }

    /// Replaces the file atomically, then overwrites the bytes of the old one as far as the file system lets us.
    fn write(&self, epochs: BTreeMap<u64, Key>) -> Result<()> {
        let mut seen = self.seen.lock();
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
        *self.epochs.write() = epochs;
        *seen = Some(Seen::of(&file.metadata()?));
        if let Some(old) = old {
            overwrite(&old)?;
        }
        Ok(())
    }
}

/// What the file holds.
struct Root {
    service_id: [u8; 16],
    control_key: Key,
    epochs: BTreeMap<u64, Key>,
}

/// The file at `path`, whole: one that is replaced while it is read is read again.
fn read(path: &Path) -> Result<(Root, Seen)> {
    let mut reads = 0;
    loop {
        let file = File::open(path)?;
        let seen = Seen::of(&file.metadata()?);
        let mut text = Zeroizing::new(Vec::new());
        file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        reads += 1;
        match parse(&text) {
            Ok(root) => return Ok((root, seen)),
            // Who replaces the file overwrites the old one.
            Err(_) if reads < READS_MAX && fs::metadata(path).is_ok_and(|meta| Seen::of(&meta).inode != seen.inode) => {}
            Err(why) => {
                let path = path.display();
                return Err(Error::integrity(format!("{path}: {why}; restore this file from your copy of the keystore")));
            }
        }
    }
}

fn parse(text: &[u8]) -> Result<Root, &'static str> {
    let raw: RawRoot = serde_json::from_slice(text).map_err(|_| "not a root key file")?;
    if raw.version != FORMAT {
        return Err("written by another version");
    }
    let mut epochs = BTreeMap::new();
    for entry in &raw.epochs {
        epochs.insert(entry.epoch, Key::from_hex(&entry.key).ok_or("an epoch key is not 64 hex digits")?);
    }
    if epochs.is_empty() {
        return Err("no epoch");
    }
    let service_id = unhex(&raw.service_id).ok_or("the service id is not 32 hex digits")?;
    let control_key = Key::from_hex(&raw.control_key).ok_or("the control key is not 64 hex digits")?;
    Ok(Root { service_id, control_key, epochs })
}

fn unreadable(error: &Error) {
    tracing::warn!(context = error.private(), "the root key could not be read again");
}

/// Waits until nobody else holds the lock of the folder.
fn lock(dir: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join(FILE_LOCK))?;
    file.lock()?;
    Ok(file)
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
    fn nodes_that_share_a_folder_see_each_others_epochs() {
        let (_dir, keystore) = fresh();
        let (one, _) = RootStore::open_or_create(&keystore).unwrap();
        let (two, _) = RootStore::open_or_create(&keystore).unwrap();
        assert_eq!(one.begin_epoch().unwrap(), 2);
        assert_eq!(two.epoch(), 2, "begun elsewhere");
        assert_eq!(two.epoch_key(2).unwrap().bytes(), one.epoch_key(2).unwrap().bytes());
        one.destroy_epochs_before(2).unwrap();
        assert!(two.epoch_key(1).is_none(), "destroyed elsewhere: not in this memory either");
        assert_eq!(two.begin_epoch().unwrap(), 3, "begins with the file as it is");
        assert!(one.epoch_key(2).is_some() && one.epoch_key(3).is_some());
        two.destroy_epochs_before(3).unwrap();
        assert!(one.destroy_epochs_before(2).is_err(), "who slept meanwhile brings nothing back");
        assert_eq!((one.epoch(), two.epoch()), (3, 3));
    }

    #[test]
    fn of_many_that_start_at_once_one_makes_the_root_and_readers_never_see_half_a_file() {
        let (_dir, keystore) = fresh();
        let stores: Vec<_> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..8).map(|_| scope.spawn(|| RootStore::open_or_create(&keystore).unwrap())).collect();
            starting.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(stores.iter().filter(|(_, created)| *created == Created::Yes).count(), 1);
        assert!(stores.iter().all(|(root, _)| root.service_id() == stores[0].0.service_id()));
        let (writer, readers) = stores.split_first().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (reader, _) in readers {
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::Acquire) {
                        reader.reread().unwrap();
                        assert!(reader.epoch() > 0);
                    }
                });
            }
            for _ in 0..100 {
                let epoch = writer.0.begin_epoch().unwrap();
                writer.0.destroy_epochs_before(epoch).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        assert!(readers.iter().all(|(reader, _)| reader.epoch() == 101));
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
