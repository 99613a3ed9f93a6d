//! What MLflow accepts as a name, a value, an id, and what it says when it does not: clients look at the beginning of these messages.

use aws_lc_rs::digest::{SHA256, digest};

use crate::dataset::hex;
use crate::error::{Error, Result};

/// Longest key of a parameter, metric or tag in characters.
pub(crate) const KEY_CHARS_MAX: usize = 250;
/// Longest value of a parameter in characters.
pub(crate) const PARAM_CHARS_MAX: usize = 6000;
/// Longest value of a tag in characters.
pub(crate) const TAG_CHARS_MAX: usize = 8000;

/// A name that may be longer than a key of a record: the first 32 hex digits of its SHA-256.
pub(crate) fn name_hash(name: &str) -> String {
    let mut hash = hex(digest(&SHA256, name.as_bytes()).as_ref());
    hash.truncate(32);
    hash
}

/// The name of a parameter, metric or tag; `path` is where it stands in the request.
pub(crate) fn entity_name(path: &str, name: &str) -> Result<()> {
    let wrong = |why: String| Err(Error::invalid(format!("Invalid value {} for parameter '{path}' supplied: {why}", quoted(name))));
    if !name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '/' | '.' | '-' | ' ' | ':')) {
        return wrong(
            "Names may only contain alphanumerics, underscores (_), dashes (-), periods (.), spaces ( ), colon(:) and slashes (/)."
                .to_owned(),
        );
    }
    if name.starts_with("..") || name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return wrong(
            "Names may be treated as files in certain cases, and must not resolve to other names when treated as such.".to_owned(),
        );
    }
    Ok(())
}

/// An id that a run or model had where it comes from: of the form of those that are made up here, and of no other.
pub(crate) fn kept_id(field: &str, prefix: &str, id: String) -> Result<String> {
    let hex = |digits: &str| digits.len() == 32 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match id.strip_prefix(prefix).is_some_and(hex) {
        true => Ok(id),
        false => Err(Error::invalid(format!(
            "Invalid value {} for parameter '{field}' supplied: an id that is kept is `{prefix}` and 32 lower-case hex digits",
            quoted(&id)
        ))),
    }
}

/// At most so many characters.
pub(crate) fn length(what: &str, chars_max: usize, text: &str) -> Result<()> {
    if text.len() > chars_max && text.chars().count() > chars_max {
        return Err(Error::invalid(format!("'{what}' exceeds the maximum length of {chars_max} characters")));
    }
    Ok(())
}

/// Cut to so many characters: MLflow's own server does so with values of parameters and tags.
pub(crate) fn truncated(mut text: String, chars_max: usize) -> String {
    if text.len() > chars_max
        && let Some((at, _)) = text.char_indices().nth(chars_max)
    {
        text.truncate(at);
    }
    text
}

/// `json.dumps` of a text, cut for a message.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(truncated(text.to_owned(), 200)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_that_stay_what_they_are() {
        for good in ["loss", "val/loss", "a b", "x:y", "größe", ".hidden", "a..b", "a/..b", "-", "...".trim_start_matches('.').trim(), "a."]
        {
            assert_eq!(entity_name("key", good).is_ok(), !good.is_empty(), "{good}");
        }
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "..a", "a/./b", "a/../b", "a\nb", "a%b", "a\\b", "a#b"] {
            let message = entity_name("key", bad).unwrap_err().to_string();
            assert!(message.starts_with("Invalid value \""), "{message}");
        }
    }

    #[test]
    fn kept_ids_look_like_those_made_here() {
        let id = "0123456789abcdef".repeat(2);
        assert_eq!(kept_id("run_id", "", id.clone()).unwrap(), id);
        assert!(kept_id("model_id", "m-", format!("m-{id}")).is_ok());
        let long = format!("{id}0");
        for bad in ["", "models", "traces", "..", &id[1..], &long, &id.to_uppercase(), &format!("m-{id}")] {
            assert!(kept_id("run_id", "", bad.to_owned()).is_err(), "{bad}");
        }
        assert!(kept_id("model_id", "m-", id).is_err());
    }

    #[test]
    fn lengths_are_in_characters() {
        assert!(length("name", 3, "äöü").is_ok());
        assert_eq!(length("name", 3, "äöüx").unwrap_err().to_string(), "'name' exceeds the maximum length of 3 characters");
        assert_eq!(truncated("äöüx".to_owned(), 3), "äöü");
        assert_eq!(truncated("ab".to_owned(), 3), "ab");
    }
}
