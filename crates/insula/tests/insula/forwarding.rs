//! Two nodes on the same stores: whichever is asked answers, for every kind of request and body, and while a tenant moves.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::nodes::cluster::Cluster;
use crate::world::{Answer, Body, WAIT_MAX, question, rows};

const NODES: [usize; 2] = [0, 1];

/// The two nodes, and who asks.
struct Pair {
    nodes: Cluster,
    admin: String,
}

impl Pair {
    async fn start() -> Option<Self> {
        let nodes = Cluster::start(NODES.len()).await?;
        let admin = nodes.tenant("clinic", json!({})).await;
        Some(Self { nodes, admin })
    }

    async fn get(&self, node: usize, path: &str) -> Answer {
        self.nodes.ask_at(node, Method::GET, path, &self.admin, Body::None).await
    }

    async fn send(&self, node: usize, method: Method, path: &str, body: impl Into<Body>) -> Answer {
        self.nodes.ask_at(node, method, path, &self.admin, body).await
    }

    async fn operator(&self, node: usize, method: Method, path: &str, body: impl Into<Body>) -> Answer {
        self.nodes.ask_at(node, method, path, &self.nodes.operator, body).await
    }

    async fn trained(&self, node: usize, id: &str) -> Value {
        let began = Instant::now();
        loop {
            let training = self.get(node, &format!("/v1/trainings/{id}")).await.expect(200).json();
            if !matches!(training["state"].as_str(), Some("queued" | "running")) {
                return training;
            }
            assert!(began.elapsed() < WAIT_MAX, "a training does not end: {training}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// No node said anything that no client should see.
    fn is_well(&self) {
        let told = self.nodes.told.lock().unwrap();
        assert!(told.faults.is_empty(), "{:#?}", told.faults);
    }
}

fn word(answer: &Value, pointer: &str) -> String {
    answer.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_node_is_asked_answers() {
    let Some(pair) = Pair::start().await else { return };
    let tenants = async |node| pair.operator(node, Method::GET, "/v1/tenants", Body::None).await.expect(200).json();
    assert_eq!(tenants(0).await, tenants(1).await);

    // Everything works on both, and is the same on both.
    let big = rows(200_000).into_bytes();
    assert!(big.len() > 1 << 20, "larger than any buffer on the way");
    for (node, name) in [(0, "one"), (1, "two")] {
        pair.send(node, Method::PUT, &format!("/v1/datasets/{name}"), big.clone()).await.expect(201);
    }
    for name in ["one", "two"] {
        for node in NODES {
            let content = pair.get(node, &format!("/v1/datasets/{name}/versions/1/content")).await.expect(200);
            assert!(content.body == big, "{name} came back as it went");
        }
    }
    let training = json!({"name": "fence", "dataset": "one", "target": "label", "task": "classification"});
    let id = word(&pair.send(1, Method::POST, "/v1/trainings", training).await.expect(202).json(), "/id");
    let ended = pair.trained(0, &id).await;
    assert_eq!(ended["state"], "succeeded", "{ended}");
    pair.send(1, Method::PUT, "/v1/deployments/gate", json!({"model": "fence", "version": 1})).await.expect(200);
    let infer = async |node| pair.send(node, Method::POST, "/v2/models/gate/infer", question(7.0, 2.0)).await.expect(200).json();
    assert_eq!(infer(0).await["outputs"], infer(1).await["outputs"]);

    // gRPC too, with its trailers, and streams in both directions at once.
    if let Some(python) = std::env::var_os("INSULA_PY") {
        for node in NODES {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/insula/grpc_at_a_node.py");
            let mut command = tokio::process::Command::new(&python);
            let output = command.arg(script).args(pair.nodes.address(node)).env("INSULA_TOKEN", &pair.admin).output().await.unwrap();
            assert!(output.status.success(), "node {node}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    // A token from one node opens the other.
    let key = pair.send(0, Method::POST, "/v1/keys", json!({"name": "app", "member": "ada"})).await.expect(201).json();
    let (id, secret) = (word(&key, "/key/id"), word(&key, "/secret"));
    for node in NODES {
        let form = format!("grant_type=client_credentials&client_id={id}&client_secret={secret}");
        let token = pair.nodes.ask_at(node, Method::POST, "/oauth/token", "", Body::Form(form)).await.expect(200).json();
        pair.nodes.ask_at(1 - node, Method::GET, "/v1/whoami", &word(&token, "/access_token"), Body::None).await.expect(200);
    }

    // One log: an act that was sent on is in it once, under its own request id, and both nodes show and export it.
    for (node, id) in [(0, "asked-of-a"), (1, "asked-of-b")] {
        pair.nodes.try_at(node, Method::GET, "/v1/datasets/one", &pair.admin, Some(id), Body::None).await;
        for other in NODES {
            let found = pair.get(other, &format!("/v1/ledger?text={id}&act=DatasetRead")).await.expect(200).json();
            assert_eq!(found["items"].as_array().unwrap().len(), 1, "{found}");
        }
    }
    assert_eq!(pair.get(0, "/v1/ledger/key").await.expect(200).json(), pair.get(1, "/v1/ledger/key").await.expect(200).json());
    for node in NODES {
        assert!(pair.get(node, "/v1/ledger/export").await.expect(200).body.len() > 1000);
    }
    pair.is_well();
}

/// The node that leads moves it, and so becomes its home; whoever asks the other one notices nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_moves_while_both_nodes_are_asked() {
    let Some(pair) = Pair::start().await else { return };
    let file = rows(5_000).into_bytes();
    for (tier, node) in [("schema", 1), ("database", 0), ("pooled", 1)] {
        let path = |what: &str| format!("/v1/tenants/clinic/move{what}");
        pair.operator(node, Method::POST, &path(""), json!({"storage": tier})).await.expect(202);
        let (mut written, began) = (0, Instant::now());
        let moved = loop {
            // What was written at one node is there at the other.
            let dataset = format!("/v1/datasets/{tier}{written}");
            pair.send(written % 2, Method::PUT, &dataset, file.clone()).await.expect(201);
            pair.get((written + 1) % 2, &dataset).await.expect(200);
            written += 1;
            let info = pair.operator(written % 2, Method::GET, &path(""), Body::None).await.expect(200).json();
            if info["state"] != "copying" {
                break info;
            }
            assert!(began.elapsed() < WAIT_MAX, "the move does not end: {info}");
        };
        assert_eq!((moved["state"].as_str(), moved["to"].as_str()), (Some("moved"), Some(tier)), "{moved}");
        println!("to {tier}: {written} data sets written meanwhile, writers waited {} ms", moved["pause_milliseconds"]);
        pair.operator(1 - node, Method::POST, &path("/finish"), Body::None).await.expect(200);
        for number in 0..written {
            let content = format!("/v1/datasets/{tier}{number}/versions/1/content");
            assert!(pair.get(number % 2, &content).await.expect(200).body == file, "{content}");
        }
    }
    pair.is_well();
}
