//! Traces, against a collector that notes what it is sent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::fair::{ask, question_of, serving};
use crate::harness::{Insula, answer};

/// A collector on this machine: its address, and the bodies it was sent.
async fn collector() -> (String, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, bodies) = (format!("http://{}/v1/traces", listener.local_addr().unwrap()), Arc::new(Mutex::new(Vec::new())));
    let noted = bodies.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let noted = noted.clone();
            tokio::spawn(async move {
                let (mut read, mut piece) = (Vec::new(), vec![0; 64 << 10]);
                loop {
                    let got = stream.read(&mut piece).await.unwrap_or(0);
                    read.extend_from_slice(&piece[..got]);
                    let Some(head) = read.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                    let text = String::from_utf8_lossy(&read[..head]).to_lowercase();
                    assert!(text.starts_with("post /v1/traces ") && text.contains("content-type: application/x-protobuf"), "{text}");
                    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok()).unwrap();
                    if read.len() >= head + 4 + length {
                        noted.lock().unwrap().push(read[head + 4..head + 4 + length].to_vec());
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
                        return;
                    }
                }
            });
        }
    });
    (url, bodies)
}

fn holds(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

const MARKER: &str = "unmistakable-marker";

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_tells_the_way_and_no_content() {
    let (url, bodies) = collector().await;
    let mut insula = Insula::start_with(&format!("[traces]\nendpoint = '{url}'\nsample = 0.0\ntenants.alpha = 1.0\n")).await;
    let (admin, other) = (serving(&insula, "alpha").await, insula.tenant("beta").await);
    let question = question_of(&insula, &admin).await;
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let parent = format!("00-{trace}-{span}-01");
    let mut marked = question.clone();
    marked["id"] = MARKER.into();
    let answered = ask(&insula, &admin, &marked, &[("traceparent", &parent), ("x-marker", MARKER)]).await.expect(200);
    let told = answered.header("traceresponse").unwrap().to_owned();
    assert!(told.starts_with(&format!("00-{trace}-")) && told.ends_with("-01") && !told.contains(span), "{told}");
    insula.get(&format!("/v1/datasets/{MARKER}"), &admin).await.expect(404);
    // A stream is a span, and each of its messages is one below it.
    let message = [&[0u8, 0, 0, 0, 7, 0x0a, 5][..], &b"fence"[..]].concat().repeat(2);
    let stream = insula.client.post(format!("{}/inference.GRPCInferenceService/ModelStreamInfer", insula.url)).bearer_auth(&admin);
    let stream = stream.header("content-type", "application/grpc").header("te", "trailers").header("traceparent", &parent).body(message);
    let streamed = stream.send().await.unwrap();
    assert!(streamed.headers()["traceresponse"].to_str().unwrap().starts_with(&format!("00-{trace}-")));
    assert!(!streamed.bytes().await.unwrap().is_empty());
    let unasked = ask(&insula, &admin, &question, &[("traceparent", &format!("00-{trace}-{span}-00"))]).await.expect(200);
    assert_eq!(unasked.header("traceresponse"), None, "whoever says no is not traced");
    // A tenant without a share is not traced, whatever it says.
    let theirs = insula.client.request(Method::GET, format!("{}/v1/whoami", insula.url)).bearer_auth(&other).header("traceparent", &parent);
    assert!(answer(theirs).await.expect(200).header("traceresponse").is_none_or(|told| told.ends_with("-00")));
    let whoami = insula.get("/v1/whoami", &other).await.expect(200);
    assert!(whoami.header("traceresponse").is_none_or(|told| told.ends_with("-00")));
    let metrics = insula.get("/metrics", &insula.operator).await.expect(200).body;
    assert!(metrics.contains("insula_traces_dropped_total 0"), "{metrics}");
    insula.server.take().unwrap().stop().await.unwrap();

    let bodies = bodies.lock().unwrap();
    let all = bodies.concat();
    for part in [&b"predict"[..], b"queue", b"cold start", b"cell", b"engine", b"alpha", b"insula.request", &bytes(trace), &bytes(span)] {
        assert!(holds(&all, part), "{}", String::from_utf8_lossy(part));
    }
    let named = |name: &[u8]| all.windows(name.len()).filter(|window| *window == name).count();
    assert_eq!((named(b"grpc_model_stream_infer"), named(b"\x2a\x07message")), (1, 2));
    for part in [MARKER.as_bytes(), b"beta", b"fence", b"features", b"whoami"] {
        assert!(!holds(&all, part), "{}", String::from_utf8_lossy(part));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_nothing_is_held_up_and_off_is_off() {
    let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/traces", refusing.local_addr().unwrap());
    drop(refusing);
    let insula = Insula::start_with(&format!("[traces]\nendpoint = '{url}'\nsample = 1.0\n")).await;
    let admin = insula.tenant("alpha").await;
    for _ in 0..20 {
        insula.get("/v1/whoami", &admin).await.expect(200);
    }
    let mut dropped = false;
    for _ in 0..100 {
        let metrics = insula.get("/metrics", &insula.operator).await.expect(200).body;
        dropped = metrics.lines().any(|line| line.strip_prefix("insula_traces_dropped_total ").is_some_and(|count| count != "0"));
        if dropped {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(dropped, "what could not be sent is counted");

    let insula = Insula::start().await;
    let admin = insula.tenant("alpha").await;
    let request = insula.client.request(Method::GET, format!("{}/v1/whoami", insula.url)).bearer_auth(&admin);
    let answered = answer(request.header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")).await.expect(200);
    assert_eq!(answered.header("traceresponse"), None);
    assert!(!insula.get("/metrics", &insula.operator).await.expect(200).body.contains("insula_traces"));
}
