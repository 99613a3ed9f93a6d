//! Audit logs of tenants whose rows lie on a server: they outlive the folder and the node that wrote them.

use std::path::Path;
use std::time::Duration;

use tenancy::act::{DatasetRead, LedgerRead};
use tenancy::*;

use crate::support::*;

/// The name of a tenant's act in each entry of its log, and the log's checkpoint; the export verifies.
async fn told(view: &LedgerView, remembered: Option<(u64, &str)>) -> (Vec<String>, Report) {
    view.fresh().await.unwrap();
    let mut export = Vec::new();
    view.export(&mut export).unwrap();
    let origin = view.checkpoint().unwrap().lines().next().unwrap().to_owned();
    let report = verify_export(&mut export.as_slice(), &origin, &view.vkey(), remembered).unwrap();
    let entries = (0..report.size).map(|index| view.entry(index).unwrap().entry.unwrap());
    (entries.map(|entry| format!("{} {}", entry.act, entry.resource)).collect(), report)
}

async fn ledger(kernel: &Kernel, key: &str) -> Result<LedgerView> {
    let permit = permit::<LedgerRead>(kernel, key, "").await?;
    let view = permit.ledger();
    let _ = permit.finish()?;
    Ok(view)
}

/// Some acts, of both kinds; what the log must tell.
async fn acts(kernel: &Kernel, key: &str, from: usize) -> Vec<String> {
    let mut expected = Vec::new();
    for n in from..from + 20 {
        note_put(kernel, key, &format!("n{n}"), "text").await.unwrap();
        expected.push(format!("DatasetWrite dataset:n{n}"));
        assert!(note_get(kernel, key, &format!("n{n}")).await.unwrap().is_some());
        expected.push(format!("DatasetRead dataset:n{n}"));
    }
    expected
}

fn contains_in_order(told: &[String], expected: &[String]) {
    let mut told = told.iter();
    for expected in expected {
        assert!(told.any(|told| told == expected), "{expected}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_outlives_its_folder() {
    if !rows_are_elsewhere() {
        return;
    }
    let house = House::new().await;
    let mut kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let key = tenant_new(&operator, "a").await;
    drop(operator);
    let mut expected = acts(&kernel, &key, 0).await;
    let (_, first) = told(&ledger(&kernel, &key).await.unwrap(), None).await;
    for round in 1..4 {
        expected.extend(acts(&kernel, &key, 100 * round).await);
        if round == 2 {
            kernel.close().await.unwrap();
        } else {
            tokio::time::sleep(Duration::from_millis(500)).await; // within a tenth of a second, unless the machine is busy
        }
        drop(kernel);
        let mut folders = 0;
        for tenant in std::fs::read_dir(house.data().join("tenants")).unwrap() {
            std::fs::remove_dir_all(tenant.unwrap().path().join("ledger")).unwrap();
            folders += 1;
        }
        assert_eq!(folders, 1);
        kernel = house.open().await;
        let (told, _) = told(&ledger(&kernel, &key).await.unwrap(), Some((first.size, &first.root))).await;
        contains_in_order(&told, &expected);
    }
    kernel.close().await.unwrap();
}

/// A node of a service of several.
async fn node(house: &House, name: &str) -> Kernel {
    let mut config = house.config(&house.dir.path().join(name), &house.keystore());
    let url = format!("https://{name}.invalid");
    config.stores.node = Some(NodeConfig { name: name.to_owned(), url, certificate_sha256: "00".repeat(32) });
    Kernel::open(config).await.unwrap().0
}

/// Until the lease of the one before has run out.
async fn waiting<T>(mut ask: impl AsyncFnMut() -> Result<T>) -> T {
    for _ in 0..300 {
        match ask().await {
            Ok(answer) => return answer,
            Err(Error::Elsewhere(_) | Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("nobody takes over");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_outlive_their_node() {
    if !rows_are_elsewhere() {
        return;
    }
    let house = House::new().await;
    let first = node(&house, "one").await;
    let (operator, operator_key) = house.operator(&first).await;
    let key = tenant_new(&operator, "a").await;
    let mut expected = acts(&first, &key, 0).await;
    let (_, remembered) = told(&ledger(&first, &key).await.unwrap(), None).await;
    let (_, service) = told(&operator.ledger().await.unwrap(), None).await;
    expected.extend(acts(&first, &key, 100).await);
    assert!(operator.tenants(None, 10).await.unwrap().len() == 1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Cut off in the middle of its work; its folder stays behind.
    drop((operator, first));
    let second = node(&house, "two").await;
    let view = waiting(async || ledger(&second, &key).await).await;
    let (entries, _) = told(&view, Some((remembered.size, &remembered.root))).await;
    contains_in_order(&entries, &expected);
    expected.extend(acts(&second, &key, 200).await);
    let view = waiting(async || match second.authenticate(Presented::Bearer(&operator_key), &RequestId::fresh()).await? {
        Identity::Operator(operator) => operator.ledger().await,
        Identity::Tenant(_) => panic!("an operator's key"),
    })
    .await;
    let (entries, _) = told(&view, Some((service.size, &service.root))).await;
    contains_in_order(&entries, &["OperatorBootstrap service", "TenantList tenant:", "ServiceLedgerRead ledger:"].map(str::to_owned));
    drop(view);
    // The first one comes back, and the second one leaves in order.
    let first = node(&house, "one").await;
    second.close().await.unwrap();
    drop(second);
    let view = waiting(async || ledger(&first, &key).await).await;
    let (entries, _) = told(&view, Some((remembered.size, &remembered.root))).await;
    contains_in_order(&entries, &expected);
    assert!(Path::exists(&house.dir.path().join("one/tenants")));
    let permit = permit::<DatasetRead>(&first, &key, "n200").await.unwrap();
    let _ = permit.finish().unwrap();
    first.close().await.unwrap();
}
