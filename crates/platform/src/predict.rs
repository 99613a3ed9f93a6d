//! Predictions: the hot path. Permit in, the client's bytes to the cell, the cell's bytes out.

use bytes::Bytes;
use tenancy::Permit;
use tenancy::act::{Act, Predict};

use crate::deployment::VersionAnswers;
use crate::error::Result;
use crate::platform::Platform;
use crate::rollout::Broken;

/// How a prediction is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Open Inference Protocol.
    Inference,
    /// MLflow's scoring protocol (`/invocations`).
    Scoring,
}

/// A prediction as it goes to a cell.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) protocol: Protocol,
    pub(crate) body: Bytes,
}

impl Platform {
    /// Asks the deployment the permit is about. `body` and the answer are JSON of the Open Inference Protocol; nobody here looks into them.
    /// The entry in the ledger names the model's digest and version and the digests of both bodies.
    /// `version`, when given, must be one that answers: the stable one, or the canary.
    ///
    /// # Errors
    /// Not found; what the tenant's input, model or cell does wrong; overload and deadline.
    pub async fn predict(&self, permit: &Permit<Predict>, version: Option<&str>, body: Bytes) -> Result<Bytes> {
        self.asked(permit, version, Asked { protocol: Protocol::Inference, body }).await
    }

    /// As [`Platform::predict`], in MLflow's scoring protocol.
    ///
    /// # Errors
    /// As [`Platform::predict`].
    pub async fn score(&self, permit: &Permit<Predict>, body: Bytes) -> Result<Bytes> {
        self.asked(permit, None, Asked { protocol: Protocol::Scoring, body }).await
    }

    async fn asked(&self, permit: &Permit<Predict>, version: Option<&str>, asked: Asked) -> Result<Bytes> {
        permit.digest("input_sha256", &asked.body);
        let mut broken = None;
        let answer = self.cells().predict(permit, &self.owner(permit), version, asked, &mut broken).await;
        if let Some(broken) = broken {
            self.canary_broke(permit, broken);
        }
        let answer = answer?;
        permit.digest("output_sha256", &answer);
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
