//! Only a verified credential makes a caller.
fn forge() -> tenancy::Caller {
    tenancy::Caller { tenant: [0; 16], principal: "ada".into(), via: "me".into(), scope: todo!(), request: todo!() }
}
fn main() {}
