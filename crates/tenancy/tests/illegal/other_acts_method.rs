//! What hangs on one act's permit is not to be had with another's.
use tenancy::{Permit, act::KeyRead};
async fn issue(permit: Permit<KeyRead>, spec: tenancy::KeySpec) {
    let _ = permit.key_issue(spec).await;
}
fn main() {}
