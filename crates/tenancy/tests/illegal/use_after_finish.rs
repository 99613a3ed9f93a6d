//! A permit is spent by finishing it.
use tenancy::{Permit, act::DatasetRead};
fn twice(permit: Permit<DatasetRead>) {
    let _ = permit.finish();
    let _ = permit.rows();
}
fn main() {}
