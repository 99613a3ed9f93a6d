//! The prisoner.
fn main() {}
