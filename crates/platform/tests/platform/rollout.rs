//! Canaries, shadows, the way back, and that nobody's request is lost on the way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use platform::tenancy::act::{DeploymentRollback, DeploymentWrite, KeyWrite, LedgerRead, MemberWrite, ModelDelete, Predict};
use platform::tenancy::{Filter, KeySpec, Member, Role, Scope};
use platform::{Deployment, Result, RolloutState, Timestamp, VersionAnswers};
use serde_json::{Value, json};

use crate::models::{ask_counts, ask_times, counts, endless, fails, number_of, times, zeros};
use crate::world::{World, close, code, until};

/// A model `m` of these versions.
async fn versions(world: &World, key: &str, models: &[Vec<u8>]) {
    for (at, onnx) in models.iter().enumerate() {
        assert_eq!(world.model(key, "m", onnx.clone()).await.unwrap().version, at as u64 + 1);
    }
}

async fn answers(world: &World, key: &str, version: u64) -> VersionAnswers {
    let found = world.deployment(key, "d").await.answers.into_iter().find(|of| of.version == version);
    found.unwrap_or_else(|| panic!("nothing is known of version {version}"))
}

async fn rollback(world: &World, key: &str) -> Result<Deployment> {
    let permit = world.allow::<DeploymentRollback>(key, "d").await;
    let back = world.platform.deployment_rollback(&permit).await;
    close(permit, back)
}

async fn promote(world: &World, key: &str) -> Result<Deployment> {
    let permit = world.allow::<DeploymentWrite>(key, "d").await;
    let promoted = world.platform.deployment_promote(&permit).await;
    close(permit, promoted)
}

/// Entries of the ledger about the act, newest first.
async fn entries(world: &World, key: &str, act: &str) -> Vec<Value> {
    let permit = world.allow::<LedgerRead>(key, "").await;
    let found = permit.ledger().search(&Filter { act: Some(act.to_owned()), ..Filter::default() }, 500).unwrap();
    let _ = permit.finish().unwrap();
    found.entries.into_iter().map(|item| serde_json::to_value(item.entry.unwrap()).unwrap()).collect()
}

/// How many of a hundred went to which version.
async fn hundred(world: &World, key: &str) -> BTreeMap<String, u32> {
    let mut went = BTreeMap::new();
    for _ in 0..100 {
        let answer = world.predict(key, "d", ask_times(1.0)).await.unwrap();
        let version = answer["model_version"].as_str().unwrap().to_owned();
        assert_eq!(number_of(&answer), version.parse::<f64>().unwrap(), "what answers is what is said to answer");
        *went.entry(version).or_default() += 1;
    }
    went
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_gets_its_share_until_it_is_promoted_or_taken_back() {
    let Some(world) = World::start(|_| {}).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    versions(&world, &key, &[times(1.0), times(2.0), zeros()]).await;
    world.deploy(&key, "d", json!({"model": "m", "version": 1})).await.unwrap();
    let with = |percent: u32| json!({"model": "m", "version": 1, "canary": {"version": 2, "weight_percent": percent}});
    let deployed = world.deploy(&key, "d", with(30)).await.unwrap();
    assert_eq!((deployed.serving_version, deployed.canary_version), (Some(1), Some(2)));
    assert_eq!(deployed.rollout.unwrap().state, RolloutState::Canary);
    let went = hundred(&world, &key).await;
    assert!((10..=50).contains(&went["2"]), "a third of the requests: {went:?}");
    assert_eq!(answers(&world, &key, 2).await.answered, u64::from(went["2"]), "and it is counted");
    // Who asks for one of the two by number gets it.
    for version in ["1", "2"] {
        let permit = world.allow::<Predict>(&key, "d").await;
        let answer = world.platform.predict(&permit, Some(version), Bytes::from(ask_times(1.0))).await;
        let answer: Value = serde_json::from_slice(&close(permit, answer).unwrap().body).unwrap();
        assert_eq!(answer["model_version"], version);
    }
    let permit = world.allow::<Predict>(&key, "d").await;
    let absent = world.platform.predict(&permit, Some("3"), Bytes::from(ask_times(1.0))).await;
    assert_eq!(code(close(permit, absent)), "not_found");
    // What stands in the ledger is what answered.
    let entry = entries(&world, &key, "Predict").await.into_iter().find(|entry| entry["outcome"] == "allowed").unwrap();
    assert_eq!(entry["detail"]["model_version"], "2");

    assert_eq!(code(world.deploy(&key, "d", json!({"model": "m", "version": 1, "shadow": {"version": 3}})).await), "invalid");
    let other = json!({"model": "m", "version": 1, "canary": {"version": 3, "weight_percent": 1}});
    assert!(world.deploy(&key, "d", other).await.unwrap_err().to_string().contains("takes other inputs"));
    let absent = json!({"model": "m", "version": 1, "canary": {"version": 9, "weight_percent": 1}});
    assert_eq!(code(world.deploy(&key, "d", absent).await), "not_found");
    let permit = world.allow::<ModelDelete>(&key, "m").await;
    let in_use = world.platform.model_version_delete(&permit, 2).await;
    assert_eq!(code(close(permit, in_use)), "conflict", "a canary's version is in use");

    assert_eq!(promote(&world, &key).await.unwrap().serving_version, Some(2));
    assert_eq!(hundred(&world, &key).await, BTreeMap::from([("2".to_owned(), 100)]));
    assert_eq!(code(promote(&world, &key).await), "conflict");
    let back = rollback(&world, &key).await.unwrap();
    assert_eq!((back.serving_version, back.rollout.unwrap().state), (Some(1), RolloutState::RolledBack));
    assert_eq!(hundred(&world, &key).await, BTreeMap::from([("1".to_owned(), 100)]));
    assert_eq!(code(rollback(&world, &key).await), "conflict", "asked twice it does not go forward again");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_breaks_its_rules_is_taken_out_and_that_is_written_down() {
    let Some(world) = World::start(|_| {}).await else { return };
    let (key, other) = (world.tenant("clinic", |_| {}).await, world.tenant("vineyard", |_| {}).await);
    let rules = json!({"error_rate": 0.2, "requests_min": 5, "window_seconds": 600});
    let wanted = json!({"model": "m", "version": 1, "canary": {"version": 2, "weight_percent": 50}, "rollback_on": rules});
    for (key, second) in [(&key, fails()), (&other, times(2.0))] {
        versions(&world, key, &[times(1.0), second]).await;
        world.deploy(key, "d", json!({"model": "m", "version": 1})).await.unwrap();
        world.deploy(key, "d", wanted.clone()).await.unwrap();
    }
    let mut failed = 0;
    for _ in 0..60 {
        failed += u32::from(world.predict(&key, "d", ask_times(1.0)).await.is_err());
        world.predict(&other, "d", ask_times(1.0)).await.unwrap();
    }
    assert_eq!(failed, 5, "five answers were enough, and none came after");
    let out = until("the canary is out", async || Some(world.deployment(&key, "d").await).filter(|now| now.canary.is_none())).await;
    let rollout = out.rollout.unwrap();
    assert_eq!((rollout.state, rollout.version), (RolloutState::TakenOut, Some(2)));
    assert_eq!(rollout.reason.unwrap(), "5 of 5 answers in 600 s failed, more than the share of 0.2 that `error_rate` allows");
    assert_eq!((out.version, out.rollback_on), (Some(1), None));
    assert_eq!(answers(&world, &key, 2).await.failed, 5);
    let found = entries(&world, &key, "DeploymentRollback").await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0]["actor"], &found[0]["via"], &found[0]["outcome"]), (&json!("ada"), &json!("rule of d"), &json!("allowed")));
    assert_eq!(found[0]["detail"]["canary_version"], "2");
    assert!(found[0]["detail"]["broken_rule"].as_str().unwrap().starts_with("5 of 5 answers"), "{found:?}");
    let request = found[0]["detail"]["after_request"].as_str().unwrap();
    let cause = entries(&world, &key, "Predict").await.into_iter().find(|entry| entry["request"] == request).unwrap();
    assert_eq!(cause["outcome"], "failed", "the request that was one too many");
    // The neighbour's canary of the same name is none the wiser.
    let neighbour = world.deployment(&other, "d").await;
    assert_eq!((neighbour.canary_version, neighbour.rollout.unwrap().state), (Some(2), RolloutState::Canary));
    assert!(entries(&world, &other, "DeploymentRollback").await.is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_the_right_changes_nothing_and_the_canary_is_out_all_the_same() {
    let Some(world) = World::start(|_| {}).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    versions(&world, &key, &[times(1.0), fails()]).await;
    let role = async |role: Role| {
        let permit = world.allow::<MemberWrite>(&key, "bob").await;
        let member = Member { name: "bob".parse().unwrap(), roles: vec![role], description: String::new(), grants: BTreeMap::new() };
        permit.member_put(member).await.unwrap();
        let _ = permit.finish().unwrap();
    };
    role(Role::DataScientist).await;
    let permit = world.allow::<KeyWrite>(&key, "").await;
    let expires_at = Timestamp::now().micros() + 86_400_000_000;
    let spec = KeySpec { name: "k".parse().unwrap(), member: "bob".parse().unwrap(), scope: Scope::all(), expires_at };
    let bob = permit.key_issue(spec).await.unwrap().secret().to_owned();
    let _ = permit.finish().unwrap();
    let rules = json!({"error_rate": 0.2, "requests_min": 5});
    let wanted = json!({"model": "m", "version": 1, "canary": {"version": 2, "weight_percent": 50}, "rollback_on": rules});
    world.deploy(&bob, "d", wanted).await.unwrap();
    role(Role::Viewer).await;
    let mut failed = 0;
    for _ in 0..60 {
        failed += u32::from(world.predict(&key, "d", ask_times(1.0)).await.is_err());
    }
    assert_eq!(failed, 5, "none came after");
    let found = entries(&world, &key, "DeploymentRollback").await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0]["actor"], &found[0]["outcome"]), (&json!("bob"), &json!("refused")));
    assert_eq!(world.deployment(&key, "d").await.canary_version, Some(2), "the deployment is as somebody with the right left it");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_do_not_break_a_canary_and_slow_answers_do() {
    let Some(world) = World::start(|_| {}).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    versions(&world, &key, &[counts(), counts()]).await;
    let rules = json!({"error_rate": 0.0, "p99_ms": 5, "requests_min": 3, "window_seconds": 600});
    let wanted = json!({"model": "m", "version": 1, "canary": {"version": 2, "weight_percent": 100}, "rollback_on": rules});
    world.deploy(&key, "d", wanted).await.unwrap();
    for _ in 0..10 {
        assert_eq!(code(world.predict(&key, "d", "{}").await), "invalid_input");
    }
    assert_eq!(world.deployment(&key, "d").await.canary_version, Some(2));
    for _ in 0..3 {
        assert_eq!(world.predict(&key, "d", ask_counts(100_000)).await.unwrap()["model_version"], "2");
    }
    assert_eq!(world.predict(&key, "d", ask_counts(1)).await.unwrap()["model_version"], "1", "out at once");
    let out = until("the canary is out", async || Some(world.deployment(&key, "d").await).filter(|now| now.canary.is_none())).await;
    assert!(out.rollout.unwrap().reason.unwrap().contains("99th percentile"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_is_neither_seen_nor_felt() {
    let Some(world) = World::start(|config| config.infer_timeout = Duration::from_secs(2)).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    versions(&world, &key, &[times(1.0), times(2.0), fails(), endless()]).await;
    let with = |version: u64| json!({"model": "m", "version": 1, "shadow": {"version": version}});
    let ask = async || {
        let answer = world.predict(&key, "d", ask_times(3.0)).await.unwrap();
        assert_eq!((answer["model_version"].as_str(), number_of(&answer)), (Some("1"), 3.0));
    };
    world.deploy(&key, "d", with(2)).await.unwrap();
    ask().await;
    until("the copy is answered", async || (answers(&world, &key, 2).await.shadow_answered == 1).then_some(())).await;
    let entry = entries(&world, &key, "Predict").await.remove(0);
    assert_eq!((&entry["detail"]["model_version"], &entry["detail"]["shadow_version"]), (&json!("1"), &json!("2")));
    let pid = world.pid(&key, "d").await.unwrap();

    world.deploy(&key, "d", with(3)).await.unwrap();
    ask().await;
    until("the copy fails", async || (answers(&world, &key, 3).await.shadow_failed == 1).then_some(())).await;

    // One that never ends: two copies are on their way to it, all others are dropped, and nobody waits.
    world.deploy(&key, "d", with(4)).await.unwrap();
    let begun = Instant::now();
    for _ in 0..50 {
        ask().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "fifty times its deadline would be more: {:?}", begun.elapsed());
    let of = answers(&world, &key, 4).await;
    assert!(of.shadow_dropped >= 40 && of.shadow_answered == 0, "{of:?}");
    until("its deadline", async || (answers(&world, &key, 4).await.shadow_failed >= 1).then_some(())).await;
    assert_eq!(world.pid(&key, "d").await, Some(pid), "whoever answers was not disturbed");
    assert_eq!((answers(&world, &key, 1).await.failed, world.platform.stats().cold_starts), (0, 1));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_makes_room_and_never_asks_for_it() {
    // Two places: a shadow gets the second one, and gives it to the next tenant.
    let Some(world) = World::start(|config| (config.cells_max, config.pool_blank) = (2, 0)).await else { return };
    let (key, other) = (world.tenant("clinic", |_| {}).await, world.tenant("vineyard", |_| {}).await);
    versions(&world, &key, &[times(1.0), endless()]).await;
    world.serve(&other, "twice", times(2.0)).await;
    world.deploy(&key, "d", json!({"model": "m", "version": 1, "shadow": {"version": 2}})).await.unwrap();
    world.predict(&key, "d", ask_times(1.0)).await.unwrap();
    until("a shadow", async || (world.platform.stats().cells_serving.total() == 2).then_some(())).await;
    assert_eq!(number_of(&world.predict(&other, "twice", ask_times(2.0)).await.unwrap()), 4.0);
    assert!(world.pid(&key, "d").await.is_some(), "the shadow's cell went, not the one that answers");
    // No place is left: the copy is dropped, and nobody's cell goes for it.
    let before = answers(&world, &key, 2).await.shadow_dropped;
    world.predict(&key, "d", ask_times(1.0)).await.unwrap();
    until("the copy is dropped", async || (answers(&world, &key, 2).await.shadow_dropped > before).then_some(())).await;
    assert!(world.pid(&other, "twice").await.is_some());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_versions_change() {
    let Some(world) = World::start(|_| {}).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    versions(&world, &key, &[counts(), counts()]).await;
    let at = |version: u64| json!({"model": "m", "version": version});
    world.deploy(&key, "d", at(1)).await.unwrap();
    assert_eq!(world.predict(&key, "d", ask_counts(1)).await.unwrap()["model_version"], "1");
    // One that is under way ends where it began, and whoever comes after the change goes to the new version.
    let (long, ()) = tokio::join!(world.predict(&key, "d", ask_counts(200_000)), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.deploy(&key, "d", at(2)).await.unwrap();
        assert_eq!(world.predict(&key, "d", ask_counts(1)).await.unwrap()["model_version"], "2");
    });
    assert_eq!(long.unwrap()["model_version"], "1");
    // Many, while it changes to and fro.
    let done = AtomicBool::new(false);
    let client = async || {
        let mut asked = 0u32;
        while !done.load(Ordering::Acquire) {
            world.predict(&key, "d", ask_counts(100)).await.unwrap();
            asked += 1;
        }
        asked
    };
    let change = async {
        for turn in 0..20u64 {
            match turn % 4 {
                0 => world.deploy(&key, "d", json!({"model": "m", "version": 1, "canary": {"version": 2, "weight_percent": 50}})).await,
                1 => promote(&world, &key).await,
                2 => rollback(&world, &key).await,
                _ => world.deploy(&key, "d", at(2)).await,
            }
            .unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        done.store(true, Ordering::Release);
    };
    let (a, b, c, ()) = tokio::join!(client(), client(), client(), change);
    assert!(a + b + c > 20, "{a} {b} {c}");
    world.stop().await;
}
