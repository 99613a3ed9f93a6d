//! The door, with sockets of our own: slow clients, TLS versions, ambiguous requests, caps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::Insula;

const QUICK: &str = "[limits]
handshake_timeout_seconds = 0.4
first_byte_timeout_seconds = 0.4
header_timeout_seconds = 0.4
idle_timeout_seconds = 0.4
body_idle_timeout_seconds = 0.4
write_timeout_seconds = 0.4";

async fn connect(insula: &Insula, versions: &[&'static SupportedProtocolVersion]) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&insula.ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let tcp = TcpStream::connect(insula.address()).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap()
}

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// Everything until the server closes; panics when it does not within some seconds.
async fn until_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes)).await;
    // Cut without a goodbye is an end too.
    let _ = read.expect("the server closes the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One answer with a `Content-Length` from an open connection.
async fn one_answer(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut text = String::new();
    let mut piece = [0u8; 4096];
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(read > 0, "closed early: {text}");
        text += std::str::from_utf8(&piece[..read]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_and_others_do_not_notice() {
    let insula = Insula::start_with(QUICK).await;
    // nothing after the TCP connection
    let mut silent = TcpStream::connect(insula.address()).await.unwrap();
    // nothing after the handshake
    let mut mute = connect(&insula, BOTH).await;
    // a header, byte by byte, each byte in good time
    let mut dripping = connect(&insula, BOTH).await;
    let drip = tokio::spawn(async move {
        let started = Instant::now();
        for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n\r\n" {
            if dripping.write_all(&[*byte]).await.is_err() || dripping.flush().await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        until_closed(&mut dripping).await;
        started.elapsed()
    });
    // keep-alive and then nothing
    let mut idle = connect(&insula, BOTH).await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(one_answer(&mut idle).await.starts_with("HTTP/1.1 200"));
    // a body that stops
    let mut stuck = connect(&insula, BOTH).await;
    stuck
        .write_all(b"POST /v1/bootstrap HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        .await
        .unwrap();

    assert_eq!(until_closed(&mut silent).await, "");
    assert_eq!(until_closed(&mut mute).await, "");
    assert_eq!(until_closed(&mut idle).await, "");
    let answer = until_closed(&mut stuck).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
    assert!(drip.await.unwrap() < Duration::from_secs(4), "a header has one deadline, not one a byte");
    insula.call(reqwest::Method::GET, "/healthz", None, None).await.expect(200);
    let metrics = insula.get("/metrics", &insula.operator).await.body;
    for why in ["handshake", "first byte", "header", "idle"] {
        let name = format!("insula_connections_cut_total{{deadline=\"{why}\"}} ");
        let count = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok());
        assert!(count.is_some_and(|count| count > 0), "{why}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_1_3_or_1_2_and_never_absent() {
    let insula = Insula::start().await;
    let version = |stream: &TlsStream<TcpStream>| stream.get_ref().1.protocol_version().unwrap();
    assert_eq!(version(&connect(&insula, BOTH).await), rustls::ProtocolVersion::TLSv1_3);
    assert_eq!(version(&connect(&insula, &[&rustls::version::TLS12]).await), rustls::ProtocolVersion::TLSv1_2);
    let mut plain = TcpStream::connect(insula.address()).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(!until_closed(&mut plain).await.contains("HTTP/1.1"));
    // TLS 1.1 is turned away in the handshake: version 3.2, one old cipher.
    let mut old = TcpStream::connect(insula.address()).await.unwrap();
    let mut hello = vec![0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 2];
    hello.extend([7u8; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x13, 1, 0]);
    old.write_all(&hello).await.unwrap();
    let mut reply = Vec::new();
    let _ = old.read_to_end(&mut reply).await;
    assert!(reply.first().is_none_or(|kind| *kind == 0x15), "an alert or nothing: {reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_can_be_read_in_two_ways_are_refused() {
    let insula = Insula::start().await;
    let cases: [(&str, &str, &str); 9] = [
        (
            "POST /v1/bootstrap HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
            "request_ambiguous",
        ),
        (
            "POST /v1/bootstrap HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
            "400",
            "request_ambiguous",
        ),
        ("GET /v1/whoami HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n", "400", "request_ambiguous"),
        ("GET /v1/../healthz HTTP/1.1\r\nHost: a\r\n\r\n", "400", "path_invalid"),
        ("GET /v1/%2e%2e/healthz HTTP/1.1\r\nHost: a\r\n\r\n", "400", "path_invalid"),
        ("GET //healthz HTTP/1.1\r\nHost: a\r\n\r\n", "400", "path_invalid"),
        ("GET /v1/datasets/a%2fb HTTP/1.1\r\nHost: a\r\n\r\n", "400", "path_invalid"),
        ("POST /v1/bootstrap HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", "415", "encoding_unsupported"),
        ("POST /v1/bootstrap HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", "400", ""),
    ];
    for (request, status, code) in cases {
        let mut stream = connect(&insula, BOTH).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = one_answer(&mut stream).await;
        let mut more = vec![0u8; 4096];
        if let Ok(Ok(read)) = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut more)).await {
            answer += &String::from_utf8_lossy(&more[..read]);
        }
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(code), "{request}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "nothing is smuggled behind it: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn caps_hold_and_are_given_back() {
    let insula = Insula::start_with("[limits]\nconnections_per_address_max = 3").await;
    let mut open = vec![connect(&insula, BOTH).await, connect(&insula, BOTH).await];
    // The client that made the tenants holds the third.
    let mut fourth = TcpStream::connect(insula.address()).await.unwrap();
    assert_eq!(until_closed(&mut fourth).await, "");
    drop(open.pop());
    let mut again = None;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut tcp = TcpStream::connect(insula.address()).await.unwrap();
        let mut byte = [0u8; 1];
        // Refused connections end at once; an accepted one waits for our handshake.
        if tokio::time::timeout(Duration::from_millis(100), tcp.read(&mut byte)).await.is_err() {
            again = Some(tcp);
            break;
        }
    }
    assert!(again.is_some(), "a place is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_drips_arrives_whole_on_both_protocols() {
    let insula = Insula::start().await;
    let admin = insula.tenant("alpha").await;
    let body = |name: &str| json!({"name": name, "member": "ada"}).to_string();
    let mut stream = connect(&insula, BOTH).await;
    let (head, one) = ("POST /v1/keys HTTP/1.1\r\nHost: a\r\nContent-Type: application/json", body("one"));
    for byte in format!("{head}\r\nAuthorization: Bearer {admin}\r\nContent-Length: {}\r\n\r\n{one}", one.len()).bytes() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    let answer = one_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    // And the connection is as good as before.
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(one_answer(&mut stream).await.starts_with("HTTP/1.1 200"));

    let bytes = futures_util::stream::iter(body("two").into_bytes()).then(|byte| async move {
        tokio::time::sleep(Duration::from_millis(4)).await;
        Ok::<_, std::io::Error>(vec![byte])
    });
    let request = insula.client.post(format!("{}/v1/keys", insula.url)).bearer_auth(&admin).header("content-type", "application/json");
    let sent = request.body(reqwest::Body::wrap_stream(bytes)).send().await.unwrap();
    assert_eq!((sent.version(), sent.status().as_u16()), (reqwest::Version::HTTP_2, 201));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_bounded_on_both_protocols() {
    let insula = Insula::start().await;
    let long = "y".repeat(100_000);
    let mut stream = connect(&insula, BOTH).await;
    let _ = stream.write_all(format!("GET /healthz HTTP/1.1\r\nHost: a\r\nX-Long: {long}\r\n\r\n").as_bytes()).await;
    let answer = until_closed(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 431") || answer.is_empty(), "{answer}");
    let sent = insula.client.get(format!("{}/healthz", insula.url)).header("x-long", long).send().await;
    assert!(sent.map_or(true, |response| response.status() == 431), "HTTP/2 is bounded too");
    let response = insula.client.get(format!("{}/healthz", insula.url)).send().await.unwrap();
    assert_eq!(response.version(), reqwest::Version::HTTP_2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_serves_many_requests_and_a_chunked_one_ends_it() {
    let insula = Insula::start().await;
    let mut stream = connect(&insula, BOTH).await;
    for _ in 0..3 {
        stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(one_answer(&mut stream).await.contains("{\"live\":true}"));
    }
    let body = json!({"secret": "x"}).to_string();
    let chunked = format!(
        "POST /v1/bootstrap HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    stream.write_all(chunked.as_bytes()).await.unwrap();
    let answer = until_closed(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 401") && answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
}
