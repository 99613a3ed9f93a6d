//! Three kernels on one PostgreSQL and one keystore, in one process.

mod history;

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::*;
use crate::act::{DatasetRead, DatasetWrite, KeyWrite, LedgerRead, TenantErase, TrainingRun};
use crate::cluster::LEASE;
use crate::moving::tests::{moved, moves_full};
use crate::place::{NodeConfig, Placement, StoresConfig, Tier};
use crate::rows::postgres::Postgres;
use crate::rows::postgres::tests::{Scratch, scratch};
use crate::{Filter, KeySpec, Record, TenantSpec};

/// What a node that lives takes at most to let go, or to hear of something.
const SOON: Duration = Duration::from_secs(5);
/// As [`SOON`], of a node that is dead.
const AFTER_EXPIRY: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    name: String,
    number: i64,
}

impl Record for Note {
    const KIND: &'static str = "note";
    fn key(&self) -> String {
        self.name.clone()
    }
}

/// Where the nodes live.
struct Town {
    scratch: Scratch,
    dir: tempfile::TempDir,
}

impl Town {
    async fn new() -> Option<Self> {
        let scratch = scratch().await?;
        Postgres::migrate(&scratch.config).await.unwrap();
        Some(Self { scratch, dir: tempfile::tempdir().unwrap() })
    }

    fn config(&self, name: &str) -> KernelConfig {
        let node = NodeConfig { name: name.to_owned(), url: format!("https://{name}"), certificate_sha256: "00".repeat(32) };
        KernelConfig {
            data_dir: self.dir.path().join(name),
            keystore_dir: self.dir.path().join("keystore"),
            issuer: "https://insula".to_owned(),
            stores_open_max: 8,
            limits: Limits { requests_per_second: 10_000, requests_burst: 10_000, ..Limits::default() },
            stores: StoresConfig { postgres: Some(self.scratch.config.clone()), s3: None, node: Some(node), tier: Tier::Pooled },
        }
    }

    async fn node(&self, name: &str) -> Kernel {
        loop {
            match Kernel::open(self.config(name)).await {
                Ok((kernel, _)) => return kernel,
                // The one before is just letting go.
                Err(Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    fn secret(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("keystore/bootstrap.secret")).unwrap().trim().to_owned()
    }

    /// Nodes `a`, `b` and so on, of which `a` leads; and an operator's key.
    async fn nodes<const N: usize>(&self) -> ([Kernel; N], String) {
        let mut nodes = Vec::new();
        for number in 0..N {
            nodes.push(self.node(&name(number)).await);
        }
        let key = nodes[0].bootstrap(&self.secret(), &RequestId::fresh()).await.unwrap().secret().to_owned();
        (nodes.try_into().unwrap_or_else(|_| unreachable!()), key)
    }

    async fn gone(self, nodes: impl IntoIterator<Item = Kernel>) {
        for node in nodes {
            node.close().await.unwrap();
        }
        self.scratch.drop().await;
    }
}

fn name(number: usize) -> String {
    char::from(b'a' + u8::try_from(number).unwrap()).to_string()
}

/// Dies without a word: nothing is renewed, closed or released.
fn kill(node: Kernel) {
    pause(&node);
    if let Some(flusher) = node.0.flusher.lock().take() {
        flusher.abort();
    }
}

/// Renews no more, and knows of nothing.
fn pause(node: &Kernel) {
    let home = node.0.home.as_ref().unwrap();
    home.keeper.lock().take().unwrap().abort();
}

fn wake(node: &Kernel) {
    node.keep();
}

async fn operator(node: &Kernel, key: &str) -> Result<Operator> {
    match node.authenticate(Presented::Bearer(key), &RequestId::fresh()).await? {
        Identity::Operator(operator) => Ok(operator),
        Identity::Tenant(_) => panic!("an operator's key"),
    }
}

async fn tenant_new(operator: &Operator, name: &str) -> String {
    let spec = TenantSpec { name: name.parse().unwrap(), admin: "ada".parse().unwrap(), limits: None, tier: None };
    operator.tenant_create(spec).await.unwrap().admin_key.secret().to_owned()
}

async fn tenant(node: &Kernel, key: &str) -> Result<Tenant> {
    tenant_with(node, key, &RequestId::fresh()).await
}

async fn tenant_with(node: &Kernel, key: &str, request: &RequestId) -> Result<Tenant> {
    match node.authenticate(Presented::Bearer(key), request).await? {
        Identity::Tenant(caller) => node.open_tenant(caller).await,
        Identity::Operator(_) => panic!("a tenant's key"),
    }
}

async fn put(node: &Kernel, key: &str, name: &str, number: i64) -> Result<()> {
    let permit = tenant(node, key).await?.allow::<DatasetWrite>(name)?;
    let mut tx = permit.tx().await?;
    tx.put(&Note { name: name.to_owned(), number }).await?;
    tx.commit().await?;
    permit.finish().map(drop)
}

async fn get(node: &Kernel, key: &str, name: &str) -> Result<Option<i64>> {
    let permit = tenant(node, key).await?.allow::<DatasetRead>(name)?;
    let note = permit.rows().get::<Note>(name).await?;
    let _ = permit.finish()?;
    Ok(note.map(|note| note.number))
}

/// Moves the tenant to this node, as when the one before had stopped.
async fn settle(from: &Kernel, to: &Kernel, key: &str) {
    let id = tenant(from, key).await.unwrap().island.id;
    to.seize(id).await.unwrap();
    get(to, key, "settled").await.unwrap();
}

fn elsewhere<T>(result: Result<T>) -> String {
    match result {
        Err(Error::Elsewhere(peer)) => peer.name,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it is here"),
    }
}

/// Again and again, until it holds; how long it took.
async fn until<F: Future<Output = bool>>(most: Duration, mut holds: impl FnMut() -> F) -> Duration {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < most, "not within {most:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_nodes_that_start_at_once_for_the_first_time_one_leads_and_one_secret_opens() {
    let Some(town) = Town::new().await else { return };
    let (a, b, c) = tokio::join!(Kernel::open(town.config("a")), Kernel::open(town.config("b")), Kernel::open(town.config("c")));
    let nodes = [a.unwrap(), b.unwrap(), c.unwrap()];
    assert_eq!(nodes.iter().filter(|(_, first)| first.root_key_created.is_some()).count(), 1);
    let leaders: Vec<_> = nodes.iter().filter(|(node, _)| node.0.leads()).collect();
    assert_eq!(leaders.len(), 1);
    assert!(leaders[0].1.bootstrap_secret.is_some(), "who leads makes it");
    let (mut keys, secret) = (Vec::new(), town.secret());
    for (node, _) in &nodes {
        match node.bootstrap(&secret, &RequestId::fresh()).await {
            Ok(key) => keys.push(key.secret().to_owned()),
            Err(error) => assert!(matches!(error, Error::Elsewhere(_)), "{error:?}"),
        }
    }
    assert_eq!(keys.len(), 1, "spent once");
    for (node, _) in &nodes {
        match operator(node, &keys[0]).await {
            Ok(operator) => drop(operator.tenants(None, 10).await.unwrap()),
            Err(error) => assert!(matches!(error, Error::Elsewhere(_))),
        }
    }
    assert!(matches!(Kernel::open(town.config("a")).await, Err(Error::Unavailable(_))), "a data folder has one node");
    town.gone(nodes.map(|(node, _)| node)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_is_served_by_one_node_and_any_can_become_it() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let key = tenant_new(&operator(&a, &root).await.unwrap(), "blue").await;
    put(&a, &key, "x", 1).await.unwrap();
    assert_eq!(elsewhere(get(&b, &key, "x").await), "a");
    assert_eq!(elsewhere(operator(&b, &root).await), "a");
    a.close().await.unwrap();
    drop(a);
    let began = Instant::now();
    assert_eq!(get(&b, &key, "x").await.unwrap(), Some(1), "a clean end frees everything at once");
    assert!(operator(&b, &root).await.is_ok());
    assert!(began.elapsed() < SOON);
    let a = town.node("a").await;
    assert_eq!(elsewhere(put(&a, &key, "x", 2).await), "b");
    put(&b, &key, "x", 2).await.unwrap();
    let island = tenant(&b, &key).await.unwrap().island;
    b.island_drop(island.id, Why::Reopening).await.unwrap();
    drop(island);
    until(SOON, || async { get(&a, &key, "x").await.is_ok_and(|found| found == Some(2)) }).await;
    town.gone([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_node_answers_nothing_and_commits_nothing_after_another_took_over() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let key = tenant_new(&operator(&a, &root).await.unwrap(), "blue").await;
    settle(&a, &b, &key).await;
    put(&b, &key, "x", 1).await.unwrap();
    let before = tenant(&b, &key).await.unwrap();
    let (reading, writing) = (before.allow::<DatasetRead>("x").unwrap(), before.allow::<DatasetWrite>("x").unwrap());
    pause(&b);
    let taken = until(AFTER_EXPIRY, || async { get(&a, &key, "x").await.is_ok_and(|found| found == Some(1)) }).await;
    assert!(taken > LEASE / 2, "nobody may before it expired: {taken:?}");
    put(&a, &key, "x", 2).await.unwrap();
    // By the clock: what asks is refused.
    assert!(matches!(before.allow::<DatasetRead>("x"), Err(Error::Unavailable(_))), "reads too");
    assert!(get(&b, &key, "x").await.is_err() && put(&b, &key, "x", 3).await.is_err());
    assert!(writing.tx().await.is_err() && writing.blob_create().await.is_err(), "what was allowed before");
    // By the fence: the rows refuse, whatever the clock says.
    assert!(matches!(before.island.store.tx().await, Err(Error::Unavailable(_))));
    assert_eq!(get(&a, &key, "x").await.unwrap(), Some(2));
    wake(&b);
    until(SOON, || async { matches!(get(&b, &key, "x").await, Err(Error::Elsewhere(_))) }).await;
    assert!(reading.finish().is_err(), "an act of before leaves no entry, so it gets no answer");
    drop(writing);
    town.gone([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_under_way_when_the_home_changes_is_over_or_never_was() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let key = tenant_new(&operator(&a, &root).await.unwrap(), "blue").await;
    settle(&a, &b, &key).await;
    put(&b, &key, "x", 1).await.unwrap();
    let tenant_b = tenant(&b, &key).await.unwrap();
    let permit = tenant_b.allow::<DatasetWrite>("x").unwrap();
    let mut tx = permit.tx().await.unwrap();
    tx.put(&Note { name: "x".to_owned(), number: 2 }).await.unwrap();
    // The database's clock jumps: b takes itself for home, and a is.
    pause(&b);
    town.scratch.plant("UPDATE insula_control.lease SET expires_at = clock_timestamp() - interval '1 minute'").await;
    let taking = tokio::spawn({
        let (a, key) = (a.clone(), key.clone());
        async move { get(&a, &key, "x").await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!taking.is_finished(), "it waits for who writes");
    tx.commit().await.unwrap();
    drop(permit);
    assert_eq!(taking.await.unwrap().unwrap(), Some(2), "and sees what was committed");
    let permit = tenant_b.allow::<DatasetWrite>("x");
    if let Ok(permit) = permit {
        assert!(permit.tx().await.is_err(), "the next one meets the fence");
    }
    town.gone([a, b]).await;
}

/// Whoever waits behind a tenant that is in trouble has its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_behind_one_that_cannot_be_claimed_are_claimed() {
    let Some(town) = Town::new().await else { return };
    let ([a], root) = town.nodes().await;
    let operator = operator(&a, &root).await.unwrap();
    let mut ids = Vec::new();
    for name in ["leaving", "broken", "waiting"] {
        let tenant = tenant(&a, &tenant_new(&operator, name).await).await.unwrap();
        let permit = tenant.allow::<TrainingRun>("j").unwrap();
        permit.enqueue("training", "j").await.unwrap();
        ids.push(tenant.island.id);
        let _ = permit.finish().unwrap();
    }
    let leaving = a.home(ids[0]).await.unwrap().unwrap();
    assert!(leaving.begin_leaving());
    a.0.control.tenant_set_limits(ids[1], "no limits").await.unwrap();
    let began = Instant::now();
    let lease = a.claim("a").await.unwrap().expect("one waits");
    assert_eq!(lease.tenant, ids[2]);
    assert!(began.elapsed() < Duration::from_secs(1), "nobody waited for who leaves: {:?}", began.elapsed());
    a.let_go(&leaving).await;
    drop((operator, leaving));
    town.gone([a]).await;
}

/// An import under one leader is none of the next one's business while its node lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_on_a_node_that_lives_is_not_swept() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], _) = town.nodes().await;
    let id = TenantId::random().unwrap();
    let placement = a.placement_new(id, Tier::Pooled).unwrap();
    a.rows_place_make(id, &placement).await.unwrap();
    let hold = a.home(id).await.unwrap().unwrap();
    bundle::died(&a, id, placement.clone()).await;
    bundle::sweep(&b).await.unwrap();
    assert_eq!(bundle::importing(&b).await.unwrap(), [(id, placement)]);
    a.let_go(&hold).await;
    bundle::sweep(&b).await.unwrap();
    assert!(bundle::importing(&b).await.unwrap().is_empty());
    assert!(matches!(bundle::finished(&a, id).await, Err(Error::Conflict(_))), "its maker comes too late");
    drop(hold);
    town.gone([a, b]).await;
}

/// The end of a tenant that goes for another one can take long: that is not for the other one to wait for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_does_not_wait_for_who_goes() {
    let Some(town) = Town::new().await else { return };
    let (a, _) = Kernel::open(KernelConfig { stores_open_max: 1, ..town.config("a") }).await.unwrap();
    let root = a.bootstrap(&town.secret(), &RequestId::fresh()).await.unwrap().secret().to_owned();
    let root = operator(&a, &root).await.unwrap();
    let (blue, red) = (tenant_new(&root, "blue").await, tenant_new(&root, "red").await);
    put(&a, &red, "x", 1).await.unwrap();
    put(&a, &blue, "x", 1).await.unwrap();
    let id = tenant(&a, &blue).await.unwrap().island.id;
    let held = town.scratch.held(&format!("SELECT FROM insula.state WHERE tenant = '{}' FOR UPDATE", id.hex())).await;
    let began = Instant::now();
    assert_eq!(get(&a, &red, "x").await.unwrap(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(held);
    // Locks are each tenant's own, and go with who holds them.
    let ids = [1u8, 2].map(|last| TenantId([[7; 15].as_slice(), &[last]].concat().try_into().unwrap()));
    let locks = ids.map(|id| a.opening(id));
    let one = locks[0].clone().try_lock_owned().unwrap();
    assert!(a.opening(ids[0]).try_lock_owned().is_err() && a.opening(ids[1]).try_lock_owned().is_ok());
    drop((one, locks));
    assert!(a.opening(ids[0]).try_lock_owned().is_ok());
    assert!(a.0.opening.lock().len() <= 3, "no more than are in use");
    drop(root);
    until(AFTER_EXPIRY, || async { get(&a, &blue, "x").await.is_ok() }).await;
    town.gone([a]).await;
}

/// That a tenant cannot be opened says nothing about what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_does_not_open_keeps_its_name_and_its_rows() {
    let Some(town) = Town::new().await else { return };
    let ([a], root) = town.nodes().await;
    let operator = operator(&a, &root).await.unwrap();
    let key = tenant_new(&operator, "blue").await;
    put(&a, &key, "x", 1).await.unwrap();
    let (mut bundle, name) = (Vec::new(), "red".parse().unwrap());
    operator.export(&"blue".parse().unwrap(), [7; 32]).await.unwrap().write(&mut bundle).await.unwrap();
    let created = operator.import(&name, &mut &bundle[..], [7; 32]).await.unwrap();
    // As if it had never been anchored, too.
    let row = a.0.control.tenant_by_name(&name).await.unwrap().unwrap();
    a.0.anchors.put(row.slot, row.id, &crate::anchor::Anchor::default()).unwrap();
    let rows = format!("{}_rows", town.scratch.name);
    town.scratch.plant(&format!("REVOKE UPDATE ON insula.state FROM {rows}")).await;
    let spec = TenantSpec { name, admin: "eve".parse().unwrap(), limits: None, tier: None };
    let taken = operator.tenant_create(spec).await.map(drop);
    assert!(matches!(taken, Err(Error::Conflict(_))), "{taken:?}");
    town.scratch.plant(&format!("GRANT UPDATE ON insula.state TO {rows}")).await;
    assert_eq!(get(&a, created.admin_key.secret(), "x").await.unwrap(), Some(1));
    drop(operator);
    town.gone([a]).await;
}

/// Somebody copied everything, said that nothing more is written, and slept. Meanwhile something was.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_slept_before_the_cut_over_does_not_cut_over() {
    static PARTED: AtomicBool = AtomicBool::new(false);
    fn sleeps() {
        PARTED.store(true, Ordering::Release);
        let began = Instant::now();
        tokio::task::block_in_place(|| {
            while PARTED.load(Ordering::Acquire) && began.elapsed() < 2 * AFTER_EXPIRY {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
    }
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let key = tenant_new(&operator(&a, &root).await.unwrap(), "blue").await;
    put(&a, &key, "x", 1).await.unwrap();
    let id = tenant(&a, &key).await.unwrap().island.id;
    let placement = async || Placement::parse(&b.0.control.tenant_by_id(id).await.unwrap().unwrap().placement).unwrap();
    for (to, number) in [(Some(Tier::Schema), 2), (None, 3)] {
        let moving = tokio::spawn({
            let a = a.clone();
            async move { moved(&a, id, to, sleeps).await }
        });
        until(AFTER_EXPIRY, || async { PARTED.load(Ordering::Acquire) }).await;
        pause(&a);
        let expired = "UPDATE insula_control.lease SET expires_at = clock_timestamp() - interval '1 minute'
             WHERE tenant <> decode(repeat('00', 16), 'hex')";
        // It has no time to give up what is being made.
        moves_full(&b, true);
        // A renewal may still have been on its way.
        let taken = || async {
            town.scratch.plant(expired).await;
            put(&b, &key, "x", number).await.is_ok()
        };
        until(SOON, taken).await;
        PARTED.store(false, Ordering::Release);
        let cut = moving.await.unwrap();
        assert!(matches!(cut, Err(Error::Conflict(_))), "{cut:?}");
        moves_full(&b, false);
        b.island_drop(id, Why::Reopening).await.unwrap();
        assert_eq!(get(&b, &key, "x").await.unwrap(), Some(number), "what was acknowledged meanwhile is there");
        until(SOON, || async { placement().await.next.is_none() }).await;
        wake(&a);
        until(SOON, || async { matches!(get(&a, &key, "x").await, Err(Error::Elsewhere(_))) }).await;
        settle(&b, &a, &key).await;
        if to.is_some() {
            moved(&a, id, to, || {}).await.unwrap();
            assert_eq!((placement().await.rows.tier(), get(&a, &key, "x").await.unwrap()), (Tier::Schema, Some(number)));
        }
    }
    moved(&a, id, None, || {}).await.unwrap();
    let now = placement().await;
    assert_eq!((now.rows.tier(), now.previous, get(&a, &key, "x").await.unwrap()), (Tier::Pooled, None, Some(3)));
    town.gone([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_holds_at_once_wherever_the_tenant_lives() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let leader = operator(&a, &root).await.unwrap();
    let key = tenant_new(&leader, "blue").await;
    settle(&a, &b, &key).await;
    let handle = tenant(&b, &key).await.unwrap();
    let began = Instant::now();
    leader.suspend(&"blue".parse().unwrap()).await.unwrap();
    assert!(began.elapsed() < SOON, "its home lets go when asked: {:?}", began.elapsed());
    assert!(handle.allow::<DatasetRead>("x").is_err());
    for node in [&a, &b] {
        assert!(matches!(get(node, &key, "x").await, Err(Error::TenantState(_))));
    }
    leader.resume(&"blue".parse().unwrap()).await.unwrap();
    until(SOON, || async { get(&b, &key, "x").await.is_ok() }).await;
    town.gone([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_limits_reach_the_home_on_another_node() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let leader = operator(&a, &root).await.unwrap();
    let key = tenant_new(&leader, "blue").await;
    settle(&a, &b, &key).await;
    let limits = Limits { members: 7, ..town.config("a").limits };
    leader.limits_put(&"blue".parse().unwrap(), limits).await.unwrap();
    let took = until(SOON, || async { tenant(&b, &key).await.unwrap().limits().members == 7 }).await;
    assert!(took < RENEW_EVERY + Duration::from_secs(1), "{took:?}");
    town.gone([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_home_adds_one_burst_at_most() {
    const BURST: u32 = 40;
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let leader = operator(&a, &root).await.unwrap();
    let key = tenant_new(&leader, "blue").await;
    settle(&a, &b, &key).await;
    let limits = Limits { requests_per_second: 1, requests_burst: BURST, ..town.config("a").limits };
    leader.limits_put(&"blue".parse().unwrap(), limits).await.unwrap();
    until(SOON, || async { tenant(&b, &key).await.unwrap().limits().requests_burst == BURST }).await;
    let began = Instant::now();
    let spent = async |node: &Kernel| {
        let tenant = tenant(node, &key).await.unwrap();
        let mut allowed = 0;
        while let Ok(permit) = tenant.allow::<DatasetRead>("x") {
            let _ = permit.finish().unwrap();
            allowed += 1;
        }
        (allowed, tenant.island.id)
    };
    let (at_b, id) = spent(&b).await;
    drop(a.seize(id).await.unwrap());
    let (at_a, _) = spent(&a).await;
    let grown = u32::try_from(began.elapsed().as_secs()).unwrap() + 2;
    assert!(at_a > 0 && at_b + at_a <= 2 * BURST + grown, "{at_b} and {at_a} of {BURST}, {grown} by the rate");
    town.gone([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_at_home_holds_on_every_node() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let key = tenant_new(&operator(&a, &root).await.unwrap(), "blue").await;
    let expires_at = now_micros() + 3_600_000_000;
    let permit = tenant(&a, &key).await.unwrap().allow::<KeyWrite>("").unwrap();
    let spec = KeySpec { name: "k".parse().unwrap(), member: "ada".parse().unwrap(), scope: Scope::all(), expires_at };
    let second = permit.key_issue(spec).await.unwrap().secret().to_owned();
    let _ = permit.finish().unwrap();
    let id = credential::Presented::parse(&second).unwrap().id.as_str().to_owned();
    // Both nodes know the key: one was home before, one is now.
    assert!(get(&a, &second, "x").await.is_ok());
    settle(&a, &b, &key).await;
    assert!(get(&b, &second, "x").await.is_ok());
    assert_eq!(elsewhere(get(&a, &second, "x").await), "b");
    let permit = tenant(&b, &key).await.unwrap().allow::<KeyWrite>("").unwrap();
    permit.key_revoke(&id).await.unwrap();
    let _ = permit.finish().unwrap();
    for node in [&a, &b] {
        assert!(matches!(get(node, &second, "x").await, Err(Error::Unauthenticated)));
        assert!(matches!(node.token_exchange(&id, &second, None).await, Err(Error::Unauthenticated)), "no token for it either");
    }
    settle(&b, &a, &key).await;
    assert!(matches!(get(&a, &second, "x").await, Err(Error::Unauthenticated)), "home again, and nothing old remembered");
    town.gone([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_s_tenant_goes_on_elsewhere_with_its_ledger() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let key = tenant_new(&operator(&a, &root).await.unwrap(), "blue").await;
    settle(&a, &b, &key).await;
    for number in 0..10 {
        put(&b, &key, "x", number).await.unwrap();
    }
    kill(b);
    until(AFTER_EXPIRY, || async { get(&a, &key, "x").await.is_ok_and(|found| found == Some(9)) }).await;
    put(&a, &key, "x", 10).await.unwrap();
    let permit = tenant(&a, &key).await.unwrap().allow::<LedgerRead>("").unwrap();
    let ledger = permit.ledger();
    let filter = Filter { act: Some("DatasetWrite".to_owned()), ..Filter::default() };
    assert_eq!(ledger.search(&filter, 100).unwrap().entries.len(), 11, "every write that was acknowledged has its entry");
    let _ = permit.finish().unwrap();
    town.gone([a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_is_followed_and_its_log_goes_on() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let leader = operator(&a, &root).await.unwrap();
    let key = tenant_new(&leader, "blue").await;
    let written = leader.ledger().await.unwrap().size();
    drop(leader);
    kill(a);
    until(AFTER_EXPIRY, || async { operator(&b, &root).await.is_ok() }).await;
    let leader = operator(&b, &root).await.unwrap();
    let log = leader.ledger().await.unwrap();
    assert!(log.size() > written, "{} entries, {written} before", log.size());
    let filter = Filter { act: Some("TenantCreate".to_owned()), ..Filter::default() };
    assert_eq!(log.search(&filter, 10).unwrap().entries.len(), 1);
    // The tenant's lease is younger than the leader's: it was taken between two renewals, and runs out later.
    until(RENEW_EVERY + SOON, || async { get(&b, &key, "x").await.is_ok() }).await;
    tenant_new(&leader, "green").await;
    town.gone([b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_are_counted_wherever_they_are_tried() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    for _ in 0..3 {
        assert!(matches!(b.authenticate(Presented::Bearer("nonsense"), &RequestId::fresh()).await, Err(Error::Unauthenticated)));
    }
    b.0.refusals_told().await.unwrap();
    let filter = Filter { act: Some("Authenticate".to_owned()), ..Filter::default() };
    let told = || async {
        let found = operator(&a, &root).await.unwrap().ledger().await.unwrap().search(&filter, 10).unwrap();
        found.entries.iter().any(|entry| entry.entry.as_ref().is_some_and(|entry| entry.reason.starts_with("3 credentials")))
    };
    until(SOON, told).await;
    town.gone([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_s_job_is_taken_up_by_another_which_asks_the_policy() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let key = tenant_new(&operator(&a, &root).await.unwrap(), "blue").await;
    settle(&a, &b, &key).await;
    let permit = tenant(&b, &key).await.unwrap().allow::<TrainingRun>("job").unwrap();
    permit.enqueue("training", "job").await.unwrap();
    let _ = permit.finish().unwrap();
    assert!(a.claim("ignored").await.unwrap().is_none(), "its tenant lives elsewhere");
    let first = b.claim("ignored").await.unwrap().unwrap();
    assert_eq!(b.resume(&first).await.unwrap().principal(), "ada");
    assert!(a.tickets_reset().await.unwrap() == 0, "who starts resets its own");
    let home = b.0.home.as_ref().unwrap();
    home.keeper.lock().take().unwrap().abort();
    let mut second = None;
    let began = Instant::now();
    while second.is_none() {
        assert!(began.elapsed() < AFTER_EXPIRY, "never taken up");
        second = a.claim("ignored").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let second = second.unwrap();
    assert_eq!((second.id(), second.attempts()), ("job", 2));
    let again = a.resume(&second).await.unwrap();
    assert!(again.allow::<TrainingRun>("job").is_ok(), "the policy is asked again");
    // What the other node says of it, should it live, changes nothing.
    b.postpone(first).await.unwrap();
    assert!(a.claim("ignored").await.unwrap().is_none());
    a.release(second).await.unwrap();
    drop(again);
    kill_paused(b);
    town.gone([a]).await;
}

/// As [`kill`], of one that is paused.
fn kill_paused(node: Kernel) {
    if let Some(flusher) = node.0.flusher.lock().take() {
        flusher.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_ordered_at_home_is_done_by_the_leader_everywhere() {
    struct Stopped(Mutex<Vec<IslandToken>>);
    impl Compute for Stopped {
        fn stop(&self, island: IslandToken) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            self.0.lock().push(island);
            Box::pin(std::future::ready(()))
        }
    }
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let leader = operator(&a, &root).await.unwrap();
    let (key, other) = (tenant_new(&leader, "blue").await, tenant_new(&leader, "green").await);
    settle(&a, &b, &key).await;
    settle(&a, &b, &other).await;
    put(&b, &key, "x", 1).await.unwrap();
    put(&b, &other, "x", 1).await.unwrap();
    let (here, there) = (Arc::new(Stopped(Mutex::default())), Arc::new(Stopped(Mutex::default())));
    b.compute_attach(Arc::clone(&there) as Arc<dyn Compute>);
    let permit = tenant(&b, &key).await.unwrap().allow::<TenantErase>("").unwrap();
    permit.erase("blue").await.unwrap();
    let _ = permit.finish().unwrap();
    assert!(!b.erasure_step(&*there).await.unwrap(), "only the leader acts");
    assert!(matches!(get(&b, &key, "x").await, Err(Error::TenantState(_) | Error::Elsewhere(_))));
    while a.erasure_step(&*here).await.unwrap() {}
    assert!(!there.0.lock().is_empty(), "the cells of its home were stopped");
    let erased = leader.erasures().await.unwrap();
    assert!(erased[0].certificate.is_some());
    assert!(matches!(get(&b, &key, "x").await, Err(Error::Unauthenticated)));
    // The survivor's key is re-wrapped under an epoch that its home has not seen begin.
    let permit = tenant(&b, &other).await.unwrap().allow::<crate::act::KeyringRotate>("").unwrap();
    permit.keyring_rotate().await.unwrap();
    let _ = permit.finish().unwrap();
    settle(&b, &a, &other).await;
    assert_eq!(get(&a, &other, "x").await.unwrap(), Some(1));
    town.gone([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_database_nothing_is_served_and_with_it_all_is_again() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], root) = town.nodes().await;
    let key = tenant_new(&operator(&a, &root).await.unwrap(), "blue").await;
    put(&a, &key, "x", 1).await.unwrap();
    let handle = tenant(&a, &key).await.unwrap();
    let name = &town.scratch.name;
    let cut = format!(
        "ALTER ROLE {name}_control NOLOGIN; ALTER ROLE {name}_rows NOLOGIN;
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IN ('{name}_control', '{name}_rows')"
    );
    town.scratch.plant(&cut).await;
    let refused = || async { matches!(handle.allow::<DatasetRead>("x"), Err(Error::Unavailable(_))) };
    let after = until(AFTER_EXPIRY, refused).await;
    assert!(after < LEASE, "refuses after {after:?}");
    assert!(get(&a, &key, "x").await.is_err() && get(&b, &key, "x").await.is_err());
    town.scratch.plant(&format!("ALTER ROLE {name}_control LOGIN; ALTER ROLE {name}_rows LOGIN")).await;
    let served = || async { get(&a, &key, "x").await.is_ok() || get(&b, &key, "x").await.is_ok() };
    until(AFTER_EXPIRY, served).await;
    until(AFTER_EXPIRY, || async { operator(&a, &root).await.is_ok() || operator(&b, &root).await.is_ok() }).await;
    drop(handle);
    town.gone([a, b]).await;
}

#[tokio::test]
async fn what_a_dead_import_left_goes_by_itself_and_what_a_living_one_makes_stays() {
    let Some(town) = Town::new().await else { return };
    let ([a, b], _) = town.nodes().await;
    let living = TenantId([7; 16]);
    let placement = a.placement_new(living, Tier::Schema).unwrap();
    let is_there = async |id: TenantId| {
        let there = format!("SELECT count(*) FROM pg_namespace WHERE nspname = 't_{}'", id.hex());
        town.scratch.ask(&there).await > 0
    };
    // Node b is at it, and lives: it is home to the tenant to be.
    let hold = b.home(living).await.unwrap().unwrap();
    b.rows_place_make(living, &placement).await.unwrap();
    bundle::died(&b, living, placement.clone()).await;
    for _ in 0..3 {
        bundle::sweep_dead(&a).await.unwrap();
        assert!(is_there(living).await, "who lives is not swept");
    }
    // It dies, and nobody imports anything again.
    let began = Instant::now();
    drop(hold);
    kill(b);
    while is_there(living).await || !bundle::importing(&a).await.unwrap().is_empty() {
        assert!(began.elapsed() < AFTER_EXPIRY * 2, "what it left is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(2), "not before its lease ran out");
    town.gone([a]).await;
}
