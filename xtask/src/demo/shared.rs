//! The shared stores of a demo: PostgreSQL and S3 of its own on loopback, which can be copied and exchanged like a folder.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::run::{command, quietly};
use crate::servers::Servers;

/// Servers over one folder at a time.
pub(super) struct Shared {
    folder: PathBuf,
    running: Option<Servers>,
}

impl Shared {
    /// Starts them over `folder/servers`.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let mut shared = Self { folder: folder.to_owned(), running: None };
        shared.over("servers")?;
        Ok(shared)
    }

    /// Stops what runs and starts over another folder.
    pub(super) fn over(&mut self, name: &str) -> Result<()> {
        self.stop()?;
        self.running = Some(Servers::start(&self.folder.join(name))?);
        Ok(())
    }

    /// Copies the stopped servers' folder.
    pub(super) fn copy(&self, to: &str) -> Result<()> {
        quietly(command("cp", &["-a"]).arg(self.folder.join("servers")).arg(self.folder.join(to))).map(drop)
    }

    /// Stops what runs.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |mut servers| servers.stop())
    }

    /// The part of a service's configuration that leads here.
    pub(super) fn settings(&self) -> Result<String> {
        let servers = self.running.as_ref().ok_or("the stores do not run")?;
        let variables = servers.variables();
        let of = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
            found.ok_or_else(|| format!("the servers say nothing of `{name}`"))
        };
        let owner = of("INSULA_PG_URL")?;
        let (_, address) = owner.split_once('@').ok_or("the server's URL names no user")?;
        let secret = of("INSULA_S3_ADMIN_SECRET")?;
        let role = |name: &str| format!("postgres://{name}:{secret}@{address}");
        Ok(format!(
            "[stores]\ntier = \"pooled\"\n[stores.postgres]\nrows_url = {:?}\ncontrol_url = {:?}\nowner_url = {owner:?}\nallow_plaintext = true\n\
             [stores.s3]\nendpoint = {:?}\nregion = \"us-east-1\"\naccess_key_id = {:?}\nsecret_access_key = {secret:?}\n\
             bucket_prefix = \"demo\"\ncredentials = \"iam\"\nallow_http = true\n",
            role("insula_rows"),
            role("insula_control"),
            of("INSULA_S3_ENDPOINT")?,
            of("INSULA_S3_ADMIN_KEY")?,
        ))
    }
}
