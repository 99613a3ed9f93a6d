//! What is really enforced around and inside a sandbox: one that tries, and what the kernel says about its processes meanwhile.
//!
//! That the control groups of this machine kill and throttle is the jail's probe's finding; here it is looked that every process of the sandbox
//! is in them.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use super::guest::READY;
use crate::{
    CgroupVersion, Enforced, JailError, Limits, Report,
    probe::Subject,
    report::NAMESPACES,
    stream,
    zygote::{Cell, Exit},
};

/// Longest wait for the probe.
const PATIENCE: Duration = Duration::from_secs(30);
/// Memory of the probe: a sandbox with an engine loaded takes a third of it.
const MEMORY_BYTES: u64 = 256 << 20;
/// A weight that no group has by itself.
const WEIGHT: u32 = 7;
/// What of `runsc`'s words is shown.
const WORDS_BYTES_MAX: usize = 400;
/// `runsc` itself, the gofer, the sandbox, and a process for the guest's memory: fewer are not a sandbox.
const PROCESSES_MIN: usize = 4;

/// Fills a report from facts.
pub(crate) fn probe(subject: &impl Subject, version: String) -> Result<Report, JailError> {
    let hello = subject.hello();
    let mut report = Report::nothing(hello.cgroup, hello.threads);
    let limits = Limits { memory_bytes: MEMORY_BYTES, cpu_percent: 100, cpu_weight: WEIGHT, cpu_seconds_max: None, descriptors_max: 16 };
    let begin = Instant::now();
    let (words, said) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK)
        .map_err(|error| JailError::io("making a pipe")(error.into()))?;
    let mut probe = subject.stand(&limits, said.as_fd())?;
    drop(said);
    let socket = probe.take_socket().ok_or(JailError::Gone("a probe without a socket"))?;
    if !is_ready(&socket) {
        return Err(why(&probe, &words));
    }
    report.cell_start = begin.elapsed();
    report.gvisor = Some(version);
    let processes = probe.processes();
    look(&processes, &probe, &mut report);
    // By the call that the guest makes now.
    let _ = stream::send(socket.as_fd(), b"!", None);
    let ended = probe.wait(PATIENCE).ok_or(JailError::Gone("a probe did not end"))?;
    report.seccomp &= matches!(ended, Exit::Signal { signal: libc::SIGSYS, .. });
    Ok(report)
}

/// Whether the guest gives its word in time.
fn is_ready(socket: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let mut word = [0; READY.len()];
    let arrived = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&patience)).is_ok_and(|ready| ready == 1);
    // Written in one piece, so it arrives in one.
    arrived && stream::recv(socket.as_fd(), &mut word).is_ok_and(|(bytes, _)| bytes == word.len()) && word == *READY
}

/// Why there is no sandbox, with what `runsc` says of it.
fn why(probe: &Cell, words: &OwnedFd) -> JailError {
    let how = match probe.wait(Duration::from_secs(1)) {
        Some(Exit::Code(code)) => format!("it ended with status {code}"),
        Some(Exit::Signal { signal, .. }) => format!("it ended by signal {signal}"),
        None => "its guest said nothing in time".to_owned(),
    };
    let mut said = [0; WORDS_BYTES_MAX];
    let bytes = rustix::io::read(words, &mut said).unwrap_or(0);
    let said: String = String::from_utf8_lossy(said.get(..bytes).unwrap_or_default())
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    JailError::Start { program: "runsc".into(), reason: format!("{how}: {}", said.trim()).trim_end_matches([':', ' ']).to_owned() }
}

/// What holds for every process of the sandbox.
fn look(processes: &[u32], probe: &Cell, report: &mut Report) {
    let enough = processes.len() >= PROCESSES_MIN && processes.contains(&probe.pid());
    let all = |holds: &dyn Fn(u32) -> bool| enough && processes.iter().all(|pid| holds(*pid));
    let counted = match report.cgroup {
        CgroupVersion::None => Enforced::No,
        _ if enough && alone_in_namespace(processes, probe.pid()) => Enforced::Cgroup,
        _ => Enforced::No,
    };
    (report.memory, report.cpu, report.processes) = (counted, counted, counted);
    report.cpu_weight = if probe.weighs(WEIGHT) { counted } else { Enforced::No };
    let first = field(probe.pid(), "Uid:");
    let id = first.split_whitespace().next().unwrap_or("0").to_owned();
    report.own_uid = id != "0" && all(&|pid| field(pid, "Uid:").split_whitespace().all(|other| other == id));
    report.no_new_privileges = all(&|pid| field(pid, "NoNewPrivs:") == "1");
    // All but the first, which starts the others and then waits for them.
    report.seccomp = all(&|pid| pid == probe.pid() || field(pid, "Seccomp:") == "2");
    report.namespaces = NAMESPACES
        .into_iter()
        .filter(|name| all(&|pid| space(pid, name).is_some_and(|own| Some(own) != space(std::process::id(), name))))
        .collect();
}

/// Whether the group has every process of the first one's process namespace and of those below it: a process outside would not be counted.
fn alone_in_namespace(processes: &[u32], first: u32) -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let uid = field(first, "Uid:");
    all.filter(|pid| field(*pid, "Uid:") == uid).all(|pid| processes.contains(&pid))
}

fn field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim().to_owned()
}

fn space(pid: u32, name: &str) -> Option<std::path::PathBuf> {
    fs::read_link(Path::new("/proc").join(pid.to_string()).join("ns").join(name)).ok()
}
