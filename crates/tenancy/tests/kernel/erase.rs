//! Erasure: between every two states the service may die; afterwards nothing opens, and that can be proved.

use std::future::Future;
use std::pin::Pin;

use tenancy::*;

use crate::support::*;

struct NoCompute;

impl Compute for NoCompute {
    fn stop(&self, _: IslandToken) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {})
    }
}

#[tokio::test]
async fn the_machine_survives_death_between_any_two_states() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (first, operator_key) = house.operator(&kernel).await;
    let (a, b) = (tenant_new(&first, "a").await, tenant_new(&first, "b").await);
    note_put(&kernel, &a, "n", "secret of a").await.unwrap();
    note_put(&kernel, &b, "n", "of b").await.unwrap();
    let blob = blob_put(&kernel, &b, b"of b").await.unwrap();
    kernel.close().await.unwrap();
    let copy = house.dir.path().join("copy");
    copy_tree(&house.data(), &copy);
    drop((first, kernel));

    let kernel = house.open().await;
    let id = operator(&kernel, &operator_key).await.erase(&"a".parse().unwrap()).await.unwrap().id;
    drop(kernel);
    let mut states = Vec::new();
    loop {
        // A new service for each step: the one before died without a word.
        let kernel = house.open().await;
        let moved = kernel.erasure_step(&NoCompute).await.unwrap();
        let info = operator(&kernel, &operator_key).await.erasure(&id).await.unwrap();
        assert_eq!(note_get(&kernel, &b, "n").await.unwrap().unwrap().text, "of b", "survivors read at {}", info.state);
        assert!(note_get(&kernel, &a, "n").await.is_err(), "the erased does not at {}", info.state);
        states.push(info.state);
        drop(kernel);
        if !moved {
            break;
        }
    }
    assert_eq!(states[..7], ErasureState::ALL[1..]);

    let kernel = house.open().await;
    assert_eq!(blob_get(&kernel, &b, blob).await.unwrap(), "of b");
    let operator = operator(&kernel, &operator_key).await;
    let certificate = operator.erasure(&id).await.unwrap().certificate.unwrap();
    let vkey = operator.ledger().await.unwrap().vkey();
    let statement = verify_certificate(&certificate, &vkey).unwrap();
    assert_eq!(statement.tenant, id);
    assert_eq!(statement.name_digest, name_digest(&statement.service, &statement.tenant, "a"));
    assert!(!certificate.contains("\"a\""), "the name is not in it");
    for at in (0..certificate.len()).step_by(7) {
        let mut bad = certificate.clone().into_bytes();
        bad[at] ^= 1;
        if let Ok(bad) = String::from_utf8(bad) {
            assert!(verify_certificate(&bad, &vkey).map_or(true, |read| read == statement), "byte {at}");
        }
    }
    let again = tenant_new(&operator, "a").await;
    assert_eq!(note_get(&kernel, &again, "n").await.unwrap(), None, "a name used again reaches nothing of its predecessor");
    drop((operator, kernel));

    // The copy from before, opened with the keys of today.
    let opened = Kernel::open(house.config(&copy, &house.keystore())).await;
    match opened {
        Err(_) => {}
        Ok((kernel, _)) => {
            assert!(note_get(&kernel, &a, "n").await.is_err(), "the copy must not read what was erased");
        }
    }
}

/// The negative control: before the erasure the same copy does read, so the test above can fail.
#[tokio::test]
async fn a_copy_reads_as_long_as_nothing_was_erased() {
    if rows_are_elsewhere() {
        return; // a copy of the folder is no copy of the rows
    }
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let a = tenant_new(&operator, "a").await;
    note_put(&kernel, &a, "n", "secret of a").await.unwrap();
    kernel.close().await.unwrap();
    drop((operator, kernel));
    let copy = house.dir.path().join("copy");
    copy_tree(&house.data(), &copy);
    let (kernel, _) = Kernel::open(house.config(&copy, &house.keystore())).await.unwrap();
    assert_eq!(note_get(&kernel, &a, "n").await.unwrap().unwrap().text, "secret of a");
}

#[tokio::test]
async fn an_old_copy_put_back_is_refused() {
    if rows_are_elsewhere() {
        return; // a copy of the folder is no copy of the rows
    }
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let (a, b) = (tenant_new(&operator, "a").await, tenant_new(&operator, "b").await);
    note_put(&kernel, &a, "n", "1").await.unwrap();
    kernel.close().await.unwrap();
    drop((operator, kernel));
    let copy = house.dir.path().join("copy");
    copy_tree(&house.data(), &copy);
    let kernel = house.open().await;
    note_put(&kernel, &a, "n", "2").await.unwrap();
    kernel.close().await.unwrap();
    drop(kernel);
    // Only the tenants' folders go back, control.db stays.
    std::fs::remove_dir_all(house.data().join("tenants")).unwrap();
    copy_tree(&copy.join("tenants"), &house.data().join("tenants"));
    let kernel = house.open().await;
    assert!(matches!(note_get(&kernel, &a, "n").await, Err(Error::Integrity(_))), "rolled back");
    assert!(note_get(&kernel, &b, "n").await.is_ok(), "its neighbour had not changed");
}
