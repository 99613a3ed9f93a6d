//! Authority is never written down and read back.
fn store(tenant: tenancy::Tenant) -> String {
    serde_json::to_string(&tenant).unwrap()
}
fn main() {}
