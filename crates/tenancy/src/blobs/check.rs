//! An S3 configuration, looked at before a start: does the server answer, and are the access keys good for what they are for?
//!
//! Nothing is changed, so the right to make a bucket or a user is not proven; making the first tenant does that.

use bytes::Bytes;
use http::{Method, StatusCode};

use super::provision::S3;
use super::wire::{Answer, Http, Wire};
use crate::error::{Error, Result};
use crate::place::{S3Config, S3Credentials, S3Tenant};
use crate::seal::Key;
use crate::stores::StoreFinding;

/// Configured access keys that are tried.
const CONFIGURED_MAX: usize = 200;

/// Looks at everything that tenants' objects need.
pub(crate) async fn check_s3(config: &S3Config) -> Vec<StoreFinding> {
    match look(config).await {
        Ok(findings) => findings,
        Err(Error::Invalid(text)) => vec![StoreFinding::bad(format!("S3: {text}"), "put right what is named above in `[stores.s3]`")],
        Err(Error::Unavailable(_)) => {
            let what = format!("S3: no answer from `{}`", config.endpoint.as_deref().unwrap_or("AWS"));
            vec![StoreFinding::bad(what, "start the server, and check `endpoint` and the network between")]
        }
        Err(error) => {
            let what = format!("S3: {error}: {}", error.private().unwrap_or_default());
            vec![StoreFinding::bad(what, "look into the log of the object store")]
        }
    }
}

async fn look(config: &S3Config) -> Result<Vec<StoreFinding>> {
    // Who we are matters to marks and sealed secrets alone, of which there are none here.
    let s3 = S3::new(config.clone(), [0; 16], &Key::random()?)?;
    let http = Http::new()?;
    match &config.credentials {
        S3Credentials::Iam { .. } => {
            let bucket = s3.fresh_name()?;
            let wire = Wire::s3(config, &http, &config.access_key_id, &config.secret_access_key)?;
            let key = service_key(&listed(&wire, &bucket).await?);
            if !key.ok {
                return Ok(vec![key]);
            }
            let iam = Wire::iam(config, &http)?.ok_or_else(|| Error::internal("no wire to the IAM API"))?;
            Ok(vec![key, users(&iam.action("ListAccessKeys", &[("UserName", &bucket)], false).await?)])
        }
        S3Credentials::Configured(tenants) => {
            let mut findings = Vec::new();
            for (name, given) in tenants.iter().take(CONFIGURED_MAX) {
                let wire = Wire::s3(config, &http, &given.access_key_id, &given.secret_access_key)?;
                findings.extend(configured(name, given, &listed(&wire, &given.bucket).await?));
            }
            let (all, bad) = (tenants.len(), findings.len());
            if bad == 0 {
                let tried = all.min(CONFIGURED_MAX);
                findings.push(StoreFinding::good(format!("S3 answers, and {tried} of {all} configured access keys open their buckets")));
            }
            Ok(findings)
        }
    }
}

async fn listed(wire: &Wire, bucket: &str) -> Result<Answer> {
    wire.call(Method::GET, &format!("/{bucket}"), &[("list-type", "2"), ("max-keys", "1")], Bytes::new()).await
}

/// What the server says when the service's own key asks for a bucket that nobody has.
fn service_key(answer: &Answer) -> StoreFinding {
    if answer.status == StatusCode::NOT_FOUND {
        return StoreFinding::good("S3 answers, and takes the service's access key");
    }
    let what = format!("S3: the service's access key is answered {}", said(answer));
    match answer.code().as_str() {
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AuthorizationHeaderMalformed" => {
            StoreFinding::bad(what, "check `access_key_id`, `secret_access_key` and `region` in `[stores.s3]`")
        }
        _ => StoreFinding::bad(what, "give the key the rights that docs/shared-stores.md lists for your server"),
    }
}

/// What the server says about the keys of a user that nobody made.
fn users(answer: &Answer) -> StoreFinding {
    if answer.code() == "NoSuchEntity" || (answer.status.is_success() && answer.text.contains("ListAccessKeysR")) {
        return StoreFinding::good("S3 has an API for users (IAM), and the service's access key may use it");
    }
    StoreFinding::bad(
        format!("S3: the API for users (IAM) answers {}", said(answer)),
        "give the service's access key the rights on users that docs/shared-stores.md lists; if the server has no such API, make a bucket and \
         a key for each tenant and name them in `[stores.s3.credentials.NAME]`",
    )
}

/// What is wrong with a key that the operator made, if something is.
fn configured(name: &str, given: &S3Tenant, answer: &Answer) -> Option<StoreFinding> {
    let bucket = &given.bucket;
    match answer.status {
        status if status.is_success() => None,
        StatusCode::NOT_FOUND => Some(StoreFinding::bad(format!("S3: there is no bucket `{bucket}` for `{name}`"), "make it")),
        _ => Some(StoreFinding::bad(
            format!("S3: the access key of `{name}` is answered {} at its bucket `{bucket}`", said(answer)),
            format!("check the key in `[stores.s3.credentials.{name}]`, and let it read, write, list and delete in `{bucket}`"),
        )),
    }
}

fn said(answer: &Answer) -> String {
    format!("{} {}", answer.status.as_u16(), answer.code()).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::tests::home::{config, server};
    use crate::place::Secret;

    fn bad(findings: &[StoreFinding], words: &str) {
        let found = findings.iter().find(|finding| !finding.ok && finding.what.contains(words));
        assert!(found.is_some_and(|finding| finding.remedy.is_some()), "`{words}` is not in {findings:#?}");
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_server_is_named_with_a_remedy() {
        let Some(server) = server() else { return };
        let good = config(server, S3Credentials::Iam { endpoint: None });
        let found = check_s3(&good).await;
        assert!(found.len() == 2 && found.iter().all(|finding| finding.ok && finding.remedy.is_none()), "{found:#?}");

        let wrong = Secret::new("wrong".to_owned());
        bad(&check_s3(&S3Config { secret_access_key: wrong.clone(), ..good.clone() }).await, "SignatureDoesNotMatch");
        bad(&check_s3(&S3Config { access_key_id: "nobody".to_owned(), ..good.clone() }).await, "InvalidAccessKeyId");
        bad(&check_s3(&S3Config { bucket_prefix: "Upper".to_owned(), ..good.clone() }).await, "no prefix of buckets");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let nowhere = Some(format!("http://127.0.0.1:{port}"));
        bad(&check_s3(&S3Config { endpoint: nowhere.clone(), ..good.clone() }).await, "no answer");
        bad(&check_s3(&S3Config { credentials: S3Credentials::Iam { endpoint: nowhere }, ..good.clone() }).await, "no answer");

        // A key that opens one bucket is none for the service.
        let place = crate::rows::tests::Place::new();
        let s3 = S3::new(good.clone(), place.root.service_id(), place.root.control_key()).unwrap();
        let rented = crate::blobs::tests::home::Rented::new(&s3, place.tenant(1).id).await;
        let (bucket, access_key_id, sealed) = rented.parts();
        let secret_access_key = Secret::new(s3.unsealed(rented.tenant, bucket, sealed));
        let given = S3Tenant { bucket: bucket.to_owned(), access_key_id: access_key_id.to_owned(), secret_access_key };
        let small =
            S3Config { access_key_id: given.access_key_id.clone(), secret_access_key: given.secret_access_key.clone(), ..good.clone() };
        assert!(check_s3(&small).await.iter().any(|finding| !finding.ok && finding.remedy.is_some()), "{:#?}", check_s3(&small).await);

        let with =
            |given: S3Tenant| S3Config { credentials: S3Credentials::Configured([("acme".to_owned(), given)].into()), ..good.clone() };
        assert!(check_s3(&with(given.clone())).await.iter().all(|finding| finding.ok));
        bad(&check_s3(&with(S3Tenant { secret_access_key: wrong, ..given.clone() })).await, "SignatureDoesNotMatch");
        bad(&check_s3(&with(S3Tenant { bucket: s3.fresh_name().unwrap(), ..given })).await, "`acme`");
        rented.give_back().await;
    }
}
