//! Life and death of cells: what is handed out, what it may use, and who dies with whom.

use std::{
    fs,
    io::{BufRead, Write},
    os::fd::AsFd,
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use jail::{
    Floor, JailError, Layers, Limits, stream,
    zygote::{Exit, Launcher},
};
use rustix::process::{Pid, Signal, kill_process};

use super::{LIMITS, Outcome, PATIENCE, answer, attempt, eventually, evil_cell, outcome, socket_of, start};

const KILLED: Option<Exit> = Some(Exit::Signal { signal: 9, out_of_memory: false });

fn launcher() -> Launcher {
    Launcher::start(&evil_cell(), &[], &[], Floor::Strict).unwrap()
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
}

fn lives(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// This process's folders for cells in all hierarchies.
pub(super) fn groups_of(pid: u32) -> Vec<String> {
    let mut found = Vec::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut folders: Vec<_> =
        mounts.lines().filter(|line| line.contains(" - cgroup")).map(|line| line.split(' ').nth(4).unwrap().to_owned()).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        {
            let path = entry.path().to_string_lossy().into_owned();
            if entry.file_name().to_string_lossy().starts_with(&format!("insula-{pid}-")) {
                found.push(path.clone());
            }
            folders.push(path);
        }
    }
    found
}

/// Whether a process's mapping at this address asks for huge pages, as the kernel says.
fn asks_for_huge_pages(pid: u32, address: u64) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut here = false;
    for line in maps.lines() {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        match range.map(|(start, end)| (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))) {
            Some((Ok(start), Ok(end))) => here = (start..end).contains(&address),
            _ if here && line.starts_with("VmFlags:") => return line.split_whitespace().any(|flag| flag == "hg"),
            _ => {}
        }
    }
    panic!("nothing is mapped at {address:x}");
}

#[test]
fn a_room_is_made_of_huge_pages_until_it_is_left() {
    let launcher = launcher();
    let mut cell = launcher.spawn(&Limits { memory_bytes: 128 << 20, ..LIMITS }).unwrap();
    let mut socket = socket_of(&mut cell);
    socket.write_all(b"room 50331648").unwrap();
    let kernel_has_them = Path::new("/sys/kernel/mm/transparent_hugepage").exists();
    for expected in [kernel_has_them, false] {
        let Some(Outcome::Answer(address)) = answer(&mut socket) else { panic!("{:?}", outcome(&cell)) };
        assert_eq!(asks_for_huge_pages(cell.pid(), address.try_into().unwrap()), expected);
        socket.write_all(b"x").unwrap();
    }
    assert_eq!(outcome(&cell), Outcome::Code(0));
}

#[test]
fn a_cell_ends_by_itself() {
    let launcher = launcher();
    let mut cell = launcher.spawn(&LIMITS).unwrap();
    let (sender, receiver) = mpsc::channel();
    let early = sender.clone();
    cell.on_exit(move |exit| early.send(exit).unwrap());
    let socket = cell.take_socket().unwrap();
    assert!(cell.take_socket().is_none());
    assert_eq!(stream::recv(socket.as_fd(), &mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(socket);
    assert_eq!(receiver.recv_timeout(PATIENCE), Ok(Exit::Code(0)));
    cell.on_exit(move |exit| sender.send(exit).unwrap());
    assert_eq!(receiver.recv_timeout(PATIENCE), Ok(Exit::Code(0)));
    assert_eq!(cell.wait(PATIENCE), Some(Exit::Code(0)));
    assert!(cell.usage().memory_peak_bytes > 0);
}

#[test]
fn a_dropped_cell_is_killed_and_leaves_nothing() {
    let launcher = launcher();
    let cell = launcher.spawn(&LIMITS).unwrap();
    let pid = cell.pid();
    let cells = || {
        groups_of(std::process::id())
            .iter()
            .flat_map(|home| fs::read_dir(home).unwrap())
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .count()
    };
    assert!(lives(pid) && cells() > 0);
    drop(cell);
    eventually("the cell's death", || !lives(pid));
    eventually("the end of its groups", || cells() == 0);
    drop(launcher);
    assert_eq!(groups_of(std::process::id()), Vec::<String>::new());
}

#[test]
fn killed_is_told_from_out_of_memory() {
    let launcher = launcher();
    let cell = launcher.spawn(&LIMITS).unwrap();
    cell.kill();
    assert_eq!(cell.wait(PATIENCE), KILLED);
    assert_eq!(attempt(&launcher, &LIMITS, &format!("memory {}", 64 << 20)), Outcome::OutOfMemory);
    assert_eq!(attempt(&launcher, &LIMITS, &format!("memory {}", 8 << 20)), Outcome::Answer(0));
    // Time is up: not memory.
    assert_eq!(attempt(&launcher, &LIMITS, "spin"), Outcome::Signal(9));
}

#[test]
fn limits_move_when_a_blank_cell_is_handed_out() {
    let launcher = launcher();
    for (limit, expected) in [(128 << 20, Outcome::Answer(0)), (8 << 20, Outcome::OutOfMemory)] {
        let mut cell = launcher.spawn(&LIMITS).unwrap();
        cell.set_limits(&Limits { memory_bytes: limit, ..LIMITS }).unwrap();
        let mut socket = socket_of(&mut cell);
        socket.write_all(format!("memory {}", 48 << 20).as_bytes()).unwrap();
        assert_eq!(answer(&mut socket).unwrap_or_else(|| outcome(&cell)), expected, "limit {limit}");
    }
    let mut blank = launcher.spawn(&Limits { cpu_seconds_max: None, ..LIMITS }).unwrap();
    blank.set_limits(&LIMITS).unwrap();
    socket_of(&mut blank).write_all(b"spin").unwrap();
    assert_eq!(blank.wait(PATIENCE), KILLED);
    assert!(matches!(blank.set_limits(&LIMITS), Err(JailError::Gone(_))));
}

#[test]
fn the_memory_limit_moves_without_control_groups_too() {
    let launcher = start(Layers { cgroup: false, ..Layers::ALL });
    for (limit, expected) in [(24 << 20, Outcome::Answer(-i64::from(libc::ENOMEM))), (128 << 20, Outcome::Answer(0))] {
        let mut cell = launcher.spawn(&LIMITS).unwrap();
        cell.set_limits(&Limits { memory_bytes: limit, ..LIMITS }).unwrap();
        let mut socket = socket_of(&mut cell);
        socket.write_all(format!("memory {}", 48 << 20).as_bytes()).unwrap();
        assert_eq!(answer(&mut socket).unwrap_or_else(|| outcome(&cell)), expected, "limit {limit}");
    }
}

#[test]
fn the_processor_quota_holds() {
    let launcher = launcher();
    let mut cell = launcher.spawn(&Limits { cpu_percent: 10, cpu_seconds_max: None, ..LIMITS }).unwrap();
    socket_of(&mut cell).write_all(b"spin").unwrap();
    let begin = Instant::now();
    std::thread::sleep(Duration::from_millis(1_000));
    let (used, passed) = (cell.usage().cpu_micros, begin.elapsed().as_micros());
    assert!(used > 10_000, "it ran: {used} µs");
    // A tenth, plus the two periods that may be cut at either end.
    assert!(u128::from(used) < passed / 10 + 50_000, "{used} of {passed} µs");
}

#[test]
fn senseless_limits_are_refused() {
    let launcher = launcher();
    for limits in [
        Limits { memory_bytes: 0, ..LIMITS },
        Limits { memory_bytes: u64::MAX, ..LIMITS },
        Limits { cpu_percent: 0, ..LIMITS },
        Limits { cpu_weight: 0, ..LIMITS },
        Limits { cpu_weight: 101, ..LIMITS },
        Limits { cpu_seconds_max: Some(0), ..LIMITS },
        Limits { descriptors_max: 0, ..LIMITS },
    ] {
        assert!(matches!(launcher.spawn(&limits), Err(JailError::Limits(_))), "{limits:?}");
    }
}

#[test]
fn cells_share_no_user_id_and_hold_one_descriptor() {
    let launcher = launcher();
    let cells: Vec<_> = (0..5).map(|_| launcher.spawn(&LIMITS).unwrap()).collect();
    let mut ids = std::collections::HashSet::new();
    for cell in &cells {
        let status = fs::read_to_string(format!("/proc/{}/status", cell.pid())).unwrap();
        assert!(ids.insert(status.lines().find(|line| line.starts_with("Uid:")).unwrap().to_owned()));
        let held: Vec<_> = fs::read_dir(format!("/proc/{}/fd", cell.pid())).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(held, ["3"]);
    }
}

#[test]
fn the_environment_is_what_was_given() {
    let env = [("ONLY".to_owned(), "this".to_owned())];
    let launcher = Launcher::start(&evil_cell(), &[], &env, Floor::Strict).unwrap();
    assert_eq!(fs::read(format!("/proc/{}/environ", launcher.pid())).unwrap(), b"ONLY=this\0");
}

#[test]
fn many_at_once() {
    let launcher = launcher();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert_eq!(attempt(&launcher, &LIMITS, "send_descriptors"), Outcome::Answer(-i64::from(libc::EBADF)));
                }
            });
        }
    });
}

#[test]
fn cells_die_with_the_zygote_and_the_next_spawn_starts_another() {
    let launcher = launcher();
    let (cell, first) = (launcher.spawn(&LIMITS).unwrap(), launcher.pid());
    kill(first);
    assert_eq!(cell.wait(PATIENCE), KILLED);
    eventually("its burial by init", || !lives(cell.pid()));
    let next = launcher.spawn(&LIMITS).unwrap();
    assert_ne!(launcher.pid(), first);
    // Dying over and over is not answered by starting over and over.
    kill(launcher.pid());
    assert_eq!(next.wait(PATIENCE), KILLED);
    let Err(JailError::BackOff { retry_after_ms }) = launcher.spawn(&LIMITS) else { panic!("no back-off") };
    std::thread::sleep(Duration::from_millis(retry_after_ms + 5));
    launcher.spawn(&LIMITS).unwrap();
}

#[test]
fn everything_dies_with_the_service_and_the_next_one_cleans_up() {
    let mut service = std::process::Command::new(evil_cell()).arg("service").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(service.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    let [zygote, cell] = pids[..] else { panic!("`{line}`") };
    assert!(lives(zygote) && lives(cell));
    assert_ne!(groups_of(service.id()), Vec::<String>::new());
    // Killed without a chance to clean up; a test beside this one may start a launcher first and do it, which is as good.
    service.kill().unwrap();
    service.wait().unwrap();
    eventually("the death of zygote and cell", || !lives(zygote) && !lives(cell));
    let _next = launcher();
    assert_eq!(groups_of(service.id()), Vec::<String>::new());
}

#[test]
fn a_program_that_is_no_zygote_is_named() {
    for (program, reason) in [("/nonexistent", "No such file"), ("/bin/true", "ended before")] {
        let error = Launcher::start(program.as_ref(), &[], &[], Floor::Development).unwrap_err().to_string();
        assert!(error.contains(program) && error.contains(reason), "{error}");
    }
}
