//! Predictions: the hot path. Permit in, the client's bytes to the cell, the cell's bytes out.

use bytes::Bytes;
use tenancy::Permit;
use tenancy::act::Predict;

use crate::error::Result;
use crate::platform::Platform;

/// How a prediction is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Open Inference Protocol.
    Inference,
    /// MLflow's scoring protocol (`/invocations`).
    Scoring,
}

/// A prediction as it goes to a cell.
pub(crate) struct Asked {
    pub(crate) protocol: Protocol,
    pub(crate) body: Bytes,
}

impl Platform {
    /// Asks the deployment the permit is about. `body` and the answer are JSON of the protocol; nobody here looks into them.
    /// The entry in the ledger names the model's digest and version and the digests of both bodies.
    /// `version`, when given, must be the one that answers.
    ///
    /// # Errors
    /// Not found; what the tenant's input, model or cell does wrong; overload and deadline.
    pub async fn predict(&self, permit: &Permit<Predict>, version: Option<&str>, protocol: Protocol, body: Bytes) -> Result<Bytes> {
        permit.digest("input_sha256", &body);
        let answer = self.cells().predict(permit, &self.owner(permit), version, Asked { protocol, body }).await?;
        permit.digest("output_sha256", &answer);
        Ok(answer)
    }
}
