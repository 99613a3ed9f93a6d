//! A kernel in a folder of its own, and shortcuts to its parts.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tenancy::act::{Act, DatasetRead, DatasetWrite, KeyWrite};
use tenancy::*;

pub(crate) struct House {
    pub(crate) dir: tempfile::TempDir,
    stores: StoresConfig,
    /// Of the database; empty on the embedded tier.
    pub(crate) database: String,
}

/// The tier of `INSULA_TEST_TIER`: the whole suite runs again with each tenant's rows there.
pub(crate) fn tier() -> Tier {
    std::env::var("INSULA_TEST_TIER").map_or(Tier::Embedded, |word| word.parse().unwrap())
}

/// Whether a test about files of the embedded tier has nothing to look at.
pub(crate) fn rows_are_elsewhere() -> bool {
    tier() != Tier::Embedded
}

/// Names the house's database to a child process.
pub(crate) const DATABASE: &str = "INSULA_TEST_DATABASE";

/// A database of its own on the server of `INSULA_PG_URL`, with roles of its own.
async fn stores() -> (StoresConfig, String) {
    if tier() == Tier::Embedded {
        return (StoresConfig::default(), String::new());
    }
    let name = format!("kernel_{}", RequestId::fresh());
    let superuser: sqlx::postgres::PgConnectOptions = server_url().parse().unwrap();
    let mut connection = sqlx::ConnectOptions::connect(&superuser).await.unwrap();
    for sql in [
        format!("CREATE ROLE {name}_owner LOGIN CREATEROLE CREATEDB PASSWORD '{name}'"),
        format!("CREATE DATABASE {name} OWNER {name}_owner TEMPLATE template0"),
    ] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }
    let stores = stores_in(&name);
    tenancy::migrate(&stores).await.unwrap();
    (stores, name)
}

/// What a kernel needs to use a database that was made before; nothing for the embedded tier.
pub(crate) fn stores_in(name: &str) -> StoresConfig {
    if name.is_empty() {
        return StoresConfig::default();
    }
    let url = server_url();
    let (_, server) = url.rsplit_once('@').unwrap();
    let (server, _) = server.split_once('/').unwrap();
    let of = |role: &str| Secret::new(format!("postgres://{name}_{role}:{name}@{server}/{name}"));
    let postgres = PostgresConfig {
        rows_url: of("rows"),
        control_url: of("control"),
        owner_url: Some(of("owner")),
        prepared_statements: true,
        connections_pooled_max: 4,
        connections_tenant_max: 2,
        connections_dedicated_max: 8,
    };
    // Objects go to a bucket in one of the tiers, so that both places are under the same suite.
    let s3 = (tier() == Tier::Pooled).then(s3).flatten();
    StoresConfig { postgres: Some(postgres), s3, tier: tier(), ..StoresConfig::default() }
}

fn s3() -> Option<S3Config> {
    let of = |name: &str| std::env::var(name).ok();
    Some(S3Config {
        endpoint: Some(of("INSULA_S3_ENDPOINT")?),
        region: "us-east-1".to_owned(),
        access_key_id: of("INSULA_S3_ADMIN_KEY")?,
        secret_access_key: Secret::new(of("INSULA_S3_ADMIN_SECRET")?),
        credentials: S3Credentials::Iam { endpoint: None },
        bucket_prefix: "kernel".to_owned(),
    })
}

fn server_url() -> String {
    std::env::var("INSULA_PG_URL").unwrap_or_else(|_| panic!("INSULA_TEST_TIER needs INSULA_PG_URL"))
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Record for Note {
    const KIND: &'static str = "note";
    fn key(&self) -> String {
        self.name.clone()
    }
}

impl House {
    pub(crate) async fn new() -> Self {
        let (stores, database) = stores().await;
        Self { dir: tempfile::tempdir().unwrap(), stores, database }
    }

    /// For a kernel over these folders and this house's other stores.
    pub(crate) fn config(&self, data: &Path, keystore: &Path) -> KernelConfig {
        KernelConfig { stores: self.stores.clone(), ..config(data, keystore) }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn keystore(&self) -> PathBuf {
        self.dir.path().join("keystore")
    }

    pub(crate) async fn open(&self) -> Kernel {
        loop {
            match Kernel::open(self.config(&self.data(), &self.keystore())).await {
                Ok((kernel, _)) => return kernel,
                // The one before is just letting go.
                Err(Error::Unavailable(_)) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    pub(crate) async fn operator(&self, kernel: &Kernel) -> (Operator, String) {
        let secret = std::fs::read_to_string(self.keystore().join("bootstrap.secret")).unwrap();
        let key = kernel.bootstrap(secret.trim(), &RequestId::fresh()).await.unwrap();
        (operator(kernel, key.secret()).await, key.secret().to_owned())
    }
}

pub(crate) fn config(data: &Path, keystore: &Path) -> KernelConfig {
    KernelConfig {
        data_dir: data.to_owned(),
        keystore_dir: keystore.to_owned(),
        issuer: "https://localhost:8443".to_owned(),
        stores_open_max: 8,
        limits: Limits::default(),
        stores: Default::default(),
    }
}

pub(crate) async fn operator(kernel: &Kernel, key: &str) -> Operator {
    match kernel.authenticate(Presented::Bearer(key), &RequestId::fresh()).await.unwrap() {
        Identity::Operator(operator) => operator,
        Identity::Tenant(_) => panic!("an operator's key"),
    }
}

pub(crate) async fn tenant_new(operator: &Operator, name: &str) -> String {
    let spec = TenantSpec { name: name.parse().unwrap(), admin: "ada".parse().unwrap(), limits: None, tier: None };
    operator.tenant_create(spec).await.unwrap().admin_key.secret().to_owned()
}

pub(crate) async fn tenant(kernel: &Kernel, key: &str) -> Result<Tenant> {
    match kernel.authenticate(Presented::Bearer(key), &RequestId::fresh()).await? {
        Identity::Tenant(caller) => kernel.open_tenant(caller).await,
        Identity::Operator(_) => panic!("a tenant's key"),
    }
}

pub(crate) async fn permit<A: Act>(kernel: &Kernel, key: &str, resource: &str) -> Result<Permit<A>> {
    tenant(kernel, key).await?.allow::<A>(resource)
}

pub(crate) async fn note_put(kernel: &Kernel, key: &str, name: &str, text: &str) -> Result<()> {
    let permit = permit::<DatasetWrite>(kernel, key, name).await?;
    let mut tx = permit.tx().await?;
    tx.put(&Note { name: name.to_owned(), text: text.to_owned() }).await?;
    tx.commit().await?;
    permit.finish().map(|_| ())
}

pub(crate) async fn note_get(kernel: &Kernel, key: &str, name: &str) -> Result<Option<Note>> {
    let permit = permit::<DatasetRead>(kernel, key, name).await?;
    let note = permit.rows().get::<Note>(name).await?;
    let _ = permit.finish()?;
    Ok(note)
}

pub(crate) async fn blob_put(kernel: &Kernel, key: &str, bytes: &[u8]) -> Result<BlobId> {
    let permit = permit::<DatasetWrite>(kernel, key, "blob").await?;
    let mut upload = permit.blob_create().await?;
    upload.write(Bytes::copy_from_slice(bytes)).await?;
    let stored = upload.finish().await?;
    let mut tx = permit.tx().await?;
    let id = tx.attach(stored).await?;
    tx.commit().await?;
    let _ = permit.finish()?;
    Ok(id)
}

pub(crate) async fn blob_get(kernel: &Kernel, key: &str, id: BlobId) -> Result<Bytes> {
    let permit = permit::<DatasetRead>(kernel, key, "blob").await?;
    let reader = permit.blobs().open(id).await?;
    let bytes = reader.read_at(0, usize::try_from(reader.bytes()).unwrap()).await?;
    let _ = permit.finish()?;
    Ok(bytes)
}

pub(crate) async fn key_new(kernel: &Kernel, admin: &str, member: &str, scope: Scope) -> Result<String> {
    let permit = permit::<KeyWrite>(kernel, admin, "").await?;
    let expires_at =
        i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros()).unwrap() + 3_600_000_000;
    let spec = KeySpec { name: "k".parse().unwrap(), member: member.parse().unwrap(), scope, expires_at };
    let issued = permit.key_issue(spec).await?;
    let _ = permit.finish()?;
    Ok(issued.secret().to_owned())
}

pub(crate) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// No stored file holds the marker in clear.
pub(crate) fn nowhere_in_clear(dir: &Path, marker: &str) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            nowhere_in_clear(&entry.path(), marker);
        } else {
            let bytes = std::fs::read(entry.path()).unwrap();
            assert!(!bytes.windows(marker.len()).any(|window| window == marker.as_bytes()), "{} holds `{marker}`", entry.path().display());
        }
    }
}
