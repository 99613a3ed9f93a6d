use std::sync::atomic::AtomicBool;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;

const STRETCH: Duration = Duration::from_millis(2);

/// A node on which a stretch costs two milliseconds.
fn bulk() -> Arc<Bulk<&'static str>> {
    let mut bulk = Bulk::new(1);
    Arc::get_mut(&mut bulk).unwrap().stretch_nanos = u64::try_from(STRETCH.as_nanos()).unwrap();
    bulk
}

/// Bodies without end, one a connection: the stretches that each tenant read in a while, told by tenant and its connections.
async fn read(bulk: &Arc<Bulk<&'static str>>, tenants: &[(&'static str, usize)], time: Duration) -> Vec<u64> {
    let (mut readers, end) = (JoinSet::new(), Instant::now() + time);
    for (at, (tenant, connections)) in tenants.iter().enumerate() {
        for _ in 0..*connections {
            let (bulk, purse) = (Arc::clone(bulk), bulk.purse(Some(*tenant)));
            readers.spawn(async move {
                let mut stretches = 0;
                while Instant::now() < end {
                    bulk.pay(&purse, STRETCH_BYTES).await;
                    stretches += 1;
                    tokio::task::yield_now().await;
                }
                (at, stretches)
            });
        }
    }
    let mut all = vec![0; tenants.len()];
    readers.join_all().await.into_iter().for_each(|(at, stretches)| all[at] += stretches);
    all
}

#[tokio::test]
async fn in_company_all_read_at_one_pace_and_tenants_in_turn() {
    let bulk = bulk();
    bulk.came("victim");
    let time = Duration::from_millis(400);
    let begun = Instant::now();
    let all = read(&bulk, &[("one", 16), ("two", 1), ("three", 4)], time).await;
    let paid = u64::try_from(begun.elapsed().as_millis() / STRETCH.as_millis()).unwrap() + 1;
    assert!(all.iter().sum::<u64>() <= paid, "{all:?} of {paid}");
    let (least, most) = (*all.iter().min().unwrap(), *all.iter().max().unwrap());
    // At the end each connection may have one more.
    assert!(least >= 10 && most <= least + 18, "{all:?}");
}

#[tokio::test]
async fn who_is_alone_reads_as_it_comes_and_company_is_noticed() {
    let bulk = bulk();
    let purse = bulk.purse(Some("one"));
    let paid = async |stretches: u64| {
        let begun = Instant::now();
        for _ in 0..stretches {
            bulk.pay(&purse, STRETCH_BYTES).await;
        }
        begun.elapsed()
    };
    bulk.came("one");
    assert!(paid(1_000).await < STRETCH * 500, "nobody is there to wait for");
    bulk.came("victim");
    (0..3).for_each(|_| bulk.came("one"));
    assert!(paid(10).await >= STRETCH * 10 - COARSE);
    *bulk.last.lock() = [Some(("one", Instant::now())), Some(("victim", Instant::now() - COMPANY_TIME))];
    assert!(paid(1_000).await < STRETCH * 500, "the other one has gone");
    // What nobody answers for is always in company of whoever is there.
    let (begun, nobody) = (Instant::now(), bulk.purse(None));
    bulk.pay(&nobody, STRETCH_BYTES).await;
    assert!(begun.elapsed() >= STRETCH - COARSE);
}

#[tokio::test]
async fn bytes_that_a_body_left_are_paid_by_the_next() {
    let bulk = bulk();
    bulk.came("victim");
    let purse = bulk.purse(Some("one"));
    for _ in 0..8 {
        assert!(!purse.is_due(1), "less than a stretch");
        purse.leave(STRETCH_BYTES / 8);
    }
    assert!(purse.is_due(1) && !purse.is_due(0), "whose bytes were all free pays for nobody");
    let begun = Instant::now();
    bulk.pay(&purse, 1).await;
    assert!(begun.elapsed() >= STRETCH - COARSE);
    assert!(!purse.is_due(1), "and once");
}

#[tokio::test]
async fn who_leaves_while_it_waits_keeps_nobody() {
    let bulk = bulk();
    bulk.came("victim");
    let purse = bulk.purse(Some("one"));
    for _ in 0..5 {
        assert!(timeout(STRETCH / 4, bulk.pay(&purse, STRETCH_BYTES * 1_000)).await.is_err());
        *bulk.turn.lock().await = Instant::now();
    }
    timeout(STRETCH * 500, bulk.pay(&purse, STRETCH_BYTES)).await.unwrap();
}

#[tokio::test]
async fn room_is_bounded_for_each_and_for_all() {
    let bulk = bulk();
    let mut held = Vec::new();
    for tenant in ["one", "two", "three", "four"] {
        let purse = bulk.purse(Some(tenant));
        // More than there is for one tenant is all of it.
        held.push(bulk.room(&purse, u64::MAX).await.unwrap());
        assert!(timeout(STRETCH, bulk.room(&purse, 1)).await.is_err(), "{tenant} has no more");
    }
    let fifth = bulk.purse(Some("five"));
    assert!(timeout(STRETCH, bulk.room(&fifth, 1)).await.is_err(), "nor has the node");
    let came = Arc::new(AtomicBool::new(false));
    let waiting = tokio::spawn({
        let (bulk, came) = (Arc::clone(&bulk), Arc::clone(&came));
        async move {
            let _room = bulk.room(&fifth, 8 << 20).await.unwrap();
            came.store(true, Ordering::SeqCst);
        }
    });
    tokio::task::yield_now().await;
    assert!(!came.load(Ordering::SeqCst));
    drop(held.pop());
    waiting.await.unwrap();
    drop(held);
    assert_eq!(bulk.room.available_permits(), ROOM_NODE);
}

#[tokio::test]
async fn room_that_nobody_gives_back_is_not_waited_for_for_ever_nor_forgotten() {
    let mut bulk = bulk();
    Arc::get_mut(&mut bulk).unwrap().room_wait = STRETCH;
    let held = bulk.room(&bulk.purse(Some("one")), ROOM_TENANT as u64 * ROOM_BYTES).await.unwrap();
    let refused = |room: Result<Room>| room.is_err_and(|fail| fail.code() == "overloaded");
    assert!(refused(bulk.room(&bulk.purse(Some("one")), ROOM_BYTES).await));
    assert!(bulk.room(&bulk.purse(Some("two")), ROOM_BYTES).await.is_ok(), "another tenant has room");
    for other in 0..=PURSES_MAX {
        bulk.purse(Some(format!("{other}").leak()));
    }
    assert!(refused(bulk.room(&bulk.purse(Some("one")), ROOM_BYTES).await), "its purse was forgotten with its room");
    drop(held);
    assert!(bulk.room(&bulk.purse(Some("one")), ROOM_BYTES).await.is_ok());
}
