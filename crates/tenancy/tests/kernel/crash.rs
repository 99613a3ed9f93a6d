//! Killed without a word: what was acknowledged is there, and the ledger says the same.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use tenancy::act::{KeyRead, LedgerRead};
use tenancy::*;

use crate::support::*;

const DIR: &str = "INSULA_TEST_CRASH_DIR";
/// Acknowledged writes before the kill; the whole issue asks for 10,000 over several kinds and rounds.
const WRITES: usize = 3_400;
/// On servers, where each costs ten times as long.
const WRITES_ELSEWHERE: usize = 300;

/// Not a test of its own: the process that is killed.
#[tokio::test]
async fn child_that_writes_until_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = std::path::PathBuf::from(dir);
    let stores = stores_in(&std::env::var(DATABASE).unwrap());
    let kernel = Kernel::open(KernelConfig { stores, ..config(&dir.join("data"), &dir.join("keystore")) }).await.unwrap().0;
    let key = std::fs::read_to_string(dir.join("key")).unwrap();
    for n in 0.. {
        note_put(&kernel, &key, &format!("n{n:06}"), "text").await.unwrap();
        println!("\nacknowledged note n{n:06}");
        if n % 10 == 0 {
            let secret = key_new(&kernel, &key, "ada", Scope::all()).await.unwrap();
            println!("\nacknowledged key {}", secret.split('_').nth(1).unwrap());
            let id = blob_put(&kernel, &key, format!("blob {n}").as_bytes()).await.unwrap();
            println!("\nacknowledged blob {id}");
        }
    }
}

#[tokio::test]
async fn killed_during_thousands_of_acknowledged_writes() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let key = tenant_new(&operator, "a").await;
    operator
        .limits_put(
            &"a".parse().unwrap(),
            Limits { requests_per_second: 100_000, requests_burst: 100_000, keys: 100_000, ..Limits::default() },
        )
        .await
        .unwrap();
    kernel.close().await.unwrap();
    drop((operator, kernel));
    std::fs::write(house.dir.path().join("key"), &key).unwrap();

    let mut seen = Vec::new();
    let writes = if rows_are_elsewhere() { WRITES_ELSEWHERE } else { WRITES };
    for round in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child_that_writes_until_killed", "--nocapture"])
            .env(DIR, house.dir.path())
            .env(DATABASE, &house.database)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(std::result::Result::ok);
        let mut count = 0;
        for line in lines {
            if let Some(what) = line.strip_prefix("acknowledged ") {
                seen.push(what.to_owned());
                count += 1;
                if count == writes + round {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(count >= writes, "round {round}: the child wrote {count}");

        let kernel = house.open().await;
        let permit = permit::<KeyRead>(&kernel, &key, "").await.unwrap();
        let keys: Vec<_> = permit.keys(None, 100_000).await.unwrap().into_iter().map(|key| key.id).collect();
        let _ = permit.finish().unwrap();
        for what in &seen {
            match what.split_once(' ').unwrap() {
                ("note", name) => assert!(note_get(&kernel, &key, name).await.unwrap().is_some(), "{what}"),
                ("key", id) => assert!(keys.iter().any(|known| known == id), "{what}"),
                ("blob", id) => assert!(
                    blob_get(&kernel, &key, serde_json::from_value(id.into()).unwrap()).await.unwrap().starts_with(b"blob"),
                    "{what}"
                ),
                other => panic!("{other:?}"),
            }
        }
        let permit = crate::support::permit::<LedgerRead>(&kernel, &key, "").await.unwrap();
        let mut export = Vec::new();
        permit.ledger().fresh().await.unwrap();
        permit.ledger().export(&mut export).unwrap();
        let origin = permit.ledger().checkpoint().unwrap().lines().next().unwrap().to_owned();
        let report = verify_export(&mut export.as_slice(), &origin, &permit.ledger().vkey(), None).unwrap();
        let text = String::from_utf8(export).unwrap();
        let written = text.matches("DatasetWrite").count();
        let expected = seen.iter().filter(|what| !what.starts_with("key")).count();
        assert!(written >= expected, "{written} entries for {expected} acknowledged writes, {report:?}");
        kernel.close().await.unwrap();
    }
    println!("{} acknowledged writes over three kills: all there", seen.len());
    assert!(seen.len() >= 2 * writes);
}
