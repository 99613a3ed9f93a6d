//! Predictions: the hot path. Permit in, the client's bytes to the cell, the cell's bytes out.

use std::time::Instant;

use bytes::Bytes;
use tenancy::act::{Act, Predict};
use tenancy::{Digest, Digested, Digesting, Permit};
use wire::Inferred;

use crate::cells::Manner;
use crate::deployment::VersionAnswers;
use crate::error::Result;
use crate::platform::Platform;
use crate::rollout::Broken;

/// Bytes of an answer hashed at once; then others have their turn on the thread.
const HASH_BYTES: usize = 64 << 10;

/// How a prediction is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Open Inference Protocol over REST: JSON alone.
    Inference,
    /// The same with tensors in binary form behind so many bytes of JSON.
    InferenceBinary {
        /// Length of the JSON in bytes.
        json_bytes: u32,
    },
    /// Open Inference Protocol over gRPC: a `ModelInferRequest`.
    InferenceGrpc,
    /// MLflow's scoring protocol (`/invocations`).
    Scoring,
}

/// A prediction as it goes to a cell.
#[derive(Debug, Clone)]
pub struct Question {
    /// How it is asked for.
    pub protocol: Protocol,
    /// The client's bytes, in which nobody here looks.
    pub body: Digested,
    /// How it is to be treated.
    pub manner: Manner,
}

impl From<Bytes> for Question {
    /// JSON of the Open Inference Protocol.
    fn from(body: Bytes) -> Self {
        Self { protocol: Protocol::Inference, body: body.into(), manner: Manner::default() }
    }
}

impl Platform {
    /// Asks the deployment the permit is about. The entry in the ledger names the model's digest and version, the policy's, and the digests of
    /// question and answer. `version`, when given, must be one that answers: the stable one, or the canary.
    ///
    /// # Errors
    /// Not found; what the tenant's input, model or cell does wrong; overload and deadline.
    pub async fn predict(&self, permit: &Permit<Predict>, version: Option<&str>, question: impl Into<Question>) -> Result<Inferred> {
        let question = question.into();
        permit.detail("input_sha256", question.body.digest());
        permit.detail("policy", permit.policy());
        let begun = Instant::now();
        let mut broken = None;
        let answer = self.cells().predict(permit, &self.owner(permit), version, question, &mut broken).await;
        self.statistics().count(permit, begun.elapsed(), answer.as_ref());
        if let Some(broken) = broken {
            self.canary_broke(permit, broken);
        }
        let answer = answer?;
        permit.detail("output_sha256", digest(&answer.body).await);
        Ok(answer)
    }

    /// The canary gets no requests any more; that it is taken out is written down by whoever ordered it, while this request goes on.
    fn canary_broke(&self, permit: &Permit<Predict>, broken: Broken) {
        match permit.rollback_ordered(&broken.author) {
            Ok(ordered) => {
                let platform = self.clone();
                tokio::spawn(async move { platform.canary_take_out(ordered, broken).await });
            }
            Err(error) => tracing::warn!(private = error.private(), "a canary that broke its rules is held out in memory only: {error}"),
        }
    }

    /// What the versions of the tenant's deployments did, as far as this node remembers.
    pub fn version_answers<A: Act>(&self, permit: &Permit<A>) -> Vec<VersionAnswers> {
        self.cells().version_answers(permit.island())
    }
}

/// The digest of an answer, which may be long.
async fn digest(bytes: &[u8]) -> Digest {
    let mut digesting = Digesting::default();
    for (at, piece) in bytes.chunks(HASH_BYTES).enumerate() {
        if at > 0 {
            tokio::task::yield_now().await;
        }
        digesting.update(piece);
    }
    digesting.finish()
}
