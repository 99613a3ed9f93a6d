//! The platform with a real kernel in a temporary folder and real cells in a real jail.
//!
//! Needs the `insula-cell` program beside the test's target folder (`cargo build -p insula-cell`) and `ORT_DYLIB_PATH`. Without them the tests
//! say so and pass: the project's test command always provides both.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that meets the unexpected shall end there"
)]

mod batching;
mod cells;
mod crash;
mod isolation;
mod main_job;
mod models;
mod prediction;
mod rollout;
mod tracking;
mod world;
