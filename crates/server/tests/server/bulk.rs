//! Large bodies beside others at work, over every protocol that takes them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::{Client, Method, RequestBuilder};
use tokio::task::JoinSet;

use crate::fair::{ask, question_of, serving};
use crate::harness::{Insula, answer, client};

/// What a node reads of large bodies while there is company, in bytes a second: little, so that the way makes no difference.
const PACE: u64 = 4 << 20;
/// Bodies of an attack, and the length of each in bytes.
const BODIES: u64 = 3;
const BODY_BYTES: usize = 2 << 20;
/// The start of each that is free, and the end that the next one pays for, in bytes.
const UNPAID_BYTES: u64 = (64 << 10) + (64 << 10);

async fn start() -> Insula {
    Insula::start_with(&format!("[limits]\nlarge_bytes_per_second = {PACE}\n")).await
}

/// A client that opens a connection for each request that is under way.
fn a_connection_each(insula: &Insula) -> Client {
    let ca = reqwest::Certificate::from_pem(&insula.ca).unwrap();
    Client::builder().add_root_certificate(ca).no_proxy().http1_only().timeout(Duration::from_secs(60)).build().unwrap()
}

/// Bytes that no cell reads for long.
fn garbage(bytes: usize) -> Bytes {
    vec![b'x'; bytes].into()
}

/// One message for the deployment, whose tensors are many and of no use.
fn message() -> Bytes {
    let name = b"fence";
    let mut message = [&[0x0a, name.len() as u8][..], name].concat();
    // raw_input_contents
    message.extend([0x3a, 0x80, 0x80, 0x80, 0x01]);
    message.resize(message.len() + BODY_BYTES, 0);
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_wait_for_their_turn_whichever_way_they_come() {
    let insula = start().await;
    let (attacker, other) = (serving(&insula, "alpha").await, insula.tenant("beta").await);
    let (http1, http2) = (a_connection_each(&insula), client(&insula.ca));
    let send = |client: &Client, method: Method, path: &str, media: &str, body: Bytes| {
        client.request(method, format!("{}{path}", insula.url)).bearer_auth(&attacker).header("content-type", media).body(body)
    };
    let plain = |method, path: &str| send(&http1, method, path, "application/octet-stream", garbage(BODY_BYTES));
    let grpc = |method: &str| {
        let path = format!("/inference.GRPCInferenceService/{method}");
        send(&http2, Method::POST, &path, "application/grpc", message()).header("te", "trailers")
    };
    let nobody = http1.post(format!("{}/v2/models/fence/infer", insula.url)).body(garbage(BODY_BYTES));
    let ways: Vec<(&str, RequestBuilder)> = vec![
        ("infer", plain(Method::POST, "/v2/models/fence/infer")),
        ("infer over HTTP/2", send(&http2, Method::POST, "/v2/models/fence/infer", "application/json", garbage(BODY_BYTES))),
        ("invocations", send(&http1, Method::POST, "/v2/models/fence/invocations", "application/json", garbage(BODY_BYTES))),
        ("gRPC", grpc("ModelInfer")),
        ("gRPC stream", grpc("ModelStreamInfer")),
        ("data set", plain(Method::PUT, "/v1/datasets/large")),
        ("model", plain(Method::POST, "/v1/models/large/versions")),
        ("artifact", plain(Method::PUT, "/api/2.0/mlflow-artifacts/artifacts/0/large/artifacts/file")),
        ("refused by its length", send(&http1, Method::POST, "/api/2.0/mlflow/runs/create", "application/json", garbage(BODY_BYTES))),
        ("refused without a credential", nobody),
    ];
    let least = Duration::from_secs_f64((BODIES * (BODY_BYTES as u64 - UNPAID_BYTES)) as f64 / PACE as f64);
    for (way, request) in ways {
        let (begun, mut sent) = (Instant::now(), JoinSet::new());
        insula.get("/v1/datasets", &other).await.expect(200);
        for _ in 0..BODIES {
            sent.spawn(answer(request.try_clone().unwrap()));
        }
        while !sent.is_empty() {
            tokio::select! {
                _ = sent.join_next() => {}
                () = tokio::time::sleep(Duration::from_millis(100)) => drop(insula.get("/v1/datasets", &other).await.expect(200)),
            }
        }
        let took = begun.elapsed();
        println!("{way}: {took:?}, at least {least:?}");
        assert!(took >= least, "{way}: {took:?} instead of {least:?}");
    }
}

/// What strangers send is read at the pace of one tenant, and that is none of the operators'.
#[tokio::test(flavor = "multi_thread")]
async fn operators_do_not_wait_behind_strangers() {
    let insula = start().await;
    let tenant = insula.tenant("beta").await;
    let (http, body) = (a_connection_each(&insula), garbage(16 << 20));
    let mut strangers = JoinSet::new();
    for _ in 0..8 {
        let request = http.post(format!("{}/v2/models/fence/infer", insula.url)).body(body.clone());
        strangers.spawn(async move {
            loop {
                // However it is answered.
                let _ = request.try_clone().unwrap().send().await;
            }
        });
    }
    let import = http.post(format!("{}/v1/tenants/gamma/import", insula.url)).bearer_auth(&insula.operator);
    let import = import.header("insula-bundle-key", format!("{}=", "A".repeat(43))).body(garbage(BODY_BYTES));
    let mut took = Duration::ZERO;
    // With the first one all are under way.
    for _ in 0..2 {
        let (begun, mut sent) = (Instant::now(), JoinSet::new());
        sent.spawn(answer(import.try_clone().unwrap()));
        while !sent.is_empty() {
            tokio::select! {
                answer = sent.join_next() => assert_eq!(answer.unwrap().unwrap().code(), "invalid"),
                () = tokio::time::sleep(Duration::from_millis(100)) => drop(insula.get("/v1/datasets", &tenant).await.expect(200)),
            }
        }
        took = begun.elapsed();
    }
    strangers.abort_all();
    // Half of the pace is theirs; among eight strangers it would be a ninth.
    let whole = Duration::from_secs_f64(BODY_BYTES as f64 / PACE as f64);
    println!("{took:?}, {whole:?} alone");
    assert!(took < whole * 4, "{took:?}, and {whole:?} alone");
}

/// Sixteen connections with bodies of 16 MiB: what is asserted is loose, because machines are.
#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_of_one_leave_another_its_answers() {
    let insula = start().await;
    let (attacker, victim) = (serving(&insula, "alpha").await, serving(&insula, "beta").await);
    let question = question_of(&insula, &victim).await;
    let answers = async || {
        let (end, mut count) = (Instant::now() + Duration::from_secs(2), 0u32);
        while Instant::now() < end {
            ask(&insula, &victim, &question, &[]).await.expect(200);
            count += 1;
        }
        count
    };
    answers().await;
    let alone = answers().await;
    let (mut attack, client, body) = (JoinSet::new(), a_connection_each(&insula), garbage(16 << 20));
    for _ in 0..16 {
        let request = client.post(format!("{}/v2/models/fence/infer", insula.url)).bearer_auth(&attacker).body(body.clone());
        attack.spawn(async move {
            loop {
                // However it is answered.
                let _ = request.try_clone().unwrap().send().await;
            }
        });
    }
    let beside = answers().await;
    attack.abort_all();
    println!("{alone} answers alone, {beside} beside the attack");
    assert!(beside * 2 >= alone, "{beside} of {alone}");
}
