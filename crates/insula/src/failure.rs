//! What can go wrong on the command line's side of the wire, and how it ends the program.

use reqwest::StatusCode;
use serde::Deserialize;

/// Result of every command.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Longest piece of an answer that is no problem document which an error repeats, in characters.
const EXCERPT_CHARS_MAX: usize = 200;

/// Kind of a failure: the exit status. Part of the interface, listed in `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Nothing more specific.
    Failed,
    /// The command line.
    Usage,
    /// No credential, or one that is not valid.
    Unauthenticated,
    /// Not there, or not allowed.
    Absent,
    /// A limit or rate.
    Quota,
    /// What was sent is not valid.
    Input,
    /// In conflict with what is there.
    Conflict,
    /// Cannot be reached, or cannot do it now.
    Unavailable,
    /// A proof does not hold.
    Verification,
}

impl Class {
    /// Exit status.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unauthenticated => 3,
            Self::Absent => 4,
            Self::Quota => 5,
            Self::Input => 6,
            Self::Conflict => 7,
            Self::Unavailable => 8,
            Self::Verification => 10,
        }
    }

    fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            401 => Self::Unauthenticated,
            403 | 404 => Self::Absent,
            429 => Self::Quota,
            409 => Self::Conflict,
            408 | 502 | 503 | 504 => Self::Unavailable,
            400..=499 => Self::Input,
            _ => Self::Failed,
        }
    }
}

/// A failure, for people and for scripts.
#[derive(Debug)]
pub(crate) struct Failure {
    class: Class,
    message: String,
    help: Option<String>,
    code: Option<String>,
    request: Option<String>,
}

/// What the service says: RFC 9457 on `/v1`, the Open Inference Protocol's form on `/v2`.
#[derive(Deserialize)]
struct Problem {
    code: Option<String>,
    detail: Option<String>,
    error: Option<String>,
    title: Option<String>,
}

impl Failure {
    /// A failure without further facts.
    pub(crate) fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), help: None, code: None, request: None }
    }

    /// The command line does not make sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Class::Usage, message)
    }

    /// What was given does not make sense.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::new(Class::Input, message)
    }

    /// A file that cannot be read or written.
    pub(crate) fn file(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new(Class::Failed, format!("cannot {what} `{}`: {error}", path.display()))
    }

    /// The same with what to do about it.
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// What the service answered.
    pub(crate) fn answered(status: StatusCode, request: Option<String>, retry_after: Option<&str>, body: &[u8]) -> Self {
        let problem: Option<Problem> = serde_json::from_slice(body).ok();
        let (code, message) = match problem {
            Some(problem) => (problem.code, problem.detail.or(problem.error).or(problem.title)),
            None => (None, None),
        };
        let message = message.unwrap_or_else(|| {
            let text: String = String::from_utf8_lossy(body).trim().chars().take(EXCERPT_CHARS_MAX).collect();
            if text.is_empty() { format!("the service answered {status}") } else { format!("the service answered {status}: {text}") }
        });
        let mut help = code.as_deref().and_then(server::remedy).map(str::to_owned);
        if let Some(seconds) = retry_after {
            let wait = format!("try again in {seconds} s");
            help = Some(help.map_or(wait.clone(), |help| format!("{help} ({wait})")));
        }
        Self { class: Class::of(status), message, help, code, request }
    }

    /// The service could not be asked.
    pub(crate) fn unreachable(url: &str, error: &reqwest::Error) -> Self {
        let mut causes = Vec::new();
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
        while let Some(inner) = cause {
            causes.push(inner.to_string());
            cause = inner.source();
        }
        let why = causes.pop().unwrap_or_else(|| error.to_string());
        if error.is_timeout() {
            return Self::new(Class::Unavailable, format!("no answer from {url} in time"))
                .help("raise --timeout, or look at the service's log");
        }
        let trust = why.contains("certificate") || why.contains("UnknownIssuer");
        let help = match trust {
            true => "give the service's certificate authority with --cacert or INSULA_CACERT; `insula serve` prints where it is",
            false => "is the service running, and is INSULA_URL right?",
        };
        Self::new(Class::Unavailable, format!("cannot reach {url}: {why}")).help(help)
    }

    /// Its kind.
    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// Stable code, when the service gave one.
    pub(crate) fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Lines for standard error.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("error: {}", self.message);
        if let Some(help) = &self.help {
            text.push_str("\nhelp: ");
            text.push_str(help);
        }
        if let Some(request) = &self.request {
            text.push_str("\nrequest: ");
            text.push_str(request);
        }
        text
    }

    /// The same for scripts.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "error": self.message, "code": self.code, "help": self.help, "request": self.request, "status": self.class.status(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, body: &str) -> Failure {
        Failure::answered(StatusCode::from_u16(status).unwrap(), Some("r-1".to_owned()), None, body.as_bytes())
    }

    #[test]
    fn every_status_has_its_class() {
        let table = [
            (400, Class::Input),
            (401, Class::Unauthenticated),
            (403, Class::Absent),
            (404, Class::Absent),
            (405, Class::Input),
            (409, Class::Conflict),
            (413, Class::Input),
            (422, Class::Input),
            (429, Class::Quota),
            (500, Class::Failed),
            (502, Class::Unavailable),
            (503, Class::Unavailable),
            (504, Class::Unavailable),
        ];
        for (status, class) in table {
            assert_eq!(answered(status, "").class(), class, "{status}");
        }
    }

    #[test]
    fn classes_end_the_program_differently() {
        let all = [
            Class::Failed,
            Class::Usage,
            Class::Unauthenticated,
            Class::Absent,
            Class::Quota,
            Class::Input,
            Class::Conflict,
            Class::Unavailable,
            Class::Verification,
        ];
        let statuses: std::collections::BTreeSet<_> = all.iter().map(|class| class.status()).collect();
        assert_eq!(statuses.len(), all.len());
        assert!(!statuses.contains(&0));
    }

    #[test]
    fn a_problem_is_told_with_its_remedy() {
        let failure = answered(
            404,
            r#"{"type":"urn:insula:error:not_found","title":"t","status":404,"code":"not_found","detail":"there is no such model"}"#,
        );
        let text = failure.text();
        assert!(text.starts_with("error: there is no such model\nhelp: "), "{text}");
        assert!(text.ends_with("\nrequest: r-1"), "{text}");
        assert_eq!(failure.json()["code"], "not_found");
        assert_eq!(failure.json()["status"], 4);
    }

    #[test]
    fn what_is_no_problem_document_is_told_too() {
        assert_eq!(answered(502, "bad\ngateway").text(), "error: the service answered 502 Bad Gateway: bad\ngateway\nrequest: r-1");
        let failure = answered(422, r#"{"error":"`x` has no shape","code":"model_failed"}"#);
        assert!(failure.text().contains("`x` has no shape"), "{}", failure.text());
        let wait = Failure::answered(StatusCode::TOO_MANY_REQUESTS, None, Some("3"), b"{}");
        assert!(wait.text().contains("try again in 3 s"), "{}", wait.text());
    }

    #[test]
    fn every_documented_code_has_a_remedy() {
        for code in ["unauthenticated", "not_found", "quota_exceeded", "overloaded"] {
            assert!(server::remedy(code).is_some_and(|text| text.len() > 10), "{code}");
        }
        assert_eq!(server::remedy("no_such_code"), None);
    }
}
