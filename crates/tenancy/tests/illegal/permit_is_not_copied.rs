//! One admission is one act.
use tenancy::{Permit, act::Predict};
fn double(permit: Permit<Predict>) -> (Permit<Predict>, Permit<Predict>) {
    (permit.clone(), permit)
}
fn main() {}
