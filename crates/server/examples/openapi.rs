//! Prints the OpenAPI document: `cargo run -q -p server --example openapi > crates/server/tests/golden/openapi.json`

#[expect(clippy::print_stdout, reason = "printing is what it is for")]
fn main() {
    println!("{:#}", server::openapi());
}
