//! The list of acts is closed.
struct Anything;
impl tenancy::act::Act for Anything {
    const NAME: &'static str = "Anything";
    const RESOURCE: tenancy::act::ResourceKind = tenancy::act::ResourceKind::Tenant;
    type Mode = tenancy::act::Writes;
    const QUOTA: tenancy::act::QuotaClass = tenancy::act::QuotaClass::Request;
    const SEEN_BY: &'static str = "Anything";
}
fn main() {}
