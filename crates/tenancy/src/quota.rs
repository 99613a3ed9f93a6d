//! Being written.

/// What was exceeded.
#[derive(Debug, Clone)]
pub struct Exceeded;
impl std::fmt::Display for Exceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a quota is used up")
    }
}
