//! `[traces]`: whether and where the service's own work is traced.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;
use crate::traces::TracesConfig;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTraces {
    endpoint: Option<String>,
    authorization_file: Option<PathBuf>,
    sample: Option<f64>,
    tenants: BTreeMap<String, f64>,
}

impl RawTraces {
    pub(super) fn validate(self) -> Result<Option<TracesConfig>, ConfigError> {
        let refuse = |why: String| Err(ConfigError(why));
        let Some(endpoint) = self.endpoint else {
            return match self.sample.is_some() || !self.tenants.is_empty() || self.authorization_file.is_some() {
                true => refuse("`traces.endpoint` is not set: give the address of an OTLP collector, or leave `[traces]` out".to_owned()),
                false => Ok(None),
            };
        };
        if !endpoint.starts_with("https://") && !is_this_machine(&endpoint) {
            return refuse(format!("`traces.endpoint` is `{endpoint}`: give an https URL, or http to an address of this machine itself"));
        }
        let sample = self.sample.unwrap_or(0.01);
        for (name, share) in self.tenants.iter().map(|(name, share)| (name.as_str(), *share)).chain([("", sample)]) {
            if !(0.0..=1.0).contains(&share) {
                let key = if name.is_empty() { "traces.sample".to_owned() } else { format!("traces.tenants.{name}") };
                return refuse(format!("`{key}` is {share}: give a share from 0 to 1"));
            }
        }
        let authorization = match &self.authorization_file {
            None => None,
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => Some(text.trim().to_owned()),
                Err(error) => return refuse(format!("cannot read `traces.authorization_file` `{}`: {error}", path.display())),
            },
        };
        Ok(Some(TracesConfig { endpoint, authorization, sample, tenants: self.tenants }))
    }
}

fn is_this_machine(url: &str) -> bool {
    let host = reqwest::Url::parse(url).ok().filter(|url| url.scheme() == "http").and_then(|url| url.host_str().map(str::to_owned));
    host.is_some_and(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
}
