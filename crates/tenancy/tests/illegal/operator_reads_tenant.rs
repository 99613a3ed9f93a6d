//! There is no way from the operator to a tenant's data.
async fn peek(operator: tenancy::Operator, caller: tenancy::Caller) {
    let _ = operator.open_tenant(caller).await;
}
fn main() {}
