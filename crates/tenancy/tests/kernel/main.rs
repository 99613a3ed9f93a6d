//! The kernel as its users see it: real folders, real encryption, real crashes.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what helpers of tests do not expect ends the test")]

mod attacks;
mod crash;
mod erase;
mod isolation;
mod joint;
mod ledgers;
mod support;

#[test]
fn illegal_programs_do_not_compile() {
    if support::rows_are_elsewhere() {
        return; // what compiles does not depend on the stores
    }
    if std::env::var_os("INSULA_SKIP_ILLEGAL").is_some() {
        println!("SKIPPED LOUDLY: INSULA_SKIP_ILLEGAL is set");
        return;
    }
    trybuild::TestCases::new().compile_fail("tests/illegal/*.rs");
}
