//! Which service is asked, with which credential: options, then the named profile, then the environment, then the current profile.

use std::path::{Path, PathBuf};

use crate::args::Globals;
use crate::failure::{Failure, Result};
use crate::profile::{Profile, Profiles};

/// The address when nothing names one.
pub(crate) const URL_DEFAULT: &str = "https://localhost:8443";

/// What the environment says. Read once, in [`Environment::read`].
#[derive(Clone, Default)]
pub(crate) struct Environment {
    /// `INSULA_URL`.
    pub(crate) url: Option<String>,
    /// `INSULA_TOKEN`.
    pub(crate) token: Option<String>,
    /// `INSULA_CACERT`.
    pub(crate) cacert: Option<PathBuf>,
    /// `XDG_CONFIG_HOME/insula`, or `$HOME/.config/insula`.
    pub(crate) config_dir: Option<PathBuf>,
    /// `XDG_STATE_HOME/insula`, or `$HOME/.local/state/insula`.
    pub(crate) state_dir: Option<PathBuf>,
    /// What MLflow's own clients take, for the server that is imported from.
    pub(crate) mlflow: MlflowEnvironment,
}

/// Credentials of another MLflow server.
#[derive(Clone, Default)]
pub(crate) struct MlflowEnvironment {
    /// `MLFLOW_TRACKING_USERNAME`.
    pub(crate) username: Option<String>,
    /// `MLFLOW_TRACKING_PASSWORD`.
    pub(crate) password: Option<String>,
    /// `MLFLOW_TRACKING_TOKEN`.
    pub(crate) token: Option<String>,
    /// `MLFLOW_TRACKING_SERVER_CERT_PATH`.
    pub(crate) cacert: Option<PathBuf>,
}

impl Environment {
    pub(crate) fn read() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self {
            url: text("INSULA_URL"),
            token: text("INSULA_TOKEN"),
            cacert: text("INSULA_CACERT").map(PathBuf::from),
            config_dir: home("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("insula")),
            state_dir: home("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("insula")),
            mlflow: MlflowEnvironment {
                username: text("MLFLOW_TRACKING_USERNAME"),
                password: text("MLFLOW_TRACKING_PASSWORD"),
                token: text("MLFLOW_TRACKING_TOKEN"),
                cacert: text("MLFLOW_TRACKING_SERVER_CERT_PATH").map(PathBuf::from),
            },
        }
    }
}

/// A base directory of the XDG kind.
pub(crate) fn home(variable: &str, below: &str) -> Option<PathBuf> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    path(variable).or_else(|| path("HOME").map(|home| home.join(below)))
}

/// What a client needs.
#[derive(Clone)]
pub(crate) struct Settings {
    /// Address without a slash at its end.
    pub(crate) url: String,
    /// Credential, if there is one.
    pub(crate) token: Option<String>,
    /// Certificate authority, if not the system's.
    pub(crate) cacert: Option<PathBuf>,
    /// In seconds.
    pub(crate) timeout_seconds: u64,
}

impl Settings {
    /// Puts them together.
    pub(crate) fn resolve(globals: &Globals, environment: &Environment) -> Result<Self> {
        let path = profiles_path(environment).ok();
        let profiles = path.as_deref().map(Profiles::read).transpose()?.unwrap_or_default();
        let named = globals.profile.as_ref().map(|name| {
            let found = profiles.profiles.get(name).cloned();
            found.ok_or_else(|| {
                let known: Vec<&str> = profiles.profiles.keys().map(String::as_str).collect();
                Failure::usage(format!("there is no profile `{name}`")).help(match known.is_empty() {
                    true => "make one with `insula login`".to_owned(),
                    false => format!("there are: {}", known.join(", ")),
                })
            })
        });
        let named = named.transpose()?.unwrap_or_default();
        // A profile that was named is a tenant that was named: the environment must not slip another credential in.
        let environment_token = if globals.profile.is_some() { None } else { environment.token.clone() };
        let current = match (&globals.profile, &profiles.current) {
            (None, Some(current)) => profiles.profiles.get(current).cloned().unwrap_or_default(),
            _ => Profile::default(),
        };
        // An address from elsewhere never gets the current profile's credential.
        let url = globals.url.clone().or(named.url).or(environment.url.clone());
        let current_fits = url.is_none() || url == current.url;
        let current_token = if current_fits { current.token } else { None };
        let url = url.or(current.url).unwrap_or_else(|| URL_DEFAULT.to_owned());
        let url = url.trim_end_matches('/').to_owned();
        if !url.starts_with("https://") {
            return Err(Failure::usage(format!("the address `{url}` does not begin with https://")));
        }
        let cacert = globals.cacert.clone().or(named.cacert).or(environment.cacert.clone()).or(current.cacert);
        let cacert = cacert.or_else(|| development_ca(&url, environment.config_dir.as_deref()));
        Ok(Self {
            url,
            token: globals.token.clone().or(named.token).or(environment_token).or(current_token),
            cacert,
            timeout_seconds: globals.timeout,
        })
    }
}

/// Where the profiles are.
pub(crate) fn profiles_path(environment: &Environment) -> Result<PathBuf> {
    let dir = environment.config_dir.as_ref();
    dir.map(|dir| dir.join("profiles.toml")).ok_or_else(|| Failure::usage("there is no home directory for profiles: set HOME"))
}

/// The authority that a service of the same user on the same machine made at its first start.
fn development_ca(url: &str, config_dir: Option<&Path>) -> Option<PathBuf> {
    let host = url.strip_prefix("https://")?.split(['/', ':']).next()?;
    let path = config_dir?.join("ca.pem");
    (matches!(host, "localhost" | "127.0.0.1") && path.exists()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(dir: &Path) -> Environment {
        Environment {
            url: Some("https://env".to_owned()),
            token: Some("env-token".to_owned()),
            cacert: None,
            config_dir: Some(dir.to_owned()),
            ..Environment::default()
        }
    }

    fn globals() -> Globals {
        Globals { timeout: 60, ..Globals::default() }
    }

    fn with_profiles() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut profiles = Profiles { current: Some("a".to_owned()), ..Profiles::default() };
        for name in ["a", "b"] {
            let profile = Profile { url: Some(format!("https://{name}")), token: Some(format!("{name}-token")), cacert: None };
            profiles.profiles.insert(name.to_owned(), profile);
        }
        profiles.write(&dir.path().join("profiles.toml")).unwrap();
        dir
    }

    #[test]
    fn what_is_said_wins_over_what_lies_around() {
        let dir = with_profiles();
        let resolve = |globals: &Globals, environment: &Environment| {
            let settings = Settings::resolve(globals, environment).unwrap();
            (settings.url, settings.token.unwrap_or_default())
        };
        let pair = |url: &str, token: &str| (url.to_owned(), token.to_owned());
        let bare = Environment { config_dir: Some(dir.path().to_owned()), ..Environment::default() };
        assert_eq!(resolve(&globals(), &bare), pair("https://a", "a-token"));
        assert_eq!(resolve(&globals(), &environment(dir.path())), pair("https://env", "env-token"));
        let named = Globals { profile: Some("b".to_owned()), ..globals() };
        assert_eq!(resolve(&named, &environment(dir.path())), pair("https://b", "b-token"));
        let given = Globals { url: Some("https://x/".to_owned()), token: Some("t".to_owned()), ..named };
        assert_eq!(resolve(&given, &environment(dir.path())), pair("https://x", "t"));
    }

    #[test]
    fn a_credential_is_not_sent_elsewhere() {
        let dir = with_profiles();
        let bare = Environment { config_dir: Some(dir.path().to_owned()), ..Environment::default() };
        let elsewhere = Globals { url: Some("https://elsewhere".to_owned()), ..globals() };
        assert!(Settings::resolve(&elsewhere, &bare).unwrap().token.is_none());
    }

    #[test]
    fn plain_http_and_unknown_profiles_are_refused() {
        let bare = Environment::default();
        let plain = Globals { url: Some("http://x".to_owned()), ..globals() };
        assert!(Settings::resolve(&plain, &bare).is_err());
        let dir = with_profiles();
        let unknown = Globals { profile: Some("c".to_owned()), ..globals() };
        let text = Settings::resolve(&unknown, &environment(dir.path())).err().unwrap().text();
        assert!(text.contains("there are: a, b"), "{text}");
    }
}
