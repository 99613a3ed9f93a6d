//! A tenant is a capability to ask; it has no data.
async fn steal(tenant: tenancy::Tenant) {
    let _ = tenant.rows();
}
fn main() {}
