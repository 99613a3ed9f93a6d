//! What people, judges and programs said about a trace: feedback, expectations, references to issues.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tenancy::Permit;
use tenancy::act::{TraceRead, TraceWrite};

use super::{ID_BYTES_MAX, Trace};
use crate::error::{Error, Result};
use crate::page::Timestamp;
use crate::platform::Platform;
use crate::tracking::run::random_id;

/// Assessments of a trace at most.
const ASSESSMENTS_MAX: usize = 500;
/// One assessment in bytes.
const ASSESSMENT_BYTES_MAX: usize = 128 << 10;
const NAME_CHARS_MAX: usize = 250;

/// One thing that was said about a trace or one of its spans.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assessment {
    /// Its id, unique within the trace.
    pub id: String,
    /// What it judges, as in `correctness`.
    pub name: String,
    /// The span it is about; the whole trace when absent.
    pub span_id: Option<String>,
    /// Who says so, in the protocol's form.
    pub source: Value,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it last changed, in milliseconds since 1970.
    pub updated_ms: i64,
    /// What is said.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Why.
    pub rationale: Option<String>,
    /// More about how it came about.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// The assessment that this one replaces.
    pub overrides: Option<String>,
    /// Whether none has replaced it.
    pub valid: bool,
}

/// What is said, in the protocol's form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// A judgement: `{"value": …, "error": …}`.
    Feedback(Value),
    /// What should have come: `{"value": …}`, or `{"serialized_value": …}`.
    Expectation(Value),
    /// An issue: `{"issue_name": …}`.
    Issue(Value),
}

/// What changes of an assessment; what is absent stays.
#[derive(Debug, Clone, Default)]
pub struct AssessmentUpdate {
    /// Its name.
    pub name: Option<String>,
    /// What is said; of the same kind as before.
    pub verdict: Option<Verdict>,
    /// Why.
    pub rationale: Option<String>,
    /// Laid over what is there.
    pub metadata: BTreeMap<String, String>,
    /// Whether it holds.
    pub valid: Option<bool>,
}

impl Assessment {
    /// About what it takes in memory.
    pub(super) fn held_bytes(&self) -> usize {
        500 + serde_json::to_vec(self).map_or(ASSESSMENT_BYTES_MAX, |json| json.len())
    }
}

impl Verdict {
    /// The bare value.
    pub(super) fn value(&self) -> Option<Value> {
        match self {
            Self::Feedback(said) => said.get("value").cloned(),
            Self::Expectation(said) => said.get("value").cloned().or_else(|| {
                let text = said.get("serialized_value")?.get("value")?.as_str()?;
                serde_json::from_str(text).ok()
            }),
            Self::Issue(_) => None,
        }
    }
}

impl Assessment {
    /// An id for a new one.
    ///
    /// # Errors
    /// The kernel's, without randomness.
    pub fn new_id() -> Result<String> {
        Ok(format!("a-{}", random_id()?))
    }

    /// # Errors
    /// What is over its bounds.
    pub(super) fn checked(&self) -> Result<()> {
        if self.name.is_empty() || self.name.chars().count() > NAME_CHARS_MAX {
            return Err(Error::invalid(format!("an assessment's name has 1 to {NAME_CHARS_MAX} characters")));
        }
        if self.id.is_empty() || self.id.len() > ID_BYTES_MAX {
            return Err(Error::invalid(format!("an assessment's id has 1 to {ID_BYTES_MAX} bytes")));
        }
        if serde_json::to_vec(self).map_err(tenancy::Error::internal)?.len() > ASSESSMENT_BYTES_MAX {
            return Err(Error::invalid(format!("an assessment is larger than {ASSESSMENT_BYTES_MAX} bytes")));
        }
        Ok(())
    }
}

impl Platform {
    /// Adds an assessment to the trace that the permit is about.
    ///
    /// # Errors
    /// Not found: the trace, or the assessment that this one overrides; an id that is taken; over its bounds.
    pub async fn assessment_create(&self, permit: &Permit<TraceWrite>, assessment: Assessment) -> Result<Assessment> {
        assessment.checked()?;
        self.trace_change(permit, |trace| {
            if trace.assessments.len() >= ASSESSMENTS_MAX {
                return Err(Error::invalid(format!("a trace has at most {ASSESSMENTS_MAX} assessments")));
            }
            if trace.assessments.iter().any(|known| known.id == assessment.id) {
                return Err(Error::conflict("the trace has an assessment of this id already"));
            }
            if let Some(overridden) = &assessment.overrides {
                found(trace, overridden)?.valid = false;
            }
            trace.assessments.push(assessment.clone());
            Ok(())
        })
        .await?;
        permit.detail("assessment", &assessment.id);
        Ok(assessment)
    }

    /// One assessment of the trace that the permit is about.
    ///
    /// # Errors
    /// Not found.
    pub async fn assessment_get(&self, permit: &Permit<TraceRead>, id: &str) -> Result<Assessment> {
        let mut trace = self.trace_get(permit).await?;
        Ok(found(&mut trace, id)?.clone())
    }

    /// Changes an assessment.
    ///
    /// # Errors
    /// Not found; another kind of value than it has; over its bounds.
    pub async fn assessment_update(&self, permit: &Permit<TraceWrite>, id: &str, update: AssessmentUpdate) -> Result<Assessment> {
        permit.detail("assessment", id);
        self.trace_change(permit, |trace| {
            let assessment = found(trace, id)?;
            match (&assessment.verdict, update.verdict) {
                (_, None) => {}
                (Verdict::Expectation(_), Some(verdict @ Verdict::Expectation(_)))
                | (Verdict::Feedback(_), Some(verdict @ Verdict::Feedback(_)))
                | (Verdict::Issue(_), Some(verdict @ Verdict::Issue(_))) => assessment.verdict = verdict,
                (_, Some(Verdict::Expectation(_))) => {
                    return Err(Error::invalid("Cannot update expectation value on a Feedback assessment."));
                }
                (_, Some(_)) => return Err(Error::invalid("Cannot update feedback value on an Expectation assessment.")),
            }
            assessment.name = update.name.unwrap_or(std::mem::take(&mut assessment.name));
            assessment.rationale = update.rationale.or(assessment.rationale.take());
            assessment.metadata.extend(update.metadata);
            assessment.valid = update.valid.unwrap_or(assessment.valid);
            assessment.updated_ms = Timestamp::now().millis();
            assessment.checked()?;
            Ok(assessment.clone())
        })
        .await
    }

    /// Removes an assessment; one that it overrode holds again. One that is not there is gone already.
    ///
    /// # Errors
    /// No such trace.
    pub async fn assessment_delete(&self, permit: &Permit<TraceWrite>, id: &str) -> Result<()> {
        permit.detail("assessment", id);
        self.trace_change(permit, |trace| {
            let Some(at) = trace.assessments.iter().position(|known| known.id == id) else { return Ok(()) };
            let overridden = trace.assessments.remove(at).overrides;
            for known in trace.assessments.iter_mut().filter(|known| overridden.as_ref() == Some(&known.id)) {
                known.valid = true;
            }
            Ok(())
        })
        .await
    }
}

fn found<'a>(trace: &'a mut Trace, id: &str) -> Result<&'a mut Assessment> {
    trace.assessments.iter_mut().find(|known| known.id == id).ok_or(Error::not_found("assessment"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_found_in_either_form() {
        let table = [
            (Verdict::Feedback(json!({"value": true})), Some(json!(true))),
            (Verdict::Feedback(json!({"error": {"error_code": "X"}})), None),
            (Verdict::Expectation(json!({"value": "a"})), Some(json!("a"))),
            (
                Verdict::Expectation(json!({"serialized_value": {"serialization_format": "JSON_FORMAT", "value": "{\"a\": 1}"}})),
                Some(json!({"a": 1})),
            ),
            (Verdict::Issue(json!({"issue_name": "x"})), None),
        ];
        for (verdict, expected) in table {
            assert_eq!(verdict.value(), expected, "{verdict:?}");
        }
    }

    #[test]
    fn an_assessment_survives_its_record() {
        let assessment = Assessment {
            id: "a-1".to_owned(),
            name: "correct".to_owned(),
            span_id: None,
            source: json!({"source_type": "HUMAN", "source_id": "ada"}),
            created_ms: 1,
            updated_ms: 2,
            verdict: Verdict::Feedback(json!({"value": 0.5})),
            rationale: None,
            metadata: BTreeMap::new(),
            overrides: None,
            valid: true,
        };
        let text = serde_json::to_string(&assessment).unwrap();
        assert_eq!(serde_json::from_str::<Assessment>(&text).unwrap(), assessment, "{text}");
        let large = Assessment { rationale: Some("x".repeat(ASSESSMENT_BYTES_MAX)), ..assessment };
        assert!(large.checked().is_err());
    }
}
