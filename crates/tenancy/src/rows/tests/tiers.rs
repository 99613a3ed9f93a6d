//! What holds for rows wherever they are: the same assertions on a file, on shared tables, on a schema and on a database.

use super::*;

macro_rules! on_every_tier {
    ($($test:ident)*) => {
        on_every_tier!(embedded Embedded: $($test)*);
        on_every_tier!(pooled Pooled: $($test)*);
        on_every_tier!(schema Schema: $($test)*);
        on_every_tier!(database Database: $($test)*);
    };
    ($module:ident $tier:ident: $($test:ident)*) => {
        mod $module {
            $(#[tokio::test]
            async fn $test() {
                if let Some(place) = super::Place::of(crate::place::Tier::$tier).await {
                    super::$test(&place).await;
                    place.end().await;
                }
            })*
        }
    };
}

on_every_tier! {
    records_are_kept_listed_and_found
    pages_are_bounded_in_bytes
    oversized_records_are_refused
    a_killed_process_loses_nothing_committed
    outbox_holds_the_entry_of_each_commit_until_pruned
    counters_never_fall_below_zero
    a_transaction_may_be_cancelled_anywhere
    a_transaction_does_what_a_plain_map_does
    a_half_done_operation_breaks_its_transaction
    a_closed_store_refuses
    values_lie_sealed_where_others_could_read_them
    another_fence_keeps_an_old_home_out
    a_commit_on_its_way_keeps_its_objects
}

/// Polls a future at most `polls` times, then drops it: whether it was done.
async fn cancel_after<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(done) = polled {
            return Some(done);
        }
        tokio::time::sleep(Duration::from_micros(150)).await;
    }
    None
}

async fn records_are_kept_listed_and_found(place: &Place) {
    let store = place.tenant(1).create().await;
    let mut tx = store.tx().await.unwrap();
    for (name, colour) in [("b/2", "red"), ("a/1", "red"), ("b/1", "blue"), ("c", "red")] {
        tx.insert(&note(name, colour)).await.unwrap();
    }
    assert!(matches!(tx.insert(&note("c", "blue")).await, Err(Error::Conflict(_))));
    assert_eq!(tx.count::<Note>().await.unwrap(), 4, "the transaction goes on after a conflict and sees itself");
    tx.commit_with(None).await.unwrap();

    let rows = store.rows();
    let names = |notes: Listed<Note>| notes.records.into_iter().map(|note| note.name).collect::<Vec<_>>().join(" ");
    assert_eq!(names(rows.list(None, 10, None).await.unwrap()), "a/1 b/1 b/2 c");
    assert_eq!(names(rows.list(Some("a/1"), 2, None).await.unwrap()), "b/1 b/2");
    assert_eq!(names(rows.list(None, 10, Some("b/")).await.unwrap()), "b/1 b/2");
    assert_eq!(names(rows.list(Some("b/1"), 10, Some("b/")).await.unwrap()), "b/2");
    assert_eq!(names(rows.find("colour", "red", None, 10).await.unwrap()), "a/1 b/2 c");
    assert_eq!(names(rows.find("colour", "red", Some("a/1"), 1).await.unwrap()), "b/2");
    assert_eq!(rows.require::<Note>("c").await.unwrap(), note("c", "red"));
    assert!(rows.get::<Note>("d").await.unwrap().is_none());
    assert!(matches!(rows.require::<Note>("d").await, Err(Error::NotFound("note"))));

    write(&store, &note("c", "blue")).await;
    let mut tx = store.tx().await.unwrap();
    assert_eq!(names(tx.find("colour", "red", None, 10).await.unwrap()), "a/1 b/2", "look-ups follow the record");
    assert!(tx.delete::<Note>("b/1").await.unwrap());
    assert!(!tx.delete::<Note>("b/1").await.unwrap());
    assert_eq!(names(tx.find("colour", "blue", None, 10).await.unwrap()), "c");
    drop(tx);
    assert_eq!(store.rows().count::<Note>().await.unwrap(), 4, "dropped without commit");
}

async fn pages_are_bounded_in_bytes(place: &Place) {
    const RECORD_BYTES: usize = 900 * 1024;
    let store = place.tenant(1).create().await;
    let large = |name: &str| Note { text: "x".repeat(RECORD_BYTES), ..note(name, "red") };
    let mut names: Vec<String> = (0..20).map(|n| format!("large/{n:02}")).collect();
    let mut tx = store.tx().await.unwrap();
    for name in &names {
        tx.insert(&large(name)).await.unwrap();
    }
    // Small ones among them come along with them.
    for name in ["large/03a", "large/03b", "large/19a"] {
        tx.insert(&note(name, "red")).await.unwrap();
        names.push(name.to_owned());
    }
    tx.insert(&note("other", "blue")).await.unwrap();
    names.sort_unstable();

    for found in [false, true] {
        let (mut seen, mut after, mut pages) = (Vec::new(), None::<String>, 0);
        loop {
            let page = match found {
                false => tx.list::<Note>(after.as_deref(), 1000, Some("large/")).await.unwrap(),
                true => tx.find::<Note>("colour", "red", after.as_deref(), 1000).await.unwrap(),
            };
            let bytes: usize = page.records.iter().map(|record| record.text.len()).sum();
            assert!(!page.records.is_empty() && bytes <= PAGE_BYTES_MAX, "{bytes} bytes on a page");
            pages += 1;
            seen.extend(page.records.into_iter().map(|record| record.name));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!((&seen, pages), (&names, 5), "all of them, each once, four large ones a page");
    }
    tx.commit_with(None).await.unwrap();

    let rows = store.rows();
    let page = rows.list::<Note>(None, 23, None).await.unwrap();
    assert_eq!((page.records.len(), page.next.as_deref()), (6, Some("large/03b")));
    assert!(page.whole().is_err(), "who takes a page for all of them hears of it");
    let page = rows.list::<Note>(Some("large/18"), 3, None).await.unwrap();
    assert_eq!((page.records.len(), page.next), (3, None), "no page after one that is full and the last");
    let page = rows.list::<Note>(Some("large/18"), 2, None).await.unwrap();
    assert_eq!((page.records.len(), page.next.as_deref()), (2, Some("large/19a")), "by number");
    let page = rows.list::<Note>(None, 0, None).await.unwrap();
    assert_eq!((page.records.len(), page.next.as_deref()), (1, Some("large/00")), "always one");
    assert_eq!(rows.count_found::<Note>("colour", "red").await.unwrap(), 23);

    let keys: Vec<String> = [&["gone".to_owned()], names.as_slice(), &["other".to_owned()]].concat();
    let (mut rest, mut got) = (keys.as_slice(), 0);
    while !rest.is_empty() {
        let page = rows.get_page::<Note>(rest).await.unwrap();
        assert!(!page.records.is_empty() && page.bytes <= PAGE_BYTES_MAX, "{} bytes by keys", page.bytes);
        for (key, record) in rest.iter().zip(&page.records) {
            assert_eq!(record.as_ref().map(|record| &record.name), Some(key).filter(|key| *key != "gone"));
        }
        got += page.records.iter().flatten().count();
        rest = &rest[page.records.len()..];
    }
    assert_eq!(got, 24);

    let (mut after, mut contents) = ((String::new(), String::new()), 0);
    loop {
        let mut reading = store.home().db.read().await.unwrap();
        let page = records::contents(reading.sql().unwrap(), &store.home().codec, (&after.0, &after.1), 1000).await.unwrap();
        let Some((kind, key, _)) = page.last() else { break };
        after = (kind.clone(), key.clone());
        let bytes: usize = page.iter().map(|(_, _, content)| content.value.len()).sum();
        assert!(bytes <= PAGE_BYTES_MAX, "{bytes} bytes of contents");
        contents += page.len();
    }
    assert_eq!(contents, 24);
}

async fn oversized_records_are_refused(place: &Place) {
    let store = place.tenant(1).create().await;
    let mut tx = store.tx().await.unwrap();
    let long = "x".repeat(513);
    for bad in [note("", "red"), note(&long, "red"), note("a", &long), note("a\u{10FFFF}", "red")] {
        assert!(matches!(tx.insert(&bad).await, Err(Error::Invalid(_))));
    }
    assert!(matches!(tx.put(&Note { text: "x".repeat(1024 * 1024), ..note("a", "red") }).await, Err(Error::Invalid(_))));
    tx.put(&note("a", "red")).await.unwrap();
    tx.commit_with(None).await.unwrap();
}

async fn a_killed_process_loses_nothing_committed(place: &Place) {
    let tenant = place.tenant(1);
    let store = tenant.create().await;
    let generation = write(&store, &note("a", "red")).await;
    let mut tx = store.tx().await.unwrap();
    tx.put(&note("b", "red")).await.unwrap();
    drop(tx);
    tenant.kill(store).await;
    let store = tenant.open().await.unwrap();
    assert_eq!(store.home().db.generation(), generation);
    assert!(store.rows().get::<Note>("a").await.unwrap().is_some());
    assert!(store.rows().get::<Note>("b").await.unwrap().is_none());
}

async fn outbox_holds_the_entry_of_each_commit_until_pruned(place: &Place) {
    let tenant = place.tenant(1);
    let store = tenant.create().await;
    for entry in ["one", "two", "three"] {
        let mut tx = store.tx().await.unwrap();
        tx.put(&note(entry, "red")).await.unwrap();
        let promised = tx.generation();
        assert_eq!(tx.commit_with(Some(entry.into())).await.unwrap(), promised);
    }
    tenant.kill(store).await;
    let store = tenant.open().await.unwrap();
    let pending = store.outbox_pending(10).await.unwrap();
    assert_eq!(pending, [(1, b"one".to_vec()), (2, b"two".to_vec()), (3, b"three".to_vec())]);
    store.outbox_prune(1).await.unwrap();
    assert_eq!(store.outbox_pending(1).await.unwrap(), [(2, b"two".to_vec())]);
    store.outbox_prune(2).await.unwrap();
    assert_eq!(store.outbox_pending(10).await.unwrap(), [(3, b"three".to_vec())]);
}

async fn counters_never_fall_below_zero(place: &Place) {
    let store = place.tenant(1).create().await;
    let mut tx = store.tx().await.unwrap();
    assert_eq!(tx.usage_add("bytes", 5).await.unwrap(), 5);
    assert_eq!(tx.usage_add("bytes", -2).await.unwrap(), 3);
    tx.commit_with(None).await.unwrap();
    let mut tx = store.tx().await.unwrap();
    assert!(matches!(tx.usage_add("bytes", -4).await, Err(Error::Internal(_))));
    assert!(tx.commit_with(None).await.is_err(), "a transaction with a failed step cannot commit");
    // Nor does a part of one that is taken back, whether the database heard of it or not: the others would rely on it.
    for asked in [false, true] {
        let mut tx = store.tx().await.unwrap();
        tx.savepoint();
        if asked {
            assert_eq!(tx.usage("bytes").await.unwrap(), 3);
        }
        assert!(matches!(tx.usage_add("bytes", -4).await, Err(Error::Internal(_))));
        assert!(tx.take_back().await.is_err());
    }
    assert_eq!(store.rows().usage("bytes").await.unwrap(), 3);
    assert_eq!(store.rows().usage("other").await.unwrap(), 0);
}

async fn a_transaction_may_be_cancelled_anywhere(place: &Place) {
    let tenant = place.tenant(1);
    let store = tenant.create().await;
    let mut generation = store.home().db.generation();
    let (mut cancelled, mut done) = (0, 0);
    for polls in 0..100 {
        let name = format!("n{polls}");
        let whole = cancel_after(polls, async {
            let mut tx = store.tx().await.unwrap();
            tx.insert(&note(&name, "red")).await.unwrap();
            tx.usage_add("notes", 1).await.unwrap();
            tx.commit_with(Some(name.clone().into())).await.unwrap()
        });
        match whole.await {
            Some(_) => done += 1,
            None => cancelled += 1,
        }
        // What is on its way to a server is over when the next transaction has begun.
        drop(store.tx().await.unwrap());
        // All of it or nothing of it, and the connection is clean.
        let there = store.rows().get::<Note>(&name).await.unwrap().is_some();
        let notes = store.rows().count::<Note>().await.unwrap();
        assert_eq!(store.rows().usage("notes").await.unwrap(), i64::try_from(notes).unwrap());
        assert_eq!(store.outbox_pending(1000).await.unwrap().len() as u64, notes);
        assert_eq!(store.rows().count_found::<Note>("colour", "red").await.unwrap(), notes);
        generation += u64::from(there);
        assert_eq!(store.home().db.generation(), generation);
        assert_eq!(store.anchor().unwrap().now().generation, generation);
    }
    assert!(cancelled > 3 && done > 3, "{cancelled} cancelled, {done} done");
    store.close().await.unwrap();
    tenant.open().await.unwrap();
}

/// What a transaction should hold.
#[derive(Default, Clone, PartialEq, Debug)]
struct Model {
    notes: std::collections::BTreeMap<String, Note>,
    counters: std::collections::BTreeMap<String, i64>,
}

/// Numbers below a bound, the same ones each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

async fn step(tx: &mut Tx<'_>, model: &mut Model, dice: &mut Dice) {
    let key = format!("n{}", dice.below(6));
    let new = Note {
        text: "x".repeat([20, 20, 20, 400_000][dice.below(4) as usize]),
        ..note(&key, ["red", "blue", "green"][dice.below(3) as usize])
    };
    match dice.below(9) {
        0 | 1 => {
            tx.put(&new).await.unwrap();
            model.notes.insert(key, new);
        }
        2 => {
            let more = Note { name: "other".to_owned(), ..new.clone() };
            tx.put_all(&[more.clone(), new.clone(), more.clone()]).await.unwrap();
            model.notes.extend([(key, new), (more.name.clone(), more)]);
        }
        3 => match tx.insert(&new).await {
            Ok(()) => assert!(model.notes.insert(key, new).is_none(), "a key that was taken"),
            Err(error) => assert!(matches!(error, Error::Conflict(_)) && model.notes.contains_key(&key), "{error}"),
        },
        4 => assert_eq!(tx.delete::<Note>(&key).await.unwrap(), model.notes.remove(&key).is_some()),
        5 => {
            tx.delete_all::<Note>(&[key.clone(), "other".to_owned()]).await.unwrap();
            model.notes.retain(|known, _| *known != key && known != "other");
        }
        6 => {
            let value = tx.usage_add(&key, 2).await.unwrap();
            assert_eq!(value, *model.counters.entry(key).and_modify(|value| *value += 2).or_insert(2));
        }
        7 => assert_eq!(tx.get::<Note>(&key).await.unwrap().as_ref(), model.notes.get(&key)),
        _ => {
            let keys = ["n0", "n3", "other", "nobody"].map(str::to_owned);
            let expected: Vec<_> = keys.iter().map(|key| model.notes.get(key).cloned()).collect();
            assert_eq!(tx.get_all::<Note>(&keys).await.unwrap(), expected);
            assert_eq!(tx.usage(&key).await.unwrap(), model.counters.get(&key).copied().unwrap_or_default());
        }
    }
    if dice.below(4) == 0 {
        let red = tx.find::<Note>("colour", "red", None, 100).await.unwrap().records;
        assert_eq!(red, model.notes.values().filter(|note| note.colour == "red").cloned().collect::<Vec<_>>());
        assert_eq!(tx.list::<Note>(None, 100, None).await.unwrap().records, model.notes.values().cloned().collect::<Vec<_>>());
    }
}

async fn a_transaction_does_what_a_plain_map_does(place: &Place) {
    let store = place.tenant(1).create().await;
    let (mut model, mut dice) = (Model::default(), Dice(7));
    for _ in 0..40 {
        let (mut tx, mut within) = (store.tx().await.unwrap(), model.clone());
        for _ in 0..dice.below(4) {
            let part = dice.below(3);
            let before = within.clone();
            if part > 0 {
                tx.savepoint();
            }
            for _ in 0..dice.below(6) {
                step(&mut tx, &mut within, &mut dice).await;
            }
            match part {
                0 => {}
                1 => tx.keep().await.unwrap(),
                _ => {
                    tx.take_back().await.unwrap();
                    within = before;
                }
            }
        }
        if dice.below(5) > 0 {
            tx.commit_with(Some(Vec::new())).await.unwrap();
            model = within;
        } else {
            drop(tx);
        }
        let rows = store.rows();
        assert_eq!(rows.list::<Note>(None, 100, None).await.unwrap().records, model.notes.values().cloned().collect::<Vec<_>>());
        for colour in ["red", "blue", "green"] {
            let found = rows.find::<Note>("colour", colour, None, 100).await.unwrap().records;
            assert_eq!(found, model.notes.values().filter(|note| note.colour == colour).cloned().collect::<Vec<_>>());
        }
        for (name, value) in &model.counters {
            assert_eq!(rows.usage(name).await.unwrap(), *value);
        }
    }
    assert!(model.notes.len() > 2 && model.counters.len() > 2, "{model:?}");
}

async fn a_half_done_operation_breaks_its_transaction(place: &Place) {
    let store = place.tenant(1).create().await;
    for _ in 0..1000 {
        let mut tx = store.tx().await.unwrap();
        tx.put(&note("a", "red")).await.unwrap();
        // On a busy machine one poll may see the whole operation through: then again.
        if cancel_after(1, tx.insert(&note("b", "red"))).await.is_none() {
            assert!(matches!(tx.put(&note("c", "red")).await, Err(Error::Internal(_))));
            assert!(tx.commit_with(None).await.is_err());
            assert_eq!(store.rows().count::<Note>().await.unwrap(), 0);
            return;
        }
    }
    panic!("no operation could be cancelled");
}

async fn a_closed_store_refuses(place: &Place) {
    let store = place.tenant(1).create().await;
    store.close().await.unwrap();
    assert!(matches!(store.rows().count::<Note>().await, Err(Error::Unavailable(_))));
    assert!(matches!(store.tx().await.map(drop), Err(Error::Unavailable(_))));
    store.close().await.unwrap();
}

async fn values_lie_sealed_where_others_could_read_them(place: &Place) {
    let tenant = place.tenant(1);
    let store = tenant.create().await;
    let mut tx = store.tx().await.unwrap();
    tx.put(&note("a", "red")).await.unwrap();
    tx.commit_with(Some(b"SECRET-IN-CLEAR".to_vec())).await.unwrap();
    if place.postgres.is_none() {
        return; // the file is encrypted as a whole: see the tests of files
    }
    let mut reading = store.home().db.read().await.unwrap();
    let mut sql = reading.sql().unwrap();
    let record = sql.one("SELECT value FROM record", &[]).await.unwrap().bytes(0).unwrap();
    let entry = sql.one("SELECT entry FROM outbox", &[]).await.unwrap().bytes(0).unwrap();
    let field = sql.one("SELECT value FROM field", &[]).await.unwrap().text(0).unwrap();
    for bytes in [record, entry] {
        assert!(!bytes.windows(15).any(|at| at == b"SECRET-IN-CLEAR"));
    }
    assert_ne!(field, "red");
    // Moved to another key it does not open.
    drop(reading);
    let mut txn = store.home().db.begin().await.unwrap();
    txn.sql().unwrap().execute("UPDATE record SET key = 'b'", &[]).await.unwrap();
    txn.commit().await.unwrap();
    refused(store.rows().get::<Note>("b").await);
}

/// Eight readers of one tenant, and four connections for all.
#[tokio::test]
async fn one_tenants_readers_leave_connections_to_the_others() {
    let Some(place) = Place::of(Tier::Pooled).await else { return };
    let (greedy, other) = (place.tenant(1).create().await, place.tenant(2).create().await);
    let greedy = &greedy;
    let reads = (0..8).map(|_| async move {
        let reading = greedy.reading().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        reading.map(drop)
    });
    let mut reads = pin!(futures_util::future::join_all(reads));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut reads).await.is_err());
    let found =
        tokio::time::timeout(Duration::from_millis(500), other.rows().count::<Note>()).await.expect("it waits for the other tenant");
    assert_eq!(found.unwrap(), 0);
    for read in reads.await {
        read.unwrap();
    }
    place.end().await;
}

/// Somebody began a commit and was cut off: its objects are swept only once it is known whether it came about.
async fn a_commit_on_its_way_keeps_its_objects(place: &Place) {
    if place.postgres.is_none() {
        return; // what is on its way to a file ends with its process
    }
    let tenant = place.tenant(1);
    let store = tenant.create().await;
    let aside = tenant.open_aside(None).await.unwrap();
    let mut blob = store.blob_writer().unwrap();
    blob.write(bytes::Bytes::from_static(b"acknowledged")).await.unwrap();
    let mut tx = aside.tx().await.unwrap();
    let id = tx.attach(blob.finish().await.unwrap()).await.unwrap();
    store.unseen.store(1, Ordering::Release);
    let closed = store.close().await;
    tx.commit_with(None).await.unwrap();
    assert_eq!(aside.rows().blob(id).await.unwrap().read_at(0, 100).await.unwrap(), "acknowledged");
    closed.unwrap();
    // And it was left to be swept by whoever comes next.
    let again = tenant.open_aside(None).await.unwrap();
    let Db::Postgres(db) = &again.home().db else { panic!("not on a server") };
    assert!(!db.was_clean());
}

async fn another_fence_keeps_an_old_home_out(place: &Place) {
    if place.postgres.is_none() {
        return; // a file is locked by its one process
    }
    let tenant = place.tenant(1);
    let old = tenant.create_under(Some(1)).await;
    write(&old, &note("a", "red")).await;
    let held = old.tx().await.unwrap();
    // The new home waits for what the old one has begun, and then nothing more is committed by the old one.
    let (new, ()) = tokio::join!(tenant.open_aside(Some(2)), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        held.commit_with(None).await.unwrap();
    });
    let new = new.unwrap();
    assert!(matches!(old.tx().await.map(drop), Err(Error::Unavailable(_))));
    write(&new, &note("b", "red")).await;
    assert_eq!(new.rows().count::<Note>().await.unwrap(), 2);
    assert!(matches!(tenant.open_aside(Some(1)).await.map(drop), Err(Error::Unavailable(_))), "an older lease cannot come back");
}
