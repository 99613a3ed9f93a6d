//! The same engine and the same reading and writing of requests inside an HTTP server, for `cargo xtask bench`: TLS and keep-alive, but no
//! sandbox, no identity, no policy, no quota, no audit. What the service keeps of this one's throughput is what isolation leaves.
//!
//! `engine_inside LIBRARY MODEL CERTIFICATE_OUT.pem` prints `{"url": …}` and serves every path until its input ends. One model, as one cell has;
//! two threads, as the machine has cores.

#![expect(dead_code, unreachable_pub, reason = "the cell is a program: its modules come in by path, and only some of them are used")]

#[path = "../src/admit.rs"]
mod admit;
#[path = "../src/batch.rs"]
mod batch;
#[path = "../src/element.rs"]
mod element;
#[path = "../src/engine.rs"]
mod engine;
#[path = "../src/grpc.rs"]
mod grpc;
#[path = "../src/json.rs"]
mod json;
#[path = "../src/oip.rs"]
mod oip;
#[path = "../src/onnx.rs"]
mod onnx;
#[path = "../src/output.rs"]
mod output;
#[path = "../src/question.rs"]
mod question;
#[path = "../src/scoring.rs"]
mod scoring;
#[path = "../src/tensor.rs"]
mod tensor;

use std::convert::Infallible;
use std::error::Error;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Threads that serve connections.
const THREADS: usize = 2;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, model, certificate] = arguments.as_slice() else {
        return Err("usage: engine_inside LIBRARY MODEL CERTIFICATE_OUT.pem".into());
    };
    let engine = engine::Engine::start(Path::new(library))?;
    engine.warm()?;
    let model = std::fs::read(model)?;
    let load = wire::Load { name: "m".into(), version: "1".into(), bytes: model.len() as u64, nodes_max: 100_000, batching: None };
    let (model, _) = engine::Model::load(&engine, &model, &load).map_err(|fail| fail.message)?;
    let (tls, pem) = certificate_and_key()?;
    std::fs::write(certificate, pem)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let port = listener.local_addr()?.port();
    runtime.spawn(serve(listener, tls, Arc::new(Mutex::new(model))));
    writeln!(std::io::stdout(), "{}", serde_json::json!({"url": format!("https://localhost:{port}")}))?;
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    // What the engine's library has registered for the end of the program is not waited for.
    std::process::exit(0)
}

fn certificate_and_key() -> Result<(TlsAcceptor, String)> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok((TlsAcceptor::from(Arc::new(config)), made.cert.pem()))
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, model: Arc<Mutex<engine::Model>>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (tls, model) = (tls.clone(), Arc::clone(&model));
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            let Ok(stream) = tls.accept(socket).await else { return };
            let answer = service_fn(move |request| answer(request, Arc::clone(&model)));
            // A client that leaves is no matter.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn answer(request: Request<Incoming>, model: Arc<Mutex<engine::Model>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let Ok(body) = request.into_body().collect().await else { return Ok(status(400, "the body broke off")) };
    let question = question::Question::Oip(body.to_bytes(), None);
    let inferred = model.lock().unwrap_or_else(PoisonError::into_inner).infer(&question);
    Ok(match inferred {
        Ok(inferred) => Response::new(Full::new(inferred.body)),
        Err(fail) => status(422, &fail.message),
    })
}

fn status(code: u16, why: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(why.as_bytes())));
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or_default();
    response
}
