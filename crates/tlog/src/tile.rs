//! How a log lies in files: C2SP tlog-tiles.
//!
//! A tile is 256 hashes of one row of the tree, every eighth row, so a million leaves are 3,907 + 16 + 1 files and any proof
//! reads a few of them. The last tile of a row is partial until it is full. Bundles hold the entries themselves, 256 to a
//! file, beside the tiles of level 0. Each has a path, the same on disk and over HTTP:
//!
//! ```
//! let tile: tlog::Tile = "tile/1/x001/234.p/5".parse()?;
//! assert_eq!((tile.level(), tile.index(), tile.width()), (1, 1234, 5));
//! assert_eq!(tlog::Tile::in_tree(0, 273, 70_000).map(|tile| tile.to_string()).as_deref(), Some("tile/0/273.p/112"));
//! # Ok::<(), tlog::Error>(())
//! ```

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::hash::{HASH_BYTES, Hash};
use crate::tree::{HashReader, check_size, subtree_root};
use crate::{Error, StoreError, decimal};

/// Hashes of a full tile, entries of a full bundle.
pub const TILE_WIDTH: u16 = 256;
/// The most bytes of one entry in a bundle, whose length prefix is 16 bits.
pub const ENTRY_BYTES_MAX: usize = u16::MAX as usize;
/// Tile levels of the largest log.
const TILE_LEVELS_MAX: u8 = 6;
/// Tiles that a [`TileHashes`] remembers: a proof climbs one tile after the other along two edges.
const TILES_CACHED_MAX: usize = 16;

/// The name of a tile of hashes: tile level, index in that level, and width (256 if full).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    level: u8,
    index: u64,
    width: u16,
}

impl Tile {
    /// Tile `index` of tile level `level` as a log of `size` leaves has it; `None` if it is empty there.
    pub fn in_tree(level: u8, index: u64, size: u64) -> Option<Tile> {
        let nodes = if level < TILE_LEVELS_MAX { size >> (8 * level) } else { 0 };
        let width = nodes.saturating_sub(index.checked_mul(TILE_WIDTH.into())?).min(TILE_WIDTH.into());
        Some(Tile { level, index, width: u16::try_from(width).ok().filter(|width| *width > 0)? })
    }

    /// The tile that holds the node at tree level `level` (0: leaves) and `index`, and the place in it, in hashes; `None`
    /// for the rows between, which no tile stores. The tile is as wide as when that node is its last.
    pub fn of_node(level: u8, index: u64) -> Option<(Tile, u16)> {
        let place = (index % u64::from(TILE_WIDTH)) as u16;
        let stored = level.is_multiple_of(8) && level / 8 < TILE_LEVELS_MAX;
        stored.then_some((Tile { level: level / 8, index: index / u64::from(TILE_WIDTH), width: place + 1 }, place))
    }

    /// The partial tiles at the right edge of a log of `size` leaves, lowest level first.
    pub fn right_edge(size: u64) -> impl Iterator<Item = Tile> {
        (0..TILE_LEVELS_MAX).filter_map(move |level| {
            let nodes = size >> (8 * level);
            Tile::in_tree(level, nodes / u64::from(TILE_WIDTH), size)
        })
    }

    /// The tiles that a log of `new_size` leaves has and one of `old_size` had not, or had narrower.
    pub fn between(old_size: u64, new_size: u64) -> impl Iterator<Item = Tile> {
        (0..TILE_LEVELS_MAX).flat_map(move |level| {
            let (old, new) = (old_size >> (8 * level), new_size >> (8 * level));
            let first = old / u64::from(TILE_WIDTH);
            let end = if new > old { new.div_ceil(TILE_WIDTH.into()) } else { first };
            (first..end).filter_map(move |index| Tile::in_tree(level, index, new_size))
        })
    }

    /// The tile level: 0 holds leaves, each further one the row eight levels up.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// The index within its tile level.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The number of hashes, 1 to 256.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether it will never change.
    pub fn is_full(&self) -> bool {
        self.width == TILE_WIDTH
    }

    /// The same tile when it is full.
    pub fn full(&self) -> Tile {
        Tile { width: TILE_WIDTH, ..*self }
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        usize::from(self.width) * HASH_BYTES
    }

    /// The indexes, in tree level `8 * level`, of the nodes it holds.
    pub fn nodes(&self) -> Range<u64> {
        let first = self.index * u64::from(TILE_WIDTH);
        first..first + u64::from(self.width)
    }

    /// This tile's part of what a reader gave: a reader may give the same tile grown wider.
    pub(crate) fn hashes<'a>(&self, data: &'a [u8]) -> Result<&'a [u8], Error> {
        let given = data.len();
        data.get(..self.bytes()).ok_or_else(|| Error::malformed("tile", format!("`{self}` has {given} bytes, not {}", self.bytes())))
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tile/{}/", self.level)?;
        write_place(f, self.index, self.width)
    }
}

impl FromStr for Tile {
    type Err = Error;

    fn from_str(path: &str) -> Result<Self, Error> {
        let place = path.strip_prefix("tile/").and_then(|rest| rest.split_once('/'));
        let tile = place.and_then(|(level, place)| {
            let level = decimal(level).and_then(|level| u8::try_from(level).ok()).filter(|level| *level < TILE_LEVELS_MAX)?;
            let (index, width) = parse_place(place)?;
            Some(Tile { level, index, width })
        });
        tile.ok_or_else(|| bad_path("tile path", path))
    }
}

/// The name of a bundle of entries: index and width (256 if full).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bundle {
    index: u64,
    width: u16,
}

impl Bundle {
    /// Bundle `index` as a log of `size` leaves has it; `None` if it is empty there.
    pub fn in_tree(index: u64, size: u64) -> Option<Bundle> {
        Tile::in_tree(0, index, size).map(|tile| Bundle { index, width: tile.width })
    }

    /// The index of the bundle.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The number of entries, 1 to 256.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Splits the bundle's bytes into its entries, which must be exactly as many as its width.
    ///
    /// # Errors
    /// Too few or too many entries, or one that is cut off.
    pub fn entries<'a>(&self, bytes: &'a [u8]) -> Result<Vec<&'a [u8]>, Error> {
        // One more than allowed is enough to see that there are too many.
        let entries = Entries::new(bytes).take(usize::from(self.width) + 1).collect::<Result<Vec<_>, _>>()?;
        if entries.len() == usize::from(self.width) {
            return Ok(entries);
        }
        Err(Error::malformed("bundle", format!("`{self}` does not hold {} entries", self.width)))
    }
}

impl fmt::Display for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tile/entries/")?;
        write_place(f, self.index, self.width)
    }
}

impl FromStr for Bundle {
    type Err = Error;

    fn from_str(path: &str) -> Result<Self, Error> {
        let place = path.strip_prefix("tile/entries/").and_then(parse_place);
        place.map(|(index, width)| Bundle { index, width }).ok_or_else(|| bad_path("bundle path", path))
    }
}

/// Appends one entry to a bundle's bytes: its length in 16 bits, big-endian, then itself.
///
/// # Errors
/// More than [`ENTRY_BYTES_MAX`] bytes; then nothing is appended.
pub fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), Error> {
    let too_large = || Error::TooLarge { what: "entry", unit: "bytes", max: ENTRY_BYTES_MAX as u64 };
    let length = u16::try_from(entry.len()).map_err(|_| too_large())?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// The entries in the bytes of a bundle, one after the other; stops after an error.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Entries<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Entries { rest: bytes, offset: 0 }
    }

    /// The bytes up to the end of the last whole entry: where to cut a file whose last write was torn.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<&'a [u8], Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let split = self.rest.split_first_chunk().and_then(|(length, rest)| rest.split_at_checked(u16::from_be_bytes(*length).into()));
        let Some((entry, rest)) = split else {
            self.rest = &[];
            return Some(Err(Error::malformed("bundle", format!("entry cut off at byte {}", self.offset))));
        };
        self.rest = rest;
        self.offset += 2 + entry.len();
        Some(Ok(entry))
    }
}

/// Who keeps tiles: a directory, a bucket, a server.
pub trait TileReader {
    /// The tile's bytes: its hashes in order, at least `tile.bytes()` of them. A wider version of the same tile will do, so a
    /// store may keep one growing file per tile, or fall back on the full one.
    ///
    /// # Errors
    /// Whatever the store says.
    fn read(&self, tile: Tile) -> Result<Vec<u8>, StoreError>;
}

/// Any node of a log of a given size, computed from its tiles. Remembers the last few tiles it read.
///
/// The tiles are not checked against a root: a proof built on a wrong one does not verify.
pub struct TileHashes<'a> {
    size: u64,
    tiles: &'a dyn TileReader,
    cache: RefCell<VecDeque<(Tile, Vec<u8>)>>,
}

impl<'a> TileHashes<'a> {
    /// The nodes of a log of `size` leaves kept in `tiles`.
    ///
    /// # Errors
    /// A size above [`crate::LEAVES_MAX`].
    pub fn new(size: u64, tiles: &'a dyn TileReader) -> Result<Self, Error> {
        check_size(size)?;
        Ok(TileHashes { size, tiles, cache: RefCell::default() })
    }
}

impl HashReader for TileHashes<'_> {
    fn hash(&self, level: u8, index: u64) -> Result<Hash, Error> {
        let missing = Error::NoNode { level, index, size: self.size };
        // Compared this way round because `(index + 1) << level` could overflow.
        if level >= TILE_LEVELS_MAX * 8 || index >= self.size >> level {
            return Err(missing);
        }
        let (tile_level, height) = (level / 8, level % 8);
        let first = index << height;
        let Some(tile) = Tile::in_tree(tile_level, first / u64::from(TILE_WIDTH), self.size) else { return Err(missing) };
        let start = (first % u64::from(TILE_WIDTH)) as usize * HASH_BYTES;
        let root_in = |data: &[u8]| {
            let row = tile.hashes(data)?.get(start..start + (HASH_BYTES << height));
            row.map(subtree_root).ok_or(Error::NoNode { level, index, size: self.size })
        };
        let mut cache = self.cache.borrow_mut();
        if let Some((_, data)) = cache.iter().find(|(cached, _)| *cached == tile) {
            return root_in(data);
        }
        let data = self.tiles.read(tile).map_err(Error::Store)?;
        let root = root_in(&data)?;
        if cache.len() == TILES_CACHED_MAX {
            cache.pop_front();
        }
        cache.push_back((tile, data));
        Ok(root)
    }
}

/// Writes `x001/x234/067.p/5`: three digits to an element, all but the last marked, so that no file is also a directory.
fn write_place(f: &mut fmt::Formatter<'_>, index: u64, width: u16) -> fmt::Result {
    let groups = std::iter::successors(Some(index), |rest| Some(rest / 1000).filter(|rest| *rest > 0)).count() as u32;
    for group in (1..groups).rev() {
        write!(f, "x{:03}/", index / 1000u64.pow(group) % 1000)?;
    }
    write!(f, "{:03}", index % 1000)?;
    if width < TILE_WIDTH { write!(f, ".p/{width}") } else { Ok(()) }
}

/// Reads what [`write_place`] writes, and nothing else: every tile has exactly one path.
fn parse_place(place: &str) -> Option<(u64, u16)> {
    let (index, width) = match place.split_once(".p/") {
        Some((index, width)) => (index, decimal(width).filter(|width| (1..TILE_WIDTH.into()).contains(width))? as u16),
        None => (place, TILE_WIDTH),
    };
    let mut value = 0u64;
    let (parents, last) = index.rsplit_once('/').map_or((None, index), |(parents, last)| (Some(parents), last));
    for group in parents.into_iter().flat_map(|parents| parents.split('/')).map(|group| group.strip_prefix('x')).chain([Some(last)]) {
        let digits = group.filter(|digits| digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        value = value.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
    }
    // A leading `x000` would be a second name; an index past the largest log is no tile of ours.
    let canonical = !index.starts_with("x000") && value <= crate::LEAVES_MAX / u64::from(TILE_WIDTH);
    canonical.then_some((value, width))
}

fn bad_path(what: &'static str, path: &str) -> Error {
    Error::malformed(what, format!("`{}`", path.chars().take(100).collect::<String>().escape_debug()))
}
