//! The second isolation class: a cell under a kernel of its own, gVisor's, inside the walls around it.
//!
//! In the jail a cell talks to the host's kernel, through fifteen system calls. Here it talks to another one, written in a memory-safe
//! language and run as a process; what that process may ask of the host is filtered in turn. A hole in the host's kernel that a jailed cell could
//! reach is then two holes away. The price is a start of a few hundred milliseconds instead of two, tens of megabytes a cell, and slower system calls.
//!
//! ```text
//! service ── Launcher::start_gvisor ──► keeper: your program, engine loaded, one thread, then gvisor::serve(control, ["inside"])
//!    │                                   │ clone3 into seven new namespaces, own outer user id, control group joined
//!    ├── Launcher::spawn ──────────────► │──► runsc (process 1 of its namespace, in a root made for this cell)
//!    │                                         ├─ gofer: serves the guest's files, chroot, system call filter
//!    └── Cell::take_socket ◄═══ fd 0 ══════════└─ sandbox: gVisor's kernel, empty chroot, system call filter
//!                                                    └─ guest: your program with "inside": gvisor::enter(its work)
//! ```
//!
//! `runsc` is not believed to clean up: it is process 1 of its own process namespace and its files lie in a mount namespace of its own, so
//! that the death of that one process takes every other one, every mount and every file with it. Everything runs under an outer user id that no
//! other process has, and is root only in a user namespace that owns nothing else.
//!
//! Inside, the program proves that the kernel is gVisor's, and then puts the same system call filter on itself as in the jail (and may ask for the
//! time, `cell.syscalls`): what is left of gVisor's kernel to attack are those calls.
//!
//! What does not go here: descriptors over the socket (gVisor passes none between the host and a guest). A model goes through it as bytes.

mod guest;
mod keeper;
mod probe;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

pub use guest::enter;
pub(crate) use keeper::Keeper;
pub use keeper::serve;
pub(crate) use probe::probe;

use crate::JailError;

/// Tells the keeper where `runsc` is.
const RUNSC: &str = "INSULA_RUNSC";
/// Tells a guest that it is a probe.
const PROBE: &str = "INSULA_PROBE";
/// Time in which `runsc` has to say what it is.
const VERSION_WAIT_MAX: Duration = Duration::from_secs(10);
/// Where `runsc` lies besides the places of `PATH`.
const USUAL_PLACES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/opt/gvisor"];

/// `runsc` in one of the folders of `path`, as the environment variable has it, or in the usual ones.
#[must_use]
pub fn find(path: Option<&OsStr>) -> Option<PathBuf> {
    let folders = path.map(|path| std::env::split_paths(path).collect::<Vec<_>>()).unwrap_or_default();
    let folders = folders.into_iter().chain(USUAL_PLACES.map(PathBuf::from));
    folders.map(|folder| folder.join("runsc")).find(|program| program.is_absolute() && program.is_file())
}

/// What `runsc` says it is.
pub(crate) fn version(runsc: &Path) -> Result<String, JailError> {
    let failed = |reason: String| JailError::Start { program: runsc.to_owned(), reason };
    let mut command = Command::new(runsc);
    command.arg("--version").env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let begun = Instant::now();
    while child.try_wait().map_err(|error| failed(error.to_string()))?.is_none() {
        if begun.elapsed() > VERSION_WAIT_MAX {
            // Dead or not: it is not waited for.
            let _ = child.kill().and_then(|()| child.wait());
            return Err(failed("it does not say its version in time".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().filter(|_| output.status.success()).ok_or_else(|| failed("it does not say its version".to_owned()))?;
    Ok(line.chars().filter(|letter| !letter.is_control()).take(80).collect())
}

/// For the keeper's environment.
pub(crate) fn environment(env: &[(String, String)], runsc: &Path) -> Vec<(String, String)> {
    env.iter().cloned().chain([(RUNSC.to_owned(), runsc.to_string_lossy().into_owned())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runsc_is_looked_for_in_the_path_first() {
        let folder = tempfile::tempdir().unwrap();
        assert!(find(Some(folder.path().as_os_str())).is_none_or(|found| !found.starts_with(folder.path())));
        std::fs::write(folder.path().join("runsc"), "").unwrap();
        assert_eq!(find(Some(folder.path().as_os_str())), Some(folder.path().join("runsc")));
        assert!(version(&folder.path().join("runsc")).is_err(), "an empty file says nothing");
    }
}
