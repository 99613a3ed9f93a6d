//! Two nodes on one server: what must happen once happens once, what counts counts exactly.

use super::*;

/// One database and two nodes that write it.
async fn two() -> Option<(House, House, Arc<Control>, Arc<Control>)> {
    let house = House::on_server().await?;
    let other = house.another_node().await;
    let (one, two) = (Arc::new(house.control().await), Arc::new(other.control().await));
    Some((house, other, one, two))
}

/// Runs `rounds` of an act on both nodes at the same time; what each round gave.
async fn race<T, F>(nodes: [&Arc<Control>; 2], rounds: usize, act: impl Fn(Arc<Control>, usize, usize) -> F) -> Vec<[T; 2]>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let mut results = Vec::new();
    for round in 0..rounds {
        let [first, second] = [0, 1].map(|node| tokio::spawn(act(Arc::clone(nodes[node]), node, round)));
        results.push([first.await.unwrap(), second.await.unwrap()]);
    }
    results
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_taken_once() {
    let Some((house, other, one, two)) = two().await else { return };
    let made = race([&one, &two], 20, |control, _, round| {
        let row = tenant(&format!("t{round}"));
        let (_, keys) = Keyring::create(&house.place.root, row.id, 1).unwrap();
        async move { control.tenant_insert(&row, &keys, None).await }
    });
    let mut slots = Vec::new();
    for pair in made.await {
        assert!(pair.iter().any(|made| matches!(made, Err(Error::Conflict(_)))), "{pair:?}");
        slots.extend(pair.into_iter().flatten().map(|row| row.slot));
    }
    assert_eq!(slots, (1..=20).collect::<Vec<_>>(), "each has a place of its own, and none is lost");
    assert_eq!(two.tenants_count().await.unwrap(), 20);
    drop((one, two, other));
    house.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_spent_a_ticket_claimed_and_an_erasure_ordered_once() {
    let Some((house, other, one, two)) = two().await else { return };
    let (blue, _) = insert(&house, &one, "blue").await;
    for round in 0..10 {
        one.meta_set("bootstrap", b"secret").await.unwrap();
        let ticket = TicketRow {
            id: format!("k{round}"),
            tenant: blue.id,
            kind: "training".into(),
            principal: "ann".into(),
            created_at: 1,
            claimed_by: None,
            attempts: 0,
        };
        one.ticket_insert(&ticket).await.unwrap();
        let erased = TenantId::random().unwrap();
        let spent = race([&one, &two], 1, |control, node, _| async move {
            control.credential_insert_spending("bootstrap", &credential(&format!("op{round}-{node}"), None)).await.unwrap()
        });
        let [first, second] = spent.await[0];
        assert!(first != second, "spent by one");
        let claimed = race([&one, &two], 1, |control, node, _| async move {
            control.ticket_claim(&format!("k{round}"), &format!("node {node}")).await.unwrap().is_some()
        });
        let [first, second] = claimed.await[0];
        assert!(first != second, "claimed by one");
        let ordered =
            race([&one, &two], 1, move |control, _, _| async move { control.erasure_put(None, &requested(erased)).await.is_ok() });
        let [first, second] = ordered.await[0];
        assert!(first != second, "ordered by one");
    }
    assert_eq!(two.credentials_of(None).await.unwrap().len(), 10);
    drop((one, two, other));
    house.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sum_holds_after_interleaved_writes_and_counters_are_exact() {
    const WRITES: usize = 250;
    let Some((house, other, one, two)) = two().await else { return };
    let (blue, _) = insert(&house, &one, "blue").await;
    let third = house.another_node().await;
    let begun = Instant::now();
    let write = |control: Arc<Control>, node: usize| async move {
        for write in 0..WRITES {
            match write % 5 {
                0 => control.credential_insert(&credential(&format!("c{node}-{write}"), Some(blue.id))).await.unwrap(),
                1 => assert!(control.credential_revoke(Some(blue.id), &format!("c{node}-{}", write - 1), 60).await.unwrap()),
                2 => control.erasure_put(None, &requested(TenantId::random().unwrap())).await.unwrap(),
                3 => {
                    control.credential_touch(&format!("c{node}-{}", write - 3), 70);
                    control.flush().await.unwrap();
                }
                _ => control.tenant_set_limits(blue.id, &format!("{{\"objects\":{write}}}")).await.unwrap(),
            }
        }
    };
    let (first, second) = (tokio::spawn(write(Arc::clone(&one), 0)), tokio::spawn(write(Arc::clone(&two), 1)));
    let mut opened = 0;
    while !(first.is_finished() && second.is_finished()) {
        // A third node starts in the midst of it: it sees one moment, in which all adds up.
        third.control().await.close().await.unwrap();
        opened += 1;
    }
    first.await.unwrap();
    second.await.unwrap();
    println!("{} writes of two nodes, and {opened} opens: {:?}", 2 * WRITES, begun.elapsed());
    let row = two.tenant_by_id(blue.id).await.unwrap().unwrap();
    assert_eq!(row.epoch_generation, 1 + 2 * WRITES as u64 / 5);
    assert_eq!(two.erasures().await.unwrap().len(), 2 * WRITES / 5);
    assert_eq!(two.credentials_of(Some(blue.id)).await.unwrap().len(), 1 + 2 * WRITES / 5);
    assert!(opened > 0);
    third.control().await;
    drop((one, two, other, third));
    house.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_read_as_of_one_moment() {
    let Some((house, other, one, two)) = two().await else { return };
    let (blue, _) = insert(&house, &one, "blue").await;
    let mut keys = one.keys_of(blue.id).await.unwrap();
    let rotating = tokio::spawn({
        let root = RootStore::open_or_create(house.place.root.dir()).unwrap().0;
        async move {
            for _ in 0..60 {
                let keyring = Keyring::load(&root, blue.id, &keys).unwrap();
                let (keyring, next) = keyring.next_version(&root, &keys, 1).unwrap();
                one.keys_replace(blue.id, None, &keys, &next).await.unwrap();
                let version = keyring.version() - 1;
                (_, keys) = keyring.retire(&root, &next, version).unwrap();
                one.keys_replace(blue.id, None, &next, &keys).await.unwrap();
            }
        }
    });
    let mut read = 0;
    while !rotating.is_finished() {
        let seen = two.keys_of(blue.id).await.unwrap();
        assert!(Keyring::load(&other.place.root, blue.id, &seen).is_ok(), "versions of one moment, data keys of another");
        read += 1;
    }
    rotating.await.unwrap();
    assert!(read > 0);
    drop((two, other));
    house.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_of_dead_nodes_wait_again() {
    let Some((house, other, one, two)) = two().await else { return };
    let (blue, _) = insert(&house, &one, "blue").await;
    for node in ["alive", "silent", "left", "unknown"] {
        let row = TicketRow {
            id: node.into(),
            tenant: blue.id,
            kind: "training".into(),
            principal: "ann".into(),
            created_at: 1,
            claimed_by: None,
            attempts: 0,
        };
        one.ticket_insert(&row).await.unwrap();
        one.ticket_claim(node, node).await.unwrap().unwrap();
    }
    house
        .vandal(
            &one,
            "INSERT INTO node (name, url, certificate_sha256, seen_at, mac) VALUES
             ('alive', '', '', clock_timestamp(), ''), ('silent', '', '', clock_timestamp() - interval '1 minute', ''),
             ('left', '', '', '-infinity', '')",
        )
        .await;
    assert_eq!(two.tickets_release_dead(Duration::from_secs(30)).await.unwrap(), 3);
    assert_eq!(two.tickets_release_dead(Duration::from_secs(30)).await.unwrap(), 0);
    assert!(two.ticket_claim("alive", "node").await.unwrap().is_none(), "who lives keeps it");
    assert!(two.ticket_claim("silent", "node").await.unwrap().is_some());
    drop((one, two, other));
    house.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_database_put_back_is_refused() {
    let Some((house, other, one, two)) = two().await else { return };
    insert(&house, &one, "blue").await;
    one.meta_set("newest", b"1").await.unwrap();
    house.vandal(&one, "UPDATE state SET value = value - 1 WHERE name = 'generation'").await;
    assert!(integrity(one.meta_set("again", b"1").await), "while it runs");
    drop((one, two, other));
    assert!(integrity(house.open().await.map(drop)), "at the next start");
    house.vandal_emptied().await;
    assert!(integrity(house.open().await.map(drop)), "nor is a lost one made anew");
    house.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_holds_others_up_but_breaks_nothing() {
    let Some((house, other, one, two)) = two().await else { return };
    let still = one.begin().await.unwrap();
    assert!(matches!(two.meta_set("key", b"1").await, Err(Error::Unavailable(_))), "it says what to do");
    assert!(two.meta("key").await.unwrap().is_none(), "reading goes on");
    drop(still);
    two.meta_set("key", b"1").await.unwrap();
    drop((one, two, other));
    house.drop().await;
}
