//! Tracking, in MLflow's words: experiments, runs with parameters, metrics and tags, and the search over them.

#[allow(dead_code, reason = "what searches is being built")]
pub(crate) mod filter;
