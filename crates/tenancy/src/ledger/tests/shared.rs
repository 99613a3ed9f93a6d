//! A log and its shared copy: what survives the loss of a node, and what of a changed copy is refused.

use super::*;
use crate::ledger::catch_up::CatchUp;
use crate::ledger::shipping::{SEGMENT_ENTRIES, Segment};

/// What the tables hold: rows by their first entry, and the note.
#[derive(Debug, Clone, Default, PartialEq)]
struct Copy {
    rows: BTreeMap<u64, Segment>,
    note: Option<String>,
}

impl Copy {
    /// Ships everything; how many rows were written.
    fn ship(&mut self, ledger: &Ledger) -> usize {
        let Some(shipment) = ledger.shipment(ledger.mark().unwrap()).unwrap() else { return 0 };
        assert_eq!(shipment.from().note, self.note, "somebody else shipped");
        let (mut at, mut rows) = (shipment.from().size, 0);
        while let Some(segment) = ledger.segment(&shipment, at).unwrap() {
            at = segment.end();
            let before = self.rows.len();
            if segment.replaces {
                self.rows.retain(|first, _| *first < segment.first);
            }
            assert_eq!(segment.replaces, self.rows.len() < before);
            assert!(self.rows.insert(segment.first, segment).is_none());
            rows += 1;
        }
        assert_eq!(at, shipment.to().size);
        self.note = Some(shipment.note().to_owned());
        ledger.shipped(&shipment);
        rows
    }

    fn catch_up(&self, ledger: &Arc<Ledger>) -> Result<()> {
        let mut catch_up = CatchUp::begin(Arc::clone(ledger))?;
        let wanted = catch_up.wanted();
        let first = self.rows.keys().rfind(|first| **first <= wanted).copied().unwrap_or(0);
        self.rows.range(first..).try_for_each(|(_, row)| catch_up.take(row))?;
        catch_up.finish(self.note.as_deref())
    }

    /// The log of a node, in its own folder.
    fn open(&self, dir: &Path) -> Result<Arc<Ledger>> {
        let ledger = Arc::new(Ledger::open_copy(&dir.join("ledger"), &keys(), TENANT, ORIGIN)?);
        self.catch_up(&ledger).map(|()| ledger)
    }
}

pub(super) fn node() -> TempDir {
    TempDir::new().unwrap()
}

pub(super) fn all(ledger: &Ledger) -> Vec<Entry> {
    let mut all = Vec::new();
    while (all.len() as u64) < ledger.size() {
        all.extend(ledger.entries(all.len() as u64..u64::MAX).unwrap().into_iter().map(|read| read.entry.unwrap()));
    }
    all
}

pub(super) fn numbers(range: Range<u64>) -> Vec<Entry> {
    range.map(entry).collect()
}

pub(super) fn late(number: u64) -> Entry {
    let mut late = entry(number);
    late.detail.insert("late".into(), "true".into());
    late
}

#[test]
fn a_log_outlives_its_node() {
    let (a, b, mut copy) = (node(), node(), Copy::default());
    let first = copy.open(a.path()).unwrap();
    let mut remembered = Vec::new();
    for size in [1, 2, 300, 1023, 1024, 1025, 1500, 2100, 6000, 6001] {
        filled_up(&first, size);
        copy.ship(&first);
        let note = first.checkpoint().unwrap();
        remembered.push(verified(note.as_bytes(), &first.signing, ORIGIN).unwrap().head);
        assert_eq!(remembered.last().unwrap().size, size);
    }
    let root = first.root();
    drop(first);
    let second = copy.open(b.path()).unwrap();
    assert_eq!((second.size(), second.root(), second.last_generation()), (6001, root, Some(6000)));
    assert_eq!(all(&second), numbers(0..6001));
    assert_eq!(second.checkpoint().unwrap(), *copy.note.as_ref().unwrap());
    filled_up(&second, 6400);
    copy.ship(&second);
    let head = verified(second.checkpoint().unwrap().as_bytes(), &second.signing, ORIGIN).unwrap().head;
    for old in remembered {
        second.prove_consistency(old.size, head.size).unwrap().verify(old.root, head.size, head.root).unwrap();
    }
    second.check().unwrap();
    assert_eq!(verify(&exported(&second), Some((6001, &Hash(root).to_string()))).unwrap().opened, 6400);
    // The first node comes back, and fetches only what it lacks.
    let first = copy.open(a.path()).unwrap();
    assert_eq!((first.size(), first.root()), (6400, second.root()));
    first.check().unwrap();
    // Files of a copy are files like all others.
    drop((first, second));
    for dir in [&a, &b] {
        let ledger = open(&dir.path().join("ledger")).unwrap();
        assert_eq!(ledger.size(), 6400);
        assert_eq!(ledger.check().unwrap().size, 6400);
    }
}

#[test]
fn many_small_shipments_end_up_in_few_rows() {
    let (a, mut copy) = (node(), Copy::default());
    let ledger = copy.open(a.path()).unwrap();
    let mut written = 0;
    for size in (0..3 * SEGMENT_ENTRIES + 10).step_by(5) {
        filled_up(&ledger, size);
        written += copy.ship(&ledger);
    }
    assert!(written as u64 > 3 * SEGMENT_ENTRIES / 5);
    assert_eq!(copy.rows.keys().take(4).copied().collect::<Vec<_>>(), [0, 1024, 2048, 3072]);
    assert!(copy.rows.len() < 8, "{}", copy.rows.len());
    assert_eq!(copy.open(node().path()).unwrap().root(), ledger.root());
    // A copy that is made later, or elsewhere, is the same.
    let (mut other, mut at) = (Copy::default(), 0);
    let shipment = ledger.shipment(Mark::default()).unwrap().unwrap();
    while let Some(segment) = ledger.segment(&shipment, at).unwrap() {
        at = segment.end();
        other.rows.insert(segment.first, segment);
    }
    other.note = Some(shipment.note().to_owned());
    assert_eq!(other.open(node().path()).unwrap().root(), ledger.root());
    assert!(ledger.shipment(shipment.to()).unwrap().is_none());
}

#[test]
fn what_was_not_shipped_stays_while_nobody_else_went_on() {
    let (a, b, mut copy) = (node(), node(), Copy::default());
    let ledger = copy.open(a.path()).unwrap();
    filled_up(&ledger, 1);
    drop(ledger); // Killed before anything was shipped.
    let ledger = copy.open(a.path()).unwrap();
    filled_up(&ledger, 300);
    copy.ship(&ledger);
    ledger.checkpoint().unwrap();
    filled_up(&ledger, 320);
    drop(ledger);
    // Somebody else was home, and nothing happened there.
    assert_eq!(copy.open(b.path()).unwrap().size(), 300);
    let ledger = copy.open(a.path()).unwrap();
    assert_eq!((ledger.size(), ledger.mark().unwrap().size), (320, 300));
    assert!(ledger.dirty());
    copy.ship(&ledger);
    assert_eq!(all(&copy.open(b.path()).unwrap()), numbers(0..320));
}

#[test]
fn what_only_a_lost_node_has_comes_late() {
    let (a, b, mut copy) = (node(), node(), Copy::default());
    let first = copy.open(a.path()).unwrap();
    filled_up(&first, 250);
    copy.ship(&first);
    first.checkpoint().unwrap();
    filled_up(&first, 275);
    let nonce = |ledger: &Ledger, index: u64| ledger.bundle(index / WIDTH).unwrap()[(index % WIDTH) as usize].1[36..48].to_vec();
    let lost: Vec<_> = (250..275).map(|index| nonce(&first, index)).collect();
    drop(first);
    let second = copy.open(b.path()).unwrap();
    (1000..1010).for_each(|number| assert!(second.append(&entry(number)).is_ok()));
    copy.ship(&second);
    // Shipped by the second node from its outbox: 250, 260, 270. They come no second time.
    let expected: Vec<_> =
        numbers(0..250).into_iter().chain(numbers(1000..1010)).chain((250..275).filter(|number| number % 10 != 0).map(late)).collect();
    let first = copy.open(a.path()).unwrap();
    assert_eq!(all(&first), expected);
    assert_eq!(first.mark().unwrap().size, 260);
    assert!(!a.path().join("ledger/late.log").exists() && !a.path().join("ledger/fetched.log").exists());
    assert!((260..275).all(|index| !lost.contains(&nonce(&first, index))), "no nonce is used twice");
    // Killed again before they are shipped, and once more another one goes on: they come all the same, and once.
    drop(first);
    (1010..1020).for_each(|number| assert!(second.append(&entry(number)).is_ok()));
    copy.ship(&second);
    let first = copy.open(a.path()).unwrap();
    let expected: Vec<_> = [&expected[..260], &numbers(1010..1020), &expected[260..]].concat();
    assert_eq!(all(&first), expected);
    copy.ship(&first);
    first.checkpoint().unwrap();
    copy.catch_up(&second).unwrap();
    assert_eq!((all(&second), second.root()), (expected, first.root()));
    second.check().unwrap();
    assert_eq!(verify(&exported(&second), None).unwrap().opened, 292);
}

#[test]
fn a_late_entry_is_appended_once_however_often_that_is_cut_short() {
    let (a, b, mut copy) = (node(), node(), Copy::default());
    let first = copy.open(a.path()).unwrap();
    filled_up(&first, 20);
    copy.ship(&first);
    filled_up(&first, 30);
    // Full of details: there is no room for one more.
    let full = Entry { detail: (0..16).map(|n| (format!("{n}"), "x".into())).collect(), ..entry(31) };
    first.append(&full).unwrap();
    drop(first);
    let second = copy.open(b.path()).unwrap();
    second.append(&entry(1000)).unwrap();
    copy.ship(&second);
    let ledger = a.path().join("ledger");
    // Cut short after it was noted down what is late, and before the log was cut.
    let before = open(&ledger).unwrap();
    before.files.add_late(20, before.files.records(before.mark_end(20)).unwrap()).unwrap();
    drop(before);
    let expected: Vec<_> = numbers(0..20).into_iter().chain([entry(1000)]).chain((21..30).map(late)).chain([full]).collect();
    let late_log = {
        let kept = fs::read(ledger.join("late.log")).unwrap();
        assert_eq!(all(&copy.open(a.path()).unwrap()), expected);
        kept
    };
    // Cut short after they were appended, and before that was noted down.
    fs::write(ledger.join("late.log"), late_log).unwrap();
    assert_eq!(all(&copy.open(a.path()).unwrap()), expected);
}

impl Ledger {
    /// Where an entry begins in the file.
    fn mark_end(&self, index: u64) -> u64 {
        let mut records = self.files.records(0).unwrap();
        (0..index).for_each(|_| drop(records.next_record().unwrap().unwrap()));
        records.offset
    }
}

#[test]
fn a_log_that_is_still_held_catches_up_in_its_place() {
    let (a, b, mut copy) = (node(), node(), Copy::default());
    let first = copy.open(a.path()).unwrap();
    filled_up(&first, 600);
    copy.ship(&first);
    first.checkpoint().unwrap();
    let second = copy.open(b.path()).unwrap();
    filled_up(&second, 1700);
    copy.ship(&second);
    first.append(&entry(601)).unwrap();
    // A straggler appends in the middle of it.
    let mut catch_up = CatchUp::begin(Arc::clone(&first)).unwrap();
    copy.rows.values().for_each(|row| catch_up.take(row).unwrap());
    first.append(&entry(602)).unwrap();
    catch_up.finish(copy.note.as_deref()).unwrap();
    assert_eq!(all(&first), numbers(0..1700).into_iter().chain([late(601), late(602)]).collect::<Vec<_>>());
    assert_eq!(first.checkpoint().unwrap(), copy.note.clone().unwrap());
    copy.ship(&first);
    first.checkpoint().unwrap();
    first.check().unwrap();
    assert_eq!(first.root(), expected_root(&first));
    copy.catch_up(&second).unwrap();
    assert_eq!(second.root(), first.root());
}

#[test]
fn no_nonce_is_used_twice_where_a_held_log_was_cut() {
    let (a, b, mut copy) = (node(), node(), Copy::default());
    let (first, second) = (copy.open(a.path()).unwrap(), copy.open(b.path()).unwrap());
    filled_up(&first, 30);
    second.append(&entry(1000)).unwrap();
    copy.ship(&second);
    let nonces = || -> Vec<_> { first.bundle(0).unwrap().iter().map(|(_, leaf)| leaf[36..48].to_vec()).collect() };
    let before = nonces();
    copy.catch_up(&first).unwrap();
    assert_eq!(first.size(), 1 + 27);
    assert!(nonces().iter().all(|nonce| !before.contains(nonce)));
}

#[test]
fn a_checkpoint_shows_only_what_was_shipped() {
    let (a, b, mut copy) = (node(), node(), Copy::default());
    let ledger = copy.open(a.path()).unwrap();
    let size = |ledger: &Ledger| ledger.checkpoint().unwrap().lines().nth(1).unwrap().to_owned();
    filled_up(&ledger, 10);
    assert_eq!(size(&ledger), "0");
    let shipment = ledger.shipment(ledger.mark().unwrap()).unwrap().unwrap();
    filled_up(&ledger, 15);
    assert_eq!(size(&ledger), "0", "on its way is not there");
    drop(shipment);
    copy.ship(&ledger);
    filled_up(&ledger, 20);
    assert_eq!((size(&ledger), verify(&exported(&ledger), None).unwrap().size), ("15".into(), 15));
    ledger.check().unwrap();
    drop(ledger);
    let other = copy.open(b.path()).unwrap();
    assert_eq!(size(&other), "15");
    // A log that lives here alone again needs nobody.
    filled_up(&other, 16);
    other.unshared();
    assert_eq!(size(&other), "16");
}

#[test]
fn a_log_that_cannot_be_shipped_takes_no_more_and_recovers() {
    let (a, mut copy) = (node(), Copy::default());
    let ledger = copy.open(a.path()).unwrap();
    let committed = Entry { generation: Some(7), ..entry(1) };
    let refused = |entry: &Entry| matches!(ledger.append(entry), Err(Error::Unavailable("the audit log cannot be written")));
    ledger.append(&entry(1)).unwrap();
    ledger.waited(Duration::from_secs(59));
    ledger.append(&entry(2)).unwrap();
    ledger.waited(Duration::from_secs(1));
    assert!(refused(&entry(3)) && !ledger.failed());
    ledger.append(&committed).unwrap();
    copy.ship(&ledger);
    ledger.append(&entry(3)).unwrap();
    copy.ship(&ledger);
    // A shipment that left something behind counts from when it was taken.
    ledger.append(&entry(3)).unwrap();
    let shipment = ledger.shipment(ledger.mark().unwrap()).unwrap().unwrap();
    ledger.append(&entry(4)).unwrap();
    ledger.waited(Duration::from_secs(60));
    ledger.shipped(&shipment);
    ledger.append(&entry(4)).unwrap();
    ledger.waited(Duration::from_secs(60));
    assert!(refused(&entry(5)));
    ledger.waited(Duration::ZERO);
    let large = Entry { reason: "x".repeat(3800), ..entry(5) };
    ledger.shipped(&ledger.shipment(ledger.mark().unwrap()).unwrap().unwrap());
    let taken = (0..20_000).take_while(|_| ledger.append(&large).is_ok()).count();
    assert!((16_000..18_000).contains(&taken), "{taken}");
    ledger.append(&committed).unwrap();
    ledger.shipped(&ledger.shipment(ledger.mark().unwrap()).unwrap().unwrap());
    ledger.append(&large).unwrap();
}

/// Every way to spoil a copy.
fn spoiled(copy: &Copy, other: &Copy, older: &Copy) -> Vec<(String, Copy)> {
    let mut all = Vec::new();
    let mut add = |what: String, spoil: &dyn Fn(&mut Copy)| {
        let mut spoiled = copy.clone();
        spoil(&mut spoiled);
        assert_ne!(&spoiled, copy, "{what}");
        all.push((what, spoiled));
    };
    let keys: Vec<u64> = copy.rows.keys().copied().collect();
    for key in &keys {
        let bytes = copy.rows[key].leaves.len();
        for at in [0, 1, 2, 40, 60, bytes / 2, bytes - 1] {
            add(format!("byte {at} of {key}"), &|copy| copy.rows.get_mut(key).unwrap().leaves[at] ^= 1);
        }
        add(format!("dropped {key}"), &|copy| drop(copy.rows.remove(key)));
        add(format!("moved {key}"), &|copy| copy.rows.get_mut(key).unwrap().first += 1);
        add(format!("counted {key}"), &|copy| copy.rows.get_mut(key).unwrap().entries += 1);
        add(format!("none of {key}"), &|copy| {
            let row = copy.rows.get_mut(key).unwrap();
            (row.entries, row.leaves) = (0, Vec::new());
        });
        add(format!("cut {key}"), &|copy| {
            let row = copy.rows.get_mut(key).unwrap();
            let first = 2 + usize::from(u16::from_be_bytes([row.leaves[0], row.leaves[1]]));
            row.leaves.drain(..first);
            row.entries -= 1;
        });
        add(format!("twice {key}"), &|copy| {
            let row = copy.rows.get_mut(key).unwrap();
            row.leaves.extend_from_within(..);
            row.entries *= 2;
        });
        if let Some(row) = other.rows.get(key) {
            add(format!("of another {key}"), &|copy| copy.rows.get_mut(key).unwrap().leaves = row.leaves.clone());
        }
    }
    add("swapped".into(), &|copy| {
        let (mut a, mut b) = (copy.rows[&keys[0]].clone(), copy.rows[&keys[1]].clone());
        std::mem::swap(&mut a.leaves, &mut b.leaves);
        copy.rows.extend([(a.first, a), (b.first, b)]);
    });
    let note = copy.note.clone().unwrap();
    for at in 0..note.len() {
        add(format!("byte {at} of the note"), &|copy| {
            let mut bytes = note.clone().into_bytes();
            bytes[at] ^= 1;
            copy.note = String::from_utf8(bytes).ok();
        });
    }
    add("no note".into(), &|copy| copy.note = None);
    add("an older note".into(), &|copy| copy.note.clone_from(&older.note));
    add("the note of another".into(), &|copy| copy.note.clone_from(&other.note));
    add("older rows".into(), &|copy| copy.rows.clone_from(&older.rows));
    add("nothing but the note".into(), &|copy| copy.rows.clear());
    all
}

#[test]
fn every_change_of_the_copy_is_refused() {
    let (a, mut copy) = (node(), Copy::default());
    let ledger = copy.open(a.path()).unwrap();
    filled_up(&ledger, 1100);
    copy.ship(&ledger);
    let older = copy.clone();
    filled_up(&ledger, 1200);
    copy.ship(&ledger);
    ledger.checkpoint().unwrap();
    drop(ledger);
    let (elsewhere, mut other) = (node(), Copy::default());
    let stranger = other.open(elsewhere.path()).unwrap();
    filled_up(&stranger, 1100);
    other.ship(&stranger);
    filled_up(&stranger, 1200);
    other.ship(&stranger);
    // A node that comes back with something that was not shipped.
    let back = node();
    older.open(back.path()).unwrap().append(&entry(77)).unwrap();
    let cases = spoiled(&copy, &other, &older);
    assert!(cases.len() > 200);
    for (what, spoiled) in cases {
        let fresh = node();
        assert!(is_integrity(spoiled.open(fresh.path())), "{what}");
        assert_eq!(open(&fresh.path().join("ledger")).unwrap().size(), 0, "{what}: nothing of it was taken over");
        // It notices, too, unless only what it has itself was changed.
        let node = super::copy(back.path());
        match spoiled.open(node.path()) {
            Err(Error::Integrity(_)) => {
                let untouched = open(&node.path().join("ledger")).unwrap();
                assert_eq!((untouched.size(), untouched.entry(1100).unwrap().entry), (1101, Some(entry(77))), "{what}");
            }
            Ok(ledger) => assert_eq!(all(&ledger), numbers(0..1200).into_iter().chain([late(77)]).collect::<Vec<_>>(), "{what}"),
            Err(error) => panic!("{what}: {error:?}"),
        }
    }
    // A copy that is whole, but older than what was signed here.
    assert!(is_integrity(older.open(a.path())) && is_integrity(Copy::default().open(a.path())));
    assert_eq!(copy.open(a.path()).unwrap().size(), 1200);
    copy.open(back.path()).unwrap();
}

#[test]
fn damaged_files_of_a_copy_are_made_good() {
    let (a, mut copy) = (node(), Copy::default());
    let ledger = copy.open(a.path()).unwrap();
    filled_up(&ledger, 1100);
    copy.ship(&ledger);
    ledger.checkpoint().unwrap();
    let root = ledger.root();
    drop(ledger);
    let file = a.path().join("ledger/entries.log");
    for damage in [0, 5_000] {
        fs::File::options().write(true).open(&file).unwrap().set_len(damage).unwrap();
        assert!(is_integrity(open(&a.path().join("ledger"))), "as a log alone it is lost");
        let ledger = copy.open(a.path()).unwrap();
        assert_eq!((ledger.size(), ledger.root()), (1100, root));
        assert!(a.path().join("ledger.damaged/entries.log").exists());
    }
}

#[test]
fn a_large_copy_is_rebuilt() {
    const ENTRIES: u64 = 200_000;
    let (a, b, mut copy) = (node(), node(), Copy::default());
    let ledger = copy.open(a.path()).unwrap();
    let sample = entry(1);
    for number in 0..ENTRIES {
        ledger.append(&sample).unwrap();
        if number.is_multiple_of(50_000) {
            copy.ship(&ledger);
        }
    }
    copy.ship(&ledger);
    let root = ledger.root();
    drop(ledger);
    let start = Instant::now();
    let ledger = copy.open(b.path()).unwrap();
    println!("ledger: {ENTRIES} entries in {} rows rebuilt in {:.2} s", copy.rows.len(), start.elapsed().as_secs_f64());
    assert_eq!((ledger.size(), ledger.root()), (ENTRIES, root));
    ledger.check().unwrap();
    let start = Instant::now();
    copy.catch_up(&ledger).unwrap();
    println!("ledger: and found to be up to date in {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
}
