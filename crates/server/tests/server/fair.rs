//! Fair shares, metering and receipts, as clients see them.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{Answer, Insula, answer, rows};
use crate::walk::trained;

/// A tenant whose deployment `fence` answers.
pub(crate) async fn serving(insula: &Insula, name: &str) -> String {
    let admin = insula.tenant(name).await;
    insula.upload(&admin, "flowers", rows()).await.expect(201);
    let training = json!({"name": "fence", "dataset": "flowers", "target": "label", "task": "classification"});
    let training = insula.post("/v1/trainings", &admin, training).await.expect(202).json()["id"].as_str().unwrap().to_owned();
    trained(insula, &admin, &training).await;
    insula.put("/v1/deployments/fence", &admin, json!({"model": "fence", "version": 1})).await.expect(200);
    admin
}

fn question() -> Value {
    json!({"inputs": [{"name": "features", "shape": [1, 2], "datatype": "FP32", "data": [3.0, 1.0]}]})
}

/// The name of the model's only input.
pub(crate) async fn question_of(insula: &Insula, token: &str) -> Value {
    let metadata = insula.get("/v2/models/fence", token).await.expect(200).json();
    let input = &metadata["inputs"][0];
    let mut question = question();
    question["inputs"][0]["name"] = input["name"].clone();
    question["inputs"][0]["datatype"] = input["datatype"].clone();
    question
}

pub(crate) async fn ask(insula: &Insula, token: &str, question: &Value, headers: &[(&str, &str)]) -> Answer {
    let request = insula.client.post(format!("{}/v2/models/fence/infer", insula.url)).bearer_auth(token).json(question);
    answer(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prediction_is_signed_metered_and_treated_as_asked() {
    let insula = Insula::start().await;
    let admin = serving(&insula, "alpha").await;
    let other = insula.tenant("beta").await;
    let question = question_of(&insula, &admin).await;
    for (headers, status) in [
        (vec![], 200),
        (vec![("insula-priority", "high"), ("insula-timeout-ms", "30000")], 200),
        (vec![("insula-priority", "urgent")], 400),
        (vec![("insula-timeout-ms", "0")], 400),
        (vec![("insula-receipt", "please")], 400),
    ] {
        ask(&insula, &admin, &question, &headers).await.expect(status);
    }
    let refused = insula.client.get(format!("{}/v1/usage", insula.url)).bearer_auth(&admin).header("insula-receipt", "sign");
    answer(refused).await.expect(400);

    let signed = ask(&insula, &admin, &question, &[("insula-receipt", "sign")]).await.expect(200);
    let early = signed.header("insula-receipt").unwrap().to_owned();
    let found = insula.get("/v1/ledger?act=Predict&outcome=allowed&limit=1", &admin).await.expect(200).json();
    let entry = &found["items"][0];
    let late = insula.get(&format!("/v1/ledger/receipts/{}", entry["index"]), &admin).await.expect(200).body;
    let key = insula.get("/v1/ledger/key", &admin).await.expect(200).json()["vkey"].as_str().unwrap().to_owned();
    let export = insula.get("/v1/ledger/export", &admin).await.expect(200).body;
    for receipt in [&early, &late] {
        let report = server::offline::verify_receipt(receipt.as_bytes(), &key, Some(&mut export.as_bytes())).unwrap();
        let said = &report.statement;
        assert_eq!((said.deployment.as_str(), said.version.as_str(), report.entry_compared), ("fence", "1", true));
        assert_eq!(Some(said.output.as_str()), entry["entry"]["detail"]["output_sha256"].as_str());
        assert_eq!(said.output, sha256(signed.body.as_bytes()));
    }
    // Foreign and absent are the same, as everywhere.
    let absent = insula.get("/v1/ledger/receipts/4711", &other).await.expect(404);
    assert_eq!(insula.get("/v1/ledger/receipts/0", &other).await.expect(404).comparable().2, absent.comparable().2);

    let usage = insula.get("/v1/usage?minutes=60&hours=1", &admin).await.expect(200).json();
    assert_eq!(usage["predictions"], 6, "{usage}");
    let sum = |name: &str, of: &str| usage[name].as_array().unwrap().iter().map(|bucket| bucket[of].as_u64().unwrap()).sum::<u64>();
    for name in ["minutes", "hours"] {
        assert_eq!(sum(name, "predictions"), 6, "{usage}");
        assert!(sum(name, "cell_micros") > 0 && sum(name, "memory_byte_seconds") > 0, "{usage}");
    }
    let theirs = insula.get("/v1/usage?minutes=60", &other).await.expect(200).json();
    assert!(theirs["predictions"] == 0 && theirs["minutes"].as_array().unwrap().iter().all(|minute| minute["cpu_micros"] == 0));
    insula.get("/v1/usage?minutes=61", &admin).await.expect(400);

    let told = insula.get("/v1/service/neighbours", &insula.operator).await.expect(200).json();
    let alpha = told["tenants"].as_array().unwrap().iter().find(|tenant| tenant["tenant"] == "alpha").unwrap().clone();
    assert!(alpha["cpu_share"].as_f64().unwrap() > 0.9 && !alpha["minutes"].as_array().unwrap().is_empty(), "{told}");
    insula.get("/v1/service/neighbours", &admin).await.expect(403);
    let bill = insula.get("/v1/service/usage?format=csv", &insula.operator).await.expect(200).body;
    let mut lines = bill.lines();
    let at = lines.next().unwrap().split(',').position(|name| name == "predictions").unwrap();
    let line = lines.find(|line| line.starts_with("alpha,")).unwrap_or_else(|| panic!("{bill}"));
    assert_eq!(line.split(',').nth(at), Some("6"), "{bill}");
    insula.get("/v1/service/usage", &admin).await.expect(403);
}

fn sha256(bytes: &[u8]) -> String {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hours_of_use_outlive_a_restart_and_not_an_erasure() {
    let mut insula = Insula::start().await;
    let admin = serving(&insula, "alpha").await;
    let question = question_of(&insula, &admin).await;
    ask(&insula, &admin, &question, &[]).await.expect(200);
    insula.server.take().unwrap().stop().await.unwrap();
    let again = Insula { operator: insula.operator.clone(), ..Insula::open(insula.dir.clone(), "").await };
    ask(&again, &admin, &question, &[]).await.expect(200);
    let usage = again.get("/v1/usage?hours=2", &admin).await.expect(200).json();
    let hours: u64 = usage["hours"].as_array().unwrap().iter().map(|hour| hour["predictions"].as_u64().unwrap()).sum();
    assert_eq!((usage["predictions"].as_u64(), hours), (Some(1), 2), "{usage}");
    again.call(Method::DELETE, "/v1/tenants/alpha", Some(&again.operator), None).await.expect(202);
    for _ in 0..200 {
        let erasures = again.get("/v1/erasures", &again.operator).await.expect(200).json();
        if erasures["items"][0]["state"] == "certified" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let bill = again.get("/v1/service/usage", &again.operator).await.expect(200).body;
    assert!(!bill.contains("predictions"), "{bill}");
}

/// Two tenants flood; one asks now and then. What is asserted is loose, because machines are; what is exact is asserted of the
/// queue itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_does_not_starve_who_asks_now_and_then() {
    let insula =
        Insula::start_with("[tenant_limits]\nconcurrency_max = 200\nrequests_per_second = 100000\nrequests_burst = 100000\n").await;
    let victim = serving(&insula, "victim").await;
    let question = question_of(&insula, &victim).await;
    ask(&insula, &victim, &question, &[]).await.expect(200);
    let mut floods = JoinSet::new();
    let end = Instant::now() + Duration::from_secs(2);
    for name in ["one", "two"] {
        let flood = serving(&insula, name).await;
        for _ in 0..64 {
            let request = insula.client.post(format!("{}/v2/models/fence/infer", insula.url)).bearer_auth(&flood).json(&question);
            floods.spawn(async move {
                let mut count = 0u64;
                while Instant::now() < end {
                    assert_eq!(answer(request.try_clone().unwrap()).await.status, 200);
                    count += 1;
                }
                count
            });
        }
    }
    let mut waited = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        ask(&insula, &victim, &question, &[]).await.expect(200);
        waited.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let flooded: u64 = floods.join_all().await.into_iter().sum();
    waited.sort();
    println!("{flooded} flooding predictions; the victim's {}: median {:?}", waited.len(), waited.get(waited.len() / 2));
    assert!(waited.len() >= 10, "{waited:?}");
}
