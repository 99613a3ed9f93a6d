//! The programs as they are delivered: `insula` runs the service, and tests are its clients. Each test owns its folders and its port.
//!
//! Needs `insula-cell` beside `insula` and `ORT_DYLIB_PATH`, and `INSULA_PY` for the clients of others. Without them the tests say so
//! and pass, unless `INSULA_REQUIRE` is set; the project's test command always provides all of them.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that meets the unexpected shall end there"
)]

mod canary;
mod chaos;
mod cli;
mod clients;
mod crash;
mod forwarding;
mod injection;
mod mlflow;
mod moving_in;
mod newcomer;
mod nodes;
mod oip;
mod operator;
mod stores;
mod world;
