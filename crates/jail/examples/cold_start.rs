//! Prints what the jail costs here: spawn to ready, and memory of an idle cell. `cargo run -p jail --example cold-start`.
//!
//! The cell is this very program, so no engine is part of the figures. On a busy machine read the smallest percentile only.

#![allow(clippy::print_stdout, clippy::indexing_slicing, reason = "a program for people; the vectors have fixed lengths")]

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use jail::{Floor, JailError, Layers, Limits, stream, zygote};

const ROUNDS: usize = 200;
const IDLE_CELLS: usize = 50;

fn main() -> Result<(), JailError> {
    if std::env::args().nth(1).as_deref() == Some("--zygote") {
        let Ok(control) = zygote::control() else { return Ok(()) };
        zygote::serve(control, |socket| {
            let _ = stream::send(socket.as_fd(), b"r", None);
            let _ = stream::recv(socket.as_fd(), &mut [0]);
        });
    }
    let program = std::env::current_exe().unwrap_or_default();
    let started = Instant::now();
    let launcher = zygote::Launcher::start(&program, &["--zygote"], &[], Floor::Development)?;
    println!("start and probe {:?}\n{}\n", started.elapsed(), launcher.report());
    measure("all layers", &launcher)?;
    let without = Layers { cgroup: false, ..Layers::ALL };
    measure("without control groups", &zygote::Launcher::start_weakened(&program, &["--zygote"], &[], without)?)?;
    let without = Layers { namespaces: false, ..Layers::ALL };
    measure("without namespaces", &zygote::Launcher::start_weakened(&program, &["--zygote"], &[], without)?)
}

fn measure(name: &str, launcher: &zygote::Launcher) -> Result<(), JailError> {
    let limits = Limits { memory_bytes: 64 << 20, cpu_percent: 100, cpu_weight: 1, cpu_seconds_max: None, descriptors_max: 16 };
    let (mut spawn, mut ready, mut end) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let mut cell = launcher.spawn(&limits)?;
        spawn.push(begin.elapsed());
        wait_for_word(&mut cell);
        ready.push(begin.elapsed());
        let begin = Instant::now();
        cell.kill();
        cell.wait(Duration::from_secs(5));
        end.push(begin.elapsed());
    }
    println!("{name}: spawn {}, to first word {}, kill to reaped and cleaned {}", shares(spawn), shares(ready), shares(end));
    let mut idle = Vec::new();
    for _ in 0..IDLE_CELLS {
        let mut cell = launcher.spawn(&limits)?;
        wait_for_word(&mut cell);
        idle.push(cell);
    }
    let charged = idle.iter().map(|cell| cell.usage().memory_bytes).sum::<u64>() / IDLE_CELLS as u64;
    println!("{name}: memory of an idle cell {} KiB", charged >> 10);
    Ok(())
}

fn wait_for_word(cell: &mut zygote::Cell) {
    if let Some(socket) = cell.take_socket() {
        let socket = std::os::unix::net::UnixStream::from(socket);
        let _ = socket.set_nonblocking(false);
        let _ = stream::recv(socket.as_fd(), &mut [0]);
        std::mem::forget(socket);
    }
}

fn shares(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    format!("p10 {:.2?} p50 {:.2?} p99 {:.2?}", at(10), at(50), at(99))
}
