//! One prediction in any of the protocols: what is asked, read into tensors, and answered from the outputs of a run.

use bytes::Bytes;
use wire::{Fail, Inferred, ToCell};

use crate::oip::{self, Signature};
use crate::output::{Outputs, Part, Rows};
use crate::tensor::Tensor;
use crate::{grpc, scoring};

/// A prediction as the client asked for it.
#[derive(Debug, Clone)]
pub enum Question {
    /// Open Inference Protocol over REST; how much of the body is JSON, when not all.
    Oip(Bytes, Option<u32>),
    /// Open Inference Protocol over gRPC.
    Grpc(Bytes),
    /// MLflow's scoring protocol.
    Scoring(Bytes),
}

/// A question whose tensors are read.
#[derive(Debug)]
pub enum Understood<'q> {
    /// What else was asked for.
    Oip(oip::Asked<'q>),
    /// The same.
    Grpc(oip::Asked<'q>),
    /// How predictions are laid out.
    Scoring(scoring::Form),
}

impl Question {
    /// Of a message that is one, with the slot that it asks.
    #[must_use]
    pub fn of(message: &ToCell) -> Option<(u32, Self)> {
        Some(match message {
            ToCell::Infer { slot, body } => (*slot, Self::Oip(body.clone(), None)),
            ToCell::InferBinary { slot, json_bytes, body } => (*slot, Self::Oip(body.clone(), Some(*json_bytes))),
            ToCell::InferGrpc { slot, body } => (*slot, Self::Grpc(body.clone())),
            ToCell::Score { slot, body } => (*slot, Self::Scoring(body.clone())),
            _ => return None,
        })
    }

    /// Reads the tensors into `buffers`, which are in the model's order and empty.
    ///
    /// # Errors
    /// [`wire::FailCode::Invalid`] in the user's words.
    pub fn read(&self, signature: &Signature, buffers: &mut [Tensor]) -> Result<Understood<'_>, Fail> {
        Ok(match self {
            Self::Oip(body, json_bytes) => Understood::Oip(oip::parse(body, *json_bytes, signature, buffers)?),
            Self::Grpc(body) => Understood::Grpc(grpc::parse(body, signature, buffers)?),
            Self::Scoring(body) => Understood::Scoring(scoring::parse(body, signature, buffers)?),
        })
    }
}

impl Understood<'_> {
    /// The answer, from the rows that are this question's own; without any, from all there is.
    ///
    /// # Errors
    /// [`wire::FailCode::ModelFailed`] when an output cannot be carried, [`wire::FailCode::TooLarge`] when the answer gets too long.
    pub fn answer(&self, signature: &Signature, outputs: &Outputs<'_>, rows: Option<Rows>) -> Result<Inferred, Fail> {
        let (parts, mut out): (Vec<Part<'_, '_>>, _) = (outputs.parts(rows).collect(), Vec::new());
        let json_bytes = match self {
            Self::Oip(asked) => oip::write(signature, asked, &parts, &mut out)?,
            Self::Grpc(asked) => grpc::write(signature, asked, &parts, &mut out).map(|()| None)?,
            Self::Scoring(form) => scoring::write(signature, *form, &parts, &mut out).map(|()| None)?,
        };
        Ok(Inferred { json_bytes, ..Bytes::from(out).into() })
    }
}
