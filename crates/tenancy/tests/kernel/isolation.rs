//! Callers, scopes, roles, quotas, revocation, and that nothing crosses.

use tenancy::act::*;
use tenancy::*;

use crate::support::*;

#[tokio::test]
async fn two_tenants_share_nothing_and_nothing_is_in_clear() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let (a, b) = (tenant_new(&operator, "marker-tenant-a").await, tenant_new(&operator, "b").await);
    note_put(&kernel, &a, "marker-name", "marker-text").await.unwrap();
    assert_eq!(note_get(&kernel, &a, "marker-name").await.unwrap().unwrap().text, "marker-text");
    assert_eq!(note_get(&kernel, &b, "marker-name").await.unwrap(), None);
    let blob = blob_put(&kernel, &a, b"marker-blob".repeat(20_000).as_slice()).await.unwrap();
    assert!(matches!(blob_get(&kernel, &b, blob).await, Err(Error::NotFound(_))));
    assert_eq!(blob_get(&kernel, &a, blob).await.unwrap().len(), 220_000);
    kernel.close().await.unwrap();
    drop((operator, kernel));
    for marker in ["marker-tenant-a", "marker-name", "marker-text", "marker-blob", &a[7..30], &b[7..30]] {
        nowhere_in_clear(&house.data(), marker);
    }
}

#[tokio::test]
async fn a_foreign_file_in_ones_own_place_does_not_open() {
    if rows_are_elsewhere() {
        return; // there are no files of rows
    }
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let (a, b) = (tenant_new(&operator, "a").await, tenant_new(&operator, "b").await);
    note_put(&kernel, &a, "x", "of a").await.unwrap();
    note_put(&kernel, &b, "x", "of b").await.unwrap();
    kernel.close().await.unwrap();
    drop((operator, kernel));
    let dirs: Vec<_> = std::fs::read_dir(house.data().join("tenants")).unwrap().map(|entry| entry.unwrap().path()).collect();
    std::fs::copy(dirs[0].join("rows.db"), dirs[1].join("rows.db")).unwrap();
    let kernel = house.open().await;
    let (of_a, of_b) = (note_get(&kernel, &a, "x").await, note_get(&kernel, &b, "x").await);
    let refused = |result: &Result<Option<Note>>| matches!(result, Err(Error::Integrity(_) | Error::Internal(_)));
    assert!(refused(&of_a) != refused(&of_b), "one is swapped, the other is not: {of_a:?} {of_b:?}");
}

#[tokio::test]
async fn scopes_and_roles_narrow_and_revocation_is_immediate() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    let members = permit::<MemberWrite>(&kernel, &admin, "vera").await.unwrap();
    members
        .member_put(Member {
            name: "vera".parse().unwrap(),
            roles: vec![Role::Viewer],
            description: String::new(),
            grants: Default::default(),
        })
        .await
        .unwrap();
    let _ = members.finish().unwrap();

    let viewer = key_new(&kernel, &admin, "vera", Scope::all()).await.unwrap();
    assert!(permit::<DatasetRead>(&kernel, &viewer, "x").await.is_ok());
    assert!(
        matches!(permit::<DatasetWrite>(&kernel, &viewer, "x").await, Err(Error::Forbidden { act: "DatasetWrite" })),
        "sees, may not write"
    );
    assert!(matches!(permit::<LedgerRead>(&kernel, &viewer, "").await, Err(Error::NotFound("ledger"))), "may not even see");

    let scope = Scope::new(vec!["DatasetRead".into()], vec!["dataset:x".into()]).unwrap();
    let narrow = key_new(&kernel, &admin, "ada", scope).await.unwrap();
    assert!(permit::<DatasetRead>(&kernel, &narrow, "x").await.is_ok());
    assert!(permit::<DatasetRead>(&kernel, &narrow, "y").await.is_err());
    assert!(permit::<DatasetDelete>(&kernel, &narrow, "x").await.is_err(), "an admin's key is only as wide as its scope");

    let id = narrow.split('_').nth(1).unwrap().to_owned();
    let token = kernel.token_exchange(&id, &narrow, None).await.unwrap();
    assert!(permit::<DatasetRead>(&kernel, &token.token, "x").await.is_ok());
    assert!(permit::<DatasetRead>(&kernel, &token.token, "y").await.is_err(), "the token carries the key's scope");
    assert!(kernel.token_exchange(&id, &narrow, Some("*")).await.is_err(), "and cannot widen it");

    let keys = permit::<KeyWrite>(&kernel, &admin, &id).await.unwrap();
    keys.key_revoke(&id).await.unwrap();
    let _ = keys.finish().unwrap();
    assert!(matches!(permit::<DatasetRead>(&kernel, &narrow, "x").await, Err(Error::Unauthenticated)), "revoked: the next request");
    assert!(matches!(permit::<DatasetRead>(&kernel, &token.token, "x").await, Err(Error::Unauthenticated)), "and its tokens with it");

    let members = permit::<MemberWrite>(&kernel, &admin, "vera").await.unwrap();
    members.member_remove(&"vera".parse().unwrap()).await.unwrap();
    let _ = members.finish().unwrap();
    assert!(matches!(permit::<DatasetRead>(&kernel, &viewer, "x").await, Err(Error::Unauthenticated)));
    let members = permit::<MemberWrite>(&kernel, &admin, "ada").await.unwrap();
    assert!(matches!(members.member_remove(&"ada".parse().unwrap()).await, Err(Error::Conflict(_))), "the last administrator stays");
}

#[tokio::test]
async fn every_act_leaves_one_entry_and_the_export_verifies() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    let view = || async { permit::<LedgerRead>(&kernel, &admin, "").await.unwrap() };
    let size = |permit: &Permit<LedgerRead>| permit.ledger().size();
    let before = {
        let permit = view().await;
        size(&permit) + 1
    };
    note_put(&kernel, &admin, "n1", "t").await.unwrap(); // allowed, durable
    note_get(&kernel, &admin, "n1").await.unwrap(); // allowed, synced
    let abandoned = permit::<DatasetWrite>(&kernel, &admin, "n2").await.unwrap();
    drop(abandoned); // failed
    let _ = permit::<DatasetWrite>(&kernel, &admin, "n3").await.unwrap().failed("invalid").unwrap();
    let permit = view().await;
    let entries: Vec<_> = (before..size(&permit)).map(|index| permit.ledger().entry(index).unwrap().entry.unwrap()).collect();
    let seen: Vec<_> = entries.iter().map(|e| (e.act.as_str(), e.resource.as_str(), e.outcome, e.generation.is_some())).collect();
    assert_eq!(
        seen,
        [
            ("DatasetWrite", "dataset:n1", Outcome::Allowed, true),
            ("DatasetRead", "dataset:n1", Outcome::Allowed, false),
            ("DatasetWrite", "dataset:n2", Outcome::Failed, false),
            ("DatasetWrite", "dataset:n3", Outcome::Failed, false),
        ]
    );
    let mut export = Vec::new();
    permit.ledger().fresh().await.unwrap();
    permit.ledger().export(&mut export).unwrap();
    let (vkey, checkpoint) = (permit.ledger().vkey(), permit.ledger().checkpoint().unwrap());
    let origin = checkpoint.lines().next().unwrap().to_owned();
    let report = verify_export(&mut export.as_slice(), &origin, &vkey, None).unwrap();
    assert!(report.size >= 5 && report.shredded == 0, "{report:?}");
    for at in (0..export.len()).step_by(export.len() / 150) {
        let mut bad = export.clone();
        bad[at] ^= 1;
        assert!(verify_export(&mut bad.as_slice(), &origin, &vkey, None).is_err(), "byte {at} of {}", export.len());
    }
}

#[tokio::test]
async fn quotas_refuse_and_give_back() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    let limits = Limits { storage_bytes: 100_000, objects: 2, ..Limits::default() };
    operator.limits_put(&"a".parse().unwrap(), limits).await.unwrap();
    assert!(matches!(blob_put(&kernel, &admin, &[7; 200_000]).await, Err(Error::Quota(_))), "too many bytes");
    let first = blob_put(&kernel, &admin, &[7; 60_000]).await.unwrap();
    assert!(matches!(blob_put(&kernel, &admin, &[7; 60_000]).await, Err(Error::Quota(_))), "the sum counts");
    blob_put(&kernel, &admin, &[7; 10]).await.unwrap();
    assert!(matches!(blob_put(&kernel, &admin, &[7; 10]).await, Err(Error::Quota(_))), "too many objects");
    let permit = permit::<DatasetDelete>(&kernel, &admin, "x").await.unwrap();
    let mut tx = permit.tx().await.unwrap();
    tx.detach(first).await.unwrap();
    tx.commit().await.unwrap();
    let _ = permit.finish().unwrap();
    blob_put(&kernel, &admin, &[7; 60_000]).await.unwrap();
    kernel.close().await.unwrap();
    drop((operator, kernel));
    let kernel = house.open().await;
    let permit = crate::support::permit::<QuotaRead>(&kernel, &admin, "").await.unwrap();
    let used = permit.quota_use().used;
    assert_eq!((used["storage_bytes"], used["objects"]), (60_010, 2), "durable");
}

#[tokio::test]
async fn a_flood_is_refused_with_a_time_to_come_back() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let (a, b) = (tenant_new(&operator, "a").await, tenant_new(&operator, "b").await);
    let limits = Limits { requests_per_second: 1, requests_burst: 5, ..Limits::default() };
    operator.limits_put(&"a".parse().unwrap(), limits).await.unwrap();
    let mut refused = None;
    for _ in 0..10 {
        match permit::<Predict>(&kernel, &a, "m").await {
            Ok(permit) => drop(permit.finish().unwrap()),
            Err(error) => refused = Some(error),
        }
    }
    let Some(Error::Quota(exceeded)) = refused else { panic!("{refused:?}") };
    assert!(exceeded.retry_after_seconds.is_some_and(|seconds| seconds >= 1));
    assert!(permit::<Predict>(&kernel, &b, "m").await.is_ok(), "the neighbour does not notice");

    // A flood does not fill the log: some entries, the rest counted.
    for _ in 0..500 {
        let _ = permit::<Predict>(&kernel, &a, "m").await.map(|permit| permit.finish());
    }
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    for _ in 0..8 {
        let _ = permit::<Predict>(&kernel, &a, "m").await.map(|permit| permit.finish());
    }
    operator
        .limits_put(&"a".parse().unwrap(), Limits { requests_per_second: 1000, requests_burst: 1000, ..Limits::default() })
        .await
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2000)).await;
    let permit = permit::<LedgerRead>(&kernel, &a, "").await.unwrap();
    let filter = Filter { outcome: Some(Outcome::Refused), ..Filter::default() };
    let refused = permit.ledger().search(&filter, 1000).unwrap().entries;
    let withheld: u64 = refused.iter().filter_map(|found| found.entry.as_ref()?.detail.get("withheld")?.parse::<u64>().ok()).sum();
    assert!(refused.len() < 100, "{} entries", refused.len());
    assert!(withheld > 400 && withheld as usize + refused.len() > 490, "{withheld} counted beside {} entries", refused.len());
}

#[tokio::test]
async fn keys_rotate_online_and_old_data_reads() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    let blob = blob_put(&kernel, &admin, b"sealed under version 1").await.unwrap();
    note_put(&kernel, &admin, "n", "t").await.unwrap();
    for expected in 2..5 {
        let permit = permit::<KeyringRotate>(&kernel, &admin, "").await.unwrap();
        assert_eq!(permit.keyring_rotate().await.unwrap(), expected);
        let _ = permit.finish().unwrap();
        assert_eq!(blob_get(&kernel, &admin, blob).await.unwrap(), "sealed under version 1");
    }
    kernel.close().await.unwrap();
    drop((operator, kernel));
    let kernel = house.open().await;
    assert_eq!(blob_get(&kernel, &admin, blob).await.unwrap(), "sealed under version 1");
    assert_eq!(note_get(&kernel, &admin, "n").await.unwrap().unwrap().text, "t");
    let permit = permit::<KeyringRead>(&kernel, &admin, "").await.unwrap();
    let states: Vec<_> = permit.keyring_versions().await.unwrap().into_iter().map(|version| (version.version, version.state)).collect();
    assert_eq!(states, [(1, "retired"), (2, "retired"), (3, "retired"), (4, "active")]);
}

#[tokio::test]
async fn suspended_tenants_take_nothing_and_come_back() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    let held = permit::<DatasetWrite>(&kernel, &admin, "x").await.unwrap();
    operator.suspend(&"a".parse().unwrap()).await.unwrap();
    assert!(matches!(note_get(&kernel, &admin, "x").await, Err(Error::TenantState("suspended"))));
    assert!(matches!(held.tx().await, Err(Error::TenantState(_))), "what was allowed before cannot commit");
    drop(held);
    operator.resume(&"a".parse().unwrap()).await.unwrap();
    note_put(&kernel, &admin, "x", "t").await.unwrap();
    assert!(matches!(
        operator.tenant_create(TenantSpec { name: "a".parse().unwrap(), admin: "z".parse().unwrap(), limits: None, tier: None }).await,
        Err(Error::Conflict(_))
    ));
}

#[tokio::test]
async fn more_tenants_than_open_stores() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let mut keys = Vec::new();
    for n in 0..30 {
        keys.push(tenant_new(&operator, &format!("t{n}")).await);
    }
    for round in 0..2 {
        let mut tasks = tokio::task::JoinSet::new();
        for (n, key) in keys.iter().cloned().enumerate() {
            let kernel = kernel.clone();
            tasks.spawn(async move {
                // Thirty tenants share eight connections where each has its own role: everybody's turn comes.
                note_put(&kernel, &key, "n", &format!("{n} {round}")).await.unwrap();
                assert_eq!(note_get(&kernel, &key, "n").await.unwrap().unwrap().text, format!("{n} {round}"));
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }
    assert!(kernel.islands_open() <= 30);
}

#[tokio::test]
async fn erasing_needs_the_name_and_an_administrator() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    let asked = permit::<TenantErase>(&kernel, &admin, "").await.unwrap();
    assert!(matches!(asked.erase("b").await, Err(Error::Invalid(_))));
    drop(asked);
    let asked = permit::<TenantErase>(&kernel, &admin, "").await.unwrap();
    asked.erase("a").await.unwrap();
    assert!(matches!(note_get(&kernel, &admin, "x").await, Err(Error::TenantState(_) | Error::Unauthenticated)));
}

#[tokio::test]
async fn a_grant_narrows_one_experiment_for_one_member() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let admin = tenant_new(&operator, "a").await;
    let members = permit::<MemberWrite>(&kernel, &admin, "dora").await.unwrap();
    let dora =
        Member { name: "dora".parse().unwrap(), roles: vec![Role::DataScientist], description: String::new(), grants: Default::default() };
    members.member_put(dora.clone()).await.unwrap();
    drop(members);
    let key = key_new(&kernel, &admin, "dora", Scope::all()).await.unwrap();
    let grant = async |on: &str, grant| {
        let asked = permit::<PermissionWrite>(&kernel, &admin, "").await.unwrap();
        asked.grant_set("dora", ResourceKind::Experiment, on, grant).await.unwrap()
    };
    assert_eq!(grant("7", Some(Grant::Read)).await, None);
    assert_eq!(grant("8", Some(Grant::None)).await, None);

    let run = permit::<RunWrite>(&kernel, &key, "r1").await.unwrap();
    run.within(ResourceKind::Experiment, "6").unwrap();
    assert!(matches!(run.within(ResourceKind::Experiment, "7"), Err(Error::Forbidden { .. })));
    assert!(matches!(run.within(ResourceKind::Experiment, "8"), Err(Error::NotFound(_))));
    drop(run);
    let read = permit::<ExperimentRead>(&kernel, &key, "").await.unwrap();
    assert_eq!(["6", "7", "8"].map(|id| read.may(ResourceKind::Experiment, id)), [true, true, false]);
    drop(read);
    assert!(matches!(permit::<ExperimentWrite>(&kernel, &key, "7").await, Err(Error::Forbidden { .. })));
    assert!(matches!(permit::<ExperimentRead>(&kernel, &key, "8").await, Err(Error::NotFound(_))));

    // New roles leave grants as they are; a grant that is taken back is gone at once.
    let members = permit::<MemberWrite>(&kernel, &admin, "dora").await.unwrap();
    members.member_put(Member { roles: vec![Role::Viewer, Role::DataScientist], ..dora }).await.unwrap();
    drop(members);
    assert!(matches!(permit::<ExperimentRead>(&kernel, &key, "8").await, Err(Error::NotFound(_))));
    assert_eq!(grant("8", None).await, Some(Grant::None));
    drop(permit::<ExperimentRead>(&kernel, &key, "8").await.unwrap());
    let shown = permit::<PermissionRead>(&kernel, &admin, "").await.unwrap().grants_on(ResourceKind::Experiment, "7");
    assert_eq!(shown, [("dora".parse().unwrap(), Grant::Read)]);
}

#[tokio::test]
async fn a_token_opens_for_its_tenant_alone() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let (a, b) = (tenant_new(&operator, "a").await, tenant_new(&operator, "b").await);
    let (a, b) = (permit::<RunRead>(&kernel, &a, "").await.unwrap(), permit::<RunRead>(&kernel, &b, "").await.unwrap());
    let token = a.token_seal(b"after run 17").unwrap();
    assert_eq!(a.token_open(&token).unwrap(), b"after run 17");
    let mut changed = token.clone().into_bytes();
    changed[20] = if changed[20] == b'A' { b'B' } else { b'A' };
    for (permit, token) in
        [(&b, token.as_str()), (&a, std::str::from_utf8(&changed).unwrap()), (&a, ""), (&a, "?"), (&a, &"A".repeat(9000))]
    {
        assert!(matches!(permit.token_open(token), Err(Error::Invalid(_))), "{token}");
    }
}

#[tokio::test]
async fn many_records_in_few_statements() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let key = tenant_new(&operator, "a").await;
    let note = |n: usize, text: &str| Note { name: format!("n{n:03}"), text: text.to_owned() };
    for count in [1, 2, 31, 32, 33, 100] {
        let permit = permit::<DatasetWrite>(&kernel, &key, "x").await.unwrap();
        let mut tx = permit.tx().await.unwrap();
        let mut all: Vec<Note> = (0..count).map(|n| note(n, &format!("of {count}"))).collect();
        all.push(note(0, "the later one"));
        tx.put_all(&all).await.unwrap();
        let keys: Vec<String> = (0..count + 1).rev().map(|n| note(n, "").name).collect();
        let found = tx.get_all::<Note>(&keys).await.unwrap();
        assert!(found[0].is_none() && found.len() == count + 1);
        assert!(found[1..count].iter().all(|found| found.as_ref().unwrap().text == format!("of {count}")));
        assert_eq!(found[count].as_ref().unwrap().text, "the later one");
        tx.commit().await.unwrap();
        assert_eq!(permit.rows().count::<Note>().await.unwrap(), count as u64);
        assert_eq!(permit.rows().get_all::<Note>(&keys).await.unwrap().iter().flatten().count(), count);
    }
    let empty = permit::<DatasetRead>(&kernel, &key, "x").await.unwrap();
    assert!(empty.rows().get_all::<Note>(&[]).await.unwrap().is_empty());
}
