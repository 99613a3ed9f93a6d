//! From a tenant's placement to its open store: which database, which role, which bucket.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::blobs::{Objects, S3};
use crate::erasure::remove_folder;
use crate::place::{ObjectsPlace, Placement, RowsPlace, S3Config, S3Credentials, StoresConfig, Tier};
use crate::rows::Place;
use crate::rows::db::blocking;
use crate::rows::postgres::Postgres;
use crate::seal;

/// Random bytes of a role's password.
const PASSWORD_BYTES: usize = 32;
/// Tenants read at once when places are compared.
const TENANTS_PAGE: u32 = 1000;

/// The stores beside the data folder, connected.
pub(crate) struct Stores {
    pub(crate) config: StoresConfig,
    postgres: Option<Arc<Postgres>>,
    s3: Option<S3>,
    /// Held by who changes the note of buckets that are being made.
    pub(super) begun: AsyncMutex<()>,
}

impl Stores {
    /// Connects; refuses a server that is not as it must be.
    pub(crate) async fn connect(config: &StoresConfig, root: &RootStore) -> Result<Self> {
        if config.node.is_some() && config.postgres.is_none() {
            return Err(Error::Invalid("several nodes need PostgreSQL: give `[stores.postgres]`, or leave `[node]` out".to_owned()));
        }
        let postgres = match &config.postgres {
            Some(postgres) => Some(Postgres::connect(postgres).await?),
            None => None,
        };
        let s3 = config.s3.as_ref().map(|s3| S3::new(s3.clone(), root.service_id(), root.control_key())).transpose()?;
        let stores = Self { config: config.clone(), postgres, s3, begun: AsyncMutex::default() };
        stores.takes(config.tier)?;
        Ok(stores)
    }

    /// PostgreSQL, for what needs it.
    pub(crate) fn postgres(&self) -> Result<&Arc<Postgres>> {
        self.postgres
            .as_ref()
            .ok_or_else(|| Error::Invalid("this tier needs PostgreSQL: give `[stores.postgres]` in the configuration".to_owned()))
    }

    /// S3, for who has or gets a bucket.
    pub(crate) fn s3(&self) -> Result<&S3> {
        self.s3
            .as_ref()
            .ok_or_else(|| Error::Invalid("this tenant's objects are in S3: give `[stores.s3]` in the configuration".to_owned()))
    }

    /// Refuses a tier that tenants cannot have here.
    pub(crate) fn takes(&self, tier: Tier) -> Result<()> {
        match tier {
            Tier::Embedded if self.config.node.is_some() => Err(Error::Invalid(
                "with several nodes a tenant cannot live in the data folder of one: take pooled, schema or database".to_owned(),
            )),
            Tier::Embedded => Ok(()),
            Tier::Pooled => self.postgres().map(drop),
            Tier::Schema | Tier::Database if self.config.postgres.as_ref().is_some_and(|postgres| postgres.owner_url.is_none()) => {
                Err(Error::Invalid(format!("the tier `{tier}` makes roles and schemas: give `owner_url` in `[stores.postgres]`")))
            }
            Tier::Schema | Tier::Database => self.postgres().map(drop),
        }
    }
}

impl Kernel {
    /// A placement in this tier, of which nothing is made yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no such tier here.
    pub(crate) fn placement_new(&self, id: TenantId, tier: Tier) -> Result<Placement> {
        self.0.stores.takes(tier)?;
        let sealed_password = || self.secret_seal(id, &Zeroizing::new(hex(&seal::random::<PASSWORD_BYTES>()?)));
        let rows = match tier {
            Tier::Embedded => RowsPlace::Embedded,
            Tier::Pooled => RowsPlace::Pooled,
            Tier::Schema => RowsPlace::Schema { sealed_password: sealed_password()? },
            Tier::Database => RowsPlace::Database { sealed_password: sealed_password()? },
        };
        Ok(Placement { rows, ..Placement::default() })
    }

    /// Makes what a placement names outside the data folder. Idempotent.
    pub(crate) async fn rows_place_make(&self, id: TenantId, placement: &Placement) -> Result<()> {
        let password = self.password(id, placement)?;
        match placement.rows.tier() {
            Tier::Embedded => Ok(()),
            tier => self.0.stores.postgres()?.provision(id, tier, password.as_ref().map_or("", |text| text.as_str())).await,
        }
    }

    /// Where its rows are, ready to be opened.
    pub(crate) async fn rows_place(&self, id: TenantId, placement: &Placement, fence: Option<u64>) -> Result<Place> {
        let tier = placement.rows.tier();
        if tier == Tier::Embedded {
            return Ok(Place::File);
        }
        let password = self.password(id, placement)?;
        let rows = self.0.stores.postgres()?.rows(id, tier, password.as_ref().map(|text| text.as_str())).await?;
        Ok(Place::Postgres(rows, fence))
    }

    /// Whether nothing was ever committed where its rows would be; asked of the place itself.
    ///
    /// # Errors
    /// When the place cannot say: then it is not known.
    pub(crate) async fn rows_place_empty(&self, id: TenantId, placement: &Placement) -> Result<bool> {
        match placement.rows.tier() {
            Tier::Embedded => Ok(!self.tenant_dir(id).join("rows.db").exists()),
            tier => {
                let password = self.password(id, placement)?;
                self.0.stores.postgres()?.is_empty(id, tier, password.as_ref().map(|text| text.as_str())).await
            }
        }
    }

    /// Destroys what a placement holds outside the data folder; nothing is left of it. Idempotent.
    pub(crate) async fn rows_place_destroy(&self, id: TenantId, placement: &Placement) -> Result<()> {
        match placement.rows.tier() {
            Tier::Embedded => Ok(()),
            tier => self.0.stores.postgres()?.destroy(id, tier).await,
        }
    }

    /// Makes a place for the objects of a tenant in this tier: a bucket where there is S3 and the rows are not in the data folder.
    pub(crate) async fn objects_place_new(&self, id: TenantId, name: &Name, tier: Tier) -> Result<ObjectsPlace> {
        let stores = &self.0.stores;
        let Some(s3) = stores.s3.as_ref().filter(|_| tier != Tier::Embedded) else { return Ok(ObjectsPlace::Folder) };
        // Buckets that the service makes have names that nobody could take.
        let configured = |s3: &S3Config| matches!(s3.credentials, S3Credentials::Configured(_));
        let fresh = s3.fresh_name()?;
        let taken = match stores.config.s3.as_ref().is_some_and(configured) {
            true => self.neighbours(id).await?.iter().flat_map(|(_, place)| place.buckets()).map(str::to_owned).collect(),
            false => {
                self.bucket_begin(id, &fresh).await?;
                Vec::new()
            }
        };
        s3.provision(id, name.as_str(), &taken, &fresh).await
    }

    /// Where its objects lie.
    pub(crate) fn objects_place(&self, id: TenantId, placement: &Placement) -> Result<Objects> {
        match &placement.objects {
            ObjectsPlace::Folder => Ok(Objects::folder(&self.tenant_dir(id).join("blobs"))),
            ObjectsPlace::Bucket { name, access_key_id, sealed_secret } => self.0.stores.s3()?.open(id, name, access_key_id, sealed_secret),
        }
    }

    /// The bucket to open a store with, if its objects are in one.
    pub(crate) fn bucket(&self, id: TenantId, placement: &Placement) -> Result<Option<Objects>> {
        match &placement.objects {
            ObjectsPlace::Folder => Ok(None),
            ObjectsPlace::Bucket { .. } => self.objects_place(id, placement).map(Some),
        }
    }

    /// Destroys the place of the objects with all of them. Idempotent.
    pub(crate) async fn objects_place_destroy(&self, id: TenantId, place: &ObjectsPlace) -> Result<()> {
        match place {
            ObjectsPlace::Folder => {
                let blobs = self.tenant_dir(id).join("blobs");
                blocking(move || remove_folder(&blobs)).await
            }
            ObjectsPlace::Bucket { name, access_key_id, sealed_secret } => {
                self.0.stores.s3()?.destroy(id, name, access_key_id, sealed_secret).await
            }
        }
    }

    /// Where all other tenants live, by name.
    pub(crate) async fn neighbours(&self, id: TenantId) -> Result<Vec<(TenantId, Placement)>> {
        let (mut neighbours, mut after) = (Vec::new(), None);
        loop {
            let page = self.0.control.tenants_page(after.as_ref(), TENANTS_PAGE).await?;
            let Some(last) = page.last() else { return Ok(neighbours) };
            after = Some(last.name.clone());
            for row in page.iter().filter(|row| row.id != id) {
                neighbours.push((row.id, Placement::parse(&row.placement)?));
            }
        }
    }

    /// Seals a password or secret of a placement.
    pub(crate) fn secret_seal(&self, id: TenantId, secret: &str) -> Result<String> {
        Ok(STANDARD.encode(seal::seal(&self.placement_key(id), b"placement", secret.as_bytes())?))
    }

    /// What [`Kernel::secret_seal`] sealed.
    pub(crate) fn secret_open(&self, id: TenantId, sealed: &str) -> Result<Zeroizing<String>> {
        let sealed = STANDARD.decode(sealed).map_err(Error::integrity)?;
        let plain = seal::open(&self.placement_key(id), b"placement", &sealed)?;
        Ok(Zeroizing::new(String::from_utf8(plain.to_vec()).map_err(Error::integrity)?))
    }

    /// Of the tenant's own role, where it has one.
    fn password(&self, id: TenantId, placement: &Placement) -> Result<Option<Zeroizing<String>>> {
        match &placement.rows {
            RowsPlace::Embedded | RowsPlace::Pooled => Ok(None),
            RowsPlace::Schema { sealed_password } | RowsPlace::Database { sealed_password } => {
                self.secret_open(id, sealed_password).map(Some)
            }
        }
    }

    fn placement_key(&self, id: TenantId) -> Key {
        self.0.root.control_key().derive("placement", &id.0)
    }
}

/// Makes and brings up to date everything in PostgreSQL, with the owner's role; what was applied, in words.
///
/// # Errors
/// [`Error::Invalid`] without PostgreSQL or an owner's URL in the configuration, or when an applied file has changed since.
pub async fn migrate(config: &StoresConfig) -> Result<Vec<String>> {
    let postgres = config.postgres.as_ref();
    Postgres::migrate(postgres.ok_or_else(|| Error::Invalid("there is nothing to migrate: no `[stores.postgres]`".to_owned()))?).await
}
