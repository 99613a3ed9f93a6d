//! Other programs: run visibly, run quietly, run and read.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Result;

/// A command in the repository's folder.
pub(crate) fn command(program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(crate::root()).stdin(Stdio::null());
    command
}

/// The cargo that runs us.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), arguments)
}

/// Runs with output on the terminal.
pub(crate) fn visibly(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| cannot_start(command, &error))?;
    if status.success() { Ok(()) } else { Err(format!("`{}` failed ({status})", shown(command))) }
}

/// Runs and returns standard output; standard error goes into the error.
pub(crate) fn quietly(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|error| cannot_start(command, &error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("`{}` failed ({}): {}", shown(command), output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// Whether it runs and succeeds.
pub(crate) fn works(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs with output on the terminal and shows each line of it to `see` as well. Returns whether it succeeded.
pub(crate) fn seen(command: &mut Command, mut see: impl FnMut(&str)) -> Result<bool> {
    let (reader, writer) = std::io::pipe().map_err(|error| format!("cannot make a pipe: {error}"))?;
    let second = writer.try_clone().map_err(|error| format!("cannot make a pipe: {error}"))?;
    command.stdout(writer).stderr(second);
    let mut child = command.spawn().map_err(|error| cannot_start(command, &error))?;
    // The command still holds the writing ends: while it does, the reader would wait for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut lines = BufReader::new(reader);
    let mut bytes = Vec::new();
    while lines.read_until(b'\n', &mut bytes).map_err(|error| format!("cannot read `{}`: {error}", shown(command)))? > 0 {
        let line = String::from_utf8_lossy(&bytes);
        let line = line.trim_end_matches(['\r', '\n']);
        println!("{line}");
        see(line);
        bytes.clear();
    }
    child.wait().map(|status| status.success()).map_err(|error| format!("`{}`: {error}", shown(command)))
}

/// Whether a program is on the path.
pub(crate) fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// SHA-256 of a file, lower-case hex.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let text = quietly(Command::new("sha256sum").arg(path))?;
    text.split_whitespace().next().map(|word| word.trim_start_matches('\\').to_owned()).ok_or_else(|| "sha256sum said nothing".to_owned())
}

fn cannot_start(command: &Command, error: &std::io::Error) -> String {
    format!("cannot run `{}`: {error}", command.get_program().to_string_lossy())
}

fn shown(command: &Command) -> String {
    let mut text = Path::new(command.get_program()).file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_outputs_are_seen() {
        let mut lines = Vec::new();
        let script = "echo one; echo two >&2; printf three; exit 3";
        let good = seen(&mut command("sh", &["-c", script]), |line| lines.push(line.to_owned())).unwrap();
        assert!(!good);
        assert_eq!(lines, ["one", "two", "three"]);
    }

    #[test]
    fn a_failure_names_its_command() {
        let error = quietly(&mut command("sh", &["-c", "echo no >&2; exit 1"])).unwrap_err();
        assert!(error.starts_with("`sh -c echo no >&2; exit 1` failed") && error.ends_with("no"), "{error}");
        assert!(quietly(&mut command("no-such-program-here", &[])).unwrap_err().contains("cannot run"));
    }

    #[test]
    fn digests() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "abc").unwrap();
        let found = sha256(&dir.path().join("a")).unwrap();
        assert_eq!(found, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
