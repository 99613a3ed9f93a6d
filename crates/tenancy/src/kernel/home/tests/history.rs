//! A history of three nodes under load, while leases are stolen from under them, wanted and lost; and whether it could have happened
//! on one.
//!
//! - *Registers*: each is written by one client with growing numbers and read by all. A read sees at least what was acknowledged
//!   before it began, and nothing that was never written.
//! - *Counter*: read, add one, write, from all clients. It ends at no less than what was acknowledged, and at no more than what was tried.
//! - *Log*: every client adds items. What was acknowledged is there; what was refused before its commit is not.
//! - *Ledger*: each acknowledged write has exactly one entry, and the log verifies as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64};

use super::*;

const CLIENTS: usize = 6;
const TENANTS: [&str; 2] = ["blue", "green"];
const LOAD: Duration = Duration::from_secs(25);
/// Nodes asked for one request.
const HOPS_MAX: usize = 3;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Item {
    name: String,
}

impl Record for Item {
    const KIND: &'static str = "item";
    fn key(&self) -> String {
        self.name.clone()
    }
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    /// Its commit was begun, and nobody saw the end.
    Unknown,
    Never,
}

/// What one tenant is known to have been told.
struct Book {
    key: String,
    acknowledged: [AtomicI64; CLIENTS],
    tried: [AtomicI64; CLIENTS],
    counted: AtomicI64,
    counted_perhaps: AtomicI64,
    items: Mutex<BTreeMap<String, Fate>>,
    requests: Mutex<BTreeSet<String>>,
}

struct World {
    nodes: Vec<Kernel>,
    books: Vec<Book>,
    over: AtomicBool,
    wrong: Mutex<Vec<String>>,
}

impl World {
    /// The tenant, on whichever node is home; as the server does it.
    async fn open(&self, first: usize, book: &Book, request: &RequestId) -> Result<Tenant> {
        let mut at = first;
        for _ in 0..HOPS_MAX {
            match tenant_with(&self.nodes[at], &book.key, request).await {
                Err(Error::Elsewhere(peer)) => at = (0..self.nodes.len()).find(|number| name(*number) == peer.name).unwrap(),
                result => return result,
            }
        }
        Err(Error::Unavailable("no node is home for long enough"))
    }

    /// One write; `change` fills the transaction.
    async fn write(&self, at: usize, book: &Book, change: &Change<'_>) -> Fate {
        let request = RequestId::fresh();
        let Ok(tenant) = self.open(at, book, &request).await else { return Fate::Never };
        let Ok(permit) = tenant.allow::<DatasetWrite>("x") else { return Fate::Never };
        let Ok(mut tx) = permit.tx().await else { return Fate::Never };
        let filled = match change {
            Change::Register(name, number) => tx.put(&Note { name: (*name).to_owned(), number: *number }).await,
            Change::Item(name) => tx.insert(&Item { name: (*name).to_owned() }).await,
            Change::Count => match tx.get::<Note>("counter").await {
                Ok(now) => {
                    tokio::task::yield_now().await;
                    tx.put(&Note { name: "counter".to_owned(), number: now.map_or(1, |note| note.number + 1) }).await
                }
                Err(error) => Err(error),
            },
        };
        if filled.is_err() {
            return Fate::Never;
        }
        if tx.commit().await.is_err() || permit.finish().is_err() {
            return Fate::Unknown;
        }
        book.requests.lock().insert(request.to_string());
        Fate::Done
    }

    async fn read(&self, at: usize, book: &Book, name: &str) -> Option<i64> {
        let tenant = self.open(at, book, &RequestId::fresh()).await.ok()?;
        let permit = tenant.allow::<DatasetRead>("x").ok()?;
        let note = permit.rows().get::<Note>(name).await.ok()?;
        let _ = permit.finish().ok()?;
        Some(note.map_or(0, |note| note.number))
    }

    async fn client(&self, me: usize) {
        let mut dice = Dice(me as u64 + 1);
        let mut items = 0;
        while !self.over.load(Ordering::Acquire) {
            let (book, at) = (&self.books[dice.below(TENANTS.len())], dice.below(self.nodes.len()));
            match dice.below(5) {
                0 => {
                    let number = book.tried[me].fetch_add(1, Ordering::AcqRel) + 1;
                    if self.write(at, book, &Change::Register(&format!("register {me}"), number)).await == Fate::Done {
                        book.acknowledged[me].fetch_max(number, Ordering::AcqRel);
                    }
                }
                1 => match self.write(at, book, &Change::Count).await {
                    Fate::Done => drop(book.counted.fetch_add(1, Ordering::AcqRel)),
                    Fate::Unknown => drop(book.counted_perhaps.fetch_add(1, Ordering::AcqRel)),
                    Fate::Never => {}
                },
                2 => {
                    items += 1;
                    let item = format!("{me} {items}");
                    let fate = self.write(at, book, &Change::Item(&item)).await;
                    book.items.lock().insert(item, fate);
                }
                _ => {
                    let whose = dice.below(CLIENTS);
                    let least = book.acknowledged[whose].load(Ordering::Acquire);
                    if let Some(found) = self.read(at, book, &format!("register {whose}")).await {
                        let most = book.tried[whose].load(Ordering::Acquire);
                        if found < least || found > most {
                            self.wrong.lock().push(format!("register {whose}: {found}, not within {least} and {most}"));
                        }
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(dice.below(20) as u64)).await;
        }
    }

    /// Takes leases away in every way there is.
    async fn thief(&self, town: &Town) {
        let mut dice = Dice(99);
        let mut paused: Option<(usize, Instant)> = None;
        while !self.over.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(200 + dice.below(800) as u64)).await;
            if let Some((node, _)) = paused.take_if(|(_, since)| since.elapsed() > LEASE) {
                wake(&self.nodes[node]);
            }
            match dice.below(4) {
                // As if the database's clock jumped: the home does not know.
                0 => town.scratch.plant("UPDATE insula_control.lease SET expires_at = clock_timestamp() - interval '1 minute'").await,
                1 => {
                    let node = name(dice.below(self.nodes.len()));
                    let wanted = format!("UPDATE insula_control.lease SET wanted_by = '{node}' WHERE node <> '{node}'");
                    town.scratch.plant(&wanted).await;
                }
                2 if paused.is_none() => {
                    let node = dice.below(self.nodes.len());
                    pause(&self.nodes[node]);
                    paused = Some((node, Instant::now()));
                }
                _ => {
                    let cut = format!(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}_rows' AND random() < 0.5",
                        town.scratch.name
                    );
                    town.scratch.plant(&cut).await;
                }
            }
        }
        if let Some((node, _)) = paused {
            wake(&self.nodes[node]);
        }
    }

    /// Everything as it is in the end, against what was told.
    async fn settle_accounts(&self, book: &Book) {
        let mut wrong = Vec::new();
        let tenant = loop {
            match self.open(0, book, &RequestId::fresh()).await {
                Ok(tenant) => break tenant,
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        };
        let permit = tenant.allow::<DatasetRead>("x").unwrap();
        for me in 0..CLIENTS {
            let found = permit.rows().get::<Note>(&format!("register {me}")).await.unwrap().map_or(0, |note| note.number);
            let (least, most) = (book.acknowledged[me].load(Ordering::Acquire), book.tried[me].load(Ordering::Acquire));
            if found < least || found > most {
                wrong.push(format!("register {me} ends at {found}, not within {least} and {most}"));
            }
        }
        let counted = permit.rows().get::<Note>("counter").await.unwrap().map_or(0, |note| note.number);
        let least = book.counted.load(Ordering::Acquire);
        let most = least + book.counted_perhaps.load(Ordering::Acquire);
        if counted < least || counted > most {
            wrong.push(format!("the counter ends at {counted}, not within {least} and {most}"));
        }
        let items = book.items.lock().clone();
        for (item, fate) in items {
            let there = permit.rows().get::<Item>(&item).await.unwrap().is_some();
            if fate == Fate::Done && !there || fate == Fate::Never && there {
                wrong.push(format!("item {item}: there is {there}"));
            }
        }
        let _ = permit.finish().unwrap();
        let permit = tenant.allow::<LedgerRead>("").unwrap();
        let entries = ledger_of(&permit.ledger()).await;
        for request in book.requests.lock().iter() {
            let found = entries.get(request).copied().unwrap_or_default();
            if found != 1 {
                wrong.push(format!("request {request} has {found} entries"));
            }
        }
        let _ = permit.finish().unwrap();
        self.wrong.lock().extend(wrong);
    }
}

/// How many entries each request has, in a log that verifies.
async fn ledger_of(ledger: &crate::LedgerView) -> BTreeMap<String, u32> {
    let mut file = Vec::new();
    let exported = ledger.export(&mut file).unwrap();
    let vkey = ledger.vkey();
    let (origin, _) = vkey.split_once('+').unwrap();
    let report = crate::verify_export(&mut file.as_slice(), origin, &vkey, None).unwrap();
    assert_eq!(report.size, exported);
    let mut found = BTreeMap::new();
    let mut filter =
        Filter { act: Some("DatasetWrite".to_owned()), outcome: Some(Outcome::Allowed), oldest_first: true, ..Filter::default() };
    loop {
        let page = ledger.search(&filter, 1000).unwrap();
        for entry in page.entries.into_iter().filter_map(|numbered| numbered.entry) {
            *found.entry(entry.request).or_default() += 1;
        }
        let Some(next) = page.next else { return found };
        filter.from = Some(next);
    }
}

enum Change<'a> {
    Register(&'a str, i64),
    Count,
    Item(&'a str),
}

/// Chance that can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_acknowledged_write_is_lost_while_leases_are_stolen() {
    let Some(town) = Town::new().await else { return };
    let (nodes, root) = town.nodes::<3>().await;
    let leader = operator(&nodes[0], &root).await.unwrap();
    let mut books = Vec::new();
    for name in TENANTS {
        let key = tenant_new(&leader, name).await;
        books.push(Book {
            key,
            acknowledged: Default::default(),
            tried: Default::default(),
            counted: AtomicI64::new(0),
            counted_perhaps: AtomicI64::new(0),
            items: Mutex::default(),
            requests: Mutex::default(),
        });
    }
    drop(leader);
    let world = Arc::new(World { nodes: nodes.to_vec(), books, over: AtomicBool::new(false), wrong: Mutex::default() });
    let town = Arc::new(town);
    let mut tasks = tokio::task::JoinSet::new();
    for me in 0..CLIENTS {
        let world = Arc::clone(&world);
        tasks.spawn(async move { world.client(me).await });
    }
    tasks.spawn({
        let (world, town) = (Arc::clone(&world), Arc::clone(&town));
        async move { world.thief(&town).await }
    });
    tokio::time::sleep(LOAD).await;
    world.over.store(true, Ordering::Release);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    tokio::time::sleep(LEASE).await;
    let mut acknowledged = 0;
    for book in &world.books {
        world.settle_accounts(book).await;
        acknowledged += book.requests.lock().len();
    }
    let homes: i64 = town.scratch.ask("SELECT sum(fence)::bigint FROM insula_control.lease").await;
    println!("{acknowledged} acknowledged writes in {LOAD:?}, {homes} homes");
    assert_eq!(*world.wrong.lock(), Vec::<String>::new());
    assert!(acknowledged > 50 && homes > 10, "only {acknowledged} writes and {homes} homes: nothing was shown");
    drop(world);
    Arc::try_unwrap(town).ok().unwrap().gone(nodes).await;
}
