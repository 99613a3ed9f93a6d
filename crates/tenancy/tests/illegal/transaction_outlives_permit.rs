//! A transaction is borrowed from its permit.
use tenancy::{Permit, Tx, act::DatasetWrite};
async fn escape(permit: Permit<DatasetWrite>) -> Tx<'static> {
    permit.tx().await.unwrap()
}
fn main() {}
