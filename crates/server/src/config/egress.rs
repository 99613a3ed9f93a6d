//! `[egress]`: what may be reached when tenants name an address.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;
use crate::egress::EgressConfig;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawEgress {
    http: bool,
    networks: Vec<String>,
    authority: Option<PathBuf>,
}

impl RawEgress {
    pub(super) fn validate(self) -> Result<EgressConfig, ConfigError> {
        let network = |text: &String| text.parse().map_err(|error| ConfigError(format!("`egress.networks`: {error}")));
        let networks = self.networks.iter().map(network).collect::<Result<_, _>>()?;
        Ok(EgressConfig { http: self.http, networks, authority: self.authority })
    }
}
