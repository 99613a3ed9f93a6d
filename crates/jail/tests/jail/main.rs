//! The jail on the real machine: life and death of cells, what the report notices, and the evil cell.
//!
//! The tests expect what the project's own machines have: root, control groups with memory, cpu and pids, Landlock. Where that is not so they fail and
//! say so through the report; nothing is skipped.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test binary; its helpers are outside `#[test]` functions"
)]

mod escape;
mod gvisor;
mod life;
mod walls;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use jail::{
    Floor, Layers, Limits,
    zygote::{Cell, Exit, Launcher},
};

const PATIENCE: Duration = Duration::from_secs(20);
const LIMITS: Limits = Limits { memory_bytes: 24 << 20, cpu_percent: 100, cpu_weight: 1, cpu_seconds_max: Some(1), descriptors_max: 16 };

/// What became of one order to the evil cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The kernel answered with this number, an error number if negative.
    Answer(i64),
    /// The process was killed.
    Signal(i32),
    /// Killed for its memory.
    OutOfMemory,
    Code(i32),
    Alive,
}

fn evil_cell() -> PathBuf {
    // Examples are built beside the tests: `target/debug/deps/jail-…` and `target/debug/examples/evil-cell`.
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples/evil-cell")
}

fn start(layers: Layers) -> Launcher {
    let started = match layers {
        Layers::ALL => Launcher::start(&evil_cell(), &[], &[], Floor::Strict),
        _ => Launcher::start_weakened(&evil_cell(), &[], &[], layers),
    };
    started.unwrap()
}

/// The cell's socket, made to block.
fn socket_of(cell: &mut Cell) -> UnixStream {
    let socket = UnixStream::from(cell.take_socket().unwrap());
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// One order to a fresh cell.
fn attempt(launcher: &Launcher, limits: &Limits, order: &str) -> Outcome {
    let mut cell = launcher.spawn(limits).unwrap();
    let mut socket = socket_of(&mut cell);
    socket.write_all(order.as_bytes()).unwrap();
    answer(&mut socket).unwrap_or_else(|| outcome(&cell))
}

fn answer(socket: &mut UnixStream) -> Option<Outcome> {
    let mut answer = [0; 8];
    socket.read_exact(&mut answer).ok()?;
    Some(Outcome::Answer(i64::from_le_bytes(answer)))
}

fn outcome(cell: &Cell) -> Outcome {
    match cell.wait(PATIENCE) {
        Some(Exit::Signal { out_of_memory: true, .. }) => Outcome::OutOfMemory,
        Some(Exit::Signal { signal, .. }) => Outcome::Signal(signal),
        Some(Exit::Code(code)) => Outcome::Code(code),
        None => Outcome::Alive,
    }
}

/// Waits for something that others bring about.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < end, "never came: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
