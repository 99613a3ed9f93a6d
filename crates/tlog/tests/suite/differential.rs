//! Against `tlog_tiles` and `signed_note`, which others wrote.

use signed_note::{Note as TheirNote, StandardSigner, StandardVerifier, VerifierList};
use tlog::{
    Bundle, Checkpoint, ConsistencyProof, Frontier, Hash, HashReader, InclusionProof, Note, SigningKey, Tile, TileHashes, TileReader,
};
use tlog_tiles::tlog as theirs;

use crate::{leaf, tree};

/// Where a tree's shape changes: around powers of two and of the tile width.
const SIZES: [u64; 22] = [1, 2, 3, 4, 5, 7, 8, 9, 31, 100, 255, 256, 257, 511, 512, 513, 65_279, 65_280, 65_535, 65_536, 65_537, 65_800];
const LARGEST: u64 = 65_800;

/// Their storage order of the same hashes.
struct Stored(Vec<theirs::Hash>);

impl theirs::HashReader for Stored {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<theirs::Hash>, theirs::Error> {
        Ok(indexes.iter().map(|index| self.0[usize::try_from(*index).unwrap()]).collect())
    }
}

fn stored(size: u64) -> Stored {
    let mut stored = Stored(Vec::new());
    for index in 0..size {
        let hashes = theirs::stored_hashes_for_record_hash(index, theirs::Hash(leaf(index).0), &stored).unwrap();
        stored.0.extend(hashes);
    }
    stored
}

fn ours(hashes: &[theirs::Hash]) -> Vec<Hash> {
    hashes.iter().map(|hash| Hash(hash.0)).collect()
}

fn to_theirs(hashes: &[Hash]) -> Vec<theirs::Hash> {
    hashes.iter().map(|hash| theirs::Hash(hash.0)).collect()
}

#[test]
fn roots_proofs_and_tiles_agree() {
    let (log, other) = (tree(LARGEST), stored(LARGEST));
    for size in SIZES {
        let root = theirs::tree_hash(size, &other).unwrap();
        let resumed = Frontier::from_tiles(size, &log).unwrap();
        assert_eq!(resumed.root().0, root.0, "root at {size}");
        let tiles = TileHashes::new(size, &log).unwrap();
        for index in [0, 1, size / 3, size / 2, 254, 255, 256, 257, 65_279, 65_535, size - 1].into_iter().filter(|index| *index < size) {
            let proof = InclusionProof::build(index, size, &tiles).unwrap();
            assert_eq!(proof.hashes, ours(&theirs::prove_record(size, index, &other).unwrap()), "leaf {index} of {size}");
            proof.verify(leaf(index), size, Hash(root.0)).unwrap();
            theirs::check_record(&to_theirs(&proof.hashes), size, root, index, theirs::Hash(leaf(index).0)).unwrap();
        }
        for old in SIZES.into_iter().chain([size - 1, size / 3]).filter(|old| (1..=size).contains(old)) {
            let proof = ConsistencyProof::build(old, size, &tiles).unwrap();
            assert_eq!(proof.hashes, ours(&theirs::prove_tree(size, old, &other).unwrap()), "{old} to {size}");
            let old_root = theirs::tree_hash(old, &other).unwrap();
            proof.verify(Hash(old_root.0), size, Hash(root.0)).unwrap();
        }
    }
}

#[test]
fn every_small_tree_agrees() {
    let (log, other) = (tree(70), stored(70));
    for size in 1..=70 {
        let root = Hash(theirs::tree_hash(size, &other).unwrap().0);
        for index in 0..size {
            let proof = InclusionProof::build(index, size, &log).unwrap();
            assert_eq!(proof.hashes, ours(&theirs::prove_record(size, index, &other).unwrap()));
            proof.verify(leaf(index), size, root).unwrap();
            assert_eq!(proof.to_string().parse::<InclusionProof>().unwrap(), proof);
            // The same proof for any other leaf or place is wrong.
            assert!(proof.verify(leaf(index + 1), size, root).is_err());
            for other in (0..size).filter(|other| *other != index) {
                assert!(InclusionProof { index: other, ..proof.clone() }.verify(leaf(index), size, root).is_err());
            }
            // With another size it may be right, as the root does not tell the size: the two verdicts agree.
            for other_size in index..size + 5 {
                let verdict =
                    theirs::check_record(&to_theirs(&proof.hashes), other_size, theirs::Hash(root.0), index, theirs::Hash(leaf(index).0));
                assert_eq!(
                    proof.verify(leaf(index), other_size, root).is_ok(),
                    verdict.is_ok(),
                    "{index} in {other_size}, made for {size}"
                );
            }
        }
        for old in 1..=size {
            let proof = ConsistencyProof::build(old, size, &log).unwrap();
            assert_eq!(proof.hashes, ours(&theirs::prove_tree(size, old, &other).unwrap()));
            let old_root = Hash(theirs::tree_hash(old, &other).unwrap().0);
            proof.verify(old_root, size, root).unwrap();
            assert_eq!(proof.to_string().parse::<ConsistencyProof>().unwrap(), proof);
            if old < size {
                assert!(proof.verify(leaf(0), size, root).is_err() || old == 1);
                assert!(proof.verify(old_root, size, leaf(0)).is_err());
                assert!(proof.verify(root, size, old_root).is_err());
            }
        }
    }
}

#[test]
fn a_resumed_log_goes_on_as_if_it_had_never_stopped() {
    let log = tree(LARGEST);
    for size in SIZES.into_iter().chain([0]) {
        let mut resumed = Frontier::from_tiles(size, &log).unwrap();
        for index in size..LARGEST.min(size + 600) {
            resumed.append(leaf(index), |level, at, hash| assert_eq!(log.hash(level, at).unwrap(), hash)).unwrap();
        }
        let head = Frontier::from_tiles(resumed.size(), &log).unwrap();
        assert_eq!(resumed.root(), head.root(), "resumed at {size}");
    }
}

#[test]
fn tile_names_and_bytes_agree() {
    let (log, other) = (tree(LARGEST), stored(LARGEST));
    for (old, new) in [(0, 1), (0, 256), (0, 257), (255, 256), (256, 256), (255, 513), (100, 65_537), (65_535, 65_536), (65_536, LARGEST)] {
        let mut theirs = tlog_tiles::Tile::new_tiles(8, old, new);
        theirs.sort_by_key(|tile| (tile.level(), tile.level_index()));
        let ours: Vec<_> = Tile::between(old, new).collect();
        assert_eq!(ours.len(), theirs.len(), "{old} to {new}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            // Their path has the tile height in it, as Go's modules do.
            assert_eq!(ours.to_string(), theirs.path().replacen("tile/8/", "tile/", 1));
            assert_eq!(log.read(*ours).unwrap(), theirs.read_data(&other).unwrap());
        }
    }
    for index in [0, 1, 999, 1000, 1234, 999_999, 1_000_000, 1_234_067, 1_099_511_627_775] {
        for width in [1, 5, 255, 256] {
            let size = index * 256 + width;
            let hashes = Tile::in_tree(0, index, size).unwrap();
            let theirs = tlog_tiles::Tile::new(8, 0, index, u32::try_from(width).unwrap(), false);
            assert_eq!(hashes.to_string(), theirs.path().replacen("tile/8/", "tile/", 1));
            assert_eq!(hashes.to_string().parse::<Tile>().unwrap(), hashes);
            let bundle = Bundle::in_tree(index, size).unwrap();
            assert_eq!(bundle.to_string(), hashes.to_string().replacen("tile/0", "tile/entries", 1));
            assert_eq!(bundle.to_string().parse::<Bundle>().unwrap(), bundle);
        }
    }
}

#[test]
fn notes_and_checkpoints_are_read_on_both_sides() {
    use base64::Engine;
    let seed = [9; 32];
    let ours = SigningKey::from_seed("example.org/log", &seed).unwrap();
    let secret = base64::engine::general_purpose::STANDARD.encode([&[1][..], &seed].concat());
    let id = ours.verifying_key().id();
    let theirs = StandardSigner::new(&format!("PRIVATE+KEY+example.org/log+{id:08x}+{secret}")).unwrap();
    let vkey = ours.verifying_key().to_string();

    let checkpoint =
        Checkpoint { extensions: vec!["more".into(), "still more".into()], ..Checkpoint::new("example.org/log", 70_000, leaf(3)) };
    let note = checkpoint.sign(&ours).unwrap();

    let known = || VerifierList::new(vec![Box::new(StandardVerifier::new(&vkey).unwrap())]);
    let read = TheirNote::from_bytes(note.to_string().as_bytes()).unwrap();
    assert_eq!(read.verify(&known()).unwrap().0.len(), 1);
    let their_checkpoint = tlog_tiles::Checkpoint::from_bytes(read.text()).unwrap();
    assert_eq!((their_checkpoint.origin(), their_checkpoint.size(), their_checkpoint.hash().0), ("example.org/log", 70_000, leaf(3).0));

    let mut written = TheirNote::new(checkpoint.to_string().as_bytes(), &[]).unwrap();
    written.add_sigs(&[&theirs]).unwrap();
    assert_eq!(written.to_bytes(), note.to_string().into_bytes(), "Ed25519 signs deterministically");
    let read = Note::parse(&written.to_bytes()).unwrap();
    assert_eq!(read.verify([ours.verifying_key()]).unwrap().len(), 1);
    assert_eq!(read.text().parse::<Checkpoint>().unwrap(), checkpoint);
}

proptest::proptest! {
    /// Whatever bytes: where their parser says no, so does ours, and what ours accepts it writes back the same.
    #[test]
    fn note_parsers_agree(text in "[a-z \n]{0,20}", name in "[a-z +]{1,6}", data in "[A-Za-z0-9+/]{6,12}={0,2}", end in "\n?") {
        let note = format!("{text}\n\n\u{2014} {name} {data}{end}");
        let (ours, theirs) = (Note::parse(note.as_bytes()), TheirNote::from_bytes(note.as_bytes()));
        proptest::prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?}: {:?} {:?}", note, ours, theirs.is_ok());
        if let Ok(ours) = ours {
            proptest::prop_assert_eq!(ours.to_string(), note);
        }
    }

    #[test]
    fn path_parsers_agree(path in "tile/[0-5]{1,2}/(x?[0-9]{2,4}/){0,2}[0-9]{2,4}(\\.p/(0?[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]))?") {
        // Not in the table: widths of 0 and above 255, at which they panic.
        let theirs = tlog_tiles::Tile::from_path(&path.replacen("tile/", "tile/8/", 1)).ok();
        let ours = path.parse::<Tile>().ok();
        // They allow levels up to 63; a log of ours never has them.
        let theirs = theirs.filter(|tile| tile.level() <= 5);
        proptest::prop_assert_eq!(ours.is_some(), theirs.is_some(), "{}", path);
        if let Some(ours) = ours {
            proptest::prop_assert_eq!(ours.to_string(), path);
        }
    }
}
