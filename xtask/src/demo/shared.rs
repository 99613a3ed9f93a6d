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
        self.running.as_ref().map(|servers| servers.settings("demo")).ok_or_else(|| "the stores do not run".to_owned())
    }
}
