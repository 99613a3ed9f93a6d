//! Attacks on the kernel's seams: two at once, cut in the middle, too late, put back. Each was a hole once, or would be one.

use std::collections::BTreeMap;
use std::future::Future;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tenancy::act::*;
use tenancy::*;

use crate::support::*;

/// Everything in a tenant's log, oldest first; the log verifies.
pub(crate) async fn entries(kernel: &Kernel, admin: &str) -> Vec<Entry> {
    let permit = permit::<LedgerRead>(kernel, admin, "").await.unwrap();
    let view = permit.ledger();
    let mut export = Vec::new();
    view.fresh().await.unwrap();
    view.export(&mut export).unwrap();
    let origin = view.checkpoint().unwrap().lines().next().unwrap().to_owned();
    verify_export(&mut export.as_slice(), &origin, &view.vkey(), None).unwrap();
    (0..view.size()).map(|index| view.entry(index).unwrap().entry.unwrap()).collect()
}

fn about<'e>(entries: &'e [Entry], resource: &str) -> Vec<&'e Entry> {
    entries.iter().filter(|entry| entry.resource == resource).collect()
}

/// Opens again until the tenant takes requests. Nobody suspended it: whoever is refused meanwhile is told to try again.
async fn thawed(kernel: &Kernel, admin: &str) {
    for _ in 0..200 {
        match note_get(kernel, admin, "probe").await {
            Err(Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
            result => return drop(result.unwrap()),
        }
    }
    panic!("the tenant stays frozen");
}

#[tokio::test]
async fn what_ends_late_joins_the_same_log() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    let name = "a".parse().unwrap();
    let (held, reading) =
        (permit::<DatasetWrite>(&kernel, &admin, "held").await.unwrap(), permit::<DatasetRead>(&kernel, &admin, "late").await.unwrap());
    operator.suspend(&name).await.unwrap();
    operator.resume(&name).await.unwrap();
    for n in 0..5 {
        note_put(&kernel, &admin, &format!("n{n}"), "t").await.unwrap();
    }
    drop(held);
    let _ = reading.finish().unwrap();
    for n in 5..10 {
        note_put(&kernel, &admin, &format!("n{n}"), "t").await.unwrap();
    }
    let check = |entries: &[Entry]| {
        assert_eq!(about(entries, "dataset:held").len(), 1);
        assert_eq!(about(entries, "dataset:late").len(), 1);
        (0..10).for_each(|n| assert_eq!(about(entries, &format!("dataset:n{n}")).len(), 1, "n{n}"));
    };
    check(&entries(&kernel, &admin).await);
    kernel.close().await.unwrap();
    drop((operator, kernel));
    check(&entries(&house.open().await, &admin).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_cut_anywhere_leaves_one_entry_that_is_true() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    let mut seen = BTreeMap::new();
    for round in 0..48 {
        thawed(&kernel, &admin).await;
        let name = format!("cut{round}");
        let permit = permit::<DatasetWrite>(&kernel, &admin, &name).await.unwrap();
        let mut tx = permit.tx().await.unwrap();
        tx.put(&Note { name: name.clone(), text: "t".into() }).await.unwrap();
        let mut commit = Box::pin(tx.commit());
        for poll in 0..round / 4 {
            if let Poll::Ready(result) = commit.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                result.unwrap();
                break;
            }
            if (poll + round) % 4 != 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        drop(commit);
        drop(permit);
        thawed(&kernel, &admin).await;
        let happened = note_get(&kernel, &admin, &name).await.unwrap().is_some();
        *seen.entry(happened).or_insert(0) += 1;
        let all = entries(&kernel, &admin).await;
        let written: Vec<_> = about(&all, &format!("dataset:{name}")).into_iter().filter(|entry| entry.act == "DatasetWrite").collect();
        assert_eq!(written.len(), 1, "round {round}: {written:?}");
        assert_eq!(written[0].outcome == Outcome::Allowed, happened, "round {round}: {written:?}");
    }
    assert!(seen.len() == 2, "cut too early and too late only: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_key_read_while_it_is_revoked_is_not_remembered() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    raise(&operator, "a").await;
    for round in 0..150 {
        let key = key_new(&kernel, &admin, "ada", Scope::all()).await.unwrap();
        let id = key.split('_').nth(1).unwrap().to_owned();
        let mut uses = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (kernel, key) = (kernel.clone(), key.clone());
            uses.spawn(async move {
                let _ = kernel.authenticate(Presented::Bearer(&key), &RequestId::fresh()).await;
            });
        }
        let keys = permit::<KeyWrite>(&kernel, &admin, &id).await.unwrap();
        keys.key_revoke(&id).await.unwrap();
        let _ = keys.finish().unwrap();
        uses.join_all().await;
        assert!(kernel.authenticate(Presented::Bearer(&key), &RequestId::fresh()).await.is_err(), "round {round}");
    }
    let permit = permit::<QuotaRead>(&kernel, &admin, "").await.unwrap();
    assert_eq!(permit.quota_use().used["keys"], 1, "and counted back");
}

pub(crate) async fn raise(operator: &Operator, name: &str) {
    let limits = Limits { requests_per_second: 1_000_000, requests_burst: 1_000_000, concurrency_max: 1000, ..Limits::default() };
    operator.limits_put(&name.parse().unwrap(), limits).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_make_the_same_tenant_one_has_it() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (first, key) = house.operator(&kernel).await;
    let second = operator(&kernel, &key).await;
    for round in 0..15 {
        let spec = || TenantSpec { name: format!("t{round}").parse().unwrap(), admin: "ada".parse().unwrap(), limits: None, tier: None };
        let (one, two) = tokio::join!(first.tenant_create(spec()), second.tenant_create(spec()));
        assert!(one.is_ok() != two.is_ok(), "round {round}");
        let made = one.or(two).unwrap();
        note_put(&kernel, made.admin_key.secret(), "n", "t").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_administrators_cannot_remove_each_other() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    raise(&operator, "a").await;
    for round in 0..40 {
        let put = permit::<MemberWrite>(&kernel, &admin, "bea").await.unwrap();
        put.member_put(Member {
            name: "bea".parse().unwrap(),
            roles: vec![Role::Admin],
            description: String::new(),
            grants: Default::default(),
        })
        .await
        .unwrap();
        drop(put);
        let (one, two) =
            (permit::<MemberWrite>(&kernel, &admin, "ada").await.unwrap(), permit::<MemberWrite>(&kernel, &admin, "bea").await.unwrap());
        let demoted = |name: &str| Member {
            name: name.parse().unwrap(),
            roles: vec![Role::Viewer],
            description: String::new(),
            grants: Default::default(),
        };
        let (one, two) = (
            tokio::spawn(async move { one.member_put(demoted("ada")).await.is_ok() }),
            tokio::spawn(async move { two.member_put(demoted("bea")).await.is_ok() }),
        );
        let done = (one.await.unwrap(), two.await.unwrap());
        assert!(done.0 != done.1, "round {round}: {done:?}");
        if done.0 {
            // Ada has no right to undo that any more: the next round begins with a new tenant.
            return;
        }
    }
}

#[tokio::test]
async fn a_narrow_key_cannot_make_a_wide_one_nor_act_on_another_member() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    let narrow = Scope::new(vec!["KeyWrite".into(), "DatasetRead".into()], vec!["*".into()]).unwrap();
    let maker = key_new(&kernel, &admin, "ada", narrow).await.unwrap();
    assert!(matches!(key_new(&kernel, &maker, "ada", Scope::all()).await, Err(Error::Invalid(_))));
    let narrower = Scope::new(vec!["DatasetRead".into()], vec!["dataset:x".into()]).unwrap();
    key_new(&kernel, &maker, "ada", narrower).await.unwrap();
    let scope = Scope::new(vec!["MemberWrite".into()], vec!["member:vera".into()]).unwrap();
    let only_vera = key_new(&kernel, &admin, "ada", scope).await.unwrap();
    let permit = permit::<MemberWrite>(&kernel, &only_vera, "vera").await.unwrap();
    let other =
        Member { name: "mallory".parse().unwrap(), roles: vec![Role::Admin], description: String::new(), grants: Default::default() };
    assert!(matches!(permit.member_put(other).await, Err(Error::Forbidden { .. })));
}

#[tokio::test]
async fn what_is_being_erased_does_not_come_back_and_holds_up_nobody() {
    struct Nothing;
    impl Compute for Nothing {
        fn stop(&self, _: IslandToken) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            Box::pin(async {})
        }
    }
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, key) = house.operator(&kernel).await;
    let a = tenant_new(&operator, "a").await;
    note_put(&kernel, &a, "n", "t").await.unwrap();
    let folder = std::fs::read_dir(house.data().join("tenants")).unwrap().next().unwrap().unwrap().path();
    tenant_new(&operator, "b").await;
    let stuck = operator.erase(&"a".parse().unwrap()).await.unwrap();
    let free = operator.erase(&"b".parse().unwrap()).await.unwrap();
    assert_eq!(stuck.requested_by, "operator");
    assert!(matches!(operator.resume(&"a".parse().unwrap()).await, Err(Error::Conflict(_))));
    kernel.close().await.unwrap();
    drop((operator, kernel));
    // Nothing can be done with the log of the first: a file lies where its folder was.
    std::fs::rename(folder.join("ledger"), folder.join("kept")).unwrap();
    std::fs::write(folder.join("ledger"), "").unwrap();
    let kernel = house.open().await;
    let operator = operator_of(&kernel, &key).await;
    while let Ok(true) = kernel.erasure_step(&Nothing).await {}
    assert_eq!(operator.erasure(&free.id).await.unwrap().state, ErasureState::Certified);
    assert_eq!(operator.erasure(&stuck.id).await.unwrap().state, ErasureState::Frozen);
    std::fs::remove_file(folder.join("ledger")).unwrap();
    std::fs::rename(folder.join("kept"), folder.join("ledger")).unwrap();
    while kernel.erasure_step(&Nothing).await.unwrap() {}
    assert_eq!(operator.erasure(&stuck.id).await.unwrap().state, ErasureState::Certified);
}

async fn operator_of(kernel: &Kernel, key: &str) -> Operator {
    operator(kernel, key).await
}

#[tokio::test]
async fn the_services_own_log_cannot_be_put_back_and_counts_refusals() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, key) = house.operator(&kernel).await;
    kernel.close().await.unwrap();
    drop((operator, kernel));
    let copy = house.dir.path().join("copy");
    copy_tree(&house.data().join("service"), &copy);
    let kernel = house.open().await;
    for wrong in ["", "x", "insula_0000000000000000_secret"] {
        assert!(kernel.authenticate(Presented::Bearer(wrong), &RequestId::fresh()).await.is_err());
    }
    kernel.close().await.unwrap();
    drop(kernel);
    let kernel = house.open().await;
    let service = operator_of(&kernel, &key).await.ledger().await.unwrap();
    let refused: Vec<_> = (0..service.size()).map(|index| service.entry(index).unwrap().entry.unwrap()).collect();
    let refused: Vec<_> = refused.into_iter().filter(|entry| entry.act == "Authenticate").collect();
    assert_eq!((refused.len(), refused[0].reason.as_str()), (1, "3 credentials since the last such entry"));
    kernel.close().await.unwrap();
    drop((service, kernel));
    std::fs::remove_dir_all(house.data().join("service")).unwrap();
    copy_tree(&copy, &house.data().join("service"));
    assert!(matches!(Kernel::open(house.config(&house.data(), &house.keystore())).await, Err(Error::Integrity(_))));
}

#[tokio::test]
async fn an_entry_always_fits_into_the_log() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    let resource = "\"\\".repeat(100);
    let permit = permit::<DatasetWrite>(&kernel, &admin, &resource).await.unwrap();
    for key in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r"] {
        permit.detail(key, "\u{1}\"".repeat(300));
    }
    let mut tx = permit.tx().await.unwrap();
    tx.put(&Note { name: "n".into(), text: "t".into() }).await.unwrap();
    tx.commit().await.unwrap();
    let _ = permit.finish().unwrap();
    kernel.close().await.unwrap();
    drop((operator, kernel));
    assert!(note_get(&house.open().await, &admin, "n").await.unwrap().is_some());
}

#[tokio::test]
async fn a_download_ends_when_the_tenant_is_suspended() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    let id = blob_put(&kernel, &admin, b"content").await.unwrap();
    let permit = permit::<DatasetRead>(&kernel, &admin, "x").await.unwrap();
    let reader = permit.blobs().open(id).await.unwrap();
    let _ = permit.finish().unwrap();
    assert_eq!(reader.read_at(0, 7).await.unwrap(), "content");
    operator.suspend(&"a".parse().unwrap()).await.unwrap();
    assert!(matches!(reader.read_at(0, 7).await, Err(Error::TenantState(_))));
}

#[tokio::test]
async fn tickets_are_fair_and_survive() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let (a, b) = (tenant_new(&operator, "a").await, tenant_new(&operator, "b").await);
    for n in 0..3 {
        permit::<TrainingCreate>(&kernel, &a, "x").await.unwrap().enqueue("training", &format!("a{n}")).await.unwrap();
    }
    permit::<TrainingCreate>(&kernel, &b, "x").await.unwrap().enqueue("training", "b0").await.unwrap();
    let first = kernel.claim("node").await.unwrap().unwrap();
    assert_eq!((first.id(), first.attempts()), ("a0", 1));
    assert_eq!(kernel.resume(&first).await.unwrap().principal(), "ada");
    let second = kernel.claim("node").await.unwrap().unwrap();
    assert_eq!(second.id(), "b0", "the neighbour's turn, though the first waited longer");
    assert!(kernel.claim("node").await.unwrap().is_none(), "each may run one");
    kernel.postpone(first).await.unwrap();
    let again = kernel.claim("node").await.unwrap().unwrap();
    assert_eq!((again.id(), again.attempts()), ("a0", 2));
    kernel.release(again).await.unwrap();
    let next = kernel.claim("node").await.unwrap().unwrap();
    assert_eq!(next.id(), "a1", "what was released is gone");
    operator.suspend(&"b".parse().unwrap()).await.unwrap();
    drop((operator, kernel, next, second));

    let kernel = house.open().await;
    let waiting = kernel.claim("node").await.unwrap().unwrap();
    assert_eq!(waiting.id(), "a2", "what the dead one had claimed waits for the reset");
    kernel.release(waiting).await.unwrap();
    assert_eq!(kernel.tickets_reset().await.unwrap(), 2);
    let lease = kernel.claim("node").await.unwrap().unwrap();
    assert_eq!((lease.id(), lease.attempts()), ("a1", 2));
    kernel.release(lease).await.unwrap();
    assert!(kernel.claim("node").await.unwrap().is_none(), "a suspended tenant's job waits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_openings_and_evictions_lose_nothing() {
    const TENANTS: usize = 20;
    const ROUNDS: usize = 15;
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let mut keys = Vec::new();
    for n in 0..TENANTS {
        keys.push(tenant_new(&operator, &format!("t{n}")).await);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..4 {
        let (kernel, keys) = (kernel.clone(), keys.clone());
        tasks.spawn(async move {
            for round in 0..ROUNDS {
                for key in keys.iter().skip(lane % 2).step_by(2) {
                    note_put(&kernel, key, &format!("n{round}-{lane}"), "t").await.unwrap();
                }
            }
        });
    }
    tasks.join_all().await;
    assert!(kernel.islands_open() <= 8 + 4, "{} open", kernel.islands_open());
    for key in &keys {
        let all = entries(&kernel, key).await;
        assert_eq!(all.iter().filter(|entry| entry.act == "DatasetWrite").count(), 2 * ROUNDS);
    }
}

#[tokio::test]
async fn every_act_by_every_role_as_the_matrix_says() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    raise(&operator, "a").await;
    let matrix = include_str!("../golden/roles.txt");
    let allowed: BTreeMap<&str, Vec<bool>> = matrix
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.map(|word| word == "yes").collect()))
        })
        .collect();
    let mut tenants = Vec::new();
    for role in Role::ALL {
        let name: Name = format!("m-{}", role.name()).parse().unwrap();
        let put = permit::<MemberWrite>(&kernel, &admin, name.as_str()).await.unwrap();
        put.member_put(Member { name: name.clone(), roles: vec![role], description: String::new(), grants: Default::default() })
            .await
            .unwrap();
        drop(put);
        let key = key_new(&kernel, &admin, name.as_str(), Scope::all()).await.unwrap();
        tenants.push(tenant(&kernel, &key).await.unwrap());
    }
    let mut asked = 0;
    macro_rules! ask {
        ($($act:ident)+) => {$(
            for (column, tenant) in tenants.iter().enumerate() {
                let sees = allowed[<$act as Act>::SEEN_BY][column];
                match tenant.allow::<$act>("x") {
                    Ok(permit) => {
                        assert!(allowed[stringify!($act)][column], "{} by {:?}", stringify!($act), tenant.roles());
                        let _ = permit.finish().unwrap();
                    }
                    Err(Error::Forbidden { .. }) => assert!(sees && !allowed[stringify!($act)][column], "{}", stringify!($act)),
                    Err(Error::NotFound(_)) => assert!(!sees && !allowed[stringify!($act)][column], "{}", stringify!($act)),
                    Err(other) => panic!("{other:?}"),
                }
                asked += 1;
            }
        )+};
    }
    ask!(TenantRead QuotaRead MetricsRead KeyringRead KeyringRotate TenantErase MemberRead MemberWrite KeyRead KeyWrite DatasetRead DatasetWrite
        DatasetDelete TrainingRead TrainingCreate TrainingRun TrainingCancel RunRead ModelRead ModelWrite ModelGate ModelDelete
        DeploymentRead DeploymentWrite Predict LedgerRead RunWrite RunDelete ExperimentRead ExperimentWrite ExperimentDelete ArtifactRead ArtifactWrite
        ArtifactDelete LoggedModelRead LoggedModelWrite LoggedModelDelete TraceRead TraceWrite TraceDelete WebhookRead WebhookWrite
        PermissionRead PermissionWrite RetentionSweep PredictionRead PredictionCreate PredictionRun PredictionCancel DeploymentRollback);
    assert_eq!(asked, ACTS.len() * Role::ALL.len(), "an act that is not asked here");
    let outcomes = entries(&kernel, &admin).await;
    assert_eq!(outcomes.iter().filter(|entry| entry.resource.ends_with(":x")).count(), asked, "one entry each");
}
