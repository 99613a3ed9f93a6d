//! Everything an attacker may change, changed, one thing or one bit at a time.

use tlog::note::{NOTE_BYTES_MAX, SIGNATURES_MAX};
use tlog::{
    Checkpoint, ConsistencyProof, Error, Frontier, Hash, InclusionProof, LogProof, MemoryTree, Note, Refusal, SigningKey, Tile, TileHashes,
    TileReader, TreeHead, Verifier, VerifyingKey,
};

use crate::{entry, leaf, tree};

const ORIGIN: &str = "example.org/log";

fn key() -> SigningKey {
    SigningKey::from_seed(ORIGIN, &[7; 32]).unwrap()
}

fn verifier() -> Verifier {
    Verifier::new(ORIGIN, key().verifying_key().clone())
}

fn head(size: u64) -> TreeHead {
    TreeHead { size, root: tree(size).root() }
}

fn note(size: u64) -> Vec<u8> {
    Checkpoint::new(ORIGIN, size, tree(size).root()).sign(&key()).unwrap().to_string().into_bytes()
}

fn export(size: u64) -> (Vec<Vec<u8>>, Vec<Hash>) {
    ((0..size).map(entry).collect(), (0..size).map(leaf).collect())
}

/// Each variant of `bytes` with one bit turned.
fn flips(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    })
}

#[test]
fn a_whole_export_verifies_and_any_flipped_bit_of_it_does_not() {
    let (note, (entries, hashes)) = (note(20), export(20));
    for remembered in [0, 1, 7, 16, 20] {
        let verified = verifier().remembering(head(remembered)).export_all(&note, &entries, &hashes).unwrap();
        assert_eq!(verified.checkpoint.head, head(20));
    }
    for flipped in flips(&note) {
        assert!(verifier().export_all(&flipped, &entries, &hashes).is_err(), "{}", String::from_utf8_lossy(&flipped));
    }
    for index in 0..entries.len() {
        for flipped in flips(&entries[index]) {
            let mut changed = entries.clone();
            changed[index] = flipped.clone();
            let refusal = verifier().export_all(&note, &changed, &hashes).unwrap_err();
            assert!(matches!(refusal, Refusal::LeafDiffers { index: at } if at == index as u64), "{refusal}");
            // The same with its hash made to fit: the root tells.
            let mut fitting = hashes.clone();
            fitting[index] = tlog::leaf_hash(&flipped);
            assert!(matches!(verifier().export_all(&note, &changed, &fitting), Err(Refusal::RootDiffers)));
            // And the remembered root tells earlier.
            let refusal = verifier().remembering(head(index as u64 + 1)).export_all(&note, &changed, &fitting);
            assert!(matches!(refusal, Err(Refusal::Forked { .. })));
        }
        for flipped in flips(&hashes[index].0) {
            let mut changed = hashes.clone();
            changed[index] = Hash(flipped.try_into().unwrap());
            assert!(matches!(verifier().export_all(&note, &entries, &changed), Err(Refusal::LeafDiffers { .. })));
        }
    }
}

#[test]
fn each_refusal_says_what_is_wrong() {
    let (entries, hashes) = export(10);
    let all = |verifier: Verifier, note: &[u8], count: usize| verifier.export_all(note, &entries[..count], &hashes[..count]);
    assert!(matches!(all(verifier(), &note(10), 9), Err(Refusal::Truncated { expected: 10, found: 9 })));
    assert!(matches!(all(verifier(), &note(9), 10), Err(Refusal::Surplus { expected: 9 })));
    assert!(matches!(verifier().export_all(&note(10), &entries, &hashes[..9]), Err(Refusal::Truncated { expected: 10, found: 9 })));
    assert!(matches!(all(verifier().remembering(head(11)), &note(10), 10), Err(Refusal::Shrunk { remembered: 11, found: 10 })));
    let other = TreeHead { size: 10, root: leaf(1) };
    assert!(matches!(all(verifier().remembering(other), &note(10), 10), Err(Refusal::Forked { size: 10 })));
    let other = TreeHead { size: 0, root: leaf(1) };
    assert!(matches!(all(verifier().remembering(other), &note(10), 10), Err(Refusal::Forked { size: 0 })));

    let elsewhere = Checkpoint::new("example.org/other", 10, tree(10).root()).sign(&key()).unwrap().to_string();
    assert!(matches!(all(verifier(), elsewhere.as_bytes(), 10), Err(Refusal::WrongOrigin { .. })));
    let stranger = SigningKey::from_seed(ORIGIN, &[8; 32]).unwrap();
    let forged = Checkpoint::new(ORIGIN, 10, tree(10).root()).sign(&stranger).unwrap().to_string();
    let refusal = all(verifier(), forged.as_bytes(), 10).unwrap_err();
    assert!(matches!(refusal, Refusal::WrongKey { .. }));
    assert!(refusal.to_string().contains(&key().verifying_key().to_string()));

    assert!(all(verifier(), &note(0), 0).is_ok(), "an empty log is one too");
}

#[test]
fn a_deleted_entry_leaves_a_log_that_verifies() {
    let mut export = verifier().export(&note(3)).unwrap();
    export.leaf(&entry(0), Some(leaf(0))).unwrap();
    export.leaf_without_entry(leaf(1)).unwrap();
    export.leaf(&entry(2), None).unwrap();
    assert_eq!(export.finish().unwrap().without_entry, 1);
    let mut export = verifier().export(&note(3)).unwrap();
    for index in [0, 9, 2] {
        export.leaf_without_entry(leaf(index)).unwrap();
    }
    assert!(matches!(export.finish(), Err(Refusal::RootDiffers)));
}

#[test]
fn extension() {
    let log = tree(300);
    let proof = |old| ConsistencyProof::build(old, 300, &log).unwrap();
    for old in [0, 1, 128, 255, 256, 257, 300] {
        verifier().remembering(head(old)).extension(&note(300), &proof(old)).unwrap();
        let forked = TreeHead { size: old, root: leaf(5) };
        assert!(matches!(verifier().remembering(forked).extension(&note(300), &proof(old)), Err(Refusal::Forked { .. })), "{old}");
    }
    assert!(verifier().remembering(head(128)).extension(&note(300), &proof(127)).is_err());
    assert!(matches!(verifier().remembering(head(301)).extension(&note(300), &proof(300)), Err(Refusal::Shrunk { .. })));
    let proof = proof(137);
    for at in 0..proof.hashes.len() {
        for flipped in flips(&proof.hashes[at].0) {
            let mut changed = proof.clone();
            changed.hashes[at] = Hash(flipped.try_into().unwrap());
            assert!(verifier().remembering(head(137)).extension(&note(300), &changed).is_err());
        }
        let mut cut = proof.clone();
        cut.hashes.remove(at);
        assert!(verifier().remembering(head(137)).extension(&note(300), &cut).is_err());
        let mut longer = proof.clone();
        longer.hashes.insert(at, leaf(0));
        assert!(verifier().remembering(head(137)).extension(&note(300), &longer).is_err());
    }
}

#[test]
fn log_proof() {
    let inclusion = InclusionProof::build(77, 300, &tree(300)).unwrap();
    let proof = LogProof { inclusion, checkpoint: Note::parse(&note(300)).unwrap() }.to_string();
    assert_eq!(verifier().log_proof(&proof.parse().unwrap(), &entry(77)).unwrap().head, head(300));
    verifier().inclusion(&note(300), &entry(77), &proof.parse::<LogProof>().unwrap().inclusion).unwrap();
    let extra = proof.replacen("@v1\n", "@v1\nextra b3BhcXVl\n", 1);
    verifier().log_proof(&extra.parse().unwrap(), &entry(77)).unwrap();
    for flipped in flips(proof.as_bytes()) {
        let parsed = String::from_utf8(flipped).ok().and_then(|text| text.parse::<LogProof>().ok());
        assert!(parsed.is_none_or(|proof| verifier().log_proof(&proof, &entry(77)).is_err()));
    }
    for flipped in flips(&entry(77)) {
        assert!(verifier().log_proof(&proof.parse().unwrap(), &flipped).is_err());
    }
    let long = format!("index 0\n{}", format!("{}\n", leaf(0)).repeat(65));
    assert!(matches!(long.parse::<InclusionProof>(), Err(Error::TooLarge { .. })));
}

#[test]
fn signatures_and_witnesses() {
    let (log, witness, stranger) =
        (key(), SigningKey::from_seed("w.example", &[1; 32]).unwrap(), SigningKey::from_seed("s", &[2; 32]).unwrap());
    let mut note = Note::parse(&note(4)).unwrap();
    note.sign(&log).unwrap();
    assert_eq!(note.to_string().lines().count(), 5, "signing again replaces");
    note.sign(&stranger).unwrap();
    let witnessed = verifier().witnessed_by(vec![witness.witness_key(), witness.witness_key(), log.witness_key()], 1);
    note.cosign(&log, 5).unwrap();
    let text = note.to_string();
    assert!(matches!(witnessed.export(text.as_bytes()), Err(Refusal::TooFewWitnesses { found: 0, needed: 1 })));
    note.cosign(&witness, 5).unwrap();
    assert!(witnessed.export(note.to_string().as_bytes()).is_ok());
    let twice = verifier().witnessed_by(vec![witness.witness_key(), witness.witness_key()], 2);
    assert!(matches!(twice.export(note.to_string().as_bytes()), Err(Refusal::TooFewWitnesses { found: 1, needed: 2 })));
    // A witness's signature does not stand for the log's.
    let mut only = Note::new(note.text()).unwrap();
    only.cosign(&witness, 5).unwrap();
    assert!(matches!(witnessed.export(only.to_string().as_bytes()), Err(Refusal::WrongKey { .. })));
    // One bad signature of a known key condemns the note, also beside a good one; a stranger's is ignored.
    let line = |index: usize| text.lines().nth(index).unwrap().to_owned();
    let id_and_zeros = |name: &str, key: &VerifyingKey, bytes: usize| {
        use base64::Engine;
        let data = [&key.id().to_be_bytes()[..], &vec![0; bytes]].concat();
        format!("\u{2014} {name} {}", base64::engine::general_purpose::STANDARD.encode(data))
    };
    let bad = |added: String| format!("{}\n{}\n{added}\n", note.text(), line(4));
    let own = verifier().export(bad(id_and_zeros(ORIGIN, log.verifying_key(), 64)).as_bytes());
    assert!(matches!(own, Err(Refusal::Bad(Error::BadSignature { .. }))));
    let cosigned = witnessed.export(bad(id_and_zeros("w.example", &witness.witness_key(), 72)).as_bytes());
    assert!(matches!(cosigned, Err(Refusal::Bad(Error::BadSignature { .. }))));
    assert!(verifier().export(bad(id_and_zeros("s", stranger.verifying_key(), 64)).as_bytes()).is_ok());
    assert!(verifier().export(bad(id_and_zeros("s", log.verifying_key(), 64)).as_bytes()).is_ok(), "same id, other name");
    assert!(matches!(note.verify([]), Err(Error::NotSigned)));

    let many = (0..SIGNATURES_MAX).try_for_each(|number| note.sign(&SigningKey::from_seed(&format!("k{number}"), &[3; 32]).unwrap()));
    assert!(matches!(many, Err(Error::TooLarge { .. })));
    let text = format!("{}\n{}", note.text(), format!("{}\n", line(4)).repeat(SIGNATURES_MAX + 1));
    assert!(matches!(Note::parse(text.as_bytes()), Err(Error::TooLarge { .. })));
    assert!(matches!(Note::parse(&vec![b'\n'; NOTE_BYTES_MAX + 1]), Err(Error::TooLarge { .. })));
}

#[test]
fn certificates() {
    let key = key();
    let signature = key.sign("erasure certificate", b"all gone");
    let public = key.verifying_key();
    public.verify("erasure certificate", b"all gone", &signature).unwrap();
    assert!(public.verify("access review", b"all gone", &signature).is_err());
    for flipped in flips(b"all gone") {
        assert!(public.verify("erasure certificate", &flipped, &signature).is_err());
    }
    for flipped in flips(&signature) {
        assert!(public.verify("erasure certificate", b"all gone", &flipped).is_err());
    }
    // No note can be made of it, nor it of a note.
    assert!(Note::new("\0all gone\n").is_err());
}

#[test]
fn keys_and_checkpoints_are_strict() {
    let text = key().verifying_key().to_string();
    for flipped in flips(text.as_bytes()) {
        // Bit 5 of a hex letter is its case; every change is refused.
        assert!(String::from_utf8(flipped).ok().and_then(|text| text.parse::<VerifyingKey>().ok()).is_none());
    }
    for bad in ["", "a b", "a+b", "a\u{a0}b", "a\nb", "a\u{7}"] {
        assert!(SigningKey::from_seed(bad, &[0; 32]).is_err(), "{bad:?}");
    }
    for bad in [
        "\n1\nROOT\n",
        "o\n01\nROOT\n",
        "o\n+1\nROOT\n",
        "o\n1\nROOT",
        "o\n1\nROOT\n\n",
        "o\n1\nAAAA\n",
        "o\n1\n",
        "o\n281474976710656\nROOT\n",
        "o\n\nROOT\n",
    ] {
        assert!(bad.replace("ROOT", &leaf(0).to_string()).parse::<Checkpoint>().is_err(), "{bad:?}");
    }
    for checkpoint in
        [Checkpoint::new("a\n5", 1, leaf(0)), Checkpoint { extensions: vec!["x\ny".into()], ..Checkpoint::new("a", 1, leaf(0)) }]
    {
        assert!(checkpoint.sign(&key()).is_err());
    }
}

/// A store of tiles with one bit turned in every tile.
struct Rotten<'a>(&'a MemoryTree);

impl TileReader for Rotten<'_> {
    fn read(&self, tile: Tile) -> Result<Vec<u8>, tlog::StoreError> {
        let mut data = self.0.read(tile)?;
        data[0] ^= 1;
        Ok(data)
    }
}

/// A store whose tiles are one byte short.
struct Short<'a>(&'a MemoryTree);

impl TileReader for Short<'_> {
    fn read(&self, tile: Tile) -> Result<Vec<u8>, tlog::StoreError> {
        self.0.read(tile).map(|mut data| data.split_off(1))
    }
}

/// A store that keeps one growing file per tile and hands it out whole, here with what came later.
struct Wide<'a>(&'a MemoryTree);

impl TileReader for Wide<'_> {
    fn read(&self, tile: Tile) -> Result<Vec<u8>, tlog::StoreError> {
        let wider = Tile::in_tree(tile.level(), tile.index(), self.0.size()).ok_or("no tile")?;
        self.0.read(wider)
    }
}

#[test]
fn wider_tiles_do_and_a_full_log_refuses() {
    let log = tree(1000);
    for size in [1, 255, 256, 300, 999] {
        assert_eq!(Frontier::from_tiles(size, &Wide(&log)).unwrap().root(), tree(size).root());
        let wide = Wide(&log);
        let proof = InclusionProof::build(size / 2, size, &TileHashes::new(size, &wide).unwrap()).unwrap();
        proof.verify(leaf(size / 2), size, tree(size).root()).unwrap();
    }
    struct Zeros;
    impl TileReader for Zeros {
        fn read(&self, tile: Tile) -> Result<Vec<u8>, tlog::StoreError> {
            Ok(vec![0; tile.bytes()])
        }
    }
    let mut full = Frontier::from_tiles(tlog::LEAVES_MAX - 1, &Zeros).unwrap();
    assert_eq!(full.append(leaf(0), |_, _, _| {}).unwrap(), tlog::LEAVES_MAX - 1);
    let root = full.root();
    assert!(matches!(full.append(leaf(1), |_, _, _| {}), Err(Error::TooLarge { .. })));
    assert_eq!((full.size(), full.root()), (tlog::LEAVES_MAX, root));
}

#[test]
fn bad_tiles_show() {
    let log = tree(1000);
    assert_ne!(Frontier::from_tiles(1000, &Rotten(&log)).unwrap().root(), log.root());
    assert!(Frontier::from_tiles(1000, &Short(&log)).is_err());
    assert!(matches!(Frontier::from_tiles(1001, &log), Err(Error::Store(_))));
    assert!(Frontier::from_tiles(1 << 48, &log).is_err());
    let (rotten, short) = (Rotten(&log), Short(&log));
    let proof = InclusionProof::build(1, 1000, &TileHashes::new(1000, &rotten).unwrap()).unwrap();
    assert!(proof.verify(leaf(1), 1000, log.root()).is_err());
    assert!(InclusionProof::build(1, 1000, &TileHashes::new(1000, &short).unwrap()).is_err());
    let tiles = TileHashes::new(1000, &log).unwrap();
    assert!(matches!(InclusionProof::build(1000, 1000, &tiles), Err(Error::NoNode { .. })));
    assert!(ConsistencyProof::build(1001, 1000, &tiles).is_err());
    use tlog::HashReader;
    for (level, index) in [(0, 1000), (1, 500), (9, 1), (48, 0), (255, 0), (63, u64::MAX), (0, u64::MAX)] {
        assert!(tiles.hash(level, index).is_err(), "{level} {index}");
    }
}

/// Speed is part of the contract: an append costs its hashing and little else. The best of several rounds, because the
/// machine may be busy; bounded far above what it takes.
#[test]
fn append_is_mostly_hashing() {
    let (rounds, count, entry) = (7, 20_000, [5; 200]);
    let best = |work: &dyn Fn()| {
        let times = (0..rounds).map(|_| {
            let started = std::time::Instant::now();
            (0..count).for_each(|_| work());
            started.elapsed() / count
        });
        times.min().unwrap()
    };
    let frontier = std::cell::RefCell::new(Frontier::new());
    let append = best(&|| {
        frontier.borrow_mut().append(tlog::leaf_hash(&entry), |_, _, _| {}).unwrap();
    });
    let node = leaf(0);
    let hashing = best(&|| {
        std::hint::black_box(tlog::node_hash(&tlog::leaf_hash(&entry), &node));
    });
    println!("append {append:?}, of which hashing {hashing:?}");
    assert!(append < hashing * 3 + std::time::Duration::from_micros(1));
}
