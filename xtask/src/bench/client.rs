//! The load client: a process that is told in JSON what to ask. Its CPU is nobody's but its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::Result;

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// As the client program takes it.
    json: Value,
}

impl Ask {
    pub(super) fn get(path: impl Into<String>, token: &str) -> Self {
        Self { json: json!({"method": "GET", "path": path.into(), "token": token}) }
    }

    pub(super) fn send(method: &str, path: impl Into<String>, token: &str, body: impl Into<String>) -> Self {
        Self { json: json!({"method": method, "path": path.into(), "token": token, "body": body.into()}) }
    }

    pub(super) fn file(method: &str, path: impl Into<String>, token: &str, file: &Path) -> Self {
        Self { json: json!({"method": method, "path": path.into(), "token": token, "file": file.display().to_string()}) }
    }

    pub(super) fn delete(path: impl Into<String>, token: &str) -> Self {
        Self { json: json!({"method": "DELETE", "path": path.into(), "token": token}) }
    }
}

/// How requests are sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// All together; the requests are gone through again and again.
    pub(super) total: usize,
    pub(super) connections: usize,
    pub(super) per_second: Option<f64>,
    pub(super) gap_micros: u64,
    pub(super) bodies: bool,
    /// In place of a number: for so long.
    pub(super) seconds: Option<f64>,
    /// Each connection sends the request of its own place again and again.
    pub(super) own: bool,
}

impl Load {
    /// Each request once, one after the other.
    pub(super) fn once(total: usize) -> Self {
        Self { total, connections: 1, per_second: None, gap_micros: 0, bodies: false, seconds: None, own: false }
    }

    /// As many as there can be in that time.
    pub(super) fn lasting(seconds: f64, connections: usize) -> Self {
        Self { seconds: Some(seconds), connections, ..Self::once(0) }
    }
}

/// What came back.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) seconds: f64,
    /// In the order of the requests.
    pub(super) micros: Vec<f64>,
    pub(super) bodies: Vec<String>,
    /// How often each request was answered.
    pub(super) done: Vec<f64>,
}

impl Told {
    /// Requests a second.
    pub(super) fn rate(&self) -> f64 {
        self.micros.len() as f64 / self.seconds
    }

    /// A percentile of the latency in microseconds.
    pub(super) fn micros_at(&self, share: f64) -> f64 {
        percentile(&self.micros, share)
    }
}

/// The value below which `share` of the values lie.
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The running program.
pub(super) struct Client {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Client {
    pub(super) fn start(program: &Path, url: &str, ca: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| format!("cannot start the client: {error}");
        let mut command = Command::new(program);
        let mut child = command.arg(url).arg(ca).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let (input, output) = child.stdin.take().zip(child.stdout.take()).ok_or("the client has no pipes")?;
        Ok(Self { child, input: Some(input), output: BufReader::new(output) })
    }

    /// Sends requests; an answer that is not a success is an error.
    pub(super) fn run(&mut self, asks: &[Ask], load: Load) -> Result<Told> {
        let failed = |error: std::io::Error| format!("the client is gone: {error}");
        let requests: Vec<&Value> = asks.iter().map(|ask| &ask.json).collect();
        let command = json!({
            "requests": requests, "total": load.seconds.is_none().then_some(load.total), "connections": load.connections,
            "per_second": load.per_second, "gap_micros": (load.gap_micros > 0).then_some(load.gap_micros), "bodies": load.bodies,
            "seconds": load.seconds, "own": load.own,
        });
        let input = self.input.as_mut().ok_or("the client was stopped")?;
        writeln!(input, "{command}").and_then(|()| input.flush()).map_err(failed)?;
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(failed)?;
        let told: Value = serde_json::from_str(&line).map_err(|_| "the client failed: see above".to_owned())?;
        if let Some(failure) = told.get("failure").and_then(Value::as_str) {
            let first = requests.first().and_then(|request| request.get("path")).cloned().unwrap_or_default();
            let answers = told.get("statuses").cloned().unwrap_or_default();
            return Err(format!("the service refused {first} or one that came with it: {failure}; answers: {answers}"));
        }
        let list = |name: &str| told.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(Told {
            seconds: told.get("seconds").and_then(Value::as_f64).unwrap_or_default(),
            micros: list("micros").iter().filter_map(Value::as_f64).collect(),
            bodies: list("bodies").iter().filter_map(|body| body.as_str().map(str::to_owned)).collect(),
            done: list("done").iter().filter_map(Value::as_f64).collect(),
        })
    }

    /// Whether this one request succeeds now.
    pub(super) fn patient(&mut self, ask: &Ask) -> bool {
        let hostile = json!({"requests": [&ask.json], "total": 1, "hostile": {"fresh": true}});
        let told = self.input.as_mut().is_some_and(|input| writeln!(input, "{hostile}").and_then(|()| input.flush()).is_ok());
        let mut line = String::new();
        let read = told && self.output.read_line(&mut line).is_ok();
        let told: Value = serde_json::from_str(&line).unwrap_or_default();
        read && told.pointer("/statuses/200").and_then(Value::as_u64) == Some(1)
    }

    /// One request, and its answer.
    pub(super) fn one(&mut self, ask: Ask) -> Result<String> {
        let told = self.run(&[ask], Load { bodies: true, ..Load::once(1) })?;
        told.bodies.into_iter().next().ok_or_else(|| "there is no answer".to_owned())
    }

    /// One request whose answer is JSON.
    pub(super) fn json(&mut self, ask: Ask) -> Result<Value> {
        let body = self.one(ask)?;
        serde_json::from_str(&body).map_err(|error| format!("the answer is no JSON: {error}"))
    }
}

/// How somebody attacks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attacking {
    pub(super) connections: usize,
    pub(super) per_second: Option<f64>,
    /// A connection for each request.
    pub(super) fresh: bool,
    /// Pause after each byte of a body.
    pub(super) trickle_millis: Option<u64>,
}

impl Attacking {
    /// As fast as answers come.
    pub(super) fn with(connections: usize) -> Self {
        Self { connections, per_second: None, fresh: false, trickle_millis: None }
    }
}

/// An attack that goes on until its time is over. Its client only has what nobody else wants of the cores (`SCHED_IDLE`): what it costs to send
/// is not the service's.
pub(super) struct Attack {
    child: Child,
    output: BufReader<ChildStdout>,
}

/// What came of an attack.
#[derive(Debug)]
pub(super) struct Attacked {
    pub(super) seconds: f64,
    /// Answers by status.
    pub(super) statuses: BTreeMap<String, u64>,
    pub(super) broken: u64,
}

impl Attack {
    pub(super) fn start(program: &Path, (url, ca): (&str, &Path), ask: &Ask, how: Attacking, seconds: f64) -> Result<Self> {
        let failed = |error: std::io::Error| format!("cannot start the attacker: {error}");
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(program).arg(url).arg(ca).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let (mut input, output) = child.stdin.take().zip(child.stdout.take()).ok_or("the attacker has no pipes")?;
        let told = json!({
            "requests": [&ask.json], "connections": how.connections, "per_second": how.per_second, "seconds": seconds,
            "hostile": {"fresh": how.fresh, "trickle_millis": how.trickle_millis},
        });
        writeln!(input, "{told}").map_err(failed)?;
        Ok(Self { child, output: BufReader::new(output) })
    }

    /// Waits for its end.
    pub(super) fn end(mut self) -> Result<Attacked> {
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(|error| format!("the attacker is gone: {error}"))?;
        let told: Value = serde_json::from_str(&line).map_err(|_| "the attacker failed: see above".to_owned())?;
        let statuses = told.get("statuses").and_then(Value::as_object).cloned().unwrap_or_default();
        Ok(Attacked {
            seconds: told.get("seconds").and_then(Value::as_f64).unwrap_or_default(),
            statuses: statuses.into_iter().map(|(status, count)| (status, count.as_u64().unwrap_or_default())).collect(),
            broken: told.get("broken").and_then(Value::as_u64).unwrap_or_default(),
        })
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.input.take());
        // It ends with its input.
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((percentile(&values, 0.5), percentile(&values, 0.99), percentile(&values, 1.0)), (51.0, 100.0, 100.0));
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
