//! Predictions: the hot path. Permit in, the client's bytes to the cell, the cell's bytes out.

use bytes::Bytes;
use tenancy::Permit;
use tenancy::act::Predict;

use crate::error::Result;
use crate::platform::Platform;

impl Platform {
    /// Asks the deployment the permit is about. `body` and the answer are JSON of the Open Inference Protocol; nobody here looks into them.
    /// The entry in the ledger names the model's digest and version and the digests of both bodies.
    /// `version`, when given, must be the one that answers.
    ///
    /// # Errors
    /// Not found; what the tenant's input, model or cell does wrong; overload and deadline.
    pub async fn predict(&self, permit: &Permit<Predict>, version: Option<&str>, body: Bytes) -> Result<Bytes> {
        permit.digest("input_sha256", &body);
        let answer = self.cells().predict(permit, &self.owner(permit), version, body).await?;
        permit.digest("output_sha256", &answer);
        Ok(answer)
    }
}
