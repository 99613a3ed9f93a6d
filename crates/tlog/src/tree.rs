//! The growing tree.
//!
//! A log of `n` leaves is a row of perfect subtrees, one for each set bit of `n`. Their roots are its right edge, the
//! [`Frontier`]: all that appending and computing the root need, at most 48 hashes however long the log is. A node is
//! named by its level (0 is the leaves) and its index in that level; it exists once its whole subtree is there, and never
//! changes afterwards. What is deliberately missing: deleting, and any storage. Appending reports each new node to the
//! caller, who keeps those he wants (see [`crate::tile`]).

use crate::hash::{HASH_BYTES, Hash, node_hash};
use crate::tile::{Tile, TileReader};
use crate::{Error, StoreError};

/// Levels of the largest tree.
const LEVELS_MAX: usize = 48;
/// The most leaves that a log may have: 2^48 - 1, six levels of tiles.
pub const LEAVES_MAX: u64 = (1 << LEVELS_MAX) - 1;

/// The right edge of a log: its size and the roots of its perfect subtrees.
#[derive(Clone, Debug)]
pub struct Frontier {
    size: u64,
    /// The root of the perfect subtree of height `i` where bit `i` of the size is set; elsewhere left over.
    peaks: [Hash; LEVELS_MAX],
}

impl Default for Frontier {
    fn default() -> Self {
        Frontier { size: 0, peaks: [Hash::EMPTY_TREE; LEVELS_MAX] }
    }
}

impl Frontier {
    /// The frontier of the empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Resumes a log of `size` leaves from its partial tiles, one for each tile level (at most six reads).
    ///
    /// The tiles are taken at their word: compare [`Frontier::root`] with the checkpoint they belong to.
    ///
    /// # Errors
    /// A tile that is missing or short; a size above [`LEAVES_MAX`].
    pub fn from_tiles(size: u64, tiles: &dyn TileReader) -> Result<Self, Error> {
        check_size(size)?;
        let mut frontier = Frontier { size, ..Self::default() };
        for tile in Tile::right_edge(size) {
            let data = tiles.read(tile).map_err(Error::Store)?;
            let mut rest = tile.hashes(&data)?;
            for height in (0..8).rev().filter(|height| tile.width() >> height & 1 == 1) {
                let (subtree, after) = rest.split_at(HASH_BYTES << height);
                rest = after;
                if let Some(peak) = frontier.peaks.get_mut(usize::from(tile.level()) * 8 + height) {
                    *peak = subtree_root(subtree);
                }
            }
        }
        Ok(frontier)
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf and returns its index. `new_node(level, index, hash)` is told of every node that this completes,
    /// the leaf first; two on average. Nothing is allocated.
    ///
    /// # Errors
    /// The log already has [`LEAVES_MAX`] leaves; then it is unchanged.
    pub fn append(&mut self, leaf: Hash, mut new_node: impl FnMut(u8, u64, Hash)) -> Result<u64, Error> {
        let index = self.size;
        check_size(index + 1)?;
        let mut hash = leaf;
        new_node(0, index, hash);
        for (level, peak) in (0u8..).zip(self.peaks.iter_mut()) {
            if index >> level & 1 == 0 {
                *peak = hash;
                break;
            }
            hash = node_hash(peak, &hash);
            new_node(level + 1, index >> (level + 1), hash);
        }
        self.size = index + 1;
        Ok(index)
    }

    /// The root of the tree over all leaves.
    pub fn root(&self) -> Hash {
        let peaks = self.peaks.iter().enumerate().filter(|(level, _)| self.size >> level & 1 == 1).map(|(_, peak)| *peak);
        peaks.reduce(|right, left| node_hash(&left, &right)).unwrap_or(Hash::EMPTY_TREE)
    }
}

/// Who can tell the hash of any complete node of a log.
pub trait HashReader {
    /// The hash of the node at `level` (0: leaves) and `index`.
    ///
    /// # Errors
    /// The node is not there or cannot be read.
    fn hash(&self, level: u8, index: u64) -> Result<Hash, Error>;
}

/// A whole log's hashes in memory, 64 bytes a leaf: for small logs, auditors and tests.
#[derive(Clone, Debug, Default)]
pub struct MemoryTree {
    frontier: Frontier,
    levels: Vec<Vec<Hash>>,
}

impl MemoryTree {
    /// The empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// The root of the tree over all leaves.
    pub fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// Appends a leaf and returns its index.
    ///
    /// # Errors
    /// As [`Frontier::append`].
    pub fn append(&mut self, leaf: Hash) -> Result<u64, Error> {
        let levels = &mut self.levels;
        self.frontier.append(leaf, |level, _, hash| match levels.get_mut(usize::from(level)) {
            Some(row) => row.push(hash),
            None => levels.push(vec![hash]),
        })
    }
}

impl HashReader for MemoryTree {
    fn hash(&self, level: u8, index: u64) -> Result<Hash, Error> {
        let row = self.levels.get(usize::from(level));
        let hash = usize::try_from(index).ok().and_then(|index| row?.get(index));
        hash.copied().ok_or(Error::NoNode { level, index, size: self.size() })
    }
}

impl TileReader for MemoryTree {
    fn read(&self, tile: Tile) -> Result<Vec<u8>, StoreError> {
        let mut data = Vec::with_capacity(tile.bytes());
        for index in tile.nodes() {
            data.extend_from_slice(self.hash(tile.level() * 8, index)?.as_bytes());
        }
        Ok(data)
    }
}

/// The root of the perfect subtree whose leaves are the hashes in `row`: a power of two of them.
pub(crate) fn subtree_root(row: &[u8]) -> Hash {
    if let Ok(hash) = row.try_into() {
        return Hash(hash);
    }
    let (left, right) = row.split_at(row.len() / 2);
    node_hash(&subtree_root(left), &subtree_root(right))
}

pub(crate) fn check_size(size: u64) -> Result<(), Error> {
    if size > LEAVES_MAX { Err(Error::TooLarge { what: "log", unit: "leaves", max: LEAVES_MAX }) } else { Ok(()) }
}
