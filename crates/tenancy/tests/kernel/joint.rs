//! Writes that share a commit: each on its own, all of them durable, none told before.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use tenancy::act::*;
use tenancy::*;
use tokio::sync::Notify;

use crate::attacks::{entries, raise};
use crate::support::*;

const WRITERS: usize = 60;

fn note(name: String, text: &str) -> Note {
    Note { name, text: text.to_owned() }
}

/// Puts a note under the permit's own resource.
async fn join(permit: &Permit<DatasetWrite>, text: &'static str) -> Result<()> {
    let name = permit.resource().to_owned();
    permit.write(move |tx| Box::pin(async move { tx.put(&note(name, text)).await })).await
}

/// Holds the tenant's rows until told, so that those who come meanwhile end up in one commit.
async fn held_up<T>(kernel: &Kernel, key: &str, meanwhile: impl AsyncFnOnce() -> T) -> T {
    let holder = permit::<DatasetWrite>(kernel, key, "holder").await.unwrap();
    let (holds, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (holding, going) = (Arc::clone(&holds), Arc::clone(&go));
    let first = async {
        let work = holder.write::<(), Error, _>(move |_| {
            Box::pin(async move {
                holding.notify_one();
                going.notified().await;
                Ok(())
            })
        });
        work.await.unwrap();
    };
    let rest = async {
        holds.notified().await;
        let meanwhile = meanwhile();
        let mut meanwhile = std::pin::pin!(meanwhile);
        // Everybody has had a turn to queue.
        let early = tokio::time::timeout(std::time::Duration::from_millis(100), &mut meanwhile).await;
        assert!(early.is_err(), "nobody is told before the commit");
        go.notify_one();
        meanwhile.await
    };
    tokio::join!(first, rest).1
}

#[tokio::test]
async fn many_writes_are_one_commit_and_each_has_its_entry() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let key = tenant_new(&operator, "a").await;
    raise(&operator, "a").await;
    let mut permits = Vec::new();
    for n in 0..WRITERS {
        permits.push(permit::<DatasetWrite>(&kernel, &key, &format!("n{n}")).await.unwrap());
    }
    let before = permits[0].epoch();
    let done = held_up(&kernel, &key, async || join_all(permits.iter().map(|permit| join(permit, "joined"))).await).await;
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    assert_eq!(permits[0].epoch() - before, 2, "the one who held up, and everybody else");
    for permit in permits {
        let _ = permit.finish().unwrap();
    }
    for n in 0..WRITERS {
        assert_eq!(note_get(&kernel, &key, &format!("n{n}")).await.unwrap().unwrap().text, "joined");
    }
    let check = async |kernel: &Kernel| {
        let written: Vec<Entry> = entries(kernel, &key).await.into_iter().filter(|entry| entry.act == "DatasetWrite").collect();
        let generations: BTreeSet<u64> = written.iter().map(|entry| entry.generation.unwrap()).collect();
        assert_eq!((written.len(), generations.len()), (WRITERS + 1, WRITERS + 1), "one entry each, each with a generation of its own");
        assert!(written.iter().all(|entry| entry.outcome == Outcome::Allowed));
    };
    check(&kernel).await;
    kernel.close().await.unwrap();
    drop((operator, kernel));
    check(&house.open().await).await;
}

#[tokio::test]
async fn one_that_fails_is_taken_back_alone() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let key = tenant_new(&operator, "a").await;
    let (good, bad, late) = (
        permit::<DatasetWrite>(&kernel, &key, "good").await.unwrap(),
        permit::<DatasetWrite>(&kernel, &key, "bad").await.unwrap(),
        permit::<DatasetWrite>(&kernel, &key, "late").await.unwrap(),
    );
    let fails = async {
        let work = bad.write::<(), Error, _>(|tx| {
            Box::pin(async move {
                tx.put(&note("bad".to_owned(), "half")).await?;
                tx.charge(Resource::Models, 1).await?;
                tx.insert(&note("good".to_owned(), "taken")).await
            })
        });
        work.await
    };
    let (first, second, third) = held_up(&kernel, &key, async || tokio::join!(join(&good, "stays"), fails, join(&late, "stays"))).await;
    first.unwrap();
    assert!(matches!(second, Err(Error::Conflict(_))), "{second:?}");
    third.unwrap();
    let _ = bad.failed("conflict").unwrap();
    drop((good, late));
    assert!(note_get(&kernel, &key, "bad").await.unwrap().is_none());
    for name in ["good", "late"] {
        assert_eq!(note_get(&kernel, &key, name).await.unwrap().unwrap().text, "stays");
    }
    let usage = permit::<QuotaRead>(&kernel, &key, "").await.unwrap();
    assert_eq!(usage.rows().usage("models").await.unwrap(), 0, "what was charged was given back");
    let outcome = |name: &str, all: &[Entry]| all.iter().find(|entry| entry.resource == format!("dataset:{name}")).unwrap().outcome;
    let all = entries(&kernel, &key).await;
    assert_eq!(["good", "late"].map(|name| outcome(name, &all)), [Outcome::Allowed; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_panics_or_goes_away_holds_up_nobody() {
    let house = House::new().await;
    let kernel = house.open().await;
    let (operator, _) = house.operator(&kernel).await;
    let key = tenant_new(&operator, "a").await;
    let panics = permit::<DatasetWrite>(&kernel, &key, "panics").await.unwrap();
    let told = panics.write::<(), Error, _>(|_| Box::pin(async { panic!("as planned") })).await;
    assert!(matches!(told, Err(Error::Unavailable(_))), "{told:?}");
    drop(panics);

    // One that went away while it waited has not happened; the others have.
    let (gone, stays) =
        (permit::<DatasetWrite>(&kernel, &key, "gone").await.unwrap(), permit::<DatasetWrite>(&kernel, &key, "stays").await.unwrap());
    held_up(&kernel, &key, async || {
        let _ = tokio::time::timeout(std::time::Duration::from_millis(20), join(&gone, "no")).await;
        join(&stays, "yes").await
    })
    .await
    .unwrap();
    drop((gone, stays));
    assert!(note_get(&kernel, &key, "gone").await.unwrap().is_none());
    assert_eq!(note_get(&kernel, &key, "stays").await.unwrap().unwrap().text, "yes");
}
