//! The ledger under everything that can happen to it: crashes at each byte, a kill, tampering, lost keys, many threads.

mod postgres;
mod receipts;
mod shared;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;
use tlog::{StoreError, TileReader, Verifier};

use super::*;

const TENANT: [u8; 16] = [0xaa; 16];
const ORIGIN: &str = "insula/0123/aaaa";
/// Where the child of the crash test finds its log.
const CHILD_DIR: &str = "INSULA_TEST_LEDGER";

fn keys() -> LedgerKeys {
    LedgerKeys { content: vec![(1, Zeroizing::new([1; 32]))], signing_seed: Zeroizing::new([9; 32]) }
}

fn open(dir: &Path) -> Result<Ledger> {
    Ledger::open(dir, keys(), TENANT, ORIGIN)
}

fn entry(number: u64) -> Entry {
    Entry {
        time: 1_000_000 * number as i64,
        request: format!("req-{number}"),
        actor: if number.is_multiple_of(3) { "ada".into() } else { "bob".into() },
        via: "key:0123456789abcdef".into(),
        act: if number.is_multiple_of(2) { "Predict".into() } else { "DatasetRead".into() },
        resource: format!("dataset:set{}", number % 5),
        outcome: if number.is_multiple_of(7) { Outcome::Refused } else { Outcome::Allowed },
        reason: "viewer".into(),
        detail: BTreeMap::from([("sha256".into(), "marker-in-clear".into())]),
        generation: number.is_multiple_of(10).then_some(number),
    }
}

fn filled(dir: &Path, entries: u64) -> Ledger {
    let ledger = open(dir).unwrap();
    for number in ledger.size()..entries {
        assert_eq!(ledger.append(&entry(number)).unwrap(), number);
    }
    ledger
}

fn is_integrity<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Integrity(_)))
}

fn copy(from: &Path) -> TempDir {
    fn copy_folder(from: &Path, to: &Path) {
        for file in fs::read_dir(from).unwrap().map(|file| file.unwrap()) {
            let target = to.join(file.file_name());
            if file.path().is_dir() {
                fs::create_dir(&target).unwrap();
                copy_folder(&file.path(), &target);
            } else {
                fs::copy(file.path(), target).unwrap();
            }
        }
    }
    let to = TempDir::new().unwrap();
    copy_folder(from, to.path());
    to
}

/// As from memory: the same leaves in a tree of tlog's own.
fn expected_root(ledger: &Ledger) -> [u8; 32] {
    let mut tree = tlog::MemoryTree::new();
    ledger.signed_leaves(ledger.size(), |_, leaf| tree.append(leaf_hash(leaf)).map(|_| ()).map_err(Error::internal)).unwrap();
    tree.root().0
}

#[test]
fn what_is_appended_is_read_also_after_opening_again() {
    let dir = TempDir::new().unwrap();
    for size in [0u64, 1, 2, 255, 256, 257, 511, 512, 700] {
        let ledger = filled(dir.path(), size);
        assert_eq!((ledger.size(), ledger.root()), (size, expected_root(&ledger)));
        if size.is_multiple_of(2) {
            ledger.checkpoint().unwrap();
        }
        let (root, vkey) = (ledger.root(), ledger.vkey());
        drop(ledger);
        let ledger = open(dir.path()).unwrap();
        assert_eq!((ledger.size(), ledger.root(), ledger.vkey()), (size, root, vkey));
        assert_eq!(ledger.dirty(), size % 2 == 1);
        assert_eq!(ledger.last_generation(), size.checked_sub(1).map(|last| last / 10 * 10));
        assert!(ledger.entries(0..u64::MAX).unwrap().iter().all(|read| read.entry == Some(entry(read.index))));
        assert_eq!(ledger.entries(0..u64::MAX).unwrap().len() as u64, size);
        assert!(matches!(ledger.entry(size), Err(Error::NotFound(_))));
        ledger.check().unwrap();
    }
    let all: Vec<u8> = ["entries.log", "index", "checkpoint"].iter().flat_map(|name| fs::read(dir.path().join(name)).unwrap()).collect();
    for clear in ["marker-in-clear", "ada", "Predict", "dataset:", "req-"] {
        assert!(!all.windows(clear.len()).any(|window| window == clear.as_bytes()), "{clear}");
    }
}

#[test]
fn a_cut_at_any_byte_behind_the_checkpoint_keeps_every_whole_entry() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("entries.log");
    let ledger = filled(dir.path(), 254);
    ledger.checkpoint().unwrap();
    let mut ends = vec![ledger.inner.lock().end];
    for number in 254..257 {
        ledger.append(&entry(number)).unwrap();
        ends.push(ledger.inner.lock().end);
    }
    drop(ledger);
    let log = fs::read(&path).unwrap();
    for bytes in ends[0]..=ends[3] {
        fs::write(&path, &log[..bytes as usize]).unwrap();
        let ledger = open(dir.path()).unwrap();
        let whole = ends.iter().filter(|end| **end <= bytes).count() as u64 - 1;
        assert_eq!(ledger.size(), 254 + whole, "{bytes} bytes");
        // And goes on from there, as if nothing had been.
        assert_eq!(ledger.append(&entry(ledger.size())).unwrap(), 254 + whole);
        let root = ledger.root();
        assert_eq!(root, expected_root(&ledger));
        drop(ledger);
        let ledger = open(dir.path()).unwrap();
        assert_eq!((ledger.size(), ledger.root()), (255 + whole, root));
        assert!(ledger.entries(250..300).unwrap().iter().all(|read| read.entry == Some(entry(read.index))));
    }
    // The same cuts before the checkpoint are damage.
    fs::write(&path, &log).unwrap();
    open(dir.path()).unwrap().checkpoint().unwrap();
    for bytes in ends[0]..ends[3] {
        fs::write(&path, &log[..bytes as usize]).unwrap();
        assert!(is_integrity(open(dir.path())), "{bytes} bytes");
    }
    fs::write(&path, &log).unwrap();
    assert_eq!(open(dir.path()).unwrap().check().unwrap().size, 257);
}

#[test]
fn rubbish_behind_the_checkpoint_is_cut_and_damage_before_it_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("entries.log");
    let ledger = filled(dir.path(), 300);
    ledger.checkpoint().unwrap();
    let signed = ledger.inner.lock().end as usize;
    ledger.append(&entry(300)).unwrap();
    drop(ledger);
    let (log, note) = (fs::read(&path).unwrap(), fs::read(dir.path().join("checkpoint")).unwrap());
    for tail in [vec![0; 3], vec![0; 5000], vec![0xff; 5000], b"\0\x01x\0\x01y".to_vec()] {
        fs::write(&path, [&log[..], &tail].concat()).unwrap();
        assert_eq!(open(dir.path()).unwrap().size(), 301);
        assert_eq!(fs::read(&path).unwrap(), log);
    }
    for at in (0..log.len()).step_by(1_499).chain(signed - 20..log.len()) {
        let mut flipped = log.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, &flipped).unwrap();
        fs::write(dir.path().join("checkpoint"), &note).unwrap(); // an export signs anew
        match open(dir.path()) {
            // A number of a key that never was is not cut but refused.
            Err(Error::Integrity(_)) => assert!(at < signed || (signed + 34..signed + 38).contains(&at), "byte {at}"),
            Ok(ledger) if at >= signed => assert_eq!(ledger.size(), 300, "byte {at}"),
            // Opening does not read everything; reading does.
            Ok(ledger) => assert!(is_integrity(ledger.check()) && is_integrity(ledger.export(&mut std::io::sink())), "byte {at}"),
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
}

#[test]
fn tampered_files_are_refused_and_caches_rebuilt() {
    let dir = TempDir::new().unwrap();
    let ledger = filled(dir.path(), 600);
    let note = ledger.checkpoint().unwrap();
    drop(ledger);
    let with = |name: &str, change: &dyn Fn(&Path)| {
        let changed = copy(dir.path());
        change(&changed.path().join(name));
        open(changed.path()).and_then(|ledger| ledger.check())
    };
    assert!(with("index", &|_| {}).is_ok(), "the control");
    assert!(is_integrity(with("checkpoint", &|path| fs::remove_file(path).unwrap())));
    assert!(is_integrity(with("checkpoint", &|path| fs::write(path, note.replace("600", "599")).unwrap())));
    assert!(is_integrity(with("checkpoint", &|path| fs::write(path, "").unwrap())));
    assert!(is_integrity(with("entries.log", &|path| fs::remove_file(path).unwrap())));
    assert!(is_integrity(with("tile/1/000.p/2", &|path| fs::remove_file(path).unwrap())));
    assert!(is_integrity(with("tile/1/000.p/2", &|path| fs::write(path, [0; 64]).unwrap())));
    assert!(with("index", &|path| fs::remove_file(path).unwrap()).is_ok());
    assert!(with("index", &|path| fs::write(path, [0; 16]).unwrap()).is_ok());
    assert!(with("index", &|path| fs::write(path, [0xff; 16]).unwrap()).is_ok());
    // Another key, another origin, another tenant.
    let other = LedgerKeys { signing_seed: Zeroizing::new([8; 32]), ..keys() };
    assert!(is_integrity(Ledger::open(dir.path(), other, TENANT, ORIGIN)));
    assert!(is_integrity(Ledger::open(dir.path(), keys(), TENANT, "insula/0123/bbbb")));
    let other = Ledger::open(dir.path(), keys(), [0xbb; 16], ORIGIN).unwrap();
    assert!(is_integrity(other.entry(0)));
}

#[test]
fn entries_cannot_change_places() {
    let dir = TempDir::new().unwrap();
    let mut same = entry(1);
    same.generation = None;
    let ledger = open(dir.path()).unwrap();
    (0..3).for_each(|index| assert_eq!(ledger.append(&same).unwrap(), index));
    let mut leaves = Vec::new();
    ledger
        .signed_leaves(3, |_, leaf| {
            leaves.push(leaf.to_vec());
            Ok(())
        })
        .unwrap();
    assert_ne!(leaves[0], leaves[1], "the same entry is never sealed to the same bytes");
    assert!(ledger.opened(0, &leaves[0]).unwrap().is_some());
    assert!(is_integrity(ledger.opened(0, &leaves[1])));
    drop(ledger);
    let log = fs::read(dir.path().join("entries.log")).unwrap();
    let record = log.len() / 3;
    fs::write(dir.path().join("entries.log"), [&log[..record], &log[2 * record..], &log[record..2 * record]].concat()).unwrap();
    assert_eq!(open(dir.path()).unwrap().size(), 1, "swapped entries behind the checkpoint are no entries");
}

#[test]
fn a_missing_key_is_never_taken_for_a_torn_end() {
    let dir = TempDir::new().unwrap();
    let ledger = filled(dir.path(), 2);
    ledger.take_up_keys(&[(7, Zeroizing::new([7; 32]))]).unwrap();
    ledger.take_up_keys(&[(7, Zeroizing::new([8; 32]))]).unwrap(); // known: the first stays
    ledger.append(&entry(2)).unwrap();
    drop(ledger);
    assert!(is_integrity(open(dir.path())));
    let both = || LedgerKeys { content: vec![(1, Zeroizing::new([1; 32])), (7, Zeroizing::new([7; 32]))], ..keys() };
    let ledger = Ledger::open(dir.path(), both(), TENANT, ORIGIN).unwrap();
    assert_eq!(ledger.entries(0..9).unwrap().len(), 3);
    // Signed and then shredded: the first two are gone, the tree and the third stay.
    ledger.checkpoint().unwrap();
    drop(ledger);
    let shredded = LedgerKeys { content: vec![(7, Zeroizing::new([7; 32]))], ..keys() };
    let ledger = Ledger::open(dir.path(), shredded, TENANT, ORIGIN).unwrap();
    let read: Vec<_> = ledger.entries(0..9).unwrap().into_iter().map(|read| read.entry).collect();
    assert_eq!(read, [None, None, Some(entry(2))]);
    let report = verify(&exported(&ledger), None).unwrap();
    assert_eq!((report.size, report.opened, report.shredded), (3, 1, 2));
    assert_eq!(ledger.search(&Filter::default(), 10).unwrap().entries.len(), 1);
}

#[test]
fn after_a_failed_write_nothing_is_taken_until_it_is_opened_again() {
    let dir = TempDir::new().unwrap();
    let mut ledger = filled(dir.path(), 5);
    ledger.sync().unwrap();
    ledger.files.break_log();
    assert!(matches!(ledger.append(&entry(5)), Err(Error::Unavailable(_))));
    assert!(ledger.failed());
    assert!(matches!(ledger.append(&entry(5)), Err(Error::Unavailable(_))));
    assert!(ledger.sync().is_err() && ledger.checkpoint().is_err());
    drop(ledger);
    let ledger = filled(dir.path(), 6);
    assert_eq!(ledger.checkpoint().unwrap().lines().nth(1), Some("6"));
}

#[test]
fn entries_are_bounded_and_a_refused_one_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let ledger = filled(dir.path(), 1);
    let long = |bytes: usize| "x".repeat(bytes);
    let details = |count: usize, key: usize, value: usize| (0..count).map(|n| (format!("{n:0key$}"), long(value))).collect();
    for bad in [
        Entry { reason: long(4096), ..entry(1) },
        Entry { detail: details(17, 2, 1), ..entry(1) },
        Entry { detail: details(1, 65, 1), ..entry(1) },
        Entry { detail: details(1, 1, 257), ..entry(1) },
    ] {
        assert!(matches!(ledger.append(&bad), Err(Error::Invalid(_))));
    }
    let odd = Entry { reason: "line\nbreak \u{0} \u{202e} \"quote\"".into(), detail: details(10, 64, 256), ..entry(1) };
    assert_eq!(ledger.append(&odd).unwrap(), 1);
    assert_eq!(ledger.entry(1).unwrap().entry, Some(odd));
    assert!(!exported(&ledger).windows(6).any(|window| window == b"line\nb"), "control characters are escaped");
}

type Hit<'a> = &'a dyn Fn(&Entry) -> bool;

#[test]
fn search_pages_in_both_directions() {
    let dir = TempDir::new().unwrap();
    let ledger = filled(dir.path(), 600);
    let indexes = |filter: &Filter| -> Vec<u64> {
        let (mut all, mut filter) = (Vec::new(), filter.clone());
        loop {
            let page = ledger.search(&filter, 7).unwrap();
            assert!(page.entries.len() <= 7);
            all.extend(page.entries.iter().map(|hit| hit.index));
            match page.next {
                Some(next) => filter.from = Some(next),
                None => return all,
            }
        }
    };
    let expected = |hit: &dyn Fn(&Entry) -> bool| (0..600).filter(|number| hit(&entry(*number))).collect::<Vec<u64>>();
    let some = |text: &str| Some(text.to_owned());
    let cases: [(Filter, Hit<'_>); 7] = [
        (Filter::default(), &|_| true),
        (Filter { actor: some("ada"), ..Filter::default() }, &|entry| entry.actor == "ada"),
        (Filter { act: some("Predict"), outcome: Some(Outcome::Refused), ..Filter::default() }, &|entry| {
            entry.act == "Predict" && entry.outcome == Outcome::Refused
        }),
        (Filter { resource: some("dataset:set3"), ..Filter::default() }, &|entry| entry.resource == "dataset:set3"),
        (Filter { resource: some("dataset:*"), ..Filter::default() }, &|_| true),
        (Filter { resource: some("model:*"), ..Filter::default() }, &|_| false),
        (Filter { since: Some(100_000_000), until: Some(300_000_000), text: some("REQ-2"), ..Filter::default() }, &|entry| {
            (100_000_000..300_000_000).contains(&entry.time) && entry.request.starts_with("req-2")
        }),
    ];
    for (filter, hit) in cases {
        let mut expected = expected(hit);
        assert_eq!(indexes(&Filter { oldest_first: true, ..filter.clone() }), expected, "{filter:?}");
        expected.reverse();
        assert_eq!(indexes(&filter), expected, "{filter:?}");
    }
}

/// Reads as an outside client would: by path.
struct Client<'a>(&'a Ledger);

impl TileReader for Client<'_> {
    fn read(&self, tile: Tile) -> std::result::Result<Vec<u8>, StoreError> {
        Ok(self.0.tile(&tile.to_string())?)
    }
}

#[test]
fn proofs_and_tiles_satisfy_the_outside_verifier() {
    let dir = TempDir::new().unwrap();
    let ledger = filled(dir.path(), 300);
    let old = ledger.checkpoint().unwrap();
    let old = verified(old.as_bytes(), &ledger.signing, ORIGIN).unwrap().head;
    filled_up(&ledger, 700);
    let note = ledger.checkpoint().unwrap();
    ledger.append(&entry(700)).unwrap();
    assert_eq!(ledger.tile("checkpoint").unwrap(), note.as_bytes());
    let verifier = Verifier::new(ORIGIN, ledger.vkey().parse().unwrap());
    let mut leaves = Vec::new();
    ledger
        .signed_leaves(700, |_, leaf| {
            leaves.push(leaf.to_vec());
            Ok(())
        })
        .unwrap();
    for index in [0u64, 1, 255, 256, 299, 511, 512, 699] {
        let proof = ledger.prove_inclusion(index, 700).unwrap();
        verifier.inclusion(note.as_bytes(), &leaves[index as usize], &proof).unwrap();
        assert!(verifier.inclusion(note.as_bytes(), &leaves[(index as usize + 1) % 700], &proof).is_err());
        let alone = ledger.prove_entry(index).unwrap().parse().unwrap();
        verifier.log_proof(&alone, &leaves[index as usize]).unwrap();
    }
    let proof = ledger.prove_consistency(300, 700).unwrap();
    assert_eq!(verifier.clone().remembering(old).extension(note.as_bytes(), &proof).unwrap().head.size, 700);
    let forked = tlog::TreeHead { root: Hash([1; 32]), ..old };
    assert!(verifier.remembering(forked).extension(note.as_bytes(), &proof).is_err());
    assert!(ledger.prove_inclusion(0, 999).is_err() && ledger.prove_inclusion(5, 5).is_err() && ledger.prove_consistency(1, 999).is_err());
    // Everything from tiles alone.
    let frontier = Frontier::from_tiles(700, &Client(&ledger)).unwrap();
    let head = verified(note.as_bytes(), &ledger.signing, ORIGIN).unwrap().head;
    assert_eq!(frontier.root(), head.root);
    let bundle = Bundle::in_tree(2, 700).unwrap();
    let bytes = ledger.tile(&bundle.to_string()).unwrap();
    assert_eq!(bundle.entries(&bytes).unwrap(), leaves[512..]);
    for path in ["tile/0/002.p/250", "tile/0/003", "tile/entries/003", "tile/2/000", "tile/1/000", "index", "../checkpoint", ""] {
        assert!(matches!(ledger.tile(path), Err(Error::NotFound(_))), "{path}");
    }
}

fn filled_up(ledger: &Ledger, size: u64) {
    (ledger.size()..size).for_each(|number| assert_eq!(ledger.append(&entry(number)).unwrap(), number));
}

fn exported(ledger: &Ledger) -> Vec<u8> {
    let mut bytes = Vec::new();
    ledger.export(&mut bytes).unwrap();
    bytes
}

fn pinned() -> String {
    SigningKey::from_seed(ORIGIN, &[9; 32]).unwrap().verifying_key().to_string()
}

fn verify(export: &[u8], remembered: Option<(u64, &str)>) -> Result<Report> {
    verify_export(&mut &export[..], ORIGIN, &pinned(), remembered)
}

fn small_export() -> &'static [u8] {
    static EXPORT: OnceLock<Vec<u8>> = OnceLock::new();
    EXPORT.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        exported(&filled(dir.path(), 4))
    })
}

#[test]
fn an_export_verifies_offline_and_continues_what_was_remembered() {
    let dir = TempDir::new().unwrap();
    let ledger = filled(dir.path(), 300);
    let first = verify(&exported(&ledger), None).unwrap();
    assert_eq!((first.size, first.opened, first.shredded), (300, 300, 0));
    filled_up(&ledger, 400);
    let export = exported(&ledger);
    assert_eq!(verify(&export, Some((300, &first.root))).unwrap().size, 400);
    let refused = |result: Result<Report>, word: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    };
    refused(verify(&export, Some((300, &Hash([1; 32]).to_string()))), "forked");
    refused(verify(&exported(&filled(TempDir::new().unwrap().path(), 299)), Some((300, &first.root))), "shrunk");
    // Another log of the same keys with other entries is a fork, too.
    let other = TempDir::new().unwrap();
    refused(verify(&exported(&filled(other.path(), 400)), Some((300, &first.root))), "forked");
    refused(verify_export(&mut &export[..], "insula/0123/bbbb", &pinned(), None), "pinned");
    let wrong = SigningKey::from_seed(ORIGIN, &[8; 32]).unwrap().verifying_key().to_string();
    refused(verify_export(&mut &export[..], ORIGIN, &wrong, None), "pinned");
    let lines: Vec<&[u8]> = export.split_inclusive(|byte| *byte == b'\n').collect();
    refused(verify(&lines[..lines.len() - 1].concat(), None), "truncated");
    refused(verify(&[&export[..], lines[1]].concat(), None), "entry 0 stands where 400 should");
    let mut swapped = lines.clone();
    swapped.swap(5, 6);
    refused(verify(&swapped.concat(), None), "stands where");
    refused(verify(&export[..export.len() - 1], None), "written");
    refused(verify(b"", None), "empty");
}

#[test]
fn a_forger_without_the_key_cannot_resign() {
    // The same log with one entry changed and everything that needs no key made good again.
    let dir = TempDir::new().unwrap();
    let forged = LedgerKeys { signing_seed: Zeroizing::new([8; 32]), ..keys() };
    let ledger = Ledger::open(dir.path(), forged, TENANT, ORIGIN).unwrap();
    filled_up(&ledger, 12);
    let export = String::from_utf8(exported(&ledger)).unwrap();
    assert!(verify_export(&mut export.as_bytes(), ORIGIN, &ledger.vkey(), None).is_ok(), "the control");
    let export = export.replacen(&ledger.vkey(), &pinned(), 1);
    let message = verify(export.as_bytes(), None).unwrap_err().to_string();
    assert!(message.contains("not signed by the pinned key"), "{message}");
}

#[test]
fn every_byte_of_an_export_counts() {
    let export = small_export();
    verify(export, None).unwrap();
    for at in 0..export.len() {
        let mut flipped = export.to_vec();
        flipped[at] ^= 1;
        assert!(verify(&flipped, None).is_err(), "byte {at}: {:?}", export[at] as char);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_change_to_an_export_passes(at in any::<prop::sample::Index>(), byte in any::<u8>(), kind in 0..3) {
        let mut changed = small_export().to_vec();
        let at = at.index(changed.len());
        match kind {
            0 => changed[at] = byte,
            1 => changed.insert(at, byte),
            _ => drop(changed.remove(at)),
        }
        prop_assume!(changed != small_export());
        prop_assert!(verify(&changed, None).is_err());
    }
}

#[test]
fn many_threads_append_while_it_is_signed_and_read() {
    let dir = TempDir::new().unwrap();
    let ledger = open(dir.path()).unwrap();
    let mut indexes: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..500).map(|number| ledger.append(&entry(number)).unwrap()).collect::<Vec<_>>())).collect();
        let signer = scope.spawn(|| (0..20).for_each(|_| drop((ledger.checkpoint().unwrap(), ledger.check().unwrap()))));
        signer.join().unwrap();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    indexes.sort_unstable();
    assert_eq!(indexes, (0..2000).collect::<Vec<_>>());
    ledger.checkpoint().unwrap();
    assert_eq!(ledger.check().unwrap(), tlog::TreeHead { size: 2000, root: Hash(ledger.root()) });
    let root = ledger.root();
    drop(ledger);
    assert_eq!(open(dir.path()).unwrap().root(), root);
}

#[test]
#[ignore = "the child of the crash test"]
fn child_that_appends() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { panic!("run by the crash test") };
    let ledger = open(Path::new(&dir)).unwrap();
    loop {
        let index = ledger.size();
        ledger.append(&entry(index)).unwrap();
        if index.is_multiple_of(5) {
            ledger.sync().unwrap();
            println!("acknowledged {index}");
        }
        if index.is_multiple_of(40) {
            ledger.checkpoint().unwrap();
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    let dir = TempDir::new().unwrap();
    let mut heads: Vec<tlog::TreeHead> = Vec::new();
    for round in 0..8u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ledger::tests::child_that_appends", "--ignored", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(std::io::Result::ok);
        let number = |line: String| line.strip_prefix("acknowledged ").and_then(|number| number.parse::<u64>().ok());
        let first = lines.by_ref().find_map(number).expect("the child appends");
        std::thread::sleep(Duration::from_millis(7 + 23 * round));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        let acknowledged = lines.filter_map(number).last().unwrap_or(first);
        let ledger = open(dir.path()).unwrap();
        assert!(ledger.size() > acknowledged, "round {round}: {} entries, {acknowledged} acknowledged", ledger.size());
        let mut at = 0;
        while at < ledger.size() {
            let read = ledger.entries(at..at + 1000).unwrap();
            assert!(read.iter().all(|read| read.entry == Some(entry(read.index))));
            at += read.len() as u64;
        }
        ledger.checkpoint().unwrap();
        let head = ledger.check().unwrap();
        for old in &heads {
            let proof = ledger.prove_consistency(old.size, head.size).unwrap();
            proof.verify(old.root, head.size, head.root).unwrap();
        }
        heads.push(head);
    }
    assert!(heads.is_sorted_by(|a, b| a.size < b.size), "every round went on: {heads:?}");
}

/// Two levels of tiles full, and how fast that was.
#[test]
fn a_large_log() {
    const ENTRIES: u64 = 66_000;
    let dir = TempDir::new().unwrap();
    let ledger = open(dir.path()).unwrap();
    let sample = entry(1);
    let start = Instant::now();
    for number in 0..ENTRIES {
        ledger.append(&sample).unwrap();
        if number.is_multiple_of(10_000) {
            ledger.checkpoint().unwrap();
        }
    }
    ledger.sync().unwrap();
    let took = start.elapsed();
    ledger.checkpoint().unwrap();
    println!("ledger: {:.0} appends/s, {:.1} us each", ENTRIES as f64 / took.as_secs_f64(), took.as_secs_f64() * 1e6 / ENTRIES as f64);
    let head = ledger.check().unwrap();
    assert_eq!(head.size, ENTRIES);
    assert_eq!(fs::metadata(dir.path().join("tile/1/000")).unwrap().len(), 8192);
    drop(ledger);
    let start = Instant::now();
    let ledger = open(dir.path()).unwrap();
    println!("ledger: {ENTRIES} entries opened in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    assert_eq!(ledger.root(), head.root.0);
    let proof = ledger.prove_inclusion(3, ENTRIES).unwrap();
    let leaf = ledger.bundle(0).unwrap().swap_remove(3).1;
    proof.verify(leaf_hash(&leaf), ENTRIES, head.root).unwrap();
    let verified = tlog::Verifier::new(ORIGIN, ledger.vkey().parse().unwrap());
    assert_eq!(
        verified
            .log_proof(&ledger.prove_entry(ENTRIES - 1).unwrap().parse().unwrap(), &{
                let mut last = ledger.bundle((ENTRIES - 1) / WIDTH).unwrap();
                last.pop().unwrap().1
            })
            .unwrap()
            .head,
        head
    );
}
