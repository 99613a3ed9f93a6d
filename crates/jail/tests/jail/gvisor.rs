//! The other isolation class on the real machine: cells under gVisor's kernel, with the walls around it, and the evil cell inside.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use jail::{
    Enforced, Floor, JailError, Limits, gvisor,
    zygote::{Exit, Launcher},
};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    Outcome::{self, Answer},
    PATIENCE, answer, attempt, escape, eventually, evil_cell, outcome, socket_of,
};

/// A sandbox is a kernel and its helpers before it is a cell.
const LIMITS: Limits = Limits { memory_bytes: 256 << 20, cpu_percent: 100, cpu_weight: 1, cpu_seconds_max: None, descriptors_max: 16 };

fn runsc() -> Option<PathBuf> {
    let found = gvisor::find(std::env::var_os("PATH").as_deref());
    assert!(found.is_some() || std::env::var_os("INSULA_REQUIRE").is_none(), "INSULA_REQUIRE is set, and there is no runsc");
    if found.is_none() {
        println!("SKIPPED: there is no runsc");
    }
    found
}

fn start(mode: &str) -> Option<Launcher> {
    let runsc = runsc()?;
    let launcher = Launcher::start_gvisor(&evil_cell(), &[mode], &[], &runsc, Floor::Strict).unwrap();
    println!("{}", launcher.report());
    Some(launcher)
}

/// Processes of this user id.
fn processes_of(uid: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| uid_of(*pid).as_deref() == Some(uid)).collect()
}

fn uid_of(pid: u32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.to_owned())
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

#[test]
fn a_sandbox_is_walled_in_and_its_guest_too() {
    let Some(launcher) = start("keeper") else { return };
    let report = launcher.report();
    assert!(report.gvisor.as_deref().is_some_and(|version| version.contains("runsc")), "{report}");
    assert_eq!(
        (report.memory, report.cpu, report.cpu_weight, report.processes),
        (Enforced::Cgroup, Enforced::Cgroup, Enforced::Cgroup, Enforced::Cgroup)
    );
    assert!(report.seccomp && report.no_new_privileges && report.own_uid && report.namespaces.len() == 7, "{report}");
    let mut cell = launcher.spawn(&LIMITS).unwrap();
    let mut socket = socket_of(&mut cell);
    socket.write_all(b"echo").unwrap();
    assert!(matches!(answer(&mut socket), Some(Answer(1..))), "it works with the calls of the list alone");
}

#[test]
fn nothing_is_left_of_a_sandbox() {
    let Some(launcher) = start("keeper") else { return };
    let before = mounts();
    for killed in [None, Some("runsc"), Some("runsc-gofer"), Some("runsc-sandbox"), Some("keeper")] {
        let mut cell = launcher.spawn(&LIMITS).unwrap();
        let _socket = socket_of(&mut cell);
        let uid = uid_of(cell.pid()).unwrap();
        let words = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        eventually("a whole sandbox", || processes_of(&uid).len() >= 4);
        match killed {
            None => drop(cell),
            Some("keeper") => {
                kill_process(Pid::from_raw(launcher.pid().try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
                assert!(cell.wait(PATIENCE).is_some());
            }
            Some(name) => {
                let victim = |pid: &u32| words(pid).split('\0').next() == Some(name);
                eventually("the victim", || processes_of(&uid).iter().any(victim));
                let victim = processes_of(&uid).into_iter().find(victim).unwrap();
                kill_process(Pid::from_raw(victim.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
                assert!(cell.wait(PATIENCE).is_some(), "{name}");
            }
        }
        eventually("the end of every process", || processes_of(&uid).is_empty());
    }
    assert_eq!(mounts(), before, "no mount is left");
    drop(launcher);
    assert_eq!(super::life::groups_of(std::process::id()), Vec::<String>::new());
    assert!(!Path::new("/state").exists() && !Path::new("/new").exists());
}

#[test]
fn a_whole_sandbox_dies_with_the_service_and_the_next_one_cleans_up() {
    let Some(runsc) = runsc() else { return };
    let before = mounts();
    let mut service = Command::new(evil_cell()).arg("service").arg(runsc).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(service.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    let [keeper, cell] = pids[..] else { panic!("`{line}`") };
    let uid = uid_of(cell).unwrap();
    eventually("a whole sandbox", || processes_of(&uid).len() >= 4);
    assert_ne!(super::life::groups_of(service.id()), Vec::<String>::new());
    service.kill().unwrap();
    service.wait().unwrap();
    eventually("the end of every process", || processes_of(&uid).is_empty() && uid_of(keeper).is_none());
    // A service that starts again has no launcher for gVisor before one is needed: the other one cleans up for both.
    let _next = Launcher::start(&evil_cell(), &[], &[], Floor::Strict).unwrap();
    assert_eq!(super::life::groups_of(service.id()), Vec::<String>::new());
    assert_eq!(mounts(), before, "no mount is left");
}

#[test]
fn limits_hold_for_the_whole_sandbox() {
    let Some(launcher) = start("keeper") else { return };
    assert_eq!(attempt(&launcher, &LIMITS, &format!("memory {}", 512 << 20)), Outcome::OutOfMemory);
    assert_eq!(attempt(&launcher, &LIMITS, &format!("memory {}", 64 << 20)), Answer(0));
    let mut cell = launcher.spawn(&LIMITS).unwrap();
    let mut socket = socket_of(&mut cell);
    cell.set_limits(&Limits { memory_bytes: 1 << 30, ..LIMITS }).unwrap();
    socket.write_all(format!("memory {}", 512 << 20).as_bytes()).unwrap();
    assert_eq!(answer(&mut socket).unwrap_or_else(|| outcome(&cell)), Answer(0));
    assert!(cell.usage().memory_peak_bytes > 512 << 20, "{:?}", cell.usage());

    let mut cell = launcher.spawn(&Limits { cpu_percent: 20, ..LIMITS }).unwrap();
    socket_of(&mut cell).write_all(b"spin").unwrap();
    eventually("its start", || cell.usage().cpu_micros > 300_000);
    let (before, begin) = (cell.usage().cpu_micros, std::time::Instant::now());
    std::thread::sleep(Duration::from_millis(1_000));
    let (used, passed) = (cell.usage().cpu_micros - before, begin.elapsed().as_micros());
    assert!(used > 50_000 && u128::from(used) < passed / 5 + 50_000, "{used} of {passed} µs");
    cell.kill();
    assert_eq!(cell.wait(PATIENCE), Some(Exit::Signal { signal: 9, out_of_memory: false }));
    assert!(cell.usage().cpu_micros >= before + used, "what it used is known after its death");
}

/// The same table as in the jail: the same filter, on another kernel.
#[test]
fn no_way_out_of_a_guest() {
    let Some(launcher) = start("keeper") else { return };
    let wrong: Vec<_> = escape::WAYS_OUT
        .iter()
        .filter(|(_, expected, _)| *expected == escape::FILTER)
        .map(|(name, ..)| (name, attempt(&launcher, &LIMITS, &format!("{name} 1 2"))))
        .filter(|(_, outcome)| *outcome != escape::FILTER)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    for name in ["stack", "null"] {
        assert_eq!(attempt(&launcher, &LIMITS, name), Outcome::Signal(libc::SIGSEGV), "{name}");
    }
}

/// Without the filter on the guest: what gVisor's kernel itself shows of the host, which is nothing.
#[test]
fn behind_the_filter_is_another_kernel() {
    let Some(runsc) = runsc() else { return };
    let error = Launcher::start_gvisor(&evil_cell(), &["keeper", "open"], &[], &runsc, Floor::Strict).unwrap_err().to_string();
    assert!(error.contains("system call filter"), "a guest that does not lock itself is noticed: {error}");
    let launcher = Launcher::start_gvisor(&evil_cell(), &["keeper", "open-but-for-probes"], &[], &runsc, Floor::Strict).unwrap();
    let pid = std::process::id();
    for (name, errors) in [
        ("open", &[libc::ENOENT][..]),
        ("open_dev_mem", &[libc::ENOENT]),
        ("open_dev_vda", &[libc::ENOENT]),
        ("creat", &[libc::EROFS, libc::EACCES]),
        ("mount", &[libc::EPERM]),
        ("unshare_net", &[libc::EPERM]),
        ("setuid", &[libc::EPERM]),
        ("socket_packet", &[libc::EPERM, libc::EAFNOSUPPORT]),
        ("socket_vsock", &[libc::EAFNOSUPPORT]),
        ("bpf", &[libc::ENOSYS, libc::EPERM]),
        ("userfaultfd", &[libc::ENOSYS, libc::EPERM]),
        ("perf_event_open", &[libc::ENODEV, libc::ENOSYS, libc::EPERM]),
        ("kexec", &[libc::ENOSYS, libc::EPERM]),
        ("init_module", &[libc::ENOSYS, libc::EPERM]),
        (&format!("kill_parent {pid}"), &[libc::ESRCH]),
        (&format!("ptrace_parent {pid}"), &[libc::ESRCH, libc::EPERM]),
    ] {
        let outcome = attempt(&launcher, &LIMITS, name);
        assert!(errors.iter().any(|error| outcome == Answer(-i64::from(*error))), "{name}: {outcome:?}");
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(matches!(attempt(&launcher, &LIMITS, &format!("connect_loopback {port}")), Answer(..0)));
}

#[test]
fn where_runsc_is_missing_or_broken_it_is_said() {
    for (program, reason) in [("/nonexistent/runsc", "No such file"), ("/bin/false", "does not say its version")] {
        let error = Launcher::start_gvisor(&evil_cell(), &["keeper"], &[], program.as_ref(), Floor::Strict).unwrap_err();
        assert!(matches!(error, JailError::Start { .. }) && error.to_string().contains(reason), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let fake = folder.path().join("runsc");
    fs::write(&fake, "#!/bin/sh\necho runsc version 0\n").unwrap();
    fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(Launcher::start_gvisor(&evil_cell(), &["keeper"], &[], &fake, Floor::Strict).is_err(), "a program that starts no sandbox");
    // The guest's program outside of gVisor does not serve.
    let said = Command::new(evil_cell()).arg("inside").stdin(Stdio::null()).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("not gVisor's"));
}
