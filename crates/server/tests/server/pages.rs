//! Lists of large things: page by page, each thing once, no answer larger than a page.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::Insula;

const MODELS: usize = 20;
/// About half a mebibyte of tags, which is all that a model may have.
const TAG_BYTES: usize = 100_000;
const TAGS: usize = 5;
/// A page of what is stored, as it is written in an answer, and two of them.
const LIST_BYTES_MAX: usize = 5 << 20;
const SEARCH_BYTES_MAX: usize = 9 << 20;

/// Reads all pages: how often each thing was on one, and how many pages there were.
async fn walk(
    insula: &Insula,
    token: &str,
    (items, id, bytes_max): (&str, &str, usize),
    next: impl Fn(Option<String>) -> (Method, String, Option<Value>),
) -> (BTreeMap<String, usize>, usize) {
    let (mut seen, mut after, mut pages) = (BTreeMap::new(), None, 0);
    loop {
        let (method, path, body) = next(after.take());
        let answer = insula.call(method, &path, Some(token), body).await.expect(200);
        assert!(answer.body.len() <= bytes_max, "{} bytes on a page of {path}", answer.body.len());
        let body = answer.json();
        pages += 1;
        for item in body[items].as_array().into_iter().flatten() {
            *seen.entry(item[id].as_str().unwrap().to_owned()).or_default() += 1;
        }
        let token = body["next"].as_str().or(body["next_page_token"].as_str()).filter(|token| !token.is_empty());
        after = token.map(str::to_owned);
        if after.is_none() {
            return (seen, pages);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_large_things_come_in_pages_of_bounded_bytes() {
    let insula = Insula::start().await;
    let admin = insula.tenant("alpha").await;
    let tags: BTreeMap<String, String> = (0..TAGS).map(|tag| (format!("t{tag}"), "x".repeat(TAG_BYTES))).collect();
    let names: Vec<String> = (0..MODELS).map(|model| format!("m{model:02}")).collect();
    for name in &names {
        insula.call(Method::PUT, &format!("/v1/models/{name}"), Some(&admin), Some(json!({"tags": tags}))).await.expect(200);
        let tags: Vec<Value> = (0..25).map(|tag| json!({"key": format!("t{tag}"), "value": "x".repeat(20_000)})).collect();
        insula.post("/api/2.0/mlflow/experiments/create", &admin, json!({"name": name, "tags": tags})).await.expect(200);
    }
    let once: BTreeMap<String, usize> = names.iter().map(|name| (name.clone(), 1)).collect();

    let list = |after: Option<String>| {
        let after = after.map_or_else(String::new, |after| format!("&after={after}"));
        (Method::GET, format!("/v1/models?limit=500{after}"), None)
    };
    let (seen, pages) = walk(&insula, &admin, ("items", "name", LIST_BYTES_MAX), list).await;
    assert_eq!((&seen, pages), (&once, 3), "of ten mebibytes, four on a page");

    let search = |token: Option<String>| {
        let token = token.map_or_else(String::new, |token| format!("&page_token={token}"));
        (Method::GET, format!("/api/2.0/mlflow/registered-models/search?max_results=500{token}"), None)
    };
    let (seen, pages) = walk(&insula, &admin, ("registered_models", "name", SEARCH_BYTES_MAX), search).await;
    assert!(seen == once && pages > 1, "{pages} pages of {seen:?}");

    let search = |token: Option<String>| {
        let body = json!({"max_results": 1000, "page_token": token.unwrap_or_default(), "filter": "name != 'Default'"});
        (Method::POST, "/api/2.0/mlflow/experiments/search".to_owned(), Some(body))
    };
    let (seen, pages) = walk(&insula, &admin, ("experiments", "name", SEARCH_BYTES_MAX), search).await;
    assert!(seen == once && pages > 1, "{pages} pages of {seen:?}");
}
