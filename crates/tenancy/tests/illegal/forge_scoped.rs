//! A cache key of a tenant comes from one of its permits only.
fn forge() -> tenancy::Scoped<&'static str> {
    tenancy::Scoped::new([0; 16], "model")
}
fn main() {}
