//! On a real PostgreSQL. Nodes are clusters in one process; a node is put to sleep by not renewing.

use std::time::Instant;

use sqlx::{Connection, Executor};

use super::*;
use crate::rows::postgres::Postgres;
use crate::rows::postgres::tests::{Scratch, scratch};

const A: TenantId = TenantId([1; 16]);
const B: TenantId = TenantId([2; 16]);

/// A database with all tables; none, loudly, where there is no server.
struct Database {
    scratch: Scratch,
    key: Key,
}

impl Database {
    async fn new() -> Option<Self> {
        let scratch = scratch().await?;
        Postgres::migrate(&scratch.config).await.unwrap();
        Some(Self { scratch, key: Key::random().unwrap() })
    }

    async fn node(&self, name: &str) -> Cluster {
        self.join(name, "https://here").await.unwrap()
    }

    async fn join(&self, name: &str, url: &str) -> Result<Cluster> {
        let node = NodeConfig { name: name.to_owned(), url: url.to_owned(), certificate_sha256: "00".repeat(32) };
        Cluster::join(Pool::new(&self.scratch.config).unwrap(), node, &self.key).await
    }

    async fn run(&self, sql: &str) {
        self.scratch.plant(sql).await;
    }

    async fn gone(self) {
        self.scratch.drop().await;
    }
}

fn elsewhere<T>(result: Result<T>) -> String {
    match result {
        Err(Error::Elsewhere(peer)) => peer.name,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it is here"),
    }
}

async fn acquire(node: &Cluster, tenant: TenantId) -> Result<Arc<Hold>> {
    node.acquire(tenant, || {}).await
}

#[tokio::test]
async fn a_tenant_has_one_home_and_each_home_a_greater_fence() {
    let Some(database) = Database::new().await else { return };
    let (a, b) = (database.node("a").await, database.node("b").await);
    let first = acquire(&a, A).await.unwrap();
    assert_eq!(first.fence(), 1);
    assert_eq!(elsewhere(acquire(&b, A).await), "a");
    assert!(Arc::ptr_eq(&first, &acquire(&a, A).await.unwrap()), "home already");
    assert_eq!(acquire(&b, B).await.unwrap().fence(), 1, "another tenant is another matter");
    a.release(&first).await.unwrap();
    assert!(!first.alive() && a.holding(A).is_none());
    let second = acquire(&b, A).await.unwrap();
    assert_eq!(second.fence(), 2);
    a.release(&first).await.unwrap();
    assert_eq!(elsewhere(acquire(&a, A).await), "b", "an old hold gives nothing away");
    assert_eq!(a.elsewhere(&[A, B, TenantId([9; 16])]).await.unwrap(), [A, B]);
    b.leave().await.unwrap();
    assert!(!second.alive());
    assert_eq!(acquire(&a, A).await.unwrap().fence(), 3, "who leaves frees everything at once");
    database.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_want_it_at_once_one_gets_it() {
    let Some(database) = Database::new().await else { return };
    let mut nodes = Vec::new();
    for number in 0..4 {
        nodes.push(Arc::new(database.node(&format!("n{number}")).await));
    }
    for round in 1..=20u64 {
        let tasks: Vec<_> = nodes
            .iter()
            .flat_map(|node| (0..3).map(|_| Arc::clone(node)))
            .map(|node| tokio::spawn(async move { acquire(&node, A).await.map(|hold| (hold, node)) }))
            .collect();
        let mut homes = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                Ok(home) => homes.push(home),
                Err(error) => assert!(matches!(error, Error::Elsewhere(_)), "{error:?}"),
            }
        }
        let (hold, home) = homes.first().unwrap();
        assert!(homes.iter().all(|(other, _)| Arc::ptr_eq(other, hold)), "one home in round {round}");
        assert_eq!(hold.fence(), round);
        home.release(hold).await.unwrap();
    }
    database.gone().await;
}

#[tokio::test]
async fn a_node_that_does_not_renew_knows_before_the_others_that_it_is_over() {
    let Some(database) = Database::new().await else { return };
    let (a, b) = (database.node("a").await, database.node("b").await);
    let began = Instant::now();
    let old = acquire(&a, A).await.unwrap();
    let mut dead_at = None;
    let new = loop {
        b.renew().await.unwrap();
        match acquire(&b, A).await {
            Ok(hold) => break hold,
            Err(error) => assert_eq!(elsewhere::<()>(Err(error)), "a"),
        }
        if dead_at.is_none() && !old.alive() {
            dead_at = Some(began.elapsed());
        }
        assert!(began.elapsed() < LEASE * 2, "never free");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let taken_at = began.elapsed();
    let dead_at = dead_at.expect("it was dead before it was taken");
    assert!(dead_at >= LEASE - MARGIN * 2 && dead_at < taken_at, "dead after {dead_at:?}, taken after {taken_at:?}");
    assert_eq!(new.fence(), 2);
    assert!(old.check().is_err() && acquire(&a, B).await.is_err(), "who cannot renew takes nothing new either");
    let renewed = a.renew().await.unwrap();
    assert_eq!(renewed.lost.len(), 1, "waking up, it finds out");
    assert!(!old.alive(), "and does not come back to life");
    a.forget(&renewed.lost[0]);
    assert_eq!(elsewhere(acquire(&a, A).await), "b");
    assert!(acquire(&a, B).await.is_ok(), "but may go on with others");
    database.gone().await;
}

#[tokio::test]
async fn an_unbroken_lease_outlives_a_short_silence_of_the_database() {
    let Some(database) = Database::new().await else { return };
    let a = database.node("a").await;
    let hold = acquire(&a, A).await.unwrap();
    let mut owner = database.scratch.raw(database.scratch.config.owner_url.as_ref().unwrap()).await;
    let mut lock = owner.begin().await.unwrap();
    lock.execute("LOCK TABLE insula_control.lease").await.unwrap();
    let began = Instant::now();
    assert!(matches!(a.renew().await, Err(Error::Unavailable(_))), "the database hangs");
    assert!(began.elapsed() < RENEW_WAIT_MAX * 2);
    assert!(hold.alive() && a.left() > Duration::ZERO);
    lock.rollback().await.unwrap();
    assert!(a.renew().await.unwrap().lost.is_empty());
    assert!(hold.alive() && a.left() > LEASE - MARGIN * 2);
    database.gone().await;
}

#[tokio::test]
async fn who_wants_a_tenant_gets_it_before_others() {
    let Some(database) = Database::new().await else { return };
    let (a, b, c) = (database.node("a").await, Arc::new(database.node("b").await), database.node("c").await);
    let hold = acquire(&a, A).await.unwrap();
    let wanting = tokio::spawn({
        let b = Arc::clone(&b);
        async move { b.want(A, || {}).await }
    });
    let wanted = loop {
        let renewed = a.renew().await.unwrap();
        if let Some(wanted) = renewed.wanted.into_iter().next() {
            break wanted;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(Arc::ptr_eq(&wanted, &hold) && hold.alive(), "its home decides when");
    a.release(&wanted).await.unwrap();
    assert_eq!(elsewhere(acquire(&c, A).await), "b", "kept for who waited");
    let hold = wanting.await.unwrap().unwrap();
    assert_eq!(hold.fence(), 2);
    assert!(b.renew().await.unwrap().wanted.is_empty(), "the wish is fulfilled");
    // Who wanted it and went away does not keep others out for long.
    a.pool.want(A, "c").await.unwrap();
    b.release(&hold).await.unwrap();
    tokio::time::sleep(WANTED_GRACE + Duration::from_millis(200)).await;
    assert!(acquire(&a, A).await.is_ok());
    database.gone().await;
}

#[tokio::test]
async fn a_renewal_tells_what_changed_and_what_is_idle() {
    let Some(database) = Database::new().await else { return };
    let a = database.node("a").await;
    database
        .run("INSERT INTO insula_control.tenant VALUES ('\\x01010101010101010101010101010101', 'a', 'active', 0, 1, '{}', '{}', 3, 1, '')")
        .await;
    let hold = acquire(&a, A).await.unwrap();
    hold.taken_up(3);
    assert!(a.renew().await.unwrap().changed.is_empty());
    database.run("UPDATE insula_control.tenant SET epoch_generation = 4").await;
    assert_eq!(a.renew().await.unwrap().changed.len(), 1);
    assert_eq!(a.renew().await.unwrap().changed.len(), 1, "until it is taken up");
    hold.taken_up(4);
    let renewed = a.renew().await.unwrap();
    assert!(renewed.changed.is_empty() && renewed.idle.is_empty() && hold.alive());
    drop(hold);
    let idle = a.renew().await.unwrap().idle;
    assert_eq!(idle.len(), 1, "nobody uses it");
    a.release(&idle[0]).await.unwrap();
    assert_eq!(acquire(&database.node("b").await, A).await.unwrap().fence(), 2);
    database.gone().await;
}

#[tokio::test]
async fn nodes_are_known_by_rows_nobody_else_can_write() {
    let Some(database) = Database::new().await else { return };
    let (a, b) = (database.node("a").await, database.node("b").await);
    assert!(matches!(database.join("a", "https://elsewhere").await, Err(Error::Invalid(_))), "one name, one node");
    drop(database.node("a").await); // a restart is the same node
    let _held = acquire(&a, A).await.unwrap();
    for change in [
        "UPDATE insula_control.node SET url = 'https://thief' WHERE name = 'a'",
        "UPDATE insula_control.node SET url = 'https://here', certificate_sha256 = 'ff' WHERE name = 'a'",
        "UPDATE insula_control.node SET certificate_sha256 = repeat('00', 32), mac = '\\x00' WHERE name = 'a'",
    ] {
        database.run(change).await;
        assert!(matches!(acquire(&b, A).await, Err(Error::Integrity(_))), "{change}");
    }
    a.leave().await.unwrap();
    assert!(database.join("a", "https://elsewhere").await.is_ok(), "who left may move");
    database.run("DELETE FROM insula_control.node WHERE name = 'b'").await;
    assert!(matches!(b.renew().await, Err(Error::Integrity(_))));
    database.gone().await;
}

#[tokio::test]
async fn a_restarted_node_takes_its_own_at_once() {
    let Some(database) = Database::new().await else { return };
    let first = database.node("a").await;
    let old = acquire(&first, A).await.unwrap();
    let second = database.node("a").await;
    let new = acquire(&second, A).await.unwrap();
    assert_eq!(new.fence(), 2);
    assert_eq!(first.renew().await.unwrap().lost.len(), 1, "its ghost, should it live, finds out");
    assert!(!old.alive() && new.alive());
    database.gone().await;
}

#[tokio::test]
async fn entries_of_other_nodes_reach_the_leader_unchanged_or_not_at_all() {
    let Some(database) = Database::new().await else { return };
    let (a, b) = (database.node("a").await, database.node("b").await);
    b.outbox_put(b"three refused").await.unwrap();
    b.outbox_put(b"one refused").await.unwrap();
    let entries = a.outbox().await.unwrap();
    assert_eq!(
        entries.iter().map(|(_, entry)| entry.as_deref().unwrap()).collect::<Vec<_>>(),
        [b"three refused".as_slice(), b"one refused"]
    );
    a.outbox_done(&[entries[0].0]).await.unwrap();
    assert_eq!(a.outbox().await.unwrap().len(), 1);
    database.run("INSERT INTO insula_control.service_outbox (entry) VALUES ('forged')").await;
    let entries = a.outbox().await.unwrap();
    assert!(entries[0].1.is_some() && entries[1].1.is_none(), "a forged entry is no entry, and holds up no other");
    database.gone().await;
}
