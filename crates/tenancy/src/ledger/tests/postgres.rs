//! The shared copy on a real server, with the service's own roles.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::shared::{all, late, node, numbers};
use super::*;
use crate::name::TenantId;
use crate::place::{Secret, Tier};
use crate::rows::db::{Db, PostgresDb, TAKEN_OVER};
use crate::rows::postgres::tests::{Scratch, password, scratch, tenant};
use crate::rows::postgres::{PgRows, Postgres};
use crate::rows::tests::Place;

const FENCE: Option<u64> = Some(1);

/// A place of a tenant on a server.
struct House {
    scratch: Scratch,
    rows: PgRows,
}

impl House {
    async fn new(tier: Tier) -> Option<Self> {
        let scratch = scratch().await?;
        let postgres = scratch.open().await;
        let (tenant, password) = (tenant(), password());
        postgres.provision(tenant, tier, &password).await.unwrap();
        let rows = postgres.rows(tenant, tier, (tier != Tier::Pooled).then_some(&password)).await.unwrap();
        Some(Self { scratch, rows })
    }

    /// A node with its own folder comes in, under a lease.
    async fn enter(&self, dir: &Path, fence: Option<u64>) -> Result<Node> {
        let anchor = Place::new().anchors.slot(1, TenantId(TENANT)).unwrap();
        let db = Db::Postgres(PostgresDb::open(self.rows.clone(), anchor, fence).await?);
        let ledger = Arc::new(Ledger::open_copy(&dir.join("ledger"), &keys(), TENANT, ORIGIN)?);
        SharedCopy::Rows(&db).catch_up(&ledger).await?;
        Ok(Node { db, ledger })
    }

    async fn count(&self) -> i64 {
        let mut transaction = self.rows.begin().await.unwrap();
        sqlx::query_scalar("SELECT count(*) FROM ledger_segment").fetch_one(&mut *transaction).await.unwrap()
    }
}

struct Node {
    db: Db,
    ledger: Arc<Ledger>,
}

impl Node {
    async fn ship(&self) -> Result<u64> {
        SharedCopy::Rows(&self.db).ship(&self.ledger).await
    }

    fn copy(&self) -> SharedCopy<'_> {
        SharedCopy::Rows(&self.db)
    }
}

fn is_taken_over<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Unavailable(TAKEN_OVER)))
}

#[tokio::test]
async fn a_log_outlives_its_node_in_every_tier() {
    for tier in [Tier::Pooled, Tier::Schema, Tier::Database] {
        let (a, b) = (node(), node());
        let Some(house) = House::new(tier).await else { return };
        let first = house.enter(a.path(), FENCE).await.unwrap();
        for size in [1, 2, 300, 1023, 1024, 1500, 2500] {
            filled_up(&first.ledger, size);
            assert_eq!(first.ship().await.unwrap(), size);
        }
        assert_eq!(first.ship().await.unwrap(), 2500, "once more costs nothing");
        assert_eq!(house.count().await, 3, "few rows, though often shipped");
        let old = verified(first.ledger.checkpoint().unwrap().as_bytes(), &first.ledger.signing, ORIGIN).unwrap().head;
        filled_up(&first.ledger, 2510);
        // Killed. Another node takes over; the one before notices.
        let second = house.enter(b.path(), Some(2)).await.unwrap();
        assert!(is_taken_over(first.ship().await));
        assert_eq!(all(&second.ledger), numbers(0..2500));
        filled_up(&second.ledger, 2600);
        second.ship().await.unwrap();
        let head = verified(second.ledger.checkpoint().unwrap().as_bytes(), &second.ledger.signing, ORIGIN).unwrap().head;
        second.ledger.prove_consistency(old.size, head.size).unwrap().verify(old.root, head.size, head.root).unwrap();
        let remembered = (old.size, &*old.root.to_string());
        assert_eq!(verify(&exported(&second.ledger), Some(remembered)).unwrap().opened, 2600);
        // The first comes back, with what it had not shipped.
        drop(first);
        let first = house.enter(a.path(), Some(3)).await.unwrap();
        let expected: Vec<_> = numbers(0..2600).into_iter().chain((2501..2510).map(late)).collect();
        assert_eq!(all(&first.ledger), expected);
        first.ship().await.unwrap();
        assert!(is_taken_over(second.ship().await) || second.ledger.mark().unwrap().size == second.ledger.size());
        second.ledger.append(&entry(1)).unwrap();
        assert!(is_taken_over(second.ship().await));
        let third = house.enter(node().path(), Some(4)).await.unwrap();
        assert_eq!((all(&third.ledger), third.ledger.root()), (expected, first.ledger.root()));
        third.ledger.check().unwrap();
        house.scratch.drop().await;
    }
}

/// Polls so many times, then drops.
async fn cancel_after<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

#[tokio::test]
async fn a_shipment_may_be_broken_off_anywhere() {
    let (a, b) = (node(), node());
    let Some(house) = House::new(Tier::Pooled).await else { return };
    let first = house.enter(a.path(), FENCE).await.unwrap();
    let (mut broken_off, mut size) = (0, 0);
    for polls in 1..60 {
        size += 40;
        filled_up(&first.ledger, size);
        broken_off += usize::from(cancel_after(polls, first.ship()).await.is_none());
        size += 1;
        filled_up(&first.ledger, size);
        broken_off += usize::from(tokio::time::timeout(Duration::from_micros(40 * polls as u64), first.ship()).await.is_err());
        if polls % 3 == 0 {
            assert_eq!(first.ship().await.unwrap(), size, "{polls} polls");
        }
    }
    assert!(broken_off > 5, "{broken_off}");
    first.ship().await.unwrap();
    // The end of a commit is not seen: it did not happen, and it did.
    for happened in [false, true] {
        size += 1;
        filled_up(&first.ledger, size);
        let shipment = first.ledger.shipment(first.ledger.mark().unwrap()).unwrap().unwrap();
        let segment = first.ledger.segment(&shipment, size - 1).unwrap();
        let copy = first.copy();
        let transaction = copy.bring(&first.ledger, &shipment, segment).await.unwrap();
        first.ledger.doubts(Some(shipment));
        if happened {
            transaction.commit().await.unwrap();
        } else {
            drop(transaction);
        }
        size += 1;
        filled_up(&first.ledger, size);
        assert_eq!(first.ship().await.unwrap(), size, "happened: {happened}");
    }
    assert_eq!(all(&house.enter(b.path(), FENCE).await.unwrap().ledger), numbers(0..size));
    for polls in 1..30 {
        let other = node();
        let ledger = Arc::new(Ledger::open_copy(&other.path().join("ledger"), &keys(), TENANT, ORIGIN).unwrap());
        let _ = cancel_after(polls, first.copy().catch_up(&ledger)).await;
        first.copy().catch_up(&ledger).await.unwrap();
        assert_eq!(ledger.root(), first.ledger.root(), "{polls} polls");
    }
    house.scratch.drop().await;
}

#[tokio::test]
async fn every_change_in_the_tables_is_refused() {
    let a = node();
    let Some(house) = House::new(Tier::Pooled).await else { return };
    let first = house.enter(a.path(), FENCE).await.unwrap();
    for size in [1100, 1150, 1200] {
        filled_up(&first.ledger, size);
        first.ship().await.unwrap();
    }
    house.scratch.plant("CREATE TABLE kept AS TABLE insula.ledger_segment; CREATE TABLE note AS TABLE insula.ledger_note").await;
    for change in [
        "UPDATE insula.ledger_segment SET leaves = set_byte(leaves, 100, get_byte(leaves, 100) # 1) WHERE first = 0",
        "UPDATE insula.ledger_segment SET leaves = set_byte(leaves, 100, get_byte(leaves, 100) # 1) WHERE first = 1150",
        "UPDATE insula.ledger_segment SET leaves = substr(leaves, 1, length(leaves) - 1) WHERE first = 1150",
        "UPDATE insula.ledger_segment SET leaves = leaves || '\\x0000', entries = entries + 1 WHERE first = 1150",
        "UPDATE insula.ledger_segment SET entries = -1 WHERE first = 1150",
        "UPDATE insula.ledger_segment SET entries = 9223372036854775807 WHERE first = 1150",
        "UPDATE insula.ledger_segment SET first = first + 1 WHERE first = 1150",
        "UPDATE insula.ledger_segment SET first = -1 WHERE first = 0",
        "DELETE FROM insula.ledger_segment WHERE first = 0",
        "DELETE FROM insula.ledger_segment WHERE first = 1100",
        "DELETE FROM insula.ledger_segment WHERE first = 1150",
        "DELETE FROM insula.ledger_segment",
        "UPDATE insula.ledger_segment here SET leaves = there.leaves FROM insula.ledger_segment there \
         WHERE here.first + there.first = 2250 AND here.first <> there.first AND here.entries = there.entries",
        "UPDATE insula.ledger_note SET note = set_byte(note, 30, get_byte(note, 30) # 1)",
        "UPDATE insula.ledger_note SET note = set_byte(note, 30, 255)",
        "UPDATE insula.ledger_note SET note = ''",
        "DELETE FROM insula.ledger_note",
    ] {
        house.scratch.plant(change).await;
        let fresh = house.enter(node().path(), FENCE).await;
        assert!(is_integrity(fresh), "{change}");
        house.scratch.plant("DELETE FROM insula.ledger_segment; DELETE FROM insula.ledger_note").await;
        house.scratch.plant("INSERT INTO insula.ledger_segment TABLE kept; INSERT INTO insula.ledger_note TABLE note").await;
    }
    assert_eq!(all(&house.enter(node().path(), FENCE).await.unwrap().ledger), numbers(0..1200));
    house.scratch.drop().await;
}

#[tokio::test]
async fn of_two_leaders_of_the_service_one_ships() {
    let (a, b) = (node(), node());
    let Some(scratch) = scratch().await else { return };
    let rows = scratch.open().await.control();
    let copy = SharedCopy::Place(&rows);
    let enter = async |dir: &Path| {
        let ledger = Arc::new(Ledger::open_copy(&dir.join("ledger"), &keys(), TENANT, ORIGIN).unwrap());
        copy.catch_up(&ledger).await.map(|()| ledger)
    };
    let (first, second) = (enter(a.path()).await.unwrap(), enter(b.path()).await.unwrap());
    filled_up(&first, 5);
    filled_up(&second, 3);
    assert_eq!(copy.ship(&second).await.unwrap(), 3);
    assert!(is_taken_over(copy.ship(&first).await));
    filled_up(&second, 4);
    assert_eq!(copy.ship(&second).await.unwrap(), 4);
    drop(first);
    let first = enter(a.path()).await.unwrap();
    assert_eq!(all(&first), numbers(0..4).into_iter().chain((1..5).map(late)).collect::<Vec<_>>());
    copy.ship(&first).await.unwrap();
    second.append(&entry(9)).unwrap();
    assert!(is_taken_over(copy.ship(&second).await));
    scratch.drop().await;
}

#[tokio::test]
async fn a_copy_elsewhere_is_filled_bit_by_bit() {
    let a = node();
    let (Some(house), Some(other)) = (House::new(Tier::Pooled).await, House::new(Tier::Schema).await) else { return };
    let first = house.enter(a.path(), FENCE).await.unwrap();
    let there =
        Db::Postgres(PostgresDb::open(other.rows.clone(), Place::new().anchors.slot(1, TenantId(TENANT)).unwrap(), None).await.unwrap());
    let mut mark = None;
    for size in [2000, 2000, 2100, 3500] {
        filled_up(&first.ledger, size);
        first.ship().await.unwrap();
        mark = Some(SharedCopy::Rows(&there).fill(&first.ledger, mark).await.unwrap());
        assert_eq!(mark.as_ref().unwrap().size, size);
    }
    assert!(is_taken_over(SharedCopy::Rows(&there).fill(&first.ledger, Some(Mark::default())).await), "there is one already");
    let moved = other.enter(a.path(), FENCE).await.unwrap();
    assert_eq!((moved.ledger.root(), moved.ledger.mark()), (first.ledger.root(), mark));
    assert_eq!(other.enter(node().path(), FENCE).await.unwrap().ledger.root(), first.ledger.root());
    house.scratch.drop().await;
    other.scratch.drop().await;
}

/// Goes between the service and its server, and can be cut.
async fn line(listener: TcpListener, server: SocketAddr) {
    let mut open = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        open.spawn(async move {
            let mut far = TcpStream::connect(server).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
    }
}

#[tokio::test]
async fn a_server_that_is_gone_comes_back() {
    let (a, b) = (node(), node());
    let Some(scratch) = scratch().await else { return };
    Postgres::migrate(&scratch.config).await.unwrap();
    let address = |url: &Secret| {
        let (_, rest) = url.expose().rsplit_once('@').unwrap();
        rest.split('/').next().unwrap().replace("localhost", "127.0.0.1")
    };
    let server = address(&scratch.config.rows_url);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    let through = |url: &Secret| Secret::new(url.expose().replace(&server, &here.to_string()));
    let config = crate::place::PostgresConfig {
        rows_url: through(&scratch.config.rows_url),
        control_url: through(&scratch.config.control_url),
        ..scratch.config.clone()
    };
    let up = tokio::spawn(line(listener, server.parse().unwrap()));
    let postgres = Postgres::connect(&config).await.unwrap();
    let tenant = tenant();
    postgres.provision(tenant, Tier::Pooled, "").await.unwrap();
    let house = House { rows: postgres.rows(tenant, Tier::Pooled, None).await.unwrap(), scratch };
    let first = house.enter(a.path(), FENCE).await.unwrap();
    filled_up(&first.ledger, 10);
    first.ship().await.unwrap();
    up.abort();
    let _ = up.await;
    filled_up(&first.ledger, 20);
    for _ in 0..3 {
        assert!(matches!(first.ship().await, Err(Error::Unavailable(why)) if why != TAKEN_OVER));
    }
    filled_up(&first.ledger, 30);
    first.ledger.waited(Duration::from_secs(60));
    assert!(matches!(first.ledger.append(&entry(31)), Err(Error::Unavailable("the audit log cannot be written"))));
    assert_eq!(first.ledger.checkpoint().unwrap().lines().nth(1), Some("10"));
    let up = tokio::spawn(line(TcpListener::bind(here).await.unwrap(), server.parse().unwrap()));
    assert_eq!(first.ship().await.unwrap(), 30);
    filled_up(&first.ledger, 31);
    first.ship().await.unwrap();
    assert_eq!(all(&house.enter(b.path(), FENCE).await.unwrap().ledger), numbers(0..31));
    up.abort();
    house.scratch.drop().await;
}

#[tokio::test]
async fn a_large_log_is_shipped_and_rebuilt() {
    const ENTRIES: u64 = 200_000;
    let (a, b) = (node(), node());
    let Some(house) = House::new(Tier::Pooled).await else { return };
    let first = house.enter(a.path(), FENCE).await.unwrap();
    let sample = entry(1);
    (0..ENTRIES).for_each(|_| drop(first.ledger.append_overdue(&sample)));
    let start = Instant::now();
    first.ship().await.unwrap();
    println!("ledger: {ENTRIES} entries shipped in {:.2} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let second = house.enter(b.path(), FENCE).await.unwrap();
    println!("ledger: and rebuilt from {} rows in {:.2} s", house.count().await, start.elapsed().as_secs_f64());
    assert_eq!((second.ledger.size(), second.ledger.root()), (ENTRIES, first.ledger.root()));
    let start = Instant::now();
    for _ in 0..100 {
        second.ledger.append(&sample).unwrap();
        second.ship().await.unwrap();
    }
    println!("ledger: a small shipment takes {:.2} ms", start.elapsed().as_secs_f64() * 10.0);
    house.scratch.drop().await;
}
