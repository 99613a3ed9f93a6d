//! The crate against other implementations of the same standards, against tampering, and against golden files.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests, outside of a `#[test]` function")]

mod differential;
mod golden;
mod tamper;

use tlog::{Hash, MemoryTree, leaf_hash};

/// The entry that every test log has at `index`.
fn entry(index: u64) -> Vec<u8> {
    format!("entry {index}").into_bytes()
}

fn leaf(index: u64) -> Hash {
    leaf_hash(&entry(index))
}

fn tree(size: u64) -> MemoryTree {
    let mut tree = MemoryTree::new();
    for index in 0..size {
        tree.append(leaf(index)).unwrap();
    }
    tree
}
