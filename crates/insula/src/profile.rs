//! Profiles: addresses and credentials by name, in a file that nobody else may read.
//!
//! ```toml
//! current = "clinic"
//! [profiles.clinic]
//! url = "https://ml.example.org"
//! token = "insula_…"
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure, Result};

/// Largest profiles file in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Bits of a file mode that let others in.
const MODE_OTHERS: u32 = 0o077;

/// The profiles file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profiles {
    /// The profile that is used when nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// By name.
    #[serde(default)]
    pub(crate) profiles: BTreeMap<String, Profile>,
}

/// One service and one credential.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// Address of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    /// Credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// PEM file of the service's certificate authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cacert: Option<PathBuf>,
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Profile").field("url", &self.url).field("cacert", &self.cacert).finish_non_exhaustive()
    }
}

impl Profiles {
    /// Reads the file; none is the same as an empty one.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Failure::file("read", path, &error)),
        };
        let mode = file.metadata().map_err(|error| Failure::file("read", path, &error))?.permissions().mode();
        if mode & MODE_OTHERS != 0 {
            return Err(Failure::new(Class::Failed, format!("others can read the credentials in `{}`", path.display()))
                .help(format!("chmod 600 {}", path.display())));
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| Failure::file("read", path, &error))?;
        toml::from_str(&text).map_err(|error| Failure::new(Class::Failed, format!("`{}`: {}", path.display(), error.message())))
    }

    /// Writes the file so that it is whole or unchanged, and for nobody else's eyes.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let failed = |error: std::io::Error| Failure::file("write", path, &error);
        if let Some(dir) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        }
        let text = toml::to_string(self).map_err(|error| Failure::new(Class::Failed, error.to_string()))?;
        let draft = path.with_extension(format!("{}.draft", std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft).map_err(failed)?;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&draft, path).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("insula/profiles.toml");
        assert!(Profiles::read(&path).unwrap().profiles.is_empty(), "no file is no profile");
        let mut profiles = Profiles::default();
        profiles.profiles.insert("clinic".to_owned(), Profile { token: Some("insula_x".to_owned()), ..Profile::default() });
        profiles.write(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(Profiles::read(&path).unwrap().profiles["clinic"].token.as_deref(), Some("insula_x"));
        for loose in [0o640, 0o604, 0o644] {
            fs::set_permissions(&path, Permissions::from_mode(loose)).unwrap();
            let text = Profiles::read(&path).unwrap_err().text();
            assert!(text.contains("help: chmod 600"), "{text}");
        }
        profiles.write(&path).unwrap();
        assert_eq!(mode(&path), 0o600, "writing closes it again");
    }

    #[test]
    fn a_profile_never_shows_its_credential() {
        let profile = Profile { token: Some("insula_secret".to_owned()), ..Profile::default() };
        assert!(!format!("{profile:?}").contains("secret"));
    }

    #[test]
    fn unknown_keys_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profiles.toml");
        fs::write(&path, "[profiles.a]\ntokn = \"x\"\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(Profiles::read(&path).unwrap_err().text().contains("tokn"));
    }
}
