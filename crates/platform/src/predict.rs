//! Predictions: the hot path. Permit in, the client's bytes to the cell, the cell's bytes out.

use bytes::Bytes;
use tenancy::Permit;
use tenancy::act::Predict;

use crate::cells::Manner;
use crate::error::Result;
use crate::platform::Platform;

/// How a prediction is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Open Inference Protocol.
    Inference,
    /// MLflow's scoring protocol (`/invocations`).
    Scoring,
}

/// A prediction as it goes to a cell.
pub(crate) struct Asked {
    pub(crate) protocol: Protocol,
    pub(crate) body: Bytes,
    pub(crate) manner: Manner,
}

impl Platform {
    /// Asks the deployment the permit is about. `body` and the answer are JSON of the Open Inference Protocol; nobody here looks into them.
    /// The entry in the ledger names the model's digest and version, the policy's, and the digests of both bodies.
    /// `version`, when given, must be the one that answers. `manner` says how urgent it is, and until when the answer is of use.
    ///
    /// # Errors
    /// Not found; what the tenant's input, model or cell does wrong; overload and deadline.
    pub async fn predict(&self, permit: &Permit<Predict>, version: Option<&str>, body: Bytes, manner: Manner) -> Result<Bytes> {
        self.asked(permit, version, Asked { protocol: Protocol::Inference, body, manner }).await
    }

    /// As [`Platform::predict`], in MLflow's scoring protocol.
    ///
    /// # Errors
    /// As [`Platform::predict`].
    pub async fn score(&self, permit: &Permit<Predict>, body: Bytes, manner: Manner) -> Result<Bytes> {
        self.asked(permit, None, Asked { protocol: Protocol::Scoring, body, manner }).await
    }

    async fn asked(&self, permit: &Permit<Predict>, version: Option<&str>, asked: Asked) -> Result<Bytes> {
        permit.digest("input_sha256", &asked.body);
        permit.detail("policy", permit.policy());
        let answer = self.cells().predict(permit, &self.owner(permit), version, asked).await?;
        permit.digest("output_sha256", &answer);
        Ok(answer)
    }
}
