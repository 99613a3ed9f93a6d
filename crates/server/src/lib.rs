//! HTTP, TLS, configuration, metrics: the only crate that knows protocols.
//!
//! ```no_run
//! let config = server::Config::load(None, &server::Overrides::default())?;
//! server::serve(config, |started| println!("listening on {}", started.url))?; // until SIGTERM or SIGINT
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`](Config) | strict file → validated value |
//! | [`check`] | refuses unsafe configurations, each with a remedy |
//! | `tls`, `doorman`, `connection`, `watch`, `drip`, `body` | the door: certificates, caps, handshakes, deadlines |
//! | `guard` | what is refused before routing |
//! | `forward` | a request goes on to the node that is its tenant's home |
//! | `api` | the one way to register an address: credential, permit, handler, ledger, answer |
//! | `route`, `public`, `grpc`, `mlflow` | the addresses, by protocol |
//! | `error`, `refusal` | errors to HTTP, and in `grpc` to gRPC; how fast |
//! | `manner`, `traces` | how a prediction is to be treated, and how its way is told to a collector |
//! | `openapi`, `metrics`, `service` | the document, the counters, one request from head to answer |
//!
//! What is deliberately missing: a plaintext port, SQL, keys, and any registration of an address without a decision.

mod api;
mod body;
mod bulk;
mod check;
mod config;
mod connection;
mod doorman;
mod drip;
mod egress;
mod error;
mod forward;
mod grpc;
mod guard;
mod manner;
mod metrics;
mod mlflow;
mod openapi;
mod public;
mod refusal;
mod route;
mod server;
mod service;
mod tls;
mod traces;
mod watch;

pub use api::{Access, RouteInfo};
pub use check::{Finding, check};
pub use config::{Cells, Config, ConfigError, ConnectionLimits, FloorWord, Log, LogFormat, Overrides, RequestLimits, TlsFiles};
pub use egress::{EgressConfig, Network};
pub use server::{Server, StartError, Started, migrate, serve};
pub use traces::TracesConfig;

/// Checks that need no service: an auditor runs them on files. Re-exported for the command line.
pub mod offline {
    pub use platform::tenancy::{ErasureStatement, ReceiptReport, Report, verify_certificate, verify_export, verify_receipt};
}

/// docs/errors.md: every public error code with what to do.
pub const ERRORS_MD: &str = include_str!("../../../docs/errors.md");

/// What to do about an error code, for people.
#[must_use]
pub fn remedy(code: &str) -> Option<&'static str> {
    ERRORS_MD.lines().find_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let known = cells.next()?.strip_suffix('`')?;
        (known == code).then(|| cells.nth(2)).flatten()
    })
}

/// The OpenAPI 3.1 document of `/v1` and what is beside it.
#[must_use]
pub fn openapi() -> serde_json::Value {
    openapi::document(route::all().routes())
}

/// Every address the router knows, for tests that walk them.
#[must_use]
pub fn routes() -> Vec<RouteInfo> {
    route::all().routes().iter().map(|route| route.info.clone()).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn remedies_are_found_by_code() {
        assert!(super::remedy("quota_exceeded").is_some_and(|text| text.contains("Retry-After")));
        assert_eq!(super::remedy("no_such_code"), None);
    }

    #[test]
    fn operations_are_unique_and_the_document_names_each_address_once() {
        let routes = super::routes();
        let names: std::collections::BTreeSet<_> = routes.iter().map(|route| route.operation).collect();
        assert_eq!(names.len(), routes.len());
        let places: std::collections::BTreeSet<_> = routes.iter().map(|route| (route.method.as_str(), route.path)).collect();
        assert_eq!(places.len(), routes.len());
        let document = super::openapi();
        let listed: usize = document["paths"].as_object().unwrap().values().map(|item| item.as_object().unwrap().len()).sum();
        let over_grpc = routes.iter().filter(|route| crate::grpc::is_method(route.path)).count();
        assert_eq!((listed, over_grpc), (routes.len() - over_grpc, 10));
    }
}
