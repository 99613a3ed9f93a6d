//! A tenant of a test with its objects in either place, and a hand that reaches into that place behind the service's back.

use std::fs;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use super::super::objects::path;
use super::super::wire::{Answer, Wire};
use super::*;
use crate::place::{ObjectsPlace, S3Config, S3Credentials, Secret};
use crate::rows::tests::Island;

/// The S3 server of the tests: URL, key, secret. Without one a test says so and ends, or fails where servers are required.
pub(crate) fn server() -> Option<[String; 3]> {
    let all = ["INSULA_S3_ENDPOINT", "INSULA_S3_ADMIN_KEY", "INSULA_S3_ADMIN_SECRET"].map(|name| std::env::var(name).ok());
    if let [Some(endpoint), Some(key), Some(secret)] = all {
        return Some([endpoint, key, secret]);
    }
    assert!(
        std::env::var_os("INSULA_REQUIRE").is_none(),
        "no S3 server: set INSULA_S3_ENDPOINT, INSULA_S3_ADMIN_KEY, INSULA_S3_ADMIN_SECRET"
    );
    println!("SKIPPED: no S3 server: set INSULA_S3_ENDPOINT, INSULA_S3_ADMIN_KEY, INSULA_S3_ADMIN_SECRET");
    None
}

pub(crate) fn config([endpoint, key, secret]: [String; 3], credentials: S3Credentials) -> S3Config {
    S3Config {
        endpoint: Some(endpoint),
        region: "us-east-1".to_owned(),
        access_key_id: key,
        secret_access_key: Secret::new(secret),
        credentials,
        bucket_prefix: "test".to_owned(),
    }
}

/// One tenant and its objects.
pub(in crate::blobs) struct Home {
    pub(in crate::blobs) place: Place,
    pub(in crate::blobs) tenant: Island,
    pub(in crate::blobs) bucket: Option<Rented>,
}

/// A bucket that is given back at the end.
pub(in crate::blobs) struct Rented {
    pub(in crate::blobs) s3: S3,
    pub(in crate::blobs) tenant: TenantId,
    pub(in crate::blobs) place: ObjectsPlace,
}

impl Rented {
    pub(in crate::blobs) async fn new(s3: &S3, tenant: TenantId) -> Self {
        Self { s3: s3.clone(), tenant, place: s3.provision(tenant, "acme", &[], &s3.fresh_name().unwrap()).await.unwrap() }
    }

    pub(in crate::blobs) fn parts(&self) -> (&str, &str, &str) {
        match &self.place {
            ObjectsPlace::Bucket { name, access_key_id, sealed_secret } => (name, access_key_id, sealed_secret),
            ObjectsPlace::Folder => panic!("no bucket"),
        }
    }

    pub(in crate::blobs) fn name(&self) -> &str {
        self.parts().0
    }

    pub(in crate::blobs) fn objects(&self) -> Objects {
        let (name, key, secret) = self.parts();
        self.s3.open(self.tenant, name, key, secret).unwrap()
    }

    pub(in crate::blobs) fn wire(&self) -> Wire {
        let (name, key, secret) = self.parts();
        self.s3.tenant_wire(self.tenant, name, key, secret).unwrap()
    }

    pub(in crate::blobs) async fn call(&self, method: Method, path: &str, query: &[(&str, &str)], body: Vec<u8>) -> Answer {
        self.wire().call(method, &format!("/{}{path}", self.name()), query, body).await.unwrap()
    }

    pub(in crate::blobs) async fn give_back(&self) {
        let (name, key, secret) = self.parts();
        self.s3.destroy(self.tenant, name, key, secret).await.unwrap();
    }
}

impl Home {
    pub(in crate::blobs) fn folder() -> Self {
        let place = Place::new();
        Self { tenant: place.tenant(1), place, bucket: None }
    }

    pub(in crate::blobs) async fn bucket() -> Option<Self> {
        let server = server()?;
        let home = Self::folder();
        let s3 = home.s3(config(server, S3Credentials::Iam { endpoint: None }));
        let bucket = Some(Rented::new(&s3, home.tenant.id).await);
        Some(Self { bucket, ..home })
    }

    pub(in crate::blobs) fn s3(&self, config: S3Config) -> S3 {
        S3::new(config, self.place.root.service_id(), self.place.root.control_key()).unwrap()
    }

    pub(in crate::blobs) fn objects(&self) -> Option<Objects> {
        self.bucket.as_ref().map(Rented::objects)
    }

    pub(in crate::blobs) async fn create(&self) -> Store {
        self.tenant.create_with(self.objects()).await
    }

    pub(in crate::blobs) async fn open(&self) -> Store {
        self.tenant.open_with(self.objects()).await.unwrap()
    }

    pub(in crate::blobs) async fn end(self) {
        if let Some(bucket) = &self.bucket {
            bucket.give_back().await;
        }
    }

    /// What is stored, as it is stored.
    pub(in crate::blobs) async fn raw(&self, id: BlobId) -> Vec<u8> {
        let Some(bucket) = &self.bucket else { return fs::read(self.file(id)).unwrap() };
        let objects = bucket.objects();
        let length = self.length(id).await;
        let source = Arc::new(objects.open(id, length).await.unwrap());
        source.read(0, length).await.unwrap().to_vec()
    }

    async fn length(&self, id: BlobId) -> u64 {
        let Some(bucket) = &self.bucket else { return fs::metadata(self.file(id)).unwrap().len() };
        let listed = bucket.call(Method::GET, "", &[("list-type", "2"), ("prefix", &format!("objects/{id}"))], Vec::new()).await;
        listed.records("Contents").remove(0).remove("Size").unwrap().parse().unwrap()
    }

    /// Somebody puts other bytes there.
    pub(in crate::blobs) async fn put_raw(&self, id: BlobId, bytes: &[u8]) {
        match &self.bucket {
            None => fs::write(self.file(id), bytes).unwrap(),
            Some(bucket) => {
                let answer = bucket.call(Method::PUT, &format!("/objects/{id}"), &[], bytes.to_vec()).await;
                assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
            }
        }
    }

    /// Somebody removes it.
    pub(in crate::blobs) async fn remove_raw(&self, id: BlobId) {
        match &self.bucket {
            None => fs::remove_file(self.file(id)).unwrap(),
            Some(bucket) => {
                bucket.call(Method::DELETE, &format!("/objects/{id}"), &[], Vec::new()).await.done("removing").unwrap();
            }
        }
    }

    fn file(&self, id: BlobId) -> std::path::PathBuf {
        path(&self.tenant.dir.join("blobs"), id)
    }

    /// How many objects, finished and not, lie there.
    pub(in crate::blobs) async fn lying(&self) -> usize {
        let Some(bucket) = &self.bucket else {
            let folders = fs::read_dir(self.tenant.dir.join("blobs")).unwrap();
            return folders.map(|folder| fs::read_dir(folder.unwrap().path()).unwrap().count()).sum();
        };
        let objects = bucket.call(Method::GET, "", &[("list-type", "2"), ("prefix", "objects/")], Vec::new()).await;
        let uploads = bucket.call(Method::GET, "", &[("uploads", "")], Vec::new()).await;
        objects.done("list").unwrap().records("Contents").len() + uploads.done("list").unwrap().records("Upload").len()
    }

    /// As many lie there in the end: a bucket is tidied in the background.
    pub(in crate::blobs) async fn settles_at(&self, expected: usize, what: &str) {
        let begun = Instant::now();
        loop {
            let lying = self.lying().await;
            if lying == expected {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(10) && self.bucket.is_some(), "{what}: {lying} objects instead of {expected}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
