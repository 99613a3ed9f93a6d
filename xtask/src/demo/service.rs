//! A running service, and the two ways in which the demo talks to it: the `insula` program, and curl where bytes are compared.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Programs;
use crate::Result;

/// Time for a start and for a stop.
const TURN_MAX: Duration = Duration::from_secs(60);
/// Lines of the log that an error repeats.
const LOG_LINES: usize = 12;

/// A service that we started. Dropping it stops it.
pub(super) struct Service {
    child: Child,
    /// What it said when it was ready.
    pub(super) url: String,
    /// Its development certificate authority.
    pub(super) cacert: PathBuf,
    /// Where the first start left the operator's one-time secret.
    pub(super) bootstrap: Option<PathBuf>,
    log: PathBuf,
}

impl Service {
    /// Starts it on a free port of this machine and waits until it is ready. `stores` is the part of its configuration about those that
    /// are not in its data folder.
    pub(super) fn start(programs: &Programs, folder: &Path, name: &str, data: &Path, keystore: &Path, stores: &str) -> Result<Self> {
        let failed = |error: std::io::Error| format!("cannot start the service: {error}");
        let config = folder.join(format!("{name}.toml"));
        // Full control of memory and CPU needs a writable control group, which a developer's machine often lacks.
        let text =
            format!("[cells]\nprogram = {:?}\nengine_library = {:?}\nfloor = \"development\"\n{stores}", programs.cell, programs.engine);
        write_private(&config, &text).map_err(failed)?;
        let log = folder.join(format!("{name}.log"));
        let mut command = Command::new(&programs.insula);
        command
            .args(["--json", "serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&config)
            .arg("--data")
            .arg(data)
            .arg("--keystore")
            .arg(keystore);
        command.env("HOME", folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log).map_err(failed)?);
        for variable in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "INSULA_URL", "INSULA_TOKEN", "INSULA_CACERT"] {
            command.env_remove(variable);
        }
        let mut child = command.spawn().map_err(failed)?;
        let output = child.stdout.take();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let read = output.map(|output| BufReader::new(output).read_line(&mut line));
            // Nobody waits any more when the time is over.
            let _ = sender.send(read.is_some_and(|read| read.is_ok()).then_some(line));
        });
        let mut service = Self { child, url: String::new(), cacert: PathBuf::new(), bootstrap: None, log };
        let line = receiver.recv_timeout(TURN_MAX).ok().flatten().unwrap_or_default();
        let Ok(facts) = serde_json::from_str::<Value>(&line) else {
            let told = service.told();
            return Err(format!("the service did not start: {told}"));
        };
        let text = |key: &str| facts.get(key).and_then(Value::as_str).map(str::to_owned);
        service.url = text("url").ok_or("the service did not say where it listens")?;
        service.cacert = text("cacert").map(PathBuf::from).ok_or("the service did not name its certificate authority")?;
        service.bootstrap = text("bootstrap_secret").map(PathBuf::from);
        Ok(service)
    }

    /// Its log's last lines that say something was wrong, or simply the last.
    pub(super) fn told(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let errors: Vec<&str> =
            lines.iter().copied().filter(|line| line.contains("\"error\"") || line.contains("error:") || line.contains("ERROR")).collect();
        let kept = if errors.is_empty() { lines } else { errors };
        kept.iter().skip(kept.len().saturating_sub(LOG_LINES)).copied().collect::<Vec<_>>().join("; ")
    }

    /// Asks it to stop and waits: accepted work is finished first.
    pub(super) fn stop(mut self) -> Result<()> {
        self.terminate()
    }

    fn terminate(&mut self) -> Result<()> {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return Ok(());
        }
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let deadline = Instant::now() + TURN_MAX;
        while asked.as_ref().is_ok_and(|status| status.success()) && Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        let killed = self.child.kill().and_then(|()| self.child.wait());
        Err(format!("the service did not stop by itself and was killed ({killed:?})"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            println!("{error}");
        }
    }
}

/// Writes a file that may hold secrets.
pub(super) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

/// How the `insula` program ended.
pub(super) struct Ended {
    /// Exit status.
    pub(super) status: i32,
    /// Standard output.
    pub(super) output: String,
    /// Standard error.
    pub(super) error: String,
}

/// Runs the `insula` program with a credential in its environment, never in its arguments.
pub(super) fn insula(
    programs: &Programs,
    folder: &Path,
    service: Option<&Service>,
    token: Option<&str>,
    arguments: &[&str],
) -> Result<Ended> {
    let mut command = Command::new(&programs.insula);
    command.arg("--json").args(arguments).env("HOME", folder).stdin(Stdio::null());
    for variable in ["XDG_CONFIG_HOME", "XDG_STATE_HOME", "INSULA_URL", "INSULA_TOKEN", "INSULA_CACERT"] {
        command.env_remove(variable);
    }
    if let Some(service) = service {
        command.env("INSULA_URL", &service.url).env("INSULA_CACERT", &service.cacert);
    }
    if let Some(token) = token {
        command.env("INSULA_TOKEN", token);
    }
    let output = command.output().map_err(|error| format!("cannot run insula: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended { status: output.status.code().unwrap_or(-1), output: text(&output.stdout), error: text(&output.stderr) })
}

/// An answer as it came over the wire.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// HTTP status.
    pub(super) status: u16,
    /// Header lines in their order, names in lower case.
    pub(super) headers: Vec<(String, String)>,
    /// Body.
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let (head, body) = bytes.split_at_checked(end)?;
        let head = String::from_utf8_lossy(head).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers =
            lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        Some(Self { status, headers: headers.collect(), body: body.get(4..)?.to_vec() })
    }
}

/// One request with curl: a client that knows nothing of us.
pub(super) fn curl(service: &Service, token: &str, method: &str, path: &str, body: Option<&str>) -> Result<Answer> {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--include", "--http1.1", "--max-time", "30", "--request", method, "--cacert"])
        .arg(&service.cacert);
    command.args(["--config", "-"]).arg(format!("{}{path}", service.url));
    if let Some(body) = body {
        command.args(["--header", "Content-Type: application/json", "--data-binary", body]);
    }
    let failed = |error: std::io::Error| format!("cannot run curl: {error}");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // In a file on standard input the key stays out of the process list.
        input.write_all(format!("header = \"Authorization: Bearer {token}\"\n").as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        return Err(format!("curl {method} {path}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Answer::parse(&output.stdout).ok_or_else(|| format!("curl {method} {path}: no HTTP answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_they_came() {
        let answer = Answer::parse(b"HTTP/1.1 404 Not Found\r\nX-Request-Id: a\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (404, &b"{}"[..]));
        assert_eq!(answer.header("x-request-id"), Some("a"));
        assert_eq!(Answer::parse(b"nonsense"), None);
    }
}
