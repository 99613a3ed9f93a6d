//! Nor has it objects.
async fn steal(tenant: tenancy::Tenant, id: tenancy::BlobId) {
    let _ = tenant.blobs().open(id).await;
}
fn main() {}
