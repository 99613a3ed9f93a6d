//! Published examples, and our own output pinned so that old logs stay readable.

use tlog::{Bundle, Checkpoint, Entries, Error, KeyKind, MemoryTree, Note, SigningKey, Tile, VerifyingKey, leaf_hash, push_entry};

use crate::{leaf, tree};

#[test]
fn roots_of_certificate_transparency() {
    let leaves: [&[u8]; 8] = [
        &[],
        &[0x00],
        &[0x10],
        &[0x20, 0x21],
        &[0x30, 0x31],
        &[0x40, 0x41, 0x42, 0x43],
        &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
        &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
    ];
    let roots = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut tree = MemoryTree::new();
    for (leaf, root) in leaves.into_iter().zip(roots) {
        tree.append(leaf_hash(leaf)).unwrap();
        assert_eq!(tree.root().0.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), root);
    }
}

#[test]
fn example_of_signed_note() {
    let key: VerifyingKey = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k".parse().unwrap();
    let note = "This is an example message.\n\n\u{2014} example.com/foo \
        Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";
    let parsed = Note::parse(note.as_bytes()).unwrap();
    assert_eq!(parsed.verify([&key]).unwrap().len(), 1);
    assert_eq!(parsed.to_string(), note);
}

/// The tree of 70,000 leaves in the text of tlog-tiles.
#[test]
fn tiles_of_the_standards_example() {
    let edge: Vec<_> = Tile::right_edge(70_000).map(|tile| tile.to_string()).collect();
    assert_eq!(edge, ["tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"]);
    assert_eq!(Tile::between(0, 70_000).count(), 273 + 1 + 1 + 1 + 1);
    assert_eq!(Tile::right_edge(256).map(|tile| tile.to_string()).collect::<Vec<_>>(), ["tile/1/000.p/1"]);
    assert_eq!("tile/0/x001/x234/067".parse::<Tile>().unwrap().index(), 1_234_067);
    let (tile, place) = Tile::of_node(8, 300).unwrap();
    assert_eq!((tile.to_string().as_str(), tile.full().to_string().as_str(), place), ("tile/1/001.p/45", "tile/1/001", 44));
    assert!(Tile::of_node(7, 0).is_none());
}

#[test]
fn paths_have_one_spelling() {
    for bad in [
        "",
        "tile/0/",
        "tile/00/000",
        "tile/+1/000",
        "tile/6/000",
        "tile/0/0",
        "tile/0/0000",
        "tile/0/x000/001",
        "tile/0/001/002",
        "tile/0/x001",
        "tile/0/x001/x002",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/0/000.p/",
        "tile/0/../000",
        "tile/0//000",
        "/tile/0/000",
        "tile/entries/000",
        "tile/0/x999/x999/x999/x999/x999/x999/999",
        "tile/0/x00\u{661}/000",
    ] {
        assert!(bad.parse::<Tile>().is_err(), "{bad}");
    }
    assert!("tile/0/000".parse::<Bundle>().is_err());
}

#[test]
fn our_checkpoint() {
    let key = SigningKey::from_seed("example.org/log", &[7; 32]).unwrap();
    let tree = tree(300);
    let mut note = Checkpoint::new("example.org/log", 300, tree.root()).sign(&key).unwrap();
    let witness = SigningKey::from_seed("witness.example", &[8; 32]).unwrap();
    note.cosign(&witness, 1_790_000_000).unwrap();
    assert_eq!(note.to_string(), include_str!("checkpoint.txt"));
    assert_eq!(key.verifying_key().to_string(), include_str!("key.txt").trim_end());
    let witness_key: VerifyingKey = witness.witness_key().to_string().parse().unwrap();
    assert_eq!(witness_key.kind(), KeyKind::Cosignature);
    let signers = note.verify([&witness_key]).unwrap();
    assert_eq!(signers[0].time_seconds, Some(1_790_000_000));
}

#[test]
fn private_key_from_pkcs8() {
    // RFC 8410, section 10.3.
    let der = [&[0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20][..], &[7; 32]].concat();
    let (pkcs8, seed) = (SigningKey::from_pkcs8("k", &der).unwrap(), SigningKey::from_seed("k", &[7; 32]).unwrap());
    assert_eq!(pkcs8.verifying_key(), seed.verifying_key());
    assert!(SigningKey::from_pkcs8("k", &der[..40]).is_err());
    assert!(!format!("{pkcs8:?}").contains('7'), "debug output holds no key");
}

#[test]
fn bundles() {
    let mut bytes = Vec::new();
    for entry in [&b"ab"[..], b"", &[1; 65_535]] {
        push_entry(&mut bytes, entry).unwrap();
    }
    assert!(matches!(push_entry(&mut bytes, &[1; 65_536]), Err(Error::TooLarge { .. })));
    assert_eq!(bytes[..6], [0, 2, b'a', b'b', 0, 0]);
    let bundle = Bundle::in_tree(0, 3).unwrap();
    assert_eq!(bundle.entries(&bytes).unwrap(), [&b"ab"[..], b"", &[1; 65_535]]);
    assert!(Bundle::in_tree(0, 2).unwrap().entries(&bytes).is_err(), "one too many");
    assert!(Bundle::in_tree(0, 4).unwrap().entries(&bytes).is_err(), "one too few");
    for cut in [1, 3, 5, 7, bytes.len() - 1] {
        assert!(bundle.entries(&bytes[..cut]).is_err());
        let mut entries = Entries::new(&bytes[..cut]);
        while entries.next().is_some() {}
        assert_eq!(
            entries.offset(),
            if cut < 4 {
                0
            } else if cut < 6 {
                4
            } else {
                6
            },
            "cut at {cut}"
        );
    }
    assert_eq!(leaf(0), leaf_hash(b"entry 0"));
}
