//! What holds for buckets alone: whose they are, who opens them, and what happens when their server is gone.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use super::super::wire::{Http, Wire};
use super::home::{Home, Rented, config, server};
use super::*;
use crate::place::{ObjectsPlace, S3Config, S3Credentials, S3Tenant, Secret};

fn iam() -> S3Credentials {
    S3Credentials::Iam { endpoint: None }
}

fn name_of(place: &ObjectsPlace) -> Option<String> {
    match place {
        ObjectsPlace::Bucket { name, .. } => Some(name.clone()),
        ObjectsPlace::Folder => None,
    }
}

fn admin(config: &S3Config) -> Wire {
    Wire::s3(config, &Http::new().unwrap(), &config.access_key_id, &config.secret_access_key).unwrap()
}

#[tokio::test]
async fn every_bucket_refuses_anothers_access_key() {
    let Some(server) = server() else { return };
    let place = Place::new();
    let config = config(server, iam());
    let s3 = S3::new(config.clone(), place.root.service_id(), place.root.control_key()).unwrap();
    let (mine, theirs) = (Rented::new(&s3, place.tenant(1).id).await, Rented::new(&s3, place.tenant(2).id).await);
    let others = [theirs.name().to_owned()];
    let broken =
        |probes: &[IsolationProbe]| probes.iter().filter(|probe| probe.outcome != ProbeOutcome::Holds).cloned().collect::<Vec<_>>();

    let probes = s3.verify_isolation(mine.tenant, &mine.place, &others).await.unwrap();
    assert!(broken(&probes).is_empty(), "{:#?}", broken(&probes));
    let tried = |bucket: &str| probes.iter().filter(|probe| probe.bucket == bucket).count();
    assert_eq!((tried(mine.name()), tried(theirs.name()), tried("*")), (6, 7, 2));
    let back = s3.verify_isolation(theirs.tenant, &theirs.place, &[mine.name().to_owned()]).await.unwrap();
    assert!(broken(&back).is_empty(), "the neighbour's own key works on its own bucket: {:#?}", broken(&back));

    // The service's key opens everything, so a tenant with it must be found out.
    let (name, _, _) = mine.parts();
    let leaky = S3::new(
        S3Config {
            credentials: S3Credentials::Configured(BTreeMap::from([(
                "acme".to_owned(),
                S3Tenant {
                    bucket: name.to_owned(),
                    access_key_id: config.access_key_id.clone(),
                    secret_access_key: config.secret_access_key.clone(),
                },
            )])),
            ..config.clone()
        },
        place.root.service_id(),
        place.root.control_key(),
    )
    .unwrap();
    let all_opening = leaky.provision(mine.tenant, "acme", &[], &leaky.fresh_name().unwrap()).await.unwrap();
    let probes = s3.verify_isolation(mine.tenant, &all_opening, &others).await.unwrap();
    let on_others = broken(&probes).iter().filter(|probe| !probe.own && probe.outcome == ProbeOutcome::Broken).count();
    assert!(on_others >= 8, "{probes:#?}");
    assert_eq!(theirs.call(Method::GET, "", &[("list-type", "2")], Vec::new()).await.records("Contents").len(), 1, "probes leave nothing");

    // A key that opens nothing proves nothing; nor does a bucket that is not there.
    mine.give_back().await;
    let probes = s3.verify_isolation(mine.tenant, &mine.place, &others).await.unwrap();
    assert!(probes.iter().any(|probe| probe.own && probe.outcome != ProbeOutcome::Holds), "{probes:#?}");
    let probes = s3.verify_isolation(theirs.tenant, &theirs.place, &[theirs.name().to_owned()]).await.unwrap();
    assert!(probes.iter().any(|probe| probe.act == "share" && probe.outcome == ProbeOutcome::Broken));
    assert!(matches!(s3.verify_isolation(theirs.tenant, &ObjectsPlace::Folder, &others).await, Err(Error::Invalid(_))));
    theirs.give_back().await;
}

#[tokio::test]
async fn a_bucket_bears_its_owners_mark() {
    let Some(server) = server() else { return };
    let place = Place::new();
    let config = config(server, iam());
    let s3 = S3::new(config.clone(), place.root.service_id(), place.root.control_key()).unwrap();
    let (tenant, other) = (place.tenant(1), place.tenant(2));
    let rented = Rented::new(&s3, tenant.id).await;
    let mark = format!("/{}", super::super::provision::MARK);
    let good = rented.call(Method::GET, &mark, &[], Vec::new()).await.done("reading").unwrap().text;
    let store = tenant.create_with(Some(rented.objects())).await;
    let id = stored(&store, b"hello").await;

    let foreign = Rented::new(&s3, other.id).await;
    let theirs = foreign.call(Method::GET, &mark, &[], Vec::new()).await.done("reading").unwrap().text;
    for (what, text) in [("another tenant's", theirs), ("changed", good.replace("v1", "v2")), ("empty", String::new())] {
        rented.call(Method::PUT, &mark, &[], text.into_bytes()).await.done("writing").unwrap();
        let objects = rented.objects();
        assert!(matches!(objects.open(id, 21).await.map(drop), Err(Error::Integrity(_))), "{what}");
        let (_, mut sink) = objects.begin(BlobId([1; 16])).unwrap();
        sink.write(b"x").unwrap();
        assert!(matches!(sink.finish().await, Err(Error::Integrity(_))), "{what}");
        assert!(matches!(objects.remove_all().await, Err(Error::Integrity(_))), "{what}");
        let (name, key, secret) = rented.parts();
        assert!(matches!(s3.destroy(tenant.id, name, key, secret).await, Err(Error::Integrity(_))), "{what}");
    }
    admin(&config).call(Method::DELETE, &format!("/{}{mark}", rented.name()), &[], Bytes::new()).await.unwrap().done("removing").unwrap();
    let (name, key, secret) = rented.parts();
    assert!(matches!(s3.destroy(tenant.id, name, key, secret).await, Err(Error::Integrity(_))), "no mark at all");
    let put = admin(&config).call(Method::PUT, &format!("/{}{mark}", rented.name()), &[], good).await;
    put.unwrap().done("writing").unwrap();

    // Secrets open for their tenant and bucket alone.
    assert!(matches!(s3.open(other.id, name, key, secret).map(drop), Err(Error::Integrity(_))));
    assert!(matches!(s3.open(tenant.id, foreign.name(), key, secret).map(drop), Err(Error::Integrity(_))));
    let elsewhere = Place::new();
    let stranger = S3::new(config.clone(), elsewhere.root.service_id(), elsewhere.root.control_key()).unwrap();
    assert!(matches!(stranger.open(tenant.id, name, key, secret).map(drop), Err(Error::Integrity(_))));
    foreign.give_back().await;
    rented.give_back().await;
    rented.give_back().await;
    let gone = admin(&config).call(Method::GET, &format!("/{name}"), &[("list-type", "2")], Bytes::new()).await.unwrap();
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    let refused = rented.wire().call(Method::GET, &format!("/{name}"), &[("list-type", "2")], Bytes::new()).await.unwrap();
    assert_ne!(refused.status, StatusCode::OK, "its access key is gone");
}

#[tokio::test]
async fn configured_buckets_are_adopted_once() {
    let Some(server) = server() else { return };
    let place = Place::new();
    let config = config(server, iam());
    let s3 = S3::new(config.clone(), place.root.service_id(), place.root.control_key()).unwrap();
    // The operator's part: a bucket with a key of its own.
    let made = Rented::new(&s3, place.tenant(9).id).await;
    let (bucket, key, secret) = made.parts();
    let secret = Secret::new(s3.unsealed(made.tenant, bucket, secret));
    let mark = format!("/{}", super::super::provision::MARK);
    made.call(Method::DELETE, &mark, &[], Vec::new()).await.done("removing").unwrap();
    let given = S3Tenant { bucket: bucket.to_owned(), access_key_id: key.to_owned(), secret_access_key: secret };
    let with = |tenants: Vec<(&str, S3Tenant)>| {
        let credentials = S3Credentials::Configured(tenants.into_iter().map(|(name, given)| (name.to_owned(), given)).collect());
        S3::new(S3Config { credentials, ..config.clone() }, place.root.service_id(), place.root.control_key())
    };
    let twice = with(vec![("acme", given.clone()), ("other", S3Tenant { access_key_id: "x".to_owned(), ..given.clone() })]);
    assert!(matches!(twice.map(drop), Err(Error::Invalid(_))), "one bucket, two tenants");
    let twice = with(vec![("acme", given.clone()), ("other", S3Tenant { bucket: "x".to_owned(), ..given.clone() })]);
    assert!(matches!(twice.map(drop), Err(Error::Invalid(_))), "one access key, two tenants");

    let configured = with(vec![("acme", given.clone())]).unwrap();
    let (tenant, other) = (place.tenant(1), place.tenant(2));
    assert!(matches!(configured.provision(tenant.id, "nobody", &[], "").await, Err(Error::Invalid(_))));
    assert!(matches!(configured.provision(tenant.id, "acme", &[bucket.to_owned()], "").await, Err(Error::Conflict(_))), "another tenant's");
    made.call(Method::PUT, "/something", &[], b"x".to_vec()).await.done("writing").unwrap();
    assert!(matches!(configured.provision(tenant.id, "acme", &[], "").await, Err(Error::Conflict(_))), "not empty");
    made.call(Method::DELETE, "/something", &[], Vec::new()).await.done("removing").unwrap();
    let adopted = configured.provision(tenant.id, "acme", &[], "").await.unwrap();
    assert_eq!(
        configured.provision(tenant.id, "acme", &[], "").await.map(|again| name_of(&again)).unwrap(),
        name_of(&adopted),
        "again after a crash"
    );
    assert!(matches!(configured.provision(other.id, "acme", &[], "").await, Err(Error::Conflict(_))), "marked for another");

    let rented = Rented { s3: configured, tenant: tenant.id, place: adopted };
    let store = tenant.create_with(Some(rented.objects())).await;
    let id = stored(&store, b"hello").await;
    assert_eq!(read(&store, id).await.unwrap(), b"hello");
    rented.give_back().await;
    rented.give_back().await;
    let left = rented.call(Method::GET, "", &[("list-type", "2")], Vec::new()).await.done("the operator's bucket stays").unwrap();
    assert!(left.records("Contents").is_empty());
    made.give_back().await;
}

#[tokio::test]
async fn an_existing_bucket_is_not_taken_over() {
    let Some(server) = server() else { return };
    let home = Home::folder();
    let config = config(server, iam());
    for prefix in ["Upper", "", "-x", "a_b", "a.b", &"x".repeat(31)] {
        let s3 = S3::new(S3Config { bucket_prefix: prefix.to_owned(), ..config.clone() }, [0; 16], home.place.root.control_key());
        assert!(matches!(s3.map(drop), Err(Error::Invalid(_))), "{prefix}");
    }
    let s3 = home.s3(config.clone());
    let name = s3.fresh_name().unwrap();
    admin(&config).call(Method::PUT, &format!("/{name}"), &[], Bytes::new()).await.unwrap().done("making").unwrap();
    let taken = s3.make_named(home.tenant.id, &name).await;
    assert!(matches!(taken, Err(Error::Conflict(_))), "{taken:?}");
    let there = admin(&config).call(Method::GET, &format!("/{name}"), &[("list-type", "2")], Bytes::new()).await.unwrap();
    assert_eq!(there.status, StatusCode::OK, "what was there stays");
    admin(&config).call(Method::DELETE, &format!("/{name}"), &[], Bytes::new()).await.unwrap().done("removing").unwrap();
}

#[tokio::test]
async fn a_refused_key_is_no_damage_and_no_outage() {
    let Some(home) = Home::bucket().await else { return };
    let store = home.create().await;
    let id = stored(&store, b"hello").await;
    let bucket = home.bucket.as_ref().unwrap();
    let (name, key, _) = bucket.parts();
    let wrong = bucket.s3.sealed(home.tenant.id, name, &Secret::new("wrong".to_owned()));
    let objects = bucket.s3.open(home.tenant.id, name, key, &wrong).unwrap();
    let found = objects.open(id, 21).await.map(drop);
    assert!(matches!(&found, Err(Error::Internal(context)) if context.contains("403")), "{found:?}");
    home.end().await;
}

/// A server of this test's own, which it may kill.
struct Server {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Server {
    async fn start() -> Option<Self> {
        server()?;
        let (Ok(_), Ok(scripts)) = (std::env::var("INSULA_S3_BIN"), std::env::var("INSULA_SERVERS")) else {
            assert!(std::env::var_os("INSULA_REQUIRE").is_none(), "no S3 server to kill: set INSULA_S3_BIN and INSULA_SERVERS");
            println!("SKIPPED: no S3 server to kill: set INSULA_S3_BIN and INSULA_SERVERS");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let port = 20_000 + u16::from_be_bytes(seal::random().unwrap()) % 8_000;
        let child = Self::spawn(Path::new(&scripts), &dir, port);
        let mut server = Self { child, dir, port };
        server.ready().await;
        Some(server)
    }

    fn spawn(scripts: &Path, dir: &tempfile::TempDir, port: u16) -> Child {
        Command::new("sh")
            .args([scripts.join("s3.sh").as_os_str(), dir.path().join("s3").as_os_str(), port.to_string().as_ref()])
            .env("AWS_ACCESS_KEY_ID", "ADMIN")
            .env("AWS_SECRET_ACCESS_KEY", "secret-of-a-test")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap()
    }

    fn config(&self) -> S3Config {
        config([format!("http://127.0.0.1:{}", self.port), "ADMIN".to_owned(), "secret-of-a-test".to_owned()], iam())
    }

    /// It makes buckets.
    async fn ready(&mut self) {
        let begun = Instant::now();
        let wire = admin(&self.config());
        let bucket = format!("/ready-{}", hex(&seal::random::<8>().unwrap()));
        loop {
            let made = wire.call(Method::PUT, &bucket, &[], Bytes::new()).await;
            let put = wire.call(Method::PUT, &format!("{bucket}/x"), &[], "x").await;
            if made.is_ok() && put.is_ok_and(|put| put.status.is_success()) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{}", std::fs::read_to_string(self.dir.path().join("log")).unwrap());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn restart(&mut self) {
        self.child = Self::spawn(Path::new(&std::env::var("INSULA_SERVERS").unwrap()), &self.dir, self.port);
        self.ready().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_is_an_outage_and_loses_nothing() {
    let Some(mut server) = Server::start().await else { return };
    let home = Home::folder();
    let s3 = home.s3(server.config());
    let rented = Rented::new(&s3, home.tenant.id).await;
    let home = Home { bucket: Some(rented), ..home };
    let store = home.create().await;
    let kept = stored(&store, &content(9_000_000)).await;
    let small = stored(&store, b"hello").await;

    let mut writer = store.blob_writer().unwrap();
    for _ in 0..12 {
        writer.write(content(1_000_000).into()).await.unwrap();
    }
    server.kill();
    let begun = Instant::now();
    let lost = async {
        for _ in 0..40 {
            writer.write(content(1_000_000).into()).await?;
        }
        writer.finish().await
    };
    let lost = lost.await.map(drop);
    assert!(matches!(&lost, Err(Error::Unavailable(text)) if text.contains("object store")), "{lost:?}");
    assert!(begun.elapsed() < Duration::from_secs(60), "the budget for repetitions is bounded: {:?}", begun.elapsed());
    let finished = async {
        let mut writer = store.blob_writer().unwrap();
        writer.write(Bytes::from_static(b"small")).await?;
        writer.finish().await
    };
    assert!(matches!(finished.await.map(drop), Err(Error::Unavailable(_))));
    assert!(matches!(read(&store, kept).await, Err(Error::Unavailable(_))), "an outage is no damage");
    let fresh = s3.fresh_name().unwrap();
    assert!(matches!(s3.provision(home.place.tenant(2).id, "x", &[], &fresh).await, Err(Error::Unavailable(_))));
    // It dies too: the bucket has an upload that nobody will finish, and rows open without it.
    home.tenant.kill(store).await;
    let store = home.open().await;
    assert!(store.rows().blob(small).await.is_err());

    server.restart().await;
    assert!(read(&store, kept).await.unwrap() == content(9_000_000), "what was acknowledged is there");
    assert_eq!(read(&store, small).await.unwrap(), b"hello");
    let new = stored(&store, b"after").await;
    store.close().await.unwrap();
    assert_eq!(home.lying().await, 3, "swept at the end, since it could not be at the beginning");

    // At the end, too, the server may be away: then it is done at the next beginning.
    let store = home.open().await;
    stored(&store, b"one more").await;
    let mut writer = store.blob_writer().unwrap();
    for _ in 0..12 {
        writer.write(content(1_000_000).into()).await.unwrap();
    }
    server.kill();
    drop(writer);
    store.close().await.unwrap();
    server.restart().await;
    assert_eq!(home.lying().await, 5, "an upload that nobody will finish");
    let store = home.open().await;
    assert_eq!(home.lying().await, 4);
    store.close().await.unwrap();
    let store = home.open().await;
    assert_eq!(read(&store, new).await.unwrap(), b"after");
    drop(store);
    home.end().await;
}
