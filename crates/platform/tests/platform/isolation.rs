//! The isolation class of a tenant: what it is promised is what its cells run in, and nothing else changes.

use platform::tenancy::act::{LedgerRead, ModelRead};
use platform::tenancy::{Filter, IsolationClass, Limits};
use platform::{ByClass, PlatformConfig, TrainingState};
use serde_json::json;

use crate::cells::kill;
use crate::models::{ask_counts, ask_times, ask_zeros, counts, number_of, times, zeros};
use crate::prediction::{ended, queue};
use crate::world::{World, code, example, until};

fn no_runsc(config: &mut PlatformConfig) {
    config.runsc = Some("/nonexistent/runsc".into());
}

async fn start() -> Option<World> {
    let found = platform::jail::gvisor::find(std::env::var_os("PATH").as_deref());
    if found.is_none() {
        assert!(std::env::var_os("INSULA_REQUIRE").is_none(), "INSULA_REQUIRE is set, and there is no runsc");
        println!("SKIPPED: there is no runsc");
        return None;
    }
    World::start(|_| {}).await
}

/// Names of the processes that run under the user id of this one.
fn names_beside(pid: u32) -> Vec<String> {
    let uid = |pid: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().find_map(|line| line.strip_prefix("Uid:")).map(str::to_owned)
    };
    let own = uid(&pid.to_string()).unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let ours = entries.filter(|entry| uid(entry).as_ref() == Some(&own));
    let first =
        |pid: String| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().split('\0').next().map(str::to_owned);
    ours.filter_map(first).collect()
}

fn is_sandbox(pid: u32) -> bool {
    let names = names_beside(pid);
    ["runsc", "runsc-gofer", "runsc-sandbox"].iter().all(|wanted| names.iter().any(|name| name == wanted))
}

/// What an auditor reads of it: in the entries of whatever ran in a cell, and in a prediction's receipt.
async fn class_is_told(world: &World, key: &str, class: &str) {
    let permit = world.allow::<LedgerRead>(key, "").await;
    for act in ["Predict", "TrainingRun", "PredictionRun"] {
        let found = permit.ledger().search(&Filter { act: Some(act.to_owned()), ..Filter::default() }, 500).unwrap().entries;
        assert!(!found.is_empty(), "{act}");
        for item in found {
            let entry = item.entry.unwrap();
            assert_eq!(entry.detail.get("isolation").map(String::as_str), Some(class), "{act}: {entry:?}");
            if entry.detail.contains_key("output_sha256") {
                let receipt = until("a checkpoint over it", async || permit.ledger().receipt(item.index).ok()).await;
                assert!(receipt.receipt.contains(&format!("\nisolation {class}\n\n")), "{}", receipt.receipt);
            }
        }
    }
    let _ = permit.finish().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn under_gvisor_everything_is_as_in_the_jail() {
    let Some(world) = start().await else { return };
    let (jailed, guarded) =
        (world.tenant("clinic", |_| {}).await, world.tenant("vineyard", |limits| limits.isolation = IsolationClass::Gvisor).await);
    let mut answers = vec![];
    for key in [&jailed, &guarded] {
        world.upload(key, "wines", example("wine.csv")).await.unwrap();
        let ask = json!({"name": "grapes", "dataset": "wines", "version": 1, "target": "cultivar", "task": "classification", "split": {"seed": 7}});
        let training = world.train(key, ask).await.unwrap();
        let done = world.training_until(key, &training.id, |training| training.state.is_final()).await;
        assert_eq!(done.state, TrainingState::Succeeded, "{:?}", done.error);
        let permit = world.allow::<ModelRead>(key, "grapes").await;
        let version = world.platform.model_version_get(&permit, 1).await.unwrap();
        let _ = permit.finish().unwrap();
        world.deploy(key, "grapes", json!({"model": "grapes", "version": 1})).await.unwrap();
        let answer = world.predict(key, "grapes", example("wine-ask.json")).await.unwrap();
        answers.push((version.onnx.unwrap().sha256, answer));
    }
    assert_eq!(answers[0], answers[1], "the same model and the same numbers, to the last bit");
    let stats = world.platform.stats();
    assert_eq!(stats.cells_serving, ByClass { jail: 1, gvisor: 1 });
    assert!(stats.cells_started.gvisor >= 2 && stats.cells_started.jail >= 2, "{stats:?}");
    for (key, class) in [(&jailed, "jail"), (&guarded, "gvisor")] {
        let ask = json!({"deployment": "grapes", "dataset": "wines", "into": "tasted"});
        let job = queue(&world, key, ask).await.unwrap();
        assert_eq!(ended(&world, key, &job.id).await.state, TrainingState::Succeeded);
        class_is_told(&world, key, class).await;
    }
    let (jail, sandbox) = (world.pid(&jailed, "grapes").await.unwrap(), world.pid(&guarded, "grapes").await.unwrap());
    assert!(!is_sandbox(jail) && is_sandbox(sandbox), "{:?}", names_beside(sandbox));
    let report = world.platform.gvisor_report().unwrap();
    println!("{report}");
    assert!(report.gvisor.is_some());
    world.stop().await;
    assert!(!std::path::Path::new(&format!("/proc/{sandbox}")).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_dies_is_replaced_and_explained() {
    let Some(world) = start().await else { return };
    let key = world.tenant("clinic", |limits| limits.isolation = IsolationClass::Gvisor).await;
    world.serve(&key, "twice", times(2.0)).await;
    world.serve(&key, "zeros", zeros()).await;
    world.serve(&key, "counts", counts()).await;
    assert_eq!(number_of(&world.predict(&key, "twice", ask_times(4.0)).await.unwrap()), 8.0);
    let first = world.pid(&key, "twice").await.unwrap();
    kill(first);
    // What was on its way when it died may be lost with it, and says so; then another sandbox starts.
    until("another sandbox", async || {
        let answer = world.predict(&key, "twice", ask_times(5.0)).await.ok()?;
        assert_eq!(number_of(&answer), 10.0);
        world.pid(&key, "twice").await.filter(|pid| *pid != first)
    })
    .await;
    let second = world.pid(&key, "twice").await.unwrap();
    assert!(is_sandbox(second), "{:?}", names_beside(second));
    assert_eq!(number_of(&world.predict(&key, "counts", ask_counts(3)).await.unwrap()), 3.0);
    // More than its tenant's memory: the whole sandbox goes, and it is said why.
    assert_eq!(code(world.predict(&key, "zeros", ask_zeros(4 << 30)).await), "out_of_memory");
    until("the end of every process", async || (!std::path::Path::new(&format!("/proc/{second}")).exists()).then_some(())).await;
    assert_eq!(number_of(&world.predict(&key, "twice", ask_times(6.0)).await.unwrap()), 12.0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_class_changes_gets_another_cell() {
    let Some(world) = start().await else { return };
    let limits =
        Limits { requests_per_second: 10_000, requests_burst: 10_000, cpu_percent: 100, memory_bytes: 512 << 20, ..Limits::default() };
    let key = world.tenant("clinic", |_| {}).await;
    world.serve(&key, "twice", times(2.0)).await;
    for (isolation, sandbox) in [(IsolationClass::Jail, false), (IsolationClass::Gvisor, true), (IsolationClass::Jail, false)] {
        let name = "clinic".parse().unwrap();
        world.operator().await.limits_put(&name, Limits { isolation, ..limits }).await.unwrap();
        assert_eq!(number_of(&world.predict(&key, "twice", ask_times(4.0)).await.unwrap()), 8.0);
        assert_eq!(is_sandbox(world.pid(&key, "twice").await.unwrap()), sandbox);
    }
    world.stop().await;
}

/// Without `runsc` the class is refused, with a remedy; and a tenant that has it already runs nowhere rather than in the jail.
#[tokio::test(flavor = "multi_thread")]
async fn without_runsc_nothing_runs_in_its_place() {
    let Some(world) = World::start(no_runsc).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    let name = "clinic".parse().unwrap();
    let wanted = Limits { isolation: IsolationClass::Gvisor, ..Limits::default() };
    let refused = world.operator().await.limits_put(&name, wanted).await.unwrap_err();
    assert_eq!(refused.code(), "invalid");
    for words in ["`isolation` cannot be `gvisor` on this node", "/nonexistent/runsc", "install"] {
        assert!(refused.to_string().contains(words), "{refused}");
    }
    world.serve(&key, "twice", times(2.0)).await;
    assert_eq!(number_of(&world.predict(&key, "twice", ask_times(4.0)).await.unwrap()), 8.0, "it stays what it was");
    world.stop().await;

    let Some(world) = start().await else { return };
    let key = world.tenant("clinic", |limits| limits.isolation = IsolationClass::Gvisor).await;
    world.serve(&key, "twice", times(2.0)).await;
    let world = world.restart(no_runsc).await;
    let refused = world.predict(&key, "twice", ask_times(4.0)).await.unwrap_err();
    assert_eq!(refused.code(), "cell_unavailable");
    assert!(refused.to_string().contains("class `gvisor` only"), "{refused}");
    assert!(refused.private().is_some_and(|reason| reason.contains("/nonexistent/runsc")), "{:?}", refused.private());
    assert_eq!(world.pid(&key, "twice").await, None);
    let permit = world.allow::<LedgerRead>(&key, "").await;
    let found = permit.ledger().search(&Filter { act: Some("Predict".to_owned()), ..Filter::default() }, 1).unwrap().entries.remove(0);
    assert!(!found.entry.unwrap().detail.contains_key("isolation"), "where nothing ran, no class is named");
    let _ = permit.finish().unwrap();
    world.stop().await;
}
