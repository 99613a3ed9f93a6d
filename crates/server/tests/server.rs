//! The service over real TLS, on a free port, in a folder of its own. One binary; each test starts its own service.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

#[path = "server/bulk.rs"]
mod bulk;
#[path = "server/door.rs"]
mod door;
#[path = "server/fair.rs"]
mod fair;
#[path = "server/harness.rs"]
mod harness;
#[path = "server/input.rs"]
mod input;
#[path = "server/life.rs"]
mod life;
#[path = "server/pages.rs"]
mod pages;
#[path = "server/traces.rs"]
mod traces;
#[path = "server/walk.rs"]
mod walk;

/// What is published is what was agreed on. When a change is meant, look at it with
/// `cargo run -q -p server --example openapi | diff crates/server/tests/golden/openapi.json -` and keep it.
#[test]
fn the_openapi_document_is_the_golden_one() {
    let printed = format!("{:#}\n", server::openapi());
    let golden = include_str!("golden/openapi.json");
    let differs = printed.lines().zip(golden.lines()).find(|(new, old)| new != old);
    assert!(printed == golden, "the document changed, first at {differs:?}");
}
