//! The files of a log, and nothing of what is in them.
//!
//! ```text
//! entries.log   all bundles of C2SP tlog-tiles back to back: u16 length | leaf data
//! index         u64 offset of each bundle of 256 entries but the first; a cache, rebuilt from entries.log
//! tile/…        full tiles when they fill, partial ones of level 1 and up at each checkpoint; C2SP paths
//! checkpoint    the last signed note
//! fetched.log   as entries.log: what a shared copy has beyond this one, until it is verified
//! late.log      as entries.log, a u64 index before each leaf: entries on their way to another place in the log
//! ```
//!
//! A checkpoint is written after all that it signs is on disk, by a temporary file and a rename. So what is before it is
//! either there or damaged, and only what is behind it may be torn.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tlog::tile::TILE_WIDTH;
use tlog::{Hash, StoreError, Tile, TileReader};

use crate::error::{Error, Result};

/// Levels of tiles of the largest log.
pub(super) const TILE_LEVELS: usize = 6;
/// Longest checkpoint.
const NOTE_BYTES_MAX: u64 = 64 << 10;
const OFFSET_BYTES: u64 = 8;
const FETCHED: &str = "fetched.log";
const LATE: &str = "late.log";

/// The hashes of the tiles that are not full yet, one row a level.
pub(super) type Rows = [Vec<Hash>; TILE_LEVELS];

/// The open files of one log.
pub(super) struct Files {
    dir: PathBuf,
    log: File,
    index: File,
}

impl Files {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let open = |name: &str| OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join(name));
        Ok(Self { dir: dir.to_owned(), log: open("entries.log")?, index: open("index")? })
    }

    /// Makes room for a new log. The folder's last state is kept beside it; what is late stays.
    pub(super) fn put_aside(dir: &Path) -> Result<()> {
        let aside = dir.with_extension("damaged");
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => fs::rename(dir, &aside)?,
        }
        let late = aside.join(LATE);
        if late.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            fs::copy(late, dir.join(LATE))?;
        }
        Ok(())
    }

    pub(super) fn log_bytes(&self) -> Result<u64> {
        Ok(self.log.metadata()?.len())
    }

    /// Hands the bytes to the operating system.
    pub(super) fn write_log(&self, bytes: &[u8], offset: u64) -> Result<()> {
        Ok(self.log.write_all_at(bytes, offset)?)
    }

    /// As a disk that is full or gone: every later write fails.
    #[cfg(test)]
    pub(super) fn break_log(&mut self) {
        self.log = File::open(self.dir.join("entries.log")).unwrap();
    }

    pub(super) fn sync_log(&self) -> Result<()> {
        Ok(self.log.sync_data()?)
    }

    pub(super) fn cut_log(&self, bytes: u64) -> Result<()> {
        self.log.set_len(bytes)?;
        Ok(self.log.sync_all()?)
    }

    /// Bytes of the log; short if it ends before.
    pub(super) fn read_log(&self, offset: u64, end: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(offset)).map_err(Error::internal)?];
        self.log.read_exact_at(&mut bytes, offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::integrity("the ledger's entries end too early"),
            _ => Error::from(error),
        })?;
        Ok(bytes)
    }

    /// The log's records from `offset` on.
    pub(super) fn records(&self, offset: u64) -> Result<Records> {
        // Opened anew: a cloned handle would share its position with other readers.
        let mut file = File::open(self.dir.join("entries.log"))?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Records { reader: BufReader::new(file), offset })
    }

    /// Begins the file of what is fetched.
    pub(super) fn fetch(&self) -> Result<BufWriter<File>> {
        let path = self.dir.join(FETCHED);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(BufWriter::new(file))
    }

    /// What was fetched.
    pub(super) fn fetched(&self) -> Result<Records> {
        Ok(Records { reader: BufReader::new(File::open(self.dir.join(FETCHED))?), offset: 0 })
    }

    pub(super) fn remove_fetched(&self) {
        // Left over if this fails, and begun anew next time.
        let _ = fs::remove_file(self.dir.join(FETCHED));
    }

    /// Entries that wait for another place in the log: their index of before, then their leaf.
    pub(super) fn late(&self) -> Result<Option<Records>> {
        match File::open(self.dir.join(LATE)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            file => Ok(Some(Records { reader: BufReader::new(file?), offset: 0 })),
        }
    }

    /// Puts the rest of `lost`, which begins at index `first`, to those that wait. All or nothing; durable on return.
    pub(super) fn add_late(&self, first: u64, mut lost: Records) -> Result<()> {
        let temporary = self.dir.join("late.new");
        let mut file = BufWriter::new(OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?);
        let mut add = |leaf: &[&[u8]]| -> Result<()> {
            let mut record = Vec::new();
            tlog::push_entry(&mut record, &leaf.concat()).map_err(Error::internal)?;
            Ok(file.write_all(&record)?)
        };
        if let Some(mut before) = self.late()? {
            while let Some(record) = before.next_record()? {
                add(&[&record])?;
            }
        }
        for index in first.. {
            let Some(leaf) = lost.next_record()? else { break };
            add(&[&index.to_be_bytes(), &leaf])?;
        }
        file.into_inner().map_err(|error| Error::from(error.into_error()))?.sync_all()?;
        fs::rename(&temporary, self.dir.join(LATE))?;
        sync_folder(&self.dir)
    }

    /// They have their place.
    pub(super) fn remove_late(&self) -> Result<()> {
        fs::remove_file(self.dir.join(LATE))?;
        sync_folder(&self.dir)
    }

    /// Where the first `bundles` + 1 bundles begin: from the index, or if that is torn by walking the log.
    pub(super) fn offsets(&self, bundles: u64) -> Result<Vec<u64>> {
        let end = self.log_bytes()?;
        let mut bytes = vec![0; usize::try_from(bundles * OFFSET_BYTES).map_err(Error::internal)?];
        if self.index.read_exact_at(&mut bytes, 0).is_ok() {
            let known = bytes.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok().map(u64::from_le_bytes));
            let offsets: Vec<u64> = std::iter::once(0).chain(known).collect();
            if offsets.is_sorted_by(|a, b| a < b) && offsets.last().is_some_and(|last| *last <= end) {
                return Ok(offsets);
            }
        }
        let (mut offsets, mut records) = (vec![0], self.records(0)?);
        for _ in 0..bundles {
            for _ in 0..TILE_WIDTH {
                records.next_record()?.ok_or_else(|| Error::integrity("the ledger's entries end too early"))?;
            }
            offsets.push(records.offset);
        }
        Ok(offsets)
    }

    /// Writes the offsets of bundles `first` and up. Not synced: a cache.
    pub(super) fn write_index(&self, first: u64, offsets: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        Ok(self.index.write_all_at(&bytes, first.saturating_sub(1) * OFFSET_BYTES)?)
    }

    /// Writes a tile; synced by [`Files::sync_tiles`].
    pub(super) fn write_tile(&self, tile: Tile, hashes: &[Hash]) -> Result<()> {
        let path = self.dir.join(tile.to_string());
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(file.write_all(&hashes.iter().flat_map(|hash| hash.0).collect::<Vec<u8>>())?)
    }

    /// Makes tiles durable, with the directories they are in.
    pub(super) fn sync_tiles(&self, tiles: impl Iterator<Item = Tile>) -> Result<()> {
        let mut folders = BTreeSet::new();
        for tile in tiles {
            let path = self.dir.join(tile.to_string());
            File::open(&path)?.sync_all()?;
            folders.extend(path.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.dir)).map(Path::to_owned));
        }
        folders.iter().try_for_each(|folder| sync_folder(folder))
    }

    pub(super) fn remove_tile(&self, tile: Tile) {
        // Left over if this fails, which harms nothing.
        let _ = fs::remove_file(self.dir.join(tile.to_string()));
    }

    pub(super) fn read_checkpoint(&self) -> Result<Option<Vec<u8>>> {
        let file = match File::open(self.dir.join("checkpoint")) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut note = Vec::new();
        file.take(NOTE_BYTES_MAX).read_to_end(&mut note)?;
        Ok(Some(note))
    }

    pub(super) fn write_checkpoint(&self, note: &str) -> Result<()> {
        let temporary = self.dir.join("checkpoint.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(note.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, self.dir.join("checkpoint"))?;
        sync_folder(&self.dir)
    }
}

fn sync_folder(folder: &Path) -> Result<()> {
    Ok(File::open(folder)?.sync_all()?)
}

/// The log's records in order.
pub(super) struct Records {
    reader: BufReader<File>,
    /// Behind the last whole record.
    pub(super) offset: u64,
}

impl Records {
    /// The next whole record; none at the end and at a torn one.
    pub(super) fn next_record(&mut self) -> Result<Option<Vec<u8>>> {
        let mut length = [0; 2];
        if !read_or_end(&mut self.reader, &mut length)? {
            return Ok(None);
        }
        let mut record = vec![0; u16::from_be_bytes(length).into()];
        if !read_or_end(&mut self.reader, &mut record)? {
            return Ok(None);
        }
        self.offset += 2 + record.len() as u64;
        Ok(Some(record))
    }
}

fn read_or_end(reader: &mut impl BufRead, bytes: &mut [u8]) -> Result<bool> {
    match reader.read_exact(bytes) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        read => Ok(read.map(|()| true)?),
    }
}

/// The tiles of a log at a moment: full ones from files, the last of each level from memory.
pub(super) struct Tiles<'a> {
    pub(super) files: &'a Files,
    pub(super) size: u64,
    pub(super) rows: Rows,
}

impl TileReader for Tiles<'_> {
    fn read(&self, tile: Tile) -> std::result::Result<Vec<u8>, StoreError> {
        let full = (self.size >> (8 * tile.level())) / u64::from(TILE_WIDTH);
        if tile.index() < full {
            return Ok(fs::read(self.files.dir.join(tile.full().to_string()))?);
        }
        let row = self.rows.get(usize::from(tile.level())).map(Vec::as_slice).unwrap_or_default();
        Ok(row.iter().flat_map(|hash| hash.0).collect())
    }
}

/// A partial tile as it was written for the last checkpoint.
pub(super) fn read_partial(files: &Files, tile: Tile) -> Result<Vec<Hash>> {
    let bytes = fs::read(files.dir.join(tile.to_string())).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::integrity(format!("the ledger's `{tile}` is missing")),
        _ => Error::from(error),
    })?;
    if bytes.len() != tile.bytes() {
        return Err(Error::integrity(format!("the ledger's `{tile}` is damaged")));
    }
    Ok(bytes.chunks_exact(32).filter_map(|hash| hash.try_into().ok().map(Hash)).collect())
}
