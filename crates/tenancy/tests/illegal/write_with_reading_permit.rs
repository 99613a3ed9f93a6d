//! An act that only reads has no transaction.
use tenancy::{Permit, act::DatasetRead};
async fn write(permit: Permit<DatasetRead>) {
    let _ = permit.tx().await;
}
fn main() {}
